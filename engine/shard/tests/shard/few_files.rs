//! As many files are open as may be.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;

use ringtide_io::{DiskErrorKind, DiskOp};
use ringtide_schema::error_code::ErrorCode;
use ringtide_schema::frame::Op;
use ringtide_schema::ids::PartitionId;
use ringtide_schema::wire;

use crate::files::{segment, two_segments};
use crate::peer::{DURABLE, Heard, batch};
use crate::world::{MS, SECOND, START_MS, Setup, World};

/// No file can be opened for one kind of operation, on paths that `is_meant` names.
fn lack_files(world: &mut World, is_meant: impl Fn(&Path, &DiskOp) -> bool + 'static) {
    world.nodes[0].disk.fails =
        Box::new(move |path, op| is_meant(path, op).then_some(DiskErrorKind::TooManyFiles));
}

#[test]
fn slots_of_the_log_for_which_no_file_could_be_opened_are_opened_when_there_are_some() {
    let setup = Setup::new(1).topic("t", 1);
    let partition = setup.on_shard("t", 0);
    let mut world = World::before_the_start(&setup);
    lack_files(&mut world, |path, op| {
        path.starts_with("data/wal") && matches!(op, DiskOp::Open { .. })
    });
    world.pass(3 * SECOND);
    let peer = world.connect(0);
    let asked = world.publish(peer, DURABLE, &[(partition, batch(b"there is no log"))]);
    let refused = world.answer(peer, asked).results()[0].1;
    assert_eq!(refused, ErrorCode::DiskFull as u16);

    world.nodes[0].disk.fails = Box::new(|_, _| None);
    world.pass(3 * SECOND);
    let peer = world.connect(0);
    let asked = world.publish(peer, DURABLE, &[(partition, batch(b"there is"))]);
    assert_eq!(world.answer(peer, asked).results()[0].1, 0);
}

#[test]
fn slots_of_the_log_that_could_not_be_made_for_want_of_a_file_are_made_when_there_are_some() {
    let setup = Setup::new(1).topic("t", 1).without_slots();
    let partition = setup.on_shard("t", 0);
    let mut world = World::before_the_start(&setup);
    lack_files(&mut world, |_, op| matches!(op, DiskOp::CreateSlot { .. }));
    world.pass(SECOND);
    let peer = world.connect(0);
    let asked = world.publish(peer, DURABLE, &[(partition, batch(b"there is no log"))]);
    let answer = world.answer(peer, asked);
    assert_eq!(answer.results()[0].1, ErrorCode::DiskFull as u16);
    let table = answer.table::<wire::PublishResponse<'_>>();
    let message = table.message().unwrap_or_default();
    assert!(message.contains("when files were closed"), "{message}");

    world.nodes[0].disk.fails = Box::new(|_, _| None);
    world.pass(SECOND);
    let asked = world.publish(peer, DURABLE, &[(partition, batch(b"there is"))]);
    assert_eq!(world.answer(peer, asked).results()[0].1, 0);
}

#[test]
fn who_reads_waits_while_other_shards_may_close_a_file() {
    let (setup, old) = two_segments();
    let mut world = World::new(&setup);
    let slots = world.nodes[0].disk.open_files();
    world.nodes[0].disk.most_open = slots;
    let peer = world.connect(0);
    let fetch = world.fetch(peer, old, 0, 1000);
    world.pass(800 * MS);
    assert!(world.hear(peer).is_empty());
    world.nodes[0].disk.most_open = slots + 1;
    world.pass(100 * MS);
    let answer = world.answer(peer, fetch);
    assert_eq!(answer.error(), None);
    assert!(!answer.payload.is_empty());
}

#[test]
fn who_waits_for_an_index_holds_no_file() {
    let (setup, old) = two_segments();
    let mut world = World::new(&setup);
    let open = world.nodes[0].disk.open_files();
    lack_files(&mut world, |_, op| matches!(op, DiskOp::LoadIndex { .. }));
    let peer = world.connect(0);
    let fetch = world.fetch(peer, old, 0, 1000);
    world.pass(500 * MS);
    assert_eq!(world.nodes[0].disk.open_files(), open);
    world.nodes[0].disk.fails = Box::new(|_, _| None);
    world.pass(500 * MS);
    assert_eq!(world.answer(peer, fetch).error(), None);
    assert_eq!(world.nodes[0].disk.open_files(), open + 1);
}

#[test]
fn who_waits_for_the_index_of_a_writer_is_told_to_try_again() {
    let setup = Setup::new(1).topic("old", 1).open();
    let old = setup.on_shard("old", 0);
    let setup = setup.segment(old, &[batch(&[1; 10_000]), batch(&[2; 10_000])]);
    let mut world = World::new(&setup);
    lack_files(&mut world, |_, op| matches!(op, DiskOp::LoadIndex { .. }));
    let peer = world.connect(0);
    world.publish(peer, DURABLE, &[(old, batch(&[3; 300_000]))]);
    let tail = world.subscribe(peer, old, 0, 4096);
    let search = world.list_offsets(peer, old, START_MS);
    world.pass(1500 * MS);
    let heard = world.hear(peer);
    for asked in [tail, search] {
        let refused = heard
            .iter()
            .find(|f| f.correlation == asked && f.error().is_some());
        let error = refused.and_then(Heard::error);
        assert_eq!(error, Some(ErrorCode::Overloaded));
    }
}

#[test]
fn an_index_whose_file_could_not_be_opened_is_given_up() {
    let (setup, old) = two_segments();
    let mut world = World::new(&setup);
    let loads = Rc::new(Cell::new(0));
    let count = loads.clone();
    lack_files(&mut world, move |_, op| {
        count.set(count.get() + u32::from(matches!(op, DiskOp::LoadIndex { .. })));
        matches!(op, DiskOp::Open { .. })
    });
    // Behind the first look for what is unused.
    world.pass(2 * SECOND);
    let mut loads_of_a_read = || {
        let before = loads.get();
        let peer = world.connect(0);
        world.fetch(peer, old, 0, 1000);
        world.pass(2 * SECOND);
        let of_this = loads.get() - before;
        world.pass(61 * SECOND);
        of_this
    };
    assert_eq!([(); 2].map(|()| loads_of_a_read()), [1, 1]);
}

#[test]
fn who_reads_is_told_to_try_again_when_no_file_is_closed_for_a_while() {
    let (setup, old) = two_segments();
    let mut world = World::new(&setup);
    let slots = world.nodes[0].disk.open_files();
    world.nodes[0].disk.most_open = slots;
    let peer = world.connect(0);
    // The second after a time in which nobody asked.
    for _ in 0..2 {
        let tail = world.subscribe(peer, old, 0, 4096);
        world.pass(800 * MS);
        assert!(world.hear(peer).iter().all(|f| f.error().is_none()));
        world.pass(400 * MS);
        let heard = world.hear(peer);
        let refused = heard.iter().find(|f| f.correlation == tail);
        let error = refused.expect("an end").error();
        assert_eq!(error, Some(ErrorCode::Overloaded));
        world.pass(5 * SECOND);
    }
}

/// Twice as many partitions as segments may be open; half of them were written to, and have a record since that waits.
fn with_few_files() -> (World, Vec<PartitionId>) {
    const FILES: u32 = 4;
    let setup = Setup::new(1).topic("t", 2 * FILES);
    let topic = setup.on_shard("t", 0).topic;
    let id = |partition| PartitionId { topic, partition };
    let mut world = World::new(&setup);
    let slots = world.nodes[0].disk.open_files();
    world.nodes[0].disk.most_open = slots + FILES as usize;
    let peer = world.connect(0);
    for bytes in [300_000, 10] {
        for partition in 0..FILES {
            let asked = world.publish(peer, DURABLE, &[(id(partition), batch(&vec![1; bytes]))]);
            assert_eq!(world.answer(peer, asked).results()[0].1, 0);
        }
        world.pass(SECOND);
    }
    assert_eq!(world.nodes[0].disk.open_files(), slots + FILES as usize);
    (world, (FILES..2 * FILES).map(id).collect())
}

#[test]
fn files_of_partitions_in_which_little_waits_are_closed_for_others() {
    let (mut world, others) = with_few_files();
    let peer = world.connect(0);
    for &id in &others {
        let asked = world.publish(peer, DURABLE, &[(id, batch(&[2; 300_000]))]);
        assert_eq!(world.answer(peer, asked).results()[0].1, 0);
        world.pass(SECOND);
        assert!(world.nodes[0].disk.bytes(&segment(id, 0)) > 290_000);
    }
}

#[test]
fn a_peer_reads_more_partitions_at_once_than_files_may_be_open() {
    const PARTITIONS: u32 = 8;
    let mut setup = Setup::new(1).topic("old", PARTITIONS);
    let topic = setup.on_shard("old", 0).topic;
    let id = |partition| PartitionId { topic, partition };
    for partition in 0..PARTITIONS {
        setup = setup.segment(id(partition), &[batch(b"first"), batch(b"second")]);
    }
    let mut world = World::new(&setup);
    world.nodes[0].disk.most_open = world.nodes[0].disk.open_files() + 2;
    let peer = world.connect(0);
    let mut numbers: Vec<u64> = (0..PARTITIONS)
        .map(|partition| world.subscribe(peer, id(partition), 0, 1 << 20))
        .collect();
    world.pass(SECOND);
    for frame in world.hear(peer) {
        assert_eq!(frame.error(), None);
        numbers.retain(|&number| frame.op != Op::Push || frame.correlation != number);
    }
    assert!(numbers.is_empty(), "nothing was given to {numbers:?}");
}

#[test]
fn many_segments_of_many_partitions_are_read_with_few_files() {
    const PARTITIONS: u32 = 12;
    const SEGMENTS: usize = 20;
    let mut setup = Setup::new(1).topic("old", PARTITIONS);
    let topic = setup.on_shard("old", 0).topic;
    let id = |partition| PartitionId { topic, partition };
    for partition in 0..PARTITIONS {
        for _ in 0..SEGMENTS {
            setup = setup.segment(id(partition), &[batch(b"first"), batch(b"second")]);
        }
    }
    let mut world = World::new(&setup);
    world.nodes[0].disk.most_open = world.nodes[0].disk.open_files() + 15;
    for _ in 0..3 {
        let peer = world.connect(0);
        for partition in 0..PARTITIONS {
            world.subscribe(peer, id(partition), 0, 1 << 20);
        }
        world.pass(5 * SECOND);
        let heard = world.hear(peer);
        assert!(heard.iter().all(|frame| frame.error().is_none()));
        let bytes: usize = heard.iter().map(|frame| frame.payload.len()).sum();
        let all = PARTITIONS as usize * SEGMENTS * (batch(b"first").len() + batch(b"second").len());
        assert_eq!(bytes, all);
        world.hang_up(peer);
    }
}

#[test]
fn a_shard_without_files_has_another_close_its_own() {
    let setup = Setup::new(2).topic("t", 8);
    let (first, second) = (setup.on_shard("t", 0), setup.on_shard("t", 1));
    let mut world = World::new(&setup);
    let slots = world.nodes[1].disk.open_files();
    world.nodes[1].disk.most_open = slots;
    let peer = world.connect(0);
    world.publish(peer, DURABLE, &[(first, batch(&[1; 300_000]))]);
    world.pass(SECOND);
    assert_eq!(world.nodes[0].disk.open_files(), slots + 1);
    let peer = world.connect(1);
    world.publish(peer, DURABLE, &[(second, batch(&[1; 300_000]))]);
    world.pass(100 * MS);
    assert_eq!(world.nodes[0].disk.open_files(), slots);
}

#[test]
fn what_waited_for_files_is_written_as_soon_as_there_are_some() {
    const PARTITIONS: u32 = 12;
    let setup = Setup::new(1).topic("t", PARTITIONS);
    let topic = setup.on_shard("t", 0).topic;
    let id = |partition| PartitionId { topic, partition };
    let mut world = World::new(&setup);
    let slots = world.nodes[0].disk.open_files();
    world.nodes[0].disk.most_open = slots;
    let peer = world.connect(0);
    let parts: Vec<_> = (0..PARTITIONS)
        .map(|partition| (id(partition), batch(&[1; 300_000])))
        .collect();
    world.publish(peer, DURABLE, &parts);
    world.run();
    let results: Vec<_> = world.hear(peer).iter().flat_map(Heard::results).collect();
    assert!(results.len() == parts.len() && results.iter().all(|result| result.1 == 0));
    world.pass(SECOND);
    let asked = world.publish(peer, DURABLE, &[(id(0), batch(b"refused"))]);
    let refused = world.answer(peer, asked).results()[0].1;
    assert_eq!(refused, ErrorCode::DiskFull as u16);

    world.nodes[0].disk.most_open = slots + 2;
    world.pass(500 * MS);
    let asked = world.publish(peer, DURABLE, &[(id(0), batch(b"taken"))]);
    assert_eq!(world.answer(peer, asked).results()[0].1, 0);
    let written = |p: &u32| world.nodes[0].disk.bytes(&segment(id(*p), 0)) > 290_000;
    assert_eq!((0..PARTITIONS).filter(written).count(), 12);
}

#[test]
fn files_that_nobody_uses_are_closed_in_time() {
    let (mut world, _) = with_few_files();
    let open = world.nodes[0].disk.open_files();
    world.pass(121 * SECOND);
    assert_eq!(world.nodes[0].disk.open_files(), open - 4);
}

#[test]
fn a_writer_goes_on_in_its_segment_when_a_file_for_its_index_can_be_opened_again() {
    let setup = Setup::new(1).topic("old", 1).open();
    let old = setup.on_shard("old", 0);
    let setup = setup.segment(old, &[batch(&[1; 10_000]), batch(&[2; 10_000])]);
    let mut world = World::new(&setup);
    lack_files(&mut world, |_, op| matches!(op, DiskOp::LoadIndex { .. }));
    let peer = world.connect(0);
    let asked = world.publish(peer, DURABLE, &[(old, batch(&[3; 300_000]))]);
    assert_eq!(world.answer(peer, asked).results()[0].1, 0);
    world.pass(SECOND);
    let asked = world.publish(peer, DURABLE, &[(old, batch(b"refused"))]);
    let refused = world.answer(peer, asked).results()[0].1;
    assert_eq!(refused, ErrorCode::DiskFull as u16);

    world.nodes[0].disk.fails = Box::new(|_, _| None);
    world.pass(2 * SECOND);
    let asked = world.publish(peer, DURABLE, &[(old, batch(&[4; 300_000]))]);
    assert_eq!(world.answer(peer, asked).results()[0].1, 0);
    world.pass(2 * SECOND);
    assert!(world.nodes[0].disk.bytes(&segment(old, 0)) > 600_000);
    assert!(!world.nodes[0].disk.has(&segment(old, 2)));
}
