//! Facts about the host, as the kernel tells them. Nothing is judged here.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::host_cpus;

/// What a broker depends on.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    /// The release, for example `6.1.0-13-amd64`.
    pub(crate) kernel: String,
    /// Whether a ring can be made, or why not.
    pub(crate) io_uring: Result<(), String>,
    /// Absent: without bound.
    pub(crate) memlock_bytes: Option<u64>,
    /// What the limit on open files can be raised to.
    pub(crate) open_files_hard: u64,
    /// Open files that the configuration may come to need.
    pub(crate) connections_wanted: u64,
    /// What the write-ahead log will still take of the free space.
    pub(crate) wal_bytes_to_make: u64,
    pub(crate) directory: Directory,
    pub(crate) shard_cpus: Vec<usize>,
    /// All CPUs that are running.
    pub(crate) online: Vec<usize>,
    /// The frequency governor of each shard's CPU that has one.
    pub(crate) governors: Vec<(usize, String)>,
    /// CPUs that the scheduler keeps other programs off.
    pub(crate) isolated: Vec<usize>,
    /// Of the device under the data directory, as far as they can be told.
    pub(crate) disk_interrupts: Vec<Interrupt>,
}

/// Where the data is, or will be.
#[derive(Clone, Debug)]
pub(crate) struct Directory {
    /// The data directory, or the nearest above it that exists.
    pub(crate) path: PathBuf,
    pub(crate) file_system: String,
    /// The device's name, or what is mounted where there is none.
    pub(crate) device: String,
    /// Whether files can be made there, or why not.
    pub(crate) access: Result<(), String>,
    /// Whether blocks can be written past the page cache, or why not.
    pub(crate) direct_io: Result<(), String>,
    pub(crate) free_bytes: Option<u64>,
    /// Whether the device holds back writes that a power cut would lose.
    pub(crate) volatile_cache: Option<bool>,
    /// Whether a single write can pass that cache.
    pub(crate) fua: Option<bool>,
}

/// An interrupt line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Interrupt {
    pub(crate) number: u32,
    /// Which CPUs take it.
    pub(crate) cpus: Vec<usize>,
    /// How often it came since the host started.
    pub(crate) count: u64,
}

impl Host {
    /// Looks at the host with the eyes of a broker of this configuration.
    pub(crate) fn look(config: &Config) -> Self {
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let (directory, block) = Directory::look(&config.data_dir);
        let wal = config.cpus.len() as u64 * config.wal_slots as u64 * config.wal_slot_bytes;
        let online = list("/sys/devices/system/cpu/online").unwrap_or_else(host_cpus::allowed);
        let governors = config.cpus.iter().filter_map(|&cpu| {
            let path = format!("/sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor");
            Some((cpu, word(&path)?))
        });
        Self {
            kernel: word("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".into()),
            io_uring: io_uring(),
            memlock_bytes: limit(&limits, "Max locked memory", 1).unwrap_or(None),
            open_files_hard: limit(&limits, "Max open files", 1)
                .flatten()
                .unwrap_or(u64::MAX),
            connections_wanted: (config.cpus.len() * config.max_connections) as u64 + 1024,
            wal_bytes_to_make: wal.saturating_sub(bytes_under(&config.data_dir.join("wal"))),
            directory,
            shard_cpus: config.cpus.clone(),
            online,
            governors: governors.collect(),
            isolated: list("/sys/devices/system/cpu/isolated").unwrap_or_default(),
            disk_interrupts: block
                .map(|block| disk_interrupts(&block))
                .unwrap_or_default(),
        }
    }
}

impl Directory {
    /// The directory, and its block device in sysfs if it has one.
    fn look(data_dir: &Path) -> (Self, Option<PathBuf>) {
        let path = nearest_existing(data_dir);
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mount = Mount::of(&mounts, &path);
        let block = mount.as_ref().and_then(|mount| whole_device(&mount.number));
        let queue = |name: &str| word(block.as_ref()?.join("queue").join(name).to_str()?);
        let device = match (&block, &mount) {
            (Some(block), _) => block
                .file_name()
                .map(|name| name.to_string_lossy().into_owned()),
            (None, Some(mount)) => Some(mount.source.clone()),
            (None, None) => None,
        };
        let (access, direct_io) = try_direct(data_dir, &path);
        let directory = Self {
            access,
            direct_io,
            file_system: mount.map_or_else(|| "unknown".into(), |mount| mount.file_system),
            device: device.unwrap_or_else(|| "an unknown device".into()),
            free_bytes: free_bytes(&path),
            volatile_cache: queue("write_cache").map(|kind| kind == "write back"),
            fua: queue("fua").map(|fua| fua == "1"),
            path,
        };
        (directory, block)
    }
}

/// A line of `/proc/self/mountinfo`.
struct Mount {
    /// `major:minor`.
    number: String,
    point: String,
    file_system: String,
    source: String,
}

impl Mount {
    fn parse(line: &str) -> Option<Self> {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(2);
        let (number, point) = (left.next()?, left.nth(1)?);
        let mut right = right.split(' ');
        Some(Self {
            number: number.into(),
            // Spaces are written as octal escapes.
            point: point.replace("\\040", " "),
            file_system: right.next()?.into(),
            source: right.next()?.into(),
        })
    }

    /// The mount that a path lies in: the longest that leads to it, and of equals the last.
    fn of(mountinfo: &str, path: &Path) -> Option<Self> {
        let path = path.canonicalize().ok()?;
        mountinfo
            .lines()
            .filter_map(Self::parse)
            .filter(|mount| path.starts_with(&mount.point))
            .max_by_key(|mount| mount.point.len())
    }
}

/// The device of a number in sysfs; of a partition, the whole one.
fn whole_device(number: &str) -> Option<PathBuf> {
    let device = fs::canonicalize(Path::new("/sys/dev/block").join(number)).ok()?;
    if device.join("partition").exists() {
        Some(device.parent()?.into())
    } else {
        Some(device)
    }
}

/// The interrupts of a block device, found by the name of its driver's instance.
fn disk_interrupts(block: &Path) -> Vec<Interrupt> {
    let Ok(device) = fs::canonicalize(block.join("device")) else {
        return Vec::new();
    };
    let Some(name) = device.file_name().and_then(|name| name.to_str()) else {
        return Vec::new();
    };
    let table = fs::read_to_string("/proc/interrupts").unwrap_or_default();
    parse_interrupts(&table, name)
        .into_iter()
        .map(|(number, count)| Interrupt {
            number,
            cpus: list(&format!("/proc/irq/{number}/effective_affinity_list"))
                .or_else(|| list(&format!("/proc/irq/{number}/smp_affinity_list")))
                .unwrap_or_default(),
            count,
        })
        .collect()
}

/// Numbers and counts of the lines of `/proc/interrupts` that belong to requests of `device`:
/// `virtio1-req.0`, `nvme0q1`; not `virtio1-config`, and not the administrative queue `nvme0q0`.
fn parse_interrupts(table: &str, device: &str) -> Vec<(u32, u64)> {
    let cpus = table
        .lines()
        .next()
        .map_or(0, |line| line.split_whitespace().count());
    let requests = |name: &str| {
        let Some(rest) = name.strip_prefix(device) else {
            return false;
        };
        rest.starts_with("-req") || rest.strip_prefix('q').is_some_and(|q| q != "0")
    };
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let number = words.next()?.strip_suffix(':')?.parse().ok()?;
            let count = words
                .by_ref()
                .take(cpus)
                .filter_map(|n| n.parse::<u64>().ok())
                .sum();
            requests(words.next_back()?).then_some((number, count))
        })
        .collect()
}

/// Whether a ring can be made.
fn io_uring() -> Result<(), String> {
    match word("/proc/sys/kernel/io_uring_disabled").as_deref() {
        Some("2") => Err("kernel.io_uring_disabled is 2".into()),
        _ => Ok(()),
    }
}

/// A limit of this process: the n-th value of the line of that name. `None` inside: unlimited.
fn limit(limits: &str, name: &str, nth: usize) -> Option<Option<u64>> {
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    let value = line.split_whitespace().nth(nth)?;
    if value == "unlimited" {
        Some(None)
    } else {
        Some(Some(value.parse().ok()?))
    }
}

/// Whether files can be made in `directory`, and whether past the page cache.
fn try_direct(data_dir: &Path, directory: &Path) -> (Result<(), String>, Result<(), String>) {
    if data_dir.exists() && !data_dir.is_dir() {
        return (
            Err(format!("{} is not a directory", data_dir.display())),
            Ok(()),
        );
    }
    if let Err(error) = fs::read_dir(directory) {
        return (Err(error.to_string()), Ok(()));
    }
    match write_direct(directory) {
        Ok(()) => (Ok(()), Ok(())),
        Err(error) => match error.kind() {
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
                (Err(error.to_string()), Ok(()))
            }
            // A full disk has a check of its own.
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => (Ok(()), Ok(())),
            _ => (Ok(()), Err(error.to_string())),
        },
    }
}

/// Writes one block past the page cache, to a file that is gone when this returns.
fn write_direct(directory: &Path) -> std::io::Result<()> {
    const BLOCK: usize = ringtide_schema::limits::BLOCK_BYTES;
    let path = directory.join(format!(".ringtide-check-{}", std::process::id()));
    let file = File::options()
        .write(true)
        .create_new(true)
        .custom_flags(rustix::fs::OFlags::DIRECT.bits().cast_signed())
        .open(&path);
    // A file system that refuses the flag may have made the file by then.
    let removed = fs::remove_file(&path);
    let mut file = file?;
    removed?;
    let memory = vec![0_u8; 2 * BLOCK];
    let start = memory.as_ptr().align_offset(BLOCK);
    file.write_all(&memory[start..start + BLOCK])
}

fn free_bytes(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    stat.f_bavail.checked_mul(stat.f_frsize)
}

fn nearest_existing(path: &Path) -> PathBuf {
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.into());
    let found = whole.ancestors().find(|path| path.is_dir());
    found.unwrap_or_else(|| Path::new("/")).into()
}

/// Bytes of all files below a directory; none where there is no such directory.
fn bytes_under(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else {
        return 0;
    };
    entries
        .filter_map(Result::ok)
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => bytes_under(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}

/// The contents of a file of the kernel's, which is short and ends with a newline.
fn word(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().into())
}

fn list(path: &str) -> Option<Vec<usize>> {
    host_cpus::parse_list(&word(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_of_a_path_is_the_longest_that_leads_to_it() {
        let mountinfo = "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
                         30 27 0:30 / /tmp rw,nosuid shared:5 - tmpfs tmpfs rw\n\
                         31 27 8:1 / /nowhere\\040else rw - xfs /dev/sda1 rw\n";
        let mount = Mount::of(mountinfo, Path::new("/proc")).expect("the root");
        assert_eq!(
            (mount.number.as_str(), mount.file_system.as_str()),
            ("254:0", "ext4")
        );
        let mount = Mount::of(mountinfo, Path::new("/tmp")).expect("its own");
        assert_eq!(
            (mount.source.as_str(), mount.file_system.as_str()),
            ("tmpfs", "tmpfs")
        );
        let escaped = Mount::parse(mountinfo.lines().last().expect("a line")).expect("a mount");
        assert_eq!(escaped.point, "/nowhere else");
    }

    #[test]
    fn interrupts_of_the_devices_requests_are_told_from_others() {
        let table = "           CPU0       CPU1\n \
                     24:          1          0  IO-APIC   5-edge      ACPI:Ged\n \
                     35:          0          1  PCI-MSIX-0000:00:02.0   0-edge      virtio1-config\n \
                     36:          4      74972  PCI-MSIX-0000:00:02.0   1-edge      virtio1-req.0\n \
                     40:          7          0  PCI-MSIX-0000:00:03.0   0-edge      nvme0q0\n \
                     41:          8          9  PCI-MSIX-0000:00:03.0   1-edge      nvme0q1\n\
                     LOC:     153194     158295   Local timer interrupts\n";
        assert_eq!(parse_interrupts(table, "virtio1"), [(36, 74_976)]);
        assert_eq!(parse_interrupts(table, "nvme0"), [(41, 17)]);
        assert_eq!(parse_interrupts(table, "nvme1"), []);
    }

    #[test]
    fn limits_are_read_with_and_without_bound() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units\n\
                      Max open files            1024                 20000                files\n\
                      Max locked memory         unlimited            unlimited            bytes\n";
        assert_eq!(limit(limits, "Max open files", 1), Some(Some(20_000)));
        assert_eq!(limit(limits, "Max locked memory", 1), Some(None));
        assert_eq!(limit(limits, "Max sorrow", 1), None);
    }

    #[test]
    fn looking_leaves_nothing_behind_and_makes_no_directory() {
        let home = tempfile::tempdir().expect("a directory");
        let (directory, _) = Directory::look(&home.path().join("not/yet"));
        assert_eq!(directory.path, home.path());
        assert!(directory.free_bytes.is_some());
        assert_eq!(fs::read_dir(home.path()).expect("readable").count(), 0);
    }
}
