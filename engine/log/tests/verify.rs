//! What verification reports of a data directory, and what inspection shows of its files.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Builder, contents};
use ringtide_log::recovery::{Report, index_name, inspect, log_name, verify};
use ringtide_schema::batch::Batches;
use ringtide_schema::ids::PartitionId;
use ringtide_schema::index::{self, IndexEntry};
use ringtide_schema::limits::BLOCK_BYTES;

/// A recovered directory with sealed segments, an open one with a tail, and a log on top.
fn directory() -> (Builder, PartitionId) {
    let mut b = Builder::new(2, 1);
    let topic = b.topic("t", 1, 20_000);
    b.frame(0);
    let id = PartitionId {
        topic,
        partition: 0,
    };
    for _ in 0..16 {
        b.publish(id, 3000);
        b.frame(0);
    }
    b.store();
    let recovered = b.recover().expect("nothing is wrong");
    b.next_start(&recovered);
    b.publish(id, 3000);
    b.frame(0);
    b.store();
    (b, id)
}

fn report(b: &Builder) -> Report {
    verify(b.dir(), &mut |_| {}).expect("readable")
}

fn partition(b: &Builder, id: PartitionId) -> PathBuf {
    b.dir().join("partitions").join(id.dir_name())
}

#[test]
fn a_sound_directory_has_no_problems_and_is_not_changed() {
    let (b, _) = directory();
    let before = contents(b.dir());
    let report = report(&b);
    assert_eq!(report.problems, []);
    assert!(report.is_sound());
    assert_eq!(
        (report.topics, report.partitions, report.segments),
        (1, 1, 3)
    );
    assert_eq!(
        (report.batches, report.records, report.log.batches),
        (16, 16, 1)
    );
    assert!(contents(b.dir()) == before);
    let recovered = b.recover().expect("nothing is wrong");
    b.assert_everything(&recovered);
}

#[test]
fn a_flipped_bit_in_a_segment_is_found_at_its_batch() {
    let (b, id) = directory();
    let path = partition(&b, id).join(log_name(6));
    let pristine = fs::read(&path).expect("a segment");
    let batch = pristine.len() / 6;
    for at in [5, 14, 30, 200] {
        let mut bytes = pristine.clone();
        bytes[2 * batch + at] ^= 4;
        fs::write(&path, bytes).expect("written");
        let report = report(&b);
        assert!(!report.is_sound(), "{at}");
        let problem = &report.problems[0];
        assert_eq!(problem.path, path);
        // The leader epoch lies outside the batch's checksum: only the seal knows.
        let expected = if at == 14 {
            None
        } else {
            Some(2 * batch as u64)
        };
        assert_eq!(problem.position, expected, "{at}: {problem}");
    }
}

#[test]
fn a_segment_that_is_missing_or_of_the_wrong_length_is_found() {
    let (b, id) = directory();
    let path = partition(&b, id).join(log_name(0));
    let bytes = fs::read(&path).expect("a segment");
    fs::write(&path, &bytes[..bytes.len() - 1]).expect("written");
    assert!(report(&b).problems[0].what.contains("bytes instead of"));
    fs::remove_file(&path).expect("removed");
    let report = report(&b);
    assert!(!report.is_sound() && report.problems[0].path == path);
}

#[test]
fn a_wrong_index_is_found_but_not_serious() {
    let (b, id) = directory();
    let log = fs::read(partition(&b, id).join(log_name(0))).expect("a segment");
    let path = partition(&b, id).join(index_name(0));
    let (header, _) = Batches::new(&log).next().expect("one").expect("whole");
    let entry = IndexEntry {
        relative_offset: 0,
        position: 0,
        timestamp_ms: header.base_timestamp_ms,
        max_timestamp_before_ms: i64::MIN,
    };
    fs::write(&path, index::encode(0, log.len() as u32, &[entry])).expect("written");
    assert_eq!(report(&b).problems, []);
    let wrong = IndexEntry {
        position: 7,
        ..entry
    };
    for bytes in [
        index::encode(0, log.len() as u32, &[wrong]),
        index::encode(0, 17, &[entry]),
        b"junk".to_vec(),
    ] {
        fs::write(&path, bytes).expect("written");
        let report = report(&b);
        assert!(
            report.is_sound() && report.problems[0].path == path,
            "{:?}",
            report.problems
        );
    }
}

#[test]
fn what_recovery_would_refuse_is_reported_and_the_segments_are_still_read() {
    let (mut b, id) = directory();
    b.publish(id, 100);
    b.frame(0);
    let first = b.logs[0].frames[0];
    b.overwrite(0, first, 0x11);
    b.store();
    let report = report(&b);
    assert!(!report.is_sound());
    assert!(
        report.problems[0].what.contains("will not start"),
        "{}",
        report.problems[0]
    );
    assert_eq!(report.segments, 3);
}

#[test]
fn an_empty_directory_is_no_data_directory() {
    let root = tempfile::tempdir().expect("a place for the test");
    assert!(
        !verify(root.path(), &mut |_| {})
            .expect("readable")
            .is_sound()
    );
    assert_eq!(contents(root.path()).len(), 0);
}

fn shown(
    path: &Path,
    inspect: impl Fn(&Path, &mut dyn std::io::Write) -> Result<(), inspect::InspectError>,
) -> String {
    let mut out = Vec::new();
    inspect(path, &mut out).expect("readable");
    String::from_utf8(out).expect("text")
}

#[test]
fn a_slot_is_shown_up_to_the_first_bad_place() {
    let (mut b, _) = directory();
    let slot = b.slot_path(0, 0);
    let text = shown(&slot, inspect::wal);
    assert!(
        text.contains("frame 1 at byte 4096") && text.contains("entry 1 at byte 4160"),
        "{text}"
    );
    assert!(
        text.ends_with("end at byte 8192: never written\n"),
        "{text}"
    );
    b.logs[0].slots[0][BLOCK_BYTES + 300] ^= 1;
    b.store();
    let text = shown(&slot, inspect::wal);
    assert!(
        text.lines()
            .last()
            .is_some_and(|l| l.starts_with("BAD at byte 4160")),
        "{text}"
    );
}

#[test]
fn a_segment_an_index_and_a_snapshot_are_shown() {
    let (b, id) = directory();
    let path = partition(&b, id).join(log_name(6));
    let text = shown(&path, inspect::segment);
    assert_eq!(text.lines().count(), 7);
    assert!(
        text.starts_with("batch at byte 0: offsets 6..=6") && text.contains("crc ok"),
        "{text}"
    );
    let index_path = partition(&b, id).join(index_name(6));
    fs::write(&index_path, index::encode(6, 17, &[])).expect("written");
    assert!(shown(&index_path, inspect::index).contains("0 entries, crc ok"));
    let group = b.group_of(id);
    let text = shown(
        &b.dir().join("groups").join(group.snapshot_name()),
        inspect::snapshot,
    );
    assert!(
        text.contains("segment from 6 to 12") && text.contains("epoch 1 from 0"),
        "{text}"
    );
    let error = inspect::index(&b.dir().join("none"), &mut Vec::new()).expect_err("absent");
    assert!(error.to_string().contains("none"), "{error}");
}
