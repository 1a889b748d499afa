//! What a shard knows of topics, and (on shard 0) the group that orders their changes.

use std::collections::BTreeMap;
use std::sync::Arc;

use ringtide_log::wal::EntryClass;
use ringtide_schema::error_code::ErrorCode;
use ringtide_schema::ids::{GroupId, PartitionId, TopicId};
use ringtide_schema::limits::{MAX_PARTITIONS, MAX_PARTITIONS_IN_ALL, MAX_TOPICS};
use ringtide_schema::store::{DeleteTopicT, MetaEntryT, TopicT};
use ringtide_schema::topic::{TopicConfig, check_topic_name};
use ringtide_schema::wire::{
    AlterTopicRequestT, CreateTopicRequestT, ShardAddressT, TopicMetadataT, TopicSettingsT,
};

use rustc_hash::FxHashMap;

use crate::fault::Fault;

/// A topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    /// Its identity.
    pub id: TopicId,
    /// Its name.
    pub name: String,
    /// Partitions 0 to this, less one.
    pub partitions: u32,
    /// Its settings.
    pub config: TopicConfig,
}

impl Topic {
    fn to_store(&self) -> TopicT {
        TopicT {
            id: Some(self.id.into()),
            name: self.name.clone(),
            partitions: self.partitions,
            config: Box::new(self.config.to_store()),
        }
    }
}

/// A change of the metadata.
#[derive(Clone, Debug)]
pub enum Change {
    /// The topic is this from now on.
    Put(Arc<Topic>),
    /// The topic is gone.
    Deleted(TopicId),
}

/// The topics as one shard knows them.
#[derive(Debug, Default)]
pub struct Topics {
    by_name: BTreeMap<String, Arc<Topic>>,
    by_id: FxHashMap<TopicId, Arc<Topic>>,
    /// The serial number of the next topic; kept on shard 0.
    pub next_serial: u64,
}

/// A change of the metadata on its way: its entry, and what it will do.
#[derive(Debug)]
pub struct Proposal {
    /// The entry's payload.
    pub entry: MetaEntryT,
    /// What the entry does for space.
    pub class: EntryClass,
    /// What follows from it.
    pub change: Change,
}

impl Topics {
    /// The topic with this name.
    pub fn named(&self, name: &str) -> Result<&Arc<Topic>, Fault> {
        self.by_name.get(name).ok_or_else(|| {
            Fault::new(
                ErrorCode::UnknownTopic,
                format!("topic {name:?} does not exist"),
            )
        })
    }

    /// The topic with this identity.
    pub fn with_id(&self, id: TopicId) -> Option<&Arc<Topic>> {
        self.by_id.get(&id)
    }

    /// Every topic, by name.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Topic>> {
        self.by_name.values()
    }

    /// Applies a change.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Put(topic) => {
                self.next_serial = self.next_serial.max(topic.id.serial() + 1);
                self.by_name.insert(topic.name.clone(), topic.clone());
                self.by_id.insert(topic.id, topic.clone());
            }
            Change::Deleted(id) => {
                if let Some(topic) = self.by_id.remove(id) {
                    self.by_name.remove(&topic.name);
                }
            }
        }
    }

    /// Every topic as a snapshot holds them.
    pub fn to_store(&self) -> Vec<TopicT> {
        self.by_name.values().map(|t| t.to_store()).collect()
    }

    /// Checks a request to create a topic.
    pub fn create(&self, request: &CreateTopicRequestT, random: u64) -> Result<Proposal, Fault> {
        let name = request.name.clone().unwrap_or_default();
        check_topic_name(&name).map_err(|e| {
            Fault::new(
                ErrorCode::InvalidTopicName,
                format!("topic name {name:?}: {e}"),
            )
        })?;
        if self.by_name.contains_key(&name) {
            let message = format!("topic {name:?} exists already");
            return Err(Fault::new(ErrorCode::TopicExists, message));
        }
        if self.by_name.len() >= MAX_TOPICS {
            let message = format!("there are {MAX_TOPICS} topics already, which is the limit");
            return Err(Fault::new(ErrorCode::TooMany, message));
        }
        check_partitions(request.partitions)?;
        self.check_total(request.partitions)?;
        let config = with_settings(TopicConfig::default(), request.settings.as_deref())?;
        let id = TopicId::new(random, self.next_serial);
        let topic = Topic {
            id,
            name,
            partitions: request.partitions,
            config,
        };
        Ok(Proposal {
            entry: MetaEntryT {
                created: Some(Box::new(topic.to_store())),
                ..MetaEntryT::default()
            },
            class: EntryClass::Ordinary,
            change: Change::Put(Arc::new(topic)),
        })
    }

    fn check_total(&self, more: u32) -> Result<(), Fault> {
        let have: u32 = self.by_name.values().map(|t| t.partitions).sum();
        if have + more <= MAX_PARTITIONS_IN_ALL {
            return Ok(());
        }
        let message = format!(
            "there are {have} partitions; with {more} more there would be over the limit of \
             {MAX_PARTITIONS_IN_ALL}"
        );
        Err(Fault::new(ErrorCode::TooMany, message))
    }

    /// Checks a request to alter a topic.
    pub fn alter(&self, request: &AlterTopicRequestT) -> Result<Proposal, Fault> {
        let name = request.name.as_deref().unwrap_or_default();
        let mut topic = Topic::clone(self.named(name)?);
        if let Some(partitions) = request.partitions {
            check_partitions(partitions)?;
            if partitions < topic.partitions {
                let message = format!(
                    "topic {name:?} has {} partitions; partitions can be added, not removed",
                    topic.partitions
                );
                return Err(Fault::new(ErrorCode::InvalidSetting, message));
            }
            self.check_total(partitions - topic.partitions)?;
            topic.partitions = partitions;
        }
        let before = topic.config;
        topic.config = with_settings(before, request.settings.as_deref())?;
        let class = match keeps_less(&topic.config, &before) {
            true => EntryClass::Retention,
            false => EntryClass::Ordinary,
        };
        Ok(Proposal {
            entry: MetaEntryT {
                altered: Some(Box::new(topic.to_store())),
                ..MetaEntryT::default()
            },
            class,
            change: Change::Put(Arc::new(topic)),
        })
    }

    /// Checks a request to delete a topic.
    pub fn delete(&self, name: &str) -> Result<Proposal, Fault> {
        let id = self.named(name)?.id;
        Ok(Proposal {
            entry: MetaEntryT {
                deleted: Some(Box::new(DeleteTopicT {
                    id: Some(id.into()),
                })),
                ..MetaEntryT::default()
            },
            class: EntryClass::Deletion,
            change: Change::Deleted(id),
        })
    }
}

/// Whether retention removes with these settings what it would not with those.
fn keeps_less(config: &TopicConfig, than: &TopicConfig) -> bool {
    let is_less = |bound: Option<u64>, than: Option<u64>| {
        bound.is_some_and(|bound| than.is_none_or(|than| bound < than))
    };
    is_less(config.retention_ms, than.retention_ms)
        || is_less(config.retention_bytes, than.retention_bytes)
}

fn check_partitions(partitions: u32) -> Result<(), Fault> {
    if (1..=MAX_PARTITIONS).contains(&partitions) {
        return Ok(());
    }
    let message = format!("{partitions} partitions are impossible: from 1 to {MAX_PARTITIONS}");
    Err(Fault::new(ErrorCode::InvalidSetting, message))
}

fn with_settings(
    config: TopicConfig,
    change: Option<&TopicSettingsT>,
) -> Result<TopicConfig, Fault> {
    match change {
        None => Ok(config),
        Some(change) => config
            .with(change)
            .map_err(|e| Fault::new(ErrorCode::InvalidSetting, e.to_string())),
    }
}

/// Where partitions live.
#[derive(Clone, Debug)]
pub struct Placement {
    /// Data groups.
    pub groups: u16,
    /// Shards.
    pub shards: u16,
    /// Host and port per shard.
    pub addresses: Vec<(String, u16)>,
}

impl Placement {
    /// The partition's group and shard.
    pub fn of(&self, id: PartitionId) -> (GroupId, u16) {
        let group = id.group(self.groups);
        (group, group.shard(self.groups, self.shards))
    }

    /// The group of the metadata.
    pub fn metadata_group(&self) -> GroupId {
        GroupId(self.groups)
    }

    /// The shards as clients are told.
    pub fn to_wire(&self) -> Vec<ShardAddressT> {
        let address = |(shard, (host, port)): (usize, &(String, u16))| ShardAddressT {
            shard: shard as u16,
            host: Some(host.clone()),
            port: *port,
        };
        self.addresses.iter().enumerate().map(address).collect()
    }

    /// A topic as clients are told.
    pub fn describe(&self, topic: &Topic) -> TopicMetadataT {
        let shards = (0..topic.partitions)
            .map(|partition| {
                self.of(PartitionId {
                    topic: topic.id,
                    partition,
                })
                .1
            })
            .collect();
        TopicMetadataT {
            error: 0,
            name: Some(topic.name.clone()),
            id: Some(topic.id.into()),
            settings: Some(Box::new(topic.config.to_wire())),
            partition_shards: Some(shards),
        }
    }
}
