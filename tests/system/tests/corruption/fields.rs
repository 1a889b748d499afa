//! The fields of everything on disk, as docs/FORMAT.md has them, and what a flipped bit in each leads to.

use ringtide_schema::{batch, identity, index, snapshot, wal};

/// What one flipped bit leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Means {
    /// `verify` reports a problem, the broker does not start.
    Refused,
    /// `verify` reports a problem, the broker serves everything but what is damaged, and tells who reads that.
    Unreadable,
    /// `verify` reports a problem, and readers are given what was published.
    Told,
    /// `verify` reports a note, the broker mends it, and readers are given what was published.
    Mends,
    /// Nobody looks at it, and readers are given what was published.
    Nothing,
}

/// A field of a structure.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// As in docs/FORMAT.md.
    pub name: &'static str,
    /// From the beginning of the structure.
    pub at: u64,
    /// How many bytes it has.
    pub bytes: u64,
    /// What a flipped bit in it leads to.
    pub means: Means,
}

/// Fields from where each begins to where the next one does.
macro_rules! fields {
    ($ends:expr; $($at:literal $name:literal $means:ident),+ $(,)?) => {{
        const STARTS: &[u64] = &[$($at,)+ $ends as u64];
        const NAMED: &[(&str, Means)] = &[$(($name, Means::$means),)+];
        const COUNT: usize = NAMED.len();
        const FIELDS: [Field; COUNT] = {
            let mut fields = [Field { name: "", at: 0, bytes: 0, means: Means::Nothing }; COUNT];
            let mut i = 0;
            while i < COUNT {
                assert!(STARTS[i] < STARTS[i + 1]);
                fields[i] = Field {
                    name: NAMED[i].0,
                    at: STARTS[i],
                    bytes: STARTS[i + 1] - STARTS[i],
                    means: NAMED[i].1,
                };
                i += 1;
            }
            fields
        };
        &FIELDS
    }};
}

pub const IDENTITY: &[Field] = fields!(identity::IDENTITY_BYTES;
    0 "magic" Refused,
    8 "format" Refused,
    10 "groups" Refused,
    12 "state" Refused,
    16 "data dir id" Refused,
    32 "incarnation" Refused,
    40 "leader epoch" Refused,
    44 "shards" Refused,
    48 "slot bytes" Refused,
    56 "snapshots crc" Refused,
    60 "crc" Refused,
);

pub const SNAPSHOT: &[Field] = fields!(snapshot::HEADER_BYTES;
    0 "magic" Refused,
    8 "format" Refused,
    10 "zeros" Refused,
    12 "body bytes" Refused,
    16 "body crc" Refused,
    20 "header crc" Refused,
);

/// Frames say themselves where their slot belongs.
pub const SLOT: &[Field] = fields!(4096;
    0 "magic" Mends,
    8 "format" Mends,
    10 "shard" Mends,
    12 "zeros" Mends,
    16 "data dir id" Mends,
    32 "generation" Mends,
    40 "incarnation" Mends,
    48 "slot bytes" Mends,
    56 "crc" Mends,
    60 "rest of the block" Nothing,
);

pub const FRAME: &[Field] = fields!(wal::FRAME_HEADER_BYTES;
    0 "magic" Refused,
    4 "format" Refused,
    5 "flags" Refused,
    6 "shard" Refused,
    8 "generation" Refused,
    16 "incarnation" Refused,
    24 "frame seq" Refused,
    32 "committed" Refused,
    40 "first seq" Refused,
    48 "entries bytes" Refused,
    52 "count" Refused,
    56 "previous crc" Refused,
    60 "crc" Refused,
);

pub const ENTRY: &[Field] = fields!(wal::ENTRY_HEADER_BYTES;
    0 "bytes" Refused,
    4 "header crc" Refused,
    8 "payload crc" Refused,
    12 "kind" Refused,
    13 "zero" Refused,
    14 "group" Refused,
    16 "seq" Refused,
    24 "group index" Refused,
    32 "term" Refused,
    40 "topic" Refused,
    56 "partition" Refused,
    60 "incarnation" Refused,
    64 "base offset" Refused,
    72 "append ms" Refused,
);

/// The leader epoch lies outside of the batch's checksum, as Kafka has it: the segment's own knows.
pub const BATCH: &[Field] = fields!(batch::HEADER_BYTES;
    0 "base offset" Unreadable,
    8 "length" Unreadable,
    12 "leader epoch" Told,
    16 "magic" Unreadable,
    17 "crc" Unreadable,
    21 "attributes" Unreadable,
    23 "last offset delta" Unreadable,
    27 "base timestamp" Unreadable,
    35 "max timestamp" Unreadable,
    43 "producer id" Unreadable,
    51 "producer epoch" Unreadable,
    53 "base sequence" Unreadable,
    57 "record count" Unreadable,
);

pub const INDEX: &[Field] = fields!(index::HEADER_BYTES;
    0 "magic" Mends,
    8 "format" Mends,
    10 "zeros at 10" Mends,
    12 "count" Mends,
    16 "base offset" Mends,
    24 "covered bytes" Mends,
    28 "zeros at 28" Mends,
    32 "crc" Mends,
    36 "zeros at 36" Nothing,
);

pub const INDEX_ENTRY: &[Field] = fields!(index::ENTRY_BYTES;
    0 "offset" Mends,
    4 "position" Mends,
    8 "base timestamp" Mends,
    16 "largest timestamp before" Mends,
);
