//! A model of a broker for tests: logs in memory, the window of five batches, subscriptions, and
//! faults on demand. Bytes in, bytes out; [`served`](super::served) puts it behind real sockets.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;

use ringtide_schema::batch::{self, Header, check_publish};
use ringtide_schema::error_code::ErrorCode;
use ringtide_schema::flatbuffers::{FlatBufferBuilder, WIPOffset};
use ringtide_schema::frame::{FLAG_ERROR, FLAG_MORE, FLAG_RESPONSE, Op};
use ringtide_schema::ids::{PartitionId, TopicId};
use ringtide_schema::limits::MAX_PUBLISH_PARTS;
use ringtide_schema::record::records;
use ringtide_schema::topic::TopicConfig;
use ringtide_schema::wire;
use ringtide_session::{Assembler, Encoder, envelope};

type Build = FlatBufferBuilder<'static>;

#[derive(Default)]
pub(crate) struct ModelProducer {
    next_sequence: i32,
    /// Base sequence, records, base offset.
    window: VecDeque<(i32, u32, u64)>,
}

impl ModelProducer {
    /// A fault: the last batch will be appended again.
    pub(crate) fn forget_last(&mut self) {
        if let Some((sequence, ..)) = self.window.pop_back() {
            self.next_sequence = sequence;
        }
    }
}

#[derive(Default)]
pub(crate) struct Log {
    pub(crate) start: u64,
    pub(crate) next: u64,
    pub(crate) batches: Vec<(Header, Vec<u8>)>,
    pub(crate) producers: HashMap<i64, ModelProducer>,
}

impl Log {
    /// A fault: the last batch is gone, and that its producer sent it is forgotten.
    pub(crate) fn lose_last(&mut self) {
        let (header, _) = self.batches.pop().expect("a batch");
        self.next = header.base_offset;
        if let Some(producer) = self.producers.get_mut(&header.producer_id) {
            producer.forget_last();
        }
    }

    /// Every record: offset and value.
    pub(crate) fn values(&self) -> Vec<(u64, Vec<u8>)> {
        let mut values = Vec::new();
        for (_, bytes) in &self.batches {
            let mut scratch = Vec::new();
            let records = records(bytes, &mut scratch, 1 << 26).expect("a good batch");
            values.extend(records.map(|r| (r.offset, r.value.unwrap_or_default().to_vec())));
        }
        values
    }

    fn publish(&mut self, bytes: &[u8]) -> Result<(u64, bool), ErrorCode> {
        let header = check_publish(bytes, 1 << 20).map_err(|_| ErrorCode::BadBatch)?;
        let (sequence, count) = (header.base_sequence, header.record_count);
        if header.has_producer() {
            match self.producers.get(&header.producer_id) {
                None if sequence != 0 => return Err(ErrorCode::UnknownProducer),
                None => {}
                Some(known) => {
                    let of_window = |w: &&(i32, u32, u64)| (w.0, w.1) == (sequence, count);
                    if let Some(seen) = known.window.iter().find(of_window) {
                        return Ok((seen.2, true));
                    }
                    if sequence != known.next_sequence {
                        let behind = sequence < known.next_sequence;
                        return Err(match behind {
                            true => ErrorCode::DuplicateSequence,
                            false => ErrorCode::OutOfOrderSequence,
                        });
                    }
                }
            }
            let known = self.producers.entry(header.producer_id).or_default();
            let next = i64::from(sequence) + i64::from(count);
            known.next_sequence = (next & i64::from(i32::MAX)) as i32;
            known.window.push_back((sequence, count, self.next));
            if known.window.len() > 5 {
                known.window.pop_front();
            }
        }
        let base = self.next;
        let mut stored = bytes.to_vec();
        batch::assign(&mut stored, base, 1);
        let header = Header::peek(&stored).expect("just checked");
        self.next = header.next_offset();
        self.batches.push((header, stored));
        Ok((base, false))
    }

    /// Batches from the one that contains `offset` on, and their offsets.
    fn read(&self, offset: u64, max_bytes: usize) -> (Range<u64>, Vec<u8>) {
        let mut offsets = offset..offset;
        let mut out = Vec::new();
        for (header, bytes) in self
            .batches
            .iter()
            .filter(|(h, _)| h.next_offset() > offset)
        {
            if !out.is_empty() && out.len() + bytes.len() > max_bytes {
                break;
            }
            if out.is_empty() {
                offsets.start = header.base_offset;
            }
            offsets.end = header.next_offset();
            out.extend_from_slice(bytes);
        }
        (offsets, out)
    }

    fn offset_at(&self, at: i64) -> (u64, i64) {
        match at {
            -1 => (self.next, -1),
            -2 => (self.start, -1),
            ms => {
                for (_, bytes) in &self.batches {
                    let mut scratch = Vec::new();
                    let mut records = records(bytes, &mut scratch, 1 << 26).expect("a good batch");
                    if let Some(r) = records.find(|r| r.timestamp_ms >= ms) {
                        return (r.offset, r.timestamp_ms);
                    }
                }
                (self.next, -1)
            }
        }
    }
}

pub(crate) struct ModelTopic {
    pub(crate) id: TopicId,
    pub(crate) logs: Vec<Log>,
}

pub(crate) struct Model {
    pub(crate) topics: BTreeMap<String, ModelTopic>,
    /// Host and port of each shard; partition i is on shard i modulo their number.
    pub(crate) shards: Vec<(String, u16)>,
    pub(crate) max_in_flight: u32,
    next_producer: i64,
    next_topic: u64,
    committed: HashMap<(String, PartitionId), (u64, u32)>,
    /// Batches that are refused, one after the other.
    pub(crate) refuse: VecDeque<Option<ErrorCode>>,
    /// An operation that is refused, and how often it was.
    pub(crate) refused_op: Option<(Op, ErrorCode)>,
    pub(crate) refusals: usize,
    /// The parts of each publish request.
    pub(crate) published: Vec<usize>,
    /// Publishes are answered without the last result.
    pub(crate) omit_results: bool,
    /// Damages what is read.
    pub(crate) corrupt: bool,
}

struct Subscription {
    correlation: u64,
    at: PartitionId,
    offset: u64,
    credit: i64,
}

/// One connection to the model.
#[derive(Default)]
pub(crate) struct Peer {
    /// The shard that it is connected to.
    shard: u16,
    assembler: Assembler,
    encoder: Encoder,
    pub(crate) out: Vec<u8>,
    subscriptions: Vec<Subscription>,
}

impl Peer {
    /// A connection to this shard.
    pub(crate) fn on(shard: u16) -> Self {
        Self {
            shard,
            ..Self::default()
        }
    }

    fn answer<T>(
        &mut self,
        op: Op,
        correlation: u64,
        payload: &[u8],
        build: impl FnOnce(&mut Build) -> WIPOffset<T>,
    ) {
        let flags = if op == Op::Push { 0 } else { FLAG_RESPONSE };
        self.encoder
            .frame(&mut self.out, op, flags, correlation, payload.len(), build);
        self.out.extend_from_slice(payload);
    }

    fn error(&mut self, op: Op, correlation: u64, code: ErrorCode, range: (i64, i64)) {
        let flags = FLAG_RESPONSE | FLAG_ERROR;
        self.encoder
            .frame(&mut self.out, op, flags, correlation, 0, |b| {
                let args = wire::ErrorResponseArgs {
                    code: code as u16,
                    message: Some(b.create_string("the model says so")),
                    earliest: range.0,
                    latest: range.1,
                    ..Default::default()
                };
                wire::ErrorResponse::create(b, &args)
            });
    }
}

fn pack_topic<'a>(
    b: &mut Build,
    name: &str,
    topic: Option<&ModelTopic>,
    shards: usize,
) -> WIPOffset<wire::TopicMetadata<'a>> {
    let name = Some(b.create_string(name));
    let Some(topic) = topic else {
        let error = ErrorCode::UnknownTopic as u16;
        let args = wire::TopicMetadataArgs {
            error,
            name,
            ..Default::default()
        };
        return wire::TopicMetadata::create(b, &args);
    };
    let owners: Vec<u16> = (0..topic.logs.len()).map(|i| (i % shards) as u16).collect();
    let id = topic.id.into();
    let args = wire::TopicMetadataArgs {
        error: 0,
        name,
        id: Some(&id),
        settings: Some(TopicConfig::default().to_wire().pack(b)),
        partition_shards: Some(b.create_vector(&owners)),
    };
    wire::TopicMetadata::create(b, &args)
}

impl Model {
    pub(crate) fn new(shards: Vec<(String, u16)>) -> Self {
        Self {
            topics: BTreeMap::new(),
            shards,
            max_in_flight: 1024,
            next_producer: 100,
            next_topic: 1,
            committed: HashMap::new(),
            refuse: VecDeque::new(),
            refused_op: None,
            refusals: 0,
            published: Vec::new(),
            omit_results: false,
            corrupt: false,
        }
    }

    pub(crate) fn create(&mut self, name: &str, partitions: u32) {
        let id = TopicId::new(7, self.next_topic);
        self.next_topic += 1;
        let logs = (0..partitions).map(|_| Log::default()).collect();
        self.topics.insert(name.into(), ModelTopic { id, logs });
    }

    pub(crate) fn log(&mut self, name: &str, partition: u32) -> &mut Log {
        &mut self.topics.get_mut(name).expect("a topic").logs[partition as usize]
    }

    fn find(&mut self, at: PartitionId) -> Result<&mut Log, ErrorCode> {
        let topic = self.topics.values_mut().find(|t| t.id == at.topic);
        let topic = topic.ok_or(ErrorCode::UnknownTopic)?;
        topic
            .logs
            .get_mut(at.partition as usize)
            .ok_or(ErrorCode::UnknownPartition)
    }

    pub(crate) fn feed(&mut self, peer: &mut Peer, bytes: &[u8]) {
        let mut frames = Vec::new();
        let mut assembler = std::mem::take(&mut peer.assembler);
        let fed = assembler.feed(bytes, |f| {
            frames.push((f.header, f.envelope.to_vec(), f.payload.to_vec()));
        });
        fed.expect("good frames");
        peer.assembler = assembler;
        for (header, envelope, payload) in frames {
            let op = Op::from_u8(header.op).expect("a known operation");
            if let Err(code) = self.request(peer, op, header.correlation, &envelope, &payload) {
                peer.error(op, header.correlation, code, (-1, -1));
            }
        }
        self.push(peer);
    }

    /// Sends to subscribers what they lack.
    pub(crate) fn push(&mut self, peer: &mut Peer) {
        let mut subscriptions = std::mem::take(&mut peer.subscriptions);
        subscriptions.retain_mut(|s| {
            let (corrupt, refused_op) = (self.corrupt, self.refused_op);
            let Ok(log) = self.find(s.at) else {
                peer.error(Op::Push, s.correlation, ErrorCode::UnknownTopic, (-1, -1));
                return false;
            };
            if let Some((Op::Push, code)) = refused_op
                && s.offset < log.next
            {
                self.refusals += 1;
                peer.error(Op::Push, s.correlation, code, (-1, -1));
                return false;
            }
            while s.credit > 0 && s.offset < log.next {
                let (offsets, mut payload) = log.read(s.offset, 1000);
                s.credit -= payload.len() as i64;
                s.offset = offsets.end;
                if corrupt && let Some(last) = payload.last_mut() {
                    *last ^= 1;
                }
                let visible = log.next;
                peer.answer(Op::Push, s.correlation, &payload, |b| {
                    let push = wire::PushArgs {
                        visible,
                        first_offset: offsets.start,
                        next_offset: offsets.end,
                    };
                    wire::Push::create(b, &push)
                });
            }
            true
        });
        peer.subscriptions = subscriptions;
    }

    fn request(
        &mut self,
        peer: &mut Peer,
        op: Op,
        correlation: u64,
        bytes: &[u8],
        payload: &[u8],
    ) -> Result<(), ErrorCode> {
        const GOOD: &str = "a good envelope";
        if let Some((refused, code)) = self.refused_op
            && refused == op
        {
            self.refusals += 1;
            return Err(code);
        }
        match op {
            Op::Hello => {
                let max_in_flight_requests = self.max_in_flight;
                peer.answer(op, correlation, &[], |b| {
                    let args = wire::HelloResponseArgs {
                        version: 1,
                        max_in_flight_requests,
                        ..Default::default()
                    };
                    wire::HelloResponse::create(b, &args)
                });
            }
            Op::Ping => peer.answer(op, correlation, &[], |b| {
                wire::PingResponse::create(b, &wire::PingResponseArgs {})
            }),
            Op::DescribeShard => {
                envelope::<wire::DescribeShardRequest<'_>>(bytes).expect(GOOD);
                let (shard, shards) = (peer.shard, self.shards.len() as u16);
                peer.answer(op, correlation, &[], |b| {
                    let idle = Some(b.create_string("spin"));
                    let args = wire::DescribeShardResponseArgs {
                        shard,
                        shards,
                        idle,
                        durable_write_ns: Some(20_000),
                        wal_records: 100 + u64::from(shard),
                        ..Default::default()
                    };
                    wire::DescribeShardResponse::create(b, &args)
                });
            }
            Op::Metadata => {
                let asked = envelope::<wire::MetadataRequest<'_>>(bytes).expect(GOOD);
                let mut names: Vec<String> =
                    asked.topics().iter().flatten().map(str::to_owned).collect();
                if names.is_empty() {
                    names.extend(self.topics.keys().cloned());
                }
                peer.answer(op, correlation, &[], |b| {
                    let shards: Vec<_> = (0_u16..)
                        .zip(&self.shards)
                        .map(|(shard, (host, port))| {
                            let host = Some(b.create_string(host));
                            let args = wire::ShardAddressArgs {
                                shard,
                                host,
                                port: *port,
                            };
                            wire::ShardAddress::create(b, &args)
                        })
                        .collect();
                    let count = shards.len();
                    let topics: Vec<_> = names
                        .iter()
                        .map(|n| pack_topic(b, n, self.topics.get(n), count))
                        .collect();
                    let args = wire::MetadataResponseArgs {
                        shards: Some(b.create_vector(&shards)),
                        topics: Some(b.create_vector(&topics)),
                    };
                    wire::MetadataResponse::create(b, &args)
                });
            }
            Op::CreateTopic => {
                let asked = envelope::<wire::CreateTopicRequest<'_>>(bytes).expect(GOOD);
                let name = asked.name().expect("a name");
                if self.topics.contains_key(name) {
                    return Err(ErrorCode::TopicExists);
                }
                self.create(name, asked.partitions());
                let (topic, shards) = (self.topics.get(name), self.shards.len());
                peer.answer(op, correlation, &[], |b| {
                    let topic = Some(pack_topic(b, name, topic, shards));
                    wire::CreateTopicResponse::create(b, &wire::CreateTopicResponseArgs { topic })
                });
            }
            Op::AlterTopic => {
                let asked = envelope::<wire::AlterTopicRequest<'_>>(bytes).expect(GOOD);
                let name = asked.name().expect("a name");
                let topic = self.topics.get_mut(name).ok_or(ErrorCode::UnknownTopic)?;
                let count = asked.partitions().unwrap_or(0) as usize;
                while topic.logs.len() < count {
                    topic.logs.push(Log::default());
                }
                let (topic, shards) = (self.topics.get(name), self.shards.len());
                peer.answer(op, correlation, &[], |b| {
                    let topic = Some(pack_topic(b, name, topic, shards));
                    wire::AlterTopicResponse::create(b, &wire::AlterTopicResponseArgs { topic })
                });
            }
            Op::DeleteTopic => {
                let asked = envelope::<wire::DeleteTopicRequest<'_>>(bytes).expect(GOOD);
                let gone = self.topics.remove(asked.name().expect("a name"));
                gone.ok_or(ErrorCode::UnknownTopic)?;
                peer.answer(op, correlation, &[], |b| {
                    wire::DeleteTopicResponse::create(b, &wire::DeleteTopicResponseArgs {})
                });
            }
            Op::DescribePartition => {
                let asked = envelope::<wire::DescribePartitionRequest<'_>>(bytes).expect(GOOD);
                let log = self.find(asked.partition().expect("a partition").into())?;
                let args = wire::DescribePartitionResponseArgs {
                    earliest: log.start,
                    visible: log.next,
                    committed: log.next,
                    latest: log.next,
                    ..Default::default()
                };
                peer.answer(op, correlation, &[], |b| {
                    wire::DescribePartitionResponse::create(b, &args)
                });
            }
            Op::InitProducer => {
                self.next_producer += 1;
                let producer_id = self.next_producer;
                peer.answer(op, correlation, &[], |b| {
                    let args = wire::InitProducerResponseArgs {
                        producer_id,
                        producer_epoch: 0,
                    };
                    wire::InitProducerResponse::create(b, &args)
                });
            }
            Op::Publish => {
                let asked = envelope::<wire::PublishRequest<'_>>(bytes).expect(GOOD);
                let parts = asked.parts().expect("parts");
                assert!((1..=MAX_PUBLISH_PARTS).contains(&parts.len()));
                self.published.push(parts.len());
                let mut rest = payload;
                let mut results = Vec::new();
                for (number, part) in (0..).zip(parts) {
                    let batch;
                    (batch, rest) = rest.split_at(part.batch_bytes() as usize);
                    let at: PartitionId = part.partition().into();
                    let outcome = match self.refuse.pop_front().flatten() {
                        Some(code) => Err(code),
                        None => self.find(at).and_then(|log| log.publish(batch)),
                    };
                    if asked.acks() == 0 && parts.len() == 1 {
                        return self.find(at).map(drop);
                    }
                    let result = match outcome {
                        Ok((base, duplicate)) => (0, duplicate, 1, base, 5),
                        Err(code) => (code as u16, false, 0, 0, 0),
                    };
                    let (error, duplicate, epoch, base, time) = result;
                    let result =
                        wire::PublishResult::new(number, error, duplicate, epoch, base, time);
                    results.push((at.partition, result));
                }
                assert!(rest.is_empty(), "the parts name all of the payload");
                if asked.acks() == 0 {
                    return Ok(());
                }
                // In order within each partition, as is promised, and in no other.
                results.sort_by_key(|&(partition, _)| Reverse(partition));
                let mut results: Vec<_> = results.into_iter().map(|(_, result)| result).collect();
                if self.omit_results {
                    results.pop();
                }
                let mut left = results.as_slice();
                loop {
                    let results;
                    (results, left) = left.split_at(left.len().min(2));
                    let more = if left.is_empty() { 0 } else { FLAG_MORE };
                    let flags = FLAG_RESPONSE | more;
                    peer.encoder
                        .frame(&mut peer.out, op, flags, correlation, 0, |b| {
                            let results = Some(b.create_vector(results));
                            let args = wire::PublishResponseArgs {
                                results,
                                message: None,
                            };
                            wire::PublishResponse::create(b, &args)
                        });
                    if left.is_empty() {
                        break;
                    }
                }
            }
            Op::Fetch => {
                let asked = envelope::<wire::FetchRequest<'_>>(bytes).expect(GOOD);
                let log = self.find(asked.partition().expect("a partition").into())?;
                if asked.offset() > log.next || asked.offset() < log.start {
                    let range = (log.start as i64, log.next as i64);
                    peer.error(op, correlation, ErrorCode::OffsetOutOfRange, range);
                    return Ok(());
                }
                let (offsets, payload) = log.read(asked.offset(), asked.max_bytes() as usize);
                let args = wire::FetchResponseArgs {
                    earliest: log.start,
                    visible: log.next,
                    leader_epoch: 1,
                    first_offset: offsets.start,
                    next_offset: offsets.end,
                };
                peer.answer(op, correlation, &payload, |b| {
                    wire::FetchResponse::create(b, &args)
                });
            }
            Op::Subscribe => {
                let asked = envelope::<wire::SubscribeRequest<'_>>(bytes).expect(GOOD);
                let at: PartitionId = asked.partition().expect("a partition").into();
                let log = self.find(at)?;
                let offset = asked.offset() as u64;
                if offset > log.next || offset < log.start {
                    let range = (log.start as i64, log.next as i64);
                    peer.error(op, correlation, ErrorCode::OffsetOutOfRange, range);
                    return Ok(());
                }
                let credit = asked.credit_bytes().into();
                peer.subscriptions.push(Subscription {
                    correlation,
                    at,
                    offset,
                    credit,
                });
                peer.answer(op, correlation, &[], |b| {
                    wire::SubscribeResponse::create(b, &wire::SubscribeResponseArgs { offset })
                });
            }
            Op::Unsubscribe => {
                let asked = envelope::<wire::UnsubscribeRequest<'_>>(bytes).expect(GOOD);
                peer.subscriptions
                    .retain(|s| s.correlation != asked.subscription());
                peer.answer(op, correlation, &[], |b| {
                    wire::UnsubscribeResponse::create(b, &wire::UnsubscribeResponseArgs {})
                });
            }
            Op::Credit => {
                let given = envelope::<wire::Credit<'_>>(bytes).expect(GOOD);
                for s in &mut peer.subscriptions {
                    if s.correlation == given.subscription() {
                        s.credit += i64::from(given.bytes());
                    }
                }
            }
            Op::ListOffsets => {
                let asked = envelope::<wire::ListOffsetsRequest<'_>>(bytes).expect(GOOD);
                let log = self.find(asked.partition().expect("a partition").into())?;
                let (offset, timestamp_ms) = log.offset_at(asked.at());
                peer.answer(op, correlation, &[], |b| {
                    let args = wire::ListOffsetsResponseArgs {
                        offset,
                        timestamp_ms,
                        leader_epoch: 1,
                    };
                    wire::ListOffsetsResponse::create(b, &args)
                });
            }
            Op::CommitOffset => {
                let asked = envelope::<wire::CommitOffsetRequest<'_>>(bytes).expect(GOOD);
                let at = asked.partition().expect("a partition").into();
                let key = (asked.consumer().expect("a name").to_owned(), at);
                self.committed
                    .insert(key, (asked.offset(), asked.leader_epoch()));
                peer.answer(op, correlation, &[], |b| {
                    wire::CommitOffsetResponse::create(b, &wire::CommitOffsetResponseArgs {})
                });
            }
            Op::ReadOffset => {
                let asked = envelope::<wire::ReadOffsetRequest<'_>>(bytes).expect(GOOD);
                let at = asked.partition().expect("a partition").into();
                let key = (asked.consumer().expect("a name").to_owned(), at);
                let found = self.committed.get(&key).copied();
                let (offset, leader_epoch) = found.map_or((-1, 0), |(o, e)| (o as i64, e));
                peer.answer(op, correlation, &[], |b| {
                    let args = wire::ReadOffsetResponseArgs {
                        offset,
                        leader_epoch,
                    };
                    wire::ReadOffsetResponse::create(b, &args)
                });
            }
            Op::Push => return Err(ErrorCode::InvalidRequest),
        }
        Ok(())
    }
}
