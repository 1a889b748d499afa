//! What an open loop measures: a broker, one that runs or one of our own, with a topic for each run.

use std::net::ToSocketAddrs;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ringtide_client::sync::Client;
use ringtide_client::{Acks, Codec, Options, ShardInfo, TopicSettings, Visibility};
use ringtide_perf::BenchError;
use ringtide_perf::feed::Feed;
use ringtide_perf::lone_topic::{fresh_name, options};
use ringtide_perf::machine::{Between, Host, Parts};
use ringtide_perf::open_loop::ringtide::RingtideTopic;
use ringtide_perf::open_loop::{self, Outcome, Plan};
use ringtide_perf::report::{BrokerProcess, Config, Environment, Facts, Flush};
use ringtide_perf::workload::Workload;

use crate::bench::own_broker::{OwnBroker, Start};
use crate::bench::watching::{Listener, Meanwhile, Watching};
use crate::progress::Progress;

/// How long a broker that may be gone is asked.
const HASTE: Duration = Duration::from_secs(2);

/// What one run does.
pub(crate) struct Load<'a> {
    /// The workload's name, if it has one.
    pub(crate) name: Option<&'a str>,
    pub(crate) workload: &'a Workload,
    pub(crate) feed: Option<&'a Feed>,
    pub(crate) plan: &'a Plan,
    /// Of its topic; when records are visible is the workload's to say.
    pub(crate) settings: TopicSettings,
}

/// The topic of one run.
pub(crate) struct OwnTopic {
    pub(crate) name: String,
    target: RingtideTopic,
}

/// The broker that is measured.
pub(crate) struct Subject {
    server: String,
    client: Client,
    /// For questions while it is measured, which are not worth a long wait.
    asking: Client,
    own: Option<OwnBroker>,
}

impl Subject {
    /// The one that runs there.
    pub(crate) fn running(server: &str) -> Result<Self, BenchError> {
        Ok(Self {
            server: server.into(),
            client: Client::connect([server], options())?,
            asking: Client::connect([server], hasty())?,
            own: None,
        })
    }

    /// One of our own.
    pub(crate) fn own(start: &Start) -> Result<Self, BenchError> {
        let own = OwnBroker::start(start)?;
        let server = own.server.clone();
        Ok(Self {
            client: Client::connect([&server], options())?,
            asking: Client::connect([&server], hasty())?,
            server,
            own: Some(own),
        })
    }

    /// The one that runs there, or else one of our own.
    pub(crate) fn at(server: Option<&str>, start: &Start) -> Result<Self, BenchError> {
        match server {
            Some(server) => Self::running(server),
            None => Self::own(start),
        }
    }

    /// Makes the topic of a run.
    pub(crate) fn topic(&self, load: &Load<'_>) -> Result<OwnTopic, BenchError> {
        let workload = load.workload;
        let name = fresh_name("load");
        let settings = TopicSettings {
            visible: Some(workload.visible()),
            ..load.settings
        };
        let count = load.plan.partitions;
        let topic = self.client.create_topic(&name, count, &settings)?;
        let mut partitions = Vec::new();
        for partition in 0..count {
            let owner = self.client.owner(&topic, partition)?;
            partitions.push((topic.partition(partition), owner));
        }
        Ok(OwnTopic {
            name,
            target: RingtideTopic {
                partitions,
                acks: workload.acks(),
                codec: workload.codec(),
                in_flight: workload.in_flight.map_or(usize::MAX, |n| n as usize),
            },
        })
    }

    /// Does what the load's plan says to its topic, and what it is judged by.
    pub(crate) fn run<'a>(
        &'a self,
        load: &Load<'_>,
        topic: &OwnTopic,
        progress: Progress,
        interrupted: &'a AtomicBool,
        listener: Option<&'a mut dyn Listener>,
    ) -> Result<(Outcome, Facts), BenchError> {
        let parts = self.parts();
        let mut watch = Watching::new(&self.asking, parts, progress, interrupted, listener);
        let outcome = open_loop::run(load.plan, load.feed, &topic.target, &mut watch)?;
        let began = watch.began;
        let meanwhile = watch.end();
        Ok((outcome, self.facts(load, &topic.target, began, meanwhile)))
    }

    /// What of the broker runs here.
    pub(crate) fn parts(&self) -> Parts {
        if !is_loopback(&self.server) {
            return Parts::default();
        }
        let shards = self.asking.describe_shards().unwrap_or_default();
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
        load: &Load<'_>,
        target: &RingtideTopic,
        began: SystemTime,
        meanwhile: Option<Meanwhile>,
    ) -> Facts {
        let (workload, plan) = (load.workload, load.plan);
        let mut config = Config::of(plan);
        config.workload = load.name.map(str::to_owned);
        config.about.clone_from(&workload.about);
        config.server.clone_from(&self.server);
        config.acks = match target.acks {
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
        config.compression = match target.codec {
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
                broker_process: self.process(shards),
                broker: described(shards),
                flush: flush(target.acks, shards, between.as_ref()),
                meanwhile: between,
            },
            spinning: plan.cpus.len() + spinning.len(),
            broker_cpus: spinning,
            limits: None,
            wal: meanwhile.and_then(|m| m.wal),
        }
    }

    /// Ends a broker of our own, and leaves another as it was.
    pub(crate) fn end(mut self, topic: &OwnTopic, went_well: bool) {
        if self.own.take().is_none() {
            self.delete(topic, went_well);
        }
    }

    /// Writes of the write-ahead log since the broker's start, if it says.
    pub(crate) fn wal_writes(&self) -> Option<u64> {
        let shards = self.asking.describe_shards().ok()?;
        Some(shards.iter().map(|shard| shard.wal_writes).sum())
    }

    /// Segments that a topic has, and records that it has no more, if the broker says.
    pub(crate) fn segments(&self, topic: &OwnTopic) -> Option<(u64, u64)> {
        let described = self.asking.describe_topic(&topic.name).ok()?.partitions;
        let segments = described.iter().map(|p| u64::from(p.segments)).sum();
        Some((segments, described.iter().map(|p| p.earliest).sum()))
    }

    /// Whether it is one of our own.
    pub(crate) fn is_own(&self) -> bool {
        self.own.is_some()
    }

    /// Which process the shards say they are threads of.
    fn process(&self, shards: &[ShardInfo]) -> BrokerProcess {
        let this = std::process::id();
        match &self.own {
            None => BrokerProcess::Running,
            Some(_) if shards.iter().any(|shard| shard.process_id == this) => BrokerProcess::Same,
            Some(_) => BrokerProcess::Started,
        }
    }

    /// Deletes the topic of a run.
    pub(crate) fn delete(&self, topic: &OwnTopic, went_well: bool) {
        // If it did not go well the broker may be gone.
        let options = if went_well { options() } else { hasty() };
        let name = &topic.name;
        let deleted = Client::connect([&self.server], options).and_then(|c| c.delete_topic(name));
        if let Err(error) = deleted {
            crate::output::say(format!("the topic {name} may be left behind: {error}"));
        }
    }
}

/// Of a client that gives up soon.
fn hasty() -> Options {
    options().call_timeout(HASTE).connect_timeout(HASTE)
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
