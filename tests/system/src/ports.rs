//! Ports for brokers, reserved so that tests that run at the same time never share one.
//!
//! A broker binds its ports itself, so they cannot be held open for it. What is held instead is an
//! abstract Unix socket of the same number: like the ports it belongs to the network namespace, and
//! the kernel lets go of it when the process ends, however it ends.

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Consecutive ports of one reservation; the largest number of shards under test.
const BLOCK: u16 = 8;
/// Below the range from which Linux gives ports to outgoing connections.
const FIRST: u16 = 20_000;
const BLOCKS: usize = 1400;

/// A block of consecutive ports, reserved while this lives.
#[derive(Debug)]
pub struct Ports {
    first: u16,
    _held: UnixListener,
}

impl Ports {
    /// Reserves a block whose ports nobody listens on.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn reserve() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let start = std::process::id() as usize * 37;
        for _ in 0..BLOCKS {
            let block = (start + NEXT.fetch_add(1, Ordering::Relaxed)) % BLOCKS;
            let first = FIRST + block as u16 * BLOCK;
            let name = format!("ringtide-test-ports-{first}");
            let name = SocketAddr::from_abstract_name(name).expect("a short name");
            let Ok(held) = UnixListener::bind_addr(&name) else {
                continue;
            };
            let free = (first..first + BLOCK).all(|p| TcpListener::bind(("127.0.0.1", p)).is_ok());
            if free {
                return Self { first, _held: held };
            }
        }
        panic!("no {BLOCK} consecutive ports are free");
    }

    /// The port of a shard.
    #[must_use]
    pub fn of_shard(&self, shard: usize) -> u16 {
        let shard = u16::try_from(shard).expect("few shards");
        assert!(shard < BLOCK);
        self.first + shard
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_reservations_overlap() {
        let all: Vec<Ports> = (0..50).map(|_| Ports::reserve()).collect();
        let mut firsts: Vec<u16> = all.iter().map(|p| p.of_shard(0)).collect();
        firsts.sort_unstable();
        assert!(
            firsts.windows(2).all(|w| w[1] - w[0] >= BLOCK),
            "{firsts:?}"
        );
    }
}
