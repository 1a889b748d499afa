//! Sockets as the logic sees them: connections with one egress operation each.

use smallvec::SmallVec;

use crate::buffer::Slice;
use crate::disk::FileId;

/// A connection of one shard. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u64);

/// What the driver is to do with a connection.
#[derive(Debug)]
pub enum NetOp {
    /// Send this. The logic gives the next one only after [`crate::Logic::sent`].
    Send(ConnId, Egress),
    /// Stop receiving; what was received already is still delivered.
    Pause(ConnId),
    /// Receive again.
    Resume(ConnId),
    /// Close once the egress under way is sent; [`crate::Logic::disconnected`] follows.
    Close(ConnId),
    /// Close at once, unsent egress is dropped; [`crate::Logic::disconnected`] follows.
    Abort(ConnId),
}

/// One thing to send: bytes of the logic's own, then a body.
#[derive(Debug, Default)]
pub struct Egress {
    /// Whole frames, or the header and envelope of the body's frame.
    pub head: Vec<u8>,
    /// What follows it.
    pub body: Body,
}

/// Slices of a body: a tail that is close behind has one or two.
pub type Slices = SmallVec<[Slice; 2]>;

/// What follows an egress head.
#[derive(Debug, Default)]
pub enum Body {
    /// Nothing.
    #[default]
    Nothing,
    /// Memory, in order; at most [`MAX_SLICES`] of them.
    Memory(Slices),
    /// A range of a file opened with [`crate::OpenMode::Read`]. A file shorter than promised
    /// disconnects.
    File {
        /// The file.
        file: FileId,
        /// First byte.
        position: u64,
        /// Number of bytes.
        bytes: usize,
    },
}

/// The most slices in one egress (well below the kernel's bound of 1,024 vectors).
pub const MAX_SLICES: usize = 512;

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disconnect {
    /// The peer closed its side.
    Peer,
    /// The logic asked for it.
    Asked,
    /// The socket failed, with this errno.
    Error(i32),
    /// A file was shorter than the range to send.
    FileTooShort,
    /// A file range could not be read, with this errno.
    File(i32),
}
