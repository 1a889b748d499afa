//! The write-ahead log on disk: slots, frames, entries.
//!
//! A **slot** is a file of fixed size, written full of zeros once and then reused for ever. Its
//! first block names it; frames follow, each starting on a block of 4,096 bytes.
//!
//! ```text
//! slot header (block 0)
//!  0          8       10      12       16            32           40            48          56     60       4096
//!  +----------+-------+-------+--------+-------------+------------+-------------+-----------+------+---------+
//!  | magic    | format| shard | 0 u32  | data dir id | generation | incarnation | slot      | crc  | zeros   |
//!  | RTWALSLT | u16   | u16   |        | 2 x u64     | u64        | u64         | bytes u64 | u32  |         |
//!  +----------+-------+-------+--------+-------------+------------+-------------+-----------+------+---------+
//!
//! frame header (64 bytes), then `count` entries, then zeros to the next block
//!  0       4       5       6       8            16            24          32          40        48       52     56        60    64
//!  +-------+-------+-------+-------+------------+-------------+-----------+-----------+---------+--------+------+---------+-----+
//!  | magic | format| flags | shard | generation | incarnation | frame seq | committed | first   | entries| count| previous| crc |
//!  | RTFR  | u8    | u8    | u16   | u64        | u64         | u64       | u64       | seq u64 | bytes  | u32  | crc u32 | u32 |
//!  +-------+-------+-------+-------+------------+-------------+-----------+-----------+---------+--------+------+---------+-----+
//!
//! entry header (80 bytes), then the payload, then zeros to a multiple of 8
//!  0        4       8         12    13     14      16       24      32     40       56          60            64       72      80
//!  +--------+-------+---------+-----+------+-------+--------+-------+------+--------+-----------+-------------+--------+-------+
//!  | bytes  | header| payload | kind| 0 u8 | group | seq    | group | term | topic  | partition | incarnation | base   | append|
//!  | u32    | crc   | crc     | u8  |      | u16   | u64    | index | u64  | 2 x u64| u32       | low u32     | offset | ms i64|
//!  +--------+-------+---------+-----+------+-------+--------+-------+------+--------+-----------+-------------+--------+-------+
//! ```
//!
//! All little endian. Checksums are CRC-32C: the slot's over bytes 0..56, the frame's over 0..60,
//! the entry's header over 8..80 (so that it binds the payload's checksum) followed by its length.
//! `previous crc` is the frame checksum of the frame before it in the shard's log, 0 for the first
//! one of an incarnation: the frames are a chain. `frame seq` and `seq` count from 1 in every
//! incarnation of a shard; `first seq` is the number of the first entry, or the next to come in a
//! frame without entries.

use crate::ids::{GroupId, PartitionId, TopicId};
use crate::limits::BLOCK_BYTES;
use crate::{le, put_le};

/// The version of this format.
pub const FORMAT: u16 = 1;
/// Bytes of a frame header.
pub const FRAME_HEADER_BYTES: usize = 64;
/// Bytes of an entry header.
pub const ENTRY_HEADER_BYTES: usize = 80;
/// The largest frame, header and padding included.
pub const MAX_FRAME_BYTES: usize = 2 << 20;
/// The smallest slot.
pub const MIN_SLOT_BYTES: u64 = 4 << 20;
/// Frame flag: nothing was outstanding when this frame was written; it has no entries.
pub const FRAME_CLOSING: u8 = 1;

const SLOT_MAGIC: [u8; 8] = *b"RTWALSLT";
const FRAME_MAGIC: [u8; 4] = *b"RTFR";
const SLOT_CRC_AT: usize = 56;
const FRAME_CRC_AT: usize = 60;
const ENTRY_CRC_FROM: usize = 8;
const _: () = assert!(FRAME_CRC_AT + 4 == FRAME_HEADER_BYTES);
const _: () = assert!(MAX_FRAME_BYTES.is_multiple_of(BLOCK_BYTES));
const _: () = assert!(
    FRAME_HEADER_BYTES + ENTRY_HEADER_BYTES + crate::limits::MAX_BATCH_BYTES + BLOCK_BYTES
        <= MAX_FRAME_BYTES
);

/// Rounds up to the next multiple of 8, where an entry may begin.
pub const fn entry_padded(bytes: usize) -> usize {
    bytes.next_multiple_of(8)
}

/// The first block of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotHeader {
    /// The data directory that the slot belongs to.
    pub data_directory: TopicId,
    /// The shard that writes it.
    pub shard: u16,
    /// Counts the uses of slots by the shard in this incarnation, from 1.
    pub generation: u64,
    /// The start of the broker that wrote it.
    pub incarnation: u64,
    /// Bytes of the whole file.
    pub slot_bytes: u64,
}

/// Why a block is not a slot header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// All zeros: a slot that was never used.
    #[error("the slot was never used")]
    Blank,
    /// Some other file.
    #[error("not a WAL slot: wrong magic")]
    Magic,
    /// Damaged or torn.
    #[error("slot header checksum is {stored:#010x}, computed {computed:#010x}")]
    Checksum {
        /// As read.
        stored: u32,
        /// Over what was read.
        computed: u32,
    },
    /// Written by another version.
    #[error("slot format {0} is not {FORMAT}, the one this version reads")]
    Format(u16),
}

impl SlotHeader {
    /// The header as the block that begins the slot.
    pub fn encode(&self, block: &mut [u8]) {
        assert_eq!(block.len(), BLOCK_BYTES);
        block.fill(0);
        block[..8].copy_from_slice(&SLOT_MAGIC);
        put_le!(block, 8, FORMAT);
        put_le!(block, 10, self.shard);
        put_le!(block, 16, self.data_directory.hi);
        put_le!(block, 24, self.data_directory.lo);
        put_le!(block, 32, self.generation);
        put_le!(block, 40, self.incarnation);
        put_le!(block, 48, self.slot_bytes);
        let crc = crc32c::crc32c(&block[..SLOT_CRC_AT]);
        put_le!(block, SLOT_CRC_AT, crc);
    }

    /// Reads and checks the first block of a slot.
    pub fn decode(block: &[u8]) -> Result<Self, SlotError> {
        if block.len() < SLOT_CRC_AT + 4 {
            return Err(SlotError::Magic);
        }
        if block.iter().all(|&b| b == 0) {
            return Err(SlotError::Blank);
        }
        if block[..8] != SLOT_MAGIC {
            return Err(SlotError::Magic);
        }
        let stored = le!(u32, block, SLOT_CRC_AT);
        let computed = crc32c::crc32c(&block[..SLOT_CRC_AT]);
        if stored != computed {
            return Err(SlotError::Checksum { stored, computed });
        }
        let format = le!(u16, block, 8);
        if format != FORMAT {
            return Err(SlotError::Format(format));
        }
        Ok(Self {
            data_directory: TopicId {
                hi: le!(u64, block, 16),
                lo: le!(u64, block, 24),
            },
            shard: le!(u16, block, 10),
            generation: le!(u64, block, 32),
            incarnation: le!(u64, block, 40),
            slot_bytes: le!(u64, block, 48),
        })
    }
}

/// The header of one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// `FRAME_*` bits.
    pub flags: u8,
    /// The shard that wrote it.
    pub shard: u16,
    /// Of the slot.
    pub generation: u64,
    /// The start of the broker that wrote it.
    pub incarnation: u64,
    /// From 1 in every incarnation of a shard.
    pub frame_seq: u64,
    /// The last sequence number known to be on stable storage when this frame was submitted.
    pub committed: u64,
    /// Sequence number of the first entry, or the next one if there is none.
    pub first_seq: u64,
    /// Bytes of the entries with their padding.
    pub entries_bytes: u32,
    /// Number of entries.
    pub entry_count: u32,
    /// Checksum of the frame before, 0 for the first of an incarnation.
    pub previous_crc: u32,
}

/// Why bytes are not a frame header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// No frame was ever written here.
    #[error("no frame: wrong magic")]
    Magic,
    /// Damaged or torn.
    #[error("frame checksum is {stored:#010x}, computed {computed:#010x}")]
    Checksum {
        /// As read.
        stored: u32,
        /// Over what was read.
        computed: u32,
    },
    /// Written by another version.
    #[error("frame format {0} is not {FORMAT}")]
    Format(u8),
    /// Over the bound, or entries without a count.
    #[error("frame of {0} bytes is impossible")]
    Length(u32),
}

impl FrameHeader {
    /// Writes the header and returns its checksum, which the next frame names.
    pub fn encode(&self, out: &mut [u8]) -> u32 {
        assert!(out.len() >= FRAME_HEADER_BYTES);
        out[..4].copy_from_slice(&FRAME_MAGIC);
        out[4] = FORMAT as u8;
        out[5] = self.flags;
        put_le!(out, 6, self.shard);
        put_le!(out, 8, self.generation);
        put_le!(out, 16, self.incarnation);
        put_le!(out, 24, self.frame_seq);
        put_le!(out, 32, self.committed);
        put_le!(out, 40, self.first_seq);
        put_le!(out, 48, self.entries_bytes);
        put_le!(out, 52, self.entry_count);
        put_le!(out, 56, self.previous_crc);
        let crc = crc32c::crc32c(&out[..FRAME_CRC_AT]);
        put_le!(out, FRAME_CRC_AT, crc);
        crc
    }

    /// Reads a header and checks it by itself; returns its checksum beside it.
    pub fn decode(bytes: &[u8]) -> Result<(Self, u32), FrameError> {
        if bytes.len() < FRAME_HEADER_BYTES || bytes[..4] != FRAME_MAGIC {
            return Err(FrameError::Magic);
        }
        let stored = le!(u32, bytes, FRAME_CRC_AT);
        let computed = crc32c::crc32c(&bytes[..FRAME_CRC_AT]);
        if stored != computed {
            return Err(FrameError::Checksum { stored, computed });
        }
        if u16::from(bytes[4]) != FORMAT {
            return Err(FrameError::Format(bytes[4]));
        }
        let header = Self {
            flags: bytes[5],
            shard: le!(u16, bytes, 6),
            generation: le!(u64, bytes, 8),
            incarnation: le!(u64, bytes, 16),
            frame_seq: le!(u64, bytes, 24),
            committed: le!(u64, bytes, 32),
            first_seq: le!(u64, bytes, 40),
            entries_bytes: le!(u32, bytes, 48),
            entry_count: le!(u32, bytes, 52),
            previous_crc: le!(u32, bytes, 56),
        };
        let least = header.entry_count as usize * ENTRY_HEADER_BYTES;
        let bytes = header.entries_bytes as usize;
        if bytes + FRAME_HEADER_BYTES > MAX_FRAME_BYTES
            || bytes < least
            || (header.entry_count == 0) != (bytes == 0)
        {
            return Err(FrameError::Length(header.entries_bytes));
        }
        Ok((header, stored))
    }

    /// Bytes of the frame on disk: header, entries, padding to a whole block.
    pub fn disk_bytes(&self) -> usize {
        (FRAME_HEADER_BYTES + self.entries_bytes as usize).next_multiple_of(BLOCK_BYTES)
    }

    /// The sequence number after the last entry of this frame.
    pub fn next_seq(&self) -> u64 {
        self.first_seq.saturating_add(u64::from(self.entry_count))
    }
}

/// What an entry is. A number is never reused; the ones after `LogStart` are kept for
/// replication: suffix truncation 16, vote 17, snapshot mark 18, group configuration 19.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EntryKind {
    /// Payload: one record batch, offset and leader epoch assigned.
    Batch = 1,
    /// Payload: a `store::MetaEntry`; only in the metadata group.
    Meta = 2,
    /// Payload: a `store::CommitOffset`.
    CommitOffset = 3,
    /// No payload: `base_offset` is the partition's new log start.
    LogStart = 4,
}

impl EntryKind {
    /// The kind with this number.
    pub fn from_u8(number: u8) -> Option<Self> {
        [Self::Batch, Self::Meta, Self::CommitOffset, Self::LogStart]
            .into_iter()
            .find(|&kind| kind as u8 == number)
    }
}

/// The header of one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryHeader {
    /// What the payload is.
    pub kind: EntryKind,
    /// The log group.
    pub group: GroupId,
    /// The shard's own number of the entry.
    pub seq: u64,
    /// The group's own number of the entry.
    pub group_index: u64,
    /// The term of the group's leader; 0 without replication.
    pub term: u64,
    /// The partition; zeros in the metadata group.
    pub partition: PartitionId,
    /// Of the batch, or the new log start.
    pub base_offset: u64,
    /// When the broker appended it, ms since 1970.
    pub append_time_ms: i64,
    /// Bytes of the payload.
    pub payload_bytes: u32,
    /// CRC-32C of the payload.
    pub payload_crc: u32,
}

/// Why bytes are not an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// The frame ends within the entry.
    #[error("the entry is cut off")]
    CutOff,
    /// The header was damaged.
    #[error("entry header checksum is {stored:#010x}, computed {computed:#010x}")]
    HeaderChecksum {
        /// As read.
        stored: u32,
        /// Over what was read.
        computed: u32,
    },
    /// The payload was damaged.
    #[error("entry payload checksum is {stored:#010x}, computed {computed:#010x}")]
    PayloadChecksum {
        /// As read.
        stored: u32,
        /// Over what was read.
        computed: u32,
    },
    /// The entry was written by another start of the broker than its frame.
    #[error("entry of incarnation {0} (low 32 bits) in a frame of another")]
    Incarnation(u32),
    /// A kind that this version does not know.
    #[error("unknown entry kind {0}")]
    Kind(u8),
}

impl EntryHeader {
    /// Bytes that the entry takes in a frame.
    pub fn disk_bytes(&self) -> usize {
        entry_padded(ENTRY_HEADER_BYTES + self.payload_bytes as usize)
    }

    /// Writes the header.
    pub fn encode(&self, incarnation: u64, out: &mut [u8]) {
        assert!(out.len() >= ENTRY_HEADER_BYTES);
        put_le!(out, 0, ENTRY_HEADER_BYTES as u32 + self.payload_bytes);
        put_le!(out, 8, self.payload_crc);
        out[12] = self.kind as u8;
        out[13] = 0;
        put_le!(out, 14, self.group.0);
        put_le!(out, 16, self.seq);
        put_le!(out, 24, self.group_index);
        put_le!(out, 32, self.term);
        put_le!(out, 40, self.partition.topic.hi);
        put_le!(out, 48, self.partition.topic.lo);
        put_le!(out, 56, self.partition.partition);
        put_le!(out, 60, incarnation as u32);
        put_le!(out, 64, self.base_offset);
        put_le!(out, 72, self.append_time_ms);
        let crc = Self::header_crc(out);
        put_le!(out, 4, crc);
    }

    fn header_crc(bytes: &[u8]) -> u32 {
        let crc = crc32c::crc32c(&bytes[ENTRY_CRC_FROM..ENTRY_HEADER_BYTES]);
        crc32c::crc32c_append(crc, &bytes[..4])
    }

    /// Reads the entry at the start of `bytes` (which ends where the frame's entries end), checks
    /// header and payload, and gives both.
    pub fn decode(bytes: &[u8], incarnation: u64) -> Result<(Self, &[u8]), EntryError> {
        if bytes.len() < ENTRY_HEADER_BYTES {
            return Err(EntryError::CutOff);
        }
        let stored = le!(u32, bytes, 4);
        let computed = Self::header_crc(bytes);
        if stored != computed {
            return Err(EntryError::HeaderChecksum { stored, computed });
        }
        let tag = le!(u32, bytes, 60);
        if tag != incarnation as u32 {
            return Err(EntryError::Incarnation(tag));
        }
        let entry_bytes = le!(u32, bytes, 0) as usize;
        if entry_bytes < ENTRY_HEADER_BYTES || entry_bytes > bytes.len() {
            return Err(EntryError::CutOff);
        }
        let payload = &bytes[ENTRY_HEADER_BYTES..entry_bytes];
        let stored = le!(u32, bytes, 8);
        let computed = crc32c::crc32c(payload);
        if stored != computed {
            return Err(EntryError::PayloadChecksum { stored, computed });
        }
        let kind = EntryKind::from_u8(bytes[12]).ok_or(EntryError::Kind(bytes[12]))?;
        let header = Self {
            kind,
            group: GroupId(le!(u16, bytes, 14)),
            seq: le!(u64, bytes, 16),
            group_index: le!(u64, bytes, 24),
            term: le!(u64, bytes, 32),
            partition: PartitionId {
                topic: TopicId {
                    hi: le!(u64, bytes, 40),
                    lo: le!(u64, bytes, 48),
                },
                partition: le!(u32, bytes, 56),
            },
            base_offset: le!(u64, bytes, 64),
            append_time_ms: le!(i64, bytes, 72),
            payload_bytes: payload.len() as u32,
            payload_crc: stored,
        };
        Ok((header, payload))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame() -> FrameHeader {
        FrameHeader {
            flags: 0,
            shard: 3,
            generation: 9,
            incarnation: 4,
            frame_seq: 100,
            committed: 7,
            first_seq: 8,
            entries_bytes: 88,
            entry_count: 1,
            previous_crc: 0xdead_beef,
        }
    }

    fn entry() -> EntryHeader {
        EntryHeader {
            kind: EntryKind::Batch,
            group: GroupId(5),
            seq: 8,
            group_index: 2,
            term: 0,
            partition: PartitionId {
                topic: TopicId::new(1, 2),
                partition: 3,
            },
            base_offset: 44,
            append_time_ms: 1_700_000_000_000,
            payload_bytes: 5,
            payload_crc: crc32c::crc32c(b"hello"),
        }
    }

    #[test]
    fn a_frame_header_round_trips_and_every_bit_flip_is_detected() {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        let crc = frame().encode(&mut bytes);
        assert_eq!(FrameHeader::decode(&bytes), Ok((frame(), crc)));
        for bit in 0..FRAME_HEADER_BYTES * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(FrameHeader::decode(&flipped).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn an_entry_round_trips_and_every_bit_flip_is_detected() {
        let mut bytes = vec![0; entry().disk_bytes()];
        bytes[ENTRY_HEADER_BYTES..ENTRY_HEADER_BYTES + 5].copy_from_slice(b"hello");
        entry().encode(4, &mut bytes);
        assert_eq!(EntryHeader::decode(&bytes, 4), Ok((entry(), &b"hello"[..])));
        for bit in 0..(ENTRY_HEADER_BYTES + 5) * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(EntryHeader::decode(&flipped, 4).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn an_entry_of_an_older_incarnation_is_not_accepted() {
        let mut bytes = vec![0; entry().disk_bytes()];
        bytes[ENTRY_HEADER_BYTES..ENTRY_HEADER_BYTES + 5].copy_from_slice(b"hello");
        entry().encode(3, &mut bytes);
        assert_eq!(
            EntryHeader::decode(&bytes, 4),
            Err(EntryError::Incarnation(3))
        );
    }

    #[test]
    fn a_slot_header_round_trips_and_every_bit_flip_is_detected() {
        let header = SlotHeader {
            data_directory: TopicId { hi: 1, lo: 2 },
            shard: 1,
            generation: 3,
            incarnation: 4,
            slot_bytes: 64 << 20,
        };
        let mut block = vec![0xff; BLOCK_BYTES];
        header.encode(&mut block);
        assert_eq!(SlotHeader::decode(&block), Ok(header));
        for bit in 0..(SLOT_CRC_AT + 4) * 8 {
            let mut flipped = block.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(SlotHeader::decode(&flipped).is_err(), "bit {bit}");
        }
        assert_eq!(SlotHeader::decode(&[0; BLOCK_BYTES]), Err(SlotError::Blank));
    }
}
