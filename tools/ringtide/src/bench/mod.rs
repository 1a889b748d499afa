//! `ringtide bench`: how fast the broker is, measured from here. What is measured and how is in
//! `perf/`; here are its command line, its table and its files.

mod closed_loop;
mod json_file;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use ringtide_perf::BenchError;

use crate::cli::{AcksArg, ServerArgs};
use crate::connect::exit_of;
use crate::exit::{Exit, Failure};

/// The longest measurement that is taken for meant, in seconds.
const LONGEST_S: f64 = 86_400.0;

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// One publisher that waits for each acknowledgement before it publishes the next record; the
    /// only measurement of this version, so it must be given
    #[arg(long)]
    pub(crate) closed_loop: bool,
    /// When a record counts as published: accepted or durable
    #[arg(long, value_name = "LEVEL", default_value = "durable")]
    pub(crate) acks: AcksArg,
    /// What each record has; bytes, plain or with KiB
    #[arg(
        long,
        value_name = "BYTES",
        default_value = "128",
        value_parser = crate::cli::bytes,
        allow_negative_numbers = true
    )]
    pub(crate) size: u32,
    /// How long is measured, after a second of warm-up
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds, allow_negative_numbers = true)]
    pub(crate) duration: Duration,
    /// Measure as well how long it takes until a subscriber has the record
    #[arg(long)]
    pub(crate) deliver: bool,
    /// Run on this CPU [default: wherever the system likes]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) cpu: Option<usize>,
    /// Write the figures to this file as JSON; /dev/stdout: to standard output, and the table to
    /// standard error
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

fn seconds(text: &str) -> Result<Duration, String> {
    text.parse::<f64>()
        .ok()
        .filter(|seconds| *seconds > 0.0 && *seconds <= LONGEST_S)
        .map(Duration::from_secs_f64)
        .ok_or_else(|| format!("give seconds such as 10 or 0.5, at most {LONGEST_S}"))
}

/// Runs the command.
pub(crate) fn run(args: &BenchArgs) -> Result<(), Failure> {
    if !args.closed_loop {
        return Err(Failure::usage(
            "this version measures in a closed loop only: give --closed-loop",
        ));
    }
    closed_loop::run(args)
}

fn exit_of_bench(error: &BenchError) -> Exit {
    match error {
        BenchError::Usage(_) => Exit::Usage,
        BenchError::Setup(error) => exit_of(error),
        BenchError::Io { .. } => Exit::Failed,
        _ => Exit::InvalidRun,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_a_positive_number_of_seconds() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for text in ["0", "-1", "NaN", "inf", "1e9", "ten", ""] {
            assert!(seconds(text).is_err(), "{text:?}");
        }
    }
}
