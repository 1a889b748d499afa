//! How long things took: a histogram while it is measured, a few quantiles afterwards.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// What is longer counts as this long.
const LONGEST_NS: u64 = 3_600_000_000_000;
/// Three digits: a figure is off by at most a thousandth.
const DIGITS: u8 = 3;

/// Times as they are measured. Recording allocates nothing.
#[derive(Clone, Debug)]
pub struct Recorder {
    histogram: Histogram<u64>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new()
    }
}

impl Recorder {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        let histogram = Histogram::new_with_bounds(1, LONGEST_NS, DIGITS);
        Self {
            histogram: histogram.expect("bounds and digits are in range"),
        }
    }

    /// Counts one; longer than an hour counts as an hour.
    pub fn record(&mut self, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.histogram.saturating_record(ns.max(1));
    }

    /// How many were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// Adds what another has counted.
    pub fn add(&mut self, other: &Self) {
        // Both have the same bounds.
        let _ = self.histogram.add(&other.histogram);
    }

    /// The histogram itself, for files and charts.
    #[must_use]
    pub fn histogram(&self) -> &Histogram<u64> {
        &self.histogram
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.histogram.reset();
    }

    /// The quantiles, if there is anything to have them of.
    #[must_use]
    pub fn summary(&self) -> Option<Latency> {
        let histogram = &self.histogram;
        (!histogram.is_empty()).then(|| Latency {
            min: histogram.min(),
            mean: histogram.mean().round() as u64,
            p50: histogram.value_at_quantile(0.5),
            p90: histogram.value_at_quantile(0.9),
            p99: histogram.value_at_quantile(0.99),
            p99_9: histogram.value_at_quantile(0.999),
            p99_99: histogram.value_at_quantile(0.9999),
            max: histogram.max(),
            count: histogram.len(),
        })
    }
}

/// Quantiles in nanoseconds, to three digits, and of how many. A quantile that fewer than a few of
/// them lie above says little: p99.99 needs 100,000 or so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Latency {
    /// The shortest.
    pub min: u64,
    /// The average.
    pub mean: u64,
    /// Half took no longer.
    pub p50: u64,
    /// 90 % took no longer.
    pub p90: u64,
    /// 99 % took no longer.
    pub p99: u64,
    /// 99.9 % took no longer.
    pub p99_9: u64,
    /// 99.99 % took no longer.
    pub p99_99: u64,
    /// The longest.
    pub max: u64,
    /// How many they are of.
    pub count: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_range_is_clamped_and_counted() {
        let mut recorder = Recorder::new();
        assert_eq!(recorder.summary(), None);
        recorder.record(Duration::ZERO);
        recorder.record(Duration::MAX);
        let latency = recorder.summary().expect("two were counted");
        assert_eq!((recorder.count(), latency.count, latency.min), (2, 2, 1));
        assert!(latency.max.abs_diff(LONGEST_NS) <= LONGEST_NS / 1000);
    }

    #[test]
    fn quantiles_are_right_to_three_digits() {
        let mut recorder = Recorder::new();
        for ns in (1..=10_000).map(|n| n * 100) {
            recorder.record(Duration::from_nanos(ns));
        }
        let latency = recorder.summary().expect("ten thousand were counted");
        for (found, wanted) in [
            (latency.p50, 500_000),
            (latency.p90, 900_000),
            (latency.p99, 990_000),
            (latency.p99_9, 999_000),
            (latency.p99_99, 999_900),
            (latency.max, 1_000_000),
        ] {
            assert!(
                u64::abs_diff(found, wanted) <= wanted / 500,
                "{found} {wanted}"
            );
        }
    }
}
