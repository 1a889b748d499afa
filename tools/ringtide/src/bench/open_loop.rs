//! `ringtide bench`: a load that does not wait for the broker, against one that runs or one of its own.

use std::io::{self, Write as _};
use std::net::ToSocketAddrs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ringtide_client::sync::Client;
use ringtide_client::{Acks, Codec, ShardInfo, TopicSettings, Visibility};
use ringtide_perf::BenchError;
use ringtide_perf::broker::{Broker, Launch};
use ringtide_perf::limits::{self, Limit, Limits};
use ringtide_perf::machine::{Between, Counters, Host, Parts};
use ringtide_perf::open_loop::ringtide::RingtideTopic;
use ringtide_perf::open_loop::timing::{Second, Times};
use ringtide_perf::open_loop::{self, Plan};
use ringtide_perf::report::{Config, Environment, Facts, Flush, Report, Wal};
use ringtide_perf::workload::Workload;
use tempfile::TempDir;

use crate::bench::hlog_file::HlogFile;
use crate::bench::json_file::JsonFile;
use crate::bench::open_table::table;
use crate::bench::{BenchArgs, exit_of_bench};
use crate::exit::{Exit, Failure};
use crate::output::print;
use crate::progress::{Progress, grouped};
use crate::signals::stop_flag;

/// How long each limit is measured.
const LIMIT_TIME: Duration = Duration::from_secs(1);

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

    let before = placement.limits(args, &interrupted)?;
    let began = SystemTime::now();
    let mut measured = Measured::prepare(args, &workload, &placement, &plan).map_err(failure)?;
    let mut watch = Watching {
        progress: Progress::new(),
        interrupted: interrupted.clone(),
        hlog,
        client: &measured.client,
        parts: measured.parts(),
        first: None,
        last: None,
        acked: 0,
        began,
    };
    let outcome = open_loop::run(&plan, feed.as_ref(), &measured.topic, &mut watch);
    watch.progress.clear();
    let (meanwhile, hlog) = (watch.meanwhile(), watch.hlog.take());
    drop(watch);
    measured.end(outcome.is_ok());
    let outcome = outcome.map_err(failure)?;
    let after = match (&before, &outcome.error) {
        (Some(_), None) => placement.limits(args, &interrupted)?,
        _ => None,
    };
    let mut facts = measured.facts(args, &workload, &plan, began, meanwhile);
    facts.limits = before.zip(after);
    let report = Report::new(&plan, &outcome, facts);

    let hlog = hlog.map_or(Ok(()), HlogFile::finish);
    let table = table(&report, args.server.is_none());
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

impl Placement {
    /// What the machine can do now, if that is wanted. Nothing else may run here: with a broker of
    /// our own that is the time before it and after it.
    fn limits(
        &self,
        args: &BenchArgs,
        interrupted: &AtomicBool,
    ) -> Result<Option<Limits>, Failure> {
        let dir = match &args.limits_dir {
            Some(dir) => dir.as_path(),
            None if args.server.is_none() && !args.no_limits => Path::new("."),
            None => return Ok(None),
        };
        let client = self.generator.first().copied().flatten().unwrap_or(0);
        let broker = self.broker.first().copied().unwrap_or(client);
        let mut options = limits::Options::new(dir, broker, client);
        options.duration_each = LIMIT_TIME;
        options.which = [Limit::TcpEcho, Limit::DurableWrite].into_iter().collect();
        let mut progress = Progress::new();
        let measured = limits::measure(&options, |now| {
            progress.tick(|_| format!("limits of the machine: {}", now.phase));
            match interrupted.load(Ordering::Relaxed) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        });
        measured.map(Some).map_err(failure)
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
    client: Client,
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
            client,
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

    /// What of the broker runs here.
    fn parts(&self) -> Parts {
        if !is_loopback(&self.server) {
            return Parts::default();
        }
        let shards = self.client.describe_shards().unwrap_or_default();
        let first = shards.first();
        Parts {
            broker_pid: first.map(|shard| shard.process_id),
            disk: first
                .map(|shard| shard.device.trim_start_matches("/dev/").to_owned())
                .filter(|device| !device.is_empty() && device != "unknown"),
        }
    }

    fn facts(
        &self,
        args: &BenchArgs,
        workload: &Workload,
        plan: &Plan,
        began: SystemTime,
        meanwhile: Option<Meanwhile>,
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
        let shards = meanwhile.as_ref().map_or(&[][..], |m| &m.shards);
        let is_here = is_loopback(&self.server);
        let spinning: Vec<usize> = shards
            .iter()
            .filter(|shard| is_here && shard.idle == "spin")
            .map(|shard| shard.cpu.into())
            .collect();
        let between = meanwhile.as_ref().map(|m| m.between.clone());
        Facts {
            config,
            environment: Environment {
                began_unix_ms: began_ms.as_millis() as u64,
                version: env!("CARGO_PKG_VERSION").into(),
                commit: env!("RINGTIDE_COMMIT").into(),
                host: Host::look(),
                transport: match is_here {
                    true => "loopback",
                    false => "network",
                },
                broker: described(shards),
                flush: flush(self.topic.acks, shards, between.as_ref()),
                meanwhile: between,
            },
            spinning: plan.cpus.len() + spinning.len(),
            broker_cpus: spinning,
            limits: None,
            wal: meanwhile.map(|m| m.wal),
        }
    }

    /// Ends a broker of our own, and leaves another as it was.
    fn end(&mut self, went_well: bool) {
        if self.own.take().is_some() {
            return;
        }
        let mut options = ringtide_perf::lone_topic::options();
        if !went_well {
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

/// The broker as its shards describe it.
fn described(shards: &[ShardInfo]) -> serde_json::Value {
    let Some(first) = shards.first() else {
        return serde_json::Value::Null;
    };
    let cpus: Vec<u16> = shards.iter().map(|shard| shard.cpu).collect();
    serde_json::json!({
        "version": first.broker_version,
        "commit": first.commit,
        "shards": first.shards,
        "cpus": cpus,
        "idle": first.idle,
        "kernel": first.kernel,
        "file_system": first.file_system,
        "device": first.device,
        "write_cache": first.write_cache,
        "fua": first.fua,
        "durable_write_ns": first.durable_write_ns,
        "wal_slots": first.wal_slots,
        "wal_slot_bytes": first.wal_slot_bytes,
        "sync_interval_ms": first.sync_interval_ms,
        "memory_bytes": first.memory_bytes,
    })
}

/// Whether the device was seen to flush what was acknowledged as durable.
fn flush(acks: Acks, shards: &[ShardInfo], between: Option<&Between>) -> Flush {
    let cache = shards
        .first()
        .map(|shard| (&*shard.write_cache, &*shard.fua));
    let flushes = between.and_then(|between| between.disk_flushes);
    match (acks, cache, flushes) {
        (Acks::None | Acks::Accepted, ..) => Flush::NotPromised,
        // A cache that single writes pass, or none: there is nothing to be flushed.
        (_, Some(("none", _) | (_, "yes")), _) => Flush::Seen,
        (_, Some(("volatile", _)), Some(0)) => Flush::Missing,
        (_, Some(("volatile", _)), Some(_)) => Flush::Seen,
        _ => Flush::Unknown,
    }
}

/// What was counted when measuring began, or ended.
struct Moment {
    counters: Counters,
    shards: Vec<ShardInfo>,
    acked: u64,
}

/// What happened while it was measured.
struct Meanwhile {
    between: Between,
    shards: Vec<ShardInfo>,
    wal: Wal,
}

/// Looks on while it runs.
struct Watching<'a> {
    progress: Progress,
    interrupted: Arc<AtomicBool>,
    hlog: Option<HlogFile>,
    client: &'a Client,
    parts: Parts,
    first: Option<Moment>,
    last: Option<Moment>,
    acked: u64,
    began: SystemTime,
}

impl Watching<'_> {
    fn meanwhile(&mut self) -> Option<Meanwhile> {
        let (first, last) = (self.first.take()?, self.last.take()?);
        let sum = |moment: &Moment, of: fn(&ShardInfo) -> u64| -> u64 {
            moment.shards.iter().map(of).sum()
        };
        let more = |of: fn(&ShardInfo) -> u64| sum(&last, of).saturating_sub(sum(&first, of));
        Some(Meanwhile {
            between: first.counters.until(&last.counters),
            wal: Wal::new(
                more(|shard| shard.wal_writes),
                more(|shard| shard.wal_bytes),
                more(|shard| shard.wal_records),
                last.acked - first.acked,
            ),
            shards: last.shards,
        })
    }
}

impl open_loop::Watch for Watching<'_> {
    fn progress(&mut self, now: open_loop::Progress) -> ControlFlow<()> {
        self.acked = now.acked;
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
        let now = Moment {
            counters: Counters::read(&self.parts),
            // A broker that is gone has nothing to say.
            shards: self.client.describe_shards().unwrap_or_default(),
            acked: self.acked,
        };
        if is_measuring {
            if let Some(hlog) = &mut self.hlog {
                hlog.begin(self.began);
            }
            self.first = Some(now);
        } else {
            self.last = Some(now);
        }
    }
}
