//! Requests for partitions of another shard.

use ringtide_io::DiskOp;
use ringtide_schema::error_code::ErrorCode;
use ringtide_schema::frame::Op;
use ringtide_schema::ids::PartitionId;
use ringtide_schema::wire;
use ringtide_shard::Mail;

use crate::peer::{ACCEPTED, DURABLE, Heard, NONE, batch};
use crate::world::{Peer, Setup, World};

/// A topic with one partition on each of two shards: here is shard 0, away is shard 1.
fn two_shards() -> (Setup, PartitionId, PartitionId) {
    let setup = Setup::new(2).topic("ticks", 2);
    let (here, away) = (setup.on_shard("ticks", 0), setup.on_shard("ticks", 1));
    (setup, here, away)
}

/// The offsets that were given to part 0 of requests, in the order in which they were heard.
fn offsets_of_first_parts(heard: &[Heard]) -> Vec<u64> {
    let answers = heard.iter().filter(|f| f.op == Op::Publish);
    let results = answers.flat_map(Heard::results);
    let first = results.filter(|&(part, ..)| part == 0);
    first.map(|(_, _, offset)| offset).collect()
}

fn credit(world: &mut World, peer: Peer, subscription: u64, bytes: u32) {
    let credit = wire::CreditT {
        subscription,
        bytes,
    };
    world.say(peer, Op::Credit, |b| credit.pack(b));
}

#[test]
fn however_much_is_forwarded_and_finds_no_room_all_of_it_is_answered() {
    // Together more than a shard holds of what its own connections sent and it cannot handle yet.
    const PEERS: usize = 150;
    let (setup, _, away) = two_shards();
    let mut world = World::new(&setup);
    world.hold_log(1, true);
    let peers: Vec<Peer> = (0..PEERS).map(|_| world.connect(0)).collect();
    let publish = batch(&[7; 1_000_000]);
    let publish =
        |world: &mut World, peer| world.publish(peer, DURABLE, &[(away, publish.clone())]);
    let asked: Vec<u64> = peers.iter().map(|&p| publish(&mut world, p)).collect();
    world.run();
    world.hold_log(1, false);
    world.run();
    for (peer, asked) in peers.into_iter().zip(asked) {
        assert_eq!(world.answer(peer, asked).results()[0].1, 0);
    }
}

#[test]
fn fetches_that_wait_leave_room_for_publishes_to_the_same_shard() {
    let (setup, _, away) = two_shards();
    let mut world = World::new(&setup);
    for _ in 0..10 {
        let reader = world.connect(0);
        for _ in 0..32 {
            world.fetch(reader, away, 0, 60_000);
        }
    }
    world.run();
    let peer = world.connect(0);
    let publish = world.publish(peer, DURABLE, &[(away, batch(b"one"))]);
    assert_eq!(world.answer(peer, publish).results(), [(0, 0, 0)]);
}

#[test]
fn peers_that_do_not_read_leave_room_for_publishes_to_the_same_shard() {
    let (setup, _, away) = two_shards();
    let mut world = World::new(&setup);
    for _ in 0..10 {
        let slow = world.connect(0);
        world.socket(slow).reads = false;
        world.subscribe(slow, away, -1, 1 << 20);
        world.run();
        for _ in 0..32 {
            world.publish(slow, DURABLE, &[(away, batch(b"x"))]);
        }
        world.run();
    }
    let peer = world.connect(0);
    let publish = world.publish(peer, DURABLE, &[(away, batch(b"one"))]);
    assert_eq!(world.answer(peer, publish).results(), [(0, 0, 320)]);
}

#[test]
fn no_push_follows_the_end_of_its_subscription_though_it_was_being_read() {
    let setup = Setup::new(2).topic("old", 2);
    let away = setup.on_shard("old", 1);
    let setup = setup.segment(away, &[batch(b"stored")]);
    let mut world = World::new(&setup);
    let peer = world.connect(0);
    world.nodes[1].disk.holds = Box::new(|_, op| matches!(op, DiskOp::Read { .. }));
    let subscription = world.subscribe(peer, away, 0, 4096);
    world.run();
    let unsubscribe = wire::UnsubscribeRequestT { subscription };
    let ended = world.say(peer, Op::Unsubscribe, |b| unsubscribe.pack(b));
    world.run();
    world.nodes[1].disk.holds = Box::new(|_, _| false);
    world.run();
    let heard = world.hear(peer);
    assert_eq!(heard.last().map(|f| f.correlation), Some(ended));
}

#[test]
fn a_part_does_not_overtake_a_publish_that_waits_for_room() {
    let (setup, here, away) = two_shards();
    let mut world = World::new(&setup);
    let peer = world.connect(1);
    world.hold_log(0, true);
    // The second change of topics waits for the first, and what is behind it waits too.
    world.create_topic(peer, "a");
    world.create_topic(peer, "b");
    let single = world.publish(peer, DURABLE, &[(here, batch(b"1"))]);
    let parts = [(here, batch(b"2")), (away, batch(b"2"))];
    world.publish(peer, DURABLE, &parts);
    world.run();
    world.hold_log(0, false);
    world.run();
    let heard = world.hear(peer);
    let first = heard.iter().find(|f| f.correlation == single);
    assert_eq!(first.expect("an answer").results(), [(0, 0, 0)]);
    assert_eq!(offsets_of_first_parts(&heard), [0, 1]);
}

#[test]
fn a_part_is_answered_after_a_publish_before_it_that_a_slow_peer_was_not_sent() {
    let (setup, here, away) = two_shards();
    let mut world = World::new(&setup);
    let peer = world.connect(1);
    world.socket(peer).reads = false;
    world.list_offsets(peer, here, -1);
    world.run();
    world.publish(peer, DURABLE, &[(here, batch(b"0"))]);
    let parts = [(here, batch(b"1")), (away, batch(b"1"))];
    world.publish(peer, DURABLE, &parts);
    world.run();
    world.socket(peer).reads = true;
    world.run();
    let heard = world.hear(peer);
    assert_eq!(offsets_of_first_parts(&heard), [0, 1]);
}

#[test]
fn a_publish_is_answered_after_a_part_before_it() {
    let (setup, here, away) = two_shards();
    let mut world = World::new(&setup);
    let peer = world.connect(1);
    let parts = [(here, batch(b"0")), (away, batch(b"0"))];
    world.publish(peer, DURABLE, &parts);
    world.publish(peer, DURABLE, &[(here, batch(b"1"))]);
    world.publish(peer, DURABLE, &parts);
    world.run();
    let heard = world.hear(peer);
    assert_eq!(offsets_of_first_parts(&heard), [0, 1, 2]);
}

#[test]
fn the_number_of_a_subscription_that_another_shard_ended_is_free() {
    let setup = Setup::new(2).topic("ticks", 2).topic("short", 2);
    let here = setup.on_shard("ticks", 0);
    let away = setup.on_shard("short", 1);
    let mut world = World::new(&setup);
    let peer = world.connect(0);
    let (refused, ended) = (5, 6);
    world.subscribe_as(peer, refused, away, 999, 4096);
    world.subscribe_as(peer, ended, away, -1, 4096);
    world.run();
    let deleted = world.delete_topic(peer, "short");
    world.run();
    let heard = world.hear(peer);
    let errors = heard.iter().filter(|f| f.error().is_some());
    let errors: Vec<_> = errors.map(|f| f.correlation).collect();
    assert_eq!(errors, [refused, ended]);
    assert!(heard.iter().any(|f| f.correlation == deleted));

    for number in [refused, ended] {
        world.subscribe_as(peer, number, here, -1, 0);
        world.run();
        credit(&mut world, peer, number, 4096);
        world.publish(peer, DURABLE, &[(here, batch(b"new"))]);
        world.run();
        let heard = world.hear(peer);
        let is_push = |f: &Heard| f.op == Op::Push && f.correlation == number;
        assert!(heard.iter().any(is_push), "credit went astray");
    }
}

#[test]
fn a_subscription_with_the_number_of_one_on_another_shard_is_refused() {
    let (setup, here, away) = two_shards();
    let mut world = World::new(&setup);
    let peer = world.connect(0);
    for (first, second) in [(away, here), (here, away), (away, away)] {
        let number = world.subscribe(peer, first, -1, 4096);
        assert_eq!(world.answer(peer, number).error(), None);
        world.subscribe_as(peer, number, second, -1, 4096);
        let answer = world.answer(peer, number);
        assert_eq!(answer.error(), Some(ErrorCode::InvalidRequest));
        world.publish(peer, DURABLE, &[(first, batch(b"new"))]);
        world.run();
        let heard = world.hear(peer);
        let is_push = |f: &Heard| f.op == Op::Push && f.correlation == number;
        assert!(heard.iter().any(is_push), "the first goes on");
    }
}

#[test]
fn an_answer_is_sent_before_the_end_although_another_shard_gives_it() {
    let (setup, _, away) = two_shards();
    let mut world = World::new(&setup);
    let peer = world.connect(0);
    world.hold_log(1, true);
    let publish = world.publish(peer, DURABLE, &[(away, batch(b"last"))]);
    world.run();
    world.stop();
    world.run();
    world.hold_log(1, false);
    assert_eq!(world.answer(peer, publish).results(), [(0, 0, 0)]);
    assert!(world.socket(peer).ended.is_some());
    assert!(world.is_stopped());
}

#[test]
fn a_shard_that_ends_hands_nothing_to_others() {
    let (setup, here, away) = two_shards();
    let mut world = World::new(&setup);
    let peer = world.connect(0);
    world.hold_log(0, true);
    world.publish(peer, DURABLE, &[(here, batch(b"first"))]);
    world.run();
    world.nodes[1].holds_mail = true;
    world.stop();
    let refused = ErrorCode::ShuttingDown;
    let single = world.publish(peer, DURABLE, &[(away, batch(b"late"))]);
    assert_eq!(world.answer(peer, single).error(), Some(refused));
    let parts = [(away, batch(b"late")), (away, batch(b"late"))];
    let several = world.publish(peer, DURABLE, &parts);
    let refused = refused as u16;
    let results = world.answer(peer, several).results();
    assert_eq!(results, [(0, refused, 0), (1, refused, 0)]);
}

#[test]
fn a_fetch_that_waits_on_another_shard_does_not_delay_the_end() {
    let (setup, _, away) = two_shards();
    let mut world = World::new(&setup);
    let peer = world.connect(0);
    world.fetch(peer, away, 0, 60_000);
    world.run();
    world.stop();
    world.run();
    assert!(world.is_stopped());
}

#[test]
fn the_end_of_a_connection_that_sent_only_parts_is_told_to_their_shard() {
    let (setup, here, away) = two_shards();
    let mut world = World::new(&setup);
    let peer = world.connect(0);
    let parts = [(here, batch(b"0")), (away, batch(b"0"))];
    world.publish(peer, NONE, &parts);
    world.run();
    world.nodes[1].holds_mail = true;
    world.hang_up(peer);
    world.run();
    let is_gone =
        |(_, mail): &(u16, Mail)| matches!(mail, Mail::Gone { conn } if *conn == peer.conn);
    assert!(world.nodes[1].mail.iter().any(is_gone));
}

#[test]
fn what_waits_for_room_elsewhere_ends_with_its_connection() {
    let (setup, here, away) = two_shards();
    let mut world = World::new(&setup);
    let (peer, other) = (world.connect(1), world.connect(0));
    world.hold_log(0, true);
    world.create_topic(peer, "a");
    world.create_topic(peer, "b");
    let parts = [(here, batch(b"0")), (away, batch(b"0"))];
    world.publish(peer, ACCEPTED, &parts);
    world.run();
    world.hang_up(peer);
    world.hold_log(0, false);
    world.run();
    let publish = world.publish(other, DURABLE, &[(here, batch(b"first"))]);
    assert_eq!(world.answer(other, publish).results(), [(0, 0, 0)]);
}

#[test]
fn what_waits_for_room_holds_up_no_other_connection() {
    let (setup, here, away) = two_shards();
    let mut world = World::new(&setup);
    let (waiting, other) = (world.connect(1), world.connect(1));
    world.hold_log(0, true);
    world.create_topic(waiting, "a");
    world.create_topic(waiting, "b");
    let parts = [(here, batch(b"0")), (away, batch(b"0"))];
    world.publish(waiting, ACCEPTED, &parts);
    world.run();
    world.publish(other, ACCEPTED, &parts);
    world.run();
    let heard = world.hear(other);
    assert_eq!(offsets_of_first_parts(&heard), [0]);
}

#[test]
fn ranges_of_files_for_another_shard_wait_for_memory() {
    const READERS: usize = 40;
    let setup = Setup::new(2).topic("old", 2);
    let away = setup.on_shard("old", 1);
    let setup = setup.segment(away, &[batch(b"stored")]);
    let mut world = World::new(&setup);
    world.nodes[1].disk.holds = Box::new(|_, op| matches!(op, DiskOp::Read { .. }));
    let readers: Vec<Peer> = (0..READERS).map(|_| world.connect(0)).collect();
    for &reader in &readers {
        world.subscribe(reader, away, 0, 4096);
    }
    world.run();
    let held = world.nodes[1].disk.held();
    assert!((1..READERS).contains(&held), "memory for {held} reads");
    world.nodes[1].disk.holds = Box::new(|_, _| false);
    world.run();
    for &reader in &readers {
        assert_eq!(world.socket(reader).ended, None);
        let heard = world.hear(reader);
        assert!(
            heard
                .iter()
                .any(|f| f.op == Op::Push && !f.payload.is_empty())
        );
    }
}
