//! What one partition remembers beside its batches, while entries are applied to it: producers,
//! committed offsets, epochs, log start.

use std::collections::{BTreeMap, HashMap};

use ringtide_schema::batch::Header;
use ringtide_schema::limits::{MAX_PRODUCERS_PER_PARTITION, PRODUCER_WINDOW};
use ringtide_schema::store::{
    CommitOffsetT, CommittedT, EpochStartT, PartitionT, ProducerBatchT, ProducerT,
};

use super::segments::Writer;

/// A partition that is being replayed.
pub(super) struct Partition {
    pub(super) stored: PartitionT,
    pub(super) writer: Option<Writer>,
    producers: Option<Producers>,
    committed: Option<BTreeMap<String, CommittedT>>,
}

impl Partition {
    pub(super) fn new(stored: PartitionT) -> Self {
        Self {
            stored,
            writer: None,
            producers: None,
            committed: None,
        }
    }

    /// Notes a batch beside appending it: its epoch and its producer.
    pub(super) fn note(&mut self, header: &Header, append_time_ms: i64) {
        let epoch = header.leader_epoch.cast_unsigned();
        let epochs = self.stored.epochs.get_or_insert_default();
        if epochs.last().is_none_or(|last| last.epoch != epoch) {
            epochs.push(EpochStartT {
                start_offset: header.base_offset,
                epoch,
            });
        }
        if header.has_producer() {
            let stored = &mut self.stored.producers;
            let producers = self
                .producers
                .get_or_insert_with(|| Producers::new(stored.take()));
            producers.note(header, append_time_ms);
        }
    }

    /// A consumer's offset was committed.
    pub(super) fn commit(&mut self, commit: CommitOffsetT) {
        let stored = &mut self.stored.committed;
        let committed = self.committed.get_or_insert_with(|| {
            let stored = stored.take().unwrap_or_default();
            stored
                .into_iter()
                .map(|c| (c.consumer.clone(), c))
                .collect()
        });
        let CommitOffsetT {
            consumer,
            offset,
            leader_epoch,
            time_ms,
        } = commit;
        let name = consumer.clone();
        committed.insert(
            name,
            CommittedT {
                consumer,
                offset,
                leader_epoch,
                time_ms,
            },
        );
    }

    /// Raises the log start and takes the segments out of the manifest that lie entirely below;
    /// gives their base offsets.
    pub(super) fn raise_log_start(&mut self, log_start: u64) -> Vec<u64> {
        if log_start <= self.stored.log_start {
            return Vec::new();
        }
        self.stored.log_start = log_start;
        let Some(segments) = &mut self.stored.segments else {
            return Vec::new();
        };
        let below = segments
            .iter()
            .take_while(|s| s.sealed && s.next_offset <= log_start)
            .count();
        segments
            .drain(..below)
            .map(|segment| segment.base_offset)
            .collect()
    }

    /// Takes back offsets of consumers that are past the end; whether there were any. A commit is in the log behind
    /// what it is of, so that only a log that was cut lacks the one and a snapshot still holds the other.
    pub(super) fn limit_commits(&mut self) -> bool {
        let end = self.stored.next_offset;
        let mut limited = false;
        for commit in self.stored.committed.iter_mut().flatten() {
            limited |= commit.offset > end;
            commit.offset = commit.offset.min(end);
        }
        limited
    }

    /// Puts everything back into the stored form.
    pub(super) fn settle(&mut self) {
        if let Some(producers) = self.producers.take() {
            self.stored.producers = Some(producers.into_stored());
        }
        if let Some(committed) = self.committed.take() {
            self.stored.committed = Some(committed.into_values().collect());
        }
    }
}

/// The idempotent producers of a partition; the stored order is least recent first.
struct Producers {
    by_id: HashMap<i64, (u64, ProducerT)>,
    by_recency: BTreeMap<u64, i64>,
    next: u64,
}

impl Producers {
    fn new(stored: Option<Vec<ProducerT>>) -> Self {
        let mut new = Self {
            by_id: HashMap::new(),
            by_recency: BTreeMap::new(),
            next: 0,
        };
        for producer in stored.unwrap_or_default() {
            new.insert(producer);
        }
        new
    }

    fn insert(&mut self, producer: ProducerT) {
        self.by_recency.insert(self.next, producer.id);
        self.by_id.insert(producer.id, (self.next, producer));
        self.next += 1;
        if self.by_id.len() > MAX_PRODUCERS_PER_PARTITION
            && let Some((_, id)) = self.by_recency.pop_first()
        {
            self.by_id.remove(&id);
        }
    }

    fn note(&mut self, header: &Header, append_time_ms: i64) {
        let mut producer = match self.by_id.remove(&header.producer_id) {
            Some((recency, producer)) => {
                self.by_recency.remove(&recency);
                producer
            }
            None => ProducerT {
                id: header.producer_id,
                ..ProducerT::default()
            },
        };
        let batches = producer.batches.get_or_insert_default();
        if producer.epoch != header.producer_epoch {
            producer.epoch = header.producer_epoch;
            batches.clear();
        }
        if batches.len() >= PRODUCER_WINDOW {
            batches.drain(..=batches.len() - PRODUCER_WINDOW);
        }
        batches.push(ProducerBatchT {
            base_offset: header.base_offset,
            append_time_ms,
            base_sequence: header.base_sequence,
            records: header.record_count,
        });
        self.insert(producer);
    }

    fn into_stored(mut self) -> Vec<ProducerT> {
        let by_id = &mut self.by_id;
        self.by_recency
            .values()
            .filter_map(|id| by_id.remove(id))
            .map(|(_, p)| p)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringtide_schema::batch::Codec;
    use ringtide_schema::record::BatchBuilder;

    fn header(producer: i64, epoch: i16, sequence: i32) -> Header {
        let mut bytes = Vec::new();
        let mut builder = BatchBuilder::new(Codec::None);
        builder.push(1, None, Some(b"v"), &[]);
        builder
            .finish(producer, epoch, sequence, &mut bytes)
            .expect("one record");
        Header::peek(&bytes).expect("just built")
    }

    #[test]
    fn a_producer_is_remembered_by_its_last_five_batches() {
        let mut producers = Producers::new(None);
        for sequence in 0..8 {
            producers.note(&header(9, 0, sequence), 5);
        }
        let stored = producers.into_stored();
        let sequences: Vec<i32> = stored[0]
            .batches
            .iter()
            .flatten()
            .map(|b| b.base_sequence)
            .collect();
        assert_eq!(sequences, [3, 4, 5, 6, 7]);
    }

    #[test]
    fn a_new_producer_epoch_forgets_the_batches_of_the_old_one() {
        let mut producers = Producers::new(None);
        producers.note(&header(9, 0, 0), 5);
        producers.note(&header(9, 1, 0), 6);
        let stored = producers.into_stored();
        assert_eq!(
            (stored[0].epoch, stored[0].batches.iter().flatten().count()),
            (1, 1)
        );
    }

    #[test]
    fn past_the_bound_the_least_recent_producer_goes() {
        let mut producers = Producers::new(None);
        let bound = MAX_PRODUCERS_PER_PARTITION as i64;
        for id in 0..bound {
            producers.note(&header(id, 0, 0), 5);
        }
        producers.note(&header(0, 0, 1), 6);
        producers.note(&header(bound, 0, 0), 7);
        let ids: Vec<i64> = producers.into_stored().iter().map(|p| p.id).collect();
        assert_eq!(ids.len(), MAX_PRODUCERS_PER_PARTITION);
        assert!(!ids.contains(&1) && ids.contains(&0) && ids.last() == Some(&bound));
    }
}
