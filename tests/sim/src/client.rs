//! A client of the simulation: the real client core, a producer and a consumer of one topic.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ringtide_client::bare::{Call, Client, Consumer, Producer};
use ringtide_client::{
    Acks, ConsumerOptions, Delivery, Error, Options, ProducerOptions, Record, Start, Topic,
    TopicSettings, Visibility,
};
use ringtide_io::ConnId;

use crate::changes::Changes;
use crate::host::{HOST, PORT};
use crate::oracle::{Log, Oracle, SEGMENT_BYTES, Violation, value_of};
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

/// What a named consumer has been told of its places.
enum Commit {
    /// Nothing is asked.
    Idle,
    /// A place in a partition is to be kept.
    Asked(Call, u32, u64),
    /// Where it is in a partition is asked, at the end.
    Read(Call, u32),
}

/// A client.
pub struct Actor {
    number: u32,
    topic: usize,
    /// Of the topic that it makes.
    retention_bytes: Option<i64>,
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
    /// The topic, once it is there.
    found: Option<Topic>,
    /// Where the consumer is in each partition, and the epoch there.
    places: BTreeMap<u32, (u64, u32)>,
    /// The places that were kept, and those that are asked for.
    kept: BTreeMap<u32, u64>,
    asked: BTreeMap<u32, u64>,
    commit: Commit,
    /// Partitions of which the place is still to be read at the end.
    to_read: Vec<u32>,
    /// Records under way, by partition and ticket.
    tickets: BTreeMap<(u32, u64), u64>,
    /// Of a reader: what it was given, by partition.
    pub log: Option<Vec<Log>>,
    /// What it does to a topic of its own.
    changes: Option<Changes>,
}

impl Actor {
    /// A client that publishes some records and reads everything.
    pub fn new(number: u32, retention: &[Option<i64>], random: &mut Random) -> Self {
        let acks = [Acks::Durable, Acks::Durable, Acks::Accepted, Acks::None];
        let topic = random.below(TOPICS.len() as u64) as usize;
        Self {
            topic,
            retention_bytes: retention[topic],
            acks: acks[random.below(4) as usize],
            idempotence: random.percent(70),
            to_send: match random.below(5) {
                0 => random.between(200, 600),
                _ => random.between(1, 80),
            },
            changes: random.percent(40).then(|| Changes::new(number, random)),
            ..Self::of(number, random)
        }
    }

    /// A client that reads a topic from its first record and keeps it.
    pub fn reader(
        number: u32,
        topic: usize,
        retention: &[Option<i64>],
        random: &mut Random,
    ) -> Self {
        Self {
            topic,
            retention_bytes: retention[topic],
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
            retention_bytes: None,
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
            found: None,
            places: BTreeMap::new(),
            kept: BTreeMap::new(),
            asked: BTreeMap::new(),
            commit: Commit::Idle,
            to_read: (0..PARTITIONS).collect(),
            tickets: BTreeMap::new(),
            log: None,
            changes: None,
        }
    }

    /// Whether its topic is there and everything was sent.
    pub fn is_done(&self) -> bool {
        matches!(self.begun, Begun::Yes)
            && self.has_sent()
            && self.to_read.is_empty()
            && self.changes.as_ref().is_none_or(Changes::is_done)
    }

    fn has_sent(&self) -> bool {
        self.to_send == 0 && self.tickets.is_empty()
    }

    /// The topic that it is about.
    pub fn topic(&self) -> usize {
        self.topic
    }

    /// When it does something of its own.
    pub fn wants_to_act(&self) -> Option<u64> {
        (!self.is_done()).then_some(self.acts_at_ns)
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
            self.begin(now, random, oracle)?;
            self.acts_at_ns = now_ns + random.between(10_000, 20_000_000);
            self.send(now, wall_ms, random, oracle);
            self.commit(now, random);
            if let Some(changes) = &mut self.changes {
                changes.act(&mut self.client, (now_ns, now, wall_ms), random)?;
            }
        }
        self.committed()?;
        self.look(now, oracle)
    }

    fn begin(
        &mut self,
        now: Instant,
        random: &mut Random,
        oracle: &mut Oracle,
    ) -> Result<(), Violation> {
        let (name, visible) = TOPICS[self.topic];
        match self.begun {
            Begun::Yes => {}
            Begun::No => {
                let call = match self.log.is_none() && random.percent(50) {
                    true => {
                        let settings = TopicSettings {
                            visible: Some(visible),
                            retention_bytes: self.retention_bytes,
                            segment_bytes: Some(SEGMENT_BYTES as u32),
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
                let delivery = match random.below(4) {
                    0 => Delivery::Poll {
                        min_bytes: 1,
                        max_wait: Duration::from_millis(200),
                        max_bytes: 64 << 10,
                    },
                    1 => Delivery::Push {
                        credit_bytes: 64 << 10,
                    },
                    2 => Delivery::Push {
                        credit_bytes: 4 << 10,
                    },
                    _ => Delivery::Push {
                        credit_bytes: 4 << 20,
                    },
                };
                let options = ConsumerOptions::new()
                    .start(Start::Earliest)
                    .delivery(delivery);
                oracle.topic(self.topic, topic.id, topic.partitions());
                self.found = Some(topic.clone());
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
            oracle.publish(
                id,
                self.topic,
                partition,
                value,
                self.idempotence && self.acks != Acks::None,
            );
            self.tickets
                .insert((partition, ticket.number), self.next_number);
            self.next_number += 1;
            self.to_send -= 1;
        }
    }

    /// Now and then the consumer has its place kept; at the end it asks for it.
    fn commit(&mut self, now: Instant, random: &mut Random) {
        let (Some(topic), Commit::Idle) = (&self.found, &self.commit) else {
            return;
        };
        let name = format!("consumer-{}", self.number);
        if self.has_sent() {
            let Some(&partition) = self.to_read.last() else {
                return;
            };
            let call = self.client.read_offset(&name, topic, partition, now);
            self.commit = Commit::Read(call, partition);
            return;
        }
        let partition = random.below(u64::from(PARTITIONS)) as u32;
        let is_durable = TOPICS[self.topic].1 == Visibility::Durable;
        if let Some(&(offset, epoch)) = self.places.get(&partition)
            && is_durable
            && random.percent(30)
        {
            let at = (partition, offset, epoch);
            let call = self.client.commit_offset(&name, topic, at, now);
            self.asked.insert(partition, offset);
            self.commit = Commit::Asked(call, partition, offset);
        }
    }

    fn committed(&mut self) -> Result<(), Violation> {
        match self.commit {
            Commit::Idle => {}
            Commit::Asked(call, partition, offset) => {
                if let Some(answer) = self.client.take_done(call) {
                    self.commit = Commit::Idle;
                    if answer.is_ok() {
                        self.kept.insert(partition, offset);
                    }
                }
            }
            Commit::Read(call, partition) => {
                let Some(answer) = self.client.take_offset(call) else {
                    return Ok(());
                };
                self.commit = Commit::Idle;
                // Asked again if nobody knows.
                let Ok(found) = answer else { return Ok(()) };
                self.to_read.pop();
                let (kept, asked) = (self.kept.get(&partition), self.asked.get(&partition));
                if found.as_ref() < kept || found.as_ref() > asked {
                    let number = self.number;
                    return Err(format!(
                        "consumer {number} is at {found:?} in {partition}: {kept:?} was kept, {asked:?} asked"
                    ));
                }
            }
        }
        Ok(())
    }

    fn look(&mut self, now: Instant, oracle: &mut Oracle) -> Result<(), Violation> {
        let Self {
            client,
            tickets,
            log,
            topic,
            places,
            number,
            retention_bytes,
            ..
        } = self;
        let (number, may_be_removed) = (*number, retention_bytes.is_some());
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
            let mut is_told = false;
            client.batches(consumer, now, |batch| {
                let batch = match batch {
                    Ok(batch) => batch,
                    // What it had read was only accepted, and is gone.
                    Err(Error::OffsetOutOfRange { .. }) if !is_durable || may_be_removed => return,
                    Err(error) if oracle.may_be_told(*topic, &error) => {
                        is_told = true;
                        return;
                    }
                    Err(error) => {
                        found = Err(format!("a consumer was told: {error}"));
                        return;
                    }
                };
                for record in batch.records() {
                    let value = record.value.unwrap_or_default();
                    let (partition, offset) = (batch.partition(), record.offset);
                    let place = places
                        .entry(partition)
                        .or_insert((offset, batch.leader_epoch()));
                    if place.0 != offset && found.is_ok() {
                        let expected = place.0;
                        found = Err(format!(
                            "consumer {number} was given offset {offset} of {partition} where {expected} was next"
                        ));
                    }
                    *place = (offset + 1, batch.leader_epoch());
                    let told = oracle.delivered(*topic, partition, offset, value, is_durable);
                    if found.is_ok() {
                        found = told;
                    }
                    if let Some(log) = log {
                        log[partition as usize].push((offset, value.to_vec()));
                    }
                }
            });
            // A read that failed is tried again; what rotted stays as it is.
            if is_told {
                for partition in client.stopped(consumer) {
                    let start = match places.get(&partition) {
                        _ if oracle.is_rotten(*topic, partition) => continue,
                        Some(&(offset, _)) => Start::Offset(offset),
                        None => Start::Earliest,
                    };
                    client
                        .seek(consumer, partition, start, now)
                        .map_err(|e| e.to_string())?;
                }
            }
        }
        found
    }

    /// Which topic a reader has read, and what of each partition.
    pub fn read(&self) -> Option<(usize, &[Log])> {
        Some((self.topic, self.log.as_deref()?))
    }
}
