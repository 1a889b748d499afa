//! What becomes of a producer's batches: answers, refusals, lost connections, topics made anew.
//!
//! The rule for batches with an identity: one that was refused is known not to be in the log; one
//! whose answer was lost is *ambiguous* until a later answer under the same identity tells.

use std::sync::Arc;
use std::time::Instant;

use ringtide_schema::error_code::ErrorCode;

use crate::core::backoff::Random;
use crate::core::cluster::Topic;
use crate::core::lane::{Lane, Reset};
use crate::core::producer::{Appended, Completion, Producer};
use crate::error::{Error, Result};
use crate::options::Acks;

/// Buffers kept for the next batch.
const SPARES: usize = 16;
/// Small ones are kept in larger number: a thousand single records may be in flight.
const SMALL_SPARES: usize = 1024;
const SMALL_BYTES: usize = 2048;

impl Producer {
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
                lane.refusal = None;
                return self.finish_at(partition, index, Ok(appended));
            }
            Err(refusal) => refusal,
        };
        let idempotent = self.options.idempotence;
        let waits_for_ambiguous = lane.batches.iter().take(index).any(|b| b.ambiguous);
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
                // It is not in the log: the broker waits for an earlier sequence number. What was
                // sent on a connection that is given up may still bring that, and this one too.
                if batch.ambiguous && lane.unknown {
                    lane.hold_for(now, Some(Reset::Settle));
                    let why = "its first answer was lost, and the broker lacks an earlier record \
                               whose outcome is unknown";
                    let error = Error::OutcomeUnknown {
                        what: what(),
                        why: why.into(),
                    };
                    return self.fail_at(partition, index, error);
                }
                batch.ambiguous &= waits_for_ambiguous;
                // Everything before the first batch was acknowledged, unless one of it failed.
                let lost = index == 0 && !lane.gap;
                if lost && self.options.acks == Acks::Durable {
                    lane.hold_for(now, Some(Reset::Settle));
                    let topic = self.topic.name.clone();
                    let error = Error::AcknowledgedLost { topic, partition };
                    return self.fail_at(partition, index, error);
                }
                if lane.hold.is_none() {
                    self.losses += u64::from(lost);
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
                lane.refusal = Some(Error::from_wire(number, what(), message));
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
            lane.refusal = None;
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

    pub(super) fn give_up_ambiguous(&mut self, partition: u32) {
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

    pub(super) fn fail_forming(&mut self, partition: u32, error: Error) {
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

    pub(super) fn fail_at(&mut self, partition: u32, index: usize, error: Error) {
        self.finish_at(partition, index, Err(error));
    }

    /// The broker has handled a batch that it does not answer.
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
        if let Err(error) = &outcome {
            lane.gap = true;
            lane.unknown |= error.is_outcome_unknown();
        }
        self.held_bytes -= batch.held;
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
