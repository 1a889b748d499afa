//! Whether something keeps growing, from looks at it over time.

use serde::Serialize;

use crate::bench::pairs::median;

/// With fewer looks nothing is said.
const FEWEST: usize = 9;
/// Nor of a shorter time: segments and the log's files have to come and go.
const SHORTEST_S: u64 = 120;
/// Of more looks only so many are taken, evenly: each is held against each.
const MOST: usize = 400;
/// So many standard deviations more looks are above an earlier one than below it.
const DEVIATIONS: f64 = 2.5;

/// A look: when it was, in seconds, and what was seen.
pub(crate) type Look = (u64, u64);

/// What is looked at in a soak.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Growth {
    /// After the first interval.
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) most: u64,
    /// Null when there were too few looks to say, over too short a time.
    pub(crate) keeps_growing: Option<bool>,
}

impl Growth {
    /// Of looks, judged from `settled_s` on, when what is kept is full. Growth of less than `least` in
    /// all, or than a tenth of the first look, is none.
    pub(crate) fn of(looks: &[Look], settled_s: Option<u64>, least: u64) -> Option<Self> {
        let (&(_, first), &(_, last)) = (looks.first()?, looks.last()?);
        let settled = looks.iter().filter(|(at_s, _)| Some(*at_s) >= settled_s);
        let settled: Vec<Look> = settled.filter(|_| settled_s.is_some()).copied().collect();
        let length_s = settled.last().map_or(0, |look| look.0 - settled[0].0);
        let is_enough = settled.len() >= FEWEST && length_s >= SHORTEST_S;
        Some(Self {
            first,
            last,
            most: looks.iter().map(|(_, seen)| *seen).max()?,
            keeps_growing: is_enough.then(|| keeps_growing(&settled, least.max(first / 10))),
        })
    }

    pub(crate) fn is_a_leak(&self) -> bool {
        self.keeps_growing == Some(true)
    }
}

/// Whether later looks lie above earlier ones, by more than `least` in all: the median of the slopes
/// between any two (Theil and Sen), if there are so many more that rise than fall (Kendall) that what
/// comes and goes does not do it. A rise that ends is none, and neither is a single one.
fn keeps_growing(looks: &[Look], least: u64) -> bool {
    let some = looks.iter().step_by(looks.len().div_ceil(MOST));
    let some: Vec<(f64, f64)> = some
        .map(|&(at_s, seen)| (at_s as f64, seen as f64))
        .collect();
    let later = some
        .iter()
        .enumerate()
        .map(|(n, look)| (look, &some[n + 1..]));
    let slopes: Vec<f64> = later
        .flat_map(|((at_s, seen), later)| {
            later
                .iter()
                .map(move |(at, now)| (now - seen) / (at - at_s))
        })
        .collect();
    let rise = slopes.iter().filter(|slope| **slope > 0.0).count();
    let fall = slopes.iter().filter(|slope| **slope < 0.0).count();
    let n = some.len() as f64;
    let deviation = (n * (n - 1.0) * (2.0 * n + 5.0) / 18.0).sqrt();
    let length_s = some[some.len() - 1].0 - some[0].0;
    let grown = median(&slopes).unwrap_or(0.0) * length_s;
    rise as f64 - fall as f64 > DEVIATIONS * deviation && grown > least as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks every minute.
    fn minutes(seen: &[u64]) -> Vec<Look> {
        (1..).map(|n| 60 * n).zip(seen.iter().copied()).collect()
    }

    /// Settled with the second look.
    fn judged(seen: &[u64]) -> Option<bool> {
        Growth::of(&minutes(seen), Some(120), 10)
            .expect("looks")
            .keeps_growing
    }

    /// So many looks at what grows by a step each time and comes and goes by 200.
    fn sawtooth(looks: u64, period: u64, step: u64) -> Vec<u64> {
        (0..looks)
            .map(|n| 1000 + step * n + 200 * (n % period) / period)
            .collect()
    }

    #[test]
    fn a_leak_is_one_even_if_it_is_uneven() {
        assert_eq!(
            judged(&[50, 100, 110, 120, 130, 140, 150, 160, 170, 180]),
            Some(true)
        );
        assert_eq!(
            judged(&[50, 100, 95, 105, 120, 115, 125, 150, 145, 148]),
            Some(true)
        );
    }

    #[test]
    fn a_leak_under_what_comes_and_goes_is_found_and_without_it_there_is_none() {
        for period in [2, 3, 4, 5, 7, 11] {
            for looks in [60, 61, 65, 600] {
                let step = 240 / looks + 1;
                let leak = sawtooth(looks, period, step);
                assert_eq!(judged(&leak), Some(true), "{period} {looks}");
                assert_eq!(
                    judged(&sawtooth(looks, period, 0)),
                    Some(false),
                    "{period} {looks}"
                );
            }
        }
    }

    #[test]
    fn what_settles_or_comes_and_goes_is_no_leak() {
        assert_eq!(
            judged(&[50, 100, 150, 180, 200, 200, 200, 200, 200, 200]),
            Some(false)
        );
        assert_eq!(
            judged(&[50, 100, 200, 100, 200, 100, 200, 100, 200, 150]),
            Some(false)
        );
        let settles: Vec<u64> = (0..60).map(|n| 100 + 50 * n.min(12)).collect();
        assert_eq!(judged(&settles), Some(false));
        assert_eq!(judged(&[50; 40]), Some(false));
        assert_eq!(
            judged(&[200, 190, 180, 170, 160, 150, 140, 130, 120, 110]),
            Some(false)
        );
    }

    #[test]
    fn a_little_is_no_growth() {
        assert_eq!(
            judged(&[1, 1, 1, 1, 2, 2, 2, 3, 3, 3]),
            Some(false),
            "less than 10"
        );
        let little: Vec<u64> = (0..40).map(|n| 1000 + 2 * n).collect();
        assert_eq!(
            judged(&little),
            Some(false),
            "less than a tenth of the first"
        );
        let more: Vec<u64> = (0..80).map(|n| 1000 + 2 * n).collect();
        assert_eq!(judged(&more), Some(true));
    }

    #[test]
    fn filling_up_is_not_growth_and_few_looks_or_a_short_time_say_nothing() {
        let fills: Vec<u64> = (1..=12).map(|n| 100 * n).collect();
        assert_eq!(judged(&fills[..9]), None, "eight");
        let looks = minutes(&fills);
        let of = |looks: &[Look], settled_s| Growth::of(looks, settled_s, 10).expect("looks");
        assert_eq!(of(&looks, None).keeps_growing, None, "never full");
        assert_eq!(
            of(&looks, Some(300)).keeps_growing,
            None,
            "eight since it was"
        );
        let seconds: Vec<Look> = looks
            .iter()
            .map(|(at_s, seen)| (at_s / 60, *seen))
            .collect();
        assert_eq!(of(&seconds, Some(1)).keeps_growing, None, "twelve seconds");
        assert_eq!(of(&looks, Some(60)).keeps_growing, Some(true));
        assert_eq!(Growth::of(&[], Some(0), 1), None);
        let one = of(&[(60, 7)], Some(0));
        assert_eq!((one.first, one.last, one.most), (7, 7, 7));
    }
}
