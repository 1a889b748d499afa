//! The client: connecting, administration, and making producers and consumers.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use crate::core::Core;
use crate::core::call::{
    CommittedOffset, ListedOffset, OffsetAt, PartitionDescription, Request, Response,
    TopicDescription, TopicSettings,
};
use crate::core::cluster::Topic;
use crate::core::consumer::Position;
use crate::core::shard_info::ShardInfo;
use crate::error::{Error, Result};
use crate::options::{ConsumerOptions, Options, ProducerOptions, seed};
use crate::sync::consumer::Consumer;
use crate::sync::driver::Driver;
use crate::sync::producer::Producer;

/// A client of one broker, for one thread. Clones share the connections.
#[derive(Clone)]
pub struct Client {
    driver: Rc<RefCell<Driver>>,
}

impl Client {
    /// Connects to the broker that these servers (HOST:PORT; any shard of it) belong to.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Disconnected`] or [`Error::Protocol`] when none of them answers,
    /// each having been tried once; [`Error::Invalid`] for a server that is not of that form.
    pub fn connect<S: AsRef<str>>(
        servers: impl IntoIterator<Item = S>,
        options: Options,
    ) -> Result<Self> {
        let servers: Vec<String> = servers.into_iter().map(|s| s.as_ref().to_owned()).collect();
        let mut core = Core::new(&servers, options, seed())?;
        core.require_contact();
        let client = Self {
            driver: Rc::new(RefCell::new(Driver::new(core))),
        };
        client.ping()?;
        Ok(client)
    }

    /// Does what is due without waiting: moves bytes, retries, keeps metadata up to date. Polling
    /// any producer or consumer does the same.
    pub fn poll(&self) {
        self.driver.borrow_mut().turn();
    }

    /// Why a connection that is needed is not there; `None` when all is well, or nothing is needed. It
    /// is tried again by itself, whatever the error says.
    #[must_use]
    pub fn trouble(&self) -> Option<Error> {
        self.driver.borrow().core.trouble().cloned()
    }

    fn call(&self, request: Request) -> Result<Response> {
        let mut driver = self.driver.borrow_mut();
        let call = driver.core.call(request, std::time::Instant::now());
        loop {
            let arrived = driver.turn();
            if let Some(answer) = driver.core.take_answer(call) {
                return answer;
            }
            if !arrived {
                driver.idle(None);
            }
        }
    }

    /// Asks the broker whether it is there.
    ///
    /// # Errors
    /// Those of [any call](Error#of-calls).
    pub fn ping(&self) -> Result<()> {
        self.call(Request::Ping).map(drop)
    }

    /// What each shard runs on and what it did since it began, in the order of the shards. Each is asked
    /// over a connection to it, which is kept, one after the other.
    ///
    /// # Errors
    /// Those of [any call](Error#of-calls): `UnknownOperation` from a broker that is older than this.
    pub fn describe_shards(&self) -> Result<Vec<ShardInfo>> {
        let shards = self.call(Request::ListShards)?.shards()?;
        let describe = |(host, port)| {
            let answer = self.call(Request::DescribeShard { host, port })?;
            answer.shard().map(|info| *info)
        };
        shards.into_iter().map(describe).collect()
    }

    /// Makes a topic; returns when it is durable and in force on every shard.
    ///
    /// # Errors
    /// Those of [any call](Error#of-calls): `TopicExists`, `InvalidTopicName`, `InvalidSetting` (an
    /// impossible setting or number of partitions), `TooMany`. [`Error::OutcomeUnknown`] when the answer
    /// was lost: look whether the topic is there.
    pub fn create_topic(
        &self,
        name: &str,
        partitions: u32,
        settings: &TopicSettings,
    ) -> Result<Topic> {
        let request = Request::CreateTopic {
            name: name.into(),
            partitions,
            settings: *settings,
        };
        self.call(request)?.topic()
    }

    /// Changes settings of a topic, or adds partitions: `partitions` is the new total.
    ///
    /// # Errors
    /// Those of [any call](Error#of-calls): `UnknownTopic`, `InvalidSetting` (also for fewer partitions
    /// than there are), `TooMany`. [`Error::OutcomeUnknown`] when the answer was lost.
    pub fn alter_topic(
        &self,
        name: &str,
        partitions: Option<u32>,
        settings: &TopicSettings,
    ) -> Result<Topic> {
        let request = Request::AlterTopic {
            name: name.into(),
            partitions,
            settings: *settings,
        };
        self.call(request)?.topic()
    }

    /// Deletes a topic and its records.
    ///
    /// # Errors
    /// Those of [any call](Error#of-calls): `UnknownTopic`. [`Error::OutcomeUnknown`] when the answer was
    /// lost.
    pub fn delete_topic(&self, name: &str) -> Result<()> {
        self.call(Request::DeleteTopic { name: name.into() })
            .map(drop)
    }

    /// All topics.
    ///
    /// # Errors
    /// Those of [any call](Error#of-calls).
    pub fn list_topics(&self) -> Result<Vec<Topic>> {
        self.call(Request::ListTopics)?.topics()
    }

    /// One topic: identity, settings, owners. One that is not there is asked for again for 300 ms: it
    /// may be about to be made.
    ///
    /// # Errors
    /// Those of [any call](Error#of-calls): `UnknownTopic`.
    pub fn topic(&self, name: &str) -> Result<Topic> {
        self.call(Request::DescribeTopic { name: name.into() })?
            .topic()
    }

    /// One topic with the state of each partition.
    ///
    /// # Errors
    /// Those of [any call](Error#of-calls): `UnknownTopic`.
    pub fn describe_topic(&self, name: &str) -> Result<TopicDescription> {
        let topic = self.topic(name)?;
        let partitions = (0..topic.partitions()).map(|p| self.describe_partition(name, p));
        Ok(TopicDescription {
            partitions: partitions.collect::<Result<_>>()?,
            topic,
        })
    }

    /// The state of one partition.
    ///
    /// # Errors
    /// Those of [any call](Error#of-calls): `UnknownTopic`, `UnknownPartition`.
    pub fn describe_partition(&self, topic: &str, partition: u32) -> Result<PartitionDescription> {
        self.call(Request::DescribePartition {
            topic: topic.into(),
            partition,
        })?
        .partition()
    }

    /// HOST:PORT of the shard that owns a partition, for a [`RawConnection`](super::RawConnection).
    ///
    /// # Errors
    /// Those of [any call](Error#of-calls), and [`Error::Invalid`] when the broker does not name an
    /// owner.
    pub fn owner(&self, topic: &Topic, partition: u32) -> Result<String> {
        if let Some(owner) = self.driver.borrow().core.owner(topic, partition) {
            return Ok(owner);
        }
        let topic = self.topic(&topic.name)?;
        let owner = self.driver.borrow().core.owner(&topic, partition);
        owner.ok_or_else(|| {
            Error::invalid(format!(
                "the broker does not say who owns {}/{partition}",
                topic.name
            ))
        })
    }

    /// An end of a partition, or the first offset at or after a time.
    ///
    /// # Errors
    /// Those of [any call](Error#of-calls): `UnknownTopic`, `UnknownPartition`, `DataUnreadable`.
    pub fn list_offsets(&self, topic: &str, partition: u32, at: OffsetAt) -> Result<ListedOffset> {
        self.call(Request::ListOffsets {
            topic: topic.into(),
            partition,
            at,
        })?
        .offset()
    }

    /// Stores where a named consumer is: the next offset that it wants of this topic, and of no
    /// other that is made under its name. Returns when it is durable.
    ///
    /// # Errors
    /// Those of [any call](Error#of-calls): `UnknownTopic` (also when it was made anew),
    /// `UnknownPartition`, `InvalidConsumerName`, `TooMany`, `OffsetOutOfRange` for an offset past the
    /// end.
    pub fn commit_offset(
        &self,
        consumer: &str,
        topic: &Topic,
        partition: u32,
        offset: u64,
        leader_epoch: u32,
    ) -> Result<()> {
        let at = Position {
            topic: topic.id,
            partition,
            offset,
            epoch: leader_epoch,
        };
        self.commit(consumer, &topic.name, at)
    }

    pub(crate) fn commit(&self, consumer: &str, topic: &Arc<str>, at: Position) -> Result<()> {
        let (consumer, topic) = (consumer.into(), topic.clone());
        let request = Request::CommitOffset {
            consumer,
            topic,
            at,
        };
        self.call(request).map(drop)
    }

    /// Where a named consumer has committed to be; `None` if it has not.
    ///
    /// # Errors
    /// Those of [any call](Error#of-calls): `UnknownTopic`, `UnknownPartition`, `InvalidConsumerName`.
    pub fn read_offset(
        &self,
        consumer: &str,
        topic: &str,
        partition: u32,
    ) -> Result<Option<CommittedOffset>> {
        let (consumer, topic) = (consumer.into(), topic.into());
        self.call(Request::ReadOffset {
            consumer,
            topic,
            partition,
        })?
        .committed()
    }

    /// A producer of one topic.
    ///
    /// # Errors
    /// Those of [any call](Error#of-calls): `UnknownTopic`; [`Error::Invalid`] for options that are
    /// impossible.
    pub fn producer(&self, topic: &str, options: ProducerOptions) -> Result<Producer> {
        let topic = Arc::new(self.topic(topic)?);
        let now = std::time::Instant::now();
        let key = self
            .driver
            .borrow_mut()
            .core
            .add_producer(topic, options, now)?;
        Ok(Producer::new(self.driver.clone(), key))
    }

    /// A consumer of one topic.
    ///
    /// # Errors
    /// Those of [any call](Error#of-calls): `UnknownTopic`, `UnknownPartition`; [`Error::Invalid`] for
    /// options that are impossible. What is wrong with the place to begin, reading tells.
    pub fn consumer(&self, topic: &str, options: ConsumerOptions) -> Result<Consumer> {
        let topic = Arc::new(self.topic(topic)?);
        let limit = options.inflated_bytes;
        let key = self
            .driver
            .borrow_mut()
            .core
            .add_consumer(topic.clone(), options)?;
        Ok(Consumer::new(
            self.clone(),
            self.driver.clone(),
            key,
            topic.name.clone(),
            limit,
        ))
    }
}
