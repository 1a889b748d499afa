//! What the machine can do without a broker: figures of a broker are given as ratios to these.
//!
//! Each does the least that could be called the same work, in the way that costs least: sockets are
//! polled by both sides with `sched_yield` in idle turns, files are written past the page cache.

mod disk;
mod echo;
mod send;

pub use disk::{DurableFile, read_direct, write_direct};
pub use echo::echo;
pub use send::{Sending, send_files};
