//! NATS JetStream as what is measured: one file-backed stream with a subject for each partition, a
//! connection for each publisher and each subscriber.
//!
//! The client is asynchronous. Its runtime has no thread of its own: the generator's thread drives it in
//! each turn, so that no other thread has to be woken up on the way of a record. A publisher's records
//! leave as JetStream publishes with acknowledgements, a batch is acknowledged with its last one; a
//! subscriber is an ordered push consumer.

use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::push::{Ordered, OrderedConfig};
use async_nats::jetstream::context::{Context, ContextBuilder, PublishAckFuture};
use async_nats::jetstream::stream::{self, StorageType};
use async_nats::{Client, ConnectOptions, Event, Subject};
use futures_lite::StreamExt;
use ringtide_perf::BenchError;
use ringtide_perf::open_loop::target::{
    From, Outgoing, PublishSide, SubscribeSide, Target, Verdict,
};
use tokio::runtime::{Builder, Runtime};

use crate::peer::{Durability, Open, Peer, Place, failed};

/// Records of a publisher that are not answered, at the most.
const MAX_UNANSWERED: usize = 1 << 16;
/// Messages that may wait for a subscriber before the client throws them away.
const MAX_WAITING: usize = 1 << 20;
/// Messages handed out in one turn, so that what is due does not wait for them.
const TAKEN_IN_A_TURN: usize = 1000;
/// An acknowledgement that takes longer is a refusal.
const ACK_TIMEOUT: Duration = Duration::from_secs(60);
/// The first version that can sync before it answers.
const SYNCS_SINCE: (u32, u32) = (2, 10);

/// A NATS server, and a stream for one measurement.
pub struct JetStream {
    place: Place,
    subjects: Vec<Subject>,
    version: String,
}

impl JetStream {
    /// Makes the stream.
    ///
    /// # Errors
    /// When the server cannot be reached, refuses, or cannot promise what is asked for.
    pub fn create(place: Place) -> Result<Self, BenchError> {
        let runtime = runtime()?;
        let version = runtime.block_on(async {
            let (client, _) = connect(&place.server).await?;
            let version = client.server_info().version;
            if place.durability == Durability::Durable && !can_sync(&version) {
                return Err(BenchError::Usage(format!(
                    "nats-server {version} cannot sync before it answers: {}.{} can, with \
                     sync_interval: always; or measure --durability usual",
                    SYNCS_SINCE.0, SYNCS_SINCE.1
                )));
            }
            let config = stream::Config {
                name: place.name.clone(),
                subjects: vec![format!("{}.*", place.name)],
                storage: StorageType::File,
                ..stream::Config::default()
            };
            context(client)
                .create_stream(config)
                .await
                .map_err(failed("cannot make a stream"))?;
            Ok(version)
        })?;
        let subject = |partition| Subject::from(format!("{}.{partition}", place.name));
        Ok(Self {
            subjects: (0..place.partitions).map(subject).collect(),
            version,
            place,
        })
    }
}

/// Whether a server of this version can sync before it answers. Whether it does, it does not tell its
/// clients: that is in the configuration that it was started with.
fn can_sync(version: &str) -> bool {
    let mut numbers = version.split('.').map(|n| n.parse::<u32>().ok());
    let first = numbers.next().flatten().zip(numbers.next().flatten());
    first.is_some_and(|version| version >= SYNCS_SINCE)
}

fn runtime() -> Result<Runtime, BenchError> {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.map_err(BenchError::io("cannot make a runtime"))
}

/// Connects; with what tells that the connection was lost.
async fn connect(server: &str) -> Result<(Client, Arc<AtomicBool>), BenchError> {
    let lost = Arc::new(AtomicBool::new(false));
    let seen = lost.clone();
    let client = ConnectOptions::new()
        .subscription_capacity(MAX_WAITING)
        .client_capacity(MAX_UNANSWERED)
        .event_callback(move |event| {
            // What was thrown away is lost for the measurement, even if it could be asked for again.
            if matches!(event, Event::Disconnected | Event::SlowConsumer(_)) {
                seen.store(true, Ordering::Relaxed);
            }
            std::future::ready(())
        })
        .connect(server)
        .await
        .map_err(failed(format!("cannot connect to nats at {server}")))?;
    Ok((client, lost))
}

/// Within a runtime only: the client puts a task of its own there.
fn context(client: Client) -> Context {
    ContextBuilder::new()
        .timeout(Duration::from_secs(10))
        .ack_timeout(ACK_TIMEOUT)
        .max_ack_inflight(MAX_UNANSWERED)
        .build(client)
}

/// Lets everything that is ready go on, and looks once whether sockets are.
async fn go_on() {
    // The first lets the runtime look at the sockets, the second lets go on who waits for them.
    tokio::task::yield_now().await;
    tokio::task::yield_now().await;
}

fn check(lost: &[Arc<AtomicBool>], server: &str) -> Result<(), BenchError> {
    match lost.iter().any(|lost| lost.load(Ordering::Relaxed)) {
        true => Err(failed(format!("the connection to nats at {server}"))(
            "it was lost, or could not keep up",
        )),
        false => Ok(()),
    }
}

impl Peer for JetStream {
    fn describe(&self) -> serde_json::Value {
        serde_json::json!({
            "peer": "nats",
            "version": self.version,
            "settings": {
                "storage": "file",
                "replicas": 1,
                "sync_interval": match self.place.durability {
                    Durability::Durable => "always, as it was started",
                    Durability::Usual => "2m, the default",
                },
            },
        })
    }

    fn remove(&self) -> Result<(), BenchError> {
        runtime()?.block_on(async {
            let (client, _) = connect(&self.place.server).await?;
            let deleted = context(client).delete_stream(&self.place.name).await;
            deleted
                .map(|_| ())
                .map_err(failed("cannot remove the stream"))
        })
    }
}

impl Target for JetStream {
    fn publishers(&self, count: usize) -> Result<Box<dyn PublishSide + '_>, BenchError> {
        let runtime = runtime()?;
        let (mut contexts, mut lost) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let (context, is_lost) = runtime.block_on(async {
                let (client, is_lost) = connect(&self.place.server).await?;
                Ok::<_, BenchError>((context(client), is_lost))
            })?;
            contexts.push(context);
            lost.push(is_lost);
        }
        let (answered, verdicts) = mpsc::channel();
        Ok(Box::new(Publishers {
            runtime,
            topic: self,
            contexts,
            lost,
            batches: vec![0; count],
            records: vec![0; count],
            answered,
            verdicts,
        }))
    }

    fn subscribers(&self, count: usize) -> Result<Box<dyn SubscribeSide + '_>, BenchError> {
        let runtime = runtime()?;
        let (arrived, messages) = mpsc::channel();
        let (mut clients, mut lost) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let (client, is_lost) = runtime.block_on(connect(&self.place.server))?;
            clients.push(client);
            lost.push(is_lost);
        }
        Ok(Box::new(Subscribers {
            runtime,
            topic: self,
            clients,
            lost,
            arrived,
            messages,
        }))
    }
}

impl JetStream {
    /// An ordered consumer of a connection; the server knows it when this returns.
    async fn consumer(&self, client: &Client, from: From) -> Result<Ordered, BenchError> {
        let config = OrderedConfig {
            deliver_subject: client.new_inbox(),
            deliver_policy: match from {
                From::Latest => DeliverPolicy::New,
                From::Earliest => DeliverPolicy::All,
            },
            ..OrderedConfig::default()
        };
        let stream = context(client.clone())
            .get_stream(&self.place.name)
            .await
            .map_err(failed("cannot find the stream"))?;
        let consumer = stream
            .create_consumer(config)
            .await
            .map_err(failed("cannot subscribe"))?;
        let messages = consumer
            .messages()
            .await
            .map_err(failed("cannot subscribe"))?;
        client.flush().await.map_err(failed("cannot subscribe"))?;
        Ok(messages)
    }
}

/// What arrived: subscriber, and a message or why there is none.
type Arrived = (usize, Result<async_nats::Message, String>);

/// Hands a consumer's messages over as they come, until nobody wants them.
async fn forward(subscriber: usize, mut messages: Ordered, arrived: Sender<Arrived>) {
    while let Some(message) = messages.next().await {
        let message = message
            .map(|message| message.message)
            .map_err(|error| error.to_string());
        if arrived.send((subscriber, message)).is_err() {
            return;
        }
    }
}

/// Publisher, and what became of its batch.
struct Answered {
    publisher: usize,
    records: usize,
    token: u64,
    verdict: Result<(), String>,
}

struct Publishers<'a> {
    runtime: Runtime,
    topic: &'a JetStream,
    contexts: Vec<Context>,
    lost: Vec<Arc<AtomicBool>>,
    /// What is not answered, by publisher.
    batches: Vec<usize>,
    records: Vec<usize>,
    answered: Sender<Answered>,
    verdicts: Receiver<Answered>,
}

/// Waits for the acknowledgements of a batch.
async fn settle(token: u64, acks: Vec<Pin<Box<AckFuture>>>) -> Result<(), String> {
    let mut open = Open::new(token, acks.len());
    let mut verdict = None;
    for ack in acks {
        let answer = ack.await;
        verdict = open.answer(answer.map(|_| ()).map_err(|error| error.to_string()));
    }
    verdict.unwrap_or(Ok(()))
}

/// What a [`PublishAckFuture`] becomes.
type AckFuture = dyn Future<Output = <PublishAckFuture as IntoFuture>::Output> + Send;

impl PublishSide for Publishers<'_> {
    fn may_send(&self, publisher: usize, _partition: u32) -> bool {
        // Half of what the client takes, so that a batch fits in any case.
        self.batches[publisher] < self.topic.place.in_flight
            && self.records[publisher] < MAX_UNANSWERED / 2
    }

    fn send(
        &mut self,
        token: u64,
        publisher: usize,
        partition: u32,
        batch: Outgoing<'_>,
    ) -> Result<(), BenchError> {
        let subject = &self.topic.subjects[partition as usize];
        let context = &self.contexts[publisher];
        let records = batch.keys.len();
        let answered = self.answered.clone();
        self.runtime.block_on(async {
            let mut acks = Vec::with_capacity(records);
            for (_, value) in batch.records() {
                // There is room in the client's queue: this does not wait.
                let ack = context
                    .publish(subject.clone(), value.to_vec().into())
                    .await
                    .map_err(failed("cannot publish"))?;
                acks.push(ack.into_future());
            }
            tokio::spawn(async move {
                let verdict = settle(token, acks).await;
                // Nobody listens any more when the run is over.
                let _ = answered.send(Answered {
                    publisher,
                    records,
                    token,
                    verdict,
                });
            });
            Ok::<_, BenchError>(())
        })?;
        self.batches[publisher] += 1;
        self.records[publisher] += records;
        Ok(())
    }

    fn turn(&mut self, done: &mut dyn FnMut(u64, Verdict<'_>)) -> Result<bool, BenchError> {
        self.runtime.block_on(go_on());
        let mut any = false;
        while let Ok(answered) = self.verdicts.try_recv() {
            any = true;
            self.batches[answered.publisher] -= 1;
            self.records[answered.publisher] -= answered.records;
            let verdict = answered.verdict.as_ref();
            done(answered.token, verdict.copied().map_err(String::as_str));
        }
        check(&self.lost, &self.topic.place.server)?;
        Ok(any)
    }
}

struct Subscribers<'a> {
    runtime: Runtime,
    topic: &'a JetStream,
    clients: Vec<Client>,
    lost: Vec<Arc<AtomicBool>>,
    arrived: Sender<Arrived>,
    messages: Receiver<Arrived>,
}

impl SubscribeSide for Subscribers<'_> {
    fn subscribe(&mut self, from: From) -> Result<(), BenchError> {
        self.runtime.block_on(async {
            for (subscriber, client) in self.clients.iter().enumerate() {
                let consumer = self.topic.consumer(client, from).await?;
                tokio::spawn(forward(subscriber, consumer, self.arrived.clone()));
            }
            Ok::<_, BenchError>(())
        })
    }

    fn turn(&mut self, each: &mut dyn FnMut(usize, u32, &[u8])) -> Result<bool, BenchError> {
        if self.lost.is_empty() {
            return Ok(false);
        }
        self.runtime.block_on(go_on());
        let mut any = false;
        for (subscriber, message) in self.messages.try_iter().take(TAKEN_IN_A_TURN) {
            any = true;
            let message = message.map_err(failed("a consumer of nats failed"))?;
            let partition = partition(&message.subject);
            let partition = partition.ok_or_else(|| {
                BenchError::Wrong(format!("nats delivered a message of {}", message.subject))
            })?;
            each(subscriber, partition, &message.payload);
        }
        check(&self.lost, &self.topic.place.server)?;
        Ok(any)
    }
}

/// The last part of a subject.
fn partition(subject: &str) -> Option<u32> {
    subject.rsplit_once('.')?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_versions_that_can_sync_are_known() {
        for (version, can) in [
            ("2.9.10", false),
            ("2.10.0", true),
            ("2.12.1", true),
            ("3.0.0-beta.1", true),
            ("1.4.1", false),
            ("", false),
        ] {
            assert_eq!(can_sync(version), can, "{version}");
        }
    }

    #[test]
    fn a_subject_names_its_partition() {
        assert_eq!(partition("load-1.7"), Some(7));
        assert_eq!(partition("load-1"), None);
        assert_eq!(partition("load-1.x"), None);
    }

    #[test]
    fn a_batch_waits_for_all_its_acknowledgements() {
        let runtime = runtime().expect("a runtime");
        let (kind, mut acks) = (
            async_nats::jetstream::context::PublishErrorKind::TimedOut,
            Vec::new(),
        );
        for _ in 0..2 {
            let ack: Pin<Box<AckFuture>> = Box::pin(async move { Err(kind.into()) });
            acks.push(ack);
        }
        let verdict = runtime.block_on(settle(1, acks));
        assert!(verdict.expect_err("refused").contains("timed out"));
    }
}
