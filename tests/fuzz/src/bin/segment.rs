//! A segment as `ringtide inspect` shows it, and the index that is built from it.
//!
//! Read through the file it has the same batches as its bytes, up to the first that is damaged in more than its
//! base offset, and what is counted as damage is what lines call so. The index ascends, and has batches where its entries
//! say.

#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use ringtide_fuzz::{bounded, seal, sealed_by};
use ringtide_log::recovery::{inspect, log_name};
use ringtide_schema::batch::{CRC_START, Header, check_stored};
use ringtide_schema::index::scan::{Extent, scan};
use ringtide_schema::index::{IndexView, encode};

sealed_by!(seal::batches);

/// What the last line says of batches that follow one another from offset `base` on, whatever they say theirs is.
fn summary(bytes: &[u8], base: u64) -> String {
    let (mut position, mut batches, mut records) = (0, 0, 0);
    let (mut next_offset, mut prefix_crc) = (base, 0);
    let check = |position: usize| {
        let mut at_zero = bytes[position..].to_vec();
        at_zero.iter_mut().take(8).for_each(|byte| *byte = 0);
        check_stored(&at_zero)
    };
    while let Ok(header) = check(position) {
        prefix_crc = crc32c::crc32c_append(prefix_crc, &bytes[position..position + CRC_START]);
        position += header.batch_bytes;
        batches += 1;
        records += u64::from(header.record_count);
        next_offset += u64::from(header.last_offset_delta) + 1;
    }
    let whole = bytes.len();
    format!(
        "{position} bytes of {whole}: {batches} batches, {records} records, next offset {next_offset}, \
         prefix crc {prefix_crc:#010x}"
    )
}

fn indexed(mut data: &[u8], is_sealed: bool) {
    let bytes = data.len() as u64;
    let extent = Extent {
        base_offset: 0,
        bytes,
        is_sealed,
    };
    let Ok(scanned) = bounded(2 * data.len() + 4096, || scan(&mut data, extent));
    for entry in scanned.entries.iter().filter(|e| !e.is_damaged()) {
        let header = Header::peek(&data[entry.position as usize..]).expect("a batch");
        assert_eq!(header.base_offset, u64::from(entry.relative_offset));
    }
    let encoded = encode(0, data.len() as u32, &scanned.entries);
    // Of less than a header of an open segment nothing is known.
    let is_empty = scanned.entries.is_empty() && !is_sealed;
    assert!(
        is_empty || IndexView::check(&encoded).is_ok(),
        "{scanned:?}"
    );
    let whole = std::iter::successors(Some(0), |&at| {
        let header = check_stored(&data[at..]).ok()?;
        Some(at + header.batch_bytes)
    });
    if is_sealed && scanned.damage.is_empty() {
        assert_eq!(whole.last(), Some(data.len()));
    }
}

fuzz_target!(|data: &[u8]| {
    indexed(data, true);
    indexed(data, false);
    let dir = tempfile::tempdir().expect("a place for the segment");
    let path = dir.path().join(log_name(0));
    fs::write(&path, data).expect("written");
    let mut out = Vec::new();
    let bad = inspect::segment(&path, &mut out).expect("readable");
    let text = String::from_utf8(out).expect("text");
    let counted = text.lines().filter(|line| line.starts_with("BAD ")).count();
    assert_eq!(counted, bad as usize, "{text}");
    assert_eq!(text.lines().last(), Some(&*summary(data, 0)), "{text}");
});
