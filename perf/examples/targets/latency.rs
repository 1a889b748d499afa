//! One record at a time.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use ringtide_client::{Acks, Visibility};
use ringtide_perf::closed_loop::{self, Measured};
use ringtide_perf::flood::{Publisher, Reader, Throughput};
use ringtide_perf::limits::{DurableFile, Pace, Waiting, Writes, echo};
use ringtide_perf::lone_topic::LoneTopic;
use ringtide_perf::{BenchError, Latency, Recorder, cpu};
use ringtide_schema::limits::BLOCK_BYTES;

use crate::context::Context;
use crate::reading::{self, Filled};
use crate::report::{Line, Target, median};
use ringtide_perf::broker::Broker;

/// Bytes of a record, and of the echo that it is held against.
const BYTES: usize = 128;
/// Bytes of batches published beside in a second.
const BESIDE_BYTES_PER_S: f64 = 200e6;
/// One thread drives all that happens beside: pieces it can do while an answer may come.
const BESIDE_READ_BYTES: usize = 64 << 10;

/// Microseconds.
fn us(ns: u64) -> f64 {
    ns as f64 / 1000.0
}

fn measure_echo(context: &Context) -> Result<Latency, BenchError> {
    echo(
        context.client_cpu,
        context.broker_cpu,
        BYTES,
        Waiting::Polling,
        &mut Pace::new(context.duration),
    )
}

fn run(options: &closed_loop::Options) -> Result<closed_loop::Report, BenchError> {
    closed_loop::run(options, |_| ControlFlow::Continue(()))
}

/// Publish to answer, accepted, beside the echo.
pub fn accepted(context: &Context) -> Result<Vec<Line>, BenchError> {
    let (broker, _) = context.broker("accepted")?;
    let mut options = context.closed_loop(&broker);
    options.acks = Acks::Accepted;
    let pairs = context.in_pairs(|_| {
        let limit = broker.paused(|| measure_echo(context))??;
        Ok((limit, run(&options)?.produce.latency_ns))
    })?;
    broker.stop()?;
    let of = |at: fn(&Latency) -> u64| pairs.iter().map(move |(l, b)| (us(at(l)), us(at(b))));
    Ok(vec![
        Line::ratio(
            "accepted p50 / echo p50",
            "us",
            of(|l| l.p50),
            Target::AtMost(1.5),
        ),
        Line::ratio(
            "accepted p99 / echo p99",
            "us",
            of(|l| l.p99),
            Target::AtMost(2.0),
        ),
    ])
}

/// Publish to delivery at a subscriber, beside the echo.
pub fn deliver(context: &Context) -> Result<Vec<Line>, BenchError> {
    let (broker, _) = context.broker("deliver")?;
    let mut options = context.closed_loop(&broker);
    options.acks = Acks::Accepted;
    options.deliver = true;
    let pairs = context.in_pairs(|_| {
        let limit = broker.paused(|| measure_echo(context))??;
        let report = run(&options)?;
        let nothing = || BenchError::Wrong("nothing was delivered".into());
        let delivered: Measured = report.end_to_end.ok_or_else(nothing)?;
        Ok((limit, delivered.latency_ns))
    })?;
    broker.stop()?;
    let of = |at: fn(&Latency) -> u64| pairs.iter().map(move |(l, b)| (us(at(l)), us(at(b))));
    Ok(vec![
        Line::ratio(
            "delivery p50 / echo p50",
            "us",
            of(|l| l.p50),
            Target::Nothing,
        ),
        Line::ratio(
            "delivery p99 / echo p99",
            "us",
            of(|l| l.p99),
            Target::AtMost(2.5),
        ),
    ])
}

/// Publish to answer, durable, beside the device's own write and the echo.
pub fn durable(context: &Context) -> Result<Vec<Line>, BenchError> {
    let (broker, _) = context.broker("durable")?;
    let file = DurableFile::create(&context.home)?;
    let writes = Writes {
        bytes: BLOCK_BYTES,
        cpu: context.broker_cpu,
        beside_spinner: None,
    };
    let mut options = context.closed_loop(&broker);
    options.acks = Acks::Durable;
    let pairs = context.in_pairs(|_| {
        let (write, echo) = broker.paused(|| {
            let write = file.measure(writes, &mut Pace::new(context.duration));
            (write, measure_echo(context))
        })?;
        Ok((write?, echo?, run(&options)?.produce.latency_ns))
    })?;
    broker.stop()?;
    let of = |at: fn(&Latency) -> u64| {
        pairs
            .iter()
            .map(move |(w, e, b)| (us(at(w)) + us(at(e)), us(at(b))))
    };
    let writes = median(pairs.iter().map(|(write, ..)| us(write.p99)));
    Ok(vec![
        Line::ratio(
            "durable p50 / (write p50 + echo p50)",
            "us",
            of(|l| l.p50),
            Target::Nothing,
        ),
        Line::ratio(
            "durable p99 / (write p99 + echo p99)",
            "us",
            of(|l| l.p99),
            Target::AtMost(1.25),
        )
        .noting(format!("the write alone: p99 {writes:.1} us")),
    ])
}

/// Durable p99 while segments are written and a reader catches up, beside the same without.
pub fn beside(context: &Context) -> Result<Vec<Line>, BenchError> {
    let (broker, dir) = context.broker("beside")?;
    let filled = reading::fill(context, &broker, &dir)?;
    let pairs = context.in_pairs(|_| {
        let alone = probe(context, &broker, None)?;
        let beside = probe(context, &broker, Some(&filled))?;
        Ok((alone, beside))
    })?;
    broker.stop()?;
    let of = |at: fn(&Latency) -> u64| {
        pairs
            .iter()
            .map(move |(l, b)| (us(at(&l.latency)), us(at(&b.latency))))
    };
    let written = median(pairs.iter().map(|(_, beside)| beside.written_mb_per_s));
    let read = median(pairs.iter().map(|(_, beside)| beside.read_mb_per_s));
    let note = format!("beside it {written:.0} MB/s were published and {read:.0} MB/s read");
    Ok(vec![
        Line::ratio(
            "durable p50 beside load / alone",
            "us",
            of(|l| l.p50),
            Target::Nothing,
        ),
        Line::ratio(
            "durable p99 beside load / alone",
            "us",
            of(|l| l.p99),
            Target::AtMost(2.0),
        )
        .noting(note),
    ])
}

struct Probed {
    latency: Latency,
    written_mb_per_s: f64,
    read_mb_per_s: f64,
}

/// One durable record at a time from a thread that, while it waits, also publishes and reads.
fn probe(
    context: &Context,
    broker: &Broker,
    beside: Option<&Filled>,
) -> Result<Probed, BenchError> {
    let topic = LoneTopic::create(&broker.server, None, Visibility::Durable)?;
    let load = LoneTopic::create(&broker.server, None, Visibility::Durable)?;
    let result = cpu::on(Some(context.client_cpu), || {
        let mut load = beside.map(|filled| Load::new(&load, filled)).transpose()?;
        let mut probe = Publisher::new(&topic, (BYTES, 1), Acks::Durable, 1)?;
        let mut recorder = Recorder::new();
        // Segments are synced once a second: two of them before anything counts.
        let warm_up = Duration::from_secs(2);
        let began = Instant::now();
        while began.elapsed() < warm_up + context.duration {
            let asked = Instant::now();
            probe.turn(1)?;
            while probe.in_flight() > 0 {
                if let Some(load) = &mut load {
                    load.turn()?;
                }
                probe.turn(0)?;
            }
            if asked - began >= warm_up {
                recorder.record(asked.elapsed());
            }
        }
        let elapsed = began.elapsed();
        let latency = recorder
            .summary()
            .ok_or(BenchError::Empty(context.duration))?;
        let mb_per_s = |bytes| Throughput::new(0, bytes, elapsed).mb_per_s;
        if let Some(load) = &mut load {
            load.publisher.drain()?;
        }
        Ok(Probed {
            latency,
            written_mb_per_s: load.as_ref().map_or(0.0, |l| mb_per_s(l.published_bytes)),
            read_mb_per_s: load.as_ref().map_or(0.0, |l| mb_per_s(l.read_bytes)),
        })
    });
    let result = result
        .map_err(BenchError::io("cannot place the client"))
        .flatten();
    let result = load.delete_after(&broker.server, result);
    topic.delete_after(&broker.server, result)
}

/// What happens beside: publishing at a pace, and catching up again and again.
struct Load<'a> {
    publisher: Publisher,
    published_bytes: u64,
    reader: Reader,
    read_bytes: u64,
    filled: &'a Filled,
    began: Instant,
}

impl<'a> Load<'a> {
    fn new(topic: &LoneTopic, filled: &'a Filled) -> Result<Self, BenchError> {
        Ok(Self {
            publisher: Publisher::new(topic, reading::BATCH, Acks::Accepted, 32)?,
            published_bytes: 0,
            reader: Reader::new(&filled.topic, reading::CREDIT_BYTES, BESIDE_READ_BYTES)?,
            read_bytes: 0,
            filled,
            began: Instant::now(),
        })
    }

    fn turn(&mut self) -> Result<(), BenchError> {
        let due = self.began.elapsed().as_secs_f64() * BESIDE_BYTES_PER_S;
        let may = usize::from((self.published_bytes as f64) < due);
        let published = self.publisher.turn(may)?;
        self.published_bytes += (published * self.publisher.batch_bytes()) as u64;
        self.read_bytes += self.reader.turn()? as u64;
        if self.reader.bytes() >= self.filled.bytes && self.reader.is_between_frames() {
            self.reader =
                Reader::new(&self.filled.topic, reading::CREDIT_BYTES, BESIDE_READ_BYTES)?;
        }
        Ok(())
    }
}
