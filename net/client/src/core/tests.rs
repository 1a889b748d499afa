//! The core against the model broker, with time, cuts and losses in the hands of the test.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use ringtide_schema::error_code::ErrorCode;

use crate::core::Core;
use crate::core::call::{Request, Response};
use crate::core::consumer::Reader;
use crate::core::model::{Model, Peer};
use crate::error::{Error, Result};
use crate::options::{ConsumerOptions, Delivery, Options, ProducerOptions, Start};
use crate::record::{Ack, Record, Ticket};

/// A connection: bytes on their way, and the broker's end.
#[derive(Default)]
struct Line {
    peer: Peer,
    up: bool,
    to_broker: Vec<u8>,
    to_client: Vec<u8>,
}

/// A client, a broker, and the network between them.
struct World {
    core: Core,
    model: Model,
    lines: BTreeMap<usize, Line>,
    start: Instant,
    now: Instant,
    producer: usize,
    sent: HashMap<Ticket, Vec<u8>>,
    done: HashMap<Ticket, Result<Ack>>,
    count: u64,
}

fn options() -> Options {
    let mut options = Options::new().request_timeout(Duration::from_millis(500));
    options = options.backoff(Duration::from_millis(1), Duration::from_millis(20));
    options
}

impl World {
    fn new(partitions: u32, producer: ProducerOptions) -> Self {
        let shards = vec![("broker".to_owned(), 1), ("broker".to_owned(), 2)];
        let mut model = Model::new(shards);
        model.create("t", partitions);
        let core = Core::new(&["broker:1".to_owned()], options(), 42).expect("a server");
        let start = Instant::now();
        let mut world = Self {
            core,
            model,
            lines: BTreeMap::new(),
            start,
            now: start,
            producer: 0,
            sent: HashMap::new(),
            done: HashMap::new(),
            count: 0,
        };
        let call = world
            .core
            .call(Request::DescribeTopic { name: "t".into() }, world.now);
        let topic = loop {
            world.round(Duration::from_millis(1));
            if let Some(answer) = world.core.take_answer(call) {
                break answer.and_then(Response::topic).expect("a topic");
            }
        };
        let added = world.core.add_producer(topic.into(), producer, world.now);
        world.producer = added.expect("good options");
        world
    }

    fn send(&mut self, partition: u32) -> Ticket {
        self.count += 1;
        let value = self.count.to_string().into_bytes();
        let record = Record::new(&value).partition(partition);
        let sent = self.core.send(self.producer, &record, 5, self.now);
        let ticket = sent.expect("taken");
        self.sent.insert(ticket, value);
        ticket
    }

    /// Lets the core do what is due.
    fn tick(&mut self) {
        self.core.tick(self.now);
        for (&link, line) in &mut self.lines {
            if self.core.take_close(link) {
                *line = Line::default();
            }
        }
        while let Some((link, _, _)) = self.core.next_connect(self.now) {
            let up = Line {
                up: true,
                ..Line::default()
            };
            self.lines.insert(link, up);
            self.core.connected(link, self.now);
        }
        for (&link, line) in &mut self.lines {
            if line.up {
                let output = self.core.output(link).to_vec();
                line.to_broker.extend_from_slice(&output);
                self.core.sent(link, output.len());
            }
        }
        while let Some(completion) = self.core.producer_if(self.producer, |p| p.take_done()) {
            for index in 0..completion.records {
                let delivered = completion.nth(index);
                let twice = self.done.insert(delivered.ticket, delivered.result);
                assert!(twice.is_none(), "{:?} completed twice", delivered.ticket);
            }
        }
    }

    fn broker_gets(&mut self, link: usize, share: u8) {
        let Some(line) = self.lines.get_mut(&link) else {
            return;
        };
        let bytes = line.to_broker.len() * usize::from(share) / 255;
        let bytes: Vec<u8> = line.to_broker.drain(..bytes).collect();
        self.model.feed(&mut line.peer, &bytes);
        line.to_client.append(&mut line.peer.out);
    }

    fn client_gets(&mut self, link: usize, share: u8) {
        let Some(line) = self.lines.get_mut(&link) else {
            return;
        };
        let bytes = line.to_client.len() * usize::from(share) / 255;
        let bytes: Vec<u8> = line.to_client.drain(..bytes).collect();
        self.core.received(link, &bytes, self.now);
    }

    fn cut(&mut self, link: usize) {
        if self.lines.get(&link).is_some_and(|l| l.up) {
            self.lines.insert(link, Line::default());
            self.core.lost(link, "cut", self.now);
        }
    }

    /// Everything arrives, and some time passes.
    fn round(&mut self, time: Duration) {
        self.tick();
        let links: Vec<usize> = self.lines.keys().copied().collect();
        for link in links {
            self.broker_gets(link, 255);
            self.client_gets(link, 255);
        }
        self.tick();
        self.now += time;
    }

    /// Rounds until every record has its outcome.
    fn heal(&mut self) {
        for _ in 0..20_000 {
            if self.done.len() == self.sent.len() {
                return;
            }
            self.round(Duration::from_millis(2));
        }
        panic!("{} of {} records done", self.done.len(), self.sent.len());
    }

    /// Checks what every outcome promises against the broker's logs.
    fn check(&mut self) {
        let topic = self.model.topics.get("t").expect("the topic");
        let mut found: HashMap<Vec<u8>, Vec<(u32, u64)>> = HashMap::new();
        for (partition, log) in (0..).zip(&topic.logs) {
            for (offset, value) in log.values() {
                found.entry(value).or_default().push((partition, offset));
            }
        }
        let mut last: HashMap<u32, (u64, u64)> = HashMap::new();
        let mut tickets: Vec<_> = self.sent.iter().collect();
        tickets.sort();
        for (ticket, value) in tickets {
            let places = found.get(value).map_or(&[][..], Vec::as_slice);
            match self.done.get(ticket).expect("an outcome") {
                Ok(ack) => {
                    assert_eq!(
                        places.len(),
                        1,
                        "{ticket:?} acknowledged, found at {places:?}"
                    );
                    let (partition, offset) = places[0];
                    assert_eq!(partition, ack.partition);
                    assert!(
                        ack.offset.is_none_or(|o| o == offset),
                        "{ack:?} is at {offset}"
                    );
                    if let Some((number, before)) = last.insert(partition, (ticket.number, offset))
                    {
                        assert!(offset > before, "{number} and {} swapped", ticket.number);
                    }
                }
                Err(Error::OutcomeUnknown { .. }) => {
                    assert!(places.len() <= 1, "{ticket:?} found at {places:?}");
                }
                Err(error) => {
                    assert_eq!(
                        places,
                        [],
                        "{ticket:?} failed with {error}, but is in the log"
                    );
                }
            }
        }
    }

    fn acknowledged(&self) -> usize {
        self.done.values().filter(|d| d.is_ok()).count()
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Send(u32),
    ToBroker(usize, u8),
    ToClient(usize, u8),
    Cut(usize),
    Wait(u8),
    Refuse(u8),
    /// All is done, and then the broker forgets its producers.
    Forget,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..3_u32).prop_map(Step::Send),
        6 => (0..2_usize, any::<u8>()).prop_map(|(l, s)| Step::ToBroker(l, s)),
        6 => (0..2_usize, any::<u8>()).prop_map(|(l, s)| Step::ToClient(l, s)),
        3 => (0..2_usize).prop_map(Step::Cut),
        4 => (0..40_u8).prop_map(Step::Wait),
        2 => (0..6_u8).prop_map(Step::Refuse),
        1 => Just(Step::Forget),
    ]
}

impl World {
    fn take(&mut self, step: Step, for_good: bool) {
        match step {
            Step::Send(partition) => drop(self.send(partition)),
            Step::ToBroker(link, share) => self.broker_gets(link, share),
            Step::ToClient(link, share) => self.client_gets(link, share),
            Step::Cut(link) => self.cut(link),
            Step::Wait(ms) => self.now += Duration::from_millis(ms.into()),
            Step::Refuse(which) => self.model.refuse.push_back(match which {
                0 => Some(ErrorCode::Overloaded),
                1 => Some(ErrorCode::DiskFull),
                2 => Some(ErrorCode::WrongShard),
                3 if for_good => Some(ErrorCode::TimestampTooFarAhead),
                _ => None,
            }),
            Step::Forget => {
                self.heal();
                for log in &mut self.model.topics.get_mut("t").expect("the topic").logs {
                    log.producers.clear();
                }
            }
        }
        self.tick();
    }
}

proptest! {
    #[test]
    fn with_idempotence_every_record_is_appended_exactly_once_and_in_order(
        steps in prop::collection::vec(step(), 1..120),
        batch_bytes in prop_oneof![Just(1_usize), Just(200), Just(1 << 16)],
    ) {
        let hour = Duration::from_secs(3600);
        let options = ProducerOptions::new().delivery_timeout(hour).batch_bytes(batch_bytes);
        let mut world = World::new(3, options);
        // After a broker forgot, a lost answer can be an unknown outcome.
        let forgot = steps.iter().any(|s| matches!(s, Step::Forget));
        for step in steps {
            world.take(step, false);
        }
        world.heal();
        world.check();
        prop_assert!(forgot || world.acknowledged() == world.sent.len());
    }

    #[test]
    fn refusals_for_good_and_timeouts_keep_every_outcome_true(
        steps in prop::collection::vec(step(), 1..120),
        timeout_ms in 10..300_u64,
    ) {
        let timeout = Duration::from_millis(timeout_ms);
        let options = ProducerOptions::new().delivery_timeout(timeout).batch_bytes(200);
        let mut world = World::new(3, options);
        for step in steps {
            world.take(step, true);
        }
        world.heal();
        world.check();
    }

    #[test]
    fn without_idempotence_nothing_is_doubled_and_a_lost_answer_is_an_unknown_outcome(
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let hour = Duration::from_secs(3600);
        let options = ProducerOptions::new().idempotence(false).delivery_timeout(hour);
        // Refused batches are sent again behind others: order is kept only with one in flight.
        let mut world = World::new(3, options.max_in_flight(1));
        for step in steps {
            world.take(step, true);
        }
        world.heal();
        world.check();
    }
}

fn producer_options() -> ProducerOptions {
    ProducerOptions::new()
}

/// Sends one record and lets the broker have it, but not the client the answer.
fn with_a_lost_answer(options: ProducerOptions) -> (World, Ticket) {
    let mut world = World::new(1, options);
    // The identity is there, and the broker knows it.
    let first = world.send(0);
    world.heal();
    assert!(world.done[&first].is_ok());
    let ticket = world.send(0);
    world.tick();
    world.broker_gets(0, 255);
    (world, ticket)
}

#[test]
fn a_lost_answer_is_made_good_with_the_offset_of_the_first_attempt() {
    let (mut world, ticket) = with_a_lost_answer(producer_options());
    world.cut(0);
    world.heal();
    let ack = world.done[&ticket].as_ref().expect("appended");
    assert_eq!((ack.offset, ack.duplicate), (Some(1), true));
    world.check();
}

#[test]
#[should_panic(expected = "acknowledged, found at")]
fn the_check_finds_a_broker_that_appends_twice() {
    let (mut world, _) = with_a_lost_answer(producer_options());
    world.cut(0);
    let log = world.model.log("t", 0);
    for producer in log.producers.values_mut() {
        producer.forget_last();
    }
    world.heal();
    world.check();
}

#[test]
fn a_lost_answer_of_a_forgotten_producer_is_an_unknown_outcome() {
    let (mut world, ticket) = with_a_lost_answer(producer_options());
    world.cut(0);
    world.model.log("t", 0).producers.clear();
    world.heal();
    assert!(matches!(
        world.done[&ticket],
        Err(Error::OutcomeUnknown { .. })
    ));
    // The next record goes on under a new identity.
    let next = world.send(0);
    world.heal();
    assert!(world.done[&next].is_ok());
    world.check();
}

#[test]
fn a_forgotten_producer_goes_on_under_a_new_identity() {
    let mut world = World::new(1, producer_options());
    world.send(0);
    world.heal();
    world.model.log("t", 0).producers.clear();
    for _ in 0..20 {
        world.send(0);
    }
    world.heal();
    world.check();
    assert_eq!(world.acknowledged(), 21);
    assert_eq!(world.model.log("t", 0).producers.len(), 1);
}

#[test]
fn a_lost_answer_without_idempotence_is_an_unknown_outcome_and_not_sent_again() {
    let (mut world, ticket) = with_a_lost_answer(producer_options().idempotence(false));
    world.cut(0);
    world.heal();
    let error = world.done[&ticket].as_ref().expect_err("unknown");
    assert!(
        error.is_outcome_unknown() && !error.is_retriable(),
        "{error}"
    );
    for _ in 0..100 {
        world.round(Duration::from_millis(20));
    }
    assert_eq!(world.model.log("t", 0).next, 2);
}

#[test]
fn an_answer_that_never_comes_ends_the_connection_and_the_batch_is_sent_again() {
    let (mut world, ticket) = with_a_lost_answer(producer_options());
    // The broker is silent for longer than a request may take.
    if let Some(line) = world.lines.get_mut(&0) {
        line.to_client.clear();
    }
    world.now += Duration::from_millis(600);
    world.heal();
    assert!(world.done[&ticket].as_ref().expect("appended").duplicate);
    world.check();
}

#[test]
fn a_topic_made_anew_gets_what_was_not_sent_and_the_rest_is_unknown() {
    let (mut world, ambiguous) = with_a_lost_answer(producer_options());
    world.cut(0);
    world.model.topics.remove("t");
    world.model.create("t", 1);
    let fresh = world.send(0);
    world.heal();
    assert!(matches!(
        world.done[&ambiguous],
        Err(Error::OutcomeUnknown { .. })
    ));
    assert_eq!(
        world.done[&fresh].as_ref().expect("appended").offset,
        Some(0)
    );
}

#[test]
fn records_for_a_topic_that_was_deleted_fail() {
    let mut world = World::new(1, producer_options());
    world.send(0);
    world.heal();
    world.model.topics.remove("t");
    let ticket = world.send(0);
    world.heal();
    let error = world.done[&ticket].as_ref().expect_err("no topic");
    assert_eq!(error.code(), Some(ErrorCode::UnknownTopic), "{error}");
}

#[test]
fn a_partition_that_moved_is_found_again() {
    let mut world = World::new(2, producer_options());
    world.send(1);
    world.heal();
    // The shards swap their ports, as after a restart with another number of cores.
    world.model.shards.reverse();
    world.model.refuse.extend([Some(ErrorCode::WrongShard); 2]);
    let before: u64 = world.core.link_to(&"broker".into(), 1) as u64;
    world.send(1);
    world.heal();
    world.check();
    assert_eq!(before, 0);
    assert_eq!(world.acknowledged(), 2);
}

#[test]
fn nobody_answers_and_records_time_out_without_having_been_appended() {
    let mut world = World::new(
        1,
        producer_options().delivery_timeout(Duration::from_secs(1)),
    );
    world
        .model
        .refuse
        .extend([Some(ErrorCode::Overloaded); 5000]);
    let ticket = world.send(0);
    world.heal();
    let error = world.done[&ticket].as_ref().expect_err("in vain");
    assert!(
        matches!(error, Error::Timeout { .. }) && error.is_retriable(),
        "{error}"
    );
    assert!(world.now - world.start >= Duration::from_secs(1));
    world.check();
}

#[test]
fn batches_form_while_the_window_is_full() {
    let mut world = World::new(1, producer_options());
    for _ in 0..1000 {
        world.send(0);
    }
    world.heal();
    world.check();
    // Five single records at once, then what had gathered meanwhile.
    assert!(
        world.model.log("t", 0).batches.len() <= 10,
        "{}",
        world.model.log("t", 0).batches.len()
    );
}

#[test]
fn a_lingering_batch_waits_for_its_time_or_a_flush() {
    let linger = Duration::from_millis(50);
    let mut world = World::new(1, producer_options().linger(linger));
    world.round(Duration::ZERO);
    world.send(0);
    for _ in 0..10 {
        world.round(Duration::from_millis(1));
    }
    assert_eq!(world.model.log("t", 0).next, 0);
    world.now += linger;
    world.round(Duration::ZERO);
    world.round(Duration::ZERO);
    assert_eq!(world.model.log("t", 0).next, 1);
    world.send(0);
    world.core.flush(world.producer, world.now);
    world.round(Duration::ZERO);
    assert_eq!(world.model.log("t", 0).next, 2);
}

#[test]
fn without_idempotence_a_thousand_single_records_are_in_flight() {
    let mut world = World::new(1, producer_options().idempotence(false));
    world.send(0);
    world.heal();
    for _ in 0..1000 {
        world.send(0);
    }
    world.tick();
    world.broker_gets(1, 255);
    world.broker_gets(0, 255);
    assert_eq!(world.model.log("t", 0).batches.len(), 1001);
    world.heal();
    world.check();
}

/// Takes what has arrived for a consumer: offset and value of each record.
fn consume(world: &mut World, key: usize, reader: &mut Reader, into: &mut Vec<(u64, Vec<u8>)>) {
    loop {
        while reader.has_more() {
            let batch = reader.next().expect("a batch").expect("a good batch");
            let values = batch
                .records()
                .map(|r| (r.offset, r.value.unwrap_or_default().to_vec()));
            into.extend(values);
        }
        match world.core.consumer(key).take() {
            Some(chunk) => {
                let chunk = chunk.expect("no error");
                let cursor = chunk.cursor;
                reader.begin(chunk);
                world.core.took(key, cursor, world.now);
            }
            None => return,
        }
    }
}

fn consumed_through(steps: Vec<Step>, delivery: Delivery) {
    let mut world = World::new(3, producer_options().batch_bytes(200));
    let topic = world
        .core
        .topic("t", world.now)
        .expect("known")
        .expect("there");
    let options = ConsumerOptions::new()
        .start(Start::Earliest)
        .delivery(delivery)
        .partitions([1]);
    let key = world.core.add_consumer(topic, options).expect("a consumer");
    let mut reader = Reader::new("t".into(), 1 << 20);
    let mut seen = Vec::new();
    for step in steps {
        world.take(step, false);
        if matches!(step, Step::Wait(ms) if ms % 2 == 0) {
            consume(&mut world, key, &mut reader, &mut seen);
        }
    }
    world.heal();
    for _ in 0..1000 {
        world.round(Duration::from_millis(2));
        consume(&mut world, key, &mut reader, &mut seen);
    }
    assert_eq!(seen, world.model.log("t", 1).values());
}

proptest! {
    // Thousands of rounds each.
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_consumer_sees_every_record_once_and_in_order_whatever_the_connections_do(
        steps in prop::collection::vec(step(), 1..80),
        credit_bytes in 1..3000_u32,
    ) {
        consumed_through(steps.clone(), Delivery::Push { credit_bytes });
        let max_wait = Duration::from_millis(5);
        let max_bytes = credit_bytes;
        consumed_through(steps, Delivery::Poll { min_bytes: 1, max_wait, max_bytes });
    }
}

#[test]
fn added_partitions_are_noticed_when_the_metadata_is_old() {
    let mut world = World::new(1, producer_options());
    world.send(0);
    world.heal();
    world
        .model
        .topics
        .get_mut("t")
        .expect("the topic")
        .logs
        .push(Default::default());
    world.now += Duration::from_secs(61);
    for _ in 0..10 {
        world.round(Duration::from_millis(50));
    }
    let ticket = world.send(1);
    world.heal();
    assert_eq!(world.done[&ticket].as_ref().expect("appended").partition, 1);
}
