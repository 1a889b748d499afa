//! What a broker must offer to be measured. One implementation is Ringtide's ([`crate::open_loop::ringtide`]);
//! others may live elsewhere. Everything is driven by one thread and never blocks once it is subscribed.

use crate::error::BenchError;

/// Records that leave as one batch. Values have all the same size.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// A key for each record, or none.
    pub keys: &'a [Option<u64>],
    /// The values, one after the other.
    pub values: &'a [u8],
    /// Bytes of each.
    pub value_bytes: usize,
}

impl<'a> Outgoing<'a> {
    /// Key and value of each record.
    pub fn records(&self) -> impl Iterator<Item = (Option<u64>, &'a [u8])> + use<'a> {
        let keys = self.keys.iter().copied();
        keys.zip(self.values.chunks_exact(self.value_bytes))
    }
}

/// Where a subscriber begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// With what comes.
    Latest,
    /// With the first record there is.
    Earliest,
}

/// What became of a batch: refused with these words, or acknowledged.
pub type Verdict<'a> = Result<(), &'a str>;

/// Some publishers of a measurement.
pub trait PublishSide {
    /// Whether the publisher may send one more batch to the partition.
    fn may_send(&self, publisher: usize, partition: u32) -> bool;

    /// Sends a batch. Its verdict comes under this token; without acknowledgements it comes when the
    /// system has taken the last byte of the batch.
    ///
    /// # Errors
    /// When the broker is lost.
    fn send(
        &mut self,
        token: u64,
        publisher: usize,
        partition: u32,
        batch: Outgoing<'_>,
    ) -> Result<(), BenchError>;

    /// Moves what can be moved and hands out verdicts; whether anything happened.
    ///
    /// # Errors
    /// When the broker is lost.
    fn turn(&mut self, done: &mut dyn FnMut(u64, Verdict<'_>)) -> Result<bool, BenchError>;
}

/// Some subscribers of a measurement, each to all partitions.
pub trait SubscribeSide {
    /// Asks for everything, from there on. All are subscribed once [`Self::unanswered`] has nothing to
    /// say. Once.
    ///
    /// # Errors
    /// When the broker is lost.
    fn subscribe(&mut self, from: From) -> Result<(), BenchError>;

    /// A server that has not said yet that it gives what was asked for.
    fn unanswered(&self) -> Option<&str> {
        None
    }

    /// Moves what can be moved and hands out subscriber, partition and value of what arrived; whether
    /// anything happened.
    ///
    /// # Errors
    /// When the broker is lost.
    fn turn(&mut self, each: &mut dyn FnMut(usize, u32, &[u8])) -> Result<bool, BenchError>;
}

/// A broker with a topic for the measurement.
pub trait Target: Sync {
    /// Connects so many publishers.
    ///
    /// # Errors
    /// When the broker cannot be reached.
    fn publishers(&self, count: usize) -> Result<Box<dyn PublishSide + '_>, BenchError>;

    /// Connects so many subscribers, which have subscribed to nothing yet.
    ///
    /// # Errors
    /// When the broker cannot be reached.
    fn subscribers(&self, count: usize) -> Result<Box<dyn SubscribeSide + '_>, BenchError>;
}
