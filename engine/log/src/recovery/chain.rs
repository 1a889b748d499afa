//! One shard's frames, followed from the oldest surviving slot to where the log ends.
//!
//! Every frame names the checksum of the one before, so what is handed on is exactly what the shard
//! wrote, in order and without a gap. A frame is checked as a whole before any entry of it is
//! handed on. Where the chain breaks, [`super::table`] decides; the search for later frames that it
//! needs is here too.

use std::ops::Range;
use std::path::{Path, PathBuf};

use ringtide_schema::limits::BLOCK_BYTES;
use ringtide_schema::wal::{
    ENTRY_HEADER_BYTES, EntryError, EntryHeader, FRAME_CLOSING, FRAME_HEADER_BYTES, FrameError,
    FrameHeader, MAX_FRAME_BYTES,
};

use super::error::{CorruptFrame, Lost, RecoverError, Shown};
use super::slots::{self, LiveSlot, Unclaimed};
use super::stream::Stream;
use super::table::{Decision, Evidence, Found, Place, Refusal, decide};
use crate::files::{self, AlignedBuf, FileError};

const BLOCK: u64 = BLOCK_BYTES as u64;
/// No log numbers its entries or frames this far; beyond it a number is damage.
pub(super) const MAX_SEQ: u64 = u64::MAX >> 2;

/// Where an entry lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct At<'a> {
    pub(super) path: &'a Path,
    pub(super) position: u64,
}

/// Who takes the entries of a chain, in order.
pub(super) trait Sink {
    /// Takes one entry.
    fn entry(
        &mut self,
        at: At<'_>,
        header: &EntryHeader,
        payload: &[u8],
    ) -> Result<(), RecoverError>;

    /// A snapshot that holds more of a group of this shard than the chain, which has just ended,
    /// although the chain has newer entries of the group than none.
    fn beyond_chain(&self, shard: u16) -> Option<Shown>;

    /// The log was followed this many bytes further.
    fn progress(&mut self, bytes: u64);
}

/// Where the log of a shard ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEnd {
    /// The shard of the last start.
    pub shard: u16,
    /// The slot in which the next frame would have come.
    pub path: PathBuf,
    /// Where in it, in bytes.
    pub position: u64,
    /// What was found there instead.
    pub found: Found,
    /// The last frame was written because everything before it was finished.
    pub closed: bool,
    /// Whole headers of later frames behind the end: writes that nobody was told to be finished.
    pub later_frames: u64,
    /// The last entry of the log.
    pub last_seq: u64,
}

/// What was read of a shard's log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ChainCounts {
    /// Frames behind the oldest slot.
    pub(super) behind_first: u64,
    pub(super) frames: u64,
    pub(super) entries: u64,
    pub(super) bytes: u64,
}

/// What the next frame must say.
#[derive(Clone, Copy, Debug)]
struct Expected {
    frame_seq: u64,
    first_seq: u64,
    previous_crc: u32,
}

/// What one shard's log is read from.
pub(super) struct Chain<'a> {
    pub(super) shard: u16,
    pub(super) incarnation: u64,
    /// By generation.
    pub(super) slots: &'a [LiveSlot],
    /// Those that nothing claims: frames of the log may lie there.
    pub(super) strays: &'a [Unclaimed],
    pub(super) direct: bool,
    /// Ends with the first slot.
    pub(super) only_first: bool,
}

/// Goes through the first `bytes` of a slot: every block that is the header of a frame.
pub(super) fn each_frame(
    path: &Path,
    bytes: u64,
    direct: bool,
    mut each: impl FnMut(u64, &FrameHeader, u32),
) -> Result<(), FileError> {
    let file = files::open_read(path, direct)?;
    let mut buf = AlignedBuf::zeroed(MAX_FRAME_BYTES);
    let mut at = 0;
    while at < bytes {
        let want = usize::try_from(bytes - at).unwrap_or(usize::MAX);
        let want = want.next_multiple_of(BLOCK_BYTES).min(MAX_FRAME_BYTES);
        let got = files::read_at(&file, path, &mut buf[..want], at)?;
        for (block, position) in buf[..got]
            .chunks(BLOCK_BYTES)
            .zip((at..).step_by(BLOCK_BYTES))
        {
            if let Ok((header, crc)) = FrameHeader::decode(block) {
                each(position, &header, crc);
            }
        }
        if got < want {
            break;
        }
        at += got as u64;
    }
    Ok(())
}

struct Frame {
    header: FrameHeader,
    crc: u32,
}

enum Examined {
    Valid(Frame),
    /// With the whole header of the frame that is torn, if that much is there.
    Broken(Found, Option<FrameHeader>, String),
}

fn corrupt(what: String) -> Examined {
    Examined::Broken(Found::Corrupt, None, what)
}

/// Later frames of a chain.
#[derive(Default)]
struct Later {
    frames: u64,
    /// The slot of the first of them.
    first: Option<PathBuf>,
    /// The frame that knows of the most committed entries.
    most: Option<(PathBuf, u64, u64)>,
}

impl Later {
    fn note(&mut self, path: &Path, position: u64, header: &FrameHeader) {
        self.frames += 1;
        self.first.get_or_insert_with(|| path.to_owned());
        if self
            .most
            .as_ref()
            .is_none_or(|(_, _, committed)| *committed < header.committed)
        {
            self.most = Some((path.to_owned(), position, header.committed));
        }
    }
}

impl Chain<'_> {
    /// Follows the chain and hands its entries on.
    pub(super) fn follow(
        &self,
        sink: &mut impl Sink,
    ) -> Result<(LogEnd, ChainCounts), RecoverError> {
        let slots = self
            .slots
            .iter()
            .map(|slot| (slot.path.clone(), slot.bytes))
            .collect();
        std::thread::scope(|scope| {
            let stream = Stream::start(scope, slots, self.direct);
            self.follow_stream(stream, sink)
        })
    }

    fn follow_stream(
        &self,
        mut stream: Stream,
        sink: &mut impl Sink,
    ) -> Result<(LogEnd, ChainCounts), RecoverError> {
        let mut counts = ChainCounts::default();
        let mut expected = (self.slots[0].generation == 1).then_some(Expected {
            frame_seq: 1,
            first_seq: 1,
            previous_crc: 0,
        });
        let (mut slot, mut position, mut closed) = (0, BLOCK, false);
        let mut entries = Vec::new();
        loop {
            let examined = self.examine(&mut stream, slot, position, expected, &mut entries)?;
            let (found, torn, what) = match examined {
                Examined::Valid(frame) => {
                    self.hand_on(&mut stream, slot, position, &entries, sink)?;
                    let bytes = frame.header.disk_bytes() as u64;
                    counts.frames += 1;
                    counts.behind_first += u64::from(slot > 0);
                    counts.entries += u64::from(frame.header.entry_count);
                    counts.bytes += bytes;
                    sink.progress(bytes);
                    closed = frame.header.flags & FRAME_CLOSING != 0;
                    expected = Some(Expected {
                        frame_seq: frame.header.frame_seq + 1,
                        first_seq: frame.header.next_seq(),
                        previous_crc: frame.crc,
                    });
                    position += bytes;
                    continue;
                }
                Examined::Broken(found, torn, what) => (found, torn, what),
            };
            let path = &self.slots[slot].path;
            let next_continues = expected.is_some_and(|e| self.begins_with(slot + 1, e));
            let (place, shown, later_frames, follows_here) = if next_continues {
                (Place::NextSlotContinues, None, 0, false)
            } else {
                let behind = position + torn.map_or(BLOCK, |frame| frame.disk_bytes() as u64);
                let known = match expected {
                    Some(expected) => expected,
                    None => self.expected_from_earlier_uses()?,
                };
                let later = self.search(&mut stream, slot, behind, known.frame_seq)?;
                let place = if later.frames > 0 {
                    Place::FramesFollow
                } else {
                    Place::Last
                };
                let follows_here = later.first.as_ref() == Some(path);
                let by_frame = later
                    .most
                    .filter(|(_, _, committed)| *committed >= known.first_seq)
                    .map(|(path, position, committed)| Shown::Frame {
                        path,
                        position,
                        committed,
                    });
                expected = Some(known);
                (
                    place,
                    by_frame.or_else(|| sink.beyond_chain(self.shard)),
                    later.frames,
                    follows_here,
                )
            };
            let evidence = if shown.is_some() {
                Evidence::Committed
            } else {
                Evidence::None
            };
            match (decide(found, place, evidence), shown, expected) {
                (Decision::NextSlot, ..) if !self.only_first => {
                    (slot, position) = (slot + 1, BLOCK);
                }
                (Decision::EndOfLog | Decision::NextSlot, _, expected) => {
                    let end = LogEnd {
                        shard: self.shard,
                        path: path.clone(),
                        position,
                        found,
                        closed,
                        later_frames,
                        last_seq: expected.map_or(0, |e| e.first_seq - 1),
                    };
                    return Ok((end, counts));
                }
                (Decision::Refuse(Refusal::Lost), Some(shown), Some(expected)) => {
                    // It was either here or at the beginning of the next slot: there, if nothing of this log is,
                    // and nothing of it follows here.
                    let next = self.slots.get(slot + 1).filter(|next| {
                        torn.is_none()
                            && !follows_here
                            && !next.first.is_some_and(|(first, _)| {
                                self.is_own(&first) && first.generation == next.generation
                            })
                    });
                    let (path, position, found) = match next {
                        Some(next) => (&next.path, BLOCK, Found::Torn),
                        None => (path, position, found),
                    };
                    return Err(Lost {
                        path: path.clone(),
                        position,
                        shard: self.shard,
                        found,
                        frame_seq: expected.frame_seq,
                        first_lost: expected.first_seq,
                        shown,
                    }
                    .into());
                }
                (Decision::Refuse(_) | Decision::Continue, ..) => {
                    return Err(CorruptFrame {
                        path: path.clone(),
                        position,
                        what,
                    }
                    .into());
                }
            }
        }
    }

    fn begins_with(&self, slot: usize, expected: Expected) -> bool {
        self.slots.get(slot).is_some_and(|next| {
            next.first.is_some_and(|(first, _)| {
                first.incarnation == self.incarnation
                    && first.shard == self.shard
                    && first.generation == next.generation
                    && first.frame_seq == expected.frame_seq
                    && first.previous_crc == expected.previous_crc
            })
        })
    }

    /// Looks at a position: checks the frame there and all its entries.
    fn examine(
        &self,
        stream: &mut Stream,
        slot: usize,
        position: u64,
        expected: Option<Expected>,
        entries: &mut Vec<(EntryHeader, Range<usize>)>,
    ) -> Result<Examined, FileError> {
        let LiveSlot {
            generation,
            bytes: slot_bytes,
            ..
        } = self.slots[slot];
        if position + BLOCK > slot_bytes {
            return Ok(Examined::Broken(
                Found::Absent,
                None,
                "the slot is full".to_owned(),
            ));
        }
        let block = stream.at(slot, position, BLOCK_BYTES)?;
        let (header, crc) = match FrameHeader::decode(block) {
            Ok(decoded) => decoded,
            Err(e @ FrameError::Length(_)) => return Ok(corrupt(e.to_string())),
            Err(e) => {
                let blank = block.iter().all(|&byte| byte == 0);
                let found = if blank { Found::Absent } else { Found::Torn };
                return Ok(Examined::Broken(found, None, e.to_string()));
            }
        };
        if (header.incarnation, header.generation) < (self.incarnation, generation) {
            let what = "it is of the slot's earlier use".to_owned();
            return Ok(Examined::Broken(Found::Stale, None, what));
        }
        if let Some(what) = self.misplaced(&header, generation, slot_bytes - position, expected) {
            return Ok(corrupt(what));
        }
        let bytes = FRAME_HEADER_BYTES + header.entries_bytes as usize;
        let frame = stream.at(slot, position, bytes)?;
        entries.clear();
        Ok(match self.check_entries(frame, &header, entries) {
            Ok(()) => Examined::Valid(Frame { header, crc }),
            Err((found, what)) => Examined::Broken(found, Some(header), what),
        })
    }

    fn misplaced(
        &self,
        header: &FrameHeader,
        generation: u64,
        room: u64,
        expected: Option<Expected>,
    ) -> Option<String> {
        let own = (self.incarnation, generation, self.shard);
        let its = (header.incarnation, header.generation, header.shard);
        if its != own {
            return Some(format!(
                "it is of start {}, generation {}, shard {}; the slot is of {}, {}, {}",
                its.0, its.1, its.2, own.0, own.1, own.2
            ));
        }
        if header.disk_bytes() as u64 > room {
            return Some("it reaches past the end of the slot".to_owned());
        }
        if header.first_seq == 0
            || header.first_seq > MAX_SEQ
            || header.frame_seq > MAX_SEQ
            || header.committed >= header.first_seq
        {
            return Some("its numbers are out of range".to_owned());
        }
        let expected = expected?;
        if header.frame_seq != expected.frame_seq || header.first_seq != expected.first_seq {
            return Some(format!(
                "it is frame {} with entries from {}, but frame {} with entries from {} was to come",
                header.frame_seq, header.first_seq, expected.frame_seq, expected.first_seq
            ));
        }
        (header.previous_crc != expected.previous_crc)
            .then(|| "it does not name the checksum of the frame before it".to_owned())
    }

    /// An entry whose checksum is right may still be of an earlier use of the slot, seen because the
    /// frame's later blocks were never written: that is torn, not corrupt.
    fn check_entries(
        &self,
        frame: &[u8],
        header: &FrameHeader,
        entries: &mut Vec<(EntryHeader, Range<usize>)>,
    ) -> Result<(), (Found, String)> {
        let mut at = FRAME_HEADER_BYTES;
        let end = at + header.entries_bytes as usize;
        if frame.len() < end {
            return Err((Found::Torn, "the file ends within it".to_owned()));
        }
        for seq in header.first_seq..header.next_seq() {
            let rest = frame.get(at..end).unwrap_or(&[]);
            let (entry, payload) = match EntryHeader::decode(rest, self.incarnation) {
                Ok(decoded) => decoded,
                Err(e @ EntryError::Kind(_)) => return Err((Found::Corrupt, e.to_string())),
                Err(e) => return Err((Found::Torn, format!("at its byte {at}: {e}"))),
            };
            if entry.seq != seq {
                let what = format!("at its byte {at}: entry {} instead of {seq}", entry.seq);
                return Err((Found::Torn, what));
            }
            let start = at + ENTRY_HEADER_BYTES;
            entries.push((entry, start..start + payload.len()));
            at += entry.disk_bytes();
        }
        if at != end {
            return Err((
                Found::Corrupt,
                "its entries are shorter than it says".to_owned(),
            ));
        }
        Ok(())
    }

    fn hand_on(
        &self,
        stream: &mut Stream,
        slot: usize,
        position: u64,
        entries: &[(EntryHeader, Range<usize>)],
        sink: &mut impl Sink,
    ) -> Result<(), RecoverError> {
        let Some((_, last)) = entries.last() else {
            return Ok(());
        };
        let frame = stream.at(slot, position, last.end)?;
        for (header, payload) in entries {
            let position = position + (payload.start - ENTRY_HEADER_BYTES) as u64;
            let at = At {
                path: &self.slots[slot].path,
                position,
            };
            sink.entry(at, header, &frame[payload.clone()])?;
        }
        Ok(())
    }

    /// Later frames of this chain than the one with this number: in the rest of the slot, in those
    /// after it, in those that nothing claims.
    fn search(
        &self,
        stream: &mut Stream,
        slot: usize,
        from: u64,
        frame_seq: u64,
    ) -> Result<Later, FileError> {
        let mut later = Later::default();
        for (number, live) in self.slots.iter().enumerate().skip(slot) {
            let from = if number == slot { from } else { BLOCK };
            for position in (from..live.bytes).step_by(BLOCK_BYTES) {
                let block = stream.at(number, position, BLOCK_BYTES)?;
                if let Ok((header, _)) = FrameHeader::decode(block)
                    && self.is_own(&header)
                    && header.generation == live.generation
                    && header.frame_seq >= frame_seq
                {
                    later.note(&live.path, position, &header);
                }
            }
        }
        for slot in self.strays {
            for (position, header) in slot.frames()? {
                if self.is_own(header) && header.frame_seq >= frame_seq {
                    later.note(&slot.path, *position, header);
                }
            }
        }
        Ok(later)
    }

    fn is_own(&self, header: &FrameHeader) -> bool {
        slots::is_of(header, self.shard, self.incarnation)
    }

    /// What the chain's first frame would have to be, when the frame that the oldest slot begins
    /// with cannot be read: the slots before it are in use again, but frames of their earlier use
    /// may be left in them.
    fn expected_from_earlier_uses(&self) -> Result<Expected, FileError> {
        let mut expected = Expected {
            frame_seq: 1,
            first_seq: 1,
            previous_crc: 0,
        };
        let oldest = self.slots[0].generation;
        let live = self.slots[1..].iter().map(|slot| (&slot.path, slot.bytes));
        let free = self.strays.iter().map(|slot| (&slot.path, slot.bytes));
        for (path, bytes) in live.chain(free) {
            each_frame(path, bytes, self.direct, |_, header, crc| {
                if self.is_own(header)
                    && header.generation < oldest
                    && header.frame_seq >= expected.frame_seq
                {
                    expected = Expected {
                        frame_seq: header.frame_seq + 1,
                        first_seq: header.next_seq(),
                        previous_crc: crc,
                    };
                }
            })?;
        }
        Ok(expected)
    }
}
