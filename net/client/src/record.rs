//! A record to be published, and what becomes of it.

use crate::error::Result;

/// A record to be published. It borrows its parts: they are copied once, into the batch.
///
/// ```
/// use ringtide_client::Record;
/// let record = Record::new(b"42.10").key(b"ES").headers(&[("source", Some(b"feed-1"))]);
/// assert_eq!(record.key, Some(&b"ES"[..]));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Record<'a> {
    /// What it is about; decides the partition unless one is named.
    pub key: Option<&'a [u8]>,
    /// What it says.
    pub value: Option<&'a [u8]>,
    /// Key and value pairs beside it.
    pub headers: &'a [(&'a str, Option<&'a [u8]>)],
    /// When it was made, in ms since 1970; without it, when it is sent.
    pub timestamp_ms: Option<i64>,
    /// Which partition; without it, the producer's partitioner chooses.
    pub partition: Option<u32>,
}

impl<'a> Record<'a> {
    /// A record with this value and nothing else.
    #[must_use]
    pub fn new(value: &'a (impl AsRef<[u8]> + ?Sized)) -> Self {
        Self {
            value: Some(value.as_ref()),
            ..Self::default()
        }
    }

    /// Sets the key.
    #[must_use]
    pub fn key(mut self, key: &'a (impl AsRef<[u8]> + ?Sized)) -> Self {
        self.key = Some(key.as_ref());
        self
    }

    /// Sets or removes the value.
    #[must_use]
    pub fn value(mut self, value: Option<&'a [u8]>) -> Self {
        self.value = value;
        self
    }

    /// Sets the headers.
    #[must_use]
    pub fn headers(mut self, headers: &'a [(&'a str, Option<&'a [u8]>)]) -> Self {
        self.headers = headers;
        self
    }

    /// Sets the time, in ms since 1970.
    #[must_use]
    pub fn timestamp_ms(mut self, timestamp_ms: i64) -> Self {
        self.timestamp_ms = Some(timestamp_ms);
        self
    }

    /// Names the partition.
    #[must_use]
    pub fn partition(mut self, partition: u32) -> Self {
        self.partition = Some(partition);
        self
    }

    /// Bytes that it is charged with while it is not acknowledged.
    pub(crate) fn held_bytes(&self) -> usize {
        let headers: usize = self
            .headers
            .iter()
            .map(|(k, v)| 10 + k.len() + v.map_or(0, <[u8]>::len))
            .sum();
        36 + self.key.map_or(0, <[u8]>::len) + self.value.map_or(0, <[u8]>::len) + headers
    }
}

/// Names a record that was handed to a producer, until it is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket {
    /// The partition that was chosen for it.
    pub partition: u32,
    /// Counts the producer's records of that partition, from 0.
    pub number: u64,
}

/// A record was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ack {
    /// Which record.
    pub ticket: Ticket,
    /// The partition it was appended to.
    pub partition: u32,
    /// Its offset. None without acknowledgements, and for a record of which the broker only knows
    /// that it was appended before.
    pub offset: Option<u64>,
    /// When the broker appended it, in ms since 1970; None where the offset is.
    pub append_time_ms: Option<i64>,
    /// Whether an earlier attempt, whose answer was lost, had appended it already.
    pub duplicate: bool,
}

/// What became of a record.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Delivered {
    /// Which record.
    pub ticket: Ticket,
    /// Whether it was appended.
    pub result: Result<Ack>,
}
