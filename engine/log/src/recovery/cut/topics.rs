//! Topics as the logs tell of them: what a cut undoes of their making, their deletion and their settings.

use std::collections::HashMap;

use ringtide_schema::flatbuffers;
use ringtide_schema::ids::TopicId;
use ringtide_schema::store::{GroupSnapshotT, MetaEntry, MetaEntryT, TopicConfigT};

/// A setting of a topic that a cut sets back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetBack {
    /// The topic's name.
    pub topic: String,
    /// The setting.
    pub key: &'static str,
    /// As it is by what can be read of the log; numbers as they are stored.
    pub from: i64,
    /// As it is once the log is cut.
    pub to: i64,
}

impl SetBack {
    /// Whether the topic keeps less then, so that the next start removes records.
    pub fn keeps_less(&self) -> bool {
        let bound = |value: i64| u64::try_from(value).unwrap_or(u64::MAX);
        self.key.starts_with("retention-") && bound(self.to) < bound(self.from)
    }
}

/// The topics that are known, the deleted ones too.
#[derive(Clone, Debug, Default)]
pub(super) struct Topics(HashMap<TopicId, (String, TopicConfigT)>);

impl Topics {
    pub(super) fn of(snapshots: &[GroupSnapshotT]) -> Self {
        let stored = snapshots.iter().flat_map(|group| group.topics.iter());
        let known = stored.flatten().filter_map(|topic| {
            let known = (topic.name.clone(), (*topic.config).clone());
            Some((topic.id.as_ref()?.into(), known))
        });
        Self(known.collect())
    }

    pub(super) fn name(&self, id: TopicId) -> Option<&str> {
        self.0.get(&id).map(|(name, _)| &**name)
    }

    /// Notes a topic that is made or altered; what happened to it, in words.
    pub(super) fn change(&mut self, payload: &[u8]) -> Option<String> {
        let entry = flatbuffers::root::<MetaEntry<'_>>(payload).ok()?;
        let MetaEntryT {
            created,
            altered,
            deleted,
        } = entry.unpack();
        if let Some(deleted) = deleted {
            let id: TopicId = deleted.id.as_ref()?.into();
            let name = self.name(id).map(str::to_owned);
            return Some(format!(
                "{} deleted",
                name.unwrap_or_else(|| id.to_string())
            ));
        }
        let done = if created.is_some() { "made" } else { "altered" };
        let topic = created.or(altered)?;
        let words = format!(
            "{} {done}, with {} partitions",
            topic.name, topic.partitions
        );
        let id = topic.id.as_ref()?.into();
        self.0.insert(id, (topic.name, *topic.config));
        Some(words)
    }

    /// The settings that are not as they were, by topic, those of retention first.
    pub(super) fn set_back(&self, to: &Self) -> Vec<SetBack> {
        let mut out = Vec::new();
        for (id, (topic, before)) in &to.0 {
            let Some((_, now)) = self.0.get(id) else {
                continue;
            };
            let changed = settings(now).into_iter().zip(settings(before));
            for ((key, from), (_, to)) in changed.filter(|(now, before)| now != before) {
                let topic = topic.clone();
                out.push(SetBack {
                    topic,
                    key,
                    from,
                    to,
                });
            }
        }
        out.sort_by(|a, b| a.topic.cmp(&b.topic));
        out
    }
}

fn settings(config: &TopicConfigT) -> [(&'static str, i64); 7] {
    [
        ("retention-ms", config.retention_ms),
        ("retention-bytes", config.retention_bytes),
        ("segment-bytes", config.segment_bytes.into()),
        ("visible", config.visible.into()),
        ("max-batch-bytes", config.max_batch_bytes.into()),
        ("timestamp-type", config.timestamp_type.into()),
        ("timestamp-max-ahead-ms", config.timestamp_max_ahead_ms),
    ]
}
