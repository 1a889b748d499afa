//! One start of the broker: recovery, then a shard for each core, each with its sockets and its mail.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use ringtide_io::{ConnId, Effects, Logic as _, Now};
use ringtide_log::files::watch::{Change, watched};
use ringtide_log::recovery::{self, RecoverError, RecoverOptions, Recovered};
use ringtide_schema::identity::Identity;
use ringtide_schema::ids::GroupId;
use ringtide_shard::{HostFacts, Inventory, Mail, Settings, Shard, Topic};
use tempfile::TempDir;

use crate::disk::Disk;

/// The smallest that a broker takes.
const SLOT_BYTES: u64 = 4 << 20;
/// Slots of each shard.
const SLOTS: usize = 3;
/// Data groups of the directory.
const GROUPS: u16 = 4;
/// The port of the first shard.
pub const PORT: u16 = 7311;
/// The host of all of them.
pub const HOST: &str = "broker";

/// A connection as its shard sees it.
#[derive(Debug, Default)]
pub struct Socket {
    /// What arrived while the shard did not receive.
    pub input: Vec<u8>,
    /// The shard does not receive.
    pub is_paused: bool,
    /// An egress is on its way.
    pub is_sending: bool,
    /// To be closed when it is sent.
    pub is_closing: bool,
}

/// One shard and its sockets.
pub struct Node {
    /// The production logic.
    pub shard: Shard,
    /// What it wants done.
    pub fx: Effects<Mail>,
    /// Its connections.
    pub sockets: BTreeMap<ConnId, Socket>,
    /// Something has happened to it since its last turn.
    pub is_due: bool,
    /// It sleeps although it is due (planted); whatever happens to it next wakes it.
    pub sleeps: bool,
}

/// A broker that runs.
pub struct Broker {
    /// Its shards.
    pub nodes: Vec<Node>,
    identity: Identity,
}

impl Broker {
    /// Starts on the files that there are, with as many shards.
    ///
    /// # Errors
    /// What recovery refuses.
    pub fn start(disk: &mut Disk, shards: u16, seed: u64, now: Now) -> Result<Self, RecoverError> {
        let home = home();
        let root = home.path().to_path_buf();
        disk.store(&root);
        let options = RecoverOptions {
            direct: false,
            shards,
            slot_bytes: SLOT_BYTES,
            groups_for_new: GROUPS,
            random: [seed, !seed],
        };
        let shared = Rc::new(RefCell::new(disk.take()));
        let watcher = {
            let (shared, root) = (Rc::clone(&shared), root.clone());
            move |change: Change<'_>| shared.borrow_mut().change(&root, change)
        };
        let recovered = watched(watcher, || recovery::recover(&root, options, &mut |_| ()));
        *disk = shared.borrow_mut().take();
        let recovered = recovered?;
        assert!(disk.is_as_in(&root), "recovery was seen doing everything");
        Ok(Self::of(recovered, home.path(), shards, seed, now))
    }

    fn of(recovered: Recovered, root: &Path, shards: u16, seed: u64, now: Now) -> Self {
        let identity = recovered.identity;
        let free = recovered
            .slots
            .iter()
            .map(|slot| slot.path.strip_prefix(root).expect("below").to_path_buf());
        let mut slots = deal(free.collect(), shards).into_iter();
        let topics = recovered.topics.into_iter().map(|topic| Topic {
            id: topic.id,
            name: topic.name,
            partitions: topic.partitions,
            config: topic.config,
        });
        let topics: Vec<Topic> = topics.collect();
        let mut groups: Vec<Vec<_>> = (0..shards).map(|_| Vec::new()).collect();
        for group in recovered.groups {
            let shard = GroupId(group.group).shard(identity.groups, shards);
            groups[usize::from(shard)].push(group);
        }
        let address = |shard: u16| (HOST.to_owned(), PORT + shard);
        let mut nodes = Vec::new();
        for (shard, groups) in (0..shards).zip(groups) {
            let (wal_slots, new_wal_slots) = slots.next().expect("one for each shard");
            let settings = Settings {
                shard,
                shards,
                groups: identity.groups,
                data_dir: PathBuf::new(),
                data_directory: identity.data_directory,
                incarnation: identity.incarnation,
                leader_epoch: identity.leader_epoch,
                addresses: (0..shards).map(address).collect(),
                memory_bytes: 32 << 20,
                wal_slot_bytes: SLOT_BYTES,
                wal_slots,
                new_wal_slots,
                wal_in_flight: 4,
                max_in_flight_requests: 256,
                sync_interval_ms: 50,
                seed: seed ^ u64::from(shard),
                broker_version: "simulated".into(),
                host: HostFacts::default(),
            };
            let inventory = Inventory {
                topics: topics.clone(),
                next_topic_serial: recovered.next_topic_serial,
                groups,
            };
            let mut node = Node {
                shard: Shard::new(settings, inventory).expect("memory"),
                fx: Effects::default(),
                sockets: BTreeMap::new(),
                is_due: true,
                sleeps: false,
            };
            node.shard.turn(now, &mut node.fx);
            nodes.push(node);
        }
        Self { nodes, identity }
    }

    /// The identity that says that the stop was clean.
    pub fn clean_identity(&self, disk: &Disk) -> Vec<u8> {
        let snapshots = disk.files_in(Path::new("groups"));
        let crc = |crc, (_, bytes): (_, Vec<u8>)| crc32c::crc32c_append(crc, &bytes);
        let identity = Identity {
            clean: true,
            snapshots_crc: snapshots
                .filter(|(path, _)| path.extension().is_some_and(|e| e == "snapshot"))
                .fold(0, crc),
            ..self.identity
        };
        identity.encode().to_vec()
    }

    /// Whether every shard has drained.
    pub fn is_stopped(&self) -> bool {
        self.nodes.iter().all(|node| node.shard.is_stopped())
    }
}

/// Where recovery works: in memory, if this machine has such a place.
fn home() -> TempDir {
    let memory = Path::new("/dev/shm");
    let home = match memory.is_dir() {
        true => TempDir::new_in(memory),
        false => TempDir::new(),
    };
    home.expect("a directory")
}

/// Slots there are and slots to be made, for each shard.
fn deal(free: Vec<PathBuf>, shards: u16) -> Vec<(Vec<PathBuf>, Vec<PathBuf>)> {
    let name = |n: u64| PathBuf::from(format!("wal/{n:06}.wal"));
    let mut names = (0..).map(name).filter(|path| !free.contains(path));
    let mut there = free.iter().cloned();
    let mut dealt = vec![(Vec::new(), Vec::new()); usize::from(shards)];
    for _ in 0..SLOTS {
        for (have, make) in &mut dealt {
            match there.next() {
                Some(path) => have.push(path),
                None => make.extend(names.next()),
            }
        }
    }
    dealt
}
