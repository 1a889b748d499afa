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
    /// How likely that is when nothing differs.
    pub(crate) chance: f64,
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
            chance: chance(ratios.len()),
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
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[n / 2]),
        n => Some(f64::midpoint(values[n / 2 - 1], values[n / 2])),
    }
}

/// How likely all of so many pairs lie on one side of 1 when nothing differs.
fn chance(pairs: usize) -> f64 {
    0.5_f64.powi(pairs.saturating_sub(1).try_into().unwrap_or(i32::MAX))
}

/// How likely, at the most, any of the figures differs when nothing does: they are of the same runs, and
/// how they hang together is not known.
pub(crate) fn chance_of_any(figures: &[Compared]) -> f64 {
    let each = figures.iter().map(|figure| figure.chance);
    each.sum::<f64>().min(1.0)
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

    /// A number from -1 to 1, by chance.
    struct Noise(u64);

    impl Noise {
        fn next(&mut self) -> f64 {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (self.0 >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
        }

        /// The figures of a comparison whose B takes so many times as long; those of a run have some of
        /// its noise in common.
        fn comparison(&mut self, pairs: usize, slower: f64) -> Vec<Compared> {
            let mut of = [(); 7].map(|()| Vec::new());
            for _ in 0..pairs {
                let (a, b) = (self.next(), self.next());
                for values in &mut of {
                    let [a, b] = [a, b].map(|common| (0.1 * (common + self.next())).exp());
                    values.push((a, b * slower));
                }
            }
            of.iter().map(|values| compared(values)).collect()
        }
    }

    #[test]
    fn what_is_compared_with_itself_differs_no_more_often_than_is_said() {
        const TIMES: usize = 4000;
        let mut noise = Noise(1);
        for pairs in [5, 9] {
            let (mut any, mut first, mut said) = (0, 0, 0.0);
            for _ in 0..TIMES {
                let figures = noise.comparison(pairs, 1.0);
                any += usize::from(figures.iter().any(|figure| figure.differs));
                first += usize::from(figures[0].differs);
                said = chance_of_any(&figures);
            }
            let share = |times: usize| times as f64 / TIMES as f64;
            assert!(share(any) <= said, "{pairs}: {} of {said}", share(any));
            let off = (share(first) - chance(pairs)).abs();
            assert!(off < 0.01, "{pairs}: {}", share(first));
        }
        assert!(noise.comparison(9, 1.6).iter().all(|figure| figure.differs));
    }

    #[test]
    fn what_pairs_do_not_agree_on_is_no_difference() {
        assert!(!compared(&[(10.0, 30.0), (10.0, 9.9), (10.0, 30.0)]).differs);
        assert!(!compared(&[(10.0, 11.0), (10.0, 10.0)]).differs);
        assert!(!compared(&[(10.0, 30.0)]).differs, "one pair says nothing");
    }

    #[test]
    fn the_drift_of_a_machine_is_in_both_of_a_pair() {
        let drifting = compared(&[(10.0, 11.0), (100.0, 110.0), (1000.0, 1100.0)]);
        assert!(drifting.differs && drifting.ratio.max - drifting.ratio.min < 1e-9);
    }

    #[test]
    fn what_was_not_measured_on_both_sides_is_left_out() {
        let one = compared(&[(0.0, 5.0), (10.0, 20.0)]);
        assert_eq!((one.ratios, one.chance), (vec![2.0], 1.0));
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
