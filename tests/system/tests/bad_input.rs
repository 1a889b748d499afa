//! What bad input gets over the wire: a typed error, or a closed connection where the stream cannot
//! be trusted any more; a line in the log that names the peer; nothing lost, nobody else disturbed.

use std::collections::HashMap;
use std::net::Shutdown;
use std::time::Duration;

use ringtide_schema::batch::{self, Codec};
use ringtide_schema::error_code::ErrorCode;
use ringtide_schema::frame::{FrameHeader, HEADER_BYTES, Op};
use ringtide_schema::ids::{PartitionId, TopicId};
use ringtide_schema::limits::{
    MAX_CREDIT_BYTES, MAX_ENVELOPE_BYTES, MAX_PAYLOAD_BYTES, MAX_PUBLISH_PARTS, PROTOCOL_MAX,
};
use ringtide_schema::record::BatchBuilder;
use ringtide_system_tests::{
    Broker, Fault, Peer, Setup, Topic, batch_at, now_ms, single, table, wait,
};

/// A broker with one topic that holds one record, and somebody who uses it all the while.
struct Scene {
    broker: Broker,
    topic: Topic,
    bystander: Peer,
    kept: Vec<String>,
}

impl Scene {
    fn new() -> Self {
        Self::with(Setup::new())
    }

    fn with(setup: Setup) -> Self {
        let broker = setup.start();
        let mut bystander = broker.peer();
        let topic = bystander.create_topic("scene", 1);
        let mut scene = Self {
            broker,
            topic,
            bystander,
            kept: Vec::new(),
        };
        scene.is_undisturbed();
        scene
    }

    fn partition(&self) -> PartitionId {
        self.topic.partition(0)
    }

    /// The bystander's connection still works, and nothing it published is missing or joined by
    /// something else.
    #[track_caller]
    fn is_undisturbed(&mut self) {
        let partition = self.partition();
        let value = format!("kept {}", self.kept.len());
        let offset = self.bystander.put(partition, &value);
        assert_eq!(offset, self.kept.len() as u64, "nothing else was appended");
        self.kept.push(value);
        let records = self
            .bystander
            .fetch_to(partition, 0, self.kept.len() as u64);
        let values: Vec<&str> = records.iter().map(|r| r.text()).collect();
        assert_eq!(values, self.kept);
    }

    /// The broker gives this peer up: it may say why, then it closes, and it logs the peer.
    #[track_caller]
    fn gives_up(&mut self, mut peer: Peer, codes: &[ErrorCode]) {
        for frame in peer.until_closed() {
            let refused = frame
                .refused()
                .expect("nothing but an error before the end");
            assert!(codes.contains(&refused.code), "{refused:?}");
        }
        self.broker.logs(&[&peer.name()]);
        self.is_undisturbed();
    }

    /// A publish of these bytes is refused with this code, logged, and leaves the stream good.
    #[track_caller]
    fn refuses_batch(&mut self, bytes: Vec<u8>, code: ErrorCode) {
        let mut peer = self.broker.peer();
        for acks in [1, 2] {
            let fault = peer
                .publish_with(acks, self.partition(), bytes.clone())
                .unwrap_err();
            assert_eq!(fault.code(), code, "{fault:?}");
        }
        peer.ping().expect("the stream is still good");
        self.broker.logs(&[&peer.name()]);
        self.is_undisturbed();
    }
}

/// Writes the CRC of a batch anew, so that only what was changed is wrong with it.
fn with_crc(mut bytes: Vec<u8>) -> Vec<u8> {
    let crc = crc32c(&bytes[batch::CRC_START..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    bytes
}

/// CRC-32C bit by bit: slow, and nobody else's.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            if crc & 1 == 1 {
                (crc >> 1) ^ 0x82f6_3b78
            } else {
                crc >> 1
            }
        })
    })
}

// ---- frames -----------------------------------------------------------------------------------

#[test]
fn another_protocol_is_hung_up_on_at_its_first_bytes() {
    let mut scene = Scene::new();
    let mut peer = scene.broker.stranger();
    peer.send_bytes(b"GET / HTTP/1.1\r\nHost: ringtide\r\n\r\n");
    scene.gives_up(peer, &[ErrorCode::BadFrame]);
}

#[test]
fn garbage_after_hello_closes_the_connection() {
    let mut scene = Scene::new();
    let mut peer = scene.broker.peer();
    peer.send_bytes(&[0xa5; 4096]);
    scene.gives_up(peer, &[ErrorCode::BadFrame]);
}

#[test]
fn a_frame_of_wrong_magic_closes_the_connection() {
    let mut scene = Scene::new();
    let mut peer = scene.broker.peer();
    let (mut frame, _) = peer.frame(Op::Ping, &[], |b| table!(PingRequestT {}).pack(b));
    frame[0] = b'r';
    peer.send_bytes(&frame);
    scene.gives_up(peer, &[ErrorCode::BadFrame]);
}

#[test]
fn a_header_with_a_wrong_checksum_closes_the_connection() {
    let mut scene = Scene::new();
    let mut peer = scene.broker.peer();
    let (mut frame, _) = peer.frame(Op::Ping, &[], |b| table!(PingRequestT {}).pack(b));
    frame[9] ^= 1;
    peer.send_bytes(&frame);
    scene.gives_up(peer, &[ErrorCode::BadFrame]);
}

#[test]
fn a_frame_of_an_unspoken_version_is_refused_as_such() {
    let mut scene = Scene::new();
    let mut peer = scene.broker.peer();
    let mut header = FrameHeader::new(Op::Ping, 0, 77, 0, 0);
    header.version = PROTOCOL_MAX + 8;
    peer.send_bytes(&header.encode());
    scene.gives_up(peer, &[ErrorCode::BadFrame, ErrorCode::UnsupportedVersion]);
}

#[test]
fn an_oversize_envelope_is_refused_before_it_is_received() {
    let mut scene = Scene::new();
    let mut peer = scene.broker.peer();
    let mut header = FrameHeader::new(Op::Publish, 0, 77, 0, 0);
    header.envelope_bytes = MAX_ENVELOPE_BYTES as u32 + 1;
    peer.send_bytes(&header.encode());
    scene.gives_up(peer, &[ErrorCode::BadFrame, ErrorCode::TooLarge]);
}

#[test]
fn an_oversize_payload_is_refused_before_it_is_received() {
    let mut scene = Scene::new();
    for bytes in [MAX_PAYLOAD_BYTES as u32 + 1, u32::MAX] {
        let mut peer = scene.broker.peer();
        let mut header = FrameHeader::new(Op::Publish, 0, 77, 0, 0);
        header.payload_bytes = bytes;
        peer.send_bytes(&header.encode());
        scene.gives_up(peer, &[ErrorCode::BadFrame, ErrorCode::TooLarge]);
    }
}

#[test]
fn a_frame_cut_off_by_the_end_of_the_stream_has_no_effect() {
    let mut scene = Scene::new();
    let mut peer = scene.broker.peer();
    let (frame, _) = peer.publish_frame(2, &[(scene.partition(), single("cut off"))]);
    for cut in [
        1,
        HEADER_BYTES - 1,
        HEADER_BYTES,
        HEADER_BYTES + 9,
        frame.len() - 1,
    ] {
        let mut peer = scene.broker.peer();
        peer.send_bytes(&frame[..cut]);
        peer.socket()
            .shutdown(Shutdown::Write)
            .expect("an open socket");
        assert!(peer.until_closed().is_empty());
        scene.is_undisturbed();
    }
}

#[test]
fn a_half_sent_frame_holds_up_nobody_and_is_answered_when_it_is_whole() {
    let mut scene = Scene::new();
    let other = scene.bystander.create_topic("slow", 1).partition(0);
    let mut peer = scene.broker.peer();
    let (frame, correlation) = peer.publish_frame(2, &[(other, single("slow"))]);
    for piece in frame.chunks(frame.len() / 5) {
        peer.send_bytes(piece);
        scene.is_undisturbed();
    }
    let published = peer.published(correlation, 1).expect("an answer").remove(0);
    assert_eq!(published.expect("an acknowledgement").base_offset, 0);
}

// ---- hello and envelopes ----------------------------------------------------------------------

#[test]
fn a_client_without_a_common_version_is_told_so_and_served_nothing() {
    let mut scene = Scene::new();
    let mut peer = scene.broker.stranger();
    let fault = peer
        .hello_as(PROTOCOL_MAX + 1, PROTOCOL_MAX + 9)
        .unwrap_err();
    assert_eq!(fault.code(), ErrorCode::UnsupportedVersion);
    assert_eq!(
        peer.ping().unwrap_err().code(),
        ErrorCode::UnsupportedVersion
    );
    scene.gives_up(peer, &[]);
}

#[test]
fn a_request_before_hello_is_refused() {
    let mut scene = Scene::new();
    let mut peer = scene.broker.stranger();
    assert_eq!(
        peer.ping().unwrap_err().code(),
        ErrorCode::UnsupportedVersion
    );
    scene.gives_up(peer, &[]);
}

#[test]
fn an_unknown_operation_is_answered_and_the_stream_goes_on() {
    let mut scene = Scene::new();
    let mut peer = scene.broker.peer();
    for op in [0, 19, 99, 255] {
        let mut header = FrameHeader::new(Op::Ping, 0, 1000 + u64::from(op), 0, 0);
        header.op = op;
        peer.send_bytes(&header.encode());
        let fault = peer.answer(1000 + u64::from(op)).unwrap_err();
        assert_eq!(fault.code(), ErrorCode::UnknownOperation);
    }
    peer.ping().expect("the stream is still good");
    scene.broker.logs(&[&peer.name()]);
    scene.is_undisturbed();
}

#[test]
fn an_envelope_that_fails_verification_is_refused_for_every_operation() {
    let mut scene = Scene::new();
    let mut peer = scene.broker.peer();
    let one_way = |op| matches!(op, Op::Credit | Op::Push);
    for (i, op) in Op::ALL.into_iter().filter(|&op| !one_way(op)).enumerate() {
        let correlation = 5000 + i as u64;
        // An offset to a root table far outside.
        let envelope = [0xf0, 0xff, 0xff, 0x7f, 1, 2, 3, 4];
        let header = FrameHeader::new(op, 0, correlation, envelope.len(), 0);
        peer.send_bytes(&[&header.encode()[..], &envelope].concat());
        let fault = peer.answer(correlation).unwrap_err();
        let codes: &[ErrorCode] = match op {
            // A second hello may be refused for being one.
            Op::Hello => &[ErrorCode::BadEnvelope, ErrorCode::InvalidRequest],
            _ => &[ErrorCode::BadEnvelope],
        };
        assert!(codes.contains(&fault.code()), "{op:?}: {fault:?}");
    }
    peer.ping().expect("the stream is still good");
    scene.broker.logs(&[&peer.name()]);
    scene.is_undisturbed();
}

#[test]
fn an_envelope_cut_anywhere_never_harms_the_broker() {
    let mut scene = Scene::new();
    let mut peer = scene.broker.peer();
    let (frame, _) = peer.publish_frame(2, &[(scene.partition(), single("never"))]);
    let header = FrameHeader::decode(&frame)
        .expect("a header")
        .expect("a whole one");
    let envelope = &frame[HEADER_BYTES..HEADER_BYTES + header.envelope_bytes as usize];
    for cut in 0..envelope.len() {
        let correlation = 5000 + cut as u64;
        let header = FrameHeader::new(Op::Publish, 0, correlation, cut, 0);
        peer.send_bytes(&[&header.encode()[..], &envelope[..cut]].concat());
        let fault = peer.answer(correlation).unwrap_err();
        let code = fault.code();
        assert!(
            matches!(code, ErrorCode::BadEnvelope | ErrorCode::InvalidRequest),
            "{fault:?}"
        );
    }
    scene.is_undisturbed();
}

#[test]
fn a_frame_that_only_a_broker_sends_is_refused() {
    let mut scene = Scene::new();
    let mut peer = scene.broker.peer();
    let correlation = peer.send(Op::Push, &[], |b| table!(PushT { visible: 1 }).pack(b));
    let fault = peer.answer(correlation).unwrap_err();
    if let Fault::Refused(refused) = &fault {
        let code = refused.code;
        assert!(
            matches!(
                code,
                ErrorCode::InvalidRequest | ErrorCode::UnknownOperation
            ),
            "{fault:?}"
        );
    }
    scene.broker.logs(&[&peer.name()]);
    scene.is_undisturbed();
}

// ---- batches ----------------------------------------------------------------------------------

#[test]
fn a_batch_of_wrong_crc_is_refused() {
    let mut bytes = single("damaged");
    *bytes.last_mut().expect("bytes") ^= 1;
    Scene::new().refuses_batch(bytes, ErrorCode::BadChecksum);
}

#[test]
fn a_batch_of_wrong_count_is_refused() {
    let mut bytes = single("one");
    bytes[57..61].copy_from_slice(&2_i32.to_be_bytes());
    Scene::new().refuses_batch(with_crc(bytes), ErrorCode::BadBatch);
}

#[test]
fn a_batch_without_records_is_refused() {
    let mut bytes = single("one");
    bytes.truncate(batch::HEADER_BYTES);
    let length = bytes.len() as i32 - batch::LENGTH_EXCLUDES_BYTES as i32;
    bytes[8..12].copy_from_slice(&length.to_be_bytes());
    bytes[57..61].copy_from_slice(&0_i32.to_be_bytes());
    Scene::new().refuses_batch(with_crc(bytes), ErrorCode::BadBatch);
}

#[test]
fn impossible_records_are_refused_though_their_crc_is_right() {
    let mut scene = Scene::new();
    let good = single("a value of some length");
    let first = batch::HEADER_BYTES;
    // Length, attributes, key length, header count: each as no record can have it.
    for (at, byte) in [
        (first, 0x7e),
        (first + 1, 0x01),
        (first + 4, 0x7f),
        (good.len() - 1, 0x08),
    ] {
        let mut bytes = good.clone();
        bytes[at] = byte;
        scene.refuses_batch(with_crc(bytes), ErrorCode::BadBatch);
    }
}

#[test]
fn a_batch_of_another_layout_or_for_brokers_only_is_refused() {
    let mut scene = Scene::new();
    let mut old = single("old");
    old[16] = 1;
    scene.refuses_batch(old, ErrorCode::BadBatch);
    for attributes in [1_i16 << 3, 1 << 4, 1 << 5, 1 << 9] {
        let mut bytes = single("marked");
        bytes[21..23].copy_from_slice(&attributes.to_be_bytes());
        scene.refuses_batch(with_crc(bytes), ErrorCode::BadBatch);
    }
}

#[test]
fn a_batch_over_the_topics_limit_is_refused_as_too_large() {
    let mut scene = Scene::new();
    let settings = table!(TopicSettingsT {
        max_batch_bytes: Some(1000)
    });
    let small = scene
        .bystander
        .create_topic_with("small", 1, settings)
        .expect("a topic");
    let mut peer = scene.broker.peer();
    let fault = peer
        .publish(small.partition(0), single([b'x'; 1000]))
        .unwrap_err();
    assert_eq!(fault.code(), ErrorCode::TooLarge);
    assert_eq!(peer.put(small.partition(0), [b'x'; 900]), 0);
    scene.broker.logs(&[&peer.name()]);
    scene.is_undisturbed();
}

#[test]
fn parts_that_do_not_add_up_to_the_payload_are_refused() {
    let mut scene = Scene::new();
    let batch = single("part");
    for lie in [0, batch.len() as u32 - 1, batch.len() as u32 + 1, u32::MAX] {
        let mut peer = scene.broker.peer();
        let part = ringtide_schema::wire::PublishPartT {
            partition: scene.partition().into(),
            batch_bytes: lie,
        };
        let request = table!(PublishRequestT {
            acks: 2,
            parts: Some(vec![part])
        });
        let correlation = peer.send(Op::Publish, &batch, |b| request.pack(b));
        let fault = match peer.published(correlation, 1) {
            Ok(mut results) => results.remove(0).unwrap_err(),
            Err(fault) => fault,
        };
        let code = fault.code();
        assert!(
            matches!(code, ErrorCode::InvalidRequest | ErrorCode::BadBatch),
            "{lie}: {fault:?}"
        );
        scene.broker.logs(&[&peer.name()]);
        scene.is_undisturbed();
    }
}

#[test]
fn one_bad_part_of_a_publish_does_not_harm_the_others() {
    let mut scene = Scene::new();
    let other = scene.bystander.create_topic("other", 2);
    let mut damaged = single("damaged");
    *damaged.last_mut().expect("bytes") ^= 1;
    let mut peer = scene.broker.peer();
    let parts = [
        (other.partition(0), single("good")),
        (other.partition(1), damaged),
        (
            PartitionId {
                topic: other.id,
                partition: 7,
            },
            single("nowhere"),
        ),
    ];
    let correlation = peer.send_publish(2, &parts);
    let results = peer
        .published(correlation, 3)
        .expect("answers for each part");
    assert_eq!(results[0].as_ref().expect("good").base_offset, 0);
    assert_eq!(
        results[1].as_ref().unwrap_err().code(),
        ErrorCode::BadChecksum
    );
    assert_eq!(
        results[2].as_ref().unwrap_err().code(),
        ErrorCode::UnknownPartition
    );
    scene.is_undisturbed();
}

#[test]
fn a_timestamp_too_far_ahead_is_refused_unless_the_topic_allows_it() {
    let mut scene = Scene::new();
    let settings = table!(TopicSettingsT {
        timestamp_max_ahead_ms: Some(-1)
    });
    let free = scene
        .bystander
        .create_topic_with("free", 1, settings)
        .expect("a topic");
    let far = batch_at(now_ms() + 3 * 24 * 3600 * 1000, &["from the future"]);
    scene.refuses_batch(far.clone(), ErrorCode::TimestampTooFarAhead);
    let published = scene
        .bystander
        .publish(free.partition(0), far)
        .expect("an acknowledgement");
    assert_eq!(published.base_offset, 0);
}

// ---- compressed batches: the reader's affair --------------------------------------------------

/// A batch of this codec whose records are these bytes, whatever they are.
fn compressed(codec: Codec, count: i32, records: &[u8]) -> Vec<u8> {
    let mut bytes = single("");
    bytes.truncate(batch::HEADER_BYTES);
    bytes.extend_from_slice(records);
    let length = bytes.len() as i32 - batch::LENGTH_EXCLUDES_BYTES as i32;
    bytes[8..12].copy_from_slice(&length.to_be_bytes());
    bytes[21..23].copy_from_slice(&(codec as i16).to_be_bytes());
    bytes[23..27].copy_from_slice(&(count - 1).to_be_bytes());
    bytes[57..61].copy_from_slice(&count.to_be_bytes());
    with_crc(bytes)
}

/// Publishes a batch that no reader can read between two that can be, and gives what the reader says.
fn reader_of(bytes: Vec<u8>) -> String {
    let mut scene = Scene::new();
    let partition = scene.bystander.create_topic("packed", 1).partition(0);
    scene.bystander.put(partition, "before");
    scene
        .bystander
        .publish(partition, bytes)
        .expect("the broker does not look inside");
    scene.bystander.put(partition, "after");
    let cli = scene.broker.cli();
    let consumed = cli
        .run(&["consume", "packed", "--from", "earliest"])
        .failed();
    assert_eq!(
        consumed.lines(),
        ["before"],
        "what is good is delivered, what follows is not"
    );
    assert!(consumed.stderr.contains("offset 1"), "{}", consumed.stderr);
    let next = scene
        .bystander
        .describe(partition)
        .expect("a partition")
        .latest
        - 1;
    let after = cli
        .run(&["consume", "packed", "--from", &next.to_string()])
        .ok();
    assert_eq!(after.lines(), ["after"]);
    scene.is_undisturbed();
    consumed.stderr
}

#[test]
fn a_compressed_batch_that_is_corrupt_is_a_typed_error_at_the_reader() {
    let said = reader_of(compressed(Codec::Zstd, 1, b"this is not what zstd writes"));
    assert!(said.contains("zstd"), "{said}");
    let said = reader_of(compressed(Codec::Lz4, 1, b"nor is it what lz4 writes"));
    assert!(said.contains("lz4"), "{said}");
}

#[test]
fn a_compressed_batch_that_inflates_past_the_limit_is_a_typed_error_at_the_reader() {
    let mut builder = BatchBuilder::new(Codec::Zstd);
    builder.push(now_ms(), None, Some(&vec![0; 80 << 20]), &[]);
    let mut bytes = Vec::new();
    builder.finish(-1, -1, -1, &mut bytes).expect("a batch");
    assert!(bytes.len() < 100_000, "a bomb is small: {}", bytes.len());
    let said = reader_of(bytes);
    assert!(said.contains("limit"), "{said}");
}

#[test]
fn a_codec_that_is_not_spoken_is_a_typed_error_at_the_reader() {
    let said = reader_of(compressed(Codec::Snappy, 1, b"whatever"));
    assert!(said.contains("snappy"), "{said}");
}

// ---- names and numbers ------------------------------------------------------------------------

#[test]
fn an_unknown_topic_is_refused_by_every_operation_on_a_partition() {
    let mut scene = Scene::new();
    let unknown = PartitionId {
        topic: TopicId::new(12_345, 999),
        partition: 0,
    };
    every_operation_refuses(&mut scene, unknown, ErrorCode::UnknownTopic);
    let mut peer = scene.broker.peer();
    assert_eq!(
        peer.topic("nothing").unwrap_err().code(),
        ErrorCode::UnknownTopic
    );
    assert_eq!(
        peer.delete_topic("nothing").unwrap_err().code(),
        ErrorCode::UnknownTopic
    );
    let fault = peer
        .alter_topic("nothing", Some(3), table!(TopicSettingsT {}))
        .unwrap_err();
    assert_eq!(fault.code(), ErrorCode::UnknownTopic);
}

#[test]
fn a_request_that_is_forwarded_and_refused_is_logged_with_the_peer() {
    let mut scene = Scene::with(Setup::new().shards(2));
    let topic = scene.bystander.create_topic("away", 2);
    let away = topic.on_shard(1);
    let mut damaged = single("damaged");
    *damaged.last_mut().expect("bytes") ^= 1;
    let mut peer = scene.broker.peer();
    let fault = peer.publish(away, damaged).unwrap_err();
    assert_eq!(fault.code(), ErrorCode::BadChecksum);
    scene.broker.logs(&[&peer.name()]);
    scene.is_undisturbed();
}

#[test]
fn an_unknown_partition_is_refused_by_every_operation_on_a_partition() {
    let mut scene = Scene::new();
    let unknown = scene.topic.partition(1);
    every_operation_refuses(&mut scene, unknown, ErrorCode::UnknownPartition);
}

fn every_operation_refuses(scene: &mut Scene, partition: PartitionId, code: ErrorCode) {
    let mut peer = scene.broker.peer();
    let faults = [
        peer.publish(partition, single("nowhere")).unwrap_err(),
        peer.fetch(partition, 0).unwrap_err(),
        peer.subscribe(partition, -2, 4096).unwrap_err(),
        peer.describe(partition).unwrap_err(),
        peer.list_offsets(partition, -1).unwrap_err(),
        peer.commit_offset("reader", partition, 0).unwrap_err(),
        peer.read_offset("reader", partition).unwrap_err(),
    ];
    for fault in faults {
        assert_eq!(fault.code(), code, "{fault:?}");
    }
    scene.broker.logs(&[&peer.name()]);
    scene.is_undisturbed();
}

#[test]
fn illegal_topic_names_are_refused() {
    let mut scene = Scene::new();
    let mut peer = scene.broker.peer();
    let long = "x".repeat(250);
    for name in ["", ".", "..", "a/b", "../up", "a b", "ä", "nul\0", &long] {
        let fault = peer
            .create_topic_with(name, 1, table!(TopicSettingsT {}))
            .unwrap_err();
        assert_eq!(
            fault.code(),
            ErrorCode::InvalidTopicName,
            "{name:?}: {fault:?}"
        );
    }
    peer.create_topic(&"x".repeat(249), 1);
    scene.broker.logs(&[&peer.name()]);
    scene.is_undisturbed();
}

#[test]
fn illegal_consumer_names_are_refused() {
    let mut scene = Scene::new();
    let mut peer = scene.broker.peer();
    let long = "x".repeat(250);
    for name in ["", "..", "a/b", "ö", &long] {
        let fault = peer.commit_offset(name, scene.partition(), 0).unwrap_err();
        assert_eq!(
            fault.code(),
            ErrorCode::InvalidConsumerName,
            "{name:?}: {fault:?}"
        );
        let fault = peer.read_offset(name, scene.partition()).unwrap_err();
        assert_eq!(
            fault.code(),
            ErrorCode::InvalidConsumerName,
            "{name:?}: {fault:?}"
        );
    }
    scene.broker.logs(&[&peer.name()]);
    scene.is_undisturbed();
}

#[test]
fn impossible_topic_settings_are_refused() {
    let mut scene = Scene::new();
    let mut peer = scene.broker.peer();
    let impossible = [
        table!(TopicSettingsT {
            retention_ms: Some(-2)
        }),
        table!(TopicSettingsT {
            retention_bytes: Some(i64::MIN)
        }),
        table!(TopicSettingsT {
            segment_bytes: Some(1)
        }),
        table!(TopicSettingsT {
            segment_bytes: Some(u32::MAX)
        }),
        table!(TopicSettingsT { visible: Some(2) }),
        table!(TopicSettingsT {
            max_batch_bytes: Some(0)
        }),
        table!(TopicSettingsT {
            max_batch_bytes: Some(u32::MAX)
        }),
        table!(TopicSettingsT {
            timestamp_type: Some(9)
        }),
        table!(TopicSettingsT {
            timestamp_max_ahead_ms: Some(-5)
        }),
    ];
    for settings in impossible {
        let fault = peer
            .create_topic_with("odd", 1, settings.clone())
            .unwrap_err();
        assert_eq!(
            fault.code(),
            ErrorCode::InvalidSetting,
            "{settings:?}: {fault:?}"
        );
        let fault = peer
            .alter_topic("scene", None, settings.clone())
            .unwrap_err();
        assert_eq!(
            fault.code(),
            ErrorCode::InvalidSetting,
            "{settings:?}: {fault:?}"
        );
    }
    for partitions in [0, 4097, u32::MAX] {
        let fault = peer
            .create_topic_with("odd", partitions, table!(TopicSettingsT {}))
            .unwrap_err();
        assert_eq!(
            fault.code(),
            ErrorCode::InvalidSetting,
            "{partitions}: {fault:?}"
        );
    }
    let fault = peer
        .alter_topic("scene", Some(0), table!(TopicSettingsT {}))
        .unwrap_err();
    assert_eq!(
        fault.code(),
        ErrorCode::InvalidSetting,
        "partitions never go: {fault:?}"
    );
    assert_eq!(
        peer.topic("odd").unwrap_err().code(),
        ErrorCode::UnknownTopic
    );
    assert_eq!(peer.topic("scene").expect("a topic"), scene.topic);
    scene.broker.logs(&[&peer.name()]);
    scene.is_undisturbed();
}

#[test]
fn impossible_values_in_requests_are_refused() {
    let mut scene = Scene::new();
    let mut peer = scene.broker.peer();
    let partition = scene.partition();
    let fault = peer
        .publish_with(3, partition, single("acks 3"))
        .unwrap_err();
    assert_eq!(fault.code(), ErrorCode::InvalidRequest);
    let fault = peer.subscribe(partition, -3, 4096).unwrap_err();
    let code = fault.code();
    assert!(
        matches!(
            code,
            ErrorCode::InvalidRequest | ErrorCode::OffsetOutOfRange
        ),
        "{fault:?}"
    );
    assert_eq!(
        peer.list_offsets(partition, -3).unwrap_err().code(),
        ErrorCode::InvalidRequest
    );
    let correlation = peer.send_fetch(partition, 0, 4096, 1, u32::MAX);
    match peer.answer(correlation) {
        Ok(answer) => assert!(
            !answer.records().is_empty(),
            "a wait that is cut to the bound"
        ),
        Err(fault) => assert_eq!(fault.code(), ErrorCode::InvalidRequest),
    }
    assert_eq!(
        peer.unsubscribe(4711).unwrap_err().code(),
        ErrorCode::UnknownSubscription
    );
    scene.broker.logs(&[&peer.name()]);
    scene.is_undisturbed();
}

#[test]
fn an_offset_out_of_range_is_refused_with_the_range() {
    let mut scene = Scene::new();
    let mut peer = scene.broker.peer();
    let partition = scene.partition();
    let end = scene.kept.len() as u64;
    for offset in [end + 1, u64::MAX / 2, u64::MAX] {
        let faults = [
            Some(peer.fetch(partition, offset).unwrap_err()),
            i64::try_from(offset)
                .ok()
                .map(|o| peer.subscribe(partition, o, 4096).unwrap_err()),
        ];
        for fault in faults.into_iter().flatten() {
            let Fault::Refused(refused) = fault else {
                panic!("no typed error: {fault:?}")
            };
            assert_eq!(refused.code, ErrorCode::OffsetOutOfRange);
            assert_eq!(
                (refused.earliest, refused.latest),
                (0, end as i64),
                "{refused:?}"
            );
        }
    }
    assert_eq!(peer.fetch(partition, end).expect("the end is in range"), []);
    scene.broker.logs(&[&peer.name()]);
    scene.is_undisturbed();
}

// ---- bounds -----------------------------------------------------------------------------------

#[test]
fn credit_beyond_the_bound_is_refused_at_subscribe() {
    let mut scene = Scene::new();
    let mut peer = scene.broker.peer();
    let fault = peer.subscribe(scene.partition(), -2, u32::MAX).unwrap_err();
    assert_eq!(fault.code(), ErrorCode::TooMany);
    peer.ping().expect("the stream is still good");
    scene.broker.logs(&[&peer.name()]);
    scene.is_undisturbed();
}

#[test]
fn credit_added_beyond_the_bound_is_refused() {
    let mut scene = Scene::new();
    let mut peer = scene.broker.peer();
    let quiet = scene.bystander.create_topic("quiet", 1).partition(0);
    let (subscription, _) = peer.subscribe(quiet, -1, 4096).expect("a subscription");
    peer.credit(
        subscription,
        u32::try_from(MAX_CREDIT_BYTES).expect("a small bound"),
    );
    match peer.next_within(wait::PATIENCE) {
        Ok(frame) => {
            assert_eq!(frame.refused().expect("an error").code, ErrorCode::TooMany);
            peer.ping().expect("the stream is still good");
        }
        Err(fault) => assert_eq!(fault, Fault::Closed),
    }
    scene.broker.logs(&[&peer.name()]);
    scene.is_undisturbed();
}

#[test]
fn credit_for_no_subscription_disturbs_nobody() {
    let mut scene = Scene::new();
    let mut peer = scene.broker.peer();
    peer.credit(4711, 4096);
    match peer.ping() {
        Ok(()) | Err(Fault::Closed) => {}
        Err(fault) => assert_eq!(fault.code(), ErrorCode::UnknownSubscription),
    }
    scene.is_undisturbed();
}

#[test]
fn requests_beyond_the_bound_are_each_answered_once() {
    let bound = 16;
    let mut scene = Scene::with(Setup::new().args(&["--max-in-flight-requests", "16"]));
    let mut peer = scene.broker.stranger();
    assert_eq!(peer.hello().expect("hello").max_in_flight_requests, bound);
    let end = scene.kept.len() as u64;
    let sent: Vec<u64> = (0..8 * bound)
        .map(|_| peer.send_fetch(scene.partition(), end, 4096, 1, 100))
        .collect();
    let mut answers: HashMap<u64, u32> = HashMap::new();
    for _ in &sent {
        let answer = peer.next_within(wait::PATIENCE).expect("an answer to each");
        if let Some(refused) = answer.refused() {
            assert_eq!(refused.code, ErrorCode::TooMany, "{refused:?}");
        }
        *answers.entry(answer.correlation).or_default() += 1;
    }
    assert!(
        sent.iter().all(|c| answers.get(c) == Some(&1)),
        "{answers:?}"
    );
    peer.ping().expect("the stream is still good");
    scene.is_undisturbed();
}

#[test]
fn subscriptions_beyond_the_bound_are_refused() {
    let mut scene = Scene::new();
    let mut peer = scene.broker.peer();
    let refused = (0..20_000).find_map(|_| peer.subscribe(scene.partition(), -1, 1).err());
    assert_eq!(
        refused.expect("there is a bound").code(),
        ErrorCode::TooMany
    );
    peer.ping().expect("the stream is still good");
    scene.broker.logs(&[&peer.name()]);
    scene.is_undisturbed();
}

#[test]
fn parts_beyond_the_bound_are_refused() {
    let mut scene = Scene::new();
    let mut peer = scene.broker.peer();
    let parts = vec![(scene.partition(), single("")); MAX_PUBLISH_PARTS + 1];
    let correlation = peer.send_publish(2, &parts);
    assert_eq!(
        peer.published(correlation, parts.len()).unwrap_err().code(),
        ErrorCode::TooMany
    );
    scene.broker.logs(&[&peer.name()]);
    scene.is_undisturbed();
}

#[test]
fn connections_beyond_the_bound_wait_for_room_and_the_others_stay() {
    let mut scene = Scene::with(Setup::new().args(&["--max-connections", "8"]));
    // The bystander is one of the eight.
    let mut held: Vec<Peer> = (0..7).map(|_| scene.broker.peer()).collect();
    let mut waiting = scene.broker.stranger();
    let correlation = waiting.send_hello();
    let answer = waiting.answer_within(correlation, wait::WATCH);
    assert_eq!(answer.unwrap_err(), Fault::Silent, "there is no room");
    for peer in &mut held {
        peer.ping().expect("a connection that was there before");
    }
    scene.is_undisturbed();
    held.pop();
    waiting.answer(correlation).expect("room");
    waiting.ping().expect("a connection like any other");
    scene.is_undisturbed();
}

// ---- a peer that never reads ------------------------------------------------------------------

#[test]
fn a_subscriber_that_never_reads_holds_up_nobody() {
    let mut scene = Scene::new();
    let busy = scene.bystander.create_topic("busy", 1).partition(0);
    let deaf: Vec<Peer> = (0..4)
        .map(|_| {
            let mut peer = scene.broker.peer();
            peer.subscribe(busy, -2, MAX_CREDIT_BYTES as u32)
                .expect("a subscription");
            peer
        })
        .collect();
    // Far more than socket buffers hold.
    let block = vec![b'x'; 512 << 10];
    for _ in 0..64 {
        scene.bystander.put(busy, &block);
    }
    scene.is_undisturbed();
    let resident = resident_bytes(scene.broker.pid());
    assert!(
        resident < 256 << 20,
        "{resident} bytes for four subscribers that never read"
    );
    drop(deaf);
    scene.is_undisturbed();
}

#[test]
fn a_subscriber_at_the_wrong_shard_that_never_reads_holds_up_nobody() {
    let mut scene = Scene::with(Setup::new().shards(2));
    let topic = scene.bystander.create_topic("busy", 2);
    let mut deaf: Vec<Peer> = Vec::new();
    for shard in [0, 1] {
        for _ in 0..4 {
            let mut peer = scene.broker.peer_at(usize::from(shard));
            let away = topic.on_shard(1 - shard);
            peer.subscribe(away, -2, MAX_CREDIT_BYTES as u32)
                .expect("a subscription");
            deaf.push(peer);
        }
    }
    let block = vec![b'x'; 512 << 10];
    for _ in 0..40 {
        scene.bystander.put(topic.on_shard(0), &block);
        scene.bystander.put(topic.on_shard(1), &block);
    }
    scene.is_undisturbed();
    let resident = resident_bytes(scene.broker.pid());
    assert!(
        resident < 384 << 20,
        "{resident} bytes for eight subscribers that never read"
    );
    drop(deaf);
    scene.is_undisturbed();
}

#[test]
fn frames_that_are_never_finished_hold_bounded_memory() {
    let mut scene = Scene::with(Setup::new().args(&["--memory-bytes", "64MiB"]));
    let before = resident_bytes(scene.broker.pid());
    let header = FrameHeader::new(Op::Publish, 0, 77, 0, MAX_PAYLOAD_BYTES).encode();
    let most = vec![0; MAX_PAYLOAD_BYTES - 1];
    let stuck: Vec<Peer> = (0..96)
        .map(|_| {
            let mut peer = scene.broker.peer();
            let short = Some(Duration::from_millis(50));
            peer.socket().set_write_timeout(short).expect("a timeout");
            peer.send_bytes(&header);
            // Backpressure is an answer as well: then not all of it can be sent.
            peer.send_bytes(&most);
            peer
        })
        .collect();
    scene.is_undisturbed();
    let held = resident_bytes(scene.broker.pid()).saturating_sub(before);
    assert!(
        held < 160 << 20,
        "{held} bytes are held for 96 frames of which the last byte never comes"
    );
    drop(stuck);
    scene.is_undisturbed();
}

#[test]
fn a_requester_that_never_reads_is_not_read_from_without_bound() {
    let mut scene = Scene::new();
    for _ in 0..40 {
        scene.is_undisturbed();
    }
    let mut peer = scene.broker.peer();
    peer.socket()
        .set_write_timeout(Some(Duration::from_millis(500)))
        .expect("a timeout");
    let (frame, _) = peer.frame(Op::Metadata, &[], |b| table!(MetadataRequestT {}).pack(b));
    let many: Vec<u8> = frame
        .iter()
        .copied()
        .cycle()
        .take(frame.len() * 1000)
        .collect();
    // Backpressure shows as a socket that takes no more; a refusal as one that is closed.
    let stopped = (0..2000).any(|_| {
        use std::io::Write;
        peer.socket().write_all(&many).is_err()
    });
    assert!(
        stopped,
        "the broker took two million requests of a peer that never reads"
    );
    scene.is_undisturbed();
    let resident = resident_bytes(scene.broker.pid());
    assert!(
        resident < 256 << 20,
        "{resident} bytes for a peer that never reads"
    );
}

fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status
        .lines()
        .find(|l| l.starts_with("VmRSS:"))
        .expect("a resident size");
    let kib: u64 = line
        .split_whitespace()
        .nth(1)
        .expect("a number")
        .parse()
        .expect("a number");
    kib << 10
}
