//! Publishing from tasks.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::sync::oneshot;

use crate::asynch::shared::Handle;
use crate::error::{Error, Result};
use crate::options::now_ms;
use crate::record::{Ack, Record, Ticket};

/// Publishes to one topic; may be shared by tasks.
///
/// A record has one outcome: appended; [`Error::OutcomeUnknown`]; or another error, and then it is not
/// in the log. One whose error is retriable may be sent again; the client has tried for
/// [`ProducerOptions::delivery_timeout`](crate::ProducerOptions::delivery_timeout).
///
/// Dropping it gives up what was not acknowledged: [`Producer::flush`] first.
pub struct Producer {
    handle: Arc<Handle>,
    key: usize,
}

/// Becomes the acknowledgement of one record, or the error that it failed with. It need not be awaited
/// for the record to be sent; [`Error::OutcomeUnknown`] when the producer is dropped before.
#[derive(Debug)]
#[must_use = "an error would go unnoticed"]
pub struct Acknowledgement {
    ticket: Ticket,
    receiver: oneshot::Receiver<Result<Ack>>,
}

impl Acknowledgement {
    /// Which record it is about.
    #[must_use]
    pub fn ticket(&self) -> Ticket {
        self.ticket
    }
}

impl Future for Acknowledgement {
    type Output = Result<Ack>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.receiver).poll(context).map(|received| {
            received.unwrap_or_else(|_| {
                let what = format!("publish to partition {}", self.ticket.partition).into();
                let why = "the producer was dropped before the answer".into();
                Err(Error::OutcomeUnknown { what, why })
            })
        })
    }
}

impl Producer {
    pub(crate) fn new(handle: Arc<Handle>, key: usize) -> Self {
        Self { handle, key }
    }

    /// Takes a record, waiting while too much is not acknowledged, and sends it at once if the
    /// window allows. What is returned is a future that becomes its acknowledgement. A record is not
    /// taken when this one is given up before it is ready.
    ///
    /// # Errors
    /// In each case nothing was taken, and none is retriable: `UnknownPartition`,
    /// [`Error::RecordTooLarge`], and [`Error::Invalid`] for a time before 1970. What the broker refuses
    /// is an error of the acknowledgement.
    pub async fn send(&self, record: &Record<'_>) -> Result<Acknowledgement> {
        loop {
            let space = match self.try_or_wait(record) {
                Ok(taken) => return taken,
                Err(space) => space,
            };
            let mut notified = pin!(space.notified());
            // Whatever was acknowledged before this line is seen by the next attempt.
            notified.as_mut().enable();
            if let Ok(taken) = self.try_or_wait(record) {
                return taken;
            }
            notified.await;
        }
    }

    /// As [`Self::send`], but does not wait.
    ///
    /// # Errors
    /// Those of [`Self::send`], and [`Error::BufferFull`], which is retriable, instead of waiting.
    pub fn try_send(&self, record: &Record<'_>) -> Result<Acknowledgement> {
        let (sender, receiver) = oneshot::channel();
        let timestamp_ms = record.timestamp_ms.unwrap_or_else(now_ms);
        let mut state = self.handle.lock();
        let ticket = state
            .core
            .send(self.key, record, timestamp_ms, Instant::now())?;
        if let Some(waiters) = state.producers.get_mut(&self.key) {
            waiters.push(ticket.partition, sender);
        }
        state.settle();
        Ok(Acknowledgement { ticket, receiver })
    }

    fn try_or_wait(
        &self,
        record: &Record<'_>,
    ) -> Result<Result<Acknowledgement>, Arc<tokio::sync::Notify>> {
        match self.try_send(record) {
            Err(Error::BufferFull { .. }) => Err(self.space()),
            taken => Ok(taken),
        }
    }

    fn space(&self) -> Arc<tokio::sync::Notify> {
        let state = self.handle.lock();
        state
            .producers
            .get(&self.key)
            .map_or_else(Arc::default, |w| w.space.clone())
    }

    /// How often the broker was found to lack records that it had acknowledged as
    /// [`crate::Acks::Accepted`]; as [`crate::sync::Producer::losses`].
    #[must_use]
    pub fn losses(&self) -> u64 {
        self.handle.lock().core.producer(self.key).losses
    }

    /// Sends what lingers and waits until the outcome of every record that was sent before is known:
    /// for [`ProducerOptions::delivery_timeout`](crate::ProducerOptions::delivery_timeout) at the most.
    /// The outcomes are those of the acknowledgements.
    pub async fn flush(&self) {
        let taken = {
            let mut state = self.handle.lock();
            let taken = state.core.flush(self.key, Instant::now());
            state.settle();
            taken
        };
        let space = self.space();
        loop {
            let mut notified = pin!(space.notified());
            notified.as_mut().enable();
            if self
                .handle
                .lock()
                .core
                .producer(self.key)
                .has_settled(&taken)
            {
                return;
            }
            notified.await;
        }
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        let mut state = self.handle.lock();
        state.producers.remove(&self.key);
        state.core.remove_producer(self.key);
    }
}
