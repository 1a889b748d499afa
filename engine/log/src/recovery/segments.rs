//! Writing what was replayed into the segments of one partition.
//!
//! A segment is continued at its synced position, in whole blocks through aligned buffers of at most
//! [`PIECE_BYTES`] that are written by [`super::behind`]; what is left of the last block becomes the snapshot's tail. Nothing is cut
//! before everything is written, so that a recovery that is refused half-way has only written bytes
//! that the next one writes again.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use ringtide_schema::batch::CRC_START;
use ringtide_schema::limits::BLOCK_BYTES;
use ringtide_schema::store::{PartitionT, SegmentT};
use rustix::process::{Resource, getrlimit};

use super::behind::{Behind, Target};
use super::error::{BadSegment, RecoverError};
use crate::files::{self, AlignedBuf};

const BLOCK: u64 = BLOCK_BYTES as u64;
/// The largest single write.
pub(super) const PIECE_BYTES: usize = 256 << 10;
/// Up to so many partitions keep their file open, and no more than use a quarter of the files that may be; others open it
/// for every piece.
const OPEN_FILES: usize = 256;
/// Up to so many partitions have large buffers (256 MiB together), those that come after smaller
/// ones, so that memory does not grow with the number of partitions.
const FEW_PARTITIONS: usize = 1024;
const MANY_PARTITIONS: usize = 4096;

fn most_open(limit: Option<u64>) -> usize {
    let quarter = limit.map(|limit| usize::try_from(limit / 4).unwrap_or(usize::MAX));
    quarter.map_or(OPEN_FILES, |quarter| quarter.min(OPEN_FILES))
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
    incarnation: u64,
    direct: bool,
    keep_open: bool,
    piece_bytes: usize,
    buf: Option<AlignedBuf>,
    filled: usize,
    open: Option<Open>,
}

/// The segment that is being written.
struct Open {
    target: Target,
    /// Where the buffer begins in the segment.
    position: u64,
    /// The next offset behind the last batch that ends at or before the last whole block.
    covered: u64,
    /// End and next offset of each batch that ends behind the last whole block.
    ends: VecDeque<(u64, u64)>,
}

/// Where writes go: nowhere, for verification.
pub(super) type Out<'a> = Option<&'a mut Behind>;

impl Writer {
    /// Takes up the partition where its manifest says that it was synced.
    pub(super) fn open(
        directory: PathBuf,
        stored: &mut PartitionT,
        (incarnation, direct): (u64, bool),
        already_open: usize,
        mut out: Out<'_>,
    ) -> Result<Self, RecoverError> {
        let piece_bytes = if already_open < FEW_PARTITIONS {
            PIECE_BYTES
        } else if already_open < MANY_PARTITIONS {
            PIECE_BYTES / 4
        } else {
            PIECE_BYTES / 16
        };
        let keep_open = already_open < most_open(getrlimit(Resource::Nofile).current);
        let (buf, filled, open) = (None, 0, None);
        let mut writer = Self {
            directory,
            incarnation,
            direct,
            keep_open,
            piece_bytes,
            buf,
            filled,
            open,
        };
        if let Some(last) = stored.segments.iter().flatten().next_back()
            && !last.sealed
        {
            let path = writer.directory.join(log_name(last.base_offset));
            let (bytes, covered) = (last.bytes, last.next_offset);
            writer.take(path, bytes, covered, &mut out)?;
            let tail = stored.tail.take().unwrap_or_default();
            writer.put(&tail, &mut out)?;
            // Only the last batch of a tail, which is less than a block, can matter.
            writer.note_ends([(bytes + tail.len() as u64, stored.next_offset)]);
        }
        Ok(writer)
    }

    fn take(
        &mut self,
        path: PathBuf,
        position: u64,
        covered: u64,
        out: &mut Out<'_>,
    ) -> Result<(), RecoverError> {
        let mut file = None;
        let have = if let Some(behind) = out {
            // An index is derived; what it knows of may end elsewhere from now on.
            files::remove_file(&path.with_extension("index"))?;
            let opened = match files::open_write(&path, self.direct, position == 0) {
                Err(error) if error.cause == files::Cause::Missing => {
                    let (want, have) = (position, 0);
                    return Err(BadSegment { path, want, have }.into());
                }
                opened => opened?,
            };
            let have = files::file_bytes(&opened, &path)?;
            behind.found(&path, have);
            file = self.keep_open.then(|| Arc::new(opened));
            have
        } else if position > 0 {
            files::bytes_at(&path)?
        } else {
            0
        };
        if have < position {
            return Err(BadSegment {
                path,
                want: position,
                have,
            }
            .into());
        }
        let target = Target {
            path: Arc::new(path),
            open: file,
        };
        self.open = Some(Open {
            target,
            position,
            covered,
            ends: VecDeque::new(),
        });
        Ok(())
    }

    /// Appends a batch, in a new segment if it would not fit into the open one.
    pub(super) fn append(
        &mut self,
        stored: &mut PartitionT,
        batch: &Replayed<'_>,
        segment_bytes: u32,
        mut out: Out<'_>,
    ) -> Result<(), RecoverError> {
        let size = self.size();
        let too_large = size + batch.bytes.len() as u64 > u64::from(segment_bytes);
        let last = stored.segments.iter().flatten().next_back();
        let too_far = last.is_some_and(|s| batch.next_offset - s.base_offset > u64::from(u32::MAX));
        if size > 0 && (too_large || too_far) {
            self.seal(stored, &mut out)?;
        }
        let segments = stored.segments.get_or_insert_default();
        if self.open.is_none() {
            let base_offset = stored.next_offset;
            let path = self.directory.join(log_name(base_offset));
            self.take(path, 0, base_offset, &mut out)?;
            segments.push(SegmentT {
                base_offset,
                next_offset: base_offset,
                incarnation: self.incarnation,
                ..SegmentT::default()
            });
        }
        self.put(batch.bytes, &mut out)?;
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

    fn put(&mut self, mut bytes: &[u8], out: &mut Out<'_>) -> Result<(), RecoverError> {
        while !bytes.is_empty() {
            let buf = self.buf.get_or_insert_with(|| match out {
                Some(behind) => behind.buffer(self.piece_bytes),
                None => AlignedBuf::zeroed(self.piece_bytes),
            });
            let n = bytes.len().min(buf.len() - self.filled);
            buf[self.filled..self.filled + n].copy_from_slice(&bytes[..n]);
            self.filled += n;
            bytes = &bytes[n..];
            if self.filled == self.piece_bytes {
                self.write(self.filled, out)?;
            }
        }
        Ok(())
    }

    /// Hands over the buffer to write its first `bytes`, whole blocks, and begins a new one.
    fn write(&mut self, bytes: usize, out: &mut Out<'_>) -> Result<(), RecoverError> {
        assert!(bytes.is_multiple_of(BLOCK_BYTES));
        self.filled = 0;
        let (Some(open), Some(buf)) = (&mut self.open, self.buf.take()) else {
            return Ok(());
        };
        if let Some(behind) = out {
            if bytes > 0 {
                behind.write(open.target.clone(), buf, bytes, open.position)?;
            } else {
                behind.give_back(buf);
            }
        }
        open.position += bytes as u64;
        Ok(())
    }

    fn seal(&mut self, stored: &mut PartitionT, out: &mut Out<'_>) -> Result<(), RecoverError> {
        let exact = self.size();
        let padded = self.filled.next_multiple_of(BLOCK_BYTES);
        if let Some(buf) = &mut self.buf {
            buf[self.filled..padded].fill(0);
        }
        self.write(padded, out)?;
        self.settle(exact, out);
        if let Some(segment) = stored.segments.get_or_insert_default().last_mut() {
            segment.sealed = true;
            segment.bytes = exact;
            segment.next_offset = stored.next_offset;
        }
        Ok(())
    }

    fn settle(&mut self, bytes: u64, out: &mut Out<'_>) {
        if let (Some(open), Some(behind)) = (self.open.take(), out) {
            behind.settle_later(open.target.path, bytes);
        }
    }

    /// Writes what is left but for the part of a block, which becomes the tail. Gives the
    /// partition's directory; it and the segments are still to be synced.
    pub(super) fn finish(
        mut self,
        stored: &mut PartitionT,
        mut out: Out<'_>,
    ) -> Result<PathBuf, RecoverError> {
        let whole = self.filled / BLOCK_BYTES * BLOCK_BYTES;
        let tail = self
            .buf
            .as_ref()
            .map_or(Vec::new(), |buf| buf[whole..self.filled].to_vec());
        self.write(whole, &mut out)?;
        if let Some(open) = &self.open {
            if let Some(segment) = stored.segments.get_or_insert_default().last_mut() {
                segment.bytes = open.position;
                segment.next_offset = open.covered;
            }
            stored.tail = Some(tail).filter(|tail| !tail.is_empty());
            let position = open.position;
            self.settle(position, &mut out);
        }
        Ok(self.directory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replay_keeps_few_files_open_where_few_may_be() {
        let limits = [Some(64), Some(1024), Some(1 << 40), None];
        assert_eq!(limits.map(most_open), [16, 256, 256, 256]);
    }

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
