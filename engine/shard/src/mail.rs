//! What shards say to each other. Memory in a message belongs to it.

use std::sync::Arc;

use ringtide_io::ConnId;
use ringtide_schema::ids::PartitionId;
use ringtide_schema::wire::PublishResult;

use crate::session::Tally;
use crate::topics::Change;

/// A message between shards.
#[derive(Clone, Debug)]
pub enum Mail {
    /// A connection will forward requests.
    Came {
        /// The sender's connection.
        conn: ConnId,
        /// Its peer, for log lines.
        peer: Arc<str>,
    },
    /// Something for the shard that owns the partition.
    Forwarded {
        /// The sender's connection.
        conn: ConnId,
        /// What its peer asks for.
        request: Forwarded,
    },
    /// Answers for the peer of a connection.
    Reply {
        /// The receiver's connection.
        conn: ConnId,
        /// The answers.
        reply: Reply,
    },
    /// The last delivery is with what was sent, or behind it: another may follow. So a connection
    /// holds at most two deliveries of each other shard.
    Drained {
        /// The sender's connection.
        conn: ConnId,
    },
    /// The connection is gone.
    Gone {
        /// The sender's connection.
        conn: ConnId,
    },
    /// What was promised to the peer of a connection cannot be sent: it is to be closed.
    Broken {
        /// The receiver's connection.
        conn: ConnId,
    },
    /// The metadata changed (from shard 0 to every other).
    Change {
        /// Counts the changes.
        number: u64,
        /// What changed.
        change: Change,
    },
    /// The change is in force on the sender.
    ChangeDone {
        /// Which.
        number: u64,
    },
    /// The sender can open no more files, and all shards share a limit.
    LacksFiles,
}

/// What a shard is asked for by a connection of another.
#[derive(Clone, Debug)]
pub enum Forwarded {
    /// A whole frame.
    Request(Vec<u8>),
    /// A part of a publish.
    Part(Part),
}

/// One part of a publish request of several parts.
#[derive(Clone, Debug)]
pub struct Part {
    /// The sender's number of the request.
    pub publish: u64,
    /// The part.
    pub part: u32,
    /// As in the request.
    pub acks: u8,
    /// Where to.
    pub partition: PartitionId,
    /// The batch.
    pub batch: Vec<u8>,
}

/// Answers to what was forwarded.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    /// Whole frames for the peer.
    pub bytes: Vec<u8>,
    /// Answers to parts, in order.
    pub parts: Vec<PartDone>,
    /// Requests that are done with this.
    pub finished: Tally,
    /// There are batches among the frames, or the end of a wait for them: the sender waits for
    /// `Drained` before it sends more of these.
    pub is_delivery: bool,
}

/// The answer to a part.
#[derive(Clone, Debug)]
pub struct PartDone {
    /// Its place among the reply's bytes.
    pub at: usize,
    /// The receiver's number of the request.
    pub publish: u64,
    /// The answer.
    pub result: PublishResult,
    /// Describes the error.
    pub message: Option<String>,
}
