//! The header of a wire frame.
//!
//! A header that is taken is made of exactly the bytes that were read and keeps its bounds. What a
//! prefix of a stream is refused for, all of it is; what more is waited for never was wrong.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ringtide_fuzz::{bounded, seal, sealed_by};
use ringtide_schema::frame::{FrameHeader, HEADER_BYTES};
use ringtide_schema::limits::{MAX_ENVELOPE_BYTES, MAX_PAYLOAD_BYTES};

sealed_by!(seal::frames);

fuzz_target!(|data: &[u8]| {
    let whole = bounded(0, || FrameHeader::decode(data));
    match whole {
        Ok(Some(header)) => {
            assert_eq!(header.encode()[..], data[..HEADER_BYTES]);
            assert!(header.envelope_bytes as usize <= MAX_ENVELOPE_BYTES);
            assert!(header.payload_bytes as usize <= MAX_PAYLOAD_BYTES);
        }
        Ok(None) => assert!(data.len() < HEADER_BYTES),
        Err(_) => {}
    }
    for length in 0..data.len().min(HEADER_BYTES) {
        match FrameHeader::decode(&data[..length]) {
            Ok(None) => {}
            Ok(Some(_)) => panic!("a header of {length} bytes"),
            Err(_) => assert!(whole.is_err(), "wrong at byte {length}, and then right"),
        }
    }
});
