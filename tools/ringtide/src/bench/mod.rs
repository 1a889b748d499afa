//! `ringtide bench`: how fast the broker is, measured from here. What is measured and how is in
//! `perf/`; here are its command line, its table and its files.

mod closed_loop;
mod hlog_file;
mod json_file;
mod limits;
mod open_loop;
mod open_table;
mod placement;
mod subject;
mod watching;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use ringtide_perf::BenchError;
use ringtide_perf::workload::Workload;

use crate::connect::exit_of;
use crate::exit::{Exit, Failure};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(crate) command: Option<BenchCommand>,
    /// Instead of a schedule: one publisher that waits for each acknowledgement before it publishes the
    /// next record. Takes --acks, --size, --duration, --deliver, --cpus and --json
    #[arg(long)]
    pub(crate) closed_loop: bool,
    /// In a closed loop, measure as well how long it takes until a subscriber has the record
    #[arg(long, requires = "closed_loop")]
    pub(crate) deliver: bool,
    /// A load by its name (market-data, order-entry, telemetry, fan-out, log-shipping,
    /// replay-beside-live) or a file; flags win
    #[arg(long, value_name = "NAME|FILE", conflicts_with = "closed_loop")]
    pub(crate) workload: Option<String>,
    #[command(flatten)]
    pub(crate) load: Workload,
    /// CPUs of the generator, a thread on each, such as 1 or 2,3 [default: the last]
    #[arg(long, alias = "cpu", value_name = "LIST", value_delimiter = ',')]
    pub(crate) cpus: Option<Vec<usize>>,
    /// CPUs of the shards of a broker that is started here [default: the first]
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        conflicts_with = "closed_loop"
    )]
    pub(crate) broker_cpus: Option<Vec<usize>>,
    /// Do not measure the limits of the machine before and after
    #[arg(long, conflicts_with = "closed_loop")]
    pub(crate) no_limits: bool,
    /// Measure the limits of the machine on the disk of this directory [default: here, when a broker is
    /// started here; not at all otherwise, because a broker that runs is in the way]
    #[arg(long, value_name = "DIR", conflicts_with_all = ["closed_loop", "no_limits"])]
    pub(crate) limits_dir: Option<PathBuf>,
    /// Do not read everything back when there are no subscribers
    #[arg(long, conflicts_with = "closed_loop")]
    pub(crate) no_verify: bool,
    /// Write the figures to this file as JSON; /dev/stdout: to standard output, and the table to
    /// standard error
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Write the histograms of each second to this file, for HdrHistogram's own tools
    #[arg(long, value_name = "FILE", conflicts_with = "closed_loop")]
    pub(crate) hlog: Option<PathBuf>,
    /// The broker: any shard of it; HOST or HOST:PORT [default: one is started for the measurement; in a
    /// closed loop 127.0.0.1:7311]
    #[arg(long, value_name = "HOST:PORT", env = "RINGTIDE_SERVER", value_parser = crate::cli::server)]
    pub(crate) server: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Measure what this machine can do without a broker
    ///
    /// Figures of a broker are to be given as ratios to these. Nothing is asked of a broker, and one
    /// that runs on the same CPUs disturbs it.
    Limits(limits::LimitsArgs),
}

/// Runs the command.
pub(crate) fn run(args: &BenchArgs) -> Result<(), Failure> {
    if let Some(BenchCommand::Limits(args)) = &args.command {
        return limits::run(args);
    }
    match args.closed_loop {
        true => closed_loop::run(args),
        false => open_loop::run(args),
    }
}

fn failure(error: BenchError) -> Failure {
    Failure::new(exit_of_bench(&error), error.to_string())
}

fn does_not_count() -> Failure {
    let words = "the figures do not count; the reasons are above";
    Failure::new(Exit::InvalidRun, words)
}

fn exit_of_bench(error: &BenchError) -> Exit {
    match error {
        BenchError::Usage(_) => Exit::Usage,
        BenchError::Setup(error) => exit_of(error),
        BenchError::Io { .. } => Exit::Failed,
        _ => Exit::InvalidRun,
    }
}
