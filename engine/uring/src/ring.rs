//! The ring: submitting never drops, collecting never loses.
//!
//! Set up for one thread that polls: completions are made when this thread enters the kernel
//! (DEFER_TASKRUN), and a flag in shared memory says when entering is worth it (TASKRUN_FLAG), so
//! that an idle look costs no system call.
#![expect(
    unsafe_code,
    reason = "the kernel's interface; each block says what keeps it sound"
)]

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue, types};

use crate::memory::ReceiveBuffers;
use crate::token::{Kind, Token};

/// The group number of the receive buffers.
pub(crate) const RECEIVE_GROUP: u16 = 0;

/// A collected completion.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Completion {
    pub token: Token,
    /// As the system call would have returned it; negative is an errno.
    pub result: i32,
    flags: u32,
}

impl Completion {
    /// Whether the operation goes on and will complete again.
    pub fn more(&self) -> bool {
        cqueue::more(self.flags)
    }

    /// The receive buffer that was taken.
    pub fn buffer(&self) -> Option<u16> {
        cqueue::buffer_select(self.flags)
    }
}

pub(crate) struct Ring {
    io: IoUring,
    /// Entries pushed but not submitted.
    queued: usize,
    /// Operations whose last completion was not collected.
    outstanding: usize,
    /// Entries that found both the queue full and the kernel unwilling; submitted first of all.
    spill: VecDeque<squeue::Entry>,
    /// How it sleeps.
    wait_flags: u32,
}

impl Ring {
    /// A ring for the calling thread only.
    pub fn new(entries: u32, completion_entries: u32) -> io::Result<Self> {
        let io = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_clamp()
            .setup_cqsize(completion_entries.max(entries.saturating_mul(2)))
            .build(entries)?;
        let mut wait_flags = EnterFlags::GETEVENTS | EnterFlags::EXT_ARG;
        if io.params().is_feature_no_iowait() {
            // A shard that waits for its peers is idle, not waiting for a disk.
            wait_flags |= EnterFlags::NO_IOWAIT;
        }
        let wait_flags = wait_flags.bits();
        Ok(Self {
            io,
            queued: 0,
            outstanding: 0,
            spill: VecDeque::new(),
            wait_flags,
        })
    }

    /// Bounds the kernel's worker threads for this ring, and keeps them on `cpus` if there are any.
    pub fn bound_workers(&self, [bounded, unbounded]: [u32; 2], cpus: &[usize]) -> io::Result<()> {
        let submitter = self.io.submitter();
        submitter.register_iowq_max_workers(&mut [bounded.max(1), unbounded.max(1)])?;
        if cpus.is_empty() {
            return Ok(());
        }
        // SAFETY: a cpu_set_t is a plain bit set, for which all zeros is the empty set; CPU_SET
        // checks the number's bound itself.
        let set = unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            for &cpu in cpus {
                libc::CPU_SET(cpu, &mut set);
            }
            set
        };
        submitter.register_iowq_aff(&set)
    }

    /// Registers receive buffers as group [`RECEIVE_GROUP`].
    ///
    /// # Safety
    /// The buffers live until the ring is gone.
    pub unsafe fn register_buffers(&self, buffers: &ReceiveBuffers) -> io::Result<()> {
        let (address, entries) = buffers.registration();
        // SAFETY: address and length are those of the entries' mapping; that it lives long enough
        // is the caller's promise.
        unsafe {
            self.io
                .submitter()
                .register_buf_ring_with_flags(address, entries, RECEIVE_GROUP, 0)
        }
    }

    /// Queues an operation; it is submitted by the next [`Self::enter`] at the latest.
    ///
    /// # Safety
    /// What the entry points to stays valid, and unshared where the kernel writes, until the
    /// operation's last completion was collected.
    pub unsafe fn push(&mut self, entry: squeue::Entry, token: Token) {
        let entry = entry.user_data(token.pack());
        self.outstanding += 1;
        if self.spill.is_empty() && self.queue(&entry) {
            return;
        }
        // Full: make room. An error shows again at the turn's own enter.
        let _ = self.enter();
        if !(self.spill.is_empty() && self.queue(&entry)) {
            self.spill.push_back(entry);
        }
    }

    fn queue(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: by the contract of `push`, through which every entry came.
        let queued = unsafe { self.io.submission().push(entry) }.is_ok();
        self.queued += usize::from(queued);
        queued
    }

    /// Cancels the operation with this token. Its completion follows, as cancelled or not.
    pub fn cancel(&mut self, token: Token) {
        let entry = opcode::AsyncCancel::new(token.pack()).build();
        // SAFETY: the entry points to nothing.
        unsafe {
            self.push(
                entry,
                Token::new(Kind::Cancel, token.slot, token.generation),
            )
        };
    }

    /// Cancels everything.
    pub fn cancel_all(&mut self) {
        let entry = opcode::AsyncCancel2::new(types::CancelBuilder::any().all()).build();
        // SAFETY: the entry points to nothing.
        unsafe { self.push(entry, Token::new(Kind::Cancel, 0, 0)) };
    }

    /// Whether entering would do anything.
    pub fn wants_enter(&mut self) -> bool {
        if self.queued > 0 || !self.spill.is_empty() {
            return true;
        }
        let submission = self.io.submission();
        submission.taskrun() || submission.cq_overflow()
    }

    /// Operations whose last completion was not collected yet.
    pub fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Submits all that is queued and lets the kernel make the completions that are due.
    pub fn enter(&mut self) -> io::Result<()> {
        loop {
            while let Some(entry) = self.spill.pop_front() {
                if !self.queue(&entry) {
                    self.spill.push_front(entry);
                    break;
                }
            }
            let flags = EnterFlags::GETEVENTS.bits();
            // SAFETY: no argument is passed; the queue's entries are valid by `push`.
            let result = unsafe {
                self.io
                    .submitter()
                    .enter::<libc::sigset_t>(self.queued as u32, 0, flags, None)
            };
            match result {
                Ok(submitted) => {
                    self.queued = self.queued.saturating_sub(submitted);
                    if self.spill.is_empty() || submitted == 0 {
                        return Ok(());
                    }
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    // Completions must be collected first; what is queued stays queued.
                    Some(libc::EAGAIN | libc::EBUSY) => return Ok(()),
                    _ => return Err(error),
                },
            }
        }
    }

    /// Submits what is queued and sleeps until a completion is there or `timeout` has passed.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        if self.wants_enter() {
            self.enter()?;
        }
        if !self.io.completion().is_empty() {
            return Ok(());
        }
        let time = timeout.map(|t| Timespec::new().sec(t.as_secs()).nsec(t.subsec_nanos()));
        let args = match &time {
            Some(time) => SubmitArgs::new().timespec(time),
            None => SubmitArgs::new(),
        };
        // SAFETY: with EXT_ARG the argument is the structure that is passed, and it outlives the
        // call, as does the time that it points to.
        match unsafe {
            self.io
                .submitter()
                .enter(0, 1, self.wait_flags, Some(&args))
        } {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR | libc::ETIME | libc::EAGAIN | libc::EBUSY) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Moves all completions to `into`.
    pub fn collect(&mut self, into: &mut Vec<Completion>) {
        let before = into.len();
        into.extend(self.io.completion().map(|entry| Completion {
            token: Token::unpack(entry.user_data()),
            result: entry.result(),
            flags: entry.flags(),
        }));
        let ended = into[before..]
            .iter()
            .filter(|completion| !completion.more())
            .count();
        assert!(
            ended <= self.outstanding,
            "more completions than operations"
        );
        self.outstanding -= ended;
    }
}
