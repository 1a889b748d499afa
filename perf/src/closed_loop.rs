//! One publisher, one record in flight: the next is published when the last was acknowledged.
//!
//! The thread looks at its sockets all the time and calls `sched_yield` when nothing has arrived.
//! The time of a record runs from before its batch is built until its acknowledgement has been read.
//! Batches carry no producer identity and are never sent again.
//!
//! A closed loop is the right measure of what the path of one record costs, and the wrong one of what
//! a feed sees: while the broker stalls nothing is published, so that one stall of a second counts as
//! one slow record and not as all those that would have come in that second (coordinated omission).
//! The report says so.

use std::ops::ControlFlow;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ringtide_client::sync::{RawConnection, RawEvent};
use ringtide_client::{Acks, BatchBuilder, Codec, Error, Header, Visibility};
use ringtide_schema::limits::MAX_BATCH_BYTES;
use serde::Serialize;

use crate::cpu;
use crate::error::BenchError;
use crate::latency::{Latency, Recorder};
use crate::lone_topic::{LoneTopic, fresh_name, options};

/// How often [`Progress`] is reported, and an interruption noticed.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);
/// Bytes that may be under way to the subscriber.
const CREDIT_BYTES: u32 = 8 << 20;
/// Said in every report.
const NOTE: &str = "a closed loop hides stalls: while the broker does not answer, nothing is \
                    published that could wait (coordinated omission); these figures are the cost of \
                    one record's path, not what a feed would see";

/// What is measured.
#[derive(Clone, Debug)]
pub struct Options {
    /// HOST:PORT of any shard.
    pub server: String,
    /// Accepted or durable; without acknowledgements there is no loop to close.
    pub acks: Acks,
    /// Bytes of each record's value.
    pub size: usize,
    /// How long is measured, after the warm-up.
    pub duration: Duration,
    /// How long is published before that.
    pub warm_up: Duration,
    /// The name of the topic, which must not exist; `None`: one with the process's number.
    pub topic: Option<String>,
    /// The CPU to run on; `None`: wherever the system likes.
    pub cpu: Option<usize>,
    /// Afterwards measure, for as long again, from publishing to delivery at a subscriber of a
    /// topic whose records are visible once accepted. One thread drives both connections.
    pub deliver: bool,
}

impl Options {
    /// 128 bytes, durable, for ten seconds after one of warm-up.
    #[must_use]
    pub fn new(server: impl Into<String>) -> Self {
        Self {
            server: server.into(),
            acks: Acks::Durable,
            size: 128,
            duration: Duration::from_secs(10),
            warm_up: Duration::from_secs(1),
            topic: None,
            cpu: None,
            deliver: false,
        }
    }
}

/// How far a measurement is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// What is being done.
    pub phase: &'static str,
    /// How long it has been, warm-ups included.
    pub elapsed: Duration,
    /// How long it will be.
    pub total: Duration,
    /// Records acknowledged by now.
    pub acknowledged: u64,
}

/// What was measured. Made only of a measurement that ran to its end.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// "closed-loop".
    pub mode: &'static str,
    /// How to read the figures.
    pub note: &'static str,
    /// Who was measured.
    pub broker: Broker,
    /// How it was measured.
    pub config: Config,
    /// From before a record's batch is built until its acknowledgement has been read.
    pub produce: Measured,
    /// From the same moment until the record has been read by a subscriber.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_to_end: Option<Measured>,
}

/// The broker that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Broker {
    /// Its version.
    pub version: String,
    /// How many shards it has.
    pub shards: u16,
    /// Which of them owns the topic's partition.
    pub shard: u16,
}

/// The options of a report, by the names of the command line where it has them.
#[derive(Clone, Debug, Serialize)]
pub struct Config {
    /// As given.
    pub server: String,
    /// "accepted" or "durable".
    pub acks: &'static str,
    /// Bytes of each record's value.
    pub size: usize,
    /// Bytes of each batch.
    pub batch_bytes: usize,
    /// As given, in seconds.
    pub duration_s: f64,
    /// As given, in seconds.
    pub warm_up_s: f64,
    /// Records published and not acknowledged.
    pub in_flight: u32,
    /// What the client does while it waits.
    pub idle: &'static str,
    /// As given.
    pub cpu: Option<usize>,
}

/// One phase's figures.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Measured {
    /// Quantiles.
    pub latency_ns: Latency,
    /// Records.
    pub count: u64,
    /// Records in a second.
    pub rate_per_s: f64,
    /// How long was measured.
    pub elapsed_s: f64,
}

fn acks_name(acks: Acks) -> &'static str {
    match acks {
        Acks::None => "none",
        Acks::Accepted => "accepted",
        Acks::Durable => "durable",
    }
}

/// Measures. `progress` is called now and then, between records; it may ask for the end.
///
/// # Errors
/// Whatever kept the measurement from running to its end. The topic is deleted all the same, as far
/// as the broker still answers.
pub fn run(
    options: &Options,
    mut progress: impl FnMut(Progress) -> ControlFlow<()> + Send,
) -> Result<Report, BenchError> {
    if options.acks == Acks::None {
        return Err(BenchError::Usage(
            "a closed loop waits for each acknowledgement: choose acks accepted or durable".into(),
        ));
    }
    if options.duration.is_zero() {
        return Err(BenchError::Usage(
            "the duration must be longer than nothing".into(),
        ));
    }
    let batch_bytes = BatchBuilder::new(Codec::None).bytes_with(0, options.size, &[]);
    if batch_bytes > MAX_BATCH_BYTES {
        return Err(BenchError::Usage(format!(
            "a record of {} bytes does not fit into a batch, of at most {MAX_BATCH_BYTES} bytes",
            options.size
        )));
    }
    let measured = cpu::on(options.cpu, || measure(options, &mut progress));
    measured.map_err(BenchError::io("cannot place the measurement"))?
}

fn measure(
    options: &Options,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Report, BenchError> {
    let phases = if options.deliver { 2 } else { 1 };
    let mut watch = Watch {
        progress,
        phase: "publishing",
        began: Instant::now(),
        total: (options.warm_up + options.duration) * phases,
        acknowledged: 0,
    };
    let (produce, broker, batch_bytes) = phase(options, Visibility::Durable, |topic| {
        let mut publisher = Publisher::new(topic, options)?;
        let measured = timed(options, &mut watch, || publisher.publish())?;
        let hello = publisher.connection.hello();
        let broker = Broker {
            version: hello.broker_version.clone(),
            shards: hello.shards,
            shard: hello.shard,
        };
        Ok((measured, broker, publisher.batch.len()))
    })?;
    let end_to_end = if options.deliver {
        watch.phase = "publishing and reading";
        Some(phase(options, Visibility::Accepted, |topic| {
            let mut publisher = Publisher::new(topic, options)?;
            let mut tail = Tail::new(topic)?;
            timed(options, &mut watch, || publisher.deliver(&mut tail))
        })?)
    } else {
        None
    };
    Ok(Report {
        mode: "closed-loop",
        note: NOTE,
        broker,
        config: Config {
            server: options.server.clone(),
            acks: acks_name(options.acks),
            size: options.size,
            batch_bytes,
            duration_s: options.duration.as_secs_f64(),
            warm_up_s: options.warm_up.as_secs_f64(),
            in_flight: 1,
            idle: "spin",
            cpu: options.cpu,
        },
        produce,
        end_to_end,
    })
}

/// Runs one phase on a topic of its own.
fn phase<T>(
    options: &Options,
    visible: Visibility,
    work: impl FnOnce(&LoneTopic) -> Result<T, BenchError>,
) -> Result<T, BenchError> {
    let name = options
        .topic
        .clone()
        .unwrap_or_else(|| fresh_name("closed-loop"));
    let topic = LoneTopic::create(&options.server, Some(name), visible)?;
    let result = work(&topic);
    topic.delete_after(&options.server, result)
}

/// What outlasts a phase.
struct Watch<'a> {
    progress: &'a mut dyn FnMut(Progress) -> ControlFlow<()>,
    phase: &'static str,
    began: Instant,
    total: Duration,
    acknowledged: u64,
}

/// One record that was published: when, and when what is measured of it had happened.
struct Sample {
    began: Instant,
    ended: Instant,
}

/// Publishes one record after the other: the warm-up, then what counts.
fn timed(
    options: &Options,
    watch: &mut Watch<'_>,
    mut one: impl FnMut() -> Result<Sample, BenchError>,
) -> Result<Measured, BenchError> {
    let mut recorder = Recorder::new();
    let mut began = Instant::now();
    let mut next_progress = began;
    let mut warm = options.warm_up.is_zero();
    loop {
        let sample = one()?;
        watch.acknowledged += 1;
        let now = sample.ended;
        if warm {
            recorder.record(now - sample.began);
            if now - began >= options.duration {
                break;
            }
        } else if now - began >= options.warm_up {
            warm = true;
            began = Instant::now();
        }
        if now >= next_progress {
            next_progress = now + PROGRESS_EVERY;
            let progress = Progress {
                phase: watch.phase,
                elapsed: watch.began.elapsed(),
                total: watch.total,
                acknowledged: watch.acknowledged,
            };
            if (watch.progress)(progress).is_break() {
                return Err(BenchError::Interrupted);
            }
        }
    }
    let elapsed_s = began.elapsed().as_secs_f64();
    let latency_ns = recorder
        .summary()
        .ok_or(BenchError::Empty(options.duration))?;
    Ok(Measured {
        latency_ns,
        count: recorder.count(),
        rate_per_s: recorder.count() as f64 / elapsed_s,
        elapsed_s,
    })
}

/// Publishes single records.
struct Publisher {
    connection: RawConnection,
    topic: LoneTopic,
    acks: Acks,
    builder: BatchBuilder,
    value: Vec<u8>,
    batch: Vec<u8>,
    acknowledged: u64,
}

impl Publisher {
    fn new(topic: &LoneTopic, measured: &Options) -> Result<Self, BenchError> {
        Ok(Self {
            connection: RawConnection::connect(&topic.owner, &options())?,
            topic: topic.clone(),
            acks: measured.acks,
            builder: BatchBuilder::new(Codec::None),
            value: (0..measured.size).map(|i| (i % 251) as u8).collect(),
            batch: Vec::new(),
            acknowledged: 0,
        })
    }

    fn lost(&self, cause: Error) -> BenchError {
        BenchError::Lost {
            cause,
            acknowledged: self.acknowledged,
            topic: None,
        }
    }

    /// Sends one record; when that began, and the correlation of the answer.
    fn send(&mut self) -> Result<(Instant, u64), BenchError> {
        let began = Instant::now();
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        self.batch.clear();
        self.builder
            .push(since.as_millis() as i64, None, Some(&self.value), &[]);
        self.builder
            .finish(-1, -1, -1, &mut self.batch)
            .map_err(|error| {
                BenchError::Usage(format!("a record of {} bytes: {error}", self.value.len()))
            })?;
        let sent = self
            .connection
            .publish_batch(self.topic.partition, &self.batch, self.acks);
        Ok((began, sent.map_err(|cause| self.lost(cause))?))
    }

    /// Looks once for the answer, and yields if nothing has arrived and `idle` says so.
    fn look(&mut self, wanted: u64, idle: bool) -> Result<bool, BenchError> {
        let mut answer = None;
        let bytes = self.connection.poll(|event| match event {
            RawEvent::Published {
                correlation,
                base_offset,
                ..
            } if correlation == wanted => {
                answer = Some(Ok(base_offset));
            }
            RawEvent::Failed { correlation, error } if correlation == wanted => {
                answer = Some(Err(error));
            }
            _ => {}
        });
        match (bytes.map_err(|cause| self.lost(cause))?, answer) {
            (_, Some(Ok(offset))) => {
                if offset != self.acknowledged {
                    return Err(BenchError::Wrong(format!(
                        "record {} of a topic that nobody else writes to got the offset {offset}",
                        self.acknowledged
                    )));
                }
                self.acknowledged += 1;
                return Ok(true);
            }
            (_, Some(Err(cause))) => return Err(BenchError::Refused { cause, topic: None }),
            (0, None) if idle => std::thread::yield_now(),
            _ => {}
        }
        Ok(false)
    }

    /// Publishes one record and waits for its acknowledgement.
    fn publish(&mut self) -> Result<Sample, BenchError> {
        let (began, wanted) = self.send()?;
        while !self.look(wanted, true)? {}
        Ok(Sample {
            began,
            ended: Instant::now(),
        })
    }

    /// Publishes one record, waits for its delivery, which is what counts, and its acknowledgement.
    fn deliver(&mut self, tail: &mut Tail) -> Result<Sample, BenchError> {
        let (began, wanted) = self.send()?;
        let record = self.acknowledged;
        let (mut ended, mut acknowledged) = (None, false);
        while ended.is_none() || !acknowledged {
            if ended.is_none() && tail.look().map_err(|cause| self.lost(cause))? > record {
                ended = Some(Instant::now());
            }
            if !acknowledged {
                acknowledged = self.look(wanted, ended.is_none())?;
            } else if ended.is_none() {
                std::thread::yield_now();
            }
        }
        tail.give_back().map_err(|cause| self.lost(cause))?;
        let ended = ended.unwrap_or(began);
        Ok(Sample { began, ended })
    }
}

/// A subscriber of the topic from its first record on.
struct Tail {
    connection: RawConnection,
    subscription: u64,
    /// The offset after the last record that was delivered.
    next_offset: u64,
    /// Bytes delivered for which no credit was given back.
    owed_bytes: usize,
}

impl Tail {
    fn new(topic: &LoneTopic) -> Result<Self, BenchError> {
        let mut connection = RawConnection::connect(&topic.owner, &options())?;
        let subscription = connection.subscribe(topic.partition, -2, CREDIT_BYTES);
        let mut answer = None;
        while answer.is_none() {
            let bytes = connection.poll(|event| match event {
                RawEvent::Subscribed { .. } => answer = Some(Ok(())),
                RawEvent::Failed { error, .. } => answer = Some(Err(error)),
                _ => {}
            })?;
            if bytes == 0 {
                std::thread::yield_now();
            }
        }
        answer.unwrap_or(Ok(()))?;
        Ok(Self {
            connection,
            subscription,
            next_offset: 0,
            owed_bytes: 0,
        })
    }

    /// Looks once; the offset after the last record delivered.
    fn look(&mut self) -> Result<u64, Error> {
        let (next, owed) = (&mut self.next_offset, &mut self.owed_bytes);
        let mut refused = None;
        self.connection.poll(|event| match event {
            RawEvent::Pushed { payload, .. } => {
                *owed += payload.len();
                let mut rest = payload;
                while let Ok(header) = Header::peek(rest) {
                    *next = header.base_offset + u64::from(header.last_offset_delta) + 1;
                    rest = rest.get(header.batch_bytes..).unwrap_or_default();
                }
            }
            RawEvent::Failed { error, .. } => refused = Some(error),
            _ => {}
        })?;
        refused.map_or(Ok(self.next_offset), Err)
    }

    /// Gives credit back when half of it is used up: seldom, and never while a record is timed.
    fn give_back(&mut self) -> Result<(), Error> {
        if self.owed_bytes >= CREDIT_BYTES as usize / 2 {
            let bytes = std::mem::take(&mut self.owed_bytes) as u32;
            self.connection.credit(self.subscription, bytes);
            self.look()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(options: &Options) -> String {
        let error = run(options, |_| ControlFlow::Continue(())).expect_err("refused");
        error.to_string()
    }

    #[test]
    fn options_that_cannot_be_are_refused_before_anybody_is_asked() {
        // Nobody listens on port 1; none of these gets as far.
        let good = Options::new("127.0.0.1:1");
        let acks = refusal(&Options {
            acks: Acks::None,
            ..good.clone()
        });
        assert!(acks.contains("accepted or durable"), "{acks}");
        let size = refusal(&Options {
            size: MAX_BATCH_BYTES,
            ..good.clone()
        });
        assert!(size.contains("does not fit"), "{size}");
        let nothing = refusal(&Options {
            duration: Duration::ZERO,
            ..good
        });
        assert!(nothing.contains("duration"), "{nothing}");
    }

    #[test]
    fn an_absent_broker_is_named_with_what_to_do() {
        let error = refusal(&Options::new("127.0.0.1:1"));
        assert!(
            error.contains("127.0.0.1:1") && error.contains("ringtide serve"),
            "{error}"
        );
    }
}
