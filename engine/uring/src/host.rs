//! Letting the executor that hosts the shard loop have a turn.
//!
//! glommio 0.12 can lose a turn: when its preempt timer fires between its look at the rings and its
//! look at the task queues, it takes the queues for empty and goes to sleep although a task is
//! ready. So the loop yields only when the executor has something to do for it (a job to hand over
//! or to reap), the preempt timer is long, and every yield carries a timer that ends such a sleep.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use glommio_ng::timer::Timer;

/// The longest that a lost turn lasts.
const LOST_TURN: Duration = Duration::from_millis(1);

/// Much longer than any turn, so that the timer does not fire in one.
pub(crate) const PREEMPT_TIMER: Duration = Duration::from_millis(100);

/// Leaves the executor to itself, so that its reactor looks at what has ended, until a task says that it is done.
pub(crate) async fn wait_for(mut is_done: impl FnMut(&mut Context<'_>) -> bool) {
    let mut end_of_sleep = pin!(Timer::new(LOST_TURN));
    poll_fn(|context| {
        let is_over = end_of_sleep.as_mut().poll(context).is_ready();
        match is_done(context) || is_over {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    })
    .await;
}

/// Lets all other tasks of the executor run. Its reactor looks at what has ended by and by.
pub(crate) async fn give_a_turn() {
    let mut end_of_sleep = pin!(Timer::new(LOST_TURN));
    // The timer is registered by its first poll. Whether it has expired says nothing.
    poll_fn(|context| Poll::Ready(end_of_sleep.as_mut().poll(context).is_ready())).await;
    glommio_ng::executor().yield_task_queue_now().await;
}
