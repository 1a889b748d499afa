//! What a consumer knows: its place in each partition, and what arrived and was not taken yet.
//!
//! A cursor has two places: up to which offset batches have *arrived*, from where it goes on after
//! a reconnect, and up to which the application has *taken* them, which the face keeps. Between
//! them lie whole payloads, unchecked; whoever takes one checks every batch before its records.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use ringtide_schema::batch::{Batches, Header};
use ringtide_schema::error_code::ErrorCode;
use ringtide_schema::record::{Record, Records, records};

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
    /// The next offset that has not arrived.
    pub(crate) arrived: u64,
    pub(crate) flow: Flow,
    /// Counts moves: what was asked for before a move is ignored.
    pub(crate) generation: u32,
    /// Bytes taken, to be given back as credit.
    pub(crate) owed: u32,
    /// Payloads in the queue.
    pub(crate) queued: usize,
    pub(crate) retry_at: Option<Instant>,
    pub(crate) backoff: Backoff,
}

/// A payload that arrived.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) cursor: usize,
    pub(crate) partition: u32,
    pub(crate) generation: u32,
    /// Records before this offset are not wanted.
    pub(crate) from: u64,
    pub(crate) bytes: Vec<u8>,
}

/// The state of one consumer of one topic.
pub(crate) struct Consumer {
    pub(crate) topic: Arc<Topic>,
    pub(crate) options: ConsumerOptions,
    pub(crate) cursors: Vec<Cursor>,
    queue: VecDeque<Chunk>,
    errors: VecDeque<Error>,
    spare: Vec<Vec<u8>>,
}

const SPARES: usize = 4;
const SPARE_BYTES: usize = 1 << 20;

impl Consumer {
    pub(crate) fn new(
        topic: Arc<Topic>,
        options: ConsumerOptions,
        backoff: &Backoff,
    ) -> Result<Self> {
        let count = topic.partitions();
        let mut partitions = options.partitions.clone();
        if partitions.is_empty() {
            partitions.extend(0..count);
        }
        if let Some(&partition) = partitions.iter().find(|&&p| p >= count) {
            return Err(Error::Broker {
                code: ErrorCode::UnknownPartition,
                what: format!("consume {}/{partition}", topic.name).into(),
                message: format!("the topic has {count} partitions").into(),
            });
        }
        let cursor = |partition| Cursor {
            partition,
            place: Place::At(options.start.clone()),
            arrived: 0,
            flow: Flow::Idle,
            generation: 0,
            owed: 0,
            queued: 0,
            retry_at: None,
            backoff: backoff.clone(),
        };
        let cursors = partitions.into_iter().map(cursor).collect();
        let (queue, errors, spare) = (VecDeque::new(), VecDeque::new(), Vec::new());
        Ok(Self {
            topic,
            options,
            cursors,
            queue,
            errors,
            spare,
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
        while let Some(chunk) = self.queue.pop_front() {
            let cursor = &mut self.cursors[chunk.cursor];
            if chunk.generation == cursor.generation {
                cursor.queued -= 1;
                cursor.owed = cursor.owed.saturating_add(chunk.bytes.len() as u32);
                return Some(Ok(chunk));
            }
            self.recycle(chunk.bytes);
        }
        self.errors.pop_front().map(Err)
    }

    pub(crate) fn has_news(&self) -> bool {
        !self.queue.is_empty() || !self.errors.is_empty()
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
        self.errors.push_back(error);
    }

    /// What was taken turned out to be unreadable, and the application knows: the cursor stands
    /// still, and what arrived behind is forgotten.
    pub(crate) fn stop(&mut self, cursor: usize) {
        let cursor = &mut self.cursors[cursor];
        cursor.place = Place::Failed;
        cursor.generation += 1;
        cursor.queued = 0;
    }

    /// Moves a cursor; what arrived for it is forgotten.
    pub(crate) fn seek(&mut self, cursor: usize, start: Start) {
        let cursor = &mut self.cursors[cursor];
        cursor.generation += 1;
        cursor.queued = 0;
        cursor.owed = 0;
        cursor.retry_at = None;
        cursor.place = Place::At(start);
    }

    /// Puts a payload into the queue.
    pub(crate) fn arrived(&mut self, cursor: usize, payload: &[u8]) {
        let state = &mut self.cursors[cursor];
        if payload.is_empty() || state.place != Place::Known {
            return;
        }
        let from = state.arrived;
        let mut batches = Batches::new(payload);
        let mut whole = 0;
        for batch in batches.by_ref() {
            match batch {
                Ok((header, bytes)) => {
                    whole += bytes.len();
                    state.arrived = state.arrived.max(header.next_offset());
                }
                Err(why) => {
                    let (partition, offset) = (state.partition, state.arrived);
                    let topic = self.topic.name.clone();
                    self.fail(
                        cursor,
                        Error::BadBatch {
                            topic,
                            partition,
                            offset,
                            why,
                        },
                    );
                    return;
                }
            }
        }
        let mut bytes = self.spare.pop().unwrap_or_default();
        bytes.extend_from_slice(&payload[..whole]);
        let (partition, generation) = (state.partition, state.generation);
        state.queued += 1;
        self.queue.push_back(Chunk {
            cursor,
            partition,
            generation,
            from,
            bytes,
        });
    }

    /// The broker's metadata changed.
    pub(crate) fn topic_changed(&mut self, topic: &Arc<Topic>) {
        let renewed = topic.id != self.topic.id;
        self.topic = topic.clone();
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

/// A batch of records, checked from end to end.
#[derive(Clone, Debug)]
pub struct Batch<'a> {
    topic: &'a Arc<str>,
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

    /// Whether there is another batch with records that are wanted, without checking it.
    pub(crate) fn has_more(&mut self) -> bool {
        let Some(chunk) = &self.chunk else {
            return false;
        };
        while let Some(Ok((header, bytes))) = Batches::new(&chunk.bytes[self.at..]).next() {
            if header.next_offset() > chunk.from
                && header.record_count > 0
                && !header.attributes.is_control()
            {
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
                        why,
                    },
                )))
            }
        }
    }
}
