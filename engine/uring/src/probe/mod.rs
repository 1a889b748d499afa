//! Facts about the host: what the start line says and what `doctor` judges. Nothing is printed.

pub mod cpus;
pub mod disk;
pub mod kernel;

pub use cpus::{allowed, governor, interrupts_of, isolated, online};
pub use disk::{
    BlockDevice, DirectIo, FLUSH_BYTES, FlushTimes, WriteLatency, alignment, block_device,
    direct_io, durable_write_latency, file_system, flush_times, free_bytes,
};
pub use kernel::{NoIoUring, io_uring, is_virtual, memlock_limit, release};
