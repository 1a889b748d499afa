//! What an open loop measures: a broker, one that runs or one of our own, with a topic for each run.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, ToSocketAddrs, UdpSocket};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ringtide_client::sync::Client;
use ringtide_client::{Acks, Codec, Idle, Options, ShardInfo, TopicSettings, Visibility};
use ringtide_perf::BenchError;
use ringtide_perf::feed::Feed;
use ringtide_perf::lone_topic::{fresh_name, options};
use ringtide_perf::machine::{Host, Parts, disk_of};
use ringtide_perf::open_loop::ringtide::RingtideTopic;
use ringtide_perf::open_loop::{self, Outcome, Plan};
use ringtide_perf::report::{BrokerHere, BrokerProcess, Config, Environment, Facts, Flush};
use ringtide_perf::workload::Workload;

use crate::bench::own_broker::{OwnBroker, Start};
use crate::bench::watching::{Listener, Meanwhile, Watching};
use crate::progress::Progress;

/// How long a broker that may be gone is asked.
const HASTE: Duration = Duration::from_secs(2);
/// Log writes that may share a flush of the device, of each shard: a flush serves all writes that ended
/// before it, of four in flight, and twice as many are let pass.
const MOST_WRITES_IN_A_FLUSH: u64 = 8;

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
        let is_found = parts.broker_pid.is_some();
        let mut watch = Watching::new(&self.asking, parts, progress, interrupted, listener);
        let outcome = open_loop::run(load.plan, load.feed, &topic.target, &mut watch)?;
        let began = watch.began;
        let meanwhile = watch.end();
        let mut facts = self.facts(load, &topic.target, began, meanwhile);
        facts.broker = facts.broker.filter(|_| is_found);
        Ok((outcome, facts))
    }

    /// A shard of the broker, if that runs here.
    fn shard_here(&self) -> Option<ShardInfo> {
        if !is_here(&self.server) {
            return None;
        }
        let shards = self.asking.describe_shards().unwrap_or_default();
        let mut shards = shards.into_iter();
        shards
            .next()
            .filter(|shard| self.is_own() || is_a_broker(shard.process_id))
    }

    /// What of the broker runs here.
    pub(crate) fn parts(&self) -> Parts {
        let shard = self.shard_here();
        Parts {
            broker_pid: shard.as_ref().map(|shard| shard.process_id),
            disk: shard
                .map(|shard| shard.device.trim_start_matches("/dev/").to_owned())
                .filter(|device| !device.is_empty() && device != "unknown"),
        }
    }

    /// The CPU of its first shard, if it runs here.
    pub(crate) fn cpu(&self) -> Option<usize> {
        self.shard_here().map(|shard| shard.cpu.into())
    }

    /// Whether a directory is on the disk of its log.
    pub(crate) fn is_beside(&self, dir: &Path) -> bool {
        match &self.own {
            Some(own) => own.is_beside(dir),
            None => self
                .parts()
                .disk
                .is_some_and(|disk| disk_of(dir) == Some(disk)),
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
        let spinning = shards.iter().filter(|shard| shard.idle == "spin");
        let broker = BrokerHere {
            spinning_cpus: spinning.map(|shard| shard.cpu.into()).collect(),
            limits_apply: false,
        };
        let flush = flush(target.acks, meanwhile.as_ref());
        let between = meanwhile.as_ref().map(|m| m.between.clone());
        Facts {
            config,
            environment: Environment {
                began_unix_ms: began_ms.as_millis() as u64,
                version: env!("CARGO_PKG_VERSION").into(),
                commit: env!("RINGTIDE_COMMIT").into(),
                host: Host::look(),
                transport: match is_here(&self.server) {
                    true => "loopback",
                    false => "network",
                },
                broker_process: self.process(shards),
                broker: described(shards),
                flush,
                meanwhile: between,
            },
            broker: Some(broker),
            limits: None,
            limits_failed: None,
            wal: meanwhile.and_then(|m| m.wal),
        }
    }

    /// Ends a broker of our own, and leaves its directory.
    pub(crate) fn stop(&mut self) {
        if let Some(own) = &mut self.own {
            own.stop();
        }
    }

    /// Removes a broker of our own, and leaves another as it was.
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

/// Of a client that gives up soon, and sleeps meanwhile: what is measured has the CPUs.
fn hasty() -> Options {
    options()
        .call_timeout(HASTE)
        .connect_timeout(HASTE)
        .idle(Idle::Park)
}

/// Whether a server's addresses are this machine's.
fn is_here(server: &str) -> bool {
    let addresses = server.to_socket_addrs();
    addresses.is_ok_and(|mut found| found.all(|address| is_own_address(address.ip())))
}

/// Whether what is sent there would come from there.
fn is_own_address(ip: IpAddr) -> bool {
    let any = match ip {
        IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    let from = || -> std::io::Result<IpAddr> {
        let socket = UdpSocket::bind((any, 0))?;
        // Nothing is sent: this only chooses the way.
        socket.connect((ip, 9))?;
        Ok(socket.local_addr()?.ip())
    };
    ip.is_loopback() || from().is_ok_and(|from| from == ip)
}

/// Whether a process here calls itself one: the number may be that of another machine or container.
fn is_a_broker(pid: u32) -> bool {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
    name.is_ok_and(|name| name.starts_with("ringtide"))
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
fn flush(acks: Acks, meanwhile: Option<&Meanwhile>) -> Flush {
    if acks != Acks::Durable {
        return Flush::NotPromised;
    }
    let seen = || {
        let meanwhile = meanwhile?;
        let shard = meanwhile.shards.first()?;
        if shard.write_cache == "none" || shard.fua == "yes" {
            return Some(Flush::NotNeeded);
        }
        let flushes = meanwhile.between.disk_flushes?;
        let writes = meanwhile.wal.filter(|wal| wal.writes > 0)?.writes;
        let is_volatile = shard.write_cache == "volatile";
        is_volatile.then(|| evidence(flushes, writes, u64::from(shard.shards)))
    };
    seen().unwrap_or(Flush::Unknown)
}

/// Of so many writes of the log, each of which asks for a flush.
fn evidence(flushes: u64, writes: u64, shards: u64) -> Flush {
    match flushes * MOST_WRITES_IN_A_FLUSH * shards >= writes {
        true => Flush::Seen,
        false => Flush::Missing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_while_it_is_measured_does_not_spin() {
        assert_eq!(hasty().idle, Idle::Park);
    }

    #[test]
    fn an_address_of_this_machine_is_here_and_others_are_not() {
        for (server, here) in [
            ("127.0.0.1:1", true),
            ("127.0.0.2:1", true),
            ("[::1]:1", true),
            // For documentation only.
            ("203.0.113.1:1", false),
        ] {
            assert_eq!(is_here(server), here, "{server}");
        }
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a port");
        if socket.connect("203.0.113.1:9").is_ok() {
            let own = socket.local_addr().expect("chosen");
            assert!(is_here(&own.to_string()), "{own}");
        }
    }

    #[test]
    fn a_process_of_another_name_is_no_broker() {
        let child = std::process::Command::new("sleep").arg("60").spawn();
        let mut child = child.expect("a process");
        let is_one = is_a_broker(child.id());
        child.kill().expect("ended");
        child.wait().expect("ended");
        assert!(!is_one);
        assert!(is_a_broker(std::process::id()), "this test is of ringtide");
    }

    #[test]
    fn a_few_flushes_are_no_evidence_for_many_writes() {
        for (flushes, writes, shards, expected) in [
            (1000, 1000, 1, Flush::Seen),
            (250, 1000, 1, Flush::Seen),
            (63, 1000, 2, Flush::Seen),
            (1, 8, 1, Flush::Seen),
            (0, 1, 1, Flush::Missing),
            (1, 1000, 1, Flush::Missing),
            (62, 1000, 2, Flush::Missing),
        ] {
            assert_eq!(
                evidence(flushes, writes, shards),
                expected,
                "{flushes} {writes}"
            );
        }
    }
}
