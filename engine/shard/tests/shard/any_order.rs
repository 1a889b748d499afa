//! Whatever happens late: logs, mail, peers that do not read. The same seed gives the same run.

use std::collections::BTreeMap;

use ringtide_schema::frame::{FLAG_MORE, Op};
use ringtide_schema::ids::PartitionId;

use crate::peer::{ACCEPTED, DURABLE, batch};
use crate::world::{Peer, Setup, World};

/// Numbers that are mixed well enough (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// A peer and the partitions of each of its publishes, by part.
struct Publisher {
    peer: Peer,
    sent: BTreeMap<u64, Vec<PartitionId>>,
}

impl Publisher {
    fn publish(&mut self, world: &mut World, partitions: &[PartitionId], random: &mut Random) {
        let any = |random: &mut Random| {
            let i = random.below(partitions.len() as u64);
            partitions[i as usize]
        };
        let parts: Vec<_> = (0..1 + random.below(3)).map(|_| any(random)).collect();
        let acks = [ACCEPTED, DURABLE][random.below(2) as usize];
        let batches: Vec<_> = parts.iter().map(|&id| (id, batch(b"x"))).collect();
        let correlation = world.publish(self.peer, acks, &batches);
        self.sent.insert(correlation, parts);
    }

    /// Every publish was answered whole. Each partition has them in the order of the requests, and
    /// answers in the order of its offsets.
    fn check(&self, world: &mut World, seed: u64) {
        let mut whole = 0;
        let mut answers = Vec::new();
        for frame in world.hear(self.peer) {
            if frame.op != Op::Publish {
                continue;
            }
            whole += usize::from(frame.flags & FLAG_MORE == 0);
            for (part, error, offset) in frame.results() {
                assert_eq!(error, 0);
                answers.push((frame.correlation, part, offset));
            }
        }
        let parts: usize = self.sent.values().map(Vec::len).sum();
        assert_eq!(
            (whole, answers.len()),
            (self.sent.len(), parts),
            "seed {seed}"
        );
        let mut requests = answers.clone();
        requests.sort_unstable();
        for order in [answers, requests] {
            let mut last = BTreeMap::new();
            for (correlation, part, offset) in order {
                let id = self.sent[&correlation][part as usize];
                let before = last.insert(id, offset);
                assert!(before.is_none_or(|b| b < offset), "seed {seed}: {id}");
            }
        }
    }
}

#[test]
fn requests_offsets_and_answers_have_one_order_whatever_comes_late() {
    let setup = Setup::new(2).topic("ticks", 4);
    let topic = setup.topics[0].id;
    let partitions: Vec<_> = (0..4)
        .map(|partition| PartitionId { topic, partition })
        .collect();
    for seed in 1..=100 {
        let mut random = Random(0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(seed));
        let mut world = World::new(&setup);
        let mut publishers: Vec<Publisher> = (0..4)
            .map(|n| Publisher {
                peer: world.connect(n % 2),
                sent: BTreeMap::new(),
            })
            .collect();
        for n in 0..150 {
            let who = random.below(4) as usize;
            let (peer, shard) = (publishers[who].peer, random.below(2) as usize);
            let is_late = random.below(2) == 0;
            match random.below(12) {
                0 => world.hold_log(shard, is_late),
                1 => world.nodes[shard].disk.release_one(),
                2 => world.nodes[shard].holds_mail = is_late,
                3 => world.socket(peer).reads = !is_late,
                4 if n % 10 == 0 => drop(world.create_topic(peer, &format!("t{n}"))),
                5 => drop(world.list_offsets(peer, partitions[shard], -1)),
                6..9 => drop(world.step()),
                _ => publishers[who].publish(&mut world, &partitions, &mut random),
            }
        }
        for shard in 0..2 {
            world.hold_log(shard, false);
            world.nodes[shard].holds_mail = false;
        }
        for publisher in &publishers {
            world.socket(publisher.peer).reads = true;
        }
        world.run();
        for publisher in &publishers {
            publisher.check(&mut world, seed);
        }
    }
}
