//! Searches by time in a segment with damage whose index is built from it.

use std::collections::VecDeque;
use std::fs;
use std::ops::Range;
use std::path::PathBuf;

use ringtide_schema::batch::Batches;
use ringtide_schema::error_code::ErrorCode;
use ringtide_schema::ids::PartitionId;
use ringtide_system_tests::{Broker, Peer, batch_at, now_ms, table};

const DURABLE: u8 = 2;
/// Batches of one record, in segments of about 350 batches.
const BATCHES: i64 = 1000;
const SEGMENT_BYTES: u32 = 128 << 10;
/// The largest timestamp of a batch, in bytes from its begin.
const MAX_TIMESTAMP: Range<usize> = 35..43;
/// In a batch as well.
const MAGIC: Range<usize> = 16..17;

/// A broker that was stopped after it had a batch for each second from a time on.
fn stopped() -> (Broker, PartitionId, i64) {
    let mut broker = Broker::start();
    let mut peer = broker.peer();
    let settings = table!(TopicSettingsT {
        segment_bytes: Some(SEGMENT_BYTES)
    });
    let topic = peer.create_topic_with("feed", 1, settings);
    let partition = topic.expect("a topic").partition(0);
    let first_ms = now_ms() - 2 * BATCHES * 1000;
    publish(&mut peer, partition, first_ms);
    assert_eq!(broker.stop(), 0);
    (broker, partition, first_ms)
}

/// Publishes a batch for each second from a time on.
fn publish(peer: &mut Peer, partition: PartitionId, first_ms: i64) {
    let mut under_way = VecDeque::new();
    for n in 0..BATCHES {
        let batch = batch_at(first_ms + n * 1000, &[format!("{n:0300}")]);
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

/// Sets a field of a segment's batch to zeros; gives the batch's offset.
fn zero(segment: &PathBuf, which: usize, field: Range<usize>) -> i64 {
    let mut bytes = fs::read(segment).expect("a segment");
    let (header, batch) = Batches::new(&bytes)
        .nth(which)
        .expect("a batch")
        .expect("a sound one");
    let position = batch.as_ptr().addr() - bytes.as_ptr().addr();
    bytes[position..][field].fill(0);
    fs::write(segment, bytes).expect("written");
    header.base_offset.cast_signed()
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
    let (mut broker, partition, first_ms) = stopped();
    let open = segments(&broker, partition).pop().expect("a segment");
    let damaged = zero(&open, 40, MAX_TIMESTAMP);
    broker.restart();
    check(&broker, partition, first_ms, [0, damaged, BATCHES]);
    // What is published then has times that are known.
    let mut peer = broker.peer();
    let late_ms = first_ms + (BATCHES + 500) * 1000;
    publish(&mut peer, partition, late_ms);
    for n in [0, 1, 100, BATCHES - 1] {
        let found = peer.list_offsets(partition, late_ms + n * 1000);
        let found = found.expect("an offset").offset.cast_signed();
        assert_eq!(found, BATCHES + n);
    }
}

#[test]
fn a_search_by_time_does_not_pass_a_damaged_batch_of_a_sealed_segment_without_its_index() {
    let (mut broker, partition, first_ms) = stopped();
    let logs = segments(&broker, partition);
    let damaged = zero(&logs[0], 40, MAX_TIMESTAMP);
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
    let (mut broker, partition, first_ms) = stopped();
    let open = segments(&broker, partition).pop().expect("a segment");
    let damaged = zero(&open, 0, MAGIC);
    broker.restart();
    let mut peer = broker.peer();
    // More than what is left of the segment: it is sealed.
    let late_ms = first_ms + (BATCHES + 500) * 1000;
    publish(&mut peer, partition, late_ms);
    for is_anew in [false, true] {
        if is_anew {
            assert_eq!(broker.stop(), 0);
            assert!(open.with_extension("index").exists());
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
