//! A load that does not wait for the broker. A schedule fixes when each record is due, and its time
//! runs from then, whether or not the generator could send it: a broker that stalls for a second shows
//! as all the records that were due in that second, and not as one slow answer.
//!
//! [`Plan`] says what, [`run`] does it to a [`target::Target`], [`Outcome`] is what came of it. Each
//! record is accounted for ([`ledger`]). What makes a measurement count is judged in [`crate::report`].

#[cfg(test)]
mod fake;
pub mod ledger;
mod preload;
pub mod ringtide;
pub mod schedule;
pub mod stamp;
pub mod target;
#[cfg(test)]
mod tests;
pub mod timing;
mod worker;

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use ringtide_client::{BatchBuilder, Codec};
use ringtide_schema::limits::{MAX_BATCH_BYTES, MAX_PARTITIONS};

use crate::cpu;
use crate::error::BenchError;
use crate::feed::{Feed, RECORD_BYTES};
use ledger::Balance;
use schedule::{Keys, Schedule, Shape};
use stamp::STAMP_BYTES;
use target::Target;
use timing::{Cells, Second, Times};
use worker::{Post, Seen, Share, Shared};

/// No schedule has more.
const MAX_RATE_PER_S: f64 = 1e8;
/// How soon it is seen that everybody is connected: nothing is measured before that.
const CONNECTING_LOOK: Duration = Duration::from_millis(1);
/// How often [`Progress`] is reported, and an interruption noticed.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);
/// A second is closed when the one after so many has come from somewhere.
const LATE_SECONDS: u64 = 3;

/// How large records are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// All as large; at least [`STAMP_BYTES`].
    Bytes(usize),
    /// As large as the feed's, and the stamp.
    Feed,
}

/// What is done to the broker.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What a record's value has.
    pub size: Size,
    /// How records are spread over time.
    pub schedule: Schedule,
    /// Records a second, in all.
    pub rate_per_s: f64,
    /// Keys.
    pub keys: Keys,
    /// Publishers, each with connections of its own.
    pub publishers: u32,
    /// Subscribers from the beginning on, each to everything.
    pub subscribers: u32,
    /// Subscribers that begin with the first record when measuring begins.
    pub replayers: u32,
    /// Bytes of values that are there before the run.
    pub preload_bytes: u64,
    /// Partitions of the topic.
    pub partitions: u32,
    /// Records of a batch, at the most; so many come due at once.
    pub batch: u32,
    /// How long is measured.
    pub duration: Duration,
    /// How long is published before that.
    pub warm_up: Duration,
    /// How long is waited for answers and deliveries when nothing arrives any more, and how long what
    /// was due in time may still be sent after the end of the schedule.
    pub drain: Duration,
    /// How much faster than recorded a feed is played.
    pub speed: f64,
    /// Longer silences of a feed are cut to this.
    pub max_silence: Duration,
    /// Threads of the generator, each on one of these CPUs; at least one.
    pub cpus: Vec<Option<usize>>,
    /// Whether everything is read back when there are no subscribers.
    pub verify: bool,
    /// Whether tenths of a second are told apart: for runs of hours they are many.
    pub timeline: bool,
    /// Records of a thread that are due and may not be sent yet, at the most; those beyond wait in the
    /// schedule.
    pub most_waiting: u64,
    /// Chooses among schedules of the same shape.
    pub seed: u64,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            size: Size::Bytes(128),
            schedule: Schedule::Constant,
            rate_per_s: 10_000.0,
            keys: Keys::None,
            publishers: 1,
            subscribers: 1,
            replayers: 0,
            preload_bytes: 0,
            partitions: 1,
            batch: 1,
            duration: Duration::from_secs(10),
            warm_up: Duration::from_secs(1),
            drain: Duration::from_secs(10),
            speed: 1.0,
            max_silence: Duration::from_secs(1),
            cpus: vec![None],
            verify: true,
            timeline: true,
            most_waiting: 1 << 20,
            seed: 1,
        }
    }
}

impl Plan {
    /// Bytes of each record's value.
    #[must_use]
    pub fn value_bytes(&self) -> usize {
        match self.size {
            Size::Bytes(bytes) => bytes,
            Size::Feed => STAMP_BYTES + RECORD_BYTES,
        }
    }

    fn is_feed_sized(&self) -> bool {
        self.size == Size::Feed
    }

    /// Records that come due at once.
    fn group(&self) -> u64 {
        match self.schedule {
            Schedule::Feed => 1,
            _ => self.batch.into(),
        }
    }

    /// Whether somebody begins to read when all is published, because nobody else reads.
    fn reads_back(&self) -> bool {
        self.verify && self.subscribers == 0 && self.replayers == 0
    }

    fn cells(&self) -> Cells {
        Cells::new(match self.timeline {
            true => self.duration.as_nanos() as u64,
            false => 0,
        })
    }

    fn shape(&self) -> Shape {
        Shape {
            schedule: self.schedule,
            rate_per_s: self.rate_per_s,
            group: self.group(),
            end_ns: (self.warm_up + self.duration).as_nanos() as u64,
            speed: self.speed,
            max_silence_ns: self.max_silence.as_nanos() as u64,
            keys: self.keys,
            seed: self.seed,
        }
    }

    /// Whether it can be done at all.
    ///
    /// # Errors
    /// What cannot be, and what would do.
    pub fn check(&self, feed: Option<&Feed>) -> Result<(), BenchError> {
        let refuse = |why: String| Err(BenchError::Usage(why));
        if self.value_bytes() < STAMP_BYTES {
            return refuse(format!(
                "a record has at least {STAMP_BYTES} bytes: those that account for it"
            ));
        }
        let batch_bytes = match self.value_bytes() {
            bytes if bytes > MAX_BATCH_BYTES => bytes,
            bytes => BatchBuilder::new(Codec::None).bytes_with(20, bytes, &[]),
        };
        if batch_bytes.saturating_mul(self.batch.max(1) as usize) > MAX_BATCH_BYTES {
            return refuse(format!(
                "{} records of {} bytes do not fit into a batch, of at most {MAX_BATCH_BYTES} bytes: \
                 give fewer or smaller ones",
                self.batch,
                self.value_bytes()
            ));
        }
        let wants_feed =
            self.schedule == Schedule::Feed || self.keys == Keys::Feed || self.size == Size::Feed;
        if wants_feed && feed.is_none() {
            return refuse("a feed's times, keys or sizes need a feed: give --feed".into());
        }
        if self.schedule != Schedule::Feed
            && !(self.rate_per_s > 0.0 && self.rate_per_s <= MAX_RATE_PER_S)
        {
            return refuse(format!(
                "a rate of {} records a second is impossible: give more than 0 and at most 100 million",
                self.rate_per_s
            ));
        }
        if !(self.speed > 0.0 && self.speed.is_finite()) {
            return refuse(format!("a feed is not played at the speed {}", self.speed));
        }
        if let (Schedule::Feed, Some(feed)) = (self.schedule, feed)
            && self.shape().rate_of(feed) > MAX_RATE_PER_S
        {
            return refuse(
                "the feed would be played at more than 100 million records a second: give a lower \
                 --speed or a longer --max-silence"
                    .into(),
            );
        }
        if let Schedule::Bursts(burst) = self.schedule
            && u64::from(self.batch) > burst
        {
            return refuse(format!(
                "a batch of {} records does not fit into a burst of {burst}: give a smaller one",
                self.batch
            ));
        }
        if self.duration.is_zero() || self.publishers == 0 || self.batch == 0 {
            return refuse("duration, publishers and batch are more than 0".into());
        }
        if self.drain.is_zero() {
            return refuse("a drain of 0 s waits for no answer: give more".into());
        }
        if !(1..=MAX_PARTITIONS).contains(&self.partitions) {
            return refuse(format!("a topic has 1 to {MAX_PARTITIONS} partitions"));
        }
        if self.cpus.is_empty() {
            return refuse("the generator needs a thread".into());
        }
        Ok(())
    }
}

/// How far a run is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// What is being done.
    pub phase: &'static str,
    /// How long the schedule has run, warm-up included.
    pub elapsed: Duration,
    /// How long it runs in all.
    pub total: Duration,
    /// Records acknowledged by now.
    pub acked: u64,
}

/// Who is told how far a run is, and may ask for its end.
pub trait Watch {
    /// Called ten times a second.
    fn progress(&mut self, progress: Progress) -> ControlFlow<()>;
    /// Called once for each second that is complete, with its times.
    fn second(&mut self, _second: &Second, _times: &Times) {}
    /// Called when measuring begins and when it ends, behind the progress of that moment.
    fn measuring(&mut self, _is_measuring: bool) {}
}

/// What came of a run, whole or not.
#[derive(Debug)]
pub struct Outcome {
    /// All times.
    pub times: Times,
    /// Second by second.
    pub seconds: Vec<Second>,
    /// Tenth by tenth.
    pub cells: Cells,
    /// Records due while it was measured; if it was cut short, those that the generator had turned to.
    pub scheduled: u64,
    /// How long it was measured: less than planned if it was cut short.
    pub measured: Duration,
    /// How long those took to be acknowledged, from the beginning of measuring to the last; at least
    /// as long as was measured.
    pub elapsed: Duration,
    /// Every record accounted for.
    pub balance: Balance,
    /// Bytes of values that replayers were given.
    pub replayed: u64,
    /// Whether deliveries were verified, by subscribers or by reading back.
    pub is_verified: bool,
    /// What the broker said when it refused a record first.
    pub refusal: Option<String>,
    /// What ended it before its time.
    pub error: Option<BenchError>,
}

/// Does what the plan says.
///
/// # Errors
/// When the plan cannot be, or what is to be there before could not be published, or a thread of the
/// generator could not be placed or panicked. What else ends it is in the outcome.
pub fn run(
    plan: &Plan,
    feed: Option<&Feed>,
    target: &dyn Target,
    watch: &mut dyn Watch,
) -> Result<Outcome, BenchError> {
    plan.check(feed)?;
    let run = fastrand::u32(1..);
    // Without acknowledgements what has left may still be on its way: no connection ends before all is
    // read.
    let mut preloading = target.publishers(usize::from(plan.preload_bytes > 0))?;
    let preloaded = preload::preload(plan, run, &mut *preloading, watch)?;
    let shares = shares(plan);
    let shared = Shared {
        plan,
        feed,
        run,
        epoch: Instant::now(),
        start_ns: AtomicU64::new(0),
        connecting: AtomicUsize::new(shares.len()),
        stop: AtomicBool::new(false),
        publishing: AtomicUsize::new(shares.iter().filter(|s| !s.publishers.is_empty()).count()),
        reading: AtomicUsize::new(shares.len()),
        sent: Mutex::new(HashMap::new()),
        preloaded,
        acked: AtomicU64::new(0),
    };
    let (full, seconds) = mpsc::channel();
    let mut adder = Adder::default();
    let (mut seen, interrupted) = std::thread::scope(|scope| {
        let mut workers = Vec::new();
        for (n, share) in shares.iter().enumerate() {
            let (back, empty) = mpsc::channel();
            adder.back.push(back);
            let post = Post {
                worker: n,
                full: full.clone(),
                empty,
            };
            let shared = &shared;
            let cpu = plan.cpus[n % plan.cpus.len()];
            workers.push(scope.spawn(move || {
                let pinned = cpu.map_or(Ok(()), cpu::pin);
                (worker::run(shared, share, target, &post), pinned)
            }));
        }
        drop(full);
        let interrupted = watch_over(&shared, &seconds, &mut adder, watch);
        let seen: Vec<Result<Seen, BenchError>> = workers
            .into_iter()
            .map(|worker| match worker.join() {
                Ok((seen, Ok(()))) => Ok(seen),
                Ok((_, Err(error))) => Err(BenchError::io("cannot place the generator")(error)),
                Err(_) => Err(BenchError::Wrong(
                    "a thread of the generator panicked".into(),
                )),
            })
            .collect();
        (seen, interrupted)
    });
    let seen = seen.drain(..).collect::<Result<Vec<Seen>, _>>()?;
    adder.close(u64::MAX, watch);
    Ok(settle(&shared, adder, seen, interrupted))
}

/// Who does what: publishers and subscribers in turn. Who reads back is a late replayer.
fn shares(plan: &Plan) -> Vec<Share> {
    let threads = plan.cpus.len();
    let part = |whole: u32, n: usize| {
        let whole = whole as usize;
        whole / threads + usize::from(n < whole % threads)
    };
    (0..threads)
        .map(|n| Share {
            publishers: (n as u32..plan.publishers).step_by(threads).collect(),
            subscribers: part(plan.subscribers, n),
            replayers: match plan.reads_back() {
                true => usize::from(n == 0),
                false => part(plan.replayers, n),
            },
        })
        .collect()
}

/// Adds the workers' seconds up.
#[derive(Default)]
struct Adder {
    back: Vec<mpsc::Sender<Times>>,
    total: Times,
    open: BTreeMap<u64, Times>,
    closed: Vec<Second>,
}

impl Adder {
    fn take(&mut self, worker: usize, second: u64, mut times: Times, watch: &mut dyn Watch) {
        self.total.add(&times);
        // What comes late counts as of the oldest second that is open.
        let first = self.closed.last().map_or(0, |s| s.at_s + 1);
        self.open.entry(second.max(first)).or_default().add(&times);
        times.clear();
        // A worker that has ended needs none.
        let _ = self.back[worker].send(times);
        if let Some(before) = second.checked_sub(LATE_SECONDS) {
            self.close(before, watch);
        }
    }

    fn close(&mut self, through: u64, watch: &mut dyn Watch) {
        while let Some(entry) = self.open.first_entry() {
            if *entry.key() > through {
                break;
            }
            let (at_s, times) = entry.remove_entry();
            let second = Second::of(at_s, &times);
            watch.second(&second, &times);
            self.closed.push(second);
        }
    }
}

/// Adds up and reports until all workers have ended; whether the end was asked for.
fn watch_over(
    shared: &Shared<'_>,
    seconds: &mpsc::Receiver<(usize, u64, Times)>,
    adder: &mut Adder,
    watch: &mut dyn Watch,
) -> bool {
    let plan = shared.plan;
    let total = plan.warm_up + plan.duration;
    let (mut interrupted, mut phase) = (false, "");
    loop {
        let start = Duration::from_nanos(shared.start_ns.load(Ordering::Acquire));
        let until = |at: Duration| at.checked_sub(shared.epoch.elapsed());
        let ends = [start + plan.warm_up, start + total];
        let next = match start.is_zero() {
            true => Some(CONNECTING_LOOK),
            false => ends.into_iter().filter_map(until).min(),
        };
        match seconds.recv_timeout(PROGRESS_EVERY.min(next.unwrap_or(PROGRESS_EVERY))) {
            Ok((worker, second, times)) => adder.take(worker, second, times, watch),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
        let elapsed = shared.epoch.elapsed().saturating_sub(start);
        let now = match () {
            () if start.is_zero() => "connecting",
            () if elapsed < plan.warm_up => "warming up",
            () if elapsed < total => "measuring",
            () if plan.reads_back() && !shared.is_publishing() => "reading back",
            () => "waiting for the rest",
        };
        let progress = Progress {
            phase: now,
            elapsed: elapsed.min(total),
            total,
            acked: shared.acked.load(Ordering::Relaxed),
        };
        if watch.progress(progress).is_break() {
            interrupted = true;
            shared.stop.store(true, Ordering::Relaxed);
        }
        if now != phase && (now == "measuring" || phase == "measuring") {
            watch.measuring(now == "measuring");
        }
        phase = now;
    }
    if phase == "measuring" {
        watch.measuring(false);
    }
    interrupted
}

/// Draws the balance.
fn settle(shared: &Shared<'_>, adder: Adder, seen: Vec<Seen>, interrupted: bool) -> Outcome {
    let plan = shared.plan;
    let sent = match shared.sent.lock() {
        Ok(mut sent) => std::mem::take(&mut *sent),
        Err(_) => HashMap::new(),
    };
    let mut cells = plan.cells();
    let (mut live, mut replayed) = (Vec::new(), Vec::new());
    let (mut refusal, mut error) = (None, interrupted.then_some(BenchError::Interrupted));
    let (mut scheduled, mut unsent, mut last_ack_ns, mut ended_ns) = (0, 0, 0, 0);
    for (mut seen, share) in seen.into_iter().zip(shares(plan)) {
        replayed.extend(seen.received.split_off(share.subscribers));
        live.append(&mut seen.received);
        cells.add(&seen.cells);
        scheduled += seen.scheduled;
        unsent += seen.unsent;
        last_ack_ns = last_ack_ns.max(seen.last_ack_ns);
        ended_ns = ended_ns.max(seen.ended_ns);
        refusal = refusal.or(seen.refusal);
        error = error.or(seen.error);
    }
    let measured = match (&error, shared.start_ns.load(Ordering::Acquire)) {
        (None, _) => plan.duration,
        (Some(_), 0) => Duration::ZERO,
        (Some(_), start_ns) => {
            let passed = Duration::from_nanos(ended_ns.saturating_sub(start_ns));
            plan.duration.min(passed.saturating_sub(plan.warm_up))
        }
    };
    cells.truncate(measured.as_nanos() as u64);
    let is_verified = !live.is_empty() || !replayed.is_empty();
    if plan.reads_back() && error.is_some() {
        // Nobody knows what would have been read.
        replayed.clear();
    }
    let mut everything = sent.clone();
    everything.extend(&shared.preloaded);
    let mut balance = ledger::balance(&sent, &live);
    let of_replayed = ledger::balance(&everything, &replayed);
    balance.unsent = unsent;
    balance.received += of_replayed.received;
    balance.lost += of_replayed.lost;
    balance.duplicated += of_replayed.duplicated;
    balance.reordered += of_replayed.reordered;
    balance.corrupt += of_replayed.corrupt;
    let acked = balance.acked;
    Outcome {
        times: adder.total,
        seconds: adder.closed,
        cells,
        scheduled,
        measured,
        elapsed: measured.max(Duration::from_nanos(last_ack_ns)),
        balance,
        replayed: of_replayed.received * plan.value_bytes() as u64,
        is_verified,
        refusal,
        error: error.map(|error| error.after(acked)),
    }
}
