//! Puts right what lies over the contents of a format, checksums and the lengths beside them, so that the
//! code behind them is reached. What does not look like the format at all is left as it is.

use std::collections::BTreeMap;

use ringtide_schema::limits::{MAX_ENVELOPE_BYTES, MAX_PAYLOAD_BYTES};
use ringtide_schema::{batch, frame, identity, index, snapshot, wal};

use crate::directory::{self, Kind};

fn get_u32(bytes: &[u8], at: usize) -> usize {
    let raw = bytes[at..at + 4].try_into().expect("four bytes");
    u32::from_le_bytes(raw) as usize
}

fn put_u32(bytes: &mut [u8], at: usize, value: usize) {
    bytes[at..at + 4].copy_from_slice(&(value as u32).to_le_bytes());
}

/// Writes the checksum of what comes before `at` there.
fn put_crc(bytes: &mut [u8], at: usize) {
    let crc = crc32c::crc32c(&bytes[..at]);
    put_u32(bytes, at, crc as usize);
}

/// The headers of wire frames that follow one another, and the batches that they carry.
pub fn frames(mut bytes: &mut [u8]) {
    while bytes.len() >= frame::HEADER_BYTES {
        put_crc(bytes, frame::HEADER_BYTES - 4);
        let (envelope, payload) = (get_u32(bytes, 16), get_u32(bytes, 20));
        if envelope > MAX_ENVELOPE_BYTES || payload > MAX_PAYLOAD_BYTES {
            return;
        }
        let carries = [frame::Op::Publish, frame::Op::Fetch, frame::Op::Push];
        let has_batches = carries.iter().any(|op| bytes[5] == *op as u8);
        let Some((_, rest)) = bytes.split_at_mut_checked(frame::HEADER_BYTES + envelope) else {
            return;
        };
        let (payload, rest) = rest.split_at_mut(payload.min(rest.len()));
        if has_batches {
            batches(payload);
        }
        bytes = rest;
    }
}

/// A stream behind the lengths that [`crate::cut`] takes.
pub fn cut_frames(bytes: &mut [u8]) {
    let lengths = bytes.first().map_or(0, |count| usize::from(count % 16));
    frames(bytes.get_mut(1 + lengths..).unwrap_or_default());
}

/// A stream behind one byte.
pub fn behind_a_byte(bytes: &mut [u8]) {
    frames(bytes.get_mut(1..).unwrap_or_default());
}

/// Record batches that follow one another; the last fills what is left.
pub fn batches(mut bytes: &mut [u8]) {
    const LENGTH: usize = 8;
    const CRC: usize = 17;
    while bytes.len() >= batch::HEADER_BYTES {
        let field = bytes[LENGTH..LENGTH + 4].try_into().expect("four bytes");
        let mut whole = u32::from_be_bytes(field) as usize + batch::LENGTH_EXCLUDES_BYTES;
        if !(batch::HEADER_BYTES..=bytes.len()).contains(&whole) {
            whole = bytes.len();
            let length = (whole - batch::LENGTH_EXCLUDES_BYTES) as u32;
            bytes[LENGTH..LENGTH + 4].copy_from_slice(&length.to_be_bytes());
        }
        let crc = crc32c::crc32c(&bytes[batch::CRC_START..whole]);
        bytes[CRC..CRC + 4].copy_from_slice(&crc.to_be_bytes());
        bytes = &mut bytes[whole..];
    }
}

/// The file `identity`.
pub fn identity(bytes: &mut [u8]) {
    if bytes.len() == identity::IDENTITY_BYTES {
        put_crc(bytes, identity::IDENTITY_BYTES - 4);
    }
}

/// The file of a snapshot.
pub fn snapshot(bytes: &mut [u8]) {
    let Some(body) = bytes.len().checked_sub(snapshot::HEADER_BYTES) else {
        return;
    };
    put_u32(bytes, 12, body);
    let crc = crc32c::crc32c(&bytes[snapshot::HEADER_BYTES..]);
    put_u32(bytes, 16, crc as usize);
    put_crc(bytes, 20);
}

/// The file of an index.
pub fn index(bytes: &mut [u8]) {
    let Some(entries) = bytes.len().checked_sub(index::HEADER_BYTES) else {
        return;
    };
    put_u32(bytes, 12, entries / index::ENTRY_BYTES);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..32]), &bytes[index::HEADER_BYTES..]);
    put_u32(bytes, 32, crc as usize);
}

/// The header of a slot of the log.
pub fn slot(bytes: &mut [u8]) {
    const CRC: usize = 56;
    if bytes.len() >= CRC + 4 {
        put_crc(bytes, CRC);
    }
}

/// One entry of the log with its payload; gives the bytes that it takes.
pub fn entry(bytes: &mut [u8]) -> usize {
    if bytes.len() < wal::ENTRY_HEADER_BYTES {
        return bytes.len();
    }
    let mut whole = get_u32(bytes, 0);
    if !(wal::ENTRY_HEADER_BYTES..=bytes.len()).contains(&whole) {
        whole = bytes.len();
        put_u32(bytes, 0, whole);
    }
    let payload = crc32c::crc32c(&bytes[wal::ENTRY_HEADER_BYTES..whole]);
    put_u32(bytes, 8, payload as usize);
    let crc = crc32c::crc32c(&bytes[8..wal::ENTRY_HEADER_BYTES]);
    let crc = crc32c::crc32c_append(crc, &bytes[..4]);
    put_u32(bytes, 4, crc as usize);
    wal::entry_padded(whole)
}

/// A frame of the log that follows the one with this checksum; gives its own.
pub fn log_frame(bytes: &mut [u8], previous: u32) -> u32 {
    if bytes.len() < wal::FRAME_HEADER_BYTES {
        return previous;
    }
    let (header, mut entries) = bytes.split_at_mut(wal::FRAME_HEADER_BYTES);
    put_u32(header, 48, entries.len());
    let mut count = 0;
    while !entries.is_empty() {
        let whole = entry(entries);
        entries = entries.get_mut(whole..).unwrap_or_default();
        count += 1;
    }
    put_u32(header, 52, count);
    put_u32(header, 56, previous as usize);
    put_crc(header, wal::FRAME_HEADER_BYTES - 4);
    get_u32(header, wal::FRAME_HEADER_BYTES - 4) as u32
}

/// A frame of the log that is the first.
pub fn first_log_frame(bytes: &mut [u8]) {
    log_frame(bytes, 0);
}

/// One header of the log behind a byte that says which.
pub fn log_header(bytes: &mut [u8]) {
    let Some((which, rest)) = bytes.split_first_mut() else {
        return;
    };
    match which {
        0 => slot(rest),
        1 if rest.len() >= wal::FRAME_HEADER_BYTES => put_crc(rest, wal::FRAME_HEADER_BYTES - 4),
        1 => {}
        _ => {
            entry(rest);
        }
    }
}

/// All files of a data directory, as [`directory`] has them in one input.
pub fn data_directory(bytes: &mut [u8]) {
    let mut previous = 0;
    let mut snapshots = BTreeMap::new();
    directory::each_mut(bytes, |kind, number, contents| match kind {
        Kind::Identity => {}
        Kind::Snapshot => {
            snapshot(contents);
            snapshots.insert(number, contents.to_vec());
        }
        Kind::Slot => slot(contents),
        Kind::Frame => previous = log_frame(contents, previous),
        Kind::Segment => batches(contents),
        Kind::Index => index(contents),
    });
    let of_all = snapshots
        .values()
        .fold(0, |crc, snapshot| crc32c::crc32c_append(crc, snapshot));
    directory::each_mut(bytes, |kind, _, contents| {
        if kind == Kind::Identity && contents.len() == identity::IDENTITY_BYTES {
            let is_clean = contents[12] == 1;
            put_u32(contents, 56, if is_clean { of_all as usize } else { 0 });
            identity(contents);
        }
    });
}
