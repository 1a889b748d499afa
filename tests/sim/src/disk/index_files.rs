//! Indexes of segments, from their files or built anew, and reads that fail.

use std::path::Path;
use std::sync::Arc;

use ringtide_io::{DiskDone, DiskError, DiskErrorKind, DiskOp, IndexBytes};
use ringtide_schema::batch::Header;
use ringtide_schema::index::{self, INTERVAL_BYTES, IndexEntry, IndexView};

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
            log_path, bytes, ..
        } = op
            && let Ok(inode) = self.find(&log_path)
            && self.random.percent(80)
        {
            let readable = self.random.below(bytes) as usize;
            let segment = self.inodes[inode].now.read(0, readable);
            return Ok(DiskDone::Index(index_of(&segment, bytes as usize)));
        }
        Err(DiskError {
            kind: DiskErrorKind::Os(5),
            message,
        })
    }
}

/// The index of a segment of so many bytes, as the driver builds one that is missing: of every batch that begins in what
/// can be read of it.
pub(super) fn index_of(segment: &[u8], bytes: usize) -> IndexBytes {
    let mut entries: Vec<IndexEntry> = Vec::new();
    let (mut base, mut position, mut max_before_ms) = (None, 0, i64::MIN);
    let mut next = 0;
    while let Some(Ok(header)) = segment.get(position..).map(Header::peek) {
        let base = *base.get_or_insert(header.base_offset);
        let at = position as u32;
        let is_near = |last: &IndexEntry| at < last.position + INTERVAL_BYTES;
        if !entries.last().is_some_and(is_near) {
            entries.push(IndexEntry {
                relative_offset: (header.base_offset - base) as u32,
                position: at,
                timestamp_ms: header.base_timestamp_ms,
                max_timestamp_before_ms: max_before_ms,
            });
        }
        max_before_ms = max_before_ms.max(header.max_timestamp_ms);
        position += header.batch_bytes;
        next = (header.next_offset() - base) as u32;
    }
    if segment.len() < bytes && position < bytes {
        entries.push(IndexEntry::unreadable(next, position as u32, max_before_ms));
    }
    IndexBytes::Built {
        entries,
        covered_bytes: position as u64,
    }
}
