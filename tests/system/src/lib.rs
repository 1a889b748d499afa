//! Ringtide as its users see it: the real binary as a process, spoken to over sockets and pipes.
//!
//! What lives here is what every test needs: [`Broker`] starts, kills and restarts the binary,
//! [`Cli`] runs its client commands, [`Peer`] speaks the wire protocol byte by byte and may break
//! it, [`feed`] is an order-book feed to publish, [`Flow`] load that can be held against itself. The tests are in `tests/`, one file to a subject.
//!
//! Two rules keep them honest: a test waits for a condition ([`wait`]), never for a time; and
//! nothing here is shared with the broker but the byte formats.
//!
//! Environment: `RINGTIDE_BIN` names a binary to test instead of the one of this workspace,
//! `RINGTIDE_FEED` a feed file, `RINGTIDE_TEST_DIR` a folder for data directories,
//! `RINGTIDE_KILLS` how often the broker is killed, `RINGTIDE_CUTS` how often the power is cut,
//! `RINGTIDE_SOAK_SECONDS` how long the soak takes,
//! `RINGTIDE_SEED` the seed of what is random;
//! with `RINGTIDE_TEST_KEEP` the data directory of a failed test stays.

mod binary;
mod broker;
mod cli;
mod cpus;
mod disk;
mod extents;
mod figures;
mod flow;
mod footprint;
mod payload;
mod peer;
mod ports;
mod quota_disk;
mod random;
mod recorded_disk;
mod skip;

pub mod block_trace;
pub mod exit;
pub mod feed;
pub mod wait;

pub use binary::binary;
pub use broker::{Broker, Refusal, Setup, data_root};
pub use cli::{Cli, Finished, Running};
pub use cpus::cpu_list;
pub use disk::{MountedDisk, is_root};
pub use extents::{extents, part_of};
pub use figures::disturbed_at_most;
pub use flow::{Flow, StopsAtEnd};
pub use footprint::Footprint;
pub use payload::{Rec, batch, batch_at, now_ms, read_records, single};
pub use peer::{Answer, Fault, Peer, Published, Refused, Topic};
pub use ports::Ports;
pub use quota_disk::QuotaDisk;
pub use random::Random;
pub use recorded_disk::{Asked, DiskRequest, RecordedDisk};
pub use skip::skip;
