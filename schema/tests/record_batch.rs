//! Record batches are Kafka's: read and written alike by another implementation, equal to golden
//! bytes, and checked so that nothing else passes.

use bytes::{Bytes, BytesMut};
use kafka_protocol::protocol::StrBytes;
use kafka_protocol::records as kafka;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use ringtide_schema::batch::{
    self, BatchError, Batches, CRC_START, Codec, HEADER_BYTES, Header, TimestampType,
    check_publish, check_stored,
};
use ringtide_schema::compress;
use ringtide_schema::limits::MAX_BATCH_RECORDS;
use ringtide_schema::record::{BatchBuilder, RecordFault, Records, records};

const LIMIT: usize = 1 << 20;
const T: i64 = 1_700_000_000_000;
const SPOKEN: [Codec; 3] = [Codec::None, Codec::Lz4, Codec::Zstd];

/// Where the fields of the header begin, once more and by hand.
mod at {
    pub const LENGTH: usize = 8;
    pub const LEADER_EPOCH: usize = 12;
    pub const MAGIC: usize = 16;
    pub const CRC: usize = 17;
    pub const ATTRIBUTES: usize = 21;
    pub const LAST_OFFSET_DELTA: usize = 23;
    pub const BASE_TIMESTAMP: usize = 27;
    pub const MAX_TIMESTAMP: usize = 35;
    pub const PRODUCER_ID: usize = 43;
    pub const PRODUCER_EPOCH: usize = 51;
    pub const BASE_SEQUENCE: usize = 53;
    pub const RECORD_COUNT: usize = 57;
}

// ---- helpers -------------------------------------------------------------------------------------

#[derive(Clone, Debug, PartialEq, Eq)]
struct Message {
    timestamp_ms: i64,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Option<Vec<u8>>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Producer {
    id: i64,
    epoch: i16,
    sequence: i32,
}

const NOBODY: Producer = Producer {
    id: -1,
    epoch: -1,
    sequence: -1,
};

fn build(codec: Codec, producer: Producer, messages: &[Message]) -> Vec<u8> {
    let mut builder = BatchBuilder::new(codec);
    let mut out = Vec::new();
    push_all(&mut builder, messages);
    builder
        .finish(producer.id, producer.epoch, producer.sequence, &mut out)
        .expect("it is valid");
    out
}

fn push_all(builder: &mut BatchBuilder, messages: &[Message]) {
    for message in messages {
        let headers: Vec<_> = message
            .headers
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_deref()))
            .collect();
        let (key, value) = (message.key.as_deref(), message.value.as_deref());
        builder.push(message.timestamp_ms, key, value, &headers);
    }
}

/// Offset and message of each record; the header keys must be UTF-8.
fn read(bytes: &[u8]) -> Result<Vec<(u64, Message)>, BatchError> {
    let mut scratch = Vec::new();
    let records = records(bytes, &mut scratch, LIMIT)?;
    let count = records.len();
    let read: Vec<_> = records
        .map(|record| {
            let headers = record.headers().map(|header| {
                let key = String::from_utf8(header.key.to_vec()).expect("keys are UTF-8");
                (key, header.value.map(<[u8]>::to_vec))
            });
            let message = Message {
                timestamp_ms: record.timestamp_ms,
                key: record.key.map(<[u8]>::to_vec),
                value: record.value.map(<[u8]>::to_vec),
                headers: headers.collect(),
            };
            (record.offset, message)
        })
        .collect();
    assert_eq!(read.len(), count, "as many records as announced");
    Ok(read)
}

/// The number of records; each with the headers that it announces.
fn walk_to_the_end(records: Records<'_>) -> usize {
    let mut count = 0;
    for record in records {
        assert_eq!(
            record.headers().len(),
            record.headers().fold(0, |count, _| count + 1)
        );
        count += 1;
    }
    count
}

fn numbered(messages: &[Message]) -> Vec<(u64, Message)> {
    (0..).zip(messages.iter().cloned()).collect()
}

fn message(value: &str) -> Message {
    Message {
        timestamp_ms: T,
        key: None,
        value: Some(value.into()),
        headers: vec![],
    }
}

fn three_messages() -> Vec<Message> {
    ["one", "two", "three"].map(message).to_vec()
}

/// Makes the checksum fit whatever was done to the batch.
fn seal(batch: &mut [u8]) {
    let crc = crc32c::crc32c(&batch[CRC_START..]);
    batch[at::CRC..at::ATTRIBUTES].copy_from_slice(&crc.to_be_bytes());
}

fn with<const N: usize>(batch: &[u8], at: usize, field: [u8; N]) -> Vec<u8> {
    let mut changed = batch.to_vec();
    changed[at..at + N].copy_from_slice(&field);
    seal(&mut changed);
    changed
}

/// A sealed batch of these records, given as bytes.
fn with_records(codec: Codec, count: i32, records: &[u8]) -> Vec<u8> {
    let mut batch = build(codec, NOBODY, &[message("")]);
    batch.truncate(HEADER_BYTES);
    batch.extend_from_slice(records);
    let length = (batch.len() - 12) as i32;
    batch[at::LENGTH..at::LEADER_EPOCH].copy_from_slice(&length.to_be_bytes());
    let batch = with(&batch, at::LAST_OFFSET_DELTA, (count - 1).to_be_bytes());
    with(&batch, at::RECORD_COUNT, count.to_be_bytes())
}

fn refused(bytes: &[u8]) -> BatchError {
    check_publish(bytes, LIMIT).expect_err("it must not be accepted")
}

fn fault(bytes: &[u8]) -> RecordFault {
    match refused(bytes) {
        BatchError::BadRecord { why, .. } => why,
        other => panic!("not about a record: {other}"),
    }
}

fn golden(text: &str) -> Vec<u8> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .flat_map(str::split_whitespace)
        .map(|byte| u8::from_str_radix(byte, 16).expect("golden files are hexadecimal"))
        .collect()
}

macro_rules! golden {
    ($name:literal) => {
        golden(include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/golden/record-batch/",
            $name
        )))
    };
}

// ---- the other implementation --------------------------------------------------------------------

fn to_kafka(codec: Codec) -> kafka::Compression {
    match codec {
        Codec::None => kafka::Compression::None,
        Codec::Gzip => kafka::Compression::Gzip,
        Codec::Snappy => kafka::Compression::Snappy,
        Codec::Lz4 => kafka::Compression::Lz4,
        Codec::Zstd => kafka::Compression::Zstd,
    }
}

fn kafka_encode(codec: Codec, producer: Producer, messages: &[Message]) -> Vec<u8> {
    let records: Vec<_> = numbered(messages)
        .into_iter()
        .map(|(offset, message)| kafka::Record {
            transactional: false,
            control: false,
            delete_horizon: false,
            partition_leader_epoch: -1,
            producer_id: producer.id,
            producer_epoch: producer.epoch,
            timestamp_type: kafka::TimestampType::Creation,
            offset: offset as i64,
            sequence: producer.sequence.wrapping_add(offset as i32),
            timestamp: message.timestamp_ms,
            key: message.key.map(Bytes::from),
            value: message.value.map(Bytes::from),
            headers: message
                .headers
                .into_iter()
                .map(|(key, value)| (StrBytes::from_string(key), value.map(Bytes::from)))
                .collect(),
        })
        .collect();
    let options = kafka::RecordEncodeOptions {
        version: 2,
        compression: to_kafka(codec),
    };
    let mut out = BytesMut::new();
    kafka::RecordBatchEncoder::encode(&mut out, &records, &options).expect("it encodes");
    out.to_vec()
}

fn kafka_decode(bytes: &[u8]) -> (kafka::Compression, Vec<kafka::Record>) {
    let mut bytes = Bytes::copy_from_slice(bytes);
    let set = kafka::RecordBatchDecoder::decode(&mut bytes).expect("the other side reads it");
    assert!(bytes.is_empty(), "the other side reads all of it");
    (set.compression, set.records)
}

fn from_kafka(record: kafka::Record) -> (u64, Message) {
    let headers = record
        .headers
        .into_iter()
        .map(|(key, value)| (key.to_string(), value.map(|value| value.to_vec())));
    let message = Message {
        timestamp_ms: record.timestamp,
        key: record.key.map(|key| key.to_vec()),
        value: record.value.map(|value| value.to_vec()),
        headers: headers.collect(),
    };
    (record.offset as u64, message)
}

// ---- strategies ----------------------------------------------------------------------------------

fn field() -> impl Strategy<Value = Option<Vec<u8>>> {
    let bytes = prop_oneof![
        6 => vec(any::<u8>(), 0..80),
        2 => "[a-d]{0,400}".prop_map(String::into_bytes),
        // Around where a length takes one byte more.
        1 => (60..70_usize).prop_map(|length| vec![b'x'; length]),
        1 => (8180..8200_usize).prop_map(|length| vec![b'x'; length]),
    ];
    option::weighted(0.8, bytes)
}

fn a_message() -> impl Strategy<Value = Message> {
    let timestamp = prop_oneof![
        4 => T - 100_000..T + 100_000,
        1 => 0..=i64::MAX,
    ];
    // Keys are distinct because the other implementation keeps headers in a map.
    let headers = proptest::collection::btree_map(".{0,12}", field(), 0..4);
    (timestamp, field(), field(), headers).prop_map(|(timestamp_ms, key, value, headers)| Message {
        timestamp_ms,
        key,
        value,
        headers: headers.into_iter().collect(),
    })
}

fn messages() -> impl Strategy<Value = Vec<Message>> {
    vec(a_message(), 1..20)
}

fn producer() -> impl Strategy<Value = Producer> {
    let known =
        (0..=i64::MAX, 0..=i16::MAX, 0..=i32::MAX - 20).prop_map(|(id, epoch, sequence)| {
            Producer {
                id,
                epoch,
                sequence,
            }
        });
    prop_oneof![Just(NOBODY), known]
}

fn spoken() -> impl Strategy<Value = Codec> {
    proptest::sample::select(&SPOKEN)
}

proptest! {
    #[test]
    fn kafka_reads_what_we_write(codec in spoken(), producer in producer(), messages in messages()) {
        let (compression, records) = kafka_decode(&build(codec, producer, &messages));
        prop_assert_eq!(compression, to_kafka(codec));
        for record in &records {
            prop_assert_eq!((record.producer_id, record.producer_epoch), (producer.id, producer.epoch));
            prop_assert_eq!(record.partition_leader_epoch, -1);
            prop_assert_eq!(record.timestamp_type, kafka::TimestampType::Creation);
        }
        if producer != NOBODY {
            prop_assert_eq!(records[0].sequence, producer.sequence);
        }
        let read: Vec<_> = records.into_iter().map(from_kafka).collect();
        prop_assert_eq!(read, numbered(&messages));
    }

    #[test]
    fn we_accept_and_read_what_kafka_writes(
        codec in spoken(), producer in producer(), messages in messages(),
    ) {
        let bytes = kafka_encode(codec, producer, &messages);
        let header = check_publish(&bytes, LIMIT).expect("a good batch is accepted");
        prop_assert_eq!(header.batch_bytes, bytes.len());
        prop_assert_eq!(header.attributes.codec(), codec);
        prop_assert_eq!(header.record_count as usize, messages.len());
        prop_assert_eq!(
            (header.producer_id, header.producer_epoch, header.base_sequence),
            (producer.id, producer.epoch, producer.sequence)
        );
        prop_assert_eq!(Some(header.max_timestamp_ms), messages.iter().map(|m| m.timestamp_ms).max());
        prop_assert_eq!(read(&bytes).expect("it is readable"), numbered(&messages));
    }

    #[test]
    fn what_we_write_may_be_published_and_reads_the_same(
        codec in spoken(), producer in producer(), messages in messages(),
    ) {
        let bytes = build(codec, producer, &messages);
        let header = check_publish(&bytes, LIMIT).expect("a good batch is accepted");
        prop_assert_eq!(check_stored(&bytes), Ok(header));
        prop_assert_eq!(read(&bytes).expect("it is readable"), numbered(&messages));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..200)) {
        let _ = Header::peek(&bytes);
        let _ = check_publish(&bytes, LIMIT);
        let _ = read(&bytes);
        prop_assert!(Batches::new(&bytes).count() <= 1 + bytes.len() / HEADER_BYTES);
    }

    #[test]
    fn arbitrary_records_under_a_good_checksum_never_panic(
        codec in spoken(), count in 1..6_i32, bytes in vec(prop_oneof![0..8_u8, any::<u8>()], 0..60),
    ) {
        let batch = with_records(codec, count, &bytes);
        let _ = check_publish(&batch, LIMIT);
        let mut scratch = Vec::new();
        if let Ok(records) = records(&batch, &mut scratch, 1 << 16) {
            prop_assert_eq!(walk_to_the_end(records), count as usize);
        }
    }

    #[test]
    fn a_bit_flipped_in_sealed_records_never_panics(
        codec in spoken(), messages in messages(), bit in any::<proptest::sample::Index>(),
    ) {
        let mut batch = build(codec, NOBODY, &messages);
        let bit = bit.index((batch.len() - HEADER_BYTES) * 8);
        batch[HEADER_BYTES + bit / 8] ^= 1 << (bit % 8);
        seal(&mut batch);
        let mut scratch = Vec::new();
        if let Ok(records) = records(&batch, &mut scratch, LIMIT) {
            prop_assert_eq!(walk_to_the_end(records), messages.len());
        }
    }

    #[test]
    fn a_batch_is_never_larger_than_the_builder_foretold(codec in spoken(), messages in messages()) {
        let mut builder = BatchBuilder::new(codec);
        let mut foretold = 0;
        for message in &messages {
            let headers: Vec<_> =
                message.headers.iter().map(|(key, value)| (key.as_str(), value.as_deref())).collect();
            foretold = builder.bytes_with(
                message.key.as_ref().map_or(0, Vec::len),
                message.value.as_ref().map_or(0, Vec::len),
                &headers,
            );
            push_all(&mut builder, std::slice::from_ref(message));
        }
        let estimate = builder.bytes_estimate();
        let mut out = Vec::new();
        builder.finish(-1, -1, -1, &mut out).expect("it is valid");
        prop_assert!(out.len() <= estimate && estimate <= foretold);
        if codec == Codec::None {
            prop_assert_eq!(out.len(), estimate);
        }
    }
}

// ---- golden bytes --------------------------------------------------------------------------------

fn golden_messages() -> Vec<Message> {
    let bytes = |text: &str| Some(text.as_bytes().to_vec());
    let plain = |after_ms, key, value| Message {
        timestamp_ms: T + after_ms,
        key,
        value,
        headers: vec![],
    };
    vec![
        plain(0, None, bytes("first")),
        plain(-1500, bytes("gone"), None),
        Message {
            headers: vec![
                ("trace".into(), Some(vec![1, 2])),
                ("trace".into(), None),
                ("größe".into(), bytes("")),
            ],
            ..plain(250, bytes("k"), bytes(&"x".repeat(70)))
        },
        plain(250, bytes(""), bytes("")),
    ]
}

#[test]
fn one_record_is_the_golden_bytes() {
    let one = Message {
        key: Some(b"key".to_vec()),
        ..message("value")
    };
    let bytes = golden!("one.hex");
    assert_eq!(
        build(Codec::None, NOBODY, std::slice::from_ref(&one)),
        bytes
    );
    assert_eq!(read(&bytes), Ok(numbered(&[one])));
}

#[test]
fn every_shape_of_record_is_the_golden_bytes() {
    let producer = Producer {
        id: 7,
        epoch: 3,
        sequence: 42,
    };
    let bytes = golden!("mixed.hex");
    assert_eq!(build(Codec::None, producer, &golden_messages()), bytes);
    assert_eq!(read(&bytes), Ok(numbered(&golden_messages())));
}

#[test]
fn golden_bytes_compressed_elsewhere_are_read() {
    // The other implementation keeps one header of a name.
    let mut messages = golden_messages();
    messages[2].headers.remove(0);
    for (codec, bytes) in [
        (Codec::Lz4, golden!("lz4.hex")),
        (Codec::Zstd, golden!("zstd.hex")),
    ] {
        let header = check_publish(&bytes, LIMIT).expect("a good batch is accepted");
        assert_eq!(header.attributes.codec(), codec);
        assert_eq!(read(&bytes), Ok(numbered(&messages)));
    }
}

// ---- damage --------------------------------------------------------------------------------------

#[test]
fn every_flipped_bit_is_noticed_but_those_the_broker_assigns() {
    for codec in SPOKEN {
        let good = build(codec, NOBODY, &three_messages());
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let assigned =
                bit / 8 < at::LENGTH || (at::LEADER_EPOCH..at::MAGIC).contains(&(bit / 8));
            let negative_offset = bit == 7;
            let passes = assigned && !negative_offset;
            assert_eq!(check_publish(&bytes, LIMIT).is_ok(), passes, "bit {bit}");
            assert_eq!(check_stored(&bytes).is_ok(), passes, "bit {bit}");
            assert_eq!(read(&bytes).is_ok(), passes, "bit {bit}");
        }
    }
}

#[test]
fn a_batch_cut_short_is_incomplete_and_says_what_it_needs() {
    let good = build(Codec::None, NOBODY, &three_messages());
    for have in 0..good.len() {
        let need = if have < HEADER_BYTES {
            HEADER_BYTES
        } else {
            good.len()
        };
        let incomplete = BatchError::Incomplete { need, have };
        assert!(incomplete.is_incomplete());
        assert_eq!(check_publish(&good[..have], LIMIT), Err(incomplete));
        assert_eq!(check_stored(&good[..have]), Err(incomplete));
        assert_eq!(read(&good[..have]), Err(incomplete));
        let walked = Batches::new(&good[..have]).next();
        assert_eq!(walked, (have > 0).then_some(Err(incomplete)));
    }
}

#[test]
fn impossible_headers_are_not_peeked_at() {
    let good = build(Codec::None, NOBODY, &three_messages());
    let peek = |bytes: &[u8]| Header::peek(bytes).expect_err("it is impossible");
    let magic = |found: i8| with(&good, at::MAGIC, found.to_be_bytes());
    assert_eq!(peek(&magic(1)), BatchError::WrongMagic { found: 1 });
    assert_eq!(peek(&magic(3)), BatchError::WrongMagic { found: 3 });
    for found in [i32::MIN, -1, 0, 48, i32::MAX - 11, i32::MAX] {
        let bytes = with(&good, at::LENGTH, found.to_be_bytes());
        assert_eq!(peek(&bytes), BatchError::BadLength { found });
    }
    for length in [49, i32::MAX - 12] {
        let bytes = with(&good, at::LENGTH, length.to_be_bytes());
        assert_eq!(
            Header::peek(&bytes).map(|h| h.batch_bytes),
            Ok(length as usize + 12)
        );
    }
    let base = |base: i64| with(&good, 0, base.to_be_bytes());
    assert_eq!(
        peek(&base(-1)),
        BatchError::BadOffsets {
            base: -1,
            last_delta: 2
        }
    );
    assert!(matches!(
        peek(&base(i64::MAX - 1)),
        BatchError::BadOffsets { .. }
    ));
    assert_eq!(
        Header::peek(&base(i64::MAX - 2)).map(|h| h.next_offset()),
        Ok(1 << 63)
    );
    for bits in [5, 6, 7, 1 << 7, i16::MIN] {
        let bytes = with(&good, at::ATTRIBUTES, bits.to_be_bytes());
        assert_eq!(peek(&bytes), BatchError::UnknownAttributes { bits });
    }
}

#[test]
fn a_count_that_lies_is_refused() {
    let good = build(Codec::None, NOBODY, &three_messages());
    let lie = |count: i32, last_delta: i32| {
        let bytes = with(&good, at::RECORD_COUNT, count.to_be_bytes());
        with(&bytes, at::LAST_OFFSET_DELTA, last_delta.to_be_bytes())
    };
    for (count, last_delta) in [(2, 2), (4, 2), (3, 1), (3, 3), (0, 0), (0, -1), (-1, 2)] {
        let bytes = lie(count, last_delta);
        let error = refused(&bytes);
        if last_delta < 0 {
            assert_eq!(
                error,
                BatchError::BadOffsets {
                    base: 0,
                    last_delta
                }
            );
        } else {
            assert_eq!(error, BatchError::CountMismatch { count, last_delta });
        }
    }
    // Consistent lies come out when the records are walked, at the cost of the true number.
    let missing = BatchError::BadRecord {
        index: 3,
        why: RecordFault::Truncated,
    };
    assert_eq!(refused(&lie(4, 3)), missing);
    let most = MAX_BATCH_RECORDS as i32;
    assert_eq!(refused(&lie(most, most - 1)), missing);
    // Past that nothing is walked, so that a compressed batch cannot claim the offsets either.
    assert_eq!(
        refused(&lie(most + 1, most)),
        BatchError::TooManyRecords {
            count: MAX_BATCH_RECORDS + 1
        }
    );
    assert_eq!(
        refused(&lie(2, 1)),
        BatchError::BytesAfterRecords { bytes: 12 }
    );
    assert_eq!(read(&lie(4, 3)), Err(missing));
    assert_eq!(
        read(&lie(2, 1)),
        Err(BatchError::BytesAfterRecords { bytes: 12 })
    );
    // A reader takes gaps, but not more records than offsets.
    assert_eq!(
        check_stored(&lie(3, 9)).map(|header| header.next_offset()),
        Ok(10)
    );
    assert_eq!(read(&lie(3, 9)), Ok(numbered(&three_messages())));
    let crowded = BatchError::CountMismatch {
        count: 3,
        last_delta: 1,
    };
    assert_eq!(check_stored(&lie(3, 1)), Err(crowded));
}

#[test]
fn a_compressed_count_that_lies_is_found_by_the_reader() {
    let good = build(Codec::Lz4, NOBODY, &three_messages());
    let bytes = with(&good, at::RECORD_COUNT, 4_i32.to_be_bytes());
    let bytes = with(&bytes, at::LAST_OFFSET_DELTA, 3_i32.to_be_bytes());
    check_publish(&bytes, LIMIT).expect("compressed records are left to the reader");
    assert_eq!(
        read(&bytes),
        Err(BatchError::BadRecord {
            index: 3,
            why: RecordFault::Truncated
        })
    );
}

// ---- what may be published -----------------------------------------------------------------------

#[test]
fn only_exactly_one_batch_within_the_limit_is_published() {
    let good = build(Codec::None, NOBODY, &three_messages());
    let bytes = good.len();
    assert!(check_publish(&good, bytes).is_ok());
    let too_large = BatchError::TooLarge {
        bytes,
        limit: bytes - 1,
    };
    assert_eq!(check_publish(&good, bytes - 1), Err(too_large));
    // Known from the header alone, however little of the batch is there.
    assert_eq!(
        check_publish(&good[..HEADER_BYTES], bytes - 1),
        Err(too_large)
    );
    assert_eq!(
        refused(&[&good[..], &[0]].concat()),
        BatchError::TrailingBytes { extra: 1 }
    );
    assert_eq!(
        refused(&[&good[..], &good].concat()),
        BatchError::TrailingBytes { extra: bytes }
    );
}

#[test]
fn what_is_the_brokers_to_set_is_not_published() {
    let good = build(Codec::None, NOBODY, &three_messages());
    let marked = |bit: i16| with(&good, at::ATTRIBUTES, (1_i16 << bit).to_be_bytes());
    assert_eq!(
        refused(&marked(3)),
        BatchError::BrokerAttributes { bits: 1 << 3 }
    );
    assert_eq!(refused(&marked(4)), BatchError::TransactionalBatch);
    assert_eq!(refused(&marked(5)), BatchError::ControlBatch);
    assert_eq!(
        refused(&marked(6)),
        BatchError::BrokerAttributes { bits: 1 << 6 }
    );
    for bit in 3..=6 {
        let attributes = check_stored(&marked(bit))
            .expect("a reader takes them")
            .attributes;
        assert_eq!(attributes.bits(), 1 << bit);
        assert_eq!(
            attributes.timestamp_type() == TimestampType::Append,
            bit == 3
        );
        assert_eq!(attributes.is_transactional(), bit == 4);
        assert_eq!(attributes.is_control(), bit == 5);
        assert_eq!(attributes.has_delete_horizon(), bit == 6);
    }
}

#[test]
fn a_producer_needs_an_epoch_and_a_sequence() {
    let good = build(
        Codec::None,
        Producer {
            id: 1,
            epoch: 0,
            sequence: 0,
        },
        &three_messages(),
    );
    assert!(
        check_publish(&good, LIMIT)
            .expect("it is complete")
            .has_producer()
    );
    for bad in [
        with(&good, at::PRODUCER_ID, (-2_i64).to_be_bytes()),
        with(&good, at::PRODUCER_EPOCH, (-1_i16).to_be_bytes()),
        with(&good, at::BASE_SEQUENCE, (-1_i32).to_be_bytes()),
    ] {
        assert!(matches!(refused(&bad), BatchError::BadProducer { .. }));
    }
}

#[test]
fn timestamps_out_of_range_are_not_published_even_if_compressed() {
    for codec in SPOKEN {
        let good = build(codec, NOBODY, &three_messages());
        let base = with(&good, at::BASE_TIMESTAMP, (-1_i64).to_be_bytes());
        assert_eq!(
            refused(&base),
            BatchError::BadTimestamps {
                base_ms: -1,
                max_ms: T
            }
        );
        let max = with(&good, at::MAX_TIMESTAMP, (T - 1).to_be_bytes());
        assert_eq!(
            refused(&max),
            BatchError::BadTimestamps {
                base_ms: T,
                max_ms: T - 1
            }
        );
    }
}

#[test]
fn the_max_timestamp_is_that_of_the_latest_record() {
    let good = build(Codec::None, NOBODY, &three_messages());
    let late = with(&good, at::MAX_TIMESTAMP, (T + 1).to_be_bytes());
    assert_eq!(
        refused(&late),
        BatchError::MaxTimestampMismatch {
            stored_ms: T + 1,
            found_ms: T
        }
    );
}

/// A record of one-byte fields: length, attributes, timestamp, offset, no key, no value, no headers.
const TINY: [u8; 7] = [12, 0, 0, 0, 1, 1, 0];

#[test]
fn each_fault_of_a_record_is_refused_by_its_name() {
    let one = |record: &[u8]| with_records(Codec::None, 1, record);
    assert!(check_publish(&one(&TINY), LIMIT).is_ok());
    let changed = |at: usize, byte: u8| {
        let mut record = TINY;
        record[at] = byte;
        fault(&one(&record))
    };
    assert_eq!(changed(0, 14), RecordFault::BadLength(7));
    assert_eq!(changed(0, 1), RecordFault::BadLength(-1));
    assert_eq!(changed(0, 0), RecordFault::Truncated);
    assert_eq!(changed(0, 10), RecordFault::Truncated);
    assert_eq!(changed(1, 1), RecordFault::UnknownAttributes(1));
    assert_eq!(
        changed(3, 2),
        RecordFault::BadOffsetDelta { found: 1, due: 0 }
    );
    assert_eq!(
        changed(3, 1),
        RecordFault::BadOffsetDelta { found: -1, due: 0 }
    );
    assert_eq!(changed(4, 3), RecordFault::BadFieldLength(-2));
    assert_eq!(changed(5, 8), RecordFault::BadFieldLength(4));
    assert_eq!(changed(6, 1), RecordFault::BadHeaderCount(-1));
    assert_eq!(changed(6, 2), RecordFault::Truncated);
    assert_eq!(
        fault(&one(&[14, 0, 0, 0, 1, 1, 0, 0])),
        RecordFault::BytesLeft(1)
    );
    assert_eq!(
        refused(&one(&[12, 0, 0, 0, 1, 1, 0, 0])),
        BatchError::BytesAfterRecords { bytes: 1 }
    );
    assert_eq!(
        fault(&one(&[16, 0, 0, 0, 1, 1, 2, 1, 1])),
        RecordFault::BadFieldLength(-1)
    );
    assert_eq!(
        fault(&one(&[18, 0, 0, 0, 1, 1, 2, 2, 0xff, 1])),
        RecordFault::HeaderKeyNotUtf8
    );
}

#[test]
fn a_negative_timestamp_of_a_record_is_refused() {
    let zero = Message {
        timestamp_ms: 0,
        ..message("")
    };
    let batch = build(Codec::None, NOBODY, &[zero.clone(), zero]);
    let second = HEADER_BYTES + TINY.len();
    assert_eq!(
        batch[second..second + 3],
        [12, 0, 0],
        "length, attributes, timestamp"
    );
    let bytes = with(&batch, second + 2, [1]);
    let why = RecordFault::BadTimestamp { delta_ms: -1 };
    assert_eq!(refused(&bytes), BatchError::BadRecord { index: 1, why });
}

#[test]
fn a_timestamp_beyond_64_bits_is_refused_by_readers_too() {
    let last = Message {
        timestamp_ms: i64::MAX,
        ..message("")
    };
    let batch = build(Codec::None, NOBODY, &[last]);
    let bytes = with(&batch, HEADER_BYTES + 2, [2]);
    let why = RecordFault::BadTimestamp { delta_ms: 1 };
    assert_eq!(refused(&bytes), BatchError::BadRecord { index: 0, why });
    assert_eq!(read(&bytes), Err(BatchError::BadRecord { index: 0, why }));
}

#[test]
fn offsets_are_dense_when_published_and_may_have_gaps_when_stored() {
    let mut gap = TINY;
    gap[3] = 6;
    let compacted = with_records(Codec::None, 2, &[TINY, gap].concat());
    assert_eq!(
        fault(&compacted),
        RecordFault::BadOffsetDelta { found: 3, due: 1 }
    );
    // The gap must still lie within the batch.
    let why = RecordFault::BadOffsetDelta { found: 3, due: 1 };
    assert_eq!(
        read(&compacted),
        Err(BatchError::BadRecord { index: 1, why })
    );
    let mut compacted = with(&compacted, at::LAST_OFFSET_DELTA, 5_i32.to_be_bytes());
    batch::assign(&mut compacted, 100, 1);
    let offsets: Vec<_> = read(&compacted)
        .expect("gaps are read")
        .iter()
        .map(|(offset, _)| *offset)
        .collect();
    assert_eq!(offsets, [100, 103]);
    // Offsets that do not ascend are no gap.
    let repeated = with_records(Codec::None, 2, &[gap, gap].concat());
    let repeated = with(&repeated, at::LAST_OFFSET_DELTA, 5_i32.to_be_bytes());
    let why = RecordFault::BadOffsetDelta { found: 3, due: 4 };
    assert_eq!(
        read(&repeated),
        Err(BatchError::BadRecord { index: 1, why })
    );
}

#[test]
fn a_batch_that_compaction_emptied_is_read_as_nothing() {
    for codec in SPOKEN {
        let empty = with_records(codec, 1, &[]);
        let empty = with(&empty, at::RECORD_COUNT, 0_i32.to_be_bytes());
        assert_eq!(read(&empty), Ok(vec![]));
        assert_eq!(
            refused(&empty),
            BatchError::CountMismatch {
                count: 0,
                last_delta: 0
            }
        );
    }
}

#[test]
fn compressed_records_are_left_to_the_reader_whatever_they_are() {
    for codec in [Codec::Lz4, Codec::Zstd] {
        let bytes = with_records(codec, 1, b"not what it says");
        check_publish(&bytes, LIMIT).expect("only the header is looked at");
        let error = read(&bytes).expect_err("it is not compressed");
        assert!(matches!(error, BatchError::CorruptCompression { codec: c, .. } if c == codec));
    }
}

#[test]
fn codecs_that_are_not_spoken_are_carried_but_not_read() {
    for codec in [Codec::Gzip, Codec::Snappy] {
        let bytes = with_records(Codec::None, 1, b"opaque");
        let bytes = with(&bytes, at::ATTRIBUTES, (codec as i16).to_be_bytes());
        let header = check_publish(&bytes, LIMIT).expect("the broker does not look inside");
        assert_eq!(header.attributes.codec(), codec);
        assert_eq!(read(&bytes), Err(BatchError::UnsupportedCodec { codec }));
        let mut builder = BatchBuilder::new(codec);
        builder.push(T, None, None, &[]);
        let mut out = vec![1, 2, 3];
        assert_eq!(
            builder.finish(-1, -1, -1, &mut out),
            Err(BatchError::UnsupportedCodec { codec })
        );
        assert_eq!(out, [1, 2, 3]);
    }
}

#[test]
fn a_bomb_is_stopped_at_the_limit() {
    for codec in [Codec::Lz4, Codec::Zstd] {
        let mut bomb = Vec::new();
        compress::compress(codec, &vec![0; 32 << 20], &mut bomb).expect("it is spoken");
        let batch = with_records(codec, 1, &bomb);
        assert!(
            check_publish(&batch, LIMIT).is_ok(),
            "small enough to be published"
        );
        let mut scratch = Vec::new();
        let error = records(&batch, &mut scratch, 100_000).expect_err("it is a bomb");
        assert_eq!(error, BatchError::InflatedTooLarge { limit: 100_000 });
        assert!(
            scratch.capacity() <= 100_000,
            "{} bytes were allocated",
            scratch.capacity()
        );
    }
}

#[test]
fn records_may_inflate_to_exactly_the_limit() {
    for codec in [Codec::Lz4, Codec::Zstd] {
        let batch = build(codec, NOBODY, &[message(&"x".repeat(70_000))]);
        let plain = build(Codec::None, NOBODY, &[message(&"x".repeat(70_000))]);
        let limit = plain.len() - HEADER_BYTES;
        let mut scratch = Vec::new();
        assert!(records(&batch, &mut scratch, limit).is_ok());
        let error = records(&batch, &mut scratch, limit - 1).map(|_| ());
        assert_eq!(
            error,
            Err(BatchError::InflatedTooLarge { limit: limit - 1 })
        );
    }
}

// ---- what the broker sets ------------------------------------------------------------------------

#[test]
fn assigning_moves_the_offsets_and_leaves_the_checksum_right() {
    let mut bytes = build(Codec::Lz4, NOBODY, &three_messages());
    let before = check_publish(&bytes, LIMIT).expect("a good batch is accepted");
    batch::assign(&mut bytes, 5_000_000_000, 9);
    let after = check_stored(&bytes).expect("the checksum still holds");
    assert_eq!(
        after,
        Header {
            base_offset: 5_000_000_000,
            leader_epoch: 9,
            ..before
        }
    );
    assert_eq!(
        (after.last_offset(), after.next_offset()),
        (5_000_000_002, 5_000_000_003)
    );
    let offsets: Vec<_> = read(&bytes)
        .expect("it is readable")
        .iter()
        .map(|(offset, _)| *offset)
        .collect();
    assert_eq!(offsets, [5_000_000_000, 5_000_000_001, 5_000_000_002]);
}

#[test]
#[should_panic(expected = "largest there is")]
fn offsets_past_the_last_are_not_assigned() {
    let mut bytes = build(Codec::None, NOBODY, &three_messages());
    batch::assign(&mut bytes, i64::MAX as u64 - 1, 0);
}

#[test]
fn append_time_becomes_the_time_of_every_record() {
    for codec in SPOKEN {
        let mut bytes = build(codec, NOBODY, &golden_messages());
        batch::stamp_append_time(&mut bytes, T + 77_777);
        let header = check_stored(&bytes).expect("the checksum was made anew");
        assert_eq!(header.attributes.timestamp_type(), TimestampType::Append);
        assert_eq!(header.attributes.codec(), codec);
        assert_eq!(
            (header.base_timestamp_ms, header.max_timestamp_ms),
            (T, T + 77_777)
        );
        let read = read(&bytes).expect("it is readable");
        assert_eq!(read.len(), 4);
        assert!(
            read.iter()
                .all(|(_, message)| message.timestamp_ms == T + 77_777)
        );
        let (_, elsewhere) = kafka_decode(&bytes);
        assert_eq!(elsewhere[0].timestamp_type, kafka::TimestampType::LogAppend);
    }
}

// ---- walking and building ------------------------------------------------------------------------

#[test]
fn batches_are_walked_one_by_one_and_the_position_is_that_of_the_last_whole_one() {
    let mut first = build(Codec::None, NOBODY, &three_messages());
    let mut second = build(Codec::Zstd, NOBODY, &three_messages());
    batch::assign(&mut first, 0, 1);
    batch::assign(&mut second, 3, 1);
    let both = [&first[..], &second].concat();

    let mut walk = Batches::new(&both);
    for batch in [&first, &second] {
        let header = Header::peek(batch).expect("it is valid");
        assert_eq!(walk.next(), Some(Ok((header, &batch[..]))));
    }
    assert_eq!(walk.next(), None);
    assert_eq!(walk.position(), both.len());

    let mut cut = Batches::new(&both[..both.len() - 1]);
    assert!(cut.next().is_some_and(|item| item.is_ok()));
    let error = cut
        .next()
        .expect("half a batch is there")
        .expect_err("it is incomplete");
    assert!(error.is_incomplete());
    assert_eq!((cut.next(), cut.position()), (None, first.len()));

    let mut torn = both.clone();
    torn[first.len() + at::MAGIC] = 0;
    let error = Batches::new(&torn)
        .nth(1)
        .expect("it is there")
        .expect_err("it is no batch");
    assert!(!error.is_incomplete());
}

#[test]
fn a_builder_starts_afresh_after_each_batch() {
    let mut builder = BatchBuilder::new(Codec::None);
    let mut out = Vec::new();
    push_all(&mut builder, &golden_messages());
    assert_eq!(builder.count(), 4);
    builder.finish(7, 3, 42, &mut out).expect("it is valid");
    assert!(builder.is_empty());
    let first = out.len();
    let earlier = Message {
        timestamp_ms: 5,
        ..message("early")
    };
    push_all(&mut builder, std::slice::from_ref(&earlier));
    builder.finish(-1, -1, -1, &mut out).expect("it is valid");
    assert_eq!(
        out[..first],
        golden!("mixed.hex"),
        "what was in the buffer stays"
    );
    assert_eq!(out[first..], build(Codec::None, NOBODY, &[earlier]));
}

#[test]
fn a_builder_refuses_what_the_broker_would() {
    let mut builder = BatchBuilder::new(Codec::None);
    let mut out = vec![9];
    assert_eq!(builder.finish(-1, -1, -1, &mut out), Err(BatchError::Empty));
    builder.push(T, None, None, &[]);
    builder.push(i64::MIN, None, None, &[]);
    let refused = BatchError::BadTimestamps {
        base_ms: i64::MIN,
        max_ms: T,
    };
    assert_eq!(builder.finish(-1, -1, -1, &mut out), Err(refused));
    assert!(builder.is_empty() && out == [9]);
}
