//! Whether two differ, from runs in pairs. A machine changes from minute to minute; what is measured
//! one behind the other has seen the same, so the two of a pair are held against each other and never
//! those of different pairs.

use serde::Serialize;

/// A figure of both sides over all pairs.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Compared {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    /// Median of A's.
    pub(crate) a: f64,
    /// Median of B's.
    pub(crate) b: f64,
    /// Of the ratios B to A.
    pub(crate) ratio: Spread,
    /// Of each pair, B to A.
    pub(crate) ratios: Vec<f64>,
    /// Whether every pair lies on the same side of 1; one pair alone says nothing.
    pub(crate) differs: bool,
}

/// How far figures lie apart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Compared {
    /// Of pairs of A and B; none without a pair.
    pub(crate) fn of(name: &'static str, unit: &'static str, pairs: &[(f64, f64)]) -> Option<Self> {
        let whole = pairs.iter().filter(|(a, b)| *a > 0.0 && *b > 0.0);
        let (a, b): (Vec<f64>, Vec<f64>) = whole.copied().unzip();
        let ratios: Vec<f64> = a.iter().zip(&b).map(|(a, b)| b / a).collect();
        let (a, b, ratio) = (median(&a)?, median(&b)?, Spread::of(&ratios)?);
        Some(Self {
            name,
            unit,
            a,
            b,
            ratio,
            differs: ratios.len() > 1 && (ratio.min > 1.0 || ratio.max < 1.0),
            ratios,
        })
    }
}

impl Spread {
    fn of(values: &[f64]) -> Option<Self> {
        Some(Self {
            median: median(values)?,
            min: values.iter().copied().min_by(f64::total_cmp)?,
            max: values.iter().copied().max_by(f64::total_cmp)?,
        })
    }
}

/// The middle one; of an even number the mean of the two in the middle.
fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[n / 2]),
        n => Some(f64::midpoint(values[n / 2 - 1], values[n / 2])),
    }
}

/// How likely all of so many pairs lie on one side of 1 when nothing differs.
pub(crate) fn chance(pairs: usize) -> f64 {
    0.5_f64.powi(pairs.saturating_sub(1).try_into().unwrap_or(i32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compared(pairs: &[(f64, f64)]) -> Compared {
        Compared::of("p50", "us", pairs).expect("pairs")
    }

    #[test]
    fn two_differ_when_all_pairs_say_the_same() {
        let slower = compared(&[(10.0, 12.0), (20.0, 22.0), (10.0, 15.0)]);
        assert!(slower.differs, "{slower:?}");
        let Spread { median, min, max } = slower.ratio;
        assert!(
            (median - 1.2).abs() < 1e-9 && (min - 1.1).abs() < 1e-9,
            "{slower:?}"
        );
        assert!((max - 1.5).abs() < 1e-9, "{slower:?}");
        assert_eq!((slower.a, slower.b), (10.0, 15.0));
        assert!(compared(&[(10.0, 9.0), (10.0, 8.0)]).differs);
    }

    #[test]
    fn what_is_within_the_spread_is_no_difference() {
        assert!(!compared(&[(10.0, 30.0), (10.0, 9.9), (10.0, 30.0)]).differs);
        assert!(!compared(&[(10.0, 11.0), (10.0, 10.0)]).differs);
        assert!(!compared(&[(10.0, 30.0)]).differs, "one pair has no spread");
    }

    #[test]
    fn the_drift_of_a_machine_is_in_both_of_a_pair() {
        let drifting = compared(&[(10.0, 11.0), (100.0, 110.0), (1000.0, 1100.0)]);
        assert!(drifting.differs && drifting.ratio.max - drifting.ratio.min < 1e-9);
    }

    #[test]
    fn what_was_not_measured_on_both_sides_is_left_out() {
        assert_eq!(compared(&[(0.0, 5.0), (10.0, 20.0)]).ratios, [2.0]);
        assert!(Compared::of("p50", "us", &[(0.0, 5.0)]).is_none());
    }

    #[test]
    fn a_median_of_an_even_number_lies_between_the_two_in_the_middle() {
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn the_more_pairs_the_less_is_chance() {
        assert_eq!((chance(1), chance(2), chance(5)), (1.0, 0.5, 0.0625));
    }
}
