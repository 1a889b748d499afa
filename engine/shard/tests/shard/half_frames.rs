//! Frames that have begun to arrive and are not whole.

use ringtide_schema::frame::Op;
use ringtide_schema::wire;

use crate::peer::request;
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
