//! The writer of the log alone, without a disk.

use super::EntryClass::{Deletion, Ordinary, Retention};
use super::*;

const SLOT: u64 = 4 << 20;

fn wal(slots: u64) -> Wal {
    let config = WalConfig {
        shard: 0,
        data_directory: TopicId { hi: 1, lo: 2 },
        incarnation: 1,
        slot_bytes: SLOT,
        max_in_flight: 2,
    };
    let pool = Pool::new(64 << 20).expect("memory");
    Wal::new(config, pool, (0..slots).map(FileId).collect())
}

fn meta(index: u64) -> EntryMeta {
    EntryMeta {
        kind: EntryKind::Batch,
        class: Ordinary,
        group: GroupId(0),
        group_index: index,
        partition: PartitionId::default(),
        base_offset: index,
        append_time_ms: 0,
    }
}

fn append(wal: &mut Wal, bytes: usize, ops: &mut Vec<(OpId, DiskOp)>) -> Result<u64, WalBusy> {
    wal.append(meta(wal.next_seq), bytes, |p| p.fill(7), 0, ops)
        .map(|a| a.seq)
}

/// Appends an entry in a frame of its own, which is written.
fn append_whole(wal: &mut Wal, class: EntryClass, bytes: usize) -> Result<u64, WalBusy> {
    let mut ops = Vec::new();
    let meta = EntryMeta {
        class,
        ..meta(wal.next_seq)
    };
    let seq = wal.append(meta, bytes, |p| p.fill(7), 0, &mut ops)?.seq;
    wal.want(seq);
    wal.turn(0, &mut ops);
    complete(wal, &mut ops);
    Ok(seq)
}

fn complete(wal: &mut Wal, ops: &mut Vec<(OpId, DiskOp)>) {
    for op in std::mem::take(ops) {
        wal.completed(op.0, 0, ops);
    }
}

/// Appends until there is no room. Returns the last.
fn fill_up(wal: &mut Wal, class: EntryClass, bytes: usize) -> u64 {
    let mut last = wal.appended();
    loop {
        match append_whole(wal, class, bytes) {
            Ok(seq) => last = seq,
            Err(busy) => {
                assert_eq!(busy, WalBusy::Slots);
                return last;
            }
        }
    }
}

#[test]
fn entries_leave_the_slot_that_is_kept_back() {
    let mut wal = wal(4);
    fill_up(&mut wal, Ordinary, 60_000);
    fill_up(&mut wal, Retention, 0);
    fill_up(&mut wal, Deletion, 0);
    assert_eq!(wal.used.len(), 3);
    assert_eq!(wal.free_slots(), (0, 3));
    assert!(
        wal.take_free_slot(false).is_some(),
        "it is there to be given up"
    );
    assert_eq!(wal.take_free_slot(true), None);
}

#[test]
fn what_makes_space_has_room_where_records_have_none() {
    for slots in [2, 3, 6] {
        let mut wal = wal(slots);
        let large = fill_up(&mut wal, Ordinary, 200_000);
        let records = fill_up(&mut wal, Ordinary, 0);
        assert!(large > 0 && records < large + 60, "no frame was full");
        let altered = fill_up(&mut wal, Retention, 300);
        assert!(altered - records > 200, "most of a MiB of blocks");
        assert_eq!(fill_up(&mut wal, Ordinary, 0), altered);
        let deleted = fill_up(&mut wal, Deletion, 0);
        assert!(deleted - altered >= 15, "64 KiB of blocks");
    }
}

#[test]
fn closing_frames_leave_what_is_for_what_makes_space() {
    let mut wal = wal(2);
    fill_up(&mut wal, Ordinary, 100_000);
    let before = fill_up(&mut wal, Ordinary, 0);
    let (mut now_ns, mut ops) = (0, Vec::new());
    // Each time the log falls idle between two of them.
    while append_whole(&mut wal, Retention, 0).is_ok() {
        now_ns += CLOSE_AFTER_NS;
        wal.turn(now_ns, &mut ops);
        complete(&mut wal, &mut ops);
    }
    assert!(wal.appended() - before > 200, "most of a MiB of blocks");
}

#[test]
fn what_makes_space_has_memory_where_records_have_none() {
    let mut wal = wal(4);
    let mut taken = Vec::new();
    taken.extend(std::iter::from_fn(|| wal.pool.take_above(RESERVED_CHUNKS)));
    assert_eq!(append_whole(&mut wal, Ordinary, 0), Err(WalBusy::Memory));
    append_whole(&mut wal, Retention, 0).expect("memory");
}

#[test]
fn what_makes_space_has_room_when_the_slot_that_was_kept_back_is_given_up() {
    let mut wal = wal(6);
    let before = fill_up(&mut wal, Ordinary, 60_000);
    assert!(wal.take_free_slot(false).is_some());
    assert!(fill_up(&mut wal, Retention, 0) > before);
}

#[test]
fn the_last_slot_is_given_up_only_if_topics_can_be_deleted_without_it() {
    for (left, is_given) in [(DELETION_BYTES, true), (DELETION_BYTES - 1, false)] {
        let mut wal = wal(3);
        while wal.used.len() < 2 {
            append_whole(&mut wal, Ordinary, 100_000).expect("room");
        }
        wal.used.back_mut().expect("a slot").position = SLOT - left;
        assert_eq!(wal.take_free_slot(false).is_some(), is_given);
    }
}

#[test]
fn a_log_that_ends_gives_up_every_slot_that_is_empty() {
    let mut wal = wal(3);
    append_whole(&mut wal, Ordinary, 100).expect("room");
    assert!(wal.take_free_slot(true).is_some());
    assert!(wal.take_free_slot(true).is_some());
    assert_eq!(wal.take_free_slot(true), None);
}

#[test]
fn no_slot_is_given_up_while_nothing_in_the_current_one_is_committed() {
    for is_ending in [false, true] {
        let (mut wal, mut ops) = (wal(3), Vec::new());
        let mut held = 0;
        while wal.used.len() < 2 {
            complete(&mut wal, &mut ops);
            held = wal.committed();
            let seq = append(&mut wal, 500_000, &mut ops).expect("room");
            wal.want(seq);
            wal.turn(0, &mut ops);
        }
        // Snapshots hold the first slot; header and first frame of the second are on their way.
        let mut marks = Vec::new();
        wal.release_through(held, &mut marks);
        complete(&mut wal, &mut marks);
        assert_eq!((wal.used.len(), wal.free.len()), (1, 2));
        assert_eq!(wal.take_free_slot(is_ending), None);
        complete(&mut wal, &mut ops);
        assert!(wal.take_free_slot(is_ending).is_some());
    }
}

#[test]
fn a_log_that_waits_for_writes_says_so() {
    let (mut wal, mut ops) = (wal(4), Vec::new());
    for _ in 0..2 {
        let seq = append(&mut wal, 100, &mut ops).expect("room");
        wal.want(seq);
        wal.turn(0, &mut ops);
    }
    append(&mut wal, FRAME_BYTES - 10_000, &mut ops).expect("room");
    let busy = append(&mut wal, 20_000, &mut ops);
    assert_eq!(busy, Err(WalBusy::Writes));
}

#[test]
fn two_slots_are_never_given_up() {
    let mut wal = wal(3);
    assert!(wal.take_free_slot(false).is_some());
    assert_eq!(wal.take_free_slot(false), None);
    assert_eq!(wal.slots(), 2);
}

#[test]
fn a_slot_stays_until_its_closing_frame_is_written() {
    let (mut wal, mut ops) = (wal(3), Vec::new());
    let first = append(&mut wal, 100, &mut ops).expect("room");
    wal.want(first);
    wal.turn(0, &mut ops);
    complete(&mut wal, &mut ops);
    wal.turn(CLOSE_AFTER_NS, &mut ops);
    let [(closing, _)] = ops[..] else {
        panic!("{ops:?}")
    };
    // The log goes on in the next slot while that write is on its way.
    wal.used.back_mut().expect("a slot").position = SLOT;
    let second = append(&mut wal, 100, &mut ops).expect("room");
    wal.want(second);
    wal.turn(CLOSE_AFTER_NS, &mut ops);
    assert_eq!(wal.used.len(), 2);
    wal.release_through(first, &mut ops);
    assert_eq!(wal.used.len(), 2, "its last write is in flight");
    wal.completed(closing, CLOSE_AFTER_NS, &mut ops);
    wal.release_through(first, &mut ops);
    assert_eq!(wal.used.len(), 1);
}

#[test]
fn a_slot_that_the_open_frame_needs_is_not_given_up() {
    let mut wal = wal(3);
    while wal.used.len() < 2 {
        append_whole(&mut wal, Ordinary, 100_000).expect("room");
    }
    wal.used.back_mut().expect("a slot").position = SLOT;
    append(&mut wal, 100, &mut Vec::new()).expect("room");
    assert_eq!((wal.slots(), wal.free.len()), (3, 1));
    assert_eq!(wal.take_free_slot(false), None);
}

#[test]
fn nothing_is_written_before_somebody_waits_or_the_time_has_come() {
    let (mut wal, mut ops) = (wal(2), Vec::new());
    append(&mut wal, 100, &mut ops).expect("room");
    wal.turn(FLUSH_AFTER_NS - 1, &mut ops);
    assert!(ops.is_empty());
    wal.turn(FLUSH_AFTER_NS, &mut ops);
    assert_eq!(ops.len(), 2, "slot header and frame: {ops:?}");
}

#[test]
fn what_somebody_may_wait_for_is_written_by_its_time_with_all_before_it() {
    let (mut wal, mut ops) = (wal(2), Vec::new());
    append(&mut wal, 100, &mut ops).expect("room");
    assert_eq!(wal.deadline_ns(), Some(FLUSH_AFTER_NS));
    append(&mut wal, 100, &mut ops).expect("room");
    wal.want_by(1_000);
    append(&mut wal, 100, &mut ops).expect("room");
    wal.want_by(2_000);
    assert_eq!(wal.deadline_ns(), Some(1_000));
    wal.turn(999, &mut ops);
    assert!(ops.is_empty());
    wal.turn(1_000, &mut ops);
    assert_eq!(ops.len(), 2, "slot header and frame: {ops:?}");
    assert_eq!(wal.stats().entries, 3);
    // It is no matter of the next frame.
    complete(&mut wal, &mut ops);
    let last = append(&mut wal, 100, &mut ops).expect("room");
    assert_eq!(wal.deadline_ns(), Some(FLUSH_AFTER_NS));
    wal.want(last);
    assert_eq!(wal.deadline_ns(), Some(0));
}

#[test]
fn what_nobody_waits_for_is_written_when_no_more_fits_and_not_before() {
    const ENTRY: usize = 300_000;
    let (mut wal, mut ops) = (wal(2), Vec::new());
    for _ in 0..FRAME_BYTES / ENTRY {
        append(&mut wal, ENTRY, &mut ops).expect("room");
        wal.turn(0, &mut ops);
        assert!(ops.is_empty(), "{ops:?}");
    }
    append(&mut wal, ENTRY, &mut ops).expect("room");
    assert_eq!(ops.len(), 2, "slot header and frame: {ops:?}");
}

#[test]
fn what_arrives_during_a_write_is_the_next_frame() {
    let (mut wal, mut ops) = (wal(2), Vec::new());
    let first = append(&mut wal, 100, &mut ops).expect("room");
    wal.want(first);
    wal.turn(0, &mut ops);
    complete(&mut wal, &mut ops);
    let mut last = 0;
    for _ in 0..3 {
        let seq = append(&mut wal, 100, &mut ops).expect("room");
        wal.want(seq);
        wal.turn(0, &mut ops);
        last = seq;
    }
    // Two writes may be in flight; the third entry waits for one of them.
    assert_eq!(ops.len(), 2);
    assert!(wal.completed(ops[0].0, 0, &mut Vec::new()));
    wal.turn(0, &mut ops);
    assert_eq!(ops.len(), 3);
    wal.completed(ops[1].0, 0, &mut Vec::new());
    wal.completed(ops[2].0, 0, &mut Vec::new());
    assert_eq!(wal.committed(), last);
}

#[test]
fn a_write_that_completes_early_commits_nothing_before_its_predecessors() {
    let (mut wal, mut ops) = (wal(2), Vec::new());
    let first = append(&mut wal, 100, &mut ops).expect("room");
    wal.want(first);
    wal.turn(0, &mut ops);
    let (header, frame) = (ops[0].0, ops[1].0);
    assert!(
        !wal.completed(frame, 0, &mut ops),
        "the slot's header is not durable yet"
    );
    assert_eq!(wal.committed(), 0);
    assert!(wal.completed(header, 0, &mut ops));
    assert_eq!(wal.committed(), first);
}

#[test]
fn accepted_entries_always_have_a_place_on_disk() {
    let (mut wal, mut ops) = (wal(2), Vec::new());
    let mut accepted = 0;
    // No slot is ever released: the log must say "busy" before it runs out, never fail.
    while let Ok(seq) = append(&mut wal, 100_000, &mut ops) {
        accepted = seq;
        wal.want(seq);
        wal.turn(0, &mut ops);
        complete(&mut wal, &mut ops);
    }
    assert_eq!(wal.committed(), accepted);
    assert!(
        accepted > 60,
        "{accepted} of about 80 entries of 100 kB in 8 MiB"
    );
}

#[test]
fn a_slot_is_used_again_only_when_its_blank_header_is_durable() {
    let (mut wal, mut ops) = (wal(3), Vec::new());
    let mut accepted = 0;
    while let Ok(seq) = append(&mut wal, 100_000, &mut ops) {
        accepted = seq;
        wal.want(seq);
        wal.turn(0, &mut ops);
        complete(&mut wal, &mut ops);
    }
    wal.release_through(accepted, &mut ops);
    let mut blanked = Vec::new();
    while let Some((op, write)) = ops.pop() {
        assert!(append(&mut wal, 100_000, &mut Vec::new()).is_err());
        let DiskOp::Write {
            file,
            position,
            data,
        } = write
        else {
            panic!("{write:?}")
        };
        assert_eq!((position, &data[..]), (0, &[0; BLOCK_BYTES][..]));
        assert!(ops.is_empty(), "one at a time, so that no gap can come up");
        blanked.push(file);
        wal.completed(op, 0, &mut ops);
        if blanked.len() == 1 {
            assert_eq!(wal.free_slots(), (2, 3));
            assert_eq!(wal.free.len(), 1);
            // The second is looked at with the first still free.
            wal.free.clear();
        }
    }
    assert_eq!(blanked.len(), 2, "the newest slot stays");
    assert_eq!(wal.free.len(), 1);
    assert!(append(&mut wal, 100_000, &mut ops).is_ok());
}

#[test]
fn an_idle_log_is_closed_by_an_empty_frame() {
    let (mut wal, mut ops) = (wal(2), Vec::new());
    let seq = append(&mut wal, 100, &mut ops).expect("room");
    wal.want(seq);
    wal.turn(0, &mut ops);
    for op in std::mem::take(&mut ops) {
        wal.completed(op.0, 5, &mut ops);
    }
    assert_eq!(wal.deadline_ns(), Some(5 + CLOSE_AFTER_NS));
    wal.turn(5 + CLOSE_AFTER_NS, &mut ops);
    let [(op, DiskOp::Write { data, .. })] = &ops[..] else {
        panic!("{ops:?}")
    };
    let (header, _) = FrameHeader::decode(data).expect("a frame");
    assert_eq!(
        (header.flags, header.committed, header.entry_count),
        (FRAME_CLOSING, seq, 0)
    );
    wal.completed(*op, 6, &mut Vec::new());
    assert_eq!(wal.deadline_ns(), None);
}

#[test]
fn frames_are_a_chain() {
    let (mut wal, mut ops) = (wal(2), Vec::new());
    let mut crc = 0;
    for _ in 0..3 {
        let seq = append(&mut wal, 100, &mut ops).expect("room");
        wal.want(seq);
        wal.turn(0, &mut ops);
        let writes = std::mem::take(&mut ops);
        let Some((_, DiskOp::Write { data, .. })) = writes.last() else {
            panic!()
        };
        let (header, own) = FrameHeader::decode(data).expect("a frame");
        assert_eq!(header.previous_crc, crc);
        crc = own;
        for op in writes {
            wal.completed(op.0, 0, &mut ops);
        }
    }
}
