//! Frames that have begun to arrive and are not whole.

use ringtide_schema::frame::Op;
use ringtide_schema::wire;

use crate::peer::{DURABLE, batch, request};
use crate::world::{SECOND, Setup, World};

fn ping(correlation: u64) -> Vec<u8> {
    request(Op::Ping, correlation, &[], |b| {
        wire::PingRequest::create(b, &wire::PingRequestArgs {})
    })
}

#[test]
fn a_frame_that_is_never_finished_ends_its_connection() {
    let mut world = World::new(&Setup::new(1));
    let (greeted, silent) = (world.connect(0), world.open(0));
    let idle = world.connect(0);
    for peer in [greeted, silent] {
        world.write(peer, &ping(7)[..33]);
    }
    world.pass(29 * SECOND);
    assert!(world.socket(greeted).ended.is_none());
    world.pass(2 * SECOND);
    assert!(world.socket(greeted).ended.is_some());
    assert!(world.socket(silent).ended.is_some());
    assert!(world.socket(idle).ended.is_none());
}

#[test]
fn those_that_have_sent_a_part_for_the_longest_make_room_for_others() {
    const PART: usize = 3 << 20;
    let setup = Setup::new(1).topic("t", 1);
    let id = setup.on_shard("t", 0);
    let mut world = World::new(&setup);
    let publish = |bytes| {
        let part = wire::PublishPartT {
            partition: id.into(),
            batch_bytes: 4 << 20,
        };
        let publish = wire::PublishRequestT {
            acks: DURABLE,
            parts: Some(vec![part]),
        };
        let payload = vec![0; 4 << 20];
        request(Op::Publish, 7, &payload, |b| publish.pack(b))[..bytes].to_vec()
    };
    let part = publish(PART);
    let mut halves = Vec::new();
    for _ in 0..60 {
        let peer = world.connect(0);
        world.write(peer, &part);
        world.run();
        halves.push(peer);
        world.pass(10_000_000);
    }
    let left = halves.iter().position(|&p| world.socket(p).ended.is_none());
    let left = left.expect("some hold what they sent");
    assert!(left > 10, "only {left} were closed");
    assert!(
        halves[left..]
            .iter()
            .all(|&p| world.socket(p).ended.is_none())
    );

    let peer = world.connect(0);
    let asked = world.publish(peer, DURABLE, &[(id, batch(&[1; 900_000]))]);
    assert_eq!(world.answer(peer, asked).results()[0].1, 0);
}

#[test]
fn a_frame_that_arrives_slowly_is_answered() {
    let mut world = World::new(&Setup::new(1));
    let peer = world.connect(0);
    let frame = ping(7);
    let (begin, rest) = frame.split_at(frame.len() - 3);
    world.write(peer, begin);
    for byte in rest {
        world.pass(20 * SECOND);
        world.write(peer, &[*byte]);
    }
    assert_eq!(world.answer(peer, 7).error(), None);
    world.pass(60 * SECOND);
    assert!(world.socket(peer).ended.is_none());
}

#[test]
fn a_frame_whose_rest_is_not_received_has_time() {
    let mut world = World::new(&Setup::new(1));
    let peer = world.connect(0);
    world.hold_log(0, true);
    world.create_topic(peer, "a");
    world.create_topic(peer, "b");
    world.write(peer, &ping(7)[..33]);
    world.run();
    assert!(world.socket(peer).is_paused);
    world.pass(60 * SECOND);
    world.hold_log(0, false);
    world.run();
    world.write(peer, &ping(7)[33..]);
    assert_eq!(world.answer(peer, 7).error(), None);
}
