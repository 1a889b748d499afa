//! Publishes and the order of their answers.

use ringtide_io::DiskOp;
use ringtide_schema::batch::Codec;

use crate::peer::{ACCEPTED, DURABLE, batch, batch_of};
use crate::world::{START_MS, Setup, World};

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
