//! Consuming from a task.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use futures_core::Stream;

use crate::asynch::client::Client;
use crate::asynch::shared::Handle;
use crate::core::consumer::{Batch, OwnedBatch, Position, Reader};
use crate::error::{Error, Result};
use crate::options::Start;

/// Reads partitions of one topic.
///
/// After an error that concerns one partition that partition stands still until [`Consumer::seek`];
/// the others go on. Lost connections are not errors: the consumer goes on where it was.
///
/// It is a [`Stream`] as well, of batches that own their records, which costs a copy of each:
///
/// ```no_run
/// use futures_lite::StreamExt;
/// use ringtide_client::{ConsumerOptions, Result, asynch::Client};
///
/// # async fn example(client: Client) -> Result<()> {
/// let mut consumer = client.consumer("ticks", ConsumerOptions::new()).await?;
/// while let Some(batch) = consumer.try_next().await? {
///     for record in &batch.records {
///         println!("{}: {:?}", record.offset, record.value);
///     }
///     consumer.commit("example").await?;
/// }
/// # Ok(())
/// # }
/// ```
pub struct Consumer {
    client: Client,
    handle: Arc<Handle>,
    key: usize,
    reader: Reader,
    /// By partition: where to go on after what was handed out.
    positions: BTreeMap<u32, Position>,
}

impl Consumer {
    pub(crate) fn new(
        client: Client,
        handle: Arc<Handle>,
        key: usize,
        topic: Arc<str>,
        limit: usize,
    ) -> Self {
        let reader = Reader::new(topic, limit);
        Self {
            client,
            handle,
            key,
            reader,
            positions: BTreeMap::new(),
        }
    }

    /// The next batch, whose records are read where they lie; waits for it. Giving up the future
    /// loses nothing.
    ///
    /// # Errors
    /// [`Error::OffsetOutOfRange`], [`Error::BadBatch`] and what the broker refuses for good. None is
    /// retriable: the partition stands still until [`Self::seek`].
    pub async fn next(&mut self) -> Result<Batch<'_>> {
        poll_fn(|context| self.poll_more(context)).await?;
        self.read()
    }

    /// Whether [`Self::read`] has a batch to read.
    fn poll_more(&mut self, context: &Context<'_>) -> Poll<Result<()>> {
        while !self.reader.has_more() {
            let mut state = self.handle.lock();
            let Some(chunk) = state.core.consumer(self.key).take() else {
                state.consumers.insert(self.key, context.waker().clone());
                return Poll::Pending;
            };
            let chunk = chunk?;
            let cursor = chunk.cursor;
            if let Some(old) = self.reader.begin(chunk) {
                state.core.consumer(self.key).recycle(old.bytes);
            }
            state.core.pump_cursor(self.key, cursor, Instant::now());
            state.settle();
        }
        Poll::Ready(Ok(()))
    }

    fn read(&mut self) -> Result<Batch<'_>> {
        match self.reader.next() {
            Some(Ok(batch)) => {
                self.positions.insert(batch.partition(), batch.position());
                Ok(batch)
            }
            Some(Err((cursor, error))) => {
                let mut state = self.handle.lock();
                state.core.stop(self.key, cursor, Instant::now());
                state.settle();
                Err(error)
            }
            // `poll_more` was ready.
            None => Err(Error::Closed),
        }
    }

    /// The partitions that it reads.
    #[must_use]
    pub fn partitions(&self) -> Vec<u32> {
        let mut state = self.handle.lock();
        state
            .core
            .consumer(self.key)
            .cursors
            .iter()
            .map(|c| c.partition)
            .collect()
    }

    fn cursor(&self, partition: u32) -> Result<usize> {
        self.handle
            .lock()
            .core
            .consumer(self.key)
            .cursor_of(partition)
    }

    /// The offset after the last batch of a partition that was handed out; `None` before the first.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a partition that it does not read.
    pub fn position(&self, partition: u32) -> Result<Option<u64>> {
        self.cursor(partition)?;
        Ok(self.positions.get(&partition).map(|p| p.offset))
    }

    /// Why the broker refused what was last asked for in a partition and is tried again by itself, until it gives
    /// something; `None` when all is well, or no broker answers (the client's `trouble` says that).
    #[must_use]
    pub fn trouble(&self) -> Option<Error> {
        let mut state = self.handle.lock();
        state.core.consumer(self.key).trouble().cloned()
    }

    /// The partitions that stand still after an error that was handed out, until [`Self::seek`].
    #[must_use]
    pub fn stopped(&self) -> Vec<u32> {
        self.handle.lock().core.consumer(self.key).stopped()
    }

    /// Moves to another place in a partition; what had arrived for it is forgotten.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a partition that it does not read. What is wrong with the place, reading
    /// tells.
    pub fn seek(&mut self, partition: u32, start: Start) -> Result<()> {
        let cursor = self.cursor(partition)?;
        self.reader.forget(cursor);
        self.positions.remove(&partition);
        let mut state = self.handle.lock();
        state.core.seek(self.key, cursor, start, Instant::now());
        state.settle();
        Ok(())
    }

    /// Stores, under this consumer name, the position of every partition from which batches were
    /// handed out: the next one that starts with [`Start::committed`] goes on there. Returns when they
    /// are durable.
    ///
    /// # Errors
    /// Those of [any call](Error#of-calls): `UnknownTopic` when the topic was deleted, or made anew
    /// since: the position means nothing there. Partitions after the one that failed were not
    /// committed.
    pub async fn commit(&self, consumer: &str) -> Result<()> {
        for &at in self.positions.values() {
            self.client.commit(consumer, &self.reader.topic, at).await?;
        }
        Ok(())
    }
}

/// As [`Consumer::next`], with batches that own their records. It has no end; after an error, ask on.
impl Stream for Consumer {
    type Item = Result<OwnedBatch>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let consumer = self.get_mut();
        let next = match ready!(consumer.poll_more(context)) {
            Ok(()) => consumer.read().map(OwnedBatch::from),
            Err(error) => Err(error),
        };
        Poll::Ready(Some(next))
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        let mut state = self.handle.lock();
        state.consumers.remove(&self.key);
        state.core.remove_consumer(self.key, Instant::now());
        state.settle();
    }
}
