//! `ringtide topic`: what topics there are, and changing that.

use std::fmt::Write as _;

use ringtide_client::{
    PartitionDescription, TimestampType, Topic, TopicConfig, TopicDescription, TopicSettings,
    Visibility,
};
use serde::Serialize;

use crate::cli::{TimestampArg, TopicCommand, TopicSettingArgs, VisibleArg};
use crate::connect::{connect, of_topic};
use crate::exit::Failure;
use crate::output::print;

/// Runs the command.
pub(crate) fn run(command: TopicCommand) -> Result<(), Failure> {
    match command {
        TopicCommand::Create {
            name,
            partitions,
            settings,
            server,
        } => {
            let client = connect(&server)?;
            let topic = client.create_topic(&name, partitions, &settings.into())?;
            print(&format!("created {}\n", summary(&topic)))
        }
        TopicCommand::List { json, server } => {
            let mut topics = connect(&server)?.list_topics()?;
            topics.sort_by(|a, b| a.name.cmp(&b.name));
            print(&if json {
                json_list(&topics)
            } else {
                table(&topics)
            })
        }
        TopicCommand::Describe { name, json, server } => {
            let description = connect(&server)?
                .describe_topic(&name)
                .map_err(of_topic(&name))?;
            print(&if json {
                json_description(&description)
            } else {
                text(&description)
            })
        }
        TopicCommand::Alter {
            name,
            partitions,
            settings,
            server,
        } => {
            let settings = TopicSettings::from(settings);
            if partitions.is_none() && settings == TopicSettings::default() {
                return Err(Failure::usage(
                    "nothing to alter: name a setting or --partitions; \
                     `ringtide topic alter --help` lists them",
                ));
            }
            let topic = connect(&server)?
                .alter_topic(&name, partitions, &settings)
                .map_err(of_topic(&name))?;
            print(&format!("altered {}\n", summary(&topic)))
        }
        TopicCommand::Delete { name, server } => {
            connect(&server)?
                .delete_topic(&name)
                .map_err(of_topic(&name))?;
            print(&format!("deleted {name}\n"))
        }
    }
}

impl From<TopicSettingArgs> for TopicSettings {
    fn from(args: TopicSettingArgs) -> Self {
        Self {
            retention_ms: args.retention_ms,
            retention_bytes: args.retention_bytes,
            segment_bytes: args.segment_bytes,
            visible: args.visible.map(|visible| match visible {
                VisibleArg::Durable => Visibility::Durable,
                VisibleArg::Accepted => Visibility::Accepted,
            }),
            max_batch_bytes: args.max_batch_bytes,
            timestamp_type: args.timestamp_type.map(|kind| match kind {
                TimestampArg::Create => TimestampType::Create,
                TimestampArg::Append => TimestampType::Append,
            }),
            timestamp_max_ahead_ms: args.timestamp_max_ahead_ms,
        }
    }
}

fn plural(count: u32, what: &str) -> String {
    if count == 1 {
        format!("1 {what}")
    } else {
        format!("{count} {what}s")
    }
}

fn summary(topic: &Topic) -> String {
    format!(
        "{}: {}",
        topic.name,
        plural(topic.partitions(), "partition")
    )
}

fn bound(value: Option<u64>, unit: &str) -> String {
    value.map_or_else(|| "without bound".into(), |value| format!("{value} {unit}"))
}

fn visible(config: &TopicConfig) -> &'static str {
    match config.visible {
        Visibility::Durable => "durable",
        Visibility::Accepted => "accepted",
    }
}

fn timestamp_type(config: &TopicConfig) -> &'static str {
    match config.timestamp_type {
        TimestampType::Create => "create",
        TimestampType::Append => "append",
    }
}

/// For a person: a line for each topic.
fn table(topics: &[Topic]) -> String {
    if topics.is_empty() {
        return "no topics; make one with `ringtide topic create NAME`\n".into();
    }
    let width = topics
        .iter()
        .map(|topic| topic.name.len())
        .max()
        .unwrap_or(0)
        .max(4);
    let mut out = format!("{:width$}  PARTITIONS  VISIBLE\n", "NAME");
    for topic in topics {
        let (name, partitions) = (&topic.name, topic.partitions());
        let _ = writeln!(
            out,
            "{name:width$}  {partitions:>10}  {}",
            visible(&topic.settings)
        );
    }
    out
}

/// For a person: settings, then a line for each partition.
fn text(description: &TopicDescription) -> String {
    let (topic, config) = (&description.topic, &description.topic.settings);
    let mut out = format!("{}\n", summary(topic));
    for (name, value) in [
        ("id", topic.id.to_string()),
        ("retention-ms", bound(config.retention_ms, "ms")),
        (
            "retention-bytes",
            bound(config.retention_bytes, "bytes for each partition"),
        ),
        ("segment-bytes", config.segment_bytes.to_string()),
        ("visible", visible(config).into()),
        ("max-batch-bytes", config.max_batch_bytes.to_string()),
        ("timestamp-type", timestamp_type(config).into()),
        (
            "timestamp-max-ahead-ms",
            bound(config.timestamp_max_ahead_ms, "ms"),
        ),
    ] {
        let _ = writeln!(out, "  {name:24}{value}");
    }
    let _ = writeln!(
        out,
        "{:>9} {:>14} {:>14} {:>14} {:>8} {:>14} {:>5} {:>5}",
        "PARTITION", "EARLIEST", "VISIBLE", "LATEST", "SEGMENTS", "BYTES", "SHARD", "EPOCH"
    );
    for p in &description.partitions {
        let _ = writeln!(
            out,
            "{:>9} {:>14} {:>14} {:>14} {:>8} {:>14} {:>5} {:>5}",
            p.partition,
            p.earliest,
            p.visible,
            p.latest,
            p.segments,
            p.bytes,
            p.shard,
            p.leader_epoch
        );
    }
    out
}

#[derive(Serialize)]
struct Settings {
    /// -1: kept for ever.
    retention_ms: i64,
    /// -1: without bound.
    retention_bytes: i64,
    segment_bytes: u32,
    visible: &'static str,
    max_batch_bytes: u32,
    timestamp_type: &'static str,
    /// -1: without bound.
    timestamp_max_ahead_ms: i64,
}

impl From<&TopicConfig> for Settings {
    fn from(config: &TopicConfig) -> Self {
        let number =
            |value: Option<u64>| value.map_or(-1, |value| i64::try_from(value).unwrap_or(i64::MAX));
        Self {
            retention_ms: number(config.retention_ms),
            retention_bytes: number(config.retention_bytes),
            segment_bytes: config.segment_bytes,
            visible: visible(config),
            max_batch_bytes: config.max_batch_bytes,
            timestamp_type: timestamp_type(config),
            timestamp_max_ahead_ms: number(config.timestamp_max_ahead_ms),
        }
    }
}

#[derive(Serialize)]
struct Listed<'a> {
    name: &'a str,
    id: String,
    partitions: u32,
    settings: Settings,
}

#[derive(Serialize)]
struct Described<'a> {
    name: &'a str,
    id: String,
    settings: Settings,
    partitions: Vec<DescribedPartition>,
}

#[derive(Serialize)]
struct DescribedPartition {
    partition: u32,
    /// The first offset that can be read.
    earliest: u64,
    /// The next offset that a consumer will be given.
    visible: u64,
    /// The next offset to become durable.
    committed: u64,
    /// The next offset to be written.
    latest: u64,
    leader_epoch: u32,
    shard: u16,
    log_group: u16,
    segments: u32,
    bytes: u64,
}

impl From<&PartitionDescription> for DescribedPartition {
    fn from(p: &PartitionDescription) -> Self {
        Self {
            partition: p.partition,
            earliest: p.earliest,
            visible: p.visible,
            committed: p.committed,
            latest: p.latest,
            leader_epoch: p.leader_epoch,
            shard: p.shard,
            log_group: p.log_group,
            segments: p.segments,
            bytes: p.bytes,
        }
    }
}

fn json_list(topics: &[Topic]) -> String {
    let topics: Vec<_> = topics
        .iter()
        .map(|topic| Listed {
            name: &topic.name,
            id: topic.id.to_string(),
            partitions: topic.partitions(),
            settings: (&topic.settings).into(),
        })
        .collect();
    to_json(&topics)
}

fn json_description(description: &TopicDescription) -> String {
    let topic = &description.topic;
    to_json(&Described {
        name: &topic.name,
        id: topic.id.to_string(),
        settings: (&topic.settings).into(),
        partitions: description.partitions.iter().map(Into::into).collect(),
    })
}

fn to_json(value: &impl Serialize) -> String {
    let mut text =
        serde_json::to_string_pretty(value).expect("strings and numbers are always JSON");
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_bound_is_minus_one_to_a_program() {
        let config = TopicConfig {
            retention_ms: None,
            ..TopicConfig::default()
        };
        let json = serde_json::to_value(Settings::from(&config)).expect("JSON");
        assert_eq!(json["retention_ms"], -1);
        assert_eq!(json["visible"], "durable");
    }

    #[test]
    fn only_settings_that_were_given_are_sent() {
        let args = TopicSettingArgs {
            retention_ms: Some(-1),
            ..TopicSettingArgs::default()
        };
        let settings = TopicSettings::from(args);
        assert_eq!(
            settings,
            TopicSettings {
                retention_ms: Some(-1),
                ..TopicSettings::default()
            }
        );
    }
}
