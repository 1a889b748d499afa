//! What a shard says about itself.

use ringtide_io::buffer::{CHUNK_BYTES, MIN_CHUNKS};
use ringtide_schema::frame::Op;
use ringtide_schema::limits::BLOCK_BYTES;
use ringtide_schema::wire;

use crate::peer::{DURABLE, batch};
use crate::world::{Peer, SECOND, Setup, World};

fn describe(world: &mut World, peer: Peer) -> wire::DescribeShardResponseT {
    let describe = wire::DescribeShardRequestT {};
    let asked = world.say(peer, Op::DescribeShard, |b| describe.pack(b));
    let answer = world.answer(peer, asked);
    answer.table::<wire::DescribeShardResponse<'_>>().unpack()
}

/// Writes to the log, their bytes and the entries in them.
fn written(world: &mut World, peer: Peer) -> (u64, u64, u64) {
    let told = describe(world, peer);
    (told.wal_writes, told.wal_bytes, told.wal_records)
}

#[test]
fn the_counters_of_the_log_say_what_was_written() {
    let setup = Setup::new(1).topic("ticks", 1);
    let ticks = setup.on_shard("ticks", 0);
    let mut world = World::new(&setup);
    let peer = world.connect(0);
    assert_eq!(written(&mut world, peer), (0, 0, 0));
    let block = BLOCK_BYTES as u64;
    for n in 1..=3 {
        let publish = world.publish(peer, DURABLE, &[(ticks, batch(b"one"))]);
        world.answer(peer, publish);
        assert_eq!(written(&mut world, peer), (n, n * block, n));
    }
    // What arrives together is one write.
    let together = [1, 2].map(|_| world.publish(peer, DURABLE, &[(ticks, batch(b"two"))]));
    world.answer(peer, together[1]);
    assert_eq!(written(&mut world, peer), (4, 4 * block, 5));
    let publish = world.publish(peer, DURABLE, &[(ticks, batch(&[0; BLOCK_BYTES]))]);
    world.answer(peer, publish);
    assert_eq!(written(&mut world, peer), (5, 6 * block, 6));
}

#[test]
fn the_slots_that_entries_may_still_take_are_counted() {
    let setup = Setup::new(1).topic("ticks", 1);
    let ticks = setup.on_shard("ticks", 0);
    let mut world = World::new(&setup);
    let peer = world.connect(0);
    let slots = |told: wire::DescribeShardResponseT| (told.wal_slots, told.wal_free_slots);
    // One of the four is kept back.
    assert_eq!(slots(describe(&mut world, peer)), (4, 3));
    let publish = world.publish(peer, DURABLE, &[(ticks, batch(b"one"))]);
    world.answer(peer, publish);
    assert_eq!(slots(describe(&mut world, peer)), (4, 2));
}

#[test]
fn memory_that_is_held_is_not_told_as_free() {
    let setup = Setup::new(1).topic("ticks", 1);
    let ticks = setup.on_shard("ticks", 0);
    let mut world = World::new(&setup);
    let peer = world.connect(0);
    let before = describe(&mut world, peer);
    assert_eq!(before.memory_bytes, (MIN_CHUNKS * CHUNK_BYTES) as u64);
    world.hold_log(0, true);
    world.publish(peer, DURABLE, &[(ticks, batch(b"held"))]);
    let now = describe(&mut world, peer);
    assert!(now.memory_free_bytes < before.memory_free_bytes);
    assert_eq!(now.memory_free_bytes % CHUNK_BYTES as u64, 0);
}

#[test]
fn the_connections_of_a_shard_are_those_that_are_open_there() {
    let mut world = World::new(&Setup::new(2));
    let peer = world.connect(0);
    let others = [0, 0, 1].map(|shard| world.open(shard));
    assert_eq!(describe(&mut world, peer).connections, 3);
    world.hang_up(others[0]);
    assert_eq!(describe(&mut world, peer).connections, 2);
}

#[test]
fn a_connection_that_another_shard_forwards_for_is_not_counted() {
    let setup = Setup::new(2).topic("ticks", 2);
    let away = setup.on_shard("ticks", 1);
    let mut world = World::new(&setup);
    let (here, there) = (world.connect(0), world.connect(1));
    let publish = world.publish(here, DURABLE, &[(away, batch(b"one"))]);
    world.answer(here, publish);
    assert_eq!(describe(&mut world, there).connections, 1);
    world.hang_up(here);
    assert_eq!(describe(&mut world, there).connections, 1);
}

#[test]
fn the_shard_of_the_connection_answers_for_itself_alone() {
    let setup = Setup::new(2).topic("ticks", 2);
    let away = setup.on_shard("ticks", 1);
    let mut world = World::new(&setup);
    let peers = [world.connect(0), world.connect(1)];
    let publish = world.publish(peers[1], DURABLE, &[(away, batch(b"one"))]);
    world.answer(peers[1], publish);
    world
        .nodes
        .iter_mut()
        .for_each(|node| node.holds_mail = true);
    let told = peers.map(|peer| describe(&mut world, peer));
    let told = told.map(|t| (t.shard, t.shards, t.wal_records));
    assert_eq!(told, [(0, 2, 0), (1, 2, 1)]);
}

#[test]
fn the_time_since_the_start_is_told_in_milliseconds() {
    let mut world = World::new(&Setup::new(1));
    let peer = world.connect(0);
    assert_eq!(describe(&mut world, peer).uptime_ms, 0);
    world.pass(3 * SECOND);
    assert_eq!(describe(&mut world, peer).uptime_ms, 3000);
}

#[test]
fn what_the_shard_was_told_of_its_host_is_passed_on() {
    let mut world = World::new(&Setup::new(1));
    let peer = world.connect(0);
    let told = describe(&mut world, peer);
    let (durable_write_ns, cpu) = (told.durable_write_ns, told.cpu);
    assert_eq!(
        (durable_write_ns, cpu, told.process_id),
        (Some(20_000), 3, 77)
    );
    let text = [
        (told.broker_version, "test"),
        (told.commit, "0123456789ab"),
        (told.idle, "park"),
        (told.kernel, "6.1.0"),
        (told.file_system, "ext4"),
        (told.device, "vda"),
        (told.write_cache, "none"),
        (told.fua, "yes"),
    ];
    for (told, want) in text {
        assert_eq!(told.as_deref(), Some(want));
    }
    let numbers = (told.incarnation, told.wal_slot_bytes, told.sync_interval_ms);
    assert_eq!(numbers, (1, 4 << 20, 50));
}
