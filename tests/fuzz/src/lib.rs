//! What the fuzz targets share: checksums put right, inputs of several files, memory bounded.
//!
//! A target is one file of `src/bin/`: it gives bytes to production code and says what must hold.
//! How they are built and run is in docs/FUZZING.md. Inputs are the bytes that the code would be given by
//! a peer or a disk, so that a find is a file that shows the fault by itself.

use ringtide_schema::compress::{Codec, compress};

pub mod application;
pub mod directory;
pub mod seal;

/// Mutates inputs as libFuzzer does, and then puts the checksums of most of them right with a function of
/// [`seal`]: otherwise next to nothing would get past them.
#[macro_export]
macro_rules! sealed_by {
    ($seal:path) => {
        libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, most: usize, seed: u32| {
            let size = libfuzzer_sys::fuzzer_mutate(data, size, most);
            if !seed.is_multiple_of(8) {
                $seal(&mut data[..size]);
            }
            size
        });
    };
}

/// Has the codecs make what they keep for all calls, so that it does not count as memory of one.
///
/// # Panics
/// When nothing can be compressed.
pub fn warm() {
    let mut out = Vec::new();
    for codec in [Codec::Lz4, Codec::Zstd] {
        compress(codec, b"ringtide", &mut out).expect("a codec that is spoken");
    }
}

/// Runs what must never hold more memory than this at a time. A buffer that grows is there twice meanwhile.
///
/// # Panics
/// When it does.
pub fn bounded<T>(bytes: usize, run: impl FnOnce() -> T) -> T {
    let mut out = None;
    let used = allocation_counter::measure(|| out = Some(run()));
    let most = used.bytes_max;
    assert!(
        most <= bytes as u64,
        "{most} bytes of memory were held at a time, {bytes} are allowed"
    );
    out.expect("it was run")
}

/// Takes how to cut a stream from the front of an input: a number of pieces, and their lengths. What is
/// left at the end is the last piece.
#[must_use]
pub fn cut(input: &[u8]) -> (&[u8], Vec<&[u8]>) {
    let (&count, rest) = input.split_first().unwrap_or((&0, &[]));
    let lengths = rest.len().min(usize::from(count % 16));
    let (lengths, stream) = rest.split_at(lengths);
    let mut left = stream;
    let mut pieces = Vec::with_capacity(lengths.len() + 1);
    for &length in lengths {
        let (piece, after) = left.split_at(left.len().min(usize::from(length)));
        pieces.push(piece);
        left = after;
    }
    pieces.push(left);
    (stream, pieces)
}
