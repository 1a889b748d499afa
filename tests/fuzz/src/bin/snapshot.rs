//! The snapshot of a log group.
//!
//! What is taken survives being written and read again, and so do the producers in it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ringtide_fuzz::{seal, sealed_by};
use ringtide_log::producers::Producers;
use ringtide_schema::limits::PRODUCER_WINDOW;
use ringtide_schema::snapshot::{decode, encode};
use ringtide_schema::store::ProducerT;

sealed_by!(seal::snapshot);

/// What is stored of the producers of a partition is what a partition begins with.
fn producers(stored: &[ProducerT]) {
    let sane = |b: &_| {
        let b: &ringtide_schema::store::ProducerBatchT = b;
        b.base_offset <= i64::MAX as u64
    };
    if !stored
        .iter()
        .flat_map(|p| p.batches.iter().flatten())
        .all(sane)
    {
        return;
    }
    let first = Producers::load(stored).store(u64::MAX);
    for producer in &first {
        let batches = producer.batches.as_deref().unwrap_or_default();
        assert!((1..=PRODUCER_WINDOW).contains(&batches.len()));
    }
    let again = Producers::load(&first).store(u64::MAX);
    assert_eq!(again, first);
}

fuzz_target!(|data: &[u8]| {
    let Ok(group) = decode(data) else {
        return;
    };
    let bytes = encode(&group);
    assert_eq!(decode(&bytes), Ok(group.clone()), "written and read again");
    for partition in group.partitions.iter().flatten() {
        producers(partition.producers.as_deref().unwrap_or_default());
    }
});
