//! Facts about the host: what the start line says and what `doctor` judges. Nothing is printed.

pub mod cpus;
pub mod disk;
pub mod kernel;

pub use cpus::{allowed, governor, interrupts_of, isolated, online};
pub use disk::{
    BlockDevice, DirectIo, WriteLatency, alignment, block_device, direct_io, durable_write_latency,
    file_system, free_bytes,
};
pub use kernel::{NoIoUring, io_uring, memlock_limit, release};
