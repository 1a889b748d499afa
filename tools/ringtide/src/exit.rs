//! The exit codes of the binary, in one numbered table, and the failure that carries one.
//!
//! The table is what `ringtide --help` and docs/OPERATIONS.md show; a test holds the latter against
//! it. A number is never given a second meaning.

use std::process::ExitCode;

/// Declares the codes with their meaning once, so that they cannot drift apart.
macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $meaning:literal;)*) => {
        /// How the process ended.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub(crate) enum Exit {
            $($(#[$doc])* $name = $number,)*
        }

        impl Exit {
            /// Every code.
            pub(crate) const ALL: &'static [Exit] = &[$(Exit::$name,)*];

            /// What the code means, in words.
            pub(crate) fn meaning(self) -> &'static str {
                match self {
                    $(Self::$name => $meaning,)*
                }
            }
        }
    };
}

codes! {
    /// Everything asked for was done.
    Done = 0, "everything that was asked for was done";
    /// The operation failed for a reason without a code of its own.
    Failed = 1, "the operation failed, or the broker refused it (a name or a setting of a topic as well); the message says why";
    /// A flag, a setting or the configuration file is wrong. The number is clap's as well.
    Usage = 2, "a flag, a setting or the configuration file is wrong";
    /// A measurement that does not count.
    InvalidRun = 3, "a benchmark ran, but its figures do not count";
    /// No broker answered.
    Unreachable = 4, "no broker could be reached, or the connection to it was lost for good";
    /// Some records may or may not have been appended.
    OutcomeUnknown = 5, "not all records were acknowledged: of some the outcome is unknown";
    /// `--count` was not reached.
    FewerThanAsked = 6, "consume delivered fewer records than --count asked for";
    /// `verify` or `inspect` read what there is, and not all of it is right; or `repair` did not mend all of it.
    ProblemsFound = 7, "verify or inspect found problems, or repair left some";
    /// The host lacks something that the broker cannot do without.
    HostUnfit = 10, "the host lacks what the broker cannot do without; see ringtide doctor";
    /// Another process holds the data directory.
    DirectoryLocked = 11, "the data directory is in use by another process";
    /// The data directory cannot be used as it is.
    DirectoryUnusable = 12, "the data directory cannot be used: absent, unreadable, foreign, of another version, or full at a start that has to write";
    /// Acknowledged data is damaged or gone.
    DirectoryCorrupt = 13, "the data directory is damaged: starting would lose acknowledged records";
    /// An address could not be bound.
    CannotListen = 14, "an address could not be listened on";
    /// A second signal cut the drain short.
    StoppedAtOnce = 15, "a second signal or the shutdown timeout ended the broker before it was drained";
    /// A write or sync of the write-ahead log failed.
    FatalWal = 20, "a write to the write-ahead log failed";
    /// A write or sync of a segment failed.
    FatalSegment = 21, "a write to a segment failed";
    /// A snapshot or directory could not be made durable.
    FatalSnapshot = 22, "a snapshot or a directory could not be made durable";
    /// An invariant was found broken.
    FatalInvariant = 23, "an invariant was found broken; please report it";
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// The table, a line each, as `--help` shows it.
pub(crate) fn table() -> String {
    let lines = Exit::ALL
        .iter()
        .map(|&exit| format!("  {:>2}  {}", exit as u8, exit.meaning()));
    format!("Exit codes:\n{}", lines.collect::<Vec<_>>().join("\n"))
}

/// Why a command did not do what it was asked for: what happened, to what, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    /// Decides the exit code.
    pub(crate) exit: Exit,
    /// For the person in front of the terminal.
    pub(crate) message: String,
}

impl Failure {
    /// A failure with a code of its own.
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
        }
    }

    /// A failure without one.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message)
    }

    /// A wrong flag, or flags that do not go together.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_number_and_a_meaning_of_its_own() {
        for (i, a) in Exit::ALL.iter().enumerate() {
            for b in &Exit::ALL[i + 1..] {
                assert_ne!(*a as u8, *b as u8);
                assert_ne!(a.meaning(), b.meaning());
            }
        }
    }

    #[test]
    fn the_operations_manual_lists_every_code_in_the_same_words() {
        let manual = include_str!("../../../docs/OPERATIONS.md");
        for &exit in Exit::ALL {
            let row = format!("| {} | {} |", exit as u8, exit.meaning());
            assert!(
                manual.contains(&row),
                "docs/OPERATIONS.md lacks the row {row:?}"
            );
        }
    }
}
