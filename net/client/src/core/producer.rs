//! What a producer knows: records that form batches, batches under way, and what becomes of them
//! when answers fail or do not come. Nothing here sends; [`Producer::next_batch`] says what to send.
//!
//! With idempotence, batches of a partition carry consecutive sequence numbers under one identity,
//! so that the broker recognises what it has. After a lost connection they are sent again, in order
//! and unchanged. When that order cannot be kept up (a batch was refused for good, or the broker
//! forgot the identity) the partition begins anew under a fresh identity, but only with batches
//! that are known not to have been appended; of the others the outcome is reported as unknown.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use ringtide_schema::error_code::ErrorCode;
use ringtide_schema::murmur2;
use ringtide_schema::record::BatchBuilder;

use crate::core::backoff::{Backoff, Random};
use crate::core::cluster::Topic;
use crate::core::connection::earlier;
use crate::core::lane::{Batch, Forming, Lane, Reset};
use crate::error::{Error, Result, shown, why_not};
use crate::options::{Codec, Partitioner, ProducerOptions};
use crate::record::{Ack, Delivered, Record, Ticket};

/// Who the broker takes a producer for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) id: i64,
    pub(crate) epoch: i16,
}

/// What was appended, as the broker answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Appended {
    pub(crate) base_offset: Option<u64>,
    pub(crate) append_time_ms: i64,
    pub(crate) duplicate: bool,
}

/// What became of consecutive records of one partition.
#[derive(Clone, Debug)]
pub(crate) struct Completion {
    pub(crate) partition: u32,
    pub(crate) first: u64,
    pub(crate) records: u32,
    pub(crate) outcome: Result<Appended>,
}

impl Completion {
    /// What became of the record at this place.
    pub(crate) fn nth(&self, index: u32) -> Delivered {
        let partition = self.partition;
        let ticket = Ticket {
            partition,
            number: self.first + u64::from(index),
        };
        let result = self.outcome.as_ref().map_err(Clone::clone).map(|a| Ack {
            ticket,
            partition,
            offset: a.base_offset.map(|base| base + u64::from(index)),
            append_time_ms: a.base_offset.map(|_| a.append_time_ms),
            duplicate: a.duplicate,
        });
        Delivered { ticket, result }
    }
}

/// What a producer had taken at some time: the number of the next record of each partition.
#[derive(Debug)]
pub(crate) struct Taken(Vec<u64>);

/// The state of one producer of one topic.
pub(crate) struct Producer {
    pub(crate) topic: Arc<Topic>,
    pub(crate) options: ProducerOptions,
    pub(crate) lanes: Vec<Lane>,
    /// The identity for lanes that need one.
    identity: Option<Identity>,
    /// An identity was asked for.
    pub(crate) identity_asked: bool,
    /// It was refused: not to be asked for again before.
    pub(crate) identity_retry_at: Option<Instant>,
    pub(crate) held_bytes: usize,
    /// How often records that were only accepted were found to be gone.
    pub(crate) losses: u64,
    turn: u32,
    pub(super) done: VecDeque<Completion>,
    spare_builders: Vec<BatchBuilder>,
    pub(super) spare_buffers: Vec<Vec<u8>>,
    backoff: Backoff,
}

/// Builders kept for the next batch.
const SPARES: usize = 16;

impl Producer {
    pub(crate) fn new(topic: Arc<Topic>, options: ProducerOptions, backoff: Backoff) -> Self {
        let mut producer = Self {
            topic,
            options,
            lanes: Vec::new(),
            identity: None,
            identity_asked: false,
            identity_retry_at: None,
            held_bytes: 0,
            losses: 0,
            turn: 0,
            done: VecDeque::new(),
            spare_builders: Vec::new(),
            spare_buffers: Vec::new(),
            backoff,
        };
        producer.grow();
        producer
    }

    pub(super) fn grow(&mut self) {
        while self.lanes.len() < self.topic.partitions() as usize {
            self.lanes.push(Lane::new(self.backoff.clone()));
        }
    }

    /// What was taken so far is not to wait for more.
    pub(crate) fn flush(&mut self) -> Taken {
        let numbers = self.lanes.iter_mut().map(|lane| {
            lane.flush_before = lane.next_number;
            lane.next_number
        });
        Taken(numbers.collect())
    }

    /// Whether everything that was taken by then has its outcome.
    pub(crate) fn has_settled(&self, taken: &Taken) -> bool {
        self.unsettled(taken).is_none()
    }

    /// The first partition in which something that was taken by then has no outcome.
    pub(crate) fn unsettled(&self, taken: &Taken) -> Option<u32> {
        let mut lanes = self.lanes.iter().zip(&taken.0);
        let open = lanes.position(|(lane, &number)| lane.first_open() < number);
        open.map(|partition| partition as u32)
    }

    /// Whether a record's outcome is known, or was.
    pub(crate) fn is_done(&self, ticket: Ticket) -> bool {
        let lane = self.lanes.get(ticket.partition as usize);
        lane.is_some_and(|l| ticket.number < l.next_number && !l.is_open(ticket.number))
    }

    /// What became of records since the last call.
    pub(crate) fn take_done(&mut self) -> Option<Completion> {
        self.done.pop_front()
    }

    pub(crate) fn has_done(&self) -> bool {
        !self.done.is_empty()
    }

    fn choose(&mut self, record: &Record<'_>) -> Result<u32> {
        let partitions = self.topic.partitions();
        let chosen = match (record.partition, record.key, &self.options.partitioner) {
            (Some(partition), ..) => partition,
            (None, key, Partitioner::Custom(choose)) => choose(key, partitions),
            (None, Some(key), Partitioner::Key) if partitions > 0 => {
                murmur2::partition_for_key(key, partitions)
            }
            (None, ..) => {
                self.turn = self.turn.wrapping_add(1);
                self.turn.checked_rem(partitions).unwrap_or(0)
            }
        };
        if chosen >= partitions {
            return Err(Error::Broker {
                code: ErrorCode::UnknownPartition,
                what: format!("send to {}/{chosen}", self.topic.name).into(),
                message: format!("the topic has {partitions} partitions").into(),
            });
        }
        Ok(chosen)
    }

    /// Adds a record to the batch that forms for its partition.
    pub(crate) fn push(
        &mut self,
        record: &Record<'_>,
        timestamp_ms: i64,
        now: Instant,
    ) -> Result<Ticket> {
        let held = record.held_bytes();
        if self.held_bytes > 0 && self.held_bytes + held > self.options.buffer_bytes {
            let limit = self.options.buffer_bytes;
            return Err(Error::BufferFull {
                held: self.held_bytes,
                limit,
            });
        }
        if timestamp_ms < 0 {
            return Err(Error::invalid(format!(
                "timestamp {timestamp_ms} ms is before 1970"
            )));
        }
        let partition = self.choose(record)?;
        let (key, value) = (
            record.key.unwrap_or_default(),
            record.value.unwrap_or_default(),
        );
        let max = self.topic.settings.max_batch_bytes as usize;
        if self.options.codec == Codec::None && 61 + key.len() + value.len() > max {
            let topic = self.topic.name.clone();
            return Err(Error::RecordTooLarge {
                topic,
                bytes: 61 + held,
                limit: max,
            });
        }
        let limit = self.options.batch_bytes.min(max);
        let lane = &mut self.lanes[partition as usize];
        let fits = lane.forming.back().is_some_and(|forming| {
            let bytes = forming
                .builder
                .bytes_with(key.len(), value.len(), record.headers);
            bytes <= limit
        });
        if !fits {
            let codec = self.options.codec;
            let builder = self
                .spare_builders
                .pop()
                .unwrap_or_else(|| BatchBuilder::new(codec));
            let first = lane.next_number;
            lane.forming.push_back(Forming {
                builder,
                first,
                since: now,
                held: 0,
            });
        }
        let Some(forming) = lane.forming.back_mut() else {
            return Err(Error::Closed);
        };
        forming
            .builder
            .push(timestamp_ms, record.key, record.value, record.headers);
        forming.held += held;
        self.held_bytes += held;
        let ticket = Ticket {
            partition,
            number: lane.next_number,
        };
        lane.next_number += 1;
        Ok(ticket)
    }

    /// Whether an identity should be asked for on behalf of this partition.
    pub(crate) fn wants_identity(&self, partition: u32) -> bool {
        let lane = &self.lanes[partition as usize];
        self.options.idempotence
            && lane.identity.is_none()
            && lane.has_unsent()
            && self.identity.is_none_or(|i| Some(i.id) == lane.spent)
    }

    pub(crate) fn set_identity(&mut self, identity: Identity) {
        self.identity = Some(identity);
        self.identity_retry_at = None;
        self.backoff.reset();
    }

    /// No identity was given: to be asked for again later.
    pub(crate) fn identity_refused(&mut self, error: &Error, now: Instant, random: &mut Random) {
        let wait = self.backoff.next(random);
        self.identity_retry_at = Some(now + wait);
        for lane in self.lanes.iter_mut().filter(|l| l.identity.is_none()) {
            lane.refusal = Some(error.clone()).filter(|e| e.code().is_some());
        }
    }

    /// Gives up what is too old. To be called before [`Self::next_batch`].
    pub(crate) fn expire(&mut self, partition: u32, now: Instant, trouble: Option<&Error>) {
        let timeout = self.options.delivery_timeout;
        let is_old = |since: Instant| now.saturating_duration_since(since) >= timeout;
        while let Some(batch) = self.lanes[partition as usize].batches.front()
            && is_old(batch.since)
        {
            let unknown = batch.is_sent() || batch.ambiguous;
            let error = self.timeout_error(partition, unknown, trouble);
            self.fail_at(partition, 0, error);
            if self.options.idempotence {
                self.lanes[partition as usize].hold_for(now, Some(Reset::Settle));
            }
        }
        while let Some(forming) = self.lanes[partition as usize].forming.front()
            && is_old(forming.since)
        {
            let error = self.timeout_error(partition, false, trouble);
            self.fail_forming(partition, error);
        }
    }

    fn timeout_error(&self, partition: u32, unknown: bool, trouble: Option<&Error>) -> Error {
        let what = self.what(partition);
        let after = self.options.delivery_timeout;
        let refusal = self.lanes[partition as usize].refusal.as_ref();
        if unknown {
            let why = why_not(trouble.or(refusal));
            let why = format!("no answer within {} ({why})", shown(after)).into();
            return Error::OutcomeUnknown { what, why };
        }
        match (trouble, refusal) {
            (None, Some(refusal)) => refusal.clone().tried_for(after),
            _ => {
                let why = why_not(trouble);
                Error::Timeout { what, after, why }
            }
        }
    }

    pub(crate) fn what(&self, partition: u32) -> Arc<str> {
        format!("publish to {}/{partition}", self.topic.name).into()
    }

    /// Which batch is to be sent now on `link`; it is marked as sent. `wake` is told when to ask
    /// again.
    pub(crate) fn next_batch(
        &mut self,
        partition: u32,
        link: usize,
        now: Instant,
        wake: &mut Option<Instant>,
    ) -> Option<usize> {
        let lane = &mut self.lanes[partition as usize];
        if lane.sent > 0 && lane.link != link {
            return None;
        }
        if let Some(hold) = lane.hold {
            if lane.sent > 0 {
                return None;
            }
            if now < hold.until {
                *wake = earlier(*wake, Some(hold.until));
                return None;
            }
            match hold.reset {
                Some(Reset::Settle) if lane.identity.is_some() => {
                    // What became of a batch is asked under the identity it was sent with.
                    if let Some(index) = lane.batches.iter().position(|b| b.ambiguous) {
                        lane.send(index, link);
                        return Some(index);
                    }
                    lane.begin_anew();
                }
                Some(_) => {
                    lane.begin_anew();
                    self.give_up_ambiguous(partition);
                }
                None => {}
            }
            self.lanes[partition as usize].hold = None;
        }
        let lane = &mut self.lanes[partition as usize];
        if lane.sent >= self.options.max_in_flight || !lane.has_unsent() {
            return None;
        }
        if self.options.idempotence && lane.identity.is_none() {
            let identity = self.identity.filter(|i| Some(i.id) != lane.spent)?;
            lane.take_identity(identity);
        }
        let index = match lane.first_unsent() {
            Some(index) => index,
            None => self.close_front(partition, now, wake)?,
        };
        self.lanes[partition as usize].send(index, link);
        Some(index)
    }

    /// Makes a batch of the records that formed first, if they need not wait.
    fn close_front(
        &mut self,
        partition: u32,
        now: Instant,
        wake: &mut Option<Instant>,
    ) -> Option<usize> {
        let lane = &mut self.lanes[partition as usize];
        let front = lane.forming.front()?;
        let ready = lane.forming.len() > 1
            || front.first < lane.flush_before
            || self.options.linger.is_zero()
            || front.builder.bytes_estimate() >= self.options.batch_bytes
            || now.saturating_duration_since(front.since) >= self.options.linger;
        if !ready {
            *wake = earlier(*wake, Some(front.since + self.options.linger));
            return None;
        }
        let mut front = lane.forming.pop_front()?;
        let mut bytes = self.spare_buffers.pop().unwrap_or_default();
        let records = front.builder.count();
        let (id, epoch, sequence) = lane.stamp(records);
        let finished = front.builder.finish(id, epoch, sequence, &mut bytes);
        if self.spare_builders.len() < SPARES {
            self.spare_builders.push(front.builder);
        }
        let key = lane.next_key();
        lane.batches.push_back(Batch {
            key,
            bytes,
            first: front.first,
            records,
            held: front.held,
            since: front.since,
            on: None,
            ambiguous: false,
        });
        let index = lane.batches.len() - 1;
        if let Err(why) = finished {
            let what = self.what(partition);
            self.fail_at(partition, index, Error::invalid(format!("{what}: {why}")));
            if self.options.idempotence {
                self.lanes[partition as usize].hold_for(now, Some(Reset::Settle));
            }
            return None;
        }
        Some(index)
    }

    /// When the oldest of a partition's records is given up.
    pub(crate) fn expiry(&self, partition: u32) -> Option<Instant> {
        let since = self.lanes[partition as usize].oldest()?;
        Some(since + self.options.delivery_timeout)
    }
}
