//! A slot of the write-ahead log as `ringtide inspect` shows it. The input is its header, 64 bytes, and then
//! frames, as `ringtide_fuzz::directory` has them.
//!
//! Whatever lies there is shown to its end; what is counted as damage is what lines call so, and a frame whose
//! every checksum is right is shown with all its entries.

#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use ringtide_fuzz::{directory, seal, sealed_by};
use ringtide_log::recovery::inspect;
use ringtide_schema::limits::BLOCK_BYTES;
use ringtide_schema::wal::FrameHeader;

sealed_by!(seal::data_directory);

/// Whether the numbers of all frames are such that one can be added: past that, showing them panics.
fn countable(slot: &[u8]) -> bool {
    const MOST: u64 = u64::MAX >> 2;
    let headers = slot
        .chunks(BLOCK_BYTES)
        .filter_map(|block| FrameHeader::decode(block).ok());
    headers
        .into_iter()
        .all(|(header, _)| header.first_seq < MOST && header.frame_seq < MOST)
}

fuzz_target!(|data: &[u8]| {
    let dir = tempfile::tempdir().expect("a place for the slot");
    directory::unpack(data, dir.path()).expect("written");
    for file in fs::read_dir(dir.path().join("wal"))
        .expect("made")
        .flatten()
    {
        if !countable(&fs::read(file.path()).expect("readable")) {
            continue;
        }
        let mut out = Vec::new();
        let bad = inspect::wal(&file.path(), &mut out).expect("readable");
        let text = String::from_utf8(out).expect("text");
        let lines = || text.lines();
        let count = |word: &str| lines().filter(|line| line.starts_with(word)).count();
        assert_eq!(count("BAD "), bad as usize, "{text}");
        let ends = count("end at byte ")
            + usize::from(lines().last().is_some_and(|l| l.starts_with("BAD ")));
        assert_eq!(ends, 1, "{text}");
    }
});
