//! Waiting for a condition. The deadline is generous: it is there for a broken broker, not for a
//! slow machine.

use std::time::{Duration, Instant};

/// How long anything may take before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long to look out for something that must not happen.
pub const WATCH: Duration = Duration::from_millis(300);

const PAUSE: Duration = Duration::from_millis(5);

/// Asks until there is an answer, and gives it.
///
/// # Panics
/// When there is none within [`PATIENCE`].
pub fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(
            Instant::now() < deadline,
            "waited {PATIENCE:?} in vain: {what}"
        );
        std::thread::sleep(PAUSE);
    }
}

/// Asks until it is so.
///
/// # Panics
/// When it is not so within [`PATIENCE`].
pub fn for_it(what: &str, mut is_so: impl FnMut() -> bool) {
    until(what, || is_so().then_some(()));
}
