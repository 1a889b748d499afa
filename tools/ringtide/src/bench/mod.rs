//! `ringtide bench`: how fast the broker is, measured from here. What is measured, how and when it counts
//! is in `perf/`; here are its command line, the brokers that it starts, the runs that a sweep, a
//! comparison or a soak makes and what those judge, tables and files.

mod closed_loop;
mod compare;
mod growth;
mod hlog_file;
mod json_file;
mod limits;
mod load_args;
mod open_loop;
mod open_table;
mod output_file;
mod own_broker;
mod page_file;
mod pairs;
mod placement;
mod search;
mod side;
mod soak;
mod soak_lines;
mod subject;
mod sweep;
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
    /// next record. Takes --acks, --size, --duration, --warm-up, --deliver, --cpus, --server and --json
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
    /// Start the broker on threads of this process instead of in one of its own. What it warns of goes to
    /// standard error
    #[arg(long, conflicts_with_all = ["closed_loop", "server"])]
    pub(crate) in_process: bool,
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
    /// Write a page with the figures and charts of them to this file, to be read in a browser without a
    /// network
    #[arg(long, value_name = "FILE.html", conflicts_with = "closed_loop")]
    pub(crate) report: Option<PathBuf>,
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
    /// Find the highest rate at which a latency is kept
    ///
    /// The rate goes up step by step, each an open loop with a topic of its own, until 99 of 100 records
    /// are no longer acknowledged within --p99 or the rate is not achieved; then between the last two,
    /// to 5 %. A step that was disturbed is run once more before it is believed, and so is the first
    /// that does not hold; the highest rate has to hold twice. --from and --to stand for --rate, and --step-duration for --duration. The exit
    /// code is 3 if no rate holds, or the step that says it does not count.
    // A sweep has others instead.
    #[command(mut_arg("rate", |arg| arg.hide(true)), mut_arg("duration", |arg| arg.hide(true)))]
    Sweep(Box<sweep::SweepArgs>),
    /// Compare two brokers, settings or loads in pairs of runs
    ///
    /// A and B run in turn, AB BA AB, each time with a broker and a directory of their own. Of each figure
    /// there is the median of the pairs' ratios B to A with the least and the most, and whether all lie
    /// on one side of 1. How often that is so when nothing differs is said below. A side is
    /// serve:KEY=VALUE,KEY=VALUE with settings of `ringtide serve` (serve: alone for none),
    /// load:KEY=VALUE,KEY=VALUE with flags of the load, the path of another ringtide, or PATH:serve:...,
    /// PATH:load:... and serve:...:load:... in one; a value may have commas, as in serve:cpus=0,1. The
    /// exit code is 3 if a run does not count.
    ///
    /// For example: ringtide bench compare serve:idle=spin serve:idle=adaptive --rate 50000
    Compare(Box<compare::CompareArgs>),
    /// Run for hours, and look whether the broker keeps what it should give back
    ///
    /// The topic has small segments and a retention of about 30 s, so that segments are begun and
    /// removed all the time, and every record is verified by subscribers as it passes. A broker that is
    /// started here has small files of its write-ahead log as well. The exit code is 3 if a record went
    /// wrong, or the broker's memory or open files keep growing: over the lines since it first removed
    /// something, by more than a tenth of the first line and by 64 MiB or 32 files; with fewer than 9 such
    /// lines, or over less than two minutes, that is not judged.
    Soak(Box<soak::SoakArgs>),
}

/// Runs the command.
pub(crate) fn run(args: &BenchArgs) -> Result<(), Failure> {
    match &args.command {
        Some(BenchCommand::Limits(args)) => limits::run(args),
        Some(BenchCommand::Sweep(args)) => sweep::run(args),
        Some(BenchCommand::Compare(args)) => compare::run(args),
        Some(BenchCommand::Soak(args)) => soak::run(args),
        None if args.closed_loop => closed_loop::run(args),
        None => open_loop::run(args),
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
        BenchError::Io { .. } | BenchError::NotStarted(_) => Exit::Failed,
        _ => Exit::InvalidRun,
    }
}

/// As slow as can be.
#[cfg(test)]
const SLOW: ringtide_perf::Latency = ringtide_perf::Latency {
    min: u64::MAX,
    mean: u64::MAX,
    p50: u64::MAX,
    p90: u64::MAX,
    p99: u64::MAX,
    p99_9: u64::MAX,
    p99_99: u64::MAX,
    max: u64::MAX,
    count: u64::MAX,
};
