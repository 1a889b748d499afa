//! Which slots of the write-ahead log are live, and in which order.
//!
//! Every slot file is looked at once: its header and the header of its first frame. A slot with a
//! header of the newest start is live: before it is used again its header is durably blank. A slot
//! without one is placed by the frame that it begins with, because frames name their slot's
//! generation themselves: a free one that was being begun comes behind the headed ones, one whose
//! header rotted wherever it joins them. One whose first frame is damaged as well is placed by its
//! other frames, if those show that it was not free ([`headless`]). All others are *unclaimed*: free,
//! unless the search for later frames finds some in them. A file without a header that is no slot by its length is
//! none of these: it was cut, and is refused.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ringtide_schema::identity::Identity;
use ringtide_schema::limits::BLOCK_BYTES;
use ringtide_schema::wal::{FrameHeader, MAX_FRAME_BYTES, SlotError, SlotHeader};

use super::chain::{MAX_SEQ, each_frame};
use super::error::{
    CutSlot, Foreign, ForeignSlot, MissingSlot, NewerSlot, RecoverError, SlotBytes,
};
use crate::files::{self, AlignedBuf, FileError};

mod headless;

/// The most frames of a shard that are being written at a time.
pub(super) const MAX_FRAMES_IN_FLIGHT: u64 = 8;
/// How far a slot that was free is searched for frames: if one lay further on, then a frame
/// before this position was finished before it was begun, and is found instead.
pub(super) const BLANK_SEARCH_BYTES: u64 =
    BLOCK_BYTES as u64 + (MAX_FRAMES_IN_FLIGHT + 1) * MAX_FRAME_BYTES as u64;

/// A slot file as it lies there.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    pub(super) header: Result<SlotHeader, SlotError>,
    /// The header of the frame at the first position, whatever frame that is.
    pub(super) first: Option<(FrameHeader, u32)>,
}

/// A slot of the newest start.
#[derive(Clone, Debug)]
pub(super) struct LiveSlot {
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    pub(super) generation: u64,
    pub(super) first: Option<(FrameHeader, u32)>,
}

/// The slots of the newest start.
#[derive(Clone, Debug, Default)]
pub(super) struct LiveSlots {
    /// By shard, then by generation.
    pub(super) shards: BTreeMap<u16, Vec<LiveSlot>>,
    pub(super) unclaimed: Vec<Unclaimed>,
}

/// A slot that nothing claims.
#[derive(Clone, Debug)]
pub(super) struct Unclaimed {
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    was_free: bool,
    direct: bool,
    /// Once they were asked for.
    frames: OnceCell<Vec<(u64, FrameHeader)>>,
}

impl Unclaimed {
    pub(super) fn new(path: PathBuf, bytes: u64, was_free: bool, direct: bool) -> Self {
        Self {
            path,
            bytes,
            was_free,
            direct,
            frames: OnceCell::new(),
        }
    }

    /// Every block that is the header of a frame, with its position, as far as frames may lie that were written behind
    /// the live slots: of a slot that was free no more is searched than can have been in flight.
    pub(super) fn frames(&self) -> Result<&[(u64, FrameHeader)], FileError> {
        if let Some(frames) = self.frames.get() {
            return Ok(frames);
        }
        let searched = match self.was_free {
            true => self.bytes.min(BLANK_SEARCH_BYTES),
            false => self.bytes,
        };
        let mut frames = Vec::new();
        each_frame(&self.path, searched, self.direct, |position, header, _| {
            frames.push((position, *header));
        })?;
        Ok(self.frames.get_or_init(|| frames))
    }

    /// Whether there is a frame of a start where the second one of a slot would begin at the latest.
    fn is_begun_in(&self, incarnation: u64) -> Result<bool, FileError> {
        let mut is_begun = false;
        let searched = self.bytes.min((MAX_FRAME_BYTES + 2 * BLOCK_BYTES) as u64);
        each_frame(&self.path, searched, self.direct, |_, header, _| {
            is_begun |= header.incarnation == incarnation;
        })?;
        Ok(is_begun)
    }
}

/// Whether a frame may be of the log of a shard of this start: its numbers, too, are such as a log has.
pub(super) fn is_of(header: &FrameHeader, shard: u16, incarnation: u64) -> bool {
    (header.shard, header.incarnation) == (shard, incarnation)
        && header.frame_seq <= MAX_SEQ
        && header.first_seq <= MAX_SEQ
}

/// What a slot is called while it is made.
const TEMPORARY: &str = ".tmp";

/// Removes slots that were being made: they hold nothing, and may hold the space that a replay needs.
pub(super) fn remove_unfinished(wal: &Path) -> Result<(), RecoverError> {
    for listed in files::list(wal)?.unwrap_or_default() {
        let name = listed.name.strip_suffix(TEMPORARY);
        if name.is_some_and(is_slot_name) && !listed.directory {
            files::remove_file(&listed.path)?;
        }
    }
    Ok(())
}

/// Makes durable what is read: writes that were under way when the process was killed may be in the device's cache
/// only. Snapshots hold them from now on, and must not hold more than the log if they are lost.
pub(super) fn sync(live: &LiveSlots) -> Result<(), RecoverError> {
    for slot in live.shards.values().flatten() {
        let file = files::open_read(&slot.path, false)?;
        files::sync_data(&file, &slot.path)?;
    }
    Ok(())
}

/// A free slot that says nothing about the log as it is: it has no frame of a generation that follows the oldest.
pub(super) fn expendable<'a>(
    live: &'a LiveSlots,
    identity: &Identity,
) -> Result<Option<&'a Path>, FileError> {
    let is_over = |header: &FrameHeader| {
        let slots = live.shards.get(&header.shard);
        header.incarnation != identity.incarnation
            || slots.is_some_and(|slots| header.generation < slots[0].generation)
    };
    for slot in &live.unclaimed {
        if slot.frames()?.iter().all(|(_, header)| is_over(header)) {
            return Ok(Some(&slot.path));
        }
    }
    Ok(None)
}

/// The slot files of `DIR/wal`, by name, with their lengths.
pub(super) fn list(wal: &Path) -> Result<Vec<(PathBuf, u64)>, RecoverError> {
    let mut out = Vec::new();
    for listed in files::list(wal)?.unwrap_or_default() {
        if listed.name.ends_with(TEMPORARY) {
            continue;
        }
        if listed.directory || !is_slot_name(&listed.name) {
            return Err(Foreign { path: listed.path }.into());
        }
        let bytes = files::bytes_at(&listed.path)?;
        out.push((listed.path, bytes));
    }
    Ok(out)
}

/// Whether a slot may have such a length, whatever size the settings of its time gave it: a header, frames, and only whole
/// blocks.
pub(super) fn is_slot_length(bytes: u64) -> bool {
    const BLOCK: u64 = BLOCK_BYTES as u64;
    bytes >= 2 * BLOCK && bytes.is_multiple_of(BLOCK)
}

fn is_slot_name(name: &str) -> bool {
    name.strip_suffix(".wal")
        .is_some_and(|number| number.len() >= 6 && number.bytes().all(|b| b.is_ascii_digit()))
}

/// Reads the beginning of every slot file.
pub(super) fn look_at_all(
    listed: &[(PathBuf, u64)],
    direct: bool,
) -> Result<Vec<Slot>, RecoverError> {
    let look = |(path, bytes): &(PathBuf, u64)| look(path.clone(), *bytes, direct);
    listed.iter().map(look).collect()
}

/// Reads the beginning of a slot file.
fn look(path: PathBuf, bytes: u64, direct: bool) -> Result<Slot, RecoverError> {
    let file = files::open_read(&path, direct)?;
    let mut block = AlignedBuf::zeroed(2 * BLOCK_BYTES);
    files::read_at(&file, &path, &mut block, 0)?;
    let header = SlotHeader::decode(&block[..BLOCK_BYTES]);
    let first = FrameHeader::decode(&block[BLOCK_BYTES..]).ok();
    Ok(Slot {
        path,
        bytes,
        header,
        first,
    })
}

impl Slot {
    /// Refuses a slot of another directory, or of a start that the identity does not know: then that is an old one.
    pub(super) fn check_origin(&self, identity: &Identity) -> Result<(), RecoverError> {
        let path = || self.path.clone();
        if let Ok(header) = &self.header
            && header.data_directory != identity.data_directory
        {
            let (found, expected) = (header.data_directory, identity.data_directory);
            return Err(ForeignSlot {
                path: path(),
                found,
                expected,
            }
            .into());
        }
        let headed = self.header.as_ref().ok().map(|header| header.incarnation);
        let begun = self.first.as_ref().map(|(first, _)| first.incarnation);
        match headed.max(begun) {
            Some(found) if found > identity.incarnation => {
                let known = identity.incarnation;
                Err(NewerSlot {
                    path: path(),
                    found,
                    known,
                }
                .into())
            }
            _ => Ok(()),
        }
    }

    fn headed(&self, identity: &Identity) -> Result<Option<(u16, u64)>, RecoverError> {
        self.check_origin(identity)?;
        let Ok(header) = &self.header else {
            if self.is_cut() {
                let (path, have) = (self.path.clone(), self.bytes);
                return Err(CutSlot { path, have }.into());
            }
            return Ok(None);
        };
        if header.incarnation < identity.incarnation {
            return Ok(None);
        }
        if header.slot_bytes != self.bytes || !self.bytes.is_multiple_of(BLOCK_BYTES as u64) {
            return Err(SlotBytes {
                path: self.path.clone(),
                want: header.slot_bytes,
                have: self.bytes,
            }
            .into());
        }
        Ok(Some((header.shard, header.generation)))
    }

    /// What the first frame says, if it is of the newest start.
    fn begun(&self, identity: &Identity) -> Option<(u16, u64)> {
        let (first, _) = self.first.as_ref()?;
        let whole_blocks = self.bytes.is_multiple_of(BLOCK_BYTES as u64);
        (whole_blocks && first.incarnation == identity.incarnation)
            .then_some((first.shard, first.generation))
    }

    /// Whether the file was cut, and its header with it: what is left tells neither a slot that was in use from a free one
    /// nor whose it is. A slot takes its name when it is whole, so that no interruption leaves this.
    pub(super) fn is_cut(&self) -> bool {
        self.header.is_err() && !is_slot_length(self.bytes)
    }

    /// What is wrong with the header, if it is neither one nor blank.
    pub(super) fn damaged_header(&self) -> Option<SlotError> {
        self.header.err().filter(|error| *error != SlotError::Blank)
    }

    /// Whether the slot was free: its header is blank, or of an earlier start. A header is written
    /// whole or not at all (it lies in one sector), so that anything else is damage.
    fn was_free(&self) -> bool {
        matches!(self.header, Ok(_) | Err(SlotError::Blank))
    }

    fn live(&self, generation: u64) -> LiveSlot {
        let (path, bytes, first) = (self.path.clone(), self.bytes, self.first);
        LiveSlot {
            path,
            bytes,
            generation,
            first,
        }
    }
}

/// Sorts out the slots of the newest start. `held`: the last entry that the snapshot of each group holds.
pub(super) fn sort_out(
    slots: &[Slot],
    identity: &Identity,
    held: &[u64],
    direct: bool,
) -> Result<LiveSlots, RecoverError> {
    let live = place(slots, identity, held, direct)?;
    for (&shard, chain) in &live.shards {
        if let Some((_, missing)) = gap(shard, chain) {
            return Err(missing.into());
        }
    }
    Ok(live)
}

/// The first gap in the generations of a shard's slots, with how many come before it.
pub(super) fn gap(shard: u16, chain: &[LiveSlot]) -> Option<(usize, MissingSlot)> {
    let continues = |pair: &[LiveSlot]| pair[1].generation == pair[0].generation + 1;
    let last = chain.windows(2).position(|pair| !continues(pair))?;
    let missing = MissingSlot {
        shard,
        generation: chain[last].generation + 1,
        before: chain[last + 1].path.clone(),
    };
    Some((last + 1, missing))
}

/// Sorts out the slots of the newest start; there may be gaps in the generations of a shard.
pub(super) fn place(
    slots: &[Slot],
    identity: &Identity,
    held: &[u64],
    direct: bool,
) -> Result<LiveSlots, RecoverError> {
    let mut live = LiveSlots::default();
    let mut begun: BTreeMap<u16, Vec<Begun>> = BTreeMap::new();
    let mut others = Vec::new();
    for slot in slots {
        if let Some((shard, generation)) = slot.headed(identity)? {
            live.shards
                .entry(shard)
                .or_default()
                .push(slot.live(generation));
        } else if let Some((shard, generation)) = slot.begun(identity) {
            begun.entry(shard).or_default().push(Begun {
                slot: slot.live(generation),
                was_free: slot.was_free(),
            });
        } else {
            let path = slot.path.clone();
            let was_free = slot.was_free();
            others.push(Unclaimed::new(path, slot.bytes, was_free, direct));
        }
    }
    for (shard, begun) in begun {
        let chain = live.shards.entry(shard).or_default();
        for Begun { slot, was_free } in adopt(chain, begun) {
            let LiveSlot { path, bytes, .. } = slot;
            live.unclaimed
                .push(Unclaimed::new(path, bytes, was_free, direct));
        }
    }
    headless::join(&mut live.shards, &mut others, identity, held)?;
    live.unclaimed.append(&mut others);
    for chain in live.shards.values_mut() {
        chain.sort_by_key(|slot| slot.generation);
    }
    Ok(live)
}

/// A slot without a header, placed by the frame that it begins with.
struct Begun {
    slot: LiveSlot,
    was_free: bool,
}

/// Puts slots without a header where their first frames say, as far as they join the run of the
/// headed ones. One that was free joins only behind them: what it begins with may be of its earlier
/// use. Gives back the others.
fn adopt(chain: &mut Vec<LiveSlot>, mut begun: Vec<Begun>) -> Vec<Begun> {
    begun.sort_by_key(|begun| begun.slot.generation);
    if chain.is_empty() {
        chain.extend(begun.pop().map(|begun| begun.slot));
    }
    loop {
        let low = chain.iter().map(|slot| slot.generation).min().unwrap_or(0);
        let high = chain.iter().map(|slot| slot.generation).max().unwrap_or(0);
        let joins = |begun: &Begun| {
            let lowest = match begun.was_free {
                true => high + 1,
                false => low.saturating_sub(1),
            };
            let generation = begun.slot.generation;
            (lowest..=high + 1).contains(&generation)
                && chain.iter().all(|other| other.generation != generation)
        };
        match begun.iter().position(joins) {
            Some(i) => chain.push(begun.remove(i).slot),
            None => return begun,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(generation: u64) -> LiveSlot {
        LiveSlot {
            path: PathBuf::new(),
            bytes: 0,
            generation,
            first: None,
        }
    }

    fn adopted(was_free: bool) -> (Vec<u64>, usize) {
        let mut chain = vec![slot(4), slot(6)];
        let begun = [1, 3, 5, 7, 9].map(|generation| Begun {
            slot: slot(generation),
            was_free,
        });
        let left = adopt(&mut chain, begun.into());
        let mut generations: Vec<u64> = chain.iter().map(|s| s.generation).collect();
        generations.sort_unstable();
        (generations, left.len())
    }

    #[test]
    fn a_slot_with_a_damaged_header_joins_only_next_to_its_neighbours() {
        assert_eq!(adopted(false), (vec![3, 4, 5, 6, 7], 2));
    }

    #[test]
    fn a_slot_that_was_free_joins_only_behind_the_newest() {
        assert_eq!(adopted(true), (vec![4, 6, 7], 4));
    }

    #[test]
    fn only_numbered_wal_files_are_slots() {
        assert!(is_slot_name("000001.wal") && is_slot_name("1000000.wal"));
        assert!(!is_slot_name("1.wal") && !is_slot_name("00000a.wal") && !is_slot_name("000001"));
    }
}
