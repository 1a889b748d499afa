//! Cutting a damaged log: what is left is what came before, what goes is said and kept, it can be interrupted anywhere, and
//! what it does not mend stays as it was.

#[path = "../common/mod.rs"]
mod common;
mod interrupted;
mod keeping;
mod segments;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use common::{Builder, contents, place_in_memory, stored, topic_t};
use ringtide_log::files::FileError;
use ringtide_log::files::watch::{Change, watched};
use ringtide_log::recovery::cut::{self, CutError, Outlook, Plan};
use ringtide_log::recovery::{PartitionEnd, RecoverError, Recovered, log_name, repair, verify};
use ringtide_schema::ids::{GroupId, PartitionId};
use ringtide_schema::limits::BLOCK_BYTES;
use ringtide_schema::store::MetaEntryT;
use ringtide_schema::wal::{ENTRY_HEADER_BYTES, FRAME_HEADER_BYTES};
use tempfile::TempDir;

/// Batches that the snapshots hold; the first frame of the log has the next.
const HELD: u64 = 16;

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
    for slot in [0, 1, 2] {
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
fn a_log_whose_slots_all_lost_header_and_first_frame_is_cut_before_the_oldest() {
    for slots in [1, 3] {
        for byte in [0, 0x5a] {
            let (mut b, id) = directory();
            b.logs[0].slots.truncate(slots);
            for slot in slots..3 {
                fs::remove_file(b.slot_path(0, slot)).expect("removed");
            }
            for slot in &mut b.logs[0].slots {
                slot[..2 * BLOCK_BYTES].fill(byte);
            }
            b.store();
            let plan = plan(b.dir());
            let place = (&*plan.logs[0].slot, plan.logs[0].position);
            assert_eq!(place, (&*b.slot_path(0, 0), BLOCK_BYTES as u64));
            assert!(plan.logs[0].behind.records[&id].records > 10);
            let ends = make(b.dir(), &plan, &self::place().1).expect("cut");
            assert_eq!(ends[0].ends, HELD, "{slots} slots, {byte}");
            assert_eq!(end(&start(&b), id), HELD);
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
        (span.end, span.first, span.last, span.records)
    };
    assert_eq!(records(ids[0]), (2, 3, 5, 3));
    assert_eq!(records(ids[1]), (0, 0, 1, 2));
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
fn settings_that_come_back_are_told_with_a_warning_where_less_is_kept() {
    let mut b = Builder::in_memory(2, 1);
    let [topic, other] = ["t", "u"].map(|name| b.topic(name, 1, 1 << 20));
    b.frame(0);
    let alter = |b: &mut Builder, id, name, retention_ms, retention_bytes, segment_bytes| {
        let mut altered = topic_t(id, name, 1, segment_bytes);
        altered.config.retention_ms = retention_ms;
        altered.config.retention_bytes = retention_bytes;
        b.meta(&MetaEntryT {
            altered: Some(Box::new(altered)),
            ..MetaEntryT::default()
        });
        b.frame(0);
    };
    alter(&mut b, topic, "t", 3_600_000, -1, 1 << 20);
    b.publish(
        PartitionId {
            topic,
            partition: 0,
        },
        100,
    );
    let damaged = b.frame(0);
    alter(&mut b, topic, "t", 7_200_000, -1, 1 << 20);
    alter(&mut b, topic, "t", -1, 1 << 30, 1 << 21);
    // And back to what it was.
    alter(&mut b, other, "u", 1000, -1, 1 << 20);
    alter(&mut b, other, "u", 7 * 24 * 3_600_000, -1, 1 << 20);
    b.closing(0);
    b.overwrite(0, damaged, 0x5a);
    b.store();
    let back = plan(b.dir()).logs[0].behind.set_back.clone();
    assert!(back.iter().all(|back| back.topic == "t"), "{back:?}");
    let told = back.iter().map(|b| (b.key, b.from, b.to, b.keeps_less()));
    assert_eq!(
        told.collect::<Vec<_>>(),
        [
            ("retention-ms", -1, 3_600_000, true),
            ("retention-bytes", 1 << 30, -1, false),
            ("segment-bytes", 1 << 21, 1 << 20, false),
        ]
    );
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
        assert!(matches!(refused, CutError::Useless { .. }), "{refused}");
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
