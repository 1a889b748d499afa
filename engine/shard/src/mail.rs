//! What shards say to each other.

use ringtide_io::ConnId;
use ringtide_schema::ids::PartitionId;
use ringtide_schema::wire::PublishResult;

use crate::topics::Change;

/// A message between shards. Memory in it belongs to the message.
#[derive(Clone, Debug)]
pub enum Mail {
    /// A frame for the shard that owns the partition.
    Request {
        /// The sender's connection.
        conn: ConnId,
        /// The whole frame.
        frame: Vec<u8>,
    },
    /// Frames for the peer of a connection.
    Reply {
        /// The receiver's connection.
        conn: ConnId,
        /// Whole frames.
        bytes: Vec<u8>,
        /// Requests that are done with this.
        finished: u32,
    },
    /// The frames of the last reply were sent: more may follow.
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
    /// One part of a publish request of several parts.
    Part {
        /// The sender's connection.
        conn: ConnId,
        /// The sender's number of the request.
        publish: u64,
        /// The part.
        part: u32,
        /// As in the request.
        acks: u8,
        /// Where to.
        partition: PartitionId,
        /// The batch.
        batch: Vec<u8>,
    },
    /// The answer to a part.
    PartDone {
        /// The receiver's connection.
        conn: ConnId,
        /// The receiver's number of the request.
        publish: u64,
        /// The answer.
        result: PublishResult,
        /// Describes the error.
        message: Option<String>,
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
}
