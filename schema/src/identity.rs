//! The file `identity`: what a data directory is, and which start of the broker wrote it last.
//!
//! ```text
//!  0          8        10       12       16          32            40          44      48         56          60    64
//!  +----------+--------+--------+--------+-----------+-------------+-----------+-------+----------+-----------+-----+
//!  | magic    | format | groups | state  | data dir  | incarnation | leader    | shards| slot     | snapshots | crc |
//!  | RTDATADR | u16    | u16    | u32    | id 2 x u64| u64         | epoch u32 | u32   | bytes u64| crc u32   | u32 |
//!  +----------+--------+--------+--------+-----------+-------------+-----------+-------+----------+-----------+-----+
//! ```
//!
//! All little endian; CRC-32C over bytes 0..60. The file is replaced atomically at every start
//! (state 0, incarnation one higher) and at every clean stop (state 1).

use crate::ids::TopicId;
use crate::{le, put_le};

/// Bytes of the file.
pub const IDENTITY_BYTES: usize = 64;
/// The version of the data directory that this version of the broker reads and writes.
pub const FORMAT: u16 = 1;
/// The last leader epoch: in a record batch they have a sign.
const MAX_LEADER_EPOCH: u32 = i32::MAX as u32;
const MAGIC: [u8; 8] = *b"RTDATADR";

/// Identity and state of a data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Made once, at random.
    pub data_directory: TopicId,
    /// Number of data groups; fixed for the life of the directory.
    pub groups: u16,
    /// The broker stopped cleanly: the snapshots hold everything.
    pub clean: bool,
    /// Counts the starts of the broker, from 1.
    pub incarnation: u64,
    /// Written into batches; counts the unclean starts, from 1.
    pub leader_epoch: u32,
    /// Shards of the last start.
    pub shards: u32,
    /// Bytes of each WAL slot at the last start.
    pub slot_bytes: u64,
    /// After a clean stop: CRC-32C over all snapshots, by group, so that none of another time is taken for
    /// one of them. Otherwise 0.
    pub snapshots_crc: u32,
}

/// Why the file is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Some other file.
    #[error("not the identity of a Ringtide data directory: wrong magic or length")]
    Magic,
    /// Damaged.
    #[error("identity checksum is {stored:#010x}, computed {computed:#010x}")]
    Checksum {
        /// As read.
        stored: u32,
        /// Over what was read.
        computed: u32,
    },
    /// Written by another version.
    #[error("the data directory has format {0}; this version reads format {FORMAT}")]
    Format(u16),
    /// A field that no version writes.
    #[error("the identity has an impossible {0}")]
    Impossible(&'static str),
}

impl Identity {
    /// The identity as the bytes of its file.
    pub fn encode(&self) -> [u8; IDENTITY_BYTES] {
        let mut out = [0; IDENTITY_BYTES];
        out[..8].copy_from_slice(&MAGIC);
        put_le!(out, 8, FORMAT);
        put_le!(out, 10, self.groups);
        put_le!(out, 12, u32::from(self.clean));
        put_le!(out, 16, self.data_directory.hi);
        put_le!(out, 24, self.data_directory.lo);
        put_le!(out, 32, self.incarnation);
        put_le!(out, 40, self.leader_epoch);
        put_le!(out, 44, self.shards);
        put_le!(out, 48, self.slot_bytes);
        put_le!(out, 56, self.snapshots_crc);
        let crc = crc32c::crc32c(&out[..60]);
        put_le!(out, 60, crc);
        out
    }

    /// Reads and checks the bytes of the file.
    pub fn decode(bytes: &[u8]) -> Result<Self, IdentityError> {
        if bytes.len() < 10 || bytes[..8] != MAGIC {
            return Err(IdentityError::Magic);
        }
        let format = le!(u16, bytes, 8);
        if format != FORMAT {
            return Err(IdentityError::Format(format));
        }
        if bytes.len() != IDENTITY_BYTES {
            return Err(IdentityError::Magic);
        }
        let (stored, computed) = (le!(u32, bytes, 60), crc32c::crc32c(&bytes[..60]));
        if stored != computed {
            return Err(IdentityError::Checksum { stored, computed });
        }
        let state = le!(u32, bytes, 12);
        let identity = Self {
            data_directory: TopicId {
                hi: le!(u64, bytes, 16),
                lo: le!(u64, bytes, 24),
            },
            groups: le!(u16, bytes, 10),
            clean: state == 1,
            incarnation: le!(u64, bytes, 32),
            leader_epoch: le!(u32, bytes, 40),
            shards: le!(u32, bytes, 44),
            slot_bytes: le!(u64, bytes, 48),
            snapshots_crc: le!(u32, bytes, 56),
        };
        match identity {
            _ if state > 1 => Err(IdentityError::Impossible("state")),
            Self { groups: 0, .. } => Err(IdentityError::Impossible("number of groups")),
            Self { incarnation: 0, .. } => Err(IdentityError::Impossible("incarnation")),
            Self { leader_epoch, .. } if leader_epoch == 0 || leader_epoch > MAX_LEADER_EPOCH => {
                Err(IdentityError::Impossible("leader epoch"))
            }
            _ => Ok(identity),
        }
    }

    /// As the next start writes it.
    ///
    /// # Errors
    /// `Impossible` at the last incarnation or leader epoch that there is.
    pub fn next_start(&self) -> Result<Self, IdentityError> {
        let incarnation = self.incarnation.checked_add(1);
        let leader_epoch = self.leader_epoch + u32::from(!self.clean);
        Ok(Self {
            clean: false,
            snapshots_crc: 0,
            incarnation: incarnation.ok_or(IdentityError::Impossible("incarnation"))?,
            leader_epoch: (leader_epoch <= MAX_LEADER_EPOCH)
                .then_some(leader_epoch)
                .ok_or(IdentityError::Impossible("leader epoch"))?,
            ..*self
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_round_trips_and_every_bit_flip_is_detected() {
        let identity = Identity {
            data_directory: TopicId { hi: 1, lo: 2 },
            groups: 64,
            clean: true,
            incarnation: 3,
            leader_epoch: 1,
            shards: 2,
            slot_bytes: 64 << 20,
            snapshots_crc: 77,
        };
        let bytes = identity.encode();
        assert_eq!(Identity::decode(&bytes), Ok(identity));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Identity::decode(&flipped).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn the_last_start_that_can_be_counted_has_none_behind_it() {
        let last = Identity {
            data_directory: TopicId { hi: 1, lo: 2 },
            groups: 64,
            clean: true,
            incarnation: u64::MAX - 1,
            leader_epoch: MAX_LEADER_EPOCH,
            shards: 1,
            slot_bytes: 1 << 20,
            snapshots_crc: 0,
        };
        let next = last.next_start().expect("one is left");
        assert_eq!(Identity::decode(&next.encode()), Ok(next));
        let impossible = |what| Err(IdentityError::Impossible(what));
        assert_eq!(next.next_start(), impossible("incarnation"));
        let (clean, incarnation) = (false, 1);
        let crashed = Identity {
            clean,
            incarnation,
            ..last
        };
        assert_eq!(crashed.next_start(), impossible("leader epoch"));
        let leader_epoch = MAX_LEADER_EPOCH + 1;
        let beyond = Identity {
            leader_epoch,
            ..last
        };
        assert_eq!(
            Identity::decode(&beyond.encode()),
            impossible("leader epoch")
        );
    }
}
