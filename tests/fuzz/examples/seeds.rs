//! Writes the inputs that every corpus begins with, made of the golden bytes and of what writers write:
//! `cargo run --release --example seeds` in tests/fuzz.
//!
//! Their names say what they are. What runs have found beside them is named by its hash.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

// It has the functions that code calls which is built with instructions for coverage, as this is.
use libfuzzer_sys as _;
use ringtide_fuzz::application::{self, Application, Manner};
use ringtide_fuzz::directory::{self, Kind, TOPIC};
use ringtide_fuzz::seal;
use ringtide_schema::batch::{Codec, assign};
use ringtide_schema::flatbuffers::{FlatBufferBuilder, WIPOffset};
use ringtide_schema::frame::{FrameHeader, Op};
use ringtide_schema::identity::Identity;
use ringtide_schema::ids::{GroupId, PartitionId, TopicId};
use ringtide_schema::index::{self, IndexEntry};
use ringtide_schema::limits::BLOCK_BYTES;
use ringtide_schema::record::BatchBuilder;
use ringtide_schema::store::{
    CommitOffsetT, DeleteTopicT, GroupSnapshotT, MetaEntryT, PartitionT, SegmentT, TopicT,
};
use ringtide_schema::topic::TopicConfig;
use ringtide_schema::wal::{
    self, ENTRY_HEADER_BYTES, EntryHeader, EntryKind, FRAME_CLOSING, FRAME_HEADER_BYTES, SlotHeader,
};
use ringtide_schema::{snapshot, wire};
use world::{MS, Setup, World};

// The broker that the client's inputs are recorded from.
#[path = "../../../engine/shard/tests/shard/disk.rs"]
#[expect(dead_code, reason = "nothing fails or is held back here")]
mod disk;
#[path = "../../../engine/shard/tests/shard/peer.rs"]
#[expect(dead_code, reason = "the client says it")]
mod peer;
#[path = "../../../engine/shard/tests/shard/world.rs"]
#[expect(dead_code, reason = "a connection is a part of it")]
mod world;

const NOW_MS: i64 = 1_700_000_000_000;
/// Data groups of the directories.
const GROUPS: u16 = 2;
const INCARNATION: u64 = 3;
const SLOT_BYTES: u64 = 16 << 10;

/// The envelopes, in the order of the numbers that the target `envelope` gives them.
const ENVELOPES: [&str; 35] = [
    "hello-request",
    "hello-response",
    "ping-request",
    "ping-response",
    "metadata-request",
    "metadata-response",
    "create-topic-request",
    "create-topic-response",
    "alter-topic-request",
    "alter-topic-response",
    "delete-topic-request",
    "delete-topic-response",
    "describe-partition-request",
    "describe-partition-response",
    "init-producer-request",
    "init-producer-response",
    "publish-request",
    "publish-response",
    "fetch-request",
    "fetch-response",
    "subscribe-request",
    "subscribe-response",
    "unsubscribe-request",
    "unsubscribe-response",
    "credit",
    "push",
    "list-offsets-request",
    "list-offsets-response",
    "commit-offset-request",
    "commit-offset-response",
    "read-offset-request",
    "read-offset-response",
    "describe-shard-request",
    "describe-shard-response",
    "error-response",
];

/// Where the crate is.
fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn golden(name: &str) -> io::Result<Vec<u8>> {
    let path = here().join("../golden").join(format!("{name}.hex"));
    let text = fs::read_to_string(path)?;
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| {
        let digit = |d: u8| char::from(d).to_digit(16).unwrap_or_default() as u8;
        digit(pair[0]) << 4 | digit(pair[1])
    };
    Ok(digits.chunks_exact(2).map(byte).collect())
}

fn put(target: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
    let folder: PathBuf = here().join("corpus").join(target);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join(name), bytes)
}

fn packed<T>(pack: impl FnOnce(&mut FlatBufferBuilder<'static>) -> WIPOffset<T>) -> Vec<u8> {
    let mut builder = FlatBufferBuilder::new();
    let root = pack(&mut builder);
    builder.finish_minimal(root);
    builder.finished_data().to_vec()
}

fn batch(codec: Codec, values: &[&str], offset: u64) -> Vec<u8> {
    let mut builder = BatchBuilder::new(codec);
    for (value, delta) in values.iter().zip(0..) {
        let time = NOW_MS + offset as i64 + delta;
        builder.push(
            time,
            Some(b"key"),
            Some(value.as_bytes()),
            &[("h", Some(b"v"))],
        );
    }
    let mut out = Vec::new();
    builder
        .finish(9, 0, offset as i32, &mut out)
        .expect("records");
    assign(&mut out, offset, 1);
    out
}

fn main() -> io::Result<()> {
    wire()?;
    client()?;
    batches()?;
    log()?;
    small_files()?;
    metadata()?;
    directories()?;
    put("config", "all", CONFIG.as_bytes())?;
    put("config", "lists", b"cpus = [0, 1]\nlisten = '[::1]:7311'\n")?;
    put("config", "table", b"[listen]\nhost = \"x\"\n")?;
    put("config", "unknown", b"# a comment\nwal-slot = 4\n")
}

const CONFIG: &str = r#"data-dir = "data"
listen = "127.0.0.1:7311"
advertise = "broker-1"
cpus = "0-1,3"
idle = "adaptive"
idle-spin-us = 100
memory-bytes = "64MiB"
wal-slot-bytes = "8MiB"
wal-slots = 4
max-connections = 100
max-in-flight-requests = 16
log-groups = 8
sync-interval-ms = 500
catch-up = "copy"
log-level = "debug"
log-format = "json"
shutdown-timeout-ms = 1000
"#;

fn frame(op: Op, correlation: u64, envelope: &[u8], payload: &[u8]) -> Vec<u8> {
    let header = FrameHeader::new(op, 0, correlation, envelope.len(), payload.len());
    [&header.encode()[..], envelope, payload].concat()
}

/// A stream behind how it is cut.
fn cut(lengths: &[u8], frames: &[Vec<u8>]) -> Vec<u8> {
    [&[lengths.len() as u8][..], lengths, &frames.concat()].concat()
}

fn wire() -> io::Result<()> {
    put("frame", "header", &golden("wire/frame-header")?)?;
    for (name, number) in ENVELOPES.iter().zip(0..) {
        let envelope = golden(&format!("wire/{name}"))?;
        put("envelope", name, &[&[number][..], &envelope].concat())?;
    }
    let golden_frame = |op, name: &str| golden(name).map(|bytes| frame(op, 1, &bytes, b"payload"));
    let stream = [
        golden_frame(Op::Hello, "wire/hello-request")?,
        golden_frame(Op::Metadata, "wire/metadata-request")?,
        frame(Op::Ping, 2, &[], &[]),
    ];
    put("session", "whole", &cut(&[], &stream))?;
    put("session", "cut", &cut(&[1, 40, 3, 32, 90], &stream))?;
    for (name, request) in requests() {
        let hello = wire::HelloRequestT {
            min_version: 1,
            max_version: 1,
            ..wire::HelloRequestT::default()
        };
        let hello = frame(Op::Hello, 1, &packed(|b| hello.pack(b)), &[]);
        let stream = [&[hello][..], &request].concat();
        let mut input = cut(&[7, 60, 50], &stream);
        put("shard", name, &input)?;
        for (shards, number) in [("first-of-two", 1), ("second-of-two", 3)] {
            input[0] = input[0] & 15 | number << 4;
            put("shard", &format!("{name}-{shards}"), &input)?;
        }
    }
    Ok(())
}

/// What a broker says to the application of the target `client`, until it has nothing more to say.
fn client() -> io::Result<()> {
    for manner in 0..16 {
        let setup = Setup::new(1).topic(application::TOPIC, 2);
        let mut world = World::new(&setup);
        let peer = world.open(0);
        let mut application = Application::new(Manner(manner));
        let mut input = vec![manner];
        let mut said = application.turn();
        let mut answers = VecDeque::new();
        loop {
            world.write(peer, &said);
            world.pass(20 * MS);
            answers.extend(world.hear(peer));
            let Some(heard) = answers.pop_front() else {
                break;
            };
            let (flags, envelope, payload) = (heard.flags, &heard.envelope, &heard.payload);
            let header = FrameHeader::new(
                heard.op,
                flags,
                heard.correlation,
                envelope.len(),
                payload.len(),
            );
            let frame = [&header.encode()[..], envelope, payload].concat();
            said = application.told(&frame);
            input.extend(frame);
        }
        put("client", &format!("manner-{manner}"), &input)?;
    }
    Ok(())
}

/// Requests to the topic that the target `shard` has.
fn requests() -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let partition = || wire::PartitionRefT {
        topic: wire::TopicIdT {
            hi: TopicId::new(1, 1).hi,
            lo: TopicId::new(1, 1).lo,
        },
        partition: 1,
    };
    let mut publish_batch = batch(Codec::None, &["a", "b"], 0);
    assign(&mut publish_batch, 0, -1);
    let publish = |correlation, acks, parts: usize| {
        let part = || wire::PublishPartT {
            partition: partition(),
            batch_bytes: publish_batch.len() as u32,
        };
        let request = wire::PublishRequestT {
            acks,
            parts: Some((0..parts).map(|_| part()).collect()),
        };
        let payload = publish_batch.repeat(parts);
        frame(
            Op::Publish,
            correlation,
            &packed(|b| request.pack(b)),
            &payload,
        )
    };
    let fetch = wire::FetchRequestT {
        partition: Some(partition()),
        offset: 0,
        max_bytes: 4096,
        min_bytes: 1,
        max_wait_ms: 10,
    };
    let subscribe = wire::SubscribeRequestT {
        partition: Some(partition()),
        offset: -2,
        credit_bytes: 100,
    };
    let credit = wire::CreditT {
        subscription: 11,
        bytes: 1000,
    };
    let list = wire::ListOffsetsRequestT {
        partition: Some(partition()),
        at: NOW_MS,
    };
    let commit = wire::CommitOffsetRequestT {
        consumer: Some("reader".into()),
        partition: Some(partition()),
        offset: 1,
        leader_epoch: 1,
    };
    let read = wire::ReadOffsetRequestT {
        consumer: Some("reader".into()),
        partition: Some(partition()),
    };
    let describe = wire::DescribePartitionRequestT {
        partition: Some(partition()),
    };
    let settings = wire::TopicSettingsT {
        segment_bytes: Some(1 << 20),
        ..wire::TopicSettingsT::default()
    };
    let create = wire::CreateTopicRequestT {
        name: Some("orders".into()),
        partitions: 2,
        settings: Some(Box::new(settings.clone())),
    };
    let alter = wire::AlterTopicRequestT {
        name: Some("ticks".into()),
        partitions: Some(3),
        settings: Some(Box::new(settings)),
    };
    let delete = wire::DeleteTopicRequestT {
        name: Some("ticks".into()),
    };
    let metadata = wire::MetadataRequestT {
        topics: Some(vec!["ticks".into(), "none".into()]),
    };
    let unsubscribe = wire::UnsubscribeRequestT { subscription: 11 };
    vec![
        (
            "publish",
            vec![publish(10, 2, 1), publish(11, 1, 2), publish(12, 0, 1)],
        ),
        (
            "fetch",
            vec![
                publish(10, 1, 1),
                frame(Op::Fetch, 11, &packed(|b| fetch.pack(b)), &[]),
                frame(Op::ListOffsets, 12, &packed(|b| list.pack(b)), &[]),
            ],
        ),
        (
            "subscribe",
            vec![
                frame(Op::Subscribe, 11, &packed(|b| subscribe.pack(b)), &[]),
                publish(12, 2, 1),
                frame(Op::Credit, 13, &packed(|b| credit.pack(b)), &[]),
                frame(Op::Unsubscribe, 14, &packed(|b| unsubscribe.pack(b)), &[]),
            ],
        ),
        (
            "offsets",
            vec![
                frame(Op::CommitOffset, 11, &packed(|b| commit.pack(b)), &[]),
                frame(Op::ReadOffset, 12, &packed(|b| read.pack(b)), &[]),
                frame(
                    Op::DescribePartition,
                    13,
                    &packed(|b| describe.pack(b)),
                    &[],
                ),
            ],
        ),
        (
            "topics",
            vec![
                frame(Op::CreateTopic, 11, &packed(|b| create.pack(b)), &[]),
                frame(Op::AlterTopic, 12, &packed(|b| alter.pack(b)), &[]),
                frame(Op::DeleteTopic, 13, &packed(|b| delete.pack(b)), &[]),
            ],
        ),
        (
            "others",
            vec![
                frame(Op::Metadata, 11, &packed(|b| metadata.pack(b)), &[]),
                frame(
                    Op::InitProducer,
                    12,
                    &packed(|b| wire::InitProducerRequestT {}.pack(b)),
                    &[],
                ),
                frame(
                    Op::DescribeShard,
                    13,
                    &packed(|b| wire::DescribeShardRequestT {}.pack(b)),
                    &[],
                ),
                frame(
                    Op::Ping,
                    14,
                    &packed(|b| wire::PingRequestT {}.pack(b)),
                    &[],
                ),
            ],
        ),
    ]
}

fn batches() -> io::Result<()> {
    for name in ["one", "mixed", "lz4", "zstd"] {
        let bytes = golden(&format!("record-batch/{name}"))?;
        put("batch", name, &bytes)?;
        put("segment", name, &bytes)?;
        let records = &bytes[ringtide_schema::batch::HEADER_BYTES..];
        let codec = bytes[22];
        put("compress", name, &[&[codec, 0, 4], records].concat())?;
    }
    let two = [
        batch(Codec::None, &["a", "b"], 0),
        batch(Codec::Zstd, &["ccc"], 2),
    ];
    put("batch", "two", &two.concat())?;
    put("segment", "two", &two.concat())
}

fn log() -> io::Result<()> {
    for (number, name) in [(0, "slot-header"), (1, "frame-header")] {
        let bytes = golden(&format!("wal/{name}"))?;
        put("log_header", name, &[&[number][..], &bytes].concat())?;
    }
    let mut entry = [&[2][..], &golden("wal/entry-header")?, b"hello"].concat();
    seal::log_header(&mut entry);
    put("log_header", "entry", &entry)?;

    let mut log = Log::new();
    log.add(
        EntryKind::Batch,
        GroupId(0),
        partition(0),
        0,
        &batch(Codec::None, &["one"], 0),
    );
    let frame = log.frame();
    put("planted", "frame", &frame)?;
    log.add(EntryKind::LogStart, GroupId(0), partition(0), 1, &[]);
    log.add(
        EntryKind::CommitOffset,
        GroupId(0),
        partition(0),
        0,
        &commit(),
    );
    let mut slot = Vec::new();
    directory::put(&mut slot, Kind::Slot, 0, &slot_header(1));
    directory::put(&mut slot, Kind::Frame, 0, &frame);
    directory::put(&mut slot, Kind::Frame, 0, &log.frame());
    directory::put(&mut slot, Kind::Frame, 0, &log.frame());
    put("log", "slot", &slot)
}

fn small_files() -> io::Result<()> {
    put("identity", "clean", &golden("directory/identity")?)?;
    put("snapshot", "group", &golden("directory/snapshot")?)?;
    let metadata = GroupSnapshotT {
        group: 64,
        group_index: 3,
        topics: Some(vec![topic(1)]),
        next_topic_serial: 1,
        ..GroupSnapshotT::default()
    };
    put("snapshot", "metadata", &snapshot::encode(&metadata))?;
    put("index", "two", &golden("segment/index")?)?;
    let entry = |n: u32| IndexEntry {
        relative_offset: n * 10,
        position: n * 40_000,
        timestamp_ms: NOW_MS + i64::from(n),
        max_timestamp_before_ms: if n == 0 {
            i64::MIN
        } else {
            NOW_MS + i64::from(n)
        },
    };
    let entries: Vec<IndexEntry> = (0..5).map(entry).collect();
    put("index", "five", &index::encode(0, 200_000, &entries))
}

fn metadata() -> io::Result<()> {
    for name in ["meta-created", "meta-altered", "meta-deleted"] {
        let bytes = golden(&format!("wal/{name}"))?;
        put("metadata", name, &[&[0][..], &bytes].concat())?;
    }
    put(
        "metadata",
        "commit-offset",
        &[&[1][..], &golden("wal/commit-offset")?].concat(),
    )
}

fn partition(number: u32) -> PartitionId {
    PartitionId {
        topic: TOPIC,
        partition: number,
    }
}

fn topic(partitions: u32) -> TopicT {
    TopicT {
        id: Some(TOPIC.into()),
        name: "ticks".into(),
        partitions,
        config: Box::new(TopicConfig::default().to_store()),
    }
}

fn commit() -> Vec<u8> {
    let commit = CommitOffsetT {
        consumer: "reader".into(),
        offset: 1,
        leader_epoch: 1,
        time_ms: NOW_MS,
    };
    packed(|b| commit.pack(b))
}

fn slot_header(generation: u64) -> Vec<u8> {
    let mut block = vec![0; BLOCK_BYTES];
    let header = SlotHeader {
        data_directory: TopicId { hi: 7, lo: 8 },
        shard: 0,
        generation,
        incarnation: INCARNATION,
        slot_bytes: SLOT_BYTES,
    };
    header.encode(&mut block);
    block.truncate(64);
    block
}

fn identity(clean: bool, snapshots_crc: u32) -> Vec<u8> {
    let identity = Identity {
        data_directory: TopicId { hi: 7, lo: 8 },
        groups: GROUPS,
        clean,
        incarnation: INCARNATION,
        leader_epoch: 1,
        shards: 1,
        slot_bytes: SLOT_BYTES,
        snapshots_crc,
    };
    identity.encode().to_vec()
}

/// The log of a shard, frame by frame.
struct Log {
    group_index: [u64; GROUPS as usize + 1],
    entries: Vec<u8>,
    count: u32,
    first_seq: u64,
    frame_seq: u64,
    generation: u64,
    previous_crc: u32,
}

impl Log {
    fn new() -> Self {
        Self {
            group_index: [0; GROUPS as usize + 1],
            entries: Vec::new(),
            count: 0,
            first_seq: 1,
            frame_seq: 1,
            generation: 1,
            previous_crc: 0,
        }
    }

    fn add(
        &mut self,
        kind: EntryKind,
        group: GroupId,
        id: PartitionId,
        offset: u64,
        payload: &[u8],
    ) {
        let index = &mut self.group_index[usize::from(group.0)];
        *index += 1;
        let header = EntryHeader {
            kind,
            group,
            seq: self.first_seq + u64::from(self.count),
            group_index: *index,
            term: 0,
            partition: id,
            base_offset: offset,
            append_time_ms: NOW_MS,
            payload_bytes: payload.len() as u32,
            payload_crc: crc32c::crc32c(payload),
        };
        let at = self.entries.len();
        self.entries.resize(at + header.disk_bytes(), 0);
        let start = at + ENTRY_HEADER_BYTES;
        self.entries[start..start + payload.len()].copy_from_slice(payload);
        header.encode(INCARNATION, &mut self.entries[at..]);
        self.count += 1;
    }

    fn meta(&mut self, entry: &MetaEntryT) {
        let payload = packed(|b| entry.pack(b));
        self.add(
            EntryKind::Meta,
            GroupId(GROUPS),
            PartitionId::default(),
            0,
            &payload,
        );
    }

    fn data(&mut self, kind: EntryKind, id: PartitionId, offset: u64, payload: &[u8]) {
        self.add(kind, id.group(GROUPS), id, offset, payload);
    }

    fn create(&mut self) {
        self.meta(&MetaEntryT {
            created: Some(Box::new(topic(2))),
            ..MetaEntryT::default()
        });
    }

    fn publish(&mut self, number: u32, values: &[&str], offset: u64) {
        let batch = batch(Codec::None, values, offset);
        self.data(EntryKind::Batch, partition(number), offset, &batch);
    }

    /// What was added as a frame; a closing one if that is nothing.
    fn frame(&mut self) -> Vec<u8> {
        let header = wal::FrameHeader {
            flags: if self.count == 0 { FRAME_CLOSING } else { 0 },
            shard: 0,
            generation: self.generation,
            incarnation: INCARNATION,
            frame_seq: self.frame_seq,
            committed: self.first_seq - 1,
            first_seq: self.first_seq,
            entries_bytes: self.entries.len() as u32,
            entry_count: self.count,
            previous_crc: self.previous_crc,
        };
        let mut out = vec![0; FRAME_HEADER_BYTES];
        self.previous_crc = header.encode(&mut out);
        out.append(&mut self.entries);
        self.first_seq = header.next_seq();
        self.frame_seq += 1;
        self.count = 0;
        out
    }
}

fn directories() -> io::Result<()> {
    let mut log = Log::new();
    log.create();
    let created = log.frame();
    log.publish(0, &["a", "b"], 0);
    log.publish(1, &["c"], 0);
    log.data(EntryKind::CommitOffset, partition(0), 0, &commit());
    let published = log.frame();
    let mut out = Vec::new();
    directory::put(&mut out, Kind::Identity, 0, &identity(false, 0));
    directory::put(&mut out, Kind::Slot, 0, &slot_header(1));
    directory::put(&mut out, Kind::Frame, 0, &created);
    directory::put(&mut out, Kind::Frame, 0, &published);
    put("recovery", "log", &out)?;

    // A second slot, and a log that is closed.
    let mut longer = out.clone();
    log.publish(0, &["d"], 2);
    directory::put(&mut longer, Kind::Frame, 0, &log.frame());
    log.generation = 2;
    directory::put(&mut longer, Kind::Slot, 1, &slot_header(2));
    log.data(EntryKind::LogStart, partition(0), 1, &[]);
    directory::put(&mut longer, Kind::Frame, 0, &log.frame());
    log.meta(&MetaEntryT {
        altered: Some(Box::new(topic(3))),
        ..MetaEntryT::default()
    });
    log.meta(&MetaEntryT {
        deleted: Some(Box::new(DeleteTopicT {
            id: Some(TOPIC.into()),
        })),
        ..MetaEntryT::default()
    });
    directory::put(&mut longer, Kind::Frame, 0, &log.frame());
    directory::put(&mut longer, Kind::Frame, 0, &log.frame());
    put("recovery", "two-slots", &longer)?;

    // The last frame is torn, and one behind it is not.
    let mut torn = out;
    log.generation = 1;
    let mut last = log.frame();
    last.truncate(40);
    directory::put(&mut torn, Kind::Frame, 0, &last);
    directory::put(&mut torn, Kind::Frame, 0, &log.frame());
    put("recovery", "torn", &torn)?;
    stopped()
}

/// A directory with snapshots and segments, after a clean stop and with a log that goes on.
fn stopped() -> io::Result<()> {
    let id = partition(0);
    let group = id.group(GROUPS);
    let batches = [
        batch(Codec::None, &["a", "b"], 0),
        batch(Codec::None, &["c"], 2),
    ];
    let bytes = batches.concat();
    let prefixes: Vec<u8> = batches.iter().flat_map(|b| b[..21].to_vec()).collect();
    let sealed = SegmentT {
        base_offset: 0,
        next_offset: 3,
        bytes: bytes.len() as u64,
        max_timestamp_ms: NOW_MS + 2,
        incarnation: 2,
        sealed: true,
        prefix_crc: crc32c::crc32c(&prefixes),
        ..SegmentT::default()
    };
    let open = SegmentT {
        base_offset: 3,
        next_offset: 3,
        incarnation: 2,
        ..SegmentT::default()
    };
    let data = GroupSnapshotT {
        group: group.0,
        group_index: 4,
        partitions: Some(vec![PartitionT {
            topic: Some(TOPIC.into()),
            next_offset: 4,
            segments: Some(vec![sealed, open]),
            tail: Some(batch(Codec::None, &["d"], 3)),
            ..PartitionT::default()
        }]),
        ..GroupSnapshotT::default()
    };
    let metadata = GroupSnapshotT {
        group: GROUPS,
        group_index: 1,
        topics: Some(vec![topic(2)]),
        next_topic_serial: 1,
        ..GroupSnapshotT::default()
    };
    let snapshots = [snapshot::encode(&data), snapshot::encode(&metadata)];
    let mut files = Vec::new();
    directory::put(&mut files, Kind::Snapshot, group.0 as u8, &snapshots[0]);
    directory::put(&mut files, Kind::Snapshot, GROUPS as u8, &snapshots[1]);
    directory::put(&mut files, Kind::Segment, 0, &bytes);
    let entry = IndexEntry {
        relative_offset: 0,
        position: 0,
        timestamp_ms: NOW_MS,
        max_timestamp_before_ms: i64::MIN,
    };
    let index = index::encode(0, bytes.len() as u32, &[entry]);
    directory::put(&mut files, Kind::Index, 0, &index);

    let mut clean = Vec::new();
    let crc = crc32c::crc32c(&snapshots.concat());
    directory::put(&mut clean, Kind::Identity, 0, &identity(true, crc));
    put("recovery", "stopped", &[&clean[..], &files].concat())?;

    let mut running = Vec::new();
    directory::put(&mut running, Kind::Identity, 0, &identity(false, 0));
    running.extend(files);
    let mut log = Log::new();
    log.group_index[usize::from(group.0)] = 4;
    log.publish(0, &["e", "f"], 4);
    directory::put(&mut running, Kind::Slot, 0, &slot_header(1));
    directory::put(&mut running, Kind::Frame, 0, &log.frame());
    put("recovery", "running", &running)
}
