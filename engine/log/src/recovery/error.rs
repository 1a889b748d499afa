//! Why a data directory is not recovered: one struct per failure, one enum for the operation.
//!
//! Each message says what was found, in which file and where, and what can be done. Except for
//! [`FileError`], every one of them is a refusal to start: going on would drop or change data that
//! was acknowledged.

use std::path::PathBuf;

use ringtide_schema::identity::IdentityError;
use ringtide_schema::ids::{PartitionId, TopicId};
use ringtide_schema::snapshot::SnapshotError;

use super::table::Found;
use crate::files::{Cause, FileError};

/// Why recovery stopped.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each variant is documented at its struct")]
pub enum RecoverError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Foreign(#[from] Foreign),
    #[error(transparent)]
    MissingIdentity(#[from] MissingIdentity),
    #[error(transparent)]
    BadIdentity(#[from] BadIdentity),
    #[error(transparent)]
    MissingFolder(#[from] MissingFolder),
    #[error(transparent)]
    BadSnapshot(#[from] BadSnapshot),
    #[error(transparent)]
    Contradiction(#[from] Contradiction),
    #[error(transparent)]
    ForeignSlot(#[from] ForeignSlot),
    #[error(transparent)]
    NewerSlot(#[from] NewerSlot),
    #[error(transparent)]
    SlotBytes(#[from] SlotBytes),
    #[error(transparent)]
    CutSlot(#[from] CutSlot),
    #[error(transparent)]
    MissingSlot(#[from] MissingSlot),
    #[error(transparent)]
    Lost(Box<Lost>),
    #[error(transparent)]
    CorruptFrame(#[from] CorruptFrame),
    #[error(transparent)]
    MissingEntries(#[from] MissingEntries),
    #[error(transparent)]
    BadEntry(#[from] BadEntry),
    #[error(transparent)]
    UnknownTopic(#[from] UnknownTopic),
    #[error(transparent)]
    BadSegment(#[from] BadSegment),
    #[error(transparent)]
    MissingSegment(#[from] MissingSegment),
    #[error(transparent)]
    Unlisted(#[from] Unlisted),
    #[error(transparent)]
    OldSnapshot(#[from] OldSnapshot),
    #[error(transparent)]
    OtherSnapshots(#[from] OtherSnapshots),
}

impl RecoverError {
    /// Whether it was only space that was missing.
    pub(super) fn is_full(&self) -> bool {
        matches!(self, Self::File(error) if error.cause == Cause::Full)
    }
}

impl From<Lost> for RecoverError {
    fn from(lost: Lost) -> Self {
        Self::Lost(Box::new(lost))
    }
}

/// Something in the data directory that no broker put there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} does not belong in a data directory; move it away and start again", path.display())]
pub struct Foreign {
    /// The file or directory.
    pub path: PathBuf,
}

/// There is data but no identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} holds {} but {} is missing; restore the whole data directory from a copy",
    directory.display(), found.display(), directory.join("identity").display()
)]
pub struct MissingIdentity {
    /// The data directory.
    pub directory: PathBuf,
    /// What shows that there is data.
    pub found: PathBuf,
}

/// The identity is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {why}; restore the whole data directory from a copy", path.display())]
pub struct BadIdentity {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub why: IdentityError,
}

/// A part of the data directory is gone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} is missing from the data directory; restore the whole directory from a copy", path.display())]
pub struct MissingFolder {
    /// The directory.
    pub path: PathBuf,
}

/// A snapshot is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {why}; restore the whole data directory from a copy", path.display())]
pub struct BadSnapshot {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub why: SnapshotError,
}

/// A snapshot is whole but says what cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} is whole but says what cannot be: {what}; restore the whole data directory from a copy",
    path.display()
)]
pub struct Contradiction {
    /// The file.
    pub path: PathBuf,
    /// What it says.
    pub what: String,
}

/// A WAL slot of another data directory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} belongs to the data directory {found}, this one is {expected}; move the file to where it belongs",
    path.display()
)]
pub struct ForeignSlot {
    /// The slot.
    pub path: PathBuf,
    /// The data directory it names.
    pub found: TopicId,
    /// The data directory it lies in.
    pub expected: TopicId,
}

/// A WAL slot of a start that the identity does not know of yet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} was written by start {found} of the broker, but the identity knows only {known}; \
     the identity file is an old copy: restore the newest one",
    path.display()
)]
pub struct NewerSlot {
    /// The slot.
    pub path: PathBuf,
    /// The start that it names.
    pub found: u64,
    /// The last start by the identity.
    pub known: u64,
}

/// A WAL slot in use that was cut or has grown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} has {have} bytes, its header says {want}; restore the whole data directory from a copy",
    path.display()
)]
pub struct SlotBytes {
    /// The slot.
    pub path: PathBuf,
    /// Bytes by its header.
    pub want: u64,
    /// Bytes of the file.
    pub have: u64,
}

/// A WAL slot without a header whose file has a length that none is made with: it was cut. What it held is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} has {have} bytes, which no slot of the write-ahead log is made with, and no whole header: it was cut, and \
     acknowledged data may be lost with what is gone; restore the whole data directory from a copy, or move the file away \
     to start without what it held",
    path.display()
)]
pub struct CutSlot {
    /// The slot.
    pub path: PathBuf,
    /// Bytes of the file.
    pub have: u64,
}

/// The generations of a shard's slots are not one run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the write-ahead log of shard {shard} lacks the slot of generation {generation}, which comes \
     before {}; restore the whole data directory from a copy",
    before.display()
)]
pub struct MissingSlot {
    /// The shard.
    pub shard: u16,
    /// The generation that no slot has, or that two have.
    pub generation: u64,
    /// The slot that comes next.
    pub before: PathBuf,
}

/// What shows that something had been committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shown {
    /// A later frame says so.
    Frame {
        /// The frame's slot.
        path: PathBuf,
        /// Where in it, in bytes.
        position: u64,
        /// The last committed entry by that frame.
        committed: u64,
    },
    /// A snapshot holds more of a group than the log does.
    Snapshot {
        /// The snapshot.
        path: PathBuf,
        /// The last entry of the group that it holds.
        holds: u64,
        /// The last entry of the group that was found in the log.
        found: u64,
    },
}

impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Frame {
                path,
                position,
                committed,
            } => write!(
                f,
                "the frame at byte {position} of {} says that entries up to {committed} were committed",
                path.display()
            ),
            Self::Snapshot { path, holds, found } => write!(
                f,
                "{} holds entries up to {holds} of its group, the log before the damage ends with {found}",
                path.display()
            ),
        }
    }
}

/// Acknowledged entries are gone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "acknowledged data is lost: frame {frame_seq} of shard {shard} is {} at byte {position} of {}, \
     and with it entries from {first_lost} on; {shown}. Restore the whole data directory from a \
     copy; `ringtide verify` lists everything that is affected",
    damage(*found), path.display()
)]
pub struct Lost {
    /// The slot.
    pub path: PathBuf,
    /// Where in it the frame should begin, in bytes.
    pub position: u64,
    /// The shard.
    pub shard: u16,
    /// What was found in its place.
    pub found: Found,
    /// The frame that should be there; 0 when even that is unknown.
    pub frame_seq: u64,
    /// The first entry that is gone.
    pub first_lost: u64,
    /// What shows that it was acknowledged.
    pub shown: Shown,
}

const fn damage(found: Found) -> &'static str {
    match found {
        Found::Absent => "missing",
        Found::Torn => "damaged",
        Found::Stale => "overwritten by older data",
        Found::Corrupt => "corrupt",
        Found::Valid => "there",
    }
}

/// A whole frame that does not belong where it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the frame at byte {position} of {} cannot be there: {what}; restore the whole data \
     directory from a copy",
    path.display()
)]
pub struct CorruptFrame {
    /// The slot.
    pub path: PathBuf,
    /// Where in it, in bytes.
    pub position: u64,
    /// What is wrong.
    pub what: String,
}

/// Entries of a group between its snapshot and the log are gone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "acknowledged data is lost: the entry at byte {position} of {} is number {found} of log group \
     {group}, but {expected} was to come next; an older slot or the group's snapshot is missing: \
     restore the whole data directory from a copy",
    path.display()
)]
pub struct MissingEntries {
    /// The slot.
    pub path: PathBuf,
    /// Where in it the entry is, in bytes.
    pub position: u64,
    /// The log group.
    pub group: u16,
    /// The group's entry that must come next.
    pub expected: u64,
    /// The one that was found.
    pub found: u64,
}

/// An entry is whole but cannot be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the entry at byte {position} of {} is whole but cannot be applied: {what}; restore the data \
     directory from a copy",
    path.display()
)]
pub struct BadEntry {
    /// The slot.
    pub path: PathBuf,
    /// Where in it, in bytes.
    pub position: u64,
    /// What is wrong.
    pub what: String,
}

/// Data of a topic that was never made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} has data of the partition {partition}, but the metadata knows no such topic and none with \
     a serial number from {next_serial} on was ever made; restore groups/ and wal/ from one copy \
     of the data directory",
    path.display()
)]
pub struct UnknownTopic {
    /// The file or directory.
    pub path: PathBuf,
    /// The partition.
    pub partition: PartitionId,
    /// The first serial number that no topic has had.
    pub next_serial: u64,
}

/// A segment file is not as its manifest says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} has {have} bytes, at least {want} were synced; restore the whole data \
     directory from a copy",
    path.display()
)]
pub struct BadSegment {
    /// The segment.
    pub path: PathBuf,
    /// Bytes that the manifest promises.
    pub want: u64,
    /// Bytes of the file.
    pub have: u64,
}

/// A segment is not there that a snapshot names: no matter for a start, but for a cut of the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} is missing: if the topic {topic} was deleted behind the damage, it would be back without its records; if \
     that segment was lost otherwise, make an empty file of its name, and repair again",
    path.display()
)]
pub struct MissingSegment {
    /// The segment.
    pub path: PathBuf,
    /// Whose it is.
    pub topic: String,
}

/// After a clean stop, a segment that goes on behind what its manifest knows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} has {have} bytes, of which the snapshots of the last clean stop know {want}: identity and snapshots are older \
     than it; restore the whole data directory from a copy",
    path.display()
)]
pub struct OldSnapshot {
    /// The segment.
    pub path: PathBuf,
    /// Bytes that the manifest knows.
    pub want: u64,
    /// Bytes of the file.
    pub have: u64,
}

/// After a clean stop, snapshots that are not those which it left.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} does not hold the snapshots that the broker left when it stopped: one is missing, or of another \
     time; restore the whole data directory from a copy",
    path.display()
)]
pub struct OtherSnapshots {
    /// The directory of the snapshots.
    pub path: PathBuf,
}

/// A segment with data that neither a snapshot nor the log explains.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} holds data, but by the snapshots and the log its partition ends at offset {next_offset}; \
     a snapshot or a slot is missing: restore the whole data directory from a copy",
    path.display()
)]
pub struct Unlisted {
    /// The segment.
    pub path: PathBuf,
    /// Where the partition ends.
    pub next_offset: u64,
}
