//! Offset and time index of a segment: derived data, rebuilt when missing or wrong.
//!
//! One file per segment, `<base offset>.index`:
//!
//! ```text
//!  0          8        10      12       16            24              28       32     36     40
//!  +----------+--------+-------+--------+-------------+---------------+--------+------+------+-----------
//!  | magic    | format | 0 u16 | count  | base offset | covered bytes | 0 u32  | crc  | 0 u32| entries
//!  | RTINDEX1 | u16    |       | u32    | u64         | u32           |        | u32  |      | count x 24
//!  +----------+--------+-------+--------+-------------+---------------+--------+------+------+-----------
//! entry
//!  0            4          8                16               24
//!  +------------+----------+----------------+----------------+
//!  | offset -   | position | first timestamp| largest time-  |
//!  | base u32   | u32      | of batch i64   | stamp before   |
//!  +------------+----------+----------------+----------------+
//! ```
//!
//! All little endian; `crc` is CRC-32C over bytes 0..32 followed by the entries. An entry stands for
//! a batch that begins at `position`; entries are at least `INTERVAL_BYTES` apart, but for that of the
//! first batch that is written to a segment after a start. `largest
//! timestamp before` is that of all records before the batch in the segment (`i64::MIN` for the
//! first); or more, if one of them was damaged when a broker built it anew: it only grows, so that a binary search finds where records at or after a time begin.
//!
//! Where a header of a segment is damaged or cannot be read, its index is kept in memory only. It has an entry for that
//! ([`IndexEntry::damaged`]) then, and one for what is found behind it, however near.

use crate::batch::Header;
use crate::{le, put_le};

pub mod scan;

/// Bytes before the entries.
pub const HEADER_BYTES: usize = 40;
/// Bytes of an entry.
pub const ENTRY_BYTES: usize = 24;
/// The version of this format.
pub const FORMAT: u16 = 1;
/// The least distance in bytes of two entries' batches, as a rule.
pub const INTERVAL_BYTES: u32 = 32 << 10;
const MAGIC: [u8; 8] = *b"RTINDEX1";

/// One batch of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// Base offset of the batch less that of the segment.
    pub relative_offset: u32,
    /// Where the batch begins in the segment, in bytes.
    pub position: u32,
    /// The batch's base timestamp, ms since 1970; 0 if it was wrong when this was made from it.
    pub timestamp_ms: i64,
    /// The largest timestamp of the records before the batch; `i64::MAX` if one of them was damaged when
    /// this was made from them.
    pub max_timestamp_before_ms: i64,
}

impl IndexEntry {
    /// Where batches begin that are not found: they cannot be read, or the first does not lead to the next.
    pub fn damaged(relative_offset: u32, position: u32, max_timestamp_before_ms: i64) -> Self {
        Self {
            relative_offset,
            position,
            timestamp_ms: i64::MIN,
            max_timestamp_before_ms,
        }
    }

    /// Whether it stands for what is not found.
    pub fn is_damaged(&self) -> bool {
        self.timestamp_ms == i64::MIN
    }
}

/// Makes the entries of an index from the batches of a segment, in their order.
#[derive(Debug)]
pub struct IndexBuilder {
    base_offset: u64,
    entries: Vec<IndexEntry>,
    max_before_ms: i64,
    /// Position and offset of the first of the last batches that are damaged.
    doubt: Option<(u32, u64)>,
}

impl IndexBuilder {
    /// Of the segment that begins at an offset.
    pub fn new(base_offset: u64) -> Self {
        Self {
            base_offset,
            entries: Vec::new(),
            max_before_ms: i64::MIN,
            doubt: None,
        }
    }

    /// Takes the batch that begins at `position`, whose base offset is not before the segment's. The times of one whose
    /// checksum is not right are not known: they may be as late as any, so that a search by time for a later one
    /// comes upon it.
    pub fn add(&mut self, position: u32, header: &Header, is_right: bool) {
        let last = self.entries.last();
        let is_far = |last: &IndexEntry| position - last.position >= INTERVAL_BYTES;
        if last.is_none_or(|last| last.is_damaged() || is_far(last)) {
            self.entries.push(IndexEntry {
                relative_offset: (header.base_offset - self.base_offset) as u32,
                position,
                timestamp_ms: if is_right {
                    header.base_timestamp_ms
                } else {
                    0
                },
                max_timestamp_before_ms: self.max_before_ms,
            });
        }
        let latest_ms = if is_right {
            self.doubt = None;
            header.max_timestamp_ms
        } else {
            self.doubt.get_or_insert((position, header.base_offset));
            i64::MAX
        };
        self.max_before_ms = self.max_before_ms.max(latest_ms);
    }

    /// Takes a place from which no batch is found, and gives where that is: what comes before it is found without it. Where
    /// the batches right before are damaged, too, one of them may have led to a wrong place, and it is where the first of those
    /// begins.
    pub fn add_damage(&mut self, position: u64, offset: u64) -> (u64, u64) {
        let here = (position as u32, offset);
        let (position, offset) = self.doubt.take().unwrap_or(here);
        let mut before_ms = self.max_before_ms;
        while let Some(last) = self.entries.pop_if(|last| last.position >= position) {
            before_ms = last.max_timestamp_before_ms;
        }
        let relative_offset = u32::try_from(offset - self.base_offset).unwrap_or(u32::MAX);
        let damaged = IndexEntry::damaged(relative_offset, position, before_ms);
        self.entries.push(damaged);
        self.max_before_ms = i64::MAX;
        (position.into(), offset)
    }

    /// The entries.
    pub fn finish(self) -> Vec<IndexEntry> {
        self.entries
    }
}

/// Why an index is not believed; it is then rebuilt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// Some other file, or another version's.
    #[error("not an index of this version")]
    Magic,
    /// Longer or shorter than it says.
    #[error("the index is {have} bytes long instead of {want}")]
    Length {
        /// By its header.
        want: usize,
        /// Of the file.
        have: usize,
    },
    /// Damaged.
    #[error("index checksum is {stored:#010x}, computed {computed:#010x}")]
    Checksum {
        /// As read.
        stored: u32,
        /// Over what was read.
        computed: u32,
    },
    /// Entries that no writer makes, or none of bytes that are covered.
    #[error(
        "entry {0} is not behind the one before it, outside of what the index covers, or absent"
    )]
    Order(usize),
}

/// The index as the bytes of its file. `covered_bytes`: how much of the segment it knows.
pub fn encode(base_offset: u64, covered_bytes: u32, entries: &[IndexEntry]) -> Vec<u8> {
    let mut out = vec![0; HEADER_BYTES + entries.len() * ENTRY_BYTES];
    out[..8].copy_from_slice(&MAGIC);
    put_le!(out, 8, FORMAT);
    put_le!(out, 12, entries.len() as u32);
    put_le!(out, 16, base_offset);
    put_le!(out, 24, covered_bytes);
    for (entry, at) in entries.iter().zip((HEADER_BYTES..).step_by(ENTRY_BYTES)) {
        put_le!(out, at, entry.relative_offset);
        put_le!(out, at + 4, entry.position);
        put_le!(out, at + 8, entry.timestamp_ms);
        put_le!(out, at + 16, entry.max_timestamp_before_ms);
    }
    let crc = crc32c::crc32c_append(crc32c::crc32c(&out[..32]), &out[HEADER_BYTES..]);
    put_le!(out, 32, crc);
    out
}

/// A checked index over the bytes of its file (a mapping, usually).
#[derive(Clone, Copy, Debug)]
pub struct IndexView<'a> {
    /// Base offset of the segment.
    pub base_offset: u64,
    /// How much of the segment the index knows.
    pub covered_bytes: u32,
    entries: &'a [u8],
}

impl<'a> IndexView<'a> {
    /// Checks the bytes of an index file.
    pub fn check(bytes: &'a [u8]) -> Result<Self, IndexError> {
        if bytes.len() < HEADER_BYTES || bytes[..8] != MAGIC || le!(u16, bytes, 8) != FORMAT {
            return Err(IndexError::Magic);
        }
        let want = HEADER_BYTES + le!(u32, bytes, 12) as usize * ENTRY_BYTES;
        if bytes.len() != want {
            return Err(IndexError::Length {
                want,
                have: bytes.len(),
            });
        }
        let stored = le!(u32, bytes, 32);
        let computed = crc32c::crc32c_append(crc32c::crc32c(&bytes[..32]), &bytes[HEADER_BYTES..]);
        if stored != computed || le!(u32, bytes, 36) != 0 {
            return Err(IndexError::Checksum { stored, computed });
        }
        let view = Self::trusted(bytes);
        let is_lacking = view.is_empty() && view.covered_bytes > 0;
        match (0..view.len()).find(|&i| !view.is_in_order(i)) {
            Some(wrong) => Err(IndexError::Order(wrong)),
            None if is_lacking => Err(IndexError::Order(0)),
            None => Ok(view),
        }
    }

    /// Each entry is behind the one before; the first is the segment's first batch.
    fn is_in_order(&self, i: usize) -> bool {
        let entry = self.get(i);
        let follows = match i.checked_sub(1).map(|before| self.get(before)) {
            None => {
                entry.position == 0
                    && entry.relative_offset == 0
                    && entry.max_timestamp_before_ms == i64::MIN
            }
            Some(before) => {
                before.relative_offset < entry.relative_offset
                    && before.position < entry.position
                    && before.max_timestamp_before_ms <= entry.max_timestamp_before_ms
            }
        };
        follows && entry.position < self.covered_bytes
    }

    /// A view of bytes that [`Self::check`] accepted before.
    pub fn trusted(bytes: &'a [u8]) -> Self {
        Self {
            base_offset: le!(u64, bytes, 16),
            covered_bytes: le!(u32, bytes, 24),
            entries: &bytes[HEADER_BYTES..],
        }
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len() / ENTRY_BYTES
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entry with this number.
    pub fn get(&self, i: usize) -> IndexEntry {
        let at = i * ENTRY_BYTES;
        IndexEntry {
            relative_offset: le!(u32, self.entries, at),
            position: le!(u32, self.entries, at + 4),
            timestamp_ms: le!(i64, self.entries, at + 8),
            max_timestamp_before_ms: le!(i64, self.entries, at + 16),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Codec;
    use crate::record::BatchBuilder;

    #[test]
    fn an_index_round_trips_and_every_bit_flip_is_detected() {
        let first = IndexEntry {
            relative_offset: 0,
            position: 0,
            timestamp_ms: 1_700_000_000_000,
            max_timestamp_before_ms: i64::MIN,
        };
        let entry = IndexEntry {
            relative_offset: 7,
            position: 32768,
            ..first
        };
        let bytes = encode(1000, 40_000, &[first, entry]);
        let view = IndexView::check(&bytes).expect("just written");
        assert_eq!(
            (view.base_offset, view.covered_bytes, view.len()),
            (1000, 40_000, 2)
        );
        assert_eq!(view.get(1), entry);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(IndexView::check(&flipped).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn times_behind_a_batch_that_is_not_right_are_not_known() {
        let mut batch = Vec::new();
        let mut builder = BatchBuilder::new(Codec::None);
        builder.push(7_000, None, Some(b"value"), &[]);
        builder.finish(-1, -1, -1, &mut batch).expect("a record");
        let header = Header::peek(&batch).expect("a header");
        let mut index = IndexBuilder::new(0);
        for (i, is_right) in [true, true, false, true].into_iter().enumerate() {
            index.add(i as u32 * INTERVAL_BYTES, &header, is_right);
        }
        let place = (u64::from(5 * INTERVAL_BYTES), 9);
        assert_eq!(index.add_damage(place.0, place.1), place);
        let entries = index.finish();
        let before: Vec<i64> = entries.iter().map(|e| e.max_timestamp_before_ms).collect();
        let expected = [i64::MIN, 7_000, 7_000, i64::MAX, i64::MAX];
        assert_eq!(before, expected);
        assert!(entries[4].is_damaged() && entries[4].relative_offset == 9);
    }

    #[test]
    fn damage_begins_at_the_first_of_the_damaged_batches_that_led_to_it() {
        let mut batch = Vec::new();
        let mut builder = BatchBuilder::new(Codec::None);
        builder.push(7_000, None, Some(b"value"), &[]);
        builder.finish(-1, -1, -1, &mut batch).expect("a record");
        for far in [1, INTERVAL_BYTES] {
            let mut index = IndexBuilder::new(0);
            for (i, is_right) in [true, false, true, false, false].into_iter().enumerate() {
                crate::batch::assign(&mut batch, i as u64, 1);
                let header = Header::peek(&batch).expect("a header");
                index.add(i as u32 * far, &header, is_right);
            }
            assert_eq!(
                index.add_damage(100 * u64::from(far), 1000),
                (3 * u64::from(far), 3)
            );
            let entries = index.finish();
            let last = entries.last().expect("an entry");
            assert_eq!((last.position, last.relative_offset), (3 * far, 3));
        }
    }

    #[test]
    fn entries_that_do_not_ascend_or_lie_outside_are_not_believed() {
        let entry = |relative_offset, position, before| IndexEntry {
            relative_offset,
            position,
            timestamp_ms: 0,
            max_timestamp_before_ms: before,
        };
        let first = entry(0, 0, i64::MIN);
        let checked = |entries: &[IndexEntry]| {
            IndexView::check(&encode(0, 100, entries)).map(|view| view.len())
        };
        assert_eq!(checked(&[first, entry(1, 50, 5), entry(2, 99, 5)]), Ok(3));
        for wrong in [
            entry(1, 0, i64::MIN),
            entry(0, 1, i64::MIN),
            entry(0, 0, 0),
            entry(3, 7, 0),
        ] {
            assert_eq!(checked(&[wrong]), Err(IndexError::Order(0)));
        }
        let second = entry(1, 50, 5);
        for wrong in [
            entry(1, 60, 5),
            entry(2, 50, 5),
            entry(2, 60, 4),
            entry(2, 100, 5),
        ] {
            assert_eq!(checked(&[first, second, wrong]), Err(IndexError::Order(2)));
        }
        assert_eq!(checked(&[]), Err(IndexError::Order(0)));
        assert!(IndexView::check(&encode(0, 0, &[])).is_ok());
    }
}
