//! What becomes of records when answers, connections and topics are lost.

use std::time::Duration;

use ringtide_schema::error_code::ErrorCode;
use ringtide_schema::frame::Op;

use crate::core::tests::{Line, World, producer_options};
use crate::error::Error;
use crate::options::{Acks, ProducerOptions};
use crate::record::Ticket;

/// Sends one record and lets the broker have it, but not the client the answer.
fn with_a_lost_answer(options: ProducerOptions) -> (World, Ticket) {
    let mut world = World::new(1, options);
    // The identity is there, and the broker knows it.
    let first = world.send(0);
    world.heal();
    assert!(world.done[&first].is_ok());
    let ticket = world.send(0);
    world.tick();
    world.broker_gets(0, 255);
    (world, ticket)
}

#[test]
fn a_lost_answer_is_made_good_with_the_offset_of_the_first_attempt() {
    let (mut world, ticket) = with_a_lost_answer(producer_options());
    world.cut(0);
    world.heal();
    let ack = world.done[&ticket].as_ref().expect("appended");
    assert_eq!((ack.offset, ack.duplicate), (Some(1), true));
    world.check();
}

#[test]
#[should_panic(expected = "acknowledged, found at")]
fn the_check_finds_a_broker_that_appends_twice() {
    let (mut world, _) = with_a_lost_answer(producer_options());
    world.cut(0);
    let log = world.model.log("t", 0);
    for producer in log.producers.values_mut() {
        producer.forget_last();
    }
    world.heal();
    world.check();
}

#[test]
fn a_lost_answer_of_a_forgotten_producer_is_an_unknown_outcome() {
    let (mut world, ticket) = with_a_lost_answer(producer_options());
    world.cut(0);
    world.model.log("t", 0).producers.clear();
    world.heal();
    assert!(matches!(
        world.done[&ticket],
        Err(Error::OutcomeUnknown { .. })
    ));
    // The next record goes on under a new identity.
    let next = world.send(0);
    world.heal();
    assert!(world.done[&next].is_ok());
    world.check();
}

#[test]
fn a_forgotten_producer_goes_on_under_a_new_identity() {
    let mut world = World::new(1, producer_options());
    world.send(0);
    world.heal();
    world.model.log("t", 0).producers.clear();
    for _ in 0..20 {
        world.send(0);
    }
    world.heal();
    world.check();
    assert_eq!(world.acknowledged(), 21);
    assert_eq!(world.model.log("t", 0).producers.len(), 1);
}

#[test]
fn a_lost_answer_without_idempotence_is_an_unknown_outcome_and_not_sent_again() {
    let (mut world, ticket) = with_a_lost_answer(producer_options().idempotence(false));
    world.cut(0);
    world.heal();
    let error = world.done[&ticket].as_ref().expect_err("unknown");
    assert!(
        error.is_outcome_unknown() && !error.is_retriable(),
        "{error}"
    );
    for _ in 0..100 {
        world.round(Duration::from_millis(20));
    }
    assert_eq!(world.model.log("t", 0).next, 2);
}

#[test]
fn an_answer_that_never_comes_ends_the_connection_and_the_batch_is_sent_again() {
    let (mut world, ticket) = with_a_lost_answer(producer_options());
    // The broker is silent for longer than a request may take.
    if let Some(line) = world.lines.get_mut(&0) {
        line.to_client.clear();
    }
    world.now += Duration::from_millis(600);
    world.heal();
    assert!(world.done[&ticket].as_ref().expect("appended").duplicate);
    world.check();
}

#[test]
fn a_topic_made_anew_gets_what_was_not_sent_and_the_rest_is_unknown() {
    let (mut world, ambiguous) = with_a_lost_answer(producer_options());
    world.cut(0);
    world.model.topics.remove("t");
    world.model.create("t", 1);
    let fresh = world.send(0);
    world.heal();
    assert!(matches!(
        world.done[&ambiguous],
        Err(Error::OutcomeUnknown { .. })
    ));
    assert_eq!(
        world.done[&fresh].as_ref().expect("appended").offset,
        Some(0)
    );
}

#[test]
fn records_for_a_topic_that_was_deleted_fail() {
    let mut world = World::new(1, producer_options());
    world.send(0);
    world.heal();
    world.model.topics.remove("t");
    let ticket = world.send(0);
    world.heal();
    let error = world.done[&ticket].as_ref().expect_err("no topic");
    assert_eq!(error.code(), Some(ErrorCode::UnknownTopic), "{error}");
}

#[test]
fn a_partition_that_moved_is_found_again() {
    let mut world = World::new(2, producer_options());
    world.send(1);
    world.heal();
    // The shards swap their ports, as after a restart with another number of cores.
    world.model.shards.reverse();
    world.model.refuse.extend([Some(ErrorCode::WrongShard); 2]);
    let before: u64 = world.core.link_to(&"broker".into(), 1) as u64;
    world.send(1);
    world.heal();
    world.check();
    assert_eq!(before, 0);
    assert_eq!(world.acknowledged(), 2);
}

#[test]
fn nobody_answers_and_records_time_out_without_having_been_appended() {
    let timeout = Duration::from_secs(1);
    let mut world = World::new(1, producer_options().delivery_timeout(timeout));
    world.cut(0);
    world.gone.insert(1);
    let ticket = world.send(0);
    world.heal();
    let error = world.done[&ticket].as_ref().expect_err("in vain");
    assert!(
        matches!(error, Error::Timeout { .. }) && error.is_retriable(),
        "{error}"
    );
    assert!(world.now - world.start >= timeout);
    world.check();
}

#[test]
fn a_record_that_was_refused_to_the_end_fails_with_that_refusal() {
    let timeout = Duration::from_secs(1);
    let mut world = World::new(1, producer_options().delivery_timeout(timeout));
    world.model.refuse.extend([Some(ErrorCode::DiskFull); 5000]);
    let ticket = world.send(0);
    world.heal();
    let error = world.done[&ticket].as_ref().expect_err("in vain");
    assert_eq!(error.code(), Some(ErrorCode::DiskFull));
    assert!(
        error.is_retriable() && error.to_string().contains("1 s"),
        "{error}"
    );
    world.check();
}

#[test]
fn a_refused_identity_is_asked_for_again_with_patience_and_named_when_records_are_given_up() {
    let timeout = Duration::from_secs(1);
    let mut world = World::new(1, producer_options().delivery_timeout(timeout));
    world.model.refused_op = Some((Op::InitProducer, ErrorCode::UnknownOperation));
    let ticket = world.send(0);
    for _ in 0..20 {
        world.round(Duration::ZERO);
    }
    assert_eq!(world.model.refusals, 1);
    world.heal();
    let error = world.done[&ticket].as_ref().expect_err("in vain");
    assert_eq!(error.code(), Some(ErrorCode::UnknownOperation), "{error}");
    world.model.refused_op = None;
    let next = world.send(0);
    world.heal();
    assert!(world.done[&next].is_ok());
}

#[test]
fn the_loss_of_records_that_were_durable_is_reported_and_what_follows_is_appended() {
    let mut world = World::new(1, producer_options().batch_bytes(1));
    for _ in 0..3 {
        world.send(0);
    }
    world.heal();
    world.model.log("t", 0).lose_last();
    let tickets = [world.send(0), world.send(0), world.send(0)];
    world.heal();
    let error = world.done[&tickets[0]].as_ref().expect_err("a loss");
    assert!(matches!(error, Error::AcknowledgedLost { .. }), "{error}");
    assert!(!error.is_retriable() && !error.is_outcome_unknown());
    for (offset, ticket) in (2..).zip(&tickets[1..]) {
        let ack = world.done[ticket].as_ref().expect("appended");
        assert_eq!((ack.offset, ack.duplicate), (Some(offset), false));
    }
}

#[test]
fn the_loss_of_records_that_were_only_accepted_is_no_error_of_the_next() {
    let mut world = World::new(1, producer_options().acks(Acks::Accepted));
    world.send(0);
    world.heal();
    world.send(0);
    world.heal();
    assert_eq!(world.core.producer(world.producer).losses, 0);
    world.model.log("t", 0).lose_last();
    let ticket = world.send(0);
    world.heal();
    assert_eq!(
        world.done[&ticket].as_ref().expect("appended").offset,
        Some(1)
    );
    assert_eq!(world.core.producer(world.producer).losses, 1);
}

#[test]
fn a_gap_that_a_failed_batch_left_is_not_taken_for_a_loss() {
    let mut world = World::new(1, producer_options().batch_bytes(1));
    world.send(0);
    world.heal();
    world.model.refuse.push_back(Some(ErrorCode::BadBatch));
    let tickets = [world.send(0), world.send(0), world.send(0)];
    world.heal();
    assert!(world.done[&tickets[0]].is_err());
    assert!(tickets[1..].iter().all(|t| world.done[t].is_ok()));
    world.check();
}

#[test]
fn an_answer_that_has_arrived_counts_although_its_time_is_over_when_more_is_sent() {
    let timeout = Duration::from_secs(1);
    let (mut world, ticket) = with_a_lost_answer(producer_options().delivery_timeout(timeout));
    world.now += timeout * 2;
    world.send(0);
    world.client_gets(0, 255);
    world.tick();
    assert!(world.done[&ticket].is_ok());
}

#[test]
fn batches_form_while_the_window_is_full() {
    let mut world = World::new(1, producer_options());
    for _ in 0..1000 {
        world.send(0);
    }
    world.heal();
    world.check();
    // Five single records at once, then what had gathered meanwhile.
    assert!(
        world.model.log("t", 0).batches.len() <= 10,
        "{}",
        world.model.log("t", 0).batches.len()
    );
}

#[test]
fn a_lingering_batch_waits_for_its_time_or_a_flush() {
    let linger = Duration::from_millis(50);
    let mut world = World::new(1, producer_options().linger(linger));
    world.round(Duration::ZERO);
    world.send(0);
    for _ in 0..10 {
        world.round(Duration::from_millis(1));
    }
    assert_eq!(world.model.log("t", 0).next, 0);
    world.now += linger;
    world.round(Duration::ZERO);
    world.round(Duration::ZERO);
    assert_eq!(world.model.log("t", 0).next, 1);
    world.send(0);
    world.core.flush(world.producer, world.now);
    world.round(Duration::ZERO);
    assert_eq!(world.model.log("t", 0).next, 2);
}

#[test]
fn without_idempotence_a_thousand_single_records_are_in_flight() {
    let mut world = World::new(1, producer_options().idempotence(false));
    world.send(0);
    world.heal();
    for _ in 0..1000 {
        world.send(0);
    }
    world.tick();
    world.broker_gets(1, 255);
    world.broker_gets(0, 255);
    assert_eq!(world.model.log("t", 0).batches.len(), 1001);
    world.heal();
    world.check();
}

#[test]
fn added_partitions_are_noticed_when_the_metadata_is_old() {
    let mut world = World::new(1, producer_options());
    world.send(0);
    world.heal();
    world
        .model
        .topics
        .get_mut("t")
        .expect("the topic")
        .logs
        .push(Default::default());
    world.now += Duration::from_secs(61);
    for _ in 0..10 {
        world.round(Duration::from_millis(50));
    }
    let ticket = world.send(1);
    world.heal();
    assert_eq!(world.done[&ticket].as_ref().expect("appended").partition, 1);
}

#[test]
fn an_answer_to_a_producer_that_is_gone_completes_nothing_of_another() {
    let (mut world, _) = with_a_lost_answer(producer_options());
    let topic = world.core.producer(world.producer).topic.clone();
    world.core.remove_producer(world.producer);
    let added = world
        .core
        .add_producer(topic, producer_options().idempotence(false), world.now);
    world.producer = added.expect("good options");
    world.sent.clear();
    world.done.clear();
    let tickets = [world.send(0), world.send(0)];
    world.client_gets(0, 255);
    world.tick();
    assert!(world.done.is_empty(), "nobody appended {tickets:?}");
    world.heal();
    world.check();
}

#[test]
fn without_acknowledgements_a_record_is_done_when_the_broker_has_handled_it() {
    let mut world = World::new(1, producer_options().acks(Acks::None));
    world.round(Duration::ZERO);
    world.round(Duration::ZERO);
    for _ in 0..2 {
        let ticket = world.send(0);
        let taken = world.core.flush(world.producer, world.now);
        let before = world.model.log("t", 0).next;
        world.tick();
        assert!(!world.core.producer(world.producer).has_settled(&taken));
        world.broker_gets(0, 255);
        assert_eq!(world.model.log("t", 0).next, before + 1);
        world.client_gets(0, 255);
        assert!(world.core.producer(world.producer).has_settled(&taken));
        world.tick();
        assert!(world.done[&ticket].is_ok());
    }
}

#[test]
fn without_acknowledgements_any_number_of_records_is_vouched_for_by_few_pings() {
    let mut world = World::new(1, producer_options().acks(Acks::None).batch_bytes(1));
    for _ in 0..1000 {
        world.send(0);
    }
    let before = world.now;
    world.heal();
    assert!(world.now - before < Duration::from_millis(100));
    assert_eq!(world.acknowledged(), 1000);
    assert_eq!(world.model.log("t", 0).next, 1000);
}

#[test]
fn without_acknowledgements_what_was_not_handled_is_an_unknown_outcome_when_the_connection_ends() {
    let mut world = World::new(1, producer_options().acks(Acks::None));
    world.round(Duration::ZERO);
    world.round(Duration::ZERO);
    let ticket = world.send(0);
    world.core.lost(0, "cut", world.now);
    world.tick();
    assert!(
        world.done[&ticket]
            .as_ref()
            .expect_err("lost")
            .is_outcome_unknown()
    );
}

#[test]
fn a_flush_waits_for_what_was_taken_before_it_and_for_nothing_else() {
    let (mut world, first) = with_a_lost_answer(producer_options());
    let taken = world.core.flush(world.producer, world.now);
    world.send(0);
    assert!(!world.core.producer(world.producer).has_settled(&taken));
    world.client_gets(0, 255);
    world.tick();
    assert!(world.done[&first].is_ok());
    assert!(world.core.producer(world.producer).has_settled(&taken));
    assert!(world.core.producer(world.producer).held_bytes > 0);
}

#[test]
fn what_is_sent_after_a_flush_lingers_again() {
    let linger = Duration::from_millis(50);
    let mut world = World::new(1, producer_options().linger(linger));
    world.round(Duration::ZERO);
    world.send(0);
    world.core.flush(world.producer, world.now);
    world.send(0);
    for _ in 0..10 {
        world.round(Duration::from_millis(1));
    }
    assert_eq!(world.model.log("t", 0).next, 1);
}

/// Two records of one batch each, on their way when the connection is given up; what was sent is
/// kept, to arrive later.
fn with_two_on_a_lost_connection(apart: Duration) -> (World, [Ticket; 2], Line) {
    let timeout = Duration::from_secs(1);
    let mut world = World::new(
        1,
        producer_options().delivery_timeout(timeout).batch_bytes(1),
    );
    world.send(0);
    world.heal();
    let first = world.send(0);
    world.now += apart;
    let second = world.send(0);
    world.tick();
    let orphan = world.lines.remove(&0).expect("a line");
    assert!(!orphan.to_broker.is_empty());
    world.core.lost(0, "given up", world.now);
    (world, [first, second], orphan)
}

fn arrives(world: &mut World, mut orphan: Line) {
    world.model.feed(&mut orphan.peer, &orphan.to_broker);
    world.heal();
    world.check();
}

#[test]
fn what_follows_a_record_of_unknown_outcome_on_a_lost_connection_is_not_appended_twice() {
    let (mut world, tickets, orphan) = with_two_on_a_lost_connection(Duration::from_millis(400));
    world.gone.insert(1);
    while world.done.len() < 2 {
        world.round(Duration::from_millis(10));
    }
    assert!(
        world.done[&tickets[0]]
            .as_ref()
            .is_err_and(Error::is_outcome_unknown)
    );
    world.gone.clear();
    world.heal();
    assert!(
        world.done[&tickets[1]]
            .as_ref()
            .is_err_and(Error::is_outcome_unknown)
    );
    let next = world.send(0);
    world.heal();
    assert!(world.done[&next].is_ok());
    arrives(&mut world, orphan);
}

#[test]
fn what_follows_a_record_that_was_refused_until_its_time_was_over_is_not_appended_twice() {
    let (mut world, tickets, orphan) = with_two_on_a_lost_connection(Duration::from_millis(400));
    let refused_and_out_of_order = [Some(ErrorCode::Overloaded), None];
    world
        .model
        .refuse
        .extend(refused_and_out_of_order.repeat(1000));
    while !world.done.contains_key(&tickets[0]) {
        world.round(Duration::from_millis(1));
    }
    world.model.refuse.clear();
    world.heal();
    let outcomes = tickets.map(|ticket| world.done[&ticket].clone());
    assert!(
        outcomes
            .iter()
            .all(|outcome| outcome.as_ref().is_err_and(Error::is_outcome_unknown))
    );
    arrives(&mut world, orphan);
}

#[test]
fn without_acknowledgements_a_topic_made_anew_is_noticed_by_the_next_record() {
    let mut world = World::new(1, producer_options().acks(Acks::None));
    world.send(0);
    world.heal();
    world.model.topics.remove("t");
    world.model.create("t", 1);
    let renewed = world.model.topics["t"].id;
    world.send(0);
    for _ in 0..10 {
        world.round(Duration::from_millis(10));
    }
    assert_eq!(world.core.producer(world.producer).topic.id, renewed);
}

#[test]
fn a_refusal_is_named_although_a_shard_that_has_nothing_to_do_with_it_is_away() {
    let timeout = Duration::from_secs(1);
    let mut world = World::new(2, producer_options().delivery_timeout(timeout));
    world.gone.insert(2);
    world.send(1);
    while world.core.trouble().is_none() {
        world.round(Duration::from_millis(5));
    }
    world.model.refuse.extend([Some(ErrorCode::DiskFull); 5000]);
    let ticket = world.send(0);
    for _ in 0..10 {
        world.round(Duration::from_millis(5));
    }
    let said = world
        .core
        .in_the_way(world.producer, 0)
        .and_then(Error::code);
    assert_eq!(said, Some(ErrorCode::DiskFull));
    world.heal();
    let error = world.done[&ticket].as_ref().expect_err("in vain");
    assert_eq!(error.code(), Some(ErrorCode::DiskFull), "{error}");
}

/// One record for each partition, ready in the same moment, in requests that the broker does not
/// have yet.
fn with_records_for_each(partitions: u32, options: ProducerOptions) -> (World, Vec<Ticket>) {
    let linger = Duration::from_secs(1);
    let mut world = World::new(partitions, options.linger(linger));
    // The identity and both connections are there.
    for partition in 0..partitions {
        world.send(partition);
    }
    world.core.flush(world.producer, world.now);
    world.heal();
    world.model.published.clear();
    let tickets = (0..partitions).map(|p| world.send(p)).collect();
    world.core.flush(world.producer, world.now);
    world.tick();
    (world, tickets)
}

#[test]
fn batches_for_partitions_of_one_server_that_are_ready_together_leave_in_one_request() {
    let (mut world, _) = with_records_for_each(6, producer_options());
    world.heal();
    assert_eq!(world.model.published, [3, 3]);
    world.check();
}

#[test]
fn without_acknowledgements_each_batch_leaves_alone_so_that_an_unknown_partition_is_noticed() {
    let (mut world, _) = with_records_for_each(6, producer_options().acks(Acks::None));
    world.heal();
    assert_eq!(world.model.published, [1; 6]);
    world.check();
}

#[test]
fn batches_of_more_than_a_few_kib_do_not_leave_together() {
    let mut world = World::new(8, producer_options().linger(Duration::from_secs(1)));
    let value = [7; 3 << 10];
    for partition in [0, 2, 4] {
        let record = crate::record::Record::new(&value).partition(partition);
        let sent = world.core.send(world.producer, &record, 5, world.now);
        world
            .sent
            .insert(sent.expect("taken"), partition.to_string().into_bytes());
    }
    let large = [7; 10 << 10];
    let record = crate::record::Record::new(&large).partition(6);
    let sent = world.core.send(world.producer, &record, 5, world.now);
    world.sent.insert(sent.expect("taken"), b"6".to_vec());
    world.core.flush(world.producer, world.now);
    world.heal();
    assert_eq!(world.model.published, [2, 1, 1]);
    assert_eq!(world.acknowledged(), 4);
}

#[test]
fn of_several_parts_those_that_were_refused_for_now_are_sent_again_and_no_others() {
    let (mut world, tickets) = with_records_for_each(6, producer_options());
    let of_first_shard = [None, Some(ErrorCode::Overloaded), Some(ErrorCode::BadBatch)];
    world.model.refuse.extend(of_first_shard);
    world.broker_gets(0, 255);
    world.heal();
    let first = [0, 2, 4].map(|partition| &world.done[&tickets[partition]]);
    let [Ok(taken), Ok(refused_once), Err(refused)] = first else {
        panic!("{first:?}");
    };
    assert!(!taken.duplicate && !refused_once.duplicate);
    assert_eq!(refused.code(), Some(ErrorCode::BadBatch));
    assert_eq!(world.model.published, [3, 3, 1]);
    world.check();
}

#[test]
fn of_several_parts_those_whose_answer_was_lost_are_sent_again_and_no_others() {
    let (mut world, tickets) = with_records_for_each(6, producer_options());
    // The first of two answers arrives; the lowest partition is in the second.
    world.broker_gets(0, 255);
    let answers = world.lines[&0].to_client.clone();
    let mut first = usize::MAX;
    let mut at = 0;
    ringtide_session::Assembler::new()
        .feed(&answers, |frame| {
            at += frame.header.frame_bytes();
            first = first.min(at);
        })
        .expect("good frames");
    assert!(first < answers.len(), "one answer");
    world.core.received(0, &answers[..first], world.now);
    world.tick();
    assert!(world.done.contains_key(&tickets[2]) && world.done.contains_key(&tickets[4]));
    assert!(!world.done.contains_key(&tickets[0]));
    world.cut(0);
    world.heal();
    let duplicate = |partition: usize| {
        world.done[&tickets[partition]]
            .as_ref()
            .map(|a| a.duplicate)
    };
    assert!(duplicate(0).expect("appended"));
    assert!(!duplicate(2).expect("appended") && !duplicate(4).expect("appended"));
    world.check();
}

#[test]
fn a_part_without_a_result_ends_the_connection_and_is_sent_again() {
    let (mut world, tickets) = with_records_for_each(6, producer_options());
    world.model.omit_results = true;
    world.broker_gets(0, 255);
    world.client_gets(0, 255);
    assert!(matches!(world.core.trouble(), Some(Error::Protocol { .. })));
    world.model.omit_results = false;
    world.heal();
    assert!(
        world.done[&tickets[0]]
            .as_ref()
            .expect("appended")
            .duplicate
    );
    world.check();
}

#[test]
fn parts_of_a_request_that_was_refused_as_a_whole_are_sent_again() {
    let (mut world, _) = with_records_for_each(6, producer_options());
    world.model.refused_op = Some((Op::Publish, ErrorCode::ShuttingDown));
    world.broker_gets(0, 255);
    world.client_gets(0, 255);
    world.model.refused_op = None;
    assert_eq!(world.model.refusals, 1);
    world.heal();
    assert_eq!(world.acknowledged(), 12);
    world.check();
}

#[test]
fn requests_of_several_parts_keep_to_what_the_broker_allows_on_a_connection() {
    let mut world = World::new(6, producer_options().batch_bytes(1));
    world.model.max_in_flight = 2;
    world.cut(0);
    // Each fills more than half of a request.
    let value = [7; 40 << 10];
    for partition in [0, 2, 4].repeat(3) {
        let record = crate::record::Record::new(&value).partition(partition);
        let sent = world.core.send(world.producer, &record, 5, world.now);
        world.sent.insert(sent.expect("taken"), value.to_vec());
    }
    let mut most = 0;
    for _ in 0..1000 {
        world.tick();
        let ready = world.core.links[0].ready();
        most = most.max(ready.map_or(0, |connection| connection.in_flight()));
        world.broker_gets(0, 255);
        world.client_gets(0, 255);
        world.now += Duration::from_millis(1);
    }
    assert_eq!(most, 2);
    assert_eq!(world.acknowledged(), 9);
}
