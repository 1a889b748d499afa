//! One measurement: the load of `ringtide bench` against another broker, and the same report of it.

use std::fs;
use std::io::{self, Write as _};
use std::net::ToSocketAddrs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Args;
use ringtide_perf::BenchError;
use ringtide_perf::lone_topic::fresh_name;
use ringtide_perf::machine::{Between, Counters, Host, Parts};
use ringtide_perf::open_loop::{self, Plan, Progress, Watch};
use ringtide_perf::report::{
    BrokerHere, BrokerProcess, Config, Environment, Facts, Flush, Report,
};
use ringtide_perf::workload::{Compression, Workload};

use crate::peer::{Durability, Peer, Place, failed};

/// How often the progress line is written.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Which broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Redis Streams.
    Redis,
    /// NATS JetStream.
    Nats,
    /// The Kafka protocol.
    Kafka,
}

/// The command line of a measurement.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The broker that is measured
    #[arg(long, value_name = "HOST:PORT")]
    server: String,
    /// A load by its name or a file; flags win
    #[arg(long, value_name = "NAME|FILE")]
    workload: Option<String>,
    #[command(flatten)]
    load: Workload,
    /// What its acknowledgements promise; instead of --acks and --visible, which have no meaning here
    #[arg(long, value_name = "WHICH", default_value = "durable")]
    durability: Durability,
    /// CPUs of the generator, a thread on each, such as 1 or 2,3 [default: wherever the system likes]
    #[arg(long, alias = "cpu", value_name = "LIST", value_delimiter = ',')]
    cpus: Option<Vec<usize>>,
    /// The broker's process, so that its time is not taken for that of strangers
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// The disk of the broker's data, such as vda, to see whether it was flushed
    #[arg(long, value_name = "NAME")]
    disk: Option<String>,
    /// Do not read everything back when there are no subscribers
    #[arg(long)]
    no_verify: bool,
    /// Write the report to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Measures, and says whether the figures count.
///
/// # Errors
/// When there are no figures.
pub fn run(kind: Kind, args: &RunArgs) -> Result<bool, BenchError> {
    let mut load = args.load.clone();
    if let Some(name) = &args.workload {
        load = load.or(Workload::load(name)?);
    }
    let feed = load.read_feed()?;
    let mut plan = load.plan();
    plan.verify = !args.no_verify;
    if let Some(cpus) = &args.cpus {
        plan.cpus = cpus.iter().copied().map(Some).collect();
    }
    plan.check(feed.as_ref())?;
    let place = Place {
        server: args.server.clone(),
        name: fresh_name("load"),
        partitions: plan.partitions,
        in_flight: load.in_flight.map_or(usize::MAX, |n| n as usize),
        durability: args.durability,
    };
    let peer = create(kind, place, &load)?;
    let mut watch = Looking::new(args);
    let began = SystemTime::now();
    let outcome = open_loop::run(&plan, feed.as_ref(), &*peer, &mut watch);
    let description = peer.describe();
    if let Err(error) = peer.remove() {
        // The figures are there all the same.
        let _ = writeln!(io::stderr(), "what was made may be left behind: {error}");
    }
    let outcome = outcome?;
    let facts = facts(
        args,
        &load,
        &plan,
        kind,
        description,
        began,
        watch.between(),
    );
    let report = Report::new(&plan, &outcome, facts);
    if let Some(path) = &args.json {
        write(path, &report)?;
    }
    let value = serde_json::to_value(&report).map_err(failed("cannot put the report together"))?;
    let text = crate::table::table(&[value]);
    io::stdout()
        .write_all(text.as_bytes())
        .map_err(BenchError::io("cannot write the table"))?;
    Ok(report.valid)
}

fn create(kind: Kind, place: Place, load: &Workload) -> Result<Box<dyn Peer>, BenchError> {
    Ok(match kind {
        Kind::Redis => Box::new(crate::redis::Streams::create(place)?),
        Kind::Nats => Box::new(crate::nats::JetStream::create(place)?),
        Kind::Kafka => Box::new(crate::kafka::KafkaTopic::create(place, codec(kind, load))?),
    })
}

/// How a peer's batches are compressed; only Kafka has batches that are.
fn codec(kind: Kind, load: &Workload) -> &'static str {
    match (kind, load.compression) {
        (Kind::Kafka, Some(Compression::Lz4)) => "lz4",
        (Kind::Kafka, Some(Compression::Zstd)) => "zstd",
        _ => "none",
    }
}

fn write(path: &Path, report: &Report) -> Result<(), BenchError> {
    let text = serde_json::to_vec_pretty(report).map_err(failed("cannot write the report"))?;
    fs::write(path, text).map_err(BenchError::io(format!("cannot write {}", path.display())))
}

fn facts(
    args: &RunArgs,
    load: &Workload,
    plan: &Plan,
    kind: Kind,
    broker: serde_json::Value,
    began: SystemTime,
    meanwhile: Option<Between>,
) -> Facts {
    let mut config = Config::of(plan);
    config.workload.clone_from(&args.workload);
    config.about.clone_from(&load.about);
    config.server.clone_from(&args.server);
    config.acks = args.durability.acks().into();
    config.visible = args.durability.acks().into();
    config.compression = codec(kind, load).into();
    config.feed = load.feed.as_ref().map(|f| f.display().to_string());
    let began = began.duration_since(UNIX_EPOCH).unwrap_or_default();
    Facts {
        config,
        environment: Environment {
            broker_process: BrokerProcess::Running,
            began_unix_ms: began.as_millis() as u64,
            version: env!("CARGO_PKG_VERSION").into(),
            commit: option_env!("RINGTIDE_COMMIT").unwrap_or("unknown").into(),
            host: Host::look(),
            transport: match is_loopback(&args.server) {
                true => "loopback",
                false => "network",
            },
            broker,
            flush: flush(args, meanwhile.as_ref()),
            meanwhile,
        },
        broker: args.pid.map(|_| BrokerHere::default()),
        limits: None,
        limits_failed: None,
        wal: None,
    }
}

fn is_loopback(server: &str) -> bool {
    let addresses = server.to_socket_addrs();
    addresses.is_ok_and(|mut found| found.all(|address| address.ip().is_loopback()))
}

/// Whether the disk was seen to flush what was acknowledged as durable.
fn flush(args: &RunArgs, between: Option<&Between>) -> Flush {
    if args.durability != Durability::Durable {
        return Flush::NotPromised;
    }
    let cache = args.disk.as_deref().map(write_cache).unwrap_or_default();
    match (cache.trim(), between.and_then(|b| b.disk_flushes)) {
        ("write through", _) => Flush::NotNeeded,
        // How often it wrote it does not say.
        (_, Some(1..)) => Flush::Seen,
        ("write back", Some(0)) => Flush::Missing,
        _ => Flush::Unknown,
    }
}

/// What a disk, or the disk of a partition, says of its cache.
fn write_cache(disk: &str) -> String {
    let class = Path::new("/sys/class/block").join(disk);
    ["queue/write_cache", "../queue/write_cache"]
        .iter()
        .find_map(|file| fs::read_to_string(class.join(file)).ok())
        .unwrap_or_default()
}

/// Looks on while it runs.
struct Looking {
    parts: Parts,
    first: Option<Counters>,
    last: Option<Counters>,
    told: Instant,
}

impl Looking {
    fn new(args: &RunArgs) -> Self {
        Self {
            parts: Parts {
                broker_pid: args.pid,
                disk: args.disk.clone(),
            },
            first: None,
            last: None,
            told: Instant::now(),
        }
    }

    fn between(&self) -> Option<Between> {
        Some(self.first.as_ref()?.until(self.last.as_ref()?))
    }
}

impl Watch for Looking {
    fn progress(&mut self, now: Progress) -> ControlFlow<()> {
        if self.told.elapsed() >= TELL_EVERY {
            self.told = Instant::now();
            let (elapsed, total) = (now.elapsed.as_secs_f64(), now.total.as_secs_f64());
            // Nobody may be reading.
            let _ = writeln!(
                io::stderr(),
                "{}: {elapsed:.0} of {total:.0} s, {} records",
                now.phase,
                now.acked
            );
        }
        ControlFlow::Continue(())
    }

    fn measuring(&mut self, is_measuring: bool) {
        let now = Counters::read(&self.parts);
        match is_measuring {
            true => self.first = Some(now),
            false => self.last = Some(now),
        }
    }
}
