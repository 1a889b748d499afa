//! The wrapper around a FlatBuffer on disk: a header that tells what it is, how long, and whether
//! it is whole. Snapshots of log groups use it.
//!
//! ```text
//!  0          8        10       12         16           20      24
//!  +----------+--------+--------+----------+------------+-------+----------
//!  | magic    | format | 0 u16  | body     | body crc   | header| body
//!  | RTSNAPSH | u16    |        | bytes u32| u32        | crc   | (GroupSnapshot)
//!  +----------+--------+--------+----------+------------+-------+----------
//! ```
//!
//! All little endian, CRC-32C; the header's checksum is over bytes 0..20.

use crate::store::GroupSnapshotT;
use crate::{le, put_le};

/// Bytes before the body.
pub const HEADER_BYTES: usize = 24;
/// The version of this format.
pub const FORMAT: u16 = 1;
const MAGIC: [u8; 8] = *b"RTSNAPSH";

/// Why a snapshot is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Some other file, or damaged at its first bytes.
    #[error("not a snapshot: wrong magic")]
    Magic,
    /// Shorter or longer than it says.
    #[error("the snapshot is {have} bytes long instead of {want}")]
    Length {
        /// By its header.
        want: usize,
        /// Of the file.
        have: usize,
    },
    /// Damaged.
    #[error("the snapshot's {part} checksum is {stored:#010x}, computed {computed:#010x}")]
    Checksum {
        /// "header" or "body".
        part: &'static str,
        /// As read.
        stored: u32,
        /// Over what was read.
        computed: u32,
    },
    /// Written by another version.
    #[error("snapshot format {0} is not {FORMAT}, the one this version reads")]
    Format(u16),
    /// The body is not a FlatBuffer of the right shape.
    #[error("the snapshot's body is malformed: {0}")]
    Body(String),
}

/// The snapshot as the bytes of its file.
pub fn encode(snapshot: &GroupSnapshotT) -> Vec<u8> {
    let mut builder = flatbuffers::FlatBufferBuilder::new();
    let root = snapshot.pack(&mut builder);
    builder.finish_minimal(root);
    let body = builder.finished_data();
    let mut out = vec![0; HEADER_BYTES + body.len()];
    out[..8].copy_from_slice(&MAGIC);
    put_le!(out, 8, FORMAT);
    put_le!(out, 12, body.len() as u32);
    put_le!(out, 16, crc32c::crc32c(body));
    let crc = crc32c::crc32c(&out[..20]);
    put_le!(out, 20, crc);
    out[HEADER_BYTES..].copy_from_slice(body);
    out
}

/// Reads and checks the bytes of a snapshot's file.
pub fn decode(bytes: &[u8]) -> Result<GroupSnapshotT, SnapshotError> {
    if bytes.len() < HEADER_BYTES || bytes[..8] != MAGIC {
        return Err(SnapshotError::Magic);
    }
    let (stored, computed) = (le!(u32, bytes, 20), crc32c::crc32c(&bytes[..20]));
    if stored != computed {
        return Err(SnapshotError::Checksum {
            part: "header",
            stored,
            computed,
        });
    }
    let format = le!(u16, bytes, 8);
    if format != FORMAT {
        return Err(SnapshotError::Format(format));
    }
    let want = HEADER_BYTES + le!(u32, bytes, 12) as usize;
    if bytes.len() != want {
        return Err(SnapshotError::Length {
            want,
            have: bytes.len(),
        });
    }
    let body = &bytes[HEADER_BYTES..];
    let (stored, computed) = (le!(u32, bytes, 16), crc32c::crc32c(body));
    if stored != computed {
        return Err(SnapshotError::Checksum {
            part: "body",
            stored,
            computed,
        });
    }
    let options = flatbuffers::VerifierOptions {
        max_tables: 64 << 20,
        max_apparent_size: usize::MAX,
        ..flatbuffers::VerifierOptions::default()
    };
    let root = flatbuffers::root_with_opts::<crate::store::GroupSnapshot<'_>>(&options, body)
        .map_err(|e| SnapshotError::Body(e.to_string()))?;
    Ok(root.unpack())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{IdT, PartitionT};

    #[test]
    fn a_snapshot_round_trips_and_every_bit_flip_is_detected() {
        let snapshot = GroupSnapshotT {
            group: 3,
            group_index: 99,
            partitions: Some(vec![PartitionT {
                topic: Some(IdT { hi: 1, lo: 2 }),
                partition: 7,
                tail: Some(vec![1, 2, 3]),
                next_offset: 12,
                ..PartitionT::default()
            }]),
            ..GroupSnapshotT::default()
        };
        let bytes = encode(&snapshot);
        assert_eq!(decode(&bytes), Ok(snapshot));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&flipped).is_err(), "bit {bit}");
        }
        assert!(decode(&bytes[..bytes.len() - 1]).is_err());
    }
}
