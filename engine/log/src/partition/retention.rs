//! The end of records: which segments may go, and when their files do.

use std::path::PathBuf;

use ringtide_io::{DiskOp, FileId};

use super::{Ops, Partition, PartitionOp};
use crate::segment::{Reader, Segment, index_path, log_path};

impl Partition {
    /// The log start that the topic's retention asks for, if it is past the present one. Only
    /// sealed segments go; an old segment that is still written is sealed first.
    pub fn expired(&mut self, now_ms: i64) -> Option<u64> {
        let limit = self.config.retention_bytes;
        let oldest = self
            .config
            .retention_ms
            .map(|ms| now_ms.saturating_sub_unsigned(ms));
        let is_old = |s: &Segment| {
            oldest.is_some_and(|t| s.meta.max_timestamp_ms >= 0 && s.meta.max_timestamp_ms < t)
        };
        let (_, mut held) = self.size();
        let mut start = self.log_start;
        for segment in self.segments.iter().filter(|s| s.meta.sealed) {
            let over = limit.is_some_and(|limit| held > limit);
            if !over && !is_old(segment) {
                break;
            }
            held -= segment.meta.bytes;
            start = segment.meta.next_offset;
        }
        if !self.has_overdue(now_ms) && self.active().is_some_and(is_old) {
            self.roll();
        }
        (start > self.log_start).then_some(start)
    }

    /// Whether records that retention may remove wait in memory: only what is in a segment can go.
    pub fn has_overdue(&self, now_ms: i64) -> bool {
        let Some(waiting) = self.tail.get(self.given) else {
            return false;
        };
        let oldest = self
            .config
            .retention_ms
            .map(|ms| now_ms.saturating_sub_unsigned(ms));
        let is_old = oldest.is_some_and(|t| waiting.max_timestamp_ms < t);
        let is_over = self
            .config
            .retention_bytes
            .is_some_and(|limit| self.size().1 > limit);
        is_old || is_over
    }

    /// Applies a new log start whose entry `seq` was appended. Records before it cannot be read
    /// any more; their files go once a snapshot has it ([`Self::remove_files`]).
    pub fn set_log_start(&mut self, log_start: u64, seq: u64) {
        assert!(self.log_start <= log_start && log_start <= self.next_offset);
        self.log_start = log_start;
        self.last_seq = self.last_seq.max(seq);
        let gone = self
            .segments
            .iter()
            .take_while(|s| s.meta.sealed && s.meta.next_offset <= log_start)
            .count();
        self.removing
            .extend(self.segments.drain(..gone).map(|s| (seq, s)));
        while self
            .tail
            .front()
            .is_some_and(|b| b.next_offset <= log_start && b.place.is_some())
        {
            self.forget_front();
        }
    }

    /// Whether files wait for a snapshot that does not name them any more.
    pub fn is_removing(&self) -> bool {
        !self.removing.is_empty()
    }

    /// Removes the files of segments whose end is in a snapshot (a start from an older snapshot
    /// would look for them). Returns the readers' files to close.
    pub fn remove_files(&mut self, snapshot_seq: u64, ops: &mut Ops<'_>) -> Vec<FileId> {
        let mut paths: Vec<PathBuf> = Vec::new();
        let mut closed = Vec::new();
        let may_go = |(seq, s): &(u64, Segment)| {
            *seq <= snapshot_seq && !matches!(s.reader, Reader::Opening(_))
        };
        while self.removing.front().is_some_and(may_go) {
            let Some((_, segment)) = self.removing.pop_front() else {
                break;
            };
            let base = segment.meta.base_offset;
            paths.extend([log_path(&self.dir, base), index_path(&self.dir, base)]);
            if let Reader::Opened(file, _) | Reader::Used(file, _) = segment.reader {
                closed.push(file);
            }
        }
        if !paths.is_empty() {
            let and_directory = None;
            ops.out.push((
                PartitionOp::Remove,
                DiskOp::Remove {
                    paths,
                    and_directory,
                },
            ));
        }
        closed
    }

    /// The topic was deleted: removes the directory. Returns the files to close.
    pub fn delete(&mut self, ops: &mut Ops<'_>) -> Vec<FileId> {
        let removing = self.removing.iter().map(|(_, segment)| segment);
        let readers = self
            .segments
            .iter()
            .chain(removing)
            .filter_map(|s| match s.reader {
                Reader::Opening(file) | Reader::Opened(file, _) | Reader::Used(file, _) => {
                    Some(file)
                }
                Reader::Closed => None,
            });
        let closed = readers.chain(self.writer.file.take()).collect();
        let and_directory = Some(self.dir.clone());
        ops.out.push((
            PartitionOp::Remove,
            DiskOp::Remove {
                paths: Vec::new(),
                and_directory,
            },
        ));
        closed
    }
}
