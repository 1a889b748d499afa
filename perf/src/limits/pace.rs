//! How long a measurement goes on, what of it counts, and who hears of it meanwhile.

use std::io;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::error::BenchError;
use crate::latency::{Latency, Recorder};

/// How often is told that it goes on.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// Measures for a duration, after a tenth of it as warm-up. At least one of what is measured counts,
/// however long it takes.
pub struct Pace<'a> {
    duration: Duration,
    tell: Box<dyn FnMut() -> ControlFlow<()> + Send + 'a>,
    next: Instant,
}

impl<'a> Pace<'a> {
    /// Nobody hears of it.
    #[must_use]
    pub fn new(duration: Duration) -> Self {
        Self::telling(duration, || ControlFlow::Continue(()))
    }

    /// `tell` is called at the beginning and ten times a second, never while something is timed; it
    /// may ask for the end.
    pub fn telling(duration: Duration, tell: impl FnMut() -> ControlFlow<()> + Send + 'a) -> Self {
        Self {
            duration,
            tell: Box::new(tell),
            next: Instant::now(),
        }
    }

    /// Tells if it is time to.
    fn look(&mut self, now: Instant) -> Result<(), BenchError> {
        if now >= self.next {
            self.next = now + TELL_EVERY;
            if (self.tell)().is_break() {
                return Err(BenchError::Interrupted);
            }
        }
        Ok(())
    }

    /// How long `one` takes, done again and again. `what` is for the error.
    pub(super) fn latency(
        &mut self,
        what: &str,
        mut one: impl FnMut() -> io::Result<()>,
    ) -> Result<Latency, BenchError> {
        let mut recorder = Recorder::new();
        let began = Instant::now();
        let warm = began + self.duration / 10;
        let end = warm + self.duration;
        loop {
            self.look(Instant::now())?;
            let before = Instant::now();
            if before >= end
                && let Some(latency) = recorder.summary()
            {
                return Ok(latency);
            }
            one().map_err(|cause| BenchError::io(what)(cause))?;
            let took = before.elapsed();
            if before >= warm {
                recorder.record(took);
            }
        }
    }

    /// How many bytes a second `one` does on the average, which tells how long it took and for how
    /// many; for one of `parts` parts of the duration. The first does not count.
    pub(super) fn bytes_per_s(
        &mut self,
        parts: usize,
        what: &str,
        mut one: impl FnMut() -> io::Result<(Duration, u64)>,
    ) -> Result<u64, BenchError> {
        let duration = self.duration / u32::try_from(parts).unwrap_or(u32::MAX);
        let began = Instant::now();
        let warm = began + duration / 10;
        let end = warm + duration;
        let (mut took, mut bytes) = (Duration::ZERO, 0);
        loop {
            let now = Instant::now();
            self.look(now)?;
            if now >= end && !took.is_zero() {
                return Ok((bytes as f64 / took.as_secs_f64()).round() as u64);
            }
            let (time, done) = one().map_err(|cause| BenchError::io(what)(cause))?;
            if now >= warm && now > began {
                took += time;
                bytes += done;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_outlasts_the_duration_counts_all_the_same() {
        let mut pace = Pace::new(Duration::from_nanos(1));
        let latency = pace.latency("nothing", || Ok(())).expect("measured");
        assert!(latency.count >= 1 && latency.max > 0, "{latency:?}");
        let one = || Ok((Duration::from_secs(2), 3000));
        assert_eq!(pace.bytes_per_s(1, "nothing", one).expect("measured"), 1500);
    }

    #[test]
    fn whoever_hears_of_it_may_end_it() {
        let mut heard = 0;
        let mut pace = Pace::telling(Duration::from_secs(3600), || {
            heard += 1;
            if heard < 3 {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        });
        let ended = pace.latency("nothing", || Ok(()));
        assert!(matches!(ended, Err(BenchError::Interrupted)), "{ended:?}");
        drop(pace);
        assert_eq!(heard, 3);
    }

    #[test]
    fn an_error_says_what_was_tried() {
        let mut pace = Pace::new(Duration::from_secs(3600));
        let refused = || Err(io::Error::other("refused"));
        let error = pace
            .latency("cannot whistle", refused)
            .expect_err("refused");
        assert_eq!(error.to_string(), "cannot whistle: refused");
    }
}
