//! What a peer says and hears, as frames.

use ringtide_schema::batch::Codec;
use ringtide_schema::error_code::ErrorCode;
use ringtide_schema::flatbuffers::{FlatBufferBuilder, Follow, Verifiable, WIPOffset};
use ringtide_schema::frame::{FLAG_ERROR, FLAG_MORE, Op};
use ringtide_schema::ids::PartitionId;
use ringtide_schema::record::BatchBuilder;
use ringtide_schema::wire;
use ringtide_session::{Assembler, Encoder, envelope};

use crate::world::{Peer, START_MS, World};

pub const NONE: u8 = 0;
pub const ACCEPTED: u8 = 1;
pub const DURABLE: u8 = 2;

/// A frame of the broker.
#[derive(Clone, Debug)]
pub struct Heard {
    pub op: Op,
    pub flags: u16,
    pub correlation: u64,
    pub envelope: Vec<u8>,
    pub payload: Vec<u8>,
}

impl Heard {
    pub fn table<'a, T: Follow<'a> + Verifiable + 'a>(&'a self) -> T::Inner {
        assert_eq!(self.error(), None);
        envelope::<T>(&self.envelope).expect("an envelope of the operation")
    }

    pub fn refusal(&self) -> Option<wire::ErrorResponseT> {
        let error = envelope::<wire::ErrorResponse<'_>>(&self.envelope);
        (self.flags & FLAG_ERROR != 0).then(|| error.expect("an error").unpack())
    }

    pub fn error(&self) -> Option<ErrorCode> {
        let code = self.refusal()?.code;
        Some(ErrorCode::from_u16(code).expect("a known code"))
    }

    /// Part, error and base offset of every result of a publish.
    pub fn results(&self) -> Vec<(u32, u16, u64)> {
        let answer = self.table::<wire::PublishResponse<'_>>();
        let results = answer.results().into_iter().flatten();
        results
            .map(|r| (r.part(), r.error(), r.base_offset()))
            .collect()
    }
}

/// A batch of one record.
pub fn batch(value: &[u8]) -> Vec<u8> {
    batch_of(Codec::None, START_MS, value, (-1, -1, -1))
}

pub fn batch_of(
    codec: Codec,
    time_ms: i64,
    value: &[u8],
    (producer, epoch, sequence): (i64, i16, i32),
) -> Vec<u8> {
    let mut builder = BatchBuilder::new(codec);
    builder.push(time_ms, None, Some(value), &[]);
    let mut bytes = Vec::new();
    builder
        .finish(producer, epoch, sequence, &mut bytes)
        .expect("a batch");
    bytes
}

/// A request as bytes.
pub fn request<T>(
    op: Op,
    correlation: u64,
    payload: &[u8],
    build: impl FnOnce(&mut FlatBufferBuilder<'static>) -> WIPOffset<T>,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    Encoder::new().frame(&mut bytes, op, 0, correlation, payload.len(), build);
    bytes.extend_from_slice(payload);
    bytes
}

impl World {
    /// A connection that said hello.
    pub fn connect(&mut self, shard: usize) -> Peer {
        let peer = self.open(shard);
        let hello = wire::HelloRequestT {
            min_version: 1,
            max_version: 1,
            ..wire::HelloRequestT::default()
        };
        let correlation = self.say(peer, Op::Hello, |b| hello.pack(b));
        let answer = self.answer(peer, correlation);
        assert_eq!(answer.error(), None);
        peer
    }

    pub fn correlation(&mut self) -> u64 {
        self.correlations += 1;
        self.correlations
    }

    /// Sends a request without a payload.
    pub fn say<T>(
        &mut self,
        peer: Peer,
        op: Op,
        build: impl FnOnce(&mut FlatBufferBuilder<'static>) -> WIPOffset<T>,
    ) -> u64 {
        let correlation = self.correlation();
        self.write(peer, &request(op, correlation, &[], build));
        correlation
    }

    /// What the peer has received since the last look.
    pub fn hear(&mut self, peer: Peer) -> Vec<Heard> {
        let received = std::mem::take(&mut self.socket(peer).received);
        let mut heard = Vec::new();
        let mut assembler = Assembler::new();
        let fed = assembler.feed(&received, |f| {
            heard.push(Heard {
                op: Op::from_u8(f.header.op).expect("a known operation"),
                flags: f.header.flags,
                correlation: f.header.correlation,
                envelope: f.envelope.to_vec(),
                payload: f.payload.to_vec(),
            });
        });
        fed.expect("frames");
        assert!(!assembler.is_mid_frame(), "half a frame was sent");
        heard
    }

    /// Lets everything happen and gives the one frame that answers a request. What else was heard
    /// is dropped.
    pub fn answer(&mut self, peer: Peer, correlation: u64) -> Heard {
        self.run();
        let mut heard = self.hear(peer);
        heard.retain(|f| f.correlation == correlation);
        assert_eq!(heard.len(), 1, "answers to request {correlation}");
        let answer = heard.remove(0);
        assert_eq!(answer.flags & FLAG_MORE, 0);
        answer
    }

    pub fn publish(&mut self, peer: Peer, acks: u8, parts: &[(PartitionId, Vec<u8>)]) -> u64 {
        let correlation = self.correlation();
        let payload: Vec<u8> = parts.iter().flat_map(|(_, batch)| batch.clone()).collect();
        let part = |(id, batch): &(PartitionId, Vec<u8>)| wire::PublishPartT {
            partition: (*id).into(),
            batch_bytes: batch.len() as u32,
        };
        let publish = wire::PublishRequestT {
            acks,
            parts: Some(parts.iter().map(part).collect()),
        };
        let bytes = request(Op::Publish, correlation, &payload, |b| publish.pack(b));
        self.write(peer, &bytes);
        correlation
    }

    /// A fetch that waits for a record, up to a time.
    pub fn fetch(&mut self, peer: Peer, id: PartitionId, offset: u64, max_wait_ms: u32) -> u64 {
        let fetch = wire::FetchRequestT {
            partition: Some(id.into()),
            offset,
            max_bytes: 1 << 20,
            min_bytes: 1,
            max_wait_ms,
        };
        self.say(peer, Op::Fetch, |b| fetch.pack(b))
    }

    pub fn subscribe(&mut self, peer: Peer, id: PartitionId, offset: i64, credit: u32) -> u64 {
        let number = self.correlation();
        self.subscribe_as(peer, number, id, offset, credit);
        number
    }

    /// A subscription with a number of the peer's choice.
    pub fn subscribe_as(
        &mut self,
        peer: Peer,
        number: u64,
        id: PartitionId,
        offset: i64,
        credit_bytes: u32,
    ) {
        let subscribe = wire::SubscribeRequestT {
            partition: Some(id.into()),
            offset,
            credit_bytes,
        };
        let bytes = request(Op::Subscribe, number, &[], |b| subscribe.pack(b));
        self.write(peer, &bytes);
    }

    pub fn list_offsets(&mut self, peer: Peer, id: PartitionId, at: i64) -> u64 {
        let list = wire::ListOffsetsRequestT {
            partition: Some(id.into()),
            at,
        };
        self.say(peer, Op::ListOffsets, |b| list.pack(b))
    }

    pub fn commit_offset(&mut self, peer: Peer, id: PartitionId, consumer: &str) -> u64 {
        let commit = wire::CommitOffsetRequestT {
            partition: Some(id.into()),
            consumer: Some(consumer.into()),
            offset: 0,
            ..wire::CommitOffsetRequestT::default()
        };
        self.say(peer, Op::CommitOffset, |b| commit.pack(b))
    }

    pub fn create_topic(&mut self, peer: Peer, name: &str) -> u64 {
        let create = wire::CreateTopicRequestT {
            name: Some(name.into()),
            ..wire::CreateTopicRequestT::default()
        };
        self.say(peer, Op::CreateTopic, |b| create.pack(b))
    }

    pub fn alter_topic(&mut self, peer: Peer, name: &str, settings: wire::TopicSettingsT) -> u64 {
        let alter = wire::AlterTopicRequestT {
            name: Some(name.into()),
            settings: Some(Box::new(settings)),
            ..wire::AlterTopicRequestT::default()
        };
        self.say(peer, Op::AlterTopic, |b| alter.pack(b))
    }

    pub fn delete_topic(&mut self, peer: Peer, name: &str) -> u64 {
        let delete = wire::DeleteTopicRequestT {
            name: Some(name.into()),
        };
        self.say(peer, Op::DeleteTopic, |b| delete.pack(b))
    }
}
