//! The asynchronous face against a model broker behind real sockets.

use std::time::Duration;

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
