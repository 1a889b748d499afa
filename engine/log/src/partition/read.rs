//! Where a reader finds an offset or a time: in memory, or in a range of a segment's file.

use std::ops::Range;

use ringtide_io::buffer::CHUNK_BYTES;
use ringtide_io::{DiskOp, FileId, OpenMode, Slice, Slices};
use ringtide_schema::limits::MAX_MEMORY_DELIVERY_BYTES;

use super::{Ops, Partition, PartitionOp};
use crate::segment::{Index, Reader, index_path, log_path};

/// The most slices of a plan.
const MAX_SLICES: usize = ringtide_io::net::MAX_SLICES;

/// How to serve a read.
#[derive(Debug)]
pub enum Plan {
    /// Below the first or past the last offset.
    OutOfRange,
    /// Nothing visible at this offset yet.
    AtEnd,
    /// From memory. The first batch holds the offset.
    Memory {
        /// Whole batches.
        slices: Slices,
        /// Their bytes.
        bytes: usize,
        /// From the first offset of the first batch to that after the last.
        offsets: Range<u64>,
    },
    /// From a file. The offset is in the range, which may begin with earlier batches.
    File {
        /// Where most of it is.
        range: FileRange,
        /// From its first offset to that after it.
        offsets: Range<u64>,
    },
    /// Damage in the segment makes it impossible to find.
    Unreadable {
        /// The first offset behind the damage.
        next_offset: u64,
    },
    /// An index or a file has been asked for: try again after the next operation of the partition.
    Wait,
}

/// Whole batches that a file begins and memory may end.
#[derive(Debug)]
pub struct FileRange {
    /// Opened for reading; none where no byte is in a file.
    pub file: Option<FileId>,
    /// First byte.
    pub position: u64,
    /// Number of bytes in the file.
    pub bytes: usize,
    /// What follows them: the end of the segment as a snapshot held it, until the file has it, too.
    pub rest: Vec<u8>,
}

impl FileRange {
    /// All of its bytes.
    pub fn len(&self) -> usize {
        self.bytes + self.rest.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Where the first record at or after a time is.
#[derive(Debug)]
pub enum TimePlan {
    /// There is none: the answer is the end.
    None,
    /// In this batch, the first whose largest timestamp is late enough.
    Batch(Slice),
    /// In this file range if anywhere before `otherwise`, an offset to go on from.
    File {
        /// Where most of it is.
        range: FileRange,
        /// Its first offset.
        first_offset: u64,
        /// Where to go on if it is not in the range.
        otherwise: u64,
    },
    /// As [`Plan::Unreadable`], from an offset on.
    Unreadable {
        /// Where the last entry before the damage is.
        first_offset: u64,
        /// The first offset behind the damage.
        next_offset: u64,
    },
    /// As [`Plan::Wait`], for the segment with this base offset.
    Wait(u64),
}

impl Partition {
    /// Plans a read of about `max_bytes` from `offset` (at least one batch).
    pub fn plan(&mut self, offset: u64, max_bytes: usize, turn: u64, ops: &mut Ops<'_>) -> Plan {
        if offset < self.log_start || offset > self.next_offset {
            return Plan::OutOfRange;
        }
        if offset >= self.visible() {
            return Plan::AtEnd;
        }
        if self.tail.front().is_some_and(|b| b.base_offset <= offset) {
            return self.plan_memory(offset, max_bytes.min(MAX_MEMORY_DELIVERY_BYTES));
        }
        let found = self
            .segments
            .partition_point(|s| s.meta.base_offset <= offset);
        let Some(i) = found.checked_sub(1) else {
            return Plan::OutOfRange;
        };
        let Some(file) = self.reader(i, turn, ops) else {
            return Plan::Wait;
        };
        let end = self.file_end(i);
        let range = self.segments[i].range(offset, max_bytes as u64, end);
        let next_offset = range.next_offset;
        if next_offset <= offset {
            return Plan::OutOfRange;
        }
        // A range that is too long, or none, has damage in it, in which nothing is indexed.
        if !(1..=CHUNK_BYTES as u64).contains(&range.bytes) {
            return Plan::Unreadable { next_offset };
        }
        Plan::File {
            range: self.file_range(i, file, range.position, range.bytes as usize),
            offsets: range.first_offset..range.next_offset,
        }
    }

    /// A range of a segment, parted into what its file has and what it has not yet.
    fn file_range(&self, i: usize, file: Option<FileId>, position: u64, bytes: usize) -> FileRange {
        let (file_end, carried) = match self.segments[i].meta.sealed {
            true => (u64::MAX, &[][..]),
            false => self.writer.carried(),
        };
        let in_file = bytes.min(file_end.saturating_sub(position) as usize);
        let start = (position + in_file as u64).saturating_sub(file_end) as usize;
        FileRange {
            file,
            position,
            bytes: in_file,
            rest: carried[start..start + bytes - in_file].to_vec(),
        }
    }

    fn plan_memory(&self, offset: u64, max_bytes: usize) -> Plan {
        let first = self.tail.partition_point(|b| b.next_offset <= offset);
        let visible = self.visible();
        let mut slices = Slices::new();
        let (mut bytes, mut offsets) = (0, offset..offset);
        for batch in self.tail.range(first..) {
            let full = bytes > 0 && bytes + batch.bytes.len() > max_bytes;
            if full || batch.next_offset > visible {
                break;
            }
            let full = slices.len() == MAX_SLICES;
            match slices.last_mut() {
                Some(last) if last.is_followed_by(&batch.bytes) => {
                    *last = last.joined(&batch.bytes);
                }
                _ if full => break,
                _ => slices.push(batch.bytes.clone()),
            }
            if bytes == 0 {
                offsets.start = batch.base_offset;
            }
            bytes += batch.bytes.len();
            offsets.end = batch.next_offset;
        }
        if bytes == 0 {
            return Plan::AtEnd;
        }
        Plan::Memory {
            slices,
            bytes,
            offsets,
        }
    }

    /// How far a segment may be read from its file: a position between batches, and the offset
    /// there. What lies further is in memory.
    fn file_end(&self, i: usize) -> (u64, u64) {
        let segment = &self.segments[i];
        let base = segment.meta.base_offset;
        let in_memory = self.tail.iter().find_map(|b| {
            b.place
                .filter(|place| place.0 == base)
                .map(|place| (b, place.1))
        });
        match in_memory {
            Some((batch, end)) => (end - batch.bytes.len() as u64, batch.base_offset),
            None => (self.segment_bytes(segment), segment.meta.next_offset),
        }
    }

    /// The segment's file for reading, if its index is loaded and it is open; asks for what is not, one after the other:
    /// where files are few, none is opened by who waits for another. None is needed where nothing is in it.
    fn reader(&mut self, i: usize, turn: u64, ops: &mut Ops<'_>) -> Option<Option<FileId>> {
        let (bytes, tail) = match self.segments[i].meta.sealed {
            true => (self.segments[i].meta.bytes, &[][..]),
            false => self.writer.carried(),
        };
        if bytes == 0 {
            return Some(None);
        }
        let segment = &mut self.segments[i];
        let (base, keep) = (segment.meta.base_offset, segment.meta.sealed);
        if matches!(segment.index, Index::Unloaded) {
            segment.index = Index::Loading;
            ops.out.push((
                PartitionOp::LoadIndex(base),
                DiskOp::LoadIndex {
                    index_path: index_path(&self.dir, base),
                    log_path: log_path(&self.dir, base),
                    base_offset: base,
                    bytes,
                    tail: tail.to_vec(),
                    next_offset: segment.meta.next_offset,
                    keep,
                },
            ));
        }
        match segment.reader {
            _ if !segment.has_index() => None,
            Reader::Closed => {
                let file = ops.file();
                segment.reader = Reader::Opening(file);
                let path = log_path(&self.dir, base);
                let open = DiskOp::Open {
                    file,
                    path,
                    mode: OpenMode::Read,
                };
                ops.out.push((PartitionOp::OpenRead(base), open));
                None
            }
            Reader::Opening(_) => None,
            Reader::Opened(file, _) | Reader::Used(file, _) => {
                segment.reader = Reader::Used(file, turn);
                Some(Some(file))
            }
        }
    }

    /// Whether it has a file open.
    pub fn has_open_files(&self) -> bool {
        let is_read = |reader| matches!(reader, Reader::Opened(..) | Reader::Used(..));
        self.writer.has_open_file() || self.segments.iter().any(|s| is_read(s.reader))
    }

    /// Files open for reading that were not used since `before` (a turn), closed by this. Those that were never used are
    /// waited for: they must have been opened before `opened_before`.
    pub fn close_readers(&mut self, before: u64, opened_before: u64) -> Vec<FileId> {
        let mut closed = Vec::new();
        for segment in &mut self.segments {
            let unused = match segment.reader {
                Reader::Used(file, used) if used < before => Some(file),
                Reader::Opened(file, since) if since < opened_before => Some(file),
                _ => None,
            };
            if let Some(file) = unused {
                segment.reader = Reader::Closed;
                if matches!(segment.index, Index::File(_)) {
                    segment.index = Index::Unloaded;
                }
                closed.push(file);
            }
        }
        closed
    }

    /// Gives up the indexes of sealed segments whose files nobody has opened.
    pub fn unload_indexes(&mut self) {
        for segment in &mut self.segments {
            let is_closed = matches!(segment.reader, Reader::Closed);
            if is_closed && matches!(segment.index, Index::File(_)) {
                segment.index = Index::Unloaded;
            }
        }
    }

    /// Plans the search for the first record at or after a time, from `offset` on.
    pub fn plan_time(
        &mut self,
        timestamp_ms: i64,
        offset: u64,
        turn: u64,
        ops: &mut Ops<'_>,
    ) -> TimePlan {
        let visible = self.visible();
        let in_memory = self
            .tail
            .front()
            .map_or(self.next_offset, |b| b.base_offset);
        for i in 0..self.segments.len() {
            let (end_position, end_offset) = self.file_end(i);
            let segment = &self.segments[i];
            let before = end_offset <= offset.max(self.log_start) || end_position == 0;
            // The active segment's largest timestamp includes what is still in memory.
            if before || segment.meta.max_timestamp_ms < timestamp_ms {
                continue;
            }
            let Some(file) = self.reader(i, turn, ops) else {
                return TimePlan::Wait(self.segments[i].meta.base_offset);
            };
            let range =
                self.segments[i].range_of_time(timestamp_ms, offset, (end_position, end_offset));
            if range.bytes > CHUNK_BYTES as u64 {
                return TimePlan::Unreadable {
                    first_offset: range.first_offset,
                    next_offset: range.next_offset,
                };
            }
            if range.bytes > 0 && range.next_offset > offset {
                return TimePlan::File {
                    range: self.file_range(i, file, range.position, range.bytes as usize),
                    first_offset: range.first_offset,
                    otherwise: range.next_offset,
                };
            }
        }
        let from = offset.max(in_memory);
        self.tail
            .iter()
            .filter(|b| b.next_offset > from && b.next_offset <= visible)
            .find(|b| b.max_timestamp_ms >= timestamp_ms)
            .map_or(TimePlan::None, |b| TimePlan::Batch(b.bytes.clone()))
    }
}
