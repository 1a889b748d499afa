//! Version negotiation: the first frame of a connection is hello, in both directions.

use ringtide_schema::limits::{PROTOCOL_MAX, PROTOCOL_MIN};

/// No protocol version in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the client speaks protocol versions {min} to {max}, this broker {PROTOCOL_MIN} to \
     {PROTOCOL_MAX}; update the older of the two"
)]
pub struct HelloError {
    /// The client's oldest.
    pub min: u8,
    /// The client's newest.
    pub max: u8,
}

/// The newest version that both sides speak.
pub fn negotiate(min: u8, max: u8) -> Result<u8, HelloError> {
    let version = max.min(PROTOCOL_MAX);
    if min > max || version < min.max(PROTOCOL_MIN) {
        return Err(HelloError { min, max });
    }
    Ok(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_client_is_answered_with_our_newest_version() {
        assert_eq!(negotiate(1, 9), Ok(PROTOCOL_MAX));
    }

    #[test]
    fn a_client_without_a_common_version_is_refused() {
        assert_eq!(negotiate(2, 9), Err(HelloError { min: 2, max: 9 }));
        assert_eq!(negotiate(3, 1), Err(HelloError { min: 3, max: 1 }));
    }
}
