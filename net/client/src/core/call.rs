//! Requests with one answer: administration, offsets, identities. How they are put on the wire, who
//! answers them, and what their answers mean.

use std::sync::Arc;
use std::time::Instant;

use ringtide_schema::flatbuffers::{FlatBufferBuilder, WIPOffset};
use ringtide_schema::frame::Op;
use ringtide_schema::ids::{PartitionId, TopicId};
use ringtide_schema::topic::{TimestampType, Visibility};
use ringtide_schema::wire;
use ringtide_session::envelope;

use crate::core::backoff::Backoff;
use crate::core::cluster::Topic;
use crate::core::connection::Connection;
use crate::core::consumer::Position;
use crate::core::producer::Identity;
use crate::core::server_name;
use crate::core::shard_info::ShardInfo;
use crate::error::Error;

/// Settings of a topic to be made or changed: what is `None` gets the default, or is not changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TopicSettings {
    /// Records older than this many milliseconds may be removed; -1: kept for ever.
    pub retention_ms: Option<i64>,
    /// A partition larger than this many bytes loses its oldest segments; -1: without bound.
    pub retention_bytes: Option<i64>,
    /// A segment is sealed before it grows past this many bytes.
    pub segment_bytes: Option<u32>,
    /// When a consumer is given a batch.
    pub visible: Option<Visibility>,
    /// The largest batch, in bytes.
    pub max_batch_bytes: Option<u32>,
    /// Whose clock timestamps are.
    pub timestamp_type: Option<TimestampType>,
    /// How far ahead of the broker's clock a timestamp may be; -1: without bound.
    pub timestamp_max_ahead_ms: Option<i64>,
}

impl TopicSettings {
    fn pack(&self, b: &mut FlatBufferBuilder<'static>) -> WIPOffset<wire::TopicSettings<'static>> {
        let args = wire::TopicSettingsArgs {
            retention_ms: self.retention_ms,
            retention_bytes: self.retention_bytes,
            segment_bytes: self.segment_bytes,
            visible: self.visible.map(|v| v as u8),
            max_batch_bytes: self.max_batch_bytes,
            timestamp_type: self.timestamp_type.map(|t| t as u8),
            timestamp_max_ahead_ms: self.timestamp_max_ahead_ms,
        };
        wire::TopicSettings::create(b, &args)
    }
}

/// What the broker says about one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartitionDescription {
    /// The partition's number.
    pub partition: u32,
    /// The first offset that can be read.
    pub earliest: u64,
    /// The next offset that a consumer will be given.
    pub visible: u64,
    /// The next offset to become durable.
    pub committed: u64,
    /// The next offset to be written.
    pub latest: u64,
    /// Counts the unclean starts of the broker that concerned it.
    pub leader_epoch: u32,
    /// The shard that owns it.
    pub shard: u16,
    /// Its log group.
    pub log_group: u16,
    /// How many segments it has.
    pub segments: u32,
    /// How many bytes they have.
    pub bytes: u64,
}

/// A topic with the state of each of its partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TopicDescription {
    /// Name, identity and settings.
    pub topic: Topic,
    /// What the owner of each partition says about it.
    pub partitions: Vec<PartitionDescription>,
}

/// An offset found by time, or an end of the partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListedOffset {
    /// The offset; the end of the partition if there is no record of that time or later.
    pub offset: u64,
    /// When that record was made, in ms since 1970.
    pub timestamp_ms: Option<i64>,
    /// The epoch of the partition.
    pub leader_epoch: u32,
}

/// Where a named consumer has committed to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CommittedOffset {
    /// The next offset that it wants to read.
    pub offset: u64,
    /// The epoch of the partition when it was committed.
    pub leader_epoch: u32,
}

/// Which offset is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetAt {
    /// The end: the offset after the last record.
    Latest,
    /// The first that can be read.
    Earliest,
    /// That of the first record of this time, in ms since 1970, or later.
    Timestamp(u64),
}

impl OffsetAt {
    fn to_wire(self) -> i64 {
        match self {
            Self::Latest => -1,
            Self::Earliest => -2,
            Self::Timestamp(ms) => i64::try_from(ms).unwrap_or(i64::MAX),
        }
    }
}

/// A request with one answer.
#[derive(Clone, Debug)]
pub(crate) enum Request {
    Ping,
    ListShards,
    DescribeShard {
        host: Arc<str>,
        port: u16,
    },
    ListTopics,
    DescribeTopic {
        name: Arc<str>,
    },
    CreateTopic {
        name: Arc<str>,
        partitions: u32,
        settings: TopicSettings,
    },
    AlterTopic {
        name: Arc<str>,
        partitions: Option<u32>,
        settings: TopicSettings,
    },
    DeleteTopic {
        name: Arc<str>,
    },
    DescribePartition {
        topic: Arc<str>,
        partition: u32,
    },
    InitProducer,
    ListOffsets {
        topic: Arc<str>,
        partition: u32,
        at: OffsetAt,
    },
    CommitOffset {
        consumer: Arc<str>,
        topic: Arc<str>,
        at: Position,
    },
    ReadOffset {
        consumer: Arc<str>,
        topic: Arc<str>,
        partition: u32,
    },
}

/// What was answered.
#[derive(Clone, Debug)]
pub(crate) enum Response {
    Done,
    /// Host and port of each shard, in their order.
    Shards(Vec<(Arc<str>, u16)>),
    Shard(Box<ShardInfo>),
    Topics(Vec<Topic>),
    Topic(Topic),
    Partition(PartitionDescription),
    Producer(Identity),
    Offset(ListedOffset),
    Committed(Option<CommittedOffset>),
}

/// Gives what a request of that kind is answered with; [`Request::read`] pairs them.
macro_rules! expect {
    ($name:ident, $variant:ident, $ty:ty) => {
        pub(crate) fn $name(self) -> crate::error::Result<$ty> {
            match self {
                Self::$variant(value) => Ok(value),
                _ => Err(crate::error::Error::Closed),
            }
        }
    };
}

impl Response {
    expect!(shards, Shards, Vec<(Arc<str>, u16)>);
    expect!(shard, Shard, Box<ShardInfo>);
    expect!(topics, Topics, Vec<Topic>);
    expect!(topic, Topic, Topic);
    expect!(partition, Partition, PartitionDescription);
    expect!(offset, Offset, ListedOffset);
    expect!(committed, Committed, Option<CommittedOffset>);
}

/// On whose behalf a call is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    Application,
    Producer(usize),
    Cursor {
        consumer: usize,
        cursor: usize,
        generation: u32,
    },
}

/// A request until it is answered.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) request: Request,
    pub(crate) owner: Owner,
    pub(crate) since: Instant,
    pub(crate) deadline: Instant,
    /// The link on which the answer is due.
    pub(crate) on: Option<usize>,
    pub(crate) retry_at: Option<Instant>,
    /// What the broker said last, if that was no.
    pub(crate) refusal: Option<Error>,
    pub(crate) backoff: Backoff,
}

impl Request {
    /// The address of the one shard that is meant.
    pub(crate) fn shard(&self) -> Option<(&Arc<str>, u16)> {
        match self {
            Self::DescribeShard { host, port } => Some((host, *port)),
            _ => None,
        }
    }

    /// The partition whose owner answers; without one and without a shard, any shard does.
    pub(crate) fn partition(&self) -> Option<(&Arc<str>, u32)> {
        match self {
            Self::DescribePartition { topic, partition }
            | Self::ListOffsets {
                topic, partition, ..
            }
            | Self::ReadOffset {
                topic, partition, ..
            } => Some((topic, *partition)),
            Self::CommitOffset { topic, at, .. } => Some((topic, at.partition)),
            _ => None,
        }
    }

    /// The offset that it is about.
    pub(crate) fn offset(&self) -> Option<u64> {
        match self {
            Self::CommitOffset { at, .. } => Some(at.offset),
            _ => None,
        }
    }

    /// The topic that is meant, where another under the same name will not do.
    pub(crate) fn topic_id(&self) -> Option<TopicId> {
        match self {
            Self::CommitOffset { at, .. } => Some(at.topic),
            _ => None,
        }
    }

    /// Whether doing it twice is different from doing it once.
    pub(crate) fn changes_once(&self) -> bool {
        matches!(
            self,
            Self::CreateTopic { .. } | Self::AlterTopic { .. } | Self::DeleteTopic { .. }
        )
    }

    /// The request in words.
    pub(crate) fn what(&self) -> String {
        match self {
            Self::Ping => "ping".into(),
            Self::ListShards => "list shards".into(),
            Self::DescribeShard { host, port } => {
                format!("describe the shard at {}", server_name(host, *port))
            }
            Self::ListTopics => "list topics".into(),
            Self::DescribeTopic { name } => format!("describe topic {name}"),
            Self::CreateTopic { name, .. } => format!("create topic {name}"),
            Self::AlterTopic { name, .. } => format!("alter topic {name}"),
            Self::DeleteTopic { name } => format!("delete topic {name}"),
            Self::DescribePartition { topic, partition } => format!("describe {topic}/{partition}"),
            Self::InitProducer => "get a producer identity".into(),
            Self::ListOffsets {
                topic, partition, ..
            } => {
                format!("find an offset of {topic}/{partition}")
            }
            Self::CommitOffset {
                consumer,
                topic,
                at,
            } => {
                let partition = at.partition;
                format!("commit the offset of {consumer} in {topic}/{partition}")
            }
            Self::ReadOffset {
                consumer,
                topic,
                partition,
            } => {
                format!("read the offset of {consumer} in {topic}/{partition}")
            }
        }
    }

    /// Puts the request into the connection's output.
    pub(crate) fn send<T>(
        &self,
        connection: &mut Connection<T>,
        partition: Option<PartitionId>,
        deadline: Option<Instant>,
        tag: T,
    ) {
        let at = partition.map(wire::PartitionRef::from);
        let partition = at.as_ref();
        match self {
            Self::Ping => connection.request(Op::Ping, deadline, tag, |b| {
                wire::PingRequest::create(b, &wire::PingRequestArgs {})
            }),
            Self::DescribeShard { .. } => {
                connection.request(Op::DescribeShard, deadline, tag, |b| {
                    wire::DescribeShardRequest::create(b, &wire::DescribeShardRequestArgs {})
                })
            }
            Self::ListTopics | Self::ListShards => send_metadata(connection, &[], deadline, tag),
            Self::DescribeTopic { name } => {
                send_metadata(connection, std::slice::from_ref(name), deadline, tag)
            }
            Self::CreateTopic {
                name,
                partitions,
                settings,
            } => connection.request(Op::CreateTopic, deadline, tag, |b| {
                let (name, settings) = (Some(b.create_string(name)), Some(settings.pack(b)));
                let args = wire::CreateTopicRequestArgs {
                    name,
                    partitions: *partitions,
                    settings,
                };
                wire::CreateTopicRequest::create(b, &args)
            }),
            Self::AlterTopic {
                name,
                partitions,
                settings,
            } => connection.request(Op::AlterTopic, deadline, tag, |b| {
                let (name, settings) = (Some(b.create_string(name)), Some(settings.pack(b)));
                let args = wire::AlterTopicRequestArgs {
                    name,
                    partitions: *partitions,
                    settings,
                };
                wire::AlterTopicRequest::create(b, &args)
            }),
            Self::DeleteTopic { name } => connection.request(Op::DeleteTopic, deadline, tag, |b| {
                let name = Some(b.create_string(name));
                wire::DeleteTopicRequest::create(b, &wire::DeleteTopicRequestArgs { name })
            }),
            Self::DescribePartition { .. } => {
                connection.request(Op::DescribePartition, deadline, tag, |b| {
                    let args = wire::DescribePartitionRequestArgs { partition };
                    wire::DescribePartitionRequest::create(b, &args)
                })
            }
            Self::InitProducer => connection.request(Op::InitProducer, deadline, tag, |b| {
                wire::InitProducerRequest::create(b, &wire::InitProducerRequestArgs {})
            }),
            Self::ListOffsets { at, .. } => {
                connection.request(Op::ListOffsets, deadline, tag, |b| {
                    let args = wire::ListOffsetsRequestArgs {
                        partition,
                        at: at.to_wire(),
                    };
                    wire::ListOffsetsRequest::create(b, &args)
                })
            }
            Self::CommitOffset { consumer, at, .. } => {
                connection.request(Op::CommitOffset, deadline, tag, |b| {
                    let args = wire::CommitOffsetRequestArgs {
                        consumer: Some(b.create_string(consumer)),
                        partition,
                        offset: at.offset,
                        leader_epoch: at.epoch,
                    };
                    wire::CommitOffsetRequest::create(b, &args)
                })
            }
            Self::ReadOffset { consumer, .. } => {
                connection.request(Op::ReadOffset, deadline, tag, |b| {
                    let consumer = Some(b.create_string(consumer));
                    let args = wire::ReadOffsetRequestArgs {
                        consumer,
                        partition,
                    };
                    wire::ReadOffsetRequest::create(b, &args)
                })
            }
        };
    }

    /// Reads the answer. The error says what is wrong with it; or it is the error number that a
    /// topic of a metadata answer carries.
    pub(crate) fn read(&self, bytes: &[u8]) -> Result<Response, Misread> {
        let malformed = |e| Misread::Malformed(format!("malformed envelope: {e}"));
        Ok(match self {
            Self::Ping | Self::DeleteTopic { .. } | Self::CommitOffset { .. } => Response::Done,
            Self::ListShards => {
                let answer = envelope::<wire::MetadataResponse<'_>>(bytes).map_err(malformed)?;
                let mut shards: Vec<_> = answer.shards().into_iter().flatten().collect();
                shards.sort_unstable_by_key(wire::ShardAddress::shard);
                let address =
                    |s: wire::ShardAddress<'_>| (s.host().unwrap_or_default().into(), s.port());
                Response::Shards(shards.into_iter().map(address).collect())
            }
            Self::DescribeShard { .. } => {
                let answer =
                    envelope::<wire::DescribeShardResponse<'_>>(bytes).map_err(malformed)?;
                Response::Shard(Box::new(ShardInfo::from_wire(&answer)))
            }
            Self::ListTopics => {
                let answer = envelope::<wire::MetadataResponse<'_>>(bytes).map_err(malformed)?;
                let topics = answer
                    .topics()
                    .into_iter()
                    .flatten()
                    .filter(|t| t.error() == 0);
                let topics: Result<Vec<_>, _> = topics.map(|t| Topic::from_wire(&t)).collect();
                Response::Topics(topics.map_err(Misread::Malformed)?)
            }
            Self::DescribeTopic { name } => {
                let answer = envelope::<wire::MetadataResponse<'_>>(bytes).map_err(malformed)?;
                let topic = answer.topics().filter(|t| !t.is_empty()).map(|t| t.get(0));
                read_topic(name, topic)?
            }
            Self::CreateTopic { name, .. } => {
                let answer = envelope::<wire::CreateTopicResponse<'_>>(bytes).map_err(malformed)?;
                read_topic(name, answer.topic())?
            }
            Self::AlterTopic { name, .. } => {
                let answer = envelope::<wire::AlterTopicResponse<'_>>(bytes).map_err(malformed)?;
                read_topic(name, answer.topic())?
            }
            Self::DescribePartition { partition, .. } => {
                let answer =
                    envelope::<wire::DescribePartitionResponse<'_>>(bytes).map_err(malformed)?;
                Response::Partition(PartitionDescription {
                    partition: *partition,
                    earliest: answer.earliest(),
                    visible: answer.visible(),
                    committed: answer.committed(),
                    latest: answer.latest(),
                    leader_epoch: answer.leader_epoch(),
                    shard: answer.shard(),
                    log_group: answer.log_group(),
                    segments: answer.segments(),
                    bytes: answer.bytes(),
                })
            }
            Self::InitProducer => {
                let answer =
                    envelope::<wire::InitProducerResponse<'_>>(bytes).map_err(malformed)?;
                Response::Producer(Identity {
                    id: answer.producer_id(),
                    epoch: answer.producer_epoch(),
                })
            }
            Self::ListOffsets { .. } => {
                let answer = envelope::<wire::ListOffsetsResponse<'_>>(bytes).map_err(malformed)?;
                Response::Offset(ListedOffset {
                    offset: answer.offset(),
                    timestamp_ms: Some(answer.timestamp_ms()).filter(|&ms| ms >= 0),
                    leader_epoch: answer.leader_epoch(),
                })
            }
            Self::ReadOffset { .. } => {
                let answer = envelope::<wire::ReadOffsetResponse<'_>>(bytes).map_err(malformed)?;
                let leader_epoch = answer.leader_epoch();
                let offset = u64::try_from(answer.offset()).ok();
                Response::Committed(offset.map(|offset| CommittedOffset {
                    offset,
                    leader_epoch,
                }))
            }
        })
    }
}

/// Why an answer is of no use.
pub(crate) enum Misread {
    Malformed(String),
    Error(u16),
}

fn read_topic(asked: &str, topic: Option<wire::TopicMetadata<'_>>) -> Result<Response, Misread> {
    let topic = topic.ok_or_else(|| Misread::Malformed("an answer without a topic".into()))?;
    let name = topic.name().unwrap_or_default();
    if name != asked {
        let why = format!("topic {name:?} in the answer to a request about {asked:?}");
        return Err(Misread::Malformed(why));
    }
    match topic.error() {
        0 => Topic::from_wire(&topic)
            .map(Response::Topic)
            .map_err(Misread::Malformed),
        error => Err(Misread::Error(error)),
    }
}

/// Asks for the named topics, or for all.
pub(crate) fn send_metadata<T>(
    connection: &mut Connection<T>,
    topics: &[Arc<str>],
    deadline: Option<Instant>,
    tag: T,
) -> u64 {
    connection.request(Op::Metadata, deadline, tag, |b| {
        let names: Vec<_> = topics.iter().map(|t| b.create_string(t)).collect();
        let topics = Some(b.create_vector(&names));
        wire::MetadataRequest::create(b, &wire::MetadataRequestArgs { topics })
    })
}
