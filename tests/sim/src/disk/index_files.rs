//! Indexes of segments, from their files or built anew, and reads that fail.

use std::path::Path;
use std::sync::Arc;

use ringtide_io::{DiskDone, DiskError, DiskErrorKind, DiskOp, IndexBytes};
use ringtide_schema::batch::{self, Header};
use ringtide_schema::index::{self, IndexBuilder, IndexView};
use ringtide_schema::limits::{BLOCK_BYTES, MAX_BATCH_BYTES};

use super::Disk;
use crate::planted::Planted;

impl Disk {
    /// The index file, if it is there, whole, and knows enough.
    pub(super) fn index(&self, path: &Path, base_offset: u64, bytes: u64) -> Option<IndexBytes> {
        let now = &self.inodes[*self.names.get(path)?].now;
        let contents = now.read(0, now.len);
        let is_believed = self.planted == Planted::IndexBelieved && now.len >= index::HEADER_BYTES;
        let is_right = IndexView::check(&contents).is_ok_and(|view| {
            view.base_offset == base_offset && u64::from(view.covered_bytes) >= bytes
        });
        (is_right || is_believed).then(|| IndexBytes::File(Arc::new(contents)))
    }

    /// Nothing was read; or an index that is built ends at a batch that could not be.
    pub(super) fn fail_to_read(&mut self, op: DiskOp) -> Result<DiskDone, DiskError> {
        let message = format!("{op:?}: Input/output error");
        if let DiskOp::LoadIndex {
            log_path,
            base_offset,
            bytes,
            ..
        } = op
            && let Ok(inode) = self.find(&log_path)
            && self.random.percent(80)
        {
            let readable = self.random.below(bytes) as usize;
            let segment = self.inodes[inode].now.read(0, readable);
            return Ok(DiskDone::Index(
                index_of(&segment, base_offset, bytes as usize).0,
            ));
        }
        Err(DiskError {
            kind: DiskErrorKind::Os(5),
            message,
        })
    }
}

/// The index of a segment of so many bytes, as the driver builds one that is missing: of every batch that begins in what
/// can be read of it, up to a wrong header. And whether no damage was met.
pub(super) fn index_of(segment: &[u8], base_offset: u64, bytes: usize) -> (IndexBytes, bool) {
    let mut index = IndexBuilder::new(base_offset);
    let (mut position, mut next_offset, mut is_sound) = (0, base_offset, true);
    while let Some(Ok(header)) = segment.get(position..).map(Header::peek)
        && header.base_offset == next_offset
        && header.batch_bytes <= MAX_BATCH_BYTES
        && position + header.batch_bytes <= bytes + BLOCK_BYTES
    {
        let is_right = batch::check_stored(&segment[position..]).is_ok();
        is_sound &= is_right;
        index.add(position as u32, &header, is_right);
        position += header.batch_bytes;
        next_offset = header.next_offset();
    }
    let is_lost = segment.len() < bytes;
    let has_header = bytes.saturating_sub(position) >= batch::HEADER_BYTES;
    if has_header || is_lost && position < bytes {
        position = index.end_at_damage(position as u32, next_offset) as usize;
    }
    let built = IndexBytes::Built {
        entries: index.finish(),
        covered_bytes: position as u64,
    };
    (built, is_sound && position >= bytes)
}
