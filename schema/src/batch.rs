//! The record batch: the unit that is published, stored and delivered.
//!
//! What lives here is the 61-byte header of Kafka's RecordBatch v2 (magic 2), the checks that the
//! broker makes of a batch that arrives and of one that it reads back, and the fields it assigns.
//! The records behind the header are in [`crate::record`], their compression in
//! [`crate::compress`].
//!
//! ```text
//!         0       4       8       12      16      20
//!       0 +-------+-------+-------+-------+-+-----+
//!         | base offset   | length| epoch |M| crc    M: magic, 2
//!         +---------------+-------+-------+-+--
//!      17  crc (4) | 21 attributes (2) | 23 last offset delta (4)
//!      27  base timestamp, ms (8)      | 35 max timestamp, ms (8)
//!      43  producer id (8) | 51 producer epoch (2) | 53 base sequence (4)
//!      57  record count (4)
//!      61  records, compressed as one if the attributes say so
//! ```
//!
//! Everything is big endian. The length counts what follows it, so a batch is 12 bytes longer. The
//! CRC-32C covers everything from the attributes on: base offset, length, leader epoch, magic and the
//! CRC itself lie outside it, which is why the broker can assign offset and epoch without touching
//! the checksum.
//!
//! Attributes: bits 0-2 codec, 3 timestamp type, 4 transactional, 5 control, 6 delete horizon;
//! the others are zero.
//!
//! Source: Kafka 4.0, `DefaultRecordBatch` and the protocol guide, "Record Batch".

use crate::compress::CodecError;
use crate::limits::MAX_BATCH_RECORDS;
use crate::record::{self, RecordFault};

pub use crate::compress::Codec;

/// Bytes of the header, everything before the first record.
pub const HEADER_BYTES: usize = 61;
/// Where the bytes begin that the CRC covers; they end with the batch.
pub const CRC_START: usize = at::ATTRIBUTES;
/// The only layout there is here.
pub const MAGIC: i8 = 2;
/// Bytes that the length field does not count: base offset and the field itself.
pub const LENGTH_EXCLUDES_BYTES: usize = at::LEADER_EPOCH;
/// The largest batch that the layout allows: lengths are 32 bits with a sign.
pub const FORMAT_MAX_BYTES: usize = i32::MAX as usize;

/// Where each field begins.
pub(crate) mod at {
    pub(crate) const BASE_OFFSET: usize = 0;
    pub(crate) const LENGTH: usize = 8;
    pub(crate) const LEADER_EPOCH: usize = 12;
    pub(crate) const MAGIC: usize = 16;
    pub(crate) const CRC: usize = 17;
    pub(crate) const ATTRIBUTES: usize = 21;
    pub(crate) const LAST_OFFSET_DELTA: usize = 23;
    pub(crate) const BASE_TIMESTAMP: usize = 27;
    pub(crate) const MAX_TIMESTAMP: usize = 35;
    pub(crate) const PRODUCER_ID: usize = 43;
    pub(crate) const PRODUCER_EPOCH: usize = 51;
    pub(crate) const BASE_SEQUENCE: usize = 53;
    pub(crate) const RECORD_COUNT: usize = 57;
}

const _: () = {
    assert!(at::LENGTH == at::BASE_OFFSET + size_of::<i64>());
    assert!(at::LEADER_EPOCH == at::LENGTH + size_of::<i32>());
    assert!(at::MAGIC == at::LEADER_EPOCH + size_of::<i32>());
    assert!(at::CRC == at::MAGIC + size_of::<i8>());
    assert!(at::ATTRIBUTES == at::CRC + size_of::<u32>());
    assert!(at::LAST_OFFSET_DELTA == at::ATTRIBUTES + size_of::<i16>());
    assert!(at::BASE_TIMESTAMP == at::LAST_OFFSET_DELTA + size_of::<i32>());
    assert!(at::MAX_TIMESTAMP == at::BASE_TIMESTAMP + size_of::<i64>());
    assert!(at::PRODUCER_ID == at::MAX_TIMESTAMP + size_of::<i64>());
    assert!(at::PRODUCER_EPOCH == at::PRODUCER_ID + size_of::<i64>());
    assert!(at::BASE_SEQUENCE == at::PRODUCER_EPOCH + size_of::<i16>());
    assert!(at::RECORD_COUNT == at::BASE_SEQUENCE + size_of::<i32>());
    assert!(HEADER_BYTES == at::RECORD_COUNT + size_of::<i32>());
    assert!(CRC_START == 21);
    assert!(LENGTH_EXCLUDES_BYTES == 12);
};

/// Why bytes are not the batch that was wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// The bytes end before the batch does.
    #[error("the batch is incomplete: {have} of {need} bytes")]
    Incomplete {
        /// Bytes needed to go on; those of the header while they are not all there.
        need: usize,
        /// Bytes there are.
        have: usize,
    },
    /// Something follows a batch that was to stand alone.
    #[error("{extra} bytes follow the batch, which must stand alone")]
    TrailingBytes {
        /// Bytes after the batch.
        extra: usize,
    },
    /// The batch is larger than the caller takes.
    #[error("the batch has {bytes} bytes, the limit is {limit}")]
    TooLarge {
        /// Bytes of the batch.
        bytes: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// Not a batch of this layout.
    #[error("the batch has magic {found}, only 2 is understood")]
    WrongMagic {
        /// The magic found.
        found: i8,
    },
    /// The length field cannot be true.
    #[error("the length field says {found}, which no batch can have")]
    BadLength {
        /// The field as found.
        found: i32,
    },
    /// Base offset or last offset delta is negative, or their sum is past the last offset there is.
    #[error("the offsets are out of range: base {base}, last delta {last_delta}")]
    BadOffsets {
        /// The base offset as found.
        base: i64,
        /// The last offset delta as found.
        last_delta: i32,
    },
    /// Not the batch that comes next in its partition.
    #[error("the batch begins at offset {base}, where {expected} was to come")]
    WrongOffset {
        /// The base offset as found; the checksum does not cover it.
        base: u64,
        /// The offset that was to come.
        expected: u64,
    },
    /// An attribute bit without a meaning is set, or the codec is none of those that exist.
    #[error("the attributes {bits:#06x} have a meaning unknown here")]
    UnknownAttributes {
        /// The attributes as found.
        bits: i16,
    },
    /// The bytes are not those that were written.
    #[error("the checksum does not match: stored {stored:#010x}, computed {computed:#010x}")]
    CrcMismatch {
        /// The CRC in the header.
        stored: u32,
        /// The CRC of the bytes.
        computed: u32,
    },
    /// The number of records is not what the offsets say, or there are none.
    #[error("the batch says it has {count} records, with a last offset delta of {last_delta}")]
    CountMismatch {
        /// The record count as found.
        count: i32,
        /// The last offset delta as found.
        last_delta: i32,
    },
    /// More records than a batch may have, whatever they compress to.
    #[error("the batch says it has {count} records, the most is {MAX_BATCH_RECORDS}")]
    TooManyRecords {
        /// The record count as found.
        count: u32,
    },
    /// Only a broker or a coordinator writes control batches.
    #[error("a control batch cannot be published")]
    ControlBatch,
    /// Transactions are not offered.
    #[error("a transactional batch cannot be published")]
    TransactionalBatch,
    /// Only the broker decides on append time and delete horizons.
    #[error("the attributes {bits:#06x} are the broker's to set, not a publisher's")]
    BrokerAttributes {
        /// The attributes as found.
        bits: i16,
    },
    /// Producer id, epoch and sequence do not make sense together.
    #[error("producer {id} with epoch {epoch} and base sequence {sequence} is not valid")]
    BadProducer {
        /// Producer id.
        id: i64,
        /// Producer epoch.
        epoch: i16,
        /// Base sequence.
        sequence: i32,
    },
    /// A timestamp is negative, or the first is past the last.
    #[error("the timestamps are out of range: base {base_ms} ms, max {max_ms} ms")]
    BadTimestamps {
        /// Base timestamp in ms.
        base_ms: i64,
        /// Max timestamp in ms.
        max_ms: i64,
    },
    /// The max timestamp is not the largest timestamp of the records.
    #[error("max timestamp is {stored_ms} ms, the latest record is of {found_ms} ms")]
    MaxTimestampMismatch {
        /// What the header says, in ms.
        stored_ms: i64,
        /// What the records say, in ms.
        found_ms: i64,
    },
    /// A record is malformed.
    #[error("record {index} of the batch is malformed: {why}")]
    BadRecord {
        /// Its place in the batch, from 0.
        index: u32,
        /// What is wrong.
        why: RecordFault,
    },
    /// Bytes are left after the last record.
    #[error("{bytes} bytes are left after the last record of the batch")]
    BytesAfterRecords {
        /// Bytes left.
        bytes: usize,
    },
    /// A codec that is recognised but not spoken.
    #[error("the batch is compressed with {codec}, which is not supported; use none, lz4 or zstd")]
    UnsupportedCodec {
        /// The codec found.
        codec: Codec,
    },
    /// The records would inflate beyond the limit.
    #[error("the records inflate to more than the limit of {limit} bytes")]
    InflatedTooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// The compressed records cannot be inflated.
    #[error("the {codec} data of the batch is corrupt: {why}")]
    CorruptCompression {
        /// The codec that found it.
        codec: Codec,
        /// What is wrong.
        why: &'static str,
    },
    /// A batch of no records was to be built.
    #[error("a batch needs at least one record")]
    Empty,
}

impl BatchError {
    /// Whether more bytes could make it a batch.
    #[must_use]
    pub const fn is_incomplete(&self) -> bool {
        matches!(self, Self::Incomplete { .. })
    }
}

impl From<CodecError> for BatchError {
    fn from(error: CodecError) -> Self {
        match error {
            CodecError::UnsupportedCodec { codec } => Self::UnsupportedCodec { codec },
            CodecError::TooLarge { limit } => Self::InflatedTooLarge { limit },
            CodecError::Corrupt { codec, why } => Self::CorruptCompression { codec, why },
        }
    }
}

/// What the timestamps of a batch mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TimestampType {
    /// Each record has its own, from whoever published it.
    Create,
    /// All records have the batch's max timestamp, at which the broker appended it.
    Append,
}

/// The attributes of a batch; only bits that have a meaning are ever set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Attributes(i16);

impl Attributes {
    const CODEC: i16 = 0b111;
    const APPEND_TIME: i16 = 1 << 3;
    const TRANSACTIONAL: i16 = 1 << 4;
    const CONTROL: i16 = 1 << 5;
    const DELETE_HORIZON: i16 = 1 << 6;
    const KNOWN: i16 = 0x7f;

    /// Takes the bits as a header has them.
    ///
    /// # Errors
    /// [`BatchError::UnknownAttributes`].
    pub const fn from_bits(bits: i16) -> Result<Self, BatchError> {
        if bits & !Self::KNOWN != 0 || Codec::from_bits((bits & Self::CODEC) as u8).is_none() {
            return Err(BatchError::UnknownAttributes { bits });
        }
        Ok(Self(bits))
    }

    /// The attributes of a batch as a publisher builds it.
    #[must_use]
    pub const fn of_codec(codec: Codec) -> Self {
        Self(codec as i16)
    }

    /// The bits as a header has them.
    #[must_use]
    pub const fn bits(self) -> i16 {
        self.0
    }

    /// How the records are compressed.
    #[must_use]
    pub const fn codec(self) -> Codec {
        match Codec::from_bits((self.0 & Self::CODEC) as u8) {
            Some(codec) => codec,
            None => unreachable!(),
        }
    }

    /// What the timestamps mean.
    #[must_use]
    pub const fn timestamp_type(self) -> TimestampType {
        if self.0 & Self::APPEND_TIME == 0 {
            TimestampType::Create
        } else {
            TimestampType::Append
        }
    }

    /// Whether the batch belongs to a transaction.
    #[must_use]
    pub const fn is_transactional(self) -> bool {
        self.0 & Self::TRANSACTIONAL != 0
    }

    /// Whether the batch is a mark of the broker's, not for applications.
    #[must_use]
    pub const fn is_control(self) -> bool {
        self.0 & Self::CONTROL != 0
    }

    /// Whether the base timestamp is the time after which compaction may drop tombstones.
    #[must_use]
    pub const fn has_delete_horizon(self) -> bool {
        self.0 & Self::DELETE_HORIZON != 0
    }
}

/// The header of a batch, read and found sane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Offset of the first record; a publisher leaves it at 0.
    pub base_offset: u64,
    /// Bytes of the whole batch, from the base offset on.
    pub batch_bytes: usize,
    /// Epoch of the partition under which the batch was appended; -1 before.
    pub leader_epoch: i32,
    /// CRC-32C of the batch from the attributes on.
    pub crc: u32,
    /// Codec, timestamp type and marks.
    pub attributes: Attributes,
    /// Offset of the last record less the base offset. At most `i32::MAX`.
    pub last_offset_delta: u32,
    /// What the records' timestamps are relative to, in ms since 1970.
    pub base_timestamp_ms: i64,
    /// The latest timestamp of the records, in ms since 1970.
    pub max_timestamp_ms: i64,
    /// Who published it, for idempotence; -1 for nobody in particular.
    pub producer_id: i64,
    /// The producer's epoch; -1 without a producer id.
    pub producer_epoch: i16,
    /// Sequence number of the first record; -1 without a producer id.
    pub base_sequence: i32,
    /// Records in the batch. At most `i32::MAX`.
    pub record_count: u32,
}

impl Header {
    /// Reads the header at the start of `bytes`; the rest of the batch need not be there.
    ///
    /// Checks magic, that length and offsets are possible, and that the attributes are known. Does
    /// not check the CRC, so nothing else in it is to be believed yet.
    ///
    /// # Errors
    /// [`BatchError::Incomplete`] when there are fewer than [`HEADER_BYTES`], or `WrongMagic`,
    /// `BadLength`, `BadOffsets`, `CountMismatch` (a negative count), `UnknownAttributes`.
    #[inline]
    pub fn peek(bytes: &[u8]) -> Result<Self, BatchError> {
        let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Err(BatchError::Incomplete {
                need: HEADER_BYTES,
                have: bytes.len(),
            });
        };
        let magic = i8::from_be_bytes(field(header, at::MAGIC));
        if magic != MAGIC {
            return Err(BatchError::WrongMagic { found: magic });
        }
        let length = i32::from_be_bytes(field(header, at::LENGTH));
        let batch_bytes = usize::try_from(length)
            .ok()
            .map(|length| length.saturating_add(LENGTH_EXCLUDES_BYTES))
            .filter(|bytes| (HEADER_BYTES..=FORMAT_MAX_BYTES).contains(bytes))
            .ok_or(BatchError::BadLength { found: length })?;
        let base = i64::from_be_bytes(field(header, at::BASE_OFFSET));
        let last_delta = i32::from_be_bytes(field(header, at::LAST_OFFSET_DELTA));
        if base < 0 || last_delta < 0 || base.checked_add(i64::from(last_delta)).is_none() {
            return Err(BatchError::BadOffsets { base, last_delta });
        }
        let count = i32::from_be_bytes(field(header, at::RECORD_COUNT));
        if count < 0 {
            return Err(BatchError::CountMismatch { count, last_delta });
        }
        let attributes = i16::from_be_bytes(field(header, at::ATTRIBUTES));
        Ok(Self {
            base_offset: base.cast_unsigned(),
            batch_bytes,
            leader_epoch: i32::from_be_bytes(field(header, at::LEADER_EPOCH)),
            crc: u32::from_be_bytes(field(header, at::CRC)),
            attributes: Attributes::from_bits(attributes)?,
            last_offset_delta: last_delta.cast_unsigned(),
            base_timestamp_ms: i64::from_be_bytes(field(header, at::BASE_TIMESTAMP)),
            max_timestamp_ms: i64::from_be_bytes(field(header, at::MAX_TIMESTAMP)),
            producer_id: i64::from_be_bytes(field(header, at::PRODUCER_ID)),
            producer_epoch: i16::from_be_bytes(field(header, at::PRODUCER_EPOCH)),
            base_sequence: i32::from_be_bytes(field(header, at::BASE_SEQUENCE)),
            record_count: count.cast_unsigned(),
        })
    }

    /// Offset of the last record, as the header has it; compaction may have removed the record.
    #[must_use]
    pub const fn last_offset(&self) -> u64 {
        self.base_offset + self.last_offset_delta as u64
    }

    /// The offset after the last: where the next batch begins.
    #[must_use]
    pub const fn next_offset(&self) -> u64 {
        self.last_offset() + 1
    }

    /// Whether the batch has a producer id, and so an epoch and a sequence number.
    #[must_use]
    pub const fn has_producer(&self) -> bool {
        self.producer_id >= 0
    }

    fn check_crc(&self, batch: &[u8]) -> Result<(), BatchError> {
        let computed = crc32c::crc32c(&batch[CRC_START..]);
        if computed != self.crc {
            return Err(BatchError::CrcMismatch {
                stored: self.crc,
                computed,
            });
        }
        Ok(())
    }

    const fn count_mismatch(&self) -> BatchError {
        BatchError::CountMismatch {
            count: self.record_count.cast_signed(),
            last_delta: self.last_offset_delta.cast_signed(),
        }
    }
}

fn field<const N: usize>(header: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&header[at..at + N]);
    field
}

/// What the broker demands of a batch that is published; exactly one batch that fills `bytes`.
///
/// Header sane, CRC right, offsets dense (as many records as the last offset delta says, at least
/// one), nothing in it that is the broker's to set, timestamps and producer fields in range. The
/// records of an uncompressed batch are walked: lengths, varints, offset deltas 0, 1, 2 and so on,
/// timestamps not negative and at most the max timestamp, which one of them has, headers with UTF-8
/// keys, and nothing left over. Compressed records are left to the reader. Allocates nothing.
///
/// # Errors
/// Any [`BatchError`] but those of compression.
pub fn check_publish(bytes: &[u8], max_batch_bytes: usize) -> Result<Header, BatchError> {
    if bytes.len() > max_batch_bytes {
        return Err(BatchError::TooLarge {
            bytes: bytes.len(),
            limit: max_batch_bytes,
        });
    }
    let header = Header::peek(bytes)?;
    if header.batch_bytes > max_batch_bytes {
        return Err(BatchError::TooLarge {
            bytes: header.batch_bytes,
            limit: max_batch_bytes,
        });
    }
    if header.batch_bytes > bytes.len() {
        return Err(BatchError::Incomplete {
            need: header.batch_bytes,
            have: bytes.len(),
        });
    }
    if header.batch_bytes < bytes.len() {
        return Err(BatchError::TrailingBytes {
            extra: bytes.len() - header.batch_bytes,
        });
    }
    header.check_crc(bytes)?;
    check_published_header(&header)?;
    if header.attributes.codec() == Codec::None {
        record::check_published(&header, &bytes[HEADER_BYTES..])?;
    }
    Ok(header)
}

fn check_published_header(header: &Header) -> Result<(), BatchError> {
    let attributes = header.attributes;
    if attributes.is_control() {
        return Err(BatchError::ControlBatch);
    }
    if attributes.is_transactional() {
        return Err(BatchError::TransactionalBatch);
    }
    if attributes != Attributes::of_codec(attributes.codec()) {
        return Err(BatchError::BrokerAttributes {
            bits: attributes.bits(),
        });
    }
    // Both are at most `i32::MAX`.
    if header.record_count != header.last_offset_delta + 1 {
        return Err(header.count_mismatch());
    }
    if header.record_count > MAX_BATCH_RECORDS {
        return Err(BatchError::TooManyRecords {
            count: header.record_count,
        });
    }
    let half_a_producer =
        header.has_producer() && (header.producer_epoch < 0 || header.base_sequence < 0);
    if header.producer_id < -1 || half_a_producer {
        return Err(BatchError::BadProducer {
            id: header.producer_id,
            epoch: header.producer_epoch,
            sequence: header.base_sequence,
        });
    }
    if header.base_timestamp_ms < 0 || header.base_timestamp_ms > header.max_timestamp_ms {
        return Err(BatchError::BadTimestamps {
            base_ms: header.base_timestamp_ms,
            max_ms: header.max_timestamp_ms,
        });
    }
    Ok(())
}

/// What a reader demands of the batch at the start of `bytes`, which more may follow: a sane
/// header, the whole batch, and the right CRC. Offsets may have gaps, and records may be missing
/// altogether, because compaction removes them.
///
/// # Errors
/// Those of [`Header::peek`], `Incomplete`, `CrcMismatch`, and `CountMismatch` when there are more
/// records than offsets.
pub fn check_stored(bytes: &[u8]) -> Result<Header, BatchError> {
    let header = Header::peek(bytes)?;
    let Some(batch) = bytes.get(..header.batch_bytes) else {
        return Err(BatchError::Incomplete {
            need: header.batch_bytes,
            have: bytes.len(),
        });
    };
    header.check_crc(batch)?;
    if header.record_count > header.last_offset_delta + 1 {
        return Err(header.count_mismatch());
    }
    Ok(header)
}

/// Gives the batch its place: base offset and leader epoch, which the CRC leaves out.
///
/// # Panics
/// When `bytes` is shorter than a header, or the last offset would pass `i64::MAX`.
pub fn assign(bytes: &mut [u8], base_offset: u64, leader_epoch: i32) {
    let header = bytes
        .first_chunk_mut::<HEADER_BYTES>()
        .expect("a batch has a whole header");
    let last_delta = u32::from_be_bytes(field(header, at::LAST_OFFSET_DELTA));
    assert!(
        base_offset
            .checked_add(u64::from(last_delta))
            .is_some_and(|last| last <= i64::MAX as u64),
        "the offsets of a batch end at the largest there is"
    );
    header[at::BASE_OFFSET..at::LENGTH].copy_from_slice(&base_offset.to_be_bytes());
    header[at::LEADER_EPOCH..at::MAGIC].copy_from_slice(&leader_epoch.to_be_bytes());
}

/// Stamps the batch with the time of its append: sets the timestamp type and the max timestamp,
/// leaves the base timestamp, and computes the CRC anew.
///
/// # Panics
/// When `bytes` is not exactly one batch.
pub fn stamp_append_time(bytes: &mut [u8], now_ms: i64) {
    let header = Header::peek(bytes).expect("only a checked batch is stamped");
    assert_eq!(
        header.batch_bytes,
        bytes.len(),
        "a batch is stamped by itself"
    );
    let attributes = header.attributes.bits() | Attributes::APPEND_TIME;
    bytes[at::ATTRIBUTES..at::LAST_OFFSET_DELTA].copy_from_slice(&attributes.to_be_bytes());
    bytes[at::MAX_TIMESTAMP..at::PRODUCER_ID].copy_from_slice(&now_ms.to_be_bytes());
    let crc = crc32c::crc32c(&bytes[CRC_START..]);
    bytes[at::CRC..at::ATTRIBUTES].copy_from_slice(&crc.to_be_bytes());
}

/// Walks batches that follow one another, header by header, without checking their CRCs.
///
/// A last batch that is cut short gives [`BatchError::Incomplete`]. After an error there is nothing
/// more; [`Batches::position`] then says where the batch begins that was not understood.
#[derive(Clone, Debug)]
pub struct Batches<'a> {
    bytes: &'a [u8],
    position: usize,
    failed: bool,
}

impl<'a> Batches<'a> {
    /// Begins at the first byte.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            position: 0,
            failed: false,
        }
    }

    /// Bytes from the start to the end of the last batch that was returned.
    #[must_use]
    pub const fn position(&self) -> usize {
        self.position
    }
}

impl<'a> Iterator for Batches<'a> {
    type Item = Result<(Header, &'a [u8]), BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = &self.bytes[self.position..];
        if rest.is_empty() || self.failed {
            return None;
        }
        let item = Header::peek(rest).and_then(|header| match rest.get(..header.batch_bytes) {
            Some(batch) => Ok((header, batch)),
            None => Err(BatchError::Incomplete {
                need: header.batch_bytes,
                have: rest.len(),
            }),
        });
        match &item {
            Ok((_, batch)) => self.position += batch.len(),
            Err(_) => self.failed = true,
        }
        Some(item)
    }
}

impl std::iter::FusedIterator for Batches<'_> {}
