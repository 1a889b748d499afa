//! What else the machine did while something was measured: other load, time stolen by its host,
//! flushes of the disk, threads that never yield.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;

/// Parts of a second that /proc/stat counts in: USER_HZ, which is 100 for every program.
const TICKS_PER_S: f64 = 100.0;

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
    busy_s: f64,
    steal_s: f64,
    /// This process and the broker's; nothing once that is gone.
    own_s: Option<f64>,
    yields: Option<Vec<u64>>,
    writes_and_flushes: Option<(u64, u64)>,
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
        let (busy_s, steal_s) = cpu_time(&stat);
        let this = std::process::id();
        let broker = parts.broker_pid.filter(|pid| *pid != this);
        let of_broker = broker.map_or(Some(Duration::ZERO), process_time);
        let own = process_time(this).zip(of_broker);
        let own_s = own.map(|(this, broker)| (this + broker).as_secs_f64());
        let schedstat = fs::read_to_string("/proc/schedstat").ok();
        let disk = parts.disk.as_ref();
        Self {
            at: Instant::now(),
            busy_s,
            steal_s,
            own_s,
            yields: schedstat
                .map(|text| yields(&text))
                .filter(|y| !y.is_empty()),
            writes_and_flushes: disk.and_then(|disk| {
                let path = PathBuf::from("/sys/class/block").join(disk).join("stat");
                writes_and_flushes(&fs::read_to_string(path).ok()?)
            }),
        }
    }

    /// What happened until `later`.
    #[must_use]
    pub fn until(&self, later: &Self) -> Between {
        let elapsed_s = (later.at - self.at).as_secs_f64().max(1e-9);
        let share = |seconds: f64| (seconds / elapsed_s).max(0.0);
        let busy_s = later.busy_s - self.busy_s;
        let own = self.own_s.zip(later.own_s);
        let yields = self.yields.as_ref().zip(later.yields.as_ref());
        let disk = self.writes_and_flushes.zip(later.writes_and_flushes);
        Between {
            elapsed_s,
            steal_share: share(later.steal_s - self.steal_s),
            others_share: own.map(|(before, after)| share(busy_s - (after - before))),
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

/// Busy and stolen seconds of all CPUs since the machine started.
fn cpu_time(stat: &str) -> (f64, f64) {
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<f64> = line
        .split_whitespace()
        .skip(1)
        .filter_map(|n| n.parse().ok())
        .collect();
    let at = |n: usize| ticks.get(n).copied().unwrap_or(0.0) / TICKS_PER_S;
    // user, nice, system, idle, iowait, irq, softirq, steal. Interrupts belong to nobody.
    (at(0) + at(1) + at(2), at(7))
}

/// Time on a CPU of all threads of a process, if there is one.
fn process_time(pid: u32) -> Option<Duration> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program, in brackets, may hold anything.
    let rest = text.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let ticks = |n: usize| -> f64 {
        let field = rest.split_whitespace().nth(n);
        field.and_then(|f| f.parse().ok()).unwrap_or(0.0)
    };
    Some(Duration::from_secs_f64(
        (ticks(11) + ticks(12)) / TICKS_PER_S,
    ))
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

/// Writes and flushes that a disk completed.
fn writes_and_flushes(stat: &str) -> Option<(u64, u64)> {
    let fields: Vec<u64> = stat
        .split_whitespace()
        .filter_map(|n| n.parse().ok())
        .collect();
    Some((*fields.get(4)?, *fields.get(15)?))
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
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_is_read_field_by_field() {
        let stat = "cpu  100 50 25 1000 7 3 2 40 0 0\ncpu0 1 2 3\n";
        assert_eq!(cpu_time(stat), (1.75, 0.4));
        let schedstat = "version 17\ntimestamp 1\ncpu0 12 0 5\ndomain0 MC 3\ncpu1 34 0 6\n";
        assert_eq!(yields(schedstat), [12, 34]);
        let disk = "1 2 3 4 500 6 7 8 9 10 11 12 13 14 15 600 17\n";
        assert_eq!(writes_and_flushes(disk), Some((500, 600)));
        assert_eq!(writes_and_flushes("1 2 3"), None, "an old kernel");
    }

    #[test]
    fn work_of_this_process_is_not_that_of_others() {
        let parts = Parts::default();
        let before = Counters::read(&parts);
        let own = || process_time(std::process::id()).expect("this process");
        let began = own();
        // Until the kernel has counted a good deal of it.
        while own() < began + Duration::from_millis(300) {
            std::hint::spin_loop();
        }
        let after = Counters::read(&parts);
        assert!(after.own_s > before.own_s.map(|s| s + 0.29));
        let between = before.until(&after);
        assert!(between.elapsed_s > 0.0 && between.steal_share >= 0.0);
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
