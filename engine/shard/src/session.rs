//! One peer of a shard: a connection of its own, or one of another shard that forwards.
//!
//! Frames come in through the assembler; answers gather in `out` and leave as one egress at a
//! time. What the peer can make grow here has a bound: `out`, requests in flight, subscriptions,
//! fetches; past it the session is blocked, which stops reading its socket.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use ringtide_io::ConnId;
use ringtide_schema::frame::Op;
use ringtide_schema::ids::PartitionId;
use ringtide_schema::wire::PublishResult;
use ringtide_session::Assembler;
use rustc_hash::FxHashMap;

use crate::failed_reads::Reading;
use crate::mail::{Forwarded, PartDone};

/// Who a session belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SessionKey {
    /// A connection of this shard.
    Local(ConnId),
    /// A connection of another shard, which forwards.
    Remote(u16, ConnId),
}

/// What a session's time runs out for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    /// The fetch with this correlation id: it is answered with what there is.
    Fetch(u64),
    /// A frame that has begun to arrive.
    Frame,
}

/// A subscription of a session.
#[derive(Debug)]
pub struct Subscription {
    /// Index of the partition.
    pub partition: usize,
    /// The next offset to deliver.
    pub next_offset: u64,
    /// Bytes that may still be sent; negative after a batch larger than the credit.
    pub credit: i64,
}

/// A fetch that was not answered yet.
#[derive(Debug)]
pub struct PendingFetch {
    /// To answer with.
    pub correlation: u64,
    /// Index of the partition.
    pub partition: usize,
    /// From where.
    pub offset: u64,
    /// At most about this much.
    pub max_bytes: usize,
    /// At least this much before the deadline.
    pub min_bytes: usize,
    /// When it is answered with what there is.
    pub deadline_ns: u64,
}

/// A publish request of several parts.
#[derive(Debug)]
pub struct Multi {
    /// To answer with.
    pub correlation: u64,
    /// Parts without an answer.
    pub remaining: u32,
    /// Answers not sent yet.
    pub results: Vec<PublishResult>,
    /// Describes the first error among them.
    pub message: Option<String>,
    /// Whether answers are wanted at all.
    pub answered: bool,
}

/// A number of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Fetches: they may wait for records, and hold next to nothing meanwhile.
    pub fetches: u32,
    /// All others.
    pub others: u32,
}

impl Tally {
    /// One more.
    pub fn add(&mut self, op: Op) {
        match op {
            Op::Fetch => self.fetches += 1,
            _ => self.others += 1,
        }
    }

    /// So many fewer.
    pub fn remove(&mut self, other: Self) {
        assert!(
            self.fetches >= other.fetches && self.others >= other.others,
            "answers without requests"
        );
        self.fetches -= other.fetches;
        self.others -= other.others;
    }

    /// Of either kind.
    pub fn all(self) -> u32 {
        self.fetches + self.others
    }
}

/// A peer.
#[derive(Debug)]
pub struct Session {
    /// For log lines.
    pub peer: Arc<str>,
    /// Hello was answered.
    pub is_greeted: bool,
    /// Cuts the stream.
    pub assembler: Assembler,
    /// What the assembler holds, as counted by the shard.
    pub partial_bytes: usize,
    /// When it last held little, or a frame of what it holds was looked at.
    pub held_ns: u64,
    /// When the last bytes came of a frame that has begun to arrive, while it is received.
    pub begun_ns: Option<u64>,
    /// When that is looked at.
    pub frame_timer_ns: Option<u64>,
    /// Whole frames to send.
    pub out: Vec<u8>,
    /// A buffer to use again.
    pub spare: Vec<u8>,
    /// An egress is under way; of a forwarded session, a range of a file is being read for one.
    /// Nothing else leaves meanwhile.
    pub is_sending: bool,
    /// What of a file is sent meanwhile.
    pub reading: Option<Reading>,
    /// A delivery was mailed and not drained (of a forwarded session): answers leave, another
    /// delivery does not.
    pub is_undrained: bool,
    /// Shards whose deliveries went into `out`; told when the next egress was sent.
    pub drained_to: Vec<u16>,
    /// Requests refused so far; the first few are worth a line in the log.
    pub refusals: u32,
    /// Requests not answered.
    pub in_flight: u32,
    /// Requests finished since the last reply (of a forwarded session).
    pub finished: Tally,
    /// Answers to parts since the last reply (of a forwarded session).
    pub parts: Vec<PartDone>,
    /// What another shard sent and found no room, and all after it.
    pub waiting: VecDeque<Forwarded>,
    /// The turn of the last request, and how many were taken in it.
    pub requests: (u64, u32),
    /// In the shard's list of sessions with something that found no room.
    pub is_blocked: bool,
    /// Receiving was stopped.
    pub is_paused: bool,
    /// The peer has closed or lost the connection: nobody hears an answer.
    pub is_gone: bool,
    /// Nothing more is handled; closed once `out` is sent.
    pub is_closing: bool,
    /// In the shard's list of sessions to look at.
    pub is_ready: bool,
    /// It is there only to go on with what it looks at.
    pub is_going_on: bool,
    /// Subscriptions by number, served in turn.
    pub subscriptions: BTreeMap<u64, Subscription>,
    /// From which number on the next is served.
    pub next_subscription: u64,
    /// How many are still to be looked at since something happened.
    pub subscriptions_to_look_at: usize,
    /// Fetches, answered in any order: the first is looked at next, and comes last then.
    pub fetches: VecDeque<PendingFetch>,
    /// How many are still to be looked at since something happened.
    pub fetches_to_look_at: usize,
    /// Subscriptions that live on other shards.
    pub remote_subscriptions: FxHashMap<u64, u16>,
    /// Requests under way on other shards.
    pub forwarded: Tally,
    /// Shards that know of this connection.
    pub known_to: Vec<u16>,
    /// Publish requests of several parts.
    pub multis: BTreeMap<u64, Multi>,
    /// A publish request of several parts that was blocked: how many parts are done, and its
    /// number.
    pub resume: Option<(u32, u64)>,
    /// Per partition, the last log entry that a durable publish of this peer waits for.
    pub durable: FxHashMap<PartitionId, u64>,
}

impl Session {
    /// A session at its start.
    pub fn new(peer: Arc<str>, is_greeted: bool) -> Self {
        Self {
            peer,
            is_greeted,
            assembler: Assembler::new(),
            partial_bytes: 0,
            held_ns: 0,
            begun_ns: None,
            frame_timer_ns: None,
            out: Vec::new(),
            spare: Vec::new(),
            is_sending: false,
            reading: None,
            is_undrained: false,
            drained_to: Vec::new(),
            refusals: 0,
            in_flight: 0,
            finished: Tally::default(),
            parts: Vec::new(),
            waiting: VecDeque::new(),
            requests: (0, 0),
            is_blocked: false,
            is_paused: false,
            is_gone: false,
            is_closing: false,
            is_ready: false,
            is_going_on: false,
            subscriptions: BTreeMap::new(),
            next_subscription: 0,
            subscriptions_to_look_at: 0,
            fetches: VecDeque::new(),
            fetches_to_look_at: 0,
            remote_subscriptions: FxHashMap::default(),
            forwarded: Tally::default(),
            known_to: Vec::new(),
            multis: BTreeMap::new(),
            resume: None,
            durable: FxHashMap::default(),
        }
    }

    /// Says in the log that a request was refused; a peer that goes on and on is not heeded.
    pub fn log_refusal(&mut self, op: Op, code: u16, message: &str) {
        const LOGGED: u32 = 20;
        self.refusals = self.refusals.saturating_add(1);
        let peer = &*self.peer;
        if self.refusals <= LOGGED {
            tracing::warn!(peer, ?op, code, why = message, "refused a request");
        } else {
            tracing::debug!(peer, ?op, code, why = message, "refused a request");
        }
    }

    /// Something happened: it is to be looked at what there is for it. Whether it was not in the list of those.
    pub fn make_ready(&mut self) -> bool {
        self.is_going_on = false;
        !std::mem::replace(&mut self.is_ready, true)
    }

    /// Begins to look at fetches and subscriptions: at all of them, or at those that were left.
    pub fn begin_to_look(&mut self) {
        if !std::mem::take(&mut self.is_going_on) {
            self.fetches_to_look_at = self.fetches.len();
            self.subscriptions_to_look_at = self.subscriptions.len();
        }
    }

    /// The subscription whose turn it is, with its number.
    #[inline]
    pub fn turn_of_subscription(&mut self) -> Option<(u64, &Subscription)> {
        let from = match self.next_subscription {
            0 => None,
            from => self.subscriptions.range(from..).next(),
        };
        let (&number, subscription) = from.or_else(|| self.subscriptions.first_key_value())?;
        if self.subscriptions.len() > 1 {
            self.next_subscription = number.wrapping_add(1);
        }
        Some((number, subscription))
    }

    /// A request was answered for the last time.
    pub fn finish(&mut self, op: Op) {
        debug_assert!(self.in_flight > 0, "an answer without a request");
        self.in_flight = self.in_flight.saturating_sub(1);
        self.finished.add(op);
    }
}
