//! Bits that rot.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use ringtide_schema::batch::Header;

use super::{Bytes, Disk, Inode};

/// Writes of the log after which an earlier one is known to have been acknowledged: twice as many as may be under way.
const SETTLED_AFTER: usize = 8;

/// Where the last writes of a shard's log went: file and position.
pub(super) type LastWrites = VecDeque<(usize, usize)>;

impl Disk {
    /// A write of the log has ended.
    pub(super) fn log_written(&mut self, shard: u16, inode: usize, position: usize) {
        let last = self.log_writes.entry(shard).or_default();
        last.push_back((inode, position));
        if last.len() > SETTLED_AFTER {
            last.pop_front();
        }
    }

    /// Flips a bit where that is noticed or does not matter, in a file that holds messages or in one without which the
    /// broker does not start; which file that is.
    ///
    /// Of the log only what was acknowledged long enough ago: the last frames cannot be told from writes that a
    /// power cut tore.
    pub fn rot(&mut self, is_partition: impl Fn(&Path) -> bool) -> Option<PathBuf> {
        let files: Vec<(PathBuf, usize)> = self
            .names
            .iter()
            .filter(|(path, _)| {
                is_partition(path)
                    || path.ends_with("identity")
                    || has(path, "snapshot")
                    || has(path, "wal")
            })
            .map(|(path, &inode)| (path.clone(), inode))
            .collect();
        let nth = self.random.below(files.len() as u64) as usize;
        let (path, inode) = files.into_iter().nth(nth)?;
        let recent = self.log_writes.values().flatten();
        let unsettled = recent
            .filter(|(at, _)| *at == inode)
            .map(|&(_, position)| position)
            .min();
        let Inode { now, stable, .. } = &mut self.inodes[inode];
        let end = unsettled
            .unwrap_or(now.written.len())
            .min(now.written.len());
        let position = self.random.below(end as u64) as usize;
        if end == 0 || has(&path, "log") && is_uncovered(now, position) {
            return None;
        }
        let bit = 1 << self.random.below(8);
        for bytes in [now, stable] {
            if let Some(byte) = bytes.written.get_mut(position) {
                *byte ^= bit;
            }
        }
        Some(path)
    }
}

fn has(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|e| e == extension)
}

/// Whether a byte of a segment is one that neither a checksum nor a reader looks at.
fn is_uncovered(segment: &Bytes, position: usize) -> bool {
    let mut begin = 0;
    while let Some(Ok(header)) = segment.written.get(begin..).map(Header::peek) {
        let end = begin + header.batch_bytes;
        if position < end {
            return (begin + 12..begin + 16).contains(&position);
        }
        begin = end;
    }
    true
}
