//! Builds the index of a segment from its batches, and finds those behind damage.

use super::{INTERVAL_BYTES, IndexBuilder, IndexEntry};
use crate::batch::{self, HEADER_BYTES, Header};
use crate::limits::MAX_BATCH_BYTES;

/// Where the bytes of a segment are read from.
pub trait Source {
    /// Why nothing could be said of them this time.
    type Error;

    /// Reads from a position on, as much as fits. Less is what comes before the end, or before what is lost for good.
    fn read(&mut self, into: &mut [u8], position: u64) -> Result<usize, Self::Error>;
}

impl Source for &[u8] {
    type Error = std::convert::Infallible;

    fn read(&mut self, into: &mut [u8], position: u64) -> Result<usize, Self::Error> {
        let rest = self.get(position as usize..).unwrap_or_default();
        let bytes = rest.len().min(into.len());
        into[..bytes].copy_from_slice(&rest[..bytes]);
        Ok(bytes)
    }
}

/// What of a segment is to be indexed: whole batches.
#[derive(Clone, Copy, Debug)]
pub struct Extent<'a> {
    /// The segment's base offset.
    pub base_offset: u64,
    /// Bytes from its begin that are in the file.
    pub bytes: u64,
    /// What follows them.
    pub tail: &'a [u8],
    /// The offset behind all of it.
    pub next_offset: u64,
}

impl Extent<'_> {
    fn end(&self) -> u64 {
        self.bytes + self.tail.len() as u64
    }
}

/// What the batches of a segment gave of an index.
#[derive(Debug)]
pub struct Scanned {
    /// Its entries.
    pub entries: Vec<IndexEntry>,
    /// Bytes that they stand for.
    pub covered_bytes: u64,
    /// What is wrong with the segment, in words: the first damaged body in front of damaged headers, and where those are.
    pub damage: Vec<String>,
}

/// Goes through the batches of a segment. Where one leads to no other, it goes on at the first whole batch behind that from
/// which the rest follows up to the end; without one the index ends there ([`IndexEntry::damaged`]).
///
/// # Panics
/// When the segment is larger than an index can say.
pub fn scan<S: Source>(source: &mut S, extent: Extent<'_>) -> Result<Scanned, S::Error> {
    assert!(extent.end() <= u64::from(u32::MAX), "{extent:?}");
    let mut window = Window {
        source,
        extent,
        buf: vec![0; MAX_BATCH_BYTES.min(extent.end() as usize)],
        start: 0,
        filled: 0,
    };
    let mut index = IndexBuilder::new(extent.base_offset);
    let mut damage = Vec::new();
    let (mut position, mut offset) = (0, extent.base_offset);
    let covered_bytes = loop {
        match window.step(position, offset)? {
            Step::End => break position,
            Step::Batch(header) => {
                let fault = window.fault(position, &header)?;
                if let Some(what) = &fault
                    && damage.is_empty()
                {
                    damage.push(format!(
                        "damaged at byte {position}, offset {offset}: {what}; searches for times that the segment has \
                         behind it are refused there"
                    ));
                }
                index.add(position as u32, &header, fault.is_none());
                position += header.batch_bytes as u64;
                offset = header.next_offset();
            }
            Step::Damage(what) => {
                let at = position;
                (position, offset) = index.add_damage(position, offset);
                // At least one offset is lost.
                let behind = window.find_behind(position, offset + 1)?;
                let reach = match behind {
                    Some((_, next)) => format!("read on from offset {next}"),
                    None => "what it has behind that is not found".into(),
                };
                damage.push(format!(
                    "damaged from byte {position}, offset {offset} on (at byte {at}: {what}); {reach}"
                ));
                match behind {
                    Some(place) => (position, offset) = place,
                    None => break position,
                }
            }
        }
    };
    Ok(Scanned {
        entries: index.finish(),
        covered_bytes,
        damage,
    })
}

/// What there is at a place where a batch is to begin.
enum Step {
    Batch(Header),
    Damage(String),
    End,
}

/// The part of a segment that is looked at.
struct Window<'a, S> {
    source: &'a mut S,
    extent: Extent<'a>,
    buf: Vec<u8>,
    start: u64,
    filled: usize,
}

impl<S: Source> Window<'_, S> {
    /// What is there from a position on: `wanted` bytes and more, if they can be read.
    fn at(&mut self, position: u64, wanted: usize) -> Result<&[u8], S::Error> {
        let end = self.start + self.filled as u64;
        if position < self.start || position + wanted as u64 > end {
            let Extent { bytes, tail, .. } = self.extent;
            let most = (self.extent.end() - position).min(self.buf.len() as u64) as usize;
            let in_file = bytes.saturating_sub(position).min(most as u64) as usize;
            (self.start, self.filled) = (position, 0);
            if in_file > 0 {
                self.filled = self.source.read(&mut self.buf[..in_file], position)?;
            }
            if self.filled == in_file {
                let from = position.saturating_sub(bytes) as usize;
                self.buf[in_file..most].copy_from_slice(&tail[from..][..most - in_file]);
                self.filled = most;
            }
        }
        Ok(&self.buf[(position - self.start) as usize..self.filled])
    }

    /// The batch that begins at a position with an offset.
    fn step(&mut self, position: u64, offset: u64) -> Result<Step, S::Error> {
        let left = self.extent.end() - position;
        if left == 0 {
            return Ok(Step::End);
        }
        let wanted = left.min(HEADER_BYTES as u64) as usize;
        let found = self.at(position, wanted)?;
        if found.len() < wanted {
            return Ok(Step::Damage("it cannot be read".into()));
        }
        let header = match Header::peek(found) {
            Ok(header) => header,
            Err(error) => return Ok(Step::Damage(error.to_string())),
        };
        Ok(match self.misplaced(position, offset, &header) {
            Some(what) => Step::Damage(what),
            None if header.base_offset != offset => Step::Damage(format!(
                "a batch with offset {} where {offset} was to come",
                header.base_offset
            )),
            None => Step::Batch(header),
        })
    }

    /// Why no batch of the segment from an offset on has this header at this position.
    fn misplaced(&self, position: u64, from_offset: u64, header: &Header) -> Option<String> {
        let extent = self.extent;
        let most = (extent.end() - position).min(MAX_BATCH_BYTES as u64);
        if header.batch_bytes as u64 > most {
            return Some(format!("a batch of {} bytes", header.batch_bytes));
        }
        let relative_offset = header.base_offset.checked_sub(extent.base_offset);
        let is_near = relative_offset.is_some_and(|offset| u32::try_from(offset).is_ok());
        (!is_near || header.base_offset < from_offset).then(|| {
            let (found, base) = (header.base_offset, extent.base_offset);
            format!("a batch with offset {found} in the segment of {base}, where {from_offset} was to come")
        })
    }

    /// What is wrong with the batch that begins at a position and has this header, if anything is.
    fn fault(&mut self, position: u64, header: &Header) -> Result<Option<String>, S::Error> {
        let bytes = self.at(position, header.batch_bytes)?;
        if bytes.len() < header.batch_bytes {
            return Ok(Some("it cannot be read".into()));
        }
        Ok(batch::check_stored(bytes).err().map(|e| e.to_string()))
    }

    /// Position and offset of the first whole batch behind a position, not before an offset, from which one follows the other
    /// up to the end of the bytes and of the offsets. What merely looks like a batch within a record leads elsewhere, unless it
    /// was made to be taken for one.
    fn find_behind(&mut self, damaged: u64, offset: u64) -> Result<Option<(u64, u64)>, S::Error> {
        let mut position = damaged + 1;
        // From one place that cannot be read to the next: a device may take seconds for each.
        let mut stride = u64::from(INTERVAL_BYTES);
        while position + HEADER_BYTES as u64 <= self.extent.end() {
            let found = self.at(position, HEADER_BYTES)?;
            let is_lost = found.len() < HEADER_BYTES;
            let candidate = found
                .windows(HEADER_BYTES)
                .position(|bytes| Header::peek(bytes).is_ok_and(|h| h.base_offset >= offset));
            let passed = found.len().saturating_sub(HEADER_BYTES - 1) as u64;
            let Some(candidate) = candidate else {
                position += passed;
                if is_lost {
                    position = (position + 1).next_multiple_of(stride);
                    stride *= 2;
                } else {
                    stride = INTERVAL_BYTES.into();
                }
                continue;
            };
            let header = Header::peek(&found[candidate..]);
            position += candidate as u64;
            if let Ok(header) = header
                && self.misplaced(position, offset, &header).is_none()
                && self.fault(position, &header)?.is_none()
            {
                match self.last_before_damage(position, &header)? {
                    None => return Ok(Some((position, header.base_offset))),
                    // Those before it lead to the same damage.
                    Some(last) => position = last,
                }
            }
            position += 1;
        }
        Ok(None)
    }

    /// Follows the batches from one on: `None` if they lead to the end, or where the last begins that leads nowhere.
    fn last_before_damage(&mut self, first: u64, header: &Header) -> Result<Option<u64>, S::Error> {
        let (mut last, mut header) = (first, *header);
        loop {
            let next = last + header.batch_bytes as u64;
            match self.step(next, header.next_offset())? {
                Step::End if header.next_offset() == self.extent.next_offset => return Ok(None),
                Step::End | Step::Damage(_) => return Ok(Some(last)),
                Step::Batch(following) => (last, header) = (next, following),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{Codec, assign};
    use crate::record::BatchBuilder;

    fn batch(offset: u64, value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut builder = BatchBuilder::new(Codec::None);
        builder.push(7_000, None, Some(value), &[("a", Some(value))]);
        builder.push(8_000, None, Some(value), &[]);
        builder.finish(-1, -1, -1, &mut bytes).expect("two records");
        assign(&mut bytes, offset, 1);
        bytes
    }

    /// A segment of ten batches of two records, and where they begin.
    fn segment() -> (Vec<u8>, Vec<usize>) {
        let mut bytes = Vec::new();
        let mut begins = Vec::new();
        for i in 0..10 {
            begins.push(bytes.len());
            bytes.extend(batch(100 + 2 * i, &[b'v'; 50]));
        }
        (bytes, begins)
    }

    fn scanned(mut source: impl Source, bytes: usize, tail: &[u8], next_offset: u64) -> Scanned {
        let extent = Extent {
            base_offset: 100,
            bytes: bytes as u64,
            tail,
            next_offset,
        };
        let scanned = scan(&mut source, extent);
        scanned.ok().expect("nothing but damage")
    }

    fn scanned_file(bytes: &[u8], next_offset: u64) -> Scanned {
        scanned(bytes, bytes.len(), &[], next_offset)
    }

    /// Positions and offsets of the entries; of those that stand for damage negative.
    fn places(scanned: &Scanned) -> Vec<(i64, u32)> {
        let place = |e: &IndexEntry| {
            let sign = if e.is_damaged() { -1 } else { 1 };
            (sign * i64::from(e.position), e.relative_offset)
        };
        scanned.entries.iter().map(place).collect()
    }

    #[test]
    fn whatever_is_damaged_of_a_batch_all_others_are_found() {
        let (sound, begins) = segment();
        // The last may be elsewhere in part.
        for in_file in [sound.len(), begins[9] + 7, begins[9], begins[8] + 7] {
            let scanned =
                |bytes: &[u8]| scanned(&bytes[..in_file], in_file, &bytes[in_file..], 120);
            let found = scanned(&sound);
            assert_eq!(places(&found), [(0, 0)]);
            assert_eq!(found.damage, [""; 0]);
            for i in 1..9 {
                for byte in begins[i]..begins[i + 1] {
                    let mut damaged = sound.clone();
                    damaged[byte] ^= 0x41;
                    let found = scanned(&damaged);
                    assert!(!found.damage.is_empty() || (12..16).contains(&(byte - begins[i])));
                    assert_eq!(found.covered_bytes, sound.len() as u64);
                    let around = [
                        (0, 0),
                        (-(begins[i] as i64), 2 * i as u32),
                        (begins[i + 1] as i64, 2 * i as u32 + 2),
                    ];
                    let found = places(&found);
                    assert!(found == around || found == around[..1], "{byte}: {found:?}");
                }
            }
        }
    }

    #[test]
    fn between_two_that_lead_nowhere_nothing_is_found_and_behind_them_all() {
        let (mut bytes, begins) = segment();
        for i in [0, 6] {
            bytes[begins[i] + 16] = 0;
        }
        let found = scanned_file(&bytes, 120);
        assert_eq!(places(&found), [(0, 0), (begins[7] as i64, 14)]);
        assert!(found.entries[0].is_damaged());
        assert_eq!(found.damage.len(), 1);
    }

    #[test]
    fn an_index_ends_where_nothing_follows_damage() {
        let (mut bytes, begins) = segment();
        bytes[begins[9] + 16] = 0;
        // The one before may have led there.
        bytes[begins[8] + 70] ^= 1;
        let found = scanned_file(&bytes, 120);
        assert_eq!(places(&found), [(0, 0), (-(begins[8] as i64), 16)]);
        assert_eq!(found.covered_bytes, begins[8] as u64);
    }

    #[test]
    fn batches_within_a_record_are_not_taken_for_those_of_the_segment() {
        let (mut bytes, _) = segment();
        let inner: Vec<u8> = (0..5).flat_map(|i| batch(121 + 2 * i, b"forged")).collect();
        let outer = bytes.len();
        bytes.extend(batch(120, &inner));
        let behind = bytes.len();
        bytes.extend(batch(122, b"value"));
        bytes[outer + 16] = 0;
        let found = scanned_file(&bytes, 124);
        assert_eq!(
            places(&found),
            [(0, 0), (-(outer as i64), 20), (behind as i64, 22)]
        );
    }

    #[test]
    fn a_last_batch_with_another_offset_is_not_taken_for_what_follows_damage() {
        let (mut bytes, begins) = segment();
        bytes[begins[3] + 16] = 0;
        assign(&mut bytes[begins[9]..], 112, 1);
        let found = scanned_file(&bytes, 120);
        assert_eq!(places(&found), [(0, 0), (-(begins[3] as i64), 6)]);
    }

    /// Reads nothing of some places.
    struct Lossy<'a>(&'a [u8], std::ops::Range<u64>);

    impl Source for Lossy<'_> {
        type Error = std::convert::Infallible;

        fn read(&mut self, into: &mut [u8], position: u64) -> Result<usize, Self::Error> {
            let (mut bytes, lost) = (self.0, &self.1);
            let most = match position {
                p if lost.contains(&p) => 0,
                p => lost
                    .start
                    .checked_sub(p)
                    .map_or(into.len(), |most| most as usize),
            };
            let most = most.min(into.len());
            bytes.read(&mut into[..most], position)
        }
    }

    #[test]
    fn what_lies_behind_a_place_that_cannot_be_read_is_found() {
        let mut bytes = Vec::new();
        let mut begins = Vec::new();
        for i in 0..200 {
            begins.push(bytes.len() as u64);
            bytes.extend(batch(100 + 2 * i, &[b'v'; 1000]));
        }
        let lost = 4096..3 * 4096;
        let first = begins.iter().rposition(|&begin| begin + 61 <= lost.start);
        let first = first.expect("a batch before it") + 1;
        let interval = u64::from(INTERVAL_BYTES);
        let behind = begins.partition_point(|&begin| begin < interval);
        let found = scanned(Lossy(&bytes, lost), bytes.len(), &[], 500);
        let places = places(&found);
        // The body of the one before is lost as well.
        assert_eq!(
            places[1],
            (-(begins[first - 1] as i64), 2 * (first as u32 - 1))
        );
        assert_eq!(places[2], (begins[behind] as i64, 2 * behind as u32));
        assert_eq!(found.covered_bytes, bytes.len() as u64);
    }
}
