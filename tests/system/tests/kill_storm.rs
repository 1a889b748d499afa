//! SIGKILL under full load, again and again and at the moments that are the worst: while the broker
//! recovers, while a segment is rolled, while a slot of the log is recycled, while retention removes
//! files. What was acknowledged as durable is there each time: once, in order, byte for byte.
//!
//! Segments and the log are as small as they may be, so that each of these happens many times a second.
//! `RINGTIDE_KILLS` says how often the broker is killed, `RINGTIDE_SEED` when. 200 kills take 80 to 150 s
//! on two cores, by what else these do.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use ringtide_client::sync::Client;
use ringtide_client::{Options, ProducerOptions};
use ringtide_schema::identity::Identity;
use ringtide_schema::wal::SlotHeader;
use ringtide_system_tests::{Broker, Flow, Random, Setup, StopsAtEnd, table, wait};

const KILLS: usize = 200;
/// A record may be tried for as long as brokers are killed on the way.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(60);
/// So often everything that was acknowledged so far is read.
const CHECK_EVERY: usize = 20;
/// Of a segment of the topic that sheds, in bytes: some tens are rolled in a second.
const SEGMENT_BYTES: u32 = 256 << 10;
const RETENTION_BYTES: i64 = 4 << 20;
/// A kill comes so long, at most, after what it is meant to interrupt has shown itself, in microseconds.
const AFTER_US: u64 = 400;

// ---- what the data directory shows -------------------------------------------------------------

fn incarnation(data_dir: &Path) -> u64 {
    let bytes = fs::read(data_dir.join("identity")).expect("an identity");
    Identity::decode(&bytes).expect("an identity").incarnation
}

/// The slots of the log that this start has begun to use, by name, and how often the shard had used
/// slots before.
fn generations(data_dir: &Path, incarnation: u64) -> BTreeMap<PathBuf, (u16, u64)> {
    let mut block = [0; 4096];
    let headers = listed(&data_dir.join("wal"))
        .into_iter()
        .filter_map(|path| {
            File::open(&path).ok()?.read_exact_at(&mut block, 0).ok()?;
            let header = SlotHeader::decode(&block).ok()?;
            (header.incarnation == incarnation).then_some((path, (header.shard, header.generation)))
        });
    headers.collect()
}

/// The segments there are.
fn segments(data_dir: &Path) -> BTreeSet<PathBuf> {
    let of_partitions = listed(&data_dir.join("partitions"));
    let files = of_partitions.iter().flat_map(|partition| listed(partition));
    let is_segment = |path: &PathBuf| path.extension() == Some("log".as_ref());
    files.filter(is_segment).collect()
}

/// The files of a folder that is there, or was a moment ago.
fn listed(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// Whether the process has the data directory: recovery has begun.
fn holds_the_directory(pid: u32) -> bool {
    let open = listed(Path::new(&format!("/proc/{pid}/fd")));
    open.iter()
        .filter_map(|fd| fs::read_link(fd).ok())
        .any(|target| target.ends_with("lock"))
}

// ---- when to kill ------------------------------------------------------------------------------

/// What a kill is meant to interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    /// Whatever is under way.
    Any,
    /// The start: recovery, or what follows it.
    Start,
    /// A segment was begun just now, the one before it is being sealed.
    Roll,
    /// A slot of the log was freed, or used again, just now.
    Recycling,
    /// Retention has just removed a segment.
    Retention,
}

impl Moment {
    /// Retention looks once a second, so that not many kills can wait for it.
    fn of(kill: usize, random: &mut Random) -> Self {
        match (kill % 16, random.below(4)) {
            (0, _) => Self::Retention,
            (_, 0) => Self::Any,
            (_, 1) => Self::Start,
            (_, 2) => Self::Roll,
            _ => Self::Recycling,
        }
    }
}

/// Waits until the data directory shows what is meant to be interrupted.
fn wait_for(moment: Moment, broker: &mut Broker, random: &mut Random) {
    let dir = broker.data_dir().to_owned();
    let spell = Duration::from_micros(random.below(200_000));
    let began = Instant::now();
    let incarnation = incarnation(&dir);
    let mut used = generations(&dir, incarnation);
    let mut before = segments(&dir);
    let mut has_come = || match moment {
        Moment::Any | Moment::Start => began.elapsed() >= spell,
        Moment::Roll => {
            let now = segments(&dir);
            let rolled = !now.is_subset(&before);
            before.extend(now);
            rolled
        }
        Moment::Retention => {
            let now = segments(&dir);
            let removed = !before.is_subset(&now);
            before.extend(now);
            removed
        }
        Moment::Recycling => {
            let now = generations(&dir, incarnation);
            let recycled = used.iter().any(|(slot, was)| now.get(slot) != Some(was));
            used.extend(now);
            recycled
        }
    };
    let deadline = Instant::now() + wait::PATIENCE;
    while !has_come() {
        broker.still_runs();
        assert!(Instant::now() < deadline, "{moment:?} never came");
        std::thread::sleep(Duration::from_micros(50));
    }
    std::thread::sleep(Duration::from_micros(random.below(AFTER_US)));
}

/// Starts the broker and kills it on the way: mostly while it recovers, else when it has taken the directory
/// over and begins to serve. Gives whether it had not taken it over: then the next start finds the same log.
fn kill_in_start(broker: &mut Broker, shards: usize, random: &mut Random) -> bool {
    let before = incarnation(broker.data_dir());
    let is_late = random.percent(25);
    let most = if is_late { 5_000 } else { 60_000 };
    let delay = Duration::from_micros(random.below(most));
    let mut since = None;
    broker.start_and_kill_when(shards, |broker| {
        let has_begun = match is_late {
            true => incarnation(broker.data_dir()) > before,
            false => holds_the_directory(broker.pid()),
        };
        if since.is_none() && has_begun {
            since = Some(Instant::now());
        }
        since.is_some_and(|since| since.elapsed() >= delay)
    });
    incarnation(broker.data_dir()) == before
}

// ---- the storm ---------------------------------------------------------------------------------

/// What the kills interrupted.
#[derive(Debug, Default)]
struct Seen {
    kills: usize,
    /// In a start, before it had taken the directory over.
    in_recovery: usize,
    /// In a start, later.
    in_start: usize,
    /// With the log used since the last start by more than an empty frame.
    with_log: usize,
    /// Just after a segment was begun.
    at_roll: usize,
    /// Of all kills, in rounds in which a segment was begun.
    rolled: usize,
    /// Just after a slot was freed or used again.
    at_recycling: usize,
    /// Just after retention had removed a segment.
    at_retention: usize,
}

fn kills() -> usize {
    match std::env::var("RINGTIDE_KILLS") {
        Ok(text) => text.parse().expect("RINGTIDE_KILLS is a number"),
        Err(_) => KILLS,
    }
}

/// One kill. The broker is down before and after.
fn round(broker: &mut Broker, flows: &[Flow], random: &mut Random, seen: &mut Seen) {
    let shards = 1 + random.below(2) as usize;
    let moment = Moment::of(seen.kills, random);
    seen.kills += 1;
    if moment == Moment::Start {
        match kill_in_start(broker, shards, random) {
            true => seen.in_recovery += 1,
            false => seen.in_start += 1,
        }
        return;
    }
    let before: Vec<u64> = flows.iter().map(Flow::acknowledged).collect();
    let segments_before = segments(broker.data_dir());
    broker.restart_with(shards);
    for (flow, before) in flows.iter().zip(before) {
        wait::for_it("acknowledgements after a kill", || {
            broker.still_runs();
            flow.acknowledged() > before
        });
    }
    wait_for(moment, broker, random);
    broker.kill();
    match moment {
        Moment::Roll => seen.at_roll += 1,
        Moment::Recycling => seen.at_recycling += 1,
        Moment::Retention => seen.at_retention += 1,
        Moment::Any | Moment::Start => {}
    }
    let dir = broker.data_dir();
    seen.rolled += usize::from(!segments(dir).is_subset(&segments_before));
    seen.with_log += usize::from(!generations(dir, incarnation(dir)).is_empty());
}

#[test]
fn what_was_acknowledged_outlasts_a_storm_of_kills() {
    let mut random = Random::from_env(23);
    let mut broker = Setup::new()
        .shards(2)
        .args(&["--wal-slots", "3", "--sync-interval-ms", "20"])
        .start();
    let mut peer = broker.peer();
    peer.create_topic("kept", 2);
    let shedding = table!(TopicSettingsT {
        segment_bytes: Some(SEGMENT_BYTES),
        retention_bytes: Some(RETENTION_BYTES),
    });
    peer.create_topic_with("shed", 2, shedding)
        .expect("a topic");
    drop(peer);
    let flows = [
        Flow::new("kept", 2, 300),
        Flow::new("shed", 2, 8 << 10).shedding(),
    ];
    // Small records one by one, and as many large ones as go through.
    let options = ProducerOptions::new().delivery_timeout(DELIVERY_TIMEOUT);
    let options = [
        options.clone().batch_bytes(4 << 10).buffer_bytes(64 << 10),
        options.batch_bytes(64 << 10).buffer_bytes(2 << 20),
    ];
    let address = broker.address(0);
    let stop = AtomicBool::new(false);
    let mut seen = Seen::default();
    let began = Instant::now();
    std::thread::scope(|scope| {
        for (flow, options) in flows.iter().zip(&options) {
            let stop = &stop;
            scope.spawn(move || {
                let quick = Duration::from_millis(20);
                let patience = Options::new().backoff(Duration::from_millis(2), quick);
                let client = wait::until("a connection", || {
                    Client::connect([address.to_string()], patience.clone()).ok()
                });
                flow.publish(&client, options, Duration::ZERO, stop);
            });
        }
        // A failure here must not leave the publishers waiting.
        let stopped = StopsAtEnd(&stop);
        for flow in &flows {
            wait::for_it("the first records", || flow.acknowledged() > 100);
        }
        broker.kill();
        let mut read = vec![[0; 2]; flows.len()];
        for kill in 0..kills() {
            round(&mut broker, &flows, &mut random, &mut seen);
            if kill % CHECK_EVERY == CHECK_EVERY - 1 {
                broker.restart_with(1 + kill % 2);
                for (flow, read) in flows.iter().zip(&mut read) {
                    flow.check(&broker, read);
                }
                broker.kill();
            }
        }
        broker.restart_with(2);
        drop(stopped);
    });
    let storm = began.elapsed();

    for flow in &flows {
        flow.check(&broker, &mut [0; 2]);
        flow.check_ends(&broker);
    }
    assert_eq!(broker.stop(), 0);
    let published: Vec<u64> = flows.iter().map(Flow::acknowledged).collect();
    eprintln!(
        "{published:?} records, {storm:?}, then {:?} to read all: {seen:?}",
        began.elapsed() - storm
    );
    // Each kind of kill is about a quarter of them; far fewer would mean that they miss.
    let some = seen.kills / 16;
    assert!(
        seen.in_recovery >= some / 2 && seen.in_start >= some / 8,
        "{seen:?}"
    );
    assert!(seen.at_roll >= some && seen.rolled >= 2 * some, "{seen:?}");
    assert!(seen.at_recycling >= some, "{seen:?}");
    assert!(seen.at_retention >= some, "{seen:?}");
    assert!(seen.with_log >= 4 * some, "{seen:?}");
}
