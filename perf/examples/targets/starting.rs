//! How long a start takes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ringtide_client::sync::Client;
use ringtide_client::sync::{RawConnection, RawEvent};
use ringtide_client::{Acks, BatchBuilder, Codec, TopicSettings, Visibility};
use ringtide_perf::BenchError;
use ringtide_perf::flood::Publisher;
use ringtide_perf::limits::{read_direct, write_direct};
use ringtide_perf::lone_topic::{LoneTopic, options};

use crate::context::{Context, list, segments};
use crate::reading::BATCH;
use crate::report::{Line, Target, median};
use ringtide_perf::broker::{Broker, memory_and_files};

/// Makes topics and publishes a record to each of so many partitions, all durable in the end.
pub fn populate(broker: &Broker, partitions: u32) -> Result<(), BenchError> {
    const EACH: u32 = 1000;
    for first in (0..partitions).step_by(EACH as usize) {
        let name = format!("populated-{first}");
        populate_topic(broker, &name, EACH.min(partitions - first))?;
    }
    Ok(())
}

fn populate_topic(broker: &Broker, name: &str, partitions: u32) -> Result<(), BenchError> {
    let client = Client::connect([broker.server.as_str()], options())?;
    let topic = client.create_topic(name, partitions, &TopicSettings::default())?;
    let mut connection = RawConnection::connect(&broker.server, &options())?;
    let mut builder = BatchBuilder::new(Codec::None);
    let mut batch = Vec::new();
    builder.push(1, None, Some(b"a record"), &[]);
    builder
        .finish(-1, -1, -1, &mut batch)
        .map_err(|error| BenchError::Wrong(format!("a batch of one record: {error}")))?;
    let (mut published, mut acknowledged, mut refused) = (0, 0, None);
    while acknowledged < partitions {
        while published < partitions && connection.has_room() {
            connection.publish_batch(topic.partition(published), &batch, Acks::Durable)?;
            published += 1;
        }
        let arrived = connection.poll(|event| match event {
            RawEvent::Published { .. } => acknowledged += 1,
            RawEvent::Failed { error, .. } => refused = Some(error),
            _ => {}
        })?;
        if let Some(error) = refused {
            return Err(error.into());
        }
        if arrived == 0 {
            std::thread::yield_now();
        }
    }
    Ok(())
}

/// From the start of the process until it answers hello, after a clean stop.
pub fn ready(context: &Context) -> Result<Vec<Line>, BenchError> {
    [(1_000, 50.0), (10_000, 500.0)]
        .map(|(partitions, most_ms)| {
            let (broker, dir) = context.broker("ready")?;
            populate(&broker, partitions)?;
            broker.stop()?;
            let times = context.in_pairs(|_| ready_ms(context, &dir))?;
            let name = format!("ready, {partitions} partitions");
            Ok(Line::figure(name, "ms", times, Target::AtMost(most_ms)))
        })
        .into_iter()
        .collect()
}

fn ready_ms(context: &Context, dir: &Path) -> Result<f64, BenchError> {
    let broker = context.launch().start(dir, "spin", &[])?;
    let ready_after = broker.ready_after;
    broker.stop()?;
    Ok(ready_after.as_secs_f64() * 1000.0)
}

/// A directory of which nearly all are holes: how long it takes to start on it, and to verify it
/// beside reading it.
pub fn large(context: &Context) -> Result<Vec<Line>, BenchError> {
    let (broker, dir) = context.broker("large")?;
    let bytes = fill_with_zeros(&broker, &dir, context.large_bytes)?;
    broker.stop()?;
    let gib = bytes >> 30;
    let times = context.in_pairs(|_| ready_ms(context, &dir))?;
    let files = segments(&dir)?;
    let failed = "the segments cannot be read";
    let (read, _) = read_direct(&files).map_err(BenchError::io(failed))?;
    let began = Instant::now();
    let mut verify = Command::new(&context.binary)
        .args(["verify", "--data-dir"])
        .arg(&dir)
        .stdout(Stdio::null())
        .spawn()
        .map_err(BenchError::io("verify cannot be started"))?;
    let mut peak = 0;
    let status = loop {
        if let Ok((resident, _)) = memory_and_files(verify.id()) {
            peak = resident.max(peak);
        }
        let ended = verify
            .try_wait()
            .map_err(BenchError::io("cannot watch it"))?;
        if let Some(status) = ended {
            break status;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let took = began.elapsed().as_secs_f64();
    if !status.success() {
        return Err(BenchError::Wrong(format!("verify ended with {status}")));
    }
    let note = format!(
        "{} segments, {:.2} GB/s, {} MiB of memory at the most",
        files.len(),
        bytes as f64 / 1e9 / took,
        peak >> 20
    );
    Ok(vec![
        Line::figure(format!("ready, {gib} GiB"), "ms", times, Target::Nothing),
        Line::ratio(
            format!("verify {gib} GiB / reading them"),
            "s",
            [(read.as_secs_f64(), took)],
            Target::Nothing,
        )
        .noting(note),
    ])
}

/// Publishes zeros to four partitions, and makes holes of them in each segment that is sealed. How many bytes there are.
fn fill_with_zeros(broker: &Broker, dir: &Path, bytes: u64) -> Result<u64, BenchError> {
    const PARTITIONS: u32 = 4;
    const IN_FLIGHT: u64 = 16;
    let client = Client::connect([broker.server.as_str()], options())?;
    let settings = TopicSettings {
        segment_bytes: Some(1 << 30),
        retention_ms: Some(-1),
        ..TopicSettings::default()
    };
    let topic = client.create_topic("large", PARTITIONS, &settings)?;
    let mut connection = RawConnection::connect(&broker.server, &options())?;
    let mut builder = BatchBuilder::new(Codec::None);
    let mut batch = Vec::new();
    builder.push(1, None, Some(&vec![0; (1 << 20) - 4096]), &[]);
    builder
        .finish(-1, -1, -1, &mut batch)
        .map_err(|error| BenchError::Wrong(format!("a batch of zeros: {error}")))?;
    let all = bytes / batch.len() as u64;
    let (mut published, mut acknowledged, mut refused) = (0, 0, None);
    let mut dug: BTreeSet<PathBuf> = BTreeSet::new();
    let mut next_look = 0;
    while acknowledged < all {
        while published < all && published - acknowledged < IN_FLIGHT && connection.has_room() {
            let partition = (published % u64::from(PARTITIONS)) as u32;
            connection.publish_batch(topic.partition(partition), &batch, Acks::Durable)?;
            published += 1;
        }
        let arrived = connection.poll(|event| match event {
            RawEvent::Published { .. } => acknowledged += 1,
            RawEvent::Failed { error, .. } => refused = Some(error),
            _ => {}
        })?;
        if let Some(error) = refused {
            return Err(error.into());
        }
        if arrived == 0 {
            std::thread::yield_now();
        }
        if acknowledged >= next_look {
            next_look = acknowledged + (1 << 10);
            dig(dir, &mut dug)?;
        }
    }
    Ok(all * batch.len() as u64)
}

/// Makes holes of the zeros in sealed segments: those that have an index.
fn dig(dir: &Path, dug: &mut BTreeSet<PathBuf>) -> Result<(), BenchError> {
    for segment in segments(dir)? {
        if dug.contains(&segment) || !segment.with_extension("index").exists() {
            continue;
        }
        let status = Command::new("fallocate")
            .arg("--dig-holes")
            .arg(&segment)
            .status()
            .map_err(BenchError::io("fallocate cannot be run"))?;
        if !status.success() {
            return Err(BenchError::Wrong(format!("fallocate ended with {status}")));
        }
        dug.insert(segment);
    }
    Ok(())
}

/// A start that replays the log, beside reading it and writing the same bytes.
pub fn replay(context: &Context) -> Result<Vec<Line>, BenchError> {
    // Room for all of it and for what is not yet gathered; nothing is synced meanwhile.
    let slots = (context.bytes / (64 << 20) * 2 + 4).to_string();
    let more = ["--wal-slots", &slots, "--sync-interval-ms", "60000"];
    let mut said = Vec::new();
    let pairs = context.in_pairs(|_| {
        let dir = context.data_dir("replay")?;
        let broker = context.launch().start(&dir, "spin", &more)?;
        wait_for_slots(&broker, &dir, &slots)?;
        let topic = LoneTopic::create(&broker.server, None, Visibility::Durable)?;
        let mut publisher = Publisher::new(&topic, BATCH, Acks::Durable, 32)?;
        while publisher.acknowledged_bytes() < context.bytes {
            publisher.turn(usize::MAX)?;
        }
        publisher.drain()?;
        broker.kill();

        let broker = context.launch().start(&dir, "spin", &more)?;
        let took = broker.ready_after.as_secs_f64();
        let (bytes, ms) = replayed(&dir.with_extension("log"))?;
        said.push((bytes, ms));
        broker.kill();
        let limit = read_and_write(context, &dir, bytes)?;
        Ok((limit, took))
    })?;
    let bytes = median(said.iter().map(|&(bytes, _)| bytes as f64)) / f64::from(1 << 20);
    let ms = median(said.iter().map(|&(_, ms)| ms as f64));
    let note = format!(
        "the broker says {bytes:.0} MiB in {ms:.0} ms; its figure here is from exec to hello"
    );
    Ok(vec![
        Line::ratio(
            "replay / reading and writing",
            "s",
            pairs,
            Target::AtMost(1.3),
        )
        .noting(note),
    ])
}

fn wait_for_slots(broker: &Broker, dir: &Path, slots: &str) -> Result<(), BenchError> {
    let wanted: usize = slots.parse().unwrap_or(usize::MAX);
    crate::context::settle(broker)?;
    let have = wal_files(dir)?.len();
    if have < wanted {
        return Err(BenchError::Wrong(format!(
            "the log has {have} of {wanted} files"
        )));
    }
    Ok(())
}

fn wal_files(dir: &Path) -> Result<Vec<PathBuf>, BenchError> {
    let mut files = list(&dir.join("wal"))?;
    files.retain(|path| path.extension() == Some("wal".as_ref()));
    files.sort();
    Ok(files)
}

/// Bytes and milliseconds of the last replay that the broker's log tells of.
fn replayed(log: &Path) -> Result<(u64, u64), BenchError> {
    let text = std::fs::read_to_string(log)
        .map_err(BenchError::io(format!("cannot read {}", log.display())))?;
    let told = text.rsplit_once("replayed ").and_then(|(_, rest)| {
        let mut numbers = rest
            .split(|c: char| !c.is_ascii_digit())
            .filter(|n| !n.is_empty());
        let _batches = numbers.next()?;
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    });
    told.ok_or_else(|| BenchError::Wrong("the broker replayed nothing".into()))
}

/// Seconds of reading so many bytes of the log and writing as many to a new file.
fn read_and_write(context: &Context, dir: &Path, bytes: u64) -> Result<f64, BenchError> {
    let slots = wal_files(dir)?;
    let slot_bytes = std::fs::metadata(&slots[0])
        .map_err(BenchError::io("cannot look at the log"))?
        .len();
    let wanted = (bytes.div_ceil(slot_bytes) as usize).min(slots.len());
    let failed = "the limit of a replay cannot be measured";
    let (read, got) = read_direct(&slots[..wanted]).map_err(BenchError::io(failed))?;
    let path = context.home.join("written");
    let write = write_direct(&path, bytes).map_err(BenchError::io(failed))?;
    std::fs::remove_file(&path).map_err(BenchError::io(failed))?;
    Ok(read.as_secs_f64() * bytes as f64 / got as f64 + write.as_secs_f64())
}
