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
    /// Open files without which connections or segments would have next to none.
    pub(crate) open_files_required: u64,
    /// Open files that the configuration may come to need.
    pub(crate) open_files_wanted: u64,
    /// What the write-ahead log will still take of the free space.
    pub(crate) wal_bytes_to_make: u64,
    /// What there is of it.
    pub(crate) wal_bytes_there: u64,
    /// What must be left when a slot of it was made.
    pub(crate) wal_bytes_to_spare: u64,
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
    pub(crate) access: Result<(), NoAccess>,
    /// Whether blocks can be written past the page cache, or why not.
    pub(crate) direct_io: Result<(), String>,
    pub(crate) free_bytes: Option<u64>,
    /// Whether the device holds back writes that a power cut would lose.
    pub(crate) volatile_cache: Option<bool>,
    /// Whether a single write can pass that cache.
    pub(crate) fua: Option<bool>,
}

/// Why files cannot be made in a directory.
#[derive(Clone, Debug)]
pub(crate) struct NoAccess {
    pub(crate) why: String,
    pub(crate) mend: &'static str,
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
            open_files_required: config.own_files() + 32 * config.cpus.len() as u64,
            open_files_wanted: config.own_files()
                + (config.cpus.len() * config.max_connections) as u64
                + 1024,
            wal_bytes_to_make: wal.saturating_sub(wal_bytes_there),
            wal_bytes_there,
            wal_bytes_to_spare: config.wal_slot_bytes / 2,
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

const OWN: &str = "Let the broker's user own it, or choose another with --data-dir";

/// Whether files can be made in `directory`, and whether past the page cache.
fn try_direct(data_dir: &Path, directory: &Path) -> (Result<(), NoAccess>, Result<(), String>) {
    if let Some(obstacle) = obstacle(data_dir) {
        return (Err(obstacle), Ok(()));
    }
    let refused = |error: std::io::Error, mend| {
        let why = error.to_string();
        (Err(NoAccess { why, mend }), Ok(()))
    };
    if let Err(error) = fs::read_dir(directory) {
        return refused(error, OWN);
    }
    match probe::direct_io(directory) {
        DirectIo::Works => (Ok(()), Ok(())),
        DirectIo::Unsupported => (Ok(()), Err("the file system does not know it".into())),
        DirectIo::Failed(error) => match error.kind() {
            ErrorKind::PermissionDenied => refused(error, OWN),
            ErrorKind::ReadOnlyFilesystem => refused(
                error,
                "Mount the file system writable, or choose another with --data-dir",
            ),
            // The directory is there, so it is one in which no file can be made, such as /proc.
            ErrorKind::NotFound => {
                let why = "no file can be made in it".into();
                let mend = "Choose with --data-dir a directory on a local ext4 or XFS file system";
                (Err(NoAccess { why, mend }), Ok(()))
            }
            // A full disk has a check of its own.
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => (Ok(()), Ok(())),
            _ => (Ok(()), Err(error.to_string())),
        },
    }
}

/// What stands where the data directory, or one above it, would have to be.
fn obstacle(data_dir: &Path) -> Option<NoAccess> {
    let whole = std::path::absolute(data_dir).ok()?;
    let absent = |path: &&Path| !path.is_dir();
    let found = whole
        .ancestors()
        .take_while(absent)
        .find_map(|path| Some((path, path.symlink_metadata().ok()?)));
    let (path, metadata) = found?;
    let shown = path.display();
    if metadata.is_symlink() && !path.exists() {
        let target = fs::read_link(path).unwrap_or_default();
        return Some(NoAccess {
            why: format!(
                "{shown} is a link to {}, which does not exist",
                target.display()
            ),
            mend: "Make the directory that the link leads to, or choose another with --data-dir",
        });
    }
    Some(NoAccess {
        why: format!("{shown} is not a directory"),
        mend: "Move it away, or choose another with --data-dir",
    })
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
        for data_dir in [path.clone(), path.join("below")] {
            let refused = Directory::look(&data_dir).access.expect_err("a file");
            let words = format!("{} is not a directory", path.display());
            assert!(refused.why.contains(&words), "{refused:?}");
        }
    }

    #[test]
    fn a_link_that_leads_nowhere_is_no_access() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("link");
        std::os::unix::fs::symlink("elsewhere", &path).expect("made");
        for data_dir in [path.clone(), path.join("below")] {
            let refused = Directory::look(&data_dir).access.expect_err("nowhere");
            assert!(refused.why.contains("a link to elsewhere"), "{refused:?}");
        }
        fs::create_dir(home.path().join("elsewhere")).expect("made");
        assert!(obstacle(&path).is_none(), "now it leads somewhere");
    }

    #[test]
    fn a_directory_in_which_no_file_can_be_made_is_no_access() {
        let directory = Directory::look(Path::new("/proc/ringtide-data"));
        assert!(directory.access.is_err(), "{directory:?}");
        assert!(directory.direct_io.is_ok(), "{directory:?}");
    }
}
