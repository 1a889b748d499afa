//! Why there are no figures, or why those that there are do not count: figures of a part of a measurement
//! are not those of the whole.

use std::io;
use std::time::Duration;

use ringtide_client::Error;

/// Why a measurement gave no figures.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// The options cannot be.
    #[error("{0}")]
    Usage(String),
    /// The broker could not be asked, or refused, before the measurement began.
    #[error(transparent)]
    Setup(#[from] Error),
    /// The broker went away or stopped answering while it was measured.
    #[error(
        "the measurement was cut short and its figures do not count: {} (after {acknowledged} \
         acknowledged records){}",
        .cause, leftover(.topic)
    )]
    Lost {
        /// What became of the connection.
        cause: Error,
        /// Records acknowledged by then, warm-up included.
        acknowledged: u64,
        /// The topic, if it may still be there.
        topic: Option<String>,
    },
    /// The broker refused a record while it was measured.
    #[error("the measurement was cut short and its figures do not count: {cause}{}", leftover(.topic))]
    Refused {
        /// The refusal.
        cause: Error,
        /// The topic, if it may still be there.
        topic: Option<String>,
    },
    /// The broker answered with something that cannot be right.
    #[error("the figures do not count: {0}; please report it")]
    Wrong(String),
    /// A broker of our own did not start: how it ended, and what it said.
    #[error("the broker did not start: {0}")]
    NotStarted(String),
    /// Not one record was acknowledged in the time given.
    #[error("not one record was acknowledged within the {0:?} of the measurement; give it longer")]
    Empty(Duration),
    /// The caller asked for the end.
    #[error("the measurement was interrupted; its figures do not count")]
    Interrupted,
    /// The machine refused something.
    #[error("{what}: {cause}")]
    Io {
        /// What was tried, and on what.
        what: String,
        /// What the system said.
        cause: io::Error,
    },
}

fn leftover(topic: &Option<String>) -> String {
    topic.as_ref().map_or_else(String::new, |topic| {
        format!("; the topic {topic:?} may be left behind: `ringtide topic delete {topic}`")
    })
}

impl BenchError {
    /// For `map_err`: an error of the system with what was tried.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |cause| Self::Io { what, cause }
    }

    /// Of a server that did not answer a subscription for so long.
    pub(crate) fn unanswered(server: &str, after: Duration) -> Self {
        Self::Setup(Error::Timeout {
            what: format!("subscribing at {server}").into(),
            after,
            why: "it does not answer".into(),
        })
    }

    /// Says in the message how much was acknowledged before.
    pub(crate) fn after(mut self, records: u64) -> Self {
        if let Self::Lost { acknowledged, .. } = &mut self {
            *acknowledged = records;
        }
        self
    }

    /// Says in the message that the topic may still be there.
    pub(crate) fn leaving(mut self, name: &str) -> Self {
        match &mut self {
            Self::Lost { topic, .. } | Self::Refused { topic, .. } => *topic = Some(name.into()),
            _ => {}
        }
        self
    }
}
