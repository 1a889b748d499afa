//! Which rate a sweep tries next: up from the lowest until one does not hold, then between, and the
//! highest that held once more. What happened at each rate comes from outside; nothing is measured here.

/// The rate that is found lies within this of the lowest that did not hold.
const CLOSE: f64 = 1.05;
/// Below this rates are not rounded.
const ROUNDED_FROM: f64 = 100.0;

/// The fault of a step that says nothing of the broker.
pub(crate) const GENERATOR_LATE: &str = "generator late";

/// What happened at a rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Seen {
    pub(crate) rate: f64,
    pub(crate) holds: bool,
    /// Somebody else took time of the machine.
    pub(crate) is_disturbed: bool,
}

/// The steps so far, as far as the next one depends on them.
///
/// A step that was disturbed is run once more and then believed; so is the first that does not hold,
/// because the whole search rests on it. The search picks the highest rate that held, and so the luckiest:
/// that one has to hold again, or the search goes on below it.
#[derive(Clone, Debug)]
pub(crate) struct Search {
    from: f64,
    to: f64,
    factor: f64,
    again: Option<f64>,
    /// Ascending.
    held: Vec<f64>,
    fails: Option<f64>,
    is_confirmed: bool,
}

impl Search {
    pub(crate) fn new(from: f64, to: f64, steps_per_doubling: u32) -> Self {
        Self {
            from,
            to,
            factor: 2_f64.powf(1.0 / f64::from(steps_per_doubling)),
            again: None,
            held: Vec::new(),
            fails: None,
            is_confirmed: false,
        }
    }

    /// The rate to try; none when it is over.
    pub(crate) fn next(&self) -> Option<f64> {
        if self.again.is_some() {
            return self.again;
        }
        self.untried()
            .or_else(|| self.highest().filter(|_| !self.is_confirmed))
    }

    fn untried(&self) -> Option<f64> {
        match (self.highest(), self.fails) {
            (None, None) => Some(self.from),
            (None, Some(_)) => None,
            (Some(holds), None) => {
                (holds < self.to).then(|| rounded(holds * self.factor).min(self.to))
            }
            (Some(holds), Some(fails)) => {
                let between = rounded((holds * fails).sqrt());
                let is_between = holds < between && between < fails;
                (fails > holds * CLOSE && is_between).then_some(between)
            }
        }
    }

    /// Takes note of what happened; whether it is believed.
    pub(crate) fn take(&mut self, seen: Seen) -> bool {
        let is_repeated = self.again.take() == Some(seen.rate);
        let held_before = self.highest() == Some(seen.rate);
        let is_the_first_to_fail = !seen.holds && !held_before && self.fails.is_none();
        if !is_repeated && (seen.is_disturbed || is_the_first_to_fail) {
            self.again = Some(seen.rate);
            return false;
        }
        match seen.holds {
            true if held_before => self.is_confirmed = true,
            true => self.held.push(seen.rate),
            false => {
                self.held.retain(|&rate| rate < seen.rate);
                self.fails = Some(seen.rate);
            }
        }
        true
    }

    /// The highest rate that holds, as far as is known.
    pub(crate) fn highest(&self) -> Option<f64> {
        self.held.last().copied()
    }

    /// Whether the highest rate is the bound that was given, and not the broker's.
    pub(crate) fn reached_the_bound(&self) -> bool {
        self.highest().is_some_and(|holds| holds >= self.to)
    }
}

fn rounded(rate: f64) -> f64 {
    if rate < ROUNDED_FROM {
        return rate;
    }
    rate.round()
}

/// What of a step decides whether it holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    pub(crate) is_achieved: bool,
    /// The generator kept its schedule.
    pub(crate) is_in_time: bool,
    /// From due to acknowledged.
    pub(crate) p99_ns: Option<u64>,
}

impl Figures {
    /// Why it does not hold.
    pub(crate) fn fault(self, p99_limit_ns: u64) -> Option<&'static str> {
        match self.p99_ns {
            // First: a generator that is over its capacity does not achieve the rate either.
            _ if !self.is_in_time => Some(GENERATOR_LATE),
            None => Some("nothing was acknowledged"),
            Some(_) if !self.is_achieved => Some("not achieved"),
            Some(p99) if p99 > p99_limit_ns => Some("p99 too long"),
            Some(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT_NS: u64 = 1_000_000;

    /// A queue before a server of this capacity: 50 us when it is idle, ever longer towards it.
    fn broker(capacity: f64) -> impl Fn(f64) -> Figures {
        move |rate| {
            let load = (rate / capacity).min(0.999_999);
            Figures {
                is_achieved: rate <= capacity,
                is_in_time: true,
                p99_ns: Some((50_000.0 / (1.0 - load)) as u64),
            }
        }
    }

    fn seen(rate: f64, holds: bool) -> Seen {
        Seen {
            rate,
            holds,
            is_disturbed: false,
        }
    }

    /// The rates that were tried, with `noise` saying what is made of each step.
    fn sweep(
        search: &mut Search,
        broker: impl Fn(f64) -> Figures,
        mut noise: impl FnMut(usize, Seen) -> Seen,
    ) -> Vec<f64> {
        let mut tried = Vec::new();
        while let Some(rate) = search.next() {
            let holds = broker(rate).fault(LIMIT_NS).is_none();
            search.take(noise(tried.len(), seen(rate, holds)));
            tried.push(rate);
            assert!(tried.len() < 100, "it does not end: {tried:?}");
        }
        tried
    }

    #[test]
    fn the_highest_rate_that_holds_is_found_to_five_percent() {
        // 50 us become 1 ms at 95 % of the capacity.
        for capacity in [1_100.0, 5_000.0, 77_777.0, 812_345.0] {
            for steps in [1, 2, 5] {
                let mut search = Search::new(1000.0, 1e7, steps);
                let tried = sweep(&mut search, broker(capacity), |_, seen| seen);
                let found = search.highest().expect("it holds at first");
                let best = 0.95 * capacity;
                assert!(
                    found <= best && found * 1.06 > best,
                    "{capacity}: {found} {tried:?}"
                );
                assert!(!search.reached_the_bound());
            }
        }
    }

    #[test]
    fn what_never_holds_is_tried_twice_and_given_up() {
        let mut search = Search::new(1000.0, 1e6, 1);
        let tried = sweep(&mut search, broker(500.0), |_, seen| seen);
        assert_eq!((tried, search.highest()), (vec![1000.0, 1000.0], None));
    }

    #[test]
    fn what_always_holds_ends_at_the_bound() {
        for (from, to) in [(1000.0, 10_000.0), (1000.0, 1000.0), (0.5, 3.0)] {
            let mut search = Search::new(from, to, 1);
            let tried = sweep(&mut search, broker(1e9), |_, seen| seen);
            assert_eq!(search.highest(), Some(to), "{tried:?}");
            assert!(search.reached_the_bound());
            assert!(tried.is_sorted(), "{tried:?}");
        }
    }

    #[test]
    fn a_single_step_that_was_disturbed_changes_nothing_but_is_repeated() {
        let mut quiet = Search::new(1000.0, 1e6, 1);
        let expected = sweep(&mut quiet, broker(50_000.0), |_, seen| seen);
        for noisy in 0..expected.len() {
            let mut search = Search::new(1000.0, 1e6, 1);
            let tried = sweep(&mut search, broker(50_000.0), |n, seen| Seen {
                holds: seen.holds && n != noisy,
                is_disturbed: n == noisy,
                ..seen
            });
            assert_eq!(search.highest(), quiet.highest(), "{noisy}");
            assert!(tried.len() <= expected.len() + 1, "{tried:?}");
        }
    }

    #[test]
    fn a_failure_on_the_way_up_that_does_not_come_again_does_not_end_it() {
        let mut search = Search::new(1000.0, 8000.0, 1);
        let tried = sweep(&mut search, broker(1e9), |n, seen| Seen {
            holds: n != 1,
            ..seen
        });
        assert_eq!(tried, [1000.0, 2000.0, 2000.0, 4000.0, 8000.0, 8000.0]);
    }

    #[test]
    fn the_highest_rate_is_one_that_held_twice() {
        for lucky in [3, 4, 5] {
            let mut search = Search::new(1000.0, 64_000.0, 1);
            let tried = sweep(&mut search, broker(10_000.0), |n, seen| Seen {
                // Above 9,500 for once.
                holds: seen.holds || n == lucky,
                ..seen
            });
            let found = search.highest().expect("it holds at first");
            assert!(found <= 9_500.0 && found * 1.06 > 9_500.0, "{tried:?}");
            assert_eq!(tried.last(), Some(&found), "{tried:?}");
            let times = tried.iter().filter(|rate| **rate == found).count();
            assert_eq!(times, 2, "{tried:?}");
        }
    }

    #[test]
    fn what_is_disturbed_twice_is_believed() {
        let mut search = Search::new(1000.0, 4000.0, 1);
        let disturbed = |_, seen| Seen {
            is_disturbed: true,
            ..seen
        };
        let tried = sweep(&mut search, broker(1e9), disturbed);
        let each_twice = [1000.0, 1000.0, 2000.0, 2000.0, 4000.0, 4000.0];
        assert_eq!(tried, [&each_twice[..], &[4000.0, 4000.0]].concat());
        assert_eq!(search.highest(), Some(4000.0));
    }

    #[test]
    fn a_step_fails_for_its_rate_or_for_its_latency() {
        let figures = |is_achieved, is_in_time, p99_ns| Figures {
            is_achieved,
            is_in_time,
            p99_ns,
        };
        assert_eq!(figures(true, true, Some(1000)).fault(1000), None);
        for (figures, why) in [
            (figures(true, true, Some(1001)), "p99"),
            (figures(false, true, Some(1)), "not achieved"),
            (figures(true, false, Some(1)), "late"),
            (figures(false, false, Some(1)), "late"),
            (figures(false, false, None), "late"),
            (figures(true, true, None), "nothing"),
        ] {
            assert!(figures.fault(1000).expect("a fault").contains(why));
        }
    }
}
