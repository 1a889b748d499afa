//! A record batch, as a publisher sends it and as a reader gets it.
//!
//! What the broker takes, a reader takes, as it is and after it was given offset, epoch and append time;
//! records that are handed out are as many as the header says, with ascending offsets in its range, and
//! survive being built into a batch again. Inflating keeps its limit.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ringtide_fuzz::{bounded, seal, sealed_by};
use ringtide_schema::batch::{
    Batches, Codec, HEADER_BYTES, Header, TimestampType, assign, check_publish, check_stored,
    stamp_append_time,
};
use ringtide_schema::limits::{MAX_BATCH_BYTES, MAX_BATCH_RECORDS};
use ringtide_schema::record::{BatchBuilder, HeaderToWrite, Records, records};

sealed_by!(seal::batches);

const LIMIT_BYTES: usize = 64 << 10;
const OFFSET: u64 = 1 << 40;
const EPOCH: i32 = 7;
const NOW_MS: i64 = 1_700_000_000_000;

/// The records are what the header says; gives how many there are.
fn iterated(found: Records<'_>) -> usize {
    let header = *found.header();
    let count = header.record_count as usize;
    assert_eq!(found.len(), count);
    let mut due = header.base_offset;
    let mut left = count;
    for record in found {
        left -= 1;
        assert!((due..=header.last_offset()).contains(&record.offset));
        due = record.offset + 1;
        if header.attributes.timestamp_type() == TimestampType::Append {
            assert_eq!(record.timestamp_ms, header.max_timestamp_ms);
        }
        let headers = record.headers();
        assert_eq!(headers.count(), headers.len());
    }
    assert_eq!(left, 0, "as many as counted");
    count
}

fn stored(bytes: &[u8]) {
    let Ok(header) = check_stored(bytes) else {
        return;
    };
    assert!((HEADER_BYTES..=bytes.len()).contains(&header.batch_bytes));
    assert!(header.next_offset() > header.base_offset);
    let mut scratch = Vec::new();
    // The decoders need no memory of their own but for what is inflated, and that twice while it grows.
    bounded(2 * LIMIT_BYTES, || {
        if let Ok(found) = records(bytes, &mut scratch, LIMIT_BYTES) {
            assert!(found.len() <= LIMIT_BYTES.max(bytes.len()));
            iterated(found);
        }
    });
    assert!(scratch.capacity() <= LIMIT_BYTES);
}

fn published(bytes: &[u8], header: &Header) {
    assert_eq!(check_stored(bytes), Ok(*header));
    assert!(header.record_count <= MAX_BATCH_RECORDS);
    let mut walk = Batches::new(bytes);
    assert_eq!(walk.next(), Some(Ok((*header, bytes))));
    assert_eq!((walk.next(), walk.position()), (None, bytes.len()));

    let mut given = bytes.to_vec();
    assign(&mut given, OFFSET, EPOCH);
    let assigned = check_stored(&given).expect("the checksum leaves out what is assigned");
    assert_eq!(
        (assigned.base_offset, assigned.leader_epoch),
        (OFFSET, EPOCH)
    );
    assert_eq!(
        assigned.next_offset(),
        OFFSET + u64::from(header.record_count)
    );
    let mut scratch = Vec::new();
    let readable = records(&given, &mut scratch, LIMIT_BYTES).map(iterated);
    stamp_append_time(&mut given, NOW_MS);
    let stamped = records(&given, &mut scratch, LIMIT_BYTES).map(iterated);
    assert_eq!(readable, stamped, "stamping changes times only");

    if header.attributes.codec() == Codec::None {
        assert_eq!(
            readable,
            Ok(header.record_count as usize),
            "walked at publish"
        );
        rebuilt(bytes, header);
    }
}

/// The same records built anew are read the same.
fn rebuilt(bytes: &[u8], header: &Header) {
    let mut scratch = Vec::new();
    let first = records(bytes, &mut scratch, 0).expect("walked before");
    let mut builder = BatchBuilder::new(Codec::None);
    for record in first.clone() {
        let headers: Vec<HeaderToWrite<'_>> = record
            .headers()
            .map(|h| (std::str::from_utf8(h.key).expect("checked"), h.value))
            .collect();
        builder.push(record.timestamp_ms, record.key, record.value, &headers);
    }
    let mut out = Vec::new();
    builder
        .finish(
            header.producer_id,
            header.producer_epoch,
            header.base_sequence,
            &mut out,
        )
        .expect("no larger than it was");
    let again = check_publish(&out, MAX_BATCH_BYTES).expect("built by ourselves");
    assert_eq!(again.record_count, header.record_count);
    if again.base_timestamp_ms == header.base_timestamp_ms {
        assert!(
            out.len() <= bytes.len(),
            "no varint is longer than it needs"
        );
    }
    assert_eq!(again.max_timestamp_ms, header.max_timestamp_ms);
    let mut scratch = Vec::new();
    let again = records(&out, &mut scratch, 0).expect("built by ourselves");
    for (a, b) in again.zip(first) {
        assert_eq!(
            (a.timestamp_ms, a.key, a.value),
            (b.timestamp_ms, b.key, b.value)
        );
        assert!(a.headers().eq(b.headers()));
        assert_eq!(a.offset, b.offset - header.base_offset);
    }
}

fuzz_target!(init: ringtide_fuzz::warm(), |data: &[u8]| {
    let checked = bounded(0, || check_publish(data, MAX_BATCH_BYTES));
    if let Ok(header) = checked {
        published(data, &header);
    }
    stored(data);
    let mut walk = Batches::new(data);
    let mut end = 0;
    for (header, batch) in walk.by_ref().flatten() {
        assert_eq!(header.batch_bytes, batch.len());
        end += batch.len();
        stored(batch);
    }
    assert_eq!(walk.position(), end);
});
