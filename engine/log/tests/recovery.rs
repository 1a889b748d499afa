//! What recovery makes of data directories that nothing is wrong with but an interruption.

mod common;

use std::fs;

use common::{Builder, SLOT_BYTES, contents, stored};
use ringtide_log::recovery::table::Found;
use ringtide_log::recovery::{RecoverError, RecoverOptions, log_name, recover};
use ringtide_schema::batch::{Batches, CRC_START};
use ringtide_schema::ids::PartitionId;
use ringtide_schema::limits::BLOCK_BYTES;
use ringtide_schema::store::{MetaEntryT, SegmentT};
use tempfile::TempDir;

const SEGMENT: u32 = 1 << 20;

fn options() -> RecoverOptions {
    RecoverOptions {
        direct: false,
        shards: 2,
        slot_bytes: SLOT_BYTES,
        groups_for_new: 4,
        random: [1, 2],
    }
}

/// A topic of two partitions, each given `batches` batches of `bytes`, one frame per batch.
fn simple(shards: u16, batches: usize, bytes: usize) -> (Builder, [PartitionId; 2]) {
    let mut b = Builder::new(4, shards);
    let topic = b.topic("t", 2, SEGMENT);
    b.frame(0);
    let ids = [0, 1].map(|partition| PartitionId { topic, partition });
    for _ in 0..batches {
        for id in ids {
            b.publish(id, bytes);
            b.frame(b.shard_of(id));
        }
    }
    (b, ids)
}

#[test]
fn an_absent_directory_is_made() {
    let root = TempDir::new().expect("a place for the test");
    let dir = root.path().join("a/b");
    let made = recover(&dir, options(), &mut |_| {}).expect("made");
    assert!(made.summary.fresh);
    assert_eq!(
        (made.identity.incarnation, made.identity.leader_epoch),
        (1, 1)
    );
    assert_eq!((made.groups.len(), made.slots.len()), (5, 0));
    let again = recover(&dir, options(), &mut |_| {}).expect("an unclean start over nothing");
    assert_eq!(
        (again.identity.incarnation, again.identity.leader_epoch),
        (2, 2)
    );
    assert_eq!(again.identity.data_directory, made.identity.data_directory);
}

#[test]
fn a_directory_that_was_begun_but_not_finished_is_made() {
    let root = TempDir::new().expect("a place for the test");
    fs::create_dir(root.path().join("wal")).expect("made");
    fs::create_dir(root.path().join("lost+found")).expect("made");
    fs::write(root.path().join("lock"), "").expect("written");
    assert!(
        recover(root.path(), options(), &mut |_| {})
            .expect("made")
            .summary
            .fresh
    );
}

#[test]
fn a_start_after_a_clean_stop_that_was_interrupted_is_begun_again() {
    let mut b = Builder::new(1, 1);
    let (kept, gone) = (b.topic("kept", 1, 1 << 20), b.topic("gone", 1, 1 << 20));
    for topic in [kept, gone] {
        let id = PartitionId {
            topic,
            partition: 0,
        };
        b.publish(id, 3000);
    }
    b.frames();
    b.store();
    let recovered = b.recover().expect("nothing is wrong");
    // The topic goes; the snapshot of its partition's group still names that.
    let snapshot = fs::read(b.dir().join("groups/00000.snapshot")).expect("read");
    b.next_start(&recovered);
    b.delete(gone);
    b.frames();
    b.store();
    let recovered = b.recover().expect("nothing is wrong");
    fs::write(b.dir().join("groups/00000.snapshot"), snapshot).expect("written");
    b.store_clean(&recovered);
    let clean = fs::read(b.dir().join("identity")).expect("read");
    for _ in 0..2 {
        b.recover().expect("whatever the one before has done");
        fs::write(b.dir().join("identity"), &clean).expect("written");
    }
}

#[test]
fn after_a_clean_stop_the_log_is_not_read() {
    let (mut b, ids) = simple(1, 3, 3000);
    b.store();
    let recovered = b.recover().expect("nothing is wrong");
    b.next_start(&recovered);
    b.store();
    b.store_clean(&recovered);
    for name in fs::read_dir(b.dir().join("wal")).expect("listed") {
        fs::write(
            name.expect("listed").path(),
            vec![0xee; SLOT_BYTES as usize],
        )
        .expect("written");
    }
    let clean = b.recover().expect("nothing is wrong");
    assert!(clean.summary.was_clean && clean.summary.frames == 0);
    assert_eq!(clean.identity.leader_epoch, recovered.identity.leader_epoch);
    assert_eq!(
        clean.identity.incarnation,
        recovered.identity.incarnation + 1
    );
    assert_eq!(clean.groups, recovered.groups);
    assert_eq!(clean.topics, recovered.topics);
    b.assert_everything(&clean);
    assert_eq!(stored(&clean, ids[0]).expect("known").next_offset, 3);
}

#[test]
fn frames_over_several_slots_are_replayed() {
    let (b, _) = simple(1, 40, 3000);
    assert!(b.logs[0].slots.len() >= 5);
    b.store();
    let recovered = b.recover().expect("nothing is wrong");
    b.assert_everything(&recovered);
    assert_eq!(recovered.summary.batches, 80);
    assert_eq!(recovered.summary.frames, 81);
    assert_eq!(recovered.slots.len(), b.logs[0].slots.len());
    assert_eq!(recovered.summary.log_ends[0].last_seq, 81);
    assert!(recovered.summary.torn_tail().is_none());
    assert!(!recovered.identity.clean);
    assert_eq!(recovered.identity.incarnation, b.identity.incarnation + 1);
    assert_eq!(recovered.identity.leader_epoch, b.identity.leader_epoch + 1);
}

#[test]
fn direct_io_gives_the_same_bytes() {
    let (b, _) = simple(2, 30, 3000);
    b.store();
    let options = RecoverOptions {
        direct: true,
        ..b.options()
    };
    let recovered = recover(b.dir(), options, &mut |_| {}).expect("nothing is wrong");
    b.assert_everything(&recovered);
}

#[test]
fn a_torn_last_frame_ends_the_log() {
    for damaged in [0, 3, 4, 100, 4096] {
        let (mut b, ids) = simple(1, 3, 6000);
        let before = b.expected.clone();
        b.publish(ids[0], 6000);
        let last = b.frame(0);
        assert_eq!(last.bytes, 8192);
        let slot = &mut b.logs[0].slots[last.slot];
        slot[last.position + damaged..last.position + last.bytes].fill(0xa5);
        b.expected = before;
        b.store();
        let recovered = b.recover().expect("never acknowledged");
        let end = recovered.summary.torn_tail().expect("torn");
        assert_eq!(
            (end.position, end.found),
            (last.position as u64, Found::Torn)
        );
        let stored = stored(&recovered, ids[0]).expect("known");
        assert_eq!(stored.next_offset, 3);
        assert!(b.bytes_of(&recovered, ids[0]) == b.expected[&ids[0]]);
    }
}

#[test]
fn a_hole_in_an_unacknowledged_tail_ends_the_log() {
    let (mut b, ids) = simple(1, 3, 100);
    let committed = b.logs[0].next_seq - 1;
    let before = b.expected.clone();
    let hole = {
        b.publish(ids[0], 100);
        b.frame_with(0, committed)
    };
    for _ in 0..7 {
        b.publish(ids[1], 100);
        b.frame_with(0, committed);
    }
    b.overwrite(0, hole, 0);
    b.store();
    let recovered = b.recover().expect("never acknowledged");
    for (&id, expected) in &before {
        assert!(b.bytes_of(&recovered, id) == *expected);
    }
    let end = recovered.summary.torn_tail().expect("frames follow");
    assert_eq!(
        (end.found, end.later_frames, end.last_seq),
        (Found::Absent, 7, committed)
    );
}

#[test]
fn a_tail_that_was_begun_in_the_next_slot_may_be_missing() {
    let (mut b, _) = simple(1, 40, 3000);
    let slots = b.logs[0].slots.len();
    b.logs[0].slots[slots - 1][BLOCK_BYTES..].fill(0);
    let first = b.logs[0]
        .frames
        .iter()
        .find(|f| f.slot == slots - 1)
        .expect("one")
        .to_owned();
    assert_eq!(first.position, BLOCK_BYTES);
    b.store();
    let recovered = b.recover().expect("nothing shows that it was acknowledged");
    assert!(recovered.summary.frames < 81);
    fs::remove_file(b.slot_path(0, slots - 1)).expect("removed");
}

#[test]
fn stale_frames_of_older_uses_are_ignored() {
    let (mut b, _) = simple(1, 40, 3000);
    b.store();
    let first = b.recover().expect("nothing is wrong");
    let old: Vec<Vec<u8>> = b.logs[0].slots.clone();
    b.next_start(&first);
    let ids: Vec<PartitionId> = b.expected.keys().copied().collect();
    for _ in 0..22 {
        b.publish(ids[0], 2000);
        b.frame(0);
    }
    // The new log lies over the old one: block 0 and its frames are new, the rest is as it was.
    let mut at = vec![BLOCK_BYTES; b.logs[0].slots.len()];
    for frame in &b.logs[0].frames {
        at[frame.slot] = frame.position + frame.bytes;
    }
    for (i, slot) in b.logs[0].slots.iter_mut().enumerate() {
        slot[at[i]..].copy_from_slice(&old[i][at[i]..]);
    }
    b.store();
    let second = b.recover().expect("nothing is wrong");
    assert_eq!(second.summary.frames, 22);
    assert_eq!(second.summary.log_ends[0].found, Found::Stale);
    b.assert_everything(&second);
}

#[test]
fn recycled_slots_of_the_same_start_are_entered_at_the_oldest() {
    let (mut b, ids) = simple(1, 20, 3000);
    b.store();
    let half = b.recover().expect("nothing is wrong");
    // The snapshots cover what is in the first slots, which are used again by the same start.
    let incarnation = b.identity.incarnation;
    let covered = b.logs[0].slots.len() - 1;
    for _ in 0..20 {
        b.publish(ids[0], 3000);
        b.frame(0);
    }
    fs::write(b.dir().join("identity"), b.identity.encode()).expect("written");
    let slots = b.logs[0].slots.len();
    for i in 0..slots {
        fs::write(b.slot_path(0, i), &b.logs[0].slots[i]).expect("written");
    }
    for i in 0..covered {
        fs::remove_file(b.slot_path(0, i)).expect("removed");
    }
    let recovered = b.recover().expect("nothing is wrong");
    assert_eq!(recovered.identity.incarnation, incarnation + 1);
    assert!(recovered.summary.batches == 20 && recovered.summary.skipped > 0);
    assert!(half.summary.batches == 40);
    b.assert_everything(&recovered);
}

#[test]
fn the_logs_of_two_shards_are_recovered_whatever_the_shards_are_now() {
    for shards in [1, 2, 5] {
        let (b, _) = simple(2, 20, 1000);
        assert!(b.logs.iter().all(|log| log.frames.len() > 10));
        b.store();
        let options = RecoverOptions {
            shards,
            ..b.options()
        };
        let recovered = recover(b.dir(), options, &mut |_| {}).expect("nothing is wrong");
        b.assert_everything(&recovered);
        assert_eq!(recovered.identity.shards, u32::from(shards));
        assert_eq!(recovered.summary.log_ends.len(), 2);
    }
}

#[test]
fn entries_of_a_deleted_topic_are_skipped_and_its_directory_goes() {
    let (mut b, ids) = simple(2, 3, 9000);
    b.store();
    let recovered = b.recover().expect("nothing is wrong");
    b.next_start(&recovered);
    b.publish(ids[0], 100);
    b.publish(ids[1], 100);
    b.delete(ids[0].topic);
    b.publish(ids[0], 100);
    b.frames();
    b.store();
    let recovered = b.recover().expect("nothing is wrong");
    assert!(recovered.topics.is_empty() && recovered.next_topic_serial == 1);
    assert!(
        recovered
            .groups
            .iter()
            .all(|g| g.partitions.iter().flatten().count() == 0)
    );
    assert_eq!(
        fs::read_dir(b.dir().join("partitions"))
            .expect("listed")
            .count(),
        0
    );
}

#[test]
fn what_a_replay_writes_for_a_topic_that_is_deleted_later_in_the_log_goes() {
    let (mut b, ids) = simple(1, 3, 9000);
    b.delete(ids[0].topic);
    b.frames();
    b.store();
    b.recover().expect("nothing is wrong");
    let left = fs::read_dir(b.dir().join("partitions")).expect("listed");
    assert_eq!(left.count(), 0);
}

#[test]
fn entries_before_the_deletion_of_a_topic_that_a_snapshot_forgot_already_are_skipped() {
    // A snapshot is made of what is there when it is written, which is after the last entry that it
    // speaks for: the topic may be gone by then, its deletion later in the log.
    let (mut b, ids) = simple(1, 3, 9000);
    b.store();
    let recovered = b.recover().expect("nothing is wrong");
    b.next_start(&recovered);
    b.publish(ids[0], 100);
    b.log_start(ids[0], 3);
    b.commit_offset(ids[0], "reader", 2);
    b.frames();
    b.store();
    let mut snapshot = recovered.groups[usize::from(b.group_of(ids[0]).0)].clone();
    snapshot.partitions = None;
    b.store_snapshot(&snapshot);
    let error = b.recover().expect_err("the topic is not deleted");
    assert!(matches!(error, RecoverError::BadEntry(_)), "{error}");

    b.delete(ids[0].topic);
    b.frames();
    b.store();
    b.store_snapshot(&snapshot);
    let recovered = b.recover().expect("nothing is missing");
    assert!(recovered.topics.is_empty());
    assert!(stored(&recovered, ids[0]).is_none());
}

#[test]
fn an_altered_topic_has_its_new_settings() {
    let (mut b, ids) = simple(1, 1, 10);
    let altered = Some(Box::new(common::topic_t(ids[0].topic, "t", 3, 8192)));
    b.meta(&MetaEntryT {
        altered,
        ..MetaEntryT::default()
    });
    b.publish(
        PartitionId {
            partition: 2,
            ..ids[0]
        },
        10,
    );
    b.frames();
    b.store();
    let recovered = b.recover().expect("nothing is wrong");
    assert_eq!(
        (
            recovered.topics[0].partitions,
            recovered.topics[0].config.segment_bytes
        ),
        (3, 8192)
    );
    b.assert_everything(&recovered);
}

#[test]
fn a_recovery_that_was_interrupted_comes_to_the_same_result() {
    let mut b = Builder::new(4, 2);
    let topic = b.topic("t", 3, 16 << 10);
    b.frame(0);
    for round in 0..3 {
        for _ in 0..20 {
            for partition in 0..3 {
                b.publish(PartitionId { topic, partition }, 1500 + 100 * round);
            }
            b.frames();
        }
        b.store();
        let before = contents(&b.dir().join("groups"));
        let identity = fs::read(b.dir().join("identity")).expect("read");
        let first = b.recover().expect("nothing is wrong");
        let after = contents(b.dir());
        // As if it had been stopped before any, one, or all snapshots were in place.
        let changed: Vec<_> = contents(&b.dir().join("groups")).into_keys().collect();
        for keep in 0..=changed.len() {
            fs::write(b.dir().join("identity"), &identity).expect("written");
            for name in &changed[keep..] {
                let path = b.dir().join("groups").join(name);
                match before.get(name) {
                    Some(bytes) => fs::write(path, bytes).expect("written"),
                    None => fs::remove_file(path).expect("removed"),
                }
            }
            let again = b.recover().expect("nothing is wrong");
            assert_eq!(again.groups, first.groups, "{keep} snapshots kept");
            assert_eq!(
                (again.identity, &again.topics),
                (first.identity, &first.topics)
            );
            assert!(contents(b.dir()) == after, "{keep} snapshots kept");
        }
        b.assert_everything(&first);
        b.next_start(&first);
    }
}

#[test]
fn segments_roll_before_they_grow_past_their_size() {
    let mut b = Builder::new(1, 1);
    let id = PartitionId {
        topic: b.topic("t", 1, 10_000),
        partition: 0,
    };
    for bytes in [3000, 3000, 3000, 3000, 20_000, 100, 100] {
        b.publish(id, bytes);
        b.frame(0);
    }
    b.store();
    let recovered = b.recover().expect("nothing is wrong");
    b.assert_everything(&recovered);
    let stored = stored(&recovered, id).expect("known");
    let segments: Vec<&SegmentT> = stored.segments.iter().flatten().collect();
    let bases: Vec<u64> = segments.iter().map(|s| s.base_offset).collect();
    assert_eq!(bases, [0, 3, 4, 5]);
    assert!(segments[..3].iter().all(|s| s.sealed) && !segments[3].sealed);
    for segment in &segments[..3] {
        let path = b
            .dir()
            .join("partitions")
            .join(id.dir_name())
            .join(log_name(segment.base_offset));
        let bytes = fs::read(path).expect("a segment");
        let mut crc = 0;
        let (mut next, mut latest) = (segment.base_offset, -1);
        for batch in Batches::new(&bytes) {
            let (header, batch) = batch.expect("whole");
            crc = crc32c::crc32c_append(crc, &batch[..CRC_START]);
            (next, latest) = (header.next_offset(), header.max_timestamp_ms.max(latest));
        }
        assert_eq!((segment.prefix_crc, segment.next_offset), (crc, next));
        assert_eq!(segment.max_timestamp_ms, latest);
        assert_eq!(segment.incarnation, recovered.identity.incarnation);
    }
}

#[test]
fn a_batch_that_straddles_the_synced_position_is_continued() {
    let mut b = Builder::new(1, 1);
    let id = PartitionId {
        topic: b.topic("t", 1, SEGMENT),
        partition: 0,
    };
    for bytes in [10, 3000, 700, 5000, 40, 1, 1, 4000, 90, 30_000, 7] {
        b.publish(id, bytes);
        b.frame(0);
        b.store();
        let recovered = b.recover().expect("nothing is wrong");
        b.assert_everything(&recovered);
        let all = &b.expected[&id];
        let stored = stored(&recovered, id).expect("known");
        let segment = &stored.segments.iter().flatten().next().expect("one");
        assert_eq!(
            segment.bytes as usize,
            all.len() / BLOCK_BYTES * BLOCK_BYTES
        );
        let mut covered = 0;
        let mut batches = Batches::new(all);
        while let Some(batch) = batches.next() {
            let (header, _) = batch.expect("whole");
            if batches.position() as u64 <= segment.bytes {
                covered = header.next_offset();
            }
        }
        assert_eq!(segment.next_offset, covered);
        b.next_start(&recovered);
        for slot in fs::read_dir(b.dir().join("wal")).expect("listed") {
            fs::remove_file(slot.expect("listed").path()).expect("removed");
        }
    }
}

#[test]
fn the_producer_window_is_rebuilt_across_snapshot_and_log() {
    let mut b = Builder::new(1, 1);
    let id = PartitionId {
        topic: b.topic("t", 1, SEGMENT),
        partition: 0,
    };
    for sequence in 0..4 {
        let batch = b.batch(id, 10, Some((42, sequence)));
        b.publish_batch(id, &batch);
    }
    b.frame(0);
    b.store();
    let recovered = b.recover().expect("nothing is wrong");
    b.next_start(&recovered);
    for sequence in 4..7 {
        let batch = b.batch(id, 10, Some((42, sequence)));
        b.publish_batch(id, &batch);
    }
    b.publish(id, 10);
    b.frame(0);
    b.store();
    let recovered = b.recover().expect("nothing is wrong");
    let stored = stored(&recovered, id).expect("known");
    let producers = stored.producers.as_ref().expect("one");
    assert_eq!(
        (producers.len(), producers[0].id, producers[0].epoch),
        (1, 42, 0)
    );
    let window: Vec<_> = producers[0]
        .batches
        .iter()
        .flatten()
        .map(|p| (p.base_offset, p.base_sequence))
        .collect();
    assert_eq!(window, [(2, 2), (3, 3), (4, 4), (5, 5), (6, 6)]);
}

#[test]
fn a_new_leader_epoch_begins_with_its_first_batch() {
    let (mut b, ids) = simple(1, 2, 10);
    b.store();
    let recovered = b.recover().expect("nothing is wrong");
    b.next_start(&recovered);
    b.leader_epoch = recovered.identity.leader_epoch as i32;
    b.publish(ids[0], 10);
    b.publish(ids[0], 10);
    b.frame(0);
    b.store();
    let recovered = b.recover().expect("nothing is wrong");
    let epochs = |id| -> Vec<(u64, u32)> {
        let stored = stored(&recovered, id).expect("known");
        stored
            .epochs
            .iter()
            .flatten()
            .map(|e| (e.start_offset, e.epoch))
            .collect()
    };
    assert_eq!(epochs(ids[0]), [(0, 1), (2, 2)]);
    assert_eq!(epochs(ids[1]), [(0, 1)]);
}

#[test]
fn committed_offsets_are_the_last_of_each_consumer() {
    let (mut b, ids) = simple(1, 5, 10);
    for (consumer, offset) in [("b", 1), ("a", 2), ("b", 3)] {
        b.commit_offset(ids[0], consumer, offset);
    }
    b.frame(0);
    b.store();
    let recovered = b.recover().expect("nothing is wrong");
    let stored = stored(&recovered, ids[0]).expect("known");
    let committed: Vec<_> = stored
        .committed
        .iter()
        .flatten()
        .map(|c| (c.consumer.as_str(), c.offset))
        .collect();
    assert_eq!(committed, [("a", 2), ("b", 3)]);
}

#[test]
fn segments_below_the_log_start_are_removed() {
    let mut b = Builder::new(1, 1);
    let id = PartitionId {
        topic: b.topic("t", 1, 10_000),
        partition: 0,
    };
    for _ in 0..9 {
        b.publish(id, 3000);
        b.frame(0);
    }
    b.log_start(id, 4);
    b.frame(0);
    b.store();
    let recovered = b.recover().expect("nothing is wrong");
    let stored = stored(&recovered, id).expect("known");
    assert_eq!((stored.log_start, stored.next_offset), (4, 9));
    let bases: Vec<u64> = stored
        .segments
        .iter()
        .flatten()
        .map(|s| s.base_offset)
        .collect();
    assert_eq!(bases, [3, 6]);
    let files = contents(&b.dir().join("partitions").join(id.dir_name()));
    let names: Vec<_> = files
        .keys()
        .map(|name| name.display().to_string())
        .collect();
    assert_eq!(names, [log_name(3), log_name(6)]);
}

#[test]
fn leftovers_of_interrupted_replacements_are_removed() {
    let (b, _) = simple(1, 1, 10);
    b.store();
    for name in [
        "identity.tmp",
        "groups/00001.snapshot.tmp",
        "wal/000007.wal.tmp",
    ] {
        fs::write(b.dir().join(name), "half").expect("written");
    }
    b.recover().expect("nothing is wrong");
    assert!(
        contents(b.dir())
            .keys()
            .all(|name| name.extension().is_none_or(|e| e != "tmp"))
    );
}

#[test]
fn slots_of_another_size_are_removed_once_they_are_free() {
    let (b, _) = simple(1, 40, 3000);
    b.store();
    fs::write(
        b.dir().join("wal/000900.wal"),
        vec![0; 2 * SLOT_BYTES as usize],
    )
    .expect("written");
    let options = RecoverOptions {
        slot_bytes: 2 * SLOT_BYTES,
        ..b.options()
    };
    let recovered = recover(b.dir(), options, &mut |_| {}).expect("nothing is wrong");
    b.assert_everything(&recovered);
    assert_eq!(recovered.slots.len(), 1);
    assert_eq!(
        fs::read_dir(b.dir().join("wal")).expect("listed").count(),
        1
    );
}

#[test]
fn a_partition_that_was_synced_past_its_snapshot_index_is_not_appended_to_twice() {
    let (b, ids) = simple(1, 6, 3000);
    b.store();
    let identity = fs::read(b.dir().join("identity")).expect("read");
    let recovered = b.recover().expect("nothing is wrong");
    // The snapshot of the first partition's group as of its second entry, but with all batches.
    let group = b.group_of(ids[0]);
    let mut snapshot = recovered.groups[usize::from(group.0)].clone();
    snapshot.group_index = 2;
    b.store_snapshot(&snapshot);
    fs::write(b.dir().join("identity"), identity).expect("written");
    let again = b.recover().expect("nothing is wrong");
    assert_eq!(again.summary.batches, 0);
    b.assert_everything(&again);
    assert_eq!(again.groups, recovered.groups);
}
