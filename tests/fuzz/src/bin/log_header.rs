//! A header of the write-ahead log, behind a byte that says which: slot, frame, or entry with its payload.
//!
//! What is taken is made of the bytes that were read, but for fields without a meaning, and its lengths lie
//! within them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ringtide_fuzz::{bounded, seal, sealed_by};
use ringtide_schema::limits::BLOCK_BYTES;
use ringtide_schema::wal::{
    ENTRY_HEADER_BYTES, EntryHeader, FRAME_HEADER_BYTES, FrameHeader, MAX_FRAME_BYTES, SlotHeader,
};

sealed_by!(seal::log_header);

/// The start of the broker whose entries are read.
const INCARNATION: u64 = 4;

fn slot(bytes: &[u8]) {
    let Ok(header) = bounded(0, || SlotHeader::decode(bytes)) else {
        return;
    };
    let mut block = [0; BLOCK_BYTES];
    header.encode(&mut block);
    assert_eq!(SlotHeader::decode(&block), Ok(header));
    assert_eq!(block[..12], bytes[..12]);
    assert_eq!(block[16..56], bytes[16..56]);
}

fn frame(bytes: &[u8]) {
    let Ok((header, crc)) = bounded(0, || FrameHeader::decode(bytes)) else {
        return;
    };
    let mut again = [0; FRAME_HEADER_BYTES];
    assert_eq!(header.encode(&mut again), crc);
    assert_eq!(again[..], bytes[..FRAME_HEADER_BYTES]);
    assert!(header.disk_bytes() <= MAX_FRAME_BYTES && header.disk_bytes() >= BLOCK_BYTES);
    assert!(header.entry_count as usize * ENTRY_HEADER_BYTES <= header.entries_bytes as usize);
    assert_eq!(header.entry_count == 0, header.entries_bytes == 0);
}

fn entry(bytes: &[u8]) {
    let Ok((header, payload)) = bounded(0, || EntryHeader::decode(bytes, INCARNATION)) else {
        return;
    };
    assert_eq!(payload.len(), header.payload_bytes as usize);
    assert!(ENTRY_HEADER_BYTES + payload.len() <= bytes.len());
    let mut again = vec![0; ENTRY_HEADER_BYTES];
    header.encode(INCARNATION, &mut again);
    again.extend_from_slice(payload);
    assert_eq!(
        EntryHeader::decode(&again, INCARNATION),
        Ok((header, payload))
    );
    assert_eq!(again[8..13], bytes[8..13]);
    assert_eq!(again[14..], bytes[14..again.len()]);
}

fuzz_target!(|data: &[u8]| {
    match data.split_first() {
        Some((0, bytes)) => slot(bytes),
        Some((1, bytes)) => frame(bytes),
        Some((_, bytes)) => entry(bytes),
        None => {}
    }
});
