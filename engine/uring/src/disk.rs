//! Disk operations of the logic: writes, syncs and reads on the ring, the rest as jobs.
#![expect(
    unsafe_code,
    reason = "buffers given to the ring; a slot owns them until the completion"
)]

use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::{opcode, types};
use ringtide_io::{Chunk, DiskDone, DiskError, DiskErrorKind, DiskOp, FileId, OpId, Slice};
use ringtide_schema::limits::BLOCK_BYTES;

use crate::files::{Files, OpenFile, failed};
use crate::jobs::{Job, Jobs, Outcome};
use crate::ring::{Completion, Ring};
use crate::token::{Kind, Token};

/// What a slot owns while the kernel works on it.
enum Work {
    Write {
        data: Slice,
        position: u64,
        done: usize,
    },
    Sync,
    Read {
        chunk: Chunk,
        position: u64,
        /// Still to read.
        left: usize,
        done: usize,
    },
}

struct Pending {
    op: OpId,
    file: Arc<OpenFile>,
    work: Work,
    since_ns: u64,
}

/// A write that takes longer than this is late.
const LATE_WRITE_NS: u64 = 1_000_000;
/// So is anything else that takes longer than this: a sync, a read, and jobs of which none ends.
const LATE_NS: u64 = 20_000_000;

type Ended = (OpId, Result<DiskDone, DiskError>);

/// The disk side of a shard.
pub(crate) struct Disk {
    pub files: Files,
    pub jobs: Jobs,
    slots: Vec<Option<Pending>>,
    free: Vec<u32>,
    /// Ended without the kernel: operations on files that are not open, empty reads.
    pub ended: Vec<Ended>,
}

impl Disk {
    pub fn new(jobs: Jobs) -> Self {
        let files = Files::default();
        Self {
            files,
            jobs,
            slots: Vec::new(),
            free: Vec::new(),
            ended: Vec::new(),
        }
    }

    /// Starts an operation.
    pub fn start(&mut self, op: OpId, what: DiskOp, now_ns: u64, ring: &mut Ring) {
        match what {
            DiskOp::Open { file, path, mode } => {
                self.jobs.start(op, Job::Open { file, path, mode }, now_ns);
            }
            DiskOp::Close { file } => self.files.close(file),
            DiskOp::Write {
                file,
                position,
                data,
            } => {
                let aligned = position.is_multiple_of(BLOCK_BYTES as u64)
                    && data.len().is_multiple_of(BLOCK_BYTES)
                    && !data.is_empty();
                assert!(
                    aligned,
                    "write of {} bytes at {position}: not whole blocks",
                    data.len()
                );
                self.submit(
                    op,
                    file,
                    Work::Write {
                        data,
                        position,
                        done: 0,
                    },
                    now_ns,
                    ring,
                );
            }
            DiskOp::Sync { file } => self.submit(op, file, Work::Sync, now_ns, ring),
            DiskOp::Read {
                file,
                position,
                bytes,
                mut into,
            } => {
                let (_, room) = into.spare();
                assert!(bytes <= room, "read of {bytes} bytes into {room}");
                if bytes == 0 {
                    self.ended.push((
                        op,
                        Ok(DiskDone::Read {
                            chunk: into,
                            bytes: 0,
                        }),
                    ));
                    return;
                }
                let work = Work::Read {
                    chunk: into,
                    position,
                    left: bytes,
                    done: 0,
                };
                self.submit(op, file, work, now_ns, ring);
            }
            DiskOp::Seal {
                file,
                bytes,
                index_path,
                index,
            } => match self.files.get(file) {
                Some(file) => {
                    let file = file.clone();
                    self.jobs.start(
                        op,
                        Job::Seal {
                            file,
                            bytes,
                            index_path,
                            index,
                        },
                        now_ns,
                    );
                }
                None => self.ended.push((op, Err(not_open(file)))),
            },
            DiskOp::LoadIndex {
                index_path,
                log_path,
                base_offset,
                bytes,
                tail,
                next_offset,
                keep,
            } => {
                self.jobs.start(
                    op,
                    Job::LoadIndex {
                        index_path,
                        log_path,
                        base_offset,
                        bytes,
                        tail,
                        next_offset,
                        keep,
                    },
                    now_ns,
                );
            }
            DiskOp::Replace { path, contents } => {
                self.jobs.start(op, Job::Replace { path, contents }, now_ns);
            }
            DiskOp::Remove {
                paths,
                and_directory,
            } => {
                self.jobs.start(
                    op,
                    Job::Remove {
                        paths,
                        and_directory,
                    },
                    now_ns,
                );
            }
            DiskOp::CreateSlot { path, bytes } => {
                self.jobs.start(op, Job::CreateSlot { path, bytes }, now_ns);
            }
        }
    }

    /// Whether the kernel works on anything.
    pub fn is_working(&self) -> bool {
        self.free.len() < self.slots.len()
    }

    /// Whether anything takes so long that it may wait for a thread that does not get the core.
    pub fn is_late(&self, now_ns: u64) -> bool {
        let is_late = |pending: &Pending| {
            let patience_ns = match pending.work {
                Work::Write { .. } => LATE_WRITE_NS,
                Work::Sync | Work::Read { .. } => LATE_NS,
            };
            pending.since_ns + patience_ns <= now_ns
        };
        self.slots.iter().flatten().any(is_late)
            || self.jobs.under_way() > 0 && self.jobs.moved_ns() + LATE_NS <= now_ns
    }

    fn submit(&mut self, op: OpId, file: FileId, work: Work, now_ns: u64, ring: &mut Ring) {
        let Some(file) = self.files.get(file).cloned() else {
            self.ended.push((op, Err(not_open(file))));
            return;
        };
        let pending = Pending {
            op,
            file,
            work,
            since_ns: now_ns,
        };
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.slots.push(None);
                self.slots.len() as u32 - 1
            }
        };
        push(self.slots[slot as usize].insert(pending), slot, ring);
    }

    /// An operation of the ring completed; says so if it ended with that.
    pub fn completed(&mut self, completion: Completion, ring: &mut Ring) -> Option<Ended> {
        let slot = completion.token.slot;
        let mut pending = self.slots[slot as usize]
            .take()
            .expect("completion of an empty slot");
        match pending.advance(completion.result) {
            Progress::Again => {
                push(self.slots[slot as usize].insert(pending), slot, ring);
                None
            }
            Progress::Done => {
                self.free.push(slot);
                let done = match pending.work {
                    Work::Read { chunk, done, .. } => DiskDone::Read { chunk, bytes: done },
                    Work::Write { .. } | Work::Sync => DiskDone::Done,
                };
                Some((pending.op, Ok(done)))
            }
            Progress::Failed(error) => {
                self.free.push(slot);
                Some((pending.op, Err(error)))
            }
        }
    }

    /// The results of jobs that have ended.
    pub fn finished_jobs(&mut self, now_ns: u64) -> Vec<Ended> {
        let mut ended = Vec::new();
        for (op, result) in self.jobs.collect(now_ns) {
            let result = result.map(|outcome| match outcome {
                Outcome::Done => DiskDone::Done,
                Outcome::Index(index) => DiskDone::Index(index),
                Outcome::Opened { id, file, bytes } => {
                    self.files.insert(id, file);
                    DiskDone::Opened { bytes }
                }
            });
            ended.push((op, result));
        }
        ended
    }
}

enum Progress {
    Done,
    Again,
    Failed(DiskError),
}

impl Pending {
    fn advance(&mut self, result: i32) -> Progress {
        let path = &self.file.path;
        if result < 0 {
            if matches!(-result, libc::EINTR | libc::EAGAIN) {
                return Progress::Again;
            }
            let what = match self.work {
                Work::Write { .. } => "write",
                Work::Sync => "sync",
                Work::Read { .. } => "read",
            };
            let error = std::io::Error::from_raw_os_error(-result);
            return Progress::Failed(failed(what, path, &error));
        }
        let moved = result as usize;
        match &mut self.work {
            Work::Sync => Progress::Done,
            Work::Write {
                data,
                position,
                done,
            } => {
                let retried = *done > 0;
                *done += moved;
                if *done == data.len() {
                    Progress::Done
                } else if !retried && moved > 0 && moved.is_multiple_of(BLOCK_BYTES) {
                    Progress::Again
                } else {
                    let (done, all) = (*done, data.len());
                    Progress::Failed(DiskError {
                        kind: DiskErrorKind::Os(libc::EIO),
                        message: format!(
                            "short write to {}: {done} of {all} bytes at {position}",
                            path.display()
                        ),
                    })
                }
            }
            Work::Read {
                chunk, left, done, ..
            } => {
                chunk.filled(moved);
                *done += moved;
                *left -= moved;
                if moved == 0 || *left == 0 {
                    Progress::Done
                } else {
                    Progress::Again
                }
            }
        }
    }
}

/// Gives what is left of the work to the ring.
fn push(pending: &mut Pending, slot: u32, ring: &mut Ring) {
    let fd = types::Fd(pending.file.file.as_raw_fd());
    let entry = match &mut pending.work {
        Work::Write {
            data,
            position,
            done,
        } => {
            let rest = &data[*done..];
            opcode::Write::new(fd, rest.as_ptr(), rest.len() as u32)
                .offset(*position + *done as u64)
                .build()
        }
        Work::Sync => opcode::Fsync::new(fd)
            .flags(types::FsyncFlags::DATASYNC)
            .build(),
        Work::Read {
            chunk,
            position,
            left,
            done,
        } => {
            let (address, room) = chunk.spare();
            let bytes = (*left).min(room);
            opcode::Read::new(fd, address, bytes as u32)
                .offset(*position + *done as u64)
                .build()
        }
    };
    // SAFETY: the slot owns the slice or chunk and the open file until the completion is
    // collected: `completed` is the only one that takes them out.
    unsafe { ring.push(entry, Token::new(Kind::Disk, slot, 0)) };
}

fn not_open(file: FileId) -> DiskError {
    DiskError {
        kind: DiskErrorKind::Os(libc::EBADF),
        message: format!("{file:?} is not open"),
    }
}
