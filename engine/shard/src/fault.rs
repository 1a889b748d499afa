//! A refused request: the code for the program, the words for the person.

use ringtide_schema::batch::BatchError;
use ringtide_schema::error_code::ErrorCode;
use ringtide_schema::wire::ErrorResponseT;

/// A message has at most this many bytes: it may quote what a peer sent.
const MAX_MESSAGE_BYTES: usize = 512;

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// On the wire.
    pub code: ErrorCode,
    /// What happened, to what, and what to do.
    pub message: String,
    /// For offsets out of range: what can be read.
    pub range: Option<(u64, u64)>,
}

impl Fault {
    /// A refusal.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        let mut message = message.into();
        message.truncate(message.floor_char_boundary(MAX_MESSAGE_BYTES));
        Self {
            code,
            message,
            range: None,
        }
    }

    /// The broker stops: nothing new is begun.
    pub fn shutting_down() -> Self {
        Self::new(ErrorCode::ShuttingDown, "the broker is shutting down")
    }

    /// As it goes over the wire.
    pub fn to_wire(&self) -> ErrorResponseT {
        let (earliest, latest) = self.range.map_or((-1, -1), |(e, l)| (e as i64, l as i64));
        ErrorResponseT {
            code: self.code as u16,
            message: Some(self.message.clone()),
            earliest,
            latest,
            ..ErrorResponseT::default()
        }
    }
}

impl From<BatchError> for Fault {
    fn from(error: BatchError) -> Self {
        let code = match error {
            BatchError::CrcMismatch { .. } => ErrorCode::BadChecksum,
            BatchError::TooLarge { .. } => ErrorCode::TooLarge,
            _ => ErrorCode::BadBatch,
        };
        Self::new(code, error.to_string())
    }
}
