//! One segment of a partition: its line in the manifest, its index, its open files.

use std::path::{Path, PathBuf};

use ringtide_io::{FileId, IndexBytes};
use ringtide_schema::index::{INTERVAL_BYTES, IndexEntry, IndexView};
use ringtide_schema::store::SegmentT;

/// The file of a segment's batches.
pub fn log_path(dir: &Path, base_offset: u64) -> PathBuf {
    dir.join(format!("{base_offset:020}.log"))
}

/// The file of a segment's index.
pub fn index_path(dir: &Path, base_offset: u64) -> PathBuf {
    dir.join(format!("{base_offset:020}.index"))
}

/// What is in memory of a segment's index.
#[derive(Debug)]
pub enum Index {
    /// Nothing yet.
    Unloaded,
    /// Asked for.
    Loading,
    /// Of a sealed segment, as its file has it.
    File(IndexBytes),
    /// Of the segment being written, or one whose file was wrong.
    Memory(Vec<IndexEntry>),
}

impl Index {
    fn len(&self) -> usize {
        match self {
            Self::Unloaded | Self::Loading => 0,
            Self::File(IndexBytes::File(bytes)) => IndexView::trusted((**bytes).as_ref()).len(),
            Self::File(IndexBytes::Built { entries, .. }) => entries.len(),
            Self::Memory(entries) => entries.len(),
        }
    }

    fn get(&self, i: usize) -> IndexEntry {
        match self {
            Self::Unloaded | Self::Loading => unreachable!("an index without entries has none"),
            Self::File(IndexBytes::File(bytes)) => IndexView::trusted((**bytes).as_ref()).get(i),
            Self::File(IndexBytes::Built { entries, .. }) => entries[i],
            Self::Memory(entries) => entries[i],
        }
    }

    /// Number of entries that `is_before` holds for; it must hold for a prefix of them.
    fn partition_point(&self, is_before: impl Fn(&IndexEntry) -> bool) -> usize {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low.midpoint(high);
            if is_before(&self.get(middle)) {
                low = middle + 1
            } else {
                high = middle
            }
        }
        low
    }

    /// All entries, for writing them to a file.
    pub fn entries(&self) -> Vec<IndexEntry> {
        (0..self.len()).map(|i| self.get(i)).collect()
    }
}

/// The open file of a segment's readers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// Not open.
    Closed,
    /// Asked for.
    Opening(FileId),
    /// Open and not used yet; since which turn.
    Opened(FileId, u64),
    /// Open; when it was last used, in turns.
    Used(FileId, u64),
}

/// A segment.
#[derive(Debug)]
pub struct Segment {
    /// Its line in the manifest. Of the segment being written: what was given to the writer.
    pub meta: SegmentT,
    /// Its index.
    pub index: Index,
    /// Entries of it that were loaded, not made here.
    loaded: usize,
    /// For readers.
    pub reader: Reader,
}

/// A range of a segment that begins and ends with whole batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub position: u64,
    /// Number of bytes.
    pub bytes: u64,
    /// The first offset in it, whatever its first batch says.
    pub first_offset: u64,
    /// The first offset after the range.
    pub next_offset: u64,
}

impl Segment {
    /// A segment as the manifest has it.
    pub fn load(meta: SegmentT) -> Self {
        Self {
            meta,
            index: Index::Unloaded,
            loaded: 0,
            reader: Reader::Closed,
        }
    }

    /// A segment without a record.
    pub fn create(base_offset: u64, incarnation: u64) -> Self {
        let meta = SegmentT {
            base_offset,
            next_offset: base_offset,
            incarnation,
            ..SegmentT::default()
        };
        Self {
            meta,
            index: Index::Memory(Vec::new()),
            loaded: 0,
            reader: Reader::Closed,
        }
    }

    /// Whether positions can be looked up.
    pub fn has_index(&self) -> bool {
        matches!(self.index, Index::File(_) | Index::Memory(_))
    }

    /// Takes the index that was loaded.
    pub fn set_index(&mut self, loaded: IndexBytes) {
        self.index = if self.meta.sealed {
            Index::File(loaded)
        } else {
            let mut entries = Index::File(loaded).entries();
            // Times that are not known are not later than all there is; what is appended has its own.
            for entry in &mut entries {
                let before_ms = &mut entry.max_timestamp_before_ms;
                *before_ms = (*before_ms).min(self.meta.max_timestamp_ms);
            }
            self.loaded = entries.len();
            Index::Memory(entries)
        };
    }

    /// Whether batches of it are not found. Who builds its index again may not know the times of what is appended, nor find
    /// it, if there is more such damage.
    pub fn has_damage(&self) -> bool {
        (0..self.index.len()).any(|i| self.index.get(i).is_damaged())
    }

    /// Adds a batch that begins at `position` to the index, unless the last entry is too near. Behind what was loaded one
    /// is added at once: there may be damage between the two.
    pub fn index_batch(&mut self, offset: u64, position: u64, first_timestamp_ms: i64) {
        let Index::Memory(entries) = &mut self.index else {
            return;
        };
        let near = |last: &IndexEntry| position < u64::from(last.position + INTERVAL_BYTES);
        if entries.len() > self.loaded && entries.last().is_some_and(near) {
            return;
        }
        let before = if position == 0 {
            i64::MIN
        } else {
            self.meta.max_timestamp_ms
        };
        entries.push(IndexEntry {
            relative_offset: (offset - self.meta.base_offset) as u32,
            position: position as u32,
            timestamp_ms: first_timestamp_ms,
            max_timestamp_before_ms: before,
        });
    }

    /// The range that holds `offset`, of about `max_bytes`, ending at `end` at the latest
    /// (a position between batches and the offset there). It may begin with earlier batches.
    pub fn range(&self, offset: u64, max_bytes: u64, end: (u64, u64)) -> Range {
        let relative = |e: &IndexEntry| self.meta.base_offset + u64::from(e.relative_offset);
        let behind = self.index.partition_point(|e| relative(e) <= offset);
        let at = |i: usize| match i < self.index.len() {
            true => {
                let e = self.index.get(i);
                (u64::from(e.position), relative(&e))
            }
            false => end,
        };
        // Of what only a snapshot carried there is no entry.
        let (position, first_offset) = behind.checked_sub(1).map_or((0, self.meta.base_offset), at);
        let limit = position + max_bytes;
        let last = self
            .index
            .partition_point(|e| u64::from(e.position) <= limit);
        // `last` is the first entry past the limit: end before it, but after where it begins.
        let mut stop = last.saturating_sub(1).max(behind);
        if last == self.index.len() && end.0 <= limit {
            stop = self.index.len();
        }
        let (stop_position, next_offset) = match at(stop) {
            (p, _) if p >= end.0 => end,
            // An index file is believed, but not that there is more than there is.
            (p, offset) => (p, offset.min(end.1)),
        };
        Range {
            position,
            bytes: stop_position - position,
            first_offset,
            next_offset,
        }
    }

    /// The range in which the first record at or after a time must be that is not before `offset`, if any before `end`
    /// is. It may begin with earlier batches; without such a record in it, it is to be looked for from its end on.
    pub fn range_of_time(&self, timestamp_ms: i64, offset: u64, end: (u64, u64)) -> Range {
        let relative = |e: &IndexEntry| self.meta.base_offset + u64::from(e.relative_offset);
        let is_older = |e: &IndexEntry| e.max_timestamp_before_ms < timestamp_ms;
        let mut behind = self.index.partition_point(is_older);
        if behind < self.index.len() && relative(&self.index.get(behind)) <= offset {
            behind = self.index.partition_point(|e| relative(e) <= offset);
        }
        let at = |i: usize| match i < self.index.len() {
            true => {
                let e = self.index.get(i);
                (u64::from(e.position), relative(&e))
            }
            false => end,
        };
        let (first, next) = match behind {
            // Only a snapshot has it.
            0 if self.index.len() == 0 => ((0, self.meta.base_offset), 0),
            0 => (at(0), 1),
            _ => (at(behind - 1), behind),
        };
        // The index knows of batches that the file does not have yet.
        let (position, offset) = at(next);
        let stop = (position.min(end.0), offset.min(end.1));
        Range {
            position: first.0,
            bytes: stop.0.saturating_sub(first.0),
            first_offset: first.1,
            next_offset: stop.1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Batches of 10 records every 40,000 bytes; timestamps equal offsets.
    fn segment(batches: u64) -> (Segment, (u64, u64)) {
        let mut s = Segment::create(1000, 1);
        for i in 0..batches {
            s.index_batch(1000 + i * 10, i * 40_000, (1000 + i * 10) as i64);
            s.meta.max_timestamp_ms = (1000 + i * 10 + 9) as i64;
        }
        (s, (batches * 40_000, 1000 + batches * 10))
    }

    #[test]
    fn a_range_holds_its_offset_and_ends_between_batches() {
        let (s, end) = segment(100);
        for offset in 1000..2000 {
            for max in [1, 40_000, 100_000, 1 << 20, 1 << 30] {
                let r = s.range(offset, max, end);
                assert!(
                    r.position <= (offset - 1000) / 10 * 40_000,
                    "{offset} {max} {r:?}"
                );
                assert!(r.next_offset > offset, "{offset} {max} {r:?}");
                assert!(r.bytes > 0 && r.bytes.is_multiple_of(40_000), "{r:?}");
                assert!(r.bytes <= max.max(40_000), "{offset} {max} {r:?}");
                assert_eq!(r.first_offset, 1000 + r.position / 40_000 * 10);
                assert_eq!(r.next_offset, 1000 + (r.position + r.bytes) / 40_000 * 10);
            }
        }
    }

    #[test]
    fn a_range_never_passes_the_end_it_was_given() {
        let (s, _) = segment(100);
        let r = s.range(1005, 1 << 30, (80_000, 1020));
        assert_eq!(
            r,
            Range {
                position: 0,
                bytes: 80_000,
                first_offset: 1000,
                next_offset: 1020
            }
        );
    }

    #[test]
    fn only_times_that_were_there_before_lead_to_a_batch_whose_times_are_not_known() {
        let (mut s, _) = segment(10);
        let mut entries = s.index.entries();
        // It is the third.
        for entry in &mut entries[3..] {
            entry.max_timestamp_before_ms = i64::MAX;
        }
        s.set_index(IndexBytes::Built {
            entries,
            covered_bytes: 400_000,
        });
        for i in 10..20 {
            s.index_batch(1000 + i * 10, i * 40_000, (1000 + i * 10) as i64);
            s.meta.max_timestamp_ms = (1000 + i * 10 + 9) as i64;
        }
        let end = (800_000, 1200);
        for time in 1000..1200 {
            let batch = match time {
                ..1020 | 1100.. => (time as u64 - 1000) / 10,
                _ => 2,
            };
            let r = s.range_of_time(time, 0, end);
            let within = r.position..r.position + r.bytes;
            assert!(within.contains(&(batch * 40_000)), "{time} {r:?}");
        }
    }

    #[test]
    fn what_only_a_snapshot_has_of_a_segment_begins_with_it() {
        let s = Segment::create(1000, 1);
        let end = (500, 1010);
        let all = Range {
            position: 0,
            bytes: 500,
            first_offset: 1000,
            next_offset: 1010,
        };
        assert_eq!(s.range(1005, 1, end), all);
        assert_eq!(s.range_of_time(7, 0, end), all);
    }

    #[test]
    fn what_is_appended_to_a_segment_that_was_loaded_is_found_without_what_was_there() {
        let (mut s, _) = segment(10);
        let entries = s.index.entries();
        s.set_index(IndexBytes::Built {
            entries,
            covered_bytes: 400_000,
        });
        // Nearer to the last entry than entries are as a rule.
        for i in 0..3 {
            s.index_batch(1100 + i, 361_000 + i * 100, 1100);
        }
        s.meta.max_timestamp_ms = 1100;
        let end = (370_000, 1110);
        assert_eq!(s.range_of_time(1100, 0, end).position, 361_000);
        assert_eq!(s.range(1102, 1, end).position, 361_000);
    }

    #[test]
    fn a_search_goes_on_behind_a_range_without_what_it_is_for() {
        let (s, end) = segment(10);
        let first = s.range_of_time(1025, 0, end);
        let next = s.range_of_time(1025, first.next_offset, end);
        assert_eq!((first.position, first.next_offset), (80_000, 1030));
        assert_eq!((next.position, next.next_offset), (120_000, 1040));
    }

    #[test]
    fn a_range_of_time_holds_the_first_record_at_or_after_it() {
        let (s, end) = segment(100);
        for time in 1000..2000 {
            let r = s.range_of_time(time, 0, end);
            let at = (time as u64 - 1000) / 10 * 40_000;
            assert!(
                r.position <= at && at < r.position + r.bytes,
                "{time} {r:?}"
            );
        }
    }
}
