//! Whether a shard sleeps, such that nobody's work is overlooked.
//!
//! A shard that goes to sleep sets the flag and then looks once more at everything that could have
//! work for it; whoever makes work for it looks at the flag afterwards. Both sides put a full
//! barrier in between, so that at least one of them sees the other. `tests/parking.rs` has every
//! interleaving tried.

use crate::sync::{AtomicBool, Ordering, fence};

/// The flag of one shard.
#[derive(Debug, Default)]
pub(crate) struct Parked(AtomicBool);

impl Parked {
    /// Whether the shard sleeps and it falls to the caller, and to nobody else, to wake it. What
    /// it is to find must be in place before.
    pub fn must_wake(&self) -> bool {
        fence(Ordering::SeqCst);
        self.0.load(Ordering::SeqCst) && self.0.swap(false, Ordering::SeqCst)
    }

    /// Announces that the shard is about to sleep; it must look at its sources again after this.
    pub fn announce(&self) {
        self.0.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// The shard is awake.
    pub fn awake(&self) {
        self.0.store(false, Ordering::SeqCst);
    }
}
