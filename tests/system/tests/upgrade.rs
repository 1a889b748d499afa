//! Data directories of released versions: today's binary opens each of them and has all that was in it. One of a
//! later version it refuses in words, and leaves as it is.
//!
//! tests/golden/directories has for each version of the format one directory that was stopped cleanly and one that was
//! killed, and beside each a listing of what a reader found in it. [`make_fixtures`] makes those of this version, and
//! never overwrites one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ringtide_schema::batch::{Batches, Codec};
use ringtide_schema::frame::Op;
use ringtide_schema::identity::FORMAT;
use ringtide_schema::ids::PartitionId;
use ringtide_schema::limits::DEFAULT_INFLATED_BYTES;
use ringtide_schema::record::{self, BatchBuilder};
use ringtide_system_tests::{
    Broker, Cli, Peer, Random, Setup, Topic, data_root, exit, open, table, wait,
};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// How a directory was left, as its fixture is named.
const STATES: [&str; 2] = ["clean", "killed"];
/// Whose offsets are in the listings.
const CONSUMERS: [&str; 2] = ["audit", "billing"];
const DURABLE: u8 = 2;
/// Timestamps of the records begin here: some day in October 2025.
const START_MS: i64 = 1_760_000_000_000;
/// The least there is.
const SEGMENT_BYTES: u32 = 4096;
const LEVEL: i32 = 19;

fn fixture(version: u16, state: &str, ending: &str) -> PathBuf {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden/directories");
    golden.join(format!("v{version}-{state}.{ending}"))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of text")
}

// ---- packing ------------------------------------------------------------------------------------

/// What is below a directory, by path from there; a directory has no contents.
fn tree(root: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    fn add(root: &Path, directory: &Path, tree: &mut BTreeMap<PathBuf, Option<Vec<u8>>>) {
        for entry in fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            let name = path.strip_prefix(root).expect("below it").to_owned();
            if path.is_dir() {
                tree.insert(name, None);
                add(root, &path, tree);
            } else {
                tree.insert(name, Some(fs::read(&path).expect("a readable file")));
            }
        }
    }
    let mut found = BTreeMap::new();
    add(root, root, &mut found);
    found
}

/// The same bytes whenever the tree is the same.
fn pack(root: &Path) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, contents) in tree(root) {
        let mut header = tar::Header::new_gnu();
        let (kind, mode) = match contents {
            None => (tar::EntryType::Directory, 0o755),
            Some(_) => (tar::EntryType::Regular, 0o644),
        };
        let contents = contents.unwrap_or_default();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(contents.len() as u64);
        archive
            .append_data(&mut header, name, &contents[..])
            .expect("memory takes everything");
    }
    let archive = archive.into_inner().expect("memory takes everything");
    zstd::encode_all(&archive[..], LEVEL).expect("memory takes everything")
}

/// The data directory of a fixture, in a folder that goes with the test.
fn unpack(version: u16, state: &str) -> (TempDir, PathBuf) {
    let path = fixture(version, state, "tar.zst");
    let packed = fs::read(&path).unwrap_or_else(|e| {
        panic!(
            "{}: {e}; `make_fixtures` makes those of this version",
            path.display()
        )
    });
    let home = TempDir::with_prefix_in("upgrade-", data_root()).expect("a folder");
    let data_dir = home.path().join("data");
    let archive = zstd::decode_all(&packed[..]).expect("a fixture as it was packed");
    tar::Archive::new(&archive[..])
        .unpack(&data_dir)
        .expect("a fixture as it was packed");
    (home, data_dir)
}

// ---- listing ------------------------------------------------------------------------------------

fn bytes(value: Option<&[u8]>) -> Value {
    match value.map(|bytes| (bytes, std::str::from_utf8(bytes))) {
        None => Value::Null,
        Some((_, Ok(text))) => text.into(),
        Some((bytes, Err(_))) => json!({ "base64": STANDARD.encode(bytes) }),
    }
}

/// All that a reader finds: topics with their settings, and of each partition its bounds, the offsets that were
/// committed, and the batches with their records.
fn listing(broker: &Broker) -> Value {
    let mut peer = broker.peer();
    let topics = peer.metadata().expect("metadata").topics.expect("topics");
    let topics = topics.into_iter().map(Topic::from).map(|topic| {
        let set = &topic.settings;
        let settings = json!({
            "retention_ms": set.retention_ms,
            "retention_bytes": set.retention_bytes,
            "segment_bytes": set.segment_bytes,
            "visible": set.visible,
            "max_batch_bytes": set.max_batch_bytes,
            "timestamp_type": set.timestamp_type,
            "timestamp_max_ahead_ms": set.timestamp_max_ahead_ms,
        });
        let partitions: Vec<Value> = (0..topic.shards.len() as u32)
            .map(|number| partition(&mut peer, topic.partition(number)))
            .collect();
        let topic_listing = json!({ "settings": settings, "partitions": partitions });
        (topic.name, topic_listing)
    });
    Value::Object(topics.collect())
}

fn partition(peer: &mut Peer, id: PartitionId) -> Value {
    let mut offset = |at| peer.list_offsets(id, at).expect("an offset").offset;
    let (earliest, latest) = (offset(-2), offset(-1));
    let mut committed = Map::new();
    for consumer in CONSUMERS {
        let request = table!(ReadOffsetRequestT {
            consumer: Some(consumer.into()),
            partition: Some(id.into()),
        });
        let answer = peer.call(Op::ReadOffset, &[], |b| request.pack(b));
        let read = open!(answer.expect("an answer"), ReadOffsetResponse);
        if read.offset >= 0 {
            let (offset, leader_epoch) = (read.offset, read.leader_epoch);
            let value = json!({ "offset": offset, "leader_epoch": leader_epoch });
            committed.insert(consumer.into(), value);
        }
    }
    let mut batches = Vec::new();
    let mut at = earliest;
    while at < latest {
        let correlation = peer.send_fetch(id, at, 256 << 10, 1, 10_000);
        let answer = peer.answer(correlation).expect("data");
        let before = at;
        for item in Batches::new(&answer.payload) {
            let (header, batch) = item.expect("whole batches");
            // A range of a file may begin before what was asked for.
            if header.base_offset == at {
                at = header.next_offset();
                batches.push(listed(batch, &header));
            }
        }
        assert!(at > before, "nothing at {at}, though the end is {latest}");
    }
    json!({
        "id": id.dir_name(),
        "earliest": earliest,
        "latest": latest,
        "committed": committed,
        "batches": batches,
    })
}

fn listed(batch: &[u8], header: &ringtide_schema::batch::Header) -> Value {
    let mut scratch = Vec::new();
    let records = record::records(batch, &mut scratch, DEFAULT_INFLATED_BYTES);
    let records: Vec<Value> = records
        .expect("a batch that checks out")
        .map(|record| {
            let headers: Vec<Value> = record
                .headers()
                .map(|h| json!([bytes(Some(h.key)), bytes(h.value)]))
                .collect();
            json!({
                "offset": record.offset,
                "timestamp_ms": record.timestamp_ms,
                "key": bytes(record.key),
                "value": bytes(record.value),
                "headers": headers,
            })
        })
        .collect();
    json!({
        "base_offset": header.base_offset,
        "leader_epoch": header.leader_epoch,
        "codec": header.attributes.codec().name(),
        "producer_id": header.producer_id,
        "producer_epoch": header.producer_epoch,
        "base_sequence": header.base_sequence,
        "records": records,
    })
}

/// The first place where a listing is another than was stored. What a later version lists beyond that is no
/// difference.
fn difference(place: &str, have: &Value, want: &Value) -> Option<String> {
    match (have, want) {
        (Value::Object(have), Value::Object(want)) => want.iter().find_map(|(key, want)| {
            let have = have.get(key).unwrap_or(&Value::Null);
            difference(&format!("{place}/{key}"), have, want)
        }),
        (Value::Array(have), Value::Array(want)) if have.len() == want.len() => {
            let mut pairs = have.iter().zip(want).enumerate();
            pairs.find_map(|(at, (have, want))| difference(&format!("{place}/{at}"), have, want))
        }
        _ if have == want => None,
        _ => Some(format!("{place} is {have}; it was {want}")),
    }
}

fn holds_all(broker: &Broker, what: &str, want: &Value) {
    let have = listing(broker);
    let names = |listing: &Value| -> BTreeSet<String> {
        let topics = listing.as_object().expect("topics");
        topics.keys().cloned().collect()
    };
    assert_eq!(names(&have), names(want), "the topics {what}");
    if let Some(difference) = difference("", &have, want) {
        panic!("{what}: {difference}");
    }
}

// ---- what is in a fixture ------------------------------------------------------------------------

/// Makes batches in which everything that a record may have occurs.
struct Filler {
    random: Random,
    batches: i64,
}

impl Filler {
    /// Three records, with this producer and base sequence.
    fn batch(&mut self, producer: (i64, i16, i32)) -> Vec<u8> {
        const CODECS: [Codec; 3] = [Codec::None, Codec::Lz4, Codec::Zstd];
        self.batches += 1;
        let number = self.batches;
        let mut builder = BatchBuilder::new(CODECS[number as usize % CODECS.len()]);
        for record in 0..3 {
            let key = format!("key {number}");
            let key = (number % 7 != 0).then_some(key.as_bytes());
            let mut value = format!("value {number}/{record} ").into_bytes();
            match number % 4 {
                // Bytes that are no text.
                0 => value.extend(self.random.bytes(100)),
                _ => (0..12).for_each(|_| {
                    value.extend(format!("{:016x}", self.random.next_u64()).bytes());
                }),
            }
            let is_tombstone = key.is_some() && number % 5 == 0 && record == 1;
            let value = (!is_tombstone).then_some(&value[..]);
            let headers: &[(&str, Option<&[u8]>)] = match record {
                0 => &[],
                1 => &[("kind", Some(b"trade")), ("kind", None)],
                _ => &[("", Some(b""))],
            };
            // Not in order within a batch.
            let timestamp_ms = START_MS + number * 1000 - record * 10;
            builder.push(timestamp_ms, key, value, headers);
        }
        let mut out = Vec::new();
        let (id, epoch, sequence) = producer;
        builder
            .finish(id, epoch, sequence, &mut out)
            .expect("a batch");
        out
    }

    fn publish(&mut self, peer: &mut Peer, partition: PartitionId, batches: usize) {
        for _ in 0..batches {
            let batch = self.batch((-1, -1, -1));
            peer.publish(partition, batch).expect("an acknowledgement");
        }
    }
}

/// An idempotent producer and its next sequence number.
struct Producer {
    id: i64,
    epoch: i16,
    sequence: i32,
}

impl Producer {
    fn new(peer: &mut Peer) -> Self {
        let (id, epoch) = peer.init_producer().expect("a producer");
        let sequence = 0;
        Self {
            id,
            epoch,
            sequence,
        }
    }

    fn publish(&mut self, peer: &mut Peer, filler: &mut Filler, to: PartitionId, batches: usize) {
        for _ in 0..batches {
            let batch = filler.batch((self.id, self.epoch, self.sequence));
            peer.publish(to, batch).expect("an acknowledgement");
            self.sequence += 3;
        }
    }
}

/// A new directory with everything, as it is when the broker was stopped and as it is when it was killed later. Each with its
/// listing.
fn make() -> [(Vec<u8>, Value); 2] {
    let home = TempDir::with_prefix_in("upgrade-", data_root()).expect("a folder");
    let data_dir = home.path().join("data");
    let mut broker = Setup::new()
        .shards(2)
        // What was not stopped is in the log only, until then.
        .args(&["--wal-slots", "3", "--sync-interval-ms", "60000"])
        .args(&["--log-groups", "4"])
        .data_dir(&data_dir)
        .start();
    let mut filler = Filler {
        random: Random::new(1),
        batches: 0,
    };
    let settings = table!(TopicSettingsT {
        // Nothing may go because it is old by the time that it is read.
        retention_ms: Some(-1),
        retention_bytes: Some(-1),
        segment_bytes: Some(SEGMENT_BYTES),
    });
    let mut peer = broker.peer();
    let mut topic = |name: &str, partitions, settings| {
        let topic = peer.create_topic_with(name, partitions, settings);
        topic.expect("a new topic")
    };
    let orders = topic("orders", 2, settings.clone());
    let once = topic("once", 1, settings.clone());
    let shed = topic("shed", 1, settings.clone());
    let gone = topic("gone", 1, settings.clone());
    let mut ticks_settings = settings.clone();
    ticks_settings.visible = Some(1);
    ticks_settings.timestamp_type = Some(1);
    ticks_settings.max_batch_bytes = Some(64 << 10);
    ticks_settings.timestamp_max_ahead_ms = Some(-1);
    let ticks = topic("ticks", 1, ticks_settings);
    let mut producers = [Producer::new(&mut peer), Producer::new(&mut peer)];

    for partition in [&orders, &once, &shed, &gone, &ticks] {
        filler.publish(&mut peer, partition.partition(0), 20);
    }
    producers[0].publish(&mut peer, &mut filler, once.partition(0), 7);
    let commit = |peer: &mut Peer, consumer, partition, offset| {
        peer.commit_offset(consumer, partition, offset)
            .expect("committed");
    };
    commit(&mut peer, "audit", orders.partition(0), 10);
    commit(&mut peer, "audit", ticks.partition(0), 3);
    commit(&mut peer, "billing", orders.partition(1), 0);

    // Of another leader epoch.
    broker.kill();
    broker.restart();
    let mut peer = broker.peer();
    filler.publish(&mut peer, orders.partition(0), 5);
    filler.publish(&mut peer, orders.partition(1), 5);
    producers[1].publish(&mut peer, &mut filler, once.partition(0), 2);
    // What is removed stays removed, and nothing else goes later.
    let mut shorter = settings.clone();
    shorter.retention_bytes = Some(0);
    peer.alter_topic("shed", None, shorter).expect("altered");
    wait::for_it("retention of the oldest segments", || {
        let earliest = peer.list_offsets(shed.partition(0), -2);
        earliest.expect("an offset").offset > 0
    });
    peer.alter_topic("shed", None, settings.clone())
        .expect("altered");
    let clean = listing(&broker);
    assert_eq!(broker.stop(), exit::DONE);
    let clean = (pack(&data_dir), clean);

    broker.restart();
    let mut peer = broker.peer();
    filler.publish(&mut peer, orders.partition(0), 30);
    filler.publish(&mut peer, ticks.partition(0), 3);
    producers[0].publish(&mut peer, &mut filler, once.partition(0), 2);
    let late = peer.create_topic_with("late", 3, settings.clone());
    let late = late.expect("a new topic");
    filler.publish(&mut peer, late.partition(2), 2);
    peer.delete_topic("gone").expect("deleted");
    let mut wider = settings;
    wider.max_batch_bytes = Some(128 << 10);
    peer.alter_topic("orders", Some(3), wider).expect("altered");
    commit(&mut peer, "billing", orders.partition(1), 12);
    commit(&mut peer, "billing", late.partition(2), 6);
    let killed = listing(&broker);
    broker.kill();
    [clean, (pack(&data_dir), killed)]
}

/// `cargo test -p ringtide-system-tests --test upgrade -- --ignored make_fixtures`
#[test]
#[ignore = "makes the fixtures of a new version of the format"]
fn make_fixtures() {
    for (state, (packed, listing)) in STATES.into_iter().zip(make()) {
        let path = fixture(FORMAT, state, "tar.zst");
        if path.exists() {
            eprintln!("{} is there and stays", path.display());
            continue;
        }
        let listing = serde_json::to_string_pretty(&listing).expect("JSON") + "\n";
        fs::write(fixture(FORMAT, state, "json"), listing).expect("written");
        fs::write(path, packed).expect("written");
    }
}

// ---- the tests ------------------------------------------------------------------------------------

/// Of each producer in a listing, its last batch.
fn last_batches(listing: &Value) -> Vec<(PartitionId, u64, Value)> {
    let mut last = BTreeMap::new();
    for topic in listing.as_object().expect("topics").values() {
        for partition in topic["partitions"].as_array().expect("partitions") {
            let id = partition["id"].as_str().expect("an id");
            let latest = partition["latest"].as_u64().expect("an offset");
            for batch in partition["batches"].as_array().expect("batches") {
                let producer = batch["producer_id"].as_i64().expect("a number");
                if producer >= 0 {
                    last.insert((id, producer), (latest, batch));
                }
            }
        }
    }
    let id = |name| PartitionId::from_dir_name(name).expect("an id");
    last.into_iter()
        .map(|((name, _), (latest, batch))| (id(name), latest, batch.clone()))
        .collect()
}

/// A batch of a producer, of as many records as in this one of the listing, `later` records behind it.
fn batch_of_producer(listed: &Value, later: i64) -> Vec<u8> {
    let number = |field: &str| listed[field].as_i64().expect("a number");
    let records = listed["records"].as_array().expect("records").len();
    let mut builder = BatchBuilder::new(Codec::None);
    for _ in 0..records {
        builder.push(START_MS, None, Some(b"sent again"), &[]);
    }
    let (epoch, sequence) = (number("producer_epoch"), number("base_sequence") + later);
    let mut out = Vec::new();
    builder
        .finish(
            number("producer_id"),
            epoch as i16,
            sequence as i32,
            &mut out,
        )
        .expect("a batch");
    out
}

/// The producers of a listing are known: what was there is not taken twice, what is next is taken.
fn knows_producers(broker: &Broker, listing: &Value) {
    let mut peer = broker.peer();
    let last = last_batches(listing);
    assert!(last.len() >= 2, "{} producers in the listing", last.len());
    let mut appended = BTreeMap::new();
    for (partition, latest, batch) in &last {
        let records = batch["records"].as_array().expect("records").len() as u64;
        let mut send = |later| {
            let batch = batch_of_producer(batch, later);
            peer.publish_with(DURABLE, *partition, batch)
                .expect("an acknowledgement")
        };
        let again = send(0);
        let base_offset = batch["base_offset"].as_u64().expect("an offset");
        assert!(again.duplicate, "appended once more: {batch}");
        assert_eq!(again.base_offset, base_offset);
        let next = send(records as i64);
        let more = appended.entry(*partition).or_insert(0);
        assert!(!next.duplicate);
        assert_eq!(next.base_offset, latest + *more);
        *more += records;
    }
}

#[test]
fn a_directory_of_every_released_version_is_opened_with_all_that_was_in_it() {
    for version in 1..=FORMAT {
        for state in STATES {
            let what = format!("v{version}-{state}");
            let (_home, data_dir) = unpack(version, state);
            let stored = fs::read(fixture(version, state, "json")).expect("a listing");
            let want: Value = serde_json::from_slice(&stored).expect("JSON");

            let verified = Cli::without_server()
                .run(&["verify", "--data-dir", text(&data_dir)])
                .ok();
            let left = match state {
                "clean" => "the broker stopped cleanly",
                _ => "the next start will replay",
            };
            assert!(verified.text().contains(left), "{what}: {verified:?}");

            let mut broker = Setup::new().data_dir(&data_dir).start();
            holds_all(&broker, &what, &want);
            assert_eq!(broker.stop(), exit::DONE);
            broker.restart_with(2);
            holds_all(&broker, &format!("{what}, stopped"), &want);
            broker.kill();
            broker.restart_with(1);
            holds_all(&broker, &format!("{what}, killed"), &want);
            knows_producers(&broker, &want);
        }
    }
}

#[test]
fn a_directory_of_a_later_version_is_refused_and_left_as_it_is() {
    for state in STATES {
        let (_home, data_dir) = unpack(FORMAT, state);
        let path = data_dir.join("identity");
        let before = fs::read(&path).expect("an identity");
        let mut later = before.clone();
        later[8..10].copy_from_slice(&(FORMAT + 1).to_le_bytes());
        // It may have fields that this version knows nothing of.
        later.extend([7; 16]);
        fs::write(&path, later).expect("a writable file");
        let found = tree(&data_dir);

        let versions = [
            format!("format {}", FORMAT + 1),
            format!("format {FORMAT}"),
            text(&path).to_owned(),
        ];
        let versions = versions.each_ref().map(String::as_str);
        let refusal = Setup::new().data_dir(&data_dir).refused();
        refusal.says(&versions);
        let code = refusal.status.code();
        assert_eq!(code, Some(exit::DIRECTORY_UNUSABLE), "{refusal:?}");
        for command in ["verify", "repair"] {
            let ended = Cli::without_server()
                .run(&[command, "--data-dir", text(&data_dir)])
                .failed();
            for word in versions {
                let said = format!("{}{}", ended.text(), ended.stderr);
                assert!(said.contains(word), "{command} does not say {word}: {said}");
            }
        }
        assert!(tree(&data_dir) == found, "something was changed: {state}");

        fs::write(&path, before).expect("a writable file");
        let _broker = Setup::new().data_dir(&data_dir).start();
    }
}
