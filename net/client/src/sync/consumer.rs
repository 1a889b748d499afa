//! Consuming from one thread.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::core::consumer::{Batch, Reader};
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
    /// By cursor: where to go on after what was handed out, and the epoch of it.
    positions: Vec<Option<(u64, u32)>>,
}

impl Consumer {
    pub(crate) fn new(
        client: Client,
        driver: Rc<RefCell<Driver>>,
        key: usize,
        topic: Arc<str>,
        limit: usize,
    ) -> Self {
        let cursors = driver.borrow_mut().core.consumer(key).cursors.len();
        let reader = Reader::new(topic, limit);
        Self {
            client,
            driver,
            key,
            reader,
            positions: vec![None; cursors],
        }
    }

    /// The next batch, whose records are read where they lie; `None` when none came in time.
    ///
    /// # Errors
    /// [`OffsetOutOfRange`](crate::Error::OffsetOutOfRange), [`BadBatch`](crate::Error::BadBatch) and what the broker refuses for good.
    pub fn poll(&mut self, timeout: Duration) -> Result<Option<Batch<'_>>> {
        if !self.reader.has_more() && !self.next_chunk(timeout)? {
            return Ok(None);
        }
        let cursor = self.reader.chunk.as_ref().map_or(0, |c| c.cursor);
        match self.reader.next() {
            Some(Ok(batch)) => {
                self.positions[cursor] = Some((batch.next_offset(), batch.leader_epoch()));
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
    pub fn position(&self, partition: u32) -> Result<Option<u64>> {
        Ok(self.positions[self.cursor(partition)?].map(|(offset, _)| offset))
    }

    /// Moves to another place in a partition; what had arrived for it is forgotten.
    pub fn seek(&mut self, partition: u32, start: Start) -> Result<()> {
        let cursor = self.cursor(partition)?;
        self.reader.forget(cursor);
        self.positions[cursor] = None;
        self.driver
            .borrow_mut()
            .core
            .seek(self.key, cursor, start, Instant::now());
        Ok(())
    }

    /// Stores, under this consumer name, the position of every partition from which batches were
    /// handed out: the next one that starts with [`Start::committed`] goes on there.
    pub fn commit(&self, consumer: &str) -> Result<()> {
        let partitions = self.partitions();
        for (partition, position) in partitions.into_iter().zip(&self.positions) {
            if let Some((offset, epoch)) = *position {
                let topic = &self.reader.topic;
                self.client
                    .commit_offset(consumer, topic, partition, offset, epoch)?;
            }
        }
        Ok(())
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        let driver = &mut *self.driver.borrow_mut();
        driver.core.remove_consumer(self.key, Instant::now());
        driver.write(Instant::now());
    }
}
