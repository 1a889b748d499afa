//! Mail between shards: one bounded queue from every shard to every other.
//!
//! Order is kept per receiver. What finds a queue full waits at the sender and goes as soon as
//! there is room; the logic bounds how much it has under way.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use rtrb::{Consumer, Producer, PushError, RingBuffer};

use crate::wake::Wake;

/// The mailboxes of one shard.
pub struct Mailboxes<M> {
    inbound: Vec<(u16, Consumer<M>)>,
    outbound: Vec<Option<Outbound<M>>>,
    /// Mail to itself.
    own: VecDeque<M>,
    me: u16,
}

struct Outbound<M> {
    queue: Producer<M>,
    waiting: VecDeque<M>,
    receiver: Arc<Wake>,
    /// Something was pushed since the receiver was last looked at.
    fresh: bool,
}

/// Mailboxes for so many shards that never sleep, each in its place: to look at them by themselves.
pub fn awake_mesh<M>(shards: usize, slots: usize) -> io::Result<Vec<Mailboxes<M>>> {
    let wake = |_| Ok(Arc::new(Wake::new()?));
    let wakes: io::Result<Vec<_>> = (0..shards).map(wake).collect();
    Ok(mesh(&wakes?, slots))
}

/// Mailboxes for as many shards as there are wakes, each in its place.
pub(crate) fn mesh<M>(wakes: &[Arc<Wake>], slots: usize) -> Vec<Mailboxes<M>> {
    let shards = wakes.len();
    let mut boxes: Vec<_> = (0..shards)
        .map(|me| Mailboxes {
            inbound: Vec::new(),
            outbound: (0..shards).map(|_| None).collect(),
            own: VecDeque::new(),
            me: me as u16,
        })
        .collect();
    for from in 0..shards {
        for to in (0..shards).filter(|&to| to != from) {
            let (queue, consumer) = RingBuffer::new(slots);
            let receiver = wakes[to].clone();
            boxes[from].outbound[to] = Some(Outbound {
                queue,
                waiting: VecDeque::new(),
                receiver,
                fresh: false,
            });
            boxes[to].inbound.push((from as u16, consumer));
        }
    }
    boxes
}

impl<M> Mailboxes<M> {
    /// Puts mail on its way; the receiver is woken by [`Self::flush`].
    ///
    /// # Panics
    /// If there is no such shard.
    pub fn send(&mut self, to: u16, mail: M) {
        if to == self.me {
            self.own.push_back(mail);
            return;
        }
        let outbound = self.outbound[usize::from(to)].as_mut();
        let outbound = outbound.unwrap_or_else(|| panic!("mail to shard {to}, which is absent"));
        if !outbound.waiting.is_empty() {
            outbound.waiting.push_back(mail);
            return;
        }
        match outbound.queue.push(mail) {
            Ok(()) => outbound.fresh = true,
            Err(PushError::Full(mail)) => outbound.waiting.push_back(mail),
        }
    }

    /// Moves on what waited, wakes receivers. Whether anything moved.
    pub fn flush(&mut self) -> bool {
        let mut moved = false;
        for outbound in self.outbound.iter_mut().flatten() {
            while let Some(mail) = outbound.waiting.pop_front() {
                match outbound.queue.push(mail) {
                    Ok(()) => (outbound.fresh, moved) = (true, true),
                    // Nobody will ever read it: the receiver has ended.
                    Err(PushError::Full(_)) if outbound.queue.is_abandoned() => {}
                    Err(PushError::Full(mail)) => {
                        outbound.waiting.push_front(mail);
                        break;
                    }
                }
            }
            if std::mem::take(&mut outbound.fresh) {
                outbound.receiver.wake_if_parked();
            }
        }
        moved
    }

    /// Takes what has come, a bounded number per sender, and hands it on.
    pub fn receive(&mut self, mut hand_on: impl FnMut(u16, M)) -> bool {
        /// Per sender and turn, so that sockets and disk get their turn too.
        const AT_ONCE: usize = 256;
        let mut any = false;
        for (from, queue) in &mut self.inbound {
            for _ in 0..AT_ONCE {
                let Ok(mail) = queue.pop() else { break };
                any = true;
                hand_on(*from, mail);
            }
        }
        for _ in 0..self.own.len().min(AT_ONCE) {
            let Some(mail) = self.own.pop_front() else {
                break;
            };
            any = true;
            hand_on(self.me, mail);
        }
        any
    }

    /// Whether the shard must not sleep: mail has come, or some waits for room.
    pub fn has_work(&self) -> bool {
        !self.own.is_empty()
            || self.inbound.iter().any(|(_, queue)| !queue.is_empty())
            || self
                .outbound
                .iter()
                .flatten()
                .any(|outbound| !outbound.waiting.is_empty())
    }
}
