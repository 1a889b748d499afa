//! What is said of a run, and whether it counts.
//!
//! The report is the JSON that `ringtide bench --json` writes; its fields are described in
//! docs/BENCH.md. Fields are only ever added under the same `schema_version`.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::latency::{Latency, Recorder};
use crate::limits::Limits;
use crate::machine::{Between, Host};
use crate::open_loop::ledger::Balance;
use crate::open_loop::timing::{CELL_NS, Cell, Second};
use crate::open_loop::{Outcome, Plan};

/// Of the reports that are written.
pub const SCHEMA_VERSION: u32 = 1;
/// A run that achieves less of its target does not count.
const ENOUGH_OF_TARGET: f64 = 0.99;
/// A generator that is later than this, for one record in a hundred, does not count: so much is lost
/// in its own latencies.
const MAX_LAG_NS: u64 = 1_000_000;
/// Of one CPU: more taken by the host's other guests, and the run does not count.
const MAX_STEAL_SHARE: f64 = 0.02;
/// Of one CPU: more taken by other processes, and the run does not count.
const MAX_OTHERS_SHARE: f64 = 0.10;
/// A spinning thread that yields less often in a second does not yield.
const MIN_YIELDS_PER_S: f64 = 100.0;
/// Of a record's p99: more that is the generator's own lateness is said.
const LAG_SHARE: f64 = 0.1;
/// Quantiles, and the share of records beyond them.
const BEYOND: [(&str, f64); 5] = [
    ("p50", 0.5),
    ("p90", 0.1),
    ("p99", 0.01),
    ("p99.9", 0.001),
    ("p99.99", 0.0001),
];
/// Records that took longer than these are counted.
const SLOW_NS: [u64; 4] = [1_000_000, 10_000_000, 100_000_000, 1_000_000_000];
/// Points of the curve of latency by percentile, per half of what is left.
const CURVE_STEPS_PER_HALF: u32 = 4;

/// All that is said of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// "open-loop".
    pub kind: &'static str,
    /// Whether the figures count.
    pub valid: bool,
    /// Why they do not.
    pub reasons: Vec<String>,
    /// What could not be judged, and why.
    pub unchecked: Vec<String>,
    /// What was done.
    pub config: Config,
    /// Where it was done.
    pub environment: Environment,
    /// What the machine can do without a broker; absent when it was not measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<Around>,
    /// From publishing to the acknowledgement.
    pub produce: Produce,
    /// From publishing to the subscriber.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_to_end: Option<EndToEnd>,
    /// The schedule, and how it was kept.
    pub schedule: Kept,
    /// Every record accounted for.
    pub verify: Verified,
    /// What the broker's write-ahead log did meanwhile; absent when it did not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wal: Option<Wal>,
    /// What was read from the beginning meanwhile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replay: Option<Replay>,
    /// Second by second.
    pub series: Series<Second>,
    /// Tenth by tenth.
    pub timeline: Series<Cell>,
    /// Latency by percentile.
    pub percentiles: Percentiles,
}

/// The options of a run, by the names of the command line.
#[derive(Clone, Debug, Serialize)]
pub struct Config {
    /// The workload's name, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    /// What it stands for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub about: Option<String>,
    /// Who was measured.
    pub server: String,
    /// "none", "accepted" or "durable".
    pub acks: String,
    /// "accepted" or "durable".
    pub visible: String,
    /// "none", "lz4" or "zstd".
    pub compression: String,
    /// Bytes of each record's value.
    pub size: usize,
    /// As on the command line.
    pub schedule: String,
    /// As on the command line.
    pub keys: String,
    /// Records a second that were asked for; no matter for a feed.
    pub rate: f64,
    /// Of a feed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub feed: Option<String>,
    /// Of a feed.
    pub speed: f64,
    /// How many.
    pub publishers: u32,
    /// How many.
    pub subscribers: u32,
    /// How many.
    pub replayers: u32,
    /// Bytes.
    pub preload: u64,
    /// How many.
    pub partitions: u32,
    /// Records, at the most.
    pub batch: u32,
    /// In seconds.
    pub duration_s: f64,
    /// In seconds.
    pub warm_up_s: f64,
    /// Of the schedule.
    pub seed: u64,
    /// CPUs of the generator's threads; null: wherever the system likes.
    pub cpus: Vec<Option<usize>>,
}

impl Config {
    /// Of a plan; the rest is for the caller to say.
    #[must_use]
    pub fn of(plan: &Plan) -> Self {
        Self {
            workload: None,
            about: None,
            server: String::new(),
            acks: String::new(),
            visible: String::new(),
            compression: String::new(),
            size: plan.value_bytes(),
            schedule: plan.schedule.to_string(),
            keys: plan.keys.to_string(),
            rate: plan.rate_per_s,
            feed: None,
            speed: plan.speed,
            publishers: plan.publishers,
            subscribers: plan.subscribers,
            replayers: plan.replayers,
            preload: plan.preload_bytes,
            partitions: plan.partitions,
            batch: plan.batch,
            duration_s: plan.duration.as_secs_f64(),
            warm_up_s: plan.warm_up.as_secs_f64(),
            seed: plan.seed,
            cpus: plan.cpus.clone(),
        }
    }
}

/// Where a run took place.
#[derive(Clone, Debug, Serialize)]
pub struct Environment {
    /// When it began, in ms since 1970.
    pub began_unix_ms: u64,
    /// Of the generator.
    pub version: String,
    /// The source that the generator was built from.
    pub commit: String,
    /// Where the generator ran.
    pub host: Host,
    /// "loopback" or "network".
    pub transport: &'static str,
    /// Which process the broker is.
    pub broker_process: BrokerProcess,
    /// The broker, as far as it says; its fields are its own.
    pub broker: serde_json::Value,
    /// What else happened there while it was measured.
    pub meanwhile: Option<Between>,
    /// Whether the device was seen to flush, for acknowledgements that promise it.
    pub flush: Flush,
}

/// Which process the broker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BrokerProcess {
    /// One that ran already.
    Running,
    /// Another, started for the measurement.
    Started,
    /// The generator's.
    Same,
}

/// Whether what was acknowledged as durable could outlive a power cut, as far as it can be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Flush {
    /// The acknowledgements do not promise it.
    NotPromised,
    /// The device has no cache that forgets, or single writes pass it.
    NotNeeded,
    /// The device flushed its cache often enough for what was written.
    Seen,
    /// The device has a cache that forgets, and did not flush it so often.
    Missing,
    /// The device cannot be seen from here.
    Unknown,
}

/// How many took longer than a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Slower {
    /// The time.
    pub than_ns: u64,
    /// Records.
    pub count: u64,
}

/// Publishing.
#[derive(Clone, Debug, Serialize)]
pub struct Produce {
    /// Records due while it was measured and acknowledged.
    pub count: u64,
    /// Of those in a second.
    pub rate_per_s: f64,
    /// Of their values in a second.
    pub bytes_per_s: f64,
    /// From when each was due; absent when none was acknowledged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ns: Option<Latency>,
    /// From when each was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_ns: Option<Latency>,
    /// From when each was due: more than 1, 10, 100 and 1,000 ms.
    pub slower: Vec<Slower>,
}

/// Delivery to subscribers.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct EndToEnd {
    /// Records given to subscribers, all of them together.
    pub count: u64,
    /// From when each was due.
    pub latency_ns: Latency,
}

/// The schedule, and how it was kept.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Kept {
    /// Records that were due in a second.
    pub target_rate_per_s: f64,
    /// Of those, acknowledged in a second.
    pub achieved_rate_per_s: f64,
    /// From when each was due until the generator turned to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag_ns: Option<Latency>,
}

/// Every record accounted for.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Verified {
    /// Whether deliveries were looked at.
    pub complete: bool,
    /// The counts.
    #[serde(flatten)]
    pub balance: Balance,
}

/// What the write-ahead log did while it was measured.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Wal {
    /// Writes.
    pub writes: u64,
    /// Bytes, padding included.
    pub bytes: u64,
    /// Log entries: batches and what else is logged.
    pub entries: u64,
    /// Records of the measurement for each write.
    pub records_per_write: f64,
    /// Bytes for each write.
    pub bytes_per_write: f64,
}

impl Wal {
    /// From counts, and the records that were acknowledged meanwhile.
    #[must_use]
    pub fn new(writes: u64, bytes: u64, entries: u64, records: u64) -> Self {
        let per_write = |count: u64| count as f64 / writes.max(1) as f64;
        Self {
            writes,
            bytes,
            entries,
            records_per_write: per_write(records),
            bytes_per_write: per_write(bytes),
        }
    }
}

/// Reading from the beginning.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Replay {
    /// Bytes of values that were read, by all replayers.
    pub bytes: u64,
}

/// The limits that a run is compared with, just before it and just after.
#[derive(Clone, Debug, Serialize)]
pub struct Around {
    /// Before.
    #[serde(flatten)]
    pub before: Limits,
    /// After.
    pub after: Limits,
    /// From sending to the acknowledgement, to what the machine needs for the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratios: Option<Ratios>,
}

/// A run's times as multiples of a limit's: against the one before and the one after.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ratios {
    /// The sum of these limits is 1.
    pub reference: &'static str,
    /// Of p50.
    pub p50: (f64, f64),
    /// Of p99.
    pub p99: (f64, f64),
}

impl Around {
    fn new(before: &Limits, after: &Limits, is_durable: bool, service: Option<Latency>) -> Self {
        let at = |limits: &Limits, quantile: fn(&Latency) -> u64| -> Option<f64> {
            let echo = quantile(&limits.tcp_echo_ns?) as f64;
            match is_durable {
                true => Some(echo + quantile(&limits.durable_write_ns?) as f64),
                false => Some(echo),
            }
        };
        let both = |quantile: fn(&Latency) -> u64| -> Option<(f64, f64)> {
            let of = quantile(&service?) as f64;
            Some((of / at(before, quantile)?, of / at(after, quantile)?))
        };
        let ratios = both(|l| l.p50).zip(both(|l| l.p99));
        Self {
            before: before.clone(),
            after: after.clone(),
            ratios: ratios.map(|(p50, p99)| Ratios {
                reference: match is_durable {
                    true => "durable write and echo",
                    false => "echo",
                },
                p50,
                p99,
            }),
        }
    }
}

/// Points in time.
#[derive(Clone, Debug, Serialize)]
pub struct Series<T> {
    /// From one to the next.
    pub interval_s: f64,
    /// From the first on.
    pub points: Vec<T>,
}

/// Curves of latency by percentile: pairs of percentile and ns.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Percentiles {
    /// Of publishing.
    pub produce: Vec<(f64, u64)>,
    /// Of publishing, from when it was sent.
    pub service: Vec<(f64, u64)>,
    /// Of delivery.
    pub end_to_end: Vec<(f64, u64)>,
}

/// What a run is judged by, beside its outcome.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The options.
    pub config: Config,
    /// Where it was.
    pub environment: Environment,
    /// The broker, if its process was found on this machine.
    pub broker: Option<BrokerHere>,
    /// What the machine could do just before and just after.
    pub limits: Option<(Limits, Limits)>,
    /// Why they could not be measured after the run.
    pub limits_failed: Option<String>,
    /// Of the write-ahead log.
    pub wal: Option<Wal>,
}

/// What is seen of a broker on this machine.
#[derive(Clone, Debug, Default)]
pub struct BrokerHere {
    /// The CPUs of its threads that never sleep.
    pub spinning_cpus: Vec<usize>,
    /// Whether the limits are of the device that its log is on.
    pub limits_apply: bool,
}

impl Facts {
    fn is_durable(&self) -> bool {
        self.config.acks == "durable"
    }

    /// Whether service times are to be held against the limits: those of another machine, or of another
    /// disk, say nothing.
    fn limits_apply(&self) -> bool {
        let broker = self.broker.as_ref();
        broker.is_some_and(|broker| broker.limits_apply || !self.is_durable())
    }
}

impl Report {
    /// Judges an outcome.
    #[must_use]
    pub fn new(plan: &Plan, outcome: &Outcome, facts: Facts) -> Self {
        let times = &outcome.times;
        let elapsed_s = outcome.elapsed.as_secs_f64();
        // Of what was cut short before measuring began there is no rate.
        let per_s = |count: u64, seconds: f64| match seconds > 0.0 {
            true => count as f64 / seconds,
            false => 0.0,
        };
        let rate = |count: u64| per_s(count, elapsed_s);
        let count = times.latency.count();
        let produce = Produce {
            count,
            rate_per_s: rate(count),
            bytes_per_s: rate(count) * plan.value_bytes() as f64,
            latency_ns: times.latency.summary(),
            service_ns: times.service.summary(),
            slower: SLOW_NS
                .iter()
                .map(|&ns| slower(&times.latency, ns))
                .collect(),
        };
        let schedule = Kept {
            target_rate_per_s: per_s(outcome.scheduled, outcome.measured.as_secs_f64()),
            achieved_rate_per_s: rate(count),
            lag_ns: times.lag.summary(),
        };
        let end_to_end = times.end_to_end.summary().map(|latency_ns| EndToEnd {
            count: times.end_to_end.count(),
            latency_ns,
        });
        let limits = facts.limits.as_ref().map(|(before, after)| {
            let service = produce.service_ns.filter(|_| facts.limits_apply());
            Around::new(before, after, facts.is_durable(), service)
        });
        let reasons = reasons(&schedule, &produce, outcome, &facts);
        let unchecked = unchecked(&schedule, &produce, &facts);
        Self {
            schema_version: SCHEMA_VERSION,
            kind: "open-loop",
            valid: reasons.is_empty(),
            reasons,
            unchecked,
            config: facts.config,
            environment: facts.environment,
            limits,
            produce,
            end_to_end,
            schedule,
            verify: Verified {
                complete: outcome.is_verified && outcome.error.is_none(),
                balance: outcome.balance,
            },
            wal: facts.wal,
            replay: (plan.replayers > 0).then_some(Replay {
                bytes: outcome.replayed,
            }),
            series: Series {
                interval_s: 1.0,
                points: outcome.seconds.clone(),
            },
            timeline: Series {
                interval_s: CELL_NS as f64 / 1e9,
                points: outcome.cells.as_slice().to_vec(),
            },
            percentiles: Percentiles {
                produce: curve(&times.latency),
                service: curve(&times.service),
                end_to_end: curve(&times.end_to_end),
            },
        }
    }
}

impl Report {
    /// Whether the target was achieved, and nothing that was due left out.
    #[must_use]
    pub fn is_achieved(&self) -> bool {
        let is_whole = self.verify.balance.unsent == 0;
        is_whole && self.schedule.target_rate_per_s > 0.0 && self.schedule.is_achieved()
    }

    /// Whether the generator kept its schedule.
    #[must_use]
    pub fn is_in_time(&self) -> bool {
        self.schedule.is_in_time()
    }

    /// Whether somebody else took time of the machine: the same run may go better another time.
    #[must_use]
    pub fn was_disturbed(&self) -> bool {
        let meanwhile = self.environment.meanwhile.as_ref();
        meanwhile.is_some_and(|m| took_too_much(m) != [false; 2])
    }
}

impl Kept {
    fn is_achieved(&self) -> bool {
        self.achieved_rate_per_s >= ENOUGH_OF_TARGET * self.target_rate_per_s
    }

    fn is_in_time(&self) -> bool {
        self.lag_ns.is_none_or(|lag| lag.p99 <= MAX_LAG_NS)
    }
}

/// Why a run does not count.
fn reasons(schedule: &Kept, produce: &Produce, outcome: &Outcome, facts: &Facts) -> Vec<String> {
    let mut reasons = Vec::new();
    if let Some(error) = &outcome.error {
        reasons.push(error.to_string());
    }
    if let Some(refusal) = &outcome.refusal {
        reasons.push(format!("the broker refused records: {refusal}"));
    }
    reasons.extend(outcome.balance.faults(outcome.error.is_none()));
    let (target, achieved) = (schedule.target_rate_per_s, schedule.achieved_rate_per_s);
    if outcome.scheduled == 0 {
        reasons.push("nothing was due while it was measured: measure longer".into());
    } else if !schedule.is_achieved() {
        reasons.push(format!(
            "{achieved:.0} records a second were achieved, {:.1} % of the target of {target:.0}",
            100.0 * achieved / target
        ));
    }
    if let Some(lag) = schedule.lag_ns.filter(|_| !schedule.is_in_time()) {
        reasons.push(format!(
            "the generator did not keep its schedule: one record in a hundred was turned to {} us \
             late or more; give it more --cpus, or less to do",
            lag.p99 / 1000
        ));
    }
    reasons.extend(disturbances(facts));
    if facts.environment.flush == Flush::Missing {
        reasons.push(
            "records were acknowledged as durable and the device's volatile cache was not flushed"
                .into(),
        );
    }
    if let Some(why) = &facts.limits_failed {
        reasons.push(format!(
            "the limits of the machine could not be measured after the run: {why}"
        ));
    }
    reasons.extend(too_soon(produce, facts));
    reasons
}

/// That records were acknowledged before they can have been written.
fn too_soon(produce: &Produce, facts: &Facts) -> Option<String> {
    let (before, after) = facts.limits.as_ref()?;
    let writes = [before, after].map(|limits| limits.durable_write_ns);
    let shortest = writes.into_iter().flatten().map(|write| write.min).min()?;
    let half = produce.service_ns?.p50;
    (facts.is_durable() && facts.limits_apply() && half < shortest / 2).then(|| {
        format!(
            "half of the records were acknowledged as durable within {} us, and the device takes {} us \
             for the shortest durable write: they cannot have been on stable storage",
            half / 1000,
            shortest / 1000
        )
    })
}

/// Whether the host and other processes took more of a CPU than they may.
fn took_too_much(between: &Between) -> [bool; 2] {
    let tells = between.tells_shares();
    [
        tells && between.steal_share > MAX_STEAL_SHARE,
        tells && between.others_share > Some(MAX_OTHERS_SHARE),
    ]
}

/// What of the machine was in the way.
fn disturbances(facts: &Facts) -> Vec<String> {
    let mut reasons = crowded(facts);
    let Some(between) = &facts.environment.meanwhile else {
        reasons.push(
            "what else the machine did is not known: it was not looked at while it was measured"
                .into(),
        );
        return reasons;
    };
    let percent = |share: f64| 100.0 * share;
    let [host, others] = took_too_much(between);
    if host {
        reasons.push(format!(
            "the machine's host gave {:.0} % of a CPU's time to others",
            percent(between.steal_share)
        ));
    }
    if let Some(share) = between.others_share.filter(|_| others) {
        reasons.push(format!(
            "other processes took {:.0} % of a CPU's time",
            percent(share)
        ));
    }
    for (cpu, yields) in spinning_cpus(facts)
        .iter()
        .map(|&cpu| (cpu, yields(between, cpu)))
    {
        if let Some(yields) = yields.filter(|&yields| yields < MIN_YIELDS_PER_S) {
            reasons.push(format!(
                "a thread spins on CPU {cpu} and yields only {yields:.0} times a second: the kernel's own \
                 threads there, which end disk writes, have to wait for it"
            ));
        }
    }
    reasons
}

/// CPUs on which the broker spins, as far as it is here.
fn spinning_cpus(facts: &Facts) -> &[usize] {
    facts
        .broker
        .as_ref()
        .map_or(&[], |broker| &broker.spinning_cpus)
}

fn yields(between: &Between, cpu: usize) -> Option<f64> {
    between.yields_per_s.as_ref()?.get(cpu).copied()
}

/// Threads that never sleep and have no CPU to themselves: the generator's, and those of a broker that
/// spins.
fn crowded(facts: &Facts) -> Vec<String> {
    let advice = "give the broker --idle adaptive, or the generator other --cpus";
    let mut on: BTreeMap<usize, usize> = BTreeMap::new();
    let (generator, broker) = (&facts.config.cpus, spinning_cpus(facts));
    for &cpu in generator.iter().flatten().chain(broker) {
        *on.entry(cpu).or_default() += 1;
    }
    on.retain(|_, count| *count > 1);
    let shared = on
        .iter()
        .map(|(cpu, count)| format!("{count} threads that never sleep share CPU {cpu}: {advice}"));
    let mut reasons: Vec<String> = shared.collect();
    let (spinning, cpus) = (generator.len() + broker.len(), facts.environment.host.cpus);
    if reasons.is_empty() && spinning > cpus {
        reasons.push(format!(
            "{spinning} threads never sleep and there are {cpus} CPUs: {advice}"
        ));
    }
    reasons
}

/// What could not be judged, and why.
fn unchecked(schedule: &Kept, produce: &Produce, facts: &Facts) -> Vec<String> {
    let mut unchecked = Vec::new();
    match &facts.broker {
        Some(broker) => unchecked.extend(unchecked_here(broker, facts)),
        None if facts.environment.transport == "network" => unchecked.push(
            "the broker's machine, what else it did and its disk: it is another one".to_owned(),
        ),
        None => unchecked.push(
            "the broker's threads and its disk: its process was not found on this machine, where its time \
             counts as that of other processes"
                .to_owned(),
        ),
    }
    if let Some(between) = &facts.environment.meanwhile {
        unchecked.extend(beyond_disturbance(between));
        if !between.others_are_all {
            unchecked.push(
                "what processes outside of this container took: they cannot be seen here".into(),
            );
        }
    }
    if let (Some(lag), Some(latency)) = (schedule.lag_ns, produce.latency_ns)
        && lag.p99 as f64 > LAG_SHARE * latency.p99 as f64
    {
        unchecked.push(format!(
            "how much of p99 is the broker's: the generator itself was up to {} us late, of {} us",
            lag.p99.div_ceil(1000),
            latency.p99.div_ceil(1000)
        ));
    }
    unchecked
}

/// Of a broker on this machine.
fn unchecked_here(broker: &BrokerHere, facts: &Facts) -> Vec<String> {
    let mut unchecked = Vec::new();
    let between = facts.environment.meanwhile.as_ref();
    let is_counted = |&cpu: &usize| between.is_some_and(|between| yields(between, cpu).is_some());
    if !broker.spinning_cpus.iter().all(is_counted) {
        unchecked.push(
            "whether threads that spin let others run: this kernel does not count yields \
             (/proc/schedstat)"
                .to_owned(),
        );
    }
    if facts.environment.flush == Flush::Unknown {
        unchecked.push("whether the device flushed its cache: it cannot be seen".into());
    }
    let why = match &facts.limits {
        _ if !facts.is_durable() => return unchecked,
        None => "the limits were not measured",
        Some(_) if !broker.limits_apply => "the limits are of another disk",
        Some(_) => return unchecked,
    };
    unchecked.push(format!(
        "whether acknowledgements took as long as a durable write: {why}"
    ));
    unchecked
}

/// What of the figures may be others', although these took less than would make the run worthless.
fn beyond_disturbance(between: &Between) -> Option<String> {
    if !between.tells_shares() {
        return Some(format!(
            "what other processes and the machine's host took: {:.2} s are too short to tell",
            between.elapsed_s
        ));
    }
    let taken = between.steal_share + between.others_share.unwrap_or(0.0);
    let (quantile, _) = BEYOND.iter().find(|(_, beyond)| taken > *beyond)?;
    Some(format!(
        "whether {quantile} and above are the broker's: the machine's host and other processes took {:.2} % \
         of a CPU's time",
        100.0 * taken
    ))
}

fn slower(recorder: &Recorder, than_ns: u64) -> Slower {
    let steps = recorder.histogram().iter_recorded();
    let above = steps.filter(|step| step.value_iterated_to() > than_ns);
    Slower {
        than_ns,
        count: above.map(|step| step.count_since_last_iteration()).sum(),
    }
}

/// The curve of latency by percentile, down to the last record.
fn curve(recorder: &Recorder) -> Vec<(f64, u64)> {
    if recorder.count() == 0 {
        return Vec::new();
    }
    let histogram = recorder.histogram();
    histogram
        .iter_quantiles(CURVE_STEPS_PER_HALF)
        .map(|step| {
            (
                100.0 * step.quantile_iterated_to(),
                step.value_iterated_to(),
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use crate::error::BenchError;
    use crate::open_loop::timing::{Cells, Times};

    fn between() -> Between {
        Between {
            elapsed_s: 10.0,
            steal_share: 0.0,
            others_share: Some(0.0),
            others_are_all: true,
            yields_per_s: Some(vec![50_000.0, 50_000.0]),
            disk_writes: Some(10),
            disk_flushes: Some(10),
        }
    }

    /// An echo of 10 us, and a write of 80 us.
    fn limits() -> Limits {
        let of = |us: u64| {
            let mut recorder = Recorder::new();
            recorder.record(Duration::from_micros(us));
            recorder.summary()
        };
        Limits {
            tcp_echo_ns: of(10),
            durable_write_ns: of(80),
            ..Limits::default()
        }
    }

    fn facts(plan: &Plan) -> Facts {
        let mut config = Config::of(plan);
        config.acks = "durable".into();
        config.cpus = vec![Some(1)];
        let mut host = Host::look();
        host.cpus = 2;
        Facts {
            config,
            environment: Environment {
                broker_process: BrokerProcess::Running,
                began_unix_ms: 0,
                version: "0".into(),
                commit: "0".into(),
                host,
                transport: "loopback",
                broker: serde_json::Value::Null,
                meanwhile: Some(between()),
                flush: Flush::Seen,
            },
            broker: Some(BrokerHere {
                spinning_cpus: vec![0],
                limits_apply: true,
            }),
            limits: Some((limits(), limits())),
            limits_failed: None,
            wal: None,
        }
    }

    /// A thousand records that were acknowledged and delivered as they should be.
    fn outcome() -> Outcome {
        let mut times = Times::default();
        for _ in 0..1000 {
            times.latency.record(Duration::from_micros(100));
            times.service.record(Duration::from_micros(95));
            times.lag.record(Duration::from_micros(1));
            times.end_to_end.record(Duration::from_micros(120));
        }
        Outcome {
            times,
            seconds: Vec::new(),
            cells: Cells::new(0),
            scheduled: 1000,
            measured: Duration::from_secs(10),
            elapsed: Duration::from_secs(10),
            balance: Balance {
                sent: 1000,
                acked: 1000,
                received: 1000,
                ..Balance::default()
            },
            replayed: 0,
            is_verified: true,
            refusal: None,
            error: None,
        }
    }

    fn judged(change: impl FnOnce(&mut Outcome, &mut Facts)) -> Report {
        let plan = Plan::default();
        let (mut outcome, mut facts) = (outcome(), facts(&plan));
        change(&mut outcome, &mut facts);
        Report::new(&plan, &outcome, facts)
    }

    fn writes_take(facts: &mut Facts, ns: u64) {
        if let Some((before, after)) = &mut facts.limits {
            for limits in [before, after] {
                limits.durable_write_ns.as_mut().expect("measured").min = ns;
            }
        }
    }

    #[test]
    fn a_run_is_compared_with_what_the_machine_needs_for_the_same() {
        let close = |(a, b): (f64, f64), to: f64| (a - to).abs() < 0.01 && (b - to).abs() < 0.01;
        let durable = judged(|_, _| ()).limits.expect("measured").ratios;
        let durable = durable.expect("both were measured");
        assert!(close(durable.p50, 95.0 / 90.0), "{durable:?}");
        let accepted = judged(|_, f| f.config.acks = "accepted".into());
        let accepted = accepted.limits.expect("measured").ratios;
        assert!(close(accepted.expect("measured").p99, 9.5), "{accepted:?}");
    }

    #[test]
    fn a_run_that_went_as_it_should_counts() {
        let report = judged(|_, _| ());
        assert_eq!(report.reasons, [""; 0]);
        assert_eq!(report.unchecked, [""; 0]);
        assert!(report.valid);
        assert_eq!(report.produce.count, 1000);
        assert_eq!(report.produce.slower[0].count, 0);
        assert_eq!(report.schedule.target_rate_per_s, 100.0);
        let (last, ns) = report.percentiles.produce.last().expect("a curve");
        assert_eq!((*last, ns.abs_diff(100_000) < 200), (100.0, true));
    }

    fn meanwhile(facts: &mut Facts) -> &mut Between {
        facts.environment.meanwhile.as_mut().expect("there")
    }

    fn broker(facts: &mut Facts) -> &mut BrokerHere {
        facts.broker.as_mut().expect("there")
    }

    type Plant = fn(&mut Outcome, &mut Facts);

    #[test]
    fn figures_of_a_run_that_was_cut_short_are_of_the_time_it_had() {
        let cut_after = |s: u64| {
            judged(|o, _| {
                o.error = Some(BenchError::Interrupted);
                (o.measured, o.elapsed) = (Duration::from_secs(s), Duration::from_secs(s));
            })
        };
        let schedule = cut_after(2).schedule;
        assert_eq!(schedule.target_rate_per_s, 500.0);
        assert_eq!(schedule.achieved_rate_per_s, 500.0);
        assert_eq!(cut_after(0).produce.rate_per_s, 0.0);
    }

    #[test]
    fn each_fault_makes_a_run_invalid_and_is_named() {
        let plants: [(&str, Plant); 18] = [
            ("98.0 %", |o, _| o.elapsed = Duration::from_millis(10_204)),
            ("nothing was due", |o, _| o.scheduled = 0),
            ("did not keep its schedule", |o, _| {
                for _ in 0..20 {
                    o.times.lag.record(Duration::from_millis(2));
                }
            }),
            ("gave 5 %", |_, f| meanwhile(f).steal_share = 0.05),
            ("other processes took 50 %", |_, f| {
                meanwhile(f).others_share = Some(0.5);
            }),
            ("what else the machine did is not known", |_, f| {
                f.environment.meanwhile = None;
            }),
            ("3 threads never sleep", |_, f| {
                f.config.cpus = vec![None; 2]
            }),
            ("2 threads that never sleep share CPU 0", |_, f| {
                f.config.cpus = vec![Some(0)];
            }),
            ("2 threads that never sleep share CPU 1", |_, f| {
                f.config.cpus = vec![Some(1); 2];
            }),
            ("share CPU 1", |_, f| broker(f).spinning_cpus = vec![0, 1]),
            ("yields only 5 times", |_, f| {
                meanwhile(f).yields_per_s = Some(vec![5.0, 9e4]);
            }),
            ("was not flushed", |_, f| {
                f.environment.flush = Flush::Missing
            }),
            ("cannot have been on stable storage", |_, f| {
                writes_take(f, 300_000);
            }),
            ("not be measured after the run: full", |_, f| {
                (f.limits, f.limits_failed) = (None, Some("full".into()));
            }),
            ("acknowledged and not delivered", |o, _| o.balance.lost = 1),
            ("delivered more than once", |o, _| o.balance.duplicated = 1),
            ("refused records: no", |o, _| o.refusal = Some("no".into())),
            ("interrupted", |o, _| {
                o.error = Some(BenchError::Interrupted)
            }),
        ];
        for (words, plant) in plants {
            let report = judged(plant);
            assert!(!report.valid, "{words}");
            let named = report.reasons.iter().filter(|r| r.contains(words)).count();
            assert_eq!(named, 1, "{words}: {:?}", report.reasons);
        }
    }

    #[test]
    fn what_could_not_be_judged_is_named_and_makes_nothing_invalid() {
        let plants: [(&str, Plant); 11] = [
            ("not found on this machine", |_, f| f.broker = None),
            ("it is another one", |_, f| {
                (f.broker, f.environment.transport) = (None, "network");
            }),
            ("does not count yields", |_, f| {
                meanwhile(f).yields_per_s = None;
            }),
            ("flushed its cache", |_, f| {
                f.environment.flush = Flush::Unknown;
            }),
            ("the limits were not measured", |_, f| f.limits = None),
            ("of another disk", |_, f| broker(f).limits_apply = false),
            ("outside of this container", |_, f| {
                meanwhile(f).others_are_all = false;
            }),
            ("0.40 s are too short", |_, f| {
                let meanwhile = meanwhile(f);
                (meanwhile.elapsed_s, meanwhile.others_share) = (0.4, Some(0.9));
            }),
            ("whether p99.9 and above", |_, f| {
                meanwhile(f).steal_share = 0.009;
            }),
            ("whether p90 and above", |_, f| {
                let meanwhile = meanwhile(f);
                (meanwhile.steal_share, meanwhile.others_share) = (0.015, Some(0.09));
            }),
            ("up to 51 us late, of 101 us", |o, _| {
                o.times.lag.clear();
                o.times.lag.record(Duration::from_micros(50));
            }),
        ];
        for (words, plant) in plants {
            let report = judged(plant);
            assert_eq!(report.reasons, [""; 0], "{words}");
            let named = report
                .unchecked
                .iter()
                .filter(|w| w.contains(words))
                .count();
            assert_eq!(
                (named, report.unchecked.len()),
                (1, 1),
                "{words}: {:?}",
                report.unchecked
            );
        }
    }

    #[test]
    fn a_broker_elsewhere_or_on_another_disk_is_not_held_against_the_limits_of_this() {
        let with = |acks: &str, broker| {
            judged(|_, f| {
                writes_take(f, 300_000);
                (f.config.acks, f.broker) = (acks.into(), broker);
            })
        };
        let on_another_disk = || Some(BrokerHere::default());
        for (acks, broker, is_compared) in [
            ("durable", None, false),
            ("durable", on_another_disk(), false),
            ("accepted", None, false),
            ("accepted", on_another_disk(), true),
        ] {
            let report = with(acks, broker);
            assert_eq!(report.reasons, [""; 0], "{acks}");
            let ratios = report.limits.expect("measured").ratios;
            assert_eq!(ratios.is_some(), is_compared, "{acks}");
        }
    }

    #[test]
    fn what_lies_with_the_load_and_what_lies_with_others_are_told_apart() {
        let told = |report: Report| {
            let (is_achieved, is_in_time) = (report.is_achieved(), report.is_in_time());
            (is_achieved, is_in_time, report.was_disturbed())
        };
        assert_eq!(told(judged(|_, _| ())), (true, true, false));
        let slow = judged(|o, _| o.elapsed = Duration::from_millis(10_204));
        assert_eq!(told(slow), (false, true, false));
        let unsent = judged(|o, _| o.balance.unsent = 1);
        assert_eq!(told(unsent), (false, true, false));
        let late = judged(|o, _| (0..20).for_each(|_| o.times.lag.record(Duration::from_secs(1))));
        assert_eq!(told(late), (true, false, false));
        let stolen = judged(|_, f| {
            f.environment.meanwhile.as_mut().expect("there").steal_share = 0.05;
        });
        assert_eq!(told(stolen), (true, true, true));
    }

    #[test]
    fn what_is_acknowledged_sooner_than_a_write_takes_counts_where_no_write_is_promised() {
        let report = judged(|_, f| {
            writes_take(f, 300_000);
            f.config.acks = "accepted".into();
        });
        assert!(report.valid, "{:?}", report.reasons);
    }
}
