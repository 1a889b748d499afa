//! Builds data directories byte by byte, the way a broker would have left them.

#![expect(dead_code, reason = "each test file uses a part of it")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use ringtide_log::recovery::{
    RecoverError, RecoverOptions, Recovered, log_name, recover, write_clean_stop,
};
use ringtide_schema::batch::{Codec, Header, assign};
use ringtide_schema::flatbuffers::FlatBufferBuilder;
use ringtide_schema::identity::Identity;
use ringtide_schema::ids::{GroupId, PartitionId, TopicId};
use ringtide_schema::limits::BLOCK_BYTES;
use ringtide_schema::record::BatchBuilder;
use ringtide_schema::snapshot;
use ringtide_schema::store::{
    CommitOffsetT, DeleteTopicT, GroupSnapshotT, MetaEntryT, PartitionT, TopicT,
};
use ringtide_schema::topic::TopicConfig;
use ringtide_schema::wal::{
    ENTRY_HEADER_BYTES, EntryHeader, EntryKind, FRAME_CLOSING, FRAME_HEADER_BYTES, FrameHeader,
    SlotHeader,
};
use tempfile::TempDir;

pub const DIRECTORY_ID: TopicId = TopicId { hi: 7, lo: 8 };
pub const SLOT_BYTES: u64 = 64 << 10;
pub const NOW_MS: i64 = 1_700_000_000_000;

/// Where a frame was put.
#[derive(Clone, Copy, Debug)]
pub struct Put {
    pub slot: usize,
    pub position: usize,
    pub bytes: usize,
}

/// The log of one shard, in memory until it is stored.
pub struct ShardLog {
    pub shard: u16,
    /// By generation, from 1.
    pub slots: Vec<Vec<u8>>,
    pub frames: Vec<Put>,
    pending: Vec<u8>,
    pending_count: u32,
    position: usize,
    pub next_seq: u64,
    previous_crc: u32,
}

/// A data directory being built.
pub struct Builder {
    pub root: TempDir,
    pub identity: Identity,
    pub logs: Vec<ShardLog>,
    group_index: Vec<u64>,
    next_offset: BTreeMap<PartitionId, u64>,
    /// All bytes ever published to a partition.
    pub expected: BTreeMap<PartitionId, Vec<u8>>,
    pub next_serial: u64,
    pub leader_epoch: i32,
}

impl Builder {
    pub fn new(groups: u16, shards: u16) -> Self {
        Self::with_slots(groups, shards, SLOT_BYTES)
    }

    pub fn with_slots(groups: u16, shards: u16, slot_bytes: u64) -> Self {
        let root = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a place for the test");
        Self::begin(root, groups, shards, slot_bytes)
    }

    /// In memory, where there is a file system for that: for tests that begin anew hundreds of times.
    pub fn in_memory(groups: u16, shards: u16) -> Self {
        Self::begin(place_in_memory(), groups, shards, SLOT_BYTES)
    }

    fn begin(root: TempDir, groups: u16, shards: u16, slot_bytes: u64) -> Self {
        let identity = Identity {
            data_directory: DIRECTORY_ID,
            groups,
            clean: false,
            incarnation: 3,
            leader_epoch: 1,
            shards: u32::from(shards),
            slot_bytes,
            snapshots_crc: 0,
        };
        for folder in ["groups", "partitions", "wal"] {
            fs::create_dir(root.path().join(folder)).expect("made");
        }
        let log = |shard| ShardLog {
            shard,
            slots: Vec::new(),
            frames: Vec::new(),
            pending: Vec::new(),
            pending_count: 0,
            position: 0,
            next_seq: 1,
            previous_crc: 0,
        };
        Self {
            root,
            identity,
            logs: (0..shards).map(log).collect(),
            group_index: vec![0; usize::from(groups) + 1],
            next_offset: BTreeMap::new(),
            expected: BTreeMap::new(),
            next_serial: 0,
            leader_epoch: 1,
        }
    }

    pub fn dir(&self) -> &Path {
        self.root.path()
    }

    pub fn shard_of(&self, id: PartitionId) -> u16 {
        self.group_of(id)
            .shard(self.identity.groups, self.logs.len() as u16)
    }

    pub fn group_of(&self, id: PartitionId) -> GroupId {
        id.group(self.identity.groups)
    }

    pub fn entry(&mut self, header: EntryHeader, payload: &[u8]) {
        let shard = header
            .group
            .shard(self.identity.groups, self.logs.len() as u16);
        let log = &mut self.logs[usize::from(shard)];
        let header = EntryHeader {
            seq: log.next_seq + u64::from(log.pending_count),
            payload_bytes: payload.len() as u32,
            payload_crc: crc32c::crc32c(payload),
            ..header
        };
        let at = log.pending.len();
        log.pending.resize(at + header.disk_bytes(), 0);
        let start = at + ENTRY_HEADER_BYTES;
        log.pending[start..start + payload.len()].copy_from_slice(payload);
        header.encode(self.identity.incarnation, &mut log.pending[at..]);
        log.pending_count += 1;
    }

    pub fn next_index(&mut self, group: GroupId) -> u64 {
        let index = &mut self.group_index[usize::from(group.0)];
        *index += 1;
        *index
    }

    fn header(&mut self, kind: EntryKind, group: GroupId, id: PartitionId) -> EntryHeader {
        EntryHeader {
            kind,
            group,
            seq: 0,
            group_index: self.next_index(group),
            term: 0,
            partition: id,
            base_offset: 0,
            append_time_ms: NOW_MS,
            payload_bytes: 0,
            payload_crc: 0,
        }
    }

    pub fn meta(&mut self, entry: &MetaEntryT) {
        let mut builder = FlatBufferBuilder::new();
        let root = entry.pack(&mut builder);
        builder.finish_minimal(root);
        let group = GroupId(self.identity.groups);
        let header = self.header(EntryKind::Meta, group, PartitionId::default());
        self.entry(header, builder.finished_data());
    }

    pub fn topic(&mut self, name: &str, partitions: u32, segment_bytes: u32) -> TopicId {
        let id = TopicId::new(0x1234_5678_9abc_def0, self.next_serial);
        self.next_serial += 1;
        let created = Some(Box::new(topic_t(id, name, partitions, segment_bytes)));
        self.meta(&MetaEntryT {
            created,
            ..MetaEntryT::default()
        });
        id
    }

    pub fn delete(&mut self, id: TopicId) {
        let deleted = Some(Box::new(DeleteTopicT {
            id: Some(id.into()),
        }));
        self.meta(&MetaEntryT {
            deleted,
            ..MetaEntryT::default()
        });
    }

    /// A batch of one record with `bytes` of value, its offset assigned.
    pub fn batch(&self, id: PartitionId, bytes: usize, producer: Option<(i64, i32)>) -> Vec<u8> {
        let next = self.next_offset.get(&id).copied().unwrap_or(0);
        let value: Vec<u8> = (0..bytes)
            .map(|i| (i as u64 * 7 + next * 13) as u8)
            .collect();
        let mut builder = BatchBuilder::new(Codec::None);
        builder.push(NOW_MS + next as i64, Some(b"key"), Some(&value), &[]);
        let (producer, epoch, sequence) =
            producer.map_or((-1, -1, -1), |(id, sequence)| (id, 0, sequence));
        let mut out = Vec::new();
        builder
            .finish(producer, epoch, sequence, &mut out)
            .expect("one record");
        assign(&mut out, next, self.leader_epoch);
        out
    }

    pub fn publish(&mut self, id: PartitionId, bytes: usize) {
        let batch = self.batch(id, bytes, None);
        self.publish_batch(id, &batch);
    }

    pub fn publish_batch(&mut self, id: PartitionId, batch: &[u8]) {
        let checked = Header::peek(batch).expect("a batch");
        let group = self.group_of(id);
        let mut header = self.header(EntryKind::Batch, group, id);
        header.base_offset = checked.base_offset;
        self.entry(header, batch);
        self.expected
            .entry(id)
            .or_default()
            .extend_from_slice(batch);
        self.next_offset.insert(id, checked.next_offset());
    }

    pub fn log_start(&mut self, id: PartitionId, start: u64) {
        let group = self.group_of(id);
        let mut header = self.header(EntryKind::LogStart, group, id);
        header.base_offset = start;
        self.entry(header, &[]);
    }

    pub fn commit_offset(&mut self, id: PartitionId, consumer: &str, offset: u64) {
        let mut builder = FlatBufferBuilder::new();
        let consumer = consumer.to_owned();
        let root = CommitOffsetT {
            consumer,
            offset,
            leader_epoch: 1,
            time_ms: 5,
        }
        .pack(&mut builder);
        builder.finish_minimal(root);
        let group = self.group_of(id);
        let header = self.header(EntryKind::CommitOffset, group, id);
        self.entry(header, builder.finished_data());
    }

    pub fn next_offset(&self, id: PartitionId) -> u64 {
        self.next_offset.get(&id).copied().unwrap_or(0)
    }

    /// Writes what is pending as one frame; everything before it is committed.
    pub fn frame(&mut self, shard: u16) -> Put {
        let committed = self.logs[usize::from(shard)].next_seq - 1;
        self.frame_with(shard, committed)
    }

    /// Writes what is pending of every shard, each as one frame.
    pub fn frames(&mut self) {
        for shard in 0..self.logs.len() as u16 {
            if self.logs[usize::from(shard)].pending_count > 0 {
                self.frame(shard);
            }
        }
    }

    pub fn closing(&mut self, shard: u16) -> Put {
        assert_eq!(self.logs[usize::from(shard)].pending_count, 0);
        self.frame(shard)
    }

    pub fn frame_with(&mut self, shard: u16, committed: u64) -> Put {
        let (slot_bytes, incarnation) = (self.identity.slot_bytes, self.identity.incarnation);
        let log = &mut self.logs[usize::from(shard)];
        let bytes = (FRAME_HEADER_BYTES + log.pending.len()).next_multiple_of(BLOCK_BYTES);
        if log.slots.is_empty() || log.position + bytes > slot_bytes as usize {
            let mut slot = vec![0; slot_bytes as usize];
            let header = SlotHeader {
                data_directory: DIRECTORY_ID,
                shard,
                generation: log.slots.len() as u64 + 1,
                incarnation,
                slot_bytes,
            };
            header.encode(&mut slot[..BLOCK_BYTES]);
            log.slots.push(slot);
            log.position = BLOCK_BYTES;
        }
        let header = FrameHeader {
            flags: if log.pending_count == 0 {
                FRAME_CLOSING
            } else {
                0
            },
            shard,
            generation: log.slots.len() as u64,
            incarnation,
            frame_seq: log.frames.len() as u64 + 1,
            committed,
            first_seq: log.next_seq,
            entries_bytes: log.pending.len() as u32,
            entry_count: log.pending_count,
            previous_crc: log.previous_crc,
        };
        let slot = log.slots.last_mut().expect("pushed above");
        let at = log.position;
        log.previous_crc = header.encode(&mut slot[at..]);
        let entries = at + FRAME_HEADER_BYTES;
        slot[entries..entries + log.pending.len()].copy_from_slice(&log.pending);
        log.position += bytes;
        log.next_seq = header.next_seq();
        log.pending.clear();
        log.pending_count = 0;
        let put = Put {
            slot: log.slots.len() - 1,
            position: at,
            bytes,
        };
        log.frames.push(put);
        put
    }

    pub fn slot_path(&self, shard: u16, slot: usize) -> PathBuf {
        self.dir()
            .join("wal")
            .join(format!("{:06}.wal", usize::from(shard) * 1000 + slot))
    }

    /// Fills a frame's place with `byte`, as if it had never been written or was damaged.
    pub fn overwrite(&mut self, shard: u16, put: Put, byte: u8) {
        let slot = &mut self.logs[usize::from(shard)].slots[put.slot];
        slot[put.position..put.position + put.bytes].fill(byte);
    }

    /// Writes identity and slots.
    pub fn store(&self) {
        fs::write(self.dir().join("identity"), self.identity.encode()).expect("written");
        for log in &self.logs {
            for (i, slot) in log.slots.iter().enumerate() {
                fs::write(self.slot_path(log.shard, i), slot).expect("written");
            }
        }
    }

    /// As a clean stop leaves it.
    pub fn store_clean(&mut self, recovered: &Recovered) {
        write_clean_stop(self.dir(), &recovered.identity).expect("written");
        let bytes = fs::read(self.dir().join("identity")).expect("read");
        self.identity = Identity::decode(&bytes).expect("whole");
    }

    pub fn store_snapshot(&self, snapshot: &GroupSnapshotT) {
        let name = GroupId(snapshot.group).snapshot_name();
        fs::write(
            self.dir().join("groups").join(name),
            snapshot::encode(snapshot),
        )
        .expect("written");
    }

    /// Forgets the logs and begins those of the next start, over what `recovered` has.
    pub fn next_start(&mut self, recovered: &Recovered) {
        self.identity = recovered.identity;
        for snapshot in &recovered.groups {
            self.group_index[usize::from(snapshot.group)] = snapshot.group_index;
        }
        for log in &mut self.logs {
            log.slots.clear();
            log.frames.clear();
            (log.next_seq, log.previous_crc, log.position) = (1, 0, 0);
        }
    }

    pub fn recover(&self) -> Result<Recovered, RecoverError> {
        recover(self.dir(), self.options(), &mut |_| {})
    }

    pub fn options(&self) -> RecoverOptions {
        RecoverOptions {
            direct: false,
            shards: self.logs.len() as u16,
            slot_bytes: self.identity.slot_bytes,
            groups_for_new: self.identity.groups,
            random: [1, 2],
        }
    }

    /// The bytes of a partition: its segments, checked for size, and its tail.
    pub fn bytes_of(&self, recovered: &Recovered, id: PartitionId) -> Vec<u8> {
        partition_bytes(self.dir(), recovered, id)
    }

    /// Every partition holds exactly what was published to it.
    pub fn assert_everything(&self, recovered: &Recovered) {
        for (&id, expected) in &self.expected {
            assert!(
                self.bytes_of(recovered, id) == *expected,
                "partition {id} differs"
            );
            let stored = stored(recovered, id).expect("known");
            assert_eq!(stored.next_offset, self.next_offset[&id]);
        }
    }
}

/// A directory in memory, where there is a file system for that.
pub fn place_in_memory() -> TempDir {
    TempDir::new_in("/dev/shm")
        .or_else(|_| TempDir::new_in(env!("CARGO_TARGET_TMPDIR")))
        .expect("a place for the test")
}

pub fn topic_t(id: TopicId, name: &str, partitions: u32, segment_bytes: u32) -> TopicT {
    let config = TopicConfig {
        segment_bytes,
        ..TopicConfig::default()
    };
    TopicT {
        id: Some(id.into()),
        name: name.to_owned(),
        partitions,
        config: Box::new(config.to_store()),
    }
}

pub fn stored(recovered: &Recovered, id: PartitionId) -> Option<&PartitionT> {
    recovered
        .groups
        .iter()
        .flat_map(|g| g.partitions.iter().flatten())
        .find(|p| {
            p.partition == id.partition && p.topic.as_ref().map(TopicId::from) == Some(id.topic)
        })
}

pub fn partition_bytes(dir: &Path, recovered: &Recovered, id: PartitionId) -> Vec<u8> {
    let Some(stored) = stored(recovered, id) else {
        return Vec::new();
    };
    let directory = dir.join("partitions").join(id.dir_name());
    let mut out = Vec::new();
    for segment in stored.segments.iter().flatten() {
        let bytes = fs::read(directory.join(log_name(segment.base_offset))).expect("a segment");
        assert_eq!(
            bytes.len() as u64,
            segment.bytes,
            "segment {}",
            segment.base_offset
        );
        assert!(segment.sealed || segment.bytes.is_multiple_of(BLOCK_BYTES as u64));
        out.extend(bytes);
    }
    out.extend(stored.tail.iter().flatten());
    out
}

/// Every file of a directory by its path in it, with its bytes.
pub fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut out = BTreeMap::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(at) = todo.pop() {
        for entry in fs::read_dir(&at).expect("listed") {
            let path = entry.expect("listed").path();
            if path.is_dir() {
                todo.push(path);
            } else {
                let name = path.strip_prefix(dir).expect("below").to_owned();
                out.insert(name, fs::read(&path).expect("read"));
            }
        }
    }
    out
}
