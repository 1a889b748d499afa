//! What consumers see, whatever the connections do.

use std::time::Duration;

use proptest::prelude::*;

use crate::core::consumer::Reader;
use crate::core::tests::{Step, World, producer_options, step};
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

fn consumed_through(steps: Vec<Step>, delivery: Delivery) {
    let mut world = World::new(3, producer_options().batch_bytes(200));
    let topic = world
        .core
        .topic("t", world.now)
        .expect("known")
        .expect("there");
    let options = ConsumerOptions::new()
        .start(Start::Earliest)
        .delivery(delivery)
        .partitions([1]);
    let key = world.core.add_consumer(topic, options).expect("a consumer");
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
