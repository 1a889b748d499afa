//! The native client against a broker that answers what it likes. The first byte says how it is used, then come
//! the broker's frames. Each is heard before the next is said.
//!
//! Every record that it took has one outcome, every call one answer, in bounded time and memory; what it
//! gives of a partition ascends.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ringtide_fuzz::application::{Application, INFLATED_BYTES, Manner};
use ringtide_fuzz::{bounded, seal, sealed_by, warm};
use ringtide_schema::frame::FrameHeader;
use ringtide_schema::limits::{MAX_ENVELOPE_BYTES, MAX_PAYLOAD_BYTES};

sealed_by!(seal::behind_a_byte);

/// A frame and the buffer for the next, a batch that is inflated, and what the client itself has.
const MOST_BYTES: usize =
    MAX_ENVELOPE_BYTES + 2 * MAX_PAYLOAD_BYTES + 2 * INFLATED_BYTES + (4 << 20);

/// The first frame of a stream, if it begins with one, and what follows.
fn split(stream: &[u8]) -> (&[u8], &[u8]) {
    let whole = match FrameHeader::decode(stream) {
        Ok(Some(header)) => header.frame_bytes(),
        _ => stream.len(),
    };
    stream.split_at(whole.min(stream.len()))
}

fuzz_target!(|data: &[u8]| {
    warm();
    let (&manner, mut stream) = data.split_first().unwrap_or((&0, &[]));
    bounded(MOST_BYTES, || {
        let mut application = Application::new(Manner(manner));
        application.turn();
        while !stream.is_empty() {
            let (frame, rest) = split(stream);
            application.told(frame);
            stream = rest;
        }
        application.end();
    });
});
