//! Consuming from one thread.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::core::consumer::{Batch, Position, Reader};
use crate::error::Result;
use crate::options::Start;
use crate::sync::client::Client;
use crate::sync::driver::Driver;

/// Reads partitions of one topic.
///
/// After an error that concerns one partition that partition stands still until [`Consumer::seek`];
/// the others go on. Lost connections are not errors: the consumer goes on where it was.
pub struct Consumer {
    client: Client,
    driver: Rc<RefCell<Driver>>,
    key: usize,
    reader: Reader,
    /// By partition: where to go on after what was handed out.
    positions: BTreeMap<u32, Position>,
}

impl Consumer {
    pub(crate) fn new(
        client: Client,
        driver: Rc<RefCell<Driver>>,
        key: usize,
        topic: Arc<str>,
        limit: usize,
    ) -> Self {
        let reader = Reader::new(topic, limit);
        Self {
            client,
            driver,
            key,
            reader,
            positions: BTreeMap::new(),
        }
    }

    /// The next batch, whose records are read where they lie; `None` when none came in time. It does
    /// not wait with a timeout of zero, and waits for ever with [`Duration::MAX`].
    ///
    /// # Errors
    /// [`crate::Error::OffsetOutOfRange`], [`crate::Error::BadBatch`] and what the broker refuses for good. None is
    /// retriable: the partition stands still until [`Self::seek`].
    pub fn poll(&mut self, timeout: Duration) -> Result<Option<Batch<'_>>> {
        if !self.reader.has_more() && !self.next_chunk(timeout)? {
            return Ok(None);
        }
        match self.reader.next() {
            Some(Ok(batch)) => {
                self.positions.insert(batch.partition(), batch.position());
                Ok(Some(batch))
            }
            Some(Err((cursor, error))) => {
                self.driver
                    .borrow_mut()
                    .core
                    .stop(self.key, cursor, Instant::now());
                Err(error)
            }
            None => Ok(None),
        }
    }

    /// Takes payloads until one has a batch that is wanted.
    fn next_chunk(&mut self, timeout: Duration) -> Result<bool> {
        let mut until = None;
        loop {
            let driver = &mut *self.driver.borrow_mut();
            let arrived = match driver.core.consumer(self.key).take() {
                Some(Err(error)) => return Err(error),
                Some(Ok(chunk)) => {
                    let cursor = chunk.cursor;
                    if let Some(old) = self.reader.begin(chunk) {
                        driver.core.consumer(self.key).recycle(old.bytes);
                    }
                    let now = Instant::now();
                    driver.core.pump_cursor(self.key, cursor, now);
                    driver.write(now);
                    if self.reader.has_more() {
                        return Ok(true);
                    }
                    continue;
                }
                None => driver.turn(),
            };
            if driver.core.consumer(self.key).has_news() {
                continue;
            }
            let until = *until.get_or_insert_with(|| Instant::now().checked_add(timeout));
            if timeout.is_zero() || until.is_some_and(|at| at <= Instant::now()) {
                return Ok(false);
            }
            if !arrived {
                driver.idle(until);
            }
        }
    }

    /// The partitions that it reads.
    #[must_use]
    pub fn partitions(&self) -> Vec<u32> {
        self.driver
            .borrow_mut()
            .core
            .consumer(self.key)
            .cursors
            .iter()
            .map(|c| c.partition)
            .collect()
    }

    fn cursor(&self, partition: u32) -> Result<usize> {
        self.driver
            .borrow_mut()
            .core
            .consumer(self.key)
            .cursor_of(partition)
    }

    /// The offset after the last batch of a partition that was handed out; `None` before the first.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] for a partition that it does not read.
    pub fn position(&self, partition: u32) -> Result<Option<u64>> {
        self.cursor(partition)?;
        Ok(self.positions.get(&partition).map(|p| p.offset))
    }

    /// Why the broker refused what was last asked for in a partition and is tried again by itself, until it gives
    /// something; `None` when all is well, or no broker answers (the client's `trouble` says that).
    #[must_use]
    pub fn trouble(&self) -> Option<crate::Error> {
        let mut state = self.driver.borrow_mut();
        state.core.consumer(self.key).trouble().cloned()
    }

    /// The partitions that stand still after an error that was handed out, until [`Self::seek`].
    #[must_use]
    pub fn stopped(&self) -> Vec<u32> {
        self.driver.borrow_mut().core.consumer(self.key).stopped()
    }

    /// Moves to another place in a partition; what had arrived for it is forgotten.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] for a partition that it does not read. What is wrong with the place, reading
    /// tells.
    pub fn seek(&mut self, partition: u32, start: Start) -> Result<()> {
        let cursor = self.cursor(partition)?;
        self.reader.forget(cursor);
        self.positions.remove(&partition);
        self.driver
            .borrow_mut()
            .core
            .seek(self.key, cursor, start, Instant::now());
        Ok(())
    }

    /// Stores, under this consumer name, the position of every partition from which batches were
    /// handed out: the next one that starts with [`Start::committed`] goes on there. Returns when they
    /// are durable.
    ///
    /// # Errors
    /// Those of [any call](crate::Error#of-calls): `UnknownTopic` when the topic was deleted, or made anew
    /// since: the position means nothing there. Partitions after the one that failed were not
    /// committed.
    pub fn commit(&self, consumer: &str) -> Result<()> {
        let mut positions = self.positions.values();
        positions.try_for_each(|&at| self.client.commit(consumer, &self.reader.topic, at))
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        let driver = &mut *self.driver.borrow_mut();
        driver.core.remove_consumer(self.key, Instant::now());
        driver.write(Instant::now());
    }
}
