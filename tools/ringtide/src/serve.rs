//! `ringtide serve`: from a configuration to shards that run, and to their end.
//!
//! Nothing is changed on disk before the host was found fit and the data directory is locked, and what
//! the lock made is removed again if the start is refused before there is data; no
//! connection is answered before recovery is done. What cannot be mended by waiting ends the
//! process with the exit code of its reason.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ringtide_io::{Fatal, FatalReason};
use ringtide_log::files::{self, DirectoryLock};
use ringtide_log::recovery::{self, Progress, RecoverError, RecoverOptions, Recovered, SlotFile};
use ringtide_schema::identity::{Identity, IdentityError};
use ringtide_schema::ids::GroupId;
use ringtide_shard::{HostFacts, Inventory, Settings, Shard, Topic};
use ringtide_uring::probe::{self, WriteLatency};
use ringtide_uring::{IdlePolicy, Running, ShardConfig, ShardStart, StartError, StopSignal};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::cli::ServeArgs;
use crate::config::{CatchUp, Config, Idle};
use crate::cpu_list;
use crate::doctor::{self, Host};
use crate::exit::{Exit, Failure};
use crate::logging::{self, LogFlusher};
use crate::signals;

/// Writes of a shard's write-ahead log in flight: enough to keep the device busy, few enough that
/// what arrives meanwhile is gathered into the next.
const WAL_WRITES_IN_FLIGHT: usize = 4;
/// Durable writes that are measured for the start-up line.
const MEASURED_WRITES: usize = 16;
/// How long a port in use is waited for.
const PORT_PATIENCE: Duration = Duration::from_secs(5);
/// How often it is tried.
const PORT_RETRY: Duration = Duration::from_millis(5);
/// How often a long recovery says how far it is.
const SAY_EVERY: Duration = Duration::from_secs(1);

/// Runs a broker until it is told to stop.
pub(crate) fn run(args: ServeArgs) -> Result<(), Failure> {
    let config = Config::load(args.settings, args.config.as_deref(), &probe::allowed())
        .map_err(|error| Failure::usage(error.to_string()))?;
    let log = logging::start(config.log_level, config.log_format)?;
    serve(&config, &log.flusher()).map_err(|failure| {
        tracing::error!(exit_code = failure.exit as u8, "{failure}");
        // It was said; the caller needs the code only.
        Failure::new(failure.exit, "")
    })
}

fn serve(config: &Config, log: &LogFlusher) -> Result<(), Failure> {
    let began = Instant::now();
    let opened = Opened::open(config, log)?;
    let stop = StopSignal::new();
    signals::watch(stop.clone(), config.shutdown_timeout, log.clone())?;
    let running = opened.run(stop)?;
    tracing::info!(after_ms = began.elapsed().as_millis() as u64, "ready");
    running.join()
}

/// A data directory that is recovered, and shards that are yet to run on it.
pub(crate) struct Opened {
    starts: Vec<ShardStart<Shard>>,
    broker: Served,
}

/// What of a broker outlasts the start of its shards.
struct Served {
    data_dir: PathBuf,
    identity: Identity,
    addresses: Vec<(String, u16)>,
    /// Held until the shards have ended.
    _lock: DirectoryLock,
}

impl Served {
    /// Keeps the directory locked to the end of the process: a shard that was left may have work on files in the kernel.
    fn keep_locked(self) {
        std::mem::forget(self);
    }
}

/// A broker that runs on threads of this process.
pub(crate) struct Serving {
    shards: Running,
    stop: StopSignal,
    broker: Served,
}

impl Opened {
    /// Locks and recovers the data directory and says in the log what was found.
    pub(crate) fn open(config: &Config, log: &LogFlusher) -> Result<Self, Failure> {
        let open_files = raise_open_files();
        let host = Host::look(config);
        doctor::require(&host, &config.data_dir)?;
        let lock = files::lock(&config.data_dir)?;
        let opened = listen(config).and_then(|listeners| Ok((listeners, recover(config)?)));
        let (listeners, recovered) = match opened {
            Ok(opened) => opened,
            Err(refusal) => {
                lock.undo();
                return Err(refusal);
            }
        };
        let measured = measure(config);
        let facts = host_facts(config, &host, measured);
        announce(config, &facts, measured, &recovered, open_files);

        let identity = recovered.identity;
        let addresses = addresses(config, &listeners)?;
        let max_connections = connections(config, open_files);
        let starts = starts(
            config,
            (&facts, max_connections),
            recovered,
            listeners,
            &addresses,
            log,
        )?;
        let broker = Served {
            data_dir: config.data_dir.clone(),
            identity,
            addresses,
            _lock: lock,
        };
        Ok(Self { starts, broker })
    }

    /// Starts the shards.
    pub(crate) fn run(self, stop: StopSignal) -> Result<Serving, Failure> {
        let Self { starts, broker } = self;
        let cpus: Vec<usize> = starts.iter().map(|(config, ..)| config.cpu).collect();
        let shards = match ringtide_uring::run(starts, stop.clone()) {
            Ok(shards) => shards,
            Err(error) => {
                broker.keep_locked();
                return Err(start_failure(error));
            }
        };
        for (shard, ((host, port), cpu)) in broker.addresses.iter().zip(cpus).enumerate() {
            tracing::info!(shard, cpu, address = %format_args!("{host}:{port}"), "listening");
        }
        Ok(Serving {
            shards,
            stop,
            broker,
        })
    }
}

impl Serving {
    /// HOST:PORT of the first shard.
    pub(crate) fn server(&self) -> String {
        let (host, port) = &self.broker.addresses[0];
        format!("{host}:{port}")
    }

    /// Asks the shards to drain and end, and waits until they have.
    pub(crate) fn stop(self) -> Result<(), Failure> {
        self.stop.stop();
        self.join()
    }

    /// Waits until the shards have ended, for whatever reason.
    fn join(self) -> Result<(), Failure> {
        let ends = self.shards.join();
        let has_failed = ends.iter().any(Result::is_err);
        let result = finish(&self.broker.data_dir, &self.broker.identity, ends);
        if has_failed {
            self.broker.keep_locked();
        }
        result
    }
}

/// Raises the limit of open files as far as it goes; gives the limit.
fn raise_open_files() -> Option<u64> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let limit = Rlimit {
        current: maximum,
        maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "cannot raise the limit of open files");
        return getrlimit(Resource::Nofile).current;
    }
    maximum
}

/// Connections of one shard: as many as are set, but no more than leave a quarter of the files that may be open, beside the
/// process's own, to segments.
fn connections(config: &Config, open_files: Option<u64>) -> usize {
    let shards = config.cpus.len() as u64;
    let most = open_files.map_or(u64::MAX, |files| {
        (files.saturating_sub(config.own_files()) * 3 / 4 / shards).max(1)
    });
    config
        .max_connections
        .min(usize::try_from(most).unwrap_or(usize::MAX))
}

/// Binds every shard's port before the data is touched.
fn listen(config: &Config) -> Result<Vec<TcpListener>, Failure> {
    (0..config.cpus.len())
        .map(|shard| {
            let mut address = config.listen;
            if address.port() != 0 {
                address.set_port(address.port() + shard as u16);
            }
            bind(address).map_err(|error| {
                let message = format!(
                    "shard {shard} cannot listen on {address}: {error}; choose another address \
                     with --listen, or end what uses this one"
                );
                Failure::new(Exit::CannotListen, message)
            })
        })
        .collect()
}

/// Binds a port that a predecessor may not have let go of yet: the kernel takes a ring of a process
/// that was killed apart in the background, and the ring holds the listening socket until then.
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let until = Instant::now() + PORT_PATIENCE;
    loop {
        match ringtide_uring::bind(address) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < until => {
                std::thread::sleep(PORT_RETRY);
            }
            bound => return bound,
        }
    }
}

fn recover(config: &Config) -> Result<Recovered, Failure> {
    let options = RecoverOptions {
        direct: true,
        shards: config.cpus.len() as u16,
        slot_bytes: config.wal_slot_bytes,
        groups_for_new: config.log_groups,
        random: [random()?, random()?],
    };
    let mut said = Instant::now();
    let recovered = recovery::recover(&config.data_dir, options, &mut |progress| {
        if said.elapsed() >= SAY_EVERY {
            said = Instant::now();
            match progress {
                Progress::Replaying { done, total } => {
                    tracing::info!(done_bytes = done, of_at_most = total, "replaying the log");
                }
                Progress::Reading { done, total } => {
                    tracing::info!(done_bytes = done, of = total, "reading segments");
                }
                Progress::Syncing { done, total } => {
                    tracing::info!(done, of = total, "making what was replayed durable");
                }
            }
        }
    });
    let recovered =
        recovered.map_err(|error| Failure::new(recovery_exit(&error), error.to_string()))?;
    let groups = recovered.identity.groups;
    if groups != config.log_groups && !recovered.summary.fresh {
        tracing::debug!(groups, "log-groups is fixed when a data directory is made");
    }
    Ok(recovered)
}

/// The exit code of a refusal: whether the directory is none for this broker, or is damaged.
fn recovery_exit(error: &RecoverError) -> Exit {
    match error {
        RecoverError::BadIdentity(bad) if matches!(bad.why, IdentityError::Checksum { .. }) => {
            Exit::DirectoryCorrupt
        }
        RecoverError::File(_)
        | RecoverError::Foreign(_)
        | RecoverError::ForeignSlot(_)
        | RecoverError::MissingIdentity(_)
        | RecoverError::BadIdentity(_) => Exit::DirectoryUnusable,
        _ => Exit::DirectoryCorrupt,
    }
}

fn random() -> Result<u64, Failure> {
    getrandom::u64()
        .map_err(|error| Failure::failed(format!("the system has no randomness to give: {error}")))
}

/// How long durable writes take where the data is, unless that cannot be measured.
fn measure(config: &Config) -> Option<WriteLatency> {
    probe::durable_write_latency(&config.data_dir, MEASURED_WRITES)
        .inspect_err(|error| tracing::warn!(%error, "the durable write could not be measured"))
        .ok()
}

/// What the shards run on, in the words of the start-up line. The CPU is each shard's own.
fn host_facts(config: &Config, host: &Host, measured: Option<WriteLatency>) -> HostFacts {
    let directory = &host.directory;
    let idle = match config.idle {
        Idle::Spin => "spin",
        Idle::Adaptive => "adaptive",
        Idle::Park => "park",
    };
    let write_cache = match directory.volatile_cache {
        Some(true) => "volatile",
        Some(false) => "none",
        None => "unknown",
    };
    let fua = match directory.fua {
        Some(true) => "yes",
        Some(false) => "no",
        None => "unknown",
    };
    HostFacts {
        commit: env!("RINGTIDE_COMMIT").into(),
        process_id: std::process::id(),
        cpu: 0,
        idle: idle.into(),
        kernel: host.kernel.clone(),
        file_system: directory.file_system.clone(),
        device: directory.device_name().into(),
        write_cache: write_cache.into(),
        fua: fua.into(),
        durable_write_ns: measured.map(|latency| latency.p50.as_nanos() as u64),
    }
}

/// The start-up line: what this broker runs on and what it found.
fn announce(
    config: &Config,
    facts: &HostFacts,
    measured: Option<WriteLatency>,
    recovered: &Recovered,
    open_files: Option<u64>,
) {
    let summary = &recovered.summary;
    let micros = |time: Duration| time.as_micros() as u64;
    let recovery = if summary.fresh {
        "made a new data directory".to_string()
    } else if summary.was_clean {
        "the last stop was clean".to_string()
    } else {
        format!(
            "replayed {} batches from {} bytes of log in {} ms",
            summary.batches,
            summary.wal_bytes,
            summary.duration.as_millis()
        )
    };
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        commit = facts.commit,
        cpus = cpu_list::show(&config.cpus),
        idle = facts.idle,
        kernel = facts.kernel,
        data_dir = %config.data_dir.display(),
        file_system = facts.file_system,
        device = facts.device,
        write_cache = facts.write_cache,
        fua = facts.fua,
        durable_write_us = measured.map(|latency| micros(latency.p50)),
        durable_write_max_us = measured.map(|latency| micros(latency.max)),
        open_files,
        topics = recovered.topics.len(),
        incarnation = recovered.identity.incarnation,
        leader_epoch = recovered.identity.leader_epoch,
        recovery,
        "starting"
    );
    if summary.slots_given_up > 0 {
        tracing::warn!(
            slots = summary.slots_given_up,
            "the disk is full: slots of the log were removed for their space; make room"
        );
    }
    if let Some(end) = summary.torn_tail() {
        tracing::info!(
            end = ?end,
            "the log ended in a write that was interrupted; nothing acknowledged was in it"
        );
    }
}

/// Host and port that clients are told, for each shard.
fn addresses(config: &Config, listeners: &[TcpListener]) -> Result<Vec<(String, u16)>, Failure> {
    let port = |listener: &TcpListener| -> Result<u16, Failure> {
        let address: io::Result<SocketAddr> = listener.local_addr();
        let address = address.map_err(|error| {
            Failure::new(Exit::CannotListen, format!("listening failed: {error}"))
        })?;
        Ok(address.port())
    };
    listeners
        .iter()
        .map(|listener| Ok((config.advertise.clone(), port(listener)?)))
        .collect()
}

/// What each shard is started with: its part of what was recovered.
fn starts(
    config: &Config,
    (facts, max_connections): (&HostFacts, usize),
    recovered: Recovered,
    listeners: Vec<TcpListener>,
    addresses: &[(String, u16)],
    log: &LogFlusher,
) -> Result<Vec<ShardStart<Shard>>, Failure> {
    let identity = recovered.identity;
    let shards = config.cpus.len() as u16;
    let mut slots = deal_slots(config, recovered.slots)?.into_iter();
    let topics: Vec<Topic> = recovered
        .topics
        .into_iter()
        .map(|topic| Topic {
            id: topic.id,
            name: topic.name,
            partitions: topic.partitions,
            config: topic.config,
        })
        .collect();
    let mut groups: Vec<Vec<_>> = (0..shards).map(|_| Vec::new()).collect();
    for group in recovered.groups {
        let shard = GroupId(group.group).shard(identity.groups, shards);
        groups[usize::from(shard)].push(group);
    }
    let mut starts: Vec<ShardStart<Shard>> = Vec::new();
    for ((listener, groups), shard) in listeners.into_iter().zip(groups).zip(0..) {
        let cpu = config.cpus[usize::from(shard)];
        let (wal_slots, new_wal_slots) = slots.next().unwrap_or_default();
        let settings = Settings {
            shard,
            shards,
            groups: identity.groups,
            data_dir: config.data_dir.clone(),
            data_directory: identity.data_directory,
            incarnation: identity.incarnation,
            leader_epoch: identity.leader_epoch,
            addresses: addresses.to_vec(),
            memory_bytes: config.memory_bytes,
            wal_slot_bytes: config.wal_slot_bytes,
            wal_slots,
            new_wal_slots,
            wal_in_flight: WAL_WRITES_IN_FLIGHT,
            max_in_flight_requests: config.max_in_flight_requests as u32,
            sync_interval_ms: config.sync_interval.as_millis() as u64,
            seed: random()?,
            broker_version: env!("CARGO_PKG_VERSION").into(),
            host: HostFacts {
                cpu: cpu as u16,
                ..facts.clone()
            },
        };
        let next_topic_serial = recovered.next_topic_serial;
        let inventory = Inventory {
            topics: topics.clone(),
            next_topic_serial,
            groups,
        };
        let mut driven = ShardConfig::new(shard, cpu, config.listen);
        driven.idle = match config.idle {
            Idle::Spin => IdlePolicy::Spin,
            Idle::Adaptive => IdlePolicy::Adaptive {
                budget: config.idle_spin,
            },
            Idle::Park => IdlePolicy::Park,
        };
        driven.catch_up = match config.catch_up {
            CatchUp::Sendfile => ringtide_uring::CatchUp::Sendfile,
            CatchUp::Copy => ringtide_uring::CatchUp::Copy,
        };
        driven.max_connections = max_connections;
        let (log, bytes) = (log.clone(), config.memory_bytes);
        let make = move || {
            Shard::new(settings, inventory).unwrap_or_else(|error| {
                // Before the shard serves there is nothing to drain.
                tracing::error!(shard, bytes, %error, "no memory for the shard; lower memory-bytes");
                log.flush();
                std::process::exit(i32::from(Exit::HostUnfit as u8))
            })
        };
        starts.push((driven, listener, Box::new(make)));
    }
    Ok(starts)
}

/// Slots there are, and slots to be made, for each shard.
type Slots = (Vec<PathBuf>, Vec<PathBuf>);

/// Deals the free slots to the shards and names those that are missing. What is left over, of a
/// start with more, is removed.
fn deal_slots(config: &Config, free: Vec<SlotFile>) -> Result<Vec<Slots>, Failure> {
    let wal = config.data_dir.join("wal");
    let taken: Vec<PathBuf> = free.iter().map(|slot| slot.path.clone()).collect();
    let mut names = (0_u64..)
        .map(|number| wal.join(format!("{number:06}.wal")))
        .filter(|path| !taken.contains(path));
    let mut free = taken.iter().cloned();
    let mut dealt: Vec<Slots> = vec![Slots::default(); config.cpus.len()];
    // In turn, so that every shard has one to begin with.
    for _ in 0..config.wal_slots {
        for (have, make) in &mut dealt {
            match free.next() {
                Some(path) => have.push(path),
                None => make.extend(names.next()),
            }
        }
    }
    for path in free {
        files::remove_file(&path)
            .map_err(|error| Failure::new(Exit::DirectoryUnusable, error.to_string()))?;
    }
    Ok(dealt)
}

fn start_failure(error: StartError) -> Failure {
    let exit = match error {
        StartError::Numbering { .. } => Exit::FatalInvariant,
        StartError::Thread { .. } | StartError::Ring { .. } => Exit::HostUnfit,
    };
    Failure::new(exit, error.to_string())
}

/// How the broker ends, from how its shards ended.
fn finish(dir: &Path, identity: &Identity, ends: Vec<Result<(), Fatal>>) -> Result<(), Failure> {
    let mut failures = ends.into_iter().filter_map(Result::err);
    if let Some(first) = failures.next() {
        for other in failures {
            tracing::error!("{}", other.message);
        }
        return Err(Failure::new(fatal_exit(first.reason), first.message));
    }
    recovery::write_clean_stop(dir, identity)
        .map_err(|error| Failure::new(Exit::FatalSnapshot, error.to_string()))?;
    tracing::info!("stopped");
    Ok(())
}

fn fatal_exit(reason: FatalReason) -> Exit {
    match reason {
        FatalReason::Wal => Exit::FatalWal,
        FatalReason::Segment => Exit::FatalSegment,
        FatalReason::Snapshot => Exit::FatalSnapshot,
        FatalReason::Invariant => Exit::FatalInvariant,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raw_config::Raw;

    fn config(dir: &Path) -> Config {
        let dir = dir.to_str().expect("text");
        let flags = [("data-dir", dir), ("cpus", "0,1"), ("wal-slots", "3")];
        Config::from_raw(&Raw::from_flags(&flags), &[0, 1]).expect("valid")
    }

    fn slot(dir: &Path, number: u64) -> SlotFile {
        let path = dir.join("wal").join(format!("{number:06}.wal"));
        std::fs::create_dir_all(dir.join("wal")).expect("writable");
        std::fs::write(&path, "").expect("writable");
        SlotFile {
            path,
            bytes: 64 << 20,
        }
    }

    #[test]
    fn connections_leave_a_quarter_of_the_open_files_to_segments() {
        let home = tempfile::tempdir().expect("a directory");
        let mut config = config(home.path());
        config.max_connections = 1_000;
        // Two shards with three slots each.
        assert_eq!(config.own_files(), 28);
        assert_eq!(connections(&config, Some(1_028)), 375);
        assert_eq!(connections(&config, Some(10_000)), 1_000);
        assert_eq!(connections(&config, None), 1_000);
        config.wal_slots = 20;
        assert_eq!(connections(&config, Some(64)), 1);
    }

    #[test]
    fn slots_are_dealt_in_turn_and_missing_ones_get_names_of_their_own() {
        let home = tempfile::tempdir().expect("a directory");
        let free = vec![
            slot(home.path(), 0),
            slot(home.path(), 2),
            slot(home.path(), 3),
        ];
        let dealt = deal_slots(&config(home.path()), free).expect("dealt");
        let count: Vec<_> = dealt
            .iter()
            .map(|(have, make)| (have.len(), make.len()))
            .collect();
        assert_eq!(count, [(2, 1), (1, 2)]);
        let mut all: Vec<_> = dealt
            .iter()
            .flat_map(|(have, make)| have.iter().chain(make))
            .collect();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 6, "no file has two owners");
        assert!(!all.is_empty() && all.iter().all(|path| path.extension().is_some()));
    }

    #[test]
    fn slots_left_over_from_a_start_with_more_are_removed() {
        let home = tempfile::tempdir().expect("a directory");
        let free: Vec<_> = (0..8).map(|number| slot(home.path(), number)).collect();
        let dealt = deal_slots(&config(home.path()), free).expect("dealt");
        assert!(
            dealt
                .iter()
                .all(|(have, make)| have.len() == 3 && make.is_empty())
        );
        let left = std::fs::read_dir(home.path().join("wal"))
            .expect("readable")
            .count();
        assert_eq!(left, 6);
    }
}
