//! Segments that lie behind a cut, or that no cut explains.

use super::*;

#[test]
fn segments_of_only_what_comes_behind_the_cut_are_kept_and_removed() {
    let (mut b, id) = directory();
    let partition = b.dir().join("partitions").join(id.dir_name());
    // As a broker leaves them that seals segments between two snapshots.
    let [near, far] = [18, 24].map(|base| partition.join(log_name(base)));
    for path in [&near, &far] {
        fs::write(path, [7_u8; 5000]).expect("written");
    }
    let damaged = b.logs[0].frames[3];
    b.overwrite(0, damaged, 0x5a);
    b.store();
    let (_home, kept) = place();
    let plan = plan(b.dir());
    assert_eq!(
        &plan.segments[..],
        std::slice::from_ref(&far),
        "19 is the end"
    );
    make(b.dir(), &plan, &kept).expect("cut");
    assert!(near.exists() && !far.exists());
    for path in [&near, &far] {
        let copy = kept.join(path.strip_prefix(b.dir()).expect("below"));
        assert_eq!(fs::read(copy).expect("a copy"), [7; 5000]);
    }
    assert_eq!(end(&start(&b), id), 19);
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
        let CutError::Useless(RecoverError::BadSegment(_)) = refused else {
            panic!("{refused}")
        };
        assert!(without_log(b.dir()) == before);
        b.logs[0].slots = pristine;
    }
}

/// Two partitions in two groups: only the first has records in a log whose fourth frame, of many batches, is damaged, but for
/// `behind` of the other behind that.
fn idle_neighbour(behind: u64) -> (Builder, PartitionId) {
    let mut b = Builder::in_memory(2, 1);
    let topic = b.topic("t", 2, 20_000);
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
    for behind in [0, 2] {
        for is_missing in [true, false] {
            let (b, idle) = idle_neighbour(behind);
            let old = b.dir().with_extension("old");
            match is_missing {
                true => fs::remove_file(snapshot_of(&b, idle)).expect("removed"),
                false => drop(fs::copy(&old, snapshot_of(&b, idle)).expect("copied")),
            }
            fs::remove_file(old).expect("removed");
            let before = contents(b.dir());
            match cut::plan(b.dir(), &mut |_| {}) {
                Err(_) => assert!(contents(b.dir()) == before),
                Ok(Outlook::Damaged(plan)) => {
                    assert_eq!(plan.segments, Vec::<PathBuf>::new());
                    let refused = make(b.dir(), &plan, &place().1).expect_err("in vain");
                    assert!(matches!(refused, CutError::Useless(_)), "{refused}");
                    assert!(without_log(b.dir()) == before);
                }
                Ok(other) => panic!("{other:?}"),
            }
        }
    }
}
