//! Publishes and the order of their answers.

use ringtide_io::DiskOp;
use ringtide_schema::batch::Codec;
use ringtide_schema::frame::Op;

use crate::peer::{ACCEPTED, DURABLE, Heard, batch, batch_of};
use crate::world::{START_MS, Setup, World};

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
