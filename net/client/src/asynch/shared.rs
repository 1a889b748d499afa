//! The core behind a lock, and the tasks that serve it.
//!
//! The lock is held for the time of a core call and the writes that follow from it, never across an
//! await. Whoever changes the core calls [`State::settle`] before the lock is released: it sends
//! what the core has to send and wakes whoever waits for what changed.

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Instant;

use rustix::net::RecvFlags;
use tokio::net::TcpStream;
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;

use crate::core::Core;
use crate::core::call::Response;
use crate::error::Result;
use crate::record::Ack;

/// What is read at once.
const READ_BYTES: usize = 64 << 10;

/// Those who wait for the acknowledgements of one partition, in the order of the records.
#[derive(Default)]
struct Waiters {
    /// The number of the first.
    first: u64,
    senders: VecDeque<Option<oneshot::Sender<Result<Ack>>>>,
}

/// Those who wait for a producer.
#[derive(Default)]
pub(crate) struct ProducerWaiters {
    by_partition: HashMap<u32, Waiters>,
    /// Told whenever records were acknowledged.
    pub(crate) space: Arc<Notify>,
}

impl ProducerWaiters {
    pub(crate) fn push(&mut self, partition: u32, sender: oneshot::Sender<Result<Ack>>) {
        self.by_partition
            .entry(partition)
            .or_default()
            .senders
            .push_back(Some(sender));
    }

    fn give(&mut self, partition: u32, number: u64, result: Result<Ack>) {
        let Some(waiters) = self.by_partition.get_mut(&partition) else {
            return;
        };
        let index = number.checked_sub(waiters.first).map(|i| i as usize);
        let sender = index
            .and_then(|i| waiters.senders.get_mut(i))
            .and_then(Option::take);
        if let Some(sender) = sender {
            // Nobody has to wait for an acknowledgement.
            let _ = sender.send(result);
        }
        while let Some(None) = waiters.senders.front() {
            waiters.senders.pop_front();
            waiters.first += 1;
        }
    }
}

/// The connection of a link, if there is one.
#[derive(Default)]
struct Line {
    /// Counts the connections of this link: a task of an earlier one is not listened to.
    generation: u64,
    stream: Option<Arc<TcpStream>>,
    task: Option<AbortHandle>,
    /// Told when the socket did not take all output.
    blocked: Arc<Notify>,
}

/// Everything that the lock protects.
pub(crate) struct State {
    pub(crate) core: Core,
    pub(crate) calls: HashMap<u64, oneshot::Sender<Result<Response>>>,
    pub(crate) producers: HashMap<usize, ProducerWaiters>,
    /// Who waits for news of a consumer.
    pub(crate) consumers: HashMap<usize, Waker>,
    lines: Vec<Line>,
    buffer: Vec<u8>,
    /// When the background task wakes by itself.
    armed: Option<Instant>,
    closed: bool,
    wake: Arc<Notify>,
}

/// What handles and tasks share.
pub(crate) struct Shared {
    state: Mutex<State>,
    wake: Arc<Notify>,
}

/// Held by every handle; when the last is dropped, the tasks end.
pub(crate) struct Handle(Arc<Shared>);

impl Handle {
    pub(crate) fn start(core: Core) -> Arc<Self> {
        let wake = Arc::new(Notify::new());
        let state = State {
            core,
            calls: HashMap::new(),
            producers: HashMap::new(),
            consumers: HashMap::new(),
            lines: Vec::new(),
            buffer: vec![0; READ_BYTES],
            armed: None,
            closed: false,
            wake: wake.clone(),
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            wake,
        });
        tokio::spawn(attend(shared.clone()));
        Arc::new(Self(shared))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.closed = true;
        for line in &mut state.lines {
            line.stream = None;
            if let Some(task) = line.task.take() {
                task.abort();
            }
        }
        self.0.wake.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic of another holder leaves nothing half done that this one would rely on.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Sends what is to be sent and wakes whoever waits for what has changed.
    pub(crate) fn settle(&mut self) {
        let now = Instant::now();
        if self.core.next_deadline().is_some_and(|at| at <= now) {
            // Tasks that ran late have not been answered late.
            for link in 0..self.lines.len() {
                self.read(link, read_unasked);
            }
        }
        self.core.tick(now);
        self.write(now);
        self.give_answers();
        self.give_acks();
        let core = &mut self.core;
        for (_, waiting) in self
            .consumers
            .extract_if(|&key, _| core.consumer(key).has_news())
        {
            waiting.wake();
        }
        let sooner = match (self.core.next_deadline(), self.armed) {
            (Some(next), Some(armed)) => next < armed,
            (next, None) => next.is_some(),
            (None, _) => false,
        };
        if sooner || self.core.is_restless() {
            self.wake.notify_one();
        }
    }

    /// Hands what has arrived on a link to the core.
    fn read(&mut self, link: usize, read: fn(&TcpStream, &mut [u8]) -> io::Result<usize>) {
        let Some(stream) = self.lines[link].stream.clone() else {
            return;
        };
        let now = Instant::now();
        // It ends: what the broker may send is bounded by credit and by what was asked for.
        loop {
            match read(&stream, &mut self.buffer) {
                Ok(0) => return self.core.lost(link, "the server closed it", now),
                Ok(bytes) => {
                    self.core.received(link, &self.buffer[..bytes], now);
                    if bytes < READ_BYTES {
                        return;
                    }
                }
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                    return;
                }
                Err(e) => return self.core.lost(link, &e.to_string(), now),
            }
        }
    }

    fn write(&mut self, now: Instant) {
        for (link, line) in self.lines.iter_mut().enumerate() {
            let Some(stream) = &line.stream else { continue };
            loop {
                let output = self.core.output(link);
                if output.is_empty() {
                    break;
                }
                match stream.try_write(output) {
                    Ok(0) => break self.core.lost(link, "the socket takes nothing", now),
                    Ok(sent) => self.core.sent(link, sent),
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {
                        break line.blocked.notify_one();
                    }
                    Err(e) => break self.core.lost(link, &e.to_string(), now),
                }
            }
        }
    }

    fn give_answers(&mut self) {
        let Self { core, calls, .. } = self;
        core.drain_answers(|call, answer| {
            if let Some(sender) = calls.remove(&call) {
                // The caller may have gone.
                let _ = sender.send(answer);
            }
        });
    }

    fn give_acks(&mut self) {
        for (&key, waiters) in &mut self.producers {
            let mut any = false;
            while let Some(completion) = self.core.producer(key).take_done() {
                any = true;
                for index in 0..completion.records {
                    let delivered = completion.nth(index);
                    let ticket = delivered.ticket;
                    waiters.give(ticket.partition, ticket.number, delivered.result);
                }
            }
            if any {
                waiters.space.notify_waiters();
            }
        }
    }

    /// Starts and ends connections as the core wants.
    fn connect(&mut self, shared: &Arc<Shared>, now: Instant) {
        self.lines.resize_with(self.core.links(), Line::default);
        for (link, line) in self.lines.iter_mut().enumerate() {
            if self.core.take_close(link) {
                line.generation += 1;
                line.stream = None;
                if let Some(task) = line.task.take() {
                    task.abort();
                }
            }
        }
        while let Some((link, host, port)) = self.core.next_connect(now) {
            let line = &mut self.lines[link];
            line.generation += 1;
            let task = converse(shared.clone(), link, line.generation, host, port);
            line.task = Some(tokio::spawn(task).abort_handle());
        }
    }
}

/// Reads although tokio may not know yet that something arrived.
fn read_unasked(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let (bytes, _) = rustix::net::recv(stream, buffer, RecvFlags::DONTWAIT)?;
    Ok(bytes)
}

/// The background task: timers and connections.
async fn attend(shared: Arc<Shared>) {
    loop {
        let armed = {
            let mut state = shared.lock();
            if state.closed {
                return;
            }
            state.settle();
            state.connect(&shared, Instant::now());
            state.armed = state.core.next_deadline();
            state.armed
        };
        match armed {
            None => shared.wake.notified().await,
            Some(at) => tokio::select! {
                () = shared.wake.notified() => {}
                () = tokio::time::sleep_until(at.into()) => {}
            },
        }
    }
}

/// The task of one connection.
async fn converse(shared: Arc<Shared>, link: usize, generation: u64, host: Arc<str>, port: u16) {
    let connected = async {
        let stream = TcpStream::connect((&*host, port)).await?;
        stream.set_nodelay(true)?;
        io::Result::Ok(Arc::new(stream))
    };
    let outcome = connected.await;
    let (stream, blocked) = {
        let mut state = shared.lock();
        if state.closed || state.lines[link].generation != generation {
            return;
        }
        let now = Instant::now();
        let stream = match outcome {
            Ok(stream) => stream,
            Err(error) => {
                state.core.connect_failed(link, &error, now);
                return state.settle();
            }
        };
        state.core.connected(link, now);
        state.lines[link].stream = Some(stream.clone());
        state.settle();
        (stream, state.lines[link].blocked.clone())
    };
    loop {
        let woken = tokio::select! {
            ready = stream.readable() => ready,
            ready = async { blocked.notified().await; stream.writable().await } => ready,
        };
        let mut state = shared.lock();
        if state.closed || state.lines[link].generation != generation {
            return;
        }
        match woken {
            Ok(()) => state.read(link, TcpStream::try_read),
            Err(error) => state.core.lost(link, &error.to_string(), Instant::now()),
        }
        state.settle();
        if !state.core.is_up(link) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::time::Duration;

    use rustix::event::{PollFd, PollFlags};

    use super::*;
    use crate::asynch::Client;
    use crate::core::served::serve;
    use crate::{Options, ProducerOptions, Record, TopicSettings};

    #[tokio::test]
    async fn an_answer_that_has_arrived_counts_however_late_the_tasks_run() {
        let timeout = Duration::from_millis(500);
        let served = serve(1);
        let client = Client::connect(&served.servers, Options::new()).await;
        let client = client.expect("connected");
        let settings = TopicSettings::default();
        client.create_topic("t", 1, &settings).await.expect("made");
        let options = ProducerOptions::new().delivery_timeout(timeout);
        let producer = client.producer("t", options).await.expect("a producer");
        let first = producer.send(&Record::new("v")).await.expect("taken");
        first.await.expect("appended");
        let sent = Instant::now();
        let late = producer.send(&Record::new("v")).await.expect("taken");
        // The only thread is busy until the answer is there and its time is over.
        let stream = client.handle.lock().lines[0].stream.clone().expect("up");
        let mut fds = [PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::IN)];
        rustix::event::poll(&mut fds, None).expect("an answer");
        while sent.elapsed() <= timeout {
            std::thread::yield_now();
        }
        let next = producer.try_send(&Record::new("v")).expect("taken");
        assert_eq!(late.await.expect("appended").offset, Some(1));
        assert_eq!(next.await.expect("appended").offset, Some(2));
    }
}
