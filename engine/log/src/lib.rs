//! The log of Ringtide: write-ahead log, segments, indexes, snapshots, recovery, retention.
//!
//! Nothing here does I/O of its own except `recovery`, which runs before the shards start: the
//! writer's side gives operations to a driver and is told of their completion.

pub mod files;
pub mod partition;
pub mod producers;
pub mod recovery;
pub mod segment;
pub mod wal;
