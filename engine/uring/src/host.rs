//! Letting the executor that hosts the shard loop have a turn.
//!
//! glommio 0.12 can lose a turn: when its preempt timer fires between its look at the rings and its
//! look at the task queues, it takes the queues for empty and goes to sleep although a task is
//! ready. So the loop yields only when the executor has something to do for it (a job to hand over
//! or to reap), the preempt timer is long, and every yield carries timers that end such a sleep: one that has
//! fired is gone, and the turn that it led to can be lost like any other.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use glommio_ng::timer::Timer;

/// How long a lost turn lasts at the most, and those that are lost after it.
const LOST_TURNS_MS: [u64; 4] = [1, 10, 100, 1000];

/// Much longer than any turn, so that the timer does not fire in one.
pub(crate) const PREEMPT_TIMER: Duration = Duration::from_millis(100);

/// Leaves the executor to itself, so that its reactor looks at what has ended, until a task that `is_done` tells of this
/// one has woken it. It may have been woken for nothing.
pub(crate) async fn wait_for(is_done: impl Fn(&mut Context<'_>) -> bool) {
    let mut ends_of_sleep = ends_of_sleep();
    let mut has_slept = false;
    poll_fn(|context| {
        // A timer that is polled again while it waits is registered again, and the first registration stays.
        if std::mem::replace(&mut has_slept, true) || is_done(context) {
            return Poll::Ready(());
        }
        have_fired(&mut ends_of_sleep, context);
        Poll::Pending
    })
    .await;
}

/// Lets all other tasks of the executor run. Its reactor looks at what has ended by and by.
pub(crate) async fn give_a_turn() {
    let mut ends_of_sleep = ends_of_sleep();
    // They are registered by their first poll. Whether one has expired says nothing.
    poll_fn(|context| Poll::Ready(have_fired(&mut ends_of_sleep, context))).await;
    glommio_ng::executor().yield_task_queue_now().await;
}

fn ends_of_sleep() -> [Timer; 4] {
    LOST_TURNS_MS.map(|ms| Timer::new(Duration::from_millis(ms)))
}

/// Polls all of them; whether any has fired.
fn have_fired(timers: &mut [Timer], context: &mut Context<'_>) -> bool {
    let polls = timers.iter_mut().map(|t| Pin::new(t).poll(context));
    polls.filter(Poll::is_ready).count() > 0
}
