//! What follows a completed write of the log: watermarks move, answers leave.

use ringtide_schema::frame::{FLAG_RESPONSE, Op};
use ringtide_schema::store::CommittedT;
use ringtide_schema::topic::Visibility;
use ringtide_schema::wire::{CommitOffsetResponse, CommitOffsetResponseArgs, PublishResult};

use crate::session::SessionKey;
use crate::settings::WRITE_OUT_BYTES;
use crate::{Fx, Shard};

/// An answer that waits until the log is durable up to `seq`.
#[derive(Debug)]
pub struct Waiter {
    /// The entry.
    pub seq: u64,
    /// The answer.
    pub answer: Answer,
}

/// What is answered when the entry is durable.
#[derive(Debug)]
pub enum Answer {
    /// A publish request of one part.
    Publish {
        key: SessionKey,
        correlation: u64,
        result: PublishResult,
        message: Option<String>,
    },
    /// A part of a publish request of several.
    Part {
        key: SessionKey,
        publish: u64,
        result: PublishResult,
        message: Option<String>,
    },
    /// A log start, which is in force from then on.
    LogStart {
        /// Index of the partition.
        partition: usize,
        /// The first offset that remains.
        log_start: u64,
    },
    /// A consumer's offset.
    CommitOffset {
        key: SessionKey,
        correlation: u64,
        /// Index of the partition.
        partition: usize,
        /// What is in force from then on.
        committed: CommittedT,
    },
}

impl Shard {
    /// Adds a waiter, keeping them in the order of their entries.
    pub(crate) fn wait_for(&mut self, seq: u64, answer: Answer) {
        let at = match self.waiters.back() {
            Some(last) if last.seq > seq => self.waiters.partition_point(|w| w.seq <= seq),
            _ => self.waiters.len(),
        };
        self.waiters.insert(at, Waiter { seq, answer });
    }

    /// The log is durable up to a new position.
    pub(crate) fn committed(&mut self, fx: &mut Fx) {
        let committed = self.wal.committed();
        while let Some(&(seq, i, next_offset)) = self.appended.front() {
            if seq > committed {
                break;
            }
            self.appended.pop_front();
            let Some(held) = self.partitions.get_mut(i).and_then(Option::as_mut) else {
                continue;
            };
            held.log.commit(next_offset);
            let is_news = held.log.config().visible == Visibility::Durable;
            if held.log.waiting_bytes() >= WRITE_OUT_BYTES {
                self.queue_writer(i, false);
            }
            if is_news {
                self.wake(i);
            }
        }
        while self.waiters.front().is_some_and(|w| w.seq <= committed) {
            if let Some(waiter) = self.waiters.pop_front() {
                assert!(
                    waiter.seq <= self.wal.committed(),
                    "answered before it is durable"
                );
                self.answer(waiter.answer);
            }
        }
        self.control_committed(fx);
    }

    /// Sends an answer whose time has come.
    pub(crate) fn answer(&mut self, answer: Answer) {
        match answer {
            Answer::Publish {
                key,
                correlation,
                result,
                message,
            } => {
                self.answer_publish(key, correlation, result, message.as_deref());
            }
            Answer::Part {
                key,
                publish,
                result,
                message,
            } => {
                self.part_done(key, publish, result, message);
            }
            Answer::LogStart {
                partition: i,
                log_start,
            } => {
                let seq = self.wal.committed();
                let Some(held) = self.held(i) else { return };
                held.is_retiring = false;
                held.log.set_log_start(log_start, seq);
                let id = held.log.id();
                tracing::debug!(partition = %id, log_start, "retention removed records");
                self.wake(i);
            }
            Answer::CommitOffset {
                key,
                correlation,
                partition,
                committed,
            } => {
                if let Some(held) = self.held(partition) {
                    held.commits_under_way -= 1;
                    held.log.commit_offset(committed);
                }
                self.reply(key, Op::CommitOffset, FLAG_RESPONSE, correlation, |b| {
                    CommitOffsetResponse::create(b, &CommitOffsetResponseArgs {})
                });
                self.finish(key, Op::CommitOffset);
            }
        }
    }
}
