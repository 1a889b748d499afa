//! A line on the terminal that says how far long work is; nothing when nobody watches.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Work shorter than this needs no progress.
const QUIET: Duration = Duration::from_secs(1);
/// How often the line is written anew.
const EVERY: Duration = Duration::from_millis(200);

/// Progress on standard error.
pub(crate) struct Progress {
    began: Instant,
    next: Instant,
    enabled: bool,
    shown: bool,
}

impl Progress {
    /// Nothing is shown unless standard error is a terminal.
    pub(crate) fn new() -> Self {
        Self::enabled(std::io::stderr().is_terminal())
    }

    /// For work whose standard output may be the same terminal: shown only if that is not one.
    pub(crate) fn beside_output() -> Self {
        Self::enabled(std::io::stderr().is_terminal() && !std::io::stdout().is_terminal())
    }

    fn enabled(enabled: bool) -> Self {
        let began = Instant::now();
        Self {
            began,
            next: began + QUIET,
            enabled,
            shown: false,
        }
    }

    /// Shows what `line` says, if it is time to.
    pub(crate) fn tick(&mut self, line: impl FnOnce(Duration) -> String) {
        if !self.enabled {
            return;
        }
        let now = Instant::now();
        if now < self.next {
            return;
        }
        self.next = now + EVERY;
        self.shown = true;
        // `\x1b[K` clears what is left of a longer line before.
        let _ = write!(std::io::stderr(), "\r{}\x1b[K", line(now - self.began));
    }

    /// Removes the line, so that what follows stands alone.
    pub(crate) fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// `1,234,567`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Megabytes a second, of 1,000,000 bytes.
pub(crate) fn rate(bytes: u64, elapsed: Duration) -> String {
    format!(
        "{:.0} MB/s",
        bytes as f64 / 1e6 / elapsed.as_secs_f64().max(1e-9)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_grouped_by_three() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1000), "1,000");
        assert_eq!(grouped(1_234_567), "1,234,567");
    }

    #[test]
    fn nothing_is_said_when_nobody_watches() {
        let mut progress = Progress::enabled(false);
        progress.next = Instant::now();
        progress.tick(|_| panic!("asked for a line that nobody sees"));
    }
}
