//! What recovery refuses: whatever would lose or change acknowledged data, or is not ours.

mod common;

use std::fs;
use std::path::Path;

use common::{Builder, SLOT_BYTES, contents, stored};
use proptest::prelude::*;
use ringtide_log::recovery::cut::plan;
use ringtide_log::recovery::error::Shown;
use ringtide_log::recovery::table::Found;
use ringtide_log::recovery::{RecoverError, verify};
use ringtide_schema::ids::{PartitionId, TopicId};
use ringtide_schema::limits::BLOCK_BYTES;
use ringtide_schema::wal::{ENTRY_HEADER_BYTES, FRAME_HEADER_BYTES, SlotHeader};

/// One topic of one partition in one group; `frames` batches of `bytes`, each its own frame.
fn log_of(frames: usize, bytes: usize) -> (Builder, PartitionId) {
    let mut b = Builder::new(1, 1);
    let topic = b.topic("t", 1, 1 << 20);
    b.frame(0);
    let id = PartitionId {
        topic,
        partition: 0,
    };
    for _ in 0..frames {
        b.publish(id, bytes);
        b.frame(0);
    }
    (b, id)
}

#[test]
fn a_damaged_frame_that_a_later_frame_shows_committed_is_refused_with_its_place() {
    for byte in [0, 0x5a] {
        let (mut b, _) = log_of(5, 100);
        let damaged = b.logs[0].frames[3];
        b.overwrite(0, damaged, byte);
        b.store();
        let before = contents(b.dir());
        let RecoverError::Lost(lost) = b.recover().expect_err("data is gone") else {
            panic!("another refusal")
        };
        assert_eq!(
            (lost.path.clone(), lost.position),
            (b.slot_path(0, 0), damaged.position as u64)
        );
        assert_eq!((lost.frame_seq, lost.first_lost), (4, 4));
        assert!(
            matches!(lost.shown, Shown::Frame { committed: 5, .. }),
            "{lost:?}"
        );
        let text = lost.to_string();
        assert!(
            text.contains("000000.wal") && text.contains("Restore"),
            "{text}"
        );
        // Nothing but blocks past the synced position was written.
        let after = contents(b.dir());
        assert!(before.iter().all(|(name, bytes)| after[name] == *bytes));
    }
}

#[test]
fn a_damaged_last_frame_is_told_from_a_torn_one_by_the_closing_frame() {
    let (mut b, _) = log_of(3, 100);
    let last = *b.logs[0].frames.last().expect("one");
    b.closing(0);
    b.overwrite(0, last, 0x5a);
    b.store();
    assert!(matches!(b.recover(), Err(RecoverError::Lost(_))));
}

#[test]
fn a_snapshot_that_holds_more_than_the_log_shows_a_loss() {
    let (b, _) = log_of(5, 100);
    b.store();
    let identity = fs::read(b.dir().join("identity")).expect("read");
    b.recover().expect("nothing is wrong");
    // The same log without its last frame, which the snapshots hold.
    fs::write(b.dir().join("identity"), identity).expect("written");
    let last = *b.logs[0].frames.last().expect("one");
    let mut slot = b.logs[0].slots[0].clone();
    slot[last.position..].fill(0);
    fs::write(b.slot_path(0, 0), slot).expect("written");
    let RecoverError::Lost(lost) = b.recover().expect_err("data is gone") else {
        panic!("another refusal")
    };
    assert_eq!(lost.found, Found::Absent);
    assert!(
        matches!(
            lost.shown,
            Shown::Snapshot {
                holds: 5,
                found: 4,
                ..
            }
        ),
        "{lost:?}"
    );
}

#[test]
fn a_missing_slot_in_the_middle_is_refused() {
    let (b, _) = log_of(60, 3000);
    b.store();
    fs::remove_file(b.slot_path(0, 1)).expect("removed");
    let RecoverError::MissingSlot(missing) = b.recover().expect_err("data is gone") else {
        panic!("another refusal")
    };
    assert_eq!((missing.generation, missing.before), (2, b.slot_path(0, 2)));
}

#[test]
fn a_missing_oldest_slot_is_refused_through_the_group_index() {
    let (b, _) = log_of(60, 3000);
    b.store();
    fs::remove_file(b.slot_path(0, 0)).expect("removed");
    let RecoverError::MissingEntries(missing) = b.recover().expect_err("data is gone") else {
        panic!("another refusal")
    };
    assert_eq!((missing.path, missing.expected), (b.slot_path(0, 1), 1));
}

#[test]
fn a_slot_whose_header_is_damaged_is_found_by_its_frames() {
    for slot in 0..3 {
        let (mut b, _) = log_of(40, 3000);
        assert_eq!(b.logs[0].slots.len(), 3);
        b.logs[0].slots[slot][..BLOCK_BYTES].fill(0x77);
        b.store();
        let recovered = b.recover().expect("every frame is there");
        b.assert_everything(&recovered);
    }
}

#[test]
fn later_frames_in_a_slot_without_header_or_first_frame_show_a_loss() {
    let (mut b, _) = log_of(40, 3000);
    b.logs[0].slots[2][..2 * BLOCK_BYTES].fill(0);
    b.store();
    assert!(matches!(b.recover(), Err(RecoverError::Lost(_))));
}

#[test]
fn a_damaged_first_frame_of_a_slot_is_named_there() {
    for (slot, frame) in [(1, 15), (2, 30)] {
        let (mut b, _) = log_of(40, 3000);
        let damaged = b.logs[0].frames[frame];
        assert_eq!((damaged.slot, damaged.position), (slot, BLOCK_BYTES));
        b.overwrite(0, damaged, 0x5a);
        b.store();
        let RecoverError::Lost(lost) = b.recover().expect_err("data is gone") else {
            panic!("another refusal")
        };
        let place = (lost.path.clone(), lost.position);
        assert_eq!(place, (b.slot_path(0, slot), BLOCK_BYTES as u64));
    }
}

#[test]
fn a_slot_that_was_being_used_again_when_the_crash_came_is_not_missed() {
    // Three slots, full to the last block; snapshots hold everything; then the oldest was begun
    // again: its header is still blank, some of the new frames are there, some are not.
    let (mut b, id) = log_of(44, 3000);
    assert_eq!(b.logs[0].slots.len(), 3);
    b.store();
    let identity = fs::read(b.dir().join("identity")).expect("read");
    b.recover().expect("nothing is wrong");
    fs::write(b.dir().join("identity"), identity).expect("written");
    let committed = b.logs[0].next_seq - 1;
    let expected = b.expected.clone();
    for _ in 0..4 {
        b.publish(id, 3000);
        b.frame_with(0, committed);
    }
    let newest = b.logs[0].slots[3].clone();
    for written in [vec![2], vec![1, 2], vec![3], vec![1, 3]] {
        let mut reused = b.logs[0].slots[0].clone();
        reused[..BLOCK_BYTES].fill(0);
        for block in written.clone() {
            let range = block * BLOCK_BYTES..(block + 1) * BLOCK_BYTES;
            reused[range.clone()].copy_from_slice(&newest[range]);
        }
        if written == [1, 2] {
            reused[BLOCK_BYTES..2 * BLOCK_BYTES].fill(0x33);
        }
        fs::write(b.slot_path(0, 0), reused).expect("written");
        let recovered = b.recover().expect("nothing acknowledged is missing");
        for (&id, bytes) in &expected {
            let now = b.bytes_of(&recovered, id);
            assert!(now.starts_with(bytes), "{written:?}");
        }
        // Back to the state before.
        fs::write(b.dir().join("identity"), b.identity.encode()).expect("written");
        let part = stored(&recovered, id).expect("known").next_offset;
        assert_eq!(part, if written == [1, 3] { 45 } else { 44 }, "{written:?}");
    }
}

#[test]
fn a_slot_that_was_freed_before_the_first_frame_of_the_next_one_is_no_evidence_of_a_loss() {
    let (mut b, id) = log_of(40, 3000);
    b.store();
    let identity = fs::read(b.dir().join("identity")).expect("read");
    let held = b.recover().expect("nothing is wrong");
    let offsets = stored(&held, id).expect("known").next_offset;
    // Of the newest slot only the header is there; the others are free, and full of old frames.
    let slots = b.logs[0].slots.len();
    for (i, slot) in b.logs[0].slots.iter_mut().enumerate() {
        match i + 1 == slots {
            true => slot[BLOCK_BYTES..].fill(0),
            false => slot[..BLOCK_BYTES].fill(0),
        }
    }
    for i in 0..slots {
        fs::write(b.slot_path(0, i), &b.logs[0].slots[i]).expect("written");
    }
    fs::write(b.dir().join("identity"), identity).expect("written");
    let recovered = b.recover().expect("the snapshots hold everything");
    assert_eq!(stored(&recovered, id).expect("known").next_offset, offsets);
}

#[test]
fn an_oldest_slot_that_is_damaged_is_refused_wherever_the_damage_is() {
    for frame in [0, 4] {
        let (mut b, _) = log_of(44, 3000);
        let damaged = b.logs[0].frames[frame];
        b.overwrite(0, damaged, 0x5a);
        b.store();
        let RecoverError::Lost(lost) = b.recover().expect_err("data is gone") else {
            panic!("another refusal")
        };
        assert_eq!(lost.path, b.slot_path(0, 0));
    }
}

/// Header and first frame of a slot, lost as zeros or as something else.
fn lose_the_beginning(b: &mut Builder, slot: usize, byte: u8) {
    b.logs[0].slots[slot][..2 * BLOCK_BYTES].fill(byte);
    b.store();
}

/// A start and `verify` say that a frame is lost with which a slot began.
fn assert_lost_beginning(b: &Builder, slot: usize) {
    let report = verify(b.dir(), &mut |_| {}).expect("readable");
    assert!(!report.is_sound());
    let RecoverError::Lost(lost) = b.recover().expect_err("data is gone") else {
        panic!("another refusal")
    };
    let place = (lost.path.clone(), lost.position);
    assert_eq!(place, (b.slot_path(0, slot), BLOCK_BYTES as u64));
}

#[test]
fn a_log_whose_only_slot_lost_its_beginning_is_refused() {
    for byte in [0, 0x5a] {
        let (mut b, _) = log_of(5, 100);
        lose_the_beginning(&mut b, 0, byte);
        assert_lost_beginning(&b, 0);

        // Only the closing frame is left of it.
        let (mut b, id) = log_of(5, 100);
        b.store();
        let recovered = b.recover().expect("nothing is wrong");
        b.next_start(&recovered);
        b.publish(id, 100);
        b.frame(0);
        b.closing(0);
        lose_the_beginning(&mut b, 0, byte);
        assert_lost_beginning(&b, 0);
    }
}

#[test]
fn a_log_all_of_whose_slots_lost_their_beginnings_is_refused() {
    for byte in [0, 0x5a] {
        let (mut b, _) = log_of(44, 3000);
        for slot in 0..3 {
            lose_the_beginning(&mut b, slot, byte);
        }
        assert_lost_beginning(&b, 0);
    }
}

/// Three slots; the group of the first has nothing in the others.
fn log_of_two_groups() -> (Builder, [PartitionId; 2]) {
    let mut b = Builder::new(2, 1);
    let topic = b.topic("t", 2, 1 << 20);
    b.frame(0);
    let ids = [0, 1].map(|partition| PartitionId { topic, partition });
    assert_ne!(b.group_of(ids[0]), b.group_of(ids[1]));
    b.store();
    let recovered = b.recover().expect("nothing is wrong");
    b.next_start(&recovered);
    for id in [ids[0], ids[1], ids[1]] {
        for _ in 0..15 {
            b.publish(id, 3000);
            b.frame(0);
        }
    }
    assert_eq!(b.logs[0].slots.len(), 3);
    (b, ids)
}

#[test]
fn an_oldest_slot_that_lost_its_beginning_is_refused_though_no_later_one_goes_on_with_its_groups() {
    for byte in [0, 0x5a] {
        let (mut b, _) = log_of_two_groups();
        lose_the_beginning(&mut b, 0, byte);
        assert_lost_beginning(&b, 0);

        let (mut b, _) = log_of_two_groups();
        for slot in [0, 1] {
            lose_the_beginning(&mut b, slot, byte);
        }
        assert_lost_beginning(&b, 0);
    }
}

#[test]
fn a_free_slot_whose_first_frame_is_damaged_is_no_loss() {
    let (mut b, ids) = log_of_two_groups();
    b.store();
    let identity = fs::read(b.dir().join("identity")).expect("read");
    b.recover().expect("nothing is wrong");
    fs::write(b.dir().join("identity"), identity).expect("written");
    // Snapshots hold all of it: the broker had blanked its header.
    b.logs[0].slots[0][..BLOCK_BYTES].fill(0);
    b.logs[0].slots[0][BLOCK_BYTES..2 * BLOCK_BYTES].fill(0x5a);
    fs::write(b.slot_path(0, 0), &b.logs[0].slots[0]).expect("written");
    let recovered = b.recover().expect("nothing is lost");
    for id in ids {
        assert_eq!(
            stored(&recovered, id).expect("known").next_offset,
            b.next_offset(id)
        );
    }
}

#[test]
fn a_first_slot_that_was_being_begun_when_the_crash_came_is_no_loss() {
    // Its header and four frames were in flight; whatever of them came to the device.
    for written in 0..16_usize {
        for old in [0, 0x33] {
            let (mut b, id) = log_of(1, 100);
            b.store();
            let recovered = b.recover().expect("nothing is wrong");
            b.next_start(&recovered);
            let frames: Vec<_> = (0..4)
                .map(|_| {
                    b.publish(id, 100);
                    b.frame_with(0, 0)
                })
                .collect();
            for (i, frame) in frames.into_iter().enumerate() {
                if written & (1 << i) == 0 {
                    b.overwrite(0, frame, old);
                }
            }
            b.logs[0].slots[0][..BLOCK_BYTES].fill(0);
            b.store();
            let recovered = b.recover().expect("nobody was told that it was durable");
            let whole = (written + 1).trailing_zeros();
            let next = stored(&recovered, id).expect("known").next_offset;
            assert_eq!(next, 1 + u64::from(whole), "{written:b}");
        }
    }
}

#[test]
fn data_of_a_topic_that_was_never_made_is_refused() {
    let (mut b, _) = log_of(1, 100);
    let unknown = PartitionId {
        topic: TopicId::new(5, b.next_serial),
        partition: 0,
    };
    b.publish(unknown, 100);
    b.frame(0);
    b.store();
    let RecoverError::UnknownTopic(error) = b.recover().expect_err("unknown") else {
        panic!("another refusal")
    };
    assert_eq!((error.partition, error.next_serial), (unknown, 1));
}

#[test]
fn a_partition_that_the_topic_does_not_have_is_refused() {
    let (mut b, id) = log_of(1, 100);
    b.publish(PartitionId { partition: 1, ..id }, 100);
    b.frame(0);
    b.store();
    assert!(matches!(b.recover(), Err(RecoverError::BadEntry(_))));
}

#[test]
fn a_gap_in_the_offsets_of_a_partition_is_refused() {
    let (mut b, id) = log_of(3, 100);
    let mut batch = b.batch(id, 10, None);
    ringtide_schema::batch::assign(&mut batch, 5, 1);
    b.publish_batch(id, &batch);
    b.frame(0);
    b.store();
    let error = b.recover().expect_err("offset 4 is missing").to_string();
    assert!(error.contains("which is at 3"), "{error}");
}

#[test]
fn foreign_files_are_refused_by_their_path() {
    let foreign = [
        "notes.txt",
        "groups/00002.snapshot",
        "groups/1.snapshot",
        "groups/readme",
        "wal/slot",
        "wal/000001.log",
        "partitions/readme",
        "partitions/x-0/file",
    ];
    for name in foreign {
        let (b, _) = log_of(1, 100);
        b.store();
        let path = b.dir().join(name);
        fs::create_dir_all(path.parent().expect("below")).expect("made");
        fs::write(&path, "x").expect("written");
        let RecoverError::Foreign(error) = b.recover().expect_err(name) else {
            panic!("{name}: another refusal")
        };
        assert!(
            path.starts_with(&error.path) && error.path != b.dir(),
            "{name}: {error}"
        );
    }
}

#[test]
fn an_identity_that_is_missing_damaged_or_old_is_refused() {
    let (b, _) = log_of(1, 100);
    b.store();
    let path = b.dir().join("identity");
    fs::remove_file(&path).expect("removed");
    assert!(matches!(b.recover(), Err(RecoverError::MissingIdentity(_))));
    fs::write(&path, "nonsense").expect("written");
    assert!(matches!(b.recover(), Err(RecoverError::BadIdentity(_))));
    let older = ringtide_schema::identity::Identity {
        incarnation: 2,
        ..b.identity
    };
    fs::write(&path, older.encode()).expect("written");
    assert!(matches!(b.recover(), Err(RecoverError::NewerSlot(_))));
}

#[test]
fn a_missing_folder_is_refused() {
    for folder in ["groups", "partitions", "wal"] {
        let (b, _) = log_of(1, 100);
        b.store();
        fs::remove_dir_all(b.dir().join(folder)).expect("removed");
        let error = b.recover().expect_err(folder);
        assert!(error.to_string().contains(folder), "{error}");
    }
}

#[test]
fn a_damaged_snapshot_is_refused_by_its_path() {
    let (b, _) = log_of(1, 100);
    b.store();
    b.recover().expect("nothing is wrong");
    let path = b.dir().join("groups/00000.snapshot");
    let mut bytes = fs::read(&path).expect("read");
    bytes[40] ^= 1;
    fs::write(&path, bytes).expect("written");
    let RecoverError::BadSnapshot(error) = b.recover().expect_err("damaged") else {
        panic!("another refusal")
    };
    assert_eq!(error.path, path);
}

#[test]
fn a_group_whose_snapshot_is_gone_is_refused_while_its_segments_are_there() {
    let (mut b, _) = log_of(3, 3000);
    b.store();
    let recovered = b.recover().expect("nothing is wrong");
    fs::remove_file(b.dir().join("groups/00000.snapshot")).expect("removed");
    assert!(matches!(b.recover(), Err(RecoverError::Unlisted(_))));
    b.store_clean(&recovered);
    assert!(matches!(b.recover(), Err(RecoverError::Unlisted(_))));
}

#[test]
fn a_segment_shorter_than_its_synced_position_is_refused() {
    let (mut b, id) = log_of(3, 3000);
    b.store();
    let recovered = b.recover().expect("nothing is wrong");
    b.next_start(&recovered);
    b.publish(id, 10);
    b.frame(0);
    b.store();
    let path = b
        .dir()
        .join("partitions")
        .join(id.dir_name())
        .join(format!("{:020}.log", 0));
    fs::write(&path, "short").expect("written");
    assert!(matches!(b.recover(), Err(RecoverError::BadSegment(e)) if e.path == path));
    fs::remove_file(&path).expect("removed");
    assert!(matches!(b.recover(), Err(RecoverError::BadSegment(e)) if e.path == path));
}

#[test]
fn an_open_segment_that_is_cut_or_gone_is_refused_after_a_clean_stop_too() {
    let (mut b, id) = log_of(3, 3000);
    b.store();
    let recovered = b.recover().expect("nothing is wrong");
    b.store_clean(&recovered);
    let path = b
        .dir()
        .join("partitions")
        .join(id.dir_name())
        .join(format!("{:020}.log", 0));
    fs::write(&path, "short").expect("written");
    assert!(
        matches!(b.recover(), Err(RecoverError::BadSegment(e)) if e.path == path && e.have == 5)
    );
    fs::remove_file(&path).expect("removed");
    assert!(
        matches!(b.recover(), Err(RecoverError::BadSegment(e)) if e.path == path && e.have == 0)
    );
}

/// A clean stop, and more that was published after the next start.
fn newer_than_its_identity() -> (Builder, PartitionId, Vec<u8>) {
    let (mut b, id) = log_of(3, 3000);
    b.store();
    let recovered = b.recover().expect("nothing is wrong");
    b.store_clean(&recovered);
    let identity = fs::read(b.dir().join("identity")).expect("read");
    let recovered = b.recover().expect("nothing is wrong");
    b.next_start(&recovered);
    (0..10).for_each(|_| b.publish(id, 3000));
    b.frames();
    (b, id, identity)
}

#[test]
fn an_identity_that_is_older_than_the_log_is_refused_after_a_clean_stop_too() {
    let (b, _, identity) = newer_than_its_identity();
    b.store();
    fs::write(b.dir().join("identity"), identity).expect("written");
    let report = verify(b.dir(), &mut |_| {}).expect("readable");
    assert!(!report.is_sound());
    assert!(matches!(b.recover(), Err(RecoverError::NewerSlot(_))));
}

#[test]
fn snapshots_that_are_older_than_a_segment_are_refused_after_a_clean_stop_too() {
    let (b, id, identity) = newer_than_its_identity();
    let snapshot = b.dir().join("groups/00000.snapshot");
    let snapshots = [&snapshot, &b.dir().join("groups/00001.snapshot")]
        .map(|path| (path.clone(), fs::read(path).expect("read")));
    b.store();
    b.recover().expect("nothing is wrong");
    fs::write(b.dir().join("identity"), identity).expect("written");
    for (path, bytes) in snapshots {
        fs::write(path, bytes).expect("written");
    }
    for slot in fs::read_dir(b.dir().join("wal")).expect("listed") {
        fs::remove_file(slot.expect("listed").path()).expect("removed");
    }
    let path = b
        .dir()
        .join("partitions")
        .join(id.dir_name())
        .join(format!("{:020}.log", 0));
    let report = verify(b.dir(), &mut |_| {}).expect("readable");
    assert!(!report.is_sound());
    assert!(matches!(b.recover(), Err(RecoverError::OldSnapshot(e)) if e.path == path));
}

#[test]
fn a_slot_of_another_data_directory_is_refused() {
    let (mut b, _) = log_of(3, 100);
    let header = SlotHeader {
        data_directory: TopicId { hi: 9, lo: 9 },
        shard: 0,
        generation: 1,
        incarnation: 1,
        slot_bytes: SLOT_BYTES,
    };
    header.encode(&mut b.logs[0].slots[0][..BLOCK_BYTES]);
    b.store();
    assert!(matches!(b.recover(), Err(RecoverError::ForeignSlot(_))));
}

#[test]
fn a_truncated_slot_is_refused() {
    let (b, _) = log_of(3, 100);
    b.store();
    fs::write(b.slot_path(0, 0), &b.logs[0].slots[0][..8192]).expect("written");
    assert!(matches!(b.recover(), Err(RecoverError::SlotBytes(_))));
}

/// Lengths of a slot that leave nothing that says whose it is.
const CUT_TO: [u64; 3] = [0, 30, 59];

fn cut(path: &Path, bytes: u64) {
    let file = fs::File::options().write(true).open(path);
    file.and_then(|file| file.set_len(bytes)).expect("cut");
}

#[test]
fn a_slot_that_was_cut_with_its_header_is_not_taken_for_a_free_one() {
    for slot in 0..3 {
        for bytes in CUT_TO {
            let (b, _) = log_of(40, 3000);
            assert_eq!(b.logs[0].slots.len(), 3);
            b.store();
            let path = b.slot_path(0, slot);
            cut(&path, bytes);
            let before = contents(b.dir());
            let report = verify(b.dir(), &mut |_| {}).expect("readable");
            let [problem] = &report.problems[..] else {
                panic!("one refusal: {:?}", report.problems)
            };
            assert!(problem.serious);
            let planned = plan(b.dir(), &mut |_| {}).expect_err("no cut mends it");
            assert!(matches!(planned, RecoverError::CutSlot(_)), "{planned}");
            let RecoverError::CutSlot(error) = b.recover().expect_err("data is gone") else {
                panic!("another refusal")
            };
            assert_eq!((&error.path, error.have), (&path, bytes));
            assert!(problem.what.contains(&error.to_string()), "{problem}");
            let text = error.to_string();
            let words = [
                path.to_str().expect("text"),
                &format!("{bytes} bytes"),
                "restore",
            ];
            assert!(words.iter().all(|word| text.contains(word)), "{text}");
            assert_eq!(contents(b.dir()), before);
        }
    }
}

#[test]
fn a_slot_without_header_that_is_no_slot_by_its_length_is_refused() {
    let block = BLOCK_BYTES as u64;
    for bytes in [60, block - 1, block, 2 * block - 1, 2 * block + 1] {
        for byte in [0, 0x5a] {
            let (mut b, _) = log_of(5, 100);
            b.logs[0].slots[0][..BLOCK_BYTES].fill(byte);
            b.store();
            cut(&b.slot_path(0, 0), bytes);
            let error = b.recover().expect_err("data is gone");
            assert!(
                matches!(error, RecoverError::CutSlot(_)),
                "{bytes}: {error}"
            );
        }
    }
}

#[test]
fn a_slot_that_was_cut_is_no_matter_after_a_clean_stop() {
    for bytes in CUT_TO {
        let (mut b, _) = log_of(5, 100);
        b.store();
        let recovered = b.recover().expect("nothing is wrong");
        b.store_clean(&recovered);
        let path = b.slot_path(0, 0);
        cut(&path, bytes);
        let report = verify(b.dir(), &mut |_| {}).expect("readable");
        assert!(report.is_sound());
        let told = report.problems.iter().find(|note| note.path == path);
        let told = told.expect("a note").to_string();
        assert!(told.contains("removes it"), "{told}");
        let recovered = b.recover().expect("snapshots and segments hold everything");
        b.assert_everything(&recovered);
        assert!(!path.exists());
    }
}

#[test]
fn no_bit_flip_in_a_committed_frame_changes_what_is_recovered() {
    let (mut b, _) = log_of(6, 300);
    let frame = b.logs[0].frames[3];
    let used = FRAME_HEADER_BYTES + ENTRY_HEADER_BYTES + 400;
    let pristine = b.logs[0].slots[0].clone();
    let mut refused = 0;
    for bit in (0..used * 8)
        .step_by(13)
        .chain((0..FRAME_HEADER_BYTES * 8).step_by(5))
    {
        b.logs[0].slots[0] = pristine.clone();
        b.logs[0].slots[0][frame.position + bit / 8] ^= 1 << (bit % 8);
        for name in ["groups", "partitions"] {
            fs::remove_dir_all(b.dir().join(name)).expect("removed");
            fs::create_dir(b.dir().join(name)).expect("made");
        }
        b.store();
        match b.recover() {
            // A bit between the entries' end and the next block.
            Ok(recovered) => b.assert_everything(&recovered),
            Err(RecoverError::Lost(lost)) => {
                assert_eq!(lost.position, frame.position as u64, "bit {bit}");
                refused += 1;
            }
            Err(error) => panic!("bit {bit}: {error}"),
        }
    }
    assert!(refused > FRAME_HEADER_BYTES);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_published_is_recovered(
        starts in prop::collection::vec(
            prop::collection::vec((0_u32..5, 0_usize..9000, 0_u8..4), 0..60),
            1..4,
        ),
        groups in 1_u16..5,
        shards in 1_u16..4,
        segment_bytes in 4096_u32..60_000,
    ) {
        let mut b = Builder::new(groups, shards);
        let topic = b.topic("t", 5, segment_bytes);
        b.frame(0);
        for publishes in starts {
            for (partition, bytes, end) in publishes {
                b.publish(PartitionId { topic, partition }, bytes);
                // Most frames have several entries.
                if end == 0 || bytes > 5000 {
                    b.frames();
                }
            }
            b.frames();
            b.store();
            let recovered = b.recover().expect("nothing is wrong");
            b.assert_everything(&recovered);
            b.next_start(&recovered);
        }
    }
}
