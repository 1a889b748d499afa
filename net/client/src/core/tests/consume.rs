//! What consumers see, whatever the connections do.

use std::time::Duration;

use proptest::prelude::*;
use ringtide_schema::batch::{Codec, assign};
use ringtide_schema::error_code::ErrorCode;
use ringtide_schema::frame::Op;
use ringtide_schema::record::BatchBuilder;

use crate::core::consumer::{Place, Reader};
use crate::core::tests::{PARTITIONS, Step, World, producer_options, step};
use crate::error::Error;
use crate::options::{ConsumerOptions, Delivery, Start};

/// Takes what has arrived for a consumer: offset and value of each record.
fn consume(world: &mut World, key: usize, reader: &mut Reader, into: &mut Vec<(u64, Vec<u8>)>) {
    loop {
        while reader.has_more() {
            let batch = reader.next().expect("a batch").expect("a good batch");
            let values = batch
                .records()
                .map(|r| (r.offset, r.value.unwrap_or_default().to_vec()));
            into.extend(values);
        }
        match world.core.consumer(key).take() {
            Some(chunk) => {
                let chunk = chunk.expect("no error");
                let cursor = chunk.cursor;
                reader.begin(chunk);
                world.core.pump_cursor(key, cursor, world.now);
            }
            None => return,
        }
    }
}

/// Adds a consumer of "t".
fn consumer(world: &mut World, options: ConsumerOptions) -> Result<usize, Error> {
    let topic = world.core.producer(world.producer).topic.clone();
    world.core.add_consumer(topic, options)
}

fn consumed_through(steps: Vec<Step>, delivery: Delivery) {
    let mut world = World::new(PARTITIONS, producer_options().batch_bytes(200));
    let options = ConsumerOptions::new()
        .start(Start::Earliest)
        .delivery(delivery)
        .partitions([1]);
    let key = consumer(&mut world, options).expect("a consumer");
    let mut reader = Reader::new("t".into(), 1 << 20);
    let mut seen = Vec::new();
    for step in steps {
        world.take(step, false);
        if matches!(step, Step::Wait(ms) if ms % 2 == 0) {
            consume(&mut world, key, &mut reader, &mut seen);
        }
    }
    world.heal();
    for _ in 0..1000 {
        world.round(Duration::from_millis(2));
        consume(&mut world, key, &mut reader, &mut seen);
    }
    assert_eq!(seen, world.model.log("t", 1).values());
}

proptest! {
    // Thousands of rounds each.
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_consumer_sees_every_record_once_and_in_order_whatever_the_connections_do(
        steps in prop::collection::vec(step(), 1..80),
        credit_bytes in 1..3000_u32,
    ) {
        consumed_through(steps.clone(), Delivery::Push { credit_bytes });
        let max_wait = Duration::from_millis(5);
        let max_bytes = credit_bytes;
        consumed_through(steps, Delivery::Poll { min_bytes: 1, max_wait, max_bytes });
    }
}

#[test]
fn what_the_broker_cannot_give_for_now_is_named_and_asked_for_again() {
    let poll = Delivery::Poll {
        min_bytes: 1,
        max_wait: Duration::from_millis(5),
        max_bytes: 1000,
    };
    let push = Delivery::Push { credit_bytes: 1000 };
    let ways = [
        (Op::Fetch, poll),
        (Op::Subscribe, push),
        (Op::Push, push),
        (Op::ListOffsets, push),
    ];
    for (op, delivery) in ways {
        let mut world = World::new(1, producer_options());
        world.send(0);
        world.heal();
        world.model.refused_op = Some((op, ErrorCode::Overloaded));
        let options = ConsumerOptions::new()
            .start(Start::Earliest)
            .delivery(delivery);
        let key = consumer(&mut world, options).expect("a consumer");
        let mut reader = Reader::new("t".into(), 1 << 20);
        let mut seen = Vec::new();
        let mut round = |world: &mut World| {
            world.round(Duration::from_millis(50));
            consume(world, key, &mut reader, &mut seen);
            seen.len()
        };
        while world.core.consumer(key).trouble().is_none() {
            assert_eq!(round(&mut world), 0);
        }
        // It stays named while the broker takes subscriptions that it ends at once.
        let refusals = world.model.refusals;
        while world.model.refusals < refusals + 3 {
            assert_eq!(round(&mut world), 0);
            let trouble = world.core.consumer(key).trouble();
            let code = trouble.and_then(Error::code);
            assert!(op == Op::ListOffsets || code == Some(ErrorCode::Overloaded));
        }
        world.model.refused_op = None;
        while round(&mut world) == 0 {}
        assert!(world.core.consumer(key).trouble().is_none());
    }
}

/// A consumer of one partition that holds two batches of one record, its place known.
fn with_two_batches() -> (World, usize) {
    let mut world = World::new(1, producer_options().batch_bytes(1));
    world.send(0);
    world.send(0);
    world.heal();
    let options = ConsumerOptions::new().start(Start::Offset(0));
    let key = consumer(&mut world, options).expect("a consumer");
    world.core.consumer(key).cursors[0].place = Place::Known;
    (world, key)
}

#[test]
fn whole_batches_in_front_of_a_damaged_one_are_delivered() {
    let (mut world, key) = with_two_batches();
    let batches: Vec<Vec<u8>> = world
        .model
        .log("t", 0)
        .batches
        .iter()
        .map(|b| b.1.clone())
        .collect();
    let mut header_lost = batches.concat();
    header_lost[batches[0].len() + 16] ^= 1;
    let mut cut_short = batches.concat();
    cut_short.pop();
    for payload in [header_lost, cut_short] {
        let consumer = world.core.consumer(key);
        consumer.arrived(0, 0..2, &payload);
        let chunk = consumer.take().expect("something").expect("the good batch");
        assert_eq!(chunk.bytes, batches[0]);
        match consumer.take() {
            Some(Err(Error::BadBatch {
                offset: 1, next, ..
            })) => assert_eq!(next, Some(2)),
            other => panic!("{other:?}"),
        }
        consumer.seek(0, Start::Offset(0));
        consumer.cursors[0].place = Place::Known;
        consumer.cursors[0].arrived = 0;
    }
}

#[test]
fn a_batch_that_is_not_the_next_one_is_refused() {
    let (mut world, key) = with_two_batches();
    let log = world.model.log("t", 0);
    let batches: Vec<Vec<u8>> = log.batches.iter().map(|b| b.1.clone()).collect();
    let moved = |batch: usize, base_offset: u64| {
        let mut bytes = batches[batch].clone();
        bytes[..8].copy_from_slice(&base_offset.to_be_bytes());
        bytes
    };
    let whole = batches[0].len();
    let refused = [
        (vec![moved(0, 7)], 0, (0, Some(1))),
        (
            vec![batches[0].clone(), moved(1, 1 << 40)],
            whole,
            (1, Some(2)),
        ),
        (vec![batches[0].clone(), moved(1, 0)], whole, (1, Some(2))),
    ];
    for (payload, taken, expected) in refused {
        let consumer = world.core.consumer(key);
        let behind = payload.len() as u64;
        consumer.arrived(0, 0..behind, &payload.concat());
        if taken > 0 {
            let chunk = consumer.take().expect("something").expect("the good batch");
            assert_eq!(chunk.bytes.len(), taken);
        }
        match consumer.take() {
            Some(Err(Error::BadBatch { offset, next, .. })) => {
                assert_eq!((offset, next), expected);
            }
            other => panic!("{other:?}"),
        }
        consumer.seek(0, Start::Offset(0));
        consumer.cursors[0].place = Place::Known;
        consumer.cursors[0].arrived = 0;
    }
}

#[test]
fn a_damaged_batch_in_front_of_what_was_asked_for_is_passed_over() {
    let (mut world, key) = with_two_batches();
    world.send(0);
    world.heal();
    let log = world.model.log("t", 0);
    let mut batches: Vec<Vec<u8>> = log.batches.iter().map(|b| b.1.clone()).collect();
    batches[1][..8].copy_from_slice(&77_u64.to_be_bytes());
    let consumer = world.core.consumer(key);
    consumer.seek(0, Start::Offset(2));
    consumer.cursors[0].place = Place::Known;
    consumer.cursors[0].arrived = 2;
    consumer.arrived(0, 0..3, &batches.concat());
    let chunk = consumer.take().expect("something").expect("the good batch");
    assert_eq!(chunk.bytes, batches[2]);
    assert!(consumer.take().is_none());
}

#[test]
fn a_payload_that_cannot_hold_what_was_asked_for_is_an_error_and_not_passed_over() {
    let (mut world, key) = with_two_batches();
    let log = world.model.log("t", 0);
    let batches: Vec<Vec<u8>> = log.batches.iter().map(|b| b.1.clone()).collect();
    for asked in [2, 102] {
        let consumer = world.core.consumer(key);
        consumer.seek(0, Start::Offset(asked));
        consumer.cursors[0].place = Place::Known;
        consumer.cursors[0].arrived = asked;
        consumer.arrived(0, 0..2, &batches.concat());
        match consumer.take() {
            Some(Err(Error::BadBatch { offset, .. })) => assert_eq!(offset, asked),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_flipped_bit_moves_no_record_and_what_is_whole_behind_it_can_be_read() {
    let mut world = World::new(1, producer_options());
    let options = ConsumerOptions::new().start(Start::Offset(0));
    let key = consumer(&mut world, options).expect("a consumer");
    // Batches of one, two, three and four records.
    let mut truth = Vec::new();
    let mut whole = Vec::new();
    let mut begins = Vec::new();
    let mut batch_bytes = Vec::new();
    for records in 1..=4 {
        let base = truth.len() as u64;
        let mut builder = BatchBuilder::new(Codec::None);
        for n in 0..records {
            let value = format!("value {n} of {records}").into_bytes();
            builder.push(1, None, Some(&value), &[]);
            truth.push((base + n, value));
        }
        let mut bytes = Vec::new();
        builder.finish(-1, -1, -1, &mut bytes).expect("records");
        assign(&mut bytes, base, 1);
        begins.push(base);
        batch_bytes.push(whole.len());
        whole.extend(bytes);
    }
    let end = truth.len() as u64;
    batch_bytes.push(whole.len());
    begins.push(end);
    // Gives what is read and where it can be gone on behind an error.
    let mut read = |payload: &[u8], from: u64| {
        let consumer = world.core.consumer(key);
        consumer.seek(0, Start::Offset(from));
        consumer.cursors[0].place = Place::Known;
        consumer.cursors[0].arrived = from;
        consumer.arrived(0, 0..end, payload);
        let mut reader = Reader::new("t".into(), 1 << 20);
        let mut seen = Vec::new();
        while let Some(news) = consumer.take() {
            let chunk = match news {
                Ok(chunk) => chunk,
                Err(Error::BadBatch { next, .. }) => return (seen, Some(next)),
                Err(other) => panic!("{other}"),
            };
            reader.begin(chunk);
            while reader.has_more() {
                match reader.next() {
                    Some(Ok(batch)) => seen.extend(
                        batch
                            .records()
                            .filter(|r| r.offset >= from)
                            .map(|r| (r.offset, r.value.unwrap_or(b"").to_vec())),
                    ),
                    Some(Err((_, Error::BadBatch { next, .. }))) => return (seen, Some(next)),
                    other => panic!("{:?}", other.is_some()),
                }
            }
        }
        (seen, None)
    };
    for bit in 0..whole.len() * 8 {
        let mut payload = whole.clone();
        payload[bit / 8] ^= 1 << (bit % 8);
        let damaged = batch_bytes.iter().filter(|at| **at <= bit / 8).count() - 1;
        let (first, behind) = (begins[damaged], begins[damaged + 1]);
        for from in 0..end {
            let (seen, error) = read(&payload, from);
            let until = first.max(from);
            let is_epoch = (12..16).contains(&(bit / 8 - batch_bytes[damaged]));
            if from >= behind || is_epoch {
                assert_eq!(seen, truth[from as usize..], "bit {bit} from {from}");
                assert_eq!(error, None);
                continue;
            }
            assert_eq!(
                seen,
                truth[from as usize..until as usize],
                "bit {bit} from {from}"
            );
            let next = error.expect("the damage is told").expect("with a way on");
            assert_eq!(next, behind, "bit {bit} from {from}");
        }
    }
}

#[test]
fn an_error_is_told_before_what_arrives_later_and_forgotten_by_a_seek() {
    let (mut world, key) = with_two_batches();
    let payload = world.model.log("t", 0).batches[0].1.clone();
    let consumer = world.core.consumer(key);
    consumer.fail(0, Error::Closed);
    consumer.cursors[0].place = Place::Known;
    consumer.arrived(0, 0..1, &payload);
    assert!(matches!(consumer.take(), Some(Err(Error::Closed))));
    assert!(matches!(consumer.take(), Some(Ok(_))));
    consumer.fail(0, Error::Closed);
    consumer.seek(0, Start::Earliest);
    assert!(consumer.take().is_none());
    assert!(consumer.stopped().is_empty());
}

#[test]
fn what_waits_here_is_within_the_credit_however_often_the_connection_is_lost() {
    let credit_bytes = 3000;
    let mut world = World::new(1, producer_options().batch_bytes(1));
    let options = ConsumerOptions::new()
        .start(Start::Earliest)
        .delivery(Delivery::Push { credit_bytes });
    let key = consumer(&mut world, options).expect("a consumer");
    for _ in 0..400 {
        world.send(0);
    }
    world.heal();
    for _ in 0..5 {
        for _ in 0..20 {
            world.round(Duration::from_millis(5));
        }
        let waiting = world.core.consumer(key).cursors[0].queued_bytes;
        // The last payload, of at most 1,000 bytes, may go over it.
        assert!((3000..4000).contains(&waiting), "{waiting}");
        assert!(matches!(world.core.consumer(key).take(), Some(Ok(_))));
        world.core.pump_cursor(key, 0, world.now);
        world.cut(0);
    }
}

#[test]
fn a_partition_named_twice_and_a_poll_that_waits_for_nothing_are_refused() {
    let mut world = World::new(2, producer_options());
    let poll = |min_bytes, wait_us, max_bytes| {
        ConsumerOptions::new().delivery(Delivery::Poll {
            min_bytes,
            max_wait: Duration::from_micros(wait_us),
            max_bytes,
        })
    };
    for options in [
        ConsumerOptions::new().partitions([1, 0, 1]),
        poll(0, 1000, 1),
        poll(1, 999, 1),
        poll(1, 1000, 0),
    ] {
        let refused = consumer(&mut world, options.clone());
        assert!(matches!(refused, Err(Error::Invalid(_))), "{options:?}");
    }
    assert!(consumer(&mut world, poll(1, 1000, 1)).is_ok());
}

#[test]
fn added_partitions_are_read_from_their_first_record_unless_some_were_named() {
    let mut world = World::new(1, producer_options());
    let all = consumer(&mut world, ConsumerOptions::new()).expect("a consumer");
    let named = consumer(&mut world, ConsumerOptions::new().partitions([0]));
    let named = named.expect("a consumer");
    world.round(Duration::ZERO);
    let topic = world.model.topics.get_mut("t").expect("the topic");
    topic.logs.push(Default::default());
    // The producer learns of it before the consumers are looked at.
    world.now += Duration::from_secs(61);
    while world.core.producer(world.producer).topic.partitions() < 2 {
        world.round(Duration::from_millis(50));
    }
    world.send(1);
    world.heal();
    for _ in 0..10 {
        world.round(Duration::from_millis(5));
    }
    let (mut reader, mut seen) = (Reader::new("t".into(), 1 << 20), Vec::new());
    consume(&mut world, all, &mut reader, &mut seen);
    assert_eq!(seen, world.model.log("t", 1).values());
    assert_eq!(world.core.consumer(named).cursors.len(), 1);
}

#[test]
fn a_place_in_a_partition_that_a_topic_made_anew_lacks_is_an_error() {
    let mut world = World::new(2, producer_options());
    let options = ConsumerOptions::new()
        .start(Start::Offset(0))
        .partitions([1]);
    let key = consumer(&mut world, options).expect("a consumer");
    world.round(Duration::ZERO);
    world.model.topics.remove("t");
    world.model.create("t", 1);
    world.core.refresh();
    while !world.core.consumer(key).has_news() {
        world.round(Duration::from_millis(5));
    }
    assert!(matches!(world.core.consumer(key).take(), Some(Err(_))));
    world.core.seek(key, 0, Start::Offset(0), world.now);
    match world.core.consumer(key).take() {
        Some(Err(error)) => assert_eq!(error.code(), Some(ErrorCode::UnknownPartition)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_partition_is_stopped_once_its_error_was_taken_and_not_before() {
    let mut world = World::new(PARTITIONS, producer_options());
    let options = ConsumerOptions::new().start(Start::Earliest);
    let key = consumer(&mut world, options).expect("a consumer");
    let consumer = world.core.consumer(key);
    for cursor in [0, 1] {
        consumer.fail(cursor, Error::Closed);
    }
    for stopped in [&[][..], &[0], &[0, 1]] {
        assert_eq!(consumer.stopped(), stopped);
        assert_eq!(consumer.take().is_some(), stopped.len() < 2);
    }
}
