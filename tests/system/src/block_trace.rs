//! What a disk was told, in order, and the disks that a power cut may leave of it. Nothing here touches the
//! machine; [`crate::RecordedDisk`] does the recording.
//!
//! # Fault model
//!
//! - The disk has a volatile cache. A write that was completed is in the cache, not on the medium.
//! - A flush puts on the medium what had been *completed before the flush arrived*. A write that was under way
//!   then is not covered by it, even if it was completed before the flush was; nor is one that arrived later. (A
//!   single write that passes the cache (FUA) does not occur: a loop device has none, and the kernel writes and
//!   flushes instead.)
//! - A flush counts once it is completed. A cut before that is as if it had not arrived.
//! - A power cut keeps, of each write that no such flush covers, any subset of its sectors of 512 bytes, whether
//!   it was completed or not. Of two writes to the same sector the later one wins if both are kept; the earlier
//!   may be kept while the later is lost.
//! - A sector is written whole or not at all. No sector changes that was not written to.
//! - Discards and zeroed ranges are writes of zeros: kept or lost by sector as well.
//! - What is read is what was written last, cached or not.
//!
//! A flush is seen when it arrives at the recorder, a little after the kernel issued it. A write that is completed in
//! between counts as covered although nothing promised that. The recorder holds its answers back for a random
//! while and gives them in random order so that writes are under way when flushes arrive.

use crate::random::Random;

/// What a disk writes whole or not at all.
pub const SECTOR: usize = 512;

/// What happened to the disk.
#[derive(Debug)]
enum Event {
    /// A write arrived.
    Write(Write),
    /// The write that arrived as this event was answered.
    Written(usize),
    /// A flush arrived.
    Flush,
    /// The flush that arrived as this event was answered.
    Flushed(usize),
}

#[derive(Debug)]
struct Write {
    position: usize,
    data: Box<[u8]>,
}

/// The block of an ext4 file system that has its superblock ends here, in bytes.
const SUPERBLOCK_END: usize = 4096;

/// How much a power cut leaves of the writes that no flush covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// Nothing.
    Nothing,
    /// All of it.
    Everything,
    /// Each write whole or not at all.
    Writes,
    /// Each sector or not.
    Sectors,
    /// All up to some write, which is torn, and nothing behind it.
    TornEnd,
    /// All but one write, or what was torn off it.
    OneGone,
}

const LEFT: [Left; 6] = [
    Left::Nothing,
    Left::Everything,
    Left::Writes,
    Left::Sectors,
    Left::TornEnd,
    Left::OneGone,
];

/// A disk as it was at first, as it reads now, and everything in between.
#[derive(Debug)]
pub struct Trace {
    first: Vec<u8>,
    now: Vec<u8>,
    events: Vec<Event>,
}

impl Trace {
    /// Of a disk that holds this.
    ///
    /// # Panics
    /// When it is no whole number of sectors.
    #[must_use]
    pub fn new(image: Vec<u8>) -> Self {
        assert!(image.len().is_multiple_of(SECTOR));
        Self {
            first: image.clone(),
            now: image,
            events: Vec::new(),
        }
    }

    /// How much happened: what happens next has this number.
    #[must_use]
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether nothing happened yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// The disk as it reads.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.now
    }

    /// A write arrives; gives its number for [`Self::written`].
    ///
    /// # Panics
    /// When it is not of whole sectors within the disk.
    pub fn write(&mut self, position: usize, data: &[u8]) -> usize {
        assert!(position.is_multiple_of(SECTOR) && data.len().is_multiple_of(SECTOR));
        self.now[position..position + data.len()].copy_from_slice(data);
        self.push(Event::Write(Write {
            position,
            data: data.into(),
        }))
    }

    /// A write is completed. To be called before its answer is sent.
    pub fn written(&mut self, write: usize) {
        assert!(matches!(self.events[write], Event::Write(_)));
        self.push(Event::Written(write));
    }

    /// A flush arrives; gives its number for [`Self::flushed`].
    pub fn flush(&mut self) -> usize {
        self.push(Event::Flush)
    }

    /// A flush is completed. To be called before its answer is sent.
    pub fn flushed(&mut self, flush: usize) {
        assert!(matches!(self.events[flush], Event::Flush));
        self.push(Event::Flushed(flush));
    }

    /// The disk loses what no flush has covered of these writes, as if each had not been done: a cache that fails.
    /// Gives how many it lost.
    pub fn lose(&mut self, mut goes: impl FnMut(usize, &[u8]) -> bool) -> usize {
        let covered = covered(&self.events);
        let mut image = self.first.clone();
        let mut lost = 0;
        for (event, covered) in self.events.iter_mut().zip(covered) {
            let Event::Write(write) = event else {
                continue;
            };
            let place = &mut image[write.position..write.position + write.data.len()];
            if !covered && goes(write.position, &write.data) {
                // It stays, as a write of what was there before.
                write.data.copy_from_slice(place);
                lost += 1;
            } else {
                place.copy_from_slice(&write.data);
            }
        }
        self.now = image;
        lost
    }

    fn push(&mut self, event: Event) -> usize {
        self.events.push(event);
        self.events.len() - 1
    }

    /// How many writes no flush had covered when `events` events had happened.
    ///
    /// # Panics
    /// When less than that has happened.
    #[must_use]
    pub fn open_writes(&self, events: usize) -> usize {
        let events = &self.events[..events];
        let covered = covered(events);
        writes(events)
            .filter(|&(number, _)| !covered[number])
            .count()
    }

    /// What was on the medium when `events` events had happened: all that a power cut then is sure to leave.
    ///
    /// # Panics
    /// When less than that has happened.
    #[must_use]
    pub fn medium(&self, events: usize) -> Vec<u8> {
        let events = &self.events[..events];
        let covered = covered(events);
        let mut image = self.first.clone();
        for (_, write) in writes(events).filter(|&(number, _)| covered[number]) {
            image[write.position..write.position + write.data.len()].copy_from_slice(&write.data);
        }
        image
    }

    /// The disk after the power was cut when `events` events had happened, and what was made of the cut.
    ///
    /// # Panics
    /// When less than that has happened.
    #[must_use]
    pub fn cut(&self, events: usize, random: &mut Random) -> (Vec<u8>, String) {
        let events = &self.events[..events];
        let covered = covered(events);
        let open: Vec<usize> = writes(events)
            .map(|(number, _)| number)
            .filter(|&number| !covered[number])
            .collect();
        let left = LEFT[random.below(LEFT.len() as u64) as usize];
        let chosen = open.get(random.below(open.len().max(1) as u64) as usize);
        let mut image = self.first.clone();
        for (number, write) in writes(events) {
            // In a hundred sectors of this write, how many are kept.
            let kept = match left {
                _ if covered[number] => 100,
                Left::Nothing => 0,
                Left::Everything => 100,
                Left::Writes => 100 * random.below(2),
                Left::Sectors => 50,
                Left::TornEnd if Some(&number) < chosen => 100,
                Left::TornEnd if Some(&number) > chosen => 0,
                Left::OneGone if Some(&number) != chosen => 100,
                Left::TornEnd | Left::OneGone => 50 * random.below(2),
            };
            // A torn superblock is one that ext4 refuses to mount: that is not what is asked here.
            let is_torn = kept == 50 && write.position < SUPERBLOCK_END;
            let kept = match is_torn {
                true => 100 * random.below(2),
                false => kept,
            };
            for (sector, data) in write.data.chunks(SECTOR).enumerate() {
                if random.percent(kept) {
                    let position = write.position + sector * SECTOR;
                    image[position..position + SECTOR].copy_from_slice(data);
                }
            }
        }
        let what = format!(
            "after {} events, {} writes not covered by a flush: {left:?}",
            events.len(),
            open.len()
        );
        (image, what)
    }
}

fn writes(events: &[Event]) -> impl Iterator<Item = (usize, &Write)> {
    events
        .iter()
        .enumerate()
        .filter_map(|(number, event)| match event {
            Event::Write(write) => Some((number, write)),
            _ => None,
        })
}

/// Which of the events are writes that a flush has put on the medium.
fn covered(events: &[Event]) -> Vec<bool> {
    let flush = |event: &Event| match event {
        Event::Flushed(flush) => Some(*flush),
        _ => None,
    };
    let last = events.iter().filter_map(flush).max().unwrap_or(0);
    let mut covered = vec![false; events.len()];
    for event in &events[..last] {
        if let Event::Written(write) = event {
            covered[*write] = true;
        }
    }
    covered
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const A: [u8; SECTOR] = [b'a'; SECTOR];
    const B: [u8; SECTOR] = [b'b'; SECTOR];

    /// What the first byte of each sector may be after a cut at this place.
    fn outcomes(trace: &Trace, events: usize) -> Vec<HashSet<char>> {
        let mut found = vec![HashSet::new(); trace.bytes().len() / SECTOR];
        let mut random = Random::new(1);
        for _ in 0..200 {
            let (image, _) = trace.cut(events, &mut random);
            for (sector, bytes) in image.chunks(SECTOR).enumerate() {
                assert!(bytes.iter().all(|b| *b == bytes[0]), "a sector is whole");
                found[sector].insert(char::from(bytes[0]));
            }
        }
        found
    }

    fn set(chars: &str) -> HashSet<char> {
        chars.chars().collect()
    }

    fn blank(sectors: usize) -> Trace {
        Trace::new(vec![b'.'; sectors * SECTOR])
    }

    #[test]
    fn a_write_is_safe_once_a_flush_that_came_after_its_completion_is_completed() {
        let mut trace = blank(1);
        let write = trace.write(0, &A);
        trace.written(write);
        let flush = trace.flush();
        let before = trace.len();
        trace.flushed(flush);
        assert_eq!(outcomes(&trace, 0), [set(".")], "it had not arrived");
        assert_eq!(outcomes(&trace, before), [set(".a")]);
        assert_eq!(outcomes(&trace, trace.len()), [set("a")]);
        trace.write(0, &B);
        assert_eq!(trace.medium(trace.len()), A);
        assert_eq!(trace.medium(before), [b'.'; SECTOR]);
    }

    #[test]
    fn a_flush_does_not_cover_a_write_that_was_under_way_when_it_came() {
        let mut trace = blank(2);
        let early = trace.write(0, &A);
        let flush = trace.flush();
        let late = trace.write(SECTOR, &B);
        trace.written(early);
        trace.written(late);
        trace.flushed(flush);
        assert_eq!(outcomes(&trace, trace.len()), [set(".a"), set(".b")]);
    }

    #[test]
    fn what_a_flush_covered_stays_covered_when_an_older_flush_is_completed_later() {
        let mut trace = blank(1);
        let older = trace.flush();
        let write = trace.write(0, &A);
        trace.written(write);
        let newer = trace.flush();
        trace.flushed(newer);
        trace.flushed(older);
        assert_eq!(outcomes(&trace, trace.len()), [set("a")]);
    }

    #[test]
    fn a_cache_that_fails_loses_what_no_flush_has_covered_and_nothing_else() {
        let mut trace = blank(2);
        let covered = trace.write(0, &A);
        trace.written(covered);
        let flush = trace.flush();
        trace.flushed(flush);
        trace.write(0, &B);
        trace.write(SECTOR, &B);
        assert_eq!(trace.lose(|position, _| position == 0), 1);
        assert_eq!(trace.bytes(), [A, B].concat());
        assert_eq!(outcomes(&trace, trace.len()), [set("a"), set(".b")]);
    }

    #[test]
    fn each_sector_of_a_write_is_kept_or_lost_by_itself_but_for_a_superblock() {
        for (position, kinds) in [(SUPERBLOCK_END, 4), (0, 2)] {
            let mut trace = blank(SUPERBLOCK_END / SECTOR + 2);
            trace.write(position, &[A, A].concat());
            let mut random = Random::new(1);
            let firsts: HashSet<(u8, u8)> = (0..200)
                .map(|_| trace.cut(1, &mut random).0)
                .map(|image| (image[position], image[position + SECTOR]))
                .collect();
            assert_eq!(firsts.len(), kinds, "at {position}: {firsts:?}");
        }
    }

    #[test]
    fn of_two_writes_to_a_sector_either_may_be_what_is_left() {
        let mut trace = blank(1);
        for data in [A, B] {
            let write = trace.write(0, &data);
            trace.written(write);
        }
        assert_eq!(trace.bytes(), B);
        assert_eq!(outcomes(&trace, trace.len()), [set(".ab")]);
    }
}
