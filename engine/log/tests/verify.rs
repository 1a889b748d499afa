//! What verification reports of a data directory, what inspection shows of its files, and what repair proves of its
//! batches.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Builder, contents};
use ringtide_log::recovery::{Problem, Report, index_name, inspect, log_name, repair, verify};
use ringtide_schema::batch::{Batches, CRC_START};
use ringtide_schema::ids::PartitionId;
use ringtide_schema::index::{self, IndexEntry, IndexView};
use ringtide_schema::limits::BLOCK_BYTES;
use ringtide_schema::wal::FrameHeader;

/// A recovered directory with sealed segments, an open one with a tail, and a log on top; within the second segment a
/// leader epoch begins.
fn directory() -> (Builder, PartitionId) {
    let mut b = Builder::new(2, 1);
    let topic = b.topic("t", 1, 20_000);
    b.frame(0);
    let id = PartitionId {
        topic,
        partition: 0,
    };
    for offset in 0..16 {
        if offset == 8 {
            b.leader_epoch += 1;
        }
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
        let expected = Some(2 * batch as u64);
        assert_eq!(problem.position, expected, "{at}: {problem}");
    }
}

/// A base offset, its top bit flipped.
fn negative(batch: &mut [u8]) {
    batch[0] ^= 0x80;
}

type Change = fn(&mut [u8]);

/// Damages batches of a segment, by their number; gives what was there before, and the bytes of each batch.
fn damage(path: &Path, wrong: &[(usize, Change)]) -> (Vec<u8>, usize) {
    let pristine = fs::read(path).expect("a segment");
    let (first, _) = Batches::new(&pristine).next().expect("one").expect("whole");
    let mut bytes = pristine.clone();
    for &(batch, change) in wrong {
        change(&mut bytes[batch * first.batch_bytes..][..first.batch_bytes]);
    }
    fs::write(path, bytes).expect("written");
    (pristine, first.batch_bytes)
}

fn mended(b: &Builder) -> Vec<(PathBuf, u64)> {
    let mut tell = |error| panic!("readable and writable: {error}");
    repair::mend_batches(b.dir(), &mut tell).expect("readable")
}

#[test]
fn a_negative_base_offset_loses_no_records_and_is_mended_with_all_others_that_are_wrong() {
    let (b, id) = directory();
    // A sealed segment, and one that is open.
    for base in [6, 12] {
        let path = partition(&b, id).join(log_name(base));
        let (pristine, batch) = damage(
            &path,
            &[
                (0, |batch| batch[..8].fill(0xff)),
                (1, negative),
                (2, |batch| batch[5] ^= 4),
            ],
        );
        let starts = [0, batch as u64, 2 * batch as u64];
        let report = report(&b);
        assert_eq!((report.batches, report.records), (16, 16));
        for start in starts {
            let told = report.problems.iter().any(|problem| {
                let is_there = (&problem.path, problem.position) == (&path, Some(start));
                is_there && problem.what.contains("was to come")
            });
            assert!(told, "{start}: {:?}", report.problems);
        }
        let lost = |problem: &Problem| problem.what.contains("lost");
        assert!(!report.problems.iter().any(lost), "{:?}", report.problems);

        assert_eq!(mended(&b), starts.map(|start| (path.clone(), start)));
        assert!(fs::read(&path).expect("a segment") == pristine);
        assert_eq!(self::report(&b).problems, []);
    }
}

/// The index of a segment whose only entry is that of its first batch.
fn index_of(log: &[u8]) -> Vec<u8> {
    let (header, _) = Batches::new(log).next().expect("one").expect("whole");
    let entry = IndexEntry {
        relative_offset: 0,
        position: 0,
        timestamp_ms: header.base_timestamp_ms,
        max_timestamp_before_ms: i64::MIN,
    };
    index::encode(header.base_offset, log.len() as u32, &[entry])
}

#[test]
fn a_wrong_base_offset_is_one_problem_and_no_index_is_removed_for_it() {
    let (b, id) = directory();
    let path = partition(&b, id).join(log_name(6));
    let index = index_of(&fs::read(&path).expect("a segment"));
    fs::write(partition(&b, id).join(index_name(6)), index).expect("written");
    assert_eq!(report(&b).problems, []);
    let near = |batch: &mut [u8]| batch[7] ^= 16;
    let far = |batch: &mut [u8]| batch[0] ^= 0x40;
    for change in [negative as Change, near, far] {
        // Of the older epoch, of the newer one, and the last.
        for number in [0, 1, 2, 5] {
            let (pristine, bytes) = damage(&path, &[(number, change)]);
            let report = report(&b);
            let [problem] = &report.problems[..] else {
                panic!("{number}: {:?}", report.problems);
            };
            let position = Some((number * bytes) as u64);
            assert_eq!((&problem.path, problem.position), (&path, position));
            let words = format!("where {} was to come", 6 + number);
            assert!(problem.what.contains(&words), "{problem}");
            fs::write(&path, pristine).expect("written");
        }
    }
}

#[test]
fn a_wrong_leader_epoch_is_one_problem() {
    let (b, id) = directory();
    let path = partition(&b, id).join(log_name(6));
    let (_, bytes) = damage(&path, &[(3, |batch| batch[15] ^= 1)]);
    let report = report(&b);
    let [problem] = &report.problems[..] else {
        panic!("{:?}", report.problems);
    };
    assert_eq!(problem.position, Some(3 * bytes as u64));
    let words = "leader epoch 3 that was written under 2";
    assert!(problem.what.contains(words), "{problem}");
}

#[test]
fn damage_behind_a_wrong_base_offset_loses_records_from_where_it_is() {
    let (b, id) = directory();
    let path = partition(&b, id).join(log_name(6));
    damage(&path, &[(1, negative), (2, |batch| batch[200] ^= 1)]);
    let report = report(&b);
    let [_, lost] = &report.problems[..] else {
        panic!("{:?}", report.problems);
    };
    assert!(lost.what.contains("are lost, from offset 8 on"), "{lost}");
}

#[test]
fn a_base_offset_is_not_blamed_for_a_negative_last_offset() {
    let (b, id) = directory();
    let path = partition(&b, id).join(log_name(6));
    let negative_delta = |batch: &mut [u8]| batch[23] ^= 0x80;
    damage(&path, &[(2, negative_delta)]);
    let problem = &report(&b).problems[0];
    let words = "base 8, last delta -2147483648";
    assert!(problem.what.contains(words), "{problem}");
}

#[test]
fn a_segment_that_cannot_be_read_keeps_no_other_from_being_mended() {
    let (b, id) = directory();
    let path = |base| partition(&b, id).join(log_name(base));
    fs::remove_file(path(0)).expect("removed");
    fs::create_dir(path(0)).expect("what cannot be read");
    let was = [6, 12].map(|base| damage(&path(base), &[(0, negative)]).0);
    let mut failed = Vec::new();
    let mended = repair::mend_batches(b.dir(), &mut |error| failed.push(error.path));
    assert_eq!(mended.expect("snapshots"), [(path(6), 0), (path(12), 0)]);
    assert_eq!(failed, [path(0)]);
    assert!([6, 12].map(|base| fs::read(path(base)).expect("a segment")) == was);
}

#[test]
fn a_negative_base_offset_stays_where_the_segments_checksum_does_not_prove_it() {
    let (b, id) = directory();
    let path = partition(&b, id).join(log_name(6));
    let rewritten = |batch: &mut [u8]| {
        // With a checksum of its own that is right.
        batch[200] ^= 1;
        let crc = crc32c::crc32c(&batch[CRC_START..]);
        batch[CRC_START - 4..CRC_START].copy_from_slice(&crc.to_be_bytes());
    };
    let damaged = |batch: &mut [u8]| batch[200] ^= 1;
    let shorter = |batch: &mut [u8]| batch[11] ^= 1;
    for other in [rewritten as Change, damaged, shorter] {
        for wrong in [1, 3] {
            let (pristine, _) = damage(&path, &[(2, negative), (wrong, other)]);
            let before = fs::read(&path).expect("a segment");
            assert_eq!(mended(&b), []);
            assert!(fs::read(&path).expect("a segment") == before);
            fs::write(&path, pristine).expect("written");
        }
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
    let whole = index_of(&log);
    let entry = IndexView::check(&whole).expect("whole").get(0);
    fs::write(&path, whole).expect("written");
    assert_eq!(report(&b).problems, []);
    let wrong = IndexEntry {
        timestamp_ms: entry.timestamp_ms + 1,
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

type Inspect = fn(&Path, &mut dyn std::io::Write) -> Result<u64, inspect::InspectError>;

/// What is shown of a file, and how many places in it are damaged.
fn judged(path: &Path, inspect: Inspect) -> (String, u64) {
    let mut out = Vec::new();
    let bad = inspect(path, &mut out).expect("readable");
    let text = String::from_utf8(out).expect("text");
    let lines = text.lines().filter(|line| line.starts_with("BAD")).count();
    assert_eq!(lines as u64, bad, "{text}");
    (text, bad)
}

/// What is shown of a file that is not damaged.
fn shown(path: &Path, inspect: Inspect) -> String {
    let (text, bad) = judged(path, inspect);
    assert_eq!(bad, 0, "{text}");
    text
}

#[test]
fn a_slot_that_was_cut_with_its_header_is_not_shown_as_free() {
    let (b, _) = directory();
    let slot = b.slot_path(0, 0);
    for bytes in [0, 59, 100, 5000] {
        fs::write(&slot, vec![0; bytes]).expect("written");
        let (text, bad) = judged(&slot, inspect::wal);
        assert_eq!(bad, 1, "{text}");
        assert!(text.contains(&format!("{bytes} bytes")), "{text}");
    }
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
    let end = |text: &str| text.lines().last().expect("a line").to_owned();
    b.logs[0].slots[0][BLOCK_BYTES + 300] ^= 1;
    b.store();
    let torn = end(&shown(&slot, inspect::wal));
    assert!(
        torn.starts_with("end at byte 4096: its entry 1 at byte 4160"),
        "nothing shows that it was committed: {torn}"
    );
}

#[test]
fn a_slot_is_damaged_where_a_later_frame_says_that_it_was_committed() {
    let (mut b, id) = directory();
    let slot = b.slot_path(0, 0);
    b.publish(id, 3000);
    let later = b.frame(0);
    let pristine = b.logs[0].slots[0].clone();
    for at in [BLOCK_BYTES + 10, BLOCK_BYTES + 300] {
        b.logs[0].slots[0] = pristine.clone();
        b.logs[0].slots[0][at] ^= 1;
        b.store();
        let (text, bad) = judged(&slot, inspect::wal);
        let place = format!("the frame at byte {} says", later.position);
        assert!(bad == 1 && text.contains(&place), "{at}: {text}");
    }
    b.logs[0].slots[0] = pristine;
    let first = b.logs[0].frames[0];
    b.overwrite(0, first, 0);
    b.store();
    assert_eq!(judged(&slot, inspect::wal).1, 1, "as if never written");
}

#[test]
fn a_slot_that_was_being_begun_again_is_not_damaged() {
    let (mut b, id) = directory();
    let slot = b.slot_path(0, 0);
    b.publish(id, 3000);
    b.frame(0);
    // The first frame of the next use is there, the slot's new header is not yet.
    let frame = &mut b.logs[0].slots[0][BLOCK_BYTES..];
    let (mut header, _) = FrameHeader::decode(&frame[..BLOCK_BYTES]).expect("a frame");
    header.incarnation += 1;
    let bytes = header.disk_bytes();
    header.encode(&mut frame[..bytes]);
    b.store();
    let text = shown(&slot, inspect::wal);
    assert!(text.contains("was beginning the slot"), "{text}");
}

#[test]
fn a_slot_of_whose_next_use_the_second_frame_came_first_is_not_damaged() {
    let (mut b, id) = directory();
    let slot = b.slot_path(0, 0);
    b.publish(id, 3000);
    let second = b.frame(0);
    b.publish(id, 3000);
    let third = b.frame(0);
    // In the place of the first frame is a part of a larger one, of which only the end arrived.
    let log = &mut b.logs[0].slots[0];
    log[BLOCK_BYTES + 300..2 * BLOCK_BYTES].fill(7);
    let frame = &mut log[second.position..third.position];
    let (mut header, _) = FrameHeader::decode(&frame[..BLOCK_BYTES]).expect("a frame");
    header.incarnation += 1;
    header.encode(&mut frame[..BLOCK_BYTES]);
    b.store();
    let text = shown(&slot, inspect::wal);
    assert!(text.contains("was beginning the slot"), "{text}");
}

#[test]
fn a_free_slot_is_not_damaged() {
    let (mut b, _) = directory();
    let slot = b.slot_path(0, 0);
    b.logs[0].slots[0][..BLOCK_BYTES].fill(0);
    b.store();
    let text = shown(&slot, inspect::wal);
    assert!(text.contains("free") && text.contains("frame 1"), "{text}");
    b.logs[0].slots[0][8] = 1;
    b.store();
    assert_eq!(
        judged(&slot, inspect::wal).1,
        1,
        "neither blank nor a header"
    );
}

/// A sealed segment of six batches, copied to where nothing is beside it.
fn copied(b: &Builder, id: PartitionId) -> (PathBuf, Vec<u8>) {
    let bytes = fs::read(partition(b, id).join(log_name(6))).expect("a segment");
    let alone = b.dir().join("copy");
    fs::create_dir(&alone).expect("made");
    (alone.join(log_name(6)), bytes)
}

#[test]
fn an_open_segment_may_end_within_a_batch_or_in_zeros() {
    let (b, id) = directory();
    let (path, bytes) = copied(&b, id);
    let last = bytes.len() / 6 * 5;
    let mut zeros = bytes.clone();
    zeros[last + 100..].fill(0);
    zeros.extend([0; BLOCK_BYTES]);
    for unfinished in [&bytes[..last + 700], &bytes[..last + 7], &zeros] {
        fs::write(&path, unfinished).expect("written");
        let text = shown(&path, inspect::segment);
        let words = format!("unfinished end at byte {last}: ");
        assert!(
            text.contains(&words) && text.contains("5 batches"),
            "{text}"
        );
    }
}

#[test]
fn a_file_of_another_name_that_begins_with_no_batch_is_no_segment() {
    let (b, id) = directory();
    let (path, bytes) = copied(&b, id);
    let path = path.with_file_name("notes.txt");
    fs::write(&path, &bytes).expect("written");
    assert_eq!(judged(&path, inspect::segment).1, 0);
    fs::write(&path, "once upon a time there was a log\n".repeat(9)).expect("written");
    let (text, bad) = judged(&path, inspect::segment);
    assert!(bad == 1 && text.contains("it is not a segment"), "{text}");
}

#[test]
fn a_bad_batch_is_damage_when_a_whole_one_follows() {
    let (b, id) = directory();
    let (path, pristine) = copied(&b, id);
    let batch = pristine.len() / 6;
    // Its length, its magic, its records.
    for at in [9, 11, 16, 300] {
        let mut bytes = pristine.clone();
        bytes[3 * batch + at] ^= 1;
        fs::write(&path, bytes).expect("written");
        let (text, bad) = judged(&path, inspect::segment);
        let place = format!("follows at byte {}", 4 * batch);
        assert!(bad == 1 && text.contains(&place), "{at}: {text}");
    }
}

#[test]
fn a_wrong_base_offset_is_one_bad_place_and_all_batches_are_shown() {
    let (b, id) = directory();
    let (path, pristine) = copied(&b, id);
    let batch = pristine.len() / 6;
    for path in [path.with_file_name("notes.txt"), path] {
        fs::write(&path, &pristine).expect("written");
        assert!(shown(&path, inspect::segment).contains("next offset 12,"));
        for change in [negative as Change, |batch| batch[5] ^= 4] {
            damage(&path, &[(3, change)]);
            let (text, bad) = judged(&path, inspect::segment);
            let place = format!("BAD at byte {}: offset 9 was to come", 3 * batch);
            assert!(bad == 1 && text.contains(&place), "{text}");
            let all = "6 batches, 6 records, next offset 12,";
            assert!(text.contains(all), "{text}");
            fs::write(&path, &pristine).expect("written");
        }
    }
}

#[test]
fn a_segment_with_the_name_of_the_largest_number_is_shown() {
    let (b, id) = directory();
    let (path, pristine) = copied(&b, id);
    let path = path.with_file_name(log_name(u64::MAX));
    fs::write(&path, pristine).expect("written");
    assert_eq!(judged(&path, inspect::segment).1, 6, "none belongs there");
}

#[test]
fn a_file_of_another_name_begins_at_no_negative_offset() {
    let (b, id) = directory();
    let (path, pristine) = copied(&b, id);
    let path = path.with_file_name("notes.txt");
    fs::write(&path, &pristine).expect("written");
    damage(&path, &[(0, negative)]);
    let (text, bad) = judged(&path, inspect::segment);
    let place = "BAD at byte 0: the offsets are out of range";
    assert!(bad == 1 && text.contains(place), "{text}");
}

#[test]
fn a_sealed_segment_that_ends_within_a_batch_is_damaged() {
    let (b, id) = directory();
    let (path, bytes) = copied(&b, id);
    fs::write(&path, &bytes[..bytes.len() - 1]).expect("written");
    assert_eq!(judged(&path, inspect::segment).1, 0, "nothing is beside it");
    for (beside, bad) in [(index_name(6), 1), (log_name(12), 1), (log_name(0), 0)] {
        let beside = path.with_file_name(beside);
        fs::write(&beside, "").expect("written");
        assert_eq!(judged(&path, inspect::segment).1, bad, "{beside:?}");
        fs::remove_file(&beside).expect("removed");
    }
}

#[test]
fn a_damaged_index_and_a_damaged_snapshot_are_told_from_whole_ones() {
    let (b, id) = directory();
    let index_path = partition(&b, id).join(index_name(6));
    fs::write(&index_path, "junk").expect("written");
    assert_eq!(judged(&index_path, inspect::index).1, 1);
    let path = b.dir().join("groups").join(b.group_of(id).snapshot_name());
    let mut bytes = fs::read(&path).expect("a snapshot");
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    fs::write(&path, bytes).expect("written");
    assert_eq!(judged(&path, inspect::snapshot).1, 1);
}

#[test]
fn the_index_of_an_open_segment_is_said_to_be_that() {
    let (b, id) = directory();
    let index = |base| partition(&b, id).join(index_name(base));
    fs::write(index(12), index::encode(12, 17, &[])).expect("written");
    let report = report(&b);
    let problem = &report.problems[0];
    assert_eq!((&problem.path, problem.serious), (&index(12), false));
    assert!(problem.what.contains("still open"), "{problem}");
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
    fs::write(&index_path, index::encode(6, 0, &[])).expect("written");
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
