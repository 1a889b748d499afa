//! What a shard is told at its start, and its bounds.

use std::path::PathBuf;

use ringtide_schema::ids::TopicId;
use ringtide_schema::store::GroupSnapshotT;

use crate::topics::Topic;

/// What a shard is told at its start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This shard.
    pub shard: u16,
    /// All shards.
    pub shards: u16,
    /// Data groups of the data directory.
    pub groups: u16,
    /// Where the files are.
    pub data_dir: PathBuf,
    /// The data directory's identity.
    pub data_directory: TopicId,
    /// This start of the broker.
    pub incarnation: u64,
    /// Written into every batch.
    pub leader_epoch: u32,
    /// Host and port that clients are told, per shard.
    pub addresses: Vec<(String, u16)>,
    /// Memory for batches, in bytes.
    pub memory_bytes: usize,
    /// Bytes of every slot of the write-ahead log.
    pub wal_slot_bytes: u64,
    /// Slots that exist and are free.
    pub wal_slots: Vec<PathBuf>,
    /// Slots to be made.
    pub new_wal_slots: Vec<PathBuf>,
    /// Most writes of the write-ahead log in flight.
    pub wal_in_flight: usize,
    /// Most requests of one connection that are not answered.
    pub max_in_flight_requests: u32,
    /// Segments are synced at least this often, in milliseconds.
    pub sync_interval_ms: u64,
    /// For what must be unpredictable, or in a simulation predictable: topic identities.
    pub seed: u64,
    /// Told to clients.
    pub broker_version: String,
    /// Told to those who ask what the shard runs on.
    pub host: HostFacts,
}

/// What a shard is part of and runs on, found out before it starts. It is passed on as it is: in
/// words, the same as in the broker's log.
#[derive(Clone, Debug, Default)]
pub struct HostFacts {
    /// Of the source that the broker was built from.
    pub commit: String,
    /// Of the broker.
    pub process_id: u32,
    /// The CPU that the shard's thread is pinned to.
    pub cpu: u16,
    /// What the shard does when there is nothing to do.
    pub idle: String,
    /// The kernel's release.
    pub kernel: String,
    /// That the data directory is on.
    pub file_system: String,
    /// The block device under it.
    pub device: String,
    /// Whether the device holds back writes that a power cut would lose.
    pub write_cache: String,
    /// Whether a single write can pass that cache.
    pub fua: String,
    /// Half of a few durable writes of 4 KiB took at most this long, in nanoseconds; absent if they
    /// could not be measured.
    pub durable_write_ns: Option<u64>,
}

/// What recovery found, for one shard.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    /// Every topic.
    pub topics: Vec<Topic>,
    /// The serial number of the next topic.
    pub next_topic_serial: u64,
    /// The groups that this shard hosts.
    pub groups: Vec<GroupSnapshotT>,
}

/// Batches smaller than this are copied once more, packed, so that they do not keep the mostly
/// empty blocks of single small writes in memory.
pub const SMALL_BATCH_BYTES: usize = 2048;
/// A batch whose readers see it once it is durable is written to the log no later than this after it and the first
/// of them came.
pub const READERS_WAIT_NS: u64 = 10_000_000;
/// A partition with this much waiting is written out.
pub const WRITE_OUT_BYTES: usize = 256 << 10;
/// Partitions that write to their segments at the same time.
pub const MAX_WRITERS: usize = 2;
/// Pieces of segments that the disk is given at once: the log's writes wait behind them.
pub const MAX_PIECES: usize = 2;
/// What a partition keeps in memory for readers although it is synced, while memory is plenty.
pub const KEEP_TAIL_BYTES: usize = 4 << 20;
/// Answers waiting for a peer that does not read, before its requests are not read any more.
pub const MAX_OUT_BYTES: usize = 1 << 20;
/// Requests of one connection that a turn takes, and of all together that waited for their turn: whoever sends as
/// fast as it can holds nobody up for longer than that.
pub const MAX_REQUESTS_A_TURN: u32 = 128;
/// Fetches and subscriptions of one session that a turn looks at, unless it has something to send.
pub const MAX_LOOKS_A_TURN: usize = 256;
/// Memory for what has arrived and cannot be handled yet, of all connections together.
pub const MAX_PARTIAL_BYTES: usize = 128 << 20;
/// A connection that holds no more than this of it is never closed for it.
pub const SMALL_PARTIAL_BYTES: usize = 64 << 10;
/// A connection whose frame has begun to arrive and does not go on for this long is closed, in
/// nanoseconds.
pub const FRAME_TIMEOUT_NS: u64 = 30_000_000_000;
/// Subscriptions of one connection here, and on all other shards together.
pub const MAX_SUBSCRIPTIONS: usize = 4096;
/// Requests of one connection under way on other shards.
pub const MAX_FORWARDED: u32 = 32;
/// Requests of all connections under way on other shards, but for fetches: each may hold a copy of
/// its batch.
pub const MAX_FORWARDED_IN_ALL: u32 = 256;
/// Searches by time under way.
pub const MAX_SEARCHES: usize = 64;
/// Ranges of one partition that could not be read and are remembered.
pub const MAX_FAILED_READS: usize = 16;
/// For how long they are, in nanoseconds.
pub const FAILED_READ_NS: u64 = 30_000_000_000;
/// Snapshots replace files of this many groups at the same time.
pub const MAX_SNAPSHOTS_IN_FLIGHT: usize = 8;
/// A segment that was neither written to nor read for this long is closed, in nanoseconds.
pub const CLOSE_UNUSED_NS: u64 = 60_000_000_000;
/// Upkeep that nothing triggers is looked at this often, in nanoseconds.
pub const UPKEEP_NS: u64 = 1_000_000_000;
/// Who waits for a file of his own shard to be closed looks again after this long, in nanoseconds.
pub const LACK_FILES_RETRY_NS: u64 = 10_000_000;
/// Who reads is refused when his shard has found no file, and had none to close, for so long, in nanoseconds.
pub const LACK_FILES_PATIENCE_NS: u64 = 1_000_000_000;
/// Other shards are asked to close files no more often than this, in nanoseconds.
pub const FILES_PLEA_NS: u64 = 100_000_000;
/// A full disk is tried again after this long, in nanoseconds.
pub const DISK_FULL_RETRY_NS: u64 = 500_000_000;
