//! Whole runs against a broker that is none.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::fake::{Fault, Queue, VICTIM};
use super::*;
use crate::error::BenchError;

struct Nobody;

impl Watch for Nobody {
    fn progress(&mut self, _progress: Progress) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// Asks for the end once a run does this.
struct Impatient(&'static str);

impl Watch for Impatient {
    fn progress(&mut self, progress: Progress) -> ControlFlow<()> {
        match progress.phase == self.0 {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }
}

/// Takes its time when measuring has ended, as who asks a broker that is gone.
struct Slow {
    began: Instant,
    measured: Duration,
}

impl Watch for Slow {
    fn progress(&mut self, _progress: Progress) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    fn measuring(&mut self, is_measuring: bool) {
        if !is_measuring {
            self.measured = self.began.elapsed();
            std::thread::sleep(Duration::from_millis(500));
        }
    }
}

fn plan() -> Plan {
    Plan {
        rate_per_s: 4000.0,
        duration: Duration::from_millis(400),
        warm_up: Duration::from_millis(100),
        drain: Duration::from_millis(300),
        ..Plan::default()
    }
}

fn run_with(fault: Fault, plan: &Plan) -> Outcome {
    run(plan, None, &Queue::new(fault), &mut Nobody).expect("it began")
}

#[test]
fn every_record_is_sent_acknowledged_and_delivered_once() {
    let outcome = run_with(Fault::None, &plan());
    let balance = outcome.balance;
    assert!(outcome.error.is_none());
    assert_eq!(balance.faults(true), [""; 0]);
    assert_eq!(
        (balance.sent, balance.acked, balance.received),
        (2000, 2000, 2000)
    );
    assert_eq!(outcome.scheduled, 1600, "without the warm-up");
    for recorder in [
        &outcome.times.latency,
        &outcome.times.service,
        &outcome.times.lag,
        &outcome.times.end_to_end,
    ] {
        assert_eq!(recorder.count(), 1600);
    }
}

#[test]
fn each_fault_of_a_broker_is_found_and_counted_as_what_it_is() {
    let of = |fault| run_with(fault, &plan()).balance;
    assert_eq!(of(Fault::Loses).lost, 1);
    assert_eq!(of(Fault::Doubles).duplicated, 1);
    assert_eq!(of(Fault::Reorders).reordered, 1);
    let changed = of(Fault::Changes);
    assert_eq!((changed.corrupt, changed.lost), (1, 1));
    assert_eq!(of(Fault::ForgetsToAnswer).unacknowledged, 1);
    let refused = run_with(Fault::Refuses, &plan());
    assert_eq!(refused.balance.refused, 1);
    assert_eq!(refused.refusal.as_deref(), Some("too much"));
}

#[test]
fn what_is_far_too_much_ends_and_is_not_sent() {
    let plan = Plan {
        rate_per_s: 1e8,
        duration: Duration::from_millis(100),
        warm_up: Duration::ZERO,
        subscribers: 0,
        verify: false,
        ..plan()
    };
    let outcome = run_with(Fault::None, &plan);
    assert_eq!(
        outcome.scheduled, 10_000_000,
        "due, whether or not it was sent"
    );
    let Balance { sent, unsent, .. } = outcome.balance;
    assert!(sent > 0 && unsent > 0, "{sent} and {unsent}");
    assert_eq!(sent + unsent, outcome.scheduled);
    let lag = outcome.times.lag.summary().expect("records");
    assert!(lag.p99 > 1_000_000, "its own lateness: {lag:?}");
    let faults = outcome.balance.faults(true).join(", ");
    assert!(faults.contains("due and never sent"), "{faults}");
}

#[test]
fn who_does_not_want_to_wait_for_what_is_given_up_need_not() {
    let plan = Plan {
        rate_per_s: 1e8,
        duration: Duration::from_secs(1),
        warm_up: Duration::ZERO,
        drain: Duration::from_millis(1),
        subscribers: 0,
        ..plan()
    };
    let mut watch = Impatient("waiting for the rest");
    let outcome = run(&plan, None, &Queue::new(Fault::None), &mut watch).expect("it began");
    assert!(matches!(outcome.error, Some(BenchError::Interrupted)));
    assert!(outcome.scheduled < 100_000_000, "{}", outcome.scheduled);
}

#[test]
fn what_waits_for_a_broker_that_answers_no_more_is_counted_as_unsent() {
    let queue = Queue {
        in_flight: 10,
        ..Queue::new(Fault::FallsSilent)
    };
    let outcome = run(&plan(), None, &queue, &mut Nobody).expect("it began");
    let Balance { sent, unsent, .. } = outcome.balance;
    assert!(unsent > 1000, "{unsent}");
    assert_eq!(sent + unsent, 2000, "each is accounted for");
}

#[test]
fn silence_of_the_schedule_is_not_taken_for_the_broker_s() {
    let plan = Plan {
        rate_per_s: 1.0,
        duration: Duration::from_millis(1500),
        warm_up: Duration::ZERO,
        ..plan()
    };
    let outcome = run_with(Fault::Lags, &plan);
    assert_eq!(outcome.balance.faults(true), [""; 0]);
    assert_eq!(outcome.balance.received, 2);
}

#[test]
fn a_loss_is_found_without_subscribers_by_reading_back() {
    let plan = Plan {
        subscribers: 0,
        ..plan()
    };
    assert_eq!(run_with(Fault::Loses, &plan).balance.lost, 1);
    assert_eq!(run_with(Fault::None, &plan).balance.received, 2000);
    let unverified = Plan {
        verify: false,
        ..plan
    };
    let outcome = run_with(Fault::Loses, &unverified);
    assert!(!outcome.is_verified);
    assert_eq!(outcome.balance.lost, 0);
}

/// What was told, in turn: phases, and when measuring begins and ends.
struct Told(Vec<String>);

impl Watch for Told {
    fn progress(&mut self, progress: Progress) -> ControlFlow<()> {
        self.0.push(progress.phase.to_owned());
        ControlFlow::Continue(())
    }

    fn measuring(&mut self, is_measuring: bool) {
        self.0.push(is_measuring.to_string());
    }
}

#[test]
fn what_is_told_when_measuring_begins_and_ends_is_of_that_moment() {
    let mut told = Told(Vec::new());
    run(&plan(), None, &Queue::new(Fault::None), &mut told).expect("it began");
    for (event, phase) in [("true", "measuring"), ("false", "waiting for the rest")] {
        let at = told.0.iter().position(|told| told == event);
        let before = &told.0[at.expect("it was measured") - 1];
        assert_eq!(before, phase, "{:?}", told.0);
    }
}

#[test]
fn what_has_left_may_still_be_on_its_way_until_all_is_read() {
    let live = Plan {
        publishers: 2,
        cpus: vec![None; 2],
        ..plan()
    };
    let read_back = Plan {
        subscribers: 0,
        ..live.clone()
    };
    let preloaded = Plan {
        preload_bytes: 128 * 1000,
        rate_per_s: 1.0,
        replayers: 1,
        ..live.clone()
    };
    for plan in [live, read_back, preloaded] {
        let balance = run_with(Fault::TakesLate, &plan).balance;
        assert_eq!(balance.faults(true), [""; 0], "{plan:?}");
    }
}

#[test]
fn a_broker_that_dies_leaves_what_was_measured_and_the_reason() {
    let plan = Plan {
        duration: Duration::from_secs(600),
        warm_up: Duration::ZERO,
        ..plan()
    };
    let outcome = run_with(Fault::Dies, &plan);
    let error = outcome.error.expect("it died").to_string();
    let told = format!("it died (after {} acknowledged records)", VICTIM - 1);
    assert!(error.contains(&told), "{error}");
    assert!(outcome.balance.sent >= VICTIM as u64 - 1);
    assert!(outcome.elapsed < plan.duration, "{:?}", outcome.elapsed);
    let cells = outcome.cells.as_slice().len() as u64;
    let measured = outcome.measured.as_nanos() as u64;
    assert_eq!(cells, measured.div_ceil(timing::CELL_NS));
}

#[test]
fn what_is_asked_after_a_run_was_cut_short_is_not_of_the_time_that_it_had() {
    let plan = Plan {
        duration: Duration::from_secs(600),
        warm_up: Duration::ZERO,
        ..plan()
    };
    let mut watch = Slow {
        began: Instant::now(),
        measured: Duration::ZERO,
    };
    let outcome = run(&plan, None, &Queue::new(Fault::Dies), &mut watch).expect("it began");
    assert!(outcome.measured <= watch.measured, "{:?}", outcome.measured);
    assert!(!outcome.measured.is_zero());
}

#[test]
fn a_thread_that_panics_is_waited_for_by_no_other() {
    let plan = Plan {
        publishers: 2,
        subscribers: 2,
        cpus: vec![None; 2],
        ..plan()
    };
    let ended = run(&plan, None, &Queue::new(Fault::Panics), &mut Nobody);
    let error = ended.expect_err("it panicked").to_string();
    assert!(error.contains("panicked"), "{error}");
}

#[test]
fn a_stall_counts_for_every_record_that_was_due_in_it() {
    let pause = Duration::from_millis(200);
    let outcome = run_with(Fault::Stalls(pause), &plan());
    let latency = outcome.times.latency.summary().expect("records");
    assert!(latency.max >= 190_000_000, "{latency:?}");
    let slow = outcome
        .times
        .latency
        .histogram()
        .iter_recorded()
        .filter(|step| step.value_iterated_to() > 1_000_000)
        .map(|step| step.count_since_last_iteration())
        .sum::<u64>();
    // 4,000 a second for 0.2 s.
    assert!(slow >= 700, "{slow} slow records");
    let longest = outcome.cells.as_slice().iter().map(|c| c.max_latency_ns);
    assert!(longest.max() >= Some(180_000_000));
}

#[test]
fn what_comes_in_the_turn_that_crosses_a_second_counts_in_the_later_one() {
    let plan = Plan {
        drain: Duration::from_secs(10),
        ..plan()
    };
    let outcome = run_with(Fault::Blocks(Duration::from_millis(1200)), &plan);
    let [first, .., last] = &outcome.seconds[..] else {
        panic!("{:?}", outcome.seconds)
    };
    let longest = |second: &Second| second.latency_ns.expect("records").max;
    assert!(longest(first) <= 1_001_000_000, "{first:?}");
    assert!(longest(last) >= 1_190_000_000, "{last:?}");
}

#[test]
fn no_more_waits_in_memory_than_may() {
    let plan = Plan {
        most_waiting: 100,
        drain: Duration::from_secs(3600),
        ..plan()
    };
    let queue = Queue {
        in_flight: 10,
        ..Queue::new(Fault::FallsSilent)
    };
    let mut watch = Impatient("waiting for the rest");
    let outcome = run(&plan, None, &queue, &mut watch).expect("it began");
    assert_eq!(outcome.balance.unsent, 100);
}

#[test]
fn what_has_to_wait_in_the_schedule_is_timed_from_when_it_was_due_and_does_not_count_as_lag() {
    let plan = Plan {
        most_waiting: 100,
        ..plan()
    };
    let queue = Queue {
        in_flight: 10,
        ..Queue::new(Fault::Stalls(Duration::from_millis(200)))
    };
    let outcome = run(&plan, None, &queue, &mut Nobody).expect("it began");
    assert_eq!(outcome.balance.faults(true), [""; 0]);
    assert_eq!(outcome.balance.sent, 2000);
    let latency = outcome.times.latency.summary().expect("records");
    assert!(latency.max >= 190_000_000, "{latency:?}");
    let lag = outcome.times.lag.summary().expect("records");
    assert_eq!(lag.count, 1600);
    assert!(lag.p90 < 50_000_000, "{lag:?}");
}

#[test]
fn several_threads_share_publishers_and_subscribers_and_lose_nothing() {
    let plan = Plan {
        publishers: 5,
        subscribers: 3,
        partitions: 4,
        batch: 3,
        keys: Keys::Uniform(100),
        cpus: vec![None; 2],
        ..plan()
    };
    let outcome = run_with(Fault::None, &plan);
    let balance = outcome.balance;
    assert_eq!(balance.faults(true), [""; 0]);
    assert_eq!(balance.received, 3 * balance.sent);
    assert!(balance.sent >= 2000);
}

#[test]
fn a_batch_leaves_as_one_however_large_it_is_and_partitions_take_turns() {
    let plan = Plan {
        batch: 100,
        partitions: 4,
        ..plan()
    };
    let queue = Queue::new(Fault::None);
    run(&plan, None, &queue, &mut Nobody).expect("it began");
    let sent = queue.sent.lock().expect("whole");
    let sizes: Vec<usize> = sent.iter().map(|(_, records)| *records).collect();
    drop(sent);
    assert_eq!(sizes, [100; 20]);
    assert_eq!(queue.batches_of(4), [5; 4]);
}

#[test]
fn partitions_take_turns_when_too_little_is_due_to_fill_a_batch() {
    let feed = Feed::generated(1, 2000);
    let plan = Plan {
        schedule: Schedule::Feed,
        speed: 1000.0,
        batch: 8,
        partitions: 4,
        ..plan()
    };
    let queue = Queue::new(Fault::None);
    run(&plan, Some(&feed), &queue, &mut Nobody).expect("it began");
    let batches = queue.batches_of(4);
    let (least, most) = (batches.iter().min(), batches.iter().max());
    assert!(most.copied() <= least.map(|n| n + 1), "{batches:?}");
}

#[test]
fn no_more_is_in_flight_than_may_be_over_all_partitions() {
    let plan = Plan {
        batch: 8,
        partitions: 4,
        keys: Keys::Uniform(100),
        ..plan()
    };
    let queue = Queue {
        in_flight: 2,
        ..Queue::new(Fault::None)
    };
    let outcome = run(&plan, None, &queue, &mut Nobody).expect("it began");
    assert_eq!(outcome.balance.faults(true), [""; 0]);
    assert_eq!(*queue.most_in_flight.lock().expect("whole"), 2);
}

#[test]
fn replayers_are_given_what_was_there_before_and_what_comes() {
    let plan = Plan {
        replayers: 2,
        preload_bytes: 128 * 1000,
        ..plan()
    };
    let outcome = run_with(Fault::None, &plan);
    assert_eq!(outcome.balance.faults(true), [""; 0]);
    assert_eq!(outcome.balance.received, 2000 + 2 * 3000);
    assert_eq!(outcome.replayed, 2 * 3000 * 128);
    let lost = run_with(Fault::Loses, &plan);
    assert_eq!(lost.balance.lost, 2, "of what was there before");
}

#[test]
fn everybody_is_connected_before_the_schedule_begins() {
    let plan = Plan {
        replayers: 1,
        ..plan()
    };
    let queue = Queue::new(Fault::None);
    run(&plan, None, &queue, &mut Nobody).expect("it began");
    assert_eq!(*queue.connected_after.lock().expect("whole"), [0, 0]);
}

#[test]
fn what_was_there_before_and_is_visible_late_does_not_count_for_live_subscribers() {
    let plan = Plan {
        preload_bytes: 128 * 1000,
        ..plan()
    };
    let balance = run_with(Fault::ShowsLate, &plan).balance;
    assert_eq!(balance.faults(true), [""; 0]);
    assert_eq!(balance.received, 2000);
}

#[test]
fn plans_that_cannot_be_are_refused_with_what_would_do() {
    let good = Plan::default;
    for (plan, words) in [
        (
            Plan {
                size: Size::Bytes(31),
                ..good()
            },
            "at least 32",
        ),
        (
            Plan {
                size: Size::Bytes(usize::MAX),
                ..good()
            },
            "do not fit",
        ),
        (
            Plan {
                batch: 10_000,
                ..good()
            },
            "do not fit",
        ),
        (
            Plan {
                rate_per_s: 0.0,
                ..good()
            },
            "rate",
        ),
        (
            Plan {
                rate_per_s: f64::NAN,
                ..good()
            },
            "rate",
        ),
        (
            Plan {
                schedule: Schedule::Feed,
                ..good()
            },
            "--feed",
        ),
        (
            Plan {
                partitions: 0,
                ..good()
            },
            "partitions",
        ),
        (
            Plan {
                publishers: 0,
                ..good()
            },
            "publishers",
        ),
        (
            Plan {
                schedule: Schedule::Bursts(10),
                batch: 11,
                ..good()
            },
            "burst of 10",
        ),
        (
            Plan {
                drain: Duration::ZERO,
                ..good()
            },
            "drain",
        ),
    ] {
        let error = plan.check(None).expect_err(words).to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn a_feed_that_would_be_played_in_no_time_is_refused() {
    let feed = Feed::generated(1, 2000);
    let good = Plan {
        schedule: Schedule::Feed,
        ..Plan::default()
    };
    assert!(good.check(Some(&feed)).is_ok());
    for plan in [
        Plan {
            max_silence: Duration::ZERO,
            ..good.clone()
        },
        Plan {
            speed: 1e300,
            ..good
        },
    ] {
        let error = plan.check(Some(&feed)).expect_err("in no time").to_string();
        assert!(error.contains("--max-silence"), "{error}");
    }
}
