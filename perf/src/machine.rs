//! What else the machine did while something was measured: other load, time stolen by its host,
//! flushes of the disk, threads that never yield.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::{major, minor};
use serde::Serialize;

/// Parts of a second that /proc counts in: USER_HZ, which is 100 for every program.
const TICKS_PER_S: f64 = 100.0;
/// Of shorter times the kernel's ticks say nothing.
const LEAST_S: f64 = 0.5;
/// Of the flags of a process: it is a thread of the kernel's.
const KERNEL_THREAD: u64 = 0x0020_0000;
/// Processes that are looked at before others may have the CPU.
const LOOKED_AT_ONCE: usize = 16;
/// Where the kernel tells of block devices.
const BLOCK_DEVICES: &str = "/sys/class/block";

/// Who takes part in the measurement, beside this process.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    /// The broker's process, if it runs here; it may be this one.
    pub broker_pid: Option<u32>,
    /// The disk of the broker's data directory, if that is here.
    pub disk: Option<String>,
}

/// The counters of one moment.
#[derive(Clone, Debug)]
pub struct Counters {
    at: Instant,
    steal_s: f64,
    others: Others,
    /// The broker's process was there, if it was to be.
    is_whole: bool,
    yields: Option<Vec<u64>>,
    writes_and_flushes: Option<(u64, u64)>,
}

/// Processes that take no part.
#[derive(Clone, Debug, Default)]
struct Others {
    /// By their numbers.
    spent: HashMap<u32, Spent>,
    /// Whether the kernel's threads are among what is shown, as they are outside of containers.
    are_all: bool,
}

/// CPU time of a process since it began, in ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Spent {
    itself: u64,
    /// Of its children that have ended, and theirs.
    ended: u64,
}

/// Whose time a stat tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Time {
    Kernel,
    Process(Spent),
}

/// What happened between two moments.
#[derive(Clone, Debug, Serialize)]
pub struct Between {
    /// How long it was.
    pub elapsed_s: f64,
    /// Of one CPU's time: what the machine's host gave to others.
    pub steal_share: f64,
    /// Of one CPU's time: what other processes took, unless the broker went away meanwhile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub others_share: Option<f64>,
    /// Whether these are all that there are, and not those of a container.
    pub others_are_all: bool,
    /// sched_yield(2) calls a second on each CPU, if the kernel counts them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub yields_per_s: Option<Vec<f64>>,
    /// Writes that the disk completed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_writes: Option<u64>,
    /// Flushes that the disk completed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_flushes: Option<u64>,
}

impl Counters {
    /// Reads them.
    #[must_use]
    pub fn read(parts: &Parts) -> Self {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let schedstat = fs::read_to_string("/proc/schedstat").ok();
        let disk = parts.disk.as_ref();
        Self {
            at: Instant::now(),
            steal_s: stolen_s(&stat),
            others: others(parts),
            is_whole: parts.broker_pid.is_none_or(is_there),
            yields: schedstat
                .map(|text| yields(&text))
                .filter(|y| !y.is_empty()),
            writes_and_flushes: disk.and_then(|disk| of_disk(Path::new(BLOCK_DEVICES), disk)),
        }
    }

    /// What happened until `later`.
    #[must_use]
    pub fn until(&self, later: &Self) -> Between {
        let elapsed_s = (later.at - self.at).as_secs_f64().max(1e-9);
        let share = |seconds: f64| (seconds / elapsed_s).max(0.0);
        let is_whole = self.is_whole && later.is_whole;
        let yields = self.yields.as_ref().zip(later.yields.as_ref());
        let disk = self.writes_and_flushes.zip(later.writes_and_flushes);
        Between {
            elapsed_s,
            steal_share: share(later.steal_s - self.steal_s),
            others_share: is_whole.then(|| share(spent_s(&self.others.spent, &later.others.spent))),
            others_are_all: self.others.are_all && later.others.are_all,
            yields_per_s: yields.map(|(before, after)| {
                let each = before.iter().zip(after);
                each.map(|(b, a)| a.saturating_sub(*b) as f64 / elapsed_s)
                    .collect()
            }),
            disk_writes: disk.map(|(before, after)| after.0.saturating_sub(before.0)),
            disk_flushes: disk.map(|(before, after)| after.1.saturating_sub(before.1)),
        }
    }
}

impl Between {
    /// Whether it was long enough for shares of a CPU to mean something.
    #[must_use]
    pub fn tells_shares(&self) -> bool {
        self.elapsed_s >= LEAST_S
    }
}

fn is_there(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

/// Stolen seconds of all CPUs since the machine started.
fn stolen_s(stat: &str) -> f64 {
    // cpu, user, nice, system, idle, iowait, irq, softirq, steal.
    let steal = stat.lines().next().and_then(|line| {
        let field = line.split_whitespace().nth(8)?;
        field.parse::<f64>().ok()
    });
    steal.unwrap_or(0.0) / TICKS_PER_S
}

/// What other processes have spent. Not the kernel's threads, which work for all, and not
/// the difference of what CPUs and participants spent, which count interrupts differently.
fn others(parts: &Parts) -> Others {
    let mut others = Others::default();
    let of_parts = [Some(std::process::id()), parts.broker_pid];
    let names = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = names.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    for (n, pid) in pids
        .filter(|pid| !of_parts.contains(&Some(*pid)))
        .enumerate()
    {
        // Whoever is measured on this CPU does not wait for all of them.
        if n % LOOKED_AT_ONCE == 0 {
            std::thread::yield_now();
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
        match stat.ok().and_then(|stat| spent(&stat)) {
            Some(Time::Kernel) => others.are_all = true,
            Some(Time::Process(spent)) => {
                others.spent.insert(pid, spent);
            }
            // It has ended.
            None => {}
        }
    }
    others
}

/// What a process has spent, from its stat of proc(5).
fn spent(stat: &str) -> Option<Time> {
    // The name of the program, in brackets, may hold anything.
    let (_, rest) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let at = |n: usize| -> Option<u64> { fields.get(n)?.parse().ok() };
    if at(6)? & KERNEL_THREAD != 0 {
        return Some(Time::Kernel);
    }
    Some(Time::Process(Spent {
        itself: at(11)? + at(12)?,
        ended: at(13)? + at(14)?,
    }))
}

/// Seconds that processes spent between two moments. What one spent that has ended is with its parent.
fn spent_s(before: &HashMap<u32, Spent>, after: &HashMap<u32, Spent>) -> f64 {
    let (mut living, mut ended) = (0, 0);
    for (pid, now) in after {
        let then = before.get(pid).copied().unwrap_or_default();
        living += now.itself.saturating_sub(then.itself);
        ended += now.ended.saturating_sub(then.ended);
    }
    let gone = before.iter().filter(|(pid, _)| !after.contains_key(pid));
    let counted_before: u64 = gone.map(|(_, spent)| spent.itself + spent.ended).sum();
    (living + ended.saturating_sub(counted_before)) as f64 / TICKS_PER_S
}

/// sched_yield calls of each CPU since the machine started.
fn yields(schedstat: &str) -> Vec<u64> {
    let cpus = schedstat.lines().filter_map(|line| {
        let (cpu, rest) = line.split_once(' ')?;
        cpu.strip_prefix("cpu")?.parse::<usize>().ok()?;
        rest.split_whitespace().next()?.parse().ok()
    });
    cpus.collect()
}

/// Writes and flushes that a disk completed. One that is made of others passes flushes on and counts none
/// itself: then theirs.
fn of_disk(devices: &Path, disk: &str) -> Option<(u64, u64)> {
    let mut path = devices.join(disk);
    if path.join("partition").exists() {
        // Flushes are those of the whole disk.
        path = fs::canonicalize(path).ok()?.parent()?.into();
    }
    let parts = fs::read_dir(path.join("slaves"));
    let parts: Vec<_> = parts.into_iter().flatten().flatten().collect();
    if parts.is_empty() {
        return writes_and_flushes(&fs::read_to_string(path.join("stat")).ok()?);
    }
    let each = parts.iter().map(|part| {
        let name = part.file_name();
        of_disk(devices, name.to_str()?)
    });
    each.reduce(|a, b| a.zip(b).map(|(a, b)| (a.0 + b.0, a.1 + b.1)))?
}

/// From a disk's stat.
fn writes_and_flushes(stat: &str) -> Option<(u64, u64)> {
    let fields: Vec<u64> = stat
        .split_whitespace()
        .filter_map(|n| n.parse().ok())
        .collect();
    Some((*fields.get(4)?, *fields.get(15)?))
}

/// The whole disk that a directory is on, such as vda; none where the kernel does not say.
#[must_use]
pub fn disk_of(dir: &Path) -> Option<String> {
    let device = fs::metadata(dir).ok()?.dev();
    let number = format!("/sys/dev/block/{}:{}", major(device), minor(device));
    let mut path: PathBuf = fs::canonicalize(number).ok()?;
    if path.join("partition").exists() {
        path.pop();
    }
    Some(path.file_name()?.to_str()?.to_owned())
}

/// The host as a report names it.
#[derive(Clone, Debug, Serialize)]
pub struct Host {
    /// As uname(2) says.
    pub kernel: String,
    /// As the processor names itself.
    pub cpu: String,
    /// CPUs that are online.
    pub cpus: usize,
    /// How their frequency is governed; "not set from here" where the machine does not say.
    pub governor: String,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Whether it is a virtual machine, as the processor says.
    pub is_virtual: bool,
}

impl Host {
    /// This one.
    #[must_use]
    pub fn look() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let info = read("/proc/cpuinfo");
        let value = |text: &str, key: &str| -> Option<String> {
            let line = text.lines().find(|line| line.starts_with(key))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let memory = value(&read("/proc/meminfo"), "MemTotal");
        let kib = memory.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
        let governor = read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpu: value(&info, "model name")
                .or_else(|| value(&info, "CPU part"))
                .unwrap_or_else(|| "unknown".into()),
            cpus: online(&read("/proc/stat")),
            governor: match governor.trim() {
                "" => "not set from here".into(),
                name => name.into(),
            },
            memory_bytes: kib.unwrap_or(0) * 1024,
            is_virtual: info.lines().any(|line| {
                line.starts_with("flags") && line.split_whitespace().any(|f| f == "hypervisor")
            }),
        }
    }
}

/// CPUs that are online, whichever of them this process may use.
fn online(stat: &str) -> usize {
    let numbers = stat.lines().filter_map(|line| line.strip_prefix("cpu"));
    numbers
        .filter(|n| n.starts_with(|c: char| c.is_ascii_digit()))
        .count()
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    /// A process that takes a CPU for as long as it lives.
    struct Intruder(Child);

    impl Intruder {
        fn new() -> Self {
            let child = Command::new("sh")
                .args(["-c", "while :; do :; done"])
                .spawn();
            Self(child.expect("a shell"))
        }
    }

    impl Drop for Intruder {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn spent_by(pid: u32) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
        match spent(&stat) {
            Some(Time::Process(spent)) => spent.itself,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_stat_is_read_field_by_field() {
        let stat = "cpu  100 50 25 1000 7 3 2 40 0 0\ncpu0 1 2 3\ncpu2 1 2 3\nctxt 5\n";
        assert_eq!((stolen_s(stat), online(stat)), (0.4, 2));
        let schedstat = "version 17\ntimestamp 1\ncpu0 12 0 5\ndomain0 MC 3\ncpu1 34 0 6\n";
        assert_eq!(yields(schedstat), [12, 34]);
        let disk = "1 2 3 4 500 6 7 8 9 10 11 12 13 14 15 600 17\n";
        assert_eq!(writes_and_flushes(disk), Some((500, 600)));
        assert_eq!(writes_and_flushes("1 2 3"), None, "an old kernel");
    }

    #[test]
    fn a_process_is_told_from_a_thread_of_the_kernel() {
        let stat = "12 (a) b) S 1 12 12 0 -1 4194304 100 0 0 0 7 5 30 40 20 0 1 0 251 31 3";
        let (itself, ended) = (12, 70);
        assert_eq!(spent(stat), Some(Time::Process(Spent { itself, ended })));
        let kernels = stat.replace("4194304", "2129984");
        assert_eq!(spent(&kernels), Some(Time::Kernel));
        assert_eq!(spent(""), None);
    }

    #[test]
    fn what_processes_spent_is_counted_once_whoever_ended_meanwhile() {
        let of = |processes: &[(u32, u64, u64)]| -> HashMap<u32, Spent> {
            let spent = |&(pid, itself, ended): &_| (pid, Spent { itself, ended });
            processes.iter().map(spent).collect()
        };
        let before = of(&[(1, 500, 0), (2, 300, 0), (3, 10, 5)]);
        for (after, s) in [
            (&[(1, 500, 0), (2, 300, 0), (3, 10, 5)][..], 0.0),
            (&[(1, 530, 0), (2, 300, 0), (3, 10, 5), (4, 20, 0)], 0.5),
            // The second and a new one ended, and the first waited for them.
            (&[(1, 500, 340), (3, 10, 5)], 0.4),
            // Nobody waited for it.
            (&[(1, 560, 0), (3, 10, 5)], 0.6),
        ] {
            assert_eq!(spent_s(&before, &of(after)), s, "{after:?}");
        }
    }

    #[test]
    fn an_intruder_shows_whatever_this_process_does() {
        let intruder = Intruder::new();
        let pid = intruder.0.id();
        let here = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
        let to = here.local_addr().expect("an address");
        let (before, began) = (Counters::read(&Parts::default()), spent_by(pid));
        // Sending over loopback is work in soft interrupts, which are charged to the sender.
        while spent_by(pid) < began + 30 {
            for _ in 0..1000 {
                let _ = here.send_to(&[0; 64], to);
            }
        }
        let after = Counters::read(&Parts::default());
        assert!(spent_s(&before.others.spent, &after.others.spent) >= 0.3);
        assert!(before.until(&after).others_share > Some(0.0));
        let broker_pid = Some(pid);
        let parts = Parts {
            broker_pid,
            disk: None,
        };
        assert!(!Counters::read(&parts).others.spent.contains_key(&pid));
        let this = std::process::id();
        assert!(!after.others.spent.contains_key(&this), "nor are we");
    }

    #[test]
    fn cpus_that_this_thread_may_not_use_are_online_all_the_same() {
        let pinned = crate::cpu::on(Some(0), || Host::look().cpus).expect("a first CPU");
        let all = fs::read_to_string("/proc/stat").expect("there");
        assert_eq!(pinned, online(&all));
    }

    #[test]
    fn flushes_of_a_disk_are_counted_where_they_are_done() {
        let dir = tempfile::tempdir().expect("a directory");
        let devices = dir.path().join("class");
        let stat = |name: &str, writes: u64, flushes: u64| {
            let zeros = "0 ".repeat(10);
            let text = format!("0 0 0 0 {writes} {zeros}{flushes} 0");
            fs::create_dir_all(devices.join(name)).expect("made");
            fs::write(devices.join(name).join("stat"), text).expect("written");
        };
        stat("sda", 5, 2);
        stat("sdb", 6, 3);
        stat("dm-0", 9, 0);
        stat("sda/sda1", 1, 0);
        fs::write(devices.join("sda/sda1/partition"), "1").expect("written");
        std::os::unix::fs::symlink("sda/sda1", devices.join("sda1")).expect("linked");
        for part in ["sda1", "sdb"] {
            fs::create_dir_all(devices.join("dm-0/slaves").join(part)).expect("made");
        }
        for (disk, told) in [
            ("sda", Some((5, 2))),
            ("sda1", Some((5, 2))),
            ("dm-0", Some((11, 5))),
            ("absent", None),
        ] {
            assert_eq!(of_disk(&devices, disk), told, "{disk}");
        }
        fs::remove_file(devices.join("sdb/stat")).expect("removed");
        assert_eq!(of_disk(&devices, "dm-0"), None, "not all of it is known");
    }

    #[test]
    fn what_a_broker_took_that_is_gone_is_not_taken_for_that_of_others() {
        // No process has this number.
        let gone = Parts {
            broker_pid: Some(u32::MAX),
            ..Parts::default()
        };
        let before = Counters::read(&Parts::default());
        let between = before.until(&Counters::read(&gone));
        assert_eq!(between.others_share, None);
    }
}
