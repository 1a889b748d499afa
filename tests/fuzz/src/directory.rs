//! A data directory as one input: files one after the other, without what is always the same in them.
//!
//! ```text
//!  0      1          3
//!  +------+----------+----------
//!  | what | bytes    | contents          and again
//!  | u8   | u16      |
//!  +------+----------+----------
//! ```
//!
//! Of `what` the low three bits say which kind of file, the others its number. A slot of the log begins
//! with its header; the frames after it, each on a block of its own, are parts of the input by themselves.

use std::fs;
use std::io;
use std::path::Path;

use ringtide_log::recovery::{index_name, log_name};
use ringtide_schema::ids::{GroupId, PartitionId, TopicId};
use ringtide_schema::limits::BLOCK_BYTES;

/// A part of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The file `identity`.
    Identity = 0,
    /// The snapshot of a log group.
    Snapshot = 1,
    /// The header of a slot of the log.
    Slot = 2,
    /// A frame of the slot before.
    Frame = 3,
    /// The only segment of a partition of [`TOPIC`].
    Segment = 4,
    /// Its index.
    Index = 5,
}

const KINDS: [Kind; 6] = [
    Kind::Identity,
    Kind::Snapshot,
    Kind::Slot,
    Kind::Frame,
    Kind::Segment,
    Kind::Index,
];

/// The topic whose partitions have files.
pub const TOPIC: TopicId = TopicId {
    hi: 0x0123_4567_89ab_8def,
    lo: 1 << 63,
};
/// Slots are filled up with zeros to the size in their header, if it is no more than this.
const MOST_SLOT_BYTES: u64 = 64 << 10;

/// Calls `each` with every part and its number.
pub fn each_mut(mut input: &mut [u8], mut each: impl FnMut(Kind, u8, &mut [u8])) {
    while let [what, low, high, rest @ ..] = input {
        let bytes = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (contents, after) = rest.split_at_mut(bytes);
        if let Some(&kind) = KINDS.get(usize::from(*what & 7)) {
            each(kind, *what >> 3, contents);
        }
        input = after;
    }
}

/// Adds a part.
///
/// # Panics
/// When the contents have over 65,535 bytes.
pub fn put(out: &mut Vec<u8>, kind: Kind, number: u8, contents: &[u8]) {
    let bytes = u16::try_from(contents.len()).expect("parts are small");
    out.push(kind as u8 | number << 3);
    out.extend_from_slice(&bytes.to_le_bytes());
    out.extend_from_slice(contents);
}

/// Every part with its number.
pub fn parts(mut input: &[u8]) -> impl Iterator<Item = (Kind, u8, &[u8])> {
    let part = move || {
        let [what, low, high, rest @ ..] = input else {
            return None;
        };
        let bytes = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (contents, after) = rest.split_at(bytes);
        input = after;
        let kind = KINDS.get(usize::from(*what & 7));
        Some(kind.map(|&kind| (kind, *what >> 3, contents)))
    };
    std::iter::from_fn(part).flatten()
}

/// Makes the data directory that an input stands for.
///
/// # Errors
/// When a file cannot be written.
pub fn unpack(input: &[u8], dir: &Path) -> io::Result<()> {
    for folder in ["groups", "partitions", "wal"] {
        fs::create_dir(dir.join(folder))?;
    }
    let mut slot: Option<(u8, Vec<u8>)> = None;
    for (kind, number, contents) in parts(input) {
        match kind {
            Kind::Identity => fs::write(dir.join("identity"), contents)?,
            Kind::Snapshot => {
                let name = GroupId(u16::from(number)).snapshot_name();
                fs::write(dir.join("groups").join(name), contents)?;
            }
            Kind::Slot => finish(slot.replace((number, block(contents))), dir)?,
            Kind::Frame => {
                if let Some((_, slot)) = &mut slot {
                    slot.extend(block(contents));
                }
            }
            Kind::Segment | Kind::Index => {
                let (topic, partition) = (TOPIC, u32::from(number));
                let name = PartitionId { topic, partition }.dir_name();
                let folder = dir.join("partitions").join(name);
                fs::create_dir_all(&folder)?;
                let name = match kind {
                    Kind::Index => index_name(0),
                    _ => log_name(0),
                };
                fs::write(folder.join(name), contents)?;
            }
        }
    }
    finish(slot, dir)
}

/// Whole blocks: the contents, then zeros.
#[must_use]
pub fn block(contents: &[u8]) -> Vec<u8> {
    let mut out = contents.to_vec();
    out.resize(contents.len().next_multiple_of(BLOCK_BYTES), 0);
    out
}

fn finish(slot: Option<(u8, Vec<u8>)>, dir: &Path) -> io::Result<()> {
    const SIZE: usize = 48;
    let Some((number, mut slot)) = slot else {
        return Ok(());
    };
    let size = slot.get(SIZE..SIZE + 8).unwrap_or(&[0; 8]);
    let size = u64::from_le_bytes(size.try_into().expect("eight bytes"));
    if size <= MOST_SLOT_BYTES {
        slot.resize(slot.len().max(size as usize), 0);
    }
    fs::write(dir.join("wal").join(format!("{number:06}.wal")), slot)
}
