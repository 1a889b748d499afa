//! A peer of the broker that speaks the wire protocol frame by frame and, if a test wants it, badly.
//!
//! It is written against the schema alone and shares nothing with the client library, so that a
//! mistake in one does not hide in the other.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use ringtide_schema::error_code::ErrorCode;
use ringtide_schema::flatbuffers::{FlatBufferBuilder, WIPOffset};
use ringtide_schema::frame::{FLAG_ERROR, FLAG_MORE, FLAG_RESPONSE, Op};
use ringtide_schema::ids::{PartitionId, TopicId};
use ringtide_schema::limits::{PROTOCOL_MAX, PROTOCOL_MIN};
use ringtide_schema::wire;
use ringtide_session::{Assembler, Encoder, envelope};

use crate::payload::{Rec, read_records, single};
use crate::wait::PATIENCE;

/// One frame from the broker.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Number of the operation.
    pub op: u8,
    /// `FLAG_*` bits.
    pub flags: u16,
    /// Of the request that it answers.
    pub correlation: u64,
    /// The FlatBuffers envelope.
    pub envelope: Vec<u8>,
    /// Record batches.
    pub payload: Vec<u8>,
}

/// The broker's typed refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What is wrong.
    pub code: ErrorCode,
    /// In words.
    pub message: String,
    /// With `OffsetOutOfRange`: what can be read, from here
    pub earliest: i64,
    /// to here.
    pub latest: i64,
    /// With `WrongShard`: where to go.
    pub address: Option<String>,
}

/// Why there is no answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The broker answered with an error.
    Refused(Refused),
    /// The broker closed the connection.
    Closed,
    /// Nothing came within the time given.
    Silent,
}

impl Fault {
    /// The code of a refusal.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Fault::Refused(refused) => refused.code,
            other => panic!("a typed error was expected, this came: {other:?}"),
        }
    }
}

/// How one part of a publish request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// Offset of the batch's first record.
    pub base_offset: u64,
    /// The batch had been appended before.
    pub duplicate: bool,
    /// Under which it was appended.
    pub leader_epoch: u32,
    /// When, ms since 1970.
    pub append_time_ms: i64,
}

/// A topic as the broker describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Topic {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub id: TopicId,
    /// The owning shard of each partition.
    pub shards: Vec<u16>,
    /// Its settings.
    pub settings: wire::TopicSettingsT,
}

impl Topic {
    /// One of its partitions.
    #[must_use]
    pub fn partition(&self, partition: u32) -> PartitionId {
        PartitionId {
            topic: self.id,
            partition,
        }
    }

    /// The shard that owns a partition.
    #[must_use]
    pub fn shard(&self, partition: u32) -> usize {
        usize::from(self.shards[partition as usize])
    }

    /// A partition that this shard owns.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn on_shard(&self, shard: u16) -> PartitionId {
        let at = self.shards.iter().position(|&s| s == shard);
        self.partition(
            at.unwrap_or_else(|| panic!("no partition on shard {shard}: {self:?}")) as u32,
        )
    }
}

impl From<wire::TopicMetadataT> for Topic {
    fn from(t: wire::TopicMetadataT) -> Self {
        assert_eq!(t.error, 0, "{t:?}");
        Self {
            name: t.name.expect("a name"),
            id: (&t.id.expect("an id")).into(),
            shards: t.partition_shards.expect("shards"),
            settings: *t.settings.expect("settings"),
        }
    }
}

/// Makes a table of the wire schema; fields that are not named have their defaults.
#[macro_export]
macro_rules! table {
    (@value $field:ident) => { $field };
    (@value $field:ident $value:expr) => { $value };
    ($name:ident {}) => { ::ringtide_schema::wire::$name::default() };
    ($name:ident { $($field:ident $(: $value:expr)?),+ $(,)? }) => {{
        let mut table = ::ringtide_schema::wire::$name::default();
        $(table.$field = $crate::table!(@value $field $($value)?);)+
        table
    }};
}

/// Reads the envelope of an [`Answer`] as the table of this name.
#[macro_export]
macro_rules! open {
    ($answer:expr, $name:ident) => {
        ::ringtide_session::envelope::<::ringtide_schema::wire::$name<'_>>(&$answer.envelope)
            .expect("an envelope that verifies")
            .unpack()
    };
}

impl Answer {
    /// Whether more frames answer the same request.
    #[must_use]
    pub fn has_more(&self) -> bool {
        self.flags & FLAG_MORE != 0
    }

    /// The error that this frame carries.
    ///
    /// # Panics
    /// When its envelope or code is none.
    #[must_use]
    pub fn refused(&self) -> Option<Refused> {
        if self.flags & FLAG_ERROR == 0 {
            return None;
        }
        let e = envelope::<wire::ErrorResponse<'_>>(&self.envelope).expect("an error envelope");
        Some(Refused {
            code: ErrorCode::from_u16(e.code()).expect("a known error code"),
            message: e.message().unwrap_or_default().to_owned(),
            earliest: e.earliest(),
            latest: e.latest(),
            address: e.host().map(|host| format!("{host}:{}", e.port())),
        })
    }

    /// The answer, or the error it carries.
    ///
    /// # Errors
    /// [`Fault::Refused`].
    pub fn ok(self) -> Result<Self, Fault> {
        match self.refused() {
            Some(refused) => Err(Fault::Refused(refused)),
            None => Ok(self),
        }
    }

    /// The records of the payload.
    #[must_use]
    pub fn records(&self) -> Vec<Rec> {
        read_records(&self.payload)
    }
}

/// A connection to one shard.
pub struct Peer {
    stream: TcpStream,
    local: SocketAddr,
    assembler: Assembler,
    encoder: Encoder,
    inbox: VecDeque<Answer>,
    closed: bool,
    correlation: u64,
}

impl Peer {
    /// Connects, and says nothing yet.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn connect(address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self {
            local: stream.local_addr()?,
            stream,
            assembler: Assembler::new(),
            encoder: Encoder::new(),
            inbox: VecDeque::new(),
            closed: false,
            correlation: 0,
        })
    }

    /// How the broker's log names this peer.
    #[must_use]
    pub fn name(&self) -> String {
        self.local.to_string()
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> &TcpStream {
        &self.stream
    }

    // ---- bytes and frames -------------------------------------------------------------------

    /// Sends bytes as they are. A broken connection shows when it is read from.
    pub fn send_bytes(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// The bytes of a request, not sent, and the correlation id in it.
    pub fn frame<T>(
        &mut self,
        op: Op,
        payload: &[u8],
        build: impl FnOnce(&mut FlatBufferBuilder<'static>) -> WIPOffset<T>,
    ) -> (Vec<u8>, u64) {
        self.correlation += 1;
        let mut out = Vec::new();
        self.encoder
            .frame(&mut out, op, 0, self.correlation, payload.len(), build);
        out.extend_from_slice(payload);
        (out, self.correlation)
    }

    /// Sends a request and gives its correlation id.
    pub fn send<T>(
        &mut self,
        op: Op,
        payload: &[u8],
        build: impl FnOnce(&mut FlatBufferBuilder<'static>) -> WIPOffset<T>,
    ) -> u64 {
        let (bytes, correlation) = self.frame(op, payload, build);
        self.send_bytes(&bytes);
        correlation
    }

    /// The next frame, whatever it answers.
    ///
    /// # Errors
    /// [`Fault::Closed`], or [`Fault::Silent`] when none comes within `patience`.
    pub fn next_within(&mut self, patience: Duration) -> Result<Answer, Fault> {
        let deadline = Instant::now() + patience;
        while self.inbox.is_empty() {
            self.receive(deadline)?;
        }
        Ok(self.inbox.pop_front().expect("not empty"))
    }

    /// The next frame that answers this request; others wait for their turn.
    ///
    /// # Errors
    /// As [`Peer::next_within`], but never a refusal, which is a frame as any other.
    pub fn answer_within(&mut self, correlation: u64, patience: Duration) -> Result<Answer, Fault> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(at) = self.inbox.iter().position(|a| a.correlation == correlation) {
                return Ok(self.inbox.remove(at).expect("found"));
            }
            self.receive(deadline)?;
        }
    }

    /// The next frame that answers this request, or the error it carries.
    ///
    /// # Errors
    /// Any [`Fault`].
    pub fn answer(&mut self, correlation: u64) -> Result<Answer, Fault> {
        self.answer_within(correlation, PATIENCE)?.ok()
    }

    fn receive(&mut self, deadline: Instant) -> Result<(), Fault> {
        if self.closed {
            return Err(Fault::Closed);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Fault::Silent);
        }
        self.stream
            .set_read_timeout(Some(left))
            .expect("a timeout above zero");
        let mut buffer = [0; 64 << 10];
        match self.stream.read(&mut buffer) {
            Ok(0) => {
                self.closed = true;
                Err(Fault::Closed)
            }
            Ok(n) => {
                let inbox = &mut self.inbox;
                self.assembler
                    .feed(&buffer[..n], |f| {
                        inbox.push_back(Answer {
                            op: f.header.op,
                            flags: f.header.flags,
                            correlation: f.header.correlation,
                            envelope: f.envelope.to_vec(),
                            payload: f.payload.to_vec(),
                        });
                    })
                    .expect("the broker sends good frames");
                Ok(())
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Err(Fault::Silent)
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => Ok(()),
            Err(_) => {
                self.closed = true;
                Err(Fault::Closed)
            }
        }
    }

    /// Reads to the end of the stream and gives every frame that came before it.
    ///
    /// # Panics
    /// When the broker leaves the connection open.
    pub fn until_closed(&mut self) -> Vec<Answer> {
        let mut frames = Vec::new();
        loop {
            match self.next_within(PATIENCE) {
                Ok(frame) => frames.push(frame),
                Err(Fault::Closed) => return frames,
                Err(other) => panic!("the connection was left open: {other:?}"),
            }
        }
    }

    /// Sends a request and waits for one answer.
    ///
    /// # Errors
    /// Any [`Fault`].
    pub fn call<T>(
        &mut self,
        op: Op,
        payload: &[u8],
        build: impl FnOnce(&mut FlatBufferBuilder<'static>) -> WIPOffset<T>,
    ) -> Result<Answer, Fault> {
        let correlation = self.send(op, payload, build);
        let answer = self.answer(correlation)?;
        assert_eq!(
            (answer.op, answer.flags & FLAG_RESPONSE),
            (op as u8, FLAG_RESPONSE)
        );
        Ok(answer)
    }

    // ---- operations -------------------------------------------------------------------------

    /// Says hello, with these versions.
    ///
    /// # Errors
    /// Any [`Fault`].
    pub fn hello_as(&mut self, min: u8, max: u8) -> Result<wire::HelloResponseT, Fault> {
        let hello = hello(min, max);
        Ok(open!(
            self.call(Op::Hello, &[], |b| hello.pack(b))?,
            HelloResponse
        ))
    }

    /// Sends hello, does not wait for the answer, and gives its correlation id.
    pub fn send_hello(&mut self) -> u64 {
        let hello = hello(PROTOCOL_MIN, PROTOCOL_MAX);
        self.send(Op::Hello, &[], |b| hello.pack(b))
    }

    /// Says hello.
    ///
    /// # Errors
    /// Any [`Fault`].
    pub fn hello(&mut self) -> Result<wire::HelloResponseT, Fault> {
        self.hello_as(PROTOCOL_MIN, PROTOCOL_MAX)
    }

    /// Asks whether anybody is there.
    ///
    /// # Errors
    /// Any [`Fault`].
    pub fn ping(&mut self) -> Result<(), Fault> {
        self.call(Op::Ping, &[], |b| table!(PingRequestT {}).pack(b))
            .map(drop)
    }

    /// What the shard runs on and what it did.
    ///
    /// # Errors
    /// Any [`Fault`].
    pub fn describe_shard(&mut self) -> Result<wire::DescribeShardResponseT, Fault> {
        let request = table!(DescribeShardRequestT {});
        let answer = self.call(Op::DescribeShard, &[], |b| request.pack(b))?;
        Ok(open!(answer, DescribeShardResponse))
    }

    /// All shards and all topics.
    ///
    /// # Errors
    /// Any [`Fault`].
    pub fn metadata(&mut self) -> Result<wire::MetadataResponseT, Fault> {
        let request = table!(MetadataRequestT {});
        Ok(open!(
            self.call(Op::Metadata, &[], |b| request.pack(b))?,
            MetadataResponse
        ))
    }

    /// One topic.
    ///
    /// # Errors
    /// Any [`Fault`]; that of the topic by itself as a refusal.
    pub fn topic(&mut self, name: &str) -> Result<Topic, Fault> {
        let request = table!(MetadataRequestT {
            topics: Some(vec![name.into()])
        });
        let response = open!(
            self.call(Op::Metadata, &[], |b| request.pack(b))?,
            MetadataResponse
        );
        let topic = response.topics.expect("topics").remove(0);
        if let Some(code) = ErrorCode::from_u16(topic.error) {
            return Err(refusal(code, String::new()));
        }
        Ok(topic.into())
    }

    /// Creates a topic.
    ///
    /// # Errors
    /// Any [`Fault`].
    pub fn create_topic_with(
        &mut self,
        name: &str,
        partitions: u32,
        settings: wire::TopicSettingsT,
    ) -> Result<Topic, Fault> {
        let request = table!(CreateTopicRequestT {
            name: Some(name.into()),
            partitions,
            settings: Some(Box::new(settings)),
        });
        let answer = self.call(Op::CreateTopic, &[], |b| request.pack(b))?;
        Ok((*open!(answer, CreateTopicResponse).topic.expect("a topic")).into())
    }

    /// Creates a topic with the default settings.
    ///
    /// # Panics
    /// When it cannot be created.
    pub fn create_topic(&mut self, name: &str, partitions: u32) -> Topic {
        self.create_topic_with(name, partitions, table!(TopicSettingsT {}))
            .expect("a new topic")
    }

    /// Changes a topic.
    ///
    /// # Errors
    /// Any [`Fault`].
    pub fn alter_topic(
        &mut self,
        name: &str,
        partitions: Option<u32>,
        settings: wire::TopicSettingsT,
    ) -> Result<Topic, Fault> {
        let request = table!(AlterTopicRequestT {
            name: Some(name.into()),
            partitions,
            settings: Some(Box::new(settings)),
        });
        let answer = self.call(Op::AlterTopic, &[], |b| request.pack(b))?;
        Ok((*open!(answer, AlterTopicResponse).topic.expect("a topic")).into())
    }

    /// Deletes a topic.
    ///
    /// # Errors
    /// Any [`Fault`].
    pub fn delete_topic(&mut self, name: &str) -> Result<(), Fault> {
        let request = table!(DeleteTopicRequestT {
            name: Some(name.into())
        });
        self.call(Op::DeleteTopic, &[], |b| request.pack(b))
            .map(drop)
    }

    /// Offsets and size of a partition.
    ///
    /// # Errors
    /// Any [`Fault`].
    pub fn describe(
        &mut self,
        partition: PartitionId,
    ) -> Result<wire::DescribePartitionResponseT, Fault> {
        let request = table!(DescribePartitionRequestT {
            partition: Some(partition.into())
        });
        let answer = self.call(Op::DescribePartition, &[], |b| request.pack(b))?;
        Ok(open!(answer, DescribePartitionResponse))
    }

    /// A producer identity: id and epoch.
    ///
    /// # Errors
    /// Any [`Fault`].
    pub fn init_producer(&mut self) -> Result<(i64, i16), Fault> {
        let request = table!(InitProducerRequestT {});
        let answer = self.call(Op::InitProducer, &[], |b| request.pack(b))?;
        let producer = open!(answer, InitProducerResponse);
        Ok((producer.producer_id, producer.producer_epoch))
    }

    /// The bytes of a publish request, not sent, and its correlation id.
    pub fn publish_frame(&mut self, acks: u8, parts: &[(PartitionId, Vec<u8>)]) -> (Vec<u8>, u64) {
        let payload: Vec<u8> = parts.iter().flat_map(|(_, b)| b).copied().collect();
        let parts = parts.iter().map(|(partition, batch)| wire::PublishPartT {
            partition: (*partition).into(),
            batch_bytes: batch.len() as u32,
        });
        let request = table!(PublishRequestT {
            acks,
            parts: Some(parts.collect())
        });
        self.frame(Op::Publish, &payload, |b| request.pack(b))
    }

    /// Sends a publish request and gives its correlation id.
    pub fn send_publish(&mut self, acks: u8, parts: &[(PartitionId, Vec<u8>)]) -> u64 {
        let (bytes, correlation) = self.publish_frame(acks, parts);
        self.send_bytes(&bytes);
        correlation
    }

    /// Waits for the results of a publish request, one for each part.
    ///
    /// # Errors
    /// A [`Fault`] of the request as a whole; those of the parts are inside.
    ///
    /// # Panics
    /// When a part is answered twice or not at all.
    pub fn published(
        &mut self,
        correlation: u64,
        parts: usize,
    ) -> Result<Vec<Result<Published, Fault>>, Fault> {
        let mut results = vec![None; parts];
        loop {
            let answer = self.answer(correlation)?;
            let response = open!(answer, PublishResponse);
            let message = response.message.unwrap_or_default();
            for r in response.results.unwrap_or_default() {
                let result = match ErrorCode::from_u16(r.error) {
                    Some(code) => Err(refusal(code, message.clone())),
                    None => {
                        assert_eq!(r.error, 0, "an unknown error code");
                        Ok(Published {
                            base_offset: r.base_offset,
                            duplicate: r.duplicate,
                            leader_epoch: r.leader_epoch,
                            append_time_ms: r.append_time_ms,
                        })
                    }
                };
                let before = results[r.part as usize].replace(result);
                assert!(before.is_none(), "part {} was answered twice", r.part);
            }
            if !answer.has_more() {
                let all = results
                    .into_iter()
                    .map(|r| r.expect("every part is answered"));
                return Ok(all.collect());
            }
        }
    }

    /// Publishes one batch and waits for its acknowledgement.
    ///
    /// # Errors
    /// Any [`Fault`].
    pub fn publish_with(
        &mut self,
        acks: u8,
        partition: PartitionId,
        batch: Vec<u8>,
    ) -> Result<Published, Fault> {
        let correlation = self.send_publish(acks, &[(partition, batch)]);
        self.published(correlation, 1)?.remove(0)
    }

    /// Publishes one batch durably.
    ///
    /// # Errors
    /// Any [`Fault`].
    pub fn publish(&mut self, partition: PartitionId, batch: Vec<u8>) -> Result<Published, Fault> {
        self.publish_with(2, partition, batch)
    }

    /// Publishes one record durably and gives its offset.
    ///
    /// # Panics
    /// When it is not acknowledged.
    pub fn put(&mut self, partition: PartitionId, value: impl AsRef<[u8]>) -> u64 {
        self.publish(partition, single(value))
            .expect("an acknowledgement")
            .base_offset
    }

    /// Sends a fetch and gives its correlation id.
    pub fn send_fetch(
        &mut self,
        partition: PartitionId,
        offset: u64,
        max_bytes: u32,
        min_bytes: u32,
        max_wait_ms: u32,
    ) -> u64 {
        let request = table!(FetchRequestT {
            partition: Some(partition.into()),
            offset,
            max_bytes,
            min_bytes,
            max_wait_ms,
        });
        self.send(Op::Fetch, &[], |b| request.pack(b))
    }

    /// Fetches what there is at an offset, without waiting.
    ///
    /// # Errors
    /// Any [`Fault`].
    pub fn fetch(&mut self, partition: PartitionId, offset: u64) -> Result<Vec<Rec>, Fault> {
        let correlation = self.send_fetch(partition, offset, 256 << 10, 0, 0);
        let mut records = self.answer(correlation)?.records();
        records.retain(|r| r.offset >= offset);
        Ok(records)
    }

    /// Bytes of the first batch at an offset.
    ///
    /// # Panics
    /// When there is none.
    pub fn fetch_bytes(&mut self, partition: PartitionId, offset: u64) -> usize {
        let correlation = self.send_fetch(partition, offset, 1, 1, 10_000);
        self.answer(correlation).expect("a batch").payload.len()
    }

    /// Fetches from `offset` up to `end`.
    ///
    /// # Panics
    /// When the broker refuses, or delivers nothing where there is something.
    pub fn fetch_to(&mut self, partition: PartitionId, offset: u64, end: u64) -> Vec<Rec> {
        let mut all: Vec<Rec> = Vec::new();
        let mut at = offset;
        while at < end {
            let correlation = self.send_fetch(partition, at, 256 << 10, 1, 10_000);
            let mut records = self.answer(correlation).expect("data").records();
            records.retain(|r| (at..end).contains(&r.offset));
            assert!(
                !records.is_empty(),
                "nothing at {at}, though the end is {end}"
            );
            at = records[records.len() - 1].offset + 1;
            all.append(&mut records);
        }
        all
    }

    /// Subscribes (-1 latest, -2 earliest); gives the subscription and where it begins.
    ///
    /// # Errors
    /// Any [`Fault`].
    pub fn subscribe(
        &mut self,
        partition: PartitionId,
        offset: i64,
        credit_bytes: u32,
    ) -> Result<(u64, u64), Fault> {
        let request = table!(SubscribeRequestT {
            partition: Some(partition.into()),
            offset,
            credit_bytes,
        });
        let correlation = self.send(Op::Subscribe, &[], |b| request.pack(b));
        let answer = self.answer(correlation)?;
        Ok((correlation, open!(answer, SubscribeResponse).offset))
    }

    /// Allows more bytes to be pushed.
    pub fn credit(&mut self, subscription: u64, bytes: u32) {
        let credit = table!(CreditT {
            subscription,
            bytes
        });
        self.send(Op::Credit, &[], |b| credit.pack(b));
    }

    /// Ends a subscription.
    ///
    /// # Errors
    /// Any [`Fault`].
    pub fn unsubscribe(&mut self, subscription: u64) -> Result<(), Fault> {
        let request = table!(UnsubscribeRequestT { subscription });
        self.call(Op::Unsubscribe, &[], |b| request.pack(b))
            .map(drop)
    }

    /// The next pushed batches of a subscription.
    ///
    /// # Errors
    /// Any [`Fault`].
    pub fn pushed_within(
        &mut self,
        subscription: u64,
        patience: Duration,
    ) -> Result<Answer, Fault> {
        let answer = self.answer_within(subscription, patience)?.ok()?;
        assert_eq!(answer.op, Op::Push as u8);
        Ok(answer)
    }

    /// Pushed records up to offset `end`, giving back the credit that they used.
    ///
    /// # Panics
    /// When they do not come.
    pub fn pushed_to(&mut self, subscription: u64, end: u64) -> Vec<Rec> {
        let mut all: Vec<Rec> = Vec::new();
        while all.last().is_none_or(|r| r.offset + 1 < end) {
            let push = self.pushed_within(subscription, PATIENCE).expect("a push");
            self.credit(subscription, push.payload.len() as u32);
            all.extend(push.records());
        }
        all
    }

    /// Offset by time (-1 latest, -2 earliest).
    ///
    /// # Errors
    /// Any [`Fault`].
    pub fn list_offsets(
        &mut self,
        partition: PartitionId,
        at: i64,
    ) -> Result<wire::ListOffsetsResponseT, Fault> {
        let request = table!(ListOffsetsRequestT {
            partition: Some(partition.into()),
            at
        });
        let answer = self.call(Op::ListOffsets, &[], |b| request.pack(b))?;
        Ok(open!(answer, ListOffsetsResponse))
    }

    /// Stores a consumer's offset.
    ///
    /// # Errors
    /// Any [`Fault`].
    pub fn commit_offset(
        &mut self,
        consumer: &str,
        partition: PartitionId,
        offset: u64,
    ) -> Result<(), Fault> {
        let request = table!(CommitOffsetRequestT {
            consumer: Some(consumer.into()),
            partition: Some(partition.into()),
            offset,
            leader_epoch: 1,
        });
        self.call(Op::CommitOffset, &[], |b| request.pack(b))
            .map(drop)
    }

    /// Reads a consumer's offset; -1 when it has none.
    ///
    /// # Errors
    /// Any [`Fault`].
    pub fn read_offset(&mut self, consumer: &str, partition: PartitionId) -> Result<i64, Fault> {
        let request = table!(ReadOffsetRequestT {
            consumer: Some(consumer.into()),
            partition: Some(partition.into()),
        });
        let answer = self.call(Op::ReadOffset, &[], |b| request.pack(b))?;
        Ok(open!(answer, ReadOffsetResponse).offset)
    }
}

fn refusal(code: ErrorCode, message: String) -> Fault {
    Fault::Refused(Refused {
        code,
        message,
        earliest: -1,
        latest: -1,
        address: None,
    })
}

fn hello(min: u8, max: u8) -> wire::HelloRequestT {
    table!(HelloRequestT {
        min_version: min,
        max_version: max,
        client_name: Some("system-tests".into()),
        client_version: Some("1".into()),
    })
}
