//! The device, past the page cache, one operation in flight.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ringtide_schema::limits::BLOCK_BYTES;

use crate::cpu;
use crate::latency::{Latency, Recorder};

/// Bytes of the file that single blocks are written to, again and again.
const FILE_BYTES: u64 = 64 << 20;
/// Bytes of each operation when much is moved.
const PIECE_BYTES: usize = 1 << 20;

/// Memory whose address is a multiple of a block.
struct Aligned {
    memory: Vec<u8>,
    start: usize,
    bytes: usize,
}

impl Aligned {
    fn new(bytes: usize, fill: u8) -> Self {
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

/// A zero-written file for measuring durable writes; removed in the end.
#[derive(Debug)]
pub struct DurableFile {
    path: PathBuf,
    file: File,
    position: u64,
}

impl DurableFile {
    /// Makes one in a directory of the device to be measured.
    ///
    /// # Errors
    /// When the file system takes no direct writes, is full, and the like.
    pub fn create(dir: &Path) -> io::Result<Self> {
        let path = dir.join(format!("durable-{}", std::process::id()));
        let made = Self {
            file: direct(&path, 0)?,
            path,
            position: 0,
        };
        let zeros = Aligned::new(PIECE_BYTES, 0);
        for position in (0..FILE_BYTES).step_by(PIECE_BYTES) {
            made.file.write_all_at(&zeros, position)?;
        }
        made.file.sync_all()?;
        let file = direct(&made.path, libc::O_DSYNC)?;
        Ok(Self {
            file,
            path: made.keep(),
            position: 0,
        })
    }

    /// Gives the path to a successor, so that the file outlives this.
    fn keep(mut self) -> PathBuf {
        std::mem::take(&mut self.path)
    }

    /// Writes one block after the other with O_DIRECT and O_DSYNC from `cpu`, for `duration` after a
    /// tenth of it as warm-up.
    ///
    /// # Errors
    /// When a write fails, or there is no such CPU.
    pub fn measure(&mut self, cpu: usize, duration: Duration) -> io::Result<Latency> {
        cpu::on(Some(cpu), || self.write_blocks(duration))?
    }

    fn write_blocks(&mut self, duration: Duration) -> io::Result<Latency> {
        let block = Aligned::new(BLOCK_BYTES, 7);
        let mut recorder = Recorder::new();
        let began = Instant::now();
        let (warm, end) = (began + duration / 10, began + duration + duration / 10);
        loop {
            let before = Instant::now();
            if before >= end {
                break;
            }
            self.file.write_all_at(&block, self.position)?;
            if before >= warm {
                recorder.record(before.elapsed());
            }
            self.position = (self.position + BLOCK_BYTES as u64) % FILE_BYTES;
        }
        recorder
            .summary()
            .ok_or_else(|| io::Error::other("no write ended in time"))
    }
}

impl Drop for DurableFile {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            // Left behind, it is 64 MiB in a directory for such things.
            let _ = std::fs::remove_file(&self.path);
        }
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
    fn aligned_memory_is_aligned() {
        for bytes in [1, BLOCK_BYTES, 3 * BLOCK_BYTES] {
            let memory = Aligned::new(bytes, 7);
            assert_eq!(memory.as_ptr().addr() % BLOCK_BYTES, 0);
            assert!(memory.len() == bytes && memory.iter().all(|&byte| byte == 7));
        }
    }
}
