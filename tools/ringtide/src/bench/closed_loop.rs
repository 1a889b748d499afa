//! `ringtide bench --closed-loop`.

use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

use ringtide_perf::closed_loop::{self, Measured, Report};

use crate::bench::json_file::{JsonFile, write_out};
use crate::bench::{BenchArgs, failure};
use crate::exit::Failure;
use crate::progress::{Progress, grouped};
use crate::signals::stop_flag;

/// Where a broker is looked for, as the other commands do.
const DEFAULT_SERVER: &str = "127.0.0.1:7311";

/// Runs it.
pub(crate) fn run(args: &BenchArgs) -> Result<(), Failure> {
    let load = &args.load;
    if let Some(flag) = load.flag_of_a_schedule() {
        return Err(Failure::usage(format!(
            "--{flag} is of a schedule, and a closed loop has none: leave one of them out"
        )));
    }
    let plan = load.plan();
    let server = args.server.as_deref().unwrap_or(DEFAULT_SERVER);
    let mut options = closed_loop::Options::new(server);
    options.acks = load.acks();
    options.size = plan.value_bytes();
    options.duration = plan.duration;
    options.warm_up = plan.warm_up;
    options.deliver = args.deliver;
    options.cpu = match args.cpus.as_deref() {
        None => None,
        Some([cpu]) => Some(*cpu),
        Some(_) => {
            return Err(Failure::usage(
                "a closed loop is one thread: give one of --cpus",
            ));
        }
    };
    let json = args.json.as_deref().map(JsonFile::create).transpose()?;

    let report = measure(&options)?;
    let table = table(&report);
    write_out(json, &table, &report)
}

fn measure(options: &closed_loop::Options) -> Result<Report, Failure> {
    let interrupted = stop_flag()?;
    let mut progress = Progress::new();
    let report = closed_loop::run(options, |now| {
        progress.tick(|_| {
            let (elapsed, total) = (now.elapsed.as_secs_f64(), now.total.as_secs_f64());
            let acknowledged = grouped(now.acknowledged);
            format!(
                "{}: {elapsed:.0} of {total:.0} s, {acknowledged} records",
                now.phase
            )
        });
        if interrupted.load(Ordering::Relaxed) {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    });
    progress.clear();
    report.map_err(failure)
}

/// For a person.
fn table(report: &Report) -> String {
    let config = &report.config;
    let mut out = format!(
        "closed loop, acks {}, {} bytes, one in flight, {} s after {} s of warm-up\n\n",
        config.acks, config.size, config.duration_s, config.warm_up_s
    );
    let _ = writeln!(
        out,
        "{:<24}  {:>7}  {:>7}  {:>7}  {:>7}  {:>9}  {:>11}  {:>9}",
        "microseconds", "p50", "p90", "p99", "p99.9", "max", "records", "a second"
    );
    let mut line = |name: &str, measured: &Measured| {
        let us = |ns: u64| ns as f64 / 1000.0;
        let latency = &measured.latency_ns;
        let _ = writeln!(
            out,
            "{name:<24}  {:>7.1}  {:>7.1}  {:>7.1}  {:>7.1}  {:>9.1}  {:>11}  {:>9}",
            us(latency.p50),
            us(latency.p90),
            us(latency.p99),
            us(latency.p99_9),
            us(latency.max),
            grouped(measured.count),
            grouped(measured.rate_per_s.round() as u64),
        );
    };
    line("publish to answer", &report.produce);
    if let Some(end_to_end) = &report.end_to_end {
        line("publish to delivery", end_to_end);
    }
    let _ = writeln!(out, "\nNote: {}.", report.note);
    out
}
