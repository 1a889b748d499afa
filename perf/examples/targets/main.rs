//! Measures what Ringtide promises to reach, line by line, beside the limits of the machine.
//!
//! ```text
//! cargo build --release
//! cargo run --release -p ringtide-perf --example targets            # everything: about 40 minutes
//! cargo run --release -p ringtide-perf --example targets -- accepted durable --broker-cpu 0
//! ```
//!
//! Each line starts a broker of its own. A ratio is the median of the ratios of its pairs: the limit
//! and the broker are measured in turn, and while the limit is measured the broker stands still
//! (SIGSTOP), for a broker that spins would take part of its CPU.

mod context;
mod footprint;
mod hostile;
mod latency;
mod reading;
mod report;
mod starting;
mod throughput;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use ringtide_perf::BenchError;

use context::Context;
use report::{Line, Report};

/// What is measured by the name it is chosen by.
type Measure = fn(&Context) -> Result<Vec<Line>, BenchError>;
const MEASURES: [(&str, Measure); 16] = [
    ("accepted", latency::accepted),
    ("deliver", latency::deliver),
    ("durable", latency::durable),
    ("beside", latency::beside),
    ("hostile", hostile::hostile),
    ("throughput-accepted", throughput::accepted),
    ("throughput-durable", throughput::durable),
    ("singles", throughput::singles),
    ("catch-up", reading::catch_up),
    ("ready", starting::ready),
    ("replay", starting::replay),
    ("large", starting::large),
    ("memory", footprint::memory),
    ("idle", footprint::idle),
    ("binary", footprint::binary),
    ("connections", footprint::connections),
];

/// Measures a broker against the limits of this machine
#[derive(Debug, Parser)]
struct Args {
    /// What to measure [default: everything]
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(MEASURES.map(|(name, _)| name)))]
    names: Vec<String>,
    /// The broker's binary
    #[arg(long, env = "RINGTIDE_BIN", default_value = "target/release/ringtide")]
    binary: PathBuf,
    /// Pairs of limit and broker
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u64).range(1..))]
    pairs: u64,
    /// Seconds of each measurement of latency
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Seconds of steady state in each measurement of throughput
    #[arg(long, default_value_t = 10.0)]
    steady: f64,
    /// The CPU of the client
    #[arg(long, default_value_t = 0)]
    client_cpu: usize,
    /// The CPU of the broker's shard
    #[arg(long, default_value_t = 1)]
    broker_cpu: usize,
    /// MiB of log to be replayed, and of segments to be caught up with
    #[arg(long, default_value_t = 1024)]
    mib: u64,
    /// GiB of segments, nearly all of them holes, to start on and to verify
    #[arg(long, default_value_t = 100)]
    large_gib: u64,
    /// Idle connections
    #[arg(long, default_value_t = 10_000)]
    connections: usize,
    /// Where data directories are made; it must be on the device to be measured
    #[arg(long, default_value = "target")]
    dir: PathBuf,
    /// Where the figures are written
    #[arg(long, default_value = "target/targets.json")]
    json: PathBuf,
    /// Keep data directories and the brokers' logs
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("targets: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<(), BenchError> {
    let home = tempfile::Builder::new()
        .prefix("targets-")
        .tempdir_in(&args.dir)
        .map_err(BenchError::io(format!("cannot use {}", args.dir.display())))?;
    let context = Context {
        home: home.path().to_owned(),
        binary: args.binary,
        pairs: args.pairs as usize,
        duration: Duration::from_secs_f64(args.seconds),
        steady: Duration::from_secs_f64(args.steady),
        client_cpu: args.client_cpu,
        broker_cpu: args.broker_cpu,
        bytes: args.mib << 20,
        connections: args.connections,
        large_bytes: args.large_gib << 30,
    };
    let mut report = Report::new(&context);
    let chosen = |name: &str| args.names.is_empty() || args.names.iter().any(|n| n == name);
    for (name, measure) in MEASURES.into_iter().filter(|(name, _)| chosen(name)) {
        eprintln!("{name} ...");
        match measure(&context) {
            Ok(lines) => report.lines.extend(lines),
            // The other lines are worth having all the same.
            Err(error) => report.failed(name, &error),
        }
        report.write(&args.json)?;
    }
    print!("{report}");
    if args.keep {
        println!("\nkept: {}", home.keep().display());
    }
    if report.failures.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = report
        .failures
        .iter()
        .map(|failure| failure.name.as_str())
        .collect();
    Err(BenchError::Wrong(format!(
        "not measured: {}",
        names.join(", ")
    )))
}
