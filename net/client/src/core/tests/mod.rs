//! The core against the model broker, with time, cuts and losses in the hands of the test.

mod consume;
mod links;
mod publish;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use ringtide_schema::error_code::ErrorCode;

use crate::core::Core;
use crate::core::call::{Request, Response};
use crate::core::model::{Model, Peer};
use crate::error::{Error, Result};
use crate::options::{Options, ProducerOptions};
use crate::record::{Ack, Record, Ticket};

/// A connection: bytes on their way, and the broker's end.
#[derive(Default)]
struct Line {
    peer: Peer,
    up: bool,
    /// Nothing arrives any more, and nobody is told.
    dead: bool,
    to_broker: Vec<u8>,
    to_client: Vec<u8>,
}

/// A client, a broker, and the network between them.
struct World {
    core: Core,
    model: Model,
    lines: BTreeMap<usize, Line>,
    /// Ports on which nobody listens.
    gone: HashSet<u16>,
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

fn producer_options() -> ProducerOptions {
    ProducerOptions::new()
}

impl World {
    fn new(partitions: u32, producer: ProducerOptions) -> Self {
        Self::with(options(), partitions, producer)
    }

    fn with(options: Options, partitions: u32, producer: ProducerOptions) -> Self {
        let shards = vec![("broker".to_owned(), 1), ("broker".to_owned(), 2)];
        let mut model = Model::new(shards);
        model.create("t", partitions);
        let core = Core::new(&["broker:1".to_owned()], options, 42).expect("a server");
        let start = Instant::now();
        let mut world = Self {
            core,
            model,
            lines: BTreeMap::new(),
            gone: HashSet::new(),
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
        while let Some((link, _, port)) = self.core.next_connect(self.now) {
            if self.gone.contains(&port) {
                let refused = ErrorKind::ConnectionRefused.into();
                self.core.connect_failed(link, &refused, self.now);
                continue;
            }
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
        if line.dead {
            return;
        }
        self.model.feed(&mut line.peer, &bytes);
        line.to_client.append(&mut line.peer.out);
    }

    fn client_gets(&mut self, link: usize, share: u8) {
        let Some(line) = self.lines.get_mut(&link) else {
            return;
        };
        let bytes = line.to_client.len() * usize::from(share) / 255;
        let bytes: Vec<u8> = line.to_client.drain(..bytes).collect();
        if bytes.is_empty() {
            return;
        }
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
                Err(error @ Error::AcknowledgedLost { .. }) => panic!("{error}: nothing was"),
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

/// Three of one shard, two of the other.
const PARTITIONS: u32 = 5;

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
        8 => (0..PARTITIONS).prop_map(Step::Send),
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
        linger_ms in 0..20_u64,
    ) {
        let hour = Duration::from_secs(3600);
        let options = ProducerOptions::new().delivery_timeout(hour).batch_bytes(batch_bytes);
        let options = options.linger(Duration::from_millis(linger_ms));
        let mut world = World::new(PARTITIONS, options);
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
        linger_ms in 0..20_u64,
    ) {
        let timeout = Duration::from_millis(timeout_ms);
        let options = ProducerOptions::new().delivery_timeout(timeout).batch_bytes(200);
        let options = options.linger(Duration::from_millis(linger_ms));
        let mut world = World::new(PARTITIONS, options);
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
        let mut world = World::new(PARTITIONS, options.max_in_flight(1));
        for step in steps {
            world.take(step, true);
        }
        world.heal();
        world.check();
    }
}
