//! Files as the logic sees them.

use std::path::PathBuf;
use std::sync::Arc;

use crate::buffer::{Chunk, Slice};
use ringtide_schema::index::IndexEntry;

/// An open file. The logic chooses the number; it is valid from the completion of its
/// [`DiskOp::Open`] until [`DiskOp::Close`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(pub u64);

/// Names an operation in its completion. The logic chooses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OpId(pub u64);

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// An existing WAL slot: direct, and a completed write is on stable storage.
    Wal,
    /// A segment to append to, created (with its directory) if absent, cut to `keep_bytes`;
    /// direct. The directory entry is durable at completion.
    Append {
        /// Synced bytes to keep.
        keep_bytes: u64,
    },
    /// A segment to read through the page cache.
    Read,
}

/// An operation on files.
#[derive(Debug)]
pub enum DiskOp {
    /// Opens a file.
    Open {
        /// Its number from now on.
        file: FileId,
        /// Where it is.
        path: PathBuf,
        /// For what.
        mode: OpenMode,
    },
    /// Closes a file; has no completion. Operations under way on it still complete.
    Close {
        /// Which.
        file: FileId,
    },
    /// Writes whole blocks to a file opened as `Wal` or `Append`. Position, length and address are
    /// multiples of 4,096.
    Write {
        /// Where to.
        file: FileId,
        /// First byte.
        position: u64,
        /// What.
        data: Slice,
    },
    /// Makes all completed writes of the file durable (fdatasync).
    Sync {
        /// Which.
        file: FileId,
    },
    /// Reads a range through the page cache into the chunk; the completion gives the chunk back.
    Read {
        /// Where from.
        file: FileId,
        /// First byte.
        position: u64,
        /// How many bytes; fewer are read at the end of the file.
        bytes: usize,
        /// Where to: appended to what the chunk holds.
        into: Chunk,
    },
    /// Seals a segment: cuts it to its exact length, makes it durable, writes its index beside it.
    Seal {
        /// The segment, open for append.
        file: FileId,
        /// Its exact length.
        bytes: u64,
        /// Where the index goes.
        index_path: PathBuf,
        /// The index's bytes; there is none to be written if there are none.
        index: Vec<u8>,
    },
    /// Loads a segment's index (mapping and checking it), or builds it from the segment's batches
    /// where it is missing, wrong or does not cover `bytes`. Damage has an entry of its own in one that is built, and so has
    /// what cannot be read: it is then no failure.
    LoadIndex {
        /// Of the index.
        index_path: PathBuf,
        /// Of the segment.
        log_path: PathBuf,
        /// Of the segment.
        base_offset: u64,
        /// How much of the segment is in its file.
        bytes: u64,
        /// What follows that up to the end of a batch.
        tail: Vec<u8>,
        /// The offset behind both.
        next_offset: u64,
        /// Whether an index that had to be built is written, unless there is damage: an index file says that
        /// its segment is sealed.
        keep: bool,
    },
    /// Replaces a small file atomically and durably: written beside it, synced, renamed, directory
    /// synced.
    Replace {
        /// Which file.
        path: PathBuf,
        /// Its new contents.
        contents: Vec<u8>,
    },
    /// Removes files (absent ones are fine), then directories if `and_directory`, and syncs the
    /// parent.
    Remove {
        /// Which.
        paths: Vec<PathBuf>,
        /// Also the directory, with whatever it holds.
        and_directory: Option<PathBuf>,
    },
    /// Creates a WAL slot: written full of zeros, synced, directory synced. Takes long.
    CreateSlot {
        /// Where.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
}

/// How an operation ended well.
#[derive(Debug)]
pub enum DiskDone {
    /// `Write`, `Sync`, `Seal`, `Replace`, `Remove`, `CreateSlot`.
    Done,
    /// `Open`: the file's length.
    Opened {
        /// In bytes.
        bytes: u64,
    },
    /// `Read`: the chunk with what was read appended.
    Read {
        /// The chunk given.
        chunk: Chunk,
        /// Bytes read; fewer than asked only at the end of the file.
        bytes: usize,
    },
    /// `LoadIndex`.
    Index(IndexBytes),
}

/// A checked index: bytes that `ringtide_schema::index::IndexView::trusted` takes, or the entries
/// built anew.
#[derive(Clone)]
pub enum IndexBytes {
    /// The bytes of the index file (a mapping, usually).
    File(Arc<dyn AsRef<[u8]> + Send + Sync>),
    /// Built from the segment: entries, and the bytes that they cover.
    Built {
        /// In ascending order.
        entries: Vec<IndexEntry>,
        /// How much of the segment they know: less than was asked for if it is damaged there.
        covered_bytes: u64,
    },
}

impl std::fmt::Debug for IndexBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(bytes) => write!(f, "File({} bytes)", (**bytes).as_ref().len()),
            Self::Built { entries, .. } => write!(f, "Built({} entries)", entries.len()),
        }
    }
}

/// What kind of failure it was, typed where the errno enters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskErrorKind {
    /// No space, or a quota is used up.
    Full,
    /// As many files are open as may be.
    TooManyFiles,
    /// No such file.
    NotFound,
    /// The file's contents are not what they must be.
    Corrupt,
    /// Anything else, with its errno.
    Os(i32),
}

/// Whether an errno of a read says that what was to be read is lost on its device or in its file system. Any other
/// is about the host, which lacks something, or the broker.
pub fn is_unreadable(errno: i32) -> bool {
    // The last three: a checksum of the file system or the device, its structure, a device behind a network.
    matches!(
        errno,
        libc::EIO | libc::ENODATA | libc::EBADMSG | libc::EUCLEAN | libc::EREMOTEIO
    )
}

/// A failed operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskError {
    /// What kind of failure.
    pub kind: DiskErrorKind,
    /// What was tried, on which file, and the system's words.
    pub message: String,
}

impl DiskError {
    /// Types an errno.
    pub fn from_errno(errno: i32, message: String) -> Self {
        let kind = match errno {
            libc::ENOSPC | libc::EDQUOT => DiskErrorKind::Full,
            libc::EMFILE | libc::ENFILE => DiskErrorKind::TooManyFiles,
            libc::ENOENT => DiskErrorKind::NotFound,
            other => DiskErrorKind::Os(other),
        };
        Self { kind, message }
    }

    /// Whether it is for want of something that others may give back; the operation can be repeated.
    pub fn is_shortage(&self) -> bool {
        matches!(self.kind, DiskErrorKind::Full | DiskErrorKind::TooManyFiles)
    }

    /// Of a read: whether what was to be read is lost ([`is_unreadable`]).
    pub fn is_unreadable(&self) -> bool {
        matches!(self.kind, DiskErrorKind::Os(errno) if is_unreadable(errno))
    }
}
