//! The topics, as the metadata group's snapshot and entries make them.

use std::collections::{BTreeMap, BTreeSet};

use ringtide_schema::flatbuffers;
use ringtide_schema::ids::TopicId;
use ringtide_schema::limits::MAX_PARTITIONS;
use ringtide_schema::store::{MetaEntry, MetaEntryT, TopicT};
use ringtide_schema::topic::{TopicConfig, check_topic_name};

/// A topic that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicRecord {
    /// Its identity.
    pub id: TopicId,
    /// Its name.
    pub name: String,
    /// Number of partitions, from 0 up.
    pub partitions: u32,
    /// Its settings.
    pub config: TopicConfig,
}

/// What the metadata says of a topic id.
pub(super) enum Standing<'a> {
    /// It exists.
    Live(&'a TopicRecord),
    /// It existed.
    Deleted,
    /// It was never made.
    Unknown,
}

/// The topics and the number that the next one gets.
#[derive(Clone, Debug, Default)]
pub(super) struct Metadata {
    topics: BTreeMap<TopicId, TopicRecord>,
    names: BTreeSet<String>,
    next_serial: u64,
}

impl Metadata {
    /// From the metadata group's snapshot.
    pub(super) fn new(topics: &[TopicT], next_serial: u64) -> Result<Self, String> {
        let mut metadata = Self {
            next_serial,
            ..Self::default()
        };
        for stored in topics {
            let topic = checked(stored)?;
            if topic.id.serial() >= next_serial {
                return Err(format!(
                    "topic {} is not below the mark {next_serial}",
                    topic.id
                ));
            }
            metadata.insert(topic)?;
        }
        Ok(metadata)
    }

    fn insert(&mut self, topic: TopicRecord) -> Result<(), String> {
        if !self.names.insert(topic.name.clone()) || self.topics.contains_key(&topic.id) {
            return Err(format!(
                "topic {} ({}) is there twice",
                topic.name, topic.id
            ));
        }
        self.topics.insert(topic.id, topic);
        Ok(())
    }

    fn remove(&mut self, id: TopicId) -> Result<TopicRecord, String> {
        let topic = self
            .topics
            .remove(&id)
            .ok_or_else(|| format!("there is no topic {id}"))?;
        self.names.remove(&topic.name);
        Ok(topic)
    }

    /// Applies a `MetaEntry`; gives the topic that it deletes.
    pub(super) fn apply(&mut self, payload: &[u8]) -> Result<Option<TopicId>, String> {
        let entry = flatbuffers::root::<MetaEntry<'_>>(payload).map_err(|e| e.to_string())?;
        match entry.unpack() {
            MetaEntryT {
                created: Some(stored),
                altered: None,
                deleted: None,
            } => {
                let topic = checked(&stored)?;
                if topic.id.serial() < self.next_serial {
                    return Err(format!(
                        "topic {} is made, but serial numbers below {} were given before",
                        topic.id, self.next_serial
                    ));
                }
                self.next_serial = topic.id.serial() + 1;
                self.insert(topic)?;
                Ok(None)
            }
            MetaEntryT {
                created: None,
                altered: Some(stored),
                deleted: None,
            } => {
                let topic = checked(&stored)?;
                let old = self.remove(topic.id)?;
                if topic.partitions < old.partitions {
                    return Err(format!("topic {} loses partitions", topic.id));
                }
                self.insert(topic)?;
                Ok(None)
            }
            MetaEntryT {
                created: None,
                altered: None,
                deleted: Some(deleted),
            } => {
                let id = deleted
                    .id
                    .as_ref()
                    .map(TopicId::from)
                    .ok_or("it names no topic")?;
                self.remove(id)?;
                Ok(Some(id))
            }
            _ => Err("it does not say exactly one of created, altered, deleted".to_owned()),
        }
    }

    pub(super) fn standing(&self, id: TopicId) -> Standing<'_> {
        match self.topics.get(&id) {
            Some(topic) => Standing::Live(topic),
            None if id.serial() < self.next_serial => Standing::Deleted,
            None => Standing::Unknown,
        }
    }

    pub(super) fn next_serial(&self) -> u64 {
        self.next_serial
    }

    pub(super) fn topics(&self) -> impl Iterator<Item = &TopicRecord> {
        self.topics.values()
    }

    pub(super) fn to_stored(&self) -> Vec<TopicT> {
        let store = |topic: &TopicRecord| TopicT {
            id: Some(topic.id.into()),
            name: topic.name.clone(),
            partitions: topic.partitions,
            config: Box::new(topic.config.to_store()),
        };
        self.topics.values().map(store).collect()
    }
}

fn checked(stored: &TopicT) -> Result<TopicRecord, String> {
    let id = stored
        .id
        .as_ref()
        .map(TopicId::from)
        .ok_or("a topic has no id")?;
    check_topic_name(&stored.name).map_err(|e| format!("topic {id}: {e}"))?;
    if !(1..=MAX_PARTITIONS).contains(&stored.partitions) {
        return Err(format!("topic {id} has {} partitions", stored.partitions));
    }
    let config = TopicConfig::from_store(&stored.config).map_err(|e| format!("topic {id}: {e}"))?;
    Ok(TopicRecord {
        id,
        name: stored.name.clone(),
        partitions: stored.partitions,
        config,
    })
}
