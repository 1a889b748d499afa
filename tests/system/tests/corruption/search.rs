//! Searches by time in a segment with damage whose index is built from it.

use std::collections::VecDeque;
use std::fs;
use std::ops::Range;
use std::path::PathBuf;

use ringtide_schema::batch::Batches;
use ringtide_schema::error_code::ErrorCode;
use ringtide_schema::ids::PartitionId;
use ringtide_system_tests::{Broker, Cli, Peer, batch_at, now_ms, table};

const DURABLE: u8 = 2;
/// Batches of one record.
const BATCHES: i64 = 1000;
/// Bytes of a segment and of a record: of about 350 small ones, 780 and 1,300 large ones.
const SMALL: (u32, usize) = (128 << 10, 300);
const LARGE: (u32, usize) = (6 << 20, 8000);
const LARGEST: (u32, usize) = (10 << 20, 8000);
/// Two times a thousand do not fill it.
const NEVER_FULL: (u32, usize) = (32 << 20, 8000);
/// The largest timestamp of a batch, in bytes from its begin.
const MAX_TIMESTAMP: Range<usize> = 35..43;
/// In a batch as well.
const MAGIC: Range<usize> = 16..17;
const BASE_OFFSET: Range<usize> = 0..8;
/// Bytes that make them larger by 65,536.
const LENGTH: Range<usize> = 9..10;
const LAST_OFFSET_DELTA: Range<usize> = 24..25;

/// A broker that was stopped after it had a batch for each second from a time on.
fn stopped((segment_bytes, value_bytes): (u32, usize)) -> (Broker, PartitionId, i64) {
    let mut broker = Broker::start();
    let mut peer = broker.peer();
    let settings = table!(TopicSettingsT {
        segment_bytes: Some(segment_bytes)
    });
    let topic = peer.create_topic_with("feed", 1, settings);
    let partition = topic.expect("a topic").partition(0);
    let first_ms = now_ms() - 2 * BATCHES * 1000;
    publish(&mut peer, partition, first_ms, value_bytes);
    assert_eq!(broker.stop(), 0);
    (broker, partition, first_ms)
}

/// Publishes a batch for each second from a time on.
fn publish(peer: &mut Peer, partition: PartitionId, first_ms: i64, value_bytes: usize) {
    let mut under_way = VecDeque::new();
    for n in 0..BATCHES {
        let batch = batch_at(first_ms + n * 1000, &[format!("{n:0value_bytes$}")]);
        under_way.push_back(peer.send_publish(DURABLE, &[(partition, batch)]));
        while under_way.len() > 50 || (n == BATCHES - 1 && !under_way.is_empty()) {
            let first = under_way.pop_front().expect("one under way");
            let results = peer.published(first, 1).expect("an answer");
            assert!(results[0].is_ok(), "{results:?}");
        }
    }
}

/// The segments of a partition, in their order.
fn segments(broker: &Broker, partition: PartitionId) -> Vec<PathBuf> {
    let directory = broker.data_dir().join("partitions");
    let directory = fs::read_dir(directory.join(partition.dir_name())).expect("a directory");
    let paths = directory.map(|entry| entry.expect("an entry").path());
    let mut logs: Vec<PathBuf> = paths
        .filter(|path| path.extension().is_some_and(|e| e == "log"))
        .collect();
    logs.sort();
    logs
}

/// Fills a field of one of a segment's batches with a byte; gives the batch's offset. Those from the end are counted from
/// the last whole one, -1.
fn fill(segment: &PathBuf, which: isize, field: Range<usize>, byte: u8) -> i64 {
    let mut bytes = fs::read(segment).expect("a segment");
    let whole: Vec<_> = Batches::new(&bytes).map_while(Result::ok).collect();
    let (header, batch) = &whole[which.rem_euclid(whole.len() as isize) as usize];
    let offset = header.base_offset.cast_signed();
    let position = batch.as_ptr().addr() - bytes.as_ptr().addr();
    bytes[position..][field].fill(byte);
    fs::write(segment, bytes).expect("written");
    offset
}

/// Asks for the offsets of times from the one of batch `first` to that of batch `end`, around a batch that is damaged.
fn check(broker: &Broker, partition: PartitionId, first_ms: i64, around: [i64; 3]) {
    let [first, damaged, end] = around;
    let mut peer = broker.peer();
    for n in (first..end)
        .step_by(20)
        .chain([damaged - 1, damaged, damaged + 1])
    {
        let answer = peer.list_offsets(partition, first_ms + n * 1000);
        match n < damaged {
            true => assert_eq!(answer.expect("an offset").offset.cast_signed(), n),
            false => assert_eq!(
                answer.expect_err("not known").code(),
                ErrorCode::DataUnreadable,
                "a time of batch {n}, where {damaged} is damaged"
            ),
        }
    }
}

#[test]
fn a_search_by_time_does_not_pass_a_damaged_batch_of_an_open_segment_after_a_start() {
    for which in [40, -10] {
        let (mut broker, partition, first_ms) = stopped(SMALL);
        let open = segments(&broker, partition).pop().expect("a segment");
        let damaged = fill(&open, which, MAX_TIMESTAMP, 0);
        broker.restart();
        check(&broker, partition, first_ms, [0, damaged, BATCHES]);
        // What is published then has times that are known.
        let mut peer = broker.peer();
        let late_ms = first_ms + (BATCHES + 500) * 1000;
        publish(&mut peer, partition, late_ms, SMALL.1);
        for n in [0, 1, 100, BATCHES - 1] {
            let found = peer.list_offsets(partition, late_ms + n * 1000);
            let found = found.expect("an offset").offset.cast_signed();
            assert_eq!(found, BATCHES + n);
        }
    }
}

#[test]
fn a_search_by_time_does_not_pass_a_damaged_batch_of_a_sealed_segment_without_its_index() {
    let (mut broker, partition, first_ms) = stopped(SMALL);
    let logs = segments(&broker, partition);
    let damaged = fill(&logs[0], 40, MAX_TIMESTAMP, 0);
    fs::remove_file(logs[0].with_extension("index")).expect("an index");
    let next: i64 = logs[1]
        .file_stem()
        .and_then(|stem| stem.to_str()?.parse().ok())
        .expect("an offset");
    broker.restart();
    check(&broker, partition, first_ms, [0, damaged, next]);
    assert!(!logs[0].with_extension("index").exists());
    // From the next segment on all is well.
    let mut peer = broker.peer();
    for n in [next, BATCHES - 1] {
        let found = peer.list_offsets(partition, first_ms + n * 1000);
        assert_eq!(found.expect("an offset").offset.cast_signed(), n);
    }
}

#[test]
fn a_search_by_time_does_not_pass_a_first_batch_whose_header_is_damaged() {
    for (field, byte) in [(MAGIC, 0), (BASE_OFFSET, 1)] {
        let (mut broker, partition, first_ms) = stopped(SMALL);
        let open = segments(&broker, partition).pop().expect("a segment");
        let damaged = fill(&open, 0, field, byte);
        broker.restart();
        check(&broker, partition, first_ms, [0, damaged, BATCHES]);
        // More than what is left of the segment.
        let late_ms = first_ms + (BATCHES + 500) * 1000;
        publish(&mut broker.peer(), partition, late_ms, SMALL.1);
        for is_anew in [false, true] {
            if is_anew {
                assert_eq!(broker.stop(), 0);
                broker.restart();
            }
            check(&broker, partition, first_ms, [0, damaged, BATCHES]);
            let found = broker.peer().list_offsets(partition, late_ms + 7000);
            let found = found.expect("an offset").offset.cast_signed();
            assert_eq!(found, BATCHES + 7);
            // What follows it is read around it.
            let from = (damaged + 1).to_string();
            let count = (2 * BATCHES - damaged - 1).to_string();
            let args = ["consume", "feed", "--from", &from, "--count", &count];
            broker.cli().run(&args).ok();
        }
    }
}

#[test]
fn all_around_a_damaged_header_is_read_however_much_follows() {
    // The last two are a header that leads elsewhere.
    for (field, byte) in [(MAGIC, 0), (LAST_OFFSET_DELTA, 1), (LENGTH, 1)] {
        let (mut broker, partition, _) = stopped(LARGE);
        // Between two entries of the index.
        let log = segments(&broker, partition).swap_remove(0);
        let damaged = fill(&log, 102, field, byte);
        fs::remove_file(log.with_extension("index")).expect("an index");
        broker.restart();
        let read = broker.cli().run(&["consume", "feed"]).failed();
        assert_eq!(read.text().lines().count() as i64, damaged);
        let (from, count) = (damaged + 1, BATCHES - damaged - 1);
        let [from, wanted] = [from, count].map(|n| n.to_string());
        let args = ["consume", "feed", "--from", &from, "--count", &wanted];
        let read = broker.cli().run(&args).ok();
        assert_eq!(read.text().lines().count() as i64, count);
        let end = broker.peer().list_offsets(partition, -1);
        assert_eq!(end.expect("an offset").offset.cast_signed(), BATCHES);
    }
}

#[test]
fn what_a_repair_has_proven_is_found_by_time_and_offset_again() {
    let (mut broker, partition, first_ms) = stopped(LARGEST);
    let open = segments(&broker, partition).pop().expect("a segment");
    let damaged = fill(&open, 0, BASE_OFFSET, 1);
    broker.restart();
    let late_ms = first_ms + (BATCHES + 500) * 1000;
    publish(&mut broker.peer(), partition, late_ms, LARGEST.1);
    assert_eq!(broker.stop(), 0);
    let dir = broker
        .data_dir()
        .to_str()
        .expect("a path of text")
        .to_owned();
    Cli::without_server()
        .run(&["repair", "--data-dir", &dir])
        .ok();
    broker.restart();
    let mut peer = broker.peer();
    for n in [damaged, damaged + 1, damaged + 100, BATCHES - 1] {
        let found = peer.list_offsets(partition, first_ms + n * 1000);
        assert_eq!(found.expect("an offset").offset.cast_signed(), n);
    }
    let count = (2 * BATCHES).to_string();
    broker
        .cli()
        .run(&["consume", "feed", "--count", &count])
        .ok();
}

#[test]
fn what_is_whole_behind_a_damaged_header_is_read_after_any_starts() {
    for (field, byte) in [(MAGIC, 0), (LAST_OFFSET_DELTA, 1), (LENGTH, 1)] {
        // The last of the file may be followed by what a snapshot has.
        for which in [200, -1] {
            let (mut broker, partition, first_ms) = stopped(NEVER_FULL);
            let open = segments(&broker, partition).pop().expect("a segment");
            let damaged = fill(&open, which, field.clone(), byte);
            let late_ms = first_ms + (BATCHES + 500) * 1000;
            broker.restart();
            publish(&mut broker.peer(), partition, late_ms, NEVER_FULL.1);
            let found = broker.peer().list_offsets(partition, late_ms + 7000);
            assert_eq!(found.expect("an offset").offset.cast_signed(), BATCHES + 7);
            for is_killed in [true, false] {
                let from = damaged + 1;
                let count = 2 * BATCHES - from;
                let [from, wanted] = [from, count].map(|n| n.to_string());
                let args = ["consume", "feed", "--from", &from, "--count", &wanted];
                let read = broker.cli().run(&args).ok();
                assert_eq!(read.text().lines().count() as i64, count);
                match is_killed {
                    true => broker.kill(),
                    false => assert_eq!(broker.stop(), 0),
                }
                assert!(!open.with_extension("index").exists());
                broker.restart();
            }
        }
    }
}
