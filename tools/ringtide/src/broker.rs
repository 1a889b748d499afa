//! A broker in this process: what recovery found is dealt out to the shards, the shards run on
//! their threads, and a clean end is written down.

use std::collections::HashSet;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;

use ringtide_io::FatalReason;
use ringtide_log::files::DirectoryLock;
use ringtide_log::recovery::{self, Progress, RecoverError, RecoverOptions, Recovered};
use ringtide_schema::identity::Identity;
use ringtide_schema::ids::GroupId;
use ringtide_shard::{Inventory, Settings, Shard, Topic};
use ringtide_uring::{IdlePolicy, Running, ShardConfig, ShardStart, StopSignal};

use crate::config::{CatchUp, Config, Idle};
use crate::exit::{Exit, Failure};

/// Writes of a shard's log that may be in flight at once.
const WAL_IN_FLIGHT: usize = 4;

/// Shards at work on a data directory.
pub(crate) struct Broker {
    running: Running,
    identity: Identity,
    data_dir: PathBuf,
    /// Where each shard listens.
    pub(crate) addresses: Vec<SocketAddr>,
    _lock: DirectoryLock,
}

/// Makes the data directory complete again after whatever happened to it.
pub(crate) fn recover(
    config: &Config,
    progress: &mut dyn FnMut(Progress),
) -> Result<Recovered, Failure> {
    let options = RecoverOptions {
        direct: true,
        shards: config.cpus.len() as u16,
        slot_bytes: config.wal_slot_bytes,
        groups_for_new: config.log_groups,
        random: [random()?, random()?],
    };
    recovery::recover(&config.data_dir, options, progress).map_err(|error| {
        let exit = match &error {
            RecoverError::File(_)
            | RecoverError::Foreign(_)
            | RecoverError::MissingIdentity(_)
            | RecoverError::BadIdentity(_)
            | RecoverError::ForeignSlot(_) => Exit::DirectoryUnusable,
            _ => Exit::DirectoryCorrupt,
        };
        Failure::new(exit, error.to_string())
    })
}

/// Binds the listening sockets: shard i on port + i, or each on a free one if the port is 0.
pub(crate) fn listen(config: &Config) -> Result<Vec<TcpListener>, Failure> {
    let mut listeners = Vec::new();
    for shard in 0..config.cpus.len() {
        let mut address = config.listen;
        if address.port() != 0 {
            let port = u16::try_from(shard).ok().and_then(|s| address.port().checked_add(s));
            let port = port.ok_or_else(|| {
                Failure::usage(format!(
                    "listen = {}: shard {shard} would need a port past 65535; choose a lower one",
                    config.listen
                ))
            })?;
            address.set_port(port);
        }
        let listener = ringtide_uring::bind(address).map_err(|error| {
            Failure::new(
                Exit::CannotListen,
                format!(
                    "cannot listen on {address} (shard {shard}): {error}; choose another address \
                     with --listen, or end what listens there"
                ),
            )
        })?;
        listeners.push(listener);
    }
    Ok(listeners)
}

/// Starts the shards. When this returns, all of them listen.
pub(crate) fn start(
    config: &Config,
    lock: DirectoryLock,
    listeners: Vec<TcpListener>,
    recovered: Recovered,
    stop: StopSignal,
) -> Result<Broker, Failure> {
    let failed = |e: std::io::Error| Failure::failed(format!("cannot read an address: {e}"));
    let addresses: Result<Vec<SocketAddr>, _> =
        listeners.iter().map(|l| l.local_addr().map_err(failed)).collect();
    let addresses = addresses?;
    let identity = recovered.identity;
    let plans = deal(config, &addresses, recovered)?;
    let mut starts: Vec<ShardStart<Shard>> = Vec::new();
    for ((shard, listener), (settings, inventory)) in listeners.into_iter().enumerate().zip(plans) {
        let mut driver = ShardConfig::new(shard as u16, config.cpus[shard], addresses[shard]);
        driver.idle = match config.idle {
            Idle::Spin => IdlePolicy::Spin,
            Idle::Adaptive => IdlePolicy::Adaptive { budget: config.idle_spin },
            Idle::Park => IdlePolicy::Park,
        };
        driver.max_connections = config.max_connections;
        driver.catch_up = match config.catch_up {
            CatchUp::Auto => ringtide_uring::CatchUp::Auto,
            CatchUp::Sendfile => ringtide_uring::CatchUp::Sendfile,
            CatchUp::Copy => ringtide_uring::CatchUp::Copy,
        };
        let memory_bytes = settings.memory_bytes;
        let make = move || match Shard::new(settings, inventory) {
            Ok(shard) => shard,
            Err(error) => {
                panic!("cannot map {memory_bytes} bytes for shard {shard}: {error}; lower --memory-bytes")
            }
        };
        starts.push((driver, listener, Box::new(make)));
    }
    let running = ringtide_uring::run(starts, stop)
        .map_err(|error| Failure::new(Exit::HostUnfit, error.to_string()))?;
    Ok(Broker { running, identity, data_dir: config.data_dir.clone(), addresses, _lock: lock })
}

impl Broker {
    /// Waits for the shards to end, and writes down that they ended well.
    pub(crate) fn join(self) -> Result<(), Failure> {
        for result in self.running.join() {
            result.map_err(|fatal| {
                let exit = match fatal.reason {
                    FatalReason::Wal => Exit::FatalWal,
                    FatalReason::Segment => Exit::FatalSegment,
                    FatalReason::Snapshot => Exit::FatalSnapshot,
                    FatalReason::Invariant => Exit::FatalInvariant,
                };
                let advice = "nothing that was acknowledged as durable is lost; mend the cause and start again";
                Failure::new(exit, format!("{}; {advice}", fatal.message))
            })?;
        }
        let clean = Identity { clean: true, ..self.identity };
        recovery::write_identity(&self.data_dir, &clean)
            .map_err(|e| Failure::new(Exit::FatalSnapshot, e.to_string()))
    }
}

/// Deals topics, groups and slots of the log out to the shards.
fn deal(
    config: &Config,
    addresses: &[SocketAddr],
    recovered: Recovered,
) -> Result<Vec<(Settings, Inventory)>, Failure> {
    let identity = recovered.identity;
    let shards = config.cpus.len() as u16;
    let advertised: Vec<(String, u16)> =
        addresses.iter().map(|a| (config.advertise.clone(), a.port())).collect();
    let topics: Vec<Topic> = recovered
        .topics
        .into_iter()
        .map(|t| Topic { id: t.id, name: t.name, partitions: t.partitions, config: t.config })
        .collect();
    let mut plans = Vec::new();
    for shard in 0..shards {
        let settings = Settings {
            shard,
            shards,
            groups: identity.groups,
            data_dir: config.data_dir.clone(),
            data_directory: identity.data_directory,
            incarnation: identity.incarnation,
            leader_epoch: identity.leader_epoch,
            addresses: advertised.clone(),
            memory_bytes: config.memory_bytes,
            wal_slot_bytes: config.wal_slot_bytes,
            wal_slots: Vec::new(),
            new_wal_slots: Vec::new(),
            wal_in_flight: WAL_IN_FLIGHT,
            max_in_flight_requests: config.max_in_flight_requests as u32,
            sync_interval_ms: config.sync_interval.as_millis() as u64,
            seed: random()?,
            broker_version: env!("CARGO_PKG_VERSION").into(),
        };
        let inventory = Inventory {
            topics: topics.clone(),
            next_topic_serial: recovered.next_topic_serial,
            groups: Vec::new(),
        };
        plans.push((settings, inventory));
    }
    for group in recovered.groups {
        let shard = GroupId(group.group).shard(identity.groups, shards);
        plans[usize::from(shard)].1.groups.push(group);
    }
    let wal = config.data_dir.join("wal");
    let taken: HashSet<PathBuf> = recovered.slots.iter().map(|s| s.path.clone()).collect();
    let mut fresh = (1..).map(|n| wal.join(format!("{n:06}.wal"))).filter(|p| !taken.contains(p));
    let wanted = plans.len() * config.wal_slots;
    for (n, slot) in recovered.slots.into_iter().enumerate() {
        if n < wanted {
            plans[n % usize::from(shards)].0.wal_slots.push(slot.path);
        } else if let Err(error) = std::fs::remove_file(&slot.path) {
            tracing::warn!(path = %slot.path.display(), %error, "cannot remove a spare slot of the log");
        }
    }
    for (settings, _) in &mut plans {
        let missing = config.wal_slots.saturating_sub(settings.wal_slots.len());
        settings.new_wal_slots = fresh.by_ref().take(missing).collect();
    }
    Ok(plans)
}

fn random() -> Result<u64, Failure> {
    getrandom::u64().map_err(|e| Failure::failed(format!("the system gives no random numbers: {e}")))
}
