//! A producer's records of one partition, in order: those that form batches, and the batches whose
//! outcome is not known yet, under one identity with consecutive sequence numbers.

use std::collections::VecDeque;
use std::time::Instant;

use ringtide_schema::batch::CRC_START;
use ringtide_schema::record::BatchBuilder;

use crate::core::backoff::Backoff;
use crate::core::producer::Identity;
use crate::error::Error;

/// Records that are not a batch yet.
pub(crate) struct Forming {
    pub(crate) builder: BatchBuilder,
    pub(crate) first: u64,
    pub(crate) since: Instant,
    pub(crate) held: usize,
}

/// A batch whose outcome is not known.
pub(crate) struct Batch {
    pub(crate) key: u64,
    pub(crate) bytes: Vec<u8>,
    pub(crate) first: u64,
    pub(crate) records: u32,
    pub(crate) held: usize,
    pub(crate) since: Instant,
    /// The link on which an answer is due.
    pub(crate) on: Option<usize>,
    /// It was sent, and its answer was lost: it may have been appended.
    pub(crate) ambiguous: bool,
}

impl Batch {
    pub(crate) fn is_sent(&self) -> bool {
        self.on.is_some()
    }
}

/// Nothing is sent before this time and before what is under way was answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hold {
    pub(crate) until: Instant,
    /// Then the lane begins anew under a fresh identity.
    pub(crate) reset: Option<Reset>,
}

/// What to do about ambiguous batches before a lane begins anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reset {
    /// Send them once more under the old identity: the answer tells.
    Settle,
    /// Their topic is gone, and nobody can tell.
    Abandon,
}

/// The state of one partition.
pub(crate) struct Lane {
    pub(crate) identity: Option<Identity>,
    /// The identity that must not be used again here.
    pub(crate) spent: Option<i64>,
    next_sequence: i32,
    pub(crate) batches: VecDeque<Batch>,
    /// How many of the batches are under way, and on which link.
    pub(crate) sent: usize,
    pub(crate) link: usize,
    /// The last may still grow.
    pub(crate) forming: VecDeque<Forming>,
    pub(crate) next_number: u64,
    /// Records before this one do not wait for more.
    pub(crate) flush_before: u64,
    next_key: u64,
    pub(crate) hold: Option<Hold>,
    /// A batch under this identity failed: that those behind it are out of order says no more.
    pub(crate) gap: bool,
    /// A batch under this identity ended without it being known whether it was appended.
    pub(crate) unknown: bool,
    /// What the broker said last, if that was no.
    pub(crate) refusal: Option<Error>,
    pub(crate) backoff: Backoff,
}

impl Lane {
    pub(crate) fn new(backoff: Backoff) -> Self {
        Self {
            identity: None,
            spent: None,
            next_sequence: 0,
            batches: VecDeque::new(),
            sent: 0,
            link: 0,
            forming: VecDeque::new(),
            next_number: 0,
            flush_before: 0,
            next_key: 0,
            hold: None,
            gap: false,
            unknown: false,
            refusal: None,
            backoff,
        }
    }

    pub(crate) fn next_key(&mut self) -> u64 {
        self.next_key += 1;
        self.next_key
    }

    /// Whether anything waits to be sent.
    pub(crate) fn has_unsent(&self) -> bool {
        !self.forming.is_empty() || self.sent < self.batches.len()
    }

    /// The first batch that waits to be sent.
    pub(crate) fn first_unsent(&self) -> Option<usize> {
        if self.sent == self.batches.len() {
            return None;
        }
        self.batches.iter().position(|b| !b.is_sent())
    }

    /// The number of the first record without an outcome.
    pub(crate) fn first_open(&self) -> u64 {
        let batch = self.batches.front().map(|b| b.first);
        let forming = || self.forming.front().map(|f| f.first);
        batch.or_else(forming).unwrap_or(self.next_number)
    }

    /// Whether a record that was taken has no outcome. Outcomes need not come in order.
    pub(crate) fn is_open(&self, number: u64) -> bool {
        let after = self.batches.partition_point(|b| b.first <= number);
        let batch = after.checked_sub(1).map(|index| &self.batches[index]);
        batch.is_some_and(|b| number - b.first < u64::from(b.records))
            || self.forming.front().is_some_and(|f| f.first <= number)
    }

    /// The time of the oldest record.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        let batch = self.batches.front().map(|b| b.since);
        batch.or_else(|| self.forming.front().map(|f| f.since))
    }

    /// Marks a batch as sent.
    pub(crate) fn send(&mut self, index: usize, link: usize) {
        self.sent += 1;
        self.link = link;
        let batch = &mut self.batches[index];
        debug_assert!(batch.on.is_none());
        batch.on = Some(link);
    }

    /// Marks a batch as not under way.
    pub(crate) fn unsend(&mut self, index: usize) {
        if self.batches[index].on.take().is_some() {
            self.sent -= 1;
        }
    }

    /// Producer id, epoch and base sequence of the next batch.
    pub(crate) fn stamp(&mut self, records: u32) -> (i64, i16, i32) {
        let Some(identity) = self.identity else {
            return (-1, -1, -1);
        };
        let sequence = self.next_sequence;
        self.next_sequence = sequence_after(sequence, records);
        (identity.id, identity.epoch, sequence)
    }

    /// Sends nothing until what is under way was answered and the time has come.
    pub(crate) fn hold_for(&mut self, until: Instant, reset: Option<Reset>) {
        let before = self.hold.and_then(|h| h.reset);
        let until = self.hold.map_or(until, |h| h.until.max(until));
        self.hold = Some(Hold {
            until,
            reset: before.max(reset),
        });
    }

    /// Forgets the identity, which must not be used again.
    pub(crate) fn begin_anew(&mut self) {
        debug_assert_eq!(self.sent, 0, "answers are due under the old identity");
        if let Some(identity) = self.identity.take() {
            self.spent = Some(identity.id);
        }
    }

    /// Takes a fresh identity: sequence numbers begin at 0, with the batches that wait.
    pub(crate) fn take_identity(&mut self, identity: Identity) {
        self.identity = Some(identity);
        self.gap = false;
        self.unknown = false;
        self.next_sequence = 0;
        for index in 0..self.batches.len() {
            let (id, epoch, sequence) = self.stamp(self.batches[index].records);
            restamp(&mut self.batches[index].bytes, id, epoch, sequence);
        }
    }
}

/// The sequence number that follows a batch: after the largest comes 0.
fn sequence_after(base: i32, records: u32) -> i32 {
    (base.cast_unsigned().wrapping_add(records) & i32::MAX.cast_unsigned()).cast_signed()
}

const PRODUCER_ID: usize = 43;
const PRODUCER_EPOCH: usize = 51;
const BASE_SEQUENCE: usize = 53;
const CRC: usize = 17;

/// Writes another producer into a finished batch (layout: `ringtide_schema::batch`).
fn restamp(batch: &mut [u8], id: i64, epoch: i16, sequence: i32) {
    batch[PRODUCER_ID..PRODUCER_EPOCH].copy_from_slice(&id.to_be_bytes());
    batch[PRODUCER_EPOCH..BASE_SEQUENCE].copy_from_slice(&epoch.to_be_bytes());
    batch[BASE_SEQUENCE..BASE_SEQUENCE + 4].copy_from_slice(&sequence.to_be_bytes());
    let crc = crc32c::crc32c(&batch[CRC_START..]);
    batch[CRC..CRC_START].copy_from_slice(&crc.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use ringtide_schema::batch::check_publish;
    use ringtide_schema::compress::Codec;

    #[test]
    fn a_batch_with_another_producer_is_still_valid() {
        let mut builder = BatchBuilder::new(Codec::Lz4);
        builder.push(5, Some(b"k"), Some(b"v"), &[]);
        builder.push(6, None, Some(b"w"), &[("h", None)]);
        let mut bytes = Vec::new();
        builder.finish(1, 2, 3, &mut bytes).expect("a batch");
        restamp(&mut bytes, 77, 8, 9);
        let header = check_publish(&bytes, 1 << 20).expect("still valid");
        assert_eq!(
            (
                header.producer_id,
                header.producer_epoch,
                header.base_sequence
            ),
            (77, 8, 9)
        );
    }

    #[test]
    fn a_record_is_open_until_its_own_batch_has_an_outcome() {
        let mut lane = Lane::new(Backoff::new(Duration::ZERO, Duration::ZERO));
        for first in [0, 3, 6] {
            lane.batches.push_back(Batch {
                key: first,
                bytes: Vec::new(),
                first,
                records: 3,
                held: 0,
                since: Instant::now(),
                on: None,
                ambiguous: false,
            });
        }
        lane.forming.push_back(Forming {
            builder: BatchBuilder::new(Codec::None),
            first: 9,
            since: Instant::now(),
            held: 0,
        });
        // The second batch was answered first.
        lane.batches.remove(1);
        let open: Vec<u64> = (0..10).filter(|&number| lane.is_open(number)).collect();
        assert_eq!(open, [0, 1, 2, 6, 7, 8, 9]);
    }

    #[test]
    fn after_the_largest_sequence_number_comes_zero() {
        assert_eq!(sequence_after(0, 3), 3);
        assert_eq!(sequence_after(i32::MAX, 1), 0);
        assert_eq!(sequence_after(i32::MAX - 1, 3), 1);
    }
}
