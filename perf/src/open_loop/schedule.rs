//! When each record is due. The schedule is fixed before the run and never waits for anybody.

use std::str::FromStr;

use crate::feed::{Feed, Message};

/// The most keys that are told apart.
const MAX_KEYS: u32 = 1 << 20;

/// How the records of a run are spread over its time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Schedule {
    /// Evenly.
    Constant,
    /// At random, each independent of all others: the gaps are exponential.
    Poisson,
    /// So many at once, then nothing until as many are due again.
    Bursts(u64),
    /// From this rate, in records a second, evenly growing to the target rate.
    Ramp(f64),
    /// As a recorded feed has them.
    Feed,
}

impl FromStr for Schedule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, number) = match text.split_once(':') {
            Some((name, number)) => (name, Some(number)),
            None => (text, None),
        };
        let wrong = || {
            format!(
                "{text:?} is no schedule: give constant, poisson, bursts:N (records at once), \
                 ramp:FROM (records a second at the start), or feed"
            )
        };
        match (name, number) {
            ("constant", None) => Ok(Self::Constant),
            ("poisson", None) => Ok(Self::Poisson),
            ("feed", None) => Ok(Self::Feed),
            ("bursts", Some(n)) => {
                let n = n.parse().ok().filter(|n| (1..=1_000_000).contains(n));
                n.map(Self::Bursts).ok_or_else(wrong)
            }
            ("ramp", Some(from)) => {
                let from = from.parse().ok().filter(|f| (0.0..=1e9).contains(f));
                from.map(Self::Ramp).ok_or_else(wrong)
            }
            _ => Err(wrong()),
        }
    }
}

impl std::fmt::Display for Schedule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Constant => f.write_str("constant"),
            Self::Poisson => f.write_str("poisson"),
            Self::Bursts(n) => write!(f, "bursts:{n}"),
            Self::Ramp(from) => write!(f, "ramp:{from}"),
            Self::Feed => f.write_str("feed"),
        }
    }
}

/// Which keys records have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// None: partitions take turns.
    None,
    /// So many, all as often.
    Uniform(u32),
    /// So many, the n-th as often as 1/n.
    Zipf(u32),
    /// Those of the feed: its orders.
    Feed,
}

impl FromStr for Keys {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} are no keys: give none, uniform:N or zipf:N, with N from 1 to {MAX_KEYS}, \
                 or feed"
            )
        };
        let count = |n: &str| {
            let n = n.parse().ok().filter(|n| (1..=MAX_KEYS).contains(n));
            n.ok_or_else(wrong)
        };
        match text.split_once(':') {
            None if text == "none" => Ok(Self::None),
            None if text == "feed" => Ok(Self::Feed),
            Some(("uniform", n)) => count(n).map(Self::Uniform),
            Some(("zipf", n)) => count(n).map(Self::Zipf),
            _ => Err(wrong()),
        }
    }
}

impl std::fmt::Display for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Uniform(n) => write!(f, "uniform:{n}"),
            Self::Zipf(n) => write!(f, "zipf:{n}"),
            Self::Feed => f.write_str("feed"),
        }
    }
}

/// A record that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// When, in ns since the schedule began.
    pub at_ns: u64,
    /// Its place in the schedule.
    pub index: u64,
    /// Its key.
    pub key: Option<u64>,
    /// Its place in the feed, if it is of one.
    pub message: Option<usize>,
}

/// The shape of a schedule.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// How records are spread.
    pub schedule: Schedule,
    /// Records a second; no matter for a feed.
    pub rate_per_s: f64,
    /// Records that come due at once, at the least.
    pub group: u64,
    /// When it ends, in ns.
    pub end_ns: u64,
    /// How much faster than it was recorded a feed is played.
    pub speed: f64,
    /// Longer silences of a feed, in ns as played, are cut to this.
    pub max_silence_ns: u64,
    /// Keys.
    pub keys: Keys,
    /// Two schedules of the same shape and seed are the same.
    pub seed: u64,
}

impl Shape {
    /// How long a message of a feed comes after the one before it, in ns as played.
    fn played_ns(&self, message: &Message) -> f64 {
        let gap = message.gap_ns as f64 / self.speed;
        gap.min(self.max_silence_ns as f64)
    }

    /// Messages a second of a feed as played; infinite if all of them are due at once.
    pub fn rate_of(&self, feed: &Feed) -> f64 {
        let cycle_ns: f64 = feed.messages().iter().map(|m| self.played_ns(m)).sum();
        feed.messages().len() as f64 * 1e9 / cycle_ns
    }
}

/// All records of a schedule, in the order of their times.
pub struct Arrivals<'a> {
    shape: Shape,
    feed: Option<&'a Feed>,
    random: fastrand::Rng,
    /// Of the n-th key and all before it: how often they are chosen, summed up.
    weights: Vec<f64>,
    index: u64,
    /// When the group that is being handed out is due.
    group_ns: f64,
    left: u64,
    position: usize,
}

impl<'a> Arrivals<'a> {
    /// From the beginning. A feed's schedule takes the feed.
    #[must_use]
    pub fn new(shape: Shape, feed: Option<&'a Feed>) -> Self {
        let weights = match shape.keys {
            Keys::Zipf(n) => (1..=n)
                .scan(0.0, |sum, k| {
                    *sum += 1.0 / f64::from(k);
                    Some(*sum)
                })
                .collect(),
            _ => Vec::new(),
        };
        let mut arrivals = Self {
            random: fastrand::Rng::with_seed(shape.seed),
            shape,
            feed,
            weights,
            index: 0,
            group_ns: 0.0,
            left: 0,
            position: 0,
        };
        arrivals.left = arrivals.group();
        arrivals
    }

    /// Records that come due at once.
    fn group(&self) -> u64 {
        match self.shape.schedule {
            Schedule::Bursts(n) => n,
            Schedule::Feed => 1,
            _ => self.shape.group,
        }
    }

    /// When the next group is due, in ns.
    fn next_group_ns(&mut self) -> f64 {
        let even = self.group() as f64 * 1e9 / self.shape.rate_per_s;
        let gap = match self.shape.schedule {
            Schedule::Constant | Schedule::Bursts(_) => even,
            // 1 - f64() is never 0.
            Schedule::Poisson => -(1.0 - self.random.f64()).ln() * even,
            Schedule::Ramp(from) => return self.on_ramp_ns(from),
            Schedule::Feed => {
                let message = self.feed.and_then(|f| f.messages().get(self.position));
                message.map_or(0.0, |message| self.shape.played_ns(message))
            }
        };
        self.group_ns + gap
    }

    /// When as many records are due as were handed out. By the time t they are `from * t + growth * t² / 2`,
    /// which is solved for t so that neither an even ramp nor one from nothing divides by 0.
    fn on_ramp_ns(&self, from: f64) -> f64 {
        let count = self.index as f64;
        let growth = (self.shape.rate_per_s - from) / (self.shape.end_ns as f64 / 1e9);
        let last_rate = (from * from + 2.0 * growth * count).sqrt();
        match last_rate.is_nan() {
            // A ramp that falls has no more by its end.
            true => f64::INFINITY,
            false => 2e9 * count / (from + last_rate),
        }
    }

    fn key(&mut self) -> Option<u64> {
        match self.shape.keys {
            Keys::None => None,
            Keys::Uniform(n) => Some(u64::from(self.random.u32(0..n))),
            Keys::Zipf(_) => {
                let sum = self.weights.last()?;
                let at = self.random.f64() * sum;
                Some(self.weights.partition_point(|&w| w <= at) as u64)
            }
            Keys::Feed => Some(self.feed?.messages()[self.position].order_id),
        }
    }
}

impl Iterator for Arrivals<'_> {
    type Item = Due;

    fn next(&mut self) -> Option<Due> {
        let at_ns = self.group_ns as u64;
        if at_ns >= self.shape.end_ns {
            return None;
        }
        let due = Due {
            at_ns,
            index: self.index,
            key: self.key(),
            message: self.feed.map(|_| self.position),
        };
        self.index += 1;
        if let Some(feed) = self.feed {
            // A feed that ends begins again.
            self.position = (self.position + 1) % feed.messages().len();
        }
        self.left -= 1;
        if self.left == 0 {
            self.left = self.group();
            self.group_ns = self.next_group_ns();
        }
        Some(due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(schedule: Schedule) -> Shape {
        Shape {
            schedule,
            rate_per_s: 1000.0,
            group: 1,
            end_ns: 10_000_000_000,
            speed: 1.0,
            max_silence_ns: u64::MAX,
            keys: Keys::None,
            seed: 1,
        }
    }

    fn times(shape: Shape) -> Vec<u64> {
        Arrivals::new(shape, None).map(|due| due.at_ns).collect()
    }

    #[test]
    fn a_constant_schedule_has_its_rate_at_every_moment() {
        let times = times(shape(Schedule::Constant));
        assert_eq!(times.len(), 10_000);
        for (n, at) in times.iter().enumerate() {
            assert!(at.abs_diff(n as u64 * 1_000_000) <= 1, "{n}: {at}");
        }
    }

    #[test]
    fn a_poisson_schedule_has_its_rate_on_average_and_exponential_gaps() {
        let times = times(shape(Schedule::Poisson));
        assert!((9_600..10_400).contains(&times.len()), "{}", times.len());
        let gaps: Vec<u64> = times.windows(2).map(|w| w[1] - w[0]).collect();
        let longer = gaps.iter().filter(|&&gap| gap > 1_000_000).count();
        let share = longer as f64 / gaps.len() as f64;
        assert!((share - (-1.0_f64).exp()).abs() < 0.03, "{share}");
    }

    #[test]
    fn bursts_come_whole_at_the_rate_of_all() {
        let times = times(shape(Schedule::Bursts(100)));
        assert_eq!(times.len(), 10_000);
        for burst in times.chunks(100) {
            assert_eq!(burst.first(), burst.last());
        }
        assert_eq!(times[100] - times[0], 100_000_000);
    }

    #[test]
    fn a_ramp_grows_from_its_first_rate_to_its_last() {
        let times = times(shape(Schedule::Ramp(100.0)));
        let within = |from: u64, to: u64| {
            let second = 1_000_000_000;
            let range = from * second..to * second;
            times.iter().filter(|at| range.contains(at)).count()
        };
        assert!((120..180).contains(&within(0, 1)), "{}", within(0, 1));
        assert!((920..=1000).contains(&within(9, 10)), "{}", within(9, 10));
        assert!((5_400..5_600).contains(&times.len()), "{}", times.len());
    }

    #[test]
    fn a_ramp_has_as_many_due_by_each_moment_as_its_rates_add_up_to() {
        for (from, rate_per_s, group) in [
            (0.0, 1000.0, 100),
            (0.1, 0.5, 1),
            (1000.0, 10.0, 1),
            (5.0, 5.0, 1),
        ] {
            let shape = Shape {
                rate_per_s,
                group,
                end_ns: 100_000_000_000,
                ..shape(Schedule::Ramp(from))
            };
            let times = times(shape);
            for second in 1..=100 {
                let t = f64::from(second);
                let wanted = from * t + (rate_per_s - from) / 100.0 * t * t / 2.0;
                let due = times
                    .iter()
                    .filter(|&&at| at < second as u64 * 1_000_000_000);
                let off = due.count() as f64 - wanted;
                assert!((0.0..=group as f64).contains(&off), "{from}: {off} at {t}");
            }
        }
    }

    #[test]
    fn records_come_due_in_groups_of_a_batch_at_the_same_rate() {
        let group = Shape {
            group: 8,
            ..shape(Schedule::Constant)
        };
        let times = times(group);
        assert_eq!(times.len(), 10_000);
        assert_eq!((times[0], times[7], times[8]), (0, 0, 8_000_000));
    }

    #[test]
    fn the_same_seed_gives_the_same_schedule_and_another_seed_another() {
        let of = |seed| {
            let shape = Shape {
                seed,
                keys: Keys::Zipf(100),
                ..shape(Schedule::Poisson)
            };
            Arrivals::new(shape, None).take(1000).collect::<Vec<_>>()
        };
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
    }

    #[test]
    fn a_feed_keeps_its_own_gaps_at_the_speed_it_is_played_at_and_silences_are_cut() {
        let feed = Feed::generated(1, 2000);
        let shape = Shape {
            speed: 10.0,
            max_silence_ns: 50_000_000,
            keys: Keys::Feed,
            end_ns: u64::MAX,
            ..shape(Schedule::Feed)
        };
        let dues: Vec<Due> = Arrivals::new(shape, Some(&feed)).take(4000).collect();
        for (due, message) in dues.iter().zip(feed.messages()) {
            assert_eq!(due.key, Some(message.order_id));
        }
        let mut cut = 0;
        for (pair, message) in dues.windows(2).zip(&feed.messages()[1..]) {
            let wanted = (message.gap_ns / 10).min(50_000_000);
            cut += u32::from(wanted == 50_000_000);
            assert!((pair[1].at_ns - pair[0].at_ns).abs_diff(wanted) <= 1);
        }
        assert!(cut > 0, "no silence was long enough");
        assert_eq!(dues[2000].message, Some(0), "it begins again");
    }

    #[test]
    fn zipf_chooses_the_first_key_twice_as_often_as_the_second() {
        let shape = Shape {
            keys: Keys::Zipf(1000),
            ..shape(Schedule::Constant)
        };
        let mut counts = [0_u32; 1000];
        for due in Arrivals::new(shape, None) {
            counts[due.key.expect("a key") as usize] += 1;
        }
        let ratio = f64::from(counts[0]) / f64::from(counts[1]);
        assert!((1.7..2.4).contains(&ratio), "{ratio}");
    }

    #[test]
    fn what_is_written_is_read_and_nonsense_is_refused_with_what_would_do() {
        for text in ["constant", "poisson", "bursts:10", "ramp:5", "feed"] {
            let schedule: Schedule = text.parse().expect("a schedule");
            assert_eq!(schedule.to_string(), text);
        }
        for text in ["none", "uniform:10", "zipf:5", "feed"] {
            let keys: Keys = text.parse().expect("keys");
            assert_eq!(keys.to_string(), text);
        }
        for text in [
            "",
            "bursts",
            "bursts:0",
            "ramp:-1",
            "constant:1",
            "poisson:",
        ] {
            let error = text.parse::<Schedule>().expect_err(text);
            assert!(error.contains("poisson"), "{error}");
        }
        for text in ["", "uniform", "zipf:0", "zipf:2000000", "none:1"] {
            assert!(text.parse::<Keys>().is_err(), "{text}");
        }
    }
}
