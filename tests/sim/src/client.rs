//! A client of the simulation: the real client core, a producer and a consumer of one topic.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ringtide_client::bare::{Call, Client, Consumer, Producer};
use ringtide_client::{
    Acks, ConsumerOptions, Error, Options, ProducerOptions, Record, Start, TopicSettings,
    Visibility,
};
use ringtide_io::ConnId;

use crate::host::{HOST, PORT};
use crate::oracle::{Log, Oracle, Violation, value_of};
use crate::random::Random;

/// Topics of a run: the first delivers what is durable, the second what is accepted.
pub const TOPICS: [(&str, Visibility); 2] = [
    ("durable", Visibility::Durable),
    ("accepted", Visibility::Accepted),
];
/// Partitions of each.
pub const PARTITIONS: u32 = 3;

/// What a client is doing about its topic.
enum Begun {
    No,
    Asked(Call),
    Yes,
}

/// A client.
pub struct Actor {
    number: u32,
    topic: usize,
    acks: Acks,
    idempotence: bool,
    /// Records still to be sent.
    pub to_send: u64,
    next_number: u64,
    /// When it sends next.
    pub acts_at_ns: u64,
    /// The core.
    pub client: Client,
    /// The connection of each link.
    pub conns: BTreeMap<usize, ConnId>,
    begun: Begun,
    producer: Option<Producer>,
    consumer: Option<Consumer>,
    /// Records under way, by partition and ticket.
    tickets: BTreeMap<(u32, u64), u64>,
    /// Of a reader: what it was given, by partition.
    pub log: Option<Vec<Log>>,
}

impl Actor {
    /// A client that publishes some records and reads everything.
    pub fn new(number: u32, random: &mut Random) -> Self {
        let acks = [Acks::Durable, Acks::Durable, Acks::Accepted, Acks::None];
        Self {
            topic: random.below(TOPICS.len() as u64) as usize,
            acks: acks[random.below(4) as usize],
            idempotence: random.percent(70),
            to_send: match random.below(5) {
                0 => random.between(200, 600),
                _ => random.between(1, 80),
            },
            ..Self::of(number, random)
        }
    }

    /// A client that reads a topic from its first record and keeps it.
    pub fn reader(number: u32, topic: usize, random: &mut Random) -> Self {
        Self {
            topic,
            log: Some(vec![Vec::new(); PARTITIONS as usize]),
            ..Self::of(number, random)
        }
    }

    fn of(number: u32, random: &mut Random) -> Self {
        let options = Options::new()
            .request_timeout(Duration::from_secs(2))
            .connect_timeout(Duration::from_secs(1))
            .call_timeout(Duration::from_secs(60))
            .backoff(Duration::from_millis(5), Duration::from_millis(200));
        let server = format!("{HOST}:{PORT}");
        let client = Client::new(&[server], options, random.next_u64()).expect("a server");
        Self {
            number,
            topic: 0,
            acks: Acks::Durable,
            idempotence: true,
            to_send: 0,
            next_number: 0,
            acts_at_ns: 0,
            client,
            conns: BTreeMap::new(),
            begun: Begun::No,
            producer: None,
            consumer: None,
            tickets: BTreeMap::new(),
            log: None,
        }
    }

    /// Whether its topic is there and everything was sent.
    pub fn is_done(&self) -> bool {
        matches!(self.begun, Begun::Yes) && self.to_send == 0 && self.tickets.is_empty()
    }

    /// The topic that it is about.
    pub fn topic(&self) -> usize {
        self.topic
    }

    /// When it does something of its own.
    pub fn wants_to_act(&self) -> Option<u64> {
        let has_begun = matches!(self.begun, Begun::Yes);
        (!has_begun || self.to_send > 0).then_some(self.acts_at_ns)
    }

    /// Does what the application would: makes its topic, sends, looks at what came.
    ///
    /// # Errors
    /// A broken promise.
    pub fn act(
        &mut self,
        now_ns: u64,
        now: Instant,
        wall_ms: i64,
        random: &mut Random,
        oracle: &mut Oracle,
    ) -> Result<(), Violation> {
        if now_ns >= self.acts_at_ns {
            self.begin(now, random)?;
            self.acts_at_ns = now_ns + random.between(10_000, 20_000_000);
            self.send(now, wall_ms, random, oracle);
        }
        self.look(now, oracle)
    }

    fn begin(&mut self, now: Instant, random: &mut Random) -> Result<(), Violation> {
        let (name, visible) = TOPICS[self.topic];
        match self.begun {
            Begun::Yes => {}
            Begun::No => {
                let call = match self.log.is_none() && random.percent(50) {
                    true => {
                        let settings = TopicSettings {
                            visible: Some(visible),
                            segment_bytes: Some(1 << 20),
                            ..TopicSettings::default()
                        };
                        self.client.create_topic(name, PARTITIONS, settings, now)
                    }
                    false => self.client.describe_topic(name, now),
                };
                self.begun = Begun::Asked(call);
            }
            Begun::Asked(call) => {
                let Some(answer) = self.client.take_topic(call) else {
                    return Ok(());
                };
                // It is there already, or not yet, or nobody knows: asked again.
                let Ok(topic) = answer else {
                    self.begun = Begun::No;
                    return Ok(());
                };
                let options = ProducerOptions::new()
                    .acks(self.acks)
                    .idempotence(self.idempotence)
                    .delivery_timeout(Duration::from_secs(120));
                let producer = self.client.add_producer(topic.clone(), options, now);
                let options = ConsumerOptions::new().start(Start::Earliest);
                let consumer = self.client.add_consumer(topic, options);
                let wrong = |e| format!("options were refused: {e}");
                self.producer = Some(producer.map_err(wrong)?);
                self.consumer = Some(consumer.map_err(wrong)?);
                self.begun = Begun::Yes;
            }
        }
        Ok(())
    }

    fn send(&mut self, now: Instant, wall_ms: i64, random: &mut Random, oracle: &mut Oracle) {
        let Some(producer) = self.producer else {
            return;
        };
        let burst = random.between(1, 8).min(self.to_send);
        for _ in 0..burst {
            let id = (self.number, self.next_number);
            let most = [50, 3_000, 40_000][random.below(3) as usize];
            let value = value_of(id, random.below(most) as usize);
            let partition = random.below(u64::from(PARTITIONS)) as u32;
            let record = Record::new(&value).partition(partition);
            // A full buffer: later.
            let Ok(ticket) = self.client.send(producer, &record, wall_ms, now) else {
                return;
            };
            oracle.publish(id, self.topic, partition, value, self.idempotence);
            self.tickets
                .insert((partition, ticket.number), self.next_number);
            self.next_number += 1;
            self.to_send -= 1;
        }
    }

    fn look(&mut self, now: Instant, oracle: &mut Oracle) -> Result<(), Violation> {
        let Self {
            client,
            tickets,
            log,
            topic,
            ..
        } = self;
        let mut found = Ok(());
        if let Some(producer) = self.producer {
            client.outcomes(producer, |delivered| {
                let ticket = delivered.ticket;
                let Some(number) = tickets.remove(&(ticket.partition, ticket.number)) else {
                    found = Err(format!("an outcome of {ticket:?}, which is not under way"));
                    return;
                };
                let offset = delivered.result.map(|ack| ack.offset);
                let told = oracle.outcome((self.number, number), self.acks, &offset);
                if found.is_ok() {
                    found = told;
                }
            });
        }
        if let Some(consumer) = &mut self.consumer {
            let is_durable = TOPICS[*topic].1 == Visibility::Durable;
            client.batches(consumer, now, |batch| {
                let batch = match batch {
                    Ok(batch) => batch,
                    // What it had read was only accepted, and is gone.
                    Err(Error::OffsetOutOfRange { .. }) if !is_durable => return,
                    Err(error) => {
                        found = Err(format!("a consumer was told: {error}"));
                        return;
                    }
                };
                for record in batch.records() {
                    let value = record.value.unwrap_or_default();
                    let (partition, offset) = (batch.partition(), record.offset);
                    let told = oracle.delivered(*topic, partition, offset, value, is_durable);
                    if found.is_ok() {
                        found = told;
                    }
                    if let Some(log) = log {
                        log[partition as usize].push((offset, value.to_vec()));
                    }
                }
            });
        }
        found
    }

    /// Which topic a reader has read, and what of each partition.
    pub fn read(&self) -> Option<(usize, &[Log])> {
        Some((self.topic, self.log.as_deref()?))
    }
}
