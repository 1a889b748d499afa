//! Record batches: built as a client does, checked and given offsets as a broker does, read.

use std::hint::black_box;

use ringtide_schema::batch::{CRC_START, Codec, Header, assign, check_publish};
use ringtide_schema::limits::{DEFAULT_INFLATED_BYTES, MAX_BATCH_BYTES};
use ringtide_schema::record::{BatchBuilder, records};

use crate::{LARGE, Operation, SMALL, batch, push};

fn build(shape: (u32, usize)) -> Operation {
    let value = vec![7; shape.1];
    let (mut builder, mut out) = (BatchBuilder::new(Codec::None), Vec::new());
    Operation::new(move || {
        out.clear();
        push(&mut builder, shape.0, black_box(&value));
        builder
            .finish(-1, -1, -1, &mut out)
            .expect("there are records");
    })
}

fn crc(shape: (u32, usize)) -> Operation {
    let batch = batch(shape);
    Operation::new(move || {
        black_box(crc32c::crc32c(black_box(&batch[CRC_START..])));
    })
}

fn check(shape: (u32, usize)) -> Operation {
    let batch = batch(shape);
    Operation::new(move || {
        black_box(check_publish(black_box(&batch), MAX_BATCH_BYTES).expect("it is good"));
    })
}

fn parse(shape: (u32, usize)) -> Operation {
    let (batch, mut scratch) = (batch(shape), Vec::new());
    Operation::new(move || {
        let records = records(black_box(&batch), &mut scratch, DEFAULT_INFLATED_BYTES);
        let values = records.expect("it is good").map(|record| record.value);
        black_box(values.map(|v| v.map_or(0, <[u8]>::len)).sum::<usize>());
    })
}

/// A single record to a batch.
pub fn batch_build_small() -> Operation {
    build(SMALL)
}

/// 64 KiB in records to a batch.
pub fn batch_build_large() -> Operation {
    build(LARGE)
}

/// The checksum of a small batch, which is part of building, checking and logging it.
pub fn batch_crc_small() -> Operation {
    crc(SMALL)
}

/// The checksum of a large batch.
pub fn batch_crc_large() -> Operation {
    crc(LARGE)
}

/// The header of a batch, without a check of what it covers.
pub fn batch_peek() -> Operation {
    let batch = batch(SMALL);
    Operation::new(move || {
        black_box(Header::peek(black_box(&batch)).expect("it is good"));
    })
}

/// A small batch checked as a broker does before it takes it.
pub fn batch_check_small() -> Operation {
    check(SMALL)
}

/// A large batch checked.
pub fn batch_check_large() -> Operation {
    check(LARGE)
}

/// The offset and leader epoch written into a batch.
pub fn batch_assign() -> Operation {
    let mut batch = batch(SMALL);
    Operation::new(move || assign(black_box(&mut batch), 77, 1))
}

/// The records of a small batch.
pub fn batch_parse_small() -> Operation {
    parse(SMALL)
}

/// The records of a large batch.
pub fn batch_parse_large() -> Operation {
    parse(LARGE)
}
