//! What was sent, what was acknowledged and what arrived: nothing may be missing, come twice, come
//! in another order or changed.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use crate::open_loop::stamp::Stamp;

/// A publisher's records of one partition: they are in order.
pub type Lane = (u32, u32);

/// The publisher of what is there before the run.
pub const PRELOADER: u32 = u32::MAX;

/// What became of the records of one lane at its publisher.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Sent; the next one's sequence.
    pub sent: u64,
    /// Acknowledged.
    pub acked: u64,
    /// Refused.
    pub refused: u64,
}

/// What one subscriber was given.
#[derive(Clone, Debug, Default)]
pub struct Received {
    lanes: HashMap<Lane, Arrived>,
    run: u32,
    begins_late: bool,
    reordered: u64,
    duplicated: u64,
    corrupt: u64,
    received: u64,
}

#[derive(Clone, Debug, Default)]
struct Arrived {
    /// All before this have arrived, apart from the missing.
    next: u64,
    /// Ranges before `next` that have not: first to one past the last.
    missing: BTreeMap<u64, u64>,
    missing_count: u64,
}

/// The balance of a measurement. Anything but 0 after the first three is a failure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Balance {
    /// Records sent, warm-up included.
    pub sent: u64,
    /// Acknowledged; without acknowledgements: sent.
    pub acked: u64,
    /// Given to subscribers, all of them together.
    pub received: u64,
    /// Due, and not sent in the end; of a run that was cut short what waited to be sent.
    pub unsent: u64,
    /// Sent, and neither acknowledged nor refused in the end.
    pub unacknowledged: u64,
    /// Refused by the broker.
    pub refused: u64,
    /// Acknowledged, and not given to a subscriber; counted for each.
    pub lost: u64,
    /// Given to a subscriber more than once.
    pub duplicated: u64,
    /// Given to a subscriber after one that was sent later.
    pub reordered: u64,
    /// Not what was sent, or nothing that this measurement sent.
    pub corrupt: u64,
}

impl Balance {
    /// Why the measurement does not count, as far as its records say. Of one that ended before its
    /// time nobody knows what would still have come.
    #[must_use]
    pub fn faults(&self, is_whole: bool) -> Vec<String> {
        let still_to_come = |count| if is_whole { count } else { 0 };
        [
            (still_to_come(self.lost), "acknowledged and not delivered"),
            (self.duplicated, "delivered more than once"),
            (self.reordered, "delivered out of order"),
            (self.corrupt, "delivered changed, or never sent"),
            (
                still_to_come(self.unacknowledged),
                "not acknowledged in the end",
            ),
            (self.refused, "refused"),
            (still_to_come(self.unsent), "due and never sent"),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("verification: {count} records were {what}"))
        .collect()
    }
}

impl Received {
    /// Of one run.
    #[must_use]
    pub fn new(run: u32) -> Self {
        Self {
            run,
            ..Self::default()
        }
    }

    /// Of a subscriber that begins with what comes. The last of what was there before may become
    /// visible only then; none of it counts.
    #[must_use]
    pub fn beginning_late(run: u32) -> Self {
        Self {
            begins_late: true,
            ..Self::new(run)
        }
    }

    /// Records given to the subscriber.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.received
    }

    /// Takes a value as it arrived, from the partition it arrived from; its stamp if it is sound
    /// and counts.
    pub fn take(&mut self, partition: u32, value: &[u8]) -> Option<Stamp> {
        self.received += 1;
        let stamp = Stamp::read(value).filter(|s| s.run == self.run && s.partition == partition);
        let Some(stamp) = stamp else {
            self.corrupt += 1;
            return None;
        };
        if self.begins_late && stamp.publisher == PRELOADER {
            self.received -= 1;
            return None;
        }
        let lane = self.lanes.entry((stamp.publisher, partition)).or_default();
        match stamp.sequence {
            s if s == lane.next => lane.next += 1,
            s if s > lane.next => {
                lane.missing.insert(lane.next, s);
                lane.missing_count += s - lane.next;
                lane.next = s + 1;
            }
            s if lane.fill(s) => self.reordered += 1,
            _ => self.duplicated += 1,
        }
        Some(stamp)
    }

    /// How many of a lane's records have arrived, each counted once.
    fn arrived(&self, lane: Lane) -> u64 {
        let found = self.lanes.get(&lane);
        found.map_or(0, |lane| lane.next - lane.missing_count)
    }

    /// Whether as many have arrived as were acknowledged.
    pub fn has_all(&self, sent: &HashMap<Lane, Sent>) -> bool {
        sent.iter()
            .all(|(&lane, of)| self.arrived(lane) >= of.acked)
    }
}

impl Arrived {
    /// Whether it was missing; it is not any more.
    fn fill(&mut self, sequence: u64) -> bool {
        let Some((&first, &end)) = self.missing.range(..=sequence).next_back() else {
            return false;
        };
        if sequence >= end {
            return false;
        }
        self.missing.remove(&first);
        self.missing_count -= 1;
        if first < sequence {
            self.missing.insert(first, sequence);
        }
        if sequence + 1 < end {
            self.missing.insert(sequence + 1, end);
        }
        true
    }
}

/// Draws the balance.
#[must_use]
pub fn balance(sent: &HashMap<Lane, Sent>, received: &[Received]) -> Balance {
    let mut balance = Balance::default();
    for of in sent.values() {
        balance.sent += of.sent;
        balance.acked += of.acked;
        balance.refused += of.refused;
    }
    balance.unacknowledged = balance.sent - balance.acked - balance.refused;
    for subscriber in received {
        balance.received += subscriber.received;
        balance.duplicated += subscriber.duplicated;
        balance.reordered += subscriber.reordered;
        balance.corrupt += subscriber.corrupt;
        let lost = |(&lane, of): (&Lane, &Sent)| of.acked.saturating_sub(subscriber.arrived(lane));
        balance.lost += sent.iter().map(lost).sum::<u64>();
        let unknown = subscriber.lanes.keys().filter(|l| !sent.contains_key(l));
        balance.corrupt += unknown.map(|&lane| subscriber.arrived(lane)).sum::<u64>();
    }
    balance
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(sequence: u64) -> Vec<u8> {
        let mut value = vec![0; 40];
        let stamp = Stamp {
            run: 7,
            publisher: 1,
            partition: 0,
            sequence,
            due_ns: 0,
        };
        stamp.write(&mut value);
        value
    }

    /// The balance when five were sent and acknowledged, and these arrived.
    fn of(arrived: &[u64]) -> Balance {
        let mut received = Received::new(7);
        for &sequence in arrived {
            assert!(received.take(0, &value(sequence)).is_some());
        }
        let sent = Sent {
            sent: 5,
            acked: 5,
            refused: 0,
        };
        balance(&HashMap::from([((1, 0), sent)]), &[received])
    }

    #[test]
    fn what_arrives_in_order_balances() {
        let balance = of(&[0, 1, 2, 3, 4]);
        assert_eq!((balance.sent, balance.acked, balance.received), (5, 5, 5));
        assert!(balance.faults(true).is_empty());
    }

    #[test]
    fn what_is_missing_is_lost_wherever_it_was() {
        for arrived in [
            &[1, 2, 3, 4][..],
            &[0, 1, 3, 4],
            &[0, 1, 2, 3],
            &[0, 1, 2, 4],
        ] {
            assert_eq!(of(arrived).lost, 1, "{arrived:?}");
        }
        assert_eq!(of(&[]).lost, 5);
    }

    #[test]
    fn what_comes_late_is_reordered_and_not_lost() {
        let balance = of(&[0, 4, 2, 1, 3]);
        assert_eq!(
            (balance.reordered, balance.lost, balance.duplicated),
            (3, 0, 0)
        );
    }

    #[test]
    fn what_comes_twice_is_duplicated_and_makes_up_for_nothing() {
        let balance = of(&[0, 0, 1, 3, 3, 1]);
        assert_eq!(
            (balance.duplicated, balance.lost, balance.reordered),
            (3, 2, 0)
        );
    }

    #[test]
    fn what_changed_or_is_not_of_this_run_is_corrupt() {
        let mut received = Received::new(7);
        let mut changed = value(0);
        changed[39] ^= 1;
        assert_eq!(received.take(0, &changed), None);
        assert_eq!(received.take(1, &value(0)), None, "another partition");
        assert_eq!(Received::new(8).take(0, &value(0)), None, "another run");
        assert_eq!(balance(&HashMap::new(), &[received]).corrupt, 2);
    }

    #[test]
    fn records_of_a_lane_that_nobody_sent_are_corrupt() {
        let mut received = Received::new(7);
        assert!(received.take(0, &value(0)).is_some());
        assert_eq!(balance(&HashMap::new(), &[received]).corrupt, 1);
    }

    #[test]
    fn what_was_neither_acknowledged_nor_refused_is_a_fault() {
        let sent = Sent {
            sent: 5,
            acked: 3,
            refused: 1,
        };
        let balance = balance(&HashMap::from([((1, 0), sent)]), &[]);
        assert_eq!((balance.unacknowledged, balance.refused), (1, 1));
        assert_eq!(balance.faults(true).len(), 2);
    }
}
