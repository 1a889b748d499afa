//! Operations on files that fail.

use std::cell::Cell;
use std::path::PathBuf;

use ringtide_io::{Disconnect, DiskErrorKind, DiskOp};
use ringtide_schema::batch::{Batches, Codec, assign};
use ringtide_schema::error_code::ErrorCode;
use ringtide_schema::frame::Op;
use ringtide_schema::ids::PartitionId;
use ringtide_schema::wire;

use crate::peer::{DURABLE, Heard, batch, batch_of};
use crate::world::{MS, SECOND, START_MS, Setup, World};

/// Two segments of two records each, from disk.
pub fn two_segments() -> (Setup, PartitionId) {
    let setup = Setup::new(1).topic("old", 1);
    let old = setup.on_shard("old", 0);
    let segment = [batch(b"first"), batch(b"second")];
    let setup = setup.segment(old, &segment).segment(old, &segment);
    (setup, old)
}

/// Segment files with this base offset cannot be read.
fn fail_reads(world: &mut World, base_offset: u64) {
    let name = format!("{base_offset:020}");
    world.nodes[0].disk.fails = Box::new(move |path, op| {
        let is_read = matches!(op, DiskOp::Open { .. } | DiskOp::LoadIndex { .. });
        let is_named = path.file_stem().is_some_and(|stem| *stem == *name);
        (is_read && is_named).then_some(DiskErrorKind::Os(5))
    });
}

#[test]
fn publishes_go_on_when_the_topic_that_filled_the_disk_is_deleted() {
    let setup = Setup::new(1).topic("large", 1).topic("small", 1);
    let (large, small) = (setup.on_shard("large", 0), setup.on_shard("small", 0));
    let mut world = World::new(&setup);
    let peer = world.connect(0);
    world.nodes[0].disk.fails = Box::new(move |path, op| {
        let is_write = matches!(op, DiskOp::Write { .. } | DiskOp::Open { .. });
        let is_large = path.starts_with(format!("data/partitions/{}", large.dir_name()));
        (is_write && is_large).then_some(DiskErrorKind::Full)
    });
    world.publish(peer, DURABLE, &[(large, batch(&[1; 300_000]))]);
    world.pass(100 * MS);
    let refused = world.publish(peer, DURABLE, &[(small, batch(b"refused"))]);
    let code = ErrorCode::DiskFull as u16;
    assert_eq!(world.answer(peer, refused).results()[0].1, code);

    let deleted = world.delete_topic(peer, "large");
    assert_eq!(world.answer(peer, deleted).error(), None);
    world.pass(2 * SECOND);
    let taken = world.publish(peer, DURABLE, &[(small, batch(b"taken"))]);
    assert_eq!(world.answer(peer, taken).results(), [(0, 0, 0)]);
}

/// The segments of a partition with this base offset.
pub fn segment(id: PartitionId, base_offset: u64) -> PathBuf {
    let dir = PathBuf::from("data/partitions").join(id.dir_name());
    dir.join(format!("{base_offset:020}.log"))
}

/// A disk without a free block: of `large` nothing can be written, and snapshots only once a slot of
/// the log has given its space.
fn fill_up(world: &mut World, large: PartitionId) {
    let is_slot_gone = Cell::new(false);
    world.nodes[0].disk.fails = Box::new(move |path, op| {
        let is_large = path.starts_with(format!("data/partitions/{}", large.dir_name()));
        let fails = match op {
            DiskOp::Write { .. } | DiskOp::Open { .. } => is_large,
            DiskOp::Replace { .. } => !is_slot_gone.get(),
            DiskOp::CreateSlot { .. } => true,
            DiskOp::Remove { .. } => {
                let is_slot = path.extension().is_some_and(|e| e == "wal");
                is_slot_gone.set(is_slot_gone.get() || is_slot);
                false
            }
            _ => false,
        };
        fails.then_some(DiskErrorKind::Full)
    });
}

#[test]
fn retention_makes_space_although_no_segment_can_be_written() {
    let (setup, old) = two_segments();
    let setup = setup.topic("large", 1);
    let large = setup.on_shard("large", 0);
    let mut world = World::new(&setup);
    let peer = world.connect(0);
    fill_up(&mut world, large);
    world.publish(peer, DURABLE, &[(large, batch(&[1; 300_000]))]);
    world.pass(100 * MS);
    let less = wire::TopicSettingsT {
        retention_bytes: Some(1),
        ..wire::TopicSettingsT::default()
    };
    let altered = world.alter_topic(peer, "old", less);
    assert_eq!(world.answer(peer, altered).error(), None);
    assert!(world.nodes[0].disk.has(&segment(old, 0)));
    world.pass(10 * SECOND);
    assert!(!world.nodes[0].disk.has(&segment(old, 0)), "the file stays");

    // There is space: what waited is written, the log is whole again, the broker can stop.
    world.nodes[0].disk.fails = Box::new(|_, _| None);
    world.pass(20 * SECOND);
    let taken = world.publish(peer, DURABLE, &[(large, batch(b"taken"))]);
    assert_eq!(world.answer(peer, taken).results(), [(0, 0, 1)]);
    let slots = (0..4).map(|n| PathBuf::from(format!("data/wal/0-{n}.wal")));
    let missing: Vec<PathBuf> = slots.filter(|s| !world.nodes[0].disk.has(s)).collect();
    assert!(missing.is_empty(), "not made again: {missing:?}");
    world.stop();
    world.pass(10 * SECOND);
    assert!(world.is_stopped());
}

/// A disk without a free block, and a log without room for records.
fn fill_up_with_the_log(world: &mut World, large: PartitionId) {
    // The log fills up behind segments that hang, then these find no space.
    world.nodes[0].disk.holds = Box::new(|path, op| {
        matches!(op, DiskOp::Write { .. }) && path.starts_with("data/partitions")
    });
    for bytes in [900_000, 10_000, 10] {
        let publisher = world.connect(0);
        let is_taken = |world: &mut World| {
            world.publish(publisher, DURABLE, &[(large, batch(&vec![1; bytes]))]);
            world.run();
            !world.hear(publisher).is_empty()
        };
        let taken = (0..200).take_while(|_| is_taken(world)).count();
        assert!(taken < 200, "the log of 12 MiB is not full");
    }
    fill_up(world, large);
    world.nodes[0].disk.holds = Box::new(|_, _| false);
    world.pass(SECOND);
}

#[test]
fn a_topic_can_be_deleted_when_neither_the_disk_nor_the_log_has_room() {
    let setup = Setup::new(1).topic("large", 1);
    let large = setup.on_shard("large", 0);
    let mut world = World::new(&setup);
    let peer = world.connect(0);
    fill_up_with_the_log(&mut world, large);
    let asked = world.publish(peer, DURABLE, &[(large, batch(b"no room"))]);
    let refused = world.answer(peer, asked).results()[0].1;
    assert_eq!(refused, ErrorCode::DiskFull as u16);
    // However many ask for what takes room, or makes it only by and by.
    for n in 0..400 {
        let created = world.create_topic(peer, &format!("more-{n}"));
        assert_eq!(
            world.answer(peer, created).error(),
            Some(ErrorCode::DiskFull)
        );
        let less = wire::TopicSettingsT {
            retention_bytes: Some(1_000_000 - n),
            ..wire::TopicSettingsT::default()
        };
        let altered = world.alter_topic(peer, "large", less);
        let refused = world.answer(peer, altered).error();
        assert!([None, Some(ErrorCode::DiskFull)].contains(&refused));
        assert!(
            n > 0 || refused.is_none(),
            "there was room for a MiB of them"
        );
        assert!(n < 399 || refused.is_some(), "there is room left");
    }
    let deleted = world.delete_topic(peer, "large");
    assert_eq!(world.answer(peer, deleted).error(), None);
}

#[test]
fn what_takes_room_is_refused_when_neither_the_disk_nor_the_log_has_any() {
    let setup = Setup::new(1).topic("large", 1);
    let large = setup.on_shard("large", 0);
    let mut world = World::new(&setup);
    let peer = world.connect(0);
    fill_up_with_the_log(&mut world, large);
    let committed = world.commit_offset(peer, large, "reader");
    let created = world.create_topic(peer, "more");
    let larger = wire::TopicSettingsT {
        segment_bytes: Some(64 << 20),
        ..wire::TopicSettingsT::default()
    };
    let altered = world.alter_topic(peer, "large", larger);
    world.run();
    let heard = world.hear(peer);
    for asked in [committed, created, altered] {
        let answer = heard.iter().find(|f| f.correlation == asked);
        let answer = answer.expect("an answer, not a wait for space");
        assert_eq!(answer.error(), Some(ErrorCode::DiskFull));
    }
}

#[test]
fn what_only_waits_for_writes_of_the_log_is_not_refused_on_a_full_disk() {
    let setup = Setup::new(1).topic("large", 1);
    let large = setup.on_shard("large", 0);
    let mut world = World::new(&setup);
    let peer = world.connect(0);
    fill_up(&mut world, large);
    world.publish(peer, DURABLE, &[(large, batch(&[1; 300_000]))]);
    world.pass(SECOND);
    world.hear(peer);
    // More than the frame that is open while four are being written.
    world.hold_log(0, true);
    let consumer = "x".repeat(249);
    let asked: Vec<u64> = (0..3_500)
        .map(|_| {
            let asked = world.commit_offset(peer, large, &consumer);
            world.run();
            asked
        })
        .collect();
    assert!(world.hear(peer).is_empty(), "refused, or not held up");
    world.hold_log(0, false);
    world.pass(SECOND);
    let heard = world.hear(peer);
    assert_eq!(heard.len(), asked.len());
    assert!(heard.iter().all(|answer| answer.error().is_none()));
}

#[test]
fn a_stop_goes_on_when_a_snapshot_that_lets_files_go_ends_last() {
    let (setup, _old) = two_segments();
    let setup = setup.topic("large", 1);
    let large = setup.on_shard("large", 0);
    let mut world = World::new(&setup);
    let peer = world.connect(0);
    fill_up(&mut world, large);
    world.publish(peer, DURABLE, &[(large, batch(&[1; 300_000]))]);
    let less = wire::TopicSettingsT {
        retention_bytes: Some(1),
        ..wire::TopicSettingsT::default()
    };
    world.alter_topic(peer, "old", less);
    // The first snapshots are those that let files go.
    world.nodes[0].disk.holds = Box::new(|_, op| matches!(op, DiskOp::Replace { .. }));
    world.pass(5 * SECOND);
    assert!(world.nodes[0].disk.held() > 0, "no snapshot was begun");
    world.nodes[0].disk.fails = Box::new(|_, _| None);
    world.stop();
    world.pass(5 * SECOND);
    assert!(!world.is_stopped());
    world.nodes[0].disk.holds = Box::new(|_, _| false);
    world.pass(5 * SECOND);
    assert!(world.is_stopped(), "nothing moved the checkpoint");
}

/// What is read of a partition whose last batches a snapshot holds, over a shard with a full disk.
fn read_on_a_full_disk(shard: u16, batches: &[Vec<u8>]) {
    let setup = Setup::new(2).topic("old", 2).topic("large", 60);
    let (old, large) = (setup.on_shard("old", shard), setup.on_shard("large", shard));
    let setup = setup.segment(old, batches).open();
    let mut whole = Vec::new();
    for (offset, batch) in (0..).zip(batches) {
        let at = whole.len();
        whole.extend_from_slice(batch);
        assign(&mut whole[at..], offset, 1);
    }
    let mut world = World::new(&setup);
    let peer = world.connect(0);
    let disk = &mut world.nodes[usize::from(shard)].disk;
    disk.fails = Box::new(|path, op| {
        let is_full = match op {
            DiskOp::Write { .. } => path.starts_with("data/partitions"),
            DiskOp::CreateSlot { .. } | DiskOp::Replace { .. } => true,
            _ => false,
        };
        is_full.then_some(DiskErrorKind::Full)
    });
    // Those of this shard wait for a block.
    for partition in 0..60 {
        let part = (PartitionId { partition, ..large }, batch(&[1; 300_000]));
        world.publish(peer, DURABLE, &[part]);
    }
    world.pass(SECOND);
    world.hear(peer);
    let fetched = world.fetch(peer, old, 0, 0);
    let late = i64::MAX;
    let (first, none) = (
        world.list_offsets(peer, old, 0),
        world.list_offsets(peer, old, late),
    );
    let pushed = world.subscribe(peer, old, 0, 1 << 20);
    world.pass(SECOND / 10);
    let heard = world.hear(peer);
    let said = |number: u64, op: Op| {
        let mut frames = heard
            .iter()
            .filter(|f| f.correlation == number && f.op == op);
        let only = frames.next().expect("an answer");
        assert_eq!((only.error(), frames.count()), (None, 0));
        only
    };
    assert!(said(fetched, Op::Fetch).payload == whole);
    assert!(said(pushed, Op::Push).payload == whole);
    let found = |number| {
        let answer = said(number, Op::ListOffsets);
        answer.table::<wire::ListOffsetsResponse<'_>>().offset()
    };
    assert_eq!(found(first), 0);
    assert_eq!(found(none), batches.len() as u64);
    let refused = world.publish(peer, DURABLE, &[(large, batch(b"no room"))]);
    assert_eq!(
        world.answer(peer, refused).results()[0].1,
        ErrorCode::DiskFull as u16
    );
}

#[test]
fn a_read_needs_no_block_of_a_full_disk() {
    for shard in [0, 1] {
        read_on_a_full_disk(shard, &[batch(&[1; 5_000]), batch(b"last")]);
        read_on_a_full_disk(shard, &[batch(&[1; 50_000]), batch(&[2; 9_000])]);
    }
}

#[test]
fn what_only_a_snapshot_holds_is_read_without_a_file() {
    for shard in [0, 1] {
        read_on_a_full_disk(shard, &[batch(b"first"), batch(b"second")]);
    }
}

#[test]
fn a_stop_on_a_full_disk_has_the_space_of_every_empty_slot() {
    let setup = Setup::new(1).topic("t", 1);
    let id = setup.on_shard("t", 0);
    let mut world = World::new(&setup);
    let peer = world.connect(0);
    // What the broker writes at its end needs the space of three of its four slots.
    let slots_gone = Cell::new(0);
    world.nodes[0].disk.fails = Box::new(move |path, op| {
        let is_segment = path.starts_with("data/partitions");
        let needs_space = match op {
            DiskOp::Write { .. } | DiskOp::Open { .. } => is_segment,
            DiskOp::Replace { .. } => true,
            DiskOp::CreateSlot { .. } => {
                slots_gone.set(0);
                false
            }
            DiskOp::Remove { .. } => {
                slots_gone.set(slots_gone.get() + u32::from(!is_segment));
                false
            }
            _ => false,
        };
        (needs_space && slots_gone.get() < 3).then_some(DiskErrorKind::Full)
    });
    let asked = world.publish(peer, DURABLE, &[(id, batch(b"kept"))]);
    assert_eq!(world.answer(peer, asked).results(), [(0, 0, 0)]);
    world.stop();
    world.pass(60 * SECOND);
    assert!(world.is_stopped(), "slots are kept, or made again");
}

#[test]
fn what_retention_gave_up_is_removed_before_the_end() {
    let (setup, old) = two_segments();
    let mut world = World::new(&setup);
    let peer = world.connect(0);
    let less = wire::TopicSettingsT {
        retention_bytes: Some(1),
        ..wire::TopicSettingsT::default()
    };
    let altered = world.alter_topic(peer, "old", less);
    assert_eq!(world.answer(peer, altered).error(), None);
    // Until a segment is given up; its file waits for a snapshot.
    world.nodes[0].disk.holds = Box::new(|_, op| matches!(op, DiskOp::Replace { .. }));
    world.pass(2 * SECOND);
    assert!(world.nodes[0].disk.has(&segment(old, 0)));
    world.nodes[0].disk.holds = Box::new(|_, op| matches!(op, DiskOp::Remove { .. }));
    world.stop();
    world.pass(2 * SECOND);
    assert!(!world.is_stopped(), "the removal is waited for");
    world.nodes[0].disk.holds = Box::new(|_, _| false);
    world.pass(2 * SECOND);
    assert!(world.is_stopped());
    assert!(!world.nodes[0].disk.has(&segment(old, 0)));
}

#[test]
fn the_disk_is_given_two_pieces_of_segments_at_a_time() {
    let setup = Setup::new(1).topic("t", 1);
    let id = setup.on_shard("t", 0);
    let mut world = World::new(&setup);
    let peer = world.connect(0);
    world.nodes[0].disk.holds = Box::new(|path, op| {
        matches!(op, DiskOp::Write { .. }) && path.starts_with("data/partitions")
    });
    for _ in 0..4 {
        let asked = world.publish(peer, DURABLE, &[(id, batch(&[1; 900_000]))]);
        assert_eq!(world.answer(peer, asked).error(), None);
    }
    world.pass(SECOND);
    assert_eq!(world.nodes[0].disk.held(), 2);
    for _ in 0..20 {
        world.nodes[0].disk.release_one();
        world.run();
        assert!(world.nodes[0].disk.held() <= 2);
    }
    world.nodes[0].disk.holds = Box::new(|_, _| false);
    world.stop();
    world.pass(SECOND);
    assert!(world.is_stopped(), "pieces were forgotten");
}

#[test]
fn pieces_of_a_deleted_topic_are_not_written_and_hold_up_nobody() {
    let setup = Setup::new(1).topic("gone", 1).topic("kept", 1);
    let (gone, kept) = (setup.on_shard("gone", 0), setup.on_shard("kept", 0));
    let mut world = World::new(&setup);
    let peer = world.connect(0);
    world.nodes[0].disk.holds = Box::new(|path, op| {
        matches!(op, DiskOp::Write { .. }) && path.starts_with("data/partitions")
    });
    for id in [gone, gone, kept] {
        let asked = world.publish(peer, DURABLE, &[(id, batch(&[1; 900_000]))]);
        assert_eq!(world.answer(peer, asked).error(), None);
    }
    world.pass(SECOND);
    let deleted = world.delete_topic(peer, "gone");
    assert_eq!(world.answer(peer, deleted).error(), None);
    world.nodes[0].disk.holds = Box::new(|_, _| false);
    world.stop();
    world.pass(SECOND);
    assert!(world.is_stopped());
    assert!(world.nodes[0].disk.has(&segment(kept, 0)));
    assert!(!world.nodes[0].disk.has(&segment(gone, 0)));
}

#[test]
fn a_search_by_time_is_refused_when_its_segment_cannot_be_read() {
    let (setup, old) = two_segments();
    let mut world = World::new(&setup);
    let peer = world.connect(0);
    fail_reads(&mut world, 0);
    let asked = world.list_offsets(peer, old, START_MS);
    let answer = world.answer(peer, asked);
    assert_eq!(answer.error(), Some(ErrorCode::DataUnreadable));
}

#[test]
fn a_search_by_time_goes_on_when_a_segment_that_it_does_not_need_cannot_be_read() {
    let late = || batch_of(Codec::None, START_MS + 10, b"late", (-1, -1, -1));
    let setup = Setup::new(1).topic("old", 1);
    let old = setup.on_shard("old", 0);
    let setup = setup
        .segment(old, &[batch(b"first")])
        .segment(old, &[late()]);
    let mut world = World::new(&setup);
    world.nodes[0].disk.holds = Box::new(|path, _| {
        path.file_stem()
            .is_some_and(|stem| stem == "00000000000000000001")
    });
    fail_reads(&mut world, 0);
    let (searcher, reader) = (world.connect(0), world.connect(0));
    let search = world.list_offsets(searcher, old, START_MS + 5);
    let fetch = world.fetch(reader, old, 0, 1000);
    let refused = world.answer(reader, fetch);
    assert_eq!(refused.error(), Some(ErrorCode::DataUnreadable));
    world.nodes[0].disk.holds = Box::new(|_, _| false);
    let found = world.answer(searcher, search);
    let found = found.table::<wire::ListOffsetsResponse<'_>>();
    assert_eq!((found.offset(), found.timestamp_ms()), (1, START_MS + 10));
}

#[test]
fn searches_of_peers_that_are_gone_leave_room_for_others() {
    let (setup, old) = two_segments();
    let mut world = World::new(&setup);
    world.nodes[0].disk.holds = Box::new(|_, op| matches!(op, DiskOp::LoadIndex { .. }));
    for _ in 0..2 {
        let peer = world.connect(0);
        for _ in 0..50 {
            world.list_offsets(peer, old, START_MS);
        }
        world.run();
        world.hang_up(peer);
    }
    let peer = world.connect(0);
    let asked = world.list_offsets(peer, old, START_MS);
    world.run();
    assert!(!world.socket(peer).is_paused, "the search found no room");
    world.nodes[0].disk.holds = Box::new(|_, _| false);
    let answer = world.answer(peer, asked);
    let answer = answer.table::<wire::ListOffsetsResponse<'_>>();
    assert_eq!((answer.offset(), answer.timestamp_ms()), (0, START_MS));
}

#[test]
fn a_sealed_segment_that_was_cut_is_refused_to_its_readers() {
    let (setup, old) = two_segments();
    let mut world = World::new(&setup);
    let peer = world.connect(0);
    world.nodes[0].disk.holds = Box::new(|_, op| matches!(op, DiskOp::Open { .. }));
    let fetch = world.fetch(peer, old, 0, 1000);
    world.run();
    // Its index is there, and says more than there is.
    world.nodes[0].disk.put(segment(old, 0), batch(b"first"));
    world.nodes[0].disk.holds = Box::new(|_, _| false);
    world.run();
    let heard = world.hear(peer);
    let answer = heard.iter().find(|f| f.correlation == fetch);
    assert_eq!(
        answer.and_then(|f| f.error()),
        Some(ErrorCode::DataUnreadable)
    );
    let open = world.nodes[0].disk.open_files();
    let fetch = world.fetch(peer, old, 0, 1000);
    assert_eq!(
        world.answer(peer, fetch).error(),
        Some(ErrorCode::DataUnreadable)
    );
    assert_eq!(world.nodes[0].disk.open_files(), open, "files stay open");
}

#[test]
fn a_segment_that_cannot_be_read_ends_only_what_reads_there() {
    let (setup, old) = two_segments();
    let mut world = World::new(&setup);
    fail_reads(&mut world, 0);
    let peer = world.connect(0);
    let tail = world.subscribe(peer, old, -1, 4096);
    let second = world.subscribe(peer, old, 2, 0);
    world.run();
    let first = world.subscribe(peer, old, 0, 4096);
    let fetch = world.fetch(peer, old, 1, 1000);
    world.run();
    let heard = world.hear(peer);
    let mut refused: Vec<_> = heard.iter().filter(|f| f.error().is_some()).collect();
    refused.sort_by_key(|f| f.correlation);
    let refused: Vec<_> = refused
        .iter()
        .map(|f| (f.op, f.correlation, f.error()))
        .collect();
    let unreadable = Some(ErrorCode::DataUnreadable);
    assert_eq!(
        refused,
        [
            (Op::Push, first, unreadable),
            (Op::Fetch, fetch, unreadable)
        ]
    );

    let credit = wire::CreditT {
        subscription: second,
        bytes: 4096,
    };
    world.say(peer, Op::Credit, |b| credit.pack(b));
    world.publish(peer, DURABLE, &[(old, batch(b"new"))]);
    world.run();
    let heard = world.hear(peer);
    for number in [tail, second] {
        let is_push = |f: &&Heard| f.op == Op::Push && f.correlation == number;
        let push = heard.iter().find(is_push).expect("a push");
        assert_eq!(push.error(), None);
    }
}

#[test]
fn a_writer_whose_index_cannot_be_loaded_goes_on_and_only_who_reads_there_is_told() {
    let setup = Setup::new(1).topic("old", 1).open();
    let old = setup.on_shard("old", 0);
    let setup = setup.segment(old, &[batch(&[1; 10_000]), batch(&[2; 10_000])]);
    let mut world = World::new(&setup);
    world.nodes[0].disk.fails = Box::new(move |path, op| {
        let is_first = path.ends_with(format!("{:020}.index", 0));
        let is_load = is_first && matches!(op, DiskOp::LoadIndex { .. });
        is_load.then_some(DiskErrorKind::Os(5))
    });
    let peer = world.connect(0);
    let tail = world.subscribe(peer, old, -1, 0);
    let asked = world.publish(peer, DURABLE, &[(old, batch(&[3; 300_000]))]);
    assert_eq!(world.answer(peer, asked).results()[0].1, 0);
    world.pass(SECOND);
    assert!(
        world.nodes[0].disk.has(&segment(old, 2)),
        "nothing is written"
    );

    let fetch = world.fetch(peer, old, 0, 1000);
    let credit = wire::CreditT {
        subscription: tail,
        bytes: 400_000,
    };
    world.say(peer, Op::Credit, |b| credit.pack(b));
    world.run();
    let heard = world.hear(peer);
    let error_of = |correlation| {
        let frame = heard.iter().find(|f| f.correlation == correlation);
        frame.expect("an answer").error()
    };
    assert_eq!(error_of(fetch), Some(ErrorCode::DataUnreadable));
    assert_eq!(error_of(tail), None);
}

/// How many times of six a reader of a file that cannot be read is told so, rather than disconnected.
fn times_told(world: &mut World, shard: usize, partition: PartitionId) -> usize {
    let mut times = 0;
    for _ in 0..6 {
        let peer = world.connect(shard);
        let fetch = world.fetch(peer, partition, 0, 1000);
        world.run();
        if world.socket(peer).ended.is_some() {
            continue;
        }
        let heard = world.hear(peer);
        let answer = heard.iter().find(|f| f.correlation == fetch);
        let error = answer.expect("an answer").error();
        assert_eq!(error, Some(ErrorCode::DataUnreadable));
        times += 1;
    }
    times
}

#[test]
fn only_what_is_lost_on_the_device_is_refused_to_who_comes_back() {
    // EIO, ENODATA, EBADMSG, EUCLEAN and EREMOTEIO; then EBADF, EAGAIN, ENOMEM, EINVAL, EMFILE and ETIMEDOUT.
    let lost = [5, 61, 74, 117, 121].map(|errno| (errno, 4));
    let others = [9, 11, 12, 22, 24, 110].map(|errno| (errno, 0));
    let setup = Setup::new(2).topic("old", 8);
    let old = setup.on_shard("old", 0);
    let setup = setup.segment(old, &[batch(b"first"), batch(b"second")]);
    for (errno, told) in lost.into_iter().chain(others) {
        let mut world = World::new(&setup);
        world.nodes[0].disk.range_fails = Box::new(|_, _| true);
        world.nodes[0].disk.range_failure = Disconnect::File(errno);
        assert_eq!(
            times_told(&mut world, 0, old),
            told,
            "{errno} while sending"
        );
        let mut world = World::new(&setup);
        world.nodes[0].disk.fails = Box::new(move |_, op| {
            let is_read = matches!(op, DiskOp::Read { .. });
            is_read.then_some(DiskErrorKind::Os(errno))
        });
        assert_eq!(times_told(&mut world, 1, old), told, "{errno} for a shard");
    }
    let mut world = World::new(&setup);
    world.nodes[0].disk.range_fails = Box::new(|_, _| true);
    world.nodes[0].disk.range_failure = Disconnect::FileTooShort;
    assert_eq!(
        times_told(&mut world, 0, old),
        4,
        "a file that is too short"
    );
}

#[test]
fn a_batch_that_claims_a_later_record_than_it_has_is_where_a_search_by_time_ends() {
    let lying = |bytes| {
        let mut batch = batch_of(Codec::Zstd, START_MS, &vec![0; bytes], (-1, -1, -1));
        claim_time(&mut batch, START_MS + 10);
        batch
    };
    let honest = || batch_of(Codec::None, START_MS, &[0; 100], (-1, -1, -1));
    // One that can be inflated and one that cannot, in a file and in memory.
    for bytes in [3 << 20, 5 << 20] {
        let setup = Setup::new(1).topic("old", 1).open();
        let old = setup.on_shard("old", 0);
        let setup = setup.segment(old, &[honest(), lying(bytes), honest()]);
        let mut world = World::new(&setup);
        let peer = world.connect(0);
        let at = |world: &mut World, timestamp_ms| {
            let asked = world.list_offsets(peer, old, timestamp_ms);
            let answer = world.answer(peer, asked);
            let answer = answer.table::<wire::ListOffsetsResponse<'_>>();
            (answer.offset(), answer.timestamp_ms())
        };
        assert_eq!(at(&mut world, START_MS + 5), (1, START_MS + 10));
        let mut late = lying(bytes);
        claim_time(&mut late, START_MS + 30);
        let asked = world.publish(peer, DURABLE, &[(old, late), (old, honest())]);
        assert_eq!(world.answer(peer, asked).results()[0].1, 0);
        assert_eq!(at(&mut world, START_MS + 20), (3, START_MS + 30));
    }
}

/// Says in a batch's header that its last record is from another time.
fn claim_time(bytes: &mut [u8], max_timestamp_ms: i64) {
    bytes[35..43].copy_from_slice(&max_timestamp_ms.to_be_bytes());
    let crc = crc32c::crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
}

#[test]
fn who_comes_back_for_what_could_not_be_sent_is_told_and_can_read_around_it() {
    const BATCHES: u64 = 8;
    // Larger than an index interval, so that each can be read by itself.
    let value = [7; 40_000];
    let setup = Setup::new(1).topic("old", 1);
    let old = setup.on_shard("old", 0);
    let batches: Vec<_> = (0..BATCHES).map(|_| batch(&value)).collect();
    let batch_bytes = batches[0].len() as u64;
    let setup = setup.segment(old, &batches);
    let mut world = World::new(&setup);
    let damaged = 4;
    let byte = damaged * batch_bytes + 100;
    world.nodes[0].disk.range_fails = Box::new(move |_, range| range.contains(&byte));

    // Reads on behind what it was given, and behind what it was told cannot be read.
    let read_all = |world: &mut World| {
        let (mut read, mut refused, mut connections, mut offset) = (vec![], vec![], 0, 0);
        while offset < BATCHES {
            connections += 1;
            assert!(connections < 10, "disconnected without end");
            let peer = world.connect(0);
            while offset < BATCHES && world.socket(peer).ended.is_none() {
                let fetch = world.fetch(peer, old, offset, 1000);
                world.run();
                if world.socket(peer).ended.is_some() {
                    // What it had received of the answer is of no use.
                    break;
                }
                let heard = world.hear(peer);
                let answer = heard.iter().find(|f| f.correlation == fetch);
                let answer = answer.expect("an answer");
                if let Some(error) = answer.error() {
                    refused.push((offset, error));
                    offset += 1;
                    continue;
                }
                for batch in Batches::new(&answer.payload) {
                    let (header, _) = batch.expect("whole batches");
                    if header.base_offset == offset {
                        read.push(offset);
                        offset = header.next_offset();
                    }
                }
            }
        }
        (read, refused, connections)
    };
    let others: Vec<u64> = (0..BATCHES).filter(|&offset| offset != damaged).collect();
    let (read, refused, connections) = read_all(&mut world);
    assert_eq!(read, others);
    assert_eq!(refused, [(damaged, ErrorCode::DataUnreadable)]);
    // By all of it, and by the batch itself.
    assert_eq!(connections, 3);
    let (read, _, connections) = read_all(&mut world);
    assert_eq!((read, connections), (others, 1), "the next reader");

    world.nodes[0].disk.range_fails = Box::new(|_, _| false);
    world.pass(32 * SECOND);
    let (read, refused, _) = read_all(&mut world);
    assert_eq!(read.len() as u64, BATCHES, "what passes is forgotten");
    assert_eq!(refused, []);
}
