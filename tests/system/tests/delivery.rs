//! How records reach consumers: pushed and polled, at the tail and from segments, as far as credit
//! and visibility allow; and what the broker remembers for them.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use ringtide_schema::error_code::ErrorCode;
use ringtide_schema::frame::Op;
use ringtide_schema::ids::PartitionId;
use ringtide_system_tests::{
    Broker, Fault, Peer, Rec, Setup, batch, batch_at, now_ms, single, table, wait,
};

fn texts(records: &[Rec]) -> Vec<&str> {
    records.iter().map(Rec::text).collect()
}

/// A broker, a connection, and the partition of a topic with small segments.
fn scene() -> (Broker, Peer, PartitionId) {
    let broker = Broker::start();
    let mut peer = broker.peer();
    let settings = table!(TopicSettingsT {
        segment_bytes: Some(16 << 10)
    });
    let partition = peer
        .create_topic_with("feed", 1, settings)
        .expect("a topic")
        .partition(0);
    (broker, peer, partition)
}

/// Publishes `count` records of a few hundred bytes, a batch each, many in flight.
fn fill(peer: &mut Peer, partition: PartitionId, from: u64, count: u64) {
    let sent: Vec<u64> = (from..from + count)
        .map(|n| peer.send_publish(2, &[(partition, single(format!("{n:0300}")))]))
        .collect();
    for (n, correlation) in (from..).zip(sent) {
        let published = peer.published(correlation, 1).expect("an answer").remove(0);
        assert_eq!(published.expect("an acknowledgement").base_offset, n);
    }
}

fn assert_filled(records: &[Rec], from: u64, count: u64) {
    assert_eq!(records.len() as u64, count);
    for (n, record) in (from..).zip(records) {
        assert_eq!(record.offset, n);
        assert_eq!(record.text(), format!("{n:0300}"));
    }
}

// ---- polling ----------------------------------------------------------------------------------

#[test]
fn a_long_poll_is_answered_as_soon_as_data_arrives() {
    let (broker, mut peer, partition) = scene();
    let mut reader = broker.peer();
    let asked = Instant::now();
    let correlation = reader.send_fetch(partition, 0, 64 << 10, 1, 60_000);
    assert_eq!(
        reader.answer_within(correlation, wait::WATCH).unwrap_err(),
        Fault::Silent
    );
    peer.put(partition, "news");
    let answer = reader.answer(correlation).expect("an answer");
    assert_eq!(texts(&answer.records()), ["news"]);
    assert!(
        asked.elapsed() < Duration::from_secs(30),
        "it did not wait for the end of the poll"
    );
}

#[test]
fn a_long_poll_without_data_ends_when_its_time_is_up() {
    let (_broker, mut peer, partition) = scene();
    let asked = Instant::now();
    let correlation = peer.send_fetch(partition, 0, 64 << 10, 1, 400);
    assert_eq!(peer.answer(correlation).expect("an answer").records(), []);
    assert!(
        asked.elapsed() >= Duration::from_millis(350),
        "{:?}",
        asked.elapsed()
    );
}

#[test]
fn a_long_poll_waits_for_the_minimum_of_bytes() {
    let (broker, mut peer, partition) = scene();
    let mut reader = broker.peer();
    let correlation = reader.send_fetch(partition, 0, 64 << 10, 2000, 60_000);
    peer.put(partition, [b'x'; 500]);
    assert_eq!(
        reader.answer_within(correlation, wait::WATCH).unwrap_err(),
        Fault::Silent
    );
    peer.put(partition, [b'x'; 1600]);
    assert_eq!(
        reader
            .answer(correlation)
            .expect("an answer")
            .records()
            .len(),
        2
    );
}

#[test]
fn a_fetch_is_given_no_more_bytes_than_it_asked_for_but_always_a_batch() {
    let (_broker, mut peer, partition) = scene();
    fill(&mut peer, partition, 0, 50);
    for max_bytes in [1, 1000, 4000] {
        let correlation = peer.send_fetch(partition, 10, max_bytes, 1, 0);
        let answer = peer.answer(correlation).expect("an answer");
        let records = answer.records();
        assert_eq!(records[0].offset, 10);
        let fits = answer.payload.len() <= max_bytes as usize;
        assert!(
            fits || records.len() == 1,
            "{} bytes for {max_bytes}",
            answer.payload.len()
        );
    }
}

#[test]
fn a_fetch_within_a_batch_is_given_the_batch_that_contains_the_offset() {
    let (_broker, mut peer, partition) = scene();
    peer.publish(partition, batch(&["a", "b", "c", "d"]))
        .expect("acknowledged");
    let correlation = peer.send_fetch(partition, 2, 4096, 1, 0);
    let records = peer.answer(correlation).expect("an answer").records();
    assert_eq!(texts(&records), ["a", "b", "c", "d"], "whole batches");
    assert_eq!(
        texts(&peer.fetch(partition, 2).expect("records")),
        ["c", "d"]
    );
}

// ---- pushing ----------------------------------------------------------------------------------

#[test]
fn a_subscription_pushes_what_there_is_and_what_comes() {
    let (broker, mut peer, partition) = scene();
    fill(&mut peer, partition, 0, 100);
    let mut reader = broker.peer();
    let (subscription, begin) = reader
        .subscribe(partition, -2, 1 << 20)
        .expect("a subscription");
    assert_eq!(begin, 0);
    let mut records = reader.pushed_to(subscription, 100);
    fill(&mut peer, partition, 100, 50);
    records.extend(reader.pushed_to(subscription, 150));
    assert_filled(&records, 0, 150);
}

#[test]
fn a_subscription_from_latest_is_given_only_what_comes() {
    let (broker, mut peer, partition) = scene();
    fill(&mut peer, partition, 0, 10);
    let mut reader = broker.peer();
    let (subscription, begin) = reader
        .subscribe(partition, -1, 1 << 20)
        .expect("a subscription");
    assert_eq!(begin, 10);
    peer.put(partition, "eleventh");
    assert_eq!(texts(&reader.pushed_to(subscription, 11)), ["eleventh"]);
}

#[test]
fn a_subscription_delivers_until_its_credit_is_used_and_goes_on_with_more() {
    let (broker, mut peer, partition) = scene();
    fill(&mut peer, partition, 0, 100);
    let batch_bytes = peer.fetch_bytes(partition, 0) as u32;
    let mut reader = broker.peer();
    let (subscription, _) = reader
        .subscribe(partition, 0, 10 * batch_bytes)
        .expect("subscribed");
    let mut records = Vec::new();
    let mut drain = |reader: &mut Peer| {
        let mut bytes = 0;
        while let Ok(push) = reader.pushed_within(subscription, wait::WATCH) {
            bytes += push.payload.len();
            records.extend(push.records());
        }
        bytes as u32
    };
    assert_eq!(
        drain(&mut reader),
        10 * batch_bytes,
        "as many batches as the credit pays for"
    );
    assert_eq!(drain(&mut reader), 0, "and no more without more credit");
    reader.credit(subscription, 3 * batch_bytes);
    assert_eq!(drain(&mut reader), 3 * batch_bytes);
    reader.credit(subscription, 200 * batch_bytes);
    assert_eq!(drain(&mut reader), 87 * batch_bytes);
    assert_filled(&records, 0, 100);
}

#[test]
fn an_ended_subscription_pushes_nothing_more() {
    let (broker, mut peer, partition) = scene();
    let mut reader = broker.peer();
    let (subscription, _) = reader
        .subscribe(partition, 0, 1 << 20)
        .expect("a subscription");
    peer.put(partition, "before");
    assert_eq!(texts(&reader.pushed_to(subscription, 1)), ["before"]);
    reader.unsubscribe(subscription).expect("ended");
    peer.put(partition, "after");
    assert_eq!(
        reader.pushed_within(subscription, wait::WATCH).unwrap_err(),
        Fault::Silent
    );
    let fault = reader.unsubscribe(subscription).unwrap_err();
    assert_eq!(fault.code(), ErrorCode::UnknownSubscription);
}

#[test]
fn a_slow_subscriber_holds_up_no_other() {
    let (broker, mut peer, partition) = scene();
    let mut slow = broker.peer();
    let (starved, _) = slow.subscribe(partition, 0, 600).expect("a subscription");
    let mut quick = broker.peer();
    let (fed, _) = quick
        .subscribe(partition, 0, 1 << 20)
        .expect("a subscription");
    for round in 0..10 {
        fill(&mut peer, partition, round * 200, 200);
        assert_filled(&quick.pushed_to(fed, (round + 1) * 200), round * 200, 200);
    }
    slow.credit(starved, 1 << 20);
    assert_filled(&slow.pushed_to(starved, 2000), 0, 2000);
}

#[test]
fn two_subscriptions_on_one_connection_are_told_apart() {
    let (broker, mut peer, partition) = scene();
    let other = peer.create_topic("other", 1).partition(0);
    let mut reader = broker.peer();
    let (a, _) = reader
        .subscribe(partition, 0, 1 << 20)
        .expect("a subscription");
    let (b, _) = reader.subscribe(other, 0, 1 << 20).expect("a subscription");
    peer.put(partition, "to a");
    peer.put(other, "to b");
    assert_eq!(texts(&reader.pushed_to(b, 1)), ["to b"]);
    assert_eq!(texts(&reader.pushed_to(a, 1)), ["to a"]);
}

#[test]
fn catching_up_across_segments_gives_what_the_tail_gave() {
    for how in ["sendfile", "copy"] {
        let broker = Setup::new()
            .args(&["--catch-up", how, "--sync-interval-ms", "20"])
            .start();
        let mut peer = broker.peer();
        let settings = table!(TopicSettingsT {
            segment_bytes: Some(16 << 10)
        });
        let topic = peer
            .create_topic_with("feed", 1, settings)
            .expect("a topic");
        let partition = topic.partition(0);
        let mut tail = broker.peer();
        let (live, _) = tail
            .subscribe(partition, 0, 1 << 20)
            .expect("a subscription");
        let mut seen = Vec::new();
        for round in 0..8 {
            fill(&mut peer, partition, round * 500, 500);
            seen.extend(tail.pushed_to(live, (round + 1) * 500));
        }
        assert_filled(&seen, 0, 4000);
        wait::for_it("segments", || {
            peer.describe(partition).expect("described").segments > 50
        });

        let mut late = broker.peer();
        let (subscription, _) = late
            .subscribe(partition, -2, 1 << 20)
            .expect("a subscription");
        assert_eq!(late.pushed_to(subscription, 4000), seen, "pushed, {how}");
        assert_eq!(late.fetch_to(partition, 0, 4000), seen, "polled, {how}");
        assert_eq!(
            late.fetch_to(partition, 1777, 4000),
            seen[1777..],
            "from the middle, {how}"
        );
    }
}

// ---- visibility -------------------------------------------------------------------------------

#[test]
fn records_accepted_in_a_topic_visible_when_durable_are_delivered_once_they_are() {
    let (broker, mut peer, partition) = scene();
    let mut reader = broker.peer();
    let (subscription, _) = reader
        .subscribe(partition, 0, 1 << 20)
        .expect("a subscription");
    for n in 0..200 {
        peer.publish_with(1, partition, single(format!("{n}")))
            .expect("accepted");
        let now = peer.describe(partition).expect("described");
        assert!(
            now.visible <= now.committed && now.committed <= now.latest,
            "{now:?}"
        );
    }
    // Nobody waits for the disk, and still it is written soon.
    assert_eq!(reader.pushed_to(subscription, 200).len(), 200);
    let now = peer.describe(partition).expect("described");
    assert_eq!((now.visible, now.committed, now.latest), (200, 200, 200));
}

#[test]
fn records_of_a_topic_visible_when_accepted_are_delivered_before_they_are_durable() {
    let (broker, mut peer, _) = scene();
    let settings = table!(TopicSettingsT { visible: Some(1) });
    let topic = peer
        .create_topic_with("swift", 1, settings)
        .expect("a topic");
    let partition = topic.partition(0);
    let mut reader = broker.peer();
    let (subscription, _) = reader
        .subscribe(partition, 0, 1 << 20)
        .expect("a subscription");
    let mut ahead = 0;
    for n in 0..200 {
        peer.publish_with(1, partition, single(format!("{n}")))
            .expect("accepted");
        let now = peer.describe(partition).expect("described");
        assert_eq!(now.visible, now.latest, "whatever is accepted is visible");
        ahead += u32::from(now.visible > now.committed);
    }
    assert_eq!(reader.pushed_to(subscription, 200).len(), 200);
    assert!(
        ahead > 0,
        "not once in 200 was a record visible before it was durable"
    );
}

#[test]
fn acknowledgements_of_none_are_not_sent_and_the_records_are_there() {
    let (_broker, mut peer, partition) = scene();
    for n in 0..20 {
        peer.send_publish(0, &[(partition, single(format!("{n}")))]);
    }
    let end = wait::until("all twenty", || {
        let end = peer.describe(partition).expect("described").visible;
        (end == 20).then_some(end)
    });
    assert_eq!(peer.fetch_to(partition, 0, end).len(), 20);
    assert_eq!(
        peer.next_within(wait::WATCH).unwrap_err(),
        Fault::Silent,
        "nothing else came"
    );
}

// ---- offsets and retention --------------------------------------------------------------------

#[test]
fn retention_by_bytes_moves_the_earliest_offset_and_below_it_is_out_of_range() {
    let broker = Setup::new().args(&["--sync-interval-ms", "20"]).start();
    let mut peer = broker.peer();
    let settings = table!(TopicSettingsT {
        segment_bytes: Some(16 << 10),
        retention_bytes: Some(64 << 10)
    });
    let topic = peer
        .create_topic_with("kept", 1, settings)
        .expect("a topic");
    let partition = topic.partition(0);
    fill(&mut peer, partition, 0, 2000);
    let earliest = wait::until("old segments to go", || {
        let now = peer.describe(partition).expect("described");
        (now.bytes <= (64 << 10) + (32 << 10)).then_some(now.earliest)
    });
    assert!(
        (1500..2000).contains(&earliest),
        "the newest are kept: earliest is {earliest}"
    );
    assert_eq!(
        peer.list_offsets(partition, -2).expect("listed").offset,
        earliest
    );
    match peer.fetch(partition, 0) {
        Err(Fault::Refused(refused)) => {
            assert_eq!(refused.code, ErrorCode::OffsetOutOfRange);
            assert_eq!((refused.earliest, refused.latest), (earliest as i64, 2000));
        }
        other => panic!("a deleted offset was served: {other:?}"),
    }
    let fault = peer.subscribe(partition, 0, 4096).unwrap_err();
    assert_eq!(fault.code(), ErrorCode::OffsetOutOfRange);
    assert_filled(
        &peer.fetch_to(partition, earliest, 2000),
        earliest,
        2000 - earliest,
    );
    let (subscription, begin) = peer
        .subscribe(partition, -2, 1 << 20)
        .expect("a subscription");
    assert_eq!(begin, earliest);
    assert_filled(
        &peer.pushed_to(subscription, 2000),
        earliest,
        2000 - earliest,
    );
}

#[test]
fn retention_by_time_removes_what_is_too_old_and_keeps_the_rest() {
    let broker = Setup::new().args(&["--sync-interval-ms", "20"]).start();
    let mut peer = broker.peer();
    let settings = table!(TopicSettingsT {
        segment_bytes: Some(16 << 10),
        retention_ms: Some(3_600_000)
    });
    let topic = peer
        .create_topic_with("kept", 1, settings)
        .expect("a topic");
    let partition = topic.partition(0);
    let old = now_ms() - 2 * 3_600_000;
    for n in 0..100 {
        peer.publish(partition, batch_at(old, &[format!("{n:0300}")]))
            .expect("acknowledged");
    }
    fill(&mut peer, partition, 100, 100);
    wait::for_it("what is too old to go", || {
        peer.describe(partition).expect("described").earliest > 40
    });
    let earliest = peer.describe(partition).expect("described").earliest;
    assert!(earliest <= 100, "nothing young went: {earliest}");
    assert_filled(&peer.fetch_to(partition, 100, 200), 100, 100);
}

#[test]
fn a_removed_start_stays_removed_after_a_kill() {
    let mut broker = Setup::new().args(&["--sync-interval-ms", "20"]).start();
    let mut peer = broker.peer();
    let settings = table!(TopicSettingsT {
        segment_bytes: Some(16 << 10),
        retention_bytes: Some(64 << 10)
    });
    let topic = peer
        .create_topic_with("kept", 1, settings)
        .expect("a topic");
    let partition = topic.partition(0);
    fill(&mut peer, partition, 0, 1000);
    let earliest = wait::until("old segments to go", || {
        let earliest = peer.describe(partition).expect("described").earliest;
        (earliest > 500).then_some(earliest)
    });
    // What is durable after the new start was logged says that the new start is durable as well.
    fill(&mut peer, partition, 1000, 1);
    broker.kill();
    broker.restart();
    let mut peer = broker.peer();
    let now = peer.describe(partition).expect("described");
    assert!(
        now.earliest >= earliest,
        "{} before the kill, {now:?} after",
        earliest
    );
    assert_filled(
        &peer.fetch_to(partition, now.earliest, 1001),
        now.earliest,
        1001 - now.earliest,
    );
}

#[test]
fn offsets_are_listed_by_time() {
    let (_broker, mut peer, partition) = scene();
    let base = now_ms() - 1_000_000;
    for n in 0..200 {
        let value = format!("{n:0300}");
        peer.publish(partition, batch_at(base + n * 1000, &[value]))
            .expect("acknowledged");
    }
    let mut at = |ms| peer.list_offsets(partition, ms).expect("listed");
    let exact = at(base + 50_000);
    assert_eq!((exact.offset, exact.timestamp_ms), (50, base + 50_000));
    let between = at(base + 50_001);
    assert_eq!((between.offset, between.timestamp_ms), (51, base + 51_000));
    assert_eq!(at(0).offset, 0, "before all");
    let after = at(base + 900_000);
    assert_eq!(
        (after.offset, after.timestamp_ms),
        (200, -1),
        "after all: the end"
    );
    assert_eq!(at(-1).offset, 200);
    assert_eq!(at(-2).offset, 0);
}

#[test]
fn offsets_by_time_find_the_record_within_its_batch() {
    let (_broker, mut peer, partition) = scene();
    let base = now_ms() - 1_000_000;
    let mut builder =
        ringtide_schema::record::BatchBuilder::new(ringtide_schema::batch::Codec::None);
    for n in 0..10 {
        builder.push(base + n * 10, None, Some(b"x"), &[]);
    }
    let mut bytes = Vec::new();
    builder.finish(-1, -1, -1, &mut bytes).expect("a batch");
    peer.publish(partition, bytes).expect("acknowledged");
    let found = peer.list_offsets(partition, base + 41).expect("listed");
    assert_eq!((found.offset, found.timestamp_ms), (5, base + 50));
}

#[test]
fn committed_offsets_survive_restarts_of_any_kind() {
    let mut broker = Broker::start();
    let mut peer = broker.peer();
    let topic = peer.create_topic("read", 2);
    for n in 0..10 {
        peer.put(topic.partition(0), format!("{n}"));
    }
    assert_eq!(
        peer.read_offset("reader", topic.partition(0))
            .expect("read"),
        -1
    );
    peer.commit_offset("reader", topic.partition(0), 7)
        .expect("stored");
    peer.commit_offset("other", topic.partition(0), 3)
        .expect("stored");
    broker.kill();
    broker.restart();
    let mut peer = broker.peer();
    assert_eq!(
        peer.read_offset("reader", topic.partition(0))
            .expect("read"),
        7
    );
    peer.commit_offset("reader", topic.partition(0), 9)
        .expect("stored");
    assert_eq!(broker.stop(), 0);
    broker.restart();
    let mut peer = broker.peer();
    assert_eq!(
        peer.read_offset("reader", topic.partition(0))
            .expect("read"),
        9
    );
    assert_eq!(
        peer.read_offset("other", topic.partition(0)).expect("read"),
        3
    );
    assert_eq!(
        peer.read_offset("reader", topic.partition(1))
            .expect("read"),
        -1
    );
}

#[test]
fn append_time_is_the_brokers_and_ascends() {
    let (_broker, mut peer, _) = scene();
    let settings = table!(TopicSettingsT {
        timestamp_type: Some(1)
    });
    let topic = peer
        .create_topic_with("stamped", 1, settings)
        .expect("a topic");
    let partition = topic.partition(0);
    let before = now_ms();
    for _ in 0..5 {
        peer.publish(partition, batch_at(1000, &["from 1970"]))
            .expect("acknowledged");
    }
    let records = peer.fetch_to(partition, 0, 5);
    assert!(
        records.iter().all(|r| r.timestamp_ms >= before - 1000),
        "{records:?}"
    );
    assert!(records.is_sorted_by_key(|r| r.timestamp_ms));
}

// ---- publishing -------------------------------------------------------------------------------

#[test]
fn pipelined_requests_are_each_answered_once() {
    let (_broker, mut peer, partition) = scene();
    let mut sent = HashSet::new();
    for n in 0..300 {
        sent.insert(match n % 4 {
            0 => peer.send_publish(2, &[(partition, single(format!("{n}")))]),
            1 => peer.send(Op::Ping, &[], |b| table!(PingRequestT {}).pack(b)),
            2 => peer.send_fetch(partition, 0, 4096, 0, 0),
            _ => peer.send(Op::Metadata, &[], |b| table!(MetadataRequestT {}).pack(b)),
        });
    }
    while !sent.is_empty() {
        let answer = peer
            .next_within(wait::PATIENCE)
            .expect("an answer")
            .ok()
            .expect("no error");
        assert!(!answer.has_more());
        assert!(
            sent.remove(&answer.correlation),
            "answered twice: {}",
            answer.correlation
        );
    }
    assert_eq!(peer.next_within(wait::WATCH).unwrap_err(), Fault::Silent);
}

#[test]
fn one_request_publishes_to_several_partitions() {
    let broker = Setup::new().shards(2).start();
    let mut peer = broker.peer();
    let topic = peer.create_topic("wide", 4);
    let parts: Vec<_> = (0..4)
        .map(|p| (topic.partition(p), single(format!("to {p}"))))
        .collect();
    let correlation = peer.send_publish(2, &parts);
    for result in peer.published(correlation, 4).expect("answers") {
        assert_eq!(result.expect("acknowledged").base_offset, 0);
    }
    for p in 0..4 {
        let records = broker.peer().fetch_to(topic.partition(p), 0, 1);
        assert_eq!(records[0].text(), format!("to {p}"));
    }
}

/// A batch of one record of a producer.
fn produced(producer: (i64, i16), sequence: i32, value: &str) -> Vec<u8> {
    let mut builder =
        ringtide_schema::record::BatchBuilder::new(ringtide_schema::batch::Codec::None);
    builder.push(now_ms(), None, Some(value.as_bytes()), &[]);
    let mut out = Vec::new();
    builder
        .finish(producer.0, producer.1, sequence, &mut out)
        .expect("a batch");
    out
}

#[test]
fn a_batch_sent_again_is_appended_once_and_answered_with_its_offset() {
    let mut broker = Broker::start();
    let mut peer = broker.peer();
    let partition = peer.create_topic("once", 1).partition(0);
    let producer = peer.init_producer().expect("a producer");
    for n in 0..5 {
        peer.publish(partition, produced(producer, n, &format!("{n}")))
            .expect("acknowledged");
    }
    let again = |peer: &mut Peer, n: i32| {
        let bytes = produced(producer, n, &format!("{n}"));
        let published = peer.publish(partition, bytes).expect("acknowledged");
        assert_eq!(
            (published.base_offset, published.duplicate),
            (n as u64, true)
        );
    };
    for n in 0..5 {
        again(&mut peer, n);
    }
    broker.kill();
    broker.restart();
    let mut peer = broker.peer();
    again(&mut peer, 4);
    let fault = peer
        .publish(partition, produced(producer, 7, "a gap"))
        .unwrap_err();
    assert_eq!(fault.code(), ErrorCode::OutOfOrderSequence);
    let published = peer
        .publish(partition, produced(producer, 5, "5"))
        .expect("acknowledged");
    assert_eq!((published.base_offset, published.duplicate), (5, false));
    assert_eq!(
        texts(&peer.fetch_to(partition, 0, 6)),
        ["0", "1", "2", "3", "4", "5"]
    );
}

#[test]
fn no_producer_identity_is_given_twice() {
    let mut broker = Setup::new().shards(2).start();
    let mut seen = HashSet::new();
    for round in 0..3 {
        for shard in 0..2 {
            let mut peer = broker.peer_at(shard);
            for _ in 0..20 {
                let (id, epoch) = peer.init_producer().expect("a producer");
                assert!(id >= 0 && epoch >= 0);
                assert!(seen.insert(id), "producer id {id} was given twice");
            }
        }
        if round == 0 {
            broker.kill();
        } else {
            assert_eq!(broker.stop(), 0);
        }
        broker.restart();
    }
}

// ---- several shards ---------------------------------------------------------------------------

#[test]
fn every_operation_works_at_the_wrong_shard_or_names_the_right_one() {
    let broker = Setup::new().shards(2).start();
    let mut peer = broker.peer();
    let topic = peer.create_topic("forwarded", 2);
    let mine = topic.on_shard(0);
    let away = topic.on_shard(1);
    assert_ne!(mine, away);
    for (shard, partition) in [(1, mine), (0, away)] {
        let owner = broker.address(1 - shard).to_string();
        let wrong = |result: Result<(), Fault>| match result {
            Ok(()) => {}
            Err(Fault::Refused(refused)) => {
                assert_eq!(refused.code, ErrorCode::WrongShard, "{refused:?}");
                assert_eq!(refused.address.as_deref(), Some(owner.as_str()));
            }
            Err(other) => panic!("{other:?}"),
        };
        let mut peer = broker.peer_at(shard);
        // A publish is forwarded: a client may be late to learn where a partition lives.
        assert_eq!(peer.put(partition, "forwarded"), 0);
        wrong(
            peer.publish_with(1, partition, single("accepted"))
                .map(drop),
        );
        wrong(
            peer.fetch(partition, 0)
                .map(|records| assert!(!records.is_empty())),
        );
        wrong(peer.describe(partition).map(|d| assert!(d.latest >= 1)));
        wrong(
            peer.list_offsets(partition, -2)
                .map(|l| assert_eq!(l.offset, 0)),
        );
        wrong(peer.commit_offset("reader", partition, 1));
        wrong(
            peer.read_offset("reader", partition)
                .map(|o| assert_eq!(o, 1)),
        );
        match peer.subscribe(partition, 0, 1 << 20) {
            Ok((subscription, _)) => {
                assert_eq!(peer.pushed_to(subscription, 1)[0].text(), "forwarded");
                peer.unsubscribe(subscription).expect("ended");
            }
            Err(fault) => wrong(Err(fault)),
        }
        let mut owner = broker.peer_at(1 - shard);
        assert_eq!(owner.fetch_to(partition, 0, 1)[0].text(), "forwarded");
    }
}

#[test]
fn topics_are_made_altered_and_deleted_at_any_shard() {
    let broker = Setup::new().shards(2).start();
    let mut second = broker.peer_at(1);
    let topic = second.create_topic("anywhere", 4);
    assert_eq!(
        topic.shards.iter().filter(|&&s| s == 0).count(),
        2,
        "{topic:?}"
    );
    assert_eq!(broker.peer_at(0).topic("anywhere").expect("a topic"), topic);
    let altered = second.alter_topic("anywhere", Some(6), table!(TopicSettingsT {}));
    let altered = altered.expect("altered");
    assert_eq!(
        altered.shards[..4],
        topic.shards[..],
        "partitions stay where they are"
    );
    broker
        .peer_at(0)
        .put(altered.partition(5), "in a new partition");
    second.delete_topic("anywhere").expect("deleted");
    for shard in 0..2 {
        let mut peer = broker.peer_at(shard);
        assert_eq!(
            peer.topic("anywhere").unwrap_err().code(),
            ErrorCode::UnknownTopic
        );
        let fault = peer.fetch(topic.partition(0), 0).unwrap_err();
        assert_eq!(fault.code(), ErrorCode::UnknownTopic);
    }
}

#[test]
fn metadata_names_an_address_of_each_shard_that_answers() {
    let broker = Setup::new().shards(2).start();
    for asked in 0..2 {
        let shards = broker
            .peer_at(asked)
            .metadata()
            .expect("metadata")
            .shards
            .expect("shards");
        assert_eq!(shards.len(), 2);
        for (shard, address) in shards.iter().enumerate() {
            let host = address.host.as_deref().expect("a host");
            let at = format!("{host}:{}", address.port);
            assert_eq!(at, broker.address(shard).to_string());
        }
    }
}

#[test]
fn a_durable_publish_elsewhere_does_not_hold_up_an_accepted_one() {
    let (_broker, mut peer, partition) = scene();
    let other = peer.create_topic("other", 1).partition(0);
    // A large durable publish is on its way to the disk; what is only accepted overtakes it.
    let mut overtaken = 0;
    for _ in 0..20 {
        let durable = peer.send_publish(2, &[(other, single(vec![b'x'; 900_000]))]);
        let accepted = peer.send_publish(1, &[(partition, single("swift"))]);
        let first = peer
            .next_within(wait::PATIENCE)
            .expect("an answer")
            .correlation;
        overtaken += u32::from(first == accepted);
        let last = if first == accepted { durable } else { accepted };
        peer.answer(last).expect("an answer");
    }
    assert!(
        overtaken > 0,
        "not once in 20 did an accepted publish overtake a durable one"
    );
}

#[test]
fn a_topic_deleted_and_made_again_holds_only_the_new() {
    let mut broker = Setup::new().shards(2).start();
    for round in 0..5 {
        let mut peer = broker.peer_at(round % 2);
        let topic = peer.create_topic("phoenix", 2);
        for p in 0..2 {
            assert_eq!(peer.put(topic.partition(p), format!("life {round}")), 0);
        }
        if round == 2 {
            broker.kill();
            broker.restart();
        }
        let mut peer = broker.peer();
        for p in 0..2 {
            let records = peer.fetch_to(topic.partition(p), 0, 1);
            assert_eq!(texts(&records), [format!("life {round}")]);
        }
        peer.delete_topic("phoenix").expect("deleted");
    }
}

#[test]
fn a_subscriber_of_a_deleted_topic_is_told() {
    let (broker, mut peer, partition) = scene();
    let mut reader = broker.peer();
    let (subscription, _) = reader
        .subscribe(partition, 0, 1 << 20)
        .expect("a subscription");
    let mut poller = broker.peer();
    let poll = poller.send_fetch(partition, 0, 4096, 1, 60_000);
    peer.delete_topic("feed").expect("deleted");
    let fault = reader
        .pushed_within(subscription, wait::PATIENCE)
        .unwrap_err();
    assert_eq!(fault.code(), ErrorCode::UnknownTopic);
    assert_eq!(
        poller.answer(poll).unwrap_err().code(),
        ErrorCode::UnknownTopic
    );
}
