//! Standard output: written whole, and a reader that went away is no failure.

use std::io::{self, Write};

use crate::exit::{Exit, Failure};

/// Writes `text` to standard output.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(failure)
}

/// What a failed write to standard output means.
pub(crate) fn failure(error: io::Error) -> Failure {
    if error.kind() == io::ErrorKind::BrokenPipe {
        // `... | head` has what it wanted.
        return Failure::new(Exit::Done, "");
    }
    Failure::failed(format!("cannot write to standard output: {error}"))
}
