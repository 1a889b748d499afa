//! Requests that no honest client makes, and their bounds.

use ringtide_schema::error_code::ErrorCode;
use ringtide_schema::frame::{FLAG_MORE, FrameHeader, Op};
use ringtide_schema::ids::TopicId;
use ringtide_schema::limits::{MAX_ENVELOPE_BYTES, MAX_TOPICS};
use ringtide_schema::wire;
use ringtide_shard::Topic;

use crate::peer::{batch, request};
use crate::world::{Peer, Setup, World};

/// Asks for the metadata of topics by name; a name that follows itself is sent once only.
fn metadata(world: &mut World, peer: Peer, names: &[&str]) -> u64 {
    world.say(peer, Op::Metadata, |b| {
        let mut strings = Vec::new();
        let mut last = None;
        for name in names {
            let string = match last {
                Some((same, string)) if same == name => string,
                _ => b.create_string(name),
            };
            last = Some((name, string));
            strings.push(string);
        }
        let topics = Some(b.create_vector(&strings));
        wire::MetadataRequest::create(b, &wire::MetadataRequestArgs { topics })
    })
}

#[test]
fn a_topic_that_is_named_often_is_described_once() {
    let setup = Setup::new(1).topic("ticks", 4096);
    let mut world = World::new(&setup);
    let peer = world.connect(0);
    let mut names = vec!["ticks"; MAX_TOPICS - 1];
    names.push("nothing");
    let asked = metadata(&mut world, peer, &names);
    let answer = world.answer(peer, asked);
    let answer = answer.table::<wire::MetadataResponse<'_>>();
    let topics = answer.topics().into_iter().flatten();
    let described: Vec<_> = topics.map(|t| (t.name(), t.error())).collect();
    let unknown = ErrorCode::UnknownTopic as u16;
    assert_eq!(described, [(Some("ticks"), 0), (Some("nothing"), unknown)]);
}

#[test]
fn metadata_is_refused_for_more_names_than_there_can_be_topics() {
    let mut world = World::new(&Setup::new(1).topic("ticks", 4096));
    let peer = world.connect(0);
    let asked = metadata(&mut world, peer, &["ticks"; MAX_TOPICS + 1]);
    let answer = world.answer(peer, asked);
    assert_eq!(answer.error(), Some(ErrorCode::TooMany));
}

#[test]
fn metadata_is_refused_for_a_name_that_no_topic_can_have() {
    let mut world = World::new(&Setup::new(1));
    let peer = world.connect(0);
    let asked = metadata(&mut world, peer, &[&"x".repeat(3 << 20)]);
    let answer = world.answer(peer, asked);
    assert_eq!(answer.error(), Some(ErrorCode::InvalidTopicName));
}

#[test]
fn the_metadata_of_as_many_topics_as_there_can_be_fits_into_an_envelope() {
    let mut setup = Setup::new(1);
    for serial in 1..=MAX_TOPICS as u64 {
        setup.topics.push(Topic {
            id: TopicId::new(serial, serial),
            name: format!("{serial:0>249}"),
            partitions: 12,
            config: Default::default(),
        });
    }
    let mut world = World::new(&setup);
    let peer = world.connect(0);
    let asked = metadata(&mut world, peer, &[]);
    let answer = world.answer(peer, asked);
    assert!(answer.envelope.len() <= MAX_ENVELOPE_BYTES);
    let answer = answer.table::<wire::MetadataResponse<'_>>();
    assert_eq!(answer.topics().map(|t| t.len()), Some(MAX_TOPICS));
}

#[test]
fn refusals_quote_little_of_what_was_sent() {
    let setup = Setup::new(1).topic("ticks", 1);
    let ticks = setup.on_shard("ticks", 0);
    let mut world = World::new(&setup);
    let peer = world.connect(0);
    let long = "ä\u{1}".repeat(1 << 20);
    let commit = wire::CommitOffsetRequestT {
        consumer: Some(long.clone()),
        partition: Some(ticks.into()),
        ..wire::CommitOffsetRequestT::default()
    };
    let asked = [
        world.create_topic(peer, &long),
        world.delete_topic(peer, &long),
        world.say(peer, Op::CommitOffset, |b| commit.pack(b)),
    ];
    world.run();
    let heard = world.hear(peer);
    for correlation in asked {
        let answer = heard.iter().find(|f| f.correlation == correlation);
        let refusal = answer.and_then(|f| f.refusal()).expect("a refusal");
        let message = refusal.message.unwrap_or_default();
        assert!((1..=512).contains(&message.len()), "{}", message.len());
    }
}

#[test]
fn a_request_with_a_flag_is_refused() {
    let mut world = World::new(&Setup::new(1));
    let peer = world.connect(0);
    let ping = request_with(FLAG_MORE, Op::Ping as u8, 7);
    world.write(peer, &ping);
    let answer = world.answer(peer, 7);
    assert_eq!(answer.error(), Some(ErrorCode::InvalidRequest));
}

#[test]
fn an_unknown_operation_before_hello_ends_the_connection() {
    let mut world = World::new(&Setup::new(1));
    let peer = world.open(0);
    world.write(peer, &request_with(0, 200, 7));
    let answer = world.answer(peer, 7);
    assert_eq!(answer.error(), Some(ErrorCode::UnsupportedVersion));
    assert!(world.socket(peer).ended.is_some());
}

/// A frame without envelope and payload.
fn request_with(flags: u16, op: u8, correlation: u64) -> Vec<u8> {
    let mut header = FrameHeader::new(Op::Ping, flags, correlation, 0, 0);
    header.op = op;
    header.encode().to_vec()
}

#[test]
fn a_peer_that_sends_all_it_can_holds_nobody_up_and_is_answered_in_order() {
    const MANY: u64 = 40_000;
    let mut world = World::new(&Setup::new(1));
    let (greedy, modest) = (world.connect(0), world.connect(0));
    let ping = |correlation| {
        request(Op::Ping, correlation, &[], |b| {
            wire::PingRequest::create(b, &wire::PingRequestArgs {})
        })
    };
    let pings: Vec<u8> = (1..=MANY).flat_map(ping).collect();
    world.write(greedy, &pings);
    world.step();
    world.write(modest, &ping(1));
    world.step();
    world.step();
    assert_eq!(world.hear(modest).len(), 1);
    let mut answered: Vec<u64> = Vec::new();
    answered.extend(world.hear(greedy).iter().map(|f| f.correlation));
    assert!(!answered.is_empty() && answered.len() < MANY as usize / 2);
    world.run();
    answered.extend(world.hear(greedy).iter().map(|f| f.correlation));
    assert_eq!(answered, (1..=MANY).collect::<Vec<_>>());
}

#[test]
fn each_of_thousands_of_subscriptions_and_fetches_of_a_peer_is_given_a_record_once() {
    const MANY: u64 = 700;
    let setup = Setup::new(1).topic("ticks", 1);
    let mut world = World::new(&setup);
    let (reader, writer) = (world.connect(0), world.connect(0));
    let id = setup.on_shard("ticks", 0);
    let mut waiting = Vec::new();
    for _ in 0..MANY {
        waiting.push(world.subscribe(reader, id, 0, 1 << 20));
        waiting.push(world.fetch(reader, id, 0, 60_000));
        world.run();
    }
    world.hear(reader);
    world.publish(writer, 2, &[(id, batch(b"tick"))]);
    // A turn that looks and finds nothing is no rest.
    for _ in 0..MANY {
        world.step();
    }
    let heard = world.hear(reader);
    let mut given: Vec<u64> = heard.iter().map(|f| f.correlation).collect();
    assert!(
        heard
            .iter()
            .all(|f| f.payload == heard[0].payload && !f.payload.is_empty())
    );
    given.sort_unstable();
    assert_eq!(given, waiting);
}

#[test]
fn a_fetch_waits_for_none_that_came_after_it() {
    let backlog: Vec<Vec<u8>> = (0..4).map(|_| batch(b"old")).collect();
    let setup = Setup::new(1).topic("ticks", 1);
    let id = setup.on_shard("ticks", 0);
    let setup = setup.segment(id, &backlog);
    let mut world = World::new(&setup);
    let peer = world.connect(0);
    let end = backlog.len() as u64;
    // The first has nothing yet; the others have, and are asked for again whenever one is answered.
    let waiting = world.fetch(peer, id, end, 60_000);
    world.run();
    let first: Vec<u64> = (0..5).map(|_| world.fetch(peer, id, 0, 60_000)).collect();
    let writer = world.connect(0);
    let mut answered = Vec::new();
    while answered.len() < 200 {
        world.step();
        for heard in world.hear(peer) {
            answered.push(heard.correlation);
            world.fetch(peer, id, 0, 60_000);
        }
        if answered.len() == 100 {
            assert_eq!(answered[..5], first);
            world.publish(writer, 2, &[(id, batch(b"new"))]);
        }
    }
    assert!(answered.contains(&waiting));
}

#[test]
fn fetches_that_wait_do_not_keep_a_subscription_of_their_peer_from_its_turn() {
    let setup = Setup::new(1).topic("ticks", 1);
    let mut world = World::new(&setup);
    let (reader, writer) = (world.connect(0), world.connect(0));
    let id = setup.on_shard("ticks", 0);
    for _ in 0..1000 {
        let wait = wire::FetchRequestT {
            partition: Some(id.into()),
            offset: 0,
            max_bytes: 1 << 20,
            min_bytes: 1 << 20,
            max_wait_ms: 60_000,
        };
        world.say(reader, Op::Fetch, |b| wait.pack(b));
        world.run();
    }
    let subscription = world.subscribe(reader, id, 0, 1 << 20);
    world.run();
    world.hear(reader);
    // Something new in each turn.
    let mut given = 0;
    for _ in 0..20 {
        world.publish(writer, 2, &[(id, batch(b"tick"))]);
        world.step();
        let heard = world.hear(reader);
        given += heard
            .iter()
            .filter(|f| f.correlation == subscription)
            .count();
    }
    assert!(given > 10, "{given}");
}
