//! Reading what was stored.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ringtide_client::sync::{RawConnection, RawEvent};
use ringtide_client::{Acks, Visibility};
use ringtide_perf::flood::{Publisher, Reader};
use ringtide_perf::limits::{Sending, send_files};
use ringtide_perf::lone_topic::{LoneTopic, options};
use ringtide_perf::pipe::READ_BYTES;
use ringtide_perf::{BenchError, cpu};

use crate::context::{Context, segments, settle};
use crate::report::{Line, Target, median};
use ringtide_perf::broker::Broker;

/// 64 records of 1 KiB.
pub const BATCH: (usize, u32) = (1024, 64);
/// What may be under way to a reader.
pub const CREDIT_BYTES: u32 = 16 << 20;
/// A reader that gets nothing for so long has been forgotten.
const SILENCE: Duration = Duration::from_secs(20);

/// A topic with something in it.
pub struct Filled {
    pub topic: LoneTopic,
    /// Bytes of its batches.
    pub bytes: u64,
    /// Its segments, all in the page cache.
    pub segments: Vec<PathBuf>,
}

/// Fills a topic, waits until it is in its segments, and reads these into the page cache.
pub fn fill(context: &Context, broker: &Broker, dir: &Path) -> Result<Filled, BenchError> {
    let before = segments(dir).unwrap_or_default();
    let topic = LoneTopic::create(&broker.server, None, Visibility::Durable)?;
    let mut publisher = Publisher::new(&topic, BATCH, Acks::Durable, 32)?;
    while publisher.acknowledged_bytes() < context.bytes {
        publisher.turn(usize::MAX)?;
    }
    publisher.drain()?;
    settle(broker)?;
    let mut segments = segments(dir)?;
    segments.retain(|path| !before.contains(path));
    for _ in 0..2 {
        for path in &segments {
            let cached = std::fs::File::open(path)
                .and_then(|mut file| std::io::copy(&mut file, &mut std::io::sink()));
            cached.map_err(BenchError::io(format!("cannot read {}", path.display())))?;
        }
    }
    Ok(Filled {
        topic,
        bytes: publisher.acknowledged_bytes(),
        segments,
    })
}

/// A reader of cached segments beside a bare loop that sends the same files.
pub fn catch_up(context: &Context) -> Result<Vec<Line>, BenchError> {
    let (broker, dir) = context.broker("catch-up")?;
    let filled = fill(context, &broker, &dir)?;
    let pairs = context.in_pairs(|_| {
        let limits = broker.paused(|| bare(context, &filled.segments))??;
        let skimmed = on_client(context, || skim(&filled))?;
        let client = on_client(context, || read(&filled))?;
        Ok((limits, skimmed, client))
    })?;
    broker.stop()?;
    // The fastest way over all pairs: the fastest of each pair would be the luckiest.
    let rate = |way: usize| median(pairs.iter().map(|(limits, ..)| limits[way]));
    let ways = 0..Sending::ALL.len();
    let best = ways.reduce(|a, b| if rate(b) > rate(a) { b } else { a });
    let best = best.unwrap_or_default();
    Ok(vec![
        Line::ratio(
            "catch-up / bare loop",
            "MB/s",
            pairs
                .iter()
                .map(|&(limits, skimmed, _)| (limits[best], skimmed)),
            Target::AtLeast(0.9),
        )
        .noting(format!("the fastest bare loop: {:?}", Sending::ALL[best])),
        Line::ratio(
            "catch-up through the client / bare loop",
            "MB/s",
            pairs
                .iter()
                .map(|&(limits, _, client)| (limits[best], client)),
            Target::Nothing,
        )
        .noting("the client copies a frame that arrives in pieces"),
    ])
}

/// Every way of sending the files, in MB/s.
fn bare(context: &Context, files: &[PathBuf]) -> Result<[f64; Sending::ALL.len()], BenchError> {
    let mut rates = [0.0; Sending::ALL.len()];
    for (rate, how) in rates.iter_mut().zip(Sending::ALL) {
        let (elapsed, bytes) = send_files(files, how, context.broker_cpu, context.client_cpu)
            .map_err(BenchError::io("the bare loop cannot be measured"))?;
        *rate = mb_per_s(bytes, elapsed);
    }
    Ok(rates)
}

fn mb_per_s(bytes: u64, elapsed: Duration) -> f64 {
    bytes as f64 / 1e6 / elapsed.as_secs_f64()
}

fn on_client(
    context: &Context,
    work: impl FnOnce() -> Result<f64, BenchError> + Send,
) -> Result<f64, BenchError> {
    cpu::on(Some(context.client_cpu), work).map_err(BenchError::io("cannot place the reader"))?
}

fn silent() -> BenchError {
    BenchError::Wrong(format!("nothing was delivered for {SILENCE:?}"))
}

/// Reads all and looks at the frames only.
fn skim(filled: &Filled) -> Result<f64, BenchError> {
    let began = Instant::now();
    let mut reader = Reader::new(&filled.topic, CREDIT_BYTES, READ_BYTES)?;
    let mut heard = began;
    while reader.bytes() < filled.bytes || !reader.is_between_frames() {
        if reader.turn()? > 0 {
            heard = Instant::now();
        } else if heard.elapsed() > SILENCE {
            return Err(silent());
        } else {
            std::thread::yield_now();
        }
    }
    Ok(mb_per_s(reader.bytes(), began.elapsed()))
}

/// Reads all through the native client's connection.
fn read(filled: &Filled) -> Result<f64, BenchError> {
    let began = Instant::now();
    let mut connection = RawConnection::connect(&filled.topic.owner, &options())?;
    let subscription = connection.subscribe(filled.topic.partition, -2, CREDIT_BYTES);
    let (mut total, mut owed, mut heard) = (0_u64, 0_u32, began);
    let mut refused = None;
    while total < filled.bytes {
        let arrived = connection.poll(|event| match event {
            RawEvent::Pushed { payload, .. } => {
                total += payload.len() as u64;
                owed += payload.len() as u32;
            }
            RawEvent::Failed { error, .. } => refused = Some(error),
            _ => {}
        })?;
        if let Some(error) = refused {
            return Err(error.into());
        }
        if owed >= CREDIT_BYTES / 4 {
            connection.credit(subscription, std::mem::take(&mut owed));
        }
        if arrived > 0 {
            heard = Instant::now();
        } else if heard.elapsed() > SILENCE {
            return Err(silent());
        } else {
            std::thread::yield_now();
        }
    }
    Ok(mb_per_s(total, began.elapsed()))
}
