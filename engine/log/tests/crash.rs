//! The log's writer, crashed at any moment, and recovery: what was committed is always there, in
//! order, and a start is never refused.
//!
//! The disk of the model applies a completed write whole. Of a write under way at the crash it
//! keeps all blocks, none, or any of them, each write for itself.

use std::fs;

use ringtide_io::{DiskOp, FileId, OpId, Pool};
use ringtide_log::recovery::{RecoverOptions, index_name, log_name, recover};
use ringtide_log::wal::{EntryClass, EntryMeta, Wal, WalConfig};
use ringtide_schema::batch::{CRC_START, Codec, assign};
use ringtide_schema::identity::Identity;
use ringtide_schema::ids::{GroupId, PartitionId, TopicId};
use ringtide_schema::limits::BLOCK_BYTES;
use ringtide_schema::record::BatchBuilder;
use ringtide_schema::snapshot;
use ringtide_schema::store::{EpochStartT, GroupSnapshotT, PartitionT, SegmentT, TopicT};
use ringtide_schema::topic::TopicConfig;
use ringtide_schema::wal::EntryKind;
use tempfile::TempDir;

const SLOT_BYTES: u64 = 4 << 20;
const SLOTS: usize = 3;
const DIRECTORY: TopicId = TopicId { hi: 1, lo: 2 };

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// One partition in one group, its log, and the model of the disk.
struct World {
    random: Random,
    wal: Wal,
    /// None where a slot was given up.
    slots: Vec<Option<Vec<u8>>>,
    /// Now and then the disk is full: slots are given up, and made again.
    is_full: bool,
    given_up: usize,
    under_way: Vec<(OpId, DiskOp)>,
    id: PartitionId,
    /// End in bytes of each batch appended, and all their bytes.
    ends: Vec<usize>,
    bytes: Vec<u8>,
    prefix_crcs: Vec<u32>,
    /// Batches that the snapshot holds.
    held: usize,
    now_ns: u64,
}

impl World {
    fn new(seed: u64, is_full: bool) -> Self {
        let config = WalConfig {
            shard: 0,
            data_directory: DIRECTORY,
            incarnation: 1,
            slot_bytes: SLOT_BYTES,
            max_in_flight: 8,
        };
        let pool = Pool::new(64 << 20).expect("memory");
        Self {
            random: Random(seed),
            wal: Wal::new(config, pool, (0..SLOTS as u64).map(FileId).collect()),
            slots: vec![Some(vec![0; SLOT_BYTES as usize]); SLOTS],
            is_full,
            given_up: 0,
            under_way: Vec::new(),
            id: PartitionId {
                topic: TopicId::new(9, 0),
                partition: 0,
            },
            ends: Vec::new(),
            bytes: Vec::new(),
            prefix_crcs: Vec::new(),
            held: 0,
            now_ns: 0,
        }
    }

    fn publish(&mut self) {
        let value = vec![self.ends.len() as u8; 1 + self.random.below(150_000) as usize];
        let mut builder = BatchBuilder::new(Codec::None);
        builder.push(1, None, Some(&value), &[]);
        let mut batch = Vec::new();
        builder.finish(-1, -1, -1, &mut batch).expect("one record");
        let offset = self.ends.len() as u64;
        assign(&mut batch, offset, 1);
        let meta = EntryMeta {
            kind: EntryKind::Batch,
            class: EntryClass::Ordinary,
            group: GroupId(0),
            group_index: offset + 1,
            partition: self.id,
            base_offset: offset,
            append_time_ms: 0,
        };
        let fill = |payload: &mut [u8]| payload.copy_from_slice(&batch);
        let appended = self
            .wal
            .append(meta, batch.len(), fill, self.now_ns, &mut self.under_way);
        let Ok(appended) = appended else { return };
        assert_eq!(appended.seq, offset + 1);
        let before = self.prefix_crcs.last().copied().unwrap_or(0);
        self.prefix_crcs
            .push(crc32c::crc32c_append(before, &batch[..CRC_START]));
        self.bytes.extend_from_slice(&batch);
        self.ends.push(self.bytes.len());
        if self.random.below(2) == 0 {
            self.wal.want(appended.seq);
        }
    }

    fn write(&mut self, op: &DiskOp, keep: impl Fn(usize) -> bool) {
        let DiskOp::Write {
            file,
            position,
            data,
        } = op
        else {
            panic!("{op:?}")
        };
        let slot = self.slots[file.0 as usize].as_mut().expect("not given up");
        for (i, block) in data
            .chunks(BLOCK_BYTES)
            .enumerate()
            .filter(|&(i, _)| keep(i))
        {
            let at = *position as usize + i * BLOCK_BYTES;
            slot[at..at + block.len()].copy_from_slice(block);
        }
    }

    fn step(&mut self) {
        match self.random.below(8) {
            0..4 => self.publish(),
            4..7 if !self.under_way.is_empty() => {
                let i = self.random.below(self.under_way.len() as u64) as usize;
                let (op, write) = self.under_way.swap_remove(i);
                self.write(&write, |_| true);
                self.wal.completed(op, self.now_ns, &mut self.under_way);
            }
            7 if self.random.below(4) == 0 => {
                self.held = self.wal.committed() as usize;
                self.wal
                    .release_through(self.held as u64, &mut self.under_way);
            }
            _ => self.now_ns += self.random.below(300_000_000),
        }
        self.wal.turn(self.now_ns, &mut self.under_way);
        if self.is_full && self.random.below(6) == 0 {
            let is_ending = self.random.below(2) == 0;
            if let Some(file) = self.wal.take_free_slot(is_ending) {
                self.slots[file.0 as usize] = None;
                self.given_up += 1;
            }
        }
        if self.is_full && self.random.below(30) == 0 {
            let gone = self.slots.iter().position(Option::is_none);
            if let Some(number) = gone {
                self.slots[number] = Some(vec![0; SLOT_BYTES as usize]);
                self.wal.add_slot(FileId(number as u64));
            }
        }
    }

    fn crash(&mut self) {
        for (_, write) in std::mem::take(&mut self.under_way) {
            let (how, mask) = (self.random.below(4), self.random.below(u64::from(u32::MAX)));
            match how {
                0 => {}
                1 => self.write(&write, |_| true),
                _ => self.write(&write, |i| (mask >> (i % 31)) & 1 == 1),
            }
        }
    }

    /// Writes the data directory as the crash left it.
    fn store(&self) -> TempDir {
        let root = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a place for the test");
        let dir = root.path();
        let partition = dir.join("partitions").join(self.id.dir_name());
        for folder in [&dir.join("groups"), &dir.join("wal"), &partition] {
            fs::create_dir_all(folder).expect("made");
        }
        let identity = Identity {
            data_directory: DIRECTORY,
            groups: 1,
            clean: false,
            incarnation: 1,
            leader_epoch: 1,
            shards: 1,
            slot_bytes: SLOT_BYTES,
            snapshots_crc: 0,
        };
        fs::write(dir.join("identity"), identity.encode()).expect("written");
        for (i, slot) in self.slots.iter().enumerate() {
            let Some(slot) = slot else { continue };
            fs::write(dir.join("wal").join(format!("{i:06}.wal")), slot).expect("written");
        }
        let metadata = GroupSnapshotT {
            group: 1,
            next_topic_serial: 1,
            topics: Some(vec![TopicT {
                id: Some(self.id.topic.into()),
                name: "t".to_owned(),
                partitions: 1,
                config: Box::new(TopicConfig::default().to_store()),
            }]),
            ..GroupSnapshotT::default()
        };
        let mut snapshots = vec![metadata];
        if self.held > 0 {
            let end = self.ends[self.held - 1];
            let synced = end / BLOCK_BYTES * BLOCK_BYTES;
            fs::write(partition.join(log_name(0)), &self.bytes[..synced]).expect("written");
            fs::write(partition.join(index_name(0)), "not an index").expect("written");
            let segment = SegmentT {
                next_offset: self.held as u64,
                bytes: synced as u64,
                max_timestamp_ms: 1,
                incarnation: 1,
                prefix_crc: self.prefix_crcs[self.held - 1],
                ..SegmentT::default()
            };
            snapshots.push(GroupSnapshotT {
                group_index: self.held as u64,
                partitions: Some(vec![PartitionT {
                    topic: Some(self.id.topic.into()),
                    next_offset: self.held as u64,
                    segments: Some(vec![segment]),
                    tail: Some(self.bytes[synced..end].to_vec()),
                    epochs: Some(vec![EpochStartT {
                        start_offset: 0,
                        epoch: 1,
                    }]),
                    ..PartitionT::default()
                }]),
                ..GroupSnapshotT::default()
            });
        }
        for snapshot in &snapshots {
            let name = GroupId(snapshot.group).snapshot_name();
            fs::write(dir.join("groups").join(name), snapshot::encode(snapshot)).expect("written");
        }
        root
    }

    /// Recovers, and gives how many batches are there.
    fn check(&self, seed: u64) -> usize {
        let root = self.store();
        let options = RecoverOptions {
            direct: false,
            shards: 1,
            slot_bytes: SLOT_BYTES,
            groups_for_new: 1,
            random: [1, 2],
        };
        let recovered = match recover(root.path(), options, &mut |_| {}) {
            Ok(recovered) => recovered,
            Err(error) => panic!("seed {seed}: {error}"),
        };
        let Some(stored) = recovered.groups[0].partitions.as_ref().map(|p| &p[0]) else {
            assert_eq!(self.wal.committed(), 0, "seed {seed}");
            return 0;
        };
        let batches = stored.next_offset as usize;
        assert!(
            batches as u64 >= self.wal.committed(),
            "seed {seed}: committed data is gone"
        );
        let partition = root.path().join("partitions").join(self.id.dir_name());
        let mut bytes = fs::read(partition.join(log_name(0))).expect("a segment");
        bytes.extend(stored.tail.iter().flatten());
        let expected = batches.checked_sub(1).map_or(0, |last| self.ends[last]);
        assert!(bytes == self.bytes[..expected], "seed {seed}: bytes differ");
        let segment = &stored.segments.as_ref().expect("one")[0];
        assert_eq!(
            segment.prefix_crc,
            self.prefix_crcs[batches - 1],
            "seed {seed}"
        );
        batches
    }
}

#[test]
fn whatever_was_committed_survives_a_crash_at_any_moment() {
    let (mut recycled, mut beyond) = (0, 0);
    for seed in 0..60 {
        let mut world = World::new(seed, false);
        for _ in 0..100 + world.random.below(900) {
            world.step();
        }
        let committed = world.wal.committed();
        world.crash();
        let batches = world.check(seed) as u64;
        beyond += u64::from(batches > committed);
        recycled += u64::from(world.wal.stats().bytes > SLOT_BYTES * SLOTS as u64);
    }
    assert!(
        recycled > 10 && beyond > 4,
        "the crashes are too tame: {recycled} {beyond}"
    );
}

#[test]
fn what_was_committed_survives_a_crash_while_slots_are_given_up() {
    let (mut given_up, mut few) = (0, 0);
    for seed in 0..60 {
        let mut world = World::new(seed, true);
        for _ in 0..100 + world.random.below(900) {
            world.step();
        }
        world.crash();
        world.check(seed);
        given_up += world.given_up;
        few += usize::from(world.slots.iter().flatten().count() < SLOTS);
    }
    assert!(
        given_up > 100 && few > 20,
        "the disk was never full: {given_up} {few}"
    );
}
