//! The numbers of errors on the wire, in one place. A number is never reused.

/// Declares the codes with their text and class once, so that they cannot drift apart.
macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal, $retriable:literal;)*) => {
        /// An error as a number on the wire.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum ErrorCode {
            $($(#[$doc])* $name = $number,)*
        }

        impl ErrorCode {
            /// Every code.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$name,)*];

            /// The code with this number; a number from a newer broker is `None`.
            pub fn from_u16(number: u16) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// What the error means, in words.
            pub fn text(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }

            /// Whether the same request may succeed later without the caller changing it.
            pub fn is_retriable(self) -> bool {
                match self {
                    $(Self::$name => $retriable,)*
                }
            }
        }
    };
}

codes! {
    /// A fault of the broker; its log says more.
    Internal = 1, "the broker failed to handle the request; see its log", false;
    /// The frame cannot be trusted; the connection is closed after this.
    BadFrame = 2, "the frame is malformed", false;
    /// The envelope is not a valid FlatBuffer of the operation.
    BadEnvelope = 3, "the envelope is malformed", false;
    /// No common protocol version, or the first request was not hello.
    UnsupportedVersion = 4, "no protocol version in common", false;
    /// The operation's number is unknown to this broker.
    UnknownOperation = 5, "unknown operation", false;
    /// A value that no broker would accept.
    InvalidRequest = 6, "the request is invalid", false;
    /// A frame, envelope, payload or batch over its bound.
    TooLarge = 7, "larger than the limit", false;
    /// More requests in flight, subscriptions, parts or credit than allowed.
    TooMany = 8, "more than the limit", true;
    /// The broker's memory or queues are full, or no file can be opened to read from; try again.
    Overloaded = 9, "the broker is overloaded", true;
    /// The broker is shutting down.
    ShuttingDown = 10, "the broker is shutting down", true;

    /// No such topic.
    UnknownTopic = 20, "unknown topic", false;
    /// No such partition of the topic.
    UnknownPartition = 21, "unknown partition", false;
    /// The topic exists.
    TopicExists = 22, "the topic exists", false;
    /// The name is not a legal topic name.
    InvalidTopicName = 23, "illegal topic name", false;
    /// A setting of the topic is impossible.
    InvalidSetting = 24, "impossible topic setting", false;
    /// The partition lives on another shard, and this operation is not forwarded.
    WrongShard = 25, "the partition is on another shard", true;

    /// The batch is malformed.
    BadBatch = 40, "the record batch is malformed", false;
    /// The batch's checksum does not match its bytes.
    BadChecksum = 41, "the record batch has a wrong checksum", false;
    /// A timestamp further ahead than the topic allows.
    TimestampTooFarAhead = 42, "a timestamp is too far ahead of the broker's clock", false;
    /// The producer's sequence has a gap.
    OutOfOrderSequence = 43, "the producer's sequence has a gap", false;
    /// The batch was appended before, but too long ago for its offset to be known.
    DuplicateSequence = 44, "the batch was appended before", false;
    /// The broker does not remember this producer.
    UnknownProducer = 45, "the producer is not known to the partition", false;
    /// A newer producer with the same identity exists.
    ProducerFenced = 46, "the producer was fenced by a newer one", false;
    /// The disk is full: publishes are refused until there is space, and without room in the log all
    /// that would take some.
    DiskFull = 47, "the broker's disk is full", true;

    /// The offset is below the earliest or past the latest.
    OffsetOutOfRange = 60, "the offset is out of range", false;
    /// No subscription of that number on this connection.
    UnknownSubscription = 61, "unknown subscription", false;
    /// Stored data could not be read or failed its check.
    DataUnreadable = 62, "stored data could not be read", false;
    /// The consumer's name is not legal.
    InvalidConsumerName = 63, "illegal consumer name", false;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_found_by_its_number() {
        for &code in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_u16(code as u16), Some(code));
        }
        assert_eq!(ErrorCode::from_u16(0), None);
    }
}
