//! The parts of a record's path, each by itself and without I/O: a change that makes one of them
//! slower is found here before it is lost in the noise of the whole. What the whole can do is
//! measured from outside, by `ringtide bench` and the examples of `perf/`.
//!
//! A part is a function that prepares something and returns its [`Operation`]. Every part is in one
//! list ([`with_parts`]) and is looked at in three ways: time (`cargo bench -p ringtide-benches
//! --bench parts`, or with `-- --test` only once each), instructions (`cargo xtask instructions`),
//! and allocations (`tests/allocations.rs`).

pub mod batches;
pub mod broker;
pub mod frames;
pub mod log;
pub mod mailboxes;
pub mod sessions;

use ringtide_schema::batch::Codec;
use ringtide_schema::ids::{PartitionId, TopicId};
use ringtide_schema::record::BatchBuilder;

/// Of records; any will do.
pub const TIMESTAMP_MS: i64 = 1_700_000_000_000;
/// Operations after which everything that is kept for the next one has its size.
pub const WARM: usize = 100;
/// Of the small batch, a single record.
pub const SMALL: (u32, usize) = (1, 128);
/// Of the large batch.
pub const LARGE: (u32, usize) = (64, 1024);

/// Something that can be done again and again.
pub struct Operation {
    /// How many of what the part is named for are done at once; so many make the call cheap beside
    /// them.
    pub times: u32,
    run: Box<dyn FnMut()>,
}

impl Operation {
    /// An operation that does something once.
    pub fn new(run: impl FnMut() + 'static) -> Self {
        Self::of(1, run)
    }

    /// An operation that does something so many times.
    pub fn of(times: u32, run: impl FnMut() + 'static) -> Self {
        let run = Box::new(run);
        Self { times, run }
    }

    /// Does it.
    pub fn run(&mut self) {
        (self.run)();
    }

    /// Does it until it is as it will be for long.
    #[must_use]
    pub fn warm(mut self) -> Self {
        (0..WARM).for_each(|_| self.run());
        self
    }
}

/// A part: its name, and what prepares it.
pub type Part = (&'static str, fn() -> Operation);

/// Calls a macro with every part, as `module name` pairs. A name is never used for something else:
/// the baseline of instructions knows it.
#[macro_export]
macro_rules! with_parts {
    ($callback:ident) => {
        $callback! {
            frames frame_encode,
            frames frame_decode,
            frames publish_request_build,
            frames publish_request_read,
            frames publish_response_build,
            frames publish_response_read,
            batches batch_build_small,
            batches batch_build_large,
            batches batch_crc_small,
            batches batch_crc_large,
            batches batch_peek,
            batches batch_check_small,
            batches batch_check_large,
            batches batch_assign,
            batches batch_parse_small,
            batches batch_parse_large,
            log wal_append_small,
            log wal_append_large,
            log index_of_offset,
            log index_of_time,
            mailboxes mailbox_hop,
            sessions assemble_whole,
            sessions assemble_in_pieces,
            broker session_of_256_publishes,
            broker group_commit_of_1,
            broker group_commit_of_16,
            broker group_commit_of_256,
            broker group_commit_of_4_large,
            broker tail_delivery_to_1,
            broker tail_delivery_to_50,
        }
    };
}

macro_rules! list {
    ($($module:ident $name:ident),* $(,)?) => {
        &[$((stringify!($name), $module::$name)),*]
    };
}

/// Every part.
pub const PARTS: &[Part] = with_parts!(list);

/// The part of this name, ready.
///
/// # Panics
/// If there is none.
pub fn ready(name: &str) -> Operation {
    let part = PARTS.iter().find(|(known, _)| *known == name);
    let (_, prepare) = part.unwrap_or_else(|| panic!("there is no part {name}"));
    prepare().warm()
}

/// The partition that everything is published to.
pub fn partition() -> PartitionId {
    PartitionId {
        topic: TopicId::new(1, 1),
        partition: 0,
    }
}

/// Puts records into a builder.
pub fn push(builder: &mut BatchBuilder, count: u32, value: &[u8]) {
    for _ in 0..count {
        builder.push(TIMESTAMP_MS, None, Some(value), &[]);
    }
}

/// A batch of so many records of so many bytes.
pub fn batch((count, bytes): (u32, usize)) -> Vec<u8> {
    let (mut builder, mut batch) = (BatchBuilder::new(Codec::None), Vec::new());
    push(&mut builder, count, &vec![7; bytes]);
    builder
        .finish(-1, -1, -1, &mut batch)
        .expect("there are records");
    batch
}

/// Numbers that jump about below `end`, as readers of different ages do.
fn jumping(end: u64) -> impl FnMut() -> u64 {
    let mut at = 0;
    move || {
        at = (at + 104_729) % end;
        at
    }
}
