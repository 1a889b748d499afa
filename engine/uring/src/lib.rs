//! The driver of a shard: everything that touches the kernel.
//!
//! A shard is a thread pinned to one CPU. A glommio executor hosts it; inside, one task, the shard
//! loop ([`executor`]), owns an io_uring ring of its own ([`ring`]) for sockets ([`net`],
//! [`egress`]) and for the log's writes, syncs and reads ([`disk`]). What blocks (opening, sealing,
//! removing files) goes to a thread beside ([`jobs`]). Shards talk through bounded mailboxes
//! ([`mailbox`]); an idle one parks on an eventfd ([`wake`]).
//!
//! The loop knows nothing of requests or partitions: it feeds a [`ringtide_io::Logic`] with events
//! and carries out the effects that it answers with.
//!
//! What holds everywhere here: **memory given to the kernel belongs to a slot until its completion
//! was collected**; cancelling means waiting for that completion. One receive and one egress
//! operation are under way per connection at the most.

mod clock;
mod config;
mod disk;
mod egress;
mod executor;
mod files;
mod host;
mod jobs;
pub mod mailbox;
mod memory;
mod net;
mod parked;
pub mod probe;
mod ring;
mod running;
/// What `parked` is built from; its test puts a model of threads there.
mod sync {
    pub(crate) use std::sync::atomic::{AtomicBool, Ordering, fence};
}
mod token;
mod wake;

pub use config::{CatchUp, IdlePolicy, ShardConfig};
pub use running::{Running, ShardStart, StartError, bind, run};
pub use wake::StopSignal;
