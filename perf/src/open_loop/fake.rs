//! A broker that is none: a queue in memory, with faults to be planted.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::target::{From, Outgoing, PublishSide, SubscribeSide, Target, Verdict};
use crate::error::BenchError;

/// What is wrong with a broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
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
    /// Each answer and each delivery takes a while.
    Lags,
    /// What was answered last is visible later.
    ShowsLate,
    /// The generator's own thread panics.
    Panics,
    /// It answers before it takes what was sent, and takes none of it once a connection has ended.
    TakesLate,
    /// Nothing is answered or delivered from one batch on.
    FallsSilent,
}

/// The record, or batch, that is treated wrongly.
pub(super) const VICTIM: usize = 300;

pub(super) struct Queue {
    pub(super) fault: Fault,
    pub(super) log: Mutex<Vec<(u32, Vec<u8>)>>,
    pub(super) batches: Mutex<usize>,
    pub(super) stalled: Mutex<Option<Instant>>,
    pub(super) last_sent: Mutex<Option<Instant>>,
    /// What was answered and is not in the log yet.
    pub(super) untaken: Mutex<VecDeque<(u32, Vec<u8>)>>,
    /// Batches that may be in flight.
    pub(super) in_flight: usize,
    /// Most that were.
    pub(super) most_in_flight: Mutex<usize>,
    /// Partition and records of each batch.
    pub(super) sent: Mutex<Vec<(u32, usize)>>,
    /// How many batches there were when subscribers connected.
    pub(super) connected_after: Mutex<Vec<usize>>,
}

impl Queue {
    pub(super) fn new(fault: Fault) -> Self {
        Self {
            fault,
            log: Mutex::default(),
            batches: Mutex::default(),
            stalled: Mutex::default(),
            last_sent: Mutex::default(),
            untaken: Mutex::default(),
            in_flight: usize::MAX,
            most_in_flight: Mutex::default(),
            sent: Mutex::default(),
            connected_after: Mutex::default(),
        }
    }

    /// How many batches each partition was sent.
    pub(super) fn batches_of(&self, partitions: u32) -> Vec<usize> {
        let sent = self.sent.lock().expect("whole");
        let of = |partition| sent.iter().filter(|(p, _)| *p == partition).count();
        (0..partitions).map(of).collect()
    }

    fn was_just_sent(&self) -> bool {
        let sent = self.last_sent.lock().expect("whole");
        sent.is_some_and(|at| at.elapsed() < Duration::from_millis(20))
    }

    /// Whether it stands still now.
    fn stands(&self) -> bool {
        if self.fault == Fault::Lags {
            return self.was_just_sent();
        }
        let batches = *self.batches.lock().expect("whole");
        let pause = match self.fault {
            Fault::FallsSilent => return batches >= VICTIM,
            // When the warm-up is over.
            Fault::Stalls(pause) if batches >= 2 * VICTIM => pause,
            _ => return false,
        };
        let mut stalled = self.stalled.lock().expect("whole");
        stalled.get_or_insert_with(Instant::now).elapsed() < pause
    }
}

/// With the batches that are not answered.
struct Publishers<'a>(&'a Queue, VecDeque<u64>);
/// With the place of each in the log.
struct Subscribers<'a>(&'a Queue, Vec<usize>);

impl Drop for Publishers<'_> {
    fn drop(&mut self) {
        self.0.untaken.lock().expect("whole").clear();
    }
}

impl PublishSide for Publishers<'_> {
    fn may_send(&self, _publisher: usize, _partition: u32) -> bool {
        self.1.len() < self.0.in_flight
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
            if self.0.fault == Fault::TakesLate {
                let mut untaken = self.0.untaken.lock().expect("whole");
                untaken.push_back((partition, value));
                continue;
            }
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
        let mut most = self.0.most_in_flight.lock().expect("whole");
        *most = self.1.len().max(*most);
        *self.0.last_sent.lock().expect("whole") = Some(Instant::now());
        let mut sent = self.0.sent.lock().expect("whole");
        sent.push((partition, batch.keys.len()));
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
                Fault::Panics if is_victim => panic!("as planted"),
                Fault::Refuses if is_victim => done(token, Err("too much")),
                Fault::Dies if is_victim => {
                    let cause = ringtide_client::Error::Disconnected {
                        server: "fake".into(),
                        why: "it died".into(),
                    };
                    return Err(BenchError::Lost {
                        cause,
                        acknowledged: 0,
                        topic: None,
                    });
                }
                _ => done(token, Ok(())),
            }
        }
        Ok(any)
    }
}

impl SubscribeSide for Subscribers<'_> {
    fn subscribe(&mut self, from: From) -> Result<(), BenchError> {
        let end = self.0.log.lock().expect("whole").len();
        self.1.fill(match (from, self.0.fault) {
            (From::Earliest, _) => 0,
            (From::Latest, Fault::ShowsLate) => end.saturating_sub(10),
            (From::Latest, _) => end,
        });
        Ok(())
    }

    fn turn(&mut self, each: &mut dyn FnMut(usize, u32, &[u8])) -> Result<bool, BenchError> {
        if self.0.stands() {
            return Ok(false);
        }
        let mut log = self.0.log.lock().expect("whole");
        if !self.0.was_just_sent() {
            log.extend(self.0.untaken.lock().expect("whole").pop_front());
        }
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

    fn subscribers(&self, count: usize) -> Result<Box<dyn SubscribeSide + '_>, BenchError> {
        let sent = self.sent.lock().expect("whole").len();
        self.connected_after.lock().expect("whole").push(sent);
        Ok(Box::new(Subscribers(self, vec![usize::MAX; count])))
    }
}
