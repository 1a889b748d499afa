//! Whole runs against a broker that is none: a queue in memory, with faults to be planted.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::target::{From, Outgoing, PublishSide, SubscribeSide, Target, Verdict};
use super::*;
use crate::error::BenchError;

/// What is wrong with a broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// One record is not delivered.
    Loses,
    /// One record is delivered twice.
    Doubles,
    /// One record is delivered after the one behind it.
    Reorders,
    /// One record is changed.
    Changes,
    /// One batch is not answered.
    ForgetsToAnswer,
    /// One batch is refused.
    Refuses,
    /// Nothing happens for this long, once.
    Stalls(Duration),
    /// A turn takes this long, once, before it hands out what it has.
    Blocks(Duration),
    /// The connection ends.
    Dies,
}

/// The record, or batch, that is treated wrongly.
const VICTIM: usize = 300;

struct Queue {
    fault: Fault,
    log: Mutex<Vec<(u32, Vec<u8>)>>,
    batches: Mutex<usize>,
    stalled: Mutex<Option<Instant>>,
}

impl Queue {
    fn new(fault: Fault) -> Self {
        Self {
            fault,
            log: Mutex::default(),
            batches: Mutex::default(),
            stalled: Mutex::default(),
        }
    }

    /// Whether it stands still now.
    fn stands(&self) -> bool {
        let Fault::Stalls(pause) = self.fault else {
            return false;
        };
        // When the warm-up is over.
        if *self.batches.lock().expect("whole") < 2 * VICTIM {
            return false;
        }
        let mut stalled = self.stalled.lock().expect("whole");
        stalled.get_or_insert_with(Instant::now).elapsed() < pause
    }
}

/// With the batches that are not answered.
struct Publishers<'a>(&'a Queue, VecDeque<u64>);
struct Subscribers<'a>(&'a Queue, Vec<usize>);

impl PublishSide for Publishers<'_> {
    fn may_send(&self, _publisher: usize, _partition: u32) -> bool {
        true
    }

    fn send(
        &mut self,
        token: u64,
        _publisher: usize,
        partition: u32,
        batch: Outgoing<'_>,
    ) -> Result<(), BenchError> {
        let mut log = self.0.log.lock().expect("whole");
        for (_, value) in batch.records() {
            let mut value = value.to_vec();
            let at = log.len();
            if at == VICTIM && self.0.fault == Fault::Changes {
                value[40] ^= 1;
            }
            if at == VICTIM && self.0.fault == Fault::Loses {
                // Something of its own in its place, which was sent before.
                log.push((u32::MAX, Vec::new()));
                continue;
            }
            log.push((partition, value));
            if at == VICTIM && self.0.fault == Fault::Doubles {
                let last = log[at].clone();
                log.push(last);
            }
            if at == VICTIM + 1 && self.0.fault == Fault::Reorders {
                log.swap(VICTIM, VICTIM + 1);
            }
        }
        self.1.push_back(token);
        Ok(())
    }

    fn turn(&mut self, done: &mut dyn FnMut(u64, Verdict<'_>)) -> Result<bool, BenchError> {
        if self.0.stands() {
            return Ok(false);
        }
        if let Fault::Blocks(pause) = self.0.fault
            && !self.1.is_empty()
            && *self.0.batches.lock().expect("whole") >= 2 * VICTIM
            && self
                .0
                .stalled
                .lock()
                .expect("whole")
                .replace(Instant::now())
                .is_none()
        {
            std::thread::sleep(pause);
        }
        let mut any = false;
        while let Some(token) = self.1.pop_front() {
            let mut batches = self.0.batches.lock().expect("whole");
            *batches += 1;
            let is_victim = *batches == VICTIM;
            drop(batches);
            any = true;
            match self.0.fault {
                Fault::ForgetsToAnswer if is_victim => {}
                Fault::Refuses if is_victim => done(token, Err("too much")),
                Fault::Dies if is_victim => return Err(BenchError::Wrong("it died".into())),
                _ => done(token, Ok(())),
            }
        }
        Ok(any)
    }
}

impl SubscribeSide for Subscribers<'_> {
    fn turn(&mut self, each: &mut dyn FnMut(usize, u32, &[u8])) -> Result<bool, BenchError> {
        if self.0.stands() {
            return Ok(false);
        }
        let log = self.0.log.lock().expect("whole");
        let mut any = false;
        // What may still be swapped is not given out yet.
        let ready = match self.0.fault {
            Fault::Reorders if log.len() == VICTIM + 1 => VICTIM,
            _ => log.len(),
        };
        for (n, at) in self.1.iter_mut().enumerate() {
            while *at < ready {
                let (partition, value) = &log[*at];
                if *partition != u32::MAX {
                    each(n, *partition, value);
                }
                *at += 1;
                any = true;
            }
        }
        Ok(any)
    }
}

impl Target for Queue {
    fn publishers(&self, _count: usize) -> Result<Box<dyn PublishSide + '_>, BenchError> {
        Ok(Box::new(Publishers(self, VecDeque::new())))
    }

    fn subscribers(
        &self,
        count: usize,
        from: From,
    ) -> Result<Box<dyn SubscribeSide + '_>, BenchError> {
        let at = match from {
            From::Earliest => 0,
            From::Latest => self.log.lock().expect("whole").len(),
        };
        Ok(Box::new(Subscribers(self, vec![at; count])))
    }
}

struct Nobody;

impl Watch for Nobody {
    fn progress(&mut self, _progress: Progress) -> ControlFlow<()> {
        ControlFlow::Continue(())
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
    let sent = outcome.balance.sent;
    assert!(sent > 0 && sent < outcome.scheduled, "{sent}");
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
fn a_broker_that_dies_leaves_what_was_measured_and_the_reason() {
    let outcome = run_with(Fault::Dies, &plan());
    let error = outcome.error.expect("it died").to_string();
    assert!(error.contains("it died"), "{error}");
    assert!(outcome.balance.sent >= VICTIM as u64 - 1);
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
    ] {
        let error = plan.check(None).expect_err(words).to_string();
        assert!(error.contains(words), "{error}");
    }
}
