//! The asynchronous face, on tokio.
//!
//! A background task looks after timers and connections, and one for each connection after its
//! bytes; all of them end when the last handle (client, producer, consumer) is dropped. Must be
//! used from within a tokio runtime with I/O and time enabled.
//!
//! ```no_run
//! use ringtide_client::{Options, ProducerOptions, Record, asynch::Client};
//!
//! # async fn example() -> ringtide_client::Result<()> {
//! let client = Client::connect(["127.0.0.1:7311"], Options::new()).await?;
//! let producer = client.producer("ticks", ProducerOptions::new()).await?;
//! let first = producer.send(&Record::new("42.10").key("ES")).await?;
//! let second = producer.send(&Record::new("42.11").key("ES")).await?;
//! println!("at offsets {:?} and {:?}", first.await?.offset, second.await?.offset);
//! # Ok(())
//! # }
//! ```

mod client;
mod consumer;
mod producer;
mod shared;
#[cfg(test)]
mod tests;

pub use client::Client;
pub use consumer::Consumer;
pub use producer::{Acknowledgement, Producer};
