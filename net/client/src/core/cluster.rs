//! What the client knows of the broker: which topics there are, and which shard owns which
//! partition at which address. It may be out of date; whoever notices asks for a refresh.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use ringtide_schema::ids::{PartitionId, TopicId};
use ringtide_schema::topic::TopicConfig;
use ringtide_schema::wire;

use crate::core::backoff::Backoff;

/// A topic as the broker describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Topic {
    /// Its name.
    pub name: Arc<str>,
    /// Its identity; a topic made anew under the same name has another.
    pub id: TopicId,
    /// Its settings.
    pub settings: TopicConfig,
    /// The shard that owns each partition; the index is the partition's number.
    pub partition_shards: Vec<u16>,
}

impl Topic {
    /// How many partitions it has.
    #[must_use]
    pub fn partitions(&self) -> u32 {
        self.partition_shards.len() as u32
    }

    /// The identity of one of its partitions.
    #[must_use]
    pub fn partition(&self, partition: u32) -> PartitionId {
        PartitionId {
            topic: self.id,
            partition,
        }
    }

    pub(crate) fn from_wire(topic: &wire::TopicMetadata<'_>) -> Result<Self, String> {
        let settings = topic.settings().map(|s| s.unpack()).unwrap_or_default();
        let settings = TopicConfig::default()
            .with(&settings)
            .map_err(|e| e.to_string())?;
        Ok(Self {
            name: topic.name().unwrap_or_default().into(),
            id: topic
                .id()
                .map(Into::into)
                .ok_or("a topic without an identity")?,
            settings,
            partition_shards: topic
                .partition_shards()
                .map_or_else(Vec::new, |s| s.iter().collect()),
        })
    }
}

/// What is known of a topic that somebody is interested in.
#[derive(Debug)]
pub(crate) enum Known {
    /// Not asked yet.
    Unknown,
    /// The broker says that it is not there, first at this time.
    Missing { since: Instant, error: u16 },
    /// As of the last refresh.
    There(Arc<Topic>),
}

/// Topics of interest and the addresses of shards.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) topics: BTreeMap<Arc<str>, Known>,
    /// By shard: host and port.
    pub(crate) shards: BTreeMap<u16, (Arc<str>, u16)>,
    /// Somebody wants to know more, or noticed that something is out of date.
    pub(crate) refresh_wanted: bool,
    pub(crate) refresh_in_flight: bool,
    /// Not to be refreshed before, whoever wants it.
    pub(crate) refresh_after: Option<Instant>,
    /// To be refreshed then, even if nobody wants it.
    pub(crate) stale_at: Option<Instant>,
    pub(crate) backoff: Backoff,
}

impl Cluster {
    pub(crate) fn new(backoff: Backoff) -> Self {
        Self {
            topics: BTreeMap::new(),
            shards: BTreeMap::new(),
            refresh_wanted: false,
            refresh_in_flight: false,
            refresh_after: None,
            stale_at: None,
            backoff,
        }
    }

    /// Adds a topic to those that are kept up to date.
    pub(crate) fn interest(&mut self, name: &Arc<str>) {
        if !self.topics.contains_key(name) {
            self.topics.insert(name.clone(), Known::Unknown);
            self.refresh_wanted = true;
            self.refresh_after = None;
        }
    }

    /// Adds a topic as it was described just now.
    pub(crate) fn learn(&mut self, topic: &Arc<Topic>) {
        self.topics
            .insert(topic.name.clone(), Known::There(topic.clone()));
    }

    /// The topic, if it is known to be there.
    pub(crate) fn topic(&self, name: &str) -> Option<&Arc<Topic>> {
        match self.topics.get(name) {
            Some(Known::There(topic)) => Some(topic),
            _ => None,
        }
    }

    /// The address that owns a partition.
    pub(crate) fn owner(&self, topic: &Topic, partition: u32) -> Option<&(Arc<str>, u16)> {
        self.shards
            .get(topic.partition_shards.get(partition as usize)?)
    }

    /// Takes the broker's answer. The error says what was wrong with it.
    pub(crate) fn update(
        &mut self,
        answer: &wire::MetadataResponse<'_>,
        now: Instant,
    ) -> Result<(), String> {
        self.update_shards(answer);
        for topic in answer.topics().iter().flatten() {
            let Some(known) = self.topics.get_mut(topic.name().unwrap_or_default()) else {
                continue;
            };
            *known = match (topic.error(), &*known) {
                (0, _) => Known::There(Arc::new(Topic::from_wire(&topic)?)),
                (error, Known::Missing { since, .. }) => Known::Missing {
                    since: *since,
                    error,
                },
                (error, _) => Known::Missing { since: now, error },
            };
        }
        Ok(())
    }

    pub(crate) fn update_shards(&mut self, answer: &wire::MetadataResponse<'_>) {
        for shard in answer.shards().iter().flatten() {
            let address = (shard.host().unwrap_or_default().into(), shard.port());
            self.shards.insert(shard.shard(), address);
        }
    }
}
