//! One partition against a plain list of batches: whatever the order in which its operations end,
//! whether the disk is full in between, readers find exactly what was appended.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use ringtide_io::{
    Chunk, DiskDone, DiskError, DiskErrorKind, DiskOp, FileId, IndexBytes, OpenMode, Pool,
};
use ringtide_log::partition::{
    FileRange, Ops, Partition, PartitionOp, Plan, SYNC_BYTES, TimePlan, WriteError,
};
use ringtide_schema::batch::{Batches, Codec, Header, assign};
use ringtide_schema::ids::{GroupId, PartitionId, TopicId};
use ringtide_schema::index::IndexBuilder;
use ringtide_schema::record::BatchBuilder;
use ringtide_schema::topic::TopicConfig;

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

struct Stored {
    base: u64,
    next: u64,
    timestamp_ms: i64,
    bytes: Vec<u8>,
}

/// A partition, its files, and what it must hold.
struct World {
    random: Random,
    pool: Pool,
    chunk: Option<Chunk>,
    partition: Partition,
    appended: Vec<Stored>,
    under_way: Vec<(PartitionOp, DiskOp)>,
    files: HashMap<PathBuf, Vec<u8>>,
    indexes: HashMap<PathBuf, Vec<u8>>,
    open: HashMap<FileId, PathBuf>,
    last_file: u64,
    turn: u64,
    is_full: bool,
    /// Ranges that memory ended.
    joined: u32,
    unreadable: HashSet<PathBuf>,
    /// Bytes of segments that cannot be read.
    damage: HashMap<PathBuf, usize>,
}

fn partition(segment_bytes: u32) -> Partition {
    let id = PartitionId {
        topic: TopicId::new(9, 0),
        partition: 0,
    };
    let config = TopicConfig {
        segment_bytes,
        ..TopicConfig::default()
    };
    Partition::create(id, GroupId(0), config, PathBuf::from("p"), 1)
}

impl World {
    fn new(seed: u64, segment_bytes: u32) -> Self {
        Self {
            random: Random(seed),
            pool: Pool::new(64 << 20).expect("memory"),
            chunk: None,
            partition: partition(segment_bytes),
            appended: Vec::new(),
            under_way: Vec::new(),
            files: HashMap::new(),
            indexes: HashMap::new(),
            open: HashMap::new(),
            last_file: 0,
            turn: 0,
            is_full: false,
            joined: 0,
            unreadable: HashSet::new(),
            damage: HashMap::new(),
        }
    }

    fn with<R>(&mut self, act: impl FnOnce(&mut Partition, &mut Ops<'_>) -> R) -> R {
        let mut ops = Ops {
            out: &mut self.under_way,
            files: &mut self.last_file,
            pool: &self.pool,
        };
        act(&mut self.partition, &mut ops)
    }

    fn append(&mut self, value_bytes: usize) {
        let base = self.partition.latest();
        let timestamp_ms = 1_000 + base as i64 / 3;
        let mut builder = BatchBuilder::new(Codec::None);
        let value = vec![base as u8; value_bytes];
        builder.push(timestamp_ms, None, Some(&value), &[]);
        let mut bytes = Vec::new();
        builder.finish(-1, -1, -1, &mut bytes).expect("one record");
        assign(&mut bytes, base, 1);
        if self.chunk.as_ref().is_none_or(|c| c.room() < bytes.len()) {
            self.chunk = self.pool.take_above(4);
        }
        let Some(chunk) = &mut self.chunk else { return };
        let at = chunk.len();
        chunk.append(&bytes);
        let slice = chunk.slice(at..at + bytes.len());
        let header = Header::peek(&bytes).expect("a batch");
        let seq = self.appended.len() as u64 + 1;
        self.partition.append(&header, 1, seq, slice, 0);
        self.appended.push(Stored {
            base,
            next: self.partition.latest(),
            timestamp_ms,
            bytes,
        });
    }

    /// Completes one operation.
    fn complete(&mut self, i: usize) -> Result<(), WriteError> {
        let (what, op) = self.under_way.swap_remove(i);
        let result = self.carry_out(op);
        let ended = self.partition.completed(what, result, self.turn);
        if let Some(file) = self.partition.take_sealed_file() {
            self.open.remove(&file);
        }
        ended.map(drop)
    }

    fn carry_out(&mut self, op: DiskOp) -> Result<DiskDone, DiskError> {
        let error = |kind, message: &str| DiskError {
            kind,
            message: message.to_owned(),
        };
        match op {
            DiskOp::Open { file, path, mode } => {
                if mode == OpenMode::Read && self.unreadable.contains(&path) {
                    return Err(error(DiskErrorKind::NotFound, "gone"));
                }
                if let OpenMode::Append { keep_bytes } = mode {
                    let contents = self.files.entry(path.clone()).or_default();
                    contents.truncate(keep_bytes as usize);
                }
                let bytes = self.files[&path].len() as u64;
                self.open.insert(file, path);
                Ok(DiskDone::Opened { bytes })
            }
            DiskOp::Write {
                file,
                position,
                data,
            } => {
                if self.is_full && self.random.below(2) == 0 {
                    return Err(error(DiskErrorKind::Full, "full"));
                }
                let contents = self.files.get_mut(&self.open[&file]).expect("open");
                let end = position as usize + data.len();
                contents.resize(contents.len().max(end), 0);
                contents[position as usize..end].copy_from_slice(&data);
                Ok(DiskDone::Done)
            }
            DiskOp::Seal {
                file,
                bytes,
                index_path,
                index,
            } => {
                let contents = self.files.get_mut(&self.open[&file]).expect("open");
                assert!(contents.len() >= bytes as usize, "sealed past its end");
                contents.truncate(bytes as usize);
                if !index.is_empty() {
                    self.indexes.insert(index_path, index);
                }
                Ok(DiskDone::Done)
            }
            DiskOp::LoadIndex {
                index_path,
                log_path,
                base_offset,
                bytes,
                ..
            } => {
                if self.unreadable.contains(&log_path) {
                    return Err(error(DiskErrorKind::NotFound, "gone"));
                }
                if let Some(index) = self.indexes.get(&index_path)
                    && self.random.below(2) == 0
                {
                    return Ok(DiskDone::Index(IndexBytes::File(Arc::new(index.clone()))));
                }
                let contents = &self.files[&log_path];
                let damage = self.damage.get(&log_path).copied();
                Ok(DiskDone::Index(built(
                    &contents[..bytes as usize],
                    base_offset,
                    damage,
                )))
            }
            DiskOp::Sync { .. } => Ok(DiskDone::Done),
            other => panic!("{other:?}"),
        }
    }

    /// Goes on as a snapshot has the partition, with the files as they are; what it lacks was never there.
    fn restart(&mut self) {
        let stored = self.partition.store();
        self.appended.retain(|b| b.next <= stored.next_offset);
        self.under_way.clear();
        self.open.clear();
        let config = *self.partition.config();
        self.partition = Partition::load(stored, GroupId(0), config, PathBuf::from("p"), 2);
    }

    fn step(&mut self) {
        self.turn += 1;
        match self.random.below(12) {
            0..3 => {
                let bytes = match self.random.below(3) {
                    0 => 10,
                    1 => 5_000,
                    _ => 60_000,
                };
                let bytes = 1 + self.random.below(bytes) as usize;
                self.append(bytes);
            }
            3 => {
                let committed = self.partition.committed();
                let ahead = self.partition.latest() - committed;
                let next = committed + self.random.below(ahead + 1);
                self.partition.commit(next);
            }
            4 | 5 => {
                let sync = self.random.below(2) == 0;
                self.with(|p, ops| p.write_out(sync, ops));
            }
            6 => self.partition.evict(0),
            7 if self.random.below(8) == 0 => self.partition.roll(),
            7 if self.random.below(4) == 0 => self.partition.flush(),
            7 => {
                let before = self.turn.saturating_sub(50);
                for file in self.partition.close_readers(before, before) {
                    self.open.remove(&file);
                }
            }
            8 if self.random.below(4) == 0 => self.is_full = !self.is_full,
            8 if self.random.below(8) == 0 => self.restart(),
            _ if !self.under_way.is_empty() => {
                let i = self.random.below(self.under_way.len() as u64) as usize;
                match self.complete(i) {
                    Ok(()) | Err(WriteError::DiskFull(_)) => {}
                    Err(error) => panic!("{error:?}"),
                }
            }
            _ => {}
        }
    }

    /// Reads once from an offset; whether it could be read.
    fn check_read(&mut self, offset: u64, max_bytes: usize) -> bool {
        let turn = self.turn;
        let (read, offsets) = match self.with(|p, ops| p.plan(offset, max_bytes, turn, ops)) {
            Plan::OutOfRange | Plan::Unreadable { .. } => {
                panic!("{offset} of {} is not found", self.appended.len())
            }
            Plan::Wait => return false,
            Plan::AtEnd => {
                assert!(offset >= self.partition.visible());
                return true;
            }
            Plan::Memory {
                slices, offsets, ..
            } => {
                let bytes = slices.iter().map(|s| &s[..]).collect::<Vec<_>>().concat();
                (bytes, offsets)
            }
            Plan::File { range, offsets } => {
                self.joined += u32::from(!range.rest.is_empty());
                (self.in_file(&range), offsets)
            }
        };
        let (first, next_offset) = (offsets.start, offsets.end);
        assert_eq!(first, Header::peek(&read).expect("a batch").base_offset);
        assert!(first <= offset && offset < next_offset);
        assert!(next_offset <= self.partition.visible());
        let expected: Vec<&[u8]> = self
            .appended
            .iter()
            .filter(|b| b.base >= first && b.next <= next_offset)
            .map(|b| &b.bytes[..])
            .collect();
        let expected = expected.concat();
        assert!(read == expected, "{first} to {next_offset} differ");
        true
    }

    fn in_file(&self, range: &FileRange) -> Vec<u8> {
        let position = range.position as usize;
        let in_file = range.file.map_or(&[][..], |file| {
            &self.files[&self.open[&file]][position..position + range.bytes]
        });
        [in_file, &range.rest].concat()
    }

    /// Searches once for a time; whether the search came to an end.
    fn check_time(&mut self, timestamp_ms: i64) -> bool {
        let turn = self.turn;
        let visible = self.partition.visible();
        let expected = self
            .appended
            .iter()
            .find(|b| b.next <= visible && b.timestamp_ms >= timestamp_ms)
            .map(|b| b.base);
        let mut offset = 0;
        loop {
            let found = match self.with(|p, ops| p.plan_time(timestamp_ms, offset, turn, ops)) {
                TimePlan::Wait(_) => return false,
                TimePlan::Unreadable { .. } => panic!("nothing is damaged"),
                TimePlan::None => None,
                TimePlan::Batch(bytes) => Some(Header::peek(&bytes).expect("a batch").base_offset),
                TimePlan::File {
                    range,
                    first_offset,
                    otherwise,
                } => {
                    let read = self.in_file(&range);
                    let first = Header::peek(&read).expect("a batch").base_offset;
                    assert_eq!(first, first_offset);
                    let found = Batches::new(&read)
                        .map(|batch| batch.expect("whole batches").0)
                        .find(|h| h.max_timestamp_ms >= timestamp_ms);
                    match found {
                        Some(header) => Some(header.base_offset),
                        None => {
                            offset = otherwise;
                            continue;
                        }
                    }
                }
            };
            assert_eq!(found, expected, "at or after {timestamp_ms}");
            return true;
        }
    }

    /// Ends everything that is under way and writes out what there is.
    fn drain(&mut self) {
        self.is_full = false;
        for _ in 0..10_000 {
            while !self.under_way.is_empty() {
                self.complete(0).expect("the disk has space");
            }
            if !self.with(|p, ops| p.write_out(true, ops)) && self.under_way.is_empty() {
                return;
            }
        }
        panic!("it never ends");
    }
}

/// The index that a scan of the segment gives, a byte of which may be damaged.
fn built(log: &[u8], base_offset: u64, damage: Option<usize>) -> IndexBytes {
    let mut index = IndexBuilder::new(base_offset);
    let (mut position, mut next_offset) = (0, base_offset);
    while let Some(Ok(header)) = log.get(position..).map(Header::peek) {
        let batch = position..position + header.batch_bytes;
        match damage.is_some_and(|byte| batch.contains(&byte)) {
            true => drop(index.add_damage(position as u64, next_offset)),
            false => index.add(position as u32, &header, true),
        }
        next_offset = header.next_offset();
        position += header.batch_bytes;
    }
    IndexBytes::Built {
        entries: index.finish(),
        covered_bytes: position as u64,
    }
}

#[test]
fn readers_find_what_was_appended_whatever_the_disk_does() {
    let (mut reads, mut searches, mut joined) = (0, 0, 0);
    for seed in 0..40 {
        let segment_bytes = [64 << 10, 300 << 10, 4 << 20][seed as usize % 3];
        let mut world = World::new(seed, segment_bytes);
        for _ in 0..1_500 {
            world.step();
            let latest = world.partition.latest();
            let offset = world.random.below(latest + 1);
            let max_bytes = 1 + world.random.below(200_000) as usize;
            reads += u32::from(world.check_read(offset, max_bytes));
            let time = 1_000 + world.random.below(latest / 3 + 2) as i64;
            searches += u32::from(world.check_time(time));
        }
        world.drain();
        world.partition.commit(world.partition.latest());
        world.drain();
        for offset in 0..world.partition.latest() {
            let mut tries = 0;
            while !world.check_read(offset, 1) {
                tries += 1;
                assert!(tries < 4, "seed {seed}: {offset} cannot be read");
                world.drain();
            }
        }
        let stored = world.partition.store();
        assert_eq!(stored.next_offset, world.partition.latest(), "all synced");
        joined += world.joined;
    }
    assert!(joined > 400, "{joined}");
    assert!(reads > 30_000 && searches > 20_000, "{reads} {searches}");
}

/// A partition with one sealed segment and some committed batches that no segment has yet.
fn with_a_sealed_segment() -> World {
    let mut world = World::new(1, 100 << 10);
    for _ in 0..30 {
        world.append(4_000);
    }
    world.partition.commit(world.partition.latest());
    world.drain();
    world.partition.evict(0);
    world
}

#[test]
fn a_sealed_segment_that_cannot_be_read_is_no_failure_of_the_writer() {
    let mut world = with_a_sealed_segment();
    let sealed = PathBuf::from("p/00000000000000000000.log");
    world.unreadable.insert(sealed);
    // The active segment is full, so that the next round begins a new one.
    world.partition.roll();
    world.drain();
    assert!(!world.check_read(0, 1), "its index was asked for");
    world.append(4_000);
    world.partition.commit(world.partition.latest());
    world.with(|p, ops| p.write_out(true, ops));
    while !world.under_way.is_empty() {
        match world.complete(0) {
            Ok(()) | Err(WriteError::Unreadable(_)) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
    world.drain();
    assert!(world.check_read(world.partition.latest() - 1, 1));
}

/// Records in an open segment from before a restart, half of which are more than is read at once.
const OLD: u64 = 80;

/// A partition with that segment, and its file.
fn with_an_open_segment() -> (World, PathBuf) {
    let mut world = World::new(1, 64 << 20);
    for _ in 0..OLD {
        world.append(60_000);
    }
    world.partition.commit(world.partition.latest());
    world.drain();
    world.restart();
    (world, PathBuf::from("p/00000000000000000000.log"))
}

/// Whether a read finds an offset; it may wait for an index and for a file, once each.
fn is_found(world: &mut World, offset: u64) -> bool {
    for _ in 0..3 {
        let turn = world.turn;
        match world.with(|p, ops| p.plan(offset, 1, turn, ops)) {
            Plan::Wait => world.drain(),
            Plan::Unreadable { next_offset } => {
                assert_eq!(next_offset, OLD, "the end of the segment");
                return false;
            }
            _ => return world.check_read(offset, 1),
        }
    }
    panic!("{offset} is waited for without end");
}

#[test]
fn what_is_appended_behind_damage_goes_to_a_new_segment_and_no_index_that_has_damage_is_kept() {
    let (mut world, log) = with_an_open_segment();
    let bytes = world.files[&log].len();
    world.damage.insert(log.clone(), bytes / 2);
    for round in 0..3 {
        for _ in 0..20 {
            world.append(4_000);
        }
        let end = world.partition.latest();
        world.partition.commit(end);
        world.drain();
        world.partition.evict(0);
        assert!((0..end).all(|offset| is_found(&mut world, offset)));
        assert_eq!(world.partition.size().0, 2, "segments in round {round}");
        assert!(!world.indexes.contains_key(&log.with_extension("index")));
        world.restart();
    }
    // The device has it again.
    world.damage.clear();
    world.restart();
    let end = world.partition.latest();
    assert!((0..end).all(|offset| is_found(&mut world, offset)));
}

#[test]
fn a_writer_that_gives_its_file_up_leaves_nothing_unclaimed_and_goes_on_with_it() {
    let mut world = World::new(1, 1 << 30);
    world.append(10_000);
    world.partition.commit(world.partition.latest());
    world.drain();
    // Less than a block: it stays with the writer.
    world.append(10);
    let latest = world.partition.latest();
    world.partition.commit(latest);
    world.with(|p, ops| p.write_out(false, ops));
    assert!(world.under_way.is_empty());
    assert!(!world.partition.is_synced_to(latest));
    // And one that is not given to it yet, as when a partition rests.
    world.append(10);
    world.partition.commit(world.partition.latest());
    assert!(
        world.partition.take_idle_file(world.turn).is_none(),
        "used in this turn"
    );
    assert!(world.partition.take_idle_file(world.turn + 1).is_some());
    assert!(world.partition.is_synced_to(latest));
    assert!(world.partition.take_idle_file(world.turn + 1).is_none());
    world.append(10_000);
    let latest = world.partition.latest();
    world.partition.commit(latest);
    world.drain();
    world.partition.evict(0);
    assert!((0..latest).all(|offset| is_found(&mut world, offset)));
}

#[test]
fn a_writer_whose_index_cannot_be_loaded_goes_on_in_the_next_segment() {
    let (mut world, log) = with_an_open_segment();
    world.unreadable.insert(log);
    for _ in 0..20 {
        world.append(4_000);
    }
    let end = world.partition.latest();
    world.partition.commit(end);
    world.with(|p, ops| p.write_out(true, ops));
    match world.complete(0) {
        Err(WriteError::Unreadable(_)) => {}
        other => panic!("{other:?}"),
    }
    world.drain();
    assert_eq!(world.partition.size().0, 2, "segments");
    world.partition.evict(0);
    assert!((OLD..end).all(|offset| is_found(&mut world, offset)));
    // What kept the index from being loaded has passed.
    world.unreadable.clear();
    assert!((0..end).all(|offset| is_found(&mut world, offset)));
}

#[test]
fn a_writer_asks_again_for_an_index_for_which_no_file_could_be_opened_and_stays_in_its_segment() {
    let (mut world, _) = with_an_open_segment();
    world.append(4_000);
    let end = world.partition.latest();
    world.partition.commit(end);
    for _ in 0..2 {
        assert!(world.with(|p, ops| p.write_out(true, ops)));
        let (what, _) = world.under_way.pop().expect("an operation");
        assert!(matches!(what, PartitionOp::LoadIndex(0)));
        let error = DiskError {
            kind: DiskErrorKind::TooManyFiles,
            message: "as many files are open as may be".into(),
        };
        match world.partition.completed(what, Err(error), world.turn) {
            Err(WriteError::DiskFull(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    world.drain();
    assert_eq!(world.partition.size().0, 1, "segments");
    world.partition.evict(0);
    assert!((0..end).all(|offset| is_found(&mut world, offset)));
}

#[test]
fn memory_holds_no_index_of_sealed_segments_that_nobody_reads() {
    let mut world = with_a_sealed_segment();
    let asks = |world: &mut World| {
        world.check_read(0, 1);
        let loads = |(op, _): &(PartitionOp, DiskOp)| matches!(op, PartitionOp::LoadIndex(0));
        world.under_way.iter().any(loads)
    };
    assert!(asks(&mut world), "after sealing");
    world.drain();
    assert!(!asks(&mut world), "while it is read");
    world.drain();
    world.partition.unload_indexes();
    assert!(!asks(&mut world), "its reader has its file open");
    world.turn += 100;
    world.partition.close_readers(world.turn, world.turn);
    assert!(asks(&mut world), "after its reader was closed");
    world.drain();
    world.partition.unload_indexes();
    assert!(asks(&mut world), "after nobody opened its file");
}

#[test]
fn what_was_written_before_the_disk_was_full_is_synced_before_more_is_tried() {
    let mut world = World::new(1, 1 << 30);
    let write = |world: &mut World| {
        world.append(60_000);
        world.partition.commit(world.partition.latest());
        world.with(|p, ops| p.write_out(false, ops));
        let mut ended = Ok(());
        while !world.under_way.is_empty() {
            ended = ended.and(world.complete(0));
        }
        ended
    };
    while world.partition.unsynced_bytes() == 0 {
        write(&mut world).expect("the disk has space");
    }
    world.is_full = true;
    while write(&mut world).is_ok() {}
    assert!(world.partition.unsynced_bytes() < SYNC_BYTES);
    world.with(|p, ops| p.write_out(true, ops));
    assert!(matches!(world.under_way[..], [(PartitionOp::Sync, _)]));
    world.complete(0).expect("a sync needs no space");
    assert!(world.partition.take_idle_file(world.turn + 1).is_some());
}

#[test]
fn much_unsynced_data_is_synced_before_more_is_written() {
    let mut world = World::new(1, 1 << 30);
    while world.partition.unsynced_bytes() < SYNC_BYTES {
        world.append(60_000);
        world.partition.commit(world.partition.latest());
        world.with(|p, ops| p.write_out(false, ops));
        while !world.under_way.is_empty() {
            world.complete(0).expect("the disk has space");
        }
        world.partition.evict(0);
    }
    world.append(60_000);
    world.partition.commit(world.partition.latest());
    world.with(|p, ops| p.write_out(true, ops));
    assert!(matches!(world.under_way[..], [(PartitionOp::Sync, _)]));
}
