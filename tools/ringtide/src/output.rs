//! Standard output: written whole, and a reader that went away is no failure. Standard error: what
//! cannot be said there is not said.

use std::io::{self, Write};

use crate::exit::{Exit, Failure};

/// Writes `text` to standard output.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(failure)
}

/// A word to the person in front of the terminal, if there is one.
pub(crate) fn say(text: impl std::fmt::Display) {
    let _ = writeln!(io::stderr(), "ringtide: {text}");
}

/// What a failed write to standard output means.
pub(crate) fn failure(error: io::Error) -> Failure {
    if error.kind() == io::ErrorKind::BrokenPipe {
        // `... | head` has what it wanted.
        return Failure::new(Exit::Done, "");
    }
    Failure::failed(format!("cannot write to standard output: {error}"))
}
