//! The file system and the device under a directory.
#![expect(unsafe_code, reason = "statfs and statx have no wrapper in std")]

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ringtide_schema::limits::BLOCK_BYTES;

use crate::memory::Blocks;

/// Whether direct I/O works in a directory.
#[derive(Debug)]
pub enum DirectIo {
    /// A block was written.
    Works,
    /// The file system knows no direct I/O.
    Unsupported,
    /// It could not be tried.
    Failed(io::Error),
}

/// The block device under a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockDevice {
    /// Its name, as in /sys/block.
    pub name: String,
    /// Whether it keeps writes in volatile memory until it is told to flush.
    pub volatile_cache: Option<bool>,
    /// Whether single writes can be forced past that cache.
    pub fua: Option<bool>,
    /// Whether it is a rotating disk.
    pub rotational: Option<bool>,
}

/// How long single writes of 4 KiB take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteLatency {
    /// Half of them took at most this long.
    pub p50: Duration,
    /// All but one in a hundred did.
    pub p99: Duration,
    /// The longest.
    pub max: Duration,
}

/// A file that is removed again.
struct Scratch {
    path: PathBuf,
    file: File,
}

impl Scratch {
    fn new(directory: &Path, flags: i32) -> io::Result<Self> {
        let path = directory.join(format!("probe-{}.tmp", std::process::id()));
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .custom_flags(flags);
        Ok(Self {
            file: options.open(&path)?,
            path,
        })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing depends on it, and there is nobody to tell.
        let _ = fs::remove_file(&self.path);
    }
}

/// Tries direct I/O in a directory.
pub fn direct_io(directory: &Path) -> DirectIo {
    let tried = || -> io::Result<()> {
        let scratch = Scratch::new(directory, libc::O_DIRECT)?;
        scratch.file.write_all_at(&Blocks::new(BLOCK_BYTES)?, 0)
    };
    match tried() {
        Ok(()) => DirectIo::Works,
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => DirectIo::Unsupported,
        Err(error) => DirectIo::Failed(error),
    }
}

/// Alignment in bytes that direct I/O needs in a directory, of memory and of positions; absent
/// where the kernel (before 6.1) or the file system does not say.
pub fn alignment(directory: &Path) -> Option<(u32, u32)> {
    let scratch = Scratch::new(directory, 0).ok()?;
    let path = c_path(&scratch.path).ok()?;
    // SAFETY: a statx is numbers; zeros are valid.
    let mut facts: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends with a zero, the structure is a local.
    let result = unsafe {
        libc::statx(
            libc::AT_FDCWD,
            path.as_ptr(),
            0,
            libc::STATX_DIOALIGN,
            &raw mut facts,
        )
    };
    let told = result == 0 && facts.stx_mask & libc::STATX_DIOALIGN != 0;
    (told && facts.stx_dio_offset_align > 0)
        .then_some((facts.stx_dio_mem_align, facts.stx_dio_offset_align))
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a path with a zero byte"))
}

fn statfs(path: &Path) -> io::Result<libc::statfs> {
    let path = c_path(path)?;
    // SAFETY: a statfs is numbers; zeros are valid.
    let mut facts: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends with a zero, the structure is a local.
    if unsafe { libc::statfs(path.as_ptr(), &raw mut facts) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(facts)
}

/// The type of the file system that holds a directory; its number in hexadecimal if it is not one
/// of the usual ones.
pub fn file_system(directory: &Path) -> io::Result<String> {
    let magic = statfs(directory)?.f_type as u64 & 0xffff_ffff;
    let name = match magic {
        0xef53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683e => "btrfs",
        0x0102_1994 => "tmpfs",
        0x794c_7630 => "overlayfs",
        0xf2f5_2010 => "f2fs",
        0x2fc1_2fc1 => "zfs",
        0x6969 => "nfs",
        0x6573_5546 => "fuse",
        0xca45_1a4e => "bcachefs",
        _ => return Ok(format!("{magic:#x}")),
    };
    Ok(name.to_owned())
}

/// Bytes that this process may still write to the file system of a directory.
pub fn free_bytes(directory: &Path) -> io::Result<u64> {
    let facts = statfs(directory)?;
    Ok(facts.f_bavail * facts.f_frsize as u64)
}

/// The block device under a directory; absent for file systems without one.
pub fn block_device(directory: &Path) -> io::Result<Option<BlockDevice>> {
    let device = fs::metadata(directory)?.dev();
    let (major, minor) = (libc::major(device), libc::minor(device));
    let Ok(mut path) = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")) else {
        return Ok(None);
    };
    // A partition has no queue of its own: that of the disk it is on counts.
    if path.join("partition").exists() {
        path.pop();
    }
    let name = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let read = |file: &str| {
        let text = fs::read_to_string(path.join("queue").join(file)).ok()?;
        Some(text.trim().to_owned())
    };
    Ok(Some(BlockDevice {
        name,
        volatile_cache: read("write_cache").map(|kind| kind == "write back"),
        fua: read("fua").map(|flag| flag == "1"),
        rotational: read("rotational").map(|flag| flag == "1"),
    }))
}

/// What writes and flushes take according to what they wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlushTimes {
    /// A write of 4 KiB: for the device to have taken it.
    pub unsynced: WriteLatency,
    /// The same until it is on the medium, as the log writes (`O_DSYNC`).
    pub durable: WriteLatency,
    /// The same and a flush of the device's cache behind it (`fdatasync`).
    pub flushed: WriteLatency,
    /// A flush when nothing was written since the last one.
    pub flush_of_nothing: WriteLatency,
    /// A flush when [`FLUSH_BYTES`] were written since the last one; not their writing.
    pub flush_of_much: WriteLatency,
}

/// What is written before a flush that has much to do.
pub const FLUSH_BYTES: usize = FILE_BLOCKS * BLOCK_BYTES;

/// Blocks of the file that is written to, one after the other and again from the first.
const FILE_BLOCKS: usize = 256;

/// A file whose blocks were written before, and how to write to it past the page cache.
struct Written {
    scratch: Scratch,
    all: Blocks,
}

impl Written {
    fn new(directory: &Path) -> io::Result<Self> {
        let scratch = Scratch::new(directory, libc::O_DIRECT)?;
        let all = Blocks::new(FILE_BLOCKS * BLOCK_BYTES)?;
        scratch.file.write_all_at(&all, 0)?;
        scratch.file.sync_all()?;
        Ok(Self { scratch, all })
    }

    /// The same file, opened for writes that are durable when they return.
    fn durable(&self) -> io::Result<File> {
        OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_DIRECT | libc::O_DSYNC)
            .open(&self.scratch.path)
    }

    /// Writes the `number`th block; gives how long that took, with what `then` does.
    fn time(
        &self,
        file: &File,
        number: usize,
        then: impl FnOnce(&File) -> io::Result<()>,
    ) -> io::Result<Duration> {
        let position = (number % FILE_BLOCKS * BLOCK_BYTES) as u64;
        let begin = Instant::now();
        file.write_all_at(&self.all[..BLOCK_BYTES], position)?;
        then(file)?;
        Ok(begin.elapsed())
    }
}

/// Of at least one time.
fn latency(mut times: Vec<Duration>) -> WriteLatency {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() * percent).div_ceil(100).max(1) - 1];
    WriteLatency {
        p50: at(50),
        p99: at(99),
        max: at(100),
    }
}

/// Measures `writes` single durable writes of 4 KiB, as the log makes them: direct, over blocks
/// that were written before.
pub fn durable_write_latency(directory: &Path, writes: usize) -> io::Result<WriteLatency> {
    let written = Written::new(directory)?;
    let durable = written.durable()?;
    let times: io::Result<Vec<_>> = (0..writes.max(1))
        .map(|number| written.time(&durable, number, |_| Ok(())))
        .collect();
    times.map(latency)
}

/// Measures `rounds` of each kind, in turn, so that all are of the same moments.
pub fn flush_times(directory: &Path, rounds: usize) -> io::Result<FlushTimes> {
    let written = Written::new(directory)?;
    let (direct, durable) = (&written.scratch.file, written.durable()?);
    let flush = || {
        let begin = Instant::now();
        direct.sync_data().map(|()| begin.elapsed())
    };
    let mut times = [const { Vec::new() }; 5];
    for number in 0..rounds.max(1) {
        let unsynced = written.time(direct, number, |_| Ok(()))?;
        let durable = written.time(&durable, number, |_| Ok(()))?;
        let flushed = written.time(direct, number, File::sync_data)?;
        let of_nothing = flush()?;
        direct.write_all_at(&written.all, 0)?;
        let of_much = flush()?;
        for (times, time) in times
            .iter_mut()
            .zip([unsynced, durable, flushed, of_nothing, of_much])
        {
            times.push(time);
        }
    }
    let [unsynced, durable, flushed, flush_of_nothing, flush_of_much] = times.map(latency);
    Ok(FlushTimes {
        unsynced,
        durable,
        flushed,
        flush_of_nothing,
        flush_of_much,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_tells_what_is_under_it_and_stays_clean() {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("directory");
        let path = directory.path();
        assert!(!file_system(path).expect("known").is_empty());
        assert!(free_bytes(path).expect("known") > 0);
        block_device(path).expect("no error, with or without a device");
        if matches!(direct_io(path), DirectIo::Works) {
            let latency = durable_write_latency(path, 10).expect("measured");
            assert!(latency.p50 <= latency.p99 && latency.p99 <= latency.max);
            let times = flush_times(path, 10).expect("measured");
            for latency in [times.unsynced, times.durable, times.flush_of_much] {
                assert!(latency.p50 <= latency.p99 && latency.p99 <= latency.max);
            }
            if let Some((memory, position)) = alignment(path) {
                assert!(memory.is_power_of_two() && position as usize <= BLOCK_BYTES);
            }
        }
        assert_eq!(fs::read_dir(path).expect("readable").count(), 0);
    }
}
