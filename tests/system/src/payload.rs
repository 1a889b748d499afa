//! Record batches for the tests: built, taken apart, and built wrong on purpose.

use std::time::{SystemTime, UNIX_EPOCH};

use ringtide_schema::batch::{Batches, Codec};
use ringtide_schema::limits::DEFAULT_INFLATED_BYTES;
use ringtide_schema::record::{self, BatchBuilder};

/// A record as a consumer sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rec {
    /// Its place in the partition.
    pub offset: u64,
    /// Created or appended, ms since 1970.
    pub timestamp_ms: i64,
    /// Of the batch it came in.
    pub leader_epoch: i32,
    /// Its key, if it has one.
    pub key: Option<Vec<u8>>,
    /// Its value; `None` for a tombstone.
    pub value: Option<Vec<u8>>,
}

impl Rec {
    /// The value as text.
    ///
    /// # Panics
    /// When it is not text, or missing.
    #[must_use]
    pub fn text(&self) -> &str {
        std::str::from_utf8(self.value.as_deref().expect("a value")).expect("text")
    }
}

/// Milliseconds since 1970.
///
/// # Panics
/// When the clock stands before 1970.
#[must_use]
pub fn now_ms() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("a clock after 1970");
    i64::try_from(since.as_millis()).expect("a clock of this age")
}

/// A batch of these values, without keys, of now.
#[must_use]
pub fn batch<V: AsRef<[u8]>>(values: &[V]) -> Vec<u8> {
    batch_at(now_ms(), values)
}

/// A batch of one value.
#[must_use]
pub fn single(value: impl AsRef<[u8]>) -> Vec<u8> {
    batch(&[value])
}

/// A batch of these values and this timestamp.
///
/// # Panics
/// When the values are no batch.
#[must_use]
pub fn batch_at<V: AsRef<[u8]>>(timestamp_ms: i64, values: &[V]) -> Vec<u8> {
    let mut builder = BatchBuilder::new(Codec::None);
    for value in values {
        builder.push(timestamp_ms, None, Some(value.as_ref()), &[]);
    }
    let mut out = Vec::new();
    builder
        .finish(-1, -1, -1, &mut out)
        .expect("a batch can be built");
    out
}

/// The records of the batches in a payload, all checked.
///
/// # Panics
/// When anything is wrong with one of them.
#[must_use]
pub fn read_records(payload: &[u8]) -> Vec<Rec> {
    let mut out = Vec::new();
    let mut scratch = Vec::new();
    for item in Batches::new(payload) {
        let (header, bytes) = item.expect("whole batches in a payload");
        let records = record::records(bytes, &mut scratch, DEFAULT_INFLATED_BYTES)
            .expect("a batch that checks out");
        out.extend(records.map(|r| Rec {
            offset: r.offset,
            timestamp_ms: r.timestamp_ms,
            leader_epoch: header.leader_epoch,
            key: r.key.map(<[u8]>::to_vec),
            value: r.value.map(<[u8]>::to_vec),
        }));
    }
    out
}
