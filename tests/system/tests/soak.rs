//! A broker under a mixed load for as long as one likes: every level of acknowledgement, every codec,
//! large and small batches, readers that tail, poll and come back under a name, topics that are deleted and
//! made again, retention all the while, and a kill now and then. What was acknowledged as durable is read back
//! and compared all along; in the end the broker's memory, its open files and the files in its data
//! directory are what they were in the beginning.
//!
//! `RINGTIDE_SOAK_SECONDS` says how long; 20 if it does not. CI takes 120.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ringtide_client::sync::{Client, Consumer};
use ringtide_client::{
    Acks, Codec, ConsumerOptions, Delivery, Error, ErrorCode, Options, ProducerOptions, Record,
    Start, TopicSettings,
};
use ringtide_system_tests::{Broker, Flow, Footprint, Random, Setup, StopsAtEnd, wait};

const SHARDS: usize = 2;
/// Kills in all, however long it takes: memory that is not given back has time to gather in between.
const KILLS: u32 = 5;
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(120);
const SEGMENT_BYTES: u32 = 256 << 10;
const RETENTION_BYTES: i64 = 2 << 20;
const LOG_GROUPS: usize = 8;
/// `--memory-bytes` of each shard, the least there is.
const MEMORY_BYTES: u64 = 16 << 20;
/// Resident memory that may stay when everything was deleted, in bytes: what has been used stays mapped, and may
/// be all that the settings allow. Of each shard that is its memory for batches, its receive buffers (128 of
/// 64 KiB) and those for files (16 of 256 KiB); besides what the allocator keeps.
const RESIDENT_THAT_STAYS: u64 =
    SHARDS as u64 * (MEMORY_BYTES + (8 << 20) + (4 << 20)) + (24 << 20);
/// Memory for batches that may stay in use on a shard, in bytes: 4 chunks, as many as are kept for segment writers
/// and reads.
const MEMORY_THAT_STAYS: u64 = 4 * (2 << 20);
/// Files that may stay: the snapshot of each group of the log, and of the metadata group.
const FILES_THAT_STAY: usize = LOG_GROUPS + 1;

fn duration() -> Duration {
    let seconds = match std::env::var("RINGTIDE_SOAK_SECONDS") {
        Ok(text) => text.parse().expect("RINGTIDE_SOAK_SECONDS is a number"),
        Err(_) => 20,
    };
    Duration::from_secs(seconds)
}

fn connect(address: SocketAddr) -> Client {
    wait::until("a connection", || {
        Client::connect([address.to_string()], Options::new()).ok()
    })
}

/// The files below a folder.
fn files(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let count = |path: std::path::PathBuf| match path.is_dir() {
        true => files(&path),
        false => 1,
    };
    entries.map(|entry| count(entry.path())).sum()
}

/// What a client may see of a broker that is killed now and then, and what does no harm.
fn may_happen(error: &Error) -> bool {
    error.is_retriable() || error.is_outcome_unknown()
}

/// Asks until it is done; `is_done` are refusals that say so as well.
fn settle<T>(what: &str, mut ask: impl FnMut() -> Result<T, Error>, is_done: ErrorCode) {
    wait::for_it(what, || match ask() {
        Ok(_) => true,
        Err(error) if error.code() == Some(is_done) => true,
        Err(error) => {
            assert!(may_happen(&error), "{what}: {error}");
            false
        }
    });
}

fn settings() -> TopicSettings {
    TopicSettings {
        segment_bytes: Some(SEGMENT_BYTES),
        retention_bytes: Some(RETENTION_BYTES),
        ..TopicSettings::default()
    }
}

// ---- the load ----------------------------------------------------------------------------------

/// Everything that is published durably and compared, with the way in which it is.
fn flows() -> Vec<(Flow, ProducerOptions, Duration)> {
    // What waits to be sent counts as time of its delivery, so that it is little on a slow machine, too.
    let durable = ProducerOptions::new()
        .delivery_timeout(DELIVERY_TIMEOUT)
        .buffer_bytes(256 << 10);
    let ms = Duration::from_millis;
    vec![
        // One record at a time, batches of many, compressed in both ways.
        (
            Flow::new("singles", 1, 100).shedding(),
            durable.clone().batch_bytes(1),
            ms(5),
        ),
        (
            Flow::new("batches", 3, 2000).shedding(),
            durable.clone().linger(ms(2)),
            ms(20),
        ),
        (
            Flow::new("lz4", 2, 500).shedding(),
            durable.clone().codec(Codec::Lz4).linger(ms(2)),
            ms(20),
        ),
        (
            Flow::new("zstd", 2, 500).shedding(),
            durable.clone().codec(Codec::Zstd).linger(ms(2)),
            ms(20),
        ),
        (
            Flow::new("large", 1, 100_000).shedding(),
            durable.batch_bytes(512 << 10).buffer_bytes(4 << 20),
            ms(200),
        ),
    ]
}

/// Publishes what may be lost with a kill, and counts what was said to have been taken.
fn publish_loosely(address: SocketAddr, acks: Acks, taken: &AtomicU64, stop: &AtomicBool) {
    let client = connect(address);
    let options = ProducerOptions::new()
        .acks(acks)
        .delivery_timeout(DELIVERY_TIMEOUT);
    let mut producer = wait::until("a producer", || {
        client.producer("loose", options.clone()).ok()
    });
    let value = [b'l'; 300];
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..16 {
            match producer.send(&Record::new(&value)) {
                Ok(_) | Err(Error::BufferFull { .. }) => {}
                Err(error) => panic!("{acks:?}: {error}"),
            }
        }
        producer.wait(Duration::from_millis(10), |delivered| {
            match delivered.result {
                Ok(_) => drop(taken.fetch_add(1, Ordering::Relaxed)),
                Err(error) => assert!(may_happen(&error), "{acks:?}: {error}"),
            }
        });
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Makes topics, puts something into them and deletes them.
fn change_topics(address: SocketAddr, made: &AtomicU64, stop: &AtomicBool) {
    let client = connect(address);
    let mut random = Random::new(3);
    while !stop.load(Ordering::Relaxed) {
        let name = format!("passing-{}", random.below(3));
        let partitions = 1 + random.below(4) as u32;
        let create = || client.create_topic(&name, partitions, &settings());
        settle("a new topic", create, ErrorCode::TopicExists);
        let flow = Flow::new(&name, partitions, 1000);
        let options = ProducerOptions::new().delivery_timeout(DELIVERY_TIMEOUT);
        // One burst, and its acknowledgements.
        flow.publish(&client, &options, Duration::ZERO, &AtomicBool::new(true));
        let delete = || client.delete_topic(&name);
        settle("a deletion", delete, ErrorCode::UnknownTopic);
        made.fetch_add(1, Ordering::Relaxed);
    }
}

// ---- readers -----------------------------------------------------------------------------------

/// Compares what a consumer is given with what was published: what comes is the next of its partition,
/// unless retention was faster.
struct Compared<'a> {
    flow: &'a Flow,
    next: Vec<Option<u64>>,
    read: &'a AtomicU64,
}

impl<'a> Compared<'a> {
    fn new(flow: &'a Flow, partitions: usize, read: &'a AtomicU64) -> Self {
        let next = vec![None; partitions];
        Self { flow, next, read }
    }

    /// Takes what has come; whether there was something.
    fn poll(&mut self, consumer: &mut Consumer) -> bool {
        let refused = match consumer.poll(Duration::from_millis(50)) {
            Ok(None) => return false,
            Ok(Some(batch)) => {
                let partition = batch.partition();
                let next = &mut self.next[partition as usize];
                for record in batch.records() {
                    assert!(
                        next.is_none_or(|next| record.offset == next),
                        "{}/{partition}: {} instead of {next:?}",
                        self.flow.topic,
                        record.offset
                    );
                    assert!(
                        record.value == Some(&self.flow.value(partition, record.offset)),
                        "{}/{partition}: the record at {} is another",
                        self.flow.topic,
                        record.offset
                    );
                    *next = Some(record.offset + 1);
                    self.read.fetch_add(1, Ordering::Relaxed);
                }
                return true;
            }
            Err(error) => error,
        };
        let Error::OffsetOutOfRange {
            partition,
            offset,
            earliest,
            ..
        } = refused
        else {
            panic!("{}: {refused}", self.flow.topic)
        };
        assert!(
            earliest > offset as i64,
            "only retention is in the way: {refused}"
        );
        self.next[partition as usize] = None;
        consumer.seek(partition, Start::Earliest).expect("its own");
        true
    }
}

fn read(address: SocketAddr, flow: &Flow, delivery: Delivery, read: &AtomicU64, stop: &AtomicBool) {
    let client = connect(address);
    let options = ConsumerOptions::new()
        .start(Start::Earliest)
        .delivery(delivery);
    let mut consumer = wait::until("a consumer", || {
        client.consumer(&flow.topic, options.clone()).ok()
    });
    let mut compared = Compared::new(flow, consumer.partitions().len(), read);
    while !stop.load(Ordering::Relaxed) {
        compared.poll(&mut consumer);
    }
}

/// Reads a while, commits, leaves, comes back and goes on where it was.
fn read_by_name(address: SocketAddr, flow: &Flow, read: &AtomicU64, stop: &AtomicBool) {
    const NAME: &str = "regular";
    let client = connect(address);
    let mut committed: Vec<Option<u64>> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let options = ConsumerOptions::new().start(Start::committed(NAME));
        let mut consumer = wait::until("a consumer", || {
            client.consumer(&flow.topic, options.clone()).ok()
        });
        let partitions = consumer.partitions().len();
        committed.resize(partitions, None);
        let mut compared = Compared::new(flow, partitions, read);
        // What was committed is where it goes on, and retention the only excuse.
        compared.next.clone_from(&committed);
        let until = Instant::now() + Duration::from_millis(300);
        while Instant::now() < until && !stop.load(Ordering::Relaxed) {
            compared.poll(&mut consumer);
        }
        match consumer.commit(NAME) {
            Ok(()) => {
                for (partition, committed) in (0_u32..).zip(&mut committed) {
                    let position = consumer.position(partition).expect("its own");
                    *committed = position.or(*committed);
                }
            }
            Err(error) => {
                assert!(may_happen(&error), "{error}");
                // Of some partitions it may have been stored.
                committed.fill(None);
            }
        }
    }
}

// ---- the soak ----------------------------------------------------------------------------------

/// What a broker that nobody asks anything holds, once that changes no more.
fn at_rest(broker: &Broker) -> (Footprint, usize) {
    let look = || {
        let footprint = broker.footprint();
        let open = footprint.sockets + footprint.files;
        (open, files(broker.data_dir()))
    };
    let mut last = look();
    wait::for_it("a broker at rest", || {
        std::thread::sleep(4 * wait::WATCH);
        let before = std::mem::replace(&mut last, look());
        before == last
    });
    (broker.footprint(), last.1)
}

/// Memory for batches that is in use, by shard, in bytes.
fn used_memory(broker: &Broker) -> Vec<u64> {
    let used = (0..SHARDS).map(|shard| {
        let described = broker.peer_at(shard).describe_shard();
        let described = described.expect("a description");
        described.memory_bytes - described.memory_free_bytes
    });
    used.collect()
}

#[test]
fn a_broker_is_as_small_after_a_long_mixed_load_with_kills_as_before_it() {
    let groups = LOG_GROUPS.to_string();
    let mut broker = Setup::new()
        .shards(SHARDS)
        .args(&["--log-groups", &groups, "--sync-interval-ms", "200"])
        .args(&["--memory-bytes", &MEMORY_BYTES.to_string()])
        .start();
    let (before, files_before) = at_rest(&broker);
    let used_before = used_memory(&broker);
    let address = broker.address(0);
    let client = connect(address);
    let flows = flows();
    for (flow, ..) in &flows {
        let partitions = flow.partitions();
        let created = client.create_topic(&flow.topic, partitions, &settings());
        created.expect("created");
    }
    let created = client.create_topic("loose", 2, &settings());
    created.expect("created");

    let stop = AtomicBool::new(false);
    let [read_records, taken, made] = [const { AtomicU64::new(0) }; 3];
    let began = Instant::now();
    let spell = duration() / (KILLS + 1);
    let mut random = Random::from_env(31);
    let mut seen: Vec<Vec<u64>> = flows
        .iter()
        .map(|(flow, ..)| vec![0; flow.partitions() as usize])
        .collect();
    std::thread::scope(|scope| {
        let (stop, read_records) = (&stop, &read_records);
        for (flow, options, pause) in &flows {
            scope.spawn(move || flow.publish(&connect(address), options, *pause, stop));
            let push = Delivery::Push {
                credit_bytes: 256 << 10,
            };
            let poll = Delivery::Poll {
                min_bytes: 1000,
                max_wait: Duration::from_millis(200),
                max_bytes: 128 << 10,
            };
            scope.spawn(move || read(address, flow, push, read_records, stop));
            scope.spawn(move || read(address, flow, poll, read_records, stop));
        }
        scope.spawn(|| read_by_name(address, &flows[1].0, read_records, stop));
        for acks in [Acks::None, Acks::Accepted] {
            let taken = &taken;
            scope.spawn(move || publish_loosely(address, acks, taken, stop));
        }
        scope.spawn(|| change_topics(address, &made, stop));
        let stopping = StopsAtEnd(stop);
        for kill in 0..=KILLS {
            let until = Instant::now() + spell;
            while Instant::now() < until {
                broker.still_runs();
                for ((flow, ..), seen) in flows.iter().zip(&mut seen) {
                    flow.check(&broker, seen);
                }
                std::thread::sleep(Duration::from_millis(100));
            }
            if kill < KILLS {
                std::thread::sleep(Duration::from_micros(random.below(5000)));
                broker.kill();
                broker.restart();
            }
        }
        drop(stopping);
    });
    let (mut total, mut partitions) = (0, 0);
    for (flow, ..) in &flows {
        flow.check(&broker, &mut vec![0; flow.partitions() as usize]);
        flow.check_ends(&broker);
        total += flow.acknowledged();
        partitions += flow.partitions() as usize;
    }
    let under_load = (broker.footprint(), files(broker.data_dir()));
    // Retention keeps them few: what it leaves, a segment that is written and one that is to go, each with its
    // index, and what a second may bring.
    let kept = RETENTION_BYTES as usize / SEGMENT_BYTES as usize + 2;
    let most = files_before + FILES_THAT_STAY + (partitions + 2) * 2 * (kept + 8);
    wait::for_it("retention to remove what is over", || {
        files(broker.data_dir()) <= most
    });

    for (flow, ..) in &flows {
        client.delete_topic(&flow.topic).expect("deleted");
    }
    client.delete_topic("loose").expect("deleted");
    for topic in client.list_topics().expect("topics") {
        client.delete_topic(&topic.name).expect("deleted");
    }
    drop(client);
    let (after, files_after) = at_rest(&broker);
    let (read_records, taken, made) = (
        read_records.into_inner(),
        taken.into_inner(),
        made.into_inner(),
    );
    eprintln!(
        "{:?}: {total} records durable, {taken} others taken, {read_records} read, {made} topics made and \
         deleted\nbefore {before:?}, {files_before} files\nunder load {under_load:?}\n\
         after {after:?}, {files_after} files",
        began.elapsed()
    );
    for (used, before) in used_memory(&broker).into_iter().zip(used_before) {
        assert!(
            used <= before + MEMORY_THAT_STAYS,
            "memory for batches: {before} bytes before, {used} after"
        );
    }
    assert!(read_records > 0 && taken > 0 && made > 0);
    assert!(
        after.resident <= before.resident + RESIDENT_THAT_STAYS,
        "memory: {before:?} before, {after:?} after"
    );
    // None that a peer or a topic was the reason for.
    assert!(
        after.sockets <= before.sockets && after.files <= before.files,
        "open files: {before:?} before, {after:?} after"
    );
    // What a deletion leaves behind that met the first write of its topic ("Directory not empty" in the log) goes
    // with a start after a crash.
    broker.kill();
    broker.restart();
    let (_, files_after) = at_rest(&broker);
    eprintln!("{files_after} files after a start");
    assert!(
        files_after <= files_before + FILES_THAT_STAY,
        "files: {files_before} before, {files_after} after"
    );
    assert_eq!(broker.stop(), 0);
}
