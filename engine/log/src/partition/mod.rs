//! One partition: what was appended, what is durable, what a segment holds, who published.
//!
//! A batch is appended (it has an offset), then committed (its WAL entry is on stable storage),
//! then given to the segment writer, then synced. It stays in memory until it is synced. The
//! watermarks `log_start <= synced <= committed <= appended` are asserted whenever one moves.
//! `write_out` is the way to segments, `read` the way back, `retention` the end.

mod read;
mod retention;
mod write_out;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;

use ringtide_io::{DiskOp, FileId, Pool, Slice};
use ringtide_schema::batch::Header;
use ringtide_schema::ids::{GroupId, PartitionId};
use ringtide_schema::store::{CommittedT, EpochStartT, PartitionT, ProducerBatchT};
use ringtide_schema::topic::{TopicConfig, Visibility};

use crate::producers::{Producers, Verdict};
use crate::segment::Segment;
pub use read::{FileRange, Plan, TimePlan};
use write_out::Writer;
pub use write_out::{SYNC_BYTES, WriteError, WriteProgress};

/// What an operation is for; the shard gives it back with the completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartitionOp {
    /// The active segment was opened for append.
    OpenAppend,
    /// A piece of the active segment was written.
    Write,
    /// The active segment was synced.
    Sync,
    /// The active segment was sealed.
    Seal,
    /// The index of the segment with this base offset was loaded.
    LoadIndex(u64),
    /// The segment with this base offset was opened for reading.
    OpenRead(u64),
    /// Files were removed.
    Remove,
}

/// What a partition needs to ask for operations.
pub struct Ops<'a> {
    /// Operations asked for.
    pub out: &'a mut Vec<(PartitionOp, DiskOp)>,
    /// The last file number given out.
    pub files: &'a mut u64,
    /// The shard's memory.
    pub pool: &'a Pool,
}

impl Ops<'_> {
    fn file(&mut self) -> FileId {
        *self.files += 1;
        FileId(*self.files)
    }
}

/// A batch in memory.
#[derive(Debug)]
pub(crate) struct TailBatch {
    base_offset: u64,
    next_offset: u64,
    max_timestamp_ms: i64,
    bytes: Slice,
    /// The number of its entry in the shard's log.
    seq: u64,
    /// Where it lies: segment and the position after it, once the writer has it.
    place: Option<(u64, u64)>,
}

/// A partition of this shard.
#[derive(Debug)]
pub struct Partition {
    id: PartitionId,
    group: GroupId,
    config: TopicConfig,
    dir: PathBuf,
    incarnation: u64,
    log_start: u64,
    next_offset: u64,
    committed: u64,
    /// Batches that are not synced, and some that are; ascending, without gaps.
    tail: VecDeque<TailBatch>,
    tail_bytes: usize,
    /// How many of `tail`, from the front, the writer has, and their bytes.
    given: usize,
    given_bytes: usize,
    segments: Vec<Segment>,
    writer: Writer,
    epochs: Vec<EpochStartT>,
    producers: Producers,
    consumers: BTreeMap<String, CommittedT>,
    /// Of this partition's last entry in the shard's log.
    last_seq: u64,
    /// Segments that retention removed, each with its entry, until their files are gone.
    removing: VecDeque<(u64, Segment)>,
    /// Files that were opened and cannot be used, to be closed.
    unused: Vec<FileId>,
}

impl Partition {
    /// A partition without a record.
    pub fn create(
        id: PartitionId,
        group: GroupId,
        config: TopicConfig,
        dir: PathBuf,
        incarnation: u64,
    ) -> Self {
        Self {
            id,
            group,
            config,
            dir,
            incarnation,
            log_start: 0,
            next_offset: 0,
            committed: 0,
            tail: VecDeque::new(),
            tail_bytes: 0,
            given: 0,
            given_bytes: 0,
            segments: Vec::new(),
            writer: Writer::default(),
            epochs: Vec::new(),
            producers: Producers::default(),
            consumers: BTreeMap::new(),
            last_seq: 0,
            removing: VecDeque::new(),
            unused: Vec::new(),
        }
    }

    /// A partition as a snapshot has it. No file is touched.
    pub fn load(
        stored: PartitionT,
        group: GroupId,
        config: TopicConfig,
        dir: PathBuf,
        incarnation: u64,
    ) -> Self {
        let topic = stored.topic.as_ref().map(Into::into).unwrap_or_default();
        let id = PartitionId {
            topic,
            partition: stored.partition,
        };
        let mut partition = Self::create(id, group, config, dir, incarnation);
        partition.log_start = stored.log_start;
        partition.next_offset = stored.next_offset;
        partition.committed = stored.next_offset;
        partition.segments = stored
            .segments
            .unwrap_or_default()
            .into_iter()
            .map(Segment::load)
            .collect();
        let active = partition
            .segments
            .last()
            .filter(|s| !s.meta.sealed)
            .map(|s| s.meta.bytes);
        partition.writer = Writer::load(active, stored.tail.unwrap_or_default());
        if let Some(active) = partition.active_mut() {
            // From here on `bytes` of the active segment is what the writer was given.
            active.meta.next_offset = stored.next_offset;
        }
        partition.epochs = stored.epochs.unwrap_or_default();
        partition.producers = Producers::load(&stored.producers.unwrap_or_default());
        partition.consumers = stored
            .committed
            .unwrap_or_default()
            .into_iter()
            .map(|c| (c.consumer.clone(), c))
            .collect();
        partition.loaded()
    }

    /// For the snapshot of the group: everything that is on disk, or in the snapshot itself.
    pub fn store(&self) -> PartitionT {
        let synced = &self.writer.synced;
        let segments = self.segments.iter().filter_map(|s| match s.meta.sealed {
            true => Some(s.meta.clone()),
            false => synced.active.clone(),
        });
        let next_offset = self.synced_offset();
        let epochs = self
            .epochs
            .iter()
            .filter(|e| e.start_offset < next_offset)
            .cloned();
        PartitionT {
            topic: Some(self.id.topic.into()),
            partition: self.id.partition,
            log_start: self.log_start,
            next_offset,
            segments: Some(segments.collect()),
            tail: Some(synced.tail.clone()),
            epochs: Some(epochs.collect()),
            producers: Some(self.producers.store(next_offset)),
            committed: Some(self.consumers.values().cloned().collect()),
        }
    }

    /// One past the last record that a snapshot taken now holds.
    pub fn synced_offset(&self) -> u64 {
        match &self.writer.synced.active {
            Some(active) => active.next_offset,
            None => self.segments.iter().rfind(|s| s.meta.sealed).map_or_else(
                || {
                    self.segments
                        .first()
                        .map_or(self.log_end_without_segments(), |s| s.meta.base_offset)
                },
                |s| s.meta.next_offset,
            ),
        }
    }

    /// Where a partition begins whose segments were all removed, or that never had one.
    fn log_end_without_segments(&self) -> u64 {
        self.tail
            .get(self.given)
            .map_or(self.next_offset, |b| b.base_offset)
    }

    /// Who it is.
    pub fn id(&self) -> PartitionId {
        self.id
    }

    /// Its log group.
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// The topic's settings.
    pub fn config(&self) -> &TopicConfig {
        &self.config
    }

    /// Changes the topic's settings.
    pub fn set_config(&mut self, config: TopicConfig) {
        self.config = config;
    }

    /// The first offset that can be read.
    pub fn earliest(&self) -> u64 {
        self.log_start
    }

    /// The next offset to be written.
    pub fn latest(&self) -> u64 {
        self.next_offset
    }

    /// The next offset to become durable.
    pub fn committed(&self) -> u64 {
        self.committed
    }

    /// The next offset that a consumer will be given.
    pub fn visible(&self) -> u64 {
        match self.config.visible {
            Visibility::Durable => self.committed,
            Visibility::Accepted => self.next_offset,
        }
    }

    /// The last leader epoch that wrote a batch, or 0 if none did.
    pub fn leader_epoch(&self) -> u32 {
        self.epochs.last().map_or(0, |e| e.epoch)
    }

    /// Number of segments and bytes in them, and bytes in memory that no segment has.
    pub fn size(&self) -> (u32, u64) {
        let bytes: u64 = self.segments.iter().map(|s| self.segment_bytes(s)).sum();
        (
            self.segments.len() as u32,
            bytes + self.waiting_bytes() as u64,
        )
    }

    /// Bytes of batches that the segment writer does not have yet.
    pub fn waiting_bytes(&self) -> usize {
        self.tail_bytes - self.given_bytes
    }

    fn segment_bytes(&self, s: &Segment) -> u64 {
        if s.meta.sealed {
            s.meta.bytes
        } else {
            self.writer.assigned
        }
    }

    fn active(&self) -> Option<&Segment> {
        self.segments.last().filter(|s| !s.meta.sealed)
    }

    fn active_mut(&mut self) -> Option<&mut Segment> {
        self.segments.last_mut().filter(|s| !s.meta.sealed)
    }

    /// Looks an idempotent batch up in the producer's window.
    pub fn check_producer(&self, header: &Header) -> Verdict {
        if header.producer_id < 0 {
            return Verdict::New;
        }
        self.producers.check(
            header.producer_id,
            header.producer_epoch,
            header.base_sequence,
            header.record_count,
        )
    }

    /// Takes a batch that has its offset (`self.latest()`) and its entry in the log. `bytes` are
    /// the batch where it stays in memory.
    pub fn append(
        &mut self,
        header: &Header,
        leader_epoch: u32,
        seq: u64,
        bytes: Slice,
        append_time_ms: i64,
    ) {
        let base_offset = self.next_offset;
        let next_offset = base_offset + u64::from(header.record_count);
        assert!(seq > self.last_seq, "entries are appended in order");
        if self.leader_epoch() != leader_epoch {
            self.epochs.push(EpochStartT {
                start_offset: base_offset,
                epoch: leader_epoch,
            });
        }
        if header.producer_id >= 0 {
            let batch = ProducerBatchT {
                base_offset,
                append_time_ms,
                base_sequence: header.base_sequence,
                records: header.record_count,
            };
            let synced = self.synced_offset();
            self.producers
                .remember(header.producer_id, header.producer_epoch, batch, synced);
        }
        self.tail_bytes += bytes.len();
        self.tail.push_back(TailBatch {
            base_offset,
            next_offset,
            max_timestamp_ms: header.max_timestamp_ms,
            bytes,
            seq,
            place: None,
        });
        self.next_offset = next_offset;
        self.last_seq = seq;
    }

    /// The shard's log is durable up to an entry of this partition that ends at `next_offset`.
    pub fn commit(&mut self, next_offset: u64) {
        assert!(
            self.committed <= next_offset && next_offset <= self.next_offset,
            "{}: committed {} -> {next_offset}, appended {}",
            self.id,
            self.committed,
            self.next_offset
        );
        self.committed = next_offset;
    }

    /// The log entry whose durability makes the batch with this offset durable; `None` if it is.
    pub fn seq_of(&self, offset: u64) -> Option<u64> {
        if offset < self.committed {
            return None;
        }
        let i = self.tail.partition_point(|b| b.next_offset <= offset);
        self.tail.get(i).map(|b| b.seq)
    }

    /// Bytes of batches held in memory.
    pub fn tail_bytes(&self) -> usize {
        self.tail_bytes
    }

    /// Gives up batches from the front that are synced, until at most `keep_bytes` are held.
    pub fn evict(&mut self, keep_bytes: usize) {
        let readable = self.writer.readable;
        let active = self.active().map(|s| s.meta.base_offset);
        while self.tail_bytes > keep_bytes {
            let Some(front) = self.tail.front() else {
                break;
            };
            let Some((segment, end)) = front.place else {
                break;
            };
            if active == Some(segment) && end > readable {
                break;
            }
            self.forget_front();
        }
    }

    /// Drops the first batch in memory, which the writer has.
    fn forget_front(&mut self) {
        if let Some(front) = self.tail.pop_front() {
            self.tail_bytes -= front.bytes.len();
            self.given_bytes -= front.bytes.len();
            self.given -= 1;
        }
    }

    /// The first offset past those of a segment that consumers can be given, or can be given from memory.
    pub fn segment_end(&self, base_offset: u64) -> u64 {
        let mut bases = self.segments.iter().map(|s| s.meta.base_offset);
        let end = bases
            .find(|&base| base > base_offset)
            .unwrap_or_else(|| self.visible());
        self.tail.front().map_or(end, |b| end.min(b.base_offset))
    }

    /// What a named consumer committed.
    pub fn consumer(&self, name: &str) -> Option<&CommittedT> {
        self.consumers.get(name)
    }

    /// Number of named consumers.
    pub fn consumers(&self) -> usize {
        self.consumers.len()
    }

    /// Remembers a consumer's offset, whose entry is durable.
    pub fn commit_offset(&mut self, committed: CommittedT) {
        self.consumers.insert(committed.consumer.clone(), committed);
    }
}
