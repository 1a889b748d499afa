//! What leaves a socket: one egress at a time, one operation of it under way.
//!
//! ```text
//! head, memory   send(msg) ──► the rest, if short ──► sent
//! file, copied   take a buffer ──► read what is cached ──► read the rest on the ring
//!                  ──► sendmsg(head + buffer) ──► next piece, or sent
//! file, sendfile cached? ──no──► read ahead on the ring ──┐
//!                  └────────────────► head, MSG_MORE ◄────┘
//!                  ──► sendfile ──► wait for room, next piece, or sent
//! ```
//!
//! Nothing here blocks: what is not in the page cache is read by the ring first.
#![expect(
    unsafe_code,
    reason = "memory given to the ring; the egress owns it until the completion"
)]

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use io_uring::{opcode, types};
use ringtide_io::{Body, Disconnect, Egress};

use crate::files::{Files, OpenFile};
use crate::memory::{FILE_BUFFER_BYTES, FileBuffer, FileBuffers};
use crate::ring::Ring;
use crate::token::{Kind, Token};

/// How ranges of files reach a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileWay {
    Copy,
    Sendfile,
}

/// What is to happen next with an egress.
pub(crate) enum Step {
    /// The kernel works on it.
    Waiting,
    /// It can go on, but others first.
    Again,
    /// It needs a file buffer, and there is none.
    Starved,
    /// It was sent whole.
    Sent(Egress),
    /// It failed; the connection cannot be used any more.
    Failed(Disconnect),
}

/// The egress of one connection. It does not move while an operation is under way.
pub(crate) struct Outgoing {
    egress: Option<Egress>,
    /// Bytes of head and memory sent.
    sent: usize,
    file: Option<FileRange>,
    under_way: Option<Kind>,
    vectors: Vec<libc::iovec>,
    message: libc::msghdr,
}

struct FileRange {
    file: Arc<OpenFile>,
    way: FileWay,
    position: u64,
    /// Bytes of the range that the socket did not take yet.
    left: usize,
    buffer: Option<FileBuffer>,
    /// Bytes in the buffer, and how many of them were sent.
    filled: usize,
    sent: usize,
    /// Sendfile: this far the page cache was seen to hold, or was just filled.
    cached_to: u64,
}

impl Default for Outgoing {
    fn default() -> Self {
        // SAFETY: a msghdr is numbers and pointers; all zeros is the empty message.
        let message = unsafe { std::mem::zeroed() };
        let vectors = Vec::with_capacity(2);
        Self {
            egress: None,
            sent: 0,
            file: None,
            under_way: None,
            vectors,
            message,
        }
    }
}

const SEND_FLAGS: i32 = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;

impl Outgoing {
    /// Whether there is nothing to send.
    pub fn is_idle(&self) -> bool {
        self.egress.is_none()
    }

    /// The kind of the operation under way.
    pub fn under_way(&self) -> Option<Kind> {
        self.under_way
    }

    /// The operation's completion was collected.
    pub fn collected(&mut self, kind: Kind) {
        assert_eq!(
            self.under_way.take(),
            Some(kind),
            "an egress has one operation under way"
        );
    }

    /// Gives back what it holds.
    pub fn release(&mut self, buffers: &mut FileBuffers) {
        assert!(
            self.under_way.is_none(),
            "egress released under the kernel's hands"
        );
        if let Some(buffer) = self.file.take().and_then(|file| file.buffer) {
            buffers.give(buffer);
        }
        self.egress = None;
    }

    /// Takes an egress and starts it.
    ///
    /// # Panics
    /// If there is one already.
    #[expect(
        clippy::too_many_arguments,
        reason = "the parts of a connection, borrowed apart"
    )]
    pub fn begin(
        &mut self,
        egress: Egress,
        way: FileWay,
        files: &Files,
        fd: RawFd,
        token: Token,
        ring: &mut Ring,
        buffers: &mut FileBuffers,
    ) -> Step {
        assert!(
            self.egress.is_none(),
            "a second egress before the first was sent"
        );
        self.sent = 0;
        self.file = None;
        if let Body::File {
            file,
            position,
            bytes,
        } = &egress.body
        {
            let Some(open) = files.get(*file) else {
                return Step::Failed(Disconnect::File(libc::EBADF));
            };
            self.file = (*bytes > 0).then(|| FileRange {
                file: open.clone(),
                way,
                position: *position,
                left: *bytes,
                buffer: None,
                filled: 0,
                sent: 0,
                cached_to: *position,
            });
        }
        self.egress = Some(egress);
        if self.memory_left() == 0 {
            // What could end at once waits for the next turn, so that nothing ends in here.
            return Step::Again;
        }
        self.go(fd, token, ring, buffers)
    }

    /// Goes on after a completion (its kind and result), or when asked to.
    pub fn step(
        &mut self,
        completion: Option<(Kind, i32)>,
        fd: RawFd,
        token: Token,
        ring: &mut Ring,
        buffers: &mut FileBuffers,
    ) -> Step {
        match completion {
            None | Some((_, 0)) if self.egress.is_none() => return Step::Waiting,
            None => {}
            Some((kind, result)) if result < 0 => {
                let again = matches!(-result, libc::EINTR | libc::EAGAIN);
                match kind {
                    _ if again => {}
                    Kind::FileRead => return Step::Failed(Disconnect::File(-result)),
                    _ => return Step::Failed(Disconnect::Error(-result)),
                }
            }
            Some((Kind::Send, sent)) => self.took(sent as usize),
            Some((Kind::FileRead, 0)) => return Step::Failed(Disconnect::FileTooShort),
            Some((Kind::FileRead, read)) => self.was_read(read as usize, buffers),
            Some(_) => {}
        }
        self.go(fd, token, ring, buffers)
    }

    /// The socket took bytes: first of head and memory, then of the file's buffer.
    fn took(&mut self, bytes: usize) {
        let memory = bytes.min(self.memory_left());
        self.sent += memory;
        if bytes > memory {
            let file = self.file.as_mut().expect("more was sent than there is");
            file.sent += bytes - memory;
            file.position += (bytes - memory) as u64;
            file.left -= bytes - memory;
            assert!(file.sent <= file.filled, "more was sent than there is");
        }
    }

    fn was_read(&mut self, bytes: usize, buffers: &mut FileBuffers) {
        let file = self.file.as_mut().expect("a read belongs to a file");
        match file.way {
            FileWay::Copy => file.filled += bytes,
            FileWay::Sendfile => {
                file.cached_to += bytes as u64;
                if let Some(buffer) = file.buffer.take() {
                    buffers.give(buffer);
                }
            }
        }
    }

    fn memory_bytes(&self) -> usize {
        let Some(egress) = &self.egress else { return 0 };
        let body = match &egress.body {
            Body::Memory(slices) => slices.iter().map(|slice| slice.len()).sum(),
            Body::Nothing | Body::File { .. } => 0,
        };
        egress.head.len() + body
    }

    fn memory_left(&self) -> usize {
        self.memory_bytes() - self.sent
    }

    fn go(&mut self, fd: RawFd, token: Token, ring: &mut Ring, buffers: &mut FileBuffers) -> Step {
        match self.file.as_ref().map(|file| (file.way, file.left)) {
            None if self.memory_left() == 0 => self.sent_whole(buffers),
            None => self.send(fd, token, ring, buffers),
            Some((_, 0)) => self.sent_whole(buffers),
            Some((FileWay::Copy, _)) => self.go_copying(fd, token, ring, buffers),
            Some((FileWay::Sendfile, _)) => self.go_sendfile(fd, token, ring, buffers),
        }
    }

    fn sent_whole(&mut self, buffers: &mut FileBuffers) -> Step {
        let egress = self.egress.take().expect("something was sent");
        self.release(buffers);
        Step::Sent(egress)
    }

    /// Sends what is left of head and memory, and what is in the file's buffer.
    fn send(&mut self, fd: RawFd, token: Token, ring: &mut Ring, buffers: &FileBuffers) -> Step {
        let egress = self.egress.as_ref().expect("an egress is being sent");
        let mut skip = self.sent;
        self.vectors.clear();
        let mut add = |bytes: &[u8]| {
            let from = skip.min(bytes.len());
            skip -= from;
            let rest = &bytes[from..];
            if !rest.is_empty() {
                let base = rest.as_ptr().cast_mut().cast();
                self.vectors.push(libc::iovec {
                    iov_base: base,
                    iov_len: rest.len(),
                });
            }
        };
        add(&egress.head);
        if let Body::Memory(slices) = &egress.body {
            slices.iter().for_each(|slice| add(slice));
        }
        let mut flags = SEND_FLAGS;
        match &self.file {
            Some(FileRange {
                way: FileWay::Sendfile,
                ..
            }) => flags |= libc::MSG_MORE,
            Some(FileRange {
                buffer: Some(buffer),
                filled,
                sent,
                ..
            }) if filled > sent => {
                let base = buffers.address(buffer).wrapping_add(*sent).cast();
                self.vectors.push(libc::iovec {
                    iov_base: base,
                    iov_len: filled - sent,
                });
            }
            _ => {}
        }
        let entry = if let [vector] = self.vectors[..] {
            opcode::Send::new(types::Fd(fd), vector.iov_base.cast_const().cast(), {
                u32::try_from(vector.iov_len).unwrap_or(u32::MAX)
            })
            .flags(flags)
            .build()
        } else {
            self.message.msg_iov = self.vectors.as_mut_ptr();
            self.message.msg_iovlen = self.vectors.len();
            opcode::SendMsg::new(types::Fd(fd), &raw const self.message)
                .flags(flags as u32)
                .build()
        };
        // SAFETY: head, slices, buffer, vectors and message belong to this egress, which neither
        // moves (it is boxed) nor lets go of them before the completion was collected.
        unsafe {
            ring.push(
                entry,
                Token {
                    kind: Kind::Send,
                    ..token
                },
            )
        };
        self.under_way = Some(Kind::Send);
        Step::Waiting
    }

    fn go_copying(
        &mut self,
        fd: RawFd,
        token: Token,
        ring: &mut Ring,
        buffers: &mut FileBuffers,
    ) -> Step {
        let file = self.file.as_mut().expect("a file is being copied");
        if file.sent == file.filled && file.sent > 0 {
            // This piece is through.
            (file.filled, file.sent) = (0, 0);
        }
        // While a piece is being sent it is complete: `left` counts what the socket did not take.
        let piece = (file.sent + file.left).min(FILE_BUFFER_BYTES);
        if file.filled < piece && file.sent == 0 {
            if file.buffer.is_none() {
                file.buffer = buffers.take();
            }
            let Some(buffer) = &file.buffer else {
                return Step::Starved;
            };
            let address = buffers.address(buffer).wrapping_add(file.filled);
            let (missing, from) = (piece - file.filled, file.position + file.filled as u64);
            // SAFETY: `missing` bytes from `address` lie inside the buffer, which this egress owns.
            let read = unsafe { read_if_cached(&file.file, address, missing, from) };
            file.filled += read;
            if read < missing {
                let address = address.wrapping_add(read);
                let rest = (missing - read) as u32;
                let entry = read_entry(&file.file, address, rest, from + read as u64);
                // SAFETY: buffer and file belong to this egress until the completion was
                // collected.
                unsafe {
                    ring.push(
                        entry,
                        Token {
                            kind: Kind::FileRead,
                            ..token
                        },
                    )
                };
                self.under_way = Some(Kind::FileRead);
                return Step::Waiting;
            }
        }
        self.send(fd, token, ring, buffers)
    }

    fn go_sendfile(
        &mut self,
        fd: RawFd,
        token: Token,
        ring: &mut Ring,
        buffers: &mut FileBuffers,
    ) -> Step {
        let file = self.file.as_mut().expect("a file is being sent");
        let piece = file.left.min(FILE_BUFFER_BYTES);
        let piece_end = file.position + piece as u64;
        if file.cached_to < piece_end {
            match is_cached(&file.file, file.position, piece) {
                Some(true) => file.cached_to = piece_end,
                Some(false) => {
                    // Reading it through the ring fills the page cache.
                    if file.buffer.is_none() {
                        file.buffer = buffers.take();
                    }
                    let Some(buffer) = &file.buffer else {
                        return Step::Starved;
                    };
                    let from = file.cached_to.max(file.position);
                    file.cached_to = from;
                    let bytes = (piece_end - from) as u32;
                    let entry = read_entry(&file.file, buffers.address(buffer), bytes, from);
                    // SAFETY: buffer and file belong to this egress until the completion was
                    // collected.
                    unsafe {
                        ring.push(
                            entry,
                            Token {
                                kind: Kind::FileRead,
                                ..token
                            },
                        )
                    };
                    self.under_way = Some(Kind::FileRead);
                    return Step::Waiting;
                }
                // The kernel cannot tell: sendfile could block the core.
                None => {
                    file.way = FileWay::Copy;
                    return self.go_copying(fd, token, ring, buffers);
                }
            }
        }
        if self.memory_left() > 0 {
            return self.send(fd, token, ring, buffers);
        }
        let file = self.file.as_mut().expect("a file is being sent");
        match sendfile(fd, &file.file, file.position, piece) {
            Ok(0) => Step::Failed(Disconnect::FileTooShort),
            Ok(sent) => {
                file.position += sent as u64;
                file.left -= sent;
                if file.left == 0 {
                    self.sent_whole(buffers)
                } else {
                    Step::Again
                }
            }
            Err(error) => match error.raw_os_error().unwrap_or(libc::EIO) {
                libc::EINTR => Step::Again,
                libc::EAGAIN => {
                    // Pages may be evicted while it waits.
                    file.cached_to = file.position;
                    let entry = opcode::PollAdd::new(types::Fd(fd), libc::POLLOUT as u32).build();
                    // SAFETY: the entry points to no memory.
                    unsafe {
                        ring.push(
                            entry,
                            Token {
                                kind: Kind::Writable,
                                ..token
                            },
                        )
                    };
                    self.under_way = Some(Kind::Writable);
                    Step::Waiting
                }
                errno => Step::Failed(Disconnect::Error(errno)),
            },
        }
    }
}

fn read_entry(file: &OpenFile, to: *mut u8, bytes: u32, from: u64) -> io_uring::squeue::Entry {
    opcode::Read::new(types::Fd(file.file.as_raw_fd()), to, bytes)
        .offset(from)
        .build()
}

/// Reads what the page cache holds at the start of the range; never waits for the disk.
///
/// # Safety
/// `bytes` bytes from `to` may be written.
unsafe fn read_if_cached(file: &OpenFile, to: *mut u8, bytes: usize, from: u64) -> usize {
    let vector = libc::iovec {
        iov_base: to.cast(),
        iov_len: bytes,
    };
    let fd = file.file.as_raw_fd();
    // SAFETY: one vector, whose memory the caller vouches for. A failure of any kind leaves it to
    // the ring, which reports it.
    let read = unsafe { libc::preadv2(fd, &raw const vector, 1, from as i64, libc::RWF_NOWAIT) };
    usize::try_from(read).unwrap_or(0)
}

/// Whether all pages of a range are in the page cache; absent if the kernel cannot tell.
fn is_cached(file: &OpenFile, from: u64, bytes: usize) -> Option<bool> {
    const CACHESTAT: libc::c_long = 451;
    const PAGE: u64 = 4096;
    #[repr(C)]
    struct Range {
        offset: u64,
        length: u64,
    }
    #[repr(C)]
    #[derive(Default)]
    struct Pages {
        cached: u64,
        dirty: u64,
        writeback: u64,
        evicted: u64,
        recently_evicted: u64,
    }
    let first = from / PAGE;
    let end = (from + bytes as u64).div_ceil(PAGE);
    let range = Range {
        offset: first * PAGE,
        length: (end - first) * PAGE,
    };
    let mut pages = Pages::default();
    // SAFETY: both structures are laid out as the system call has them, and outlive the call.
    let result = unsafe {
        libc::syscall(
            CACHESTAT,
            file.file.as_raw_fd(),
            &raw const range,
            &raw mut pages,
            0 as libc::c_uint,
        )
    };
    (result == 0).then_some(pages.cached >= end - first)
}

/// Sends a cached range to a socket that does not block.
fn sendfile(socket: RawFd, file: &OpenFile, from: u64, bytes: usize) -> io::Result<usize> {
    let mut offset = from as libc::off_t;
    // SAFETY: the offset is a local; both descriptors are open.
    let sent = unsafe { libc::sendfile(socket, file.file.as_raw_fd(), &raw mut offset, bytes) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}
