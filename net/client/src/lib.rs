//! The native client of Ringtide.
//!
//! One core without I/O (`core`, private) and two faces of it: [`sync`], for one thread that polls,
//! with the lowest latency; and [`asynch`], for tokio. Both have the same three parts: a client for
//! administration, producers and consumers.

#![warn(missing_docs, clippy::missing_errors_doc)]

pub mod asynch;
#[cfg(feature = "bare")]
pub mod bare;
mod core;
mod error;
mod options;
mod record;
pub mod sync;

pub use crate::core::call::{
    CommittedOffset, ListedOffset, OffsetAt, PartitionDescription, TopicDescription, TopicSettings,
};
pub use crate::core::cluster::Topic;
pub use crate::core::connection::Hello;
pub use crate::core::consumer::{Batch, OwnedBatch, OwnedRecord};
pub use crate::core::shard_info::ShardInfo;
pub use crate::error::{Error, Result};
pub use crate::options::{
    Acks, Codec, ConsumerOptions, Delivery, Idle, Options, PartitionFn, Partitioner,
    ProducerOptions, Start,
};
pub use crate::record::{Ack, Delivered, Record, Ticket};

pub use ringtide_schema::batch::{BatchError, Header};
pub use ringtide_schema::error_code::ErrorCode;
pub use ringtide_schema::ids::{PartitionId, TopicId};
pub use ringtide_schema::record::{
    BatchBuilder, Record as ConsumedRecord, RecordHeader, RecordHeaders,
};
pub use ringtide_schema::topic::{TimestampType, TopicConfig, Visibility};
