//! `ringtide bench`: measures a running broker.
//!
//! The load generator is crate `ringtide-perf`; here are its command line, its progress and how its
//! figures are shown. A run that did not last to its end gives no figures and an exit code of its own.

use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ringtide_client::Acks;
use ringtide_perf::BenchError;
use ringtide_perf::closed_loop::{self, Measured, Options, Report};

use crate::cli::{AcksArg, BenchArgs};
use crate::connect::exit_of;
use crate::exit::{Exit, Failure};
use crate::output;
use crate::progress::{Progress, grouped};
use crate::signals::stop_flag;

/// Runs the command.
pub(crate) fn run(args: BenchArgs) -> Result<(), Failure> {
    let mut options = Options::new(args.server.server);
    options.acks = match args.acks {
        AcksArg::None => Acks::None,
        AcksArg::Accepted => Acks::Accepted,
        AcksArg::Durable => Acks::Durable,
    };
    options.size = args.size;
    options.duration = Duration::from_secs(args.duration);
    options.cpu = args.cpu;
    options.deliver = args.deliver;
    let stop = stop_flag()?;
    let mut progress = Progress::new();
    let report = closed_loop::run(&options, |now| {
        progress.tick(|_| {
            let (elapsed, total) = (now.elapsed.as_secs(), now.total.as_secs());
            format!(
                "{}: {elapsed} of {total} s, {} records",
                now.phase,
                grouped(now.acknowledged)
            )
        });
        if stop.load(Ordering::Relaxed) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    progress.clear();
    let report = report.map_err(|error| Failure::new(exit_for(&error), error.to_string()))?;
    if let Some(path) = &args.json {
        write_json(path, &report)?;
    }
    output::print(&text(&report))
}

fn exit_for(error: &BenchError) -> Exit {
    match error {
        BenchError::Usage(_) => Exit::Usage,
        BenchError::Setup(error) => exit_of(error),
        BenchError::Io { .. } => Exit::Failed,
        _ => Exit::InvalidRun,
    }
}

fn write_json(path: &Path, report: &Report) -> Result<(), Failure> {
    let mut json =
        serde_json::to_string_pretty(report).expect("numbers and strings are always JSON");
    json.push('\n');
    std::fs::write(path, json).map_err(|error| {
        Failure::failed(format!(
            "cannot write the figures to {}: {error}",
            path.display()
        ))
    })
}

fn text(report: &Report) -> String {
    let config = &report.config;
    let mut out = format!(
        "one publisher, one record of {} bytes in flight, acks {}, {} s\n\n{:24}{:>10}{:>10}{:>10}{:>10}{:>10}{:>14}\n",
        config.size,
        config.acks,
        config.duration_s,
        "microseconds",
        "p50",
        "p90",
        "p99",
        "p99.9",
        "max",
        "records/s"
    );
    line(&mut out, "publish to acknowledged", &report.produce);
    if let Some(measured) = &report.end_to_end {
        line(&mut out, "publish to delivered", measured);
    }
    let _ = writeln!(out, "\n{}", report.note);
    out
}

fn line(out: &mut String, name: &str, measured: &Measured) {
    let us = |ns: u64| ns as f64 / 1000.0;
    let l = &measured.latency_ns;
    let _ = writeln!(
        out,
        "{name:24}{:>10.1}{:>10.1}{:>10.1}{:>10.1}{:>10.1}{:>14.0}",
        us(l.p50),
        us(l.p90),
        us(l.p99),
        us(l.p99_9),
        us(l.max),
        measured.rate_per_s
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_does_not_count_is_told_from_one_that_never_began() {
        assert_eq!(exit_for(&BenchError::Interrupted), Exit::InvalidRun);
        assert_eq!(exit_for(&BenchError::Wrong("x".into())), Exit::InvalidRun);
        assert_eq!(exit_for(&BenchError::Usage("x".into())), Exit::Usage);
        let away = ringtide_client::Error::Connect {
            server: "h:1".into(),
            kind: std::io::ErrorKind::ConnectionRefused,
            why: "refused".into(),
        };
        assert_eq!(exit_for(&BenchError::Setup(away)), Exit::Unreachable);
    }
}
