//! Publishing from one thread.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::error::{Error, Result, why_not};
use crate::options::now_ms;
use crate::record::{Ack, Delivered, Record, Ticket};
use crate::sync::driver::Driver;

/// Publishes to one topic. Acknowledgements are handed out by [`Producer::poll`].
///
/// A record has one outcome: appended; [`Error::OutcomeUnknown`]; or another error, and then it is not
/// in the log. One whose error is retriable may be sent again; the client has tried for
/// [`ProducerOptions::delivery_timeout`](crate::ProducerOptions::delivery_timeout).
///
/// Dropping it gives up what was not acknowledged: [`Producer::flush`] first.
pub struct Producer {
    driver: Rc<RefCell<Driver>>,
    key: usize,
}

impl Producer {
    pub(crate) fn new(driver: Rc<RefCell<Driver>>, key: usize) -> Self {
        Self { driver, key }
    }

    /// Takes a record and, if the window allows, sends it at once. Does not wait.
    ///
    /// # Errors
    /// In each case nothing was taken. [`Error::BufferFull`] when too much is not acknowledged: poll,
    /// then send again. Not retriable: `UnknownPartition`, [`Error::RecordTooLarge`], and
    /// [`Error::Invalid`] for a time before 1970.
    pub fn send(&mut self, record: &Record<'_>) -> Result<Ticket> {
        let now = Instant::now();
        let timestamp_ms = record.timestamp_ms.unwrap_or_else(now_ms);
        let mut driver = self.driver.borrow_mut();
        let ticket = driver.core.send(self.key, record, timestamp_ms, now)?;
        driver.write(now);
        Ok(ticket)
    }

    /// Moves what can be moved without waiting, and hands out what became of records since.
    /// Returns how many were handed out. Without acknowledgements a record is done when the broker
    /// has handled it.
    pub fn poll(&mut self, mut each: impl FnMut(Delivered)) -> usize {
        self.driver.borrow_mut().turn();
        self.hand_out(&mut each)
    }

    /// As [`Self::poll`], but waits until there is something to hand out or the time has passed; with
    /// [`Duration::MAX`] for ever.
    pub fn wait(&mut self, timeout: Duration, mut each: impl FnMut(Delivered)) -> usize {
        self.wait_until(timeout, |core, key| core.producer(key).has_done());
        self.hand_out(&mut each)
    }

    fn hand_out(&mut self, each: &mut impl FnMut(Delivered)) -> usize {
        let mut count = 0;
        loop {
            let done = self.driver.borrow_mut().core.producer(self.key).take_done();
            let Some(completion) = done else { return count };
            for index in 0..completion.records {
                each(completion.nth(index));
                count += 1;
            }
        }
    }

    /// Waits for one record's acknowledgement. What became of others meanwhile is discarded, so
    /// this is for those who send one record at a time.
    ///
    /// # Errors
    /// What the record failed with; [`Error::UnderWay`] when that is not known yet, and not to be sent
    /// again then; [`Error::Invalid`] when its outcome was handed out, or discarded, before.
    pub fn wait_for(&mut self, ticket: Ticket, timeout: Duration) -> Result<Ack> {
        let began = Instant::now();
        loop {
            let left = timeout.saturating_sub(began.elapsed());
            self.wait_until(left, |core, key| {
                let producer = core.producer(key);
                producer.has_done() || producer.is_done(ticket)
            });
            let mut found = None;
            self.hand_out(&mut |delivered: Delivered| {
                if delivered.ticket == ticket {
                    found = Some(delivered.result);
                }
            });
            if let Some(result) = found {
                return result;
            }
            if self
                .driver
                .borrow_mut()
                .core
                .producer(self.key)
                .is_done(ticket)
            {
                return Err(Error::invalid(
                    "wait_for: the outcome of this record was handed out before, or discarded by \
                     another wait_for; with several records in flight use wait or poll",
                ));
            }
            if began.elapsed() >= timeout {
                return Err(self.not_in_time(ticket.partition, timeout));
            }
        }
    }

    /// Sends what lingers and waits until the outcome of every record is known; the outcomes are
    /// handed out by the next [`Self::poll`].
    ///
    /// # Errors
    /// [`Error::UnderWay`] when that of some is not known yet.
    pub fn flush(&mut self, timeout: Duration) -> Result<()> {
        let now = Instant::now();
        let taken = self.driver.borrow_mut().core.flush(self.key, now);
        if self.wait_until(timeout, |core, key| core.producer(key).has_settled(&taken)) {
            return Ok(());
        }
        let unsettled = self
            .driver
            .borrow_mut()
            .core
            .producer(self.key)
            .unsettled(&taken);
        Err(self.not_in_time(unsettled.unwrap_or(0), timeout))
    }

    fn not_in_time(&self, partition: u32, after: Duration) -> Error {
        let driver = &mut *self.driver.borrow_mut();
        let what = driver.core.producer(self.key).what(partition);
        let why = why_not(driver.core.in_the_way(self.key, partition));
        Error::UnderWay { what, after, why }
    }

    fn wait_until(
        &mut self,
        timeout: Duration,
        is_done: impl Fn(&mut crate::core::Core, usize) -> bool,
    ) -> bool {
        let until = Instant::now().checked_add(timeout);
        let driver = &mut *self.driver.borrow_mut();
        loop {
            let arrived = driver.turn();
            if is_done(&mut driver.core, self.key) {
                return true;
            }
            if until.is_some_and(|at| at <= Instant::now()) {
                return false;
            }
            if !arrived {
                driver.idle(until);
            }
        }
    }

    /// How often the broker was found to lack records that it had acknowledged as
    /// [`crate::Acks::Accepted`]: it ended before they were written. What was sent after them has
    /// been appended in their place. A broker that lost all of a partition's records of this producer
    /// cannot be told from one that has forgotten it, and is not counted. Losses of durable records
    /// are [`crate::Error::AcknowledgedLost`] instead.
    #[must_use]
    pub fn losses(&self) -> u64 {
        self.driver.borrow_mut().core.producer(self.key).losses
    }

    /// Bytes of records that are not acknowledged.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.driver.borrow_mut().core.producer(self.key).held_bytes
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.driver.borrow_mut().core.remove_producer(self.key);
    }
}
