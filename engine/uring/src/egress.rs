//! What leaves a socket: one egress at a time, one operation of it under way.
//!
//! ```text
//! head, memory    send(msg) on the ring ──► the rest, if short ──► sent
//! head, file      send(head, MSG_MORE) ──► per piece:
//!      sendfile     cached? ──no──► read ahead on the ring ─┐
//!                      └──────────► sendfile ◄──────────────┘
//!      copied       take a buffer ──► read what is cached, or on the ring ──► send ──► give it back
//!                 ──► wait for room, next piece, or sent
//! ```
//!
//! Nothing here blocks: what is not in the page cache is read by the ring first. A buffer is held
//! while the disk is read, never while a peer makes us wait.
#![expect(
    unsafe_code,
    reason = "memory given to the ring; the egress owns it until the completion"
)]

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use io_uring::{opcode, types};
use ringtide_io::{Body, Disconnect, Egress, is_unreadable};

use crate::config::CatchUp;
use crate::files::{Files, OpenFile};
use crate::memory::{FILE_BUFFER_BYTES, FileBuffer, FileBuffers};
use crate::ring::Ring;
use crate::token::{Kind, Token};

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
    way: CatchUp,
    position: u64,
    /// Bytes of the range that the socket did not take yet.
    left: usize,
    /// Held from before a piece is read until the socket was offered it.
    buffer: Option<FileBuffer>,
    /// Bytes from `position` on that the ring has just read: into the buffer if copied, into the
    /// page cache for sendfile.
    fetched: usize,
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
        way: CatchUp,
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
                fetched: 0,
            });
        }
        self.egress = Some(egress);
        if self.memory_left() == 0 || self.file.is_some() {
            // What could end at once waits for the next turn, so that nothing ends in here.
            return Step::Again;
        }
        self.send_rest(fd, token, ring, buffers)
    }

    /// Goes on after a completion (its kind and result), or when asked to; `allowance` is how much
    /// of files may be sent, and is drawn from.
    pub fn step(
        &mut self,
        completion: Option<(Kind, i32)>,
        fd: RawFd,
        token: Token,
        ring: &mut Ring,
        buffers: &mut FileBuffers,
        allowance: &mut usize,
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
            Some((Kind::Send, sent)) => self.sent += sent as usize,
            Some((Kind::FileRead, 0)) => return Step::Failed(Disconnect::FileTooShort),
            Some((Kind::FileRead, read)) => {
                if let Some(file) = &mut self.file {
                    file.fetched = read as usize;
                    if file.way == CatchUp::Sendfile {
                        file.buffer.take().into_iter().for_each(|b| buffers.give(b));
                    }
                }
            }
            Some(_) => {}
        }
        if self.file.is_none() {
            self.send_rest(fd, token, ring, buffers)
        } else if completion.is_some() {
            // Behind those who are ready already.
            Step::Again
        } else {
            self.go_file(fd, token, ring, buffers, allowance)
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

    fn send_rest(
        &mut self,
        fd: RawFd,
        token: Token,
        ring: &mut Ring,
        buffers: &mut FileBuffers,
    ) -> Step {
        if self.memory_left() > 0 {
            self.send(fd, token, ring)
        } else {
            self.sent_whole(buffers)
        }
    }

    fn sent_whole(&mut self, buffers: &mut FileBuffers) -> Step {
        let egress = self.egress.take().expect("something was sent");
        self.release(buffers);
        Step::Sent(egress)
    }

    /// Sends what is left of head and memory.
    fn send(&mut self, fd: RawFd, token: Token, ring: &mut Ring) -> Step {
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
        let entry = if let [vector] = self.vectors[..] {
            opcode::Send::new(types::Fd(fd), vector.iov_base.cast_const().cast(), {
                u32::try_from(vector.iov_len).unwrap_or(u32::MAX)
            })
            .flags(SEND_FLAGS)
            .build()
        } else {
            self.message.msg_iov = self.vectors.as_mut_ptr();
            self.message.msg_iovlen = self.vectors.len();
            opcode::SendMsg::new(types::Fd(fd), &raw const self.message)
                .flags(SEND_FLAGS as u32)
                .build()
        };
        // SAFETY: head, slices, vectors and message belong to this egress, which neither moves (it
        // is boxed) nor lets go of them before the completion was collected.
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

    /// Sends the head, then one piece of the file.
    fn go_file(
        &mut self,
        fd: RawFd,
        token: Token,
        ring: &mut Ring,
        buffers: &mut FileBuffers,
        allowance: &mut usize,
    ) -> Step {
        // The head goes by a call of its own rather than through the ring: header and piece are one
        // turn then, not two.
        if let Some(head) = self.head_left() {
            match send_now(fd, head, libc::MSG_MORE) {
                Ok(sent) => self.sent += sent,
                Err(error) => return self.refused(&error, fd, token, ring),
            }
            if self.memory_left() > 0 {
                return Step::Again;
            }
        }
        let file = self.file.as_mut().expect("a file is being sent");
        let whole = file.left.min(FILE_BUFFER_BYTES);
        let mut piece = whole.min(*allowance);
        if file.fetched > 0 {
            piece = piece.min(file.fetched);
        } else if file.way == CatchUp::Sendfile {
            match is_cached(&file.file, file.position, piece) {
                Some(true) => {}
                Some(false) => return self.fetch(whole, token, ring, buffers),
                // The kernel cannot tell: sendfile could block the core.
                None => file.way = CatchUp::Copy,
            }
        }
        let file = self.file.as_mut().expect("a file is being sent");
        let result = match file.way {
            CatchUp::Sendfile => sendfile(fd, &file.file, file.position, piece),
            CatchUp::Copy => {
                let Some(buffer) = file.buffer.take().or_else(|| buffers.take()) else {
                    return Step::Starved;
                };
                let address = buffers.address(&buffer);
                if file.fetched == 0 {
                    // SAFETY: `piece` bytes from `address` lie inside the buffer, which is ours.
                    let cached =
                        unsafe { read_if_cached(&file.file, address, piece, file.position) };
                    if cached == 0 {
                        file.buffer = Some(buffer);
                        return self.fetch(whole, token, ring, buffers);
                    }
                    piece = cached;
                }
                // SAFETY: that many bytes of the buffer were just read into it.
                let bytes = unsafe { std::slice::from_raw_parts(address, piece) };
                let result = send_now(fd, bytes, 0);
                buffers.give(buffer);
                result
            }
        };
        file.fetched = 0;
        match result {
            Ok(0) => Step::Failed(Disconnect::FileTooShort),
            Ok(sent) => {
                file.position += sent as u64;
                file.left -= sent;
                *allowance = allowance.saturating_sub(sent);
                if file.left == 0 {
                    self.sent_whole(buffers)
                } else {
                    Step::Again
                }
            }
            // A page that is in the cache may yet be one that could not be read; no socket says that.
            Err(error) => match error.raw_os_error().filter(|&errno| is_unreadable(errno)) {
                Some(errno) => Step::Failed(Disconnect::File(errno)),
                None => self.refused(&error, fd, token, ring),
            },
        }
    }

    /// Reads a piece on the ring, which fills the page cache as well.
    fn fetch(
        &mut self,
        piece: usize,
        token: Token,
        ring: &mut Ring,
        buffers: &mut FileBuffers,
    ) -> Step {
        let file = self.file.as_mut().expect("a file is being sent");
        if file.buffer.is_none() {
            file.buffer = buffers.take();
        }
        let Some(buffer) = &file.buffer else {
            return Step::Starved;
        };
        let fd = types::Fd(file.file.file.as_raw_fd());
        let entry = opcode::Read::new(fd, buffers.address(buffer), piece as u32)
            .offset(file.position)
            .build();
        let kind = Kind::FileRead;
        // SAFETY: buffer and file belong to this egress until the completion was collected.
        unsafe { ring.push(entry, Token { kind, ..token }) };
        self.under_way = Some(kind);
        Step::Waiting
    }

    /// The head's bytes that a file follows and that were not sent yet.
    fn head_left(&self) -> Option<&[u8]> {
        let head = &self.egress.as_ref()?.head;
        head.get(self.sent..).filter(|left| !left.is_empty())
    }

    /// The socket did not take what a call gave it: waits for room, or fails.
    fn refused(&mut self, error: &io::Error, fd: RawFd, token: Token, ring: &mut Ring) -> Step {
        match error.raw_os_error().unwrap_or(libc::EIO) {
            libc::EINTR => Step::Again,
            libc::EAGAIN => {
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
        }
    }
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
    if result != 0 {
        return None;
    }
    // Pages that are still being read count as cached, and they are read in order: sendfile would
    // wait for the last one.
    let last = from + bytes as u64 - 1;
    let mut byte = 0u8;
    // SAFETY: one byte may be written.
    let mut is_read = || unsafe { read_if_cached(file, &raw mut byte, 1, last) } == 1;
    Some(pages.cached >= end - first && is_read())
}

/// Sends what the socket takes at once.
fn send_now(socket: RawFd, bytes: &[u8], flags: i32) -> io::Result<usize> {
    let flags = flags | libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: the bytes outlive the call.
    let sent = unsafe { libc::send(socket, bytes.as_ptr().cast(), bytes.len(), flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Sends a cached range to a socket that does not block.
fn sendfile(socket: RawFd, file: &OpenFile, from: u64, bytes: usize) -> io::Result<usize> {
    let mut offset = from as libc::off_t;
    // SAFETY: the offset is a local; both descriptors are open.
    let sent = unsafe { libc::sendfile(socket, file.file.as_raw_fd(), &raw mut offset, bytes) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}
