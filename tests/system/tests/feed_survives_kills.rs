//! The claim of the whole: a feed published order by order while the broker is killed again and
//! again, sometimes coming back with another number of cores, is all there afterwards: nothing that
//! was acknowledged missing, nothing doubled, the order of each key kept, offsets dense, however it
//! is read. And so are topics that come, go, grow, roll and shed old segments meanwhile.
//!
//! `RINGTIDE_KILLS` says how often the broker is killed, `RINGTIDE_SEED` when.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ringtide_client::sync::{Client, Consumer, Producer};
use ringtide_client::{
    Codec, ConsumerOptions, Delivered, Delivery, Error, ErrorCode, Options, ProducerOptions,
    Record, Start, TopicSettings,
};
use ringtide_schema::murmur2::partition_for_key;
use ringtide_system_tests::feed::{self, Message};
use ringtide_system_tests::{Broker, Cli, Random, Setup, wait};
use serde_json::Value;

const PARTITIONS: u32 = 4;
/// A record may be tried for as long as a broker may take to come back, and then some.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(120);

fn kills() -> usize {
    match std::env::var("RINGTIDE_KILLS") {
        Ok(text) => text.parse().expect("RINGTIDE_KILLS is a number"),
        Err(_) => 6,
    }
}

fn connect(address: SocketAddr) -> Client {
    wait::until("a connection", || {
        Client::connect([address.to_string()], Options::new()).ok()
    })
}

/// Ends the broker at no particular moment, mostly as a crash would, and has it back, perhaps with
/// other cores, perhaps after it crashed once more while it recovered.
fn kill_and_restart(broker: &mut Broker, random: &mut Random) {
    std::thread::sleep(Duration::from_micros(random.below(3000)));
    if random.percent(15) {
        assert_eq!(broker.stop(), 0, "a clean stop in between");
    } else {
        broker.kill();
    }
    while random.percent(30) {
        broker.start_and_kill_after(Duration::from_micros(random.below(30_000)));
    }
    broker.restart_with(1 + random.below(2) as usize);
}

// ---- publishing -------------------------------------------------------------------------------

/// Publishes records with keys and remembers what became of each.
struct Publisher {
    producer: Producer,
    /// By partition, by number: the offset that was acknowledged.
    acknowledged: Vec<Vec<Option<u64>>>,
    in_flight: usize,
}

impl Publisher {
    fn new(client: &Client, topic: &str, partitions: u32, codec: Codec) -> Self {
        let options = ProducerOptions::new()
            .delivery_timeout(DELIVERY_TIMEOUT)
            .codec(codec);
        let producer = wait::until("a producer", || {
            client.producer(topic, options.clone()).ok()
        });
        let acknowledged = vec![Vec::new(); partitions as usize];
        Self {
            producer,
            acknowledged,
            in_flight: 0,
        }
    }

    fn send(&mut self, key: &str, value: &str) {
        loop {
            match self.producer.send(&Record::new(value).key(key)) {
                Ok(ticket) => {
                    let of_partition = &mut self.acknowledged[ticket.partition as usize];
                    assert_eq!(ticket.number, of_partition.len() as u64);
                    of_partition.push(None);
                    self.in_flight += 1;
                    return;
                }
                Err(Error::BufferFull { .. }) => self.wait(),
                Err(error) => panic!("a record was not taken: {error}"),
            }
        }
    }

    /// Takes acknowledgements, waiting for the next if there are none.
    fn wait(&mut self) {
        let (acknowledged, in_flight) = (&mut self.acknowledged, &mut self.in_flight);
        self.producer
            .wait(Duration::from_secs(1), |delivered: Delivered| {
                // Idempotent as it is, the producer can always tell.
                let ack = delivered.result.expect("an acknowledgement");
                let offset = ack.offset.expect("an offset");
                let ticket = delivered.ticket;
                assert_eq!(ack.partition, ticket.partition);
                let before =
                    acknowledged[ticket.partition as usize][ticket.number as usize].replace(offset);
                assert_eq!(before, None, "acknowledged twice: {ticket:?}");
                *in_flight -= 1;
            });
    }

    fn drain(&mut self) {
        let deadline = Instant::now() + DELIVERY_TIMEOUT + wait::PATIENCE;
        while self.in_flight > 0 {
            assert!(
                Instant::now() < deadline,
                "{} records were never acknowledged",
                self.in_flight
            );
            self.wait();
        }
    }
}

/// Publishes the feed, burst by burst: within one without waiting, in the silence after it until
/// all of it is acknowledged.
fn publish_feed(client: &Client, feed: &[Message], done: &AtomicUsize) -> Vec<Vec<Option<u64>>> {
    let mut publisher = Publisher::new(client, "feed", PARTITIONS, Codec::None);
    for burst in feed::bursts(feed) {
        for message in burst {
            publisher.send(&message.key, &message.value);
        }
        publisher.drain();
        done.fetch_add(burst.len(), Ordering::Relaxed);
    }
    publisher.acknowledged
}

// ---- consuming --------------------------------------------------------------------------------

/// A record as read: offset, key, value.
type Read = (u64, String, String);

fn push() -> Delivery {
    Delivery::Push {
        credit_bytes: 1 << 20,
    }
}

fn poll() -> Delivery {
    Delivery::Poll {
        min_bytes: 1,
        max_wait: Duration::from_millis(500),
        max_bytes: 256 << 10,
    }
}

fn consumer(client: &Client, topic: &str, delivery: Delivery) -> Consumer {
    let options = ConsumerOptions::new()
        .start(Start::Earliest)
        .delivery(delivery);
    wait::until("a consumer", || {
        client.consumer(topic, options.clone()).ok()
    })
}

/// Reads until `total` records have come; nothing may come after them.
fn read(consumer: &mut Consumer, partitions: u32, total: usize) -> Vec<Vec<Read>> {
    let mut out = vec![Vec::new(); partitions as usize];
    let mut count = 0;
    let mut deadline = Instant::now() + 2 * wait::PATIENCE;
    while count < total {
        assert!(
            Instant::now() < deadline,
            "{count} of {total} records, then nothing"
        );
        if let Some(batch) = consumer.poll(Duration::from_millis(100)).expect("records") {
            deadline = Instant::now() + 2 * wait::PATIENCE;
            let of_partition = &mut out[batch.partition() as usize];
            for record in batch.records() {
                let text = |bytes: Option<&[u8]>| {
                    String::from_utf8(bytes.expect("a field").to_vec()).expect("text")
                };
                of_partition.push((record.offset, text(record.key), text(record.value)));
                count += 1;
            }
        }
    }
    assert!(
        consumer.poll(wait::WATCH).expect("records").is_none(),
        "more than {total} records"
    );
    out
}

fn read_by_cli(cli: &Cli, topic: &str, partitions: u32) -> Vec<Vec<Read>> {
    let mut out = vec![Vec::new(); partitions as usize];
    for line in cli
        .run(&["consume", topic, "--output", "json"])
        .ok()
        .lines()
    {
        let r: Value = serde_json::from_str(line).expect("a JSON line");
        let text = |field: &str| r[field].as_str().expect("text").to_owned();
        let partition = r["partition"].as_u64().expect("a partition") as usize;
        out[partition].push((
            r["offset"].as_u64().expect("an offset"),
            text("key"),
            text("value"),
        ));
    }
    out
}

/// The two are the same; if not, says where they part rather than printing both.
#[track_caller]
fn assert_same(how: &str, got: &[Vec<Read>], want: &[Vec<Read>]) {
    for (partition, (got, want)) in got.iter().zip(want).enumerate() {
        let parting = got.iter().zip(want).position(|(g, w)| g != w);
        if let Some(at) = parting {
            panic!(
                "{how}, partition {partition}: {:?} instead of {:?}",
                got[at], want[at]
            );
        }
        assert_eq!(got.len(), want.len(), "{how}, partition {partition}");
    }
    assert_eq!(got.len(), want.len());
}

// ---- the feed ---------------------------------------------------------------------------------

#[test]
fn a_feed_is_all_there_after_kills_and_changes_of_cores() {
    let feed = feed::load();
    let mut random = Random::from_env(7);
    let mut broker = Setup::new().shards(2).start();
    let settings = ["--segment-bytes", "1000000"];
    let create = ["topic", "create", "feed", "--partitions", "4"];
    broker
        .cli()
        .run(&[&create[..], &settings[..]].concat())
        .ok();

    let mut want: Vec<Vec<Read>> = vec![Vec::new(); PARTITIONS as usize];
    for message in &feed {
        let partition = partition_for_key(message.key.as_bytes(), PARTITIONS) as usize;
        let offset = want[partition].len() as u64;
        want[partition].push((offset, message.key.clone(), message.value.clone()));
    }

    let address = broker.address(0);
    let done = AtomicUsize::new(0);
    let (acknowledged, tailed) = std::thread::scope(|scope| {
        let publisher = scope.spawn(|| publish_feed(&connect(address), &feed, &done));
        let tail = scope.spawn(|| {
            let client = connect(address);
            read(
                &mut consumer(&client, "feed", push()),
                PARTITIONS,
                feed.len(),
            )
        });
        let kills = kills();
        for kill in 0..kills {
            let share = feed.len() / (kills + 1);
            let at = kill * share + random.below(share as u64) as usize;
            wait::for_it("the publisher to come that far", || {
                broker.still_runs();
                done.load(Ordering::Relaxed) >= at || publisher.is_finished()
            });
            kill_and_restart(&mut broker, &mut random);
        }
        (
            publisher.join().expect("a publisher"),
            tail.join().expect("a consumer"),
        )
    });

    for (partition, offsets) in acknowledged.iter().enumerate() {
        assert_eq!(offsets.len(), want[partition].len());
        for (number, offset) in offsets.iter().enumerate() {
            // All were acknowledged and in order, so the offset of the n-th is n.
            assert_eq!(*offset, Some(number as u64), "partition {partition}");
        }
    }
    assert_same("by a tail that saw every kill", &tailed, &want);
    let client = connect(address);
    let by = |delivery| {
        read(
            &mut consumer(&client, "feed", delivery),
            PARTITIONS,
            feed.len(),
        )
    };
    assert_same("by push", &by(push()), &want);
    assert_same("by poll", &by(poll()), &want);
    assert_same(
        "by CLI",
        &read_by_cli(&broker.cli(), "feed", PARTITIONS),
        &want,
    );

    assert_eq!(broker.stop(), 0);
    broker.restart_with(1);
    let again = read_by_cli(&broker.cli(), "feed", PARTITIONS);
    assert_same("by CLI after a clean restart on one core", &again, &want);
}

// ---- topics that change meanwhile -------------------------------------------------------------

/// What a topic must hold.
#[derive(Default)]
struct Life {
    /// By partition: everything that was acknowledged, at its offset.
    records: Vec<Vec<Read>>,
    sheds: bool,
    number: usize,
}

/// Does what the client is asked for until it is known to be done.
fn settle<T>(what: &str, mut ask: impl FnMut() -> Result<T, Error>, is_done: &[ErrorCode]) {
    wait::for_it(what, || match ask() {
        Ok(_) => true,
        Err(error) if error.code().is_some_and(|c| is_done.contains(&c)) => true,
        Err(error) => {
            let may_repeat = error.is_retriable() || error.is_outcome_unknown();
            assert!(may_repeat, "{what}: {error}");
            false
        }
    });
}

/// Creates, grows, fills and deletes topics at random until told to stop; gives what must be there.
fn change_topics(
    client: &Client,
    random: &mut Random,
    stop: &AtomicBool,
) -> BTreeMap<String, Life> {
    let mut topics: BTreeMap<String, Life> = BTreeMap::new();
    let mut lives = 0;
    let mut serial = 0;
    while !stop.load(Ordering::Relaxed) {
        let name = format!("topic-{}", random.below(4));
        let Some(life) = topics.get_mut(&name) else {
            lives += 1;
            let sheds = random.percent(50);
            let partitions = 1 + random.below(3) as u32;
            let settings = TopicSettings {
                segment_bytes: Some(8 << 10),
                retention_bytes: Some(if sheds { 40 << 10 } else { -1 }),
                ..TopicSettings::default()
            };
            let create = || client.create_topic(&name, partitions, &settings);
            settle("a new topic", create, &[ErrorCode::TopicExists]);
            let records = vec![Vec::new(); partitions as usize];
            topics.insert(
                name,
                Life {
                    records,
                    sheds,
                    number: lives,
                },
            );
            continue;
        };
        match random.below(100) {
            0..8 => {
                let delete = || client.delete_topic(&name);
                settle("a deletion", delete, &[ErrorCode::UnknownTopic]);
                topics.remove(&name);
            }
            8..16 if life.records.len() < 6 => {
                let more = life.records.len() as u32 + 1;
                let alter = || client.alter_topic(&name, Some(more), &TopicSettings::default());
                settle("one more partition", alter, &[]);
                life.records.push(Vec::new());
            }
            _ => {
                let partitions = life.records.len() as u32;
                let codec = [Codec::None, Codec::Lz4, Codec::Zstd][random.below(3) as usize];
                let mut publisher = Publisher::new(client, &name, partitions, codec);
                let mut sent: Vec<Vec<(String, String)>> = vec![Vec::new(); partitions as usize];
                for _ in 0..random.below(80) {
                    serial += 1;
                    let key = random.below(50).to_string();
                    let value = format!("life {} record {serial:0100}", life.number);
                    let partition = partition_for_key(key.as_bytes(), partitions) as usize;
                    publisher.send(&key, &value);
                    sent[partition].push((key, value));
                }
                publisher.drain();
                for (p, sent) in sent.into_iter().enumerate() {
                    for (n, (key, value)) in sent.into_iter().enumerate() {
                        let offset = publisher.acknowledged[p][n].expect("acknowledged");
                        assert_eq!(offset, life.records[p].len() as u64, "{name}/{p} is dense");
                        life.records[p].push((offset, key, value));
                    }
                }
            }
        }
    }
    topics
}

#[test]
fn topics_that_come_go_grow_and_shed_are_right_after_kills() {
    let mut random = Random::from_env(11);
    let mut broker = Setup::new()
        .shards(2)
        .args(&["--sync-interval-ms", "50"])
        .start();
    let address = broker.address(0);
    let stop = AtomicBool::new(false);
    let mut changes = random.clone();
    let topics = std::thread::scope(|scope| {
        let changer = scope.spawn(|| change_topics(&connect(address), &mut changes, &stop));
        for _ in 0..kills() {
            let spell = Duration::from_millis(100 + random.below(700));
            let until = Instant::now() + spell;
            while Instant::now() < until && !changer.is_finished() {
                broker.still_runs();
                std::thread::sleep(Duration::from_millis(5));
            }
            kill_and_restart(&mut broker, &mut random);
        }
        stop.store(true, Ordering::Relaxed);
        changer.join().expect("a changer of topics")
    });

    let client = connect(address);
    let mut listed: Vec<String> = client
        .list_topics()
        .expect("topics")
        .iter()
        .map(|t| t.name.to_string())
        .collect();
    listed.sort_unstable();
    assert_eq!(listed, topics.keys().cloned().collect::<Vec<_>>());
    for (name, life) in &topics {
        let partitions = life.records.len() as u32;
        // What is shed goes from the front, and the rest must all be there; nothing is published
        // any more, so once the broker has shed it stands still.
        let earliest = || -> Vec<u64> {
            let described = client.describe_topic(name).expect("a description");
            described.partitions.iter().map(|p| p.earliest).collect()
        };
        let from = wait::until("an earliest offset that stays", || {
            let before = earliest();
            std::thread::sleep(wait::WATCH);
            (before == earliest()).then_some(before)
        });
        assert!(
            life.sheds || from.iter().all(|&e| e == 0),
            "{name} lost its start: {from:?}"
        );
        let want: Vec<Vec<Read>> = life
            .records
            .iter()
            .zip(&from)
            .map(|(records, &from)| records[from as usize..].to_vec())
            .collect();
        let total = want.iter().map(Vec::len).sum();
        let by = |delivery| read(&mut consumer(&client, name, delivery), partitions, total);
        assert_same(&format!("{name} by push"), &by(push()), &want);
        assert_same(&format!("{name} by poll"), &by(poll()), &want);
        let by_cli = read_by_cli(&broker.cli(), name, partitions);
        assert_same(&format!("{name} by CLI"), &by_cli, &want);
    }
}

// ---- batches of many partitions in one request ---------------------------------------------------

#[test]
fn batches_that_were_sent_together_are_each_there_once_after_kills() {
    const MANY: u32 = 16;
    const ROUNDS: usize = 8;
    let mut broker = Setup::new().shards(2).start();
    let client = connect(broker.address(0));
    let created = client.create_topic("many", MANY, &TopicSettings::default());
    created.expect("created");
    let options = ProducerOptions::new()
        .linger(DELIVERY_TIMEOUT)
        .delivery_timeout(DELIVERY_TIMEOUT);
    let mut producer = client.producer("many", options).expect("a producer");
    for round in 0..ROUNDS {
        for partition in 0..MANY {
            let value = round.to_string();
            let taken = producer.send(&Record::new(&value).partition(partition));
            taken.expect("taken");
        }
        // All of them leave now; whether they arrive, are appended, or answered, the kill decides.
        match producer.flush(Duration::ZERO) {
            Ok(()) | Err(Error::UnderWay { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        broker.kill();
        broker.restart_with(1 + round % 2);
    }
    producer.flush(DELIVERY_TIMEOUT).expect("all done");
    producer.poll(|delivered| {
        delivered.result.expect("appended");
    });
    let options = ConsumerOptions::new().start(Start::Earliest);
    let mut consumer = client.consumer("many", options).expect("a consumer");
    let mut values = vec![Vec::new(); MANY as usize];
    wait::until("every record", || {
        while let Some(batch) = consumer.poll(Duration::ZERO).expect("good batches") {
            let of_partition = &mut values[batch.partition() as usize];
            for record in batch.records() {
                let text = std::str::from_utf8(record.value.unwrap_or_default());
                of_partition.push((record.offset, text.expect("a number").to_owned()));
            }
        }
        let all = values.iter().map(Vec::len).sum::<usize>();
        (all >= ROUNDS * MANY as usize).then_some(())
    });
    let want: Vec<_> = (0_u64..)
        .zip((0..ROUNDS).map(|round| round.to_string()))
        .collect();
    for of_partition in values {
        assert_eq!(of_partition, want);
    }
}
