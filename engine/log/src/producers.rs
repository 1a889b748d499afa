//! What a partition remembers of idempotent producers: the last batches of each, so that one that
//! is sent again is found instead of appended again.

use std::collections::HashMap;

use ringtide_schema::limits::{MAX_PRODUCERS_PER_PARTITION, PRODUCER_WINDOW};
use ringtide_schema::store::{ProducerBatchT, ProducerT};

/// What the window says of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The next one: append it.
    New,
    /// Appended before.
    Duplicate {
        /// Its first offset.
        base_offset: u64,
        /// When it was appended, ms since 1970.
        append_time_ms: i64,
    },
    /// Appended before, too long ago for its offset to be known.
    DuplicateTooOld,
    /// Not the next one.
    OutOfOrder {
        /// The sequence that would be.
        expected: i32,
    },
    /// Nothing is known of this producer, and this is not its first batch.
    Unknown,
    /// A newer epoch of this producer was seen.
    Fenced {
        /// The newer epoch.
        epoch: i16,
    },
}

/// Batches kept past the window while they are not synced: a snapshot leaves them out, and must
/// still have a full window of older ones.
const UNSYNCED_BATCHES: usize = 64;

#[derive(Debug, Default)]
struct Producer {
    epoch: i16,
    /// Oldest first.
    batches: Vec<ProducerBatchT>,
    last_used: u64,
}

/// The producers of one partition.
#[derive(Debug, Default)]
pub struct Producers {
    by_id: HashMap<i64, Producer>,
    clock: u64,
}

/// The sequence `records` after `sequence`; it wraps to 0 past `i32::MAX`, as Kafka's does.
pub fn sequence_after(sequence: i32, records: u32) -> i32 {
    ((i64::from(sequence) + i64::from(records)) & i64::from(i32::MAX)) as i32
}

impl Producers {
    /// As a snapshot holds them.
    pub fn load(stored: &[ProducerT]) -> Self {
        let mut producers = Self::default();
        for p in stored {
            producers.clock += 1;
            let batches = p.batches.clone().unwrap_or_default();
            let last_used = producers.clock;
            producers.by_id.insert(
                p.id,
                Producer {
                    epoch: p.epoch,
                    batches,
                    last_used,
                },
            );
        }
        producers
    }

    /// For a snapshot: what is known of batches that end at or before `next_offset`.
    pub fn store(&self, next_offset: u64) -> Vec<ProducerT> {
        let mut stored: Vec<(u64, ProducerT)> = Vec::new();
        for (&id, p) in &self.by_id {
            let held = |b: &&ProducerBatchT| b.base_offset + u64::from(b.records) <= next_offset;
            let mut batches: Vec<_> = p.batches.iter().filter(held).cloned().collect();
            if batches.is_empty() {
                continue;
            }
            batches.drain(..batches.len().saturating_sub(PRODUCER_WINDOW));
            stored.push((
                p.last_used,
                ProducerT {
                    id,
                    epoch: p.epoch,
                    batches: Some(batches),
                },
            ));
        }
        stored.sort_by_key(|(used, _)| *used);
        stored.into_iter().map(|(_, p)| p).collect()
    }

    /// Looks a batch up without remembering it.
    pub fn check(&self, id: i64, epoch: i16, base_sequence: i32, records: u32) -> Verdict {
        let Some(p) = self.by_id.get(&id) else {
            return if base_sequence == 0 {
                Verdict::New
            } else {
                Verdict::Unknown
            };
        };
        if epoch < p.epoch {
            return Verdict::Fenced { epoch: p.epoch };
        }
        if epoch > p.epoch {
            return match base_sequence {
                0 => Verdict::New,
                _ => Verdict::OutOfOrder { expected: 0 },
            };
        }
        let Some(last) = p.batches.last() else {
            return Verdict::Unknown;
        };
        let expected = sequence_after(last.base_sequence, last.records);
        if base_sequence == expected {
            return Verdict::New;
        }
        let same = |b: &&ProducerBatchT| b.base_sequence == base_sequence && b.records == records;
        if let Some(b) = p.batches.iter().rev().find(same) {
            return Verdict::Duplicate {
                base_offset: b.base_offset,
                append_time_ms: b.append_time_ms,
            };
        }
        // Behind the window, seen across the wrap.
        let behind = (i64::from(expected) - i64::from(base_sequence)) & i64::from(i32::MAX);
        if behind < i64::from(i32::MAX / 2) {
            Verdict::DuplicateTooOld
        } else {
            Verdict::OutOfOrder { expected }
        }
    }

    /// Remembers a batch that was appended. Those that end at or before `synced_offset` need not
    /// be kept past the window.
    pub fn remember(&mut self, id: i64, epoch: i16, batch: ProducerBatchT, synced_offset: u64) {
        self.clock += 1;
        if !self.by_id.contains_key(&id) && self.by_id.len() >= MAX_PRODUCERS_PER_PARTITION {
            let oldest = self
                .by_id
                .iter()
                .min_by_key(|(_, p)| p.last_used)
                .map(|(&id, _)| id);
            if let Some(oldest) = oldest {
                self.by_id.remove(&oldest);
            }
        }
        let p = self.by_id.entry(id).or_default();
        if epoch != p.epoch {
            p.epoch = epoch;
            p.batches.clear();
        }
        p.last_used = self.clock;
        p.batches.push(batch);
        let spare = |p: &Producer| {
            let after = &p.batches[PRODUCER_WINDOW];
            p.batches.len() > PRODUCER_WINDOW + UNSYNCED_BATCHES
                || (p.batches.len() > PRODUCER_WINDOW
                    && after.base_offset + u64::from(after.records) <= synced_offset)
        };
        while p.batches.len() > PRODUCER_WINDOW && spare(p) {
            p.batches.remove(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(base_sequence: i32, records: u32, base_offset: u64) -> ProducerBatchT {
        ProducerBatchT {
            base_offset,
            append_time_ms: 1,
            base_sequence,
            records,
        }
    }

    #[test]
    fn a_batch_sent_again_is_found() {
        let mut p = Producers::default();
        p.remember(7, 0, batch(0, 3, 100), 1000);
        p.remember(7, 0, batch(3, 2, 103), 1000);
        let found = Verdict::Duplicate {
            base_offset: 100,
            append_time_ms: 1,
        };
        assert_eq!(p.check(7, 0, 0, 3), found);
        assert_eq!(p.check(7, 0, 5, 1), Verdict::New);
        assert_eq!(p.check(7, 0, 6, 1), Verdict::OutOfOrder { expected: 5 });
    }

    #[test]
    fn a_batch_behind_the_window_is_too_old_and_never_new() {
        let mut p = Producers::default();
        for i in 0..10 {
            p.remember(7, 0, batch(i, 1, i as u64), 1000);
        }
        assert_eq!(p.check(7, 0, 0, 1), Verdict::DuplicateTooOld);
        assert!(matches!(
            p.check(7, 0, 5, 1),
            Verdict::Duplicate { base_offset: 5, .. }
        ));
    }

    #[test]
    fn sequences_wrap_to_zero() {
        let mut p = Producers::default();
        p.remember(7, 0, batch(0, 1, 0), 0);
        p.remember(7, 0, batch(1, i32::MAX as u32 - 1, 1), 0);
        assert_eq!(p.check(7, 0, i32::MAX, 2), Verdict::New);
        p.remember(7, 0, batch(i32::MAX, 2, 50), 0);
        assert_eq!(p.check(7, 0, 1, 1), Verdict::New);
    }

    #[test]
    fn an_unknown_producer_may_only_begin_at_zero() {
        let p = Producers::default();
        assert_eq!(p.check(1, 0, 0, 1), Verdict::New);
        assert_eq!(p.check(1, 0, 4, 1), Verdict::Unknown);
    }

    #[test]
    fn an_older_epoch_is_fenced_and_a_newer_one_begins_at_zero() {
        let mut p = Producers::default();
        p.remember(1, 3, batch(0, 1, 0), 0);
        assert_eq!(p.check(1, 2, 1, 1), Verdict::Fenced { epoch: 3 });
        assert_eq!(p.check(1, 4, 1, 1), Verdict::OutOfOrder { expected: 0 });
        assert_eq!(p.check(1, 4, 0, 1), Verdict::New);
    }

    #[test]
    fn a_snapshot_knows_nothing_of_batches_it_does_not_hold() {
        let mut p = Producers::default();
        for i in 0..20 {
            p.remember(7, 0, batch(i, 1, i as u64), 8);
        }
        let stored = p.store(8);
        let loaded = Producers::load(&stored);
        assert_eq!(loaded.check(7, 0, 8, 1), Verdict::New);
        assert!(matches!(
            loaded.check(7, 0, 3, 1),
            Verdict::Duplicate { base_offset: 3, .. }
        ));
    }

    #[test]
    fn the_least_recent_producer_makes_room() {
        let mut p = Producers::default();
        for id in 0..=MAX_PRODUCERS_PER_PARTITION as i64 {
            p.remember(id, 0, batch(0, 1, id as u64), 0);
        }
        assert_eq!(p.by_id.len(), MAX_PRODUCERS_PER_PARTITION);
        assert_eq!(p.check(0, 0, 1, 1), Verdict::Unknown);
    }
}
