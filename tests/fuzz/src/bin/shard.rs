//! One or two shards and a connection to one of them, whose bytes come cut anywhere. The high bits of the
//! first byte say how many shards and which.
//!
//! However they are cut, each request is answered as often and with the same errors, whether it was
//! understood or not; and no shard ends.

#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use ringtide_fuzz::{cut, seal, sealed_by};
use ringtide_schema::frame::{FLAG_MORE, Op};

// Disk, sockets and clock in memory: those of the tests of the shard.
#[path = "../../../../engine/shard/tests/shard/disk.rs"]
#[expect(dead_code, reason = "nothing fails or is held back here")]
mod disk;
#[path = "../../../../engine/shard/tests/shard/peer.rs"]
#[expect(dead_code, reason = "the input has the requests")]
mod peer;
#[path = "../../../../engine/shard/tests/shard/world.rs"]
#[expect(dead_code, reason = "a connection is a part of it")]
mod world;

use world::{Setup, World};

sealed_by!(seal::cut_frames);

/// The operations and errors of the answers to each request, or nothing if the connection was closed.
type Answers = Option<BTreeMap<u64, Vec<(u8, Option<u16>)>>>;

fn answers(setup: &Setup, shard: usize, pieces: &[&[u8]]) -> Answers {
    let mut world = World::new(setup);
    let peer = world.open(shard);
    for piece in pieces {
        world.write(peer, piece);
        world.step();
    }
    world.run();
    let mut answers: BTreeMap<u64, Vec<_>> = BTreeMap::new();
    for frame in world.hear(peer) {
        // How many deliveries there are, and parts of an answer, is a matter of time.
        if frame.op == Op::Push || frame.flags & FLAG_MORE != 0 {
            continue;
        }
        let error = frame.refusal().map(|refusal| refusal.code);
        answers
            .entry(frame.correlation)
            .or_default()
            .push((frame.op as u8, error));
    }
    answers
        .values_mut()
        .for_each(|of_one| of_one.sort_unstable());
    world.socket(peer).ended.is_none().then_some(answers)
}

fuzz_target!(|data: &[u8]| {
    let (stream, pieces) = cut(data);
    let first = data.first().map_or(0, |byte| byte >> 4);
    let (shards, shard) = match first & 1 {
        0 => (1, 0),
        _ => (2, usize::from(first >> 1 & 1)),
    };
    let setup = Setup::new(shards).topic("ticks", 2);
    let whole = answers(&setup, shard, &[stream]);
    assert_eq!(answers(&setup, shard, &pieces), whole);
});
