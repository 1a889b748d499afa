//! Slots of which header and first frame are both damaged: their other frames say which they are.
//!
//! A broker that ends in any way leaves such a slot only where that is the one it was beginning, with header and first frame
//! in flight. Then nothing in it was committed, and the slot before it, which something was committed in, is there with the
//! frame that it began with: a log gives up no slot before the next one has something committed. A free slot with a damaged
//! block is one, too; what it has, snapshots hold.

use std::collections::BTreeMap;

use ringtide_schema::identity::Identity;
use ringtide_schema::limits::BLOCK_BYTES;
use ringtide_schema::wal::{EntryHeader, FRAME_HEADER_BYTES, FrameHeader, MAX_FRAME_BYTES};

use super::{LiveSlot, Unclaimed, is_of};
use crate::files::{self, FileError};

/// Takes those out of `slots` that show a loss: the newest of a log that has no other slot, if a frame says that something was
/// committed; and from the oldest one of a log backwards those that were not free, or hold entries that the snapshots do not.
pub(super) fn join(
    shards: &mut BTreeMap<u16, Vec<LiveSlot>>,
    slots: &mut Vec<Unclaimed>,
    identity: &Identity,
    held: &[u64],
) -> Result<(), FileError> {
    for shard in 0..u16::try_from(identity.shards).unwrap_or(u16::MAX) {
        let is_own = |header: &FrameHeader| is_of(header, shard, identity.incarnation);
        let generation = |slot: &Unclaimed| {
            let own = slot.frames.iter().filter(|(_, header)| is_own(header));
            let newest = own.map(|(_, header)| header.generation).max();
            newest.filter(|_| slot.bytes.is_multiple_of(BLOCK_BYTES as u64))
        };
        let says_committed = |slot: &Unclaimed| {
            let mut own = slot.frames.iter().filter(|(_, header)| is_own(header));
            own.any(|(_, header)| header.committed > 0)
        };
        loop {
            let chain = shards.get(&shard).map_or(&[][..], |chain| chain);
            let oldest = chain.iter().map(|slot| slot.generation).min();
            let mut found = None;
            for (number, slot) in slots.iter().enumerate() {
                let Some(generation) = generation(slot) else {
                    continue;
                };
                let is_lost = match oldest {
                    None => says_committed(slot),
                    Some(oldest) => {
                        generation.checked_add(1) == Some(oldest)
                            && (!slot.was_free || holds_more(slot, is_own, held)?)
                    }
                };
                if is_lost {
                    found = found.max(Some((generation, number)));
                }
            }
            let Some((generation, number)) = found else {
                break;
            };
            let Unclaimed { path, bytes, .. } = slots.remove(number);
            shards.entry(shard).or_default().push(LiveSlot {
                path,
                bytes,
                generation,
                first: None,
            });
        }
    }
    Ok(())
}

/// Whether a frame has an entry that its group's snapshot does not hold.
fn holds_more(
    slot: &Unclaimed,
    is_own: impl Fn(&FrameHeader) -> bool,
    held: &[u64],
) -> Result<bool, FileError> {
    let file = files::open_read(&slot.path, false)?;
    let mut buf = vec![0; MAX_FRAME_BYTES];
    for (position, frame) in slot.frames.iter().filter(|(_, header)| is_own(header)) {
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
