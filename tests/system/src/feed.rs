//! An order-book feed: who did what to which order, and when it arrived.
//!
//! `RINGTIDE_FEED` names a file of real records; without it a generator makes some with the same
//! burstiness: minutes of silence, then up to 151 messages within a millisecond. Which files can be
//! read, and how the generator works, is in the load generator's `feed`.

use std::fmt::Write;
use std::path::Path;

use ringtide_perf::feed::Feed;

/// Messages that follow each other closer than this belong to one burst.
pub const BURST_GAP_NS: u64 = 1_000_000;
const GENERATED_MESSAGES: usize = 70_000;

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
    let feed = match std::env::var_os("RINGTIDE_FEED") {
        Some(path) => Feed::read(Path::new(&path)).unwrap_or_else(|e| panic!("{e}")),
        None => Feed::generated(1, GENERATED_MESSAGES),
    };
    messages(&feed)
}

/// Cuts a feed into its bursts.
pub fn bursts(feed: &[Message]) -> impl Iterator<Item = &[Message]> {
    feed.chunk_by(|_, next| next.gap_ns < BURST_GAP_NS)
}

fn messages(feed: &Feed) -> Vec<Message> {
    let as_text = |(index, message): (usize, &ringtide_perf::feed::Message)| {
        let mut value = format!("{index} ");
        for byte in message.record {
            write!(value, "{byte:02x}").expect("text takes everything");
        }
        Message {
            key: message.order_id.to_string(),
            value,
            gap_ns: message.gap_ns,
        }
    };
    feed.messages().iter().enumerate().map(as_text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_message_is_like_another() {
        let feed = messages(&Feed::generated(1, 5000));
        let values: HashSet<&str> = feed.iter().map(|m| m.value.as_str()).collect();
        assert_eq!(values.len(), feed.len());
    }
}
