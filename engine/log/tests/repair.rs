//! Cutting what is damaged: what is left is whole, what is lost was said, and it can be interrupted.

mod common;

use std::cell::Cell;
use std::fs;
use std::io;

use common::{Builder, stored};
use ringtide_log::files::watch::watched;
use ringtide_log::recovery::{RecoverError, index_name, log_name, repair, verify};
use ringtide_schema::ids::PartitionId;

/// Sealed segments, an open one with a tail, and a log of three slots on top that rolls the segment.
fn directory() -> (Builder, PartitionId) {
    let mut b = Builder::new(2, 1);
    let topic = b.topic("t", 1, 20_000);
    b.frame(0);
    let id = PartitionId {
        topic,
        partition: 0,
    };
    let publish = |b: &mut Builder, batches| {
        for _ in 0..batches {
            b.publish(id, 3000);
            b.frame(0);
        }
        b.commit_offset(id, "reader", b.next_offset(id));
        b.frame(0);
        b.closing(0);
        b.store();
    };
    publish(&mut b, 16);
    let recovered = b.recover().expect("nothing is wrong");
    b.next_start(&recovered);
    publish(&mut b, 40);
    assert!(b.logs[0].slots.len() > 2);
    (b, id)
}

fn damage(b: &Builder, id: PartitionId, segment: u64) {
    let path = b.dir().join("partitions").join(id.dir_name());
    let path = path.join(log_name(segment));
    let mut bytes = fs::read(&path).expect("a segment");
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    fs::write(&path, bytes).expect("written");
}

/// Starts after a cut; gives where the partition ends, which holds what was published up to there.
fn end_after_a_cut(b: &Builder, id: PartitionId) -> u64 {
    let report = verify(b.dir(), &mut |_| {}).expect("readable");
    assert_eq!(report.problems, []);
    assert!(repair::plan(b.dir()).expect("sound").is_empty());
    let recovered = b.recover().expect("what is left is whole");
    let bytes = b.bytes_of(&recovered, id);
    assert!(b.expected[&id].starts_with(&bytes));
    let stored = stored(&recovered, id).expect("known");
    let end = stored.next_offset;
    for committed in stored.committed.iter().flatten() {
        assert!(committed.offset <= end, "{committed:?}");
    }
    end
}

fn plan(b: &Builder) -> repair::Plan {
    repair::plan(b.dir()).expect("it can be cut")
}

#[test]
fn a_log_that_is_cut_at_any_frame_holds_what_comes_before() {
    let frames = directory().0.logs[0].frames.len();
    // All but the closing frame; every fourth of the rest.
    for frame in (0..frames - 1).rev().step_by(4) {
        let (mut b, id) = directory();
        let damaged = b.logs[0].frames[frame];
        b.overwrite(0, damaged, 0x5a);
        b.store();
        let plan = plan(&b);
        assert_eq!((plan.logs.len(), plan.partitions.len()), (1, 0));
        let kept = repair::cut(b.dir(), &plan, "now").expect("cut");
        let slot = b.slot_path(0, damaged.slot);
        let name = slot.strip_prefix(b.dir()).expect("below");
        assert!(fs::read(kept.join(name)).expect("kept") == b.logs[0].slots[damaged.slot]);
        // One batch to a frame; the last frame has the offset of the consumer.
        assert_eq!(end_after_a_cut(&b, id), 16 + frame as u64, "frame {frame}");
    }
}

#[test]
fn a_partition_that_is_cut_keeps_what_comes_before_and_beside_what_comes_behind() {
    for segment in [0, 6, 12] {
        let (b, id) = directory();
        damage(&b, id, segment);
        let plan = plan(&b);
        let [cut] = &plan.partitions[..] else {
            panic!("{plan:?}")
        };
        assert_eq!((cut.to, plan.logs.len()), (56, 0), "{plan:?}");
        let from = cut.from;
        let kept = repair::cut(b.dir(), &plan, "now").expect("cut");
        let recovered_end = end_after_a_cut(&b, id);
        assert_eq!(recovered_end, from);
        // From the cut on, in the order of their names, the kept files are what was published.
        let folder = kept.join("partitions").join(id.dir_name());
        let mut files: Vec<_> = fs::read_dir(folder)
            .expect("kept")
            .map(|f| f.expect("a file").path())
            .collect();
        files.sort();
        let bytes: Vec<u8> = files
            .iter()
            .flat_map(|f| fs::read(f).expect("kept"))
            .collect();
        let expected = &b.expected[&id];
        let lost = &expected[expected.len() - bytes.len()..];
        let differ = bytes.iter().zip(lost).filter(|(a, b)| a != b).count();
        assert_eq!(differ, 1, "the damaged byte");
        let batch = expected.len() / 56;
        assert_eq!(lost.len(), (56 - from as usize) * batch);
    }
}

#[test]
fn a_segment_that_is_missing_is_cut_at_its_beginning() {
    let (b, id) = directory();
    let folder = b.dir().join("partitions").join(id.dir_name());
    fs::remove_file(folder.join(log_name(6))).expect("removed");
    let plan = plan(&b);
    assert_eq!(plan.partitions[0].from, 6, "{plan:?}");
    repair::cut(b.dir(), &plan, "now").expect("cut");
    assert!(!folder.join(index_name(6)).exists());
    assert_eq!(end_after_a_cut(&b, id), 6);
}

#[test]
fn an_open_segment_that_is_short_is_cut_where_it_ends() {
    let (b, id) = directory();
    let path = b
        .dir()
        .join("partitions")
        .join(id.dir_name())
        .join(log_name(12));
    let file = fs::File::options()
        .write(true)
        .open(path)
        .expect("a segment");
    file.set_len(4096).expect("cut");
    assert!(matches!(b.recover(), Err(RecoverError::BadSegment(_))));
    let plan = plan(&b);
    repair::cut(b.dir(), &plan, "now").expect("cut");
    assert_eq!(end_after_a_cut(&b, id), 13);
}

#[test]
fn a_cut_that_is_interrupted_anywhere_can_be_made_again() {
    let damaged = || {
        let (mut b, id) = directory();
        let frame = b.logs[0].frames[20];
        b.overwrite(0, frame, 0x5a);
        b.store();
        damage(&b, id, 6);
        (b, id)
    };
    for steps in (0..).step_by(2) {
        let (b, id) = damaged();
        let left = Cell::new(steps);
        let interrupt = move |_: ringtide_log::files::watch::Change<'_>| match left.get() {
            0 => Err(io::Error::other("interrupted")),
            n => {
                left.set(n - 1);
                Ok(())
            }
        };
        let first = plan(&b);
        let cut = watched(interrupt, || repair::cut(b.dir(), &first, "first"));
        if cut.is_err() {
            let second = plan(&b);
            repair::cut(b.dir(), &second, "second").expect("not interrupted");
        }
        // One of six batches, in the middle of its segment.
        assert_eq!(end_after_a_cut(&b, id), 9, "after {steps} steps");
        if cut.is_ok() {
            assert!(steps > 20, "it was interrupted at each of {steps} steps");
            return;
        }
    }
}
