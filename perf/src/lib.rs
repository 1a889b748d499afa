//! The load generator of Ringtide, and what the machine itself can do.
//!
//! [`closed_loop`] measures one record at a time, as `ringtide bench --closed-loop` does; [`flood`]
//! keeps a number of requests in flight and measures what goes through. [`limits`] measures the
//! same machine without a broker, so that figures can be given as ratios. Who starts a broker, and
//! which figures are wanted, is no business of this crate: see `examples/targets`.

pub mod broker;
pub mod closed_loop;
pub mod cpu;
mod error;
pub mod feed;
pub mod flood;
mod latency;
pub mod limits;
pub mod lone_topic;
pub mod machine;
pub mod open_loop;
pub mod page;
pub mod pipe;
pub mod report;
pub mod workload;

pub use error::BenchError;
pub use latency::{Latency, Recorder};
