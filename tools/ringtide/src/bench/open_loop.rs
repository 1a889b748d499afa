//! `ringtide bench`: a load that does not wait for the broker, against one that runs or one of its own.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::net::ToSocketAddrs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
use ringtide_client::sync::Client;
use ringtide_client::{Acks, Codec, TopicSettings, Visibility};
use ringtide_perf::BenchError;
use ringtide_perf::broker::{Broker, Launch};
use ringtide_perf::machine::{Between, Counters, Host, Parts};
use ringtide_perf::open_loop::ringtide::RingtideTopic;
use ringtide_perf::open_loop::timing::{Second, Times};
use ringtide_perf::open_loop::{self, Outcome, Plan};
use ringtide_perf::report::{Config, Environment, Facts, Flush, Report};
use ringtide_perf::workload::Workload;
use tempfile::TempDir;

use crate::bench::json_file::JsonFile;
use crate::bench::{BenchArgs, exit_of_bench};
use crate::exit::{Exit, Failure};
use crate::output::print;
use crate::progress::{Progress, grouped};
use crate::signals::stop_flag;

/// Runs it.
pub(crate) fn run(args: &BenchArgs) -> Result<(), Failure> {
    let mut workload = args.load.clone();
    if let Some(name) = &args.workload {
        workload = workload.or(Workload::load(name).map_err(failure)?);
    }
    let feed = workload.read_feed().map_err(failure)?;
    let placement = Placement::choose(args)?;
    let mut plan = workload.plan();
    plan.cpus.clone_from(&placement.generator);
    plan.verify = !args.no_verify;
    plan.check(feed.as_ref()).map_err(failure)?;
    let json = args.json.as_deref().map(JsonFile::create).transpose()?;
    let hlog = args.hlog.as_deref().map(HlogFile::create).transpose()?;
    let interrupted = stop_flag()?;

    let began = SystemTime::now();
    let measured = Measured::prepare(args, &workload, &placement, &plan).map_err(failure)?;
    let mut watch = Watching {
        progress: Progress::new(),
        interrupted,
        hlog,
        parts: measured.parts(),
        before: None,
        meanwhile: None,
        began,
    };
    let outcome = open_loop::run(&plan, feed.as_ref(), &measured.topic, &mut watch);
    watch.progress.clear();
    let (meanwhile, hlog) = (watch.meanwhile, watch.hlog);
    let outcome = outcome.map_err(failure)?;
    let facts = measured.facts(args, &workload, &plan, &placement, began, meanwhile);
    let report = Report::new(&plan, &outcome, facts);
    measured.end(&outcome);

    let hlog = hlog.map_or(Ok(()), HlogFile::finish);
    let table = table(&report, measured.own_broker());
    match json {
        Some(json) if json.is_stdout => {
            // Whoever reads it reads JSON and nothing else.
            let _ = io::stderr().write_all(table.as_bytes());
            json.write(&report)?;
        }
        Some(json) => {
            json.write(&report)?;
            print(&table)?;
        }
        None => print(&table)?,
    }
    hlog?;
    if report.valid {
        return Ok(());
    }
    let words = "the figures do not count; the reasons are above";
    Err(Failure::new(Exit::InvalidRun, words))
}

fn failure(error: BenchError) -> Failure {
    Failure::new(exit_of_bench(&error), error.to_string())
}

/// Who runs where.
struct Placement {
    generator: Vec<Option<usize>>,
    /// The shards of a broker that is started here.
    broker: Vec<usize>,
    idle: &'static str,
}

impl Placement {
    /// As asked for; else the generator has the last CPU and the broker the first.
    fn choose(args: &BenchArgs) -> Result<Self, Failure> {
        let cpus = ringtide_uring::probe::allowed();
        let (first, last) = match cpus[..] {
            [] => (0, 0),
            [only] => (only, only),
            [first, .., last] => (first, last),
        };
        let generator = match &args.cpus {
            Some(cpus) => cpus.clone(),
            None => vec![last],
        };
        let broker = args.broker_cpus.clone().unwrap_or_else(|| vec![first]);
        if args.server.is_some() && args.broker_cpus.is_some() {
            return Err(Failure::usage(
                "--broker-cpus is for a broker that is started here: leave --server out, or the \
                 environment variable RINGTIDE_SERVER",
            ));
        }
        let apart = broker.iter().all(|cpu| !generator.contains(cpu));
        Ok(Self {
            generator: generator.into_iter().map(Some).collect(),
            broker,
            // A spinning broker on the generator's CPU would take half of its time.
            idle: if apart { "spin" } else { "adaptive" },
        })
    }
}

/// A broker of our own, on a directory that is removed in the end.
struct OwnBroker {
    broker: Broker,
    home: TempDir,
}

/// What is measured.
struct Measured {
    server: String,
    own: Option<OwnBroker>,
    name: String,
    topic: RingtideTopic,
}

impl Measured {
    fn prepare(
        args: &BenchArgs,
        workload: &Workload,
        placement: &Placement,
        plan: &Plan,
    ) -> Result<Self, BenchError> {
        let own = match &args.server {
            Some(_) => None,
            None => Some(OwnBroker::start(placement)?),
        };
        let server = match (&args.server, &own) {
            (Some(server), _) => server.clone(),
            (None, Some(own)) => own.broker.server.clone(),
            (None, None) => String::new(),
        };
        let client = Client::connect([&server], ringtide_perf::lone_topic::options())?;
        let name = ringtide_perf::lone_topic::fresh_name("load");
        let settings = TopicSettings {
            visible: Some(workload.visible()),
            ..TopicSettings::default()
        };
        let topic = client.create_topic(&name, plan.partitions, &settings)?;
        let mut partitions = Vec::new();
        for partition in 0..plan.partitions {
            partitions.push((topic.partition(partition), client.owner(&topic, partition)?));
        }
        Ok(Self {
            server,
            own,
            name,
            topic: RingtideTopic {
                partitions,
                acks: workload.acks(),
                codec: workload.codec(),
                in_flight: workload.in_flight.map_or(usize::MAX, |n| n as usize),
            },
        })
    }

    fn own_broker(&self) -> bool {
        self.own.is_some()
    }

    fn parts(&self) -> Parts {
        Parts {
            broker_pid: self.own.as_ref().map(|own| own.broker.pid()),
            disk: None,
        }
    }

    fn facts(
        &self,
        args: &BenchArgs,
        workload: &Workload,
        plan: &Plan,
        placement: &Placement,
        began: SystemTime,
        meanwhile: Option<Between>,
    ) -> Facts {
        let mut config = Config::of(plan);
        config.workload.clone_from(&args.workload);
        config.about.clone_from(&workload.about);
        config.server.clone_from(&self.server);
        config.acks = match self.topic.acks {
            Acks::None => "none",
            Acks::Accepted => "accepted",
            Acks::Durable => "durable",
        }
        .into();
        config.visible = match workload.visible() {
            Visibility::Accepted => "accepted",
            Visibility::Durable => "durable",
        }
        .into();
        config.compression = match self.topic.codec {
            Codec::Lz4 => "lz4",
            Codec::Zstd => "zstd",
            _ => "none",
        }
        .into();
        config.feed = workload.feed.as_ref().map(|f| f.display().to_string());
        let began_ms = began.duration_since(UNIX_EPOCH).unwrap_or_default();
        let spins = self.own.is_some() && placement.idle == "spin";
        Facts {
            config,
            environment: Environment {
                began_unix_ms: began_ms.as_millis() as u64,
                version: env!("CARGO_PKG_VERSION").into(),
                commit: "unknown".into(),
                host: Host::look(),
                transport: match is_loopback(&self.server) {
                    true => "loopback",
                    false => "network",
                },
                broker: serde_json::Value::Null,
                meanwhile,
                flush: match self.topic.acks {
                    Acks::Durable => Flush::Unknown,
                    _ => Flush::NotPromised,
                },
            },
            spinning: plan.cpus.len() + if spins { placement.broker.len() } else { 0 },
            broker_cpus: match spins {
                true => placement.broker.clone(),
                false => Vec::new(),
            },
            limits: None,
            shortest_write_ns: None,
            wal: None,
        }
    }

    /// Leaves a broker that is not ours as it was.
    fn end(&self, outcome: &Outcome) {
        if self.own.is_some() {
            return;
        }
        let mut options = ringtide_perf::lone_topic::options();
        if outcome.error.is_some() {
            // The broker may be gone.
            let patience = Duration::from_secs(2);
            options = options.call_timeout(patience).connect_timeout(patience);
        }
        let deleted =
            Client::connect([&self.server], options).and_then(|c| c.delete_topic(&self.name));
        if let Err(error) = deleted {
            crate::output::say(format!(
                "the topic {} may be left behind: {error}",
                self.name
            ));
        }
    }
}

impl OwnBroker {
    fn start(placement: &Placement) -> Result<Self, BenchError> {
        let home = tempfile::Builder::new()
            .prefix("ringtide-bench-")
            .tempdir_in(".")
            .map_err(BenchError::io(
                "cannot make a directory for a broker here; go to one that can be written to, or name a \
                 broker with --server",
            ))?;
        let binary = std::env::current_exe()
            .map_err(BenchError::io("cannot find this program to start a broker"))?;
        let launch = Launch {
            binary,
            cpus: placement.broker.clone(),
        };
        let broker = launch.start(&home.path().join("data"), placement.idle, &[])?;
        Ok(Self { broker, home })
    }
}

impl Drop for OwnBroker {
    fn drop(&mut self) {
        // Before the directory goes.
        self.broker.end();
        let _ = &self.home;
    }
}

fn is_loopback(server: &str) -> bool {
    let addresses = server.to_socket_addrs();
    addresses.is_ok_and(|mut found| found.all(|address| address.ip().is_loopback()))
}

/// Looks on while it runs.
struct Watching {
    progress: Progress,
    interrupted: Arc<AtomicBool>,
    hlog: Option<HlogFile>,
    parts: Parts,
    before: Option<Counters>,
    meanwhile: Option<Between>,
    began: SystemTime,
}

impl open_loop::Watch for Watching {
    fn progress(&mut self, now: open_loop::Progress) -> ControlFlow<()> {
        self.progress.tick(|_| {
            let (elapsed, total) = (now.elapsed.as_secs_f64(), now.total.as_secs_f64());
            let acked = grouped(now.acked);
            format!(
                "{}: {elapsed:.0} of {total:.0} s, {acked} records",
                now.phase
            )
        });
        if self.interrupted.load(Ordering::Relaxed) {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    fn second(&mut self, second: &Second, times: &Times) {
        if let Some(hlog) = &mut self.hlog {
            hlog.add(second, times);
        }
    }

    fn measuring(&mut self, is_measuring: bool) {
        let now = Counters::read(&self.parts);
        if is_measuring {
            if let Some(hlog) = &mut self.hlog {
                hlog.begin(self.began);
            }
            self.before = Some(now);
        } else if let Some(before) = &self.before {
            self.meanwhile = Some(before.until(&now));
        }
    }
}

/// A log of histograms, second by second, as HdrHistogram's own tools read it. An error while it is
/// written is kept until the end.
struct HlogFile {
    file: BufWriter<File>,
    path: String,
    began: SystemTime,
    error: Option<String>,
}

impl HlogFile {
    fn create(path: &Path) -> Result<Self, Failure> {
        let name = path.display().to_string();
        let file = File::create(path)
            .map_err(|e| Failure::usage(format!("--hlog {name}: cannot write there: {e}")))?;
        Ok(Self {
            file: BufWriter::new(file),
            path: name,
            began: UNIX_EPOCH,
            error: None,
        })
    }

    fn begin(&mut self, began: SystemTime) {
        self.began = began;
        let mut serializer = V2DeflateSerializer::new();
        let written = IntervalLogWriterBuilder::new()
            .add_comment("ringtide bench: nanoseconds from when each record was due")
            .with_start_time(began)
            .with_base_time(began)
            .with_max_value_divisor(1e6)
            .begin_log_with(&mut self.file, &mut serializer)
            .map(drop);
        self.keep(written.map_err(|e| e.to_string()));
    }

    fn add(&mut self, second: &Second, times: &Times) {
        let mut serializer = V2DeflateSerializer::new();
        let written = (|| {
            let mut log = IntervalLogWriterBuilder::new()
                .with_max_value_divisor(1e6)
                .begin_log_with(&mut self.file, &mut serializer)
                .map_err(|e| e.to_string())?;
            for (tag, recorder) in [
                ("produce", &times.latency),
                ("service", &times.service),
                ("lag", &times.lag),
                ("end-to-end", &times.end_to_end),
            ] {
                if recorder.count() > 0 {
                    let start = Duration::from_secs(second.at_s);
                    let length = Duration::from_secs(1);
                    log.write_histogram(recorder.histogram(), start, length, Tag::new(tag))
                        .map_err(|e| format!("{e:?}"))?;
                }
            }
            Ok(())
        })();
        self.keep(written);
    }

    fn keep(&mut self, written: Result<(), String>) {
        if let Err(error) = written {
            self.error.get_or_insert(error);
        }
    }

    fn finish(mut self) -> Result<(), Failure> {
        let flushed = self.file.flush().map_err(|e| e.to_string());
        self.keep(flushed);
        self.error.map_or(Ok(()), |error| {
            Err(Failure::failed(format!(
                "cannot write {}: {error}",
                self.path
            )))
        })
    }
}

/// For a person.
fn table(report: &Report, is_own: bool) -> String {
    let config = &report.config;
    let mut out = String::new();
    if is_own {
        let _ = writeln!(
            out,
            "A broker of its own was measured, on a directory that is removed now.\n"
        );
    }
    let _ = writeln!(
        out,
        "open loop, {} schedule, acks {}, {} bytes, {} to {} to {}, {} s after {} s of warm-up\n",
        config.schedule,
        config.acks,
        config.size,
        counted(config.publishers, "publisher"),
        counted(config.partitions, "partition"),
        counted(config.subscribers, "subscriber"),
        config.duration_s,
        config.warm_up_s
    );
    let _ = writeln!(
        out,
        "{:<28}{:>9}{:>9}{:>9}{:>9}{:>11}{:>13}",
        "microseconds", "p50", "p90", "p99", "p99.9", "max", "records"
    );
    let mut line = |name: &str, latency: Option<ringtide_perf::Latency>, count: u64| {
        let Some(latency) = latency else { return };
        let us = |ns: u64| ns as f64 / 1000.0;
        let _ = writeln!(
            out,
            "{name:<28}{:>9.1}{:>9.1}{:>9.1}{:>9.1}{:>11.1}{:>13}",
            us(latency.p50),
            us(latency.p90),
            us(latency.p99),
            us(latency.p99_9),
            us(latency.max),
            grouped(count),
        );
    };
    let produce = &report.produce;
    line("due to acknowledged", produce.latency_ns, produce.count);
    line("  sent to acknowledged", produce.service_ns, produce.count);
    if let Some(end_to_end) = &report.end_to_end {
        line(
            "due to delivered",
            Some(end_to_end.latency_ns),
            end_to_end.count,
        );
    }
    line("due to turned to", report.schedule.lag_ns, produce.count);
    let balance = &report.verify.balance;
    let _ = writeln!(
        out,
        "\n{} records a second were due, {} were achieved ({:.1} MB/s)",
        grouped(report.schedule.target_rate_per_s.round() as u64),
        grouped(report.schedule.achieved_rate_per_s.round() as u64),
        produce.bytes_per_s / 1e6
    );
    let _ = writeln!(
        out,
        "{} sent, {} acknowledged, {} delivered: {} lost, {} duplicated, {} reordered, {} corrupt",
        grouped(balance.sent),
        grouped(balance.acked),
        grouped(balance.received),
        balance.lost,
        balance.duplicated,
        balance.reordered,
        balance.corrupt
    );
    if report.valid {
        out.push_str("\nvalid\n");
    } else {
        out.push_str("\nINVALID:\n");
        for reason in &report.reasons {
            let _ = writeln!(out, "  {reason}");
        }
    }
    out
}

fn counted(count: u32, what: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{} {what}{s}", grouped(count.into()))
}
