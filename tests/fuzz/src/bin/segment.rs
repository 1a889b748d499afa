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

fn indexed(data: &[u8], in_file: usize) {
    let (mut file, tail) = data.split_at(in_file);
    let (sound_bytes, next_offset) = behind(data);
    let extent = Extent {
        base_offset: 0,
        bytes: in_file as u64,
        tail,
        next_offset,
    };
    let Ok(scanned) = bounded(2 * data.len() + 4096, || scan(&mut file, extent));
    for entry in scanned.entries.iter().filter(|e| !e.is_damaged()) {
        let header = Header::peek(&data[entry.position as usize..]).expect("a batch");
        assert_eq!(header.base_offset, u64::from(entry.relative_offset));
    }
    let encoded = encode(0, data.len() as u32, &scanned.entries);
    assert!(IndexView::check(&encoded).is_ok(), "{scanned:?}");
    assert_eq!(scanned.damage.is_empty(), sound_bytes == data.len());
}

/// Where the batches end that follow one another from offset 0 on, and the offset behind the last that is whole.
fn behind(data: &[u8]) -> (usize, u64) {
    let (mut position, mut offset) = (0, 0);
    while let Ok(header) = check_stored(&data[position..])
        && header.base_offset == offset
    {
        position += header.batch_bytes;
        offset = header.next_offset();
    }
    let last = (position..data.len())
        .rev()
        .find_map(|at| check_stored(&data[at..]).ok());
    (position, last.map_or(offset, |last| last.next_offset()))
}

fuzz_target!(|data: &[u8]| {
    indexed(data, data.len());
    indexed(data, data.len() / 2);
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
