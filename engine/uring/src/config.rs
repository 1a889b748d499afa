//! How a shard is driven. Nothing here decides the format of data.

use std::net::SocketAddr;
use std::time::Duration;

/// What a shard does when there is nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdlePolicy {
    /// Keeps looking; takes the whole core. Lets kernel workers of the core run in between.
    Spin,
    /// Keeps looking for `budget` after the last network event or mail, then sleeps.
    Adaptive {
        /// How long.
        budget: Duration,
    },
    /// Sleeps at once.
    Park,
}

/// How ranges of segment files reach a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CatchUp {
    /// By sendfile where the kernel can tell what is cached (Linux 6.5), copied elsewhere.
    Sendfile,
    /// Copied through a buffer.
    Copy,
}

/// The configuration of one shard.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// The CPU that the shard's thread is pinned to.
    pub cpu: usize,
    /// The shard's number: shards are numbered from 0 in the order in which they are given.
    pub shard: u16,
    /// Where the shard listens; for messages only, the socket is bound by [`crate::bind`].
    pub listen: SocketAddr,
    /// What it does when idle.
    pub idle: IdlePolicy,
    /// Entries of the ring's submission queue.
    pub ring_entries: u32,
    /// Entries of the ring's completion queue.
    pub completion_entries: u32,
    /// Receive buffers shared by all connections; a power of two.
    pub recv_buffers: u16,
    /// Bytes of each.
    pub recv_buffer_bytes: u32,
    /// Send buffer of accepted sockets in bytes; the system's choice if absent.
    pub socket_send_buffer: Option<usize>,
    /// A peer that takes nothing of what waits for it for so long is disconnected, and one that is
    /// idle and does not answer the kernel's probes, of which the first comes after a minute.
    pub peer_timeout: Duration,
    /// Connections beyond this wait in the listen queue.
    pub max_connections: usize,
    /// How ranges of files are sent.
    pub catch_up: CatchUp,
    /// Buffers of 256 KiB for ranges of files on their way to sockets.
    pub file_buffers: u16,
    /// The most kernel worker threads of the ring: for bounded (files) and unbounded work.
    pub io_wq_workers: [u32; 2],
    /// Threads for blocking work on files.
    pub job_threads: usize,
    /// Mails under way to each other shard before they wait at the sender.
    pub mailbox_slots: usize,
}

impl ShardConfig {
    /// The defaults, for a shard of this number on this CPU.
    pub fn new(shard: u16, cpu: usize, listen: SocketAddr) -> Self {
        Self {
            cpu,
            shard,
            listen,
            idle: IdlePolicy::Adaptive {
                budget: Duration::from_millis(1),
            },
            ring_entries: 1024,
            completion_entries: 4096,
            recv_buffers: 128,
            recv_buffer_bytes: 64 << 10,
            socket_send_buffer: None,
            peer_timeout: Duration::from_secs(120),
            max_connections: 10_000,
            catch_up: CatchUp::Sendfile,
            file_buffers: 16,
            io_wq_workers: [4, 4],
            job_threads: 2,
            mailbox_slots: 1024,
        }
    }
}
