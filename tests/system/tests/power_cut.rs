//! What was acknowledged as durable outlives a power cut, under a real kernel: the broker runs on an ext4 whose
//! disk notes every write and every flush, the power is cut at random places of that record, and the broker is
//! started on what the cut leaves (the fault model is at the top of `block_trace`). Everything acknowledged before the
//! cut must be there, once, in order, byte for byte, topics and readers' offsets too; what is there beyond was
//! published; and the broker starts.
//! While it does, and right after it, the power is cut again.
//!
//! `RINGTIDE_CUTS` says how often the power is cut, `RINGTIDE_SEED` where. The record itself differs from run to
//! run, as a real kernel makes it; with `RINGTIDE_TEST_KEEP` the disk of a failed cut is kept.

use std::path::Path;
use std::time::Duration;

use ringtide_client::sync::{Client, Producer};
use ringtide_client::{Delivered, Error, Options, ProducerOptions, Record, Topic, TopicSettings};
use ringtide_schema::error_code::ErrorCode;
use ringtide_schema::ids::PartitionId;
use ringtide_system_tests::{
    Broker, Peer, Random, Rec, RecordedDisk, Setup, data_root, skip, wait,
};

const DISK_BYTES: u64 = 80 << 20;
/// What is published before the broker is killed, before it is stopped, and then: enough that slots of the log are used
/// again, and that segments go.
const RECORDED_BYTES: [usize; 3] = [2 << 20, 2 << 20, 22 << 20];
const WAL_SLOTS: u64 = 3;
const WAL_SLOT_BYTES: u64 = 4 << 20;
const SHARDS: usize = 2;
/// After a cut, for the next one.
const MORE_BYTES: usize = 128 << 10;
const SEGMENT_BYTES: u32 = 64 << 10;
const RETENTION_BYTES: u64 = 768 << 10;
/// Records that are sent without waiting for an acknowledgement.
const BURST: u64 = 24;
const PARTITIONS: u32 = 2;
const READER: &str = "reader";
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(120);
/// By how many events acknowledgements are told to have come too early, to see that it is found.
const TOO_EARLY: usize = 24;
/// Places of which the one with most under way is taken.
const CANDIDATES: usize = 20;
/// As many find it for sure.
const ENOUGH_CUTS: usize = 10;

fn cuts() -> usize {
    match std::env::var("RINGTIDE_CUTS") {
        Ok(text) => text.parse().expect("RINGTIDE_CUTS is a number"),
        Err(_) => 12,
    }
}

// ---- what was published -----------------------------------------------------------------------

/// A number that only grows, and what is known of it after a cut.
#[derive(Clone, Default)]
struct Mark {
    /// It was never asked to be more.
    asked: u64,
    /// How much had happened to the disk when it was known to be acknowledged as this.
    acknowledged: Vec<(usize, u64)>,
}

impl Mark {
    /// Of something that was acknowledged to be there.
    fn new(events: usize, value: u64) -> Self {
        Self {
            asked: value,
            acknowledged: vec![(events, value)],
        }
    }

    /// The least that it may be after a cut at this place; absent if it need not be there at all.
    fn least_at(&self, cut: usize) -> Option<u64> {
        let later = self.acknowledged.partition_point(|&(at, _)| at <= cut);
        later.checked_sub(1).map(|last| self.acknowledged[last].1)
    }

    /// What was found after a cut is between what was acknowledged before it and what was asked for. From the first
    /// event of the new disk it is not less than the former, and once it was seen not less than what was seen.
    fn found(&mut self, what: &str, cut: usize, found: Option<u64>, events: usize) {
        let least = self.least_at(cut);
        assert!(
            found >= least && found.unwrap_or(0) <= self.asked,
            "{what} is {found:?}; acknowledged before the cut: {least:?}, asked for: {}",
            self.asked
        );
        let known = [
            least.map(|least| (0, least)),
            found.map(|found| (events, found)),
        ];
        *self = Self {
            asked: found.unwrap_or(0),
            acknowledged: known.into_iter().flatten().collect(),
        };
    }
}

/// What is known of one partition.
#[derive(Clone)]
struct Published {
    topic: &'static str,
    partition: u32,
    /// Where records of another seed begin. A record's value follows from seed and offset.
    seeds: Vec<(u64, u64)>,
    /// Where its records end.
    end: Mark,
    /// What its reader has committed.
    committed: Mark,
}

impl Published {
    fn value(&self, offset: u64) -> Vec<u8> {
        let of_offset = |&&(from, _): &&(u64, u64)| from <= offset;
        let (_, seed) = self.seeds.iter().rev().find(of_offset).expect("a seed");
        let mut random = Random::new(seed ^ (offset << 8) ^ u64::from(self.partition));
        let bytes = match random.below(100) {
            0..80 => 20 + random.below(200),
            80..96 => 200 + random.below(4000),
            _ => 4000 + random.below(26_000),
        };
        let name = format!("{}/{} {offset} ", self.topic, self.partition);
        [name.into_bytes(), random.bytes(bytes as usize)].concat()
    }
}

/// The two topics: one keeps all, the other only its last segments.
fn topics() -> [(&'static str, TopicSettings); 2] {
    let settings = |retention_bytes| TopicSettings {
        segment_bytes: Some(SEGMENT_BYTES),
        retention_bytes: Some(retention_bytes),
        ..TopicSettings::default()
    };
    [
        ("kept", settings(-1)),
        ("shed", settings(RETENTION_BYTES as i64)),
    ]
}

fn connect(broker: &Broker) -> Client {
    let server = broker.address(0).to_string();
    wait::until("a connection", || {
        Client::connect([&server], Options::new()).ok()
    })
}

/// Publishes to the partitions of one topic, each behind what it holds, and notes when what was acknowledged.
struct Publisher<'a> {
    producer: Producer,
    client: &'a Client,
    topic: Topic,
    of: &'a mut [Published],
    first: Vec<u64>,
    in_flight: usize,
    disk: &'a RecordedDisk,
}

impl<'a> Publisher<'a> {
    fn new(client: &'a Client, of: &'a mut [Published], disk: &'a RecordedDisk) -> Self {
        let options = ProducerOptions::new().delivery_timeout(DELIVERY_TIMEOUT);
        let producer = client.producer(of[0].topic, options);
        Self {
            producer: producer.expect("a producer"),
            client,
            topic: client.topic(of[0].topic).expect("a topic"),
            first: of.iter().map(|of| of.end.asked).collect(),
            of,
            in_flight: 0,
            disk,
        }
    }

    fn publish(&mut self, bytes: usize, random: &mut Random) {
        let mut sent = 0;
        while sent < bytes {
            for _ in 0..=random.below(BURST) {
                let partition = random.below(self.of.len() as u64) as u32;
                sent += self.send(partition);
            }
            while self.in_flight > BURST as usize {
                self.wait();
            }
            if random.percent(30) {
                self.drain();
            }
            if random.percent(10) {
                self.commit(random.below(self.of.len() as u64) as u32);
            }
        }
        self.drain();
    }

    fn send(&mut self, partition: u32) -> usize {
        let offset = self.of[partition as usize].end.asked;
        let value = self.of[partition as usize].value(offset);
        while let Err(error) = self
            .producer
            .send(&Record::new(&value).partition(partition))
        {
            assert!(matches!(error, Error::BufferFull { .. }), "{error}");
            self.wait();
        }
        self.of[partition as usize].end.asked += 1;
        self.in_flight += 1;
        value.len()
    }

    /// Commits the place of a reader that has read all that is acknowledged.
    fn commit(&mut self, partition: u32) {
        let of = &mut self.of[partition as usize];
        let offset = of.end.least_at(usize::MAX).expect("a partition");
        of.committed.asked = offset;
        let committed = self
            .client
            .commit_offset(READER, &self.topic, partition, offset, 0);
        committed.expect("committed");
        let events = self.disk.trace().len();
        of.committed.acknowledged.push((events, offset));
    }

    fn drain(&mut self) {
        wait::for_it("every acknowledgement", || {
            if self.in_flight > 0 {
                self.wait();
            }
            self.in_flight == 0
        });
    }

    fn wait(&mut self) {
        let (of, first) = (&mut self.of, &self.first);
        let (in_flight, disk) = (&mut self.in_flight, self.disk);
        self.producer
            .wait(Duration::from_secs(1), |delivered: Delivered| {
                let ack = delivered.result.expect("an acknowledgement");
                let partition = ack.partition as usize;
                let offset = first[partition] + ack.ticket.number;
                assert_eq!(ack.offset, Some(offset), "dense and in order");
                let events = disk.trace().len();
                of[partition].end.acknowledged.push((events, offset + 1));
                *in_flight -= 1;
            });
    }
}

/// Publishes to both topics at once.
fn publish(
    broker: &Broker,
    published: &mut [Published],
    disk: &RecordedDisk,
    (bytes, random): (usize, &mut Random),
) {
    std::thread::scope(|scope| {
        for of in published.chunks_mut(PARTITIONS as usize) {
            let mut random = Random::new(random.next_u64());
            scope.spawn(move || {
                let client = connect(broker);
                Publisher::new(&client, of, disk).publish(bytes / 2, &mut random);
            });
        }
    });
}

// ---- the record -------------------------------------------------------------------------------

fn setup(disk: &RecordedDisk) -> Setup {
    let (slots, bytes) = (WAL_SLOTS.to_string(), WAL_SLOT_BYTES.to_string());
    Setup::new()
        .shards(SHARDS)
        .args(&["--wal-slots", &slots, "--wal-slot-bytes", &bytes])
        .args(&["--sync-interval-ms", "50"])
        .data_dir(&disk.path().join("data"))
}

/// Runs a broker on the disk, which is killed once and stopped once meanwhile; gives when it had first started.
fn record(disk: &RecordedDisk, random: &mut Random) -> (usize, Vec<Published>) {
    let mut broker = setup(disk).start();
    let began = disk.trace().len();
    let client = connect(&broker);
    let mut published = Vec::new();
    for (topic, settings) in topics() {
        client
            .create_topic(topic, PARTITIONS, &settings)
            .expect("created");
        let created = disk.trace().len();
        published.extend((0..PARTITIONS).map(|partition| Published {
            topic,
            partition,
            seeds: vec![(0, random.next_u64())],
            end: Mark::new(created, 0),
            committed: Mark::default(),
        }));
    }
    for (part, bytes) in RECORDED_BYTES.into_iter().enumerate() {
        let share = (bytes, &mut *random);
        publish(&broker, &mut published, disk, share);
        match part {
            0 => broker.kill(),
            1 => assert_eq!(broker.stop(), 0),
            _ => break,
        }
        broker.restart();
    }
    for shard in 0..SHARDS {
        let shard = broker.peer_at(shard).describe_shard().expect("an answer");
        let reused = shard.wal_bytes > WAL_SLOTS * WAL_SLOT_BYTES;
        assert!(reused, "no slot was used twice: {}", shard.wal_bytes);
    }
    let mut peer = broker.peer();
    let shed = peer.topic("shed").expect("a topic").partition(0);
    wait::for_it("retention", || {
        peer.list_offsets(shed, -2).expect("an offset").offset > 0
    });
    broker.kill();
    (began, published)
}

// ---- the cuts ---------------------------------------------------------------------------------

/// What was found after a cut.
struct Found {
    /// After more was published.
    published: Vec<Published>,
    disk: RecordedDisk,
    /// Whether the same would have been a loss if acknowledgements had come earlier.
    is_loss_if_too_early: bool,
}

/// Cuts the power at a random place, after this one.
fn cut(
    disk: &RecordedDisk,
    from: usize,
    published: &[Published],
    random: &mut Random,
) -> (usize, Vec<u8>) {
    let trace = disk.trace();
    let mut anywhere = || from + random.below((trace.len() - from) as u64 + 1) as usize;
    // Mostly little is under way; what is written seldom, such as snapshots, comes with more.
    let candidates: Vec<usize> = (0..CANDIDATES).map(|_| anywhere()).collect();
    let busiest = candidates.iter().max_by_key(|&&at| trace.open_writes(at));
    let mut at = candidates[0];
    if random.percent(30) {
        at = *busiest.expect("candidates");
    } else if random.percent(60) {
        // Where the broker's word is youngest.
        let of = &published[random.below(published.len() as u64) as usize];
        let acknowledged = &of.end.acknowledged;
        let noted = acknowledged[random.below(acknowledged.len() as u64) as usize].0;
        at = at.max(noted.min(trace.len()));
    }
    let (image, what) = trace.cut(at, random);
    eprintln!("cut {what}");
    (at, image)
}

/// Boots from the disk that a cut left, and looks at what is there.
fn boot(image: Vec<u8>, cut: usize, published: &[Published], random: &mut Random) -> Found {
    let kept = Kept::new(&image);
    let disk = RecordedDisk::mount(image, random).expect("a file system that outlives a cut");
    let broker = setup(&disk).start();
    let mut published = published.to_vec();
    let mut is_loss_if_too_early = false;
    for of in &mut published {
        let early = of.end.least_at(cut + TOO_EARLY);
        let end = find(&broker, &disk, of, cut);
        is_loss_if_too_early |= end < early;
        of.seeds.push((end.unwrap_or(0), random.next_u64()));
    }
    if published.iter().all(|of| of.end.least_at(0).is_some()) {
        let more = (MORE_BYTES, &mut *random);
        publish(&broker, &mut published, &disk, more);
    }
    drop(broker);
    drop(kept);
    Found {
        published,
        disk,
        is_loss_if_too_early,
    }
}

/// Asserts that a partition holds what was acknowledged before the cut, and nothing that was not published; gives where
/// it ends, if it is there.
fn find(broker: &Broker, disk: &RecordedDisk, of: &mut Published, cut: usize) -> Option<u64> {
    let name = format!("{}/{}", of.topic, of.partition);
    let mut peer = broker.peer();
    let Ok(topic) = peer.topic(of.topic) else {
        of.end.found(&name, cut, None, 0);
        return None;
    };
    let partition = topic.partition(of.partition);
    let mut peer = broker.peer_at(topic.shard(of.partition));
    let (start, records) = wait::until("an end that retention does not pass", || {
        read(&mut peer, partition)
    });
    let end = start + records.len() as u64;
    let committed = peer.read_offset(READER, partition).expect("an answer");
    let seen = disk.trace().len();
    of.end
        .found(&format!("the end of {name}"), cut, Some(end), seen);
    let what = format!("what a reader committed in {name}");
    of.committed
        .found(&what, cut, u64::try_from(committed).ok(), seen);
    let mut bytes = 0;
    for (offset, record) in (start..end).zip(&records) {
        let want = of.value(offset);
        assert!(
            record.offset == offset && record.value.as_ref() == Some(&want),
            "{name}: another record at {offset}"
        );
        bytes += want.len() as u64;
    }
    // Retention leaves what was asked for, but for a segment, and what was under way.
    let may_begin_later = of.topic == "shed" && bytes >= RETENTION_BYTES / 2;
    assert!(
        start == 0 || may_begin_later,
        "{name} begins at {start} and holds {bytes} bytes"
    );
    Some(end)
}

/// Reads a partition from its first record to its last; nothing if retention takes the first away meanwhile.
fn read(peer: &mut Peer, partition: PartitionId) -> Option<(u64, Vec<Rec>)> {
    let mut offset = |at| peer.list_offsets(partition, at).expect("an offset").offset;
    let (start, end) = (offset(-2), offset(-1));
    let mut all = Vec::new();
    let mut at = start;
    while at < end {
        let correlation = peer.send_fetch(partition, at, 256 << 10, 1, 10_000);
        let mut records = match peer.answer(correlation) {
            Ok(answer) => answer.records(),
            Err(fault) if fault.code() == ErrorCode::OffsetOutOfRange => return None,
            Err(fault) => panic!("{fault:?}"),
        };
        records.retain(|record| record.offset >= at);
        at = records.last().expect("records").offset + 1;
        all.append(&mut records);
    }
    Some((start, all))
}

/// Keeps the disk of a cut if its test fails and somebody wants it.
struct Kept(Option<Vec<u8>>);

impl Kept {
    fn new(image: &[u8]) -> Self {
        let is_wanted = std::env::var_os("RINGTIDE_TEST_KEEP").is_some();
        Self(is_wanted.then(|| image.to_vec()))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(image) = self.0.take()
            && std::thread::panicking()
        {
            let path = data_root().join("power-cut.image");
            let kept = std::fs::write(&path, image);
            eprintln!("the disk after the cut: {} ({kept:?})", path.display());
        }
    }
}

#[test]
fn what_was_acknowledged_before_a_power_cut_is_there_after_it() {
    let name = "what_was_acknowledged_before_a_power_cut_is_there_after_it";
    let mut random = Random::from_env(17);
    let disk = RecordedDisk::blank_ext4(DISK_BYTES)
        .and_then(|image| RecordedDisk::mount(image, &mut random));
    let disk = match disk {
        Ok(disk) => disk,
        Err(reason) => return skip(name, &reason),
    };
    let (began, published) = record(&disk, &mut random);
    let mut losses_if_too_early = 0;
    for number in 0..cuts() {
        eprintln!("cut {number} of {}", cuts());
        let (at, image) = cut(&disk, began, &published, &mut random);
        let found = boot(image, at, &published, &mut random);
        losses_if_too_early += usize::from(found.is_loss_if_too_early);
        if random.percent(40) {
            eprintln!("and once more, in or after the start that followed");
            let (at, image) = cut(&found.disk, 0, &[found.published[0].clone()], &mut random);
            boot(image, at, &found.published, &mut random);
        }
    }
    eprintln!(
        "acknowledgements {TOO_EARLY} events too early: a loss in {losses_if_too_early} cuts"
    );
    assert!(
        losses_if_too_early > 0 || cuts() < ENOUGH_CUTS,
        "a broker that acknowledges {TOO_EARLY} events too early would not have been found"
    );
}

#[test]
fn a_recorded_disk_notes_flushes_and_what_they_cover_survives() {
    let name = "a_recorded_disk_notes_flushes_and_what_they_cover_survives";
    let mut random = Random::from_env(19);
    let disk = RecordedDisk::blank_ext4(16 << 20)
        .and_then(|image| RecordedDisk::mount(image, &mut random));
    let disk = match disk {
        Ok(disk) => disk,
        Err(reason) => return skip(name, &reason),
    };
    let write = |file: &str, sync: bool| {
        let path = disk.path().join(file);
        std::fs::write(&path, file).expect("written");
        if sync {
            let dir = std::fs::File::open(disk.path()).expect("a directory");
            std::fs::File::open(&path)
                .and_then(|file| file.sync_all())
                .and_then(|()| dir.sync_all())
                .expect("synced");
        }
    };
    write("synced", true);
    let synced = disk.trace().len();
    write("not synced", false);
    let there = |root: &Path, file: &str| std::fs::read_to_string(root.join(file)).ok();
    for _ in 0..4 {
        let (image, what) = disk.trace().cut(synced, &mut random);
        let after = RecordedDisk::mount(image, &mut random).expect(&what);
        assert_eq!(there(&after.path(), "synced").as_deref(), Some("synced"));
        assert_eq!(there(&after.path(), "not synced"), None, "{what}");
    }
}
