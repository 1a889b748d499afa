//! A cut that is interrupted, and what is said of cuts afterwards.

use std::io;

use super::*;

/// Lets this many changes be made, and fails all others.
fn after(changes: usize) -> impl FnMut(Change<'_>) -> io::Result<()> {
    let left = Cell::new(changes);
    move |_| match left.get() {
        0 => Err(io::Error::other("interrupted")),
        n => {
            left.set(n - 1);
            Ok(())
        }
    }
}

/// Two segments of what comes behind the damage, as a broker leaves them that seals them between two snapshots.
fn seal_behind(b: &Builder, id: PartitionId) {
    let partition = b.dir().join("partitions").join(id.dir_name());
    for base in [30, 36] {
        fs::write(partition.join(log_name(base)), [7_u8; 5000]).expect("written");
    }
}

/// A log that is damaged in its sixth frame, or in header and first frame of its oldest or of each slot, and the end of its
/// partition by what comes before.
fn damaged(lost_beginnings: usize, byte: u8) -> (Builder, PartitionId, u64) {
    let (mut b, id) = directory();
    let frame = b.logs[0].frames[5];
    for slot in &mut b.logs[0].slots[..lost_beginnings] {
        slot[..2 * BLOCK_BYTES].fill(byte);
    }
    if lost_beginnings == 0 {
        b.overwrite(0, frame, byte);
    }
    b.store();
    seal_behind(&b, id);
    let behind = if lost_beginnings == 0 { 5 } else { 0 };
    (b, id, HELD + behind)
}

#[test]
fn a_cut_that_is_interrupted_anywhere_is_refused_or_cut_and_can_be_made_again() {
    for (lost_beginnings, byte) in [(0, 0x5a), (1, 0), (3, 0x5a)] {
        for changes in 0.. {
            let (b, id, expected) = damaged(lost_beginnings, byte);
            let first = plan(b.dir());
            assert_eq!(first.segments.len(), 2);
            let (_home, kept) = place();
            let made = watched(after(changes), || make(b.dir(), &first, &kept));
            if made.is_err() {
                match cut::plan(b.dir(), &mut |_| {}).expect("damage of the log, or none") {
                    Outlook::Damaged(again) => {
                        let log = &again.logs[0];
                        let whole = &first.logs[0];
                        assert_eq!((&log.slot, log.position), (&whole.slot, whole.position));
                        make(b.dir(), &again, &place().1).expect("not interrupted");
                    }
                    Outlook::Sound => {}
                    Outlook::Empty => panic!("it is gone"),
                }
            }
            assert_eq!(end(&start(&b), id), expected, "after {changes} changes");
            if made.is_ok() {
                assert!(
                    changes > 30,
                    "it was interrupted at each of {changes} changes"
                );
                break;
            }
        }
    }
}

#[test]
fn a_vain_cut_that_is_interrupted_anywhere_leaves_a_directory_that_is_refused() {
    for changes in 0.. {
        let (mut b, id) = directory();
        b.recover().expect("nothing is wrong");
        let damaged = b.logs[0].frames[20];
        b.overwrite(0, damaged, 0x5a);
        b.store();
        let partition = b.dir().join("partitions").join(id.dir_name());
        fs::write(partition.join(log_name(99)), [7_u8; 5000]).expect("written");
        let before = contents(b.dir());
        let plan = plan(b.dir());
        assert_eq!(plan.segments.len(), 1);
        let (_home, kept) = place();
        let made = watched(after(changes), || make(b.dir(), &plan, &kept));
        let refused = made.expect_err("in vain");
        let cuts = cut::past_cuts(b.dir()).expect("readable");
        let is_said = cuts.iter().any(|cut| !cut.finished);
        assert!(is_said || without_log(b.dir()) == before);
        assert!(b.recover().is_err(), "after {changes} changes: {refused}");
        if matches!(refused, CutError::Useless { .. }) {
            assert!(without_log(b.dir()) == before);
            assert!(changes > 30, "{changes}");
            return;
        }
    }
}

#[test]
fn verification_tells_of_the_cuts_that_were_made() {
    let (mut b, _) = directory();
    let damaged = b.logs[0].frames[20];
    b.overwrite(0, damaged, 0x5a);
    b.store();
    let report = |b: &Builder| verify(b.dir(), &mut |_| {}).expect("readable");
    assert_eq!(report(&b).cuts, []);
    let (_home, kept) = place();
    make(b.dir(), &plan(b.dir()), &kept).expect("cut");
    for when in ["before a start", "after one"] {
        let report = report(&b);
        assert!(report.is_sound());
        let [cut] = &report.cuts[..] else {
            panic!("{when}: {:?}", report.cuts)
        };
        assert_eq!((&*cut.time, cut.finished), ("now", true));
        let place = format!("from byte {} of", damaged.position);
        assert!(cut.what.contains(&place), "{cut:?}");
        assert!(cut.what.contains(kept.to_str().expect("text")), "{cut:?}");
        b.recover().expect("sound");
    }
}

#[test]
fn a_cut_that_ended_before_it_was_said_is_said_to_be_made_later() {
    let (mut b, _) = directory();
    let damaged = b.logs[0].frames[20];
    b.overwrite(0, damaged, 0x5a);
    b.store();
    let plan = plan(b.dir());
    let mut lines = 0;
    let (_home, kept) = place();
    let interrupted = cut::make(b.dir(), &plan, &kept, &mut |line| {
        lines += 1;
        match lines {
            1 => note(b.dir(), line),
            _ => note(Path::new("/nowhere"), line),
        }
    });
    interrupted.expect_err("killed behind the last change");
    let is_finished = || cut::past_cuts(b.dir()).expect("readable")[0].finished;
    assert!(!is_finished());
    let made = cut::finish(b.dir(), &mut |line| note(b.dir(), line)).expect("written");
    let (cut, ends) = made.expect("it was begun");
    assert!(cut.what.contains(kept.to_str().expect("text")), "{cut:?}");
    assert_eq!(ends[0].ends, HELD + 20);
    assert!(is_finished());
    let made = cut::finish(b.dir(), &mut |line| note(b.dir(), line));
    assert_eq!(made.expect("nothing to say"), None);
}

#[test]
fn a_vain_cut_that_is_made_again_names_what_the_first_kept() {
    let mut again = 0;
    for changes in 0.. {
        let (mut b, _) = directory();
        b.recover().expect("nothing is wrong");
        let damaged = b.logs[0].frames[20];
        b.overwrite(0, damaged, 0x5a);
        b.store();
        let before = without_log(b.dir());
        let first = plan(b.dir());
        assert_eq!(first.begun, None);
        let [(_home, kept), (_other, more)] = [place(), place()];
        let made = watched(after(changes), || make(b.dir(), &first, &kept));
        if matches!(made, Err(CutError::Useless { .. })) {
            assert!(again > 10, "it was made again {again} times");
            return;
        }
        let is_said = cut::begun(b.dir()).expect("readable").is_some();
        let kept = kept.display().to_string();
        match cut::plan(b.dir(), &mut |_| {}) {
            Ok(Outlook::Damaged(plan)) => {
                let begun = plan.begun.as_ref().map(|begun| begun.what.clone());
                assert_eq!(begun.is_some_and(|what| what.contains(&kept)), is_said);
                let refused = make(b.dir(), &plan, &more).expect_err("in vain");
                assert!(matches!(refused, CutError::Useless { .. }), "{refused}");
                let manifest = fs::read_to_string(more.join("MANIFEST")).expect("text");
                assert_eq!(refused.to_string().contains(&kept), is_said);
                assert_eq!(manifest.contains(&kept), is_said);
                again += u64::from(is_said);
            }
            // Cut whole: a start says that snapshots hold more.
            _ => assert!(is_said, "after {changes} changes"),
        }
        if is_said {
            for (name, bytes) in contents(Path::new(&kept)) {
                if name.starts_with("wal") {
                    fs::write(b.dir().join(name), bytes).expect("written");
                }
            }
            assert!(without_log(b.dir()) == before, "after {changes} changes");
        }
    }
}
