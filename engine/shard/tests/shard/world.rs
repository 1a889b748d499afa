//! One or two shards with disks, sockets and mailboxes in memory, moved on step by step. The same
//! calls give the same run: nothing here is random, and time passes only when a test says so.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;

use ringtide_io::{Body, ConnId, Disconnect, DiskOp, Effects, Egress, Logic, NetOp, Now};
use ringtide_schema::batch::{Header, assign};
use ringtide_schema::ids::{PartitionId, TopicId};
use ringtide_schema::limits::BLOCK_BYTES;
use ringtide_schema::store::{GroupSnapshotT, PartitionT, SegmentT};
use ringtide_schema::topic::TopicConfig;
use ringtide_shard::{HostFacts, Inventory, Mail, Placement, Settings, Shard, Topic};

use crate::disk::Disk;

pub const MS: u64 = 1_000_000;
pub const SECOND: u64 = 1000 * MS;
/// The clock of the wall at the start.
pub const START_MS: i64 = 1_700_000_000_000;

/// What a world begins with.
pub struct Setup {
    pub shards: u16,
    pub memory_bytes: usize,
    pub topics: Vec<Topic>,
    /// Sealed segments, each with its batches.
    pub segments: BTreeMap<PartitionId, Vec<Vec<Vec<u8>>>>,
    /// Whether the last of them is unsealed.
    pub is_open: bool,
    /// Whether the slots of the log are still to be made.
    pub has_no_slots: bool,
}

impl Setup {
    pub fn new(shards: u16) -> Self {
        Self {
            shards,
            memory_bytes: 0,
            topics: Vec::new(),
            segments: BTreeMap::new(),
            is_open: false,
            has_no_slots: false,
        }
    }

    /// Leaves the last segment of each partition open.
    pub fn open(mut self) -> Self {
        self.is_open = true;
        self
    }

    /// Leaves the slots of the log to be made.
    pub fn without_slots(mut self) -> Self {
        self.has_no_slots = true;
        self
    }

    /// Adds a topic.
    pub fn topic(mut self, name: &str, partitions: u32) -> Self {
        let serial = self.topics.len() as u64 + 1;
        self.topics.push(Topic {
            id: TopicId::new(serial, serial),
            name: name.into(),
            partitions,
            config: TopicConfig::default(),
        });
        self
    }

    /// Adds a sealed segment to a partition.
    pub fn segment(mut self, partition: PartitionId, batches: &[Vec<u8>]) -> Self {
        let segments = self.segments.entry(partition).or_default();
        segments.push(batches.to_vec());
        self
    }

    fn placement(&self) -> Placement {
        let address = |shard: u16| (format!("shard-{shard}"), 7311 + shard);
        Placement {
            groups: self.shards,
            shards: self.shards,
            addresses: (0..self.shards).map(address).collect(),
        }
    }

    /// The first partition of a topic that is on a shard.
    pub fn on_shard(&self, topic: &str, shard: u16) -> PartitionId {
        let found = self.topics.iter().find(|t| t.name == topic);
        let topic = found.expect("a topic of the setup");
        let id = |partition| PartitionId {
            topic: topic.id,
            partition,
        };
        let mut partitions = (0..topic.partitions).map(id);
        let found = partitions.find(|&id| self.placement().of(id).1 == shard);
        found.expect("a partition on that shard")
    }

    fn node(&self, shard: u16) -> Node {
        let data_dir = PathBuf::from("data");
        let mut disk = Disk::new();
        let slot = |n: u16| data_dir.join("wal").join(format!("{shard}-{n}.wal"));
        let slots: Vec<PathBuf> = (0..4).map(slot).collect();
        let (wal_slots, new_wal_slots) = match self.has_no_slots {
            true => (Vec::new(), slots),
            false => (slots, Vec::new()),
        };
        for path in &wal_slots {
            disk.put(path.clone(), Vec::new());
        }
        let placement = self.placement();
        let mut groups: BTreeMap<u16, GroupSnapshotT> = BTreeMap::new();
        for (&id, segments) in &self.segments {
            let (group, owner) = placement.of(id);
            if owner != shard {
                continue;
            }
            let dir = data_dir.join("partitions").join(id.dir_name());
            let stored = store(id, segments, self.is_open, |base, bytes| {
                disk.put(dir.join(format!("{base:020}.log")), bytes);
            });
            let group = groups.entry(group.0).or_insert(GroupSnapshotT {
                group: group.0,
                ..GroupSnapshotT::default()
            });
            group.partitions.get_or_insert_default().push(stored);
        }
        let settings = Settings {
            shard,
            shards: self.shards,
            groups: placement.groups,
            data_dir,
            data_directory: TopicId { hi: 1, lo: 2 },
            incarnation: 1,
            leader_epoch: 1,
            addresses: placement.addresses,
            memory_bytes: self.memory_bytes,
            wal_slot_bytes: 4 << 20,
            wal_slots,
            new_wal_slots,
            wal_in_flight: 4,
            max_in_flight_requests: 4096,
            sync_interval_ms: 50,
            seed: 7,
            broker_version: "test".into(),
            host: host(),
        };
        let inventory = Inventory {
            topics: self.topics.clone(),
            next_topic_serial: self.topics.len() as u64 + 1,
            groups: groups.into_values().collect(),
        };
        Node {
            shard: Shard::new(settings, inventory).expect("memory"),
            fx: Effects::default(),
            disk,
            sockets: BTreeMap::new(),
            mail: VecDeque::new(),
            holds_mail: false,
        }
    }
}

fn host() -> HostFacts {
    HostFacts {
        commit: "0123456789ab".into(),
        process_id: 77,
        cpu: 3,
        idle: "park".into(),
        kernel: "6.1.0".into(),
        file_system: "ext4".into(),
        device: "vda".into(),
        write_cache: "none".into(),
        fua: "yes".into(),
        durable_write_ns: Some(20_000),
    }
}

/// A partition as its snapshot has it; `put` is given each segment's file.
fn store(
    id: PartitionId,
    segments: &[Vec<Vec<u8>>],
    is_open: bool,
    mut put: impl FnMut(u64, Vec<u8>),
) -> PartitionT {
    let mut next_offset = 0;
    let mut stored = Vec::new();
    let mut tail = None;
    for (n, batches) in segments.iter().enumerate() {
        let base_offset = next_offset;
        let mut bytes = Vec::new();
        let mut max_timestamp_ms = 0;
        for batch in batches {
            let mut batch = batch.clone();
            assign(&mut batch, next_offset, 1);
            let header = Header::peek(&batch).expect("a batch");
            next_offset = header.next_offset();
            max_timestamp_ms = max_timestamp_ms.max(header.max_timestamp_ms);
            bytes.extend(batch);
        }
        let sealed = !is_open || n + 1 < segments.len();
        if !sealed {
            // Whole blocks are in the file, what follows them in the snapshot.
            tail = Some(bytes.split_off(bytes.len() / BLOCK_BYTES * BLOCK_BYTES));
        }
        stored.push(SegmentT {
            base_offset,
            next_offset,
            bytes: bytes.len() as u64,
            max_timestamp_ms,
            incarnation: 1,
            sealed,
            ..SegmentT::default()
        });
        put(base_offset, bytes);
    }
    PartitionT {
        topic: Some(id.topic.into()),
        partition: id.partition,
        next_offset,
        segments: Some(stored),
        tail,
        ..PartitionT::default()
    }
}

/// A connection as its peer sees it.
pub struct Socket {
    /// What the peer sent and the shard did not receive.
    input: Vec<u8>,
    /// What the peer received and did not look at.
    pub received: Vec<u8>,
    egress: Option<Egress>,
    /// Whether the peer takes what it is sent.
    pub reads: bool,
    /// Whether the shard stopped receiving.
    pub is_paused: bool,
    is_closing: bool,
    /// Why the connection ended.
    pub ended: Option<Disconnect>,
}

/// One shard and what is around it.
pub struct Node {
    pub shard: Shard,
    fx: Effects<Mail>,
    pub disk: Disk,
    pub sockets: BTreeMap<ConnId, Socket>,
    pub mail: VecDeque<(u16, Mail)>,
    /// Mail for this shard stays where it is.
    pub holds_mail: bool,
}

/// A connection that a test opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    pub shard: usize,
    pub conn: ConnId,
}

pub struct World {
    pub now: Now,
    pub nodes: Vec<Node>,
    connections: u64,
    pub(crate) correlations: u64,
}

impl World {
    pub fn new(setup: &Setup) -> Self {
        let mut world = Self::before_the_start(setup);
        world.run();
        world
    }

    /// Shards that had no turn yet.
    pub fn before_the_start(setup: &Setup) -> Self {
        Self {
            now: Now {
                mono_ns: SECOND,
                wall_ms: START_MS,
            },
            nodes: (0..setup.shards).map(|shard| setup.node(shard)).collect(),
            connections: 0,
            correlations: 1000,
        }
    }

    /// A connection that has not said anything.
    pub fn open(&mut self, shard: usize) -> Peer {
        self.connections += 1;
        let conn = ConnId(self.connections);
        let node = &mut self.nodes[shard];
        let address = format!("192.0.2.1:{}", self.connections);
        let address = address.parse().expect("an address");
        node.shard.accepted(conn, address, self.now, &mut node.fx);
        let socket = Socket {
            input: Vec::new(),
            received: Vec::new(),
            egress: None,
            reads: true,
            is_paused: false,
            is_closing: false,
            ended: None,
        };
        node.sockets.insert(conn, socket);
        Peer { shard, conn }
    }

    pub fn socket(&mut self, peer: Peer) -> &mut Socket {
        let socket = self.nodes[peer.shard].sockets.get_mut(&peer.conn);
        socket.expect("a connection of this world")
    }

    /// The peer sends bytes.
    pub fn write(&mut self, peer: Peer, bytes: &[u8]) {
        self.socket(peer).input.extend_from_slice(bytes);
    }

    /// What the peer wrote is received, before the next turn.
    pub fn deliver(&mut self, peer: Peer) {
        self.nodes[peer.shard].socket_events(peer.conn, self.now);
    }

    /// The peer closes the connection.
    pub fn hang_up(&mut self, peer: Peer) {
        self.nodes[peer.shard].end(peer.conn, Disconnect::Peer, self.now);
    }

    /// Holds writes to the log of a shard back, or nothing any more.
    pub fn hold_log(&mut self, shard: usize, is_held: bool) {
        self.nodes[shard].disk.holds = Box::new(move |path, op| {
            is_held && path.starts_with("data/wal") && matches!(op, DiskOp::Write { .. })
        });
    }

    /// Asks every shard to end.
    pub fn stop(&mut self) {
        for node in &mut self.nodes {
            node.shard.stop(self.now, &mut node.fx);
        }
    }

    pub fn is_stopped(&self) -> bool {
        self.nodes.iter().all(|node| node.shard.is_stopped())
    }

    /// Moves on until nothing happens any more.
    pub fn run(&mut self) {
        let mut idle = 0;
        for _ in 0..100_000 {
            idle = if self.step() { 0 } else { idle + 1 };
            if idle == 2 {
                return;
            }
        }
        panic!("the shards never come to rest");
    }

    /// Lets time pass, in steps short enough for every timer to fire about when it is due.
    pub fn pass(&mut self, ns: u64) {
        const STEP: u64 = 10 * MS;
        for _ in 0..ns.div_ceil(STEP) {
            self.now.mono_ns += STEP;
            self.now.wall_ms += (STEP / MS) as i64;
            self.run();
        }
    }

    /// One turn of each shard. Returns whether anything happened.
    pub fn step(&mut self) -> bool {
        let mut is_busy = false;
        for from in 0..self.nodes.len() {
            let node = &mut self.nodes[from];
            is_busy |= node.events(self.now);
            node.shard.turn(self.now, &mut node.fx);
            is_busy |= node.carry_out(self.now);
            for (to, mail) in std::mem::take(&mut node.fx.mail) {
                is_busy = true;
                self.nodes[usize::from(to)]
                    .mail
                    .push_back((from as u16, mail));
            }
        }
        is_busy
    }
}

impl Node {
    /// Tells the shard what happened.
    fn events(&mut self, now: Now) -> bool {
        let mut is_busy = false;
        for (op, result) in self.disk.complete() {
            is_busy = true;
            self.shard.disk(op, result, now, &mut self.fx);
        }
        if !self.holds_mail {
            for (from, mail) in std::mem::take(&mut self.mail) {
                is_busy = true;
                self.shard.mail(from, mail, now, &mut self.fx);
            }
        }
        let open: Vec<ConnId> = self.sockets.keys().copied().collect();
        for conn in open {
            is_busy |= self.socket_events(conn, now);
        }
        is_busy
    }

    fn socket_events(&mut self, conn: ConnId, now: Now) -> bool {
        let Some(socket) = self.sockets.get_mut(&conn) else {
            return false;
        };
        if socket.ended.is_some() {
            return false;
        }
        let mut is_busy = false;
        if socket.reads
            && let Some(mut egress) = socket.egress.take()
        {
            socket.received.extend_from_slice(&egress.head);
            match std::mem::take(&mut egress.body) {
                Body::Nothing => {}
                Body::Memory(slices) => {
                    slices
                        .iter()
                        .for_each(|s| socket.received.extend_from_slice(s));
                }
                Body::File {
                    file,
                    position,
                    bytes,
                } => {
                    let Some(range) = self.disk.range(file, position, bytes) else {
                        let why = self.disk.range_failure.clone();
                        self.end(conn, why, now);
                        return true;
                    };
                    socket.received.extend(range);
                }
            }
            is_busy = true;
            self.shard.sent(conn, egress, now, &mut self.fx);
        }
        if !socket.input.is_empty() && !socket.is_paused && !socket.is_closing {
            let bytes = std::mem::take(&mut socket.input);
            is_busy = true;
            self.shard.received(conn, &bytes, now, &mut self.fx);
        }
        if socket.is_closing && socket.egress.is_none() {
            is_busy = true;
            self.end(conn, Disconnect::Asked, now);
        }
        is_busy
    }

    fn end(&mut self, conn: ConnId, why: Disconnect, now: Now) {
        if let Some(socket) = self.sockets.get_mut(&conn)
            && socket.ended.is_none()
        {
            socket.ended = Some(why.clone());
            self.shard.disconnected(conn, why, now, &mut self.fx);
        }
    }

    /// Carries out what the shard asked for, but for its mail.
    fn carry_out(&mut self, now: Now) -> bool {
        assert!(self.fx.fatal.is_none(), "{:?}", self.fx.fatal);
        let (net, disk) = (
            std::mem::take(&mut self.fx.net),
            std::mem::take(&mut self.fx.disk),
        );
        let is_busy = !(net.is_empty() && disk.is_empty());
        for op in net {
            let (NetOp::Send(conn, _)
            | NetOp::Pause(conn)
            | NetOp::Resume(conn)
            | NetOp::Close(conn)
            | NetOp::Abort(conn)) = &op;
            let conn = *conn;
            let Some(socket) = self.sockets.get_mut(&conn) else {
                continue;
            };
            match op {
                NetOp::Send(_, egress) => {
                    assert!(socket.egress.is_none(), "two egresses of {conn:?}");
                    socket.egress = Some(egress);
                }
                NetOp::Pause(_) => socket.is_paused = true,
                NetOp::Resume(_) => socket.is_paused = false,
                NetOp::Close(_) => socket.is_closing = true,
                NetOp::Abort(_) => self.end(conn, Disconnect::Asked, now),
            }
        }
        for (id, op) in disk {
            self.disk.submit(id, op);
        }
        is_busy
    }
}
