//! What must be true, whatever happened: a plain map of each partition, and the promises as checks on it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use ringtide_client::{Acks, Error};
use ringtide_schema::error_code::ErrorCode;
use ringtide_schema::ids::{PartitionId, TopicId};

/// A record that a client published: who, and the how-manieth of that client.
pub type Id = (u32, u64);

/// A partition from its first record to its last: offsets and values.
pub type Log = Vec<(u64, Vec<u8>)>;

/// A broken promise, in words.
pub type Violation = String;

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// No outcome yet.
    Open,
    /// Acknowledged at this level, with an offset if the level gives one.
    Acknowledged(Acks, Option<u64>),
    /// Refused: it is not in the log.
    Refused,
    /// It may or may not be in the log.
    Unknown,
}

struct Published {
    topic: usize,
    partition: u32,
    value: Vec<u8>,
    fate: Fate,
    /// Its producer keeps the order.
    is_ordered: bool,
    /// It was in memory only when the broker ended without draining.
    may_be_lost: bool,
}

/// Of the topics of a run.
pub const SEGMENT_BYTES: i64 = 1 << 20;

/// All that is known of what must hold.
#[derive(Default)]
pub struct Oracle {
    published: BTreeMap<Id, Published>,
    /// What a topic delivers once it is durable, by topic, partition and offset.
    durable: BTreeMap<(usize, u32, u64), Id>,
    /// The directories of partitions.
    places: BTreeMap<String, (usize, u32)>,
    /// Partitions of which a segment rotted: what is there may be refused, and nothing else be given instead.
    rotten: BTreeSet<(usize, u32)>,
    /// A bit rotted without which the broker does not start.
    may_not_start: bool,
    /// The disk has failed to read.
    pub reads_fail: bool,
    /// Outcomes so far.
    pub outcomes: u64,
    /// Records delivered so far.
    pub delivered: u64,
}

/// The value of a record: who it is, then bytes that follow from that.
pub fn value_of(id: Id, bytes: usize) -> Vec<u8> {
    let mut value = Vec::with_capacity(bytes + 12);
    value.extend_from_slice(&id.0.to_le_bytes());
    value.extend_from_slice(&id.1.to_le_bytes());
    let mut random = crate::random::Random::new(u64::from(id.0) << 40 ^ id.1);
    value.extend((0..bytes).map(|_| random.next_u64() as u8));
    value
}

fn id_of(value: &[u8]) -> Option<Id> {
    let client = u32::from_le_bytes(value.get(..4)?.try_into().ok()?);
    let number = u64::from_le_bytes(value.get(4..12)?.try_into().ok()?);
    Some((client, number))
}

impl Oracle {
    /// A topic was made, or found.
    pub fn topic(&mut self, topic: usize, id: TopicId, partitions: u32) {
        self.places.extend((0..partitions).map(|partition| {
            let id = PartitionId {
                topic: id,
                partition,
            };
            (id.dir_name(), (topic, partition))
        }));
    }

    /// Whose file it is.
    pub fn place_of(&self, path: &Path) -> Option<(usize, u32)> {
        let directory = path.parent()?.file_name()?.to_str()?;
        self.places.get(directory).copied()
    }

    /// A bit of this file rotted. An index is derived: nobody may notice. Without a log, snapshots or an identity that
    /// are whole the broker may refuse to start; if it does start, everything is there.
    pub fn damaged(&mut self, path: &Path) {
        match path.extension().and_then(|e| e.to_str()) {
            Some("log") => self.rotten.extend(self.place_of(path)),
            Some("index") => {}
            _ => self.may_not_start = true,
        }
    }

    /// Whether the broker may refuse what it finds.
    pub fn may_be_refused(&self) -> bool {
        self.may_not_start || self.is_damaged()
    }

    /// Whether a segment rotted.
    pub fn is_damaged(&self) -> bool {
        !self.rotten.is_empty()
    }

    /// Whether a segment of this partition rotted.
    pub fn is_rotten(&self, topic: usize, partition: u32) -> bool {
        self.rotten.contains(&(topic, partition))
    }

    /// Whether a consumer of a topic may be told of this.
    pub fn may_be_told(&self, topic: usize, error: &Error) -> bool {
        let is_rotten = self.rotten.iter().any(|place| place.0 == topic);
        is_rotten || self.reads_fail && error.code() == Some(ErrorCode::DataUnreadable)
    }

    /// A client hands over a record.
    pub fn publish(
        &mut self,
        id: Id,
        topic: usize,
        partition: u32,
        value: Vec<u8>,
        is_ordered: bool,
    ) {
        let published = Published {
            topic,
            partition,
            value,
            fate: Fate::Open,
            is_ordered,
            may_be_lost: false,
        };
        self.published.insert(id, published);
    }

    /// How many records have no outcome.
    pub fn open(&self) -> usize {
        let is_open = |p: &&Published| p.fate == Fate::Open;
        self.published.values().filter(is_open).count()
    }

    /// A client is told what became of a record.
    ///
    /// # Errors
    /// When that contradicts what was promised before.
    pub fn outcome(
        &mut self,
        id: Id,
        acks: Acks,
        result: &Result<Option<u64>, Error>,
    ) -> Result<(), Violation> {
        self.outcomes += 1;
        let Some(record) = self.published.get_mut(&id) else {
            return Err(format!("an outcome of record {id:?}, which nobody sent"));
        };
        if record.fate != Fate::Open {
            return Err(format!("record {id:?} has two outcomes"));
        }
        record.fate = match result {
            Ok(offset) => Fate::Acknowledged(acks, *offset),
            Err(error @ Error::AcknowledgedLost { .. }) => return Err(error.to_string()),
            Err(error) if error.is_outcome_unknown() => Fate::Unknown,
            Err(_) => Fate::Refused,
        };
        let place = (record.topic, record.partition);
        if let Ok(Some(offset)) = result
            && acks == Acks::Durable
        {
            return self.is_there((place.0, place.1, *offset), id, "acknowledged as durable");
        }
        Ok(())
    }

    fn is_there(&mut self, place: (usize, u32, u64), id: Id, how: &str) -> Result<(), Violation> {
        match self.durable.insert(place, id) {
            Some(other) if other != id => Err(format!(
                "record {id:?} {how} at offset {} of {}/{}, where {other:?} was before",
                place.2, place.0, place.1
            )),
            _ => Ok(()),
        }
    }

    /// A consumer is given a record.
    ///
    /// # Errors
    /// When nobody published it so, or another was there before.
    pub fn delivered(
        &mut self,
        topic: usize,
        partition: u32,
        offset: u64,
        value: &[u8],
        is_durable: bool,
    ) -> Result<(), Violation> {
        self.delivered += 1;
        let id = self.known(topic, partition, offset, value)?;
        match is_durable {
            true => self.is_there((topic, partition, offset), id, "delivered"),
            false => Ok(()),
        }
    }

    fn known(
        &self,
        topic: usize,
        partition: u32,
        offset: u64,
        value: &[u8],
    ) -> Result<Id, Violation> {
        let id = id_of(value).unwrap_or_default();
        let known = self
            .published
            .get(&id)
            .filter(|p| p.topic == topic && p.partition == partition && p.value == value);
        match known {
            Some(_) => Ok(id),
            None => Err(format!(
                "offset {offset} of {topic}/{partition} holds what nobody published there ({id:?})"
            )),
        }
    }

    /// The broker ended without draining: what was only accepted may be gone.
    pub fn crashed(&mut self) {
        for record in self.published.values_mut() {
            record.may_be_lost |= !matches!(record.fate, Fate::Acknowledged(Acks::Durable, _));
        }
    }

    /// Checks a partition that was read from its first record to its last.
    ///
    /// # Errors
    /// The first broken promise.
    pub fn check(
        &self,
        topic: usize,
        partition: u32,
        log: &[(u64, Vec<u8>)],
        retention_bytes: Option<i64>,
    ) -> Result<(), Violation> {
        let mut places: BTreeMap<Id, u64> = BTreeMap::new();
        let mut last: BTreeMap<u32, u64> = BTreeMap::new();
        let first = log.first().map_or(0, |(offset, _)| *offset);
        let is_rotten = self.is_rotten(topic, partition);
        if first > 0 && !is_rotten {
            // A batch has a header of 61 bytes, a record some more than its value.
            let bytes: usize = log.iter().map(|(_, value)| value.len() + 61 + 40).sum();
            // The oldest segment goes while there is more than that.
            let least = retention_bytes.map(|most| most - SEGMENT_BYTES);
            if least.is_none_or(|least| (bytes as i64) < least) {
                return Err(format!(
                    "{topic}/{partition} begins at {first}: {bytes} bytes are left, retention is {retention_bytes:?}"
                ));
            }
        }
        for (expected, (offset, value)) in (first..).zip(log) {
            let place = format!("{topic}/{partition}");
            if *offset != expected && !is_rotten {
                return Err(format!(
                    "offset {offset} of {place} where {expected} is next"
                ));
            }
            let id = self.known(topic, partition, *offset, value)?;
            if let Some(first) = places.insert(id, *offset) {
                return Err(format!(
                    "record {id:?} is twice in {place}: at {first} and {offset}"
                ));
            }
            if self.published[&id].is_ordered
                && let Some(before) = last.insert(id.0, id.1)
                && before > id.1
            {
                return Err(format!(
                    "record {id:?} of {place} comes after {before} of its client"
                ));
            }
        }
        if is_rotten {
            return Ok(());
        }
        for ((_, _, offset), id) in self
            .durable
            .range((topic, partition, first)..=(topic, partition, u64::MAX))
        {
            if places.get(id) != Some(offset) {
                return Err(format!(
                    "record {id:?} was durable at offset {offset} of {topic}/{partition}; now it is at {:?}",
                    places.get(id)
                ));
            }
        }
        for (id, record) in &self.published {
            if (record.topic, record.partition) != (topic, partition) {
                continue;
            }
            let found = places.get(id).copied();
            match record.fate {
                Fate::Refused if found.is_some() => {
                    return Err(format!(
                        "record {id:?} was refused and is at offset {found:?}"
                    ));
                }
                // Without acknowledgements nobody says whether the broker refused it.
                Fate::Acknowledged(acks, offset)
                    if !record.may_be_lost
                        && offset.is_none_or(|at| at >= first)
                        && acks != Acks::None
                        && (found.is_none() || offset.is_some_and(|at| found != Some(at))) =>
                {
                    return Err(format!(
                        "record {id:?} was acknowledged at {offset:?} and is at {found:?}"
                    ));
                }
                _ => {}
            }
        }
        Ok(())
    }
}
