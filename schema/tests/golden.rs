//! Every format that is ever written, pinned by its bytes: a change that alters one fails here, and
//! must raise the format's version instead. `RINGTIDE_BLESS=1` writes the files of new formats; it
//! never overwrites one.

use std::path::PathBuf;

use ringtide_schema::frame::{FLAG_MORE, FLAG_RESPONSE, FrameHeader, Op};
use ringtide_schema::identity::Identity;
use ringtide_schema::ids::{GroupId, PartitionId, TopicId};
use ringtide_schema::index::{self, IndexEntry};
use ringtide_schema::limits::BLOCK_BYTES;
use ringtide_schema::wal::{self, EntryHeader, EntryKind, SlotHeader};
use ringtide_schema::{flatbuffers, snapshot, store, wire};

fn to_hex(bytes: &[u8]) -> String {
    let lines = bytes
        .chunks(32)
        .map(|line| line.iter().map(|b| format!("{b:02x}")).collect::<String>() + "\n");
    lines.collect()
}

fn check(name: &str, bytes: &[u8]) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/golden")
        .join(format!("{name}.hex"));
    if !path.exists() && std::env::var_os("RINGTIDE_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(&path, to_hex(bytes)).expect("written");
    }
    let golden =
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(
        golden,
        to_hex(bytes),
        "{name} is not written as it was before"
    );
}

fn topic() -> TopicId {
    TopicId::new(0x0123_4567_89ab_cdef, 7)
}

fn partition() -> PartitionId {
    PartitionId {
        topic: topic(),
        partition: 3,
    }
}

#[test]
fn the_frame_header_is_as_ever() {
    let header = FrameHeader::new(
        Op::Publish,
        FLAG_RESPONSE | FLAG_MORE,
        0x1122_3344_5566_7788,
        96,
        4096,
    );
    check("wire/frame-header", &header.encode());
}

#[test]
fn the_wal_slot_frame_and_entry_are_as_ever() {
    let mut block = [0; BLOCK_BYTES];
    SlotHeader {
        data_directory: TopicId { hi: 1, lo: 2 },
        shard: 5,
        generation: 9,
        incarnation: 4,
        slot_bytes: 64 << 20,
    }
    .encode(&mut block);
    check("wal/slot-header", &block[..64]);

    let mut frame = [0; wal::FRAME_HEADER_BYTES];
    wal::FrameHeader {
        flags: wal::FRAME_CLOSING,
        shard: 5,
        generation: 9,
        incarnation: 4,
        frame_seq: 1000,
        committed: 7,
        first_seq: 8,
        entries_bytes: 88,
        entry_count: 1,
        previous_crc: 0xdead_beef,
    }
    .encode(&mut frame);
    check("wal/frame-header", &frame);

    let mut entry = [0; wal::ENTRY_HEADER_BYTES];
    EntryHeader {
        kind: EntryKind::Batch,
        group: GroupId(5),
        seq: 8,
        group_index: 2,
        term: 0,
        partition: partition(),
        base_offset: 44,
        append_time_ms: 1_700_000_000_000,
        payload_bytes: 5,
        payload_crc: 0x0bad_cafe,
    }
    .encode(4, &mut entry);
    check("wal/entry-header", &entry);
}

#[test]
fn the_index_is_as_ever() {
    let entry = |n: u32| IndexEntry {
        relative_offset: n * 10,
        position: n * 32_768,
        timestamp_ms: 1_700_000_000_000 + i64::from(n),
        max_timestamp_before_ms: if n == 0 { i64::MIN } else { 1_700_000_000_009 },
    };
    check(
        "segment/index",
        &index::encode(1000, 70_000, &[entry(0), entry(1)]),
    );
}

#[test]
fn the_identity_is_as_ever() {
    let identity = Identity {
        data_directory: TopicId { hi: 1, lo: 2 },
        groups: 64,
        clean: true,
        incarnation: 3,
        leader_epoch: 2,
        shards: 2,
        slot_bytes: 64 << 20,
        snapshots_crc: 0x0102_0304,
    };
    check("directory/identity", &identity.encode());
}

#[test]
fn the_snapshot_is_as_ever() {
    let stored = store::GroupSnapshotT {
        group: 12,
        group_index: 99,
        term: 0,
        incarnation: 3,
        partitions: Some(vec![store::PartitionT {
            topic: Some(topic().into()),
            partition: 3,
            log_start: 10,
            next_offset: 30,
            segments: Some(vec![store::SegmentT {
                base_offset: 10,
                next_offset: 30,
                bytes: 8192,
                max_timestamp_ms: 1_700_000_000_000,
                incarnation: 3,
                format: 1,
                sealed: false,
                prefix_crc: 0x1234_5678,
            }]),
            tail: Some(vec![1, 2, 3]),
            epochs: Some(vec![store::EpochStartT {
                start_offset: 10,
                epoch: 2,
            }]),
            producers: Some(vec![store::ProducerT {
                id: 77,
                epoch: 0,
                batches: Some(vec![store::ProducerBatchT {
                    base_offset: 20,
                    append_time_ms: 1_700_000_000_000,
                    base_sequence: 4,
                    records: 10,
                }]),
            }]),
            committed: Some(vec![store::CommittedT {
                consumer: "reader".into(),
                offset: 25,
                leader_epoch: 2,
                time_ms: 1_700_000_000_000,
            }]),
        }]),
        topics: None,
        next_topic_serial: 0,
    };
    check("directory/snapshot", &snapshot::encode(&stored));
}

fn envelope<T>(
    build: impl FnOnce(&mut flatbuffers::FlatBufferBuilder<'static>) -> flatbuffers::WIPOffset<T>,
) -> Vec<u8> {
    let mut builder = flatbuffers::FlatBufferBuilder::new();
    let root = build(&mut builder);
    builder.finish_minimal(root);
    builder.finished_data().to_vec()
}

#[test]
fn the_metadata_entries_are_as_ever() {
    let topic = store::TopicT {
        id: Some(topic().into()),
        name: "orders".into(),
        partitions: 4,
        config: Box::new(ringtide_schema::topic::TopicConfig::default().to_store()),
    };
    let created = store::MetaEntryT {
        created: Some(Box::new(topic)),
        ..store::MetaEntryT::default()
    };
    check("wal/meta-created", &envelope(|b| created.pack(b)));
    let gone = store::DeleteTopicT {
        id: Some(crate::topic().into()),
    };
    let deleted = store::MetaEntryT {
        deleted: Some(Box::new(gone)),
        ..store::MetaEntryT::default()
    };
    check("wal/meta-deleted", &envelope(|b| deleted.pack(b)));
    let altered = store::MetaEntryT {
        altered: Some(Box::new(store::TopicT {
            id: Some(crate::topic().into()),
            name: "orders".into(),
            partitions: 8,
            config: Box::new(ringtide_schema::topic::TopicConfig::default().to_store()),
        })),
        ..store::MetaEntryT::default()
    };
    check("wal/meta-altered", &envelope(|b| altered.pack(b)));
    let commit = store::CommitOffsetT {
        consumer: "reader".into(),
        offset: 25,
        leader_epoch: 2,
        time_ms: 1_700_000_000_000,
    };
    check("wal/commit-offset", &envelope(|b| commit.pack(b)));
}

#[test]
fn the_envelopes_are_as_ever() {
    let at = || Some(partition().into());
    let settings = ringtide_schema::topic::TopicConfig::default().to_wire();
    let hello = wire::HelloRequestT {
        min_version: 1,
        max_version: 1,
        client_name: Some("golden".into()),
        client_version: Some("0.1.0".into()),
    };
    check("wire/hello-request", &envelope(|b| hello.pack(b)));
    let hello = wire::HelloResponseT {
        version: 1,
        broker_version: Some("0.1.0".into()),
        data_directory_id: Some(topic().into()),
        incarnation: 3,
        shard: 1,
        shards: 2,
        max_frame_bytes: 4 << 20,
        max_batch_bytes: 1 << 20,
        max_in_flight_requests: 4096,
    };
    check("wire/hello-response", &envelope(|b| hello.pack(b)));
    let error = wire::ErrorResponseT {
        code: 60,
        message: Some("offset 9 is outside 0 to 5".into()),
        earliest: 0,
        latest: 5,
        ..wire::ErrorResponseT::default()
    };
    check("wire/error-response", &envelope(|b| error.pack(b)));
    let create = wire::CreateTopicRequestT {
        name: Some("orders".into()),
        partitions: 4,
        settings: Some(Box::new(settings.clone())),
    };
    check("wire/create-topic-request", &envelope(|b| create.pack(b)));
    let metadata = wire::MetadataResponseT {
        shards: Some(vec![wire::ShardAddressT {
            shard: 0,
            host: Some("127.0.0.1".into()),
            port: 7311,
        }]),
        topics: Some(vec![wire::TopicMetadataT {
            error: 0,
            name: Some("orders".into()),
            id: Some(topic().into()),
            settings: Some(Box::new(settings)),
            partition_shards: Some(vec![0, 1, 0, 1]),
        }]),
    };
    check("wire/metadata-response", &envelope(|b| metadata.pack(b)));
    let publish = wire::PublishRequestT {
        acks: 2,
        parts: Some(vec![wire::PublishPartT {
            partition: partition().into(),
            batch_bytes: 196,
        }]),
    };
    check("wire/publish-request", &envelope(|b| publish.pack(b)));
    let published = wire::PublishResponseT {
        results: Some(vec![wire::PublishResultT {
            part: 0,
            error: 0,
            duplicate: true,
            leader_epoch: 1,
            base_offset: 44,
            append_time_ms: 1_700_000_000_000,
        }]),
        message: None,
    };
    check("wire/publish-response", &envelope(|b| published.pack(b)));
    let fetch = wire::FetchRequestT {
        partition: at(),
        offset: 44,
        max_bytes: 65536,
        min_bytes: 1,
        max_wait_ms: 500,
    };
    check("wire/fetch-request", &envelope(|b| fetch.pack(b)));
    let fetched = wire::FetchResponseT {
        earliest: 0,
        visible: 45,
        leader_epoch: 1,
        first_offset: 40,
        next_offset: 45,
    };
    check("wire/fetch-response", &envelope(|b| fetched.pack(b)));
    let subscribe = wire::SubscribeRequestT {
        partition: at(),
        offset: -2,
        credit_bytes: 1 << 20,
    };
    check("wire/subscribe-request", &envelope(|b| subscribe.pack(b)));
    let push = wire::PushT {
        visible: 45,
        first_offset: 40,
        next_offset: 45,
    };
    check("wire/push", &envelope(|b| push.pack(b)));
    let credit = wire::CreditT {
        subscription: 9,
        bytes: 65536,
    };
    check("wire/credit", &envelope(|b| credit.pack(b)));
    let list = wire::ListOffsetsRequestT {
        partition: at(),
        at: 1_700_000_000_000,
    };
    check("wire/list-offsets-request", &envelope(|b| list.pack(b)));
    let commit = wire::CommitOffsetRequestT {
        consumer: Some("reader".into()),
        partition: at(),
        offset: 25,
        leader_epoch: 1,
    };
    check("wire/commit-offset-request", &envelope(|b| commit.pack(b)));
}

/// A topic as the broker describes it.
fn described() -> wire::TopicMetadataT {
    wire::TopicMetadataT {
        error: 0,
        name: Some("orders".into()),
        id: Some(topic().into()),
        settings: Some(Box::new(
            ringtide_schema::topic::TopicConfig::default().to_wire(),
        )),
        partition_shards: Some(vec![0, 1]),
    }
}

#[test]
fn the_envelopes_about_topics_are_as_ever() {
    let metadata = wire::MetadataRequestT {
        topics: Some(vec!["orders".into(), "ticks".into()]),
    };
    check("wire/metadata-request", &envelope(|b| metadata.pack(b)));
    let created = wire::CreateTopicResponseT {
        topic: Some(Box::new(described())),
    };
    check("wire/create-topic-response", &envelope(|b| created.pack(b)));
    let alter = wire::AlterTopicRequestT {
        name: Some("orders".into()),
        partitions: Some(2),
        settings: Some(Box::new(wire::TopicSettingsT {
            retention_ms: Some(-1),
            ..wire::TopicSettingsT::default()
        })),
    };
    check("wire/alter-topic-request", &envelope(|b| alter.pack(b)));
    let altered = wire::AlterTopicResponseT {
        topic: Some(Box::new(described())),
    };
    check("wire/alter-topic-response", &envelope(|b| altered.pack(b)));
    let delete = wire::DeleteTopicRequestT {
        name: Some("orders".into()),
    };
    check("wire/delete-topic-request", &envelope(|b| delete.pack(b)));
    let deleted = wire::DeleteTopicResponseT {};
    check("wire/delete-topic-response", &envelope(|b| deleted.pack(b)));
    let describe = wire::DescribePartitionRequestT {
        partition: Some(partition().into()),
    };
    check(
        "wire/describe-partition-request",
        &envelope(|b| describe.pack(b)),
    );
    let description = wire::DescribePartitionResponseT {
        earliest: 1,
        visible: 2,
        committed: 3,
        latest: 4,
        leader_epoch: 5,
        shard: 6,
        log_group: 7,
        segments: 8,
        bytes: 9,
    };
    check(
        "wire/describe-partition-response",
        &envelope(|b| description.pack(b)),
    );
}

#[test]
fn the_envelopes_of_connections_and_producers_are_as_ever() {
    check(
        "wire/ping-request",
        &envelope(|b| wire::PingRequestT {}.pack(b)),
    );
    check(
        "wire/ping-response",
        &envelope(|b| wire::PingResponseT {}.pack(b)),
    );
    let elsewhere = wire::ErrorResponseT {
        code: 25,
        message: Some("it is on shard 1".into()),
        host: Some("127.0.0.1".into()),
        port: 7312,
        ..wire::ErrorResponseT::default()
    };
    check(
        "wire/error-response-wrong-shard",
        &envelope(|b| elsewhere.pack(b)),
    );
    check(
        "wire/init-producer-request",
        &envelope(|b| wire::InitProducerRequestT {}.pack(b)),
    );
    let identity = wire::InitProducerResponseT {
        producer_id: 77,
        producer_epoch: 1,
    };
    check(
        "wire/init-producer-response",
        &envelope(|b| identity.pack(b)),
    );
}

#[test]
fn the_envelopes_about_shards_are_as_ever() {
    let describe = wire::DescribeShardRequestT {};
    check(
        "wire/describe-shard-request",
        &envelope(|b| describe.pack(b)),
    );
    let description = wire::DescribeShardResponseT {
        broker_version: Some("0.1.0".into()),
        commit: Some("0123456789ab-dirty".into()),
        process_id: 1,
        shard: 2,
        shards: 3,
        cpu: 4,
        idle: Some("spin".into()),
        incarnation: 5,
        uptime_ms: 6,
        kernel: Some("6.1.0-13-amd64".into()),
        file_system: Some("ext4".into()),
        device: Some("nvme0n1".into()),
        write_cache: Some("volatile".into()),
        fua: Some("yes".into()),
        durable_write_ns: Some(7),
        wal_slots: 8,
        wal_free_slots: 9,
        wal_slot_bytes: 10,
        sync_interval_ms: 11,
        wal_writes: 12,
        wal_bytes: 13,
        wal_records: 14,
        connections: 15,
        memory_bytes: 16,
        memory_free_bytes: 17,
    };
    check(
        "wire/describe-shard-response",
        &envelope(|b| description.pack(b)),
    );
}

#[test]
fn the_envelopes_of_consumers_are_as_ever() {
    check(
        "wire/subscribe-response",
        &envelope(|b| wire::SubscribeResponseT { offset: 44 }.pack(b)),
    );
    let unsubscribe = wire::UnsubscribeRequestT { subscription: 9 };
    check(
        "wire/unsubscribe-request",
        &envelope(|b| unsubscribe.pack(b)),
    );
    check(
        "wire/unsubscribe-response",
        &envelope(|b| wire::UnsubscribeResponseT {}.pack(b)),
    );
    let listed = wire::ListOffsetsResponseT {
        offset: 44,
        timestamp_ms: 1_700_000_000_000,
        leader_epoch: 1,
    };
    check("wire/list-offsets-response", &envelope(|b| listed.pack(b)));
    check(
        "wire/commit-offset-response",
        &envelope(|b| wire::CommitOffsetResponseT {}.pack(b)),
    );
    let read = wire::ReadOffsetRequestT {
        consumer: Some("reader".into()),
        partition: Some(partition().into()),
    };
    check("wire/read-offset-request", &envelope(|b| read.pack(b)));
    let found = wire::ReadOffsetResponseT {
        offset: 25,
        leader_epoch: 1,
    };
    check("wire/read-offset-response", &envelope(|b| found.pack(b)));
}
