//! The client without sockets, clock or randomness of its own: a simulator is its face.
//!
//! The simulator makes the connections that [`Client::next_connect`] asks for, carries the bytes of each
//! link, and calls [`Client::tick`] at [`Client::next_deadline`] at the latest. Time is what it says.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use crate::Topic;
use crate::core::Core;
use crate::core::call::{Request, TopicSettings};
use crate::core::consumer::{Batch, Position, Reader};
use crate::error::Result;
use crate::options::{ConsumerOptions, Options, ProducerOptions, Start};
use crate::record::{Delivered, Record, Ticket};

/// A call under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call(u64);

/// A producer of a [`Client`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Producer(usize);

/// A consumer of a [`Client`].
pub struct Consumer {
    key: usize,
    reader: Reader,
}

/// A client whose sockets are somebody else's.
pub struct Client(Core);

impl Client {
    /// A client of the broker that these servers belong to; the seed decides its jitter.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] for servers that are none.
    pub fn new(servers: &[String], options: Options, seed: u64) -> Result<Self> {
        Core::new(servers, options, seed).map(Self)
    }

    /// Looks after timers.
    pub fn tick(&mut self, now: Instant) {
        self.0.tick(now);
    }

    /// When [`Self::tick`] is to be called at the latest; `None` leaves it to what arrives.
    pub fn next_deadline(&self, now: Instant) -> Option<Instant> {
        match self.0.is_restless() {
            true => Some(now),
            false => self.0.next_deadline(),
        }
    }

    /// A link to be connected now, with host and port.
    pub fn next_connect(&mut self, now: Instant) -> Option<(usize, Arc<str>, u16)> {
        self.0.next_connect(now)
    }

    /// The connection of a link was made.
    pub fn connected(&mut self, link: usize, now: Instant) {
        self.0.connected(link, now);
    }

    /// No connection could be made.
    pub fn connect_failed(&mut self, link: usize, error: &io::Error, now: Instant) {
        self.0.connect_failed(link, error, now);
    }

    /// The connection of a link is gone.
    pub fn lost(&mut self, link: usize, why: &str, now: Instant) {
        self.0.lost(link, why, now);
    }

    /// Bytes arrived on a link.
    pub fn received(&mut self, link: usize, bytes: &[u8], now: Instant) {
        self.0.received(link, bytes, now);
    }

    /// How many links there are; numbers are never given twice.
    pub fn links(&self) -> usize {
        self.0.links()
    }

    /// Whether the connection of a link is to be closed, told once.
    pub fn take_close(&mut self, link: usize) -> bool {
        self.0.take_close(link)
    }

    /// What is to be sent on a link.
    pub fn output(&self, link: usize) -> &[u8] {
        self.0.output(link)
    }

    /// So many bytes of the output were sent.
    pub fn sent(&mut self, link: usize, bytes: usize) {
        self.0.sent(link, bytes);
    }

    /// Asks for a topic to be made.
    pub fn create_topic(
        &mut self,
        name: &str,
        partitions: u32,
        settings: TopicSettings,
        now: Instant,
    ) -> Call {
        let request = Request::CreateTopic {
            name: name.into(),
            partitions,
            settings,
        };
        Call(self.0.call(request, now))
    }

    /// Asks for a topic.
    pub fn describe_topic(&mut self, name: &str, now: Instant) -> Call {
        let name = name.into();
        Call(self.0.call(Request::DescribeTopic { name }, now))
    }

    /// Asks for a topic to get more partitions, or other settings.
    pub fn alter_topic(
        &mut self,
        name: &str,
        partitions: Option<u32>,
        settings: TopicSettings,
        now: Instant,
    ) -> Call {
        let request = Request::AlterTopic {
            name: name.into(),
            partitions,
            settings,
        };
        Call(self.0.call(request, now))
    }

    /// Asks for a topic to be deleted.
    pub fn delete_topic(&mut self, name: &str, now: Instant) -> Call {
        let name = name.into();
        Call(self.0.call(Request::DeleteTopic { name }, now))
    }

    /// The topic that a call asked for, once it is answered.
    pub fn take_topic(&mut self, call: Call) -> Option<Result<Topic>> {
        let answer = self.0.take_answer(call.0)?;
        Some(answer.and_then(|response| response.topic()))
    }

    /// Asks for the place of a named consumer to be kept; the epoch is that of what it read last.
    pub fn commit_offset(
        &mut self,
        consumer: &str,
        topic: &Topic,
        (partition, offset, epoch): (u32, u64, u32),
        now: Instant,
    ) -> Call {
        let at = Position {
            topic: topic.id,
            partition,
            offset,
            epoch,
        };
        let request = Request::CommitOffset {
            consumer: consumer.into(),
            topic: topic.name.clone(),
            at,
        };
        Call(self.0.call(request, now))
    }

    /// Whether a call that gives nothing was carried out, once it is answered.
    pub fn take_done(&mut self, call: Call) -> Option<Result<()>> {
        Some(self.0.take_answer(call.0)?.map(|_| ()))
    }

    /// Asks for the place of a named consumer.
    pub fn read_offset(
        &mut self,
        consumer: &str,
        topic: &Topic,
        partition: u32,
        now: Instant,
    ) -> Call {
        let request = Request::ReadOffset {
            consumer: consumer.into(),
            topic: topic.name.clone(),
            partition,
        };
        Call(self.0.call(request, now))
    }

    /// The place that a call asked for, once it is answered.
    pub fn take_offset(&mut self, call: Call) -> Option<Result<Option<u64>>> {
        let answer = self.0.take_answer(call.0)?;
        let committed = answer.and_then(|response| response.committed());
        Some(committed.map(|found| found.map(|committed| committed.offset)))
    }

    /// Adds a producer.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] for impossible options.
    pub fn add_producer(
        &mut self,
        topic: Topic,
        options: ProducerOptions,
        now: Instant,
    ) -> Result<Producer> {
        let key = self.0.add_producer(Arc::new(topic), options, now)?;
        Ok(Producer(key))
    }

    /// Takes a record to be published.
    ///
    /// # Errors
    /// As the other faces.
    pub fn send(
        &mut self,
        producer: Producer,
        record: &Record<'_>,
        timestamp_ms: i64,
        now: Instant,
    ) -> Result<Ticket> {
        self.0.send(producer.0, record, timestamp_ms, now)
    }

    /// Removes a producer; records without an outcome get none.
    pub fn remove_producer(&mut self, producer: Producer) {
        self.0.remove_producer(producer.0);
    }

    /// Gives the outcome of every record that has one since the last call.
    pub fn outcomes(&mut self, producer: Producer, mut each: impl FnMut(Delivered)) {
        while let Some(completion) = self.0.producer(producer.0).take_done() {
            (0..completion.records).for_each(|index| each(completion.nth(index)));
        }
    }

    /// Adds a consumer.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] for impossible options.
    pub fn add_consumer(&mut self, topic: Topic, options: ConsumerOptions) -> Result<Consumer> {
        let limit = options.inflated_bytes;
        let name = topic.name.clone();
        let key = self.0.add_consumer(Arc::new(topic), options)?;
        let reader = Reader::new(name, limit);
        Ok(Consumer { key, reader })
    }

    /// The partitions that stand still after an error that was given.
    pub fn stopped(&mut self, consumer: &Consumer) -> Vec<u32> {
        self.0.consumer(consumer.key).stopped()
    }

    /// Moves to another place in a partition; what had arrived for it is forgotten.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] for a partition that it does not read.
    pub fn seek(
        &mut self,
        consumer: &mut Consumer,
        partition: u32,
        start: Start,
        now: Instant,
    ) -> Result<()> {
        let cursor = self.0.consumer(consumer.key).cursor_of(partition)?;
        consumer.reader.forget(cursor);
        self.0.seek(consumer.key, cursor, start, now);
        Ok(())
    }

    /// Gives every batch that arrived since the last call, and every error.
    pub fn batches(
        &mut self,
        consumer: &mut Consumer,
        now: Instant,
        mut each: impl FnMut(Result<Batch<'_>>),
    ) {
        while let Some(taken) = self.0.consumer(consumer.key).take() {
            let chunk = match taken {
                Ok(chunk) => chunk,
                Err(error) => {
                    each(Err(error));
                    continue;
                }
            };
            let cursor = chunk.cursor;
            if let Some(old) = consumer.reader.begin(chunk) {
                self.0.consumer(consumer.key).recycle(old.bytes);
            }
            self.0.pump_cursor(consumer.key, cursor, now);
            while consumer.reader.has_more() {
                match consumer.reader.next() {
                    Some(Ok(batch)) => each(Ok(batch)),
                    Some(Err((cursor, error))) => {
                        self.0.stop(consumer.key, cursor, now);
                        each(Err(error));
                    }
                    None => break,
                }
            }
        }
    }
}
