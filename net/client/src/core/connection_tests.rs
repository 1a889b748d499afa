//! One connection, fed with frames as a broker, or something else, might send them.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use ringtide_schema::frame::{FLAG_ERROR, FLAG_MORE, FLAG_RESPONSE, Op};
use ringtide_schema::wire;
use ringtide_session::Encoder;

use crate::core::connection::{Connection, Event, Tag};

const LONG: Duration = Duration::from_secs(10);
const SECOND: Duration = Duration::from_secs(1);

fn hello(out: &mut Vec<u8>, version: u8, max_in_flight_requests: u32) {
    Encoder::new().frame(out, Op::Hello, FLAG_RESPONSE, 0, 0, |b| {
        let args = wire::HelloResponseArgs {
            version,
            max_in_flight_requests,
            ..Default::default()
        };
        wire::HelloResponse::create(b, &args)
    });
}

fn pong(out: &mut Vec<u8>, flags: u16, correlation: u64) {
    Encoder::new().frame(out, Op::Ping, FLAG_RESPONSE | flags, correlation, 0, |b| {
        wire::PingResponse::create(b, &wire::PingResponseArgs {})
    });
}

fn push(out: &mut Vec<u8>, correlation: u64, payload: &[u8]) {
    Encoder::new().frame(out, Op::Push, 0, correlation, payload.len(), |b| {
        wire::Push::create(b, &wire::PushArgs::default())
    });
    out.extend_from_slice(payload);
}

fn subscribed(out: &mut Vec<u8>, correlation: u64) {
    Encoder::new().frame(out, Op::Subscribe, FLAG_RESPONSE, correlation, 0, |b| {
        wire::SubscribeResponse::create(b, &wire::SubscribeResponseArgs { offset: 0 })
    });
}

fn refused(out: &mut Vec<u8>, op: Op, correlation: u64) {
    Encoder::new().frame(out, op, FLAG_RESPONSE | FLAG_ERROR, correlation, 0, |b| {
        wire::ErrorResponse::create(
            b,
            &wire::ErrorResponseArgs {
                code: 9,
                ..Default::default()
            },
        )
    });
}

/// A connection after hello; what was sent so far is gone.
fn connection(max_in_flight: u32) -> Connection<u32> {
    let now = Instant::now();
    let mut connection = Connection::new("test", now, now + LONG, SECOND);
    let mut bytes = Vec::new();
    hello(&mut bytes, 1, max_in_flight);
    let received = connection.receive(&bytes, now, |_| ());
    received.expect("a good hello");
    connection.sent(connection.output().len());
    connection
}

fn ping(connection: &mut Connection<u32>, deadline: Option<Instant>, tag: u32) -> u64 {
    connection.request(Op::Ping, deadline, tag, |b| {
        wire::PingRequest::create(b, &wire::PingRequestArgs {})
    })
}

fn subscribe(connection: &mut Connection<u32>, tag: u32) -> u64 {
    connection.request(Op::Subscribe, Some(Instant::now()), tag, |b| {
        wire::SubscribeRequest::create(b, &wire::SubscribeRequestArgs::default())
    })
}

/// What happened, in a form that can be compared.
fn log(event: Event<'_, u32>) -> String {
    match event {
        Event::Ready => "ready".into(),
        Event::Answer {
            tag: Tag::More(tag),
            op,
            ..
        } => format!("{op:?} {tag} more"),
        Event::Answer {
            tag: Tag::Last(tag),
            op,
            ..
        } => format!("{op:?} {tag} last"),
        Event::Failed { tag, op, error, .. } => format!("{op:?} {tag} error {}", error.code),
        Event::Refused { error } => format!("refused {}", error.code),
        Event::Push { tag, payload, .. } => format!("push {tag} {}", payload.len()),
    }
}

fn events(connection: &mut Connection<u32>, bytes: &[u8]) -> Vec<String> {
    events_at(Instant::now(), connection, bytes)
}

fn events_at(now: Instant, connection: &mut Connection<u32>, bytes: &[u8]) -> Vec<String> {
    let mut events = Vec::new();
    connection
        .receive(bytes, now, |event| events.push(log(event)))
        .expect("a good stream");
    events
}

proptest! {
    #[test]
    fn however_the_stream_is_cut_the_same_things_happen(
        cuts in prop::collection::vec(1..200_usize, 1..30),
        order in Just((0..6_usize).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let mut connection = connection(100);
        let tags: Vec<u64> = (0..6).map(|tag| ping(&mut connection, None, tag)).collect();
        let subscription = subscribe(&mut connection, 77);
        let mut bytes = Vec::new();
        subscribed(&mut bytes, subscription);
        let mut want = vec!["Subscribe 77 more".to_owned()];
        for &index in &order {
            push(&mut bytes, subscription, &vec![0; index * 50]);
            want.push(format!("push 77 {}", index * 50));
            match index % 3 {
                0 => pong(&mut bytes, FLAG_MORE, tags[index]),
                1 => refused(&mut bytes, Op::Ping, tags[index]),
                _ => {}
            }
            if index % 3 == 0 { want.push(format!("Ping {index} more")); }
            if index % 3 == 1 {
                want.push(format!("Ping {index} error 9"));
            } else {
                pong(&mut bytes, 0, tags[index]);
                want.push(format!("Ping {index} last"));
            }
        }
        let (mut seen, mut at) = (Vec::new(), 0);
        for cut in cuts.iter().cycle() {
            if at == bytes.len() { break; }
            let end = (at + cut).min(bytes.len());
            seen.extend(events(&mut connection, &bytes[at..end]));
            at = end;
        }
        prop_assert_eq!(seen, want);
        prop_assert_eq!(connection.in_flight(), 0);
    }

    #[test]
    fn whatever_arrives_nothing_panics(
        head in prop::collection::vec(any::<u8>(), 0..100),
        ops in prop::collection::vec((1..18_u8, any::<u16>(), any::<u8>()), 0..8),
    ) {
        let mut connection = connection(100);
        let known = ping(&mut connection, None, 1);
        let mut bytes = Vec::new();
        for (op, flags, correlation) in ops {
            let op = Op::from_u8(op).expect("a known operation");
            let correlation = if correlation % 2 == 0 { known } else { correlation.into() };
            Encoder::new().frame(&mut bytes, op, flags, correlation, head.len(), |b| {
                wire::PingResponse::create(b, &wire::PingResponseArgs {})
            });
            bytes.extend_from_slice(&head);
        }
        bytes.extend_from_slice(&head);
        let _ = connection.receive(&bytes, Instant::now(), |_| ());
    }
}

#[test]
fn an_answer_to_what_was_given_up_is_ignored_even_when_its_slot_is_used_again() {
    let mut connection = connection(100);
    let old = subscribe(&mut connection, 1);
    connection.unsubscribe(old, None, 2);
    let mut bytes = Vec::new();
    subscribed(&mut bytes, old);
    push(&mut bytes, old, &[1]);
    refused(&mut bytes, Op::Push, old);
    assert_eq!(events(&mut connection, &bytes), [""; 0]);
    assert_eq!(connection.in_flight(), 1);
}

#[test]
fn a_subscription_that_ends_says_why_and_is_gone() {
    let mut connection = connection(100);
    let subscription = subscribe(&mut connection, 1);
    let mut bytes = Vec::new();
    subscribed(&mut bytes, subscription);
    refused(&mut bytes, Op::Push, subscription);
    push(&mut bytes, subscription, &[1]);
    assert_eq!(
        events(&mut connection, &bytes),
        ["Subscribe 1 more", "Push 1 error 9"]
    );
    assert_eq!(connection.into_unanswered().count(), 0);
}

#[test]
fn no_more_requests_than_the_broker_allows_and_subscriptions_do_not_count() {
    let mut connection = connection(2);
    let subscription = subscribe(&mut connection, 1);
    let mut bytes = Vec::new();
    subscribed(&mut bytes, subscription);
    events(&mut connection, &bytes);
    let first = ping(&mut connection, None, 2);
    assert!(connection.has_room());
    ping(&mut connection, None, 3);
    assert!(!connection.has_room());
    bytes.clear();
    pong(&mut bytes, 0, first);
    events(&mut connection, &bytes);
    assert!(connection.has_room());
}

#[test]
fn the_earliest_deadline_that_passes_makes_the_connection_overdue() {
    let mut connection = connection(100);
    let now = Instant::now();
    let early = ping(&mut connection, Some(now + SECOND), 1);
    ping(&mut connection, Some(now + 3 * SECOND), 2);
    assert!(!connection.is_overdue(now));
    let mut bytes = Vec::new();
    pong(&mut bytes, 0, early);
    events_at(now, &mut connection, &bytes);
    assert!(!connection.is_overdue(now + 2 * SECOND));
    assert!(connection.is_overdue(now + 3 * SECOND));
}

/// Lets a push arrive in so many pieces, one every half second, while the answer to a request that
/// may take a second stands behind it: how long until the connection is overdue, if the push does not
/// end before.
fn overdue_behind_a_push(pieces: usize) -> Option<Duration> {
    let mut connection = connection(100);
    let now = Instant::now();
    let subscription = subscribe(&mut connection, 1);
    let mut bytes = Vec::new();
    subscribed(&mut bytes, subscription);
    events_at(now, &mut connection, &bytes);
    ping(&mut connection, Some(now + SECOND), 2);
    bytes.clear();
    push(&mut bytes, subscription, &[0; 10_000]);
    let mut at = now;
    for piece in bytes.chunks(bytes.len() / pieces) {
        at += SECOND / 2;
        if connection.is_overdue(at) {
            return Some(at - now);
        }
        events_at(at, &mut connection, piece);
    }
    // Then there is silence.
    assert!(!connection.is_overdue(at + SECOND / 2));
    assert!(connection.is_overdue(at + SECOND));
    None
}

#[test]
fn an_answer_behind_what_still_arrives_is_not_overdue() {
    assert_eq!(overdue_behind_a_push(10), None);
}

#[test]
fn an_answer_that_never_comes_is_overdue_in_the_end_whatever_else_arrives() {
    assert_eq!(overdue_behind_a_push(100), Some(11 * SECOND));
}

#[test]
fn a_hello_that_is_not_answered_is_overdue() {
    let now = Instant::now();
    let mut connection: Connection<u32> = Connection::new("test", now, now + LONG, SECOND);
    assert!(!connection.is_overdue(now));
    assert!(connection.is_overdue(now + LONG));
}

#[test]
fn streams_that_cannot_be_trusted_end_the_connection() {
    let now = Instant::now();
    let fresh = || Connection::<u32>::new("test", now, now + LONG, SECOND);
    let mut wrong_version = Vec::new();
    hello(&mut wrong_version, 9, 1);
    let mut no_hello = Vec::new();
    pong(&mut no_hello, 0, 0);
    let mut refusal = Vec::new();
    refused(&mut refusal, Op::Hello, 0);
    let http = b"HTTP/1.1 400 Bad Request\r\n\r\nwrong door, friend".to_vec();
    for bytes in [wrong_version, no_hello, refusal, http] {
        assert!(fresh().receive(&bytes, now, |_| ()).is_err(), "{bytes:?}");
    }
    let mut connection = connection(10);
    let subscription = subscribe(&mut connection, 1);
    let mut bytes = Vec::new();
    pong(&mut bytes, 0, subscription);
    assert!(connection.receive(&bytes, now, |_| ()).is_err());
}
