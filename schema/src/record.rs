//! The records of a batch: how they are read, checked and built.
//!
//! ```text
//! varint  length of what follows
//! i8      attributes, 0
//! varlong timestamp, less the batch's base timestamp, ms
//! varint  offset, less the batch's base offset
//! varint  key length, -1 for none; key
//! varint  value length, -1 for none; value
//! varint  number of headers; each: varint length and key, varint length (or -1) and value
//! ```
//!
//! Varints are zigzag-encoded, seven bits to a byte, the least significant first; at most 5 bytes
//! for 32 bits (varint), 10 for 64 (varlong). Padding within those is accepted, bits beyond are not.
//!
//! Whatever is iterated here was walked first, so iterating does not fail halfway through a batch.
//!
//! Source: Kafka 4.0, `DefaultRecord` and the protocol guide, "Record".

use std::iter::FusedIterator;

use crate::batch::{
    self, Attributes, BatchError, FORMAT_MAX_BYTES, HEADER_BYTES, Header, LENGTH_EXCLUDES_BYTES,
    MAGIC, TimestampType, at,
};
use crate::compress::{self, Codec};

/// The most that a record without headers takes beside its key and value: its length (5), attributes
/// (1), timestamp (10), offset (5), key and value length (10), number of headers (5).
pub const RECORD_OVERHEAD_MAX_BYTES: usize = 36;
/// The most that a header takes beside its key and value: the two lengths.
pub const RECORD_HEADER_OVERHEAD_MAX_BYTES: usize = 10;

const VARINT_MAX_BYTES: usize = 5;
const VARLONG_MAX_BYTES: usize = 10;

/// A header of a record to be built: key and value.
pub type HeaderToWrite<'a> = (&'a str, Option<&'a [u8]>);

/// What can be wrong with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordFault {
    /// It ends in the middle of a field.
    #[error("it ends in the middle of a field")]
    Truncated,
    /// A varint has more bytes or bits than its type.
    #[error("a varint is longer than its type allows")]
    VarintTooLong,
    /// The length is negative or points past the end of the records.
    #[error("its length {0} is negative or points past the end")]
    BadLength(i32),
    /// The attributes are not 0; no other value has a meaning.
    #[error("its attributes {0:#04x} have no meaning")]
    UnknownAttributes(u8),
    /// The offset is not the one due: the next, or, when read back, a later one within the batch.
    #[error("its offset delta {found} is not the one due, {due} or, if read back, later")]
    BadOffsetDelta {
        /// The offset delta found.
        found: i32,
        /// The lowest it may be.
        due: u32,
    },
    /// The timestamp is negative, or out of range of 64 bits.
    #[error("its timestamp, {delta_ms} ms after the base, is out of range")]
    BadTimestamp {
        /// The timestamp delta found, in ms.
        delta_ms: i64,
    },
    /// The length of a key or value, or of a header's, is below -1 or points past the end.
    #[error("a field length of {0} is negative or points past the end")]
    BadFieldLength(i32),
    /// The number of headers is negative.
    #[error("its number of headers {0} is negative")]
    BadHeaderCount(i32),
    /// The key of a header is not UTF-8.
    #[error("the key of a header is not UTF-8")]
    HeaderKeyNotUtf8,
    /// Its length is larger than its fields.
    #[error("{0} bytes are left after its last field")]
    BytesLeft(usize),
}

/// Reads a varint of 32 bits.
#[inline(always)]
fn take_varint(input: &mut &[u8]) -> Result<i32, RecordFault> {
    let value = take_unsigned(input, VARINT_MAX_BYTES)?;
    let value = u32::try_from(value).map_err(|_| RecordFault::VarintTooLong)?;
    Ok(unzigzag32(value))
}

/// Reads a varint of 64 bits.
#[inline(always)]
fn take_varlong(input: &mut &[u8]) -> Result<i64, RecordFault> {
    take_unsigned(input, VARLONG_MAX_BYTES).map(unzigzag64)
}

/// Reads a varint of at most `max_bytes`, zigzag not yet undone.
///
/// One and two bytes, nearly all there are, are told apart by branches. Those are predicted well, so
/// that the next field need not wait until the length of this one is computed.
#[inline(always)]
fn take_unsigned(input: &mut &[u8], max_bytes: usize) -> Result<u64, RecordFault> {
    match *input {
        [first @ 0..0x80, rest @ ..] => {
            *input = rest;
            Ok(u64::from(*first))
        }
        [first, second @ 0..0x80, rest @ ..] => {
            *input = rest;
            Ok(u64::from(first & 0x7f) | u64::from(*second) << 7)
        }
        _ => take_long(input, max_bytes),
    }
}

/// The rest: three bytes and more, and whatever is wrong.
fn take_long(input: &mut &[u8], max_bytes: usize) -> Result<u64, RecordFault> {
    let mut value = 0_u64;
    for index in 0..max_bytes {
        let (&byte, rest) = input.split_first().ok_or(RecordFault::Truncated)?;
        *input = rest;
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte < 0x80 {
            // A tenth byte has room for the one bit that is left.
            if index == VARLONG_MAX_BYTES - 1 && byte > 0x01 {
                break;
            }
            return Ok(value);
        }
    }
    Err(RecordFault::VarintTooLong)
}

const fn unzigzag32(value: u32) -> i32 {
    (value >> 1).cast_signed() ^ -((value & 1).cast_signed())
}

const fn unzigzag64(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -((value & 1).cast_signed())
}

const fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

/// Bytes that a varint or varlong of this value takes. Both give the same for the same number.
const fn varint_bytes(value: i64) -> usize {
    let bits = u64::BITS - (zigzag(value) | 1).leading_zeros();
    bits.div_ceil(7) as usize
}

/// Appends a varint, or varlong, of this value.
#[inline]
fn put_varint(out: &mut Vec<u8>, value: i64) {
    let mut rest = zigzag(value);
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Takes a length and as many bytes; -1 is nothing at all.
#[inline(always)]
fn take_field<'a>(input: &mut &'a [u8]) -> Result<Option<&'a [u8]>, RecordFault> {
    let length = take_varint(input)?;
    if length == -1 {
        return Ok(None);
    }
    let (field, rest) = usize::try_from(length)
        .ok()
        .and_then(|length| input.split_at_checked(length))
        .ok_or(RecordFault::BadFieldLength(length))?;
    *input = rest;
    Ok(Some(field))
}

#[inline(always)]
fn take_header<'a>(input: &mut &'a [u8]) -> Result<RecordHeader<'a>, RecordFault> {
    let key = take_field(input)?.ok_or(RecordFault::BadFieldLength(-1))?;
    Ok(RecordHeader {
        key,
        value: take_field(input)?,
    })
}

/// A record as its bytes have it, headers not looked at.
struct RawRecord<'a> {
    attributes: u8,
    timestamp_delta_ms: i64,
    offset_delta: i32,
    key: Option<&'a [u8]>,
    value: Option<&'a [u8]>,
    headers: RecordHeaders<'a>,
}

#[inline(always)]
fn take_record<'a>(input: &mut &'a [u8]) -> Result<RawRecord<'a>, RecordFault> {
    let length = take_varint(input)?;
    let (mut body, rest) = usize::try_from(length)
        .ok()
        .and_then(|length| input.split_at_checked(length))
        .ok_or(RecordFault::BadLength(length))?;
    *input = rest;
    let (&attributes, after) = body.split_first().ok_or(RecordFault::Truncated)?;
    body = after;
    let timestamp_delta_ms = take_varlong(&mut body)?;
    let offset_delta = take_varint(&mut body)?;
    let key = take_field(&mut body)?;
    let value = take_field(&mut body)?;
    let header_count = take_varint(&mut body)?;
    Ok(RawRecord {
        attributes,
        timestamp_delta_ms,
        offset_delta,
        key,
        value,
        headers: RecordHeaders {
            bytes: body,
            left: u32::try_from(header_count)
                .map_err(|_| RecordFault::BadHeaderCount(header_count))?,
        },
    })
}

/// Walks the headers, which must fill the rest of the record.
#[inline(always)]
fn check_headers(headers: RecordHeaders<'_>, utf8_keys: bool) -> Result<(), RecordFault> {
    let mut bytes = headers.bytes;
    for _ in 0..headers.left {
        let header = take_header(&mut bytes)?;
        if utf8_keys && std::str::from_utf8(header.key).is_err() {
            return Err(RecordFault::HeaderKeyNotUtf8);
        }
    }
    if !bytes.is_empty() {
        return Err(RecordFault::BytesLeft(bytes.len()));
    }
    Ok(())
}

fn timestamp_ms(base_ms: i64, delta_ms: i64) -> Result<i64, RecordFault> {
    base_ms
        .checked_add(delta_ms)
        .ok_or(RecordFault::BadTimestamp { delta_ms })
}

/// Walks the records of an uncompressed batch that is published; see [`batch::check_publish`].
pub(crate) fn check_published(header: &Header, records: &[u8]) -> Result<(), BatchError> {
    let mut rest = records;
    let mut max_timestamp_ms = 0;
    for index in 0..header.record_count {
        let timestamp_ms = check_published_record(header, index, &mut rest)
            .map_err(|why| BatchError::BadRecord { index, why })?;
        max_timestamp_ms = max_timestamp_ms.max(timestamp_ms);
    }
    if !rest.is_empty() {
        return Err(BatchError::BytesAfterRecords { bytes: rest.len() });
    }
    if max_timestamp_ms != header.max_timestamp_ms {
        return Err(BatchError::MaxTimestampMismatch {
            stored_ms: header.max_timestamp_ms,
            found_ms: max_timestamp_ms,
        });
    }
    Ok(())
}

#[inline(always)]
fn check_published_record(header: &Header, due: u32, rest: &mut &[u8]) -> Result<i64, RecordFault> {
    let record = take_record(rest)?;
    if record.attributes != 0 {
        return Err(RecordFault::UnknownAttributes(record.attributes));
    }
    if u32::try_from(record.offset_delta) != Ok(due) {
        return Err(RecordFault::BadOffsetDelta {
            found: record.offset_delta,
            due,
        });
    }
    let timestamp_ms = timestamp_ms(header.base_timestamp_ms, record.timestamp_delta_ms)?;
    if timestamp_ms < 0 {
        return Err(RecordFault::BadTimestamp {
            delta_ms: record.timestamp_delta_ms,
        });
    }
    check_headers(record.headers, true)?;
    Ok(timestamp_ms)
}

/// Walks the records of a batch that is read back: offsets may have gaps, and attributes or header
/// keys that nobody checked are the application's affair.
fn check_stored(header: &Header, records: &[u8]) -> Result<(), BatchError> {
    let mut rest = records;
    let mut due = 0;
    for index in 0..header.record_count {
        due = check_stored_record(header, due, &mut rest)
            .map_err(|why| BatchError::BadRecord { index, why })?;
    }
    if !rest.is_empty() {
        return Err(BatchError::BytesAfterRecords { bytes: rest.len() });
    }
    Ok(())
}

#[inline(always)]
fn check_stored_record(header: &Header, due: u32, rest: &mut &[u8]) -> Result<u32, RecordFault> {
    let record = take_record(rest)?;
    let delta = u32::try_from(record.offset_delta)
        .ok()
        .filter(|delta| (due..=header.last_offset_delta).contains(delta))
        .ok_or(RecordFault::BadOffsetDelta {
            found: record.offset_delta,
            due,
        })?;
    timestamp_ms(header.base_timestamp_ms, record.timestamp_delta_ms)?;
    check_headers(record.headers, false)?;
    Ok(delta + 1)
}

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its place in the partition, if the batch has been given one; else its place in the batch.
    pub offset: u64,
    /// When it was created or, if the batch says so, appended; ms since 1970.
    pub timestamp_ms: i64,
    /// What it is about; may be missing.
    pub key: Option<&'a [u8]>,
    /// What it says; missing in a tombstone.
    pub value: Option<&'a [u8]>,
    headers: RecordHeaders<'a>,
}

impl<'a> Record<'a> {
    /// Its headers, in the order they were written; a key may occur more than once.
    #[must_use]
    pub const fn headers(&self) -> RecordHeaders<'a> {
        self.headers
    }
}

/// One header of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader<'a> {
    /// Its key: UTF-8 by the format, though of a compressed batch nobody checked it.
    pub key: &'a [u8],
    /// Its value; may be missing.
    pub value: Option<&'a [u8]>,
}

/// The headers of a record; an iterator over them, which can be copied to begin again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeaders<'a> {
    bytes: &'a [u8],
    left: u32,
}

impl<'a> Iterator for RecordHeaders<'a> {
    type Item = RecordHeader<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        Some(take_header(&mut self.bytes).expect("the headers were walked before"))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left as usize, Some(self.left as usize))
    }
}

impl ExactSizeIterator for RecordHeaders<'_> {}
impl FusedIterator for RecordHeaders<'_> {}

/// The records of a batch that was checked, in offset order.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    header: Header,
    rest: &'a [u8],
    left: u32,
}

impl Records<'_> {
    /// The header of the batch.
    #[must_use]
    pub const fn header(&self) -> &Header {
        &self.header
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let record = take_record(&mut self.rest).expect("the records were walked before");
        Some(Record {
            offset: self.header.base_offset + u64::from(record.offset_delta.cast_unsigned()),
            timestamp_ms: match self.header.attributes.timestamp_type() {
                TimestampType::Create => self.header.base_timestamp_ms + record.timestamp_delta_ms,
                TimestampType::Append => self.header.max_timestamp_ms,
            },
            key: record.key,
            value: record.value,
            headers: record.headers,
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left as usize, Some(self.left as usize))
    }
}

impl ExactSizeIterator for Records<'_> {}
impl FusedIterator for Records<'_> {}

/// Opens the batch at the start of `batch` to read its records.
///
/// Checks header and CRC, inflates into `scratch` if need be (never more than `limit_bytes`; an
/// uncompressed batch is read where it is), and walks all records before the first is handed out.
/// `scratch` may be kept for the next batch.
///
/// # Errors
/// Those of [`batch::check_stored`], those of [`compress::inflate`], and `BadRecord` or
/// `BytesAfterRecords`.
pub fn records<'a>(
    batch: &'a [u8],
    scratch: &'a mut Vec<u8>,
    limit_bytes: usize,
) -> Result<Records<'a>, BatchError> {
    let header = batch::check_stored(batch)?;
    let payload = &batch[HEADER_BYTES..header.batch_bytes];
    let codec = header.attributes.codec();
    let rest = if codec == Codec::None || payload.is_empty() {
        payload
    } else {
        compress::inflate(codec, payload, scratch, limit_bytes)?;
        scratch
    };
    check_stored(&header, rest)?;
    Ok(Records {
        header,
        rest,
        left: header.record_count,
    })
}

/// Builds batches. One builder serves any number, and allocates nothing once its buffer has grown to
/// the size of the batches.
#[derive(Clone, Debug)]
pub struct BatchBuilder {
    codec: Codec,
    records: Vec<u8>,
    count: u32,
    base_timestamp_ms: i64,
    min_timestamp_ms: i64,
    max_timestamp_ms: i64,
}

impl BatchBuilder {
    /// A builder without records, of batches compressed with `codec`.
    #[must_use]
    pub const fn new(codec: Codec) -> Self {
        Self {
            codec,
            records: Vec::new(),
            count: 0,
            base_timestamp_ms: 0,
            min_timestamp_ms: i64::MAX,
            max_timestamp_ms: i64::MIN,
        }
    }

    /// How its batches are compressed.
    #[must_use]
    pub const fn codec(&self) -> Codec {
        self.codec
    }

    /// Records pushed since the last batch was finished.
    #[must_use]
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The most bytes that the batch takes if it is finished now. Exact when not compressed.
    #[must_use]
    pub fn bytes_estimate(&self) -> usize {
        HEADER_BYTES + compress::compressed_bound(self.codec, self.records.len())
    }

    /// The most bytes that the batch takes if one more record with a key and a value of these sizes
    /// is pushed.
    #[must_use]
    pub fn bytes_with(
        &self,
        key_bytes: usize,
        value_bytes: usize,
        headers: &[HeaderToWrite<'_>],
    ) -> usize {
        let headers: usize = headers
            .iter()
            .map(|(key, value)| {
                RECORD_HEADER_OVERHEAD_MAX_BYTES + key.len() + value.map_or(0, <[u8]>::len)
            })
            .sum();
        let record = RECORD_OVERHEAD_MAX_BYTES + key_bytes + value_bytes + headers;
        HEADER_BYTES + compress::compressed_bound(self.codec, self.records.len() + record)
    }

    /// Adds a record. Timestamps need not ascend.
    pub fn push(
        &mut self,
        timestamp_ms: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[HeaderToWrite<'_>],
    ) {
        if self.count == 0 {
            self.base_timestamp_ms = timestamp_ms;
        }
        self.min_timestamp_ms = self.min_timestamp_ms.min(timestamp_ms);
        self.max_timestamp_ms = self.max_timestamp_ms.max(timestamp_ms);
        // Wraps only for timestamps that `finish` refuses.
        let timestamp_delta = timestamp_ms.wrapping_sub(self.base_timestamp_ms);
        let offset_delta = i64::from(self.count);
        let length = 1
            + varint_bytes(timestamp_delta)
            + varint_bytes(offset_delta)
            + field_bytes(key)
            + field_bytes(value)
            + varint_bytes(headers.len() as i64)
            + headers
                .iter()
                .map(|(key, value)| field_bytes(Some(key.as_bytes())) + field_bytes(*value))
                .sum::<usize>();

        let out = &mut self.records;
        out.reserve(VARLONG_MAX_BYTES + length);
        put_varint(out, length as i64);
        let start = out.len();
        out.push(0);
        put_varint(out, timestamp_delta);
        put_varint(out, offset_delta);
        put_field(out, key);
        put_field(out, value);
        put_varint(out, headers.len() as i64);
        for (key, value) in headers {
            put_field(out, Some(key.as_bytes()));
            put_field(out, *value);
        }
        debug_assert_eq!(out.len() - start, length, "a record is as long as computed");
        self.count += 1;
    }

    /// Appends the batch to `out`, with base offset 0 and leader epoch -1, and forgets its records,
    /// whatever the outcome. Without a producer id pass -1 three times.
    ///
    /// # Errors
    /// `Empty` without records, `BadTimestamps` when one is negative, `TooLarge` when the records
    /// pass what a batch can hold, `UnsupportedCodec`. `out` is then as it was.
    pub fn finish(
        &mut self,
        producer_id: i64,
        producer_epoch: i16,
        base_sequence: i32,
        out: &mut Vec<u8>,
    ) -> Result<(), BatchError> {
        let start = out.len();
        let result = self.write(producer_id, producer_epoch, base_sequence, out);
        if result.is_err() {
            out.truncate(start);
        }
        self.records.clear();
        self.count = 0;
        self.min_timestamp_ms = i64::MAX;
        self.max_timestamp_ms = i64::MIN;
        result
    }

    fn write(
        &self,
        producer_id: i64,
        producer_epoch: i16,
        base_sequence: i32,
        out: &mut Vec<u8>,
    ) -> Result<(), BatchError> {
        let last_delta = self.count.checked_sub(1).ok_or(BatchError::Empty)?;
        if self.min_timestamp_ms < 0 {
            return Err(BatchError::BadTimestamps {
                base_ms: self.min_timestamp_ms,
                max_ms: self.max_timestamp_ms,
            });
        }
        // Compressed or not: a reader must be able to hold the records as well.
        let bytes = HEADER_BYTES + self.records.len();
        if bytes > FORMAT_MAX_BYTES {
            return Err(BatchError::TooLarge {
                bytes,
                limit: FORMAT_MAX_BYTES,
            });
        }
        let start = out.len();
        out.reserve(self.bytes_estimate());
        out.extend_from_slice(&[0; HEADER_BYTES]);
        compress::compress(self.codec, &self.records, out)?;

        let batch = &mut out[start..];
        let bytes = batch.len();
        let length = i32::try_from(bytes - LENGTH_EXCLUDES_BYTES)
            .ok()
            .filter(|_| bytes <= FORMAT_MAX_BYTES)
            .ok_or(BatchError::TooLarge {
                bytes,
                limit: FORMAT_MAX_BYTES,
            })?;
        put(batch, at::LENGTH, length.to_be_bytes());
        put(batch, at::LEADER_EPOCH, (-1_i32).to_be_bytes());
        put(batch, at::MAGIC, MAGIC.to_be_bytes());
        put(
            batch,
            at::ATTRIBUTES,
            Attributes::of_codec(self.codec).bits().to_be_bytes(),
        );
        put(batch, at::LAST_OFFSET_DELTA, last_delta.to_be_bytes());
        put(
            batch,
            at::BASE_TIMESTAMP,
            self.base_timestamp_ms.to_be_bytes(),
        );
        put(
            batch,
            at::MAX_TIMESTAMP,
            self.max_timestamp_ms.to_be_bytes(),
        );
        put(batch, at::PRODUCER_ID, producer_id.to_be_bytes());
        put(batch, at::PRODUCER_EPOCH, producer_epoch.to_be_bytes());
        put(batch, at::BASE_SEQUENCE, base_sequence.to_be_bytes());
        put(batch, at::RECORD_COUNT, self.count.to_be_bytes());
        let crc = crc32c::crc32c(&batch[batch::CRC_START..]);
        put(batch, at::CRC, crc.to_be_bytes());
        Ok(())
    }
}

fn put<const N: usize>(batch: &mut [u8], at: usize, field: [u8; N]) {
    batch[at..at + N].copy_from_slice(&field);
}

fn field_bytes(field: Option<&[u8]>) -> usize {
    field.map_or(1, |bytes| varint_bytes(bytes.len() as i64) + bytes.len())
}

fn put_field(out: &mut Vec<u8>, field: Option<&[u8]>) {
    match field {
        None => put_varint(out, -1),
        Some(bytes) => {
            put_varint(out, bytes.len() as i64);
            out.extend_from_slice(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn varint(mut bytes: &[u8]) -> Result<i32, RecordFault> {
        take_varint(&mut bytes)
    }

    fn varlong(mut bytes: &[u8]) -> Result<i64, RecordFault> {
        take_varlong(&mut bytes)
    }

    #[test]
    fn varints_survive_the_round_trip_in_as_many_bytes_as_foretold() {
        let edges = (0..63).flat_map(|shift| {
            let power = 1_i64 << shift;
            [power - 1, power, power + 1, -power, -power - 1, 1 - power]
        });
        for value in edges.chain([i64::MIN, i64::MAX]) {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            assert_eq!(bytes.len(), varint_bytes(value), "{value}");
            assert_eq!(varlong(&bytes), Ok(value));
            match i32::try_from(value) {
                Ok(small) => assert_eq!(varint(&bytes), Ok(small)),
                Err(_) => assert_eq!(varint(&bytes), Err(RecordFault::VarintTooLong), "{value}"),
            }
        }
    }

    #[test]
    fn a_varint_longer_than_its_type_is_refused_and_padding_is_not() {
        assert_eq!(varint(&[0x80, 0x80, 0x80, 0x80, 0x00]), Ok(0));
        assert_eq!(varint(&[0xff, 0xff, 0xff, 0xff, 0x0f]), Ok(i32::MIN));
        assert_eq!(
            varint(&[0xff, 0xff, 0xff, 0xff, 0x10]),
            Err(RecordFault::VarintTooLong)
        );
        assert_eq!(varint(&[0x80; 6]), Err(RecordFault::VarintTooLong));
        let mut long = [0xff; 10];
        long[9] = 0x01;
        assert_eq!(varlong(&long), Ok(i64::MIN));
        long[9] = 0x02;
        assert_eq!(varlong(&long), Err(RecordFault::VarintTooLong));
        assert_eq!(varlong(&[0x80; 11]), Err(RecordFault::VarintTooLong));
    }

    #[test]
    fn a_varint_cut_short_is_told_from_one_too_long() {
        assert_eq!(varint(&[]), Err(RecordFault::Truncated));
        assert_eq!(varint(&[0x80; 4]), Err(RecordFault::Truncated));
        assert_eq!(varlong(&[0x80; 9]), Err(RecordFault::Truncated));
    }
}
