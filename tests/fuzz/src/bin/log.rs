//! A slot of the write-ahead log as `ringtide inspect` shows it. The input is its header, 64 bytes, and then
//! frames, as `ringtide_fuzz::directory` has them.
//!
//! Whatever lies there is shown to its end, each frame that another follows with all its entries; what is
//! counted as damage is what lines call so.

#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use ringtide_fuzz::{directory, seal, sealed_by};
use ringtide_log::recovery::inspect;

sealed_by!(seal::data_directory);

/// Each frame has all its entries before the next one begins.
fn entries(text: &str) {
    let mut left = 0;
    for line in text.lines() {
        if line.starts_with("frame ") {
            assert_eq!(left, 0, "entries are missing before {line:?}");
            let count = line
                .split(" bytes, ")
                .nth(1)
                .and_then(|rest| rest.split(' ').next());
            left = count
                .and_then(|count| count.parse().ok())
                .expect("a number of entries");
        } else if line.starts_with("  entry ") {
            assert!(left > 0, "one entry too many: {line:?}");
            left -= 1;
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let dir = tempfile::tempdir().expect("a place for the slot");
    directory::unpack(data, dir.path()).expect("written");
    for file in fs::read_dir(dir.path().join("wal"))
        .expect("made")
        .flatten()
    {
        let mut out = Vec::new();
        let bad = inspect::wal(&file.path(), &mut out).expect("readable");
        let text = String::from_utf8(out).expect("text");
        entries(&text);
        let lines = || text.lines();
        let count = |word: &str| lines().filter(|line| line.starts_with(word)).count();
        assert_eq!(count("BAD "), bad as usize, "{text}");
        let ends = count("end at byte ")
            + usize::from(lines().last().is_some_and(|l| l.starts_with("BAD ")));
        assert_eq!(ends, 1, "{text}");
    }
});
