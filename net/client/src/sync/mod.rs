//! The synchronous face: non-blocking sockets that one thread polls.
//!
//! Nothing happens in the background: connections, retries and acknowledgements move whenever any
//! of the client's handles is polled. With [`Idle::Spin`](crate::Idle::Spin) a waiting thread looks
//! at its sockets again and again, which gives the lowest latency there is; with
//! [`Idle::Park`](crate::Idle::Park) it sleeps in `poll(2)`.
//!
//! A client and its producers and consumers belong to one thread.
//!
//! ```no_run
//! use ringtide_client::{Options, ProducerOptions, Record, TopicSettings, sync::Client};
//! use std::time::Duration;
//!
//! let client = Client::connect(["127.0.0.1:7311"], Options::new())?;
//! client.create_topic("ticks", 1, &TopicSettings::default())?;
//! let mut producer = client.producer("ticks", ProducerOptions::new())?;
//! let ticket = producer.send(&Record::new("42.10").key("ES"))?;
//! let ack = producer.wait_for(ticket, Duration::from_secs(5))?;
//! println!("at offset {:?}", ack.offset);
//! # Ok::<(), ringtide_client::Error>(())
//! ```

mod client;
mod consumer;
mod driver;
mod producer;
mod raw;
mod socket;
#[cfg(test)]
mod tests;

pub use client::Client;
pub use consumer::Consumer;
pub use producer::Producer;
pub use raw::{RawConnection, RawEvent};
