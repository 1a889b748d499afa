//! What each fact about the host means for a broker. Pure: facts in, verdicts out.

use super::Check;
use super::host::{Directory, Host, NoAccess};
use crate::cpu_list::show;
use crate::exit::Exit;
use crate::setting::show_bytes;

/// The oldest kernel that has what a shard's ring uses (deferred task work, multishot receive).
const OLDEST_KERNEL: (u32, u32) = (6, 1);
/// What the executor locks for itself at the least.
const MEMLOCK_REQUIRED_BYTES: u64 = 512 << 10;
/// What also holds the registered buffers of a shard.
const MEMLOCK_COMFORTABLE_BYTES: u64 = 8 << 20;
/// Below this little is left for records once the write-ahead log is made.
const ROOM_BEYOND_WAL_BYTES: u64 = 1 << 30;

/// Every check, in the order in which they are shown.
pub(crate) fn all(host: &Host) -> Vec<Check> {
    let mut checks = vec![
        kernel(host),
        io_uring(host),
        memlock(host),
        open_files(host),
        data_directory(&host.directory),
        direct_io(&host.directory),
        file_system(&host.directory),
        free_space(host),
        write_cache(&host.directory),
    ];
    checks.extend([governor(host), isolation(host), interrupts(host)]);
    checks
}

fn kernel(host: &Host) -> Check {
    let found = host.kernel.clone();
    let mut numbers = found
        .split(['.', '-'])
        .map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= OLDEST_KERNEL {
        return Check::ok("kernel", found);
    }
    let (major, minor) = OLDEST_KERNEL;
    Check::required(
        "kernel",
        found,
        format!("Linux {major}.{minor} is the oldest that has what a shard's ring uses"),
        format!(
            "Boot a kernel of version {major}.{minor} or newer; `uname -r` shows the running one"
        ),
    )
}

fn io_uring(host: &Host) -> Check {
    match &host.io_uring {
        Ok(()) => Check::ok("io_uring", "allowed"),
        Err(why) => Check::required(
            "io_uring",
            format!("not usable: {why}"),
            "all files and sockets of a shard go through it",
            "Run `sysctl -w kernel.io_uring_disabled=0`; in a container allow the system calls \
             io_uring_setup, io_uring_enter and io_uring_register in its seccomp profile",
        ),
    }
}

fn memlock(host: &Host) -> Check {
    const MEND: &str = "Run `ulimit -l unlimited` before starting, or set LimitMEMLOCK=infinity \
                        in the systemd unit";
    let Some(bytes) = host.memlock_bytes else {
        return Check::ok("memlock", "unlimited");
    };
    let found = show_bytes(bytes);
    if bytes < MEMLOCK_REQUIRED_BYTES {
        let need = show_bytes(MEMLOCK_REQUIRED_BYTES);
        let matters = format!("a shard locks at least {need}");
        return Check::required("memlock", found, matters, MEND);
    }
    if bytes < MEMLOCK_COMFORTABLE_BYTES {
        let matters =
            "Registered buffers will not fit; without them each write costs a little more";
        return Check::advice("memlock", found, matters, MEND);
    }
    Check::ok("memlock", found)
}

fn open_files(host: &Host) -> Check {
    let (hard, wanted) = (host.open_files_hard, host.open_files_wanted);
    let found = format!("at most {hard} (the limit is raised to this at start)");
    let required = host.open_files_required;
    if hard >= wanted.max(required) {
        return Check::ok("open files", found);
    }
    let wanted = wanted.max(required);
    let mend = format!(
        "Run `ulimit -Hn {wanted}` as root before starting, or set LimitNOFILE={wanted} in the systemd unit"
    );
    if hard < required {
        let matters = format!(
            "with fewer than {required}, beside those of the log there are none for connections and segments"
        );
        return Check::required("open files", found, matters, mend);
    }
    let matters = format!("The connections allowed and the files of the log may need {wanted}");
    let mend = format!("{mend}, or lower max-connections");
    Check::advice("open files", found, matters, mend)
}

fn data_directory(directory: &Directory) -> Check {
    let path = directory.path.display();
    match &directory.access {
        Ok(()) => Check::ok("data directory", format!("{path} can be written to")),
        Err(NoAccess { why, mend }) => Check {
            exit: Exit::DirectoryUnusable,
            ..Check::required(
                "data directory",
                format!("{path}: {why}"),
                "everything the broker keeps goes there",
                *mend,
            )
        },
    }
}

fn direct_io(directory: &Directory) -> Check {
    let path = directory.path.display();
    match &directory.direct_io {
        Ok(()) => Check::ok("direct I/O", format!("O_DIRECT works on {path}")),
        Err(why) => Check::required(
            "direct I/O",
            format!("O_DIRECT does not work on {path}: {why}"),
            "the log is written past the page cache, or durable would mean nothing",
            "Choose with --data-dir a directory that this user may write to, on a local ext4 or \
             XFS file system",
        ),
    }
}

fn file_system(directory: &Directory) -> Check {
    let name = directory.file_system.as_str();
    let found = format!("{name} on {}", directory.device_name());
    let (matters, mend) = match name {
        "ext4" | "xfs" => return Check::ok("file system", found),
        "tmpfs" | "ramfs" => (
            "It lives in memory: nothing in it outlives a reboot, whatever was acknowledged",
            "Choose with --data-dir a directory on a disk",
        ),
        "overlayfs" => (
            "It belongs to a container and goes with it, and the log is slower through it",
            "Mount a volume of the host into the container and give it with --data-dir",
        ),
        "btrfs" | "zfs" | "bcachefs" => (
            "It copies on write, so that each durable write changes its trees as well",
            "Choose with --data-dir a directory on ext4 or XFS (on btrfs `chattr +C` helps)",
        ),
        "nfs" | "fuse" => (
            "It is remote: a durable write takes as long as the other side and the way there",
            "Choose with --data-dir a directory on a local ext4 or XFS file system",
        ),
        _ => (
            "The broker was measured on ext4 and XFS; how long durable writes take here is unknown",
            "Look at the durable write in the start-up line of `ringtide serve`, or choose ext4 or XFS",
        ),
    };
    Check::advice("file system", found, matters, mend)
}

fn free_space(host: &Host) -> Check {
    let Some(free) = host.directory.free_bytes else {
        return Check::advice(
            "free space",
            "unknown",
            "A full disk refuses publishes until there is space again",
            "Run `df` on the data directory",
        );
    };
    let found = format!("{} MiB", free >> 20);
    let wal = host.wal_bytes_to_make;
    let is_short = wal > 0 && free < wal + host.wal_bytes_to_spare;
    if is_short && host.wal_bytes_there > 0 {
        return Check::advice(
            "free space",
            found,
            format!(
                "The write-ahead log lacks {} MiB: publishes wait, or are refused, while what there \
                 is of it is in use",
                wal >> 20
            ),
            "Free some, or lower wal-slots",
        );
    }
    if is_short {
        return Check::required(
            "free space",
            found,
            format!(
                "the write-ahead log alone takes {} MiB, and is made only where {} MiB are left then",
                wal >> 20,
                host.wal_bytes_to_spare >> 20
            ),
            "Free some, choose another --data-dir, or lower wal-slots or wal-slot-bytes",
        );
    }
    if free - wal < ROOM_BEYOND_WAL_BYTES {
        return Check::advice(
            "free space",
            found,
            format!(
                "Beyond the write-ahead log ({} MiB) little is left for records",
                wal >> 20
            ),
            "Free some, or give the topics a lower retention-bytes",
        );
    }
    Check::ok("free space", found)
}

fn write_cache(directory: &Directory) -> Check {
    let device = directory.device_name();
    match (directory.volatile_cache, directory.fua) {
        (Some(false), _) => Check::ok(
            "write cache",
            format!("{device}: none that could lose writes"),
        ),
        (Some(true), Some(true)) => Check::ok(
            "write cache",
            format!("{device}: volatile, single writes can pass it (FUA)"),
        ),
        (Some(true), _) => Check::advice(
            "write cache",
            format!("{device}: volatile, and single writes cannot pass it (no FUA)"),
            "Each durable write flushes the whole cache, which costs about as much as the write",
            "Use a device with power-loss protection for the lowest durable latency",
        ),
        (None, _) => Check::advice(
            "write cache",
            format!("{device}: unknown"),
            "Whether a durable write needs a flush of the device cannot be told from here",
            "Look at the durable write in the start-up line of `ringtide serve`",
        ),
    }
}

fn governor(host: &Host) -> Check {
    let slow: Vec<usize> = host
        .governors
        .iter()
        .filter(|(_, governor)| governor != "performance")
        .map(|&(cpu, _)| cpu)
        .collect();
    let Some((_, governor)) = host.governors.iter().find(|(cpu, _)| slow.contains(cpu)) else {
        let found = if host.governors.is_empty() {
            "not set from here"
        } else {
            "performance"
        };
        return Check::ok("CPU governor", found);
    };
    let cpus = show(&slow);
    Check::advice(
        "CPU governor",
        format!("{governor} on CPU {cpus}"),
        "A core that slows down when it is idle answers the first message late",
        format!("Run `cpupower -c {cpus} frequency-set -g performance`"),
    )
}

fn isolation(host: &Host) -> Check {
    let shared: Vec<usize> = host
        .shard_cpus
        .iter()
        .copied()
        .filter(|cpu| !host.isolated.contains(cpu))
        .collect();
    if shared.is_empty() {
        let found = format!("CPU {} is set apart for the shards", show(&host.shard_cpus));
        return Check::ok("CPU isolation", found);
    }
    let cpus = show(&shared);
    if host.online.len() <= host.shard_cpus.len() {
        return Check::advice(
            "CPU isolation",
            format!("every CPU has a shard ({cpus})"),
            "Kernel workers, interrupts and other programs interrupt the shards",
            "Leave at least one CPU without a shard: name fewer with --cpus",
        );
    }
    Check::advice(
        "CPU isolation",
        format!("other programs may run on CPU {cpus} too"),
        "Whatever else runs there delays messages, which shows in the highest percentiles",
        format!("Boot with isolcpus={cpus} nohz_full={cpus} if this host is for the broker"),
    )
}

fn interrupts(host: &Host) -> Check {
    let name = "disk interrupts";
    let device = host.directory.device_name();
    let Some(cpu) = host.disk_interrupt_cpu else {
        return Check::ok(name, "the device's cannot be told from here");
    };
    let found = format!("{device} interrupts CPU {cpu} the most");
    let elsewhere: Vec<usize> = host
        .online
        .iter()
        .copied()
        .filter(|cpu| !host.shard_cpus.contains(cpu))
        .collect();
    // An NVMe device has a queue for each CPU and interrupts the one that asked: nothing to move.
    let can_move = !device.starts_with("nvme");
    match elsewhere.first() {
        Some(other) if can_move && host.shard_cpus.contains(&cpu) => Check::advice(
            name,
            found,
            "A shard on the CPU that takes the disk's interrupts is held up by each of them",
            format!(
                "Give the shards other CPUs (--cpus {}), or move it: find its number N in \
                 /proc/interrupts and run `echo {other} > /proc/irq/N/smp_affinity_list`",
                show(&elsewhere)
            ),
        ),
        _ => Check::ok(name, found),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    fn good() -> Host {
        Host {
            kernel: "6.18.44-generic".into(),
            io_uring: Ok(()),
            memlock_bytes: None,
            open_files_hard: 1 << 20,
            open_files_required: 100,
            open_files_wanted: 20_000,
            wal_bytes_to_make: 512 << 20,
            wal_bytes_there: 0,
            wal_bytes_to_spare: 32 << 20,
            directory: Directory {
                path: "/data".into(),
                file_system: "ext4".into(),
                device: Some("vda".into()),
                access: Ok(()),
                direct_io: Ok(()),
                free_bytes: Some(100 << 30),
                volatile_cache: Some(false),
                fua: Some(false),
            },
            shard_cpus: vec![2, 3],
            online: vec![0, 1, 2, 3],
            governors: vec![(2, "performance".into()), (3, "performance".into())],
            isolated: vec![2, 3],
            disk_interrupt_cpu: Some(0),
        }
    }

    fn verdict(host: &Host, name: &str) -> Verdict {
        all(host)
            .iter()
            .find(|check| check.name == name)
            .expect("a check")
            .verdict
    }

    #[test]
    fn a_good_host_is_all_well() {
        for check in all(&good()) {
            assert_eq!(check.verdict, Verdict::Ok, "{check:?}");
        }
    }

    #[test]
    fn what_a_broker_cannot_do_without_is_required_with_a_mend() {
        type Spoil = fn(&mut Host);
        let cases: &[(&str, Spoil)] = &[
            ("kernel", |h| h.kernel = "6.0.9".into()),
            ("kernel", |h| h.kernel = "5.15.0-100-generic".into()),
            ("io_uring", |h| h.io_uring = Err("forbidden".into())),
            ("memlock", |h| h.memlock_bytes = Some(64 << 10)),
            ("open files", |h| h.open_files_hard = 99),
            ("direct I/O", |h| {
                h.directory.direct_io = Err("EINVAL".into())
            }),
            ("free space", |h| h.directory.free_bytes = Some(1 << 20)),
        ];
        for (name, spoil) in cases {
            let mut host = good();
            spoil(&mut host);
            let check = all(&host)
                .into_iter()
                .find(|check| check.name == *name)
                .expect("a check");
            assert_eq!(check.verdict, Verdict::Required, "{check:?}");
            assert!(check.matters.is_some() && check.mend.is_some(), "{check:?}");
        }
    }

    #[test]
    fn what_only_costs_time_is_advice() {
        type Spoil = fn(&mut Host);
        let cases: &[(&str, Spoil)] = &[
            ("memlock", |h| h.memlock_bytes = Some(4 << 20)),
            ("open files", |h| h.open_files_hard = 1024),
            ("file system", |h| h.directory.file_system = "btrfs".into()),
            ("file system", |h| {
                h.directory.file_system = "something".into()
            }),
            ("free space", |h| h.directory.free_bytes = Some(600 << 20)),
            ("write cache", |h| h.directory.volatile_cache = Some(true)),
            ("write cache", |h| h.directory.volatile_cache = None),
            ("CPU governor", |h| h.governors[1].1 = "powersave".into()),
            ("CPU isolation", |h| h.isolated.clear()),
            ("disk interrupts", |h| h.disk_interrupt_cpu = Some(3)),
        ];
        for (name, spoil) in cases {
            let mut host = good();
            spoil(&mut host);
            assert_eq!(verdict(&host, name), Verdict::Advice, "{name}");
        }
    }

    #[test]
    fn interrupts_are_left_alone_where_nothing_can_be_moved() {
        let mut host = Host {
            disk_interrupt_cpu: Some(2),
            ..good()
        };
        host.directory.device = Some("nvme0n1".into());
        assert_eq!(
            verdict(&host, "disk interrupts"),
            Verdict::Ok,
            "a queue for each CPU"
        );
        let host = Host {
            disk_interrupt_cpu: Some(2),
            online: vec![2, 3],
            ..good()
        };
        assert_eq!(
            verdict(&host, "disk interrupts"),
            Verdict::Ok,
            "no other CPU"
        );
    }

    #[test]
    fn a_kernel_is_judged_by_its_numbers() {
        for (release, well) in [
            ("6.1.0", true),
            ("6.10-rc1", true),
            ("10.0", true),
            ("6.0", false),
            ("x", false),
        ] {
            let host = Host {
                kernel: release.into(),
                ..good()
            };
            assert_eq!(verdict(&host, "kernel") == Verdict::Ok, well, "{release}");
        }
    }

    #[test]
    fn the_last_slot_of_the_log_needs_half_of_its_size_beside_it() {
        let mut host = good();
        let needed = host.wal_bytes_to_make + host.wal_bytes_to_spare;
        host.directory.free_bytes = Some(needed);
        assert_eq!(verdict(&host, "free space"), Verdict::Advice);
        host.directory.free_bytes = Some(needed - 1);
        assert_eq!(verdict(&host, "free space"), Verdict::Required);
    }

    #[test]
    fn a_log_that_is_there_in_part_is_no_reason_to_refuse_a_start() {
        let mut host = good();
        host.directory.free_bytes = Some(1 << 20);
        assert_eq!(verdict(&host, "free space"), Verdict::Required);
        host.wal_bytes_there = 256 << 20;
        assert_eq!(verdict(&host, "free space"), Verdict::Advice);
    }
}
