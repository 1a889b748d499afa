//! Saying that a test could not be made here, where the harness would hide it otherwise.

use std::io::Write;

/// Says on the real standard error, past the capture of the test harness, why a test checks nothing
/// on this machine.
pub fn skip(test: &str, reason: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {reason}");
}
