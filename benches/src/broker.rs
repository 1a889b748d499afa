//! A shard under a driver that does everything at once and keeps nothing: what is written, sent or
//! removed is done when it was asked for. Each operation ends when the shard asks for nothing more,
//! and takes 10 us, so that the share of segments, syncs and checkpoints is in it.

use std::hint::black_box;
use std::path::PathBuf;

use ringtide_io::{
    Body, ConnId, DiskDone, DiskOp, Effects, Egress, IndexBytes, Logic, NetOp, Now, OpId,
};
use ringtide_schema::flatbuffers::{FlatBufferBuilder, WIPOffset};
use ringtide_schema::frame::Op;
use ringtide_schema::ids::TopicId;
use ringtide_schema::topic::TopicConfig;
use ringtide_schema::wire;
use ringtide_session::Encoder;
use ringtide_shard::{HostFacts, Inventory, Mail, Settings, Shard, Topic};

use crate::sessions::{PIPELINED, publishes};
use crate::{LARGE, Operation, SMALL, TIMESTAMP_MS, batch, partition};

const ACCEPTED: u8 = 1;
const DURABLE: u8 = 2;
const OPERATION_NS: u64 = 10_000;
/// The most that a subscription may have.
const CREDIT_BYTES: u32 = 256 << 20;

/// A shard with connections of one kind.
struct Broker {
    shard: Shard,
    fx: Effects<Mail>,
    net: Vec<NetOp>,
    disk: Vec<(OpId, DiskOp)>,
    now: Now,
    /// Bytes that were sent to any peer.
    sent: usize,
}

impl Broker {
    fn new() -> Self {
        let topic = Topic {
            id: partition().topic,
            name: "ticks".into(),
            partitions: 1,
            config: TopicConfig::default(),
        };
        let inventory = Inventory {
            topics: vec![topic],
            next_topic_serial: 2,
            groups: Vec::new(),
        };
        let now = Now {
            mono_ns: 1_000_000_000,
            wall_ms: TIMESTAMP_MS,
        };
        let mut broker = Self {
            shard: Shard::new(settings(), inventory).expect("there is memory"),
            fx: Effects::default(),
            net: Vec::new(),
            disk: Vec::new(),
            now,
            sent: 0,
        };
        broker.settle();
        broker
    }

    /// A connection that said hello.
    fn connect(&mut self, number: u64) -> ConnId {
        let conn = ConnId(number);
        let peer = ([192, 0, 2, 1], 7311).into();
        self.shard.accepted(conn, peer, self.now, &mut self.fx);
        let hello = wire::HelloRequestT {
            min_version: 1,
            max_version: 1,
            ..wire::HelloRequestT::default()
        };
        self.receive(conn, &request(Op::Hello, number, |b| hello.pack(b)));
        self.settle();
        assert!(self.took_sent() > 0, "hello was not answered");
        conn
    }

    /// A connection that is given what is published from now on.
    fn subscribe(&mut self, number: u64) -> ConnId {
        let conn = self.connect(number);
        let subscribe = wire::SubscribeRequestT {
            partition: Some(partition().into()),
            offset: -1,
            credit_bytes: CREDIT_BYTES,
        };
        let subscribe = request(Op::Subscribe, number, |b| subscribe.pack(b));
        self.receive(conn, &subscribe);
        self.settle();
        conn
    }

    fn receive(&mut self, conn: ConnId, bytes: &[u8]) {
        self.shard.received(conn, bytes, self.now, &mut self.fx);
    }

    /// Turns until nothing is asked for any more.
    fn settle(&mut self) {
        self.now.mono_ns += OPERATION_NS;
        loop {
            self.shard.turn(self.now, &mut self.fx);
            if !self.carry_out() {
                return;
            }
        }
    }

    /// Does what the shard asked for, and tells it so.
    fn carry_out(&mut self) -> bool {
        assert!(self.fx.fatal.is_none(), "{:?}", self.fx.fatal);
        std::mem::swap(&mut self.net, &mut self.fx.net);
        std::mem::swap(&mut self.disk, &mut self.fx.disk);
        let is_busy = !self.net.is_empty() || !self.disk.is_empty();
        for op in self.net.drain(..) {
            match op {
                NetOp::Send(conn, egress) => {
                    self.sent += egress_bytes(&egress);
                    self.shard.sent(conn, egress, self.now, &mut self.fx);
                }
                // Of more requests than a turn takes.
                NetOp::Pause(_) | NetOp::Resume(_) => {}
                op => panic!("{op:?} of a peer that did nothing wrong"),
            }
        }
        for (id, op) in self.disk.drain(..) {
            if let Some(done) = done(op) {
                self.shard.disk(id, Ok(done), self.now, &mut self.fx);
            }
        }
        is_busy
    }

    fn took_sent(&mut self) -> usize {
        std::mem::take(&mut self.sent)
    }
}

fn settings() -> Settings {
    let data_dir = PathBuf::from("data");
    let slot = |n: u16| data_dir.join("wal").join(format!("0-{n}.wal"));
    Settings {
        shard: 0,
        shards: 1,
        groups: 1,
        wal_slots: (0..4).map(slot).collect(),
        data_dir,
        data_directory: TopicId { hi: 1, lo: 2 },
        incarnation: 1,
        leader_epoch: 1,
        addresses: vec![("localhost".into(), 7311)],
        memory_bytes: 64 << 20,
        wal_slot_bytes: 16 << 20,
        new_wal_slots: Vec::new(),
        wal_in_flight: 4,
        max_in_flight_requests: 4096,
        sync_interval_ms: 50,
        seed: 7,
        broker_version: "bench".into(),
        host: HostFacts::default(),
    }
}

/// What the end of an operation on files looks like; closing has none.
fn done(op: DiskOp) -> Option<DiskDone> {
    match op {
        DiskOp::Close { .. } => None,
        DiskOp::Open { .. } => Some(DiskDone::Opened { bytes: 0 }),
        DiskOp::LoadIndex { bytes, .. } => Some(DiskDone::Index(IndexBytes::Built {
            entries: Vec::new(),
            covered_bytes: bytes,
        })),
        DiskOp::Read { .. } => panic!("nothing is read that was not kept"),
        _ => Some(DiskDone::Done),
    }
}

fn egress_bytes(egress: &Egress) -> usize {
    let body = match &egress.body {
        Body::Nothing => 0,
        Body::Memory(slices) => slices.iter().map(|slice| slice.len()).sum(),
        Body::File { bytes, .. } => *bytes,
    };
    egress.head.len() + body
}

fn request<T>(
    op: Op,
    correlation: u64,
    build: impl FnOnce(&mut FlatBufferBuilder<'static>) -> WIPOffset<T>,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    Encoder::new().frame(&mut bytes, op, 0, correlation, 0, build);
    bytes
}

/// So many publishes that come at once, up to the last of their answers.
fn publish(count: u32, acks: u8, shape: (u32, usize)) -> Operation {
    let mut broker = Broker::new();
    let conn = broker.connect(1);
    let stream = publishes(count, acks, &batch(shape));
    Operation::of(count, move || {
        broker.receive(conn, black_box(&stream));
        broker.settle();
        assert!(broker.took_sent() > 0, "nothing was answered");
    })
}

/// A durable record from its publish to the last of so many subscribers.
fn deliver(subscribers: u32) -> Operation {
    let mut broker = Broker::new();
    let publisher = broker.connect(1);
    let subscribe = |number| (broker.subscribe(number), number);
    let peers = (2..2 + u64::from(subscribers)).map(subscribe);
    let peers: Vec<(ConnId, u64)> = peers.collect();
    let batch = batch(SMALL);
    let stream = publishes(1, DURABLE, &batch);
    let mut credit = CREDIT_BYTES;
    Operation::of(subscribers, move || {
        broker.receive(publisher, black_box(&stream));
        broker.settle();
        let least = subscribers as usize * batch.len();
        assert!(broker.took_sent() >= least, "a subscriber was left out");
        credit -= batch.len() as u32;
        if credit < CREDIT_BYTES / 2 {
            let bytes = CREDIT_BYTES - std::mem::replace(&mut credit, CREDIT_BYTES);
            for &(conn, number) in &peers {
                broker.receive(conn, &more_credit(number, bytes));
            }
        }
    })
}

fn more_credit(subscription: u64, bytes: u32) -> Vec<u8> {
    let credit = wire::CreditT {
        subscription,
        bytes,
    };
    request(Op::Credit, subscription, |b| credit.pack(b))
}

/// A session with pipelined publishes that are answered before they are durable.
pub fn session_of_256_publishes() -> Operation {
    publish(PIPELINED, ACCEPTED, SMALL)
}

/// One batch made durable.
pub fn group_commit_of_1() -> Operation {
    publish(1, DURABLE, SMALL)
}

/// 16 batches made durable together.
pub fn group_commit_of_16() -> Operation {
    publish(16, DURABLE, SMALL)
}

/// 256 batches made durable together.
pub fn group_commit_of_256() -> Operation {
    publish(256, DURABLE, SMALL)
}

/// Four large batches made durable together, and a round of the segment writer, which they fill.
pub fn group_commit_of_4_large() -> Operation {
    publish(4, DURABLE, LARGE)
}

/// A record to its one subscriber.
pub fn tail_delivery_to_1() -> Operation {
    deliver(1)
}

/// A record to 50 subscribers.
pub fn tail_delivery_to_50() -> Operation {
    deliver(50)
}
