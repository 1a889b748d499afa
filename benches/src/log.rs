//! The write-ahead log up to the submission of its write, which then is done at once, and look-ups in
//! the index of a segment.

use std::hint::black_box;

use ringtide_io::{DiskOp, FileId, OpId, Pool};
use ringtide_log::segment::Segment;
use ringtide_log::wal::{EntryClass, EntryMeta, Wal, WalConfig};
use ringtide_schema::ids::{GroupId, TopicId};
use ringtide_schema::wal::EntryKind;

use crate::{LARGE, Operation, SMALL, TIMESTAMP_MS, batch, jumping, partition};

/// A log whose writes are done as soon as they were submitted.
struct Log {
    wal: Wal,
    ops: Vec<(OpId, DiskOp)>,
    index: u64,
}

impl Log {
    fn new() -> Self {
        let config = WalConfig {
            shard: 0,
            data_directory: TopicId { hi: 1, lo: 2 },
            incarnation: 1,
            slot_bytes: 64 << 20,
            max_in_flight: 4,
        };
        let pool = Pool::new(64 << 20).expect("there is memory");
        let slots = (0..4).map(FileId).collect();
        Self {
            wal: Wal::new(config, pool, slots),
            ops: Vec::new(),
            index: 0,
        }
    }

    /// Appends a batch and submits the write of its frame.
    fn append(&mut self, batch: &[u8]) {
        let meta = EntryMeta {
            kind: EntryKind::Batch,
            class: EntryClass::Ordinary,
            group: GroupId(0),
            group_index: self.index,
            partition: partition(),
            base_offset: self.index,
            append_time_ms: TIMESTAMP_MS,
        };
        self.index += 1;
        let copy = |place: &mut [u8]| place.copy_from_slice(batch);
        let appended = self.wal.append(meta, batch.len(), copy, 0, &mut self.ops);
        self.wal.want(appended.expect("there is room").seq);
        self.wal.turn(0, &mut self.ops);
    }

    /// Lets what was submitted be done.
    fn complete(&mut self) {
        while let Some((op, _)) = self.ops.pop() {
            self.wal.completed(op, 0, &mut self.ops);
        }
        assert_eq!(self.wal.committed(), self.wal.appended());
        self.wal
            .release_through(self.wal.committed(), &mut self.ops);
        while let Some((op, _)) = self.ops.pop() {
            self.wal.completed(op, 0, &mut self.ops);
        }
    }
}

fn append(shape: (u32, usize)) -> Operation {
    let (mut log, batch) = (Log::new(), batch(shape));
    Operation::new(move || {
        log.append(black_box(&batch));
        log.complete();
    })
}

/// A small batch into the log, in a frame of its own.
pub fn wal_append_small() -> Operation {
    append(SMALL)
}

/// A large batch into the log.
pub fn wal_append_large() -> Operation {
    append(LARGE)
}

const BASE_OFFSET: u64 = 1_000_000;
/// As many as a segment of 256 MiB has, if it is of these.
const BATCHES: u64 = 8192;
const BATCH_BYTES: u64 = 32 << 10;
const BATCH_RECORDS: u64 = 32;

fn segment() -> (Segment, (u64, u64)) {
    let mut segment = Segment::create(BASE_OFFSET, 1);
    for i in 0..BATCHES {
        let offset = BASE_OFFSET + i * BATCH_RECORDS;
        segment.index_batch(offset, i * BATCH_BYTES, TIMESTAMP_MS + i as i64);
        segment.meta.max_timestamp_ms = TIMESTAMP_MS + i as i64;
    }
    let end = (BATCHES * BATCH_BYTES, BASE_OFFSET + BATCHES * BATCH_RECORDS);
    (segment, end)
}

/// The range of a segment's file that holds an offset.
pub fn index_of_offset() -> Operation {
    let ((segment, end), mut next) = (segment(), jumping(BATCHES * BATCH_RECORDS));
    Operation::new(move || {
        black_box(segment.range(BASE_OFFSET + next(), 256 << 10, end));
    })
}

/// The range of a segment's file that holds a time.
pub fn index_of_time() -> Operation {
    let ((segment, end), mut next) = (segment(), jumping(BATCHES));
    Operation::new(move || {
        black_box(segment.range_of_time(TIMESTAMP_MS + next() as i64, 0, end));
    })
}
