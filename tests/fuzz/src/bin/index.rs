//! The index of a segment.
//!
//! What is taken is made of the bytes that were read, but for fields without a meaning. Whatever is looked up
//! gives a range that begins at an entry or with the segment, ends at an entry or with the segment, and holds what was
//! asked for.

#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use ringtide_fuzz::{bounded, seal, sealed_by};
use ringtide_io::IndexBytes;
use ringtide_log::segment::{Range, Segment};
use ringtide_schema::index::{ENTRY_BYTES, HEADER_BYTES, IndexEntry, IndexView, encode};
use ringtide_schema::store::SegmentT;

sealed_by!(seal::index);

fn between_batches(range: Range, entries: &[IndexEntry], base: u64, end: (u64, u64)) {
    let places = entries
        .iter()
        .map(|e| (u64::from(e.position), base + u64::from(e.relative_offset)))
        .chain([(0, base), end]);
    let places: Vec<(u64, u64)> = places.collect();
    let stop = (range.position + range.bytes, range.next_offset);
    assert!(
        places.iter().any(|place| place.0 == range.position),
        "{range:?} begins within a batch"
    );
    assert!(places.contains(&stop), "{range:?} ends within a batch");
    assert!(stop.0 <= end.0, "{range:?} passes the end");
}

fn looked_up(bytes: &[u8], view: &IndexView<'_>, entries: &[IndexEntry]) {
    let base = view.base_offset;
    let end_bytes = u64::from(view.covered_bytes);
    let last = entries
        .last()
        .map_or(0, |last| u64::from(last.relative_offset));
    let Some(end_offset) = base
        .checked_add(last + 1)
        .filter(|&end| end <= i64::MAX as u64)
    else {
        return;
    };
    let end = (end_bytes, end_offset);
    let mut segment = Segment::load(SegmentT {
        base_offset: base,
        next_offset: end_offset,
        bytes: end_bytes,
        sealed: true,
        ..SegmentT::default()
    });
    segment.set_index(IndexBytes::File(Arc::new(bytes.to_vec())));
    assert_eq!(segment.index.entries(), entries);
    for entry in entries.iter().take(64) {
        let offset = base + u64::from(entry.relative_offset);
        for most in [1, u64::from(entry.position), u64::MAX >> 1] {
            let range = segment.range(offset, most, end);
            between_batches(range, entries, base, end);
            assert!(range.position <= u64::from(entry.position));
            assert!(
                range.next_offset > offset && range.bytes > 0,
                "{range:?} without {offset}"
            );
        }
        let timestamp_ms = entry.timestamp_ms;
        let range = segment.range_of_time(timestamp_ms, offset, end);
        between_batches(range, entries, base, end);
        assert!(range.next_offset > offset, "{range:?} leads nowhere");
        let range = segment.range_of_time(timestamp_ms, 0, end);
        between_batches(range, entries, base, end);
        // A record as late as that may be before the first of these.
        let is_behind =
            |e: &&IndexEntry| e.position > 0 && e.max_timestamp_before_ms >= timestamp_ms;
        if let Some(entry) = entries.iter().find(is_behind) {
            assert!(
                range.position < u64::from(entry.position),
                "{range:?} begins too late"
            );
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let Ok(view) = bounded(0, || IndexView::check(data)) else {
        return;
    };
    assert_eq!(HEADER_BYTES + view.len() * ENTRY_BYTES, data.len());
    let entries: Vec<IndexEntry> = (0..view.len()).map(|i| view.get(i)).collect();
    let again = encode(view.base_offset, view.covered_bytes, &entries);
    assert_eq!(again[12..28], data[12..28]);
    assert_eq!(again[HEADER_BYTES..], data[HEADER_BYTES..]);
    looked_up(data, &view, &entries);
});
