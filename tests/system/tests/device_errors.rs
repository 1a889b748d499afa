//! Errors of the device (EIO) under a real kernel: the broker runs on an ext4 whose disk fails at what a test says. A
//! write or a flush that failed is final: the broker acknowledges nothing behind it and ends with the code of what failed,
//! and once the device is well again everything acknowledged is there. What cannot be read is refused, and nothing else is.
//!
//! Each test sees that its requests did fail.

use std::collections::VecDeque;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ringtide_schema::error_code::ErrorCode;
use ringtide_schema::ids::PartitionId;
use ringtide_schema::limits::BLOCK_BYTES;
use ringtide_schema::snapshot;
use ringtide_schema::wal::{FRAME_CLOSING, FrameHeader};
use ringtide_system_tests::{
    Broker, Cli, DiskRequest, Fault, MountedDisk, Peer, Random, Rec, RecordedDisk, Setup, exit,
    extents, part_of, single, skip, table, wait,
};
use rustix::process::Signal;

const DISK_BYTES: u64 = 64 << 20;
/// Slots of the log of a shard under test, unless it is told otherwise.
const SLOTS: usize = 4;
const DURABLE: u8 = 2;
/// Publishes that wait for their acknowledgement at the same time.
const IN_FLIGHT: usize = 8;
/// Acknowledgements before the disk fails.
const BEFORE: u64 = 40;
/// Begins each record, so that writes of records are known from others.
const MARK: &[u8] = b"record of the test ";
/// Begins a block of ext4's journal that is not data.
const JOURNAL_MARK: &[u8] = &0xc03b_3998_u32.to_be_bytes();
/// Begins a snapshot.
const SNAPSHOT_MARK: &[u8] = b"RTSNAPSH";

/// The disk, unless it cannot be had here.
fn mounted(name: &str, image: Result<Vec<u8>, String>) -> Option<RecordedDisk> {
    let mut random = Random::new(31);
    match image.and_then(|image| RecordedDisk::mount(image, &mut random)) {
        Ok(disk) => Some(disk),
        Err(reason) => {
            skip(name, &reason);
            None
        }
    }
}

/// Where the log is on the disk, once all of its slots are made.
fn log_ranges(broker: &Broker) -> Vec<Range<u64>> {
    let slots = wait::until("every slot of the log", || {
        let slots: Vec<PathBuf> = fs::read_dir(broker.data_dir().join("wal"))
            .ok()?
            .map(|entry| entry.expect("an entry").path())
            .filter(|path| path.extension().is_some_and(|e| e == "wal"))
            .collect();
        (slots.len() == SLOTS * broker.shards()).then_some(slots)
    });
    let ranges = slots
        .iter()
        .flat_map(|slot| extents(slot).expect("a slot on a device"));
    ranges.collect()
}

fn holds(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

// ---- what is published ----------------------------------------------------------------------------

fn value(offset: u64) -> Vec<u8> {
    let mut random = Random::new(offset);
    let bytes = 500 + random.below(1500);
    [MARK, &random.bytes(bytes as usize)].concat()
}

/// Publishes from an offset on, always some under way, until `goes_on` says no, or the broker answers no more. Gives the
/// end of what was acknowledged, and of what was sent.
fn publish_while(
    peer: &mut Peer,
    partition: PartitionId,
    from: u64,
    mut goes_on: impl FnMut(u64) -> bool,
) -> (u64, u64) {
    let mut under_way = VecDeque::new();
    let (mut acknowledged, mut sent) = (from, from);
    loop {
        let is_wanted = goes_on(acknowledged);
        while is_wanted && under_way.len() < IN_FLIGHT {
            let parts = [(partition, single(value(sent)))];
            under_way.push_back(peer.send_publish(DURABLE, &parts));
            sent += 1;
        }
        let Some(correlation) = under_way.pop_front() else {
            return (acknowledged, sent);
        };
        match peer.published(correlation, 1).map(|mut r| r.remove(0)) {
            Ok(Ok(published)) => {
                assert_eq!(published.base_offset, acknowledged, "dense and in order");
                acknowledged += 1;
            }
            Ok(Err(Fault::Silent)) | Err(Fault::Silent) => panic!("the broker hangs"),
            // Refused, or closed: nothing behind it is acknowledged.
            Ok(Err(_)) | Err(_) => return (acknowledged, sent),
        }
    }
}

/// What was acknowledged is there, and nothing but what was sent; gives where it ends.
fn holds_all(broker: &Broker, partition: PartitionId, acknowledged: u64, sent: u64) -> u64 {
    let mut peer = broker.peer();
    let end = peer.list_offsets(partition, -1).expect("an offset").offset;
    assert!(
        (acknowledged..=sent).contains(&end),
        "{end} records; {acknowledged} were acknowledged and {sent} sent"
    );
    let records = peer.fetch_to(partition, 0, end);
    for (offset, record) in (0..end).zip(&records) {
        let is_right = record.offset == offset && record.value == Some(value(offset));
        assert!(is_right, "another record at {offset}");
    }
    end
}

/// The broker ended with this code and said this; `from` is where its log began to be of interest.
fn ended_with(broker: &mut Broker, from: usize, code: i32, words: &[&str]) {
    let status = broker.wait_end();
    let said = broker.log()[from..].to_owned();
    assert_eq!(status.code(), Some(code), "{said}");
    let exit_code = format!("\"exit_code\":{code}");
    for word in words.iter().chain(&[exit_code.as_str()]) {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
}

// ---- writes -----------------------------------------------------------------------------------------

#[test]
fn a_log_write_that_fails_is_final_and_takes_no_acknowledgement_back() {
    let name = "a_log_write_that_fails_is_final_and_takes_no_acknowledgement_back";
    let Some(disk) = mounted(name, RecordedDisk::blank_ext4(DISK_BYTES)) else {
        return;
    };
    let mut broker = Setup::new().data_dir(&disk.path().join("data")).start();
    let partition = broker.peer().create_topic("kept", 1).partition(0);
    let mut end = 0;
    // One that fails alone, so that another try would succeed, and all from then on.
    for fails in [1, usize::MAX] {
        let log = log_ranges(&broker);
        let (said, failed) = (broker.log().len(), disk.failed_requests());
        let mut is_failing = false;
        let (acknowledged, sent) =
            publish_while(&mut broker.peer(), partition, end, |acknowledged| {
                if acknowledged == end + BEFORE && !is_failing {
                    is_failing = true;
                    let (log, mut left) = (log.clone(), fails);
                    disk.fail_when(move |asked, _| {
                        let is_log = asked.request == DiskRequest::Write && asked.touches(&log);
                        let fails = is_log && left > 0;
                        left -= usize::from(fails);
                        fails
                    });
                }
                true
            });
        let words = ["/wal/", "Input/output error"];
        ended_with(&mut broker, said, exit::LOG_FAILED, &words);
        assert!(disk.failed_requests() > failed, "nothing failed");
        assert!(acknowledged >= end + BEFORE);
        disk.heal();
        disk.remount("rw");
        broker.restart();
        end = holds_all(&broker, partition, acknowledged, sent);
    }
    broker.peer().put(partition, value(end));
    holds_all(&broker, partition, end + 1, end + 1);
}

#[test]
fn a_segment_write_that_fails_is_final_and_takes_no_acknowledgement_back() {
    let name = "a_segment_write_that_fails_is_final_and_takes_no_acknowledgement_back";
    let Some(disk) = mounted(name, RecordedDisk::blank_ext4(DISK_BYTES)) else {
        return;
    };
    let data_dir = disk.path().join("data");
    let mut broker = Setup::new().shards(2).data_dir(&data_dir).start();
    let topic = broker.peer().create_topic("kept", 8);
    let (sound, partition) = (topic.on_shard(0), topic.on_shard(1));
    broker.peer().put(sound, "of the other shard");
    let log = log_ranges(&broker);
    let said = broker.log().len();
    disk.fail_when(move |asked, _| {
        asked.request == DiskRequest::Write && !asked.touches(&log) && holds(asked.data, MARK)
    });
    let (acknowledged, sent) = publish_while(&mut broker.peer_at(1), partition, 0, |_| true);
    let words = ["/partitions/", "Input/output error"];
    ended_with(&mut broker, said, exit::SEGMENT_FAILED, &words);
    assert!(disk.failed_requests() > 0, "nothing failed");
    assert!(acknowledged > BEFORE, "{acknowledged} were acknowledged");
    disk.heal();
    disk.remount("rw");
    broker.restart();
    holds_all(&broker, partition, acknowledged, sent);
    assert_eq!(broker.peer().fetch_to(sound, 0, 1).len(), 1);
}

#[test]
fn a_snapshot_that_cannot_be_written_ends_a_stop_with_its_code_and_loses_nothing() {
    let name = "a_snapshot_that_cannot_be_written_ends_a_stop_with_its_code_and_loses_nothing";
    let Some(disk) = mounted(name, RecordedDisk::blank_ext4(DISK_BYTES)) else {
        return;
    };
    let mut broker = Setup::new().data_dir(&disk.path().join("data")).start();
    let partition = broker.peer().create_topic("kept", 1).partition(0);
    let (acknowledged, sent) =
        publish_while(&mut broker.peer(), partition, 0, |end| end < 2 * BEFORE);
    let said = broker.log().len();
    disk.fail_when(|asked, _| {
        asked.request == DiskRequest::Write && asked.data.starts_with(SNAPSHOT_MARK)
    });
    broker.signal(Signal::TERM);
    let words = [".snapshot", "Input/output error"];
    ended_with(&mut broker, said, exit::SNAPSHOT_FAILED, &words);
    assert!(disk.failed_requests() > 0, "nothing failed");
    disk.heal();
    disk.remount("rw");
    broker.restart();
    holds_all(&broker, partition, acknowledged, sent);
}

// ---- flushes ----------------------------------------------------------------------------------------

/// Whether the log is at rest: its last frame is a closing one, and a flush has covered all of it.
fn is_quiet(disk: &RecordedDisk, log: &[Range<u64>]) -> bool {
    let trace = disk.trace();
    let medium = trace.medium(trace.len());
    let part = |r: &Range<u64>| r.start as usize..r.end as usize;
    let blocks = log
        .iter()
        .flat_map(|range| trace.bytes()[part(range)].chunks_exact(BLOCK_BYTES));
    let frames = blocks.filter_map(|block| FrameHeader::decode(block).ok());
    let last = frames.max_by_key(|(frame, _)| (frame.incarnation, frame.frame_seq));
    last.is_some_and(|(frame, _)| frame.flags & FRAME_CLOSING != 0)
        && log
            .iter()
            .all(|range| medium[part(range)] == trace.bytes()[part(range)])
}

#[test]
fn a_segment_whose_flush_failed_once_is_not_believed_when_the_next_one_succeeds() {
    let name = "a_segment_whose_flush_failed_once_is_not_believed_when_the_next_one_succeeds";
    // A journal would stop the file system at the error, and every later flush with it.
    let image = RecordedDisk::blank_ext4_without_journal(DISK_BYTES);
    let Some(disk) = mounted(name, image) else {
        return;
    };
    let mut broker = Setup::new()
        // Segments are flushed when the broker is stopped.
        .args(&["--sync-interval-ms", "60000"])
        .data_dir(&disk.path().join("data"))
        .start();
    let partition = broker.peer().create_topic("kept", 1).partition(0);
    let log = log_ranges(&broker);
    let mut peer = broker.peer();
    let (mut acknowledged, mut sent) = publish_while(&mut peer, partition, 0, |end| end < 600);
    assert_eq!(acknowledged, sent);
    let directory = broker.data_dir().join("partitions");
    let segment = directory
        .join(partition.dir_name())
        .join(format!("{:020}.log", 0));
    wait::for_it("a segment that is written", || {
        fs::metadata(&segment).is_ok_and(|m| m.len() > 0)
    });
    // Some blocks that only the stop writes: a flush of the log would have covered what is written already.
    wait::for_it("records that are not in the segment", || {
        let from = acknowledged;
        (acknowledged, sent) = publish_while(&mut peer, partition, from, |end| end < from + 16);
        assert_eq!(acknowledged, sent);
        wait::for_it("a log at rest", || is_quiet(&disk, &log));
        !holds(&fs::read(&segment).expect("a segment"), &value(from))
    });

    // The cache fails: the flush reports it, once, and what it was to put on the medium is gone.
    let said = broker.log().len();
    let lost = Arc::new(AtomicUsize::new(0));
    let counted = lost.clone();
    disk.fail_when(move |asked, trace| {
        let is_first = counted.load(Ordering::SeqCst) == 0;
        if asked.request != DiskRequest::Flush || !is_first {
            return false;
        }
        let is_log = |position: u64| log.iter().any(|range| range.contains(&position));
        let gone = trace.lose(|position, data| !is_log(position as u64) && holds(data, MARK));
        counted.store(gone, Ordering::SeqCst);
        gone > 0
    });
    broker.signal(Signal::TERM);
    let words = ["cannot sync", ".log", "Input/output error"];
    ended_with(&mut broker, said, exit::SEGMENT_FAILED, &words);
    assert_eq!(disk.failed_requests(), 1);
    assert!(lost.load(Ordering::SeqCst) > 0);
    disk.heal();
    disk.remount("rw");
    let data_dir = broker.data_dir().display().to_string();
    let verified = Cli::without_server().run(&["verify", "--data-dir", &data_dir]);
    let verified = verified.ok();
    assert!(
        verified.text().contains("the next start will replay"),
        "{verified:?}"
    );
    broker.restart();
    holds_all(&broker, partition, acknowledged, sent);
}

// ---- a file system that turns read-only ------------------------------------------------------------

#[test]
fn a_file_system_that_turns_read_only_ends_the_broker_and_takes_no_acknowledgement_back() {
    let name =
        "a_file_system_that_turns_read_only_ends_the_broker_and_takes_no_acknowledgement_back";
    let Some(disk) = mounted(name, RecordedDisk::blank_ext4(DISK_BYTES)) else {
        return;
    };
    let mut broker = Setup::new().data_dir(&disk.path().join("data")).start();
    let partition = broker.peer().create_topic("kept", 1).partition(0);
    let said = broker.log().len();
    let others = disk.path().join("others");
    let mut is_read_only = false;
    let (acknowledged, sent) = publish_while(&mut broker.peer(), partition, 0, |acknowledged| {
        if acknowledged >= BEFORE && !is_read_only {
            is_read_only = true;
            disk.fail_when(|asked, _| {
                asked.request == DiskRequest::Write && asked.data.starts_with(JOURNAL_MARK)
            });
            // The journal is what ext4 cannot do without: it allows no change any more.
            wait::for_it("a file system without changes", || {
                let written =
                    fs::write(&others, "x").and_then(|()| fs::File::open(&others)?.sync_all());
                let error = written.err();
                error.is_some_and(|e| e.kind() == std::io::ErrorKind::ReadOnlyFilesystem)
            });
        }
        true
    });
    let status = broker.wait_end();
    let log = broker.log()[said..].to_owned();
    // What met it first: the log, a segment, or a snapshot.
    let codes = exit::LOG_FAILED..=exit::SNAPSHOT_FAILED;
    assert!(
        status.code().is_some_and(|code| codes.contains(&code)),
        "{status}: {log}"
    );
    let words = ["Read-only file system", "Input/output error"];
    assert!(words.iter().any(|word| log.contains(word)), "{log}");
    assert!(disk.failed_requests() > 0, "nothing failed");
    let refusal = broker.restart_refused();
    refusal.says(&["Read-only file system", "Mount the file system writable"]);
    let code = refusal.status.code();
    assert_eq!(code, Some(exit::DIRECTORY_UNUSABLE), "{refusal:?}");

    disk.heal();
    disk.remount("rw");
    broker.restart();
    holds_all(&broker, partition, acknowledged, sent);
}

#[test]
fn a_file_system_that_is_shut_down_ends_the_broker_and_takes_no_acknowledgement_back() {
    let name = "a_file_system_that_is_shut_down_ends_the_broker_and_takes_no_acknowledgement_back";
    let disk = match MountedDisk::xfs(DISK_BYTES) {
        Ok(disk) => disk,
        Err(reason) => return skip(name, &reason),
    };
    let mut broker = Setup::new().data_dir(&disk.path().join("data")).start();
    let partition = broker.peer().create_topic("kept", 1).partition(0);
    let said = broker.log().len();
    let mut shut_down = None;
    let (acknowledged, sent) = publish_while(&mut broker.peer(), partition, 0, |acknowledged| {
        if acknowledged >= 10 * BEFORE && shut_down.is_none() {
            shut_down = Some(disk.shut_down());
        }
        true
    });
    shut_down.expect("a shutdown").expect("xfs_io");
    let status = broker.wait_end();
    let log = broker.log()[said..].to_owned();
    let codes = exit::LOG_FAILED..=exit::SNAPSHOT_FAILED;
    assert!(
        status.code().is_some_and(|code| codes.contains(&code)),
        "{status}: {log}"
    );
    assert!(log.contains("Input/output error"), "{log}");
    disk.mount_again();
    broker.restart();
    holds_all(&broker, partition, acknowledged, sent);
}

/// The files with this ending below a directory.
fn files_with(directory: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files_with(&path, ending));
        } else if path.extension().is_some_and(|e| e == ending) {
            found.push(path);
        }
    }
    found
}

#[test]
fn a_directory_that_is_mounted_read_only_is_refused_to_a_broker_verified_and_inspected() {
    let name =
        "a_directory_that_is_mounted_read_only_is_refused_to_a_broker_verified_and_inspected";
    let disk = match MountedDisk::ext4(DISK_BYTES) {
        Ok(disk) => disk,
        Err(reason) => return skip(name, &reason),
    };
    let data_dir = disk.path().join("data");
    let mut broker = Setup::new().data_dir(&data_dir).start();
    let settings = table!(TopicSettingsT {
        segment_bytes: Some(64 << 10)
    });
    let topic = broker.peer().create_topic_with("kept", 1, settings);
    let partition = topic.expect("a new topic").partition(0);
    let data_dir_arg = data_dir.display().to_string();
    let cli = |command: &str| Cli::without_server().run(&[command, "--data-dir", &data_dir_arg]);
    let mut end = 0;
    for is_killed in [false, true] {
        let to = end + 4 * BEFORE;
        (end, _) = publish_while(&mut broker.peer(), partition, end, |end| end < to);
        match is_killed {
            true => broker.kill(),
            false => assert_eq!(broker.stop(), exit::DONE),
        }
        disk.remount("ro");

        let refusal = broker.restart_refused();
        refusal.says(&[
            &data_dir_arg,
            "Read-only file system",
            "Mount the file system writable",
        ]);
        let code = refusal.status.code();
        assert_eq!(code, Some(exit::DIRECTORY_UNUSABLE), "{refusal:?}");
        let doctor = cli("doctor");
        assert_eq!(doctor.code(), exit::DIRECTORY_UNUSABLE, "{doctor:?}");
        assert!(
            doctor.text().contains("Mount the file system writable"),
            "{doctor:?}"
        );
        let repair = cli("repair").failed();
        assert_eq!(repair.code(), exit::DIRECTORY_UNUSABLE, "{repair:?}");

        let verified = cli("verify").ok();
        let words = match is_killed {
            true => "the next start will replay",
            false => "the broker stopped cleanly",
        };
        assert!(verified.text().contains(words), "{verified:?}");
        for (kind, ending) in [
            ("wal", "wal"),
            ("segment", "log"),
            ("index", "index"),
            ("snapshot", "snapshot"),
        ] {
            let files = files_with(&data_dir, ending);
            assert!(!files.is_empty(), "no {kind}");
            for file in files {
                let path = file.display().to_string();
                let _ = Cli::without_server().run(&["inspect", kind, &path]).ok();
            }
        }

        disk.remount("rw");
        broker.restart();
        end = holds_all(&broker, partition, end, end);
    }
}

// ---- reads ------------------------------------------------------------------------------------------

/// What readers of a partition found, who come back behind what a refusal names, and when they are disconnected.
struct Found {
    records: Vec<Rec>,
    refused: Vec<u64>,
    connections: usize,
}

fn read_around(broker: &Broker, shard: usize, partition: PartitionId, end: u64) -> Found {
    let mut found = Found {
        records: Vec::new(),
        refused: Vec::new(),
        connections: 0,
    };
    let mut at = 0;
    while at < end {
        found.connections += 1;
        assert!(found.connections < 20, "disconnected without end");
        let mut peer = broker.peer_at(shard);
        while at < end {
            let correlation = peer.send_fetch(partition, at, 256 << 10, 1, 10_000);
            match peer.answer(correlation) {
                Ok(answer) => {
                    let mut records = answer.records();
                    records.retain(|record| record.offset >= at);
                    at = records.last().expect("records").offset + 1;
                    found.records.append(&mut records);
                }
                Err(Fault::Closed) => break,
                Err(Fault::Refused(refused)) => {
                    assert_eq!(refused.code, ErrorCode::DataUnreadable, "{refused:?}");
                    let words: Vec<&str> = refused.message.split(' ').collect();
                    let ["offsets", _, "to", to, "of", ..] = words[..] else {
                        panic!("offsets are not named: {refused:?}");
                    };
                    let behind = to.parse::<u64>().expect("an offset") + 1;
                    found.refused.extend(at..behind);
                    at = behind;
                }
                Err(Fault::Silent) => panic!("no answer at {at}"),
            }
        }
    }
    found
}

#[test]
fn what_the_device_cannot_read_is_refused_and_all_around_it_is_delivered() {
    const RECORDS: u64 = 60;
    const RECORD_BYTES: usize = 16 << 10;
    let name = "what_the_device_cannot_read_is_refused_and_all_around_it_is_delivered";
    let Some(disk) = mounted(name, RecordedDisk::blank_ext4(DISK_BYTES)) else {
        return;
    };
    let mut broker = Setup::new()
        .shards(2)
        .data_dir(&disk.path().join("data"))
        .start();
    let mut peer = broker.peer();
    let large = |offset: u64| Random::new(offset).bytes(RECORD_BYTES);
    let [damaged, whole] = ["damaged", "whole"].map(|topic| {
        let settings = table!(TopicSettingsT {
            segment_bytes: Some(512 << 10)
        });
        let topic = peer.create_topic_with(topic, 1, settings);
        let partition = topic.expect("a new topic").partition(0);
        for offset in 0..RECORDS {
            peer.put(partition, large(offset));
        }
        partition
    });
    assert_eq!(broker.stop(), exit::DONE);
    // Nothing of it is in the page cache then.
    disk.remount("rw");
    let directory = broker.data_dir().join("partitions");
    let segment = directory
        .join(damaged.dir_name())
        .join(format!("{:020}.log", 0));
    let bad = part_of(
        &extents(&segment).expect("a segment on a device"),
        &(300 << 10..304 << 10),
    );
    disk.fail_when(move |asked, _| asked.request == DiskRequest::Read && asked.touches(&bad));
    broker.restart();

    // Through either shard: the one that has the partition sends from the file, the other is sent what was read.
    for shard in 0..2 {
        let found = read_around(&broker, shard, damaged, RECORDS);
        assert!(disk.failed_requests() > 0, "nothing failed");
        // Those around the damage that the kernel reads at once with it, and no others.
        let distance = |offset: &u64| (offset * RECORD_BYTES as u64).abs_diff(300 << 10);
        assert!(
            !found.refused.is_empty() && found.refused.iter().all(|o| distance(o) < 160 << 10),
            "{:?}",
            found.refused
        );
        let others = (0..RECORDS).filter(|offset| !found.refused.contains(offset));
        assert!(
            others
                .zip(&found.records)
                .all(|(offset, record)| (record.offset, &record.value)
                    == (offset, &Some(large(offset)))),
            "what is not damaged is not all there"
        );
        let total = found.records.len() + found.refused.len();
        assert_eq!(total as u64, RECORDS);
    }
    let mut peer = broker.peer();
    assert_eq!(peer.fetch_to(whole, 0, RECORDS).len() as u64, RECORDS);

    // A consumer ends, and says which partition it could not read.
    let told = broker.cli().run(&["consume", "damaged"]).failed();
    assert!(told.stderr.contains("cannot be read"), "{told:?}");
    broker.still_runs();
    assert_eq!(broker.stop(), exit::DONE);
    let data_dir = broker.data_dir().display().to_string();
    let verified = Cli::without_server().run(&["verify", "--data-dir", &data_dir]);
    assert_eq!(verified.code(), exit::PROBLEMS_FOUND, "{verified:?}");
    for word in [
        "PROBLEM",
        &segment.display().to_string(),
        "Input/output error",
    ] {
        assert!(verified.text().contains(word), "{word:?}: {verified:?}");
    }

    // The device is well again.
    disk.heal();
    broker.restart();
    let found = read_around(&broker, 0, damaged, RECORDS);
    assert_eq!(
        (found.records.len() as u64, found.connections),
        (RECORDS, 1)
    );
}

#[test]
fn an_open_segment_that_cannot_be_read_costs_its_readers_and_no_writer() {
    const RECORDS: u64 = 200;
    const RECORD_BYTES: usize = 16 << 10;
    let name = "an_open_segment_that_cannot_be_read_costs_its_readers_and_no_writer";
    let large = |offset: u64| Random::new(offset).bytes(RECORD_BYTES);
    let batch_bytes = single(large(0)).len() as u64;
    // The block in which a batch begins, by which the next one is found, and one in the middle of a batch.
    let (header, body) = (19 * batch_bytes, 19 * batch_bytes + batch_bytes / 2);
    for (is_killed, position) in [(false, header), (true, header), (false, body)] {
        let Some(disk) = mounted(name, RecordedDisk::blank_ext4(DISK_BYTES)) else {
            return;
        };
        let mut broker = Setup::new()
            .shards(2)
            .data_dir(&disk.path().join("data"))
            .start();
        let mut peer = broker.peer();
        let both = ["damaged", "whole"].map(|topic| peer.create_topic(topic, 1).partition(0));
        let [damaged, whole] = both;
        let directory = broker.data_dir().join("partitions");
        let segment = |base: u64| {
            let directory = directory.join(damaged.dir_name());
            directory.join(format!("{base:020}.log"))
        };
        let bytes_of = |base| fs::metadata(segment(base)).map_or(0, |m| m.len());
        let publish = |broker: &Broker, offsets: Range<u64>| {
            let mut peer = broker.peer();
            for partition in both {
                for offset in offsets.clone() {
                    assert_eq!(peer.put(partition, large(offset)), offset);
                }
            }
        };
        publish(&broker, 0..RECORDS);
        wait::for_it("a segment that is written", || {
            bytes_of(0) > position + batch_bytes
        });
        match is_killed {
            true => broker.kill(),
            false => assert_eq!(broker.stop(), exit::DONE),
        }
        // Nothing of it is in the page cache then.
        disk.remount("rw");
        let block = position / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
        let place = || {
            let extents = extents(&segment(0)).expect("a segment on a device");
            part_of(&extents, &(block..block + BLOCK_BYTES as u64))
        };
        let bad = place();
        let touched = bad.clone();
        disk.fail_when(move |asked, _| {
            asked.request == DiskRequest::Read && asked.touches(&touched)
        });
        broker.restart();
        assert_eq!(place(), bad, "the segment has moved");

        let (end, bytes) = (RECORDS + 40, bytes_of(0));
        publish(&broker, RECORDS..end);
        if position == header {
            // What comes now would not be found behind the damage.
            wait::for_it("the next segment", || bytes_of(RECORDS) > 0);
            broker.logs(&[&segment(0).display().to_string(), "is damaged at byte"]);
            wait::for_it("a snapshot that knows of it", || {
                let snapshots = files_with(broker.data_dir(), "snapshot");
                let groups = snapshots.iter().filter_map(|path| {
                    let bytes = fs::read(path).ok()?;
                    snapshot::decode(&bytes).ok()
                });
                let segments = groups
                    .flat_map(|group| group.partitions.unwrap_or_default())
                    .flat_map(|partition| partition.segments.unwrap_or_default());
                segments
                    .filter(|segment| segment.sealed)
                    .any(|segment| segment.next_offset == RECORDS)
            });
        } else {
            wait::for_it("a segment that grows", || bytes_of(0) > bytes);
        }
        for is_again in [false, true] {
            if is_again {
                // It is there after another crash, too.
                broker.kill();
                disk.remount("rw");
                broker.restart();
            }
            // Through either shard: the one that has the partition sends from the file, the other is sent what was read.
            for shard in 0..2 {
                let found = read_around(&broker, shard, damaged, end);
                assert!(disk.failed_requests() > 0, "nothing failed");
                // Those around the damage that the kernel reads at once with it; behind a header all of the segment.
                let is_near = |&offset: &u64| {
                    (offset * batch_bytes).abs_diff(position) < 160 << 10
                        || (position == header && (20..RECORDS).contains(&offset))
                };
                assert!(
                    !found.refused.is_empty() && found.refused.iter().all(is_near),
                    "{:?}",
                    found.refused
                );
                let others = (0..end).filter(|offset| !found.refused.contains(offset));
                assert!(
                    others.zip(&found.records).all(|(offset, record)| (
                        record.offset,
                        &record.value
                    ) == (
                        offset,
                        &Some(large(offset))
                    )),
                    "what is not damaged is not all there"
                );
                let total = found.records.len() + found.refused.len();
                assert_eq!(total as u64, end);
            }
            assert_eq!(broker.peer().fetch_to(whole, 0, end).len() as u64, end);
            broker.still_runs();
        }

        // The device is well again.
        disk.heal();
        assert_eq!(broker.stop(), exit::DONE);
        broker.restart();
        let found = read_around(&broker, 0, damaged, end);
        assert_eq!((found.records.len() as u64, found.connections), (end, 1));
    }
}
