//! Reading a segment's log batch by batch, in large reads, for those who check or show it.

use std::fs::File;
use std::path::{Path, PathBuf};

use ringtide_schema::batch::{BatchError, CRC_START, Header, check_stored};
use ringtide_schema::index::{INTERVAL_BYTES, IndexEntry, IndexView};
use ringtide_schema::limits::{BLOCK_BYTES, MAX_BATCH_BYTES};

use crate::files::{self, FileError};

const READ_BYTES: usize = 1 << 20;
/// The most between two entries of an index: an interval, the batch that ends it, and those in the block after that which
/// were not indexed anew by a start.
const MOST_BETWEEN: u64 = INTERVAL_BYTES as u64 + (MAX_BATCH_BYTES + BLOCK_BYTES) as u64;

/// A batch with its header, or why it is none.
pub(super) type Checked<'a> = Result<(Header, &'a [u8]), BatchError>;

/// Checks the batch at the start of the bytes, which it leaves as they are.
type Check = fn(&mut [u8]) -> Result<Header, BatchError>;

/// The batches of a log file up to a length, one after the other.
pub(super) struct Scan {
    path: PathBuf,
    file: Option<File>,
    /// How much of the file is read.
    file_bytes: u64,
    /// What follows it, until it is reached.
    tail: Vec<u8>,
    /// Where everything ends.
    end: u64,
    buf: Vec<u8>,
    /// Where in `buf` the next batch begins, and where that is in the log.
    at: usize,
    position: u64,
    read: u64,
}

impl Scan {
    /// The first `bytes` of the file, which is not opened for none, then `tail`.
    pub(super) fn open(path: &Path, bytes: u64, tail: Vec<u8>) -> Result<Self, FileError> {
        let file = if bytes > 0 {
            Some(files::open_read(path, false)?)
        } else {
            None
        };
        Ok(Self {
            path: path.to_owned(),
            file,
            file_bytes: bytes,
            end: bytes + tail.len() as u64,
            tail,
            buf: Vec::new(),
            at: 0,
            position: 0,
            read: 0,
        })
    }

    /// Where the next batch begins.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// The next batch, checked, or why there is none there; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Checked<'_>>, FileError> {
        self.next_by(|bytes| check_stored(bytes))
    }

    /// The same, but a batch whose base offset none can have is given like any other with a wrong one: its header has
    /// what was found, with which [`Header::last_offset`] may be past all numbers.
    pub(super) fn next_at_any_offset(&mut self) -> Result<Option<Checked<'_>>, FileError> {
        self.next_by(check_at_any_offset)
    }

    fn next_by(&mut self, check: Check) -> Result<Option<Checked<'_>>, FileError> {
        if self.position == self.end {
            return Ok(None);
        }
        let header = loop {
            match check(&mut self.buf[self.at..]) {
                Err(BatchError::Incomplete { .. }) if self.fill()? => {}
                Err(error) => return Ok(Some(Err(error))),
                Ok(header) => break header,
            }
        };
        let start = self.at;
        self.at += header.batch_bytes;
        self.position += header.batch_bytes as u64;
        Ok(Some(Ok((header, &self.buf[start..self.at]))))
    }

    /// Behind a bad batch: where the next whole one begins whose offset is past `offset`, if there is
    /// any. A damaged length leads nowhere, so every byte is tried.
    pub(super) fn behind(mut self, offset: u64) -> Result<Option<u64>, FileError> {
        loop {
            if self.at == self.buf.len() && !self.fill()? {
                return Ok(None);
            }
            self.at += 1;
            self.position += 1;
            if self.begins_whole_batch(offset)? {
                return Ok(Some(self.position));
            }
        }
    }

    fn begins_whole_batch(&mut self, offset: u64) -> Result<bool, FileError> {
        loop {
            // What cannot be a batch is told from the header, without reading on for the rest of it.
            let header = Header::peek(&self.buf[self.at..]);
            let checked = header.and_then(|header| {
                let past = header.base_offset.saturating_sub(offset);
                let possible = (1..=u64::from(u32::MAX)).contains(&past)
                    && header.batch_bytes <= MAX_BATCH_BYTES;
                possible
                    .then(|| check_stored(&self.buf[self.at..]))
                    .transpose()
            });
            match checked {
                Ok(batch) => return Ok(batch.is_some()),
                Err(BatchError::Incomplete { .. }) if self.fill()? => {}
                Err(_) => return Ok(false),
            }
        }
    }

    /// Reads on; false at the end.
    fn fill(&mut self) -> Result<bool, FileError> {
        self.buf.drain(..self.at);
        self.at = 0;
        let left = self.file_bytes - self.read;
        let Some(file) = self.file.as_ref().filter(|_| left > 0) else {
            let more = !self.tail.is_empty();
            self.buf.append(&mut self.tail);
            return Ok(more);
        };
        let held = self.buf.len();
        let want = usize::try_from(left).unwrap_or(READ_BYTES).min(READ_BYTES);
        self.buf.resize(held + want, 0);
        let got = files::read_at(file, &self.path, &mut self.buf[held..], self.read)?;
        self.buf.truncate(held + got);
        self.read += got as u64;
        Ok(got > 0)
    }
}

/// As [`check_stored`], but for the base offset: the checksum of the batch leaves it out, and says all the same that the
/// rest is what was written.
fn check_at_any_offset(bytes: &mut [u8]) -> Result<Header, BatchError> {
    let checked = check_stored(bytes);
    let Err(BatchError::BadOffsets { base, .. }) = checked else {
        return checked;
    };
    bytes[..size_of_val(&base)].fill(0);
    let at_zero = check_stored(bytes);
    bytes[..size_of_val(&base)].copy_from_slice(&base.to_be_bytes());
    match at_zero {
        // It is not for the base offset.
        Err(BatchError::BadOffsets { .. }) => checked,
        _ => at_zero.map(|header| Header {
            base_offset: base.cast_unsigned(),
            ..header
        }),
    }
}

/// What a log holds, from its batches.
#[derive(Clone, Debug, Default)]
pub(super) struct Contents {
    pub(super) batches: u64,
    pub(super) records: u64,
    pub(super) prefix_crc: u32,
    /// Counted from where the log begins: the base offset of a batch may be any.
    pub(super) next_offset: u64,
    pub(super) max_timestamp_ms: i64,
}

impl Contents {
    /// Nothing yet, of a segment that begins at this offset.
    pub(super) fn new(base_offset: u64) -> Self {
        Self {
            next_offset: base_offset,
            max_timestamp_ms: -1,
            ..Self::default()
        }
    }

    /// Takes the next batch.
    pub(super) fn add(&mut self, header: &Header, batch: &[u8]) {
        self.batches += 1;
        self.records += u64::from(header.record_count);
        self.prefix_crc = crc32c::crc32c_append(self.prefix_crc, &batch[..CRC_START]);
        let offsets = u64::from(header.last_offset_delta) + 1;
        // A file may be named after any offset.
        self.next_offset = self.next_offset.saturating_add(offsets);
        self.max_timestamp_ms = self.max_timestamp_ms.max(header.max_timestamp_ms);
    }
}

/// Follows the entries of an index along the batches that it is about.
pub(super) struct IndexCheck<'a> {
    index: IndexView<'a>,
    next: usize,
    /// Where the last entry's batch begins.
    last: Option<u64>,
}

impl<'a> IndexCheck<'a> {
    pub(super) fn new(index: IndexView<'a>) -> Self {
        Self {
            index,
            next: 0,
            last: None,
        }
    }

    /// Whether the index says the truth of the batch that begins at `position`.
    pub(super) fn batch(&mut self, position: u64, header: &Header, before: &Contents) -> bool {
        let needs_none = self
            .last
            .is_some_and(|last| position <= last + MOST_BETWEEN);
        if self.next == self.index.len() {
            return needs_none;
        }
        let entry = self.index.get(self.next);
        if u64::from(entry.position) > position {
            return needs_none;
        }
        self.next += 1;
        self.last = Some(position);
        let first = position == 0;
        let max_timestamp_before_ms = if first {
            i64::MIN
        } else {
            before.max_timestamp_ms
        };
        let timestamp_ms = header.base_timestamp_ms;
        let relative = before.next_offset.wrapping_sub(self.index.base_offset);
        let Ok(relative_offset) = u32::try_from(relative) else {
            return false;
        };
        let Ok(position) = u32::try_from(position) else {
            return false;
        };
        entry
            == IndexEntry {
                relative_offset,
                position,
                timestamp_ms,
                max_timestamp_before_ms,
            }
    }

    /// Whether all entries were met, and all of the log is covered.
    pub(super) fn is_complete(&self, log_bytes: u64) -> bool {
        self.next == self.index.len() && u64::from(self.index.covered_bytes) == log_bytes
    }
}
