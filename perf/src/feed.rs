//! Recorded feeds: what arrived, and when. Order-book feeds are bursty, with minutes of silence and
//! then a hundred messages in a millisecond, which no even schedule shows.
//!
//! Read are market-by-order records in Databento Binary Encoding, version 1, as they are or
//! zstd-compressed. For those who have none a generator makes records of the same layout with the
//! same burstiness.
//!
//! ```text
//! file: "DBN", version 1 u8, bytes of metadata u32, metadata, records
//! record, little endian, 56 bytes
//!   0 length in words (14) | 1 type (160) | 2 publisher u16 | 4 instrument u32 | 8 event time ns u64
//!  16 order id u64 | 24 price i64 | 32 size u32 | 36 flags | 37 channel | 38 action | 39 side
//!  40 receive time ns u64 | 48 delta ns i32 | 52 sequence u32
//! ```

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use fastrand::Rng;

use crate::error::BenchError;

/// Bytes of a record.
pub const RECORD_BYTES: usize = 56;

const LENGTH_WORDS: u8 = (RECORD_BYTES / 4) as u8;
const MARKET_BY_ORDER: u8 = 160;
const MAGIC: &[u8; 4] = b"DBN\x01";
const ZSTD_MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();
/// A feed that is larger is not read into memory.
const MAX_BYTES: u64 = 4 << 30;
const LARGEST_BURST: u64 = 151;

/// One message of a feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Time since the message before it, in ns.
    pub gap_ns: u64,
    /// The order that it is about.
    pub order_id: u64,
    /// The record as it is in the file.
    pub record: [u8; RECORD_BYTES],
}

/// A feed in memory. It has at least one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feed {
    messages: Vec<Message>,
}

impl Feed {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, or is not a feed: what is wrong with it, and where.
    pub fn read(path: &Path) -> Result<Self, BenchError> {
        Self::read_at_most(path, MAX_BYTES)
    }

    fn read_at_most(path: &Path, max_bytes: u64) -> Result<Self, BenchError> {
        let wrong = |why: String| {
            BenchError::Usage(format!(
                "{} is no feed: {why}; give market-by-order records in Databento Binary Encoding, \
                 version 1, as they are or zstd-compressed",
                path.display()
            ))
        };
        let read = |error: io::Error| match (error.raw_os_error(), error.kind()) {
            (Some(_), _) => BenchError::io(format!("feed {}", path.display()))(error),
            // Not of the system, so of what was to be inflated.
            (None, io::ErrorKind::UnexpectedEof) => wrong("it is cut off".into()),
            (None, _) => wrong(format!("it cannot be inflated ({error})")),
        };
        let mut file = File::open(path).map_err(read)?;
        let mut head = Vec::new();
        (&mut file)
            .take(ZSTD_MAGIC.len() as u64)
            .read_to_end(&mut head)
            .map_err(read)?;
        let whole = io::Cursor::new(head.clone()).chain(file);
        let mut bytes = Vec::new();
        if head == ZSTD_MAGIC {
            let inflated = zstd::Decoder::new(whole).map_err(read)?;
            inflated.take(max_bytes + 1).read_to_end(&mut bytes)
        } else {
            whole.take(max_bytes + 1).read_to_end(&mut bytes)
        }
        .map_err(read)?;
        if bytes.len() as u64 > max_bytes {
            return Err(BenchError::Usage(format!(
                "{} has more than {max_bytes} bytes, inflated if it is compressed, and a feed is held in \
                 memory: give a part of it",
                path.display()
            )));
        }
        Self::parse(&bytes).map_err(wrong)
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let rest = bytes
            .strip_prefix(MAGIC)
            .ok_or("it does not begin with DBN and the version 1")?;
        let (length, rest) = rest
            .split_first_chunk::<4>()
            .ok_or("it ends in its header")?;
        let records = rest
            .get(u32::from_le_bytes(*length) as usize..)
            .ok_or("it ends in its metadata")?;
        let (records, cut) = records.as_chunks::<RECORD_BYTES>();
        if !cut.is_empty() {
            return Err(format!("it is cut off after {} records", records.len()));
        }
        if records.is_empty() {
            return Err("it has no records".into());
        }
        let other = |r: &[u8; RECORD_BYTES]| r[..2] != [LENGTH_WORDS, MARKET_BY_ORDER];
        if let Some(at) = records.iter().position(other) {
            return Err(format!("its record {at} is not a market-by-order record"));
        }
        Ok(Self::of(records))
    }

    fn of(records: &[[u8; RECORD_BYTES]]) -> Self {
        let mut before_ns = u64_at(&records[0], 40);
        let message = |record: &[u8; RECORD_BYTES]| {
            let received_ns = u64_at(record, 40);
            let gap_ns = received_ns.saturating_sub(before_ns);
            before_ns = received_ns;
            Message {
                gap_ns,
                order_id: u64_at(record, 16),
                record: *record,
            }
        };
        Self {
            messages: records.iter().map(message).collect(),
        }
    }

    /// A made-up day of so many messages, at least one: first a book as it stands, all at one
    /// instant, then bursts. The same seed gives the same day.
    #[must_use]
    pub fn generated(seed: u64, count: usize) -> Self {
        Self::of(&generate(seed, count.max(1)))
    }

    /// Messages a second, played at a speed with silences cut to this.
    #[must_use]
    pub fn rate_per_s(&self, speed: f64, max_silence: Duration) -> f64 {
        let longest_s = max_silence.as_secs_f64();
        let gap_s = |message: &Message| (message.gap_ns as f64 / 1e9 / speed).min(longest_s);
        let length_s: f64 = self.messages.iter().map(gap_s).sum();
        self.messages.len() as f64 / length_s.max(1e-9)
    }

    /// The messages, in order.
    #[must_use]
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }
}

fn u64_at(record: &[u8; RECORD_BYTES], at: usize) -> u64 {
    u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|i| record[at + i]))
}

/// Orders that live, for the generator.
struct Book {
    open: Vec<u64>,
    next_id: u64,
}

fn generate(seed: u64, count: usize) -> Vec<[u8; RECORD_BYTES]> {
    let mut random = Rng::with_seed(seed);
    let mut book = Book {
        open: Vec::new(),
        next_id: 6_412_777_000_000,
    };
    let mut now_ns = 1_703_462_400_000_000_000;
    let mut out = Vec::with_capacity(count);
    for sequence in 0..count / 8 {
        out.push(record(&mut random, &mut book, b'A', now_ns, sequence));
    }
    let mut left_in_burst = 0;
    for sequence in count / 8..count {
        if left_in_burst == 0 {
            // Silence: mostly milliseconds, seldom minutes. Then a burst: mostly small.
            now_ns += match random.u32(0..10_000) {
                0..9_900 => 1_000_000 + random.u64(0..200_000_000),
                9_900..9_980 => random.u64(0..20_000_000_000),
                _ => random.u64(0..16 * 60 * 1_000_000_000),
            };
            left_in_burst = 1 + match random.u32(0..100) {
                0..80 => random.u64(0..8),
                80..99 => random.u64(0..40),
                _ => random.u64(0..LARGEST_BURST),
            };
        } else {
            now_ns += random.u64(0..6_000);
        }
        left_in_burst -= 1;
        let action = match random.u32(0..100) {
            0..43 => b'A',
            43..61 => b'M',
            61..87 => b'C',
            87..96 => b'F',
            _ => b'T',
        };
        out.push(record(&mut random, &mut book, action, now_ns, sequence));
    }
    out
}

fn record(
    random: &mut Rng,
    book: &mut Book,
    action: u8,
    now_ns: u64,
    sequence: usize,
) -> [u8; RECORD_BYTES] {
    let (action, order) = if action == b'A' || book.open.is_empty() {
        book.next_id += 1 + random.u64(0..9);
        book.open.push(book.next_id);
        (b'A', book.next_id)
    } else {
        // Young orders are touched most.
        let deepest = random.usize(1..=book.open.len());
        let at = book.open.len() - 1 - random.usize(0..deepest);
        let order = if action == b'C' {
            book.open.swap_remove(at)
        } else {
            book.open[at]
        };
        (action, order)
    };
    let price = 4_800_000_000_000_i64 + 250_000_000 * random.i64(-200..200);
    let side = if random.bool() { b'A' } else { b'B' };
    let mut record = [0; RECORD_BYTES];
    record[..2].copy_from_slice(&[LENGTH_WORDS, MARKET_BY_ORDER]);
    record[2..4].copy_from_slice(&1_u16.to_le_bytes());
    record[4..8].copy_from_slice(&17_077_u32.to_le_bytes());
    record[8..16].copy_from_slice(&(now_ns - 60_000).to_le_bytes());
    record[16..24].copy_from_slice(&order.to_le_bytes());
    record[24..32].copy_from_slice(&price.to_le_bytes());
    record[32..36].copy_from_slice(&random.u32(1..=50).to_le_bytes());
    record[38..40].copy_from_slice(&[action, side]);
    record[40..48].copy_from_slice(&now_ns.to_le_bytes());
    record[48..52].copy_from_slice(&15_000_i32.to_le_bytes());
    record[52..56].copy_from_slice(&(sequence as u32).to_le_bytes());
    record
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// Messages that follow each other closer than this belong to one burst.
    const BURST_GAP_NS: u64 = 1_000_000;

    #[test]
    fn the_generated_feed_is_as_bursty_as_a_real_one() {
        let feed = Feed::generated(1, 70_000);
        assert_eq!(feed.messages().len(), 70_000);
        let live = &feed.messages()[70_000 / 8..];
        let bursts = live.chunk_by(|_, next| next.gap_ns < BURST_GAP_NS);
        let largest = bursts.map(<[Message]>::len).max().expect("bursts");
        assert!((120..=151).contains(&largest), "largest burst {largest}");
        let silence = live.iter().map(|m| m.gap_ns).max().expect("messages");
        assert!(silence > 60_000_000_000, "longest silence {silence} ns");
        let mut gaps: Vec<u64> = live.iter().map(|m| m.gap_ns).collect();
        gaps.sort_unstable();
        let median = gaps[gaps.len() / 2];
        assert!(median < 100_000, "median gap {median} ns");
    }

    #[test]
    fn the_generated_feed_is_the_same_every_time_and_touches_orders_again() {
        let feed = Feed::generated(1, 5000);
        assert_eq!(feed, Feed::generated(1, 5000));
        let orders: HashSet<u64> = feed.messages().iter().map(|m| m.order_id).collect();
        assert!((1000..4000).contains(&orders.len()), "{}", orders.len());
    }

    #[test]
    fn the_rate_of_a_feed_is_that_at_which_it_is_played() {
        let gaps_ns = [0, 1_000_000_000, 1_000_000_000, 98_000_000_000];
        let message = |gap_ns| Message {
            gap_ns,
            order_id: 0,
            record: [0; RECORD_BYTES],
        };
        let messages = gaps_ns.map(message).to_vec();
        let rate = |speed, silence_s| {
            let feed = Feed {
                messages: messages.clone(),
            };
            feed.rate_per_s(speed, Duration::from_secs(silence_s))
        };
        assert_eq!((rate(1.0, 3600), rate(10.0, 3600)), (0.04, 0.4));
        assert_eq!(rate(1.0, 2), 1.0, "with silences cut");
    }

    fn file(records: &[[u8; RECORD_BYTES]]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&3_u32.to_le_bytes());
        bytes.extend_from_slice(b"any");
        bytes.extend(records.iter().flatten());
        bytes
    }

    #[test]
    fn a_file_is_read_compressed_or_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("feed");
        let plain = file(&generate(1, 100));
        let packed = zstd::encode_all(&plain[..], 3).expect("packed");
        for bytes in [plain, packed] {
            std::fs::write(&path, bytes).expect("written");
            assert_eq!(Feed::read(&path).expect("a feed"), Feed::generated(1, 100));
        }
    }

    #[test]
    fn a_feed_that_is_too_large_is_refused_as_that_and_not_cut() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("feed");
        let plain = file(&generate(1, 100));
        let packed = zstd::encode_all(&plain[..], 3).expect("packed");
        let bytes = plain.len() as u64;
        for file in [plain, packed] {
            std::fs::write(&path, file).expect("written");
            assert!(Feed::read_at_most(&path, bytes).is_ok());
            let error = Feed::read_at_most(&path, bytes - 1).expect_err("too large");
            assert!(error.to_string().contains("more than"), "{error}");
        }
    }

    #[test]
    fn what_is_no_feed_is_refused_with_the_file_and_the_reason() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("feed");
        let good = file(&generate(1, 3));
        let mut other = good.clone();
        other[11 + RECORD_BYTES + 1] = 161;
        let packed = zstd::encode_all(&good[..], 3).expect("packed");
        let mut bad = packed.clone();
        bad[4..12].fill(0xff);
        for (bytes, why) in [
            (&b""[..], "does not begin"),
            (b"DBN\x02", "does not begin"),
            (&good[..6], "header"),
            (&good[..10], "metadata"),
            (&good[..11], "no records"),
            (&good[..good.len() - 1], "cut off after 2 records"),
            (&other, "record 1"),
            (&packed[..4], "cut off"),
            (&packed[..packed.len() / 2], "cut off"),
            (&packed[..packed.len() - 1], "cut off"),
            (&bad, "cannot be inflated"),
        ] {
            std::fs::write(&path, bytes).expect("written");
            let error = Feed::read(&path).expect_err(why);
            assert!(matches!(error, BenchError::Usage(_)), "{error:?}");
            let error = error.to_string();
            assert!(
                error.contains(why) && error.contains(&*path.to_string_lossy()),
                "{error}"
            );
        }
        let error = Feed::read(&dir.path().join("absent")).expect_err("absent");
        assert!(error.to_string().contains("absent"), "{error}");
    }
}
