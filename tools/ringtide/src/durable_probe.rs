//! How long a durable write takes here, measured with a few writes at start.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use ringtide_schema::limits::BLOCK_BYTES;
use rustix::fs::OFlags;

/// Writes that are measured, at the most.
const WRITES: usize = 64;
/// A slow device is not measured longer than this.
const LONGEST: Duration = Duration::from_millis(10);
/// Measured whatever the time.
const FEWEST: usize = 3;

/// What was measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DurableWrite {
    /// The time of the median write.
    pub(crate) median: Duration,
    /// The longest.
    pub(crate) max: Duration,
}

/// Measures one block at a time, over blocks that were written before, as the write-ahead log does.
pub(crate) fn measure(dir: &Path) -> io::Result<DurableWrite> {
    // A file of this name is taken for a leftover and removed, should this process die here.
    let path = dir.join("durable-write.tmp");
    let flags = (OFlags::DIRECT | OFlags::DSYNC).bits().cast_signed();
    let opened = File::options()
        .write(true)
        .create(true)
        .custom_flags(flags)
        .open(&path);
    fs::remove_file(&path)?;
    let file = opened?;
    let memory = vec![0_u8; (WRITES + 1) * BLOCK_BYTES];
    let start = memory.as_ptr().align_offset(BLOCK_BYTES);
    let blocks = &memory[start..start + WRITES * BLOCK_BYTES];
    file.write_all_at(blocks, 0)?;
    let began = Instant::now();
    let mut times = Vec::with_capacity(WRITES);
    for (i, block) in blocks.chunks(BLOCK_BYTES).enumerate() {
        let before = Instant::now();
        file.write_all_at(block, (i * BLOCK_BYTES) as u64)?;
        times.push(before.elapsed());
        if i + 1 >= FEWEST && began.elapsed() > LONGEST {
            break;
        }
    }
    times.sort_unstable();
    Ok(DurableWrite {
        median: times[times.len() / 2],
        max: times[times.len() - 1],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measuring_leaves_nothing_behind() {
        let home = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory");
        // Where the file system has no direct I/O there is nothing to measure.
        if let Ok(measured) = measure(home.path()) {
            assert!(measured.median <= measured.max);
        }
        assert_eq!(fs::read_dir(home.path()).expect("readable").count(), 0);
    }
}
