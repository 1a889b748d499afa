//! Every bound that both sides of the wire, or writer and reader of a file, must agree on.

/// The oldest protocol version spoken.
pub const PROTOCOL_MIN: u8 = 1;
/// The newest protocol version spoken.
pub const PROTOCOL_MAX: u8 = 1;

/// The port of the first shard unless told otherwise.
pub const DEFAULT_PORT: u16 = 7311;

/// The largest record batch that any topic may allow, in bytes.
pub const MAX_BATCH_BYTES: usize = 1 << 20;
/// The most records of one batch: the counts of compressed batches are believed up to here.
pub const MAX_BATCH_RECORDS: u32 = 1 << 20;
/// The largest FlatBuffers envelope, in bytes.
pub const MAX_ENVELOPE_BYTES: usize = 4 << 20;
/// The largest frame payload, in bytes.
pub const MAX_PAYLOAD_BYTES: usize = 4 << 20;
/// The most batches in one publish request.
pub const MAX_PUBLISH_PARTS: usize = 1024;
/// The largest payload of a delivery or fetch answer, in bytes, unless one batch is larger.
pub const MAX_DELIVERY_BYTES: usize = 512 << 10;
/// The same for one that is sent from memory: in one piece, for which everybody else waits.
pub const MAX_MEMORY_DELIVERY_BYTES: usize = 256 << 10;
/// The longest `max_wait_ms` of a fetch.
pub const MAX_FETCH_WAIT_MS: u32 = 60_000;
/// The most credit a subscription may hold, in bytes.
pub const MAX_CREDIT_BYTES: u64 = 256 << 20;
/// The longest topic name, in bytes (Kafka's bound).
pub const MAX_TOPIC_NAME_BYTES: usize = 249;
/// The longest consumer name, in bytes.
pub const MAX_CONSUMER_NAME_BYTES: usize = 249;
/// The most partitions of one topic.
pub const MAX_PARTITIONS: u32 = 4096;
/// The most topics in one data directory: their metadata fits into one envelope.
pub const MAX_TOPICS: usize = 8192;
/// The most partitions of all topics together.
pub const MAX_PARTITIONS_IN_ALL: u32 = 100_000;
/// The most named consumers whose offsets one partition keeps.
pub const MAX_CONSUMERS_PER_PARTITION: usize = 10_000;
/// The most offsets of named consumers that one log group keeps: they are all in its snapshot.
pub const MAX_CONSUMERS_PER_GROUP: usize = 100_000;
/// The most idempotent producers that one partition remembers; past it the least recent goes.
pub const MAX_PRODUCERS_PER_PARTITION: usize = 4096;
/// How many batches of a producer a partition remembers (Kafka's window).
pub const PRODUCER_WINDOW: usize = 5;
/// The most shards of one broker.
pub const MAX_SHARDS: u16 = 256;
/// Log groups of a new data directory.
pub const DEFAULT_GROUPS: u16 = 64;
/// The smallest segment size that a topic may ask for, in bytes.
pub const MIN_SEGMENT_BYTES: u32 = 4 << 10;
/// The largest segment size: positions in the offset index have 32 bits.
pub const MAX_SEGMENT_BYTES: u32 = 2 << 30;
/// What the broker inflates one compressed batch to at the most when it searches by time.
pub const SEARCH_INFLATED_BYTES: usize = 4 << 20;
/// What a reader inflates one compressed batch to at the most, unless told otherwise.
pub const DEFAULT_INFLATED_BYTES: usize = 64 << 20;

/// Direct I/O moves whole blocks of this many bytes.
pub const BLOCK_BYTES: usize = 4096;
