//! The broker and its clients under simulation: the production shard, log, recovery and client core, with a disk, a network
//! and a clock that one seed decides. [`run`] plays a seed and says what it found.

pub mod changes;
pub mod client;
pub mod disk;
pub mod host;
pub mod oracle;
pub mod planted;
pub mod random;
pub mod world;

pub use planted::Planted;
pub use world::{Limits, Outcome, run, run_telling};
