//! Indexes of segments, from their files or built anew, and reads that fail.

use std::path::Path;
use std::sync::Arc;

use ringtide_io::{DiskDone, DiskError, DiskErrorKind, DiskOp, IndexBytes};
use ringtide_schema::index::scan::{Extent, Scanned, scan};
use ringtide_schema::index::{self, IndexView};

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
            keep,
            ..
        } = op
            && let Ok(inode) = self.find(&log_path)
            && self.random.percent(80)
        {
            let readable = self.random.below(bytes) as usize;
            let segment = self.inodes[inode].now.read(0, readable);
            return Ok(DiskDone::Index(
                index_of(&segment, base_offset, bytes, keep).0,
            ));
        }
        Err(DiskError {
            kind: DiskErrorKind::Os(5),
            message,
        })
    }
}

/// The index of a segment of so many bytes, of which the first can be read, as the driver builds one that is missing; and
/// whether no damage was met.
pub(super) fn index_of(
    mut segment: &[u8],
    base_offset: u64,
    bytes: u64,
    is_sealed: bool,
) -> (IndexBytes, bool) {
    let extent = Extent {
        base_offset,
        bytes,
        is_sealed,
    };
    let Ok(Scanned {
        entries,
        covered_bytes,
        damage,
    }) = scan(&mut segment, extent);
    let built = IndexBytes::Built {
        entries,
        covered_bytes,
    };
    (built, damage.is_empty())
}
