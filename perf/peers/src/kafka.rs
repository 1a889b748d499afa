//! The Kafka protocol as what is measured: a topic, a producer for each publisher and a consumer with all
//! partitions assigned for each subscriber.
//!
//! The client library, librdkafka, has threads of its own for its sockets, which run on the CPU of the
//! generator's thread that made them; delivery reports and records are taken in the generator's turns.
//! Nothing is sent again.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use futures_lite::future::block_on;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::config::{ClientConfig, FromClientConfig};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseProducer, BaseRecord, ProducerContext};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use ringtide_perf::BenchError;
use ringtide_perf::open_loop::target::{
    From, Outgoing, PublishSide, SubscribeSide, Target, Verdict,
};

use crate::peer::{Durability, Open, Peer, Place, failed};

/// How long what is not measured may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Records of a producer that are not answered, at the most.
const MAX_UNANSWERED: usize = 500_000;
/// Requests of a producer that are not answered, at the most, as in Kafka's own client. librdkafka's
/// million would send each record alone, and the broker would flush each alone.
const MAX_REQUESTS: &str = "5";
/// Records of a consumer handed out in one turn.
const TAKEN_IN_A_TURN: usize = 1000;
/// The topic's setting that decides what an acknowledgement promises.
const FLUSH: &str = "flush.messages";

/// A Kafka broker, and a topic for one measurement.
pub struct KafkaTopic {
    place: Place,
    codec: &'static str,
    flush: String,
}

impl KafkaTopic {
    /// Makes the topic.
    ///
    /// # Errors
    /// When the broker cannot be reached or refuses.
    pub fn create(place: Place, codec: &'static str) -> Result<Self, BenchError> {
        let admin = admin(&place.server)?;
        let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
        let count = i32::try_from(place.partitions).unwrap_or(i32::MAX);
        let mut topic = NewTopic::new(&place.name, count, TopicReplication::Fixed(1));
        if place.durability == Durability::Durable {
            topic = topic.set(FLUSH, "1");
        }
        let what = "cannot make a topic";
        let made = block_on(admin.create_topics([&topic], &options)).map_err(failed(what))?;
        for result in made {
            result.map_err(|(_, code)| failed(what)(code))?;
        }
        let flush = flush(&admin, &place.name, &options)?;
        Ok(Self {
            place,
            codec,
            flush,
        })
    }

    fn config(&self) -> ClientConfig {
        config(&self.place.server)
    }
}

fn config(server: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", server)
        .set("socket.nagle.disable", "true");
    config
}

fn admin(server: &str) -> Result<AdminClient<DefaultClientContext>, BenchError> {
    AdminClient::from_config(&config(server)).map_err(failed("cannot make a client of kafka"))
}

/// What the broker says it does.
fn flush(
    admin: &AdminClient<DefaultClientContext>,
    topic: &str,
    options: &AdminOptions,
) -> Result<String, BenchError> {
    let what = "cannot ask kafka about a topic";
    let found = block_on(admin.describe_configs([&ResourceSpecifier::Topic(topic)], options))
        .map_err(failed(what))?;
    for resource in found {
        let resource = resource.map_err(failed(what))?;
        if let Some(value) = resource.get(FLUSH).and_then(|entry| entry.value.clone()) {
            return Ok(value);
        }
    }
    Ok("unknown".into())
}

impl Peer for KafkaTopic {
    fn describe(&self) -> serde_json::Value {
        serde_json::json!({
            "peer": "kafka",
            "settings": {
                (FLUSH): self.flush,
                "acks": "all",
                "linger.ms": 0,
                "replicas": 1,
                "compression.type": self.codec,
            },
        })
    }

    fn remove(&self) -> Result<(), BenchError> {
        let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
        block_on(admin(&self.place.server)?.delete_topics(&[&self.place.name], &options))
            .map(|_| ())
            .map_err(failed("cannot remove the topic"))
    }
}

impl Target for KafkaTopic {
    fn publishers(&self, count: usize) -> Result<Box<dyn PublishSide + '_>, BenchError> {
        let producer = |_| {
            let mut config = self.config();
            config
                .set("acks", "all")
                .set("linger.ms", "0")
                .set("message.send.max.retries", "0")
                .set("max.in.flight.requests.per.connection", MAX_REQUESTS)
                .set("message.max.bytes", "10000000")
                .set(
                    "queue.buffering.max.messages",
                    (2 * MAX_UNANSWERED).to_string(),
                )
                .set("queue.buffering.max.kbytes", "2097151")
                .set("compression.type", self.codec);
            let producer: BaseProducer<Reports> = config
                .create_with_context(Reports::default())
                .map_err(failed("cannot make a producer"))?;
            // So that the first record does not wait for a connection.
            rdkafka::producer::Producer::client(&producer)
                .fetch_metadata(Some(&self.place.name), PATIENCE)
                .map_err(failed("cannot reach kafka"))?;
            Ok(producer)
        };
        Ok(Box::new(Publishers {
            producers: (0..count)
                .map(producer)
                .collect::<Result<_, BenchError>>()?,
            open: HashMap::new(),
            batches: vec![0; count],
            records: vec![0; count],
            topic: self,
        }))
    }

    fn subscribers(&self, count: usize) -> Result<Box<dyn SubscribeSide + '_>, BenchError> {
        let consumers = (0..count).map(|_| self.consumer());
        Ok(Box::new(Subscribers {
            consumers: consumers.collect::<Result<_, _>>()?,
            topic: self,
        }))
    }
}

impl KafkaTopic {
    fn consumer(&self) -> Result<BaseConsumer, BenchError> {
        self.config()
            .set("group.id", &self.place.name)
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "false")
            .set("fetch.queue.backoff.ms", "10")
            .create()
            .map_err(failed("cannot make a consumer"))
    }

    /// Gives a consumer all partitions.
    fn assign(&self, consumer: &BaseConsumer, from: From) -> Result<(), BenchError> {
        let what = "cannot subscribe";
        let mut list = TopicPartitionList::new();
        for partition in 0..self.place.partitions {
            let partition = i32::try_from(partition).unwrap_or(i32::MAX);
            let offset = match from {
                From::Earliest => Offset::Beginning,
                // The end as it is now: librdkafka would look for it later, by itself.
                From::Latest => {
                    let ends = consumer.fetch_watermarks(&self.place.name, partition, PATIENCE);
                    Offset::Offset(ends.map_err(failed(what))?.1)
                }
            };
            list.add_partition_offset(&self.place.name, partition, offset)
                .map_err(failed(what))?;
        }
        consumer.assign(&list).map_err(failed(what))
    }
}

/// Gathers what librdkafka says became of records: the token of their batch, and the verdict.
#[derive(Default)]
struct Reports(Mutex<Vec<(usize, Result<(), KafkaError>)>>);

impl ClientContext for Reports {}

impl ProducerContext for Reports {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, token: usize) {
        let answer = match result {
            Ok(_) => Ok(()),
            Err((error, _)) => Err(error.clone()),
        };
        // Poisoned only when the run is over anyway.
        if let Ok(mut reports) = self.0.lock() {
            reports.push((token, answer));
        }
    }
}

struct Publishers<'a> {
    producers: Vec<BaseProducer<Reports>>,
    /// Batches that are not answered, by token, with the number of their records.
    open: HashMap<u64, (Open, usize)>,
    /// What is not answered, by publisher.
    batches: Vec<usize>,
    records: Vec<usize>,
    topic: &'a KafkaTopic,
}

impl PublishSide for Publishers<'_> {
    fn may_send(&self, publisher: usize, _partition: u32) -> bool {
        self.batches[publisher] < self.topic.place.in_flight
            && self.records[publisher] < MAX_UNANSWERED
    }

    fn send(
        &mut self,
        token: u64,
        publisher: usize,
        partition: u32,
        batch: Outgoing<'_>,
    ) -> Result<(), BenchError> {
        let partition = i32::try_from(partition).unwrap_or(i32::MAX);
        for (key, value) in batch.records() {
            let key = key.map(|key| key.to_string());
            let mut record = BaseRecord::<str, [u8], usize>::with_opaque_to(
                &self.topic.place.name,
                token as usize,
            )
            .partition(partition)
            .payload(value);
            if let Some(key) = &key {
                record = record.key(key);
            }
            let sent = self.producers[publisher].send(record);
            sent.map_err(|(error, _)| failed("cannot produce")(error))?;
        }
        let records = batch.keys.len();
        self.open
            .insert(token, (Open::new(token, records), records));
        self.batches[publisher] += 1;
        self.records[publisher] += records;
        Ok(())
    }

    fn turn(&mut self, done: &mut dyn FnMut(u64, Verdict<'_>)) -> Result<bool, BenchError> {
        let mut any = false;
        for (publisher, producer) in self.producers.iter().enumerate() {
            producer.poll(Duration::ZERO);
            let context = rdkafka::producer::Producer::client(producer).context();
            let reports = match context.0.lock() {
                Ok(mut reports) => std::mem::take(&mut *reports),
                Err(_) => Vec::new(),
            };
            for (token, answer) in reports {
                any = true;
                let token = token as u64;
                let Some((open, records)) = self.open.get_mut(&token) else {
                    continue;
                };
                let Some(verdict) = open.answer(answer.map_err(|error| error.to_string())) else {
                    continue;
                };
                self.batches[publisher] -= 1;
                self.records[publisher] -= *records;
                self.open.remove(&token);
                done(token, verdict.as_ref().copied().map_err(String::as_str));
            }
        }
        Ok(any)
    }
}

struct Subscribers<'a> {
    consumers: Vec<BaseConsumer>,
    topic: &'a KafkaTopic,
}

impl SubscribeSide for Subscribers<'_> {
    fn subscribe(&mut self, from: From) -> Result<(), BenchError> {
        let mut consumers = self.consumers.iter();
        consumers.try_for_each(|consumer| self.topic.assign(consumer, from))
    }

    fn turn(&mut self, each: &mut dyn FnMut(usize, u32, &[u8])) -> Result<bool, BenchError> {
        let mut any = false;
        for (subscriber, consumer) in self.consumers.iter().enumerate() {
            for _ in 0..TAKEN_IN_A_TURN {
                let Some(record) = consumer.poll(Duration::ZERO) else {
                    break;
                };
                let record = record.map_err(failed("a consumer of kafka failed"))?;
                any = true;
                let partition = u32::try_from(record.partition()).unwrap_or(u32::MAX);
                each(subscriber, partition, record.payload().unwrap_or_default());
            }
        }
        Ok(any)
    }
}
