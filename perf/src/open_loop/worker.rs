//! One thread of the generator: a share of the publishers and of the subscribers.
//!
//! The schedule comes first. In each turn what is due goes to its publishers, whatever became of what
//! was sent before; then sockets are looked at. Nothing here waits for the broker: a publisher that may
//! not send more keeps its records, whose time runs from when they were due.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use ringtide_schema::murmur2;

use crate::error::BenchError;
use crate::feed::{Feed, RECORD_BYTES};
use crate::open_loop::Plan;
use crate::open_loop::ledger::{Lane, Received, Sent};
use crate::open_loop::schedule::{Arrivals, Due};
use crate::open_loop::stamp::{NOT_TIMED, STAMP_BYTES, Stamp};
use crate::open_loop::target::{From, Outgoing, PublishSide, SubscribeSide, Target};
use crate::open_loop::timing::{Cells, Times};

/// Records taken from the schedule before sockets are looked at; the last group is taken whole.
const TAKEN_IN_A_TURN: usize = 64;
/// Batches sent before sockets are looked at.
const SENT_IN_A_TURN: usize = 64;
/// Records that are given up before sockets are looked at.
const GIVEN_UP_IN_A_TURN: usize = 1 << 16;
/// From the moment that all are connected to the beginning of the schedule.
const LEAD: Duration = Duration::from_millis(20);
/// How often a worker that has nothing else to do looks whether all is there.
const LOOK_EVERY_NS: u64 = 5_000_000;

/// What the threads of a run share.
pub(crate) struct Shared<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) feed: Option<&'a Feed>,
    pub(crate) run: u32,
    /// The time 0 of the run.
    pub(crate) epoch: Instant,
    /// When the schedule begins, in ns since the epoch; set when all are connected.
    pub(crate) start_ns: AtomicU64,
    /// Workers that are not connected yet.
    pub(crate) connecting: AtomicUsize,
    /// Everybody ends as soon as they see it.
    pub(crate) stop: AtomicBool,
    /// Workers that still publish.
    pub(crate) publishing: AtomicUsize,
    /// Workers that still read. Until there are none all keep their connections: without
    /// acknowledgements what has left may still be on its way.
    pub(crate) reading: AtomicUsize,
    /// What all publishers sent, once they are done.
    pub(crate) sent: Mutex<HashMap<Lane, Sent>>,
    /// What was there before them.
    pub(crate) preloaded: HashMap<Lane, Sent>,
    /// For the progress line.
    pub(crate) acked: AtomicU64,
}

impl Shared<'_> {
    fn now_ns(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    /// The last one that is connected begins the schedule.
    fn connected(&self) {
        if self.connecting.fetch_sub(1, Ordering::AcqRel) == 1 {
            let start = self.epoch.elapsed() + LEAD;
            let start_ns = start.as_nanos() as u64;
            self.start_ns.store(start_ns, Ordering::Release);
        }
    }

    pub(crate) fn is_publishing(&self) -> bool {
        self.publishing.load(Ordering::Acquire) > 0
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// What a worker has seen.
pub(crate) struct Seen {
    pub(crate) received: Vec<Received>,
    pub(crate) cells: Cells,
    /// Due within what is measured.
    pub(crate) scheduled: u64,
    /// When the last of those was acknowledged, in ns since measuring began.
    pub(crate) last_ack_ns: u64,
    /// When this worker ended, in ns since the epoch.
    pub(crate) ended_ns: u64,
    /// Due and never sent, warm-up included.
    pub(crate) unsent: u64,
    pub(crate) refusal: Option<String>,
    /// What ended it before its time.
    pub(crate) error: Option<BenchError>,
}

/// The share of a worker.
pub(crate) struct Share {
    pub(crate) publishers: Vec<u32>,
    pub(crate) subscribers: usize,
    pub(crate) replayers: usize,
}

struct Lent {
    keys: Vec<Option<u64>>,
    values: Vec<u8>,
    dues: Vec<u64>,
}

struct Publisher {
    id: u32,
    backlog: VecDeque<Due>,
    is_listed: bool,
    turn: u32,
    /// The next sequence of each partition.
    sequences: Vec<u64>,
    /// Batches being filled, by partition.
    filling: Vec<Option<Lent>>,
    /// The partitions of those.
    begun: Vec<u32>,
}

#[derive(Default)]
struct InFlight {
    publisher: u32,
    partition: u32,
    sent_ns: u64,
    dues: Vec<u64>,
}

/// Seconds on their way to whoever adds them up, and back.
pub(crate) struct Post {
    pub(crate) worker: usize,
    pub(crate) full: mpsc::Sender<(usize, u64, Times)>,
    pub(crate) empty: mpsc::Receiver<Times>,
}

struct Worker<'a> {
    shared: &'a Shared<'a>,
    publishers: Vec<Publisher>,
    /// Those with something to send.
    listed: VecDeque<usize>,
    /// Records that they have.
    waiting: u64,
    /// Nothing of what waited after the last turn could be sent.
    is_held: bool,
    /// When no more could wait, and nothing of it be sent, last.
    held_ns: u64,
    in_flight: Vec<InFlight>,
    free: Vec<u32>,
    /// Bytes of a value and its filling.
    filling: Vec<u8>,
    spare: Vec<Lent>,
    lanes: HashMap<Lane, Sent>,
    local: HashMap<u32, u32>,
    seen: Seen,
    times: Times,
    second: u64,
    post: &'a Post,
    /// When something was due, was sent or arrived last.
    moved_ns: u64,
    is_replaying: bool,
    measured: Range<u64>,
    /// Subscribers that are there from the beginning.
    live: usize,
    is_publishing: bool,
    is_reading: bool,
    /// What has not left by now does not leave any more.
    is_too_late: bool,
}

/// Ends all workers when one panics: they would wait for it.
struct Alarm<'a>(&'a AtomicBool);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// Runs a worker's share to its end.
pub(crate) fn run(shared: &Shared<'_>, share: &Share, target: &dyn Target, post: &Post) -> Seen {
    let _alarm = Alarm(&shared.stop);
    let mut worker = Worker::new(shared, share, post);
    let result = worker.connect_and_run(share, target);
    if let Err(error) = result {
        shared.stop.store(true, Ordering::Relaxed);
        worker.seen.error = Some(error);
    }
    worker.seen.ended_ns = shared.now_ns();
    worker.end_publishing();
    // Whoever adds up takes what is left of the last second.
    let _ = post.full.send((
        post.worker,
        worker.second,
        std::mem::take(&mut worker.times),
    ));
    worker.seen
}

impl<'a> Worker<'a> {
    fn new(shared: &'a Shared<'a>, share: &Share, post: &'a Post) -> Self {
        let plan = shared.plan;
        let publisher = |&id: &u32| Publisher {
            id,
            backlog: VecDeque::new(),
            is_listed: false,
            turn: id,
            sequences: vec![0; plan.partitions as usize],
            filling: (0..plan.partitions).map(|_| None).collect(),
            begun: Vec::new(),
        };
        let bytes = plan.value_bytes();
        let live = std::iter::repeat_n(Received::beginning_late(shared.run), share.subscribers);
        let replayed = std::iter::repeat_n(Received::new(shared.run), share.replayers);
        Self {
            shared,
            publishers: share.publishers.iter().map(publisher).collect(),
            listed: VecDeque::new(),
            waiting: 0,
            is_held: false,
            held_ns: 0,
            in_flight: Vec::new(),
            free: Vec::new(),
            filling: (0..bytes).map(|i| (i % 251) as u8).collect(),
            spare: Vec::new(),
            lanes: HashMap::new(),
            local: (0..)
                .zip(&share.publishers)
                .map(|(n, &id)| (id, n))
                .collect(),
            seen: Seen {
                received: live.chain(replayed).collect(),
                cells: plan.cells(),
                scheduled: 0,
                last_ack_ns: 0,
                ended_ns: 0,
                unsent: 0,
                refusal: None,
                error: None,
            },
            times: Times::default(),
            second: 0,
            post,
            moved_ns: 0,
            is_replaying: false,
            measured: 0..0,
            live: share.subscribers,
            is_publishing: !share.publishers.is_empty(),
            is_reading: true,
            is_too_late: false,
        }
    }

    fn connect_and_run(&mut self, share: &Share, target: &dyn Target) -> Result<(), BenchError> {
        let shared = self.shared;
        let mut live = target.subscribers(share.subscribers)?;
        let mut replay = target.subscribers(share.replayers)?;
        let mut publish = target.publishers(share.publishers.len())?;
        live.subscribe(From::Latest)?;
        self.await_answers(&mut *live)?;
        shared.connected();
        while shared.start_ns.load(Ordering::Acquire) == 0 {
            if shared.is_stopped() {
                return Ok(());
            }
            std::thread::yield_now();
        }
        let start_ns = shared.start_ns.load(Ordering::Acquire);
        let measured_ns = start_ns + shared.plan.warm_up.as_nanos() as u64;
        self.measured = measured_ns..measured_ns + shared.plan.duration.as_nanos() as u64;
        self.moved_ns = start_ns;
        let shape = shared.plan.shape();
        let mut arrivals = Arrivals::new(shape, shared.feed).peekable();
        let mut next_look_ns = 0;
        loop {
            let mut busy = false;
            if self.is_publishing {
                busy |= self.take_due(start_ns, &mut arrivals);
                busy |= self.pump(&mut *publish)?;
            }
            busy |= publish.turn(&mut |token, verdict| self.verdict(token, verdict.err()))?;
            busy |= live.turn(&mut |n, partition, value| self.arrived(n, partition, value))?;
            if self.is_replaying {
                let first = share.subscribers;
                busy |= replay
                    .turn(&mut |n, partition, value| self.arrived(first + n, partition, value))?;
            }
            let now_ns = shared.now_ns();
            if share.replayers > 0 && !self.is_replaying && self.may_replay(now_ns) {
                replay.subscribe(From::Earliest)?;
                self.is_replaying = true;
            }
            if !busy {
                std::thread::yield_now();
            }
            if shared.is_stopped() {
                return Ok(());
            }
            if now_ns >= next_look_ns {
                next_look_ns = now_ns + LOOK_EVERY_NS;
                if now_ns > self.measured.end + shared.plan.drain.as_nanos() as u64 {
                    self.is_too_late = true;
                    self.give_up_waiting();
                }
                if self.is_over(now_ns, arrivals.peek().is_none()) {
                    let unanswered = replay.unanswered().map(|server| {
                        let patience = shared.plan.drain;
                        BenchError::unanswered(server, patience)
                    });
                    return unanswered.map_or(Ok(()), Err);
                }
            }
        }
    }

    /// Replayers begin when measuring does, who reads back when all is published.
    fn may_replay(&self, now_ns: u64) -> bool {
        match self.shared.plan.reads_back() {
            true => !self.shared.is_publishing(),
            false => now_ns >= self.measured.start,
        }
    }

    /// Waits until all are subscribed, or the end was asked for.
    fn await_answers(&mut self, side: &mut dyn SubscribeSide) -> Result<(), BenchError> {
        let (asked, patience) = (Instant::now(), self.shared.plan.drain);
        while let Some(server) = side.unanswered()
            && !self.shared.is_stopped()
        {
            if asked.elapsed() > patience {
                return Err(BenchError::unanswered(server, patience));
            }
            if !side.turn(&mut |n, partition, value| self.arrived(n, partition, value))? {
                std::thread::yield_now();
            }
        }
        Ok(())
    }

    /// Begins the second of a moment: hands the times of the one before over, and goes on with empty ones.
    fn at(&mut self, now_ns: u64) {
        let second = now_ns.saturating_sub(self.measured.start) / 1_000_000_000;
        let reads_back = self.is_replaying && self.shared.plan.reads_back();
        if second <= self.second || reads_back || self.measured.is_empty() {
            return;
        }
        let post = self.post;
        let empty = post.empty.try_recv().unwrap_or_default();
        let full = std::mem::replace(&mut self.times, empty);
        // Without anybody to add up there is nobody to report to either.
        let _ = post.full.send((post.worker, self.second, full));
        self.second = second;
    }

    /// What waits to be sent is not sent any more.
    fn give_up_waiting(&mut self) {
        self.seen.unsent += std::mem::take(&mut self.waiting);
        for n in self.listed.drain(..) {
            let publisher = &mut self.publishers[n];
            publisher.is_listed = false;
            publisher.backlog.clear();
            for partition in publisher.begun.drain(..) {
                publisher.filling[partition as usize] = None;
            }
        }
    }

    /// Who sends a record, if it is one of this worker's: a key's records come from one publisher, so
    /// that they stay in order.
    fn publisher_of(&self, due: &Due) -> Option<usize> {
        let plan = self.shared.plan;
        let number = due.key.unwrap_or(due.index / plan.group());
        let id = (number % u64::from(plan.publishers)) as u32;
        self.local.get(&id).map(|&n| n as usize)
    }

    /// Gives what is due to its publishers, as far as there is room; whether anything was.
    fn take_due(
        &mut self,
        start_ns: u64,
        arrivals: &mut std::iter::Peekable<Arrivals<'_>>,
    ) -> bool {
        let (now_ns, group) = (self.shared.now_ns(), self.shared.plan.group());
        self.at(now_ns);
        let most = match self.is_too_late {
            true => GIVEN_UP_IN_A_TURN,
            false => TAKEN_IN_A_TURN,
        };
        let room = self.shared.plan.most_waiting;
        let mut taken = 0;
        while let Some(mut due) = arrivals.next_if(|due| {
            let is_begun = !due.index.is_multiple_of(group);
            let may_begin = taken < most && self.waiting < room;
            start_ns + due.at_ns <= now_ns && (may_begin || is_begun)
        }) {
            taken += 1;
            due.at_ns += start_ns;
            let Some(n) = self.publisher_of(&due) else {
                continue;
            };
            let is_measured = self.measured.contains(&due.at_ns);
            self.seen.scheduled += u64::from(is_measured);
            if self.is_too_late {
                self.seen.unsent += 1;
                continue;
            }
            if is_measured {
                let since_ns = due.at_ns.max(self.held_ns);
                let lag = Duration::from_nanos(now_ns - since_ns);
                self.times.lag.record(lag);
            }
            self.moved_ns = self.moved_ns.max(due.at_ns);
            self.waiting += 1;
            let publisher = &mut self.publishers[n];
            publisher.backlog.push_back(due);
            if !std::mem::replace(&mut publisher.is_listed, true) {
                self.listed.push_back(n);
            }
        }
        if self.is_held && self.waiting >= room {
            // What is due and has to stay in the schedule waits for the broker.
            self.held_ns = now_ns;
        }
        taken > 0
    }

    /// Lets publishers send what they have, as far as they may; whether anything was sent.
    fn pump(&mut self, side: &mut dyn PublishSide) -> Result<bool, BenchError> {
        let mut sent = 0;
        for _ in 0..self.listed.len() {
            if sent >= SENT_IN_A_TURN {
                break;
            }
            let Some(n) = self.listed.pop_front() else {
                break;
            };
            sent += self.pump_one(n, side)?;
            let publisher = &mut self.publishers[n];
            publisher.is_listed = !(publisher.backlog.is_empty() && publisher.begun.is_empty());
            if publisher.is_listed {
                self.listed.push_back(n);
            }
        }
        self.is_held = sent < SENT_IN_A_TURN;
        Ok(sent > 0)
    }

    /// Lets one publisher send. A batch that is not full leaves when there is nothing to fill it with;
    /// one that may not leave yet is filled on.
    fn pump_one(&mut self, n: usize, side: &mut dyn PublishSide) -> Result<usize, BenchError> {
        let batch = self.shared.plan.batch as usize;
        let mut sent = 0;
        while sent < SENT_IN_A_TURN
            && let Some(&due) = self.publishers[n].backlog.front()
        {
            let partition = self.partition(n, &due);
            if !side.may_send(n, partition) {
                break;
            }
            self.publishers[n].backlog.pop_front();
            if self.fill(n, partition, &due) >= batch {
                self.send(n, partition, side)?;
                sent += 1;
            }
        }
        let mut held = 0;
        while let Some(&partition) = self.publishers[n].begun.get(held) {
            if side.may_send(n, partition) {
                self.send(n, partition, side)?;
                sent += 1;
            } else {
                held += 1;
            }
        }
        Ok(sent)
    }

    /// The partition of a record: by its key as any Kafka client would choose, else in turn.
    fn partition(&self, n: usize, due: &Due) -> u32 {
        let plan = self.shared.plan;
        match due.key {
            _ if plan.partitions == 1 => 0,
            Some(key) => murmur2::partition_for_key(key.to_string().as_bytes(), plan.partitions),
            None => self.publishers[n].turn % plan.partitions,
        }
    }

    /// Adds a record to its partition's batch; how many the batch has now.
    fn fill(&mut self, n: usize, partition: u32, due: &Due) -> usize {
        let plan = self.shared.plan;
        let publisher = &mut self.publishers[n];
        let slot = &mut publisher.filling[partition as usize];
        let lent = slot.get_or_insert_with(|| {
            publisher.begun.push(partition);
            self.spare.pop().unwrap_or(Lent {
                keys: Vec::new(),
                values: Vec::new(),
                dues: Vec::new(),
            })
        });
        let start = lent.values.len();
        lent.values.extend_from_slice(&self.filling);
        let value = &mut lent.values[start..];
        if plan.is_feed_sized()
            && let (Some(at), Some(feed)) = (due.message, self.shared.feed)
        {
            value[STAMP_BYTES..STAMP_BYTES + RECORD_BYTES]
                .copy_from_slice(&feed.messages()[at].record);
        }
        let sequence = &mut publisher.sequences[partition as usize];
        Stamp {
            run: self.shared.run,
            publisher: publisher.id,
            partition,
            sequence: *sequence,
            due_ns: if self.measured.contains(&due.at_ns) {
                due.at_ns
            } else {
                NOT_TIMED
            },
        }
        .write(value);
        *sequence += 1;
        lent.keys.push(due.key);
        lent.dues.push(due.at_ns);
        lent.keys.len()
    }

    fn send(
        &mut self,
        n: usize,
        partition: u32,
        side: &mut dyn PublishSide,
    ) -> Result<(), BenchError> {
        let publisher = &mut self.publishers[n];
        let Some(mut lent) = publisher.filling[partition as usize].take() else {
            return Ok(());
        };
        publisher.begun.retain(|&begun| begun != partition);
        // Without keys partitions take turns batch by batch.
        publisher.turn = publisher.turn.wrapping_add(1);
        let index = self.free.pop().unwrap_or_else(|| {
            self.in_flight.push(InFlight::default());
            self.in_flight.len() as u32 - 1
        });
        let entry = &mut self.in_flight[index as usize];
        entry.publisher = n as u32;
        entry.partition = partition;
        entry.dues.clear();
        entry.dues.append(&mut lent.dues);
        entry.sent_ns = self.shared.now_ns();
        self.moved_ns = entry.sent_ns;
        self.waiting -= lent.keys.len() as u64;
        let lane = (self.publishers[n].id, partition);
        self.lanes.entry(lane).or_default().sent += lent.keys.len() as u64;
        let outgoing = Outgoing {
            keys: &lent.keys,
            values: &lent.values,
            value_bytes: self.filling.len(),
        };
        let result = side.send(u64::from(index), n, partition, outgoing);
        lent.keys.clear();
        lent.values.clear();
        self.spare.push(lent);
        result
    }

    fn verdict(&mut self, token: u64, refusal: Option<&str>) {
        let now_ns = self.shared.now_ns();
        self.moved_ns = now_ns;
        self.at(now_ns);
        let Some(entry) = self.in_flight.get_mut(token as usize) else {
            return;
        };
        if entry.dues.is_empty() || !self.is_publishing {
            return;
        }
        let count = entry.dues.len() as u64;
        let lane = (
            self.publishers[entry.publisher as usize].id,
            entry.partition,
        );
        let sent = self.lanes.entry(lane).or_default();
        if let Some(why) = refusal {
            sent.refused += count;
            self.seen.refusal.get_or_insert_with(|| why.to_owned());
        } else {
            sent.acked += count;
            self.shared.acked.fetch_add(count, Ordering::Relaxed);
            let service = Duration::from_nanos(now_ns - entry.sent_ns);
            for &due_ns in &entry.dues {
                if self.measured.contains(&due_ns) {
                    let latency = Duration::from_nanos(now_ns - due_ns);
                    self.times.latency.record(latency);
                    self.times.service.record(service);
                    let from = self.measured.start;
                    self.seen.last_ack_ns = now_ns - from;
                    self.seen.cells.acked(due_ns - from, now_ns - from);
                }
            }
        }
        entry.dues.clear();
        self.free.push(token as u32);
    }

    fn arrived(&mut self, n: usize, partition: u32, value: &[u8]) {
        let now_ns = self.shared.now_ns();
        self.moved_ns = now_ns;
        self.at(now_ns);
        let Some(stamp) = self.seen.received[n].take(partition, value) else {
            return;
        };
        if stamp.due_ns != NOT_TIMED && n < self.live {
            let latency = Duration::from_nanos(now_ns.saturating_sub(stamp.due_ns));
            self.times.end_to_end.record(latency);
            let from = self.measured.start;
            self.seen
                .cells
                .delivered(stamp.due_ns - from, now_ns - from);
        }
    }

    /// Whether nobody has anything more to publish or to read.
    fn is_over(&mut self, now_ns: u64, is_all_due: bool) -> bool {
        if self.is_publishing && is_all_due && (self.is_settled() || self.is_silent(now_ns)) {
            self.end_publishing();
            self.moved_ns = now_ns;
        }
        if self.is_publishing {
            return false;
        }
        if self.shared.is_publishing() {
            // Silence counts from when the last has published.
            self.moved_ns = now_ns;
            return false;
        }
        if self.is_reading && (self.is_silent(now_ns) || self.has_read_all()) {
            self.is_reading = false;
            self.shared.reading.fetch_sub(1, Ordering::AcqRel);
        }
        self.shared.reading.load(Ordering::Acquire) == 0
    }

    /// Whether all that was due is sent and has an outcome.
    fn is_settled(&self) -> bool {
        self.waiting == 0 && self.free.len() == self.in_flight.len()
    }

    /// Whether it is too long ago that anything was due, sent or heard.
    fn is_silent(&self, now_ns: u64) -> bool {
        let drain_ns = self.shared.plan.drain.as_nanos() as u64;
        now_ns.saturating_sub(self.moved_ns) > drain_ns
    }

    fn has_read_all(&self) -> bool {
        let Ok(sent) = self.shared.sent.lock() else {
            return true;
        };
        let (live, replayed) = self.seen.received.split_at(self.live);
        live.iter().chain(replayed).all(|r| r.has_all(&sent))
            && replayed.iter().all(|r| r.has_all(&self.shared.preloaded))
    }

    /// Tells everybody what was sent. Once.
    fn end_publishing(&mut self) {
        if !std::mem::take(&mut self.is_publishing) {
            return;
        }
        self.give_up_waiting();
        let lanes = std::mem::take(&mut self.lanes);
        if let Ok(mut sent) = self.shared.sent.lock() {
            sent.extend(lanes);
        }
        self.shared.publishing.fetch_sub(1, Ordering::Release);
    }
}
