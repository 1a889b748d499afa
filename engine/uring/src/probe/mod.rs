//! Facts about the host.

pub mod cpus;
