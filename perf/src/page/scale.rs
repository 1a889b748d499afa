//! Scales: where on an axis a value is, and which values have a tick.

/// Over a larger factor there is no room for ticks between powers of ten.
const FEW_DECADES: f64 = 200.0;

/// From values to 0 at the beginning of an axis and 1 at its end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Scale {
    /// Even steps.
    Linear(f64, f64),
    /// Even factors; both bounds are more than 0.
    Log(f64, f64),
}

impl Scale {
    /// Where a value is. What is outside of the axis is at its nearer end.
    pub(super) fn place(self, value: f64) -> f64 {
        let place = match self {
            Self::Linear(from, to) => (value - from) / (to - from),
            Self::Log(from, to) => (value.max(from) / from).ln() / (to / from).ln(),
        };
        if place.is_nan() {
            return 0.0;
        }
        place.clamp(0.0, 1.0)
    }

    /// For these values: bounds of 1, 2 or 5 times a power of ten, apart from each other. What is
    /// not more than 0 has no place on it.
    pub(super) fn log_around(values: impl Iterator<Item = f64>) -> Self {
        let (mut low, mut high) = (f64::INFINITY, 0.0f64);
        for value in values.filter(|v| *v > 0.0 && v.is_finite()) {
            (low, high) = (low.min(value), high.max(value));
        }
        if high == 0.0 {
            return Self::Log(1e3, 1e6);
        }
        let steps = round_steps(low / 10.0, high * 10.0);
        let from = steps.iter().copied().rfind(|s| *s <= low);
        let to = steps.iter().copied().find(|s| *s >= high);
        let (mut from, mut to) = (from.unwrap_or(low), to.unwrap_or(high));
        // A flat curve is in the middle of at least a factor of ten.
        while to < from * 9.9 {
            let (below, above) = (low / from, to / high);
            match below < above {
                true => {
                    from = steps
                        .iter()
                        .copied()
                        .rfind(|s| *s < from)
                        .unwrap_or(from / 2.0)
                }
                false => {
                    to = round_steps(to * 1.1, to * 10.0)
                        .first()
                        .copied()
                        .unwrap_or(to * 2.0)
                }
            }
        }
        if to > from * FEW_DECADES {
            // Only powers of ten have a tick, and both ends are to have one.
            from = 10f64.powf(floor_log10(from));
            to = 10f64.powf(-floor_log10(1.0 / to));
        }
        Self::Log(from, to)
    }

    /// From 0 to a little more than the largest.
    pub(super) fn linear_to(largest: f64) -> Self {
        let largest = if largest > 0.0 && largest.is_finite() {
            largest
        } else {
            1.0
        };
        let largest = largest * 1.05;
        let (mut step, mut to) = (0.0, largest);
        // Until the step of the ticks is the one that the end is a multiple of.
        while step < nice_step(to, 5.0) {
            step = nice_step(to, 5.0);
            to = (largest / step).ceil() * step;
        }
        Self::Linear(0.0, to)
    }

    /// Values that have a tick.
    pub(super) fn ticks(self) -> Vec<f64> {
        match self {
            Self::Linear(from, to) => {
                let step = nice_step(to - from, 5.0);
                let first = (from / step).ceil() as i64;
                let last = (to / step + 1e-9).floor() as i64;
                (first..=last).map(|n| n as f64 * step).collect()
            }
            Self::Log(from, to) => {
                let all = round_steps(from, to);
                match to / from > FEW_DECADES {
                    true => all.into_iter().filter(|t| is_power_of_ten(*t)).collect(),
                    false => all,
                }
            }
        }
    }
}

/// 1, 2 or 5 times a power of ten, so that about so many fit into a length.
fn nice_step(length: f64, wanted: f64) -> f64 {
    let rough = length / wanted;
    let power = 10f64.powf(rough.log10().floor());
    let times = match rough / power {
        r if r < 1.5 => 1.0,
        r if r < 3.5 => 2.0,
        r if r < 7.5 => 5.0,
        _ => 10.0,
    };
    times * power
}

/// 1, 2 and 5 times powers of ten between two values, both included.
fn round_steps(from: f64, to: f64) -> Vec<f64> {
    let powers = from.log10().floor() as i32..=to.log10().ceil() as i32;
    let all = powers.flat_map(|p| [1.0, 2.0, 5.0].map(|times| times * 10f64.powi(p)));
    all.filter(|v| *v >= from * (1.0 - 1e-9) && *v <= to * (1.0 + 1e-9))
        .collect()
}

/// The power of ten that a value has reached, however it was rounded.
fn floor_log10(value: f64) -> f64 {
    (value.log10() + 1e-9).floor()
}

fn is_power_of_ten(value: f64) -> bool {
    let log = value.log10();
    (log - log.round()).abs() < 1e-6
}

/// How many nines a percentile has: 90 has one, 99.9 three; the last record of so many is at the
/// share that it is.
pub(super) fn nines(percentile: f64, count: u64) -> f64 {
    let most = (count.max(2) as f64).log10();
    let rest = 1.0 - percentile / 100.0;
    match rest > 0.0 {
        true => (-rest.log10()).clamp(0.0, most),
        false => most,
    }
}

/// Percentiles that have a tick, up to so many nines.
pub(super) fn percentile_ticks(most: f64) -> Vec<(f64, &'static str)> {
    [
        (0.0, "0"),
        (0.5f64, "50"),
        (0.9, "90"),
        (0.99, "99"),
        (0.999, "99.9"),
        (0.9999, "99.99"),
        (0.99999, "99.999"),
        (0.999_999, "99.9999"),
    ]
    .into_iter()
    .map(|(share, name)| (-(1.0 - share).log10(), name))
    .filter(|(nines, _)| *nines <= most + 1e-9)
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_scale_has_even_factors_and_ends_at_round_values() {
        let scale = Scale::log_around([30_000.0, 0.0, 4e6].into_iter());
        assert_eq!(scale, Scale::Log(10_000.0, 1e7));
        assert_eq!((scale.place(10_000.0), scale.place(1e7)), (0.0, 1.0));
        let few = Scale::log_around([30_000.0, 1e6].into_iter());
        assert_eq!(few, Scale::Log(20_000.0, 1e6));
        let even = Scale::Log(10.0, 100_000.0);
        assert!((even.place(1000.0) - 0.5).abs() < 1e-9);
        assert_eq!((even.place(0.0), even.place(1e9)), (0.0, 1.0));
        assert_eq!(even.ticks(), [10.0, 100.0, 1000.0, 10_000.0, 100_000.0]);
        assert_eq!(Scale::Log(20.0, 200.0).ticks(), [20.0, 50.0, 100.0, 200.0]);
    }

    #[test]
    fn scales_of_nothing_and_of_one_value_have_a_length() {
        for values in [&[][..], &[0.0], &[100.0], &[1.0, 1.01], &[f64::NAN, 5.0]] {
            let Scale::Log(from, to) = Scale::log_around(values.iter().copied()) else {
                panic!("not a log scale");
            };
            assert!(from > 0.0 && to >= from * 9.9, "{values:?}: {from} to {to}");
            for value in values.iter().filter(|v| **v > 0.0) {
                assert!((from..=to).contains(value), "{values:?}: {from} to {to}");
            }
        }
        assert_eq!(Scale::linear_to(0.0).place(0.0), 0.0);
        assert_eq!(Scale::Linear(3.0, 3.0).place(3.0), 0.0);
    }

    #[test]
    fn a_linear_scale_has_a_handful_of_round_ticks() {
        for largest in [0.7, 1.0, 3.0, 9_999.0, 10_000.0, 15_500.0, 123_456.0] {
            let scale = Scale::linear_to(largest);
            let ticks = scale.ticks();
            assert!((3..=8).contains(&ticks.len()), "{largest}: {ticks:?}");
            assert!(scale.place(largest) < 1.0, "{largest}: {scale:?}");
            let last = ticks.last().copied().unwrap_or_default();
            assert!(scale.place(last) > 0.999, "{largest}: {ticks:?}");
        }
    }

    #[test]
    fn percentiles_are_as_far_apart_as_they_have_nines() {
        assert!((nines(90.0, 1000) - 1.0).abs() < 1e-9);
        assert!((nines(99.9, 1_000_000) - 3.0).abs() < 1e-9);
        // The last of a thousand is at 99.9, and nothing is beyond it.
        assert!((nines(100.0, 1000) - 3.0).abs() < 1e-9);
        assert!((nines(99.9999, 1000) - 3.0).abs() < 1e-9);
        assert_eq!(nines(0.0, 0), 0.0);
        let names: Vec<_> = percentile_ticks(5.0)
            .iter()
            .map(|(_, name)| *name)
            .collect();
        assert_eq!(names, ["0", "50", "90", "99", "99.9", "99.99", "99.999"]);
    }
}
