//! An order-book feed: who did what to which order, and when it arrived.
//!
//! `RINGTIDE_FEED` names a file of real market-by-order records in Databento Binary Encoding,
//! version 1, zstd-compressed. Without it a generator makes records of the same layout with the same
//! burstiness: minutes of silence, then up to 151 messages within a millisecond.
//!
//! ```text
//! record, little endian, 56 bytes
//!   0 length in words (14) | 1 type (160) | 2 publisher u16 | 4 instrument u32 | 8 event time ns u64
//!  16 order id u64 | 24 price i64 | 32 size u32 | 36 flags | 37 channel | 38 action | 39 side
//!  40 receive time ns u64 | 48 delta ns i32 | 52 sequence u32
//! ```

use std::fmt::Write;
use std::io::Read;
use std::path::Path;

use crate::random::Random;

/// Bytes of a record.
pub const RECORD_BYTES: usize = 56;
/// Messages that follow each other closer than this belong to one burst.
pub const BURST_GAP_NS: u64 = 1_000_000;

const LENGTH_WORDS: u8 = (RECORD_BYTES / 4) as u8;
const MARKET_BY_ORDER: u8 = 160;
const GENERATED_MESSAGES: usize = 70_000;
const LARGEST_BURST: u64 = 151;

/// One message of the feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The order's id, as decimal text: what is published as key.
    pub key: String,
    /// The message's place in the feed and the record as hex: what is published as value. No two
    /// are the same.
    pub value: String,
    /// Time since the message before it, in ns.
    pub gap_ns: u64,
}

/// The feed that `RINGTIDE_FEED` names, or the generated one.
///
/// # Panics
/// When the file is not a feed.
#[must_use]
pub fn load() -> Vec<Message> {
    match std::env::var_os("RINGTIDE_FEED") {
        Some(path) => read(Path::new(&path)),
        None => messages(&generate(1, GENERATED_MESSAGES)),
    }
}

/// Cuts a feed into its bursts.
pub fn bursts(feed: &[Message]) -> impl Iterator<Item = &[Message]> {
    feed.chunk_by(|_, next| next.gap_ns < BURST_GAP_NS)
}

/// Reads a feed file.
///
/// # Panics
/// When it is not a feed.
#[must_use]
pub fn read(path: &Path) -> Vec<Message> {
    let file = std::fs::File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut bytes = Vec::new();
    zstd::Decoder::new(file)
        .and_then(|mut d| d.read_to_end(&mut bytes))
        .unwrap_or_else(|e| panic!("{} is not zstd: {e}", path.display()));
    let (magic, rest) = bytes.split_at(4);
    assert_eq!(magic, b"DBN\x01", "{} is not DBN version 1", path.display());
    let metadata_bytes = u32_at(rest, 0) as usize;
    let records = &rest[4 + metadata_bytes..];
    assert!(
        records.len().is_multiple_of(RECORD_BYTES),
        "{} is cut short",
        path.display()
    );
    messages(records)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn messages(records: &[u8]) -> Vec<Message> {
    let mut before_ns = u64_at(records, 40);
    let as_message = |(index, record): (usize, &[u8])| {
        assert_eq!(
            &record[..2],
            &[LENGTH_WORDS, MARKET_BY_ORDER],
            "record {index}"
        );
        let mut value = format!("{index} ");
        for byte in record {
            write!(value, "{byte:02x}").expect("text takes everything");
        }
        let received_ns = u64_at(record, 40);
        let gap_ns = received_ns.saturating_sub(before_ns);
        before_ns = received_ns;
        Message {
            key: u64_at(record, 16).to_string(),
            value,
            gap_ns,
        }
    };
    records
        .chunks_exact(RECORD_BYTES)
        .enumerate()
        .map(as_message)
        .collect()
}

/// Orders that live, for the generator.
struct Book {
    open: Vec<u64>,
    next_id: u64,
}

/// Records of a made-up day: first a book as it stands, all at one instant, then bursts.
fn generate(seed: u64, count: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut book = Book {
        open: Vec::new(),
        next_id: 6_412_777_000_000,
    };
    let mut now_ns = 1_703_462_400_000_000_000;
    let mut out = Vec::with_capacity(count * RECORD_BYTES);
    for sequence in 0..count / 8 {
        put_record(&mut out, &mut random, &mut book, b'A', now_ns, sequence);
    }
    let mut left_in_burst = 0;
    for sequence in count / 8..count {
        if left_in_burst == 0 {
            // Silence: mostly milliseconds, seldom minutes. Then a burst: mostly small.
            now_ns += match random.below(10_000) {
                0..9_900 => 1_000_000 + random.below(200_000_000),
                9_900..9_980 => random.below(20_000_000_000),
                _ => random.below(16 * 60 * 1_000_000_000),
            };
            left_in_burst = 1 + match random.below(100) {
                0..80 => random.below(8),
                80..99 => random.below(40),
                _ => random.below(LARGEST_BURST),
            };
        } else {
            now_ns += random.below(6_000);
        }
        left_in_burst -= 1;
        let action = match random.below(100) {
            0..43 => b'A',
            43..61 => b'M',
            61..87 => b'C',
            87..96 => b'F',
            _ => b'T',
        };
        put_record(&mut out, &mut random, &mut book, action, now_ns, sequence);
    }
    out
}

fn put_record(
    out: &mut Vec<u8>,
    random: &mut Random,
    book: &mut Book,
    action: u8,
    now_ns: u64,
    sequence: usize,
) {
    let (action, order) = if action == b'A' || book.open.is_empty() {
        book.next_id += 1 + random.below(9);
        book.open.push(book.next_id);
        (b'A', book.next_id)
    } else {
        // Young orders are touched most.
        let deepest = 1 + random.below(book.open.len() as u64);
        let depth = random.below(deepest) as usize;
        let at = book.open.len() - 1 - depth;
        let order = if action == b'C' {
            book.open.swap_remove(at)
        } else {
            book.open[at]
        };
        (action, order)
    };
    let start = out.len();
    out.extend_from_slice(&[LENGTH_WORDS, MARKET_BY_ORDER]);
    out.extend_from_slice(&1_u16.to_le_bytes());
    out.extend_from_slice(&17_077_u32.to_le_bytes());
    out.extend_from_slice(&(now_ns - 60_000).to_le_bytes());
    out.extend_from_slice(&order.to_le_bytes());
    let price = 4_800_000_000_000_i64 + 250_000_000 * (random.below(400) as i64 - 200);
    out.extend_from_slice(&price.to_le_bytes());
    out.extend_from_slice(&(1 + random.below(50) as u32).to_le_bytes());
    out.extend_from_slice(&[0, 0, action, if random.percent(50) { b'A' } else { b'B' }]);
    out.extend_from_slice(&now_ns.to_le_bytes());
    out.extend_from_slice(&15_000_i32.to_le_bytes());
    out.extend_from_slice(&(sequence as u32).to_le_bytes());
    debug_assert_eq!(out.len() - start, RECORD_BYTES);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_generated_feed_is_as_bursty_as_the_real_one() {
        let feed = messages(&generate(1, GENERATED_MESSAGES));
        assert_eq!(feed.len(), GENERATED_MESSAGES);
        let book_bytes = GENERATED_MESSAGES / 8;
        let live = &feed[book_bytes..];
        let largest = bursts(live).map(<[Message]>::len).max().expect("bursts");
        assert!((120..=151).contains(&largest), "largest burst {largest}");
        let silence = live.iter().map(|m| m.gap_ns).max().expect("messages");
        assert!(silence > 60_000_000_000, "longest silence {silence} ns");
        let mut gaps: Vec<u64> = live.iter().map(|m| m.gap_ns).collect();
        gaps.sort_unstable();
        assert!(
            gaps[gaps.len() / 2] < 100_000,
            "median gap {} ns",
            gaps[gaps.len() / 2]
        );
    }

    #[test]
    fn the_generated_feed_is_the_same_every_time_and_no_message_is_like_another() {
        let feed = messages(&generate(1, 5000));
        assert_eq!(feed, messages(&generate(1, 5000)));
        let values: HashSet<&str> = feed.iter().map(|m| m.value.as_str()).collect();
        assert_eq!(values.len(), feed.len());
        let keys: HashSet<&str> = feed.iter().map(|m| m.key.as_str()).collect();
        assert!((1000..4000).contains(&keys.len()), "{} orders", keys.len());
    }
}
