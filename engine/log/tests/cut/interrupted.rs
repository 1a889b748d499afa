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
    let behind = if lost_beginnings == 0 { 5 } else { 0 };
    (b, id, HELD + behind)
}

#[test]
fn a_cut_that_is_interrupted_anywhere_is_refused_or_cut_and_can_be_made_again() {
    for (lost_beginnings, byte) in [(0, 0x5a), (1, 0), (1, 0x5a), (3, 0)] {
        for changes in 0.. {
            let (b, id, expected) = damaged(lost_beginnings, byte);
            let first = plan(b.dir());
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
        let (mut b, _) = directory();
        b.recover().expect("nothing is wrong");
        let damaged = b.logs[0].frames[20];
        b.overwrite(0, damaged, 0x5a);
        b.store();
        let before = contents(b.dir());
        let plan = plan(b.dir());
        let (_home, kept) = place();
        let made = watched(after(changes), || make(b.dir(), &plan, &kept));
        let refused = made.expect_err("in vain");
        let cuts = cut::past_cuts(b.dir()).expect("readable");
        let is_said = cuts.iter().any(|cut| !cut.finished);
        assert!(is_said || without_log(b.dir()) == before);
        assert!(b.recover().is_err(), "after {changes} changes: {refused}");
        if matches!(refused, CutError::Useless(_)) {
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
    let interrupted = cut::make(b.dir(), &plan, &place().1, &mut |line| {
        lines += 1;
        match lines {
            1 => note(b.dir(), line),
            _ => note(Path::new("/nowhere"), line),
        }
    });
    interrupted.expect_err("killed behind the last change");
    let is_finished = || cut::past_cuts(b.dir()).expect("readable")[0].finished;
    assert!(!is_finished());
    cut::finish(b.dir(), &mut |line| note(b.dir(), line)).expect("written");
    assert!(is_finished());
}
