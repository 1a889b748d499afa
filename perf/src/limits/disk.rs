//! The device, past the page cache, one operation in flight.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Builder;
use std::time::{Duration, Instant};

use ringtide_schema::limits::BLOCK_BYTES;

use crate::cpu;
use crate::error::BenchError;
use crate::latency::Latency;
use crate::limits::pace::Pace;
use crate::limits::scratch;

/// Bytes of the file that single pieces are written to, again and again.
const FILE_BYTES: u64 = 64 << 20;
/// Bytes of each operation when much is moved.
const PIECE_BYTES: usize = 1 << 20;

/// Memory whose address is a multiple of a block.
pub(super) struct Aligned {
    memory: Vec<u8>,
    start: usize,
    bytes: usize,
}

impl Aligned {
    pub(super) fn new(bytes: usize, fill: u8) -> Self {
        let memory = vec![fill; bytes + BLOCK_BYTES];
        let start = memory.as_ptr().align_offset(BLOCK_BYTES);
        Self {
            memory,
            start,
            bytes,
        }
    }
}

impl Deref for Aligned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.bytes]
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.bytes]
    }
}

/// Which durable writes are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Writes {
    /// Bytes of each, whole blocks.
    pub bytes: usize,
    /// The CPU they are made from.
    pub cpu: usize,
    /// Beside them a thread spins with `sched_yield` on this CPU, as a client does while its record
    /// is written: that may be the CPU that the device interrupts.
    pub beside_spinner: Option<usize>,
}

/// A zero-written file for measuring durable writes. It has no name, and goes when this is dropped.
#[derive(Debug)]
pub struct DurableFile {
    file: File,
    /// For messages.
    dir: PathBuf,
}

impl DurableFile {
    /// Makes one of 64 MiB in a directory of the device to be measured.
    ///
    /// # Errors
    /// When the file system takes no direct writes, is full, and the like.
    pub fn create(dir: &Path) -> Result<Self, BenchError> {
        let file = zero_written(dir).map_err(BenchError::io(format!(
            "cannot write a file of {} MiB past the page cache (O_DIRECT) in {}; choose a \
             directory with room for it, on a file system with direct I/O such as ext4 or xfs",
            FILE_BYTES >> 20,
            dir.display()
        )))?;
        Ok(Self {
            file,
            dir: dir.into(),
        })
    }

    /// Writes one piece after the other with O_DIRECT and O_DSYNC.
    ///
    /// # Errors
    /// When a write fails, or there is no such CPU; [`BenchError::Interrupted`].
    pub fn measure(&self, writes: Writes, pace: &mut Pace<'_>) -> Result<Latency, BenchError> {
        let placed = beside_spinner(writes.beside_spinner, || {
            cpu::on(Some(writes.cpu), || self.write(writes.bytes, pace))
        });
        placed
            .flatten()
            .map_err(BenchError::io("cannot place the durable writes"))?
    }

    fn write(&self, bytes: usize, pace: &mut Pace<'_>) -> Result<Latency, BenchError> {
        let piece = Aligned::new(bytes, 7);
        let mut position = 0;
        let what = format!("cannot measure durable writes in {}", self.dir.display());
        pace.latency(&what, || {
            self.file.write_all_at(&piece, position)?;
            position = position_after(position, bytes as u64);
            Ok(())
        })
    }
}

/// Where the next piece goes: behind this one, or to the beginning if the file ends before it does.
fn position_after(position: u64, bytes: u64) -> u64 {
    let next = position + bytes;
    if next + bytes > FILE_BYTES { 0 } else { next }
}

/// Opened for writes that are durable when they return.
fn zero_written(dir: &Path) -> io::Result<File> {
    let (file, durable) = scratch::nameless(dir, |path| {
        Ok((direct(path, 0)?, direct(path, libc::O_DSYNC)?))
    })?;
    let zeros = Aligned::new(PIECE_BYTES, 0);
    for position in (0..FILE_BYTES).step_by(PIECE_BYTES) {
        file.write_all_at(&zeros, position)?;
    }
    file.sync_all()?;
    Ok(durable)
}

/// Runs `work` while a thread on that CPU, if there is to be one, does nothing but yield.
fn beside_spinner<T>(cpu: Option<usize>, work: impl FnOnce() -> T) -> io::Result<T> {
    let Some(cpu) = cpu else { return Ok(work()) };
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let spin = || {
            cpu::pin(cpu)?;
            while !done.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            Ok(())
        };
        let spinner = Builder::new()
            .name("spinner".into())
            .spawn_scoped(scope, spin)?;
        let result = {
            // Raised after a panic as well, else the scope would wait for ever.
            let _raised = RaisedInTheEnd(&done);
            work()
        };
        let spun = spinner.join().unwrap_or_else(|panic| resume_unwind(panic));
        spun.map(|()| result)
    })
}

struct RaisedInTheEnd<'a>(&'a AtomicBool);

impl Drop for RaisedInTheEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn direct(path: &Path, flags: i32) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT | flags)
        .open(path)
}

/// Reads the files one after the other past the page cache; how long it took and how much it was.
///
/// # Errors
/// When a file cannot be read in this way.
pub fn read_direct(files: &[PathBuf]) -> io::Result<(Duration, u64)> {
    let mut buffer = Aligned::new(PIECE_BYTES, 0);
    let (began, mut total) = (Instant::now(), 0);
    for path in files {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECT)
            .open(path)?;
        let mut position = 0;
        loop {
            match file.read_at(&mut buffer, position) {
                Ok(0) => break,
                Ok(bytes) => position += bytes as u64,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if !position.is_multiple_of(BLOCK_BYTES as u64) {
                // A file's end that is no block's.
                break;
            }
        }
        total += position;
    }
    Ok((began.elapsed(), total))
}

/// Writes `bytes` bytes, rounded up to whole pieces, to a new file past the page cache and syncs it;
/// how long it took. The file is not removed.
///
/// # Errors
/// When it cannot be written in this way.
pub fn write_direct(path: &Path, bytes: u64) -> io::Result<Duration> {
    let piece = Aligned::new(PIECE_BYTES, 7);
    let began = Instant::now();
    let file = direct(path, 0)?;
    for position in (0..bytes).step_by(PIECE_BYTES) {
        file.write_all_at(&piece, position)?;
    }
    file.sync_data()?;
    Ok(began.elapsed())
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::*;

    #[test]
    fn what_was_written_directly_is_read_directly() {
        // The directory of temporary files may be in memory, where nothing is direct.
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory");
        let path = dir.path().join("direct");
        write_direct(&path, 3 << 20).expect("written");
        let (_, bytes) = read_direct(std::slice::from_ref(&path)).expect("read");
        assert_eq!(bytes, 3 << 20);
    }

    #[test]
    fn durable_writes_are_direct_and_synchronous_and_fill_whole_pieces() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory");
        let durable = DurableFile::create(dir.path()).expect("made");
        let flags = rustix::fs::fcntl_getfl(&durable.file).expect("flags");
        let wanted = (libc::O_DIRECT | libc::O_DSYNC) as u32;
        assert_eq!(flags.bits() & wanted, wanted, "{flags:?}");
        for bytes in [BLOCK_BYTES, 16 * BLOCK_BYTES] {
            let writes = Writes {
                bytes,
                cpu: 0,
                beside_spinner: None,
            };
            let mut pace = Pace::new(Duration::from_millis(1));
            let latency = durable.measure(writes, &mut pace).expect("measured");
            let written = latency.count as usize * bytes;
            let mut found = Aligned::new(bytes, 0);
            durable.file.read_at(&mut found, 0).expect("read");
            assert!(written > 0 && found.iter().all(|&byte| byte == 7));
        }
    }

    #[test]
    fn pieces_are_written_to_the_end_of_the_file_and_not_beyond() {
        for bytes in [4096, 65_536, 3 * 4096] {
            let mut position = 0;
            let mut farthest = 0;
            for _ in 0..2 * FILE_BYTES / bytes {
                farthest = farthest.max(position + bytes);
                position = position_after(position, bytes);
            }
            assert_eq!(farthest, FILE_BYTES / bytes * bytes);
        }
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let error = DurableFile::create(Path::new("/absent/limits")).expect_err("absent");
        assert!(error.to_string().contains("/absent/limits"), "{error}");
    }

    /// What the system says of each thread of this process.
    fn threads() -> Vec<String> {
        let tasks = std::fs::read_dir("/proc/self/task").expect("a process");
        tasks
            .flatten()
            // A thread may have ended.
            .filter_map(|task| std::fs::read_to_string(task.path().join("status")).ok())
            .collect()
    }

    fn beside(spinner: usize) -> Writes {
        Writes {
            bytes: BLOCK_BYTES,
            cpu: 0,
            beside_spinner: Some(spinner),
        }
    }

    #[test]
    fn the_spinner_is_on_its_cpu_while_writes_are_measured() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory");
        let durable = DurableFile::create(dir.path()).expect("made");
        let spins = |status: &String| {
            status.starts_with("Name:\tspinner\n") && status.contains("Cpus_allowed_list:\t0\n")
        };
        // Far longer than it takes to see it.
        let mut pace = Pace::telling(Duration::from_secs(60), || {
            if threads().iter().any(spins) {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        let ended = durable.measure(beside(0), &mut pace);
        assert!(matches!(ended, Err(BenchError::Interrupted)), "{ended:?}");
    }

    #[test]
    fn a_spinner_without_its_cpu_is_an_error() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory");
        let durable = DurableFile::create(dir.path()).expect("made");
        let mut pace = Pace::new(Duration::from_millis(1));
        let error = durable.measure(beside(1023), &mut pace);
        let error = error.expect_err("no machine here has it").to_string();
        assert!(error.contains("1023"), "{error}");
    }

    #[test]
    fn aligned_memory_is_aligned() {
        for bytes in [1, BLOCK_BYTES, 3 * BLOCK_BYTES] {
            let memory = Aligned::new(bytes, 7);
            assert_eq!(memory.as_ptr().addr() % BLOCK_BYTES, 0);
            assert!(memory.len() == bytes && memory.iter().all(|&byte| byte == 7));
        }
    }
}
