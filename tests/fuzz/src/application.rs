//! An application of the native client: it asks for a topic, publishes a few records, reads all of it and keeps
//! its place. The broker is whatever answers, so what it is told may be anything; what must hold all the same is
//! checked in here.
//!
//! Nothing is left to chance: a broker that answers the same is sent the same, correlations too.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::{Duration, Instant};

use ringtide_client::bare::{Call, Client, Consumer, Producer};
use ringtide_client::{
    Acks, ConsumerOptions, Delivery, Options, ProducerOptions, Record, Start, Topic,
};

/// The topic that it is about.
pub const TOPIC: &str = "ticks";
/// The only server that can be connected to.
pub const SERVER: (&str, u16) = ("shard-0", 7311);
/// The time of all records.
const NOW_MS: i64 = 1_700_000_000_000;
const CONSUMER: &str = "reader";
const RECORDS: u32 = 5;
/// Partitions that it publishes to, however many there are said to be.
const MOST_PARTITIONS: u32 = 4;
/// What a batch may inflate to.
pub const INFLATED_BYTES: usize = 256 << 10;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(10);

/// What it does, as bits.
#[derive(Clone, Copy)]
pub struct Manner(pub u8);

impl Manner {
    fn polls(self) -> bool {
        self.0 & 1 != 0
    }

    fn acks(self) -> Acks {
        match self.0 & 2 != 0 {
            true => Acks::Accepted,
            false => Acks::Durable,
        }
    }

    fn is_idempotent(self) -> bool {
        self.0 & 4 == 0
    }

    fn begins_where_it_was(self) -> bool {
        self.0 & 8 != 0
    }
}

/// The application.
pub struct Application {
    manner: Manner,
    client: Client,
    now: Instant,
    connected: BTreeSet<usize>,
    asked: Option<Call>,
    parts: Option<Parts>,
    /// Whether its place was read and kept, once it is known.
    place: Option<Call>,
    kept: Option<Call>,
}

/// What needs the topic.
struct Parts {
    topic: Topic,
    producer: Producer,
    consumer: Consumer,
    /// Records without an outcome.
    tickets: BTreeSet<(u32, u64)>,
    /// The next offset of each partition.
    next: BTreeMap<u32, u64>,
    /// Whether it went back to a partition's first record.
    has_gone_back: bool,
}

impl Application {
    /// One that has done nothing yet.
    ///
    /// # Panics
    /// Never: the server has a name.
    #[must_use]
    pub fn new(manner: Manner) -> Self {
        let options = Options::new()
            .request_timeout(REQUEST_TIMEOUT)
            .connect_timeout(Duration::from_secs(1))
            .call_timeout(CALL_TIMEOUT)
            .backoff(Duration::from_millis(5), Duration::from_millis(200));
        let (host, port) = SERVER;
        let client = Client::new(&[format!("{host}:{port}")], options, 7);
        let now = Instant::now();
        Self {
            manner,
            client: client.expect("a server"),
            now,
            connected: BTreeSet::new(),
            asked: None,
            parts: None,
            place: None,
            kept: None,
        }
    }

    /// The server that it was given says something; gives what it sends to that one for it, a little later, too.
    pub fn told(&mut self, bytes: &[u8]) -> Vec<u8> {
        if self.connected.contains(&0) {
            self.client.received(0, bytes, self.now);
        }
        let mut sent = self.turn();
        self.now += Duration::from_millis(20);
        sent.extend(self.turn());
        sent
    }

    /// Connects, closes, acts; gives what it sends to the server that it was given.
    ///
    /// # Panics
    /// When an outcome or an offset comes that cannot.
    pub fn turn(&mut self) -> Vec<u8> {
        self.client.tick(self.now);
        self.act();
        self.client.tick(self.now);
        for link in 0..self.client.links() {
            if self.client.take_close(link) {
                self.connected.remove(&link);
            }
        }
        while let Some((link, host, port)) = self.client.next_connect(self.now) {
            if (&*host, port) == SERVER {
                self.connected.insert(link);
                self.client.connected(link, self.now);
            } else {
                let error = io::Error::from(io::ErrorKind::ConnectionRefused);
                self.client.connect_failed(link, &error, self.now);
            }
        }
        let mut to_the_first = Vec::new();
        for &link in &self.connected {
            let output = self.client.output(link).to_vec();
            self.client.sent(link, output.len());
            if link == 0 {
                to_the_first = output;
            }
        }
        to_the_first
    }

    /// The broker is gone for good: lets time pass until every record and call must have its outcome.
    ///
    /// # Panics
    /// When one has none.
    pub fn end(&mut self) {
        for link in std::mem::take(&mut self.connected) {
            self.client.lost(link, "the broker is gone", self.now);
        }
        let end = self.now + CALL_TIMEOUT + DELIVERY_TIMEOUT + 2 * REQUEST_TIMEOUT;
        while self.now < end {
            let due = self.client.next_deadline(self.now).unwrap_or(end);
            // A timer that is due over and over must not stop the clock.
            self.now = due.max(self.now + Duration::from_millis(100)).min(end);
            self.client.tick(self.now);
            while let Some((link, ..)) = self.client.next_connect(self.now) {
                let error = io::Error::from(io::ErrorKind::ConnectionRefused);
                self.client.connect_failed(link, &error, self.now);
            }
            self.look();
        }
        let waits = |call: Option<Call>, client: &mut Client| {
            call.is_some_and(|call| client.take_done(call).is_none())
        };
        assert!(
            !waits(self.kept, &mut self.client),
            "its place is kept for ever"
        );
        assert!(
            !waits(self.place, &mut self.client),
            "its place is read for ever"
        );
        if self.parts.is_none() {
            assert!(
                !waits(self.asked, &mut self.client),
                "the topic is looked for for ever"
            );
        }
        if let Some(parts) = &self.parts {
            assert!(
                parts.tickets.is_empty(),
                "no outcome of {:?}",
                parts.tickets
            );
        }
    }

    fn act(&mut self) {
        if self.parts.is_none() {
            self.begin();
        }
        self.look();
    }

    /// Asks for the topic, again if it was told that there is none, and begins when it is there.
    fn begin(&mut self) {
        let Some(call) = self.asked else {
            self.asked = Some(self.client.describe_topic(TOPIC, self.now));
            return;
        };
        let Some(answer) = self.client.take_topic(call) else {
            return;
        };
        self.asked = None;
        let Ok(topic) = answer else { return };
        assert_eq!(&*topic.name, TOPIC, "another topic than was asked for");
        let options = ProducerOptions::new()
            .acks(self.manner.acks())
            .idempotence(self.manner.is_idempotent())
            .delivery_timeout(DELIVERY_TIMEOUT);
        let producer = self.client.add_producer(topic.clone(), options, self.now);
        let delivery = match self.manner.polls() {
            true => Delivery::Poll {
                min_bytes: 1,
                max_wait: Duration::from_millis(200),
                max_bytes: 64 << 10,
            },
            false => Delivery::Push {
                credit_bytes: 64 << 10,
            },
        };
        let start = match self.manner.begins_where_it_was() {
            true => Start::committed(CONSUMER),
            false => Start::Earliest,
        };
        let options = ConsumerOptions::new()
            .start(start)
            .delivery(delivery)
            .inflated_bytes(INFLATED_BYTES);
        let consumer = self.client.add_consumer(topic.clone(), options);
        // A topic may be said to have no partitions, or too many.
        let (Ok(producer), Ok(consumer)) = (producer, consumer) else {
            return;
        };
        let mut tickets = BTreeSet::new();
        for number in 0..RECORDS {
            let partition = number % topic.partitions().clamp(1, MOST_PARTITIONS);
            let value = [number as u8; 40];
            let record = Record::new(&value).partition(partition);
            if let Ok(ticket) = self.client.send(producer, &record, NOW_MS, self.now) {
                tickets.insert((ticket.partition, ticket.number));
            }
        }
        self.place = Some(self.client.read_offset(CONSUMER, &topic, 0, self.now));
        self.parts = Some(Parts {
            topic,
            producer,
            consumer,
            tickets,
            next: BTreeMap::new(),
            has_gone_back: false,
        });
    }

    /// Takes what came.
    fn look(&mut self) {
        let Some(parts) = &mut self.parts else {
            return;
        };
        self.client.outcomes(parts.producer, |delivered| {
            let ticket = delivered.ticket;
            let was_there = parts.tickets.remove(&(ticket.partition, ticket.number));
            assert!(was_there, "a second outcome of {ticket:?}");
        });
        let (mut given, mut last) = (0, None);
        self.client.batches(&mut parts.consumer, self.now, |batch| {
            let Ok(batch) = batch else { return };
            let partition = batch.partition();
            assert!(
                partition < parts.topic.partitions(),
                "a partition nobody has"
            );
            let next = parts.next.entry(partition).or_default();
            for record in batch.records() {
                let offset = record.offset;
                assert!(offset >= *next, "offset {offset} where {next} is next");
                *next = offset + 1;
                given += 1;
            }
            last = Some((partition, *next, batch.leader_epoch()));
        });
        if self
            .place
            .is_some_and(|call| self.client.take_offset(call).is_some())
        {
            self.place = None;
        }
        if self
            .kept
            .is_some_and(|call| self.client.take_done(call).is_some())
        {
            self.kept = None;
        }
        let Some((partition, ..)) = last else { return };
        if let (None, Some(at)) = (self.kept, last) {
            let call = self
                .client
                .commit_offset(CONSUMER, &parts.topic, at, self.now);
            self.kept = Some(call);
        }
        if given > 1 && !parts.has_gone_back {
            parts.has_gone_back = true;
            parts.next.insert(partition, 0);
            let moved = self
                .client
                .seek(&mut parts.consumer, partition, Start::Earliest, self.now);
            moved.expect("a partition that it reads");
        }
    }
}
