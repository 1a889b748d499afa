//! The frame: a fixed header, then an envelope (FlatBuffers), then a payload (record batches).
//!
//! ```text
//!  byte  0        4         5         6         8              16             20            24          28      32
//!        +--------+---------+---------+---------+--------------+--------------+-------------+-----------+-------+
//!        | magic  | version | op      | flags   | correlation  | envelope     | payload     | reserved  | crc   |
//!        | "RTDE" | u8      | u8      | u16     | u64          | bytes u32    | bytes u32   | 0 u32     | u32   |
//!        +--------+---------+---------+---------+--------------+--------------+-------------+-----------+-------+
//! ```
//!
//! All little endian. `crc` is CRC-32C over bytes 0..28. A header that does not check out means
//! that the stream cannot be trusted any more: the connection is closed.

use crate::limits::{MAX_ENVELOPE_BYTES, MAX_PAYLOAD_BYTES};
use crate::{le, put_le};

/// Bytes of the header.
pub const HEADER_BYTES: usize = 32;
/// The first four bytes of every frame.
pub const MAGIC: [u8; 4] = *b"RTDE";

const AT_VERSION: usize = 4;
const AT_OP: usize = 5;
const AT_FLAGS: usize = 6;
const AT_CORRELATION: usize = 8;
const AT_ENVELOPE: usize = 16;
const AT_PAYLOAD: usize = 20;
const AT_RESERVED: usize = 24;
const AT_CRC: usize = 28;
const _: () = assert!(AT_CRC + 4 == HEADER_BYTES);

/// Set on every frame that answers a request.
pub const FLAG_RESPONSE: u16 = 1;
/// The envelope is an `ErrorResponse`.
pub const FLAG_ERROR: u16 = 2;
/// More frames with this correlation id will answer the same request.
pub const FLAG_MORE: u16 = 4;

/// What a frame asks for or answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Op {
    /// Version negotiation; the first frame of a connection.
    Hello = 1,
    /// Is anybody there?
    Ping = 2,
    /// Topics, partitions and the addresses of their shards.
    Metadata = 3,
    /// Create a topic.
    CreateTopic = 4,
    /// Change a topic's settings or add partitions.
    AlterTopic = 5,
    /// Delete a topic.
    DeleteTopic = 6,
    /// Offsets and size of one partition.
    DescribePartition = 7,
    /// A new producer identity.
    InitProducer = 8,
    /// Append record batches.
    Publish = 9,
    /// Read record batches, waiting for them if asked.
    Fetch = 10,
    /// Have batches pushed.
    Subscribe = 11,
    /// End a subscription.
    Unsubscribe = 12,
    /// Allow more bytes to be pushed (one way).
    Credit = 13,
    /// Pushed batches (broker to client).
    Push = 14,
    /// Offset by time, earliest, latest.
    ListOffsets = 15,
    /// Store a named consumer's offset.
    CommitOffset = 16,
    /// Read a named consumer's offset.
    ReadOffset = 17,
    /// What the shard of the connection runs on, and what it did.
    DescribeShard = 18,
}

impl Op {
    /// Every operation.
    pub const ALL: [Op; 18] = [
        Op::Hello,
        Op::Ping,
        Op::Metadata,
        Op::CreateTopic,
        Op::AlterTopic,
        Op::DeleteTopic,
        Op::DescribePartition,
        Op::InitProducer,
        Op::Publish,
        Op::Fetch,
        Op::Subscribe,
        Op::Unsubscribe,
        Op::Credit,
        Op::Push,
        Op::ListOffsets,
        Op::CommitOffset,
        Op::ReadOffset,
        Op::DescribeShard,
    ];

    /// The operation with this number.
    pub fn from_u8(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number).checked_sub(1)?).copied()
    }
}

/// A frame's header, decoded and checked. The operation stays a number: an unknown one is
/// answered with an error, the stream is still good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Protocol version of the frame.
    pub version: u8,
    /// Number of the operation, see [`Op`].
    pub op: u8,
    /// `FLAG_*` bits.
    pub flags: u16,
    /// Chosen by the client, repeated in every answer.
    pub correlation: u64,
    /// Bytes of the envelope.
    pub envelope_bytes: u32,
    /// Bytes of the payload.
    pub payload_bytes: u32,
}

/// Why the bytes at the start of a stream are not a frame header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not our protocol.
    #[error("not a Ringtide frame: it begins with {0:02x?} instead of \"RTDE\"")]
    Magic([u8; 4]),
    /// The header was damaged.
    #[error("frame header checksum is {stored:#010x}, computed {computed:#010x}")]
    Checksum {
        /// As received.
        stored: u32,
        /// Over the received bytes.
        computed: u32,
    },
    /// The reserved field is in use.
    #[error("reserved header field is {0:#x} instead of 0")]
    Reserved(u32),
    /// The envelope is over its bound.
    #[error("envelope of {0} bytes is over the limit of {MAX_ENVELOPE_BYTES}")]
    Envelope(u32),
    /// The payload is over its bound.
    #[error("payload of {0} bytes is over the limit of {MAX_PAYLOAD_BYTES}")]
    Payload(u32),
}

impl FrameHeader {
    /// A header with this protocol's newest version.
    pub fn new(op: Op, flags: u16, correlation: u64, envelope: usize, payload: usize) -> Self {
        debug_assert!(envelope <= MAX_ENVELOPE_BYTES && payload <= MAX_PAYLOAD_BYTES);
        Self {
            version: crate::limits::PROTOCOL_MAX,
            op: op as u8,
            flags,
            correlation,
            envelope_bytes: envelope as u32,
            payload_bytes: payload as u32,
        }
    }

    /// The header as bytes.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..4].copy_from_slice(&MAGIC);
        out[AT_VERSION] = self.version;
        out[AT_OP] = self.op;
        put_le!(out, AT_FLAGS, self.flags);
        put_le!(out, AT_CORRELATION, self.correlation);
        put_le!(out, AT_ENVELOPE, self.envelope_bytes);
        put_le!(out, AT_PAYLOAD, self.payload_bytes);
        let crc = crc32c::crc32c(&out[..AT_CRC]);
        put_le!(out, AT_CRC, crc);
        out
    }

    /// Reads a header. `Ok(None)`: more bytes are needed. Wrong magic is told from the first byte
    /// on, so that a peer of another protocol is not waited for.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, FrameError> {
        let seen = bytes.len().min(4);
        if bytes[..seen] != MAGIC[..seen] {
            let mut got = [0; 4];
            got[..seen].copy_from_slice(&bytes[..seen]);
            return Err(FrameError::Magic(got));
        }
        if bytes.len() < HEADER_BYTES {
            return Ok(None);
        }
        let stored = le!(u32, bytes, AT_CRC);
        let computed = crc32c::crc32c(&bytes[..AT_CRC]);
        if stored != computed {
            return Err(FrameError::Checksum { stored, computed });
        }
        let reserved = le!(u32, bytes, AT_RESERVED);
        if reserved != 0 {
            return Err(FrameError::Reserved(reserved));
        }
        let header = Self {
            version: bytes[AT_VERSION],
            op: bytes[AT_OP],
            flags: le!(u16, bytes, AT_FLAGS),
            correlation: le!(u64, bytes, AT_CORRELATION),
            envelope_bytes: le!(u32, bytes, AT_ENVELOPE),
            payload_bytes: le!(u32, bytes, AT_PAYLOAD),
        };
        if header.envelope_bytes as usize > MAX_ENVELOPE_BYTES {
            return Err(FrameError::Envelope(header.envelope_bytes));
        }
        if header.payload_bytes as usize > MAX_PAYLOAD_BYTES {
            return Err(FrameError::Payload(header.payload_bytes));
        }
        Ok(Some(header))
    }

    /// Bytes of the whole frame.
    pub fn frame_bytes(&self) -> usize {
        HEADER_BYTES + self.envelope_bytes as usize + self.payload_bytes as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_found_by_their_number() {
        for op in Op::ALL {
            assert_eq!(Op::from_u8(op as u8), Some(op));
        }
        assert_eq!(Op::from_u8(0), None);
        assert_eq!(Op::from_u8(19), None);
    }

    #[test]
    fn every_single_bit_flip_in_a_header_is_detected() {
        let bytes = FrameHeader::new(Op::Publish, FLAG_MORE, 0x0102_0304, 96, 4096).encode();
        for bit in 0..HEADER_BYTES * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(FrameHeader::decode(&flipped).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_foreign_protocol_is_refused_at_its_first_byte() {
        assert_eq!(
            FrameHeader::decode(b"G"),
            Err(FrameError::Magic([b'G', 0, 0, 0]))
        );
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_anything_follows() {
        let mut header = FrameHeader::new(Op::Publish, 0, 1, 0, 0);
        header.payload_bytes = MAX_PAYLOAD_BYTES as u32 + 1;
        assert_eq!(
            FrameHeader::decode(&header.encode()),
            Err(FrameError::Payload(header.payload_bytes))
        );
    }
}
