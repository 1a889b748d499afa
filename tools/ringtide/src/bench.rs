//! `ringtide bench`: how fast the broker is, measured from here. What is measured and how is in
//! `perf/`; here are its command line, its table and its files.

use std::fmt::Write as _;
use std::fs::{File, Metadata};
use std::io::{self, Write as _};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::Args;
use ringtide_client::Acks;
use ringtide_perf::BenchError;
use ringtide_perf::closed_loop::{self, Measured, Report};

use crate::cli::{AcksArg, ServerArgs};
use crate::connect::exit_of;
use crate::exit::{Exit, Failure};
use crate::output::print;
use crate::progress::{Progress, grouped};
use crate::signals::stop_flag;

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
    let mut options = closed_loop::Options::new(&args.server.server);
    options.acks = match args.acks {
        AcksArg::None => Acks::None,
        AcksArg::Accepted => Acks::Accepted,
        AcksArg::Durable => Acks::Durable,
    };
    options.size = args.size as usize;
    options.duration = args.duration;
    options.deliver = args.deliver;
    options.cpu = args.cpu;
    let json = args.json.as_deref().map(JsonFile::create).transpose()?;

    let report = measure(&options)?;
    let table = table(&report);
    match json {
        Some(json) if json.is_stdout => {
            // Whoever reads it reads JSON and nothing else.
            let _ = io::stderr().write_all(table.as_bytes());
            json.write(&report)
        }
        Some(json) => {
            json.write(&report)?;
            print(&table)
        }
        None => print(&table),
    }
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
    report.map_err(|error| Failure::new(exit_of_bench(&error), error.to_string()))
}

fn exit_of_bench(error: &BenchError) -> Exit {
    match error {
        BenchError::Usage(_) => Exit::Usage,
        BenchError::Setup(error) => exit_of(error),
        BenchError::Io { .. } => Exit::Failed,
        _ => Exit::InvalidRun,
    }
}

/// The file for the figures: opened before the measurement, so that a wrong path costs no time. It is
/// written beside its place and put there when it is whole; what is no file is written directly, and
/// so is standard output or error, which may be a file that holds more than this.
struct JsonFile {
    path: PathBuf,
    beside: Option<PathBuf>,
    file: File,
    is_stdout: bool,
}

impl JsonFile {
    fn create(path: &Path) -> Result<Self, Failure> {
        let refused = |error: io::Error| {
            let path = path.display();
            Failure::usage(format!("--json {path}: cannot write there: {error}"))
        };
        let direct = |file, is_stdout| Self {
            path: path.into(),
            beside: None,
            file,
            is_stdout,
        };
        if let Ok(found) = path.metadata() {
            if let Some(stdout) = stream_at(&found, io::stdout()) {
                return Ok(direct(stdout, true));
            }
            if let Some(stderr) = stream_at(&found, io::stderr()) {
                return Ok(direct(stderr, false));
            }
            if !found.is_file() {
                let file = File::options().write(true).open(path).map_err(refused)?;
                return Ok(direct(file, false));
            }
        }
        // Of a link, the file that it leads to.
        let path = path.canonicalize().unwrap_or_else(|_| path.into());
        let mut beside = path.clone().into_os_string();
        beside.push(format!(".{}.tmp", std::process::id()));
        let beside = PathBuf::from(beside);
        let file = File::create(&beside).map_err(refused)?;
        Ok(Self {
            path,
            beside: Some(beside),
            file,
            is_stdout: false,
        })
    }

    fn write(mut self, report: &Report) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(report)
            .map_err(|error| Failure::failed(format!("cannot write JSON: {error}")))?;
        self.put(&text).map_err(|error| {
            Failure::failed(format!("cannot write {}: {error}", self.path.display()))
        })
    }

    fn put(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.file, "{text}")?;
        if let Some(beside) = &self.beside {
            std::fs::rename(beside, &self.path)?;
            self.beside = None;
        }
        Ok(())
    }
}

/// The stream, if it leads to the file that was found.
fn stream_at(found: &Metadata, stream: impl AsFd) -> Option<File> {
    let stream: File = stream.as_fd().try_clone_to_owned().ok()?.into();
    let metadata = stream.metadata().ok()?;
    ((metadata.dev(), metadata.ino()) == (found.dev(), found.ino())).then_some(stream)
}

impl Drop for JsonFile {
    fn drop(&mut self) {
        if let Some(beside) = &self.beside {
            // A file left behind would do no harm.
            let _ = std::fs::remove_file(beside);
        }
    }
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
        "{:<24}{:>9}{:>9}{:>9}{:>9}{:>11}{:>13}{:>11}",
        "microseconds", "p50", "p90", "p99", "p99.9", "max", "records", "a second"
    );
    let mut line = |name: &str, measured: &Measured| {
        let us = |ns: u64| ns as f64 / 1000.0;
        let latency = &measured.latency_ns;
        let _ = writeln!(
            out,
            "{name:<24}{:>9.1}{:>9.1}{:>9.1}{:>9.1}{:>11.1}{:>13}{:>11}",
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

    #[test]
    fn figures_replace_those_of_before_when_they_are_whole_and_not_before() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("figures.json");
        let files = || std::fs::read_dir(dir.path()).expect("a directory").count();
        drop(JsonFile::create(&path).expect("writable"));
        assert_eq!(files(), 0);
        std::fs::write(&path, "before").expect("written");
        drop(JsonFile::create(&path).expect("writable"));
        assert_eq!(std::fs::read(&path).expect("there"), b"before");
        let mut file = JsonFile::create(&path).expect("writable");
        file.put("after").expect("written");
        drop(file);
        assert_eq!(std::fs::read(&path).expect("there"), b"after\n");
        assert_eq!(files(), 1);
        assert!(JsonFile::create(&dir.path().join("absent/figures.json")).is_err());
    }
}
