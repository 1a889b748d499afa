//! The asynchronous face against a model broker behind real sockets.

use std::time::Duration;

use futures_lite::{StreamExt, future::poll_once};

use crate::asynch::{Client, Consumer};
use crate::core::served::serve;
use crate::{ConsumerOptions, Error, Options, ProducerOptions, Record, Start, TopicSettings};

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future)
        .await
        .expect("in time")
}

async fn read(consumer: &mut Consumer, count: usize) -> Vec<String> {
    let mut values = Vec::new();
    while values.len() < count {
        let batch = within(consumer.next()).await.expect("a good batch");
        let text = |v: Option<&[u8]>| String::from_utf8_lossy(v.unwrap_or_default()).into_owned();
        values.extend(batch.records().map(|r| text(r.value)));
    }
    values
}

#[tokio::test]
async fn a_refused_connection_is_reported_at_once() {
    let refused = within(Client::connect(["127.0.0.1:1"], Options::new()))
        .await
        .map(drop);
    assert!(matches!(refused, Err(Error::Connect { .. })), "{refused:?}");
}

#[tokio::test]
async fn each_shard_describes_itself_over_a_connection_of_its_own() {
    let served = serve(3);
    let client = within(Client::connect(&served.servers[..1], Options::new()))
        .await
        .expect("connected");
    let described = within(client.describe_shards()).await.expect("described");
    let told: Vec<_> = described.iter().map(|i| (i.shard, i.wal_records)).collect();
    assert_eq!(told, [(0, 100), (1, 101), (2, 102)]);
}

#[tokio::test]
async fn acknowledgements_are_futures_with_partition_and_offset() {
    let served = serve(2);
    let client = within(Client::connect(&served.servers, Options::new()))
        .await
        .expect("connected");
    within(client.create_topic("t", 2, &TopicSettings::default()))
        .await
        .expect("created");
    let options = ConsumerOptions::new()
        .start(Start::Earliest)
        .partitions([1]);
    let mut consumer = within(client.consumer("t", options))
        .await
        .expect("a consumer");
    let producer = within(client.producer("t", ProducerOptions::new()))
        .await
        .expect("a producer");
    let mut acks = Vec::new();
    for i in 0..300 {
        let value = i.to_string();
        acks.push(
            within(producer.send(&Record::new(&value).partition(1)))
                .await
                .expect("taken"),
        );
        if i == 150 {
            served.cut_connections();
        }
    }
    for (i, ack) in (0..).zip(acks) {
        let ack = within(ack).await.expect("appended");
        assert_eq!((ack.partition, ack.offset), (1, Some(i)));
    }
    let want: Vec<String> = (0..300).map(|i: u32| i.to_string()).collect();
    assert_eq!(read(&mut consumer, 300).await, want);
    within(consumer.commit("me")).await.expect("committed");
    let committed = within(client.read_offset("me", "t", 1))
        .await
        .expect("read");
    assert_eq!(committed.map(|c| c.offset), Some(300));
    consumer.seek(1, Start::Offset(298)).expect("moved");
    assert_eq!(read(&mut consumer, 2).await, ["298", "299"]);
}

#[tokio::test]
async fn as_a_stream_a_consumer_gives_whole_records_and_wakes_who_waits_for_them() {
    let served = serve(1);
    let client = within(Client::connect(&served.servers, Options::new()))
        .await
        .expect("connected");
    within(client.create_topic("t", 1, &TopicSettings::default()))
        .await
        .expect("created");
    let options = ConsumerOptions::new().start(Start::Earliest);
    let mut consumer = within(client.consumer("t", options))
        .await
        .expect("a consumer");
    let waiting = tokio::spawn(async move {
        let batch = consumer.try_next().await.expect("a good batch");
        (batch.expect("no end"), consumer)
    });
    // It waits before there is anything.
    while client.handle.lock().consumers.is_empty() {
        tokio::task::yield_now().await;
    }
    let producer = within(client.producer("t", ProducerOptions::new()))
        .await
        .expect("a producer");
    let headers = [("source", Some(&b"feed"[..])), ("empty", None)];
    let record = Record::new("v").key("k").headers(&headers).timestamp_ms(7);
    let ack = within(producer.send(&record)).await.expect("taken");
    within(ack).await.expect("appended");
    let (batch, consumer) = within(waiting).await.expect("no panic");
    assert_eq!((&*batch.topic, batch.partition), ("t", 0));
    assert_eq!((batch.next_offset, batch.leader_epoch), (1, 1));
    let [record] = &batch.records[..] else {
        panic!("{batch:?}");
    };
    assert_eq!((record.offset, record.timestamp_ms), (0, 7));
    assert_eq!(record.key.as_deref(), Some(&b"k"[..]));
    assert_eq!(record.value.as_deref(), Some(&b"v"[..]));
    let headers = [
        (b"source".to_vec(), Some(b"feed".to_vec())),
        (b"empty".to_vec(), None),
    ];
    assert_eq!(record.headers, headers);
    assert_eq!(consumer.position(0).expect("a partition"), Some(1));
}

#[tokio::test]
async fn a_stream_goes_on_after_an_error() {
    let served = serve(1);
    let client = within(Client::connect(&served.servers, Options::new()))
        .await
        .expect("connected");
    within(client.create_topic("t", 1, &TopicSettings::default()))
        .await
        .expect("created");
    let producer = within(client.producer("t", ProducerOptions::new()))
        .await
        .expect("a producer");
    let ack = within(producer.send(&Record::new("v"))).await;
    within(ack.expect("taken")).await.expect("appended");
    let options = ConsumerOptions::new().start(Start::Offset(9));
    let mut consumer = within(client.consumer("t", options))
        .await
        .expect("a consumer");
    let error = within(consumer.try_next()).await.expect_err("out of range");
    assert!(matches!(error, Error::OffsetOutOfRange { .. }), "{error}");
    assert!(poll_once(consumer.try_next()).await.is_none(), "it waits");
    consumer.seek(0, Start::Earliest).expect("moved");
    let batch = within(consumer.try_next()).await.expect("a good batch");
    assert_eq!(batch.expect("no end").records.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_buffer_makes_senders_wait() {
    let served = serve(1);
    let client = within(Client::connect(&served.servers, Options::new()))
        .await
        .expect("connected");
    within(client.create_topic("t", 1, &TopicSettings::default()))
        .await
        .expect("created");
    let options = ProducerOptions::new().buffer_bytes(500);
    let producer = within(client.producer("t", options))
        .await
        .expect("a producer");
    for _ in 0..200 {
        drop(
            within(producer.send(&Record::new(&[7; 100])))
                .await
                .expect("taken"),
        );
    }
    within(producer.flush()).await;
    assert_eq!(
        served.model.lock().expect("not poisoned").log("t", 0).next,
        200
    );
}

#[tokio::test]
async fn dropping_every_handle_ends_the_tasks_and_the_connections() {
    let served = serve(1);
    let client = within(Client::connect(&served.servers, Options::new()))
        .await
        .expect("connected");
    within(client.create_topic("t", 1, &TopicSettings::default()))
        .await
        .expect("created");
    let producer = within(client.producer("t", ProducerOptions::new()))
        .await
        .expect("a producer");
    drop(client);
    let ack = within(producer.send(&Record::new("v")))
        .await
        .expect("taken");
    assert_eq!(within(ack).await.expect("appended").offset, Some(0));
    let metrics = tokio::runtime::Handle::current().metrics();
    assert!(metrics.num_alive_tasks() > 0);
    drop(producer);
    within(async {
        while metrics.num_alive_tasks() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
