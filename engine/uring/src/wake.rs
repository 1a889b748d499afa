//! Waking a parked shard, and asking all of them to stop.
#![expect(unsafe_code, reason = "eventfd has no wrapper in std")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use io_uring::{opcode, types};

use crate::parked::Parked;
use crate::ring::Ring;
use crate::token::{Kind, Token};

/// The eventfd of one shard, which its ring watches.
pub(crate) struct Wake {
    eventfd: OwnedFd,
    parked: Parked,
}

impl Wake {
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers; the result is checked before it is owned.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new descriptor that nobody else owns.
        let eventfd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self {
            eventfd,
            parked: Parked::default(),
        })
    }

    /// Wakes the shard if it sleeps. What it is to find must be in place before.
    pub fn wake_if_parked(&self) {
        if self.parked.must_wake() {
            let one = 1u64;
            // SAFETY: eight bytes of a local. A full counter (EAGAIN) wakes as well.
            unsafe { libc::write(self.eventfd.as_raw_fd(), (&raw const one).cast(), 8) };
        }
    }

    /// Announces that the shard is about to sleep; it must look at its sources again after this.
    pub fn announce_parking(&self) {
        self.parked.announce();
    }

    /// The shard is awake.
    pub fn awake(&self) {
        self.parked.awake();
    }

    /// Has the ring watch for signals.
    pub fn arm(&self, ring: &mut Ring) {
        let fd = types::Fd(self.eventfd.as_raw_fd());
        let entry = opcode::PollAdd::new(fd, libc::POLLIN as u32)
            .multi(true)
            .build();
        // SAFETY: the entry points to no memory; the descriptor outlives the ring.
        unsafe { ring.push(entry, Token::new(Kind::Wake, 0, 0)) };
    }

    /// Takes back the signals given so far.
    pub fn clear(&self) {
        let mut count = 0u64;
        // SAFETY: eight bytes of a local; the descriptor does not block.
        unsafe { libc::read(self.eventfd.as_raw_fd(), (&raw mut count).cast(), 8) };
    }
}

/// Asks shards to stop, from any thread.
#[derive(Clone, Default)]
pub struct StopSignal(Arc<Stop>);

#[derive(Default)]
struct Stop {
    asked: AtomicBool,
    shards: Mutex<Vec<Arc<Wake>>>,
}

impl StopSignal {
    /// A signal that was not given yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks every shard that runs under this signal to drain and end; those started later end too.
    /// Takes a lock: not for a signal handler, but for the thread that it hands the signal to.
    pub fn stop(&self) {
        self.0.asked.store(true, Ordering::SeqCst);
        for wake in self
            .0
            .shards
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
        {
            wake.wake_if_parked();
        }
    }

    /// Whether it was given.
    pub fn is_stopped(&self) -> bool {
        self.0.asked.load(Ordering::Relaxed)
    }

    pub(crate) fn register(&self, wake: Arc<Wake>) {
        self.0
            .shards
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(wake);
    }
}

impl std::fmt::Debug for StopSignal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "StopSignal({})",
            if self.is_stopped() {
                "given"
            } else {
                "not given"
            }
        )
    }
}
