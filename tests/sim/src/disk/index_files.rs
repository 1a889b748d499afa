//! Indexes of segments, from their files or built anew, and reads that fail.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use ringtide_io::{DiskDone, DiskError, DiskErrorKind, DiskOp, IndexBytes};
use ringtide_schema::index::scan::{Extent, Scanned, Source, scan};
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

    /// Nothing was read; or an index that is built leaves out what could not be.
    pub(super) fn fail_to_read(&mut self, op: DiskOp) -> Result<DiskDone, DiskError> {
        let message = format!("{op:?}: Input/output error");
        if let DiskOp::LoadIndex {
            log_path,
            base_offset,
            bytes,
            tail,
            next_offset,
            ..
        } = op
            && let Ok(inode) = self.find(&log_path)
            && self.random.percent(80)
        {
            let from = self.random.below(bytes);
            let segment = Readable {
                bytes: self.inodes[inode].now.read(0, bytes as usize),
                lost: from..from + 1 + self.random.below(bytes - from),
            };
            let extent = Extent {
                base_offset,
                bytes,
                tail: &tail,
                next_offset,
            };
            return Ok(DiskDone::Index(built(segment, extent).0));
        }
        Err(DiskError {
            kind: DiskErrorKind::Os(5),
            message,
        })
    }
}

/// The index that the driver builds of a segment if there is none, and whether no damage was met.
pub(super) fn built(segment: Readable, extent: Extent<'_>) -> (IndexBytes, bool) {
    let Ok(Scanned {
        entries,
        covered_bytes,
        damage,
    }) = scan(&mut { segment }, extent);
    let built = IndexBytes::Built {
        entries,
        covered_bytes,
    };
    (built, damage.is_empty())
}

/// A file, some of which may be lost.
pub(super) struct Readable {
    pub(super) bytes: Vec<u8>,
    pub(super) lost: Range<u64>,
}

impl Source for Readable {
    type Error = std::convert::Infallible;

    fn read(&mut self, into: &mut [u8], position: u64) -> Result<usize, Self::Error> {
        let end = match position < self.lost.end {
            true => self.lost.start.max(position),
            false => self.bytes.len() as u64,
        };
        let found = &self.bytes[position as usize..end as usize];
        let bytes = found.len().min(into.len());
        into[..bytes].copy_from_slice(&found[..bytes]);
        Ok(bytes)
    }
}
