//! The synchronous face against a model broker behind real sockets.

use std::time::{Duration, Instant};

use crate::core::served::{Served, serve};
use crate::sync::Client;
use crate::{
    Acks, Codec, ConsumerOptions, Delivery, Error, ErrorCode, Idle, OffsetAt, Options,
    ProducerOptions, Record, Start, TopicSettings,
};

const LONG: Duration = Duration::from_secs(10);

fn client(served: &Served) -> Client {
    Client::connect(&served.servers[..1], Options::new().idle(Idle::Park)).expect("connected")
}

fn topic(served: &Served, client: &Client, partitions: u32) {
    client
        .create_topic("t", partitions, &TopicSettings::default())
        .expect("created");
    assert!(
        served
            .model
            .lock()
            .expect("not poisoned")
            .topics
            .contains_key("t")
    );
}

/// Reads this many values.
fn read(consumer: &mut crate::sync::Consumer, count: usize) -> Vec<Vec<u8>> {
    let mut values = Vec::new();
    let began = Instant::now();
    while values.len() < count {
        assert!(
            began.elapsed() < LONG,
            "{} of {count} values came",
            values.len()
        );
        if let Some(batch) = consumer
            .poll(Duration::from_millis(100))
            .expect("good batches")
        {
            values.extend(
                batch
                    .records()
                    .map(|r| r.value.unwrap_or_default().to_vec()),
            );
        }
    }
    values
}

#[test]
fn a_refused_connection_is_reported_at_once_with_the_server_and_what_to_do() {
    let error = Client::connect(["127.0.0.1:1"], Options::new())
        .map(drop)
        .expect_err("refused");
    let text = error.to_string();
    assert!(
        text.contains("127.0.0.1:1") && text.contains("ringtide serve"),
        "{text}"
    );
}

#[test]
fn a_server_may_be_named() {
    let served = serve(1);
    let server = served.servers[0].replace("127.0.0.1", "localhost");
    for idle in [Idle::Park, Idle::Spin] {
        let options = Options::new().idle(idle);
        crate::sync::RawConnection::connect(&server, &options).expect("connected");
        let client = Client::connect([&server], options).expect("connected");
        client.ping().expect("a pong");
    }
}

#[test]
fn each_shard_describes_itself_over_a_connection_of_its_own() {
    let served = serve(3);
    let client = client(&served);
    let described = client.describe_shards().expect("described");
    let told: Vec<_> = described
        .iter()
        .map(|info| (info.shard, info.shards, info.wal_records))
        .collect();
    assert_eq!(told, [(0, 3, 100), (1, 3, 101), (2, 3, 102)]);
    let first = &described[0];
    assert_eq!(first.durable_write_ns, Some(20_000));
    assert_eq!((&*first.idle, &*first.kernel), ("spin", "unknown"));
}

#[test]
fn a_raw_connection_has_its_shard_described() {
    use crate::sync::{RawConnection, RawEvent};
    let served = serve(2);
    let mut raw = RawConnection::connect(&served.servers[1], &Options::new()).expect("connected");
    let asked = raw.describe_shard();
    let mut told = None;
    let began = Instant::now();
    while told.is_none() {
        assert!(began.elapsed() < LONG, "no answer");
        raw.poll(|event| match event {
            RawEvent::Described { correlation, info } => told = Some((correlation, info.shard)),
            other => panic!("{other:?}"),
        })
        .expect("connected");
        raw.idle(Idle::Park, Duration::from_millis(10));
    }
    assert_eq!(told, Some((asked, 1)));
}

#[test]
fn topics_are_created_altered_listed_described_and_deleted() {
    let served = serve(2);
    let client = client(&served);
    client.ping().expect("a pong");
    topic(&served, &client, 3);
    let again = client
        .create_topic("t", 1, &TopicSettings::default())
        .expect_err("exists");
    assert_eq!(again.code(), Some(ErrorCode::TopicExists));
    let altered = client
        .alter_topic("t", Some(5), &TopicSettings::default())
        .expect("altered");
    assert_eq!(altered.partitions(), 5);
    assert_eq!(client.list_topics().expect("listed").len(), 1);
    assert_eq!(
        client
            .describe_topic("t")
            .expect("described")
            .partitions
            .len(),
        5
    );
    assert_eq!(
        client
            .list_offsets("t", 4, OffsetAt::Latest)
            .expect("an end")
            .offset,
        0
    );
    client
        .commit_offset("me", &altered, 4, 17, 1)
        .expect("committed");
    let committed = client
        .read_offset("me", "t", 4)
        .expect("read")
        .expect("something");
    assert_eq!(committed.offset, 17);
    assert_eq!(client.read_offset("you", "t", 4).expect("read"), None);
    client.delete_topic("t").expect("deleted");
    let gone = client.topic("t").expect_err("gone");
    assert_eq!(gone.code(), Some(ErrorCode::UnknownTopic));
    let gone = client.describe_partition("t", 0).expect_err("gone");
    assert_eq!(gone.code(), Some(ErrorCode::UnknownTopic));
}

#[test]
fn what_is_published_is_acknowledged_and_consumed_in_order() {
    for codec in [Codec::None, Codec::Lz4, Codec::Zstd] {
        for idempotence in [true, false] {
            let served = serve(2);
            let client = client(&served);
            topic(&served, &client, 2);
            let options = ProducerOptions::new().codec(codec).idempotence(idempotence);
            let mut producer = client.producer("t", options).expect("a producer");
            let start = ConsumerOptions::new()
                .start(Start::Earliest)
                .partitions([1]);
            let mut consumer = client.consumer("t", start).expect("a consumer");
            for i in 0..500 {
                let value = format!("value {i}");
                producer
                    .send(&Record::new(&value).partition(1))
                    .expect("taken");
            }
            producer.flush(LONG).expect("all done");
            let mut offsets = Vec::new();
            producer.poll(|d| offsets.push(d.result.expect("appended").offset));
            assert_eq!(offsets, (0..500).map(Some).collect::<Vec<_>>());
            let values = read(&mut consumer, 500);
            assert!(
                values
                    .iter()
                    .enumerate()
                    .all(|(i, v)| *v == format!("value {i}").as_bytes())
            );
            assert_eq!(consumer.position(1).expect("read"), Some(500));
        }
    }
}

#[test]
fn records_of_one_key_go_to_the_partition_that_kafka_chooses() {
    let served = serve(1);
    let client = client(&served);
    topic(&served, &client, 7);
    let mut producer = client
        .producer("t", ProducerOptions::new())
        .expect("a producer");
    let ticket = producer
        .send(&Record::new("v").key("some key"))
        .expect("taken");
    assert_eq!(
        ticket.partition,
        ringtide_schema::murmur2::partition_for_key(b"some key", 7)
    );
    let ack = producer.wait_for(ticket, LONG).expect("appended");
    assert_eq!((ack.partition, ack.offset), (ticket.partition, Some(0)));
}

#[test]
fn waiting_for_a_record_whose_outcome_was_discarded_says_so_at_once() {
    let served = serve(1);
    let client = client(&served);
    topic(&served, &client, 1);
    let mut producer = client
        .producer("t", ProducerOptions::new())
        .expect("a producer");
    let [first, second] = ["a", "b"].map(|v| producer.send(&Record::new(v)).expect("taken"));
    producer.flush(LONG).expect("both have an outcome");
    producer.wait_for(second, LONG).expect("appended");
    let error = producer
        .wait_for(first, Duration::MAX)
        .expect_err("discarded");
    assert!(matches!(error, Error::Invalid(_)), "{error}");
}

#[test]
fn an_idempotent_producer_survives_cut_connections_without_loss_or_doubles() {
    let served = serve(2);
    let client = client(&served);
    topic(&served, &client, 2);
    let mut producer = client
        .producer("t", ProducerOptions::new())
        .expect("a producer");
    let mut acknowledged = 0;
    for i in 0..400_u32 {
        let record = i.to_string();
        producer
            .send(&Record::new(&record).partition(i % 2))
            .expect("taken");
        if i % 50 == 25 {
            served.cut_connections();
        }
        producer.poll(|d| {
            d.result.expect("appended");
            acknowledged += 1;
        });
    }
    producer.flush(LONG).expect("all done");
    producer.poll(|d| {
        d.result.expect("appended");
        acknowledged += 1;
    });
    assert_eq!(acknowledged, 400);
    for partition in 0..2 {
        let values = served
            .model
            .lock()
            .expect("not poisoned")
            .log("t", partition)
            .values();
        let want = (0..200).map(|i| (i, (2 * i + u64::from(partition)).to_string().into_bytes()));
        assert_eq!(values, want.collect::<Vec<_>>());
    }
}

#[test]
fn a_consumer_goes_on_after_cut_connections() {
    for delivery in [
        Delivery::Push { credit_bytes: 3000 },
        Delivery::Poll {
            min_bytes: 1,
            max_wait: Duration::from_millis(5),
            max_bytes: 2000,
        },
    ] {
        let served = serve(1);
        let client = client(&served);
        topic(&served, &client, 1);
        let mut producer = client
            .producer("t", ProducerOptions::new())
            .expect("a producer");
        let options = ConsumerOptions::new()
            .start(Start::Earliest)
            .delivery(delivery);
        let mut consumer = client.consumer("t", options).expect("a consumer");
        let mut values = Vec::new();
        for round in 0..5 {
            for i in 0..100 {
                let value = (round * 100 + i).to_string();
                producer.send(&Record::new(&value)).expect("taken");
            }
            producer.flush(LONG).expect("all done");
            values.extend(read(&mut consumer, 50));
            served.cut_connections();
        }
        values.extend(read(&mut consumer, 500 - values.len()));
        let want: Vec<Vec<u8>> = (0..500).map(|i: u32| i.to_string().into_bytes()).collect();
        assert_eq!(values, want);
    }
}

#[test]
fn a_consumer_begins_where_it_is_told() {
    let served = serve(1);
    let client = client(&served);
    topic(&served, &client, 1);
    let mut producer = client
        .producer("t", ProducerOptions::new())
        .expect("a producer");
    for i in 0..10 {
        let value = i.to_string();
        producer
            .send(&Record::new(&value).timestamp_ms(1000 + i))
            .expect("taken");
    }
    producer.flush(LONG).expect("all done");
    let t = client.topic("t").expect("the topic");
    client.commit_offset("me", &t, 0, 3, 1).expect("committed");
    for (start, first) in [
        (Start::Earliest, "0"),
        (Start::Offset(7), "7"),
        (Start::Timestamp(1004), "4"),
        (Start::committed("me"), "3"),
        (Start::committed("nobody"), "0"),
    ] {
        let options = ConsumerOptions::new().start(start.clone());
        let mut consumer = client.consumer("t", options).expect("a consumer");
        assert_eq!(read(&mut consumer, 1)[0], first.as_bytes(), "{start:?}");
        consumer.seek(0, Start::Offset(5)).expect("moved");
        assert_eq!(read(&mut consumer, 1)[0], b"5");
        consumer.commit("you").expect("committed");
        let position = consumer.position(0).expect("a partition");
        let committed = client
            .read_offset("you", "t", 0)
            .expect("read")
            .map(|c| c.offset);
        assert_eq!(committed, position);
    }
}

#[test]
fn a_position_is_not_committed_in_a_topic_that_was_made_anew() {
    let served = serve(1);
    let client = client(&served);
    topic(&served, &client, 1);
    let mut producer = client
        .producer("t", ProducerOptions::new())
        .expect("a producer");
    producer.send(&Record::new("v")).expect("taken");
    producer.flush(LONG).expect("all done");
    let options = ConsumerOptions::new().start(Start::Earliest);
    let mut consumer = client.consumer("t", options).expect("a consumer");
    read(&mut consumer, 1);
    client.delete_topic("t").expect("deleted");
    topic(&served, &client, 1);
    let refused = consumer.commit("me").expect_err("another topic");
    assert_eq!(refused.code(), Some(ErrorCode::UnknownTopic), "{refused}");
    assert_eq!(client.read_offset("me", "t", 0).expect("read"), None);
}

#[test]
fn an_offset_out_of_range_is_a_typed_error_and_the_consumer_can_seek() {
    let served = serve(1);
    let client = client(&served);
    topic(&served, &client, 1);
    let mut producer = client
        .producer("t", ProducerOptions::new())
        .expect("a producer");
    producer.send(&Record::new("only")).expect("taken");
    producer.flush(LONG).expect("all done");
    let options = ConsumerOptions::new().start(Start::Offset(9));
    let mut consumer = client.consumer("t", options).expect("a consumer");
    match consumer.poll(LONG).map(|b| b.is_some()) {
        Err(Error::OffsetOutOfRange {
            offset: 9,
            earliest: 0,
            latest: 1,
            ..
        }) => {}
        other => panic!("{other:?}"),
    }
    consumer.seek(0, Start::Earliest).expect("moved");
    assert_eq!(read(&mut consumer, 1)[0], b"only");
}

#[test]
fn a_damaged_batch_is_a_typed_error_and_the_consumer_can_go_past_it() {
    let served = serve(1);
    let client = client(&served);
    topic(&served, &client, 1);
    let mut producer = client
        .producer("t", ProducerOptions::new())
        .expect("a producer");
    for value in ["first", "second"] {
        producer.send(&Record::new(value)).expect("taken");
        producer.flush(LONG).expect("all done");
    }
    served.model.lock().expect("not poisoned").corrupt = true;
    let options = ConsumerOptions::new().start(Start::Offset(1));
    let mut consumer = client.consumer("t", options).expect("a consumer");
    match consumer.poll(LONG).map(|b| b.is_some()) {
        Err(Error::BadBatch {
            offset: 1,
            next: Some(2),
            ..
        }) => {}
        other => panic!("{other:?}"),
    }
    served.model.lock().expect("not poisoned").corrupt = false;
    consumer.seek(0, Start::Earliest).expect("moved");
    assert_eq!(
        read(&mut consumer, 2),
        [b"first".to_vec(), b"second".to_vec()]
    );
}

#[test]
fn without_acknowledgements_a_flush_ends_when_the_broker_has_the_records() {
    let served = serve(1);
    let client = client(&served);
    topic(&served, &client, 1);
    let options = ProducerOptions::new().acks(Acks::None);
    let mut producer = client.producer("t", options).expect("a producer");
    for _ in 0..100 {
        producer.send(&Record::new("v")).expect("taken");
    }
    producer.flush(LONG).expect("all done");
    let mut done = 0;
    producer.poll(|d| done += usize::from(d.result.expect("sent").offset.is_none()));
    assert_eq!(done, 100);
    let mut model = served.model.lock().expect("not poisoned");
    assert_eq!(model.log("t", 0).next, 100);
}

#[test]
fn a_record_without_an_outcome_yet_is_under_way_and_not_to_be_sent_again() {
    let served = serve(1);
    let client = client(&served);
    topic(&served, &client, 1);
    let overloaded = [Some(ErrorCode::Overloaded); 1000];
    let model = || served.model.lock().expect("not poisoned");
    model().refuse.extend(overloaded);
    let mut producer = client
        .producer("t", ProducerOptions::new())
        .expect("a producer");
    let ticket = producer.send(&Record::new("v")).expect("taken");
    for error in [
        producer
            .wait_for(ticket, Duration::ZERO)
            .expect_err("not yet"),
        producer.flush(Duration::ZERO).expect_err("not yet"),
    ] {
        assert!(matches!(error, Error::UnderWay { .. }), "{error}");
        assert!(!error.is_retriable());
    }
    model().refuse.clear();
    let ack = producer.wait_for(ticket, LONG).expect("appended");
    assert_eq!(ack.offset, Some(0));
}

#[test]
fn a_full_buffer_refuses_until_something_is_acknowledged() {
    let served = serve(1);
    let client = client(&served);
    topic(&served, &client, 1);
    let options = ProducerOptions::new().buffer_bytes(100);
    let mut producer = client.producer("t", options).expect("a producer");
    producer.send(&Record::new(&[0; 90])).expect("taken");
    let refused = producer.send(&Record::new(&[0; 90])).expect_err("full");
    assert!(matches!(refused, Error::BufferFull { .. }) && refused.is_retriable());
    producer.flush(LONG).expect("all done");
    producer.send(&Record::new(&[0; 90])).expect("taken");
}

#[test]
fn a_raw_connection_publishes_and_subscribes() {
    use crate::sync::{RawConnection, RawEvent};
    let served = serve(2);
    let client = client(&served);
    topic(&served, &client, 2);
    let t = client.topic("t").expect("the topic");
    let owner = client.owner(&t, 1).expect("an owner");
    assert_eq!(owner, served.servers[1]);
    let mut raw = RawConnection::connect(&owner, &Options::new()).expect("connected");
    let mut builder = crate::BatchBuilder::new(Codec::None);
    builder.push(1, None, Some(b"value"), &[]);
    let mut batch = Vec::new();
    builder.finish(-1, -1, -1, &mut batch).expect("a batch");
    let subscription = raw.subscribe(t.partition(1), 0, 1 << 20);
    let sent: Vec<u64> = (0..1000)
        .map(|_| {
            raw.publish_batch(t.partition(1), &batch, Acks::Durable)
                .expect("room")
        })
        .collect();
    let (mut published, mut pushed) = (Vec::new(), 0);
    let began = Instant::now();
    while published.len() < 1000 || pushed < 1000 * batch.len() {
        assert!(began.elapsed() < LONG);
        let arrived = raw.poll(|event| match event {
            RawEvent::Published { correlation, .. } => published.push(correlation),
            RawEvent::Pushed {
                subscription: s,
                payload,
            } => {
                assert_eq!(s, subscription);
                pushed += payload.len();
            }
            RawEvent::Subscribed { offset, .. } => assert_eq!(offset, 0),
            other => panic!("{other:?}"),
        });
        if arrived.expect("connected") == 0 {
            raw.idle(Idle::Park, Duration::from_millis(5));
        }
    }
    assert_eq!(published, sent);
}
