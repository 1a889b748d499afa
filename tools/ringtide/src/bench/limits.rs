//! `ringtide bench limits`.

use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use clap::Args;
use ringtide_perf::Latency;
use ringtide_perf::limits::{self, Limits, Options};
use ringtide_perf::workload::Seconds;
use ringtide_uring::probe;
use serde::Serialize;

use crate::bench::failure;
use crate::bench::json_file::{JsonFile, write_out};
use crate::exit::Failure;
use crate::progress::{Progress, grouped};
use crate::signals::stop_flag;

/// Of the JSON; it grows when a field's meaning changes or a field goes.
const SCHEMA_VERSION: u32 = 1;

#[derive(Debug, Args)]
pub(crate) struct LimitsArgs {
    /// Measure the device of this directory; what is written there, up to 128 MiB, has no name in it
    /// and is gone at the end
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) dir: PathBuf,
    /// The CPUs that a broker's shard and its client would run on
    /// [default: the first and the last that this process may use, as for bench itself]
    #[arg(long, value_name = "BROKER,CLIENT", value_parser = cpus)]
    pub(crate) cpus: Option<Cpus>,
    /// How long each is measured, after a tenth of it as warm-up
    #[arg(
        long,
        value_name = "SECONDS",
        default_value = "3",
        allow_negative_numbers = true
    )]
    pub(crate) duration: Seconds,
    /// Write the figures to this file as JSON; /dev/stdout: to standard output, and the table to
    /// standard error
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// Where threads are placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cpus {
    broker: usize,
    client: usize,
}

impl Cpus {
    /// The first and the last of those that may be used; the only one for both if there are no more.
    fn among(allowed: &[usize]) -> Self {
        Self {
            broker: allowed.first().copied().unwrap_or(0),
            client: allowed.last().copied().unwrap_or(0),
        }
    }
}

fn cpus(text: &str) -> Result<Cpus, String> {
    let two = text.split_once(',').and_then(|(broker, client)| {
        Some(Cpus {
            broker: broker.trim().parse().ok()?,
            client: client.trim().parse().ok()?,
        })
    });
    two.ok_or_else(|| "give the CPU of the broker and that of the client, such as 1,0".into())
}

/// What is written as JSON.
#[derive(Debug, Serialize)]
struct Report<'a> {
    schema_version: u32,
    kind: &'static str,
    #[serde(flatten)]
    limits: &'a Limits,
}

/// Runs it.
pub(crate) fn run(args: &LimitsArgs) -> Result<(), Failure> {
    let cpus = args.cpus.unwrap_or_else(|| Cpus::among(&probe::allowed()));
    let mut options = Options::new(&args.dir, cpus.broker, cpus.client);
    if args.duration.0.is_zero() {
        return Err(Failure::usage("the duration must be longer than nothing"));
    }
    options.duration_each = args.duration.0;
    let json = args.json.as_deref().map(JsonFile::create).transpose()?;

    let limits = measure(&options)?;
    let report = Report {
        schema_version: SCHEMA_VERSION,
        kind: "limits",
        limits: &limits,
    };
    let table = table(&limits);
    write_out(json, &table, &report)
}

fn measure(options: &Options) -> Result<Limits, Failure> {
    let interrupted = stop_flag()?;
    let mut progress = Progress::new();
    let limits = limits::measure(options, |now| {
        progress.tick(|_| {
            let (elapsed, total) = (now.elapsed.as_secs_f64(), now.total.as_secs_f64());
            format!("{}: {elapsed:.0} of {total:.0} s", now.phase)
        });
        if interrupted.load(Ordering::Relaxed) {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    });
    progress.clear();
    limits.map_err(failure)
}

/// For a person.
fn table(limits: &Limits) -> String {
    let place = &limits.place;
    let device = match (&place.device, &place.file_system) {
        (Some(device), Some(file_system)) => format!("{device} ({file_system})"),
        _ => "a device that the system does not name".into(),
    };
    let mut out = format!(
        "limits of this machine, CPU {} as the broker's, CPU {} as the client's, {device}, {} s \
         each\n\n",
        place.server_cpu, place.client_cpu, limits.duration_each_s
    );
    latencies(&mut out, limits);
    rates(&mut out, limits);
    if matches!(place.file_system.as_deref(), Some("tmpfs" | "ramfs")) {
        out.push_str("\nNote: the durable writes went to memory; give --dir on a disk.\n");
    }
    out
}

fn latencies(out: &mut String, limits: &Limits) {
    let _ = writeln!(
        out,
        "{:<26}  {:>7}  {:>7}  {:>7}  {:>7}  {:>7}  {:>8}  {:>8}  {:>9}",
        "microseconds", "min", "p50", "p90", "p99", "p99.9", "p99.99", "max", "count"
    );
    for (name, latency) in [
        ("echo, 128 B, polling", limits.tcp_echo_ns),
        ("echo, 128 B, blocking", limits.tcp_echo_blocking_ns),
        ("durable write, 4 KiB", limits.durable_write_ns),
        ("durable write, 64 KiB", limits.durable_write_64k_ns),
    ] {
        if let Some(latency) = latency {
            line(out, name, &latency);
        }
    }
}

fn line(out: &mut String, name: &str, latency: &Latency) {
    let us = |ns: u64| ns as f64 / 1000.0;
    let _ = writeln!(
        out,
        "{name:<26}  {:>7.1}  {:>7.1}  {:>7.1}  {:>7.1}  {:>7.1}  {:>8.1}  {:>8.1}  {:>9}",
        us(latency.min),
        us(latency.p50),
        us(latency.p90),
        us(latency.p99),
        us(latency.p99_9),
        us(latency.p99_99),
        us(latency.max),
        grouped(latency.count),
    );
}

fn rates(out: &mut String, limits: &Limits) {
    let copy = limits.memory_copy_bytes_per_s;
    let _ = writeln!(out, "\n{:<26}  {:>7}", "rates", "GB/s");
    for (name, rate) in [
        ("memory copy, in L2", copy.map(|copy| copy.within_l2)),
        (
            "memory copy, past caches",
            copy.map(|copy| copy.beyond_caches),
        ),
        ("CRC-32C, 64 KiB", limits.crc32c_bytes_per_s),
        ("cached file to a socket", limits.send_file_bytes_per_s),
    ] {
        if let Some(rate) = rate {
            let _ = writeln!(out, "{name:<26}  {:>7.2}", rate as f64 / 1e9);
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use ringtide_perf::limits::Place;

    use super::*;
    use crate::bench::BenchCommand;
    use crate::cli::{Cli, Command};

    fn parsed(more: &[&str]) -> Result<LimitsArgs, String> {
        let line = [&["ringtide", "bench", "limits"], more].concat();
        let cli = Cli::try_parse_from(line).map_err(|error| error.to_string())?;
        match cli.command {
            Command::Bench(bench) => match bench.command {
                Some(BenchCommand::Limits(args)) => Ok(args),
                other => Err(format!("{other:?}")),
            },
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn columns_stay_apart_however_large_the_latencies_are() {
        let mut out = String::new();
        line(&mut out, "echo", &crate::bench::SLOW);
        let cells = out.split("  ").filter(|cell| !cell.is_empty());
        assert_eq!(cells.count(), 9, "{out}");
    }

    #[test]
    fn limits_takes_its_own_flags_and_none_of_a_broker() {
        let args = parsed(&["--cpus", "3, 2", "--duration", "0.5", "--dir", "d"]).expect("good");
        let (broker, client) = (3, 2);
        assert_eq!(args.cpus, Some(Cpus { broker, client }));
        assert_eq!(args.duration.0.as_millis(), 500);
        assert_eq!(args.dir, PathBuf::from("d"));
        for foreign in [["--server", "h:1"], ["--acks", "durable"]] {
            let refused = parsed(&foreign).expect_err("of a broker");
            assert!(refused.contains(foreign[0]), "{refused}");
        }
        let mixed = Cli::try_parse_from(["ringtide", "bench", "--closed-loop", "limits"]);
        assert!(mixed.is_err(), "{mixed:?}");
    }

    #[test]
    fn a_pair_of_cpus_is_two_numbers() {
        for text in ["", "1", "1,", "1,2,3", "1,-2", "a,b"] {
            let refused = parsed(&["--cpus", text]).expect_err("no pair");
            assert!(refused.contains("such as 1,0"), "{text:?}: {refused}");
        }
    }

    /// Of which all but one durable write and a rate was not wanted.
    fn measured(file_system: &str) -> Limits {
        Limits {
            place: Place {
                kernel: "6.1".into(),
                server_cpu: 1,
                client_cpu: 0,
                disk_cpu: 1,
                spinner_cpu: Some(0),
                device: Some("/dev/vda".into()),
                file_system: Some(file_system.into()),
            },
            duration_each_s: 3.0,
            tcp_echo_ns: None,
            tcp_echo_blocking_ns: None,
            durable_write_ns: Some(Latency {
                min: 1_000,
                mean: 2_000,
                p50: 3_000,
                p90: 4_000,
                p99: 5_000,
                p99_9: 6_000,
                p99_99: 7_000,
                max: 8_040,
                count: 9_000,
            }),
            durable_write_64k_ns: None,
            memory_copy_bytes_per_s: None,
            crc32c_bytes_per_s: Some(12_345_000_000),
            send_file_bytes_per_s: None,
        }
    }

    #[test]
    fn the_table_has_what_was_measured_in_microseconds_and_gigabytes_a_second() {
        let table = table(&measured("ext4"));
        let words: Vec<&str> = table.split_whitespace().collect();
        let words = words.join(" ");
        for wanted in [
            "CPU 1 as the broker's, CPU 0 as the client's, /dev/vda (ext4), 3 s each",
            "durable write, 4 KiB 1.0 3.0 4.0 5.0 6.0 7.0 8.0 9,000",
            "CRC-32C, 64 KiB 12.35",
        ] {
            assert!(words.contains(wanted), "{wanted}: {table}");
        }
        for unwanted in ["echo", "copy", "64 KiB 0", "Note"] {
            assert!(!words.contains(unwanted), "{unwanted}: {table}");
        }
    }

    #[test]
    fn durable_writes_to_memory_are_called_what_they_are() {
        assert!(table(&measured("tmpfs")).contains("went to memory"));
    }

    #[test]
    fn without_a_choice_the_broker_has_the_first_cpu_and_the_client_the_last() {
        let pair = |allowed: &[usize]| {
            let cpus = Cpus::among(allowed);
            (cpus.broker, cpus.client)
        };
        assert_eq!(pair(&[2, 5, 7]), (2, 7));
        assert_eq!(pair(&[3]), (3, 3));
        assert_eq!(pair(&[]), (0, 0));
    }
}
