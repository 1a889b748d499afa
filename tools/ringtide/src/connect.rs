//! Connecting to a broker, and what a client's errors mean for the exit code.

use std::time::{Duration, Instant};

use ringtide_client::sync::Client;
use ringtide_client::{Error, ErrorCode, Options};

use crate::cli::ServerArgs;
use crate::exit::{Exit, Failure};

/// How long a broker that is not there yet is waited for: it may be starting in the same moment.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often it is tried.
const RETRY: Duration = Duration::from_millis(20);

/// Connects to the broker that the command line names.
pub(crate) fn connect(server: &ServerArgs) -> Result<Client, Failure> {
    let options = Options::new().client_name(concat!("ringtide-cli/", env!("CARGO_PKG_VERSION")));
    let until = Instant::now() + PATIENCE;
    loop {
        match Client::connect([server.server.as_str()], options.clone()) {
            Err(error) if is_out_of_reach(&error) && Instant::now() < until => {
                std::thread::sleep(RETRY);
            }
            connected => return Ok(connected?),
        }
    }
}

/// What an error means that concerns the topic which the command line names.
pub(crate) fn of_topic(name: &str) -> impl FnOnce(Error) -> Failure {
    move |error| match error.code() {
        Some(ErrorCode::UnknownTopic) => Failure::failed(format!(
            "there is no topic {name:?}; `ringtide topic list` shows those there are, `ringtide \
             topic create` makes one"
        )),
        _ => error.into(),
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::new(exit_of(&error), error.to_string())
    }
}

/// The exit code of a command that ended with this error.
pub(crate) fn exit_of(error: &Error) -> Exit {
    match error {
        error if error.is_outcome_unknown() => Exit::OutcomeUnknown,
        error if is_out_of_reach(error) => Exit::Unreachable,
        Error::Invalid(_) => Exit::Usage,
        _ => Exit::Failed,
    }
}

/// Whether the broker could not be asked, as opposed to having refused.
pub(crate) fn is_out_of_reach(error: &Error) -> bool {
    matches!(
        error,
        Error::Connect { .. } | Error::Disconnected { .. } | Error::Timeout { .. }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_out_of_reach_is_told_from_one_that_refuses() {
        let connect = Error::Connect {
            server: "h:1".into(),
            kind: std::io::ErrorKind::ConnectionRefused,
            why: "refused".into(),
        };
        assert_eq!(exit_of(&connect), Exit::Unreachable);
        let refused = Error::Broker {
            code: ErrorCode::UnknownTopic,
            what: "produce".into(),
            message: "".into(),
        };
        assert_eq!(exit_of(&refused), Exit::Failed);
        let failure = of_topic("orders")(refused);
        let words = "there is no topic \"orders\"";
        assert!(failure.message.starts_with(words), "{failure}");
        assert_eq!(failure.exit, Exit::Failed);
        let unknown = Error::OutcomeUnknown {
            what: "create".into(),
            why: "lost".into(),
        };
        assert_eq!(exit_of(&unknown), Exit::OutcomeUnknown);
    }
}
