//! Which connections are made, and how their loss is noticed.

use std::time::Duration;

use ringtide_schema::error_code::ErrorCode;
use ringtide_schema::frame::Op;

use crate::core::call::{OffsetAt, Request};
use crate::core::tests::{World, options, producer_options};
use crate::core::{Core, parse_server, server_name};
use crate::error::Error;
use crate::options::{ConsumerOptions, Options, Start};

#[test]
fn the_broker_is_found_by_the_address_of_another_shard_when_the_named_server_is_gone() {
    let mut world = World::new(1, producer_options());
    world.send(0);
    world.heal();
    world.cut(0);
    world.gone.insert(1);
    world.model.shards = vec![("broker".to_owned(), 2)];
    world.send(0);
    world.heal();
    world.check();
    assert_eq!(world.acknowledged(), 2);
}

#[test]
fn a_peer_that_is_gone_without_a_word_is_noticed_by_a_subscription_alone() {
    let mut world = World::new(1, producer_options());
    let topic = world.core.producer(world.producer).topic.clone();
    world.core.remove_producer(world.producer);
    let options = ConsumerOptions::new().start(Start::Earliest);
    world.core.add_consumer(topic, options).expect("a consumer");
    for _ in 0..10 {
        world.round(Duration::from_millis(1));
    }
    assert_eq!(world.core.trouble().map(ToString::to_string), None);
    world.lines.get_mut(&0).expect("a line").dead = true;
    world.gone.insert(1);
    let before = world.now;
    while world.core.trouble().is_none() {
        assert!(world.now - before < Duration::from_secs(60), "unnoticed");
        world.round(Duration::from_millis(10));
    }
    // The silence is noticed after the time of a request, the missing answer after another.
    assert!(world.now - before >= Duration::from_secs(1));
}

#[test]
fn a_silent_connection_that_answers_is_kept() {
    let mut world = World::new(1, producer_options());
    world.send(0);
    world.heal();
    let ready = |world: &World| world.core.is_up(0) && world.core.trouble().is_none();
    for _ in 0..50 {
        world.round(Duration::from_millis(100));
        assert!(ready(&world));
    }
}

#[test]
fn a_connection_that_comes_up_does_not_hide_that_another_is_down() {
    let mut world = World::new(2, producer_options());
    world.gone.insert(2);
    world.send(1);
    let says = |world: &World| world.core.trouble().map(ToString::to_string);
    while says(&world).is_none() {
        world.round(Duration::from_millis(5));
    }
    world.cut(0);
    while !world.core.links[0].is_ready() {
        world.now += Duration::from_millis(5);
        world.tick();
        world.broker_gets(0, 255);
        world.client_gets(0, 255);
    }
    let trouble = says(&world).expect("shard 1 is away");
    assert!(trouble.contains("broker:2"), "{trouble}");
    // Its partition moves to where somebody listens: nobody needs the other any more.
    world.model.shards = vec![("broker".to_owned(), 1); 2];
    world.core.refresh();
    world.heal();
    world.round(Duration::ZERO);
    assert_eq!(says(&world), None);
}

#[test]
fn an_answer_without_a_result_ends_the_connection_and_the_batch_is_sent_again() {
    let mut world = World::new(1, producer_options());
    world.send(0);
    world.heal();
    world.model.omit_results = true;
    let ticket = world.send(0);
    world.tick();
    world.broker_gets(0, 255);
    world.client_gets(0, 255);
    assert!(matches!(world.core.trouble(), Some(Error::Protocol { .. })));
    world.model.omit_results = false;
    world.heal();
    assert!(world.done[&ticket].as_ref().expect("appended").duplicate);
    world.check();
}

#[test]
fn a_call_that_was_refused_to_the_end_fails_with_that_refusal() {
    let mut world = World::new(1, producer_options());
    world.model.refused_op = Some((Op::ListOffsets, ErrorCode::Overloaded));
    let request = Request::ListOffsets {
        topic: "t".into(),
        partition: 0,
        at: OffsetAt::Latest,
    };
    let call = world.core.call(request, world.now);
    let error = loop {
        world.round(Duration::from_millis(50));
        if let Some(answer) = world.core.take_answer(call) {
            break answer.expect_err("refused");
        }
    };
    assert_eq!(error.code(), Some(ErrorCode::Overloaded), "{error}");
}

const YEARS: Duration = Duration::from_secs(50 * 365 * 24 * 3600);

/// Options with every duration as long as it can be.
fn for_ever() -> Options {
    Options::new()
        .connect_timeout(Duration::MAX)
        .request_timeout(Duration::MAX)
        .call_timeout(Duration::MAX)
        .metadata_max_age(Duration::MAX)
        .backoff(Duration::MAX, Duration::MAX)
}

#[test]
fn a_connection_that_may_take_for_ever_is_waited_for() {
    let mut core = Core::new(&["broker:1".to_owned()], for_ever(), 1).expect("a server");
    let mut now = std::time::Instant::now();
    let call = core.call(Request::Ping, now);
    core.tick(now);
    let (link, ..) = core.next_connect(now).expect("a connection is wanted");
    for connected in [false, true] {
        if connected {
            core.connected(link, now);
        }
        now += YEARS;
        core.tick(now);
        assert!(core.take_answer(call).is_none(), "given up too soon");
        assert!(core.trouble().is_none() && !core.take_close(link));
    }
}

#[test]
fn an_answer_that_may_take_for_ever_is_waited_for() {
    let producer = producer_options().delivery_timeout(Duration::MAX);
    let mut world = World::with(for_ever(), 1, producer);
    world.send(0);
    world.heal();
    let ticket = world.send(0);
    world.tick();
    world.now += YEARS;
    world.tick();
    assert!(world.core.is_up(0) && !world.done.contains_key(&ticket));
    world.heal();
    world.check();
}

#[test]
fn a_backoff_for_ever_tries_nothing_again() {
    let producer = producer_options().delivery_timeout(Duration::MAX);
    let mut world = World::with(for_ever(), 1, producer);
    world.send(0);
    world.heal();
    world.model.refuse.push_back(Some(ErrorCode::Overloaded));
    let refused = world.send(0);
    world.round(Duration::ZERO);
    world.cut(0);
    for _ in 0..10 {
        world.round(YEARS / 100);
    }
    assert!(!world.core.is_up(0), "it was made again");
    assert!(!world.done.contains_key(&refused));
}

#[test]
fn records_linger_for_ever_until_a_flush() {
    let lingering = producer_options().linger(Duration::MAX);
    let mut world = World::with(options(), 1, lingering.delivery_timeout(Duration::MAX));
    world.send(0);
    for _ in 0..10 {
        world.round(YEARS / 100);
    }
    assert_eq!(world.model.log("t", 0).next, 0);
    world.core.flush(world.producer, world.now);
    world.heal();
    world.check();
}

#[test]
fn an_address_is_named_as_it_is_given() {
    for server in ["broker-1:7311", "[::1]:17421"] {
        let (host, port) = parse_server(server).expect("a server");
        assert_eq!(server_name(host, port), server);
    }
}
