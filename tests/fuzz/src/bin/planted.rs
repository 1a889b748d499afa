//! A fault on purpose, to know that a run finds one: `cargo xtask fuzz --planted` fails if this target holds.
//!
//! It reads a frame of the log as recovery does, but trusts the size of a compressed block in a batch before
//! the checksum of the batch was looked at. Behind the checksums of frame, entry header and payload, in a
//! codec that no input of the corpus has, it is out of reach without coverage and without sealed inputs.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ringtide_fuzz::{seal, sealed_by};
use ringtide_schema::batch::{Codec, HEADER_BYTES, Header, check_stored};
use ringtide_schema::wal::{EntryHeader, EntryKind, FRAME_HEADER_BYTES, FrameHeader};

sealed_by!(seal::first_log_frame);

/// Of an LZ4 frame, before its first block.
const LZ4_HEADER_BYTES: usize = 7;

fn batch(bytes: &[u8]) {
    let Ok(header) = Header::peek(bytes) else {
        return;
    };
    if header.attributes.codec() == Codec::Lz4
        && let Some((_, blocks)) = bytes.split_at_checked(HEADER_BYTES + LZ4_HEADER_BYTES)
        && let Some((size, blocks)) = blocks.split_first_chunk()
    {
        let first = &blocks[..u32::from_le_bytes(*size) as usize];
        assert!(first.len() <= blocks.len());
    }
    let _ = check_stored(bytes);
}

fuzz_target!(|data: &[u8]| {
    let Ok((frame, _)) = FrameHeader::decode(data) else {
        return;
    };
    let mut entries = &data[FRAME_HEADER_BYTES..];
    for _ in 0..frame.entry_count {
        let Ok((entry, payload)) = EntryHeader::decode(entries, frame.incarnation) else {
            return;
        };
        if entry.kind == EntryKind::Batch {
            batch(payload);
        }
        entries = entries.get(entry.disk_bytes()..).unwrap_or_default();
    }
});
