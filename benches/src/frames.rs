//! Frame headers, and the envelopes of a publish.

use std::hint::black_box;

use ringtide_schema::frame::{FLAG_RESPONSE, FrameHeader, HEADER_BYTES, Op};
use ringtide_schema::ids::PartitionId;
use ringtide_schema::wire;
use ringtide_session::{Encoder, envelope};

use crate::{Operation, SMALL, TIMESTAMP_MS, batch, partition};

/// Frames in one operation: one alone is done as fast as it is called.
const FRAMES: u32 = 64;

/// Appends a durable publish of one batch, without the batch.
pub fn publish_request(
    encoder: &mut Encoder,
    out: &mut Vec<u8>,
    correlation: u64,
    acks: u8,
    bytes: usize,
) {
    let part = [wire::PublishPart::new(&partition().into(), bytes as u32)];
    encoder.frame(out, Op::Publish, 0, correlation, bytes, |b| {
        let parts = Some(b.create_vector(&part));
        wire::PublishRequest::create(b, &wire::PublishRequestArgs { acks, parts })
    });
}

fn publish_response(encoder: &mut Encoder, out: &mut Vec<u8>, correlation: u64) {
    let result = wire::PublishResult::new(0, 0, false, 1, 99, TIMESTAMP_MS);
    encoder.frame(out, Op::Publish, FLAG_RESPONSE, correlation, 0, |b| {
        let results = Some(b.create_vector(&[result]));
        let args = wire::PublishResponseArgs {
            results,
            message: None,
        };
        wire::PublishResponse::create(b, &args)
    });
}

/// A frame header to its bytes.
pub fn frame_encode() -> Operation {
    Operation::of(FRAMES, || {
        for correlation in 0..u64::from(FRAMES) {
            let header = FrameHeader::new(Op::Publish, 0, black_box(correlation), 96, 4096);
            black_box(header.encode());
        }
    })
}

/// A frame header from its bytes.
pub fn frame_decode() -> Operation {
    let bytes = FrameHeader::new(Op::Publish, 0, 42, 96, 4096).encode();
    Operation::of(FRAMES, move || {
        for _ in 0..FRAMES {
            let header = FrameHeader::decode(black_box(&bytes)).expect("it is good");
            black_box(header.expect("it is whole"));
        }
    })
}

/// The frame of a publish.
pub fn publish_request_build() -> Operation {
    let (mut encoder, mut out) = (Encoder::new(), Vec::new());
    Operation::new(move || {
        out.clear();
        publish_request(&mut encoder, &mut out, black_box(42), 2, 198);
    })
}

/// The envelope of a publish, verified and read.
pub fn publish_request_read() -> Operation {
    let mut frame = Vec::new();
    publish_request(&mut Encoder::new(), &mut frame, 42, 2, batch(SMALL).len());
    Operation::new(move || {
        let request = envelope::<wire::PublishRequest<'_>>(black_box(&frame[HEADER_BYTES..]));
        let request = request.expect("it verifies");
        let parts = request.parts().expect("there is one");
        black_box((request.acks(), PartitionId::from(parts.get(0).partition())));
    })
}

/// The frame that answers a publish.
pub fn publish_response_build() -> Operation {
    let (mut encoder, mut out) = (Encoder::new(), Vec::new());
    Operation::new(move || {
        out.clear();
        publish_response(&mut encoder, &mut out, black_box(42));
    })
}

/// The envelope of the answer to a publish, verified and read.
pub fn publish_response_read() -> Operation {
    let mut frame = Vec::new();
    publish_response(&mut Encoder::new(), &mut frame, 42);
    Operation::new(move || {
        let response = envelope::<wire::PublishResponse<'_>>(black_box(&frame[HEADER_BYTES..]));
        let response = response.expect("it verifies");
        let results = response.results().expect("there is one");
        black_box((results.get(0).error(), results.get(0).base_offset()));
    })
}
