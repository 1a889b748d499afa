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
use crate::error::{Error, Result};
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

/// The state of one producer of one topic.
pub(crate) struct Producer {
    pub(crate) topic: Arc<Topic>,
    pub(crate) options: ProducerOptions,
    pub(crate) lanes: Vec<Lane>,
    /// The identity for lanes that need one.
    identity: Option<Identity>,
    /// An identity was asked for.
    pub(crate) identity_asked: bool,
    /// Records are not to wait for more.
    pub(crate) flushing: bool,
    pub(crate) held_bytes: usize,
    turn: u32,
    done: VecDeque<Completion>,
    spare_builders: Vec<BatchBuilder>,
    spare_buffers: Vec<Vec<u8>>,
    backoff: Backoff,
}

/// Buffers kept for the next batch.
const SPARES: usize = 16;
/// Small ones are kept in larger number: a thousand single records may be in flight.
const SMALL_SPARES: usize = 1024;
const SMALL_BYTES: usize = 2048;

impl Producer {
    pub(crate) fn new(topic: Arc<Topic>, options: ProducerOptions, backoff: Backoff) -> Self {
        let mut producer = Self {
            topic,
            options,
            lanes: Vec::new(),
            identity: None,
            identity_asked: false,
            flushing: false,
            held_bytes: 0,
            turn: 0,
            done: VecDeque::new(),
            spare_builders: Vec::new(),
            spare_buffers: Vec::new(),
            backoff,
        };
        producer.grow();
        producer
    }

    fn grow(&mut self) {
        while self.lanes.len() < self.topic.partitions() as usize {
            self.lanes.push(Lane::new(self.backoff.clone()));
        }
    }

    /// Records that have not been acknowledged.
    pub(crate) fn is_idle(&self) -> bool {
        self.held_bytes == 0
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
        self.identity_asked = false;
    }

    /// Gives up what is too old. To be called before [`Self::next_batch`].
    pub(crate) fn expire(&mut self, partition: u32, now: Instant, why: &str) {
        let timeout = self.options.delivery_timeout;
        let is_old = |since: Instant| now.saturating_duration_since(since) >= timeout;
        while let Some(batch) = self.lanes[partition as usize].batches.front()
            && is_old(batch.since)
        {
            let unknown = batch.is_sent() || batch.ambiguous;
            let error = self.timeout_error(partition, unknown, why);
            self.fail_at(partition, 0, error);
            if self.options.idempotence {
                self.lanes[partition as usize].hold_for(now, Some(Reset::Settle));
            }
        }
        while let Some(forming) = self.lanes[partition as usize].forming.front()
            && is_old(forming.since)
        {
            let error = self.timeout_error(partition, false, why);
            self.fail_forming(partition, error);
        }
    }

    fn timeout_error(&self, partition: u32, unknown: bool, why: &str) -> Error {
        let what = self.what(partition);
        let after = self.options.delivery_timeout;
        if unknown {
            let why = format!("no answer within {after:?} ({why})").into();
            return Error::OutcomeUnknown { what, why };
        }
        Error::Timeout {
            what,
            after,
            why: why.into(),
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
            || self.flushing
            || self.options.linger.is_zero()
            || front.builder.bytes_estimate() >= self.options.batch_bytes
            || now.saturating_duration_since(front.since) >= self.options.linger;
        if !ready {
            *wake = earlier(*wake, front.since.checked_add(self.options.linger));
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

    /// Takes the broker's answer to a batch.
    pub(crate) fn answered(
        &mut self,
        partition: u32,
        key: u64,
        outcome: Result<Appended, (u16, &str)>,
        now: Instant,
        random: &mut Random,
    ) {
        let what = || -> Arc<str> { format!("publish to {}/{partition}", self.topic.name).into() };
        let Some(lane) = self.lanes.get_mut(partition as usize) else {
            return;
        };
        let Some(index) = lane.batches.iter().position(|b| b.key == key) else {
            return;
        };
        lane.unsend(index);
        let (number, message) = match outcome {
            Ok(appended) => {
                lane.backoff.reset();
                return self.finish_at(partition, index, Ok(appended));
            }
            Err(refusal) => refusal,
        };
        let idempotent = self.options.idempotence;
        let batch = &mut lane.batches[index];
        match ErrorCode::from_u16(number) {
            Some(ErrorCode::DuplicateSequence) if idempotent => {
                let appended = Appended {
                    base_offset: None,
                    append_time_ms: -1,
                    duplicate: true,
                };
                self.finish_at(partition, index, Ok(appended));
            }
            Some(ErrorCode::OutOfOrderSequence) if idempotent => {
                // It is not in the log, nor is it on its way there: the broker waits for an
                // earlier sequence number.
                batch.ambiguous = false;
                if lane.hold.is_none() {
                    let wait = lane.backoff.next(random);
                    lane.hold_for(now + wait, Some(Reset::Settle));
                }
            }
            Some(ErrorCode::UnknownProducer) if idempotent => {
                let ambiguous = batch.ambiguous;
                lane.hold_for(now, Some(Reset::Settle));
                if ambiguous {
                    let why =
                        "its first answer was lost, and the broker has forgotten the producer";
                    let error = Error::OutcomeUnknown {
                        what: what(),
                        why: why.into(),
                    };
                    self.fail_at(partition, index, error);
                }
            }
            Some(code) if may_be_sent_again(code) => {
                let wait = lane.backoff.next(random);
                lane.hold_for(now + wait, None);
            }
            _ => {
                let mut error = Error::from_wire(number, what(), message);
                if batch.ambiguous {
                    // The first attempt may have come before the reason to refuse it.
                    let why = format!("its first answer was lost, and the second is: {error}");
                    error = Error::OutcomeUnknown {
                        what: what(),
                        why: why.into(),
                    };
                }
                if idempotent {
                    lane.hold_for(now, Some(Reset::Settle));
                }
                self.fail_at(partition, index, error);
            }
        }
    }

    /// The connection was lost: answers to what was sent on it will not come.
    pub(crate) fn disconnected(&mut self, link: usize, why: &str) {
        for partition in 0..self.lanes.len() as u32 {
            let lane = &mut self.lanes[partition as usize];
            if lane.sent == 0 || lane.link != link {
                continue;
            }
            let mut index = 0;
            while index < self.lanes[partition as usize].batches.len() {
                let lane = &mut self.lanes[partition as usize];
                if !lane.batches[index].is_sent() {
                    index += 1;
                    continue;
                }
                lane.unsend(index);
                if self.options.idempotence {
                    lane.batches[index].ambiguous = true;
                    index += 1;
                } else {
                    let what = self.what(partition);
                    let error = Error::OutcomeUnknown {
                        what,
                        why: why.into(),
                    };
                    self.fail_at(partition, index, error);
                }
            }
        }
    }

    /// The broker's metadata changed.
    pub(crate) fn topic_changed(&mut self, topic: &Arc<Topic>, now: Instant) {
        let renewed = topic.id != self.topic.id;
        self.topic = topic.clone();
        self.grow();
        if !renewed {
            return;
        }
        for partition in 0..self.lanes.len() as u32 {
            let lane = &mut self.lanes[partition as usize];
            if lane.identity.is_some() || !lane.batches.is_empty() {
                lane.hold_for(now, Some(Reset::Abandon));
            }
            if partition >= topic.partitions() {
                let error = Error::Broker {
                    code: ErrorCode::UnknownPartition,
                    what: self.what(partition),
                    message: "the topic was made anew with fewer partitions".into(),
                };
                self.fail_unsent(partition, &error, now);
            }
        }
    }

    /// Fails everything of a partition that is not under way.
    pub(crate) fn fail_unsent(&mut self, partition: u32, error: &Error, now: Instant) {
        self.give_up_ambiguous(partition);
        while let Some(index) = self.lanes[partition as usize].first_unsent() {
            self.fail_at(partition, index, error.clone());
            if self.options.idempotence {
                self.lanes[partition as usize].hold_for(now, Some(Reset::Abandon));
            }
        }
        while !self.lanes[partition as usize].forming.is_empty() {
            self.fail_forming(partition, error.clone());
        }
    }

    fn give_up_ambiguous(&mut self, partition: u32) {
        let find = |lane: &Lane| {
            lane.batches
                .iter()
                .position(|b| b.ambiguous && !b.is_sent())
        };
        while let Some(index) = find(&self.lanes[partition as usize]) {
            let why = "its answer was lost, and the broker cannot tell any more".into();
            let error = Error::OutcomeUnknown {
                what: self.what(partition),
                why,
            };
            self.fail_at(partition, index, error);
        }
    }

    fn fail_forming(&mut self, partition: u32, error: Error) {
        let Some(forming) = self.lanes[partition as usize].forming.pop_front() else {
            return;
        };
        self.held_bytes -= forming.held;
        let (first, records) = (forming.first, forming.builder.count());
        self.done.push_back(Completion {
            partition,
            first,
            records,
            outcome: Err(error),
        });
    }

    fn fail_at(&mut self, partition: u32, index: usize, error: Error) {
        self.finish_at(partition, index, Err(error));
    }

    /// Completes a batch without waiting for an answer.
    pub(crate) fn finish_unacknowledged(&mut self, partition: u32, key: u64) {
        let lane = &self.lanes[partition as usize];
        if let Some(index) = lane.batches.iter().position(|b| b.key == key) {
            let appended = Appended {
                base_offset: None,
                append_time_ms: -1,
                duplicate: false,
            };
            self.finish_at(partition, index, Ok(appended));
        }
    }

    fn finish_at(&mut self, partition: u32, index: usize, outcome: Result<Appended>) {
        let lane = &mut self.lanes[partition as usize];
        lane.unsend(index);
        let Some(mut batch) = lane.batches.remove(index) else {
            return;
        };
        self.held_bytes -= batch.held;
        if self.held_bytes == 0 {
            self.flushing = false;
        }
        let (first, records) = (batch.first, batch.records);
        self.done.push_back(Completion {
            partition,
            first,
            records,
            outcome,
        });
        let spares = if batch.bytes.capacity() <= SMALL_BYTES {
            SMALL_SPARES
        } else {
            SPARES
        };
        if self.spare_buffers.len() < spares {
            batch.bytes.clear();
            self.spare_buffers.push(batch.bytes);
        }
    }

    /// When the oldest of a partition's records is given up.
    pub(crate) fn expiry(&self, partition: u32) -> Option<Instant> {
        let since = self.lanes[partition as usize].oldest()?;
        since.checked_add(self.options.delivery_timeout)
    }
}

/// Whether a refusal leaves the batch as it was and sending it again may help. An unknown topic may
/// be one that was just created, or whose metadata here is out of date.
fn may_be_sent_again(code: ErrorCode) -> bool {
    code.is_retriable() || points_elsewhere(code)
}

/// Whether a refusal says that the metadata is out of date.
pub(crate) fn points_elsewhere(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::WrongShard | ErrorCode::UnknownTopic | ErrorCode::UnknownPartition
    )
}
