//! What a shard says about itself.

use ringtide_schema::wire;

/// What a shard runs on, and what it did since it began. Of the host, what the broker could not find
/// out is "unknown".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShardInfo {
    /// The broker's version.
    pub broker_version: String,
    /// The commit of the source that the broker was built from, ending in `-dirty` if that was changed.
    pub commit: String,
    /// The broker's process.
    pub process_id: u32,
    /// Which shard it is.
    pub shard: u16,
    /// How many shards there are.
    pub shards: u16,
    /// The CPU that the shard's thread is pinned to.
    pub cpu: u16,
    /// What it does when there is nothing to do: `spin`, `adaptive` or `park`.
    pub idle: String,
    /// Counts the starts of the broker on its data directory.
    pub incarnation: u64,
    /// How long it has run, in milliseconds.
    pub uptime_ms: u64,
    /// The kernel's release.
    pub kernel: String,
    /// The file system that the data directory is on.
    pub file_system: String,
    /// The block device under it.
    pub device: String,
    /// The device's write cache: `volatile` or `none`.
    pub write_cache: String,
    /// Whether single writes can pass that cache: `yes` or `no`.
    pub fua: String,
    /// Half of a few durable writes of 4 KiB at the start took at most this long, in nanoseconds;
    /// `None` if they could not be measured.
    pub durable_write_ns: Option<u64>,
    /// How many slots its write-ahead log has.
    pub wal_slots: u32,
    /// How many of them entries may still take.
    pub wal_free_slots: u32,
    /// Bytes of every slot.
    pub wal_slot_bytes: u64,
    /// Segments are synced at least this often, in milliseconds.
    pub sync_interval_ms: u64,
    /// Frames of the log given to the device since the start.
    pub wal_writes: u64,
    /// Bytes of these frames, headers and padding included.
    pub wal_bytes: u64,
    /// Entries in these frames: a published batch is one.
    pub wal_records: u64,
    /// Connections that are open.
    pub connections: u32,
    /// Memory for batches, in bytes.
    pub memory_bytes: u64,
    /// What nothing holds of it, in bytes.
    pub memory_free_bytes: u64,
}

impl ShardInfo {
    pub(crate) fn from_wire(answer: &wire::DescribeShardResponse<'_>) -> Self {
        let text = |told: Option<&str>| told.unwrap_or("unknown").to_owned();
        Self {
            broker_version: text(answer.broker_version()),
            commit: text(answer.commit()),
            process_id: answer.process_id(),
            shard: answer.shard(),
            shards: answer.shards(),
            cpu: answer.cpu(),
            idle: text(answer.idle()),
            incarnation: answer.incarnation(),
            uptime_ms: answer.uptime_ms(),
            kernel: text(answer.kernel()),
            file_system: text(answer.file_system()),
            device: text(answer.device()),
            write_cache: text(answer.write_cache()),
            fua: text(answer.fua()),
            durable_write_ns: answer.durable_write_ns(),
            wal_slots: answer.wal_slots(),
            wal_free_slots: answer.wal_free_slots(),
            wal_slot_bytes: answer.wal_slot_bytes(),
            sync_interval_ms: answer.sync_interval_ms(),
            wal_writes: answer.wal_writes(),
            wal_bytes: answer.wal_bytes(),
            wal_records: answer.wal_records(),
            connections: answer.connections(),
            memory_bytes: answer.memory_bytes(),
            memory_free_bytes: answer.memory_free_bytes(),
        }
    }
}
