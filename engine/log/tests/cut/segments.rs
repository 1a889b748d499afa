//! Segments that lie behind a cut, or that no cut explains.

use std::collections::BTreeSet;

use super::*;

#[test]
fn segments_of_only_what_comes_behind_the_cut_are_kept_and_removed() {
    let (mut b, id) = directory();
    let partition = b.dir().join("partitions").join(id.dir_name());
    // As a broker leaves them that seals segments between two snapshots; one begins with what is damaged.
    let [near, within, far] = [18, 19, 24].map(|base| partition.join(log_name(base)));
    for path in [&near, &within, &far] {
        fs::write(path, [7_u8; 5000]).expect("written");
    }
    let damaged = b.logs[0].frames[3];
    b.overwrite(0, damaged, 0x5a);
    b.store();
    let (_home, kept) = place();
    let plan = plan(b.dir());
    let removed = plan.segments.iter().collect::<BTreeSet<_>>();
    assert_eq!(removed, [&within, &far].into(), "19 is the end");
    make(b.dir(), &plan, &kept).expect("cut");
    assert!(near.exists() && !within.exists() && !far.exists());
    for path in [&near, &within, &far] {
        let copy = kept.join(path.strip_prefix(b.dir()).expect("below"));
        assert_eq!(fs::read(copy).expect("a copy"), [7; 5000]);
    }
    assert_eq!(end(&start(&b), id), 19);
}

#[test]
fn a_segment_is_removed_though_no_record_of_its_partition_can_be_read_behind_the_damage() {
    let (mut b, id) = directory();
    let records = b.logs[0].frames.len() - 2;
    // Of the last record, of the offset of the consumer behind it nothing is in a segment.
    let damaged = b.logs[0].frames[records - 1];
    b.overwrite(0, damaged, 0x5a);
    b.store();
    let base = HELD + records as u64 - 1;
    let path = b.dir().join("partitions").join(id.dir_name());
    let path = path.join(log_name(base));
    fs::write(&path, [7_u8; 5000]).expect("written");
    cut_at_once(b.dir());
    assert!(!path.exists());
    assert_eq!(end(&start(&b), id), base);
}

#[test]
fn a_short_segment_beside_the_damage_is_found_once_the_log_is_cut() {
    let (mut b, id) = directory();
    let path = b.dir().join("partitions").join(id.dir_name());
    let path = path.join(log_name(12));
    let bytes = fs::read(&path).expect("a segment");
    fs::write(&path, &bytes[..BLOCK_BYTES]).expect("written");
    // With the first frame damaged nothing is replayed into the segment.
    for frame in [0, 9] {
        let (pristine, damaged) = (b.logs[0].slots.clone(), b.logs[0].frames[frame]);
        b.overwrite(0, damaged, 0x5a);
        b.store();
        let before = without_log(b.dir());
        let refused = make(b.dir(), &plan(b.dir()), &place().1).expect_err("in vain");
        let words = refused.to_string();
        let CutError::Useless { why, .. } = refused else {
            panic!("{words}")
        };
        assert!(matches!(*why, RecoverError::BadSegment(_)), "{why}");
        assert!(without_log(b.dir()) == before);
        b.logs[0].slots = pristine;
    }
}

/// Two partitions in two groups: only the first has records in a log whose fourth frame, of many batches, is damaged, but for
/// `behind` of the other behind that.
fn idle_neighbour(behind: u64, segment_bytes: u32) -> (Builder, PartitionId) {
    let mut b = Builder::in_memory(2, 1);
    let topic = b.topic("t", 2, segment_bytes);
    b.frame(0);
    let [busy, idle] = [0, 1].map(|partition| PartitionId { topic, partition });
    assert_ne!(b.group_of(busy), b.group_of(idle));
    publish(&mut b, busy, HELD);
    publish(&mut b, idle, 7);
    b.store();
    let recovered = b.recover().expect("nothing is wrong");
    b.next_start(&recovered);
    let snapshot = snapshot_of(&b, idle);
    fs::copy(&snapshot, b.dir().with_extension("old")).expect("copied");
    publish(&mut b, idle, 20);
    b.store();
    let recovered = b.recover().expect("nothing is wrong");
    b.next_start(&recovered);
    publish(&mut b, busy, 3);
    for _ in 0..40 {
        b.publish(busy, 30);
    }
    let damaged = b.frame(0);
    publish(&mut b, idle, behind);
    publish(&mut b, busy, 2);
    b.overwrite(0, damaged, 0x5a);
    b.store();
    (b, idle)
}

fn snapshot_of(b: &Builder, id: PartitionId) -> PathBuf {
    let groups = b.dir().join("groups");
    groups.join(b.group_of(id).snapshot_name())
}

#[test]
fn segments_that_a_missing_or_old_snapshot_does_not_name_are_no_part_of_a_cut() {
    // Several segments, or one that is open.
    for (behind, segment_bytes) in [(0, 20_000), (2, 20_000), (0, 1 << 20), (2, 1 << 20)] {
        for is_missing in [true, false] {
            let (b, idle) = idle_neighbour(behind, segment_bytes);
            let old = b.dir().with_extension("old");
            match is_missing {
                true => fs::remove_file(snapshot_of(&b, idle)).expect("removed"),
                false => drop(fs::copy(&old, snapshot_of(&b, idle)).expect("copied")),
            }
            fs::remove_file(old).expect("removed");
            let before = contents(b.dir());
            let case = format!("{behind} behind, {segment_bytes}, missing: {is_missing}");
            // Of an old snapshot the open segment has too much by itself; else what it does not name is left over.
            let is_planned = is_missing || (behind, segment_bytes) == (2, 20_000);
            match cut::plan(b.dir(), &mut |_| {}) {
                Err(RecoverError::Unlisted(_)) => {
                    assert!(!is_planned && contents(b.dir()) == before, "{case}");
                }
                Ok(Outlook::Damaged(plan)) => {
                    assert!(is_planned && plan.segments.is_empty(), "{case}");
                    let refused = make(b.dir(), &plan, &place().1).expect_err(&case);
                    let CutError::Useless { why, .. } = refused else {
                        panic!("{case}: {refused}")
                    };
                    assert!(matches!(*why, RecoverError::Unlisted(_)), "{case}: {why}");
                    assert!(without_log(b.dir()) == before, "{case}");
                }
                other => panic!("{case}: {other:?}"),
            }
        }
    }
}

#[test]
fn what_an_open_segment_has_of_the_damage_is_no_sign_of_an_old_snapshot() {
    for byte in [0, 0x5a] {
        let mut b = Builder::in_memory(2, 1);
        let topic = b.topic("t", 2, 1 << 20);
        b.frame(0);
        let [busy, idle] = [0, 1].map(|partition| PartitionId { topic, partition });
        publish(&mut b, busy, 7);
        publish(&mut b, idle, 7);
        b.store();
        let recovered = b.recover().expect("nothing is wrong");
        b.next_start(&recovered);
        publish(&mut b, busy, 3);
        for _ in 0..10 {
            b.publish(idle, 3000);
        }
        let damaged = b.frame(0);
        publish(&mut b, idle, 1);
        b.closing(0);
        // The broker had written all of it.
        let published = &b.expected[&idle];
        let path = b.dir().join("partitions").join(idle.dir_name());
        let path = path.join(log_name(0));
        fs::write(&path, published).expect("written");
        b.overwrite(0, damaged, byte);
        b.store();
        let plan = plan(b.dir());
        let span = plan.logs[0].behind.records[&idle];
        assert_eq!((span.end, span.first, span.last), (7, 17, 17));
        make(b.dir(), &plan, &place().1).expect("cut");
        assert_eq!(end(&start(&b), idle), 7, "{byte}");
    }
}

#[test]
fn a_topic_that_would_be_back_without_its_segments_makes_a_cut_vain() {
    let mut b = Builder::in_memory(2, 1);
    let [gone, other] = ["t", "u"].map(|name| b.topic(name, 1, 20_000));
    b.frame(0);
    let [gone, other] = [gone, other].map(|topic| PartitionId {
        topic,
        partition: 0,
    });
    publish(&mut b, gone, HELD);
    publish(&mut b, other, 3);
    b.store();
    let recovered = b.recover().expect("nothing is wrong");
    b.next_start(&recovered);
    // The snapshot ends with a segment that is sealed, as where it was old enough to be.
    let mut groups = recovered.groups.into_iter();
    let mut snapshot = groups
        .find(|group| group.group == b.group_of(gone).0)
        .expect("its group");
    let mut partitions = snapshot.partitions.iter_mut().flatten();
    let stored = partitions
        .find(|stored| stored.topic.as_ref().map(Into::into) == Some(gone.topic))
        .expect("the partition");
    let segments = stored.segments.as_mut().expect("some");
    segments.pop_if(|last| !last.sealed);
    stored.next_offset = segments.last().expect("one").next_offset;
    stored.tail = None;
    b.store_snapshot(&snapshot);
    publish(&mut b, other, 5);
    let damaged = b.logs[0].frames[2];
    b.delete(gone.topic);
    b.frame(0);
    b.closing(0);
    b.overwrite(0, damaged, 0x5a);
    b.expected.remove(&gone);
    b.store();
    // What the broker did when the deletion was durable.
    let directory = b.dir().join("partitions").join(gone.dir_name());
    fs::remove_dir_all(&directory).expect("removed");

    let before = without_log(b.dir());
    let refused = make(b.dir(), &plan(b.dir()), &place().1).expect_err("in vain");
    assert!(matches!(refused, CutError::Useless { .. }), "{refused}");
    let first = directory.join(log_name(0)).display().to_string();
    assert!(refused.to_string().contains(&first), "{refused}");
    assert!(without_log(b.dir()) == before);

    // Killed before it was found out.
    let mut lines = 0;
    let interrupted = cut::make(b.dir(), &plan(b.dir()), &place().1, &mut |line| {
        lines += 1;
        match lines {
            1 => note(b.dir(), line),
            _ => note(Path::new("/nowhere"), line),
        }
    });
    assert!(matches!(interrupted, Err(CutError::NotPutBack { .. })));
    let plan = plan(b.dir());
    let (_home, kept) = place();
    // The segments were lost otherwise.
    fs::create_dir(&directory).expect("made");
    for segment in snapshot
        .partitions
        .iter()
        .flatten()
        .flat_map(|p| &p.segments)
        .flatten()
    {
        let path = directory.join(log_name(segment.base_offset));
        fs::write(path, "").expect("written");
    }
    make(b.dir(), &plan, &kept).expect("cut");
    assert_eq!(end(&start(&b), other), 5);
}
