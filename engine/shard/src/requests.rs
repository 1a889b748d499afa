//! From a frame to the operation that handles it; to another shard if the partition lives there.

use ringtide_io::{NetOp, Now};
use ringtide_schema::error_code::ErrorCode;
use ringtide_schema::flatbuffers::{FlatBufferBuilder, InvalidFlatbuffer, WIPOffset};
use ringtide_schema::frame::{FLAG_RESPONSE, Op};
use ringtide_schema::ids::PartitionId;
use ringtide_schema::limits::{
    MAX_BATCH_BYTES, MAX_PAYLOAD_BYTES, MAX_TOPIC_NAME_BYTES, MAX_TOPICS, PROTOCOL_MAX,
    PROTOCOL_MIN,
};
use ringtide_schema::wire;
use ringtide_session::{Assembler, Frame, SessionError, Taken, envelope, negotiate};
use rustc_hash::FxHashSet;

use crate::fault::Fault;
use crate::session::{Session, SessionKey, Timer};
use crate::settings::{
    FRAME_TIMEOUT_NS, MAX_OUT_BYTES, MAX_PARTIAL_BYTES, MAX_REQUESTS_A_TURN, SMALL_PARTIAL_BYTES,
};
use crate::{Fx, Shard};

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Handled {
    /// Answered, or no answer is wanted.
    Done,
    /// Answered later.
    Later,
    /// Not now: the session is blocked with it.
    Blocked,
}

/// Where a partition is.
pub(crate) enum Place {
    /// Here, with this index.
    Here(usize),
    /// On another shard.
    Shard(u16),
}

/// An envelope that is not of its operation.
pub(crate) fn bad_envelope(error: InvalidFlatbuffer) -> Fault {
    Fault::new(
        ErrorCode::BadEnvelope,
        // The verifier's words end in a line break.
        format!(
            "the envelope is malformed: {}",
            error.to_string().trim_end()
        ),
    )
}

/// Whether a request does more than to be answered.
fn changes_something(op: Op) -> bool {
    matches!(
        op,
        Op::Publish | Op::CommitOffset | Op::CreateTopic | Op::AlterTopic | Op::DeleteTopic
    )
}

/// The partition that a request names.
pub(crate) fn partition_of(named: Option<&wire::PartitionRef>) -> Result<PartitionId, Fault> {
    named
        .map(Into::into)
        .ok_or_else(|| Fault::new(ErrorCode::InvalidRequest, "the request names no partition"))
}

impl Shard {
    /// Takes what arrived for a session.
    pub(crate) fn feed(&mut self, key: SessionKey, bytes: &[u8], now: Now, fx: &mut Fx) {
        let Some(session) = self.sessions.get_mut(&key).filter(|s| !s.is_closing) else {
            return;
        };
        let mut assembler = std::mem::take(&mut session.assembler);
        let result = assembler.feed_until(bytes, |frame| self.frame(key, &frame, now, fx));
        self.fed(key, assembler, result, now, fx);
    }

    /// Offers the blocked sessions' requests again, in turn, until this turn has taken enough.
    pub(crate) fn retry_blocked(&mut self, now: Now, fx: &mut Fx) {
        self.is_behind = false;
        self.requests = 0;
        for _ in 0..self.blocked.len() {
            if self.requests >= MAX_REQUESTS_A_TURN {
                self.is_behind = true;
                break;
            }
            if let Some(key) = self.blocked.pop_front() {
                self.retry(key, now, fx);
            }
        }
    }

    /// Offers a blocked session's requests again.
    fn retry(&mut self, key: SessionKey, now: Now, fx: &mut Fx) {
        let Some(session) = self.sessions.get_mut(&key) else {
            return;
        };
        session.is_blocked = false;
        let mut assembler = std::mem::take(&mut session.assembler);
        let result = assembler.retry(|frame| self.frame(key, &frame, now, fx));
        self.fed(key, assembler, result, now, fx);
        if matches!(key, SessionKey::Remote(..)) {
            self.serve_forwarded(key, now, fx);
        }
    }

    /// A peer is gone: of what arrived and waits for its turn only, all that changes something is taken before it is
    /// forgotten.
    pub(crate) fn take_the_rest(&mut self, key: SessionKey, now: Now, fx: &mut Fx) {
        if let Some(session) = self.sessions.get_mut(&key) {
            session.is_gone = true;
        }
        while let Some(session) = self.sessions.get_mut(&key)
            && session.is_blocked
            && !session.is_closing
        {
            session.requests = (self.turn, 0);
            self.blocked.retain(|k| *k != key);
            self.retry(key, now, fx);
            let goes_on = |s: &Session| s.requests == (self.turn, MAX_REQUESTS_A_TURN);
            if !self.sessions.get(&key).is_some_and(goes_on) {
                return;
            }
        }
    }

    /// Something of the session found no room: it is offered again in each turn.
    pub(crate) fn mark_blocked(&mut self, key: SessionKey) {
        if let Some(session) = self.sessions.get_mut(&key)
            && !session.is_blocked
        {
            session.is_blocked = true;
            self.blocked.push_back(key);
        }
    }

    fn fed(
        &mut self,
        key: SessionKey,
        assembler: Assembler,
        result: Result<(), SessionError>,
        now: Now,
        fx: &mut Fx,
    ) {
        let is_blocked = assembler.is_blocked();
        let Some(session) = self.sessions.get_mut(&key) else {
            return;
        };
        let held_bytes = std::mem::take(&mut session.partial_bytes);
        self.partial_bytes -= held_bytes;
        if session.is_closing {
            return;
        }
        if held_bytes <= SMALL_PARTIAL_BYTES {
            session.held_ns = now.mono_ns;
        }
        // What another shard forwards has bounds of its own, and a peer that would miss an answer.
        if matches!(key, SessionKey::Local(_)) {
            session.partial_bytes = assembler.held_bytes();
        }
        self.partial_bytes += session.partial_bytes;
        session.assembler = assembler;
        let is_begun = session.assembler.is_mid_frame() && !is_blocked;
        session.begun_ns = is_begun.then_some(now.mono_ns);
        if is_begun && session.frame_timer_ns.is_none() {
            let due_ns = now.mono_ns + FRAME_TIMEOUT_NS;
            session.frame_timer_ns = Some(due_ns);
            self.timers.insert((due_ns, key, Timer::Frame));
        }
        if let Err(error) = result {
            tracing::warn!(peer = &*session.peer, %error, "closing a connection that cannot be trusted");
            let fault = Fault::new(ErrorCode::BadFrame, error.to_string());
            self.encoder
                .error(&mut session.out, Op::Hello, 0, &fault.to_wire());
            self.close(key);
            return;
        }
        let is_over = self.partial_bytes > MAX_PARTIAL_BYTES && !session.is_gone;
        if is_over && self.close_longest_held() == Some(key) {
            return;
        }
        let Some(session) = self.sessions.get_mut(&key) else {
            return;
        };
        if let SessionKey::Local(conn) = key
            && session.is_paused != is_blocked
        {
            session.is_paused = is_blocked;
            fx.net.push(match is_blocked {
                true => NetOp::Pause(conn),
                false => NetOp::Resume(conn),
            });
        }
        if is_blocked {
            self.mark_blocked(key);
        }
    }

    /// What has arrived and cannot be handled takes too much memory: the connection that has held much of it for the longest
    /// is closed. That is one that stopped in the middle of a frame, or that does not take its answers.
    fn close_longest_held(&mut self) -> Option<SessionKey> {
        let sessions = self.sessions.iter();
        let holds = sessions.filter(|(_, s)| s.partial_bytes > SMALL_PARTIAL_BYTES);
        let key = holds.map(|(&key, s)| (s.held_ns, key)).min()?.1;
        let session = self.sessions.get_mut(&key)?;
        let message = format!(
            "requests that cannot be handled yet hold over {MAX_PARTIAL_BYTES} bytes, some of this connection for the \
             longest: they have not arrived as a whole, or wait for their turn, for answers to earlier ones, for their \
             peer to take answers, or for room in the log; read answers, send smaller requests, or over fewer connections"
        );
        tracing::warn!(peer = &*session.peer, why = message, "closing a connection");
        let fault = Fault::new(ErrorCode::Overloaded, message);
        self.encoder
            .error(&mut session.out, Op::Hello, 0, &fault.to_wire());
        self.close(key);
        Some(key)
    }

    /// The time has come at which a frame that had begun must have gone on: it did, or its
    /// connection is closed.
    pub(crate) fn frame_due(&mut self, key: SessionKey, now: Now) {
        let Some(session) = self.sessions.get_mut(&key) else {
            return;
        };
        session.frame_timer_ns = None;
        let Some(begun_ns) = session.begun_ns.filter(|_| !session.is_closing) else {
            return;
        };
        let due_ns = begun_ns + FRAME_TIMEOUT_NS;
        if due_ns > now.mono_ns {
            session.frame_timer_ns = Some(due_ns);
            self.timers.insert((due_ns, key, Timer::Frame));
            return;
        }
        let seconds = FRAME_TIMEOUT_NS / 1_000_000_000;
        tracing::warn!(
            peer = &*session.peer,
            "closing a connection: the rest of a frame did not come for {seconds} s"
        );
        self.close(key);
    }

    /// Nothing more is handled for the session; it is closed once everything is sent.
    pub(crate) fn close(&mut self, key: SessionKey) {
        if let Some(session) = self.sessions.get_mut(&key) {
            session.is_closing = true;
            // What has begun to arrive is of no use any more, and the peer may take a while to go.
            session.assembler = Assembler::new();
            self.partial_bytes -= std::mem::take(&mut session.partial_bytes);
        }
        self.mark_ready(key);
    }

    fn frame(&mut self, key: SessionKey, frame: &Frame<'_>, now: Now, fx: &mut Fx) -> Taken {
        let limit = self.settings.max_in_flight_requests;
        let Some(session) = self.sessions.get_mut(&key) else {
            return Taken::Yes;
        };
        if session.is_closing {
            return Taken::Yes;
        }
        if session.out.len() > MAX_OUT_BYTES || session.in_flight >= limit {
            return Taken::No;
        }
        if session.requests.0 != self.turn {
            session.requests = (self.turn, 0);
        }
        if session.requests.1 >= MAX_REQUESTS_A_TURN {
            self.is_behind = true;
            return Taken::No;
        }
        session.requests.1 += 1;
        session.held_ns = now.mono_ns;
        self.requests += 1;
        session.in_flight += 1;
        let correlation = frame.header.correlation;
        let version = frame.header.version;
        let op = Op::from_u8(frame.header.op);
        if version != PROTOCOL_MAX || (!session.is_greeted && op != Some(Op::Hello)) {
            let message = match session.is_greeted {
                true => format!("frame version {version} was not agreed on"),
                false if op == Some(Op::Hello) => format!(
                    "frame version {version} is unknown: this broker speaks {PROTOCOL_MIN} to \
                     {PROTOCOL_MAX}"
                ),
                false => "the first request of a connection must be hello".into(),
            };
            tracing::warn!(peer = &*session.peer, why = message, "closing a connection");
            let fault = Fault::new(ErrorCode::UnsupportedVersion, message);
            self.refuse(key, op.unwrap_or(Op::Ping), correlation, &fault);
            self.close(key);
            return Taken::Yes;
        }
        let Some(op) = op else {
            let message = format!("operation {} is unknown to this broker", frame.header.op);
            let fault = Fault::new(ErrorCode::UnknownOperation, message);
            self.refuse(key, Op::Ping, correlation, &fault);
            return Taken::Yes;
        };
        if session.is_gone && !changes_something(op) {
            session.in_flight -= 1;
            return Taken::Yes;
        }
        match self.dispatch(key, op, frame, now, fx) {
            Ok(Handled::Done) => self.finish(key, op),
            Ok(Handled::Later) => {}
            Ok(Handled::Blocked) => {
                self.requests -= 1;
                if let Some(session) = self.sessions.get_mut(&key) {
                    session.requests.1 -= 1;
                    session.in_flight -= 1;
                }
                return Taken::No;
            }
            Err(fault) => {
                self.refuse(key, op, correlation, &fault);
            }
        }
        Taken::Yes
    }

    fn dispatch(
        &mut self,
        key: SessionKey,
        op: Op,
        frame: &Frame<'_>,
        now: Now,
        fx: &mut Fx,
    ) -> Result<Handled, Fault> {
        let flags = frame.header.flags;
        if flags != 0 {
            let message = format!("a request has no flags, yet {flags:#x} came");
            return Err(Fault::new(ErrorCode::InvalidRequest, message));
        }
        if op != Op::Publish && !frame.payload.is_empty() {
            let message = format!(
                "{op:?} has no payload, yet {} bytes came",
                frame.payload.len()
            );
            return Err(Fault::new(ErrorCode::InvalidRequest, message));
        }
        let correlation = frame.header.correlation;
        match op {
            Op::Publish => self.publish(key, frame, now, fx),
            Op::Fetch => self.fetch(key, frame, now, fx),
            Op::Subscribe => self.subscribe(key, frame, now, fx),
            Op::Credit => self.credit(key, frame, fx),
            Op::Unsubscribe => self.unsubscribe(key, frame, fx),
            Op::ListOffsets => self.list_offsets(key, frame, fx),
            Op::CommitOffset => self.commit_offset(key, frame, now, fx),
            Op::ReadOffset => self.read_offset(key, frame, fx),
            Op::DescribePartition => self.describe_partition(key, frame, fx),
            Op::DescribeShard => self.describe_shard(key, frame, now),
            Op::Hello => self.hello(key, frame),
            Op::Ping => {
                envelope::<wire::PingRequest<'_>>(frame.envelope).map_err(bad_envelope)?;
                self.reply(key, op, FLAG_RESPONSE, correlation, |b| {
                    wire::PingResponse::create(b, &wire::PingResponseArgs {})
                });
                Ok(Handled::Done)
            }
            Op::Metadata => self.metadata(key, frame),
            Op::InitProducer => {
                envelope::<wire::InitProducerRequest<'_>>(frame.envelope).map_err(bad_envelope)?;
                self.init_producer(key, correlation)
            }
            Op::CreateTopic | Op::AlterTopic | Op::DeleteTopic => {
                self.change_topic(key, op, frame, now, fx)
            }
            Op::Push => Err(Fault::new(
                ErrorCode::InvalidRequest,
                "push is sent by the broker only",
            )),
        }
    }

    fn hello(&mut self, key: SessionKey, frame: &Frame<'_>) -> Result<Handled, Fault> {
        let hello = envelope::<wire::HelloRequest<'_>>(frame.envelope).map_err(bad_envelope)?;
        let version = negotiate(hello.min_version(), hello.max_version())
            .map_err(|e| Fault::new(ErrorCode::UnsupportedVersion, e.to_string()))?;
        if let Some(session) = self.sessions.get_mut(&key) {
            session.is_greeted = true;
            let client = hello.client_name().unwrap_or("unnamed");
            tracing::debug!(peer = &*session.peer, client, "hello");
        }
        let answer = wire::HelloResponseT {
            version,
            broker_version: Some(self.settings.broker_version.clone()),
            data_directory_id: Some(self.settings.data_directory.into()),
            incarnation: self.settings.incarnation,
            shard: self.settings.shard,
            shards: self.settings.shards,
            max_frame_bytes: MAX_PAYLOAD_BYTES as u32,
            max_batch_bytes: MAX_BATCH_BYTES as u32,
            max_in_flight_requests: self.settings.max_in_flight_requests,
        };
        let correlation = frame.header.correlation;
        self.reply(key, Op::Hello, FLAG_RESPONSE, correlation, |b| {
            answer.pack(b)
        });
        Ok(Handled::Done)
    }

    fn metadata(&mut self, key: SessionKey, frame: &Frame<'_>) -> Result<Handled, Fault> {
        let request =
            envelope::<wire::MetadataRequest<'_>>(frame.envelope).map_err(bad_envelope)?;
        let topics = match request.topics().filter(|t| !t.is_empty()) {
            None => self
                .topics
                .all()
                .map(|t| self.placement.describe(t))
                .collect(),
            Some(names) => self.describe_named(names.iter(), names.len())?,
        };
        let answer = wire::MetadataResponseT {
            shards: Some(self.placement.to_wire()),
            topics: Some(topics),
        };
        let correlation = frame.header.correlation;
        self.reply(key, Op::Metadata, FLAG_RESPONSE, correlation, |b| {
            answer.pack(b)
        });
        Ok(Handled::Done)
    }

    /// Each topic once, however often its name is there. A few bytes of a request can name a topic
    /// again and again, or name more than the request is long: the names are bounded by what can
    /// exist, and so the answer by the largest envelope.
    fn describe_named<'a>(
        &self,
        names: impl Iterator<Item = &'a str>,
        count: usize,
    ) -> Result<Vec<wire::TopicMetadataT>, Fault> {
        if count > MAX_TOPICS {
            let message = format!("{count} topics are named, there are at most {MAX_TOPICS}");
            return Err(Fault::new(ErrorCode::TooMany, message));
        }
        let mut seen = FxHashSet::default();
        let mut topics = Vec::new();
        for name in names {
            if name.len() > MAX_TOPIC_NAME_BYTES {
                let message = format!(
                    "a topic name of {} bytes is over the limit of {MAX_TOPIC_NAME_BYTES}",
                    name.len()
                );
                return Err(Fault::new(ErrorCode::InvalidTopicName, message));
            }
            if !seen.insert(name) {
                continue;
            }
            topics.push(match self.topics.named(name) {
                Ok(topic) => self.placement.describe(topic),
                Err(fault) => wire::TopicMetadataT {
                    error: fault.code as u16,
                    name: Some(name.to_owned()),
                    ..wire::TopicMetadataT::default()
                },
            });
        }
        Ok(topics)
    }

    /// A producer identity that this data directory never gave before: the incarnation is durable,
    /// the shard and a count within it do the rest.
    fn init_producer(&mut self, key: SessionKey, correlation: u64) -> Result<Handled, Fault> {
        const COUNT_BITS: u32 = 24;
        const SHARD_BITS: u32 = 8;
        let count = self.next_producer;
        let incarnation = self.settings.incarnation;
        if count >> COUNT_BITS != 0 || incarnation >> (62 - COUNT_BITS - SHARD_BITS) != 0 {
            let message = "producer identities are used up: restart the broker";
            return Err(Fault::new(ErrorCode::TooMany, message));
        }
        self.next_producer += 1;
        let shard = u64::from(self.settings.shard) << COUNT_BITS;
        let id = (incarnation << (COUNT_BITS + SHARD_BITS)) | shard | count;
        self.reply(key, Op::InitProducer, FLAG_RESPONSE, correlation, |b| {
            wire::InitProducerResponseT {
                producer_id: id as i64,
                producer_epoch: 0,
            }
            .pack(b)
        });
        Ok(Handled::Done)
    }

    /// Where a partition is, or why it is nowhere.
    pub(crate) fn locate(&self, id: PartitionId) -> Result<Place, Fault> {
        if let Some(&i) = self.index.get(&id) {
            return Ok(Place::Here(i));
        }
        let Some(topic) = self.topics.with_id(id.topic) else {
            let message = format!("there is no topic with the identity {}", id.topic);
            return Err(Fault::new(ErrorCode::UnknownTopic, message));
        };
        let (_, shard) = self.placement.of(id);
        if id.partition >= topic.partitions || shard == self.settings.shard {
            let message = format!(
                "topic {:?} has {} partitions, there is no partition {}",
                topic.name, topic.partitions, id.partition
            );
            return Err(Fault::new(ErrorCode::UnknownPartition, message));
        }
        Ok(Place::Shard(shard))
    }

    /// Puts a frame without payload into the session's `out`.
    pub(crate) fn reply<T>(
        &mut self,
        key: SessionKey,
        op: Op,
        flags: u16,
        correlation: u64,
        build: impl FnOnce(&mut FlatBufferBuilder<'static>) -> WIPOffset<T>,
    ) {
        let Some(session) = self.sessions.get_mut(&key) else {
            return;
        };
        self.encoder
            .frame(&mut session.out, op, flags, correlation, 0, build);
        if session.make_ready() {
            self.ready.push(key);
        }
    }

    /// A request was answered for the last time.
    pub(crate) fn finish(&mut self, key: SessionKey, op: Op) {
        if let Some(session) = self.sessions.get_mut(&key) {
            session.finish(op);
            if matches!(key, SessionKey::Remote(..)) {
                self.mark_ready(key);
            }
        }
    }

    /// Answers a request with an error.
    pub(crate) fn refuse(&mut self, key: SessionKey, op: Op, correlation: u64, fault: &Fault) {
        if let Some(session) = self.sessions.get_mut(&key) {
            session.log_refusal(op, fault.code as u16, &fault.message);
            self.encoder
                .error(&mut session.out, op, correlation, &fault.to_wire());
            session.finish(op);
        }
        self.mark_ready(key);
    }
}
