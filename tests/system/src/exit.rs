//! The exit codes, as docs/OPERATIONS.md lists them. Written down again on purpose: scripts rely on
//! the numbers, so a change of one must break a test.

/// Everything asked for was done.
pub const DONE: i32 = 0;
/// The operation failed for a reason without a code of its own.
pub const FAILED: i32 = 1;
/// A flag, a setting or the configuration file is wrong.
pub const USAGE: i32 = 2;
/// No broker could be reached.
pub const UNREACHABLE: i32 = 4;
/// Of some records the outcome is unknown.
pub const OUTCOME_UNKNOWN: i32 = 5;
/// `consume` delivered fewer records than `--count`.
pub const FEWER_THAN_ASKED: i32 = 6;
/// `verify` or `inspect` found problems.
pub const PROBLEMS_FOUND: i32 = 7;
/// The host lacks what the broker cannot do without.
pub const HOST_UNFIT: i32 = 10;
/// The data directory is in use.
pub const DIRECTORY_LOCKED: i32 = 11;
/// The data directory cannot be used.
pub const DIRECTORY_UNUSABLE: i32 = 12;
/// The data directory is damaged.
pub const DIRECTORY_CORRUPT: i32 = 13;
/// An address could not be listened on.
pub const CANNOT_LISTEN: i32 = 14;
/// A write to the write-ahead log failed.
pub const LOG_FAILED: i32 = 20;
/// A write to a segment failed.
pub const SEGMENT_FAILED: i32 = 21;
/// A snapshot or a directory could not be made durable.
pub const SNAPSHOT_FAILED: i32 = 22;
