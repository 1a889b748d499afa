//! Every interleaving of threads that hand work to a shard with the shard that goes to sleep.

use std::sync::Arc;

use loom::sync::atomic::AtomicUsize;
use loom::thread;

use crate::parked::Parked;
use crate::sync::{AtomicBool, Ordering};

#[path = "../src/parked.rs"]
mod parked;

/// What `parked` is built from, in a model of threads and memory.
mod sync {
    pub(crate) use loom::sync::atomic::{AtomicBool, Ordering, fence};
}

/// A shard with one queue for each sender, as mailboxes have them: only the sender moves its end on, with release,
/// and only the shard looks at it, with acquire.
struct Shard<F> {
    ends: Vec<AtomicUsize>,
    flag: F,
    /// What was written to the eventfd.
    signals: AtomicUsize,
}

trait Flag: Default + Send + Sync + 'static {
    fn must_wake(&self) -> bool;
    fn announce(&self);
    fn awake(&self);
}

impl Flag for Parked {
    fn must_wake(&self) -> bool {
        self.must_wake()
    }
    fn announce(&self) {
        self.announce();
    }
    fn awake(&self) {
        self.awake();
    }
}

/// The same without barriers.
#[derive(Default)]
struct Careless(AtomicBool);

impl Flag for Careless {
    fn must_wake(&self) -> bool {
        self.0.swap(false, Ordering::AcqRel)
    }
    fn announce(&self) {
        self.0.store(true, Ordering::Release);
    }
    fn awake(&self) {
        self.0.store(false, Ordering::Release);
    }
}

impl<F: Flag> Shard<F> {
    fn send(&self, sender: usize) {
        self.ends[sender].store(1, Ordering::Release);
        if self.flag.must_wake() {
            self.signals.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether it goes to sleep.
    fn park(&self) -> bool {
        self.flag.announce();
        let has_come = self.ends.iter().any(|end| end.load(Ordering::Acquire) > 0);
        if has_come {
            self.flag.awake();
        }
        !has_come
    }
}

/// In how many interleavings the shard sleeps on its mail, and in how many it sleeps.
fn play<F: Flag>(senders: usize) -> (usize, usize) {
    let asleep = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let overlooked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let (sleeps, misses) = (Arc::clone(&asleep), Arc::clone(&overlooked));
    loom::model(move || {
        let shard = loom::sync::Arc::new(Shard::<F> {
            ends: (0..senders).map(|_| AtomicUsize::new(0)).collect(),
            flag: F::default(),
            signals: AtomicUsize::new(0),
        });
        let threads: Vec<_> = (0..senders)
            .map(|sender| {
                let shard = loom::sync::Arc::clone(&shard);
                thread::spawn(move || shard.send(sender))
            })
            .collect();
        let sleeps_now = shard.park();
        for thread in threads {
            thread.join().expect("it ends");
        }
        let signals = shard.signals.load(Ordering::Relaxed);
        assert!(signals <= 1, "one sleep was ended {signals} times");
        sleeps.fetch_add(usize::from(sleeps_now), Ordering::Relaxed);
        misses.fetch_add(usize::from(sleeps_now && signals == 0), Ordering::Relaxed);
    });
    (
        overlooked.load(Ordering::Relaxed),
        asleep.load(Ordering::Relaxed),
    )
}

#[test]
fn a_shard_that_goes_to_sleep_sees_mail_or_is_woken() {
    for senders in [1, 2] {
        let (overlooked, asleep) = play::<Parked>(senders);
        assert!(overlooked == 0 && asleep > 0, "{overlooked} of {asleep}");
    }
}

#[test]
fn without_barriers_a_shard_would_sleep_on_its_mail() {
    let (overlooked, asleep) = play::<Careless>(1);
    assert!(overlooked > 0, "{overlooked} of {asleep}");
}
