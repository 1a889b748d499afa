//! Publishes and the order of their answers.

use ringtide_io::DiskOp;
use ringtide_log::wal::FLUSH_AFTER_NS;
use ringtide_schema::batch::Codec;
use ringtide_schema::error_code::ErrorCode;
use ringtide_schema::frame::Op;
use ringtide_schema::topic::Visibility;
use ringtide_schema::wire;
use ringtide_shard::settings::READERS_WAIT_NS;

use crate::peer::{ACCEPTED, DURABLE, Heard, NONE, batch, batch_of};
use crate::world::{SECOND, START_MS, Setup, World};

#[test]
fn a_record_that_was_published_is_delivered() {
    let setup = Setup::new(2).topic("ticks", 2);
    let (here, away) = (setup.on_shard("ticks", 0), setup.on_shard("ticks", 1));
    let mut world = World::new(&setup);
    let peer = world.connect(0);
    for partition in [here, away] {
        let subscription = world.subscribe(peer, partition, -2, 4096);
        world.run();
        let publish = world.publish(peer, DURABLE, &[(partition, batch(b"one"))]);
        world.run();
        let heard = world.hear(peer);
        let answer = heard.iter().find(|f| f.correlation == publish);
        assert_eq!(answer.expect("an answer").results(), [(0, 0, 0)]);
        let is_push = |f: &&Heard| f.op == Op::Push && f.correlation == subscription;
        let push = heard.iter().find(is_push).expect("a push");
        assert!(push.payload.windows(3).any(|w| w == b"one"));
    }
}

#[test]
fn accepted_records_go_to_the_log_earlier_where_readers_wait_for_it() {
    for (visible, is_read, due_ns) in [
        (Visibility::Durable, true, READERS_WAIT_NS),
        (Visibility::Durable, false, FLUSH_AFTER_NS),
        (Visibility::Accepted, true, FLUSH_AFTER_NS),
    ] {
        let mut setup = Setup::new(1).topic("ticks", 1);
        setup.topics[0].config.visible = visible;
        let ticks = setup.on_shard("ticks", 0);
        let mut world = World::new(&setup);
        let peer = world.connect(0);
        if is_read {
            world.subscribe(peer, ticks, -2, 4096);
            world.run();
        }
        world.hold_log(0, true);
        world.publish(peer, ACCEPTED, &[(ticks, batch(b"one"))]);
        world.run();
        world.now.mono_ns += due_ns - 1;
        world.run();
        assert_eq!(world.nodes[0].disk.held(), 0, "{visible:?}, {is_read}");
        world.now.mono_ns += 1;
        world.run();
        assert_ne!(world.nodes[0].disk.held(), 0, "{visible:?}, {is_read}");
    }
}

#[test]
fn who_begins_to_read_behind_a_record_waits_for_the_log_no_longer_than_others() {
    let setup = Setup::new(1).topic("ticks", 1);
    let ticks = setup.on_shard("ticks", 0);
    for is_pushed in [true, false] {
        let mut world = World::new(&setup);
        let peer = world.connect(0);
        world.hold_log(0, true);
        world.publish(peer, ACCEPTED, &[(ticks, batch(b"one"))]);
        world.run();
        world.now.mono_ns += (FLUSH_AFTER_NS - READERS_WAIT_NS) / 2;
        match is_pushed {
            true => world.subscribe(peer, ticks, 0, 4096),
            false => world.fetch(peer, ticks, 0, 60_000),
        };
        world.run();
        world.now.mono_ns += READERS_WAIT_NS - 1;
        world.run();
        assert_eq!(world.nodes[0].disk.held(), 0, "{is_pushed}");
        world.now.mono_ns += 1;
        world.run();
        assert_ne!(world.nodes[0].disk.held(), 0, "{is_pushed}");
    }
}

#[test]
fn publishes_that_nobody_answers_are_all_taken_although_their_peer_closes_behind_them() {
    const PUBLISHES: u64 = 500;
    let setup = Setup::new(1).topic("ticks", 1);
    let ticks = setup.on_shard("ticks", 0);
    // Behind them in the same turn, and some turns later.
    for turns in [0, 2] {
        let mut world = World::new(&setup);
        let (peer, other) = (world.connect(0), world.connect(0));
        for _ in 0..PUBLISHES {
            world.publish(peer, NONE, &[(ticks, batch(b"one"))]);
        }
        world.deliver(peer);
        for _ in 0..turns {
            world.step();
        }
        world.hang_up(peer);
        world.pass(SECOND);
        let asked = world.list_offsets(other, ticks, -1);
        let answer = world.answer(other, asked);
        let answer = answer.table::<wire::ListOffsetsResponse<'_>>();
        assert_eq!(answer.offset(), PUBLISHES);
    }
}

#[test]
fn requests_whose_answers_nobody_hears_keep_no_publish_of_a_peer_that_is_gone() {
    let setup = Setup::new(2).topic("ticks", 2);
    let (here, away) = (setup.on_shard("ticks", 0), setup.on_shard("ticks", 1));
    let mut world = World::new(&setup);
    let (peer, other) = (world.connect(0), world.connect(0));
    // More fetches than may be under way on another shard.
    for _ in 0..200 {
        world.fetch(peer, away, 0, 60_000);
    }
    world.publish(peer, NONE, &[(here, batch(b"one"))]);
    world.deliver(peer);
    world.hang_up(peer);
    world.pass(SECOND);
    let asked = world.list_offsets(other, here, -1);
    let answer = world.answer(other, asked);
    let answer = answer.table::<wire::ListOffsetsResponse<'_>>();
    assert_eq!(answer.offset(), 1);
}

#[test]
fn an_accepted_answer_waits_for_a_durable_one_although_an_older_batch_came_again() {
    let setup = Setup::new(1).topic("ticks", 1);
    let ticks = setup.on_shard("ticks", 0);
    let mut world = World::new(&setup);
    let peer = world.connect(0);
    world.nodes[0].disk.holds = Box::new(|path, op| {
        path.starts_with("data/wal")
            && matches!(op, DiskOp::Write { position, .. } if *position > 0)
    });
    let sequence = |n| batch_of(Codec::None, START_MS, b"x", (7, 0, n));
    for n in [0, 1, 0] {
        world.publish(peer, DURABLE, &[(ticks, sequence(n))]);
        world.run();
    }
    world.nodes[0].disk.release_one();
    world.run();
    world.publish(peer, ACCEPTED, &[(ticks, batch(b"y"))]);
    world.run();
    world.nodes[0].disk.holds = Box::new(|_, _| false);
    world.run();
    let heard = world.hear(peer);
    let offsets: Vec<u64> = heard
        .iter()
        .flat_map(|f| f.results())
        .map(|r| r.2)
        .collect();
    assert_eq!(offsets, [0, 0, 1, 2]);
}

#[test]
fn a_batch_sent_again_after_its_place_was_forgotten_is_answered_when_it_is_durable() {
    let setup = Setup::new(1).topic("ticks", 1);
    let ticks = setup.on_shard("ticks", 0);
    let mut world = World::new(&setup);
    let first = world.connect(0);
    world.hold_log(0, true);
    let sequence = |n| batch_of(Codec::None, START_MS, b"x", (7, 0, n));
    // More than a producer's window and what it keeps of what is not synced.
    for n in 0..200 {
        world.publish(first, DURABLE, &[(ticks, sequence(n))]);
        world.run();
    }
    world.hang_up(first);
    let second = world.connect(0);
    let again = world.publish(second, DURABLE, &[(ticks, sequence(0))]);
    world.run();
    assert!(world.hear(second).is_empty(), "nothing of it is durable");
    world.hold_log(0, false);
    let code = ErrorCode::DuplicateSequence as u16;
    assert_eq!(world.answer(second, again).results()[0].1, code);
}

#[test]
fn an_offset_that_a_consumer_reads_back_is_durable() {
    let setup = Setup::new(1).topic("ticks", 1);
    let ticks = setup.on_shard("ticks", 0);
    let mut world = World::new(&setup);
    let peer = world.connect(0);
    let published = world.publish(peer, DURABLE, &[(ticks, batch(b"one"))]);
    assert_eq!(world.answer(peer, published).results(), [(0, 0, 0)]);
    world.hold_log(0, true);
    let commit = wire::CommitOffsetRequestT {
        partition: Some(ticks.into()),
        consumer: Some("reader".into()),
        offset: 1,
        ..wire::CommitOffsetRequestT::default()
    };
    let committed = world.say(peer, Op::CommitOffset, |b| commit.pack(b));
    let read = wire::ReadOffsetRequestT {
        partition: Some(ticks.into()),
        consumer: Some("reader".into()),
    };
    let read_back = |world: &mut World| {
        let asked = world.say(peer, Op::ReadOffset, |b| read.pack(b));
        world.run();
        let heard = world.hear(peer);
        let answer = heard.iter().find(|f| f.correlation == asked);
        let answer = answer.expect("an answer");
        (
            answer.table::<wire::ReadOffsetResponse<'_>>().offset(),
            heard.iter().any(|f| f.correlation == committed),
        )
    };
    assert_eq!(read_back(&mut world), (-1, false), "it is not durable yet");
    world.hold_log(0, false);
    world.run();
    assert_eq!(read_back(&mut world), (1, true));
}
