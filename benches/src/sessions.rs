//! A connection's stream cut into frames, without what is done with them.

use std::hint::black_box;

use ringtide_session::{Assembler, Encoder};

use crate::frames::publish_request;
use crate::{Operation, SMALL, batch};

/// Requests in a stream.
pub const PIPELINED: u32 = 256;

/// So many publishes of a batch, one behind the other.
pub fn publishes(count: u32, acks: u8, batch: &[u8]) -> Vec<u8> {
    let (mut encoder, mut stream) = (Encoder::new(), Vec::new());
    for correlation in 0..u64::from(count) {
        publish_request(&mut encoder, &mut stream, correlation, acks, batch.len());
        stream.extend_from_slice(batch);
    }
    stream
}

fn assemble(piece: Option<usize>) -> Operation {
    let batch = batch(SMALL);
    let stream = publishes(PIPELINED, 2, &batch);
    let piece = piece.unwrap_or(stream.len());
    let mut assembler = Assembler::new();
    Operation::of(PIPELINED, move || {
        let mut seen = 0;
        for piece in black_box(&stream).chunks(piece) {
            assembler
                .feed(piece, |frame| seen += frame.payload.len())
                .expect("good");
        }
        assert_eq!(seen, batch.len() * PIPELINED as usize);
    })
}

/// Pipelined requests, as one receive may bring them.
pub fn assemble_whole() -> Operation {
    assemble(None)
}

/// Pipelined requests, in pieces of 4,000 bytes whose ends are inside of frames.
pub fn assemble_in_pieces() -> Operation {
    assemble(Some(4000))
}
