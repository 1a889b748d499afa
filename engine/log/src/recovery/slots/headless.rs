//! Slots of which header and first frame are both damaged: their other frames say which they are.
//!
//! A broker that ends in any way leaves such a slot only where that is the one it was beginning, with header and first frame
//! in flight. Then nothing in it was committed, and the slot before it, which something was committed in, is there with the
//! frame that it began with: a log gives up no slot before the next one has something committed. A free slot with a damaged
//! block is one, too; what it has, snapshots hold.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use ringtide_schema::identity::Identity;
use ringtide_schema::limits::BLOCK_BYTES;
use ringtide_schema::wal::{EntryHeader, FRAME_HEADER_BYTES, FrameHeader, MAX_FRAME_BYTES};

use super::{LiveSlot, Unclaimed, each_frame, is_of};
use crate::files::{self, FileError};

/// What the frames of a slot say that are of this start: all of one shard's, because a slot stays with its shard.
struct Use {
    number: usize,
    shard: u16,
    generation: u64,
    says_committed: bool,
}

/// Takes those out of `slots` that show a loss: the newest of a log that has no other slot, if a frame says that something was
/// committed; and from the oldest one of a log backwards those that were not free, or hold entries that the snapshots do not.
pub(super) fn join(
    shards: &mut BTreeMap<u16, Vec<LiveSlot>>,
    slots: &mut Vec<Unclaimed>,
    identity: &Identity,
    held: &[u64],
) -> Result<(), FileError> {
    // A free slot is looked into only where it could have been one of a log: of a start's first generation none is before.
    let could_be = |shard: u32| {
        let chain = u16::try_from(shard)
            .ok()
            .and_then(|shard| shards.get(&shard));
        chain.is_none_or(|chain| chain.iter().all(|slot| slot.generation > 1))
    };
    let any_could_be = (0..identity.shards).any(could_be);
    let mut uses = Vec::new();
    for (number, slot) in slots.iter().enumerate() {
        let is_free = slot.was_free && !(any_could_be && slot.is_begun_in(identity.incarnation)?);
        if !is_free {
            uses.extend(use_of(number, slot, identity)?);
        }
    }
    uses.sort_by_key(|newest| Reverse(newest.generation));
    let mut joined = Vec::new();
    for found in uses {
        let slot = &slots[found.number];
        let chain = shards.get(&found.shard).map_or(&[][..], |chain| chain);
        let is_lost = match chain.iter().map(|slot| slot.generation).min() {
            None => found.says_committed,
            Some(oldest) => {
                found.generation.checked_add(1) == Some(oldest)
                    && (!slot.was_free || holds_more(slot, found.shard, identity, held)?)
            }
        };
        if is_lost {
            shards.entry(found.shard).or_default().push(LiveSlot {
                path: slot.path.clone(),
                bytes: slot.bytes,
                generation: found.generation,
                first: None,
            });
            joined.push(slot.path.clone());
        }
    }
    slots.retain(|slot| !joined.contains(&slot.path));
    Ok(())
}

fn use_of(number: usize, slot: &Unclaimed, identity: &Identity) -> Result<Option<Use>, FileError> {
    let incarnation = identity.incarnation;
    let frames = slot.frames()?;
    let own = || {
        let headers = frames.iter().map(|(_, header)| header);
        headers.filter(|header| is_of(header, header.shard, incarnation))
    };
    let Some(newest) = own().max_by_key(|header| header.generation) else {
        return Ok(None);
    };
    let is_whole = slot.bytes.is_multiple_of(BLOCK_BYTES as u64);
    let found = (is_whole && u32::from(newest.shard) < identity.shards).then(|| Use {
        number,
        shard: newest.shard,
        generation: newest.generation,
        says_committed: own().any(|header| header.shard == newest.shard && header.committed > 0),
    });
    Ok(found)
}

/// Whether a frame has an entry that its group's snapshot does not hold.
fn holds_more(
    slot: &Unclaimed,
    shard: u16,
    identity: &Identity,
    held: &[u64],
) -> Result<bool, FileError> {
    let file = files::open_read(&slot.path, false)?;
    let mut buf = vec![0; MAX_FRAME_BYTES];
    let is_own = |frame: &FrameHeader| is_of(frame, shard, identity.incarnation);
    // All of it: snapshots may hold what its beginning has, and nothing of its end.
    let mut frames = Vec::new();
    each_frame(&slot.path, slot.bytes, slot.direct, |position, frame, _| {
        if is_own(frame) {
            frames.push((position, *frame));
        }
    })?;
    for (position, frame) in &frames {
        let bytes = (FRAME_HEADER_BYTES + frame.entries_bytes as usize).min(buf.len());
        let got = files::read_at(&file, &slot.path, &mut buf[..bytes], *position)?;
        let mut at = FRAME_HEADER_BYTES;
        while let Some(rest) = buf[..got].get(at..)
            && let Ok((entry, _)) = EntryHeader::decode(rest, frame.incarnation)
            && (frame.first_seq..frame.next_seq()).contains(&entry.seq)
        {
            let group = usize::from(entry.group.0);
            if held
                .get(group)
                .is_some_and(|&held| entry.group_index > held)
            {
                return Ok(true);
            }
            at += entry.disk_bytes();
        }
    }
    Ok(false)
}
