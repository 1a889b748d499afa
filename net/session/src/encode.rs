//! Frames to bytes, and envelopes from bytes. One [`Encoder`] per thread: its builder's memory is
//! used again for every envelope.

use flatbuffers::{FlatBufferBuilder, Follow, InvalidFlatbuffer, Verifiable, WIPOffset};
use ringtide_schema::frame::{FLAG_ERROR, FLAG_RESPONSE, FrameHeader, Op};
use ringtide_schema::wire;

/// Builds frames into buffers of the caller.
#[derive(Default)]
pub struct Encoder {
    builder: FlatBufferBuilder<'static>,
}

impl Encoder {
    /// An encoder with a small buffer, which grows to the largest envelope.
    pub fn new() -> Self {
        Self {
            builder: FlatBufferBuilder::with_capacity(512),
        }
    }

    /// Appends frame header and envelope to `out`; the caller sends `payload_bytes` after it.
    /// `build` makes the envelope's root table.
    pub fn frame<T>(
        &mut self,
        out: &mut Vec<u8>,
        op: Op,
        flags: u16,
        correlation: u64,
        payload_bytes: usize,
        build: impl FnOnce(&mut FlatBufferBuilder<'static>) -> WIPOffset<T>,
    ) {
        self.builder.reset();
        let root = build(&mut self.builder);
        self.builder.finish_minimal(root);
        let envelope = self.builder.finished_data();
        let header = FrameHeader::new(op, flags, correlation, envelope.len(), payload_bytes);
        out.reserve(header.frame_bytes() - payload_bytes);
        out.extend_from_slice(&header.encode());
        out.extend_from_slice(envelope);
    }

    /// Appends a whole frame that answers a request with an error.
    pub fn error(
        &mut self,
        out: &mut Vec<u8>,
        op: Op,
        correlation: u64,
        error: &wire::ErrorResponseT,
    ) {
        let flags = FLAG_RESPONSE | FLAG_ERROR;
        self.frame(out, op, flags, correlation, 0, |b| error.pack(b));
    }
}

/// Verifies an envelope and gives its root table.
///
/// ```
/// # use ringtide_session::{Encoder, envelope};
/// # use ringtide_schema::{frame::{Op, HEADER_BYTES}, wire};
/// let mut out = Vec::new();
/// Encoder::new().frame(&mut out, Op::Unsubscribe, 0, 7, 0, |b| {
///     wire::UnsubscribeRequestT { subscription: 3 }.pack(b)
/// });
/// let request = envelope::<wire::UnsubscribeRequest>(&out[HEADER_BYTES..]).unwrap();
/// assert_eq!(request.subscription(), 3);
/// ```
pub fn envelope<'a, T>(bytes: &'a [u8]) -> Result<T::Inner, InvalidFlatbuffer>
where
    T: Follow<'a> + Verifiable + 'a,
{
    flatbuffers::root::<T>(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Assembler;
    use proptest::prelude::*;

    #[test]
    fn an_error_travels_whole() {
        let sent = wire::ErrorResponseT {
            code: 60,
            message: Some("offset 9 is past 5".into()),
            earliest: 0,
            latest: 5,
            ..wire::ErrorResponseT::default()
        };
        let mut out = Vec::new();
        Encoder::new().error(&mut out, Op::Fetch, 42, &sent);
        let mut got = None;
        Assembler::new()
            .feed(&out, |f| {
                assert_eq!(f.header.flags, FLAG_RESPONSE | FLAG_ERROR);
                assert_eq!(f.header.correlation, 42);
                got = envelope::<wire::ErrorResponse<'_>>(f.envelope)
                    .ok()
                    .map(|e| e.unpack());
            })
            .expect("a good frame");
        assert_eq!(got, Some(sent));
    }

    proptest! {
        #[test]
        fn arbitrary_envelopes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(r) = envelope::<wire::PublishRequest<'_>>(&bytes) {
                prop_assert!(r.parts().is_none_or(|p| p.len() * 32 <= bytes.len()));
            }
            if let Ok(r) = envelope::<wire::MetadataRequest<'_>>(&bytes) {
                prop_assert!(r.topics().is_none_or(|t| t.iter().map(str::len).sum::<usize>() < 1 << 20));
            }
        }
    }
}
