//! Cutting a damaged log: what is left is what came before, what goes is said and kept, it can be interrupted anywhere, and
//! what it does not mend stays as it was.

mod common;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use common::{Builder, contents, place_in_memory, stored};
use ringtide_log::files::FileError;
use ringtide_log::files::watch::{Change, watched};
use ringtide_log::recovery::cut::{self, CutError, Outlook, Plan};
use ringtide_log::recovery::{PartitionEnd, RecoverError, Recovered, log_name, repair, verify};
use ringtide_schema::ids::{GroupId, PartitionId};
use ringtide_schema::limits::BLOCK_BYTES;
use ringtide_schema::wal::{ENTRY_HEADER_BYTES, FRAME_HEADER_BYTES};
use tempfile::TempDir;

/// Batches that the snapshots hold; the first frame of the log has the next.
const HELD: u64 = 16;
const ENOSPC: i32 = 28;

/// Sealed segments and an open one with a tail, and on top a log of three slots, a batch to a frame.
fn directory() -> (Builder, PartitionId) {
    let mut b = Builder::in_memory(2, 1);
    let topic = b.topic("t", 1, 20_000);
    b.frame(0);
    let id = PartitionId {
        topic,
        partition: 0,
    };
    publish(&mut b, id, HELD);
    b.store();
    let recovered = b.recover().expect("nothing is wrong");
    b.next_start(&recovered);
    publish(&mut b, id, 40);
    b.commit_offset(id, "reader", b.next_offset(id));
    b.frame(0);
    b.closing(0);
    b.store();
    assert_eq!(b.logs[0].slots.len(), 3);
    (b, id)
}

fn publish(b: &mut Builder, id: PartitionId, batches: u64) {
    for _ in 0..batches {
        b.publish(id, 3000);
        b.frame(b.shard_of(id));
    }
}

/// A place for copies, not there yet.
fn place() -> (TempDir, PathBuf) {
    let home = place_in_memory();
    let path = home.path().join("a/kept");
    (home, path)
}

fn plan(dir: &Path) -> Plan {
    match cut::plan(dir, &mut |_| {}).expect("damage that a cut mends") {
        Outlook::Damaged(plan) => *plan,
        other => panic!("{other:?}"),
    }
}

fn refusal(dir: &Path) -> RecoverError {
    cut::plan(dir, &mut |_| {}).expect_err("no cut mends it")
}

fn make(dir: &Path, plan: &Plan, kept: &Path) -> Result<Vec<PartitionEnd>, CutError> {
    cut::make(dir, plan, kept, &mut |line| note(dir, line))
}

fn note(dir: &Path, line: &str) -> Result<(), FileError> {
    repair::log(dir, &format!("now {line}\n"))
}

fn cut_at_once(dir: &Path) -> Vec<PartitionEnd> {
    make(dir, &plan(dir), &place().1).expect("cut")
}

/// Starts after a cut: what is there is what was published, up to the end.
fn start(b: &Builder) -> Recovered {
    assert!(matches!(
        cut::plan(b.dir(), &mut |_| {}),
        Ok(Outlook::Sound)
    ));
    let recovered = b.recover().expect("what is left is whole");
    for (&id, published) in &b.expected {
        assert!(published.starts_with(&b.bytes_of(&recovered, id)));
    }
    recovered
}

fn end(recovered: &Recovered, id: PartitionId) -> u64 {
    stored(recovered, id).expect("known").next_offset
}

/// Everything but what tells of repairs.
fn without_log(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = contents(dir);
    all.remove(Path::new("repair.log"));
    all
}

fn flip(b: &mut Builder, shard: usize, slot: usize, at: usize) {
    b.logs[shard].slots[slot][at] ^= 1;
    b.store();
}

#[test]
fn a_log_that_is_cut_at_a_frame_holds_what_comes_before() {
    let frames = directory().0.logs[0].frames.len();
    for frame in (0..frames - 1).step_by(3) {
        let header = 30;
        let entry = FRAME_HEADER_BYTES + 20;
        let payload = FRAME_HEADER_BYTES + ENTRY_HEADER_BYTES + 5;
        for damage in [header, entry, payload] {
            let (mut b, id) = directory();
            let damaged = b.logs[0].frames[frame];
            flip(&mut b, 0, damaged.slot, damaged.position + damage);
            let plan = plan(b.dir());
            let [log] = &plan.logs[..] else {
                panic!("{plan:?}")
            };
            assert_eq!(
                (&log.slot, log.position),
                (&b.slot_path(0, damaged.slot), damaged.position as u64)
            );
            assert_eq!(log.later.len(), 2 - damaged.slot);
            let ends = make(b.dir(), &plan, &place().1).expect("cut");
            // One batch to a frame; the last but one has the offset of the consumer.
            let expected = HELD + frame as u64;
            assert_eq!((ends.len(), ends[0].ends), (1, expected), "frame {frame}");
            assert_eq!(end(&start(&b), id), expected);
        }
    }
}

#[test]
fn a_start_behind_a_cut_goes_on_with_dense_offsets_under_a_higher_epoch() {
    let (mut b, id) = directory();
    let damaged = b.logs[0].frames[20];
    b.overwrite(0, damaged, 0x5a);
    b.store();
    let epoch = b.identity.leader_epoch;
    cut_at_once(b.dir());
    let recovered = start(&b);
    assert_eq!(recovered.identity.leader_epoch, epoch + 1);
    assert_eq!(end(&recovered, id), HELD + 20);
    // All that was behind is of an earlier start now.
    assert!(matches!(
        cut::plan(b.dir(), &mut |_| {}),
        Ok(Outlook::Sound)
    ));
    let report = verify(b.dir(), &mut |_| {}).expect("readable");
    assert_eq!(report.problems, []);
}

#[test]
fn damage_of_a_slots_header_and_first_frame_is_cut_in_every_slot() {
    for slot in [1, 2] {
        for byte in [0, 0x5a] {
            let (mut b, id) = directory();
            let first = b.logs[0].frames.iter().position(|put| put.slot == slot);
            b.logs[0].slots[slot][..2 * BLOCK_BYTES].fill(byte);
            b.store();
            let expected = HELD + first.expect("a frame") as u64;
            let ends = cut_at_once(b.dir());
            assert_eq!(ends[0].ends, expected, "slot {slot}, {byte}");
            assert_eq!(end(&start(&b), id), expected);
        }
    }
}

#[test]
fn the_cut_begins_at_the_first_of_two_damages() {
    let (mut b, id) = directory();
    let frames = &b.logs[0].frames;
    let last = frames.iter().rposition(|put| put.slot == 1).expect("one");
    let (near, far) = (frames[last - 3], frames[last + 1]);
    b.overwrite(0, near, 0x5a);
    b.overwrite(0, far, 0x5a);
    b.store();
    let plan = plan(b.dir());
    assert_eq!(
        (&plan.logs[0].slot, plan.logs[0].position),
        (&b.slot_path(0, 1), near.position as u64)
    );
    // All frames behind but the two, and the closing one with them.
    let behind = b.logs[0].frames.len() - (last - 3) - 2;
    assert_eq!(plan.logs[0].behind.frames, behind as u64);
    make(b.dir(), &plan, &place().1).expect("cut");
    assert_eq!(end(&start(&b), id), HELD + last as u64 - 3);
}

#[test]
fn what_can_be_read_behind_the_damage_is_told() {
    let mut b = Builder::in_memory(2, 1);
    let topic = b.topic("t", 2, 1 << 20);
    b.frame(0);
    let ids = [0, 1].map(|partition| PartitionId { topic, partition });
    publish(&mut b, ids[0], 2);
    b.publish(ids[0], 3000);
    let damaged = b.frame(0);
    publish(&mut b, ids[0], 3);
    publish(&mut b, ids[1], 2);
    b.commit_offset(ids[0], "reader", 5);
    b.commit_offset(ids[0], "reader", 6);
    b.log_start(ids[0], 4);
    let other = b.topic("u", 3, 1 << 20);
    b.delete(other);
    let last = b.frame(0);
    b.closing(0);
    b.overwrite(0, damaged, 0x5a);
    b.store();
    let plan = plan(b.dir());
    let behind = &plan.logs[0].behind;
    assert_eq!(behind.frames, 7);
    assert_eq!((behind.entries, behind.damaged_entries), (10, 0));
    assert_eq!(behind.unknown_bytes, damaged.bytes as u64);
    let records = |id| {
        let span = behind.records[&id];
        (span.first, span.last, span.records)
    };
    assert_eq!(records(ids[0]), (3, 5, 3));
    assert_eq!(records(ids[1]), (0, 1, 2));
    assert_eq!(behind.commits[&(ids[0], "reader".to_owned())], 6);
    assert_eq!(behind.log_starts[&ids[0]], 4);
    assert_eq!(behind.topics, ["u made, with 3 partitions", "u deleted"]);
    assert_eq!(plan.name(ids[1]), "t/1");

    // Of a damaged entry the rest of its frame is told.
    let at = last.position + FRAME_HEADER_BYTES + ENTRY_HEADER_BYTES + 3;
    flip(&mut b, 0, last.slot, at);
    let plan = self::plan(b.dir());
    let behind = &plan.logs[0].behind;
    assert_eq!((behind.entries, behind.damaged_entries), (9, 1));
}

#[test]
fn two_damaged_logs_are_cut_and_kept_at_once() {
    let mut b = Builder::in_memory(2, 2);
    let topic = b.topic("t", 2, 1 << 20);
    b.frame(0);
    let ids = [0, 1].map(|partition| PartitionId { topic, partition });
    for id in ids {
        publish(&mut b, id, 20);
    }
    let cuts = [8, 5].map(|from_end| {
        let shard = u16::from(from_end == 5);
        let frames = &b.logs[usize::from(shard)].frames;
        (shard, frames[frames.len() - from_end], from_end)
    });
    for (shard, frame, _) in cuts {
        b.overwrite(shard, frame, 0x5a);
    }
    b.store();
    let plan = plan(b.dir());
    assert_eq!(plan.logs.len(), 2);
    make(b.dir(), &plan, &place().1).expect("cut");
    let recovered = start(&b);
    for id in ids {
        let shard = b.shard_of(id);
        let (.., lost) = cuts[usize::from(shard)];
        assert_eq!(end(&recovered, id), 20 - lost as u64);
    }
}

#[test]
fn everything_that_goes_is_kept_and_put_back_by_copying() {
    let (mut b, id) = directory();
    let partition = b.dir().join("partitions").join(id.dir_name());
    // Segments that the broker had written beyond its snapshot, and of which the log lost a batch.
    let open = partition.join(log_name(12));
    let known = fs::read(&open).expect("a segment").len();
    let mut longer = fs::read(&open).expect("a segment");
    longer.extend(vec![7; 3 * BLOCK_BYTES]);
    fs::write(&open, &longer).expect("written");
    let damaged = b.logs[0].frames[3];
    b.overwrite(0, damaged, 0x5a);
    b.store();
    note(b.dir(), "an earlier repair").expect("written");
    let before = contents(b.dir());
    let (_home, kept) = place();
    let plan = plan(b.dir());
    make(b.dir(), &plan, &kept).expect("cut");
    start(&b);

    let copies = contents(&kept);
    let manifest = String::from_utf8(copies[Path::new("MANIFEST")].clone()).expect("text");
    for (name, bytes) in &copies {
        let name = name.to_str().expect("text");
        assert!(name == "MANIFEST" || manifest.contains(name), "{name}");
        if !name.contains(".from-") && name != "MANIFEST" {
            assert!(before[Path::new(name)] == *bytes, "{name}");
        }
    }
    for name in before.keys() {
        let is_kept = copies.contains_key(name);
        let wanted = name.starts_with("wal")
            || name.starts_with("groups")
            || name == Path::new("identity")
            || name == Path::new("repair.log");
        assert_eq!(is_kept, wanted, "{name:?}");
    }
    let name = open.strip_prefix(b.dir()).expect("below");
    let behind = format!("{}.from-{known}", name.display());
    assert!(copies[Path::new(&behind)] == longer[known..]);
    let written: usize = copies.values().map(Vec::len).sum();
    assert!((1..=written as u64).contains(&plan.keep_bytes));
}

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
fn what_no_cut_mends_is_written_back_as_it_was() {
    // The log of shard 0 is cut where it makes a topic of which shard 1 has records.
    let made_and_used = || {
        let mut b = Builder::in_memory(2, 2);
        b.topic("t", 1, 1 << 20);
        let damaged = b.frame(0);
        let topic = b.topic("u", 2, 1 << 20);
        b.frame(0);
        for partition in 0..2 {
            publish(&mut b, PartitionId { topic, partition }, 20);
        }
        b.overwrite(0, damaged, 0x5a);
        b
    };
    // The snapshots hold what is behind the damage, and with it more than the log would.
    let held = || {
        let (mut b, _) = directory();
        b.recover().expect("nothing is wrong");
        let id = *b.expected.keys().next().expect("one");
        let partition = b.dir().join("partitions").join(id.dir_name());
        fs::write(partition.join(log_name(99)), [7_u8; 5000]).expect("written");
        let damaged = b.logs[0].frames[20];
        b.overwrite(0, damaged, 0x5a);
        b
    };
    for b in [made_and_used(), held()] {
        b.store();
        let before = contents(b.dir());
        let (_home, kept) = place();
        let plan = plan(b.dir());
        let refused = make(b.dir(), &plan, &kept).expect_err("in vain");
        assert!(matches!(refused, CutError::Useless(_)), "{refused}");
        assert!(without_log(b.dir()) == before);
        let log = fs::read_to_string(b.dir().join("repair.log")).expect("text");
        assert_eq!(log.lines().count(), 2, "{log}");
        let report = verify(b.dir(), &mut |_| {}).expect("readable");
        assert_eq!(report.cuts, []);
        assert_eq!(refusal_words(&b), plan.why.to_string());
    }
}

fn refusal_words(b: &Builder) -> String {
    b.recover().expect_err("still damaged").to_string()
}

#[test]
fn a_snapshot_that_is_missing_beside_the_damage_is_no_matter_of_the_log() {
    // All of the partition lies in the snapshot of its group, and the log that shows that is damaged before.
    let mut b = Builder::in_memory(2, 1);
    let topic = b.topic("t", 2, 1 << 20);
    b.frame(0);
    let ids = [0, 1].map(|partition| PartitionId { topic, partition });
    for id in ids {
        b.publish(id, 100);
        b.publish(id, 100);
        b.frame(0);
    }
    b.store();
    let recovered = b.recover().expect("nothing is wrong");
    b.next_start(&recovered);
    publish(&mut b, ids[0], 2);
    let damaged = b.logs[0].frames[1];
    publish(&mut b, ids[1], 2);
    b.overwrite(0, damaged, 0x5a);
    b.store();
    let missing = b
        .dir()
        .join("groups")
        .join(b.group_of(ids[1]).snapshot_name());
    let snapshot = fs::read(&missing).expect("a snapshot");
    fs::remove_file(&missing).expect("removed");
    assert!(matches!(refusal(b.dir()), RecoverError::MissingEntries(_)));
    fs::write(&missing, snapshot).expect("written");
    cut_at_once(b.dir());
    start(&b);
}

type Damage<'a> = &'a dyn Fn(&Builder, PartitionId);

#[test]
fn what_is_not_damage_of_the_log_is_refused_and_left_alone() {
    let open = |b: &Builder, id: PartitionId| {
        let partition = b.dir().join("partitions").join(id.dir_name());
        partition.join(log_name(12))
    };
    let short = |b: &Builder, id: PartitionId| {
        let bytes = fs::read(open(b, id)).expect("a segment");
        fs::write(open(b, id), &bytes[..BLOCK_BYTES]).expect("written");
    };
    let no_metadata = |b: &Builder, _: PartitionId| {
        let name = GroupId(b.identity.groups).snapshot_name();
        fs::remove_file(b.dir().join("groups").join(name)).expect("removed");
    };
    let no_snapshot = |b: &Builder, id: PartitionId| {
        let name = b.group_of(id).snapshot_name();
        fs::remove_file(b.dir().join("groups").join(name)).expect("removed");
    };
    let no_slot = |slot| {
        move |b: &Builder, _: PartitionId| fs::remove_file(b.slot_path(0, slot)).expect("removed")
    };
    let foreign =
        |b: &Builder, _: PartitionId| fs::write(b.dir().join("notes"), "").expect("written");
    let cases: [(&str, Damage<'_>); 6] = [
        ("were synced", &short),
        ("knows no such topic", &no_metadata),
        ("snapshot is missing", &no_snapshot),
        ("snapshot is missing", &no_slot(0)),
        ("lacks the slot", &no_slot(1)),
        ("does not belong", &foreign),
    ];
    for (words, damage) in cases {
        let (b, id) = directory();
        damage(&b, id);
        let before = contents(b.dir());
        let why = refusal(b.dir()).to_string();
        assert!(why.contains(words), "{words}: {why}");
        assert!(contents(b.dir()) == before, "{words}");
    }
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

#[test]
fn a_cut_that_is_interrupted_anywhere_is_refused_or_cut_and_can_be_made_again() {
    for changes in 0.. {
        let (mut b, id) = directory();
        // In the oldest of three slots.
        let damaged = b.logs[0].frames[5];
        b.overwrite(0, damaged, 0x5a);
        b.store();
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
        assert_eq!(end(&start(&b), id), HELD + 5, "after {changes} changes");
        if made.is_ok() {
            assert!(
                changes > 30,
                "it was interrupted at each of {changes} changes"
            );
            return;
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
fn a_full_disk_while_keeping_changes_nothing_and_leaves_no_copies() {
    for is_there in [false, true] {
        for writes in 0.. {
            let (mut b, _) = directory();
            let damaged = b.logs[0].frames[20];
            b.overwrite(0, damaged, 0x5a);
            b.store();
            let plan = plan(b.dir());
            let before = contents(b.dir());
            let (home, kept) = place();
            if is_there {
                fs::create_dir_all(&kept).expect("made");
            }
            let (left, at) = (Cell::new(writes), kept.clone());
            let watcher = move |change: Change<'_>| match change {
                Change::Write { path, .. } if path.starts_with(&at) => match left.get() {
                    0 => Err(io::Error::from_raw_os_error(ENOSPC)),
                    n => {
                        left.set(n - 1);
                        Ok(())
                    }
                },
                _ => Ok(()),
            };
            let Err(refused) = watched(watcher, || make(b.dir(), &plan, &kept)) else {
                assert!(writes > 5, "it was full at each of {writes} writes");
                break;
            };
            assert!(matches!(refused, CutError::Keep(_)), "{refused}");
            assert!(contents(b.dir()) == before, "after {writes} writes");
            assert!(contents(home.path()).is_empty());
            assert_eq!(kept.exists(), is_there);
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
fn an_offset_that_was_committed_past_a_cut_is_taken_back_to_the_end() {
    // The snapshot has the partition up to 16 only, and of its consumer already what it committed at 48 records.
    let directory = || {
        let (b, id) = directory();
        let group = b.group_of(id);
        let path = b.dir().join("groups").join(group.snapshot_name());
        let bytes = fs::read(path).expect("a snapshot");
        let mut snapshot = ringtide_schema::snapshot::decode(&bytes).expect("whole");
        let partition = &mut snapshot.partitions.as_mut().expect("one")[0];
        assert_eq!(partition.next_offset, HELD);
        let commit = |consumer: &str, offset| ringtide_schema::store::CommittedT {
            consumer: consumer.to_owned(),
            offset,
            leader_epoch: 1,
            time_ms: 5,
        };
        partition.committed = Some(vec![commit("ahead", 48), commit("behind", 20)]);
        b.store_snapshot(&snapshot);
        (b, id)
    };
    let committed = |recovered: &Recovered, id| {
        let commits = stored(recovered, id).expect("known").committed.clone();
        let commits = commits.unwrap_or_default().into_iter();
        commits
            .map(|commit| (commit.consumer, commit.offset))
            .collect::<Vec<_>>()
    };
    let (b, id) = directory();
    let whole = b.recover().expect("nothing is wrong");
    assert_eq!(
        committed(&whole, id),
        [
            ("ahead".to_owned(), 48),
            ("behind".to_owned(), 20),
            ("reader".to_owned(), 56)
        ]
    );

    for (frame, expected) in [(20, [36, 20]), (2, [18, 18]), (0, [16, 16])] {
        let (mut b, id) = directory();
        let damaged = b.logs[0].frames[frame];
        b.overwrite(0, damaged, 0x5a);
        b.store();
        cut_at_once(b.dir());
        let recovered = start(&b);
        let [ahead, behind] = expected;
        let expected = [("ahead".to_owned(), ahead), ("behind".to_owned(), behind)];
        assert_eq!(committed(&recovered, id), expected, "frame {frame}");
        // And so in the snapshot that the next start reads.
        let path = b.dir().join("groups").join(b.group_of(id).snapshot_name());
        let written =
            ringtide_schema::snapshot::decode(&fs::read(path).expect("one")).expect("whole");
        let partition = &written.partitions.as_ref().expect("one")[0];
        let offsets = partition.committed.iter().flatten().map(|c| c.offset);
        assert_eq!(offsets.collect::<Vec<_>>(), [ahead, behind]);
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

#[test]
fn keeping_that_fails_leaves_what_others_have_put_beside_it() {
    let (mut b, _) = directory();
    let damaged = b.logs[0].frames[20];
    b.overwrite(0, damaged, 0x5a);
    b.store();
    let plan = plan(b.dir());
    let (home, kept) = place();
    let theirs = home.path().join("a/other");
    let (to, other) = (kept.clone(), theirs.clone());
    let watcher = move |change: Change<'_>| match change {
        Change::Write { path, .. } if path.starts_with(&to) => {
            fs::create_dir_all(&other)?;
            fs::write(other.join("identity"), "the only copy")?;
            Err(io::Error::from_raw_os_error(ENOSPC))
        }
        _ => Ok(()),
    };
    let refused = watched(watcher, || make(b.dir(), &plan, &kept)).expect_err("full");
    assert!(matches!(refused, CutError::Keep(_)), "{refused}");
    assert!(theirs.join("identity").is_file() && !kept.exists());
}

#[test]
fn a_place_that_another_cut_has_used_meanwhile_is_refused() {
    let [mut b, mut c] = [directory().0, directory().0];
    for (b, frame) in [(&mut b, 20), (&mut c, 1)] {
        let damaged = b.logs[0].frames[frame];
        b.overwrite(0, damaged, 0x5a);
        b.store();
    }
    let (first, second) = (plan(b.dir()), plan(c.dir()));
    let (_home, kept) = place();
    make(b.dir(), &first, &kept).expect("cut");
    let (copies, before) = (contents(&kept), contents(c.dir()));
    let refused = make(c.dir(), &second, &kept).expect_err("used");
    assert!(matches!(refused, CutError::Keep(_)), "{refused}");
    assert!(contents(&kept) == copies && contents(c.dir()) == before);
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
