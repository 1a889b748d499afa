//! Writing what was replayed into the segments of one partition.
//!
//! A segment is continued at its synced position, in whole blocks through one aligned buffer of at
//! most [`PIECE_BYTES`]; what is left of the last block becomes the snapshot's tail. Nothing is cut
//! before everything is written, so that a recovery that is refused half-way has only written bytes
//! that the next one writes again.

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};

use ringtide_schema::batch::{CRC_START, check_stored};
use ringtide_schema::limits::BLOCK_BYTES;
use ringtide_schema::store::{PartitionT, SegmentT};

use super::error::{BadSegment, RecoverError};
use crate::files::{self, AlignedBuf};

const BLOCK: u64 = BLOCK_BYTES as u64;
/// The largest single write.
pub(super) const PIECE_BYTES: usize = 256 << 10;
/// With more partitions than this being replayed, each has a smaller buffer and no open file, so
/// that neither memory nor file descriptors grow with their number.
const MANY_PARTITIONS: usize = 192;
const SMALL_PIECE_BYTES: usize = 32 << 10;

/// How segments are written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mode {
    /// Past the page cache.
    pub(super) direct: bool,
    /// Do everything but write: for verification.
    pub(super) dry: bool,
}

/// The name of a segment's log.
pub fn log_name(base_offset: u64) -> String {
    format!("{base_offset:020}.log")
}

/// The name of a segment's index.
pub fn index_name(base_offset: u64) -> String {
    format!("{base_offset:020}.index")
}

/// The base offset in the name of a log or an index, and whether it is a log.
pub(super) fn parse_name(name: &str) -> Option<(u64, bool)> {
    let (number, log) = match name.strip_suffix(".log") {
        Some(number) => (number, true),
        None => (name.strip_suffix(".index")?, false),
    };
    let digits = number.len() == 20 && number.bytes().all(|b| b.is_ascii_digit());
    Some((digits.then_some(number)?.parse().ok()?, log))
}

/// One batch as replay knows it: its bytes and what its header says.
pub(super) struct Replayed<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) next_offset: u64,
    pub(super) max_timestamp_ms: i64,
}

/// The open end of a partition while it is replayed.
pub(super) struct Writer {
    directory: PathBuf,
    mode: Mode,
    incarnation: u64,
    keep_open: bool,
    buf: AlignedBuf,
    filled: usize,
    open: Option<Open>,
}

/// The segment that is being written.
struct Open {
    path: PathBuf,
    file: Option<File>,
    /// Where the buffer begins in the segment.
    position: u64,
    /// The next offset behind the last batch that ends at or before the last whole block.
    covered: u64,
    /// End and next offset of each batch that ends behind the last whole block.
    ends: VecDeque<(u64, u64)>,
    wrote: bool,
}

impl Writer {
    /// Takes up the partition where its manifest says that it was synced.
    pub(super) fn open(
        directory: PathBuf,
        stored: &mut PartitionT,
        mode: Mode,
        incarnation: u64,
        already_open: usize,
    ) -> Result<Self, RecoverError> {
        let many = already_open >= MANY_PARTITIONS;
        let piece = if many { SMALL_PIECE_BYTES } else { PIECE_BYTES };
        let mut writer = Self {
            directory,
            mode,
            incarnation,
            keep_open: !many,
            buf: AlignedBuf::zeroed(piece),
            filled: 0,
            open: None,
        };
        if let Some(last) = stored.segments.iter().flatten().next_back()
            && !last.sealed
        {
            let path = writer.directory.join(log_name(last.base_offset));
            let (bytes, synced) = (last.bytes, last.next_offset);
            writer.take(path, bytes, synced)?;
            let tail = stored.tail.take().unwrap_or_default();
            let ends = tail_ends(&tail, bytes, stored.next_offset);
            writer.put(&tail)?;
            writer.note_ends(ends);
        }
        Ok(writer)
    }

    fn take(&mut self, path: PathBuf, position: u64, covered: u64) -> Result<(), RecoverError> {
        let mut file = None;
        if !self.mode.dry {
            // An index is derived; what it knows of may end elsewhere from now on.
            files::remove_file(&path.with_extension("index"))?;
            let opened = files::open_write(&path, self.mode.direct, position == 0)?;
            let have = files::file_bytes(&opened, &path)?;
            if have < position {
                return Err(BadSegment {
                    path,
                    want: position,
                    have,
                }
                .into());
            }
            file = self.keep_open.then_some(opened);
        } else if position > 0 {
            let have = files::bytes_at(&path)?;
            if have < position {
                return Err(BadSegment {
                    path,
                    want: position,
                    have,
                }
                .into());
            }
        }
        let ends = VecDeque::new();
        self.open = Some(Open {
            path,
            file,
            position,
            covered,
            ends,
            wrote: false,
        });
        Ok(())
    }

    /// Appends a batch, in a new segment if it would not fit into the open one.
    pub(super) fn append(
        &mut self,
        stored: &mut PartitionT,
        batch: &Replayed<'_>,
        segment_bytes: u32,
    ) -> Result<(), RecoverError> {
        let size = self.size();
        if size > 0 && size + batch.bytes.len() as u64 > u64::from(segment_bytes) {
            self.seal(stored)?;
        }
        let segments = stored.segments.get_or_insert_default();
        if self.open.is_none() {
            let base_offset = stored.next_offset;
            self.take(self.directory.join(log_name(base_offset)), 0, base_offset)?;
            segments.push(SegmentT {
                base_offset,
                next_offset: base_offset,
                incarnation: self.incarnation,
                ..SegmentT::default()
            });
        }
        self.put(batch.bytes)?;
        self.note_ends([(self.size(), batch.next_offset)]);
        if let Some(segment) = segments.last_mut() {
            let prefix = &batch.bytes[..CRC_START];
            segment.prefix_crc = crc32c::crc32c_append(segment.prefix_crc, prefix);
            segment.max_timestamp_ms = segment.max_timestamp_ms.max(batch.max_timestamp_ms);
        }
        stored.next_offset = batch.next_offset;
        Ok(())
    }

    /// Bytes of the open segment, those in the buffer included.
    fn size(&self) -> u64 {
        self.open
            .as_ref()
            .map_or(0, |open| open.position + self.filled as u64)
    }

    fn note_ends(&mut self, ends: impl IntoIterator<Item = (u64, u64)>) {
        let synced = self.size() / BLOCK * BLOCK;
        let Some(open) = &mut self.open else { return };
        open.ends.extend(ends);
        while let Some(&(end, next_offset)) = open.ends.front()
            && end <= synced
        {
            open.covered = next_offset;
            open.ends.pop_front();
        }
    }

    fn put(&mut self, mut bytes: &[u8]) -> Result<(), RecoverError> {
        while !bytes.is_empty() {
            let n = bytes.len().min(self.buf.len() - self.filled);
            self.buf[self.filled..self.filled + n].copy_from_slice(&bytes[..n]);
            self.filled += n;
            bytes = &bytes[n..];
            if self.filled == self.buf.len() {
                self.write(self.filled)?;
                self.filled = 0;
            }
        }
        Ok(())
    }

    /// Writes the first `bytes` of the buffer, whole blocks, and moves on by as much.
    fn write(&mut self, bytes: usize) -> Result<(), RecoverError> {
        assert!(bytes.is_multiple_of(BLOCK_BYTES));
        let Some(open) = &mut self.open else {
            return Ok(());
        };
        if !self.mode.dry && bytes > 0 {
            let opened = match open.file.take() {
                Some(file) => file,
                None => files::open_write(&open.path, self.mode.direct, false)?,
            };
            files::write_at(&opened, &open.path, &self.buf[..bytes], open.position)?;
            open.file = self.keep_open.then_some(opened);
            open.wrote = true;
        }
        open.position += bytes as u64;
        Ok(())
    }

    fn seal(&mut self, stored: &mut PartitionT) -> Result<(), RecoverError> {
        let exact = self.size();
        let padded = self.filled.next_multiple_of(BLOCK_BYTES);
        self.buf[self.filled..padded].fill(0);
        self.write(padded)?;
        self.filled = 0;
        let Some(open) = self.open.take() else {
            return Ok(());
        };
        self.settle(open, exact, true)?;
        if let Some(segment) = stored.segments.get_or_insert_default().last_mut() {
            segment.sealed = true;
            segment.bytes = exact;
            segment.next_offset = stored.next_offset;
        }
        Ok(())
    }

    /// Cuts the file to its length and makes it durable.
    fn settle(&self, open: Open, bytes: u64, wrote: bool) -> Result<(), RecoverError> {
        if self.mode.dry {
            return Ok(());
        }
        let file = match open.file {
            Some(file) => file,
            None => files::open_write(&open.path, self.mode.direct, false)?,
        };
        if files::file_bytes(&file, &open.path)? != bytes {
            files::set_len(&file, &open.path, bytes)?;
        } else if !wrote {
            return Ok(());
        }
        files::sync_data(&file, &open.path)?;
        Ok(())
    }

    /// Writes and syncs what is left but for the part of a block, which becomes the tail.
    pub(super) fn finish(mut self, stored: &mut PartitionT) -> Result<(), RecoverError> {
        let whole = self.filled / BLOCK_BYTES * BLOCK_BYTES;
        self.write(whole)?;
        let Some(open) = self.open.take() else {
            return Ok(());
        };
        if let Some(segment) = stored.segments.get_or_insert_default().last_mut() {
            segment.bytes = open.position;
            segment.next_offset = open.covered;
        }
        let tail = &self.buf[whole..self.filled];
        stored.tail = (!tail.is_empty()).then(|| tail.to_vec());
        let (position, wrote) = (open.position, open.wrote);
        self.settle(open, position, wrote)
    }

    /// The partition's directory.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }
}

/// Where the batches of a tail end, given that it begins at `position` of the segment, maybe within
/// a batch, and ends just before `next_offset`: end and next offset of each, as far as they can be
/// told.
fn tail_ends(tail: &[u8], position: u64, next_offset: u64) -> VecDeque<(u64, u64)> {
    let mut last = VecDeque::from([(position + tail.len() as u64, next_offset)]);
    if tail.len() < BLOCK_BYTES {
        // All of them end before the next block does, so that only the last one matters.
        return last;
    }
    for start in 0..tail.len() {
        if let Some((base_offset, mut ends)) = ends_from(tail, start, next_offset) {
            if start > 0 {
                ends.push_front((start as u64, base_offset));
            }
            return ends
                .into_iter()
                .map(|(end, next)| (position + end, next))
                .collect();
        }
    }
    last.retain(|_| !tail.is_empty());
    last
}

/// The ends of the batches from `start` on if they fill the tail up to `next_offset`, with the base
/// offset of the first.
fn ends_from(tail: &[u8], start: usize, next_offset: u64) -> Option<(u64, VecDeque<(u64, u64)>)> {
    let mut ends = VecDeque::new();
    let first = check_stored(&tail[start..]).ok()?.base_offset;
    let (mut at, mut next) = (start, first);
    while at < tail.len() {
        let header = check_stored(&tail[at..]).ok()?;
        if header.base_offset != next {
            return None;
        }
        at += header.batch_bytes;
        next = header.next_offset();
        ends.push_back((at as u64, next));
    }
    (next == next_offset).then_some((first, ends))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segment_names_round_trip_and_others_are_foreign() {
        assert_eq!(parse_name(&log_name(7)), Some((7, true)));
        assert_eq!(parse_name(&index_name(u64::MAX)), Some((u64::MAX, false)));
        for name in [
            "7.log",
            "x0000000000000000007.log",
            "00000000000000000007.txt",
            "",
        ] {
            assert_eq!(parse_name(name), None, "{name}");
        }
    }
}
