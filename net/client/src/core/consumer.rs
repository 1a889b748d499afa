//! What a consumer knows: its place in each partition, and what arrived and was not taken yet.
//!
//! A cursor has two places: up to which offset batches have *arrived*, from where it goes on after
//! a reconnect, and up to which the application has *taken* them, which the face keeps. Between
//! them lie whole payloads, unchecked; whoever takes one checks every batch before its records.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use ringtide_schema::batch::{BatchError, Batches, Header, check_stored};
use ringtide_schema::error_code::ErrorCode;
use ringtide_schema::frame::Op;
use ringtide_schema::ids::TopicId;
use ringtide_schema::record::{Record, RecordHeader, Records, records};

use crate::core::backoff::Backoff;
use crate::core::call::OffsetAt;
use crate::core::cluster::Topic;
use crate::error::{Error, Result};
use crate::options::{ConsumerOptions, Start};

/// Where a cursor stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// To be resolved to an offset.
    At(Start),
    /// Being resolved; what to fall back to.
    Asking(Start),
    /// Resolved.
    Known,
    /// An error was reported; it stands still until it is moved.
    Failed,
}

/// How a cursor is supplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    Idle,
    /// A fetch, or a subscribe that is not answered.
    Asked {
        link: usize,
        correlation: u64,
    },
    Subscribed {
        link: usize,
        correlation: u64,
    },
}

/// One partition of a consumer.
#[derive(Debug)]
pub(crate) struct Cursor {
    pub(crate) partition: u32,
    pub(crate) place: Place,
    /// The application has taken the error that it stands still after.
    is_told: bool,
    /// The next offset that has not arrived.
    pub(crate) arrived: u64,
    pub(crate) flow: Flow,
    /// Counts moves: what was asked for before a move is ignored.
    pub(crate) generation: u32,
    /// Bytes taken, to be given back as credit.
    pub(crate) owed: u32,
    /// Bytes in the queue.
    pub(crate) queued_bytes: usize,
    pub(crate) retry_at: Option<Instant>,
    pub(crate) backoff: Backoff,
    /// The operation that was refused last and is tried again, and why.
    pub(crate) refused: Option<(Op, Error)>,
}

impl Cursor {
    fn new(partition: u32, start: Start, backoff: Backoff) -> Self {
        Self {
            partition,
            place: Place::At(start),
            is_told: false,
            arrived: 0,
            flow: Flow::Idle,
            generation: 0,
            owed: 0,
            queued_bytes: 0,
            retry_at: None,
            backoff,
            refused: None,
        }
    }

    /// The broker takes the subscription. Whether there is something to be had shows later.
    pub(crate) fn subscribed(&mut self) {
        self.refused.take_if(|(op, _)| *op != Op::Push);
        if self.refused.is_none() {
            self.backoff.reset();
        }
    }
}

/// Where a consumer is in one partition: what it commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    /// An offset means something in the topic that it was read from only.
    pub(crate) topic: TopicId,
    pub(crate) partition: u32,
    /// Where to go on.
    pub(crate) offset: u64,
    /// The epoch of what was read last.
    pub(crate) epoch: u32,
}

/// What waits for the application, in the order in which it came.
#[derive(Debug)]
struct News {
    cursor: usize,
    generation: u32,
    what: Result<Chunk>,
}

/// A payload that arrived.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) cursor: usize,
    topic: TopicId,
    partition: u32,
    /// Records before this offset are not wanted.
    pub(crate) from: u64,
    pub(crate) bytes: Vec<u8>,
}

/// The state of one consumer of one topic.
pub(crate) struct Consumer {
    pub(crate) topic: Arc<Topic>,
    pub(crate) options: ConsumerOptions,
    pub(crate) cursors: Vec<Cursor>,
    queue: VecDeque<News>,
    spare: Vec<Vec<u8>>,
    backoff: Backoff,
}

const SPARES: usize = 4;
const SPARE_BYTES: usize = 1 << 20;

impl Consumer {
    pub(crate) fn new(
        topic: Arc<Topic>,
        options: ConsumerOptions,
        backoff: Backoff,
    ) -> Result<Self> {
        let count = topic.partitions();
        let mut partitions = options.partitions.clone();
        if partitions.is_empty() {
            partitions.extend(0..count);
        }
        let named_twice = |(i, p): (usize, &u32)| partitions[..i].contains(p).then_some(*p);
        if let Some(twice) = partitions.iter().enumerate().find_map(named_twice) {
            let why = format!("partitions names partition {twice} twice; name it once");
            return Err(Error::invalid(why));
        }
        if let Some(&partition) = partitions.iter().find(|&&p| p >= count) {
            return Err(Error::Broker {
                code: ErrorCode::UnknownPartition,
                what: format!("consume {}/{partition}", topic.name).into(),
                message: format!("the topic has {count} partitions").into(),
            });
        }
        let cursor = |partition| Cursor::new(partition, options.start.clone(), backoff.clone());
        let cursors = partitions.into_iter().map(cursor).collect();
        Ok(Self {
            topic,
            options,
            cursors,
            queue: VecDeque::new(),
            spare: Vec::new(),
            backoff,
        })
    }

    /// Which cursor reads a partition.
    pub(crate) fn cursor_of(&self, partition: u32) -> Result<usize> {
        let found = self.cursors.iter().position(|c| c.partition == partition);
        found.ok_or_else(|| {
            Error::invalid(format!(
                "the consumer does not read {}/{partition}",
                self.topic.name
            ))
        })
    }

    /// What arrived first of what was not taken.
    pub(crate) fn take(&mut self) -> Option<Result<Chunk>> {
        while let Some(news) = self.queue.pop_front() {
            let cursor = &mut self.cursors[news.cursor];
            let is_wanted = news.generation == cursor.generation;
            match news.what {
                Ok(chunk) if !is_wanted => self.recycle(chunk.bytes),
                Err(_) if !is_wanted => {}
                Ok(chunk) => {
                    cursor.queued_bytes -= chunk.bytes.len();
                    cursor.owed = cursor.owed.saturating_add(chunk.bytes.len() as u32);
                    return Some(Ok(chunk));
                }
                Err(error) => {
                    cursor.is_told = true;
                    return Some(Err(error));
                }
            }
        }
        None
    }

    pub(crate) fn has_news(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Why the broker gives nothing of a partition, although it is tried again.
    pub(crate) fn trouble(&self) -> Option<&Error> {
        let mut refused = self.cursors.iter().filter_map(|c| c.refused.as_ref());
        refused.next().map(|(_, error)| error)
    }

    /// The partitions that stand still after an error that was taken. What waits before the error of
    /// another is still to be had.
    pub(crate) fn stopped(&self) -> Vec<u32> {
        let stopped = self.cursors.iter().filter(|c| c.is_told);
        stopped.map(|c| c.partition).collect()
    }

    /// Gives back the buffer of a payload.
    pub(crate) fn recycle(&mut self, mut bytes: Vec<u8>) {
        if self.spare.len() < SPARES && bytes.capacity() <= SPARE_BYTES {
            bytes.clear();
            self.spare.push(bytes);
        }
    }

    /// The cursor stands still, and the application is told why once it has taken what is good.
    pub(crate) fn fail(&mut self, cursor: usize, error: Error) {
        self.cursors[cursor].place = Place::Failed;
        self.cursors[cursor].refused = None;
        self.tell(cursor, Err(error));
    }

    fn tell(&mut self, cursor: usize, what: Result<Chunk>) {
        let generation = self.cursors[cursor].generation;
        self.queue.push_back(News {
            cursor,
            generation,
            what,
        });
    }

    /// What was taken turned out to be unreadable, and the application knows: the cursor stands
    /// still, and what arrived behind is forgotten.
    pub(crate) fn stop(&mut self, cursor: usize) {
        let cursor = &mut self.cursors[cursor];
        cursor.place = Place::Failed;
        cursor.refused = None;
        cursor.is_told = true;
        cursor.generation += 1;
        cursor.queued_bytes = 0;
    }

    /// Moves a cursor; what arrived for it is forgotten, an error too.
    pub(crate) fn seek(&mut self, cursor: usize, start: Start) {
        let cursor = &mut self.cursors[cursor];
        cursor.generation += 1;
        cursor.queued_bytes = 0;
        cursor.owed = 0;
        cursor.retry_at = None;
        cursor.refused = None;
        cursor.is_told = false;
        cursor.place = Place::At(start);
    }

    /// Puts a payload into the queue. It holds these offsets, as the broker's index has it: no checksum covers what
    /// a batch says of its own.
    pub(crate) fn arrived(&mut self, cursor: usize, offsets: Range<u64>, payload: &[u8]) {
        let state = &mut self.cursors[cursor];
        if payload.is_empty() || state.place != Place::Known {
            return;
        }
        let (partition, from) = (state.partition, state.arrived);
        let mut fault = None;
        let mut walk = Walk::new(payload, offsets.clone());
        // Damage in front of what was asked for is passed over.
        let mut start = 0;
        while let Err(why) = walk.until_damage() {
            let (at, base) = walk.behind_damage();
            if base > from {
                fault = Some((why, Some(base)));
                break;
            }
            walk.go_on(at, base);
            start = at;
        }
        let (whole, next) = (walk.at, walk.next);
        if fault.is_none() && (offsets.start > from || next <= from) {
            // The broker sends nothing that begins behind what was asked for, or ends before it.
            let (base, expected) = (offsets.start, from);
            fault = Some((BatchError::WrongOffset { base, expected }, None));
            start = whole;
        }
        if whole > start {
            state.arrived = state.arrived.max(next);
            if state.refused.take().is_some() {
                state.backoff.reset();
            }
        }
        let offset = state.arrived;
        if whole > start {
            state.queued_bytes += whole - start;
            let mut bytes = self.spare.pop().unwrap_or_default();
            bytes.extend_from_slice(&payload[start..whole]);
            let chunk = Chunk {
                cursor,
                topic: self.topic.id,
                partition,
                from,
                bytes,
            };
            self.tell(cursor, Ok(chunk));
        }
        if let Some((why, next)) = fault {
            let error = Error::BadBatch {
                topic: self.topic.name.clone(),
                partition,
                offset,
                next,
                why,
            };
            self.fail(cursor, error);
        }
    }

    /// The broker's metadata changed.
    pub(crate) fn topic_changed(&mut self, topic: &Arc<Topic>) {
        let renewed = topic.id != self.topic.id;
        self.topic = topic.clone();
        if self.options.partitions.is_empty() {
            for partition in self.cursors.len() as u32..topic.partitions() {
                let backoff = self.backoff.clone();
                self.cursors
                    .push(Cursor::new(partition, Start::Earliest, backoff));
            }
        }
        if renewed {
            for cursor in 0..self.cursors.len() {
                let partition = self.cursors[cursor].partition;
                let error = Error::Broker {
                    code: ErrorCode::UnknownTopic,
                    what: format!("consume {}/{partition}", topic.name).into(),
                    message: "it was deleted and made anew; seek to begin in the new one".into(),
                };
                self.fail(cursor, error);
            }
        }
    }
}

/// Which offset a start asks the broker for, if it is one of those.
pub(crate) fn asked_offset(start: &Start) -> Option<OffsetAt> {
    match start {
        Start::Earliest => Some(OffsetAt::Earliest),
        Start::Latest => Some(OffsetAt::Latest),
        Start::Timestamp(ms) => Some(OffsetAt::Timestamp(*ms)),
        Start::Offset(_) | Start::Committed { .. } => None,
    }
}

/// Walks a payload of which it is known what offsets it holds.
struct Walk<'a> {
    payload: &'a [u8],
    /// Behind its last record.
    end: u64,
    /// Up to where it is right, and the offset there.
    at: usize,
    next: u64,
    /// Where the last right batch begins, and its first offset.
    last: (usize, u64),
}

impl<'a> Walk<'a> {
    fn new(payload: &'a [u8], offsets: Range<u64>) -> Self {
        Self {
            payload,
            end: offsets.end,
            at: 0,
            next: offsets.start,
            last: (0, offsets.start),
        }
    }

    fn go_on(&mut self, at: usize, next: u64) {
        (self.at, self.next, self.last) = (at, next, (at, next));
    }

    /// Goes on to the end, or to a batch that is not where it can be.
    fn until_damage(&mut self) -> Result<(), BatchError> {
        while let Some(batch) = Batches::new(&self.payload[self.at..]).next() {
            let (header, bytes) = batch.map_err(|why| self.damaged(why))?;
            self.expect(header.base_offset)?;
            self.last = (self.at, header.base_offset);
            self.at += bytes.len();
            self.next = header.next_offset();
        }
        self.expect(self.end)
    }

    fn expect(&mut self, base: u64) -> Result<(), BatchError> {
        let expected = self.next;
        match base == expected {
            true => Ok(()),
            false => Err(self.damaged(BatchError::WrongOffset { base, expected })),
        }
    }

    /// What follows does not: it may be the batch before it that says a wrong end or length.
    fn damaged(&mut self, why: BatchError) -> BatchError {
        let (at, base) = self.last;
        match check_stored(&self.payload[at..self.at]) {
            Err(why) if at < self.at => {
                (self.at, self.next) = (at, base);
                why
            }
            _ => why,
        }
    }

    /// Where batches go on up to the end of the payload, and with which offset; at its end if nowhere.
    fn behind_damage(&self) -> (usize, u64) {
        let begins = |at: usize| {
            let (mut first, mut next) = (None, None);
            for batch in Batches::new(&self.payload[at..]) {
                let (header, _) = batch.ok()?;
                let base = header.base_offset;
                if base <= self.next || next.is_some_and(|next| next != base) {
                    return None;
                }
                first = first.or(Some(base));
                next = Some(header.next_offset());
            }
            first.filter(|_| next == Some(self.end))
        };
        let all = self.at + 1..self.payload.len();
        let found = all.into_iter().find_map(|at| Some((at, begins(at)?)));
        found.unwrap_or((self.payload.len(), self.end))
    }
}

/// Where the batch behind this one begins, if its header can be read.
fn next_offset(batch: &[u8]) -> Option<u64> {
    Header::peek(batch).ok().map(|header| header.next_offset())
}

/// A batch of records, checked from end to end.
#[derive(Clone, Debug)]
pub struct Batch<'a> {
    topic: &'a Arc<str>,
    topic_id: TopicId,
    partition: u32,
    from: u64,
    header: Header,
    records: Records<'a>,
}

impl<'a> Batch<'a> {
    /// The topic.
    #[must_use]
    pub fn topic(&self) -> &'a Arc<str> {
        self.topic
    }

    /// The partition.
    #[must_use]
    pub fn partition(&self) -> u32 {
        self.partition
    }

    /// The batch's header. It may begin before the records that the consumer is given.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The offset after the last: where to go on, and what to commit.
    #[must_use]
    pub fn next_offset(&self) -> u64 {
        self.header.next_offset()
    }

    /// What the consumer commits after this batch.
    pub(crate) fn position(&self) -> Position {
        Position {
            topic: self.topic_id,
            partition: self.partition,
            offset: self.next_offset(),
            epoch: self.leader_epoch(),
        }
    }

    /// The epoch under which the batch was appended.
    #[must_use]
    pub fn leader_epoch(&self) -> u32 {
        self.header.leader_epoch.max(0).cast_unsigned()
    }

    /// The records, in offset order; offsets may have gaps.
    pub fn records(&self) -> impl Iterator<Item = Record<'a>> + use<'a> {
        let from = self.from;
        self.records.clone().skip_while(move |r| r.offset < from)
    }
}

/// A batch that owns its records.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OwnedBatch {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: u32,
    /// The offset after the last: where to go on, and what to commit.
    pub next_offset: u64,
    /// The epoch under which the batch was appended.
    pub leader_epoch: u32,
    /// The records, in offset order; offsets may have gaps.
    pub records: Vec<OwnedRecord>,
}

/// A record that was read, with its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OwnedRecord {
    /// Its offset in the partition.
    pub offset: u64,
    /// Its time, in ms since 1970.
    pub timestamp_ms: i64,
    /// What it is about.
    pub key: Option<Vec<u8>>,
    /// What it says.
    pub value: Option<Vec<u8>>,
    /// Key and value pairs beside it.
    pub headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl From<Batch<'_>> for OwnedBatch {
    fn from(batch: Batch<'_>) -> Self {
        Self {
            topic: batch.topic.clone(),
            partition: batch.partition,
            next_offset: batch.next_offset(),
            leader_epoch: batch.leader_epoch(),
            records: batch.records().map(OwnedRecord::from).collect(),
        }
    }
}

impl From<Record<'_>> for OwnedRecord {
    fn from(record: Record<'_>) -> Self {
        let owned = |h: RecordHeader<'_>| (h.key.to_vec(), h.value.map(<[u8]>::to_vec));
        Self {
            offset: record.offset,
            timestamp_ms: record.timestamp_ms,
            key: record.key.map(<[u8]>::to_vec),
            value: record.value.map(<[u8]>::to_vec),
            headers: record.headers().map(owned).collect(),
        }
    }
}

/// Walks the batches of a payload that was taken.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) topic: Arc<str>,
    limit_bytes: usize,
    pub(crate) chunk: Option<Chunk>,
    at: usize,
    scratch: Vec<u8>,
}

impl Reader {
    pub(crate) fn new(topic: Arc<str>, limit_bytes: usize) -> Self {
        Self {
            topic,
            limit_bytes,
            chunk: None,
            at: 0,
            scratch: Vec::new(),
        }
    }

    /// Begins a payload; gives the one before.
    pub(crate) fn begin(&mut self, chunk: Chunk) -> Option<Chunk> {
        self.at = 0;
        self.chunk.replace(chunk)
    }

    /// Drops the rest of a payload if it is of this cursor.
    pub(crate) fn forget(&mut self, cursor: usize) {
        self.chunk = self.chunk.take().filter(|c| c.cursor != cursor);
    }

    /// Whether there is another batch with records that are wanted. One is passed over for having none only if its
    /// checksum says that it has none.
    pub(crate) fn has_more(&mut self) -> bool {
        let Some(chunk) = &self.chunk else {
            return false;
        };
        while let Some(batch) = Batches::new(&chunk.bytes[self.at..]).next() {
            let Ok((header, bytes)) = batch else {
                return true;
            };
            let is_empty = header.record_count == 0 || header.attributes.is_control();
            let is_wanted = header.next_offset() > chunk.from;
            if is_wanted && !(is_empty && check_stored(bytes).is_ok()) {
                return true;
            }
            self.at += bytes.len();
        }
        false
    }

    /// The next batch, checked. `has_more` was asked before.
    pub(crate) fn next(&mut self) -> Option<Result<Batch<'_>, (usize, Error)>> {
        let Self {
            topic,
            limit_bytes,
            chunk,
            at,
            scratch,
        } = self;
        let chunk = chunk.as_ref()?;
        let bytes = chunk.bytes.get(*at..).filter(|b| !b.is_empty())?;
        let (partition, from) = (chunk.partition, chunk.from);
        match records(bytes, scratch, *limit_bytes) {
            Ok(records) => {
                let header = *records.header();
                *at += header.batch_bytes;
                Some(Ok(Batch {
                    topic,
                    topic_id: chunk.topic,
                    partition,
                    from,
                    header,
                    records,
                }))
            }
            Err(why) => {
                let offset = Header::peek(bytes).map_or(from, |h| h.base_offset.max(from));
                let topic = topic.clone();
                *at = chunk.bytes.len();
                Some(Err((
                    chunk.cursor,
                    Error::BadBatch {
                        topic,
                        partition,
                        offset,
                        next: next_offset(bytes).filter(|&next| next > offset),
                        why,
                    },
                )))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ringtide_schema::batch::{Codec, HEADER_BYTES, assign};
    use ringtide_schema::record::BatchBuilder;

    use super::*;

    fn batch(base_offset: u64, values: &[&[u8]]) -> Vec<u8> {
        let mut builder = BatchBuilder::new(Codec::None);
        values
            .iter()
            .for_each(|value| builder.push(1, None, Some(value), &[]));
        let mut out = Vec::new();
        builder.finish(-1, -1, -1, &mut out).expect("records");
        assign(&mut out, base_offset, 1);
        out
    }

    /// The values that a payload gives, or that an error ended it.
    fn read(bytes: Vec<u8>, from: u64) -> Result<Vec<Vec<u8>>, Error> {
        let mut reader = Reader::new("t".into(), 1 << 20);
        reader.begin(Chunk {
            cursor: 0,
            topic: TopicId::default(),
            partition: 0,
            from,
            bytes,
        });
        let mut values = Vec::new();
        while reader.has_more() {
            match reader.next() {
                Some(Ok(batch)) => {
                    values.extend(batch.records().map(|r| r.value.unwrap_or(b"").to_vec()));
                }
                Some(Err((_, error))) => return Err(error),
                None => break,
            }
        }
        Ok(values)
    }

    #[test]
    fn no_bit_of_a_header_makes_records_disappear() {
        let payload = [batch(0, &[b"one"]), batch(1, &[b"two", b"three"])].concat();
        let whole = read(payload.clone(), 0).expect("nothing is wrong");
        assert_eq!(whole, [&b"one"[..], b"two", b"three"]);
        // Where a batch begins and how long it is, is looked at when it arrives; of the epoch nothing depends.
        for bit in 16 * 8..HEADER_BYTES * 8 {
            let mut damaged = payload.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let found = read(damaged, 0);
            assert!(found.is_err(), "bit {bit}: {found:?}");
        }
    }
}
