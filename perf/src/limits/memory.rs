//! What one CPU does with memory: copying it, and the checksum of the formats.

use std::hint::black_box;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::cpu;
use crate::error::BenchError;
use crate::limits::disk::Aligned;
use crate::limits::pace::Pace;

/// Bytes that the checksum is taken over.
const CHECKED_BYTES: usize = 64 << 10;
/// Bytes between two looks at the clock, at least.
const TURN_BYTES: usize = 1 << 20;
/// Taken for a level-2 cache where the system does not say.
const USUAL_L2_BYTES: usize = 512 << 10;
/// Both buffers of a copy beyond caches have at least this, and at most the other.
const LARGE_BYTES: (usize, usize) = (64 << 20, 512 << 20);

/// How fast memory is copied; each byte counts once, though it is read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryCopy {
    /// Both buffers fit into half of the level-2 cache together.
    pub within_l2: u64,
    /// Both buffers together are four times the largest cache.
    pub beyond_caches: u64,
}

/// Copies on this CPU, half of the time within its level-2 cache and half beyond all of its caches.
///
/// # Errors
/// When there is no such CPU; [`BenchError::Interrupted`].
pub fn copy(cpu: usize, pace: &mut Pace<'_>) -> Result<MemoryCopy, BenchError> {
    let caches = caches(cpu);
    let l2 = caches.iter().find(|cache| cache.level == 2);
    let within = l2.map_or(USUAL_L2_BYTES, |cache| cache.bytes) / 4;
    let largest = caches.iter().map(|cache| cache.bytes).max().unwrap_or(0);
    let beyond = (4 * largest).clamp(LARGE_BYTES.0, LARGE_BYTES.1) / 2;
    let measured = cpu::on(Some(cpu), || {
        Ok(MemoryCopy {
            within_l2: copy_buffers(within, pace)?,
            beyond_caches: copy_buffers(beyond, pace)?,
        })
    });
    measured.map_err(BenchError::io("cannot place the copying of memory"))?
}

fn copy_buffers(bytes: usize, pace: &mut Pace<'_>) -> Result<u64, BenchError> {
    // Zeros might be one page of the system's, again and again. Aligned, because some processors
    // (Zen 3 among them) copy to an address a little behind a page's beginning 20 times slower.
    let (from, mut to) = (Aligned::new(bytes, 7), Aligned::new(bytes, 1));
    pace.bytes_per_s(2, "cannot measure the copying of memory", || {
        Ok(timed(bytes, || {
            black_box(&mut to).copy_from_slice(black_box(&from));
        }))
    })
}

/// CRC-32C over 64 KiB in the cache of this CPU, in bytes a second.
///
/// # Errors
/// When there is no such CPU; [`BenchError::Interrupted`].
pub fn crc32c(cpu: usize, pace: &mut Pace<'_>) -> Result<u64, BenchError> {
    let bytes: Vec<u8> = (0..CHECKED_BYTES).map(|i| (i % 251) as u8).collect();
    let one = || -> io::Result<_> {
        Ok(timed(bytes.len(), || {
            black_box(::crc32c::crc32c(black_box(&bytes)));
        }))
    };
    let measured = cpu::on(Some(cpu), || {
        pace.bytes_per_s(1, "cannot measure CRC-32C", one)
    });
    measured.map_err(BenchError::io("cannot place the measurement of CRC-32C"))?
}

/// Does it as often as it takes to be longer than looking at the clock; how long it took, and for how
/// many bytes.
fn timed(bytes: usize, mut one: impl FnMut()) -> (Duration, u64) {
    let times = TURN_BYTES.div_ceil(bytes.max(1));
    let began = Instant::now();
    for _ in 0..times {
        one();
    }
    (began.elapsed(), (bytes * times) as u64)
}

/// A cache of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cache {
    level: u32,
    bytes: usize,
}

/// The caches of a CPU, as far as the system tells; a virtual machine may have none to tell of.
fn caches(cpu: usize) -> Vec<Cache> {
    let dir = PathBuf::from(format!("/sys/devices/system/cpu/cpu{cpu}/cache"));
    (0..)
        .map(|index| dir.join(format!("index{index}")))
        .take_while(|cache| cache.exists())
        .filter_map(|cache| {
            let read = |name| std::fs::read_to_string(cache.join(name)).ok();
            let bytes = bytes_of(read("size")?.trim())?;
            let level = read("level")?.trim().parse().ok()?;
            (read("type")?.trim() != "Instruction").then_some(Cache { level, bytes })
        })
        .collect()
}

/// `512K`, as the kernel writes it.
fn bytes_of(text: &str) -> Option<usize> {
    let (digits, unit) = match text.as_bytes().last()? {
        b'K' => (&text[..text.len() - 1], 1 << 10),
        b'M' => (&text[..text.len() - 1], 1 << 20),
        _ => (text, 1),
    };
    digits.parse::<usize>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_a_cache_is_read_as_the_kernel_writes_it() {
        assert_eq!(bytes_of("512K"), Some(512 << 10));
        assert_eq!(bytes_of("32M"), Some(32 << 20));
        assert_eq!(bytes_of("64"), Some(64));
        for text in ["", "K", "many", "-1K"] {
            assert_eq!(bytes_of(text), None, "{text:?}");
        }
    }

    #[test]
    fn short_work_is_repeated_and_all_of_it_counted() {
        let mut times = 0;
        let (_, bytes) = timed(100_000, || times += 1);
        assert_eq!((times, bytes), (11, 1_100_000));
        let (_, bytes) = timed(3 << 20, || times += 1);
        assert_eq!((times, bytes), (12, 3 << 20));
    }
}
