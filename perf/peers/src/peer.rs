//! What every other broker has in common: what it promises, what it says of itself, and how its errors
//! become the generator's.

use std::fmt::Display;
use std::io;

use clap::ValueEnum;
use ringtide_perf::BenchError;
use ringtide_perf::open_loop::target::Target;

/// What an acknowledgement promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Durability {
    /// The record is on stable storage
    Durable,
    /// What the broker promises as it is installed
    Usual,
}

impl Durability {
    /// As a report names it: the level of ours that it is compared with.
    pub fn acks(self) -> &'static str {
        match self {
            Self::Durable => "durable",
            Self::Usual => "accepted",
        }
    }
}

/// Where a measurement takes place, and what is asked for.
#[derive(Clone, Debug)]
pub struct Place {
    /// HOST:PORT.
    pub server: String,
    /// Of the topic, or what the broker has instead; nobody else uses it.
    pub name: String,
    /// How many.
    pub partitions: u32,
    /// Batches of a publisher that are not answered, at the most.
    pub in_flight: usize,
    /// What is to be promised.
    pub durability: Durability,
}

/// A broker with what a measurement needs, made for it.
pub trait Peer: Target {
    /// The broker as it describes itself.
    fn describe(&self) -> serde_json::Value;

    /// Removes what was made.
    ///
    /// # Errors
    /// When the broker is lost, or refuses.
    fn remove(&self) -> Result<(), BenchError>;
}

/// For `map_err`: an error of a client library with what was tried.
pub fn failed<E: Display>(what: impl Into<String>) -> impl FnOnce(E) -> BenchError {
    let what = what.into();
    move |error| BenchError::Io {
        what,
        cause: io::Error::other(error.to_string()),
    }
}

/// A batch whose records are answered one by one, until its verdict.
#[derive(Debug)]
pub struct Open {
    /// Of the batch.
    pub token: u64,
    left: usize,
    refusal: Option<String>,
}

impl Open {
    /// A batch of so many records.
    pub fn new(token: u64, records: usize) -> Self {
        Self {
            token,
            left: records,
            refusal: None,
        }
    }

    /// Takes the answer to one of its records; the verdict with the last one. One record that was
    /// refused makes a refused batch.
    pub fn answer(&mut self, answer: Result<(), String>) -> Option<Result<(), String>> {
        if let Err(why) = answer {
            self.refusal.get_or_insert(why);
        }
        self.left = self.left.saturating_sub(1);
        (self.left == 0).then(|| self.refusal.take().map_or(Ok(()), Err))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_of_a_batch_comes_with_its_last_record() {
        let mut open = Open::new(7, 3);
        assert_eq!(open.answer(Ok(())), None);
        assert_eq!(open.answer(Ok(())), None);
        assert_eq!(open.answer(Ok(())), Some(Ok(())));
    }

    #[test]
    fn one_refused_record_refuses_its_batch_with_the_first_reason() {
        let mut open = Open::new(7, 3);
        assert_eq!(open.answer(Err("full".into())), None);
        assert_eq!(open.answer(Err("still full".into())), None);
        assert_eq!(open.answer(Ok(())), Some(Err("full".into())));
    }
}
