//! Every envelope of the wire, behind a byte that says which.
//!
//! What is taken survives being written and read again, and what it says of topics, settings, names and
//! versions is in its bounds once it is accepted. Verifying holds no memory.

#![no_main]

use std::fmt::Debug;

use libfuzzer_sys::fuzz_target;
use ringtide_fuzz::bounded;
use ringtide_schema::flatbuffers::{FlatBufferBuilder, WIPOffset};
use ringtide_schema::ids::{PartitionId, TopicId};
use ringtide_schema::limits::{
    MAX_BATCH_BYTES, MAX_SEGMENT_BYTES, MAX_TOPIC_NAME_BYTES, MIN_SEGMENT_BYTES, PROTOCOL_MAX,
    PROTOCOL_MIN,
};
use ringtide_schema::topic::{TopicConfig, check_topic_name};
use ringtide_schema::wire;
use ringtide_session::{envelope, negotiate};

/// Reads an envelope, writes it, reads it again.
macro_rules! round_trip {
    ($table:ident, $bytes:expr) => {{
        let bytes: &[u8] = $bytes;
        bounded(4096, || envelope::<wire::$table<'_>>(bytes).is_ok()).then(|| {
            let table = envelope::<wire::$table<'_>>(bytes).expect("verified before");
            let owned = table.unpack();
            let again = written(|builder| owned.pack(builder));
            let again = envelope::<wire::$table<'_>>(&again).expect("just written");
            same(&again.unpack(), &owned);
            owned
        })
    }};
}

fn written<T>(pack: impl FnOnce(&mut FlatBufferBuilder<'static>) -> WIPOffset<T>) -> Vec<u8> {
    let mut builder = FlatBufferBuilder::new();
    let root = pack(&mut builder);
    builder.finish_minimal(root);
    builder.finished_data().to_vec()
}

fn same<T: PartialEq + Debug>(again: &T, first: &T) {
    assert_eq!(again, first, "written and read again");
}

/// Settings that are accepted are possible, and survive the wire and the disk.
fn settings(given: Option<&wire::TopicSettingsT>) {
    let Some(Ok(config)) = given.map(|given| TopicConfig::default().with(given)) else {
        return;
    };
    assert!((MIN_SEGMENT_BYTES..=MAX_SEGMENT_BYTES).contains(&config.segment_bytes));
    assert!(config.max_batch_bytes as usize <= MAX_BATCH_BYTES);
    assert_eq!(TopicConfig::default().with(&config.to_wire()), Ok(config));
    assert_eq!(TopicConfig::from_store(&config.to_store()), Ok(config));
}

/// A name that is accepted can be part of a path.
fn name(given: Option<&String>) {
    if let Some(name) = given.filter(|name| check_topic_name(name).is_ok()) {
        assert!((1..=MAX_TOPIC_NAME_BYTES).contains(&name.len()));
        assert!(!name.contains(['/', '\0']) && name != "." && name != "..");
    }
}

fn metadata(topic: Option<&wire::TopicMetadataT>) {
    settings(topic.and_then(|topic| topic.settings.as_deref()));
    name(topic.and_then(|topic| topic.name.as_ref()));
    if let Some(id) = topic.and_then(|topic| topic.id.as_ref()) {
        let id = TopicId {
            hi: id.hi,
            lo: id.lo,
        };
        assert_eq!(id.to_string().parse(), Ok(id));
    }
}

fn partition(named: Option<&wire::PartitionRefT>) {
    if let Some(named) = named {
        let id = PartitionId::from(&named.pack());
        assert_eq!(PartitionId::from_dir_name(&id.dir_name()), Some(id));
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((which, bytes)) = data.split_first() else {
        return;
    };
    match which {
        0 => {
            if let Some(hello) = round_trip!(HelloRequest, bytes)
                && let Ok(version) = negotiate(hello.min_version, hello.max_version)
            {
                assert!((PROTOCOL_MIN..=PROTOCOL_MAX).contains(&version));
                assert!((hello.min_version..=hello.max_version).contains(&version));
            }
        }
        1 => _ = round_trip!(HelloResponse, bytes),
        2 => _ = round_trip!(PingRequest, bytes),
        3 => _ = round_trip!(PingResponse, bytes),
        4 => _ = round_trip!(MetadataRequest, bytes),
        5 => {
            let answer = round_trip!(MetadataResponse, bytes);
            let topics = answer.and_then(|answer| answer.topics);
            topics
                .iter()
                .flatten()
                .for_each(|topic| metadata(Some(topic)));
        }
        6 => {
            if let Some(create) = round_trip!(CreateTopicRequest, bytes) {
                settings(create.settings.as_deref());
                name(create.name.as_ref());
            }
        }
        7 => {
            if let Some(answer) = round_trip!(CreateTopicResponse, bytes) {
                metadata(answer.topic.as_deref());
            }
        }
        8 => {
            if let Some(alter) = round_trip!(AlterTopicRequest, bytes) {
                settings(alter.settings.as_deref());
                name(alter.name.as_ref());
            }
        }
        9 => {
            if let Some(answer) = round_trip!(AlterTopicResponse, bytes) {
                metadata(answer.topic.as_deref());
            }
        }
        10 => {
            if let Some(delete) = round_trip!(DeleteTopicRequest, bytes) {
                name(delete.name.as_ref());
            }
        }
        11 => _ = round_trip!(DeleteTopicResponse, bytes),
        12 => {
            if let Some(describe) = round_trip!(DescribePartitionRequest, bytes) {
                partition(describe.partition.as_ref());
            }
        }
        13 => _ = round_trip!(DescribePartitionResponse, bytes),
        14 => _ = round_trip!(InitProducerRequest, bytes),
        15 => _ = round_trip!(InitProducerResponse, bytes),
        16 => {
            let publish = round_trip!(PublishRequest, bytes);
            let parts = publish
                .and_then(|publish| publish.parts)
                .unwrap_or_default();
            assert!(
                parts.len() <= bytes.len(),
                "parts take room in the envelope"
            );
            parts
                .iter()
                .for_each(|part| partition(Some(&part.partition)));
        }
        17 => _ = round_trip!(PublishResponse, bytes),
        18 => {
            if let Some(fetch) = round_trip!(FetchRequest, bytes) {
                partition(fetch.partition.as_ref());
            }
        }
        19 => _ = round_trip!(FetchResponse, bytes),
        20 => {
            if let Some(subscribe) = round_trip!(SubscribeRequest, bytes) {
                partition(subscribe.partition.as_ref());
            }
        }
        21 => _ = round_trip!(SubscribeResponse, bytes),
        22 => _ = round_trip!(UnsubscribeRequest, bytes),
        23 => _ = round_trip!(UnsubscribeResponse, bytes),
        24 => _ = round_trip!(Credit, bytes),
        25 => _ = round_trip!(Push, bytes),
        26 => _ = round_trip!(ListOffsetsRequest, bytes),
        27 => _ = round_trip!(ListOffsetsResponse, bytes),
        28 => {
            if let Some(commit) = round_trip!(CommitOffsetRequest, bytes) {
                partition(commit.partition.as_ref());
            }
        }
        29 => _ = round_trip!(CommitOffsetResponse, bytes),
        30 => _ = round_trip!(ReadOffsetRequest, bytes),
        31 => _ = round_trip!(ReadOffsetResponse, bytes),
        32 => _ = round_trip!(DescribeShardRequest, bytes),
        33 => _ = round_trip!(DescribeShardResponse, bytes),
        34 => _ = round_trip!(ErrorResponse, bytes),
        _ => {}
    }
});
