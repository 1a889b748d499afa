//! The seam between the logic of a shard and the machine.
//!
//! The logic ([`Logic`]) is a state machine: it is told what happened and answers with
//! [`Effects`]. It reads no clock, opens no file and spawns no thread. The driver (`engine/uring`,
//! or a simulator) carries the effects out and reports their completion. Nothing here knows
//! partitions or requests.

pub mod buffer;
pub mod disk;
pub mod net;

pub use buffer::{Chunk, Pool, Slice};
pub use disk::{
    DiskDone, DiskError, DiskErrorKind, DiskOp, FileId, IndexBytes, OpId, OpenMode, is_unreadable,
};
pub use net::{Body, ConnId, Disconnect, Egress, NetOp, Slices};

use std::net::SocketAddr;

/// The time of a turn, read once by the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Nanoseconds of a clock that never goes back; its zero means nothing.
    pub mono_ns: u64,
    /// Milliseconds since 1970, UTC.
    pub wall_ms: i64,
}

/// Why a shard cannot go on. Each reason has one exit code of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FatalReason {
    /// A write or sync of the write-ahead log failed.
    Wal,
    /// A write or sync of a segment failed for another reason than a full disk.
    Segment,
    /// A snapshot or directory could not be made durable.
    Snapshot,
    /// An invariant was found broken.
    Invariant,
}

/// A failure after which nothing more may be acknowledged.
#[derive(Clone, Debug)]
pub struct Fatal {
    /// Decides the exit code.
    pub reason: FatalReason,
    /// What happened, to which file, and what to do.
    pub message: String,
}

/// What the logic wants done. The driver drains it after every call into the logic.
#[derive(Debug)]
pub struct Effects<M> {
    /// For sockets, in order.
    pub net: Vec<NetOp>,
    /// For files. The order between operations is not kept: what must come after waits for the
    /// completion of what must come before.
    pub disk: Vec<(OpId, DiskOp)>,
    /// For other shards; order is kept per receiver. The logic bounds what is under way.
    pub mail: Vec<(u16, M)>,
    /// Set once: the shard ends, nothing more is sent.
    pub fatal: Option<Fatal>,
}

impl<M> Default for Effects<M> {
    fn default() -> Self {
        Self {
            net: Vec::new(),
            disk: Vec::new(),
            mail: Vec::new(),
            fatal: None,
        }
    }
}

/// The logic of one shard, as a driver sees it.
pub trait Logic {
    /// What shards say to each other.
    type Mail: Send + 'static;

    /// A peer connected; receiving has begun.
    fn accepted(&mut self, conn: ConnId, peer: SocketAddr, now: Now, fx: &mut Effects<Self::Mail>);

    /// Bytes arrived. They are valid during the call only. May still be called a few times after
    /// `NetOp::Pause`: what had been received by then is delivered.
    fn received(&mut self, conn: ConnId, bytes: &[u8], now: Now, fx: &mut Effects<Self::Mail>);

    /// The connection's one egress was sent whole; its memory comes back to be used again.
    fn sent(&mut self, conn: ConnId, egress: Egress, now: Now, fx: &mut Effects<Self::Mail>);

    /// The connection is gone, for this or the peer's reasons. Nothing follows for it.
    fn disconnected(
        &mut self,
        conn: ConnId,
        why: Disconnect,
        now: Now,
        fx: &mut Effects<Self::Mail>,
    );

    /// A file operation ended.
    fn disk(
        &mut self,
        op: OpId,
        result: Result<DiskDone, DiskError>,
        now: Now,
        fx: &mut Effects<Self::Mail>,
    );

    /// A connection waits because no more files can be open: what is not needed is to be closed.
    fn lacks_files(&mut self, _now: Now, _fx: &mut Effects<Self::Mail>) {}

    /// Another shard said something.
    fn mail(&mut self, from: u16, mail: Self::Mail, now: Now, fx: &mut Effects<Self::Mail>);

    /// The end of a turn, after all its events: what was gathered is written and sent.
    fn turn(&mut self, now: Now, fx: &mut Effects<Self::Mail>);

    /// When `turn` must be called at the latest even if nothing happens, as `Now::mono_ns`.
    fn deadline_ns(&self) -> Option<u64>;

    /// The process was asked to end: drain, then say so through [`Self::is_stopped`].
    fn stop(&mut self, now: Now, fx: &mut Effects<Self::Mail>);

    /// Whether everything is drained and nothing is under way.
    fn is_stopped(&self) -> bool;
}
