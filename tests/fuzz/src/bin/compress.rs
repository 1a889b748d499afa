//! The codecs of a record batch, behind a byte for the codec and two for the limit.
//!
//! Inflating never gives nor holds more than its limit, and a limit changes nothing but whether it is kept.
//! What is compressed inflates to the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ringtide_fuzz::bounded;
use ringtide_schema::compress::{Codec, CodecError, compress, compressed_bound, inflate};

const LIMIT_BYTES: usize = 1 << 20;

fuzz_target!(init: ringtide_fuzz::warm(), |data: &[u8]| {
    let [codec, low, high, input @ ..] = data else {
        return;
    };
    let Some(codec) = Codec::from_bits(codec & 7) else {
        return;
    };
    let limit = usize::from(u16::from_le_bytes([*low, *high]));

    let mut out = Vec::new();
    let large = inflate(codec, input, &mut out, LIMIT_BYTES);
    let mut within = Vec::new();
    // Twice while the buffer grows.
    let small = bounded(2 * limit, || inflate(codec, input, &mut within, limit));
    assert!(within.len() <= limit && within.capacity() <= limit);
    if large.is_ok() {
        assert!(out.len() <= LIMIT_BYTES);
        if out.len() <= limit {
            assert_eq!(small, Ok(()));
            assert!(within == out, "the limit changed the contents");
        } else {
            assert_eq!(small, Err(CodecError::TooLarge { limit }));
        }
    } else {
        assert!(small.is_err(), "more is allowed, and now it fails");
    }

    let mut compressed = Vec::new();
    match compress(codec, input, &mut compressed) {
        Ok(()) => {
            assert!(compressed.len() <= compressed_bound(codec, input.len()));
            assert_eq!(inflate(codec, &compressed, &mut out, input.len()), Ok(()));
            assert!(out == input, "compressed and inflated");
        }
        Err(error) => assert_eq!(error, CodecError::UnsupportedCodec { codec }),
    }
});
