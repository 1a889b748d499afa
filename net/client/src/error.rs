//! What can go wrong, and whether it is worth trying again.
//!
//! Errors are values that can be cloned: one failed batch reports the same error for each of its
//! records, and a lost connection for each of its requests.

use std::sync::Arc;
use std::time::Duration;

use ringtide_schema::batch::BatchError;
use ringtide_schema::error_code::ErrorCode;

/// The result of anything that a client does.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a client reports when it could not do what it was asked for.
///
/// *Retriable* ([`Error::is_retriable`]) means that the same call may succeed later without being
/// changed, and that repeating it does no harm. The client has then tried for as long as its options
/// allow: it is the application's choice to try for longer.
///
/// # Of calls
/// Every call that asks the broker (those of the clients, `commit` of a consumer) is tried for
/// [`Options::call_timeout`](crate::Options::call_timeout), and fails with
/// - [`Error::Connect`] when the shard that it needs cannot be reached,
/// - [`Error::Broker`], [`Error::NewerBroker`] or [`Error::OffsetOutOfRange`] when the broker refuses
///   it; with a retriable code only after the whole time,
/// - [`Error::Timeout`] when nobody answered, or [`Error::OutcomeUnknown`] if it is one that must not
///   be repeated blindly: making, altering or deleting a topic,
/// - [`Error::Protocol`] when the answer makes no sense.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No connection to the server could be made. Retriable.
    #[error("cannot connect to {server}: {why}{}", hint(*.kind))]
    Connect {
        /// Host and port.
        server: Arc<str>,
        /// What the system said, as a kind.
        kind: std::io::ErrorKind,
        /// What the system said.
        why: Arc<str>,
    },
    /// The connection ended before the answer to a request that is safe to repeat. Retriable.
    #[error("the connection to {server} was lost: {why}")]
    Disconnected {
        /// Host and port.
        server: Arc<str>,
        /// Why.
        why: Arc<str>,
    },
    /// The request had no success in time. It was not carried out, or it is one that may be repeated
    /// without harm, such as a commit of an offset. Retriable.
    #[error("{what} was not done within {}: {why}", shown(*.after))]
    Timeout {
        /// What was asked for.
        what: Arc<str>,
        /// How long it was tried.
        after: Duration,
        /// What stood in the way, as far as is known.
        why: Arc<str>,
    },
    /// The wait is over, the request is not: its outcome comes later. Wait on; sending the record
    /// again would make two of it. Not retriable.
    #[error("{what} is still under way after {}: {why}", shown(*.after))]
    UnderWay {
        /// What was asked for.
        what: Arc<str>,
        /// How long was waited.
        after: Duration,
        /// What stands in the way, as far as is known.
        why: Arc<str>,
    },
    /// The broker refused the request. Retriable if its code is ([`ErrorCode::is_retriable`]).
    #[error("{what}: {}{}", .code.text(), detail(.message))]
    Broker {
        /// The error's code.
        code: ErrorCode,
        /// What was asked for, with topic or server.
        what: Arc<str>,
        /// The broker's own words; may be empty.
        message: Arc<str>,
    },
    /// The broker refused the request with an error that this client does not know. Not retriable.
    #[error("{what}: the broker answered with error {number}, which is newer than this client{}", detail(.message))]
    NewerBroker {
        /// The error's number.
        number: u16,
        /// What was asked for.
        what: Arc<str>,
        /// The broker's own words; may be empty.
        message: Arc<str>,
    },
    /// Nothing can be read at this offset: it was removed, or never written. Not retriable.
    #[error(
        "offset {offset} of {topic}/{partition} is out of range; what can be read begins at \
         {earliest} and ends before {latest}: go on at an offset within"
    )]
    OffsetOutOfRange {
        /// The topic.
        topic: Arc<str>,
        /// The partition.
        partition: u32,
        /// The offset that was asked for.
        offset: u64,
        /// The first offset that can be read; -1 when the broker did not say.
        earliest: i64,
        /// The end: the offset after the last; -1 when the broker did not say.
        latest: i64,
    },
    /// It cannot be told whether the request was carried out: look before repeating it. Not
    /// retriable.
    #[error("it is unknown whether {what} was carried out: {why}; look before repeating it")]
    OutcomeUnknown {
        /// What was asked for.
        what: Arc<str>,
        /// Why it cannot be told.
        why: Arc<str>,
    },
    /// The broker refused a record because it lacks earlier ones of this producer that it had
    /// acknowledged as durable: they are gone from the partition. The record was not appended; what
    /// is sent after it is. Not retriable.
    #[error(
        "the broker has lost records of {topic}/{partition} that it had acknowledged as durable; \
         look at what the partition holds and at the broker's data directory"
    )]
    AcknowledgedLost {
        /// The topic.
        topic: Arc<str>,
        /// The partition.
        partition: u32,
    },
    /// The producer holds as much as it may: poll until some of it is acknowledged. Retriable; the
    /// record was not taken.
    #[error(
        "the producer holds {held} bytes of unacknowledged records, its limit is {limit}; poll and send again"
    )]
    BufferFull {
        /// Bytes held.
        held: usize,
        /// The limit.
        limit: usize,
    },
    /// The record is larger than a batch may be. Not retriable; the record was not taken.
    #[error(
        "a record of {bytes} bytes does not fit into a batch of {topic}, of at most {limit} bytes"
    )]
    RecordTooLarge {
        /// The topic.
        topic: Arc<str>,
        /// Bytes of a batch of this record alone, at the most.
        bytes: usize,
        /// The topic's `max_batch_bytes`.
        limit: usize,
    },
    /// What was read is not what was written, or cannot be read by this client. Not retriable.
    #[error(
        "the batch at offset {offset} of {topic}/{partition} cannot be read: {why}; seek {} to go on", behind(*.next)
    )]
    BadBatch {
        /// The topic.
        topic: Arc<str>,
        /// The partition.
        partition: u32,
        /// Where the batch, or the wanted record in it, begins.
        offset: u64,
        /// Where the next batch begins, if this one's header could be read.
        next: Option<u64>,
        /// What is wrong.
        why: BatchError,
    },
    /// The arguments make no sense. Not retriable.
    #[error("{0}")]
    Invalid(Arc<str>),
    /// The server does not speak the protocol as this client understands it. Not retriable.
    #[error(
        "{server} answered with something else than was expected: {why}; is it a Ringtide broker?"
    )]
    Protocol {
        /// Host and port.
        server: Arc<str>,
        /// What was wrong.
        why: Arc<str>,
    },
    /// The client, or what the handle stood for, was closed. Not retriable.
    #[error("the client was closed")]
    Closed,
}

fn hint(kind: std::io::ErrorKind) -> &'static str {
    match kind {
        std::io::ErrorKind::ConnectionRefused => {
            "; is the broker running? start one with `ringtide serve`"
        }
        std::io::ErrorKind::TimedOut => "; is the address right, and does a firewall let it pass?",
        _ => "",
    }
}

fn behind(next: Option<u64>) -> String {
    match next {
        Some(next) => format!("to {next}"),
        None => "past it".into(),
    }
}

/// A time for a person: to a tenth of a second, or below one to a millisecond.
pub(crate) fn shown(time: Duration) -> String {
    match time.as_millis() {
        ms @ 0..1000 => format!("{ms} ms"),
        ms => format!("{} s", (ms / 100) as f64 / 10.0),
    }
}

/// What stood in the way of something that did not happen in time.
pub(crate) fn why_not(trouble: Option<&Error>) -> Arc<str> {
    match trouble {
        Some(error) => error.to_string().into(),
        None => "the broker did not answer".into(),
    }
}

fn detail(message: &str) -> String {
    if message.is_empty() {
        String::new()
    } else {
        format!(" ({message})")
    }
}

impl Error {
    /// Whether the same call may succeed later without being changed, and repeating it does no
    /// harm. An [`Error::OutcomeUnknown`] is not: repeating might do the same thing twice.
    #[must_use]
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Connect { .. }
            | Self::Disconnected { .. }
            | Self::Timeout { .. }
            | Self::BufferFull { .. } => true,
            Self::Broker { code, .. } => code.is_retriable(),
            Self::NewerBroker { .. }
            | Self::UnderWay { .. }
            | Self::AcknowledgedLost { .. }
            | Self::OffsetOutOfRange { .. }
            | Self::OutcomeUnknown { .. }
            | Self::RecordTooLarge { .. }
            | Self::BadBatch { .. }
            | Self::Invalid(_)
            | Self::Protocol { .. }
            | Self::Closed => false,
        }
    }

    /// Whether it cannot be told if the request was carried out.
    #[must_use]
    pub fn is_outcome_unknown(&self) -> bool {
        matches!(self, Self::OutcomeUnknown { .. })
    }

    /// The broker's code, if it was the broker that refused.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Broker { code, .. } => Some(*code),
            Self::OffsetOutOfRange { .. } => Some(ErrorCode::OffsetOutOfRange),
            Self::AcknowledgedLost { .. } => Some(ErrorCode::OutOfOrderSequence),
            _ => None,
        }
    }

    /// A refusal that stood until the request was given up.
    pub(crate) fn tried_for(mut self, time: Duration) -> Self {
        if let Self::Broker { message, .. } = &mut self {
            let before = if message.is_empty() { "" } else { "; " };
            *message = format!("{message}{before}tried for {}", shown(time)).into();
        }
        self
    }

    pub(crate) fn invalid(why: impl Into<Arc<str>>) -> Self {
        Self::Invalid(why.into())
    }

    /// A code as it came over the wire, as an error.
    pub(crate) fn from_wire(
        number: u16,
        what: impl Into<Arc<str>>,
        message: impl Into<Arc<str>>,
    ) -> Self {
        let (what, message) = (what.into(), message.into());
        match ErrorCode::from_u16(number) {
            Some(code) => Self::Broker {
                code,
                what,
                message,
            },
            None => Self::NewerBroker {
                number,
                what,
                message,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_connection_names_the_server_and_what_to_do() {
        let error = Error::Connect {
            server: "127.0.0.1:7311".into(),
            kind: std::io::ErrorKind::ConnectionRefused,
            why: "Connection refused".into(),
        };
        assert_eq!(
            error.to_string(),
            "cannot connect to 127.0.0.1:7311: Connection refused; is the broker running? start \
             one with `ringtide serve`"
        );
        assert!(error.is_retriable());
    }

    /// Whether the same call may be made again: the whole list. One that is new does not compile
    /// until it has its place here.
    fn may_be_repeated(error: &Error) -> bool {
        match error {
            Error::Broker { code, .. } => match code {
                ErrorCode::TooMany
                | ErrorCode::Overloaded
                | ErrorCode::ShuttingDown
                | ErrorCode::WrongShard
                | ErrorCode::DiskFull => true,
                ErrorCode::Internal
                | ErrorCode::BadFrame
                | ErrorCode::BadEnvelope
                | ErrorCode::UnsupportedVersion
                | ErrorCode::UnknownOperation
                | ErrorCode::InvalidRequest
                | ErrorCode::TooLarge
                | ErrorCode::UnknownTopic
                | ErrorCode::UnknownPartition
                | ErrorCode::TopicExists
                | ErrorCode::InvalidTopicName
                | ErrorCode::InvalidSetting
                | ErrorCode::BadBatch
                | ErrorCode::BadChecksum
                | ErrorCode::TimestampTooFarAhead
                | ErrorCode::OutOfOrderSequence
                | ErrorCode::DuplicateSequence
                | ErrorCode::UnknownProducer
                | ErrorCode::ProducerFenced
                | ErrorCode::OffsetOutOfRange
                | ErrorCode::UnknownSubscription
                | ErrorCode::DataUnreadable
                | ErrorCode::InvalidConsumerName => false,
            },
            Error::Connect { .. }
            | Error::Disconnected { .. }
            | Error::Timeout { .. }
            | Error::BufferFull { .. } => true,
            Error::UnderWay { .. }
            | Error::NewerBroker { .. }
            | Error::OffsetOutOfRange { .. }
            | Error::OutcomeUnknown { .. }
            | Error::AcknowledgedLost { .. }
            | Error::RecordTooLarge { .. }
            | Error::BadBatch { .. }
            | Error::Invalid(_)
            | Error::Protocol { .. }
            | Error::Closed => false,
        }
    }

    /// One of each.
    fn all() -> Vec<Error> {
        let (topic, partition): (Arc<str>, _) = ("t".into(), 0);
        let (what, why): (Arc<str>, Arc<str>) = ("x".into(), "y".into());
        let (server, message): (Arc<str>, Arc<str>) = ("s:1".into(), "z".into());
        let after = Duration::from_secs(1);
        let mut all = vec![
            Error::Connect {
                server: server.clone(),
                kind: std::io::ErrorKind::ConnectionRefused,
                why: why.clone(),
            },
            Error::Disconnected {
                server: server.clone(),
                why: why.clone(),
            },
            Error::Timeout {
                what: what.clone(),
                after,
                why: why.clone(),
            },
            Error::UnderWay {
                what: what.clone(),
                after,
                why: why.clone(),
            },
            Error::NewerBroker {
                number: 9999,
                what: what.clone(),
                message: message.clone(),
            },
            Error::OffsetOutOfRange {
                topic: topic.clone(),
                partition,
                offset: 1,
                earliest: 2,
                latest: 3,
            },
            Error::OutcomeUnknown {
                what: what.clone(),
                why: why.clone(),
            },
            Error::AcknowledgedLost {
                topic: topic.clone(),
                partition,
            },
            Error::BufferFull { held: 1, limit: 1 },
            Error::RecordTooLarge {
                topic: topic.clone(),
                bytes: 2,
                limit: 1,
            },
            Error::BadBatch {
                topic,
                partition,
                offset: 0,
                next: None,
                why: ringtide_schema::batch::check_stored(&[]).expect_err("no batch"),
            },
            Error::invalid("x"),
            Error::Protocol { server, why },
            Error::Closed,
        ];
        all.extend(ErrorCode::ALL.iter().map(|&code| Error::Broker {
            code,
            what: what.clone(),
            message: message.clone(),
        }));
        all
    }

    #[test]
    fn each_error_is_retriable_or_not_as_listed() {
        for error in all() {
            assert_eq!(error.is_retriable(), may_be_repeated(&error), "{error:?}");
        }
    }

    #[test]
    fn an_outcome_is_unknown_where_the_error_says_so_and_nowhere_else() {
        for error in all() {
            let says_so = matches!(error, Error::OutcomeUnknown { .. });
            assert_eq!(error.is_outcome_unknown(), says_so, "{error:?}");
        }
    }

    #[test]
    fn a_time_is_said_as_a_person_would() {
        for (ns, said) in [
            (15_000_590_285, "15 s"),
            (1_550_000_000, "1.5 s"),
            (999_999_999, "999 ms"),
        ] {
            assert_eq!(shown(Duration::from_nanos(ns)), said);
        }
        let error = Error::Timeout {
            what: "x".into(),
            after: Duration::from_nanos(15_000_590_285),
            why: "y".into(),
        };
        assert_eq!(error.to_string(), "x was not done within 15 s: y");
    }

    #[test]
    fn an_unknown_outcome_of_a_lost_connection_is_said_without_a_word_of_repeating_it_blindly() {
        let lost = Error::Disconnected {
            server: "s:1".into(),
            why: "it was closed".into(),
        };
        let unknown = Error::OutcomeUnknown {
            what: "create topic t".into(),
            why: why_not(Some(&lost)),
        };
        assert_eq!(
            unknown.to_string(),
            "it is unknown whether create topic t was carried out: the connection to s:1 was \
             lost: it was closed; look before repeating it"
        );
    }

    #[test]
    fn a_code_from_a_newer_broker_is_reported_with_its_number() {
        let error = Error::from_wire(9999, "publish to t/0", "because");
        assert!(error.to_string().contains("9999"), "{error}");
        assert!(error.to_string().contains("because"), "{error}");
    }
}
