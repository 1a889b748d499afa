//! How long to wait after a failure: twice as long each time, up to a bound, with jitter so that
//! many clients that failed together do not come back together. Randomness is passed in.

use std::time::Duration;

/// Counts failures and gives waits.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    first: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    pub(crate) fn new(first: Duration, max: Duration) -> Self {
        Self {
            first,
            max,
            failures: 0,
        }
    }

    /// After a success.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// The wait after one more failure: between half and all of the exponential step.
    pub(crate) fn next(&mut self, random: &mut Random) -> Duration {
        let step = self
            .first
            .saturating_mul(1 << self.failures.min(20))
            .min(self.max);
        self.failures = self.failures.saturating_add(1);
        let half = step / 2;
        let jitter_ns = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX);
        half + Duration::from_nanos(random.below(jitter_ns.saturating_add(1)))
    }
}

/// A small generator of numbers that need not be secret (SplitMix64).
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 for a bound of 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn waits_grow_to_the_bound_and_stay_within_half_of_their_step(seed: u64) {
            let (first, max) = (Duration::from_millis(10), Duration::from_millis(500));
            let mut backoff = Backoff::new(first, max);
            let mut random = Random::new(seed);
            for failure in 0..40_u32 {
                let step = first.saturating_mul(1 << failure.min(10)).min(max);
                let wait = backoff.next(&mut random);
                prop_assert!(wait >= step / 2 && wait <= step, "{failure}: {wait:?} of {step:?}");
            }
            backoff.reset();
            prop_assert!(backoff.next(&mut random) <= first);
        }
    }
}
