//! Throughput: one publisher that keeps a number of requests in flight, and one reader that takes
//! what it is given.
//!
//! Both are state machines with a `turn`, so that one thread can drive several beside each other.
//! Every request carries the same bytes under another number; what is measured is the broker.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ringtide_client::{Acks, BatchBuilder, Codec, Error, ErrorCode, Visibility};
use ringtide_schema::frame::{FLAG_ERROR, Op};
use ringtide_schema::wire;
use ringtide_session::{Frame, envelope};
use serde::Serialize;

use crate::cpu;
use crate::error::BenchError;
use crate::lone_topic::{LoneTopic, fresh_name};
use crate::pipe::{Pipe, PublishFrame, Skimmer, refusal};

/// A broker that answers nothing for this long is given up.
const SILENCE: Duration = Duration::from_secs(20);

/// What is published.
#[derive(Clone, Debug)]
pub struct Options {
    /// HOST:PORT of any shard.
    pub server: String,
    /// Accepted or durable.
    pub acks: Acks,
    /// Bytes of each record's value.
    pub record_bytes: usize,
    /// Records of each batch; a batch is a request.
    pub records_per_batch: u32,
    /// Requests in flight.
    pub in_flight: usize,
    /// How long is measured, after the warm-up.
    pub duration: Duration,
    /// How long is published before that.
    pub warm_up: Duration,
    /// The CPU to run on.
    pub cpu: Option<usize>,
}

/// What went through.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Throughput {
    /// Records acknowledged.
    pub records: u64,
    /// Records in a second.
    pub records_per_s: f64,
    /// Millions of bytes of record values in a second.
    pub mb_per_s: f64,
    /// How long was measured.
    pub elapsed_s: f64,
}

impl Throughput {
    /// From counts.
    #[must_use]
    pub fn new(records: u64, bytes: u64, elapsed: Duration) -> Self {
        let elapsed_s = elapsed.as_secs_f64();
        Self {
            records,
            records_per_s: records as f64 / elapsed_s,
            mb_per_s: bytes as f64 / 1e6 / elapsed_s,
            elapsed_s,
        }
    }
}

/// Publishes as fast as it goes; `after_warm_up` is called when what counts begins.
///
/// # Errors
/// Whatever kept it from running to its end.
pub fn run(
    options: &Options,
    after_warm_up: impl FnOnce() + Send,
) -> Result<Throughput, BenchError> {
    if options.acks == Acks::None || options.in_flight == 0 {
        return Err(BenchError::Usage(
            "throughput is counted by acknowledgements".into(),
        ));
    }
    let name = fresh_name("flood");
    let topic = LoneTopic::create(&options.server, Some(name), Visibility::Durable)?;
    let result = cpu::on(options.cpu, || flood(options, &topic, after_warm_up));
    let result = result
        .map_err(BenchError::io("cannot place the publisher"))
        .flatten();
    topic.delete_after(&options.server, result)
}

fn flood(
    options: &Options,
    topic: &LoneTopic,
    after_warm_up: impl FnOnce(),
) -> Result<Throughput, BenchError> {
    let shape = (options.record_bytes, options.records_per_batch);
    let mut publisher = Publisher::new(topic, shape, options.acks, options.in_flight)?;
    let mut began = Instant::now();
    while began.elapsed() < options.warm_up {
        publisher.turn(usize::MAX)?;
    }
    after_warm_up();
    began = Instant::now();
    let before = publisher.acknowledged();
    while began.elapsed() < options.duration {
        publisher.turn(usize::MAX)?;
    }
    let elapsed = began.elapsed();
    let records = publisher.acknowledged() - before;
    if records == 0 {
        return Err(BenchError::Empty(options.duration));
    }
    Ok(Throughput::new(
        records,
        records * options.record_bytes as u64,
        elapsed,
    ))
}

/// Keeps requests in flight.
pub struct Publisher {
    pipe: Pipe,
    frame: PublishFrame,
    batch_bytes: usize,
    records_per_batch: u32,
    in_flight: usize,
    most_in_flight: usize,
    batches: u64,
    heard: Instant,
}

impl Publisher {
    /// Of batches of `(record_bytes, records)`.
    pub fn new(
        topic: &LoneTopic,
        (record_bytes, records): (usize, u32),
        acks: Acks,
        most_in_flight: usize,
    ) -> Result<Self, BenchError> {
        let batch = batch(record_bytes, records)?;
        Ok(Self {
            pipe: Pipe::connect(&topic.owner, None)?,
            frame: PublishFrame::new(topic.partition, &batch, acks),
            batch_bytes: batch.len(),
            records_per_batch: records,
            in_flight: 0,
            most_in_flight,
            batches: 0,
            heard: Instant::now(),
        })
    }

    /// Records acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.batches * u64::from(self.records_per_batch)
    }

    /// Bytes of batches acknowledged.
    #[must_use]
    pub fn acknowledged_bytes(&self) -> u64 {
        self.batches * self.batch_bytes as u64
    }

    /// Bytes of each batch.
    #[must_use]
    pub fn batch_bytes(&self) -> usize {
        self.batch_bytes
    }

    /// Requests that are not answered.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Publishes at the most `most` batches, as far as requests may be in flight, and takes the
    /// answers that have arrived; yields if there was nothing to do. How many were published.
    pub fn turn(&mut self, most: usize) -> Result<usize, BenchError> {
        let publish = most.min(self.most_in_flight - self.in_flight);
        for _ in 0..publish {
            self.pipe.publish(&mut self.frame)?;
        }
        if publish > 0 && self.in_flight == 0 {
            self.heard = Instant::now();
        }
        self.in_flight += publish;
        let (mut answered, mut refused) = (0, None);
        let arrived = self.pipe.poll(|frame| match check(&frame) {
            Ok(batches) => answered += batches,
            Err(cause) => refused = Some(cause),
        })?;
        if let Some(cause) = refused {
            return Err(BenchError::Refused { cause, topic: None });
        }
        self.in_flight -= answered;
        self.batches += answered as u64;
        if arrived > 0 {
            self.heard = Instant::now();
        } else if publish == 0 {
            if self.in_flight > 0 && self.heard.elapsed() > SILENCE {
                let why = format!("no answer for {SILENCE:?}");
                return Err(self.lost(&why));
            }
            std::thread::yield_now();
        }
        Ok(publish)
    }

    /// Waits for all answers.
    pub fn drain(&mut self) -> Result<(), BenchError> {
        while self.in_flight > 0 {
            self.turn(0)?;
        }
        Ok(())
    }

    fn lost(&self, why: &str) -> BenchError {
        let cause = Error::Disconnected {
            server: "the broker".into(),
            why: why.into(),
        };
        BenchError::Lost {
            cause,
            acknowledged: self.acknowledged(),
            topic: None,
        }
    }
}

/// How many batches a frame acknowledges.
fn check(frame: &Frame<'_>) -> Result<usize, Error> {
    let broker = |code: u16, message: &str| Error::Broker {
        code: ErrorCode::from_u16(code).unwrap_or(ErrorCode::Internal),
        what: "publish".into(),
        message: message.into(),
    };
    if frame.header.flags & FLAG_ERROR != 0 {
        return Err(broker(0, &refusal(frame.envelope)));
    }
    if frame.header.op != Op::Publish as u8 {
        return Ok(0);
    }
    let answer = envelope::<wire::PublishResponse<'_>>(frame.envelope)
        .map_err(|error| broker(0, &error.to_string()))?;
    let mut batches = 0;
    for result in answer.results().into_iter().flatten() {
        if result.error() != 0 {
            return Err(broker(result.error(), answer.message().unwrap_or_default()));
        }
        batches += 1;
    }
    Ok(batches)
}

/// A batch of `records` records with values of `record_bytes` bytes, without keys.
fn batch(record_bytes: usize, records: u32) -> Result<Vec<u8>, BenchError> {
    let value: Vec<u8> = (0..record_bytes).map(|i| (i % 251) as u8).collect();
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let mut builder = BatchBuilder::new(Codec::None);
    for _ in 0..records {
        builder.push(since.as_millis() as i64, None, Some(&value), &[]);
    }
    let mut batch = Vec::new();
    let finished = builder.finish(-1, -1, -1, &mut batch);
    finished.map_err(|error| BenchError::Usage(format!("such a batch cannot be: {error}")))?;
    Ok(batch)
}

/// Reads a partition from its first record on and looks at nothing but the frames.
pub struct Reader {
    pipe: Pipe,
    skimmer: Skimmer,
    subscription: u64,
    credit_bytes: u32,
    owed_bytes: u32,
    bytes: u64,
}

impl Reader {
    /// Subscribes; each turn reads at the most `read_bytes`.
    pub fn new(
        topic: &LoneTopic,
        credit_bytes: u32,
        read_bytes: usize,
    ) -> Result<Self, BenchError> {
        let mut pipe = Pipe::connect(&topic.owner, None)?.reading(read_bytes);
        let subscription = pipe.subscribe(topic.partition, credit_bytes)?;
        Ok(Self {
            pipe,
            skimmer: Skimmer::new(),
            subscription,
            credit_bytes,
            owed_bytes: 0,
            bytes: 0,
        })
    }

    /// Bytes of batches that have arrived, or are arriving.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether all of the last frame has arrived.
    #[must_use]
    pub fn is_between_frames(&self) -> bool {
        self.skimmer.is_between_frames()
    }

    /// Reads once, and gives credit back; how many bytes arrived.
    pub fn turn(&mut self) -> Result<usize, BenchError> {
        let (mut pushed, mut refused) = (0, false);
        let arrived = self.pipe.skim(&mut self.skimmer, |header| {
            refused |= header.flags & FLAG_ERROR != 0;
            if header.op == Op::Push as u8 {
                pushed += header.payload_bytes;
            }
        })?;
        if refused {
            return Err(BenchError::Wrong("the broker refused a reader".into()));
        }
        self.bytes += u64::from(pushed);
        self.owed_bytes += pushed;
        if self.owed_bytes >= self.credit_bytes / 4 {
            self.pipe
                .credit(self.subscription, std::mem::take(&mut self.owed_bytes))?;
        }
        Ok(arrived)
    }
}
