//! Facts about the host, gathered for one configuration. Nothing is judged here.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use ringtide_uring::probe::{self, DirectIo};
use rustix::process::{Resource, getrlimit};

use crate::config::Config;

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
    pub(crate) open_files_wanted: u64,
    /// What the write-ahead log will still take of the free space.
    pub(crate) wal_bytes_to_make: u64,
    /// What there is of it.
    pub(crate) wal_bytes_there: u64,
    pub(crate) directory: Directory,
    pub(crate) shard_cpus: Vec<usize>,
    /// All CPUs that are running.
    pub(crate) online: Vec<usize>,
    /// The frequency governor of each shard's CPU that has one.
    pub(crate) governors: Vec<(usize, String)>,
    /// CPUs that the scheduler keeps other programs off.
    pub(crate) isolated: Vec<usize>,
    /// The CPU that takes most interrupts of the device under the data directory.
    pub(crate) disk_interrupt_cpu: Option<usize>,
}

/// Where the data is, or will be.
#[derive(Clone, Debug)]
pub(crate) struct Directory {
    /// The data directory, or the nearest above it that exists.
    pub(crate) path: PathBuf,
    pub(crate) file_system: String,
    /// The device's name; absent for file systems without one.
    pub(crate) device: Option<String>,
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

impl Host {
    /// Looks at the host with the eyes of a broker of this configuration.
    pub(crate) fn look(config: &Config) -> Self {
        let directory = Directory::look(&config.data_dir);
        let wal = config.cpus.len() as u64 * config.wal_slots as u64 * config.wal_slot_bytes;
        let wal_bytes_there = bytes_in(&config.data_dir.join("wal"));
        let governor = |&cpu: &usize| Some((cpu, probe::governor(cpu)?));
        let interrupts = directory.device.as_deref().and_then(probe::interrupts_of);
        Self {
            kernel: probe::release(),
            io_uring: probe::io_uring().map_err(|error| error.to_string()),
            memlock_bytes: probe::memlock_limit().unwrap_or(None),
            open_files_hard: getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX),
            open_files_wanted: (config.cpus.len() * config.max_connections) as u64 + 1024,
            wal_bytes_to_make: wal.saturating_sub(wal_bytes_there),
            wal_bytes_there,
            shard_cpus: config.cpus.clone(),
            online: probe::online(),
            governors: config.cpus.iter().filter_map(governor).collect(),
            isolated: probe::isolated(),
            disk_interrupt_cpu: interrupts.map(|(cpu, _)| cpu),
            directory,
        }
    }
}

impl Directory {
    fn look(data_dir: &Path) -> Self {
        let path = nearest_existing(data_dir);
        let (access, direct_io) = try_direct(data_dir, &path);
        let block = probe::block_device(&path).ok().flatten();
        Self {
            access,
            direct_io,
            file_system: probe::file_system(&path).unwrap_or_else(|_| "unknown".into()),
            free_bytes: probe::free_bytes(&path).ok(),
            volatile_cache: block.as_ref().and_then(|block| block.volatile_cache),
            fua: block.as_ref().and_then(|block| block.fua),
            device: block.map(|block| block.name),
            path,
        }
    }

    /// The device, or what stands in its place, in a sentence.
    pub(crate) fn device_name(&self) -> &str {
        self.device.as_deref().unwrap_or("no device of its own")
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
    match probe::direct_io(directory) {
        DirectIo::Works => (Ok(()), Ok(())),
        DirectIo::Unsupported => (Ok(()), Err("the file system does not know it".into())),
        DirectIo::Failed(error) => match error.kind() {
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
                (Err(error.to_string()), Ok(()))
            }
            // A full disk has a check of its own.
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => (Ok(()), Ok(())),
            _ => (Ok(()), Err(error.to_string())),
        },
    }
}

fn nearest_existing(path: &Path) -> PathBuf {
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.into());
    let found = whole.ancestors().find(|path| path.is_dir());
    found.unwrap_or_else(|| Path::new("/")).into()
}

/// Bytes of the files in a directory; none where there is no such directory.
fn bytes_in(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else {
        return 0;
    };
    entries
        .filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len()))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_leaves_nothing_behind_and_makes_no_directory() {
        let home = tempfile::tempdir().expect("a directory");
        let directory = Directory::look(&home.path().join("not/yet"));
        assert_eq!(directory.path, home.path());
        assert!(directory.free_bytes.is_some());
        assert_eq!(fs::read_dir(home.path()).expect("readable").count(), 0);
    }

    #[test]
    fn a_file_in_the_place_of_the_directory_is_no_access() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("file");
        fs::write(&path, "").expect("writable");
        let why = Directory::look(&path).access.expect_err("a file");
        assert!(why.contains("is not a directory"), "{why}");
    }
}
