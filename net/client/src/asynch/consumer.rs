//! Consuming from a task.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Notify;

use crate::asynch::client::Client;
use crate::asynch::shared::Handle;
use crate::core::consumer::{Batch, Position, Reader};
use crate::error::{Error, Result};
use crate::options::Start;

/// Reads partitions of one topic.
///
/// After an error that concerns one partition that partition stands still until [`Consumer::seek`];
/// the others go on. Lost connections are not errors: the consumer goes on where it was.
pub struct Consumer {
    client: Client,
    handle: Arc<Handle>,
    key: usize,
    news: Arc<Notify>,
    reader: Reader,
    /// By partition: where to go on after what was handed out.
    positions: BTreeMap<u32, Position>,
}

impl Consumer {
    pub(crate) fn new(
        client: Client,
        handle: Arc<Handle>,
        key: usize,
        news: Arc<Notify>,
        (topic, limit): (Arc<str>, usize),
    ) -> Self {
        let reader = Reader::new(topic, limit);
        Self {
            client,
            handle,
            key,
            news,
            reader,
            positions: BTreeMap::new(),
        }
    }

    /// The next batch, whose records are read where they lie; waits for it. Giving up the future
    /// loses nothing.
    ///
    /// # Errors
    /// [`Error::OffsetOutOfRange`], [`Error::BadBatch`] and what the broker refuses for good.
    pub async fn next(&mut self) -> Result<Batch<'_>> {
        while !self.reader.has_more() {
            if !self.take_chunk()? {
                self.news.notified().await;
            }
        }
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
            // `has_more` was true.
            None => Err(Error::Closed),
        }
    }

    fn take_chunk(&mut self) -> Result<bool> {
        let mut state = self.handle.lock();
        let Some(chunk) = state.core.consumer(self.key).take() else {
            return Ok(false);
        };
        let chunk = chunk?;
        let cursor = chunk.cursor;
        if let Some(old) = self.reader.begin(chunk) {
            state.core.consumer(self.key).recycle(old.bytes);
        }
        state.core.pump_cursor(self.key, cursor, Instant::now());
        state.settle();
        Ok(true)
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
    pub fn position(&self, partition: u32) -> Result<Option<u64>> {
        self.cursor(partition)?;
        Ok(self.positions.get(&partition).map(|p| p.offset))
    }

    /// The partitions that stand still after an error, until [`Self::seek`].
    #[must_use]
    pub fn stopped(&self) -> Vec<u32> {
        self.handle.lock().core.consumer(self.key).stopped()
    }

    /// Moves to another place in a partition; what had arrived for it is forgotten.
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
    /// handed out: the next one that starts with [`Start::committed`] goes on there.
    ///
    /// # Errors
    /// `UnknownTopic` when the topic was deleted, or made anew since: the position means nothing there.
    pub async fn commit(&self, consumer: &str) -> Result<()> {
        for &at in self.positions.values() {
            self.client.commit(consumer, &self.reader.topic, at).await?;
        }
        Ok(())
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
