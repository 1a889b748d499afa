//! The client: connecting, administration, and making producers and consumers.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;

use crate::asynch::consumer::Consumer;
use crate::asynch::producer::Producer;
use crate::asynch::shared::Handle;
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

/// A client of one broker. Clones share the connections.
///
/// A call whose future is given up may still be carried out by the broker; its answer is ignored.
#[derive(Clone)]
pub struct Client {
    pub(super) handle: Arc<Handle>,
}

/// Forgets a call that nobody waits for any more.
struct Waiting<'a> {
    handle: &'a Handle,
    call: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.handle.lock();
        state.calls.remove(&self.call);
        state.core.forget_call(self.call);
    }
}

impl Client {
    /// Connects to the broker that these servers (HOST:PORT; any shard of it) belong to.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Disconnected`] or [`Error::Protocol`] when none of them answers,
    /// each having been tried once; [`Error::Invalid`] for a server that is not of that form.
    pub async fn connect<S: AsRef<str>>(
        servers: impl IntoIterator<Item = S>,
        options: Options,
    ) -> Result<Self> {
        let servers: Vec<String> = servers.into_iter().map(|s| s.as_ref().to_owned()).collect();
        let mut core = Core::new(&servers, options, seed())?;
        core.require_contact();
        let client = Self {
            handle: Handle::start(core),
        };
        client.ping().await?;
        Ok(client)
    }

    /// Why a connection that is needed is not there; `None` when all is well, or nothing is needed. It
    /// is tried again by itself, whatever the error says.
    #[must_use]
    pub fn trouble(&self) -> Option<Error> {
        self.handle.lock().core.trouble().cloned()
    }

    async fn call(&self, request: Request) -> Result<Response> {
        let (sender, receiver) = oneshot::channel();
        let waiting = {
            let mut state = self.handle.lock();
            let call = state.core.call(request, Instant::now());
            state.calls.insert(call, sender);
            state.settle();
            Waiting {
                handle: &self.handle,
                call,
            }
        };
        let answer = receiver.await;
        drop(waiting);
        answer.map_err(|_| Error::Closed)?
    }

    /// Asks the broker whether it is there.
    ///
    /// # Errors
    /// Those of [any call](Error#of-calls).
    pub async fn ping(&self) -> Result<()> {
        self.call(Request::Ping).await.map(drop)
    }

    /// What each shard runs on and what it did since it began, in the order of the shards. Each is asked
    /// over a connection to it, which is kept, one after the other.
    ///
    /// # Errors
    /// Those of [any call](Error#of-calls): `UnknownOperation` from a broker that is older than this.
    pub async fn describe_shards(&self) -> Result<Vec<ShardInfo>> {
        let mut described = Vec::new();
        for (host, port) in self.call(Request::ListShards).await?.shards()? {
            let answer = self.call(Request::DescribeShard { host, port }).await?;
            described.push(*answer.shard()?);
        }
        Ok(described)
    }

    /// Makes a topic; returns when it is durable and in force on every shard.
    ///
    /// # Errors
    /// Those of [any call](Error#of-calls): `TopicExists`, `InvalidTopicName`, `InvalidSetting` (an
    /// impossible setting or number of partitions), `TooMany`. [`Error::OutcomeUnknown`] when the answer
    /// was lost: look whether the topic is there.
    pub async fn create_topic(
        &self,
        name: &str,
        partitions: u32,
        settings: &TopicSettings,
    ) -> Result<Topic> {
        let settings = *settings;
        self.call(Request::CreateTopic {
            name: name.into(),
            partitions,
            settings,
        })
        .await?
        .topic()
    }

    /// Changes settings of a topic, or adds partitions: `partitions` is the new total.
    ///
    /// # Errors
    /// Those of [any call](Error#of-calls): `UnknownTopic`, `InvalidSetting` (also for fewer partitions
    /// than there are), `TooMany`. [`Error::OutcomeUnknown`] when the answer was lost.
    pub async fn alter_topic(
        &self,
        name: &str,
        partitions: Option<u32>,
        settings: &TopicSettings,
    ) -> Result<Topic> {
        let settings = *settings;
        self.call(Request::AlterTopic {
            name: name.into(),
            partitions,
            settings,
        })
        .await?
        .topic()
    }

    /// Deletes a topic and its records.
    ///
    /// # Errors
    /// Those of [any call](Error#of-calls): `UnknownTopic`. [`Error::OutcomeUnknown`] when the answer was
    /// lost.
    pub async fn delete_topic(&self, name: &str) -> Result<()> {
        self.call(Request::DeleteTopic { name: name.into() })
            .await
            .map(drop)
    }

    /// All topics.
    ///
    /// # Errors
    /// Those of [any call](Error#of-calls).
    pub async fn list_topics(&self) -> Result<Vec<Topic>> {
        self.call(Request::ListTopics).await?.topics()
    }

    /// One topic: identity, settings, owners. One that is not there is asked for again for 300 ms: it
    /// may be about to be made.
    ///
    /// # Errors
    /// Those of [any call](Error#of-calls): `UnknownTopic`.
    pub async fn topic(&self, name: &str) -> Result<Topic> {
        self.call(Request::DescribeTopic { name: name.into() })
            .await?
            .topic()
    }

    /// One topic with the state of each partition.
    ///
    /// # Errors
    /// Those of [any call](Error#of-calls): `UnknownTopic`.
    pub async fn describe_topic(&self, name: &str) -> Result<TopicDescription> {
        let topic = self.topic(name).await?;
        let mut partitions = Vec::new();
        for partition in 0..topic.partitions() {
            partitions.push(self.describe_partition(name, partition).await?);
        }
        Ok(TopicDescription { topic, partitions })
    }

    /// The state of one partition.
    ///
    /// # Errors
    /// Those of [any call](Error#of-calls): `UnknownTopic`, `UnknownPartition`.
    pub async fn describe_partition(
        &self,
        topic: &str,
        partition: u32,
    ) -> Result<PartitionDescription> {
        let request = Request::DescribePartition {
            topic: topic.into(),
            partition,
        };
        self.call(request).await?.partition()
    }

    /// An end of a partition, or the first offset at or after a time.
    ///
    /// # Errors
    /// Those of [any call](Error#of-calls): `UnknownTopic`, `UnknownPartition`, `DataUnreadable`.
    pub async fn list_offsets(
        &self,
        topic: &str,
        partition: u32,
        at: OffsetAt,
    ) -> Result<ListedOffset> {
        self.call(Request::ListOffsets {
            topic: topic.into(),
            partition,
            at,
        })
        .await?
        .offset()
    }

    /// Stores where a named consumer is: the next offset that it wants of this topic, and of no
    /// other that is made under its name. Returns when it is durable.
    ///
    /// # Errors
    /// Those of [any call](Error#of-calls): `UnknownTopic` (also when it was made anew),
    /// `UnknownPartition`, `InvalidConsumerName`, `TooMany`, `OffsetOutOfRange` for an offset past the
    /// end.
    pub async fn commit_offset(
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
        self.commit(consumer, &topic.name, at).await
    }

    pub(crate) async fn commit(
        &self,
        consumer: &str,
        topic: &Arc<str>,
        at: Position,
    ) -> Result<()> {
        let (consumer, topic) = (consumer.into(), topic.clone());
        let request = Request::CommitOffset {
            consumer,
            topic,
            at,
        };
        self.call(request).await.map(drop)
    }

    /// Where a named consumer has committed to be; `None` if it has not.
    ///
    /// # Errors
    /// Those of [any call](Error#of-calls): `UnknownTopic`, `UnknownPartition`, `InvalidConsumerName`.
    pub async fn read_offset(
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
        })
        .await?
        .committed()
    }

    /// A producer of one topic.
    ///
    /// # Errors
    /// Those of [any call](Error#of-calls): `UnknownTopic`; [`Error::Invalid`] for options that are
    /// impossible.
    pub async fn producer(&self, topic: &str, options: ProducerOptions) -> Result<Producer> {
        let topic = Arc::new(self.topic(topic).await?);
        let mut state = self.handle.lock();
        let key = state.core.add_producer(topic, options, Instant::now())?;
        state.producers.insert(key, Default::default());
        state.settle();
        Ok(Producer::new(self.handle.clone(), key))
    }

    /// A consumer of one topic.
    ///
    /// # Errors
    /// Those of [any call](Error#of-calls): `UnknownTopic`, `UnknownPartition`; [`Error::Invalid`] for
    /// options that are impossible. What is wrong with the place to begin, reading tells.
    pub async fn consumer(&self, topic: &str, options: ConsumerOptions) -> Result<Consumer> {
        let topic = Arc::new(self.topic(topic).await?);
        let (name, limit) = (topic.name.clone(), options.inflated_bytes);
        let mut state = self.handle.lock();
        let key = state.core.add_consumer(topic, options)?;
        state.settle();
        drop(state);
        let handle = self.handle.clone();
        Ok(Consumer::new(self.clone(), handle, key, name, limit))
    }
}
