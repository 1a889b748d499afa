//! The loop of one core: partitions, sessions, delivery, backpressure. No I/O.
//!
//! A request comes in through `requests`. From there a publish goes to `publish`, a fetch or
//! subscription to `read`, a question to `query`, a change of topics to `control`, and what is
//! another shard's to `forward`. `commit` is what follows a completed WAL write, `deliver` what
//! leaves; `upkeep` moves data into segments and snapshots, off the path of a message. All of them
//! are methods of [`Shard`], which a driver calls through [`ringtide_io::Logic`].
//!
//! Invariants asserted here: an answer to a durable publish leaves only after the commit of its
//! entry and all before it; nothing past the visible watermark is delivered; a WAL slot is released
//! only when snapshots hold its entries.

mod checkpoint;
mod commit;
mod control;
mod deliver;
mod describe;
mod failed_reads;
mod fault;
mod forward;
mod logic;
mod mail;
mod open_files;
mod publish;
mod query;
mod read;
mod requests;
mod session;
pub mod settings;
mod topics;
mod upkeep;
mod watchers;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ringtide_io::{Chunk, Effects, FileId, OpId, Pool};
use ringtide_log::partition::{Ops, Partition, PartitionOp};
use ringtide_log::wal::{Wal, WalConfig};
use ringtide_schema::ids::{GroupId, PartitionId};
use ringtide_session::Encoder;
use rustc_hash::FxHashMap;

pub use mail::{Forwarded, Mail, Part, PartDone, Reply};
pub use session::Tally;
pub use settings::{HostFacts, Inventory, Settings};
pub use topics::{Change, Placement, Topic};

use checkpoint::Checkpoint;
use commit::Waiter;
use control::Control;
use failed_reads::FailedReads;
use query::Search;
use session::{Session, SessionKey, Timer};
use topics::Topics;
use upkeep::Upkeep;
use watchers::Watchers;

type Fx = Effects<Mail>;

/// A partition and who waits for it.
struct Held {
    log: Partition,
    watchers: Watchers,
    /// In the queue of the segment writers.
    is_queued: bool,
    /// The next round is to end with a sync.
    wants_sync: bool,
    /// A new log start is on its way into the log.
    is_retiring: bool,
    /// One of the writers is at work here.
    is_writing: bool,
    /// Offsets of consumers that are on their way into the log.
    commits_under_way: usize,
    /// What could not be read while it was sent.
    failed_reads: FailedReads,
}

/// A log group of this shard.
#[derive(Debug, Default)]
struct Group {
    /// Of the last entry.
    last_index: u64,
    /// What its snapshot holds.
    snapshot_index: u64,
    /// Its partitions.
    partitions: Vec<usize>,
}

/// What an operation on files was for.
enum Pending {
    Partition(usize, PartitionOp),
    OpenSlot(FileId, std::path::PathBuf),
    CreateSlot(std::path::PathBuf),
    RemoveSlot(std::path::PathBuf),
    Snapshot(GroupId),
    Search {
        number: u64,
        bytes: usize,
    },
    RemoteRead {
        key: SessionKey,
        reply: Reply,
        bytes: usize,
        /// What follows it.
        rest: Vec<u8>,
    },
}

/// The logic of one core.
pub struct Shard {
    settings: Settings,
    placement: Placement,
    pool: Pool,
    wal: Wal,
    topics: Topics,
    /// Boxed: a deleted one leaves an empty place, for indexes are not given out again.
    partitions: Vec<Option<Box<Held>>>,
    index: FxHashMap<PartitionId, usize>,
    /// Files of deleted partitions, by the partition's index.
    orphans: FxHashMap<usize, Vec<FileId>>,
    groups: BTreeMap<GroupId, Group>,
    sessions: FxHashMap<SessionKey, Session>,
    encoder: Encoder,
    ready: Vec<SessionKey>,
    blocked: VecDeque<SessionKey>,
    /// Requests taken in this turn.
    requests: u32,
    /// Some were left for the next turn.
    is_behind: bool,
    /// Sessions with a range of a file to read for another shard, and no memory for it.
    short_of_memory: BTreeSet<SessionKey>,
    /// Answers that wait for the log, by entry.
    waiters: VecDeque<Waiter>,
    /// Appended batches by entry: partition and the offset after them.
    appended: VecDeque<(u64, usize, u64)>,
    /// By when they are due.
    timers: BTreeSet<(u64, SessionKey, Timer)>,
    /// Small batches, packed.
    arena: Option<Chunk>,
    ops: FxHashMap<OpId, Pending>,
    next_op: u64,
    files: u64,
    /// Sessions of connections of this shard.
    connections: u32,
    /// Requests under way on other shards, but for fetches.
    forwarded: u32,
    /// Bytes of requests of this shard's connections that have begun to arrive or wait.
    partial_bytes: usize,
    next_producer: u64,
    next_publish: u64,
    searches: BTreeMap<u64, Search>,
    next_search: u64,
    control: Control,
    upkeep: Upkeep,
    checkpoint: Option<Checkpoint>,
    /// Counts the turns; readers' files are closed by it.
    turn: u64,
    is_stopping: bool,
    is_stopped: bool,
    /// When peers that do not take their last answers are cut off.
    give_up_ns: Option<u64>,
    /// When its first turn was.
    started_ns: Option<u64>,
}

impl Shard {
    /// A shard with what recovery found for it. Its files are opened by its first turn.
    pub fn new(settings: Settings, inventory: Inventory) -> std::io::Result<Self> {
        let pool = Pool::new(settings.memory_bytes)?;
        let config = WalConfig {
            shard: settings.shard,
            data_directory: settings.data_directory,
            incarnation: settings.incarnation,
            slot_bytes: settings.wal_slot_bytes,
            max_in_flight: settings.wal_in_flight,
        };
        let wal = Wal::new(config, pool.clone(), Vec::new());
        let placement = Placement {
            groups: settings.groups,
            shards: settings.shards,
            addresses: settings.addresses.clone(),
        };
        let mut shard = Self {
            placement,
            pool,
            wal,
            topics: Topics::default(),
            partitions: Vec::new(),
            index: FxHashMap::default(),
            orphans: FxHashMap::default(),
            groups: BTreeMap::new(),
            sessions: FxHashMap::default(),
            encoder: Encoder::new(),
            ready: Vec::new(),
            blocked: VecDeque::new(),
            requests: 0,
            is_behind: false,
            short_of_memory: BTreeSet::new(),
            waiters: VecDeque::new(),
            appended: VecDeque::new(),
            timers: BTreeSet::new(),
            arena: None,
            ops: FxHashMap::default(),
            next_op: 0,
            files: 0,
            connections: 0,
            forwarded: 0,
            partial_bytes: 0,
            next_producer: 0,
            next_publish: 0,
            searches: BTreeMap::new(),
            next_search: 0,
            control: Control::default(),
            upkeep: Upkeep::default(),
            checkpoint: None,
            turn: 0,
            is_stopping: false,
            is_stopped: false,
            give_up_ns: None,
            started_ns: None,
            settings,
        };
        shard.take_inventory(inventory);
        Ok(shard)
    }

    fn take_inventory(&mut self, inventory: Inventory) {
        for group in &inventory.groups {
            let index = group.group_index;
            if GroupId(group.group) == self.placement.metadata_group() {
                self.control.applied_index = index;
            }
            let held = Group {
                last_index: index,
                snapshot_index: index,
                partitions: Vec::new(),
            };
            self.groups.insert(GroupId(group.group), held);
        }
        let stored = inventory
            .groups
            .into_iter()
            .flat_map(|g| g.partitions.unwrap_or_default());
        let mut stored: FxHashMap<PartitionId, _> = stored
            .map(|p| {
                let topic = p.topic.as_ref().map(Into::into).unwrap_or_default();
                (
                    PartitionId {
                        topic,
                        partition: p.partition,
                    },
                    p,
                )
            })
            .collect();
        for topic in inventory.topics {
            for partition in 0..topic.partitions {
                let id = PartitionId {
                    topic: topic.id,
                    partition,
                };
                let (group, owner) = self.placement.of(id);
                if owner != self.settings.shard {
                    continue;
                }
                let dir = self
                    .settings
                    .data_dir
                    .join("partitions")
                    .join(id.dir_name());
                let incarnation = self.settings.incarnation;
                let log = match stored.remove(&id) {
                    Some(stored) => Partition::load(stored, group, topic.config, dir, incarnation),
                    None => Partition::create(id, group, topic.config, dir, incarnation),
                };
                self.hold(log);
            }
            self.topics.apply(&Change::Put(topic.into()));
        }
        self.topics.next_serial = self
            .topics
            .next_serial
            .max(inventory.next_topic_serial)
            .max(1);
    }

    fn hold(&mut self, log: Partition) -> usize {
        let i = self.partitions.len();
        self.index.insert(log.id(), i);
        self.groups
            .entry(log.group())
            .or_default()
            .partitions
            .push(i);
        self.partitions.push(Some(Box::new(Held {
            log,
            watchers: Watchers::default(),
            is_queued: false,
            is_retiring: false,
            wants_sync: false,
            is_writing: false,
            commits_under_way: 0,
            failed_reads: FailedReads::default(),
        })));
        i
    }

    fn held(&mut self, i: usize) -> Option<&mut Held> {
        self.partitions.get_mut(i).and_then(Option::as_deref_mut)
    }

    /// Gives a session its turn at the end of this turn.
    fn mark_ready(&mut self, key: SessionKey) {
        if let Some(session) = self.sessions.get_mut(&key)
            && session.make_ready()
        {
            self.ready.push(key);
        }
    }

    /// Everybody who waits for the partition looks again.
    fn wake(&mut self, i: usize) {
        let Some(Some(held)) = self.partitions.get(i) else {
            return;
        };
        for key in held.watchers.sessions() {
            if let Some(session) = self.sessions.get_mut(&key)
                && session.make_ready()
            {
                self.ready.push(key);
            }
        }
    }

    /// Calls into a partition's log and sends what it asks for on its way.
    fn with_log<R>(
        &mut self,
        i: usize,
        fx: &mut Fx,
        call: impl FnOnce(&mut Partition, &mut Ops<'_>) -> R,
    ) -> Option<R> {
        let held = self.partitions.get_mut(i).and_then(Option::as_mut)?;
        let mut out = Vec::new();
        let mut ops = Ops {
            out: &mut out,
            files: &mut self.files,
            pool: &self.pool,
        };
        let result = call(&mut held.log, &mut ops);
        for (op, disk) in out {
            self.next_op += 1;
            let id = OpId(self.next_op);
            self.ops.insert(id, Pending::Partition(i, op));
            if op == PartitionOp::Write {
                self.upkeep.pieces.push_back((id, disk));
            } else {
                fx.disk.push((id, disk));
            }
        }
        self.write_pieces(fx);
        Some(result)
    }

    /// Whether operations of a partition are under way, even of one that was deleted.
    fn has_ops(&self, i: usize) -> bool {
        let is_of = |p: &Pending| matches!(p, Pending::Partition(of, _) if *of == i);
        self.ops.values().any(is_of)
    }

    fn op(&mut self, pending: Pending) -> OpId {
        self.next_op += 1;
        let id = OpId(self.next_op);
        self.ops.insert(id, pending);
        id
    }

    fn file(&mut self) -> FileId {
        self.files += 1;
        FileId(self.files)
    }
}
