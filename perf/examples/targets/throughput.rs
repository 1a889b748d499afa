//! As much as goes through one connection to one partition.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ringtide_client::Acks;
use ringtide_perf::BenchError;
use ringtide_perf::flood::{self, Throughput};

use crate::context::{Context, settle};
use crate::report::{Line, Target, median};

/// Long enough to fill the log once, after which all that goes in must come out again.
const WARM_UP: Duration = Duration::from_secs(3);

/// 1 KiB records in batches of 64 KiB, 32 in flight, accepted.
pub fn accepted(context: &Context) -> Result<Vec<Line>, BenchError> {
    let runs = run(context, "throughput-accepted", Acks::Accepted, 64, 32)?;
    Ok(vec![line("64 KiB batches, accepted", &runs, 750.0)])
}

/// The same, durable.
pub fn durable(context: &Context) -> Result<Vec<Line>, BenchError> {
    let runs = run(context, "throughput-durable", Acks::Durable, 64, 32)?;
    Ok(vec![line("64 KiB batches, durable", &runs, 500.0)])
}

/// 1 KiB records, each a batch and a request, 1,000 in flight, durable.
pub fn singles(context: &Context) -> Result<Vec<Line>, BenchError> {
    let runs = run(context, "singles", Acks::Durable, 1, 1000)?;
    let rates = runs.iter().map(|run| run.throughput.records_per_s);
    let line = Line::figure("1 KiB singly, 1,000 in flight, durable", "/s", rates, {
        Target::AtLeast(400_000.0)
    });
    Ok(vec![line.noting(written(&runs))])
}

fn line(name: &str, runs: &[Run], target: f64) -> Line {
    let rates = runs.iter().map(|run| run.throughput.mb_per_s);
    Line::figure(name, "MB/s", rates, Target::AtLeast(target)).noting(written(runs))
}

struct Run {
    throughput: Throughput,
    /// Bytes that the process wrote for each byte published.
    written: f64,
}

fn written(runs: &[Run]) -> String {
    let times = median(runs.iter().map(|run| run.written));
    format!(
        "written to the device: {times:.2} times what was published (2: log and segments keep up)"
    )
}

fn run(
    context: &Context,
    name: &str,
    acks: Acks,
    records_per_batch: u32,
    in_flight: usize,
) -> Result<Vec<Run>, BenchError> {
    const RECORD_BYTES: usize = 1024;
    let (broker, _) = context.broker(name)?;
    let runs = context.in_pairs(|_| {
        let options = flood::Options {
            server: broker.server.clone(),
            acks,
            record_bytes: RECORD_BYTES,
            records_per_batch,
            in_flight,
            duration: context.steady,
            warm_up: WARM_UP,
            cpu: Some(context.client_cpu),
        };
        let before = AtomicU64::new(0);
        let throughput = flood::run(&options, || {
            before.store(broker.written_bytes().unwrap_or(0), Ordering::Relaxed);
        })?;
        let bytes = broker.written_bytes()?.saturating_sub(before.into_inner());
        let published = throughput.records as f64 * RECORD_BYTES as f64;
        settle(&broker)?;
        Ok(Run {
            throughput,
            written: bytes as f64 / published,
        })
    })?;
    broker.stop()?;
    Ok(runs)
}
