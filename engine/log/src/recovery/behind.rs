//! Writes that go on behind the back of replay: a few threads that write pieces of segments, and
//! in the end make files and directories durable.
//!
//! Writes of one file may finish in any order; nothing is cut or synced before all of them have
//! ([`Behind::settle`]). The first failure is told at the next call and is final. A thread that is
//! watched does the work itself, in order.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::files::{self, AlignedBuf, FileError};

/// Threads. More than there are cores: they wait for the disk, and syncs of many small files at a
/// time share journal commits.
const THREADS: usize = 8;
/// Jobs that are under way or wait for a thread.
const MAX_UNDER_WAY: usize = 2 * THREADS;

/// A file to be written: open, or to be opened for every write.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) path: Arc<PathBuf>,
    pub(super) open: Option<Arc<File>>,
}

enum Job {
    Write {
        target: Target,
        direct: bool,
        buf: AlignedBuf,
        bytes: usize,
        position: u64,
    },
    Settle {
        path: Arc<PathBuf>,
        bytes: u64,
    },
    SyncDirectory(PathBuf),
}

type Done = Result<Option<AlignedBuf>, FileError>;

impl Job {
    fn run(self) -> Done {
        match self {
            Self::Write {
                target,
                direct,
                buf,
                bytes,
                position,
            } => {
                let path = &target.path;
                let file = match target.open {
                    Some(file) => file,
                    None => Arc::new(files::open_write(path, direct, false)?),
                };
                files::write_at(&file, path, &buf[..bytes], position)?;
                Ok(Some(buf))
            }
            Self::Settle { path, bytes } => {
                let file = files::open_write(&path, false, false)?;
                if files::file_bytes(&file, &path)? != bytes {
                    files::set_len(&file, &path, bytes)?;
                }
                files::sync_data(&file, &path)?;
                Ok(None)
            }
            Self::SyncDirectory(path) => {
                files::sync_directory(&path)?;
                Ok(None)
            }
        }
    }
}

/// The threads and what they are given.
pub(super) struct Behind {
    direct: bool,
    /// Absent without threads.
    jobs: Option<Sender<Job>>,
    done: Receiver<Done>,
    under_way: usize,
    free: HashMap<usize, Vec<AlignedBuf>>,
    to_settle: Vec<(Arc<PathBuf>, u64)>,
    /// Files that are written, with the length that each had.
    found: Vec<(PathBuf, u64)>,
    threads: Vec<JoinHandle<()>>,
}

impl Behind {
    /// Starts the threads; writes past the page cache if `direct`.
    pub(super) fn start(direct: bool) -> Self {
        let (jobs, receiver) = channel::<Job>();
        let (finished, done) = channel();
        let receiver = Arc::new(Mutex::new(receiver));
        let is_alone = files::watch::is_watched();
        let threads = (0..if is_alone { 0 } else { THREADS })
            .map(|_| {
                let (receiver, finished) = (Arc::clone(&receiver), finished.clone());
                std::thread::spawn(move || {
                    loop {
                        let next = receiver
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .recv();
                        let Ok(job) = next else { break };
                        if finished.send(job.run()).is_err() {
                            break;
                        }
                    }
                })
            })
            .collect();
        let free = HashMap::new();
        let to_settle = Vec::new();
        Self {
            direct,
            jobs: (!is_alone).then_some(jobs),
            done,
            under_way: 0,
            free,
            to_settle,
            found: Vec::new(),
            threads,
        }
    }

    /// A file of this length is about to be written.
    pub(super) fn found(&mut self, path: &Path, bytes: u64) {
        self.found.push((path.to_owned(), bytes));
    }

    /// Gives the space back that was taken: every file is as long again as it was.
    pub(super) fn undo(&mut self) -> Result<(), FileError> {
        while self.under_way > 0 {
            // It has failed already.
            let _ = self.reap();
        }
        for (path, bytes) in self.found.drain(..) {
            if bytes == 0 {
                files::remove_file(&path)?;
            } else {
                let file = files::open_write(&path, false, false)?;
                files::set_len(&file, &path, bytes)?;
            }
        }
        Ok(())
    }

    /// A buffer of this size; what is in it is of no meaning.
    pub(super) fn buffer(&mut self, bytes: usize) -> AlignedBuf {
        let free = self.free.get_mut(&bytes).and_then(Vec::pop);
        free.unwrap_or_else(|| AlignedBuf::zeroed(bytes))
    }

    /// Writes the first `bytes` of a buffer.
    pub(super) fn write(
        &mut self,
        target: Target,
        buf: AlignedBuf,
        bytes: usize,
        position: u64,
    ) -> Result<(), FileError> {
        self.submit(Job::Write {
            target,
            direct: self.direct,
            buf,
            bytes,
            position,
        })
    }

    /// Gives back a buffer that was not written.
    pub(super) fn give_back(&mut self, buf: AlignedBuf) {
        self.free.entry(buf.len()).or_default().push(buf);
    }

    /// The file is complete once what was given is written: it is to have this length, durably.
    pub(super) fn settle_later(&mut self, path: Arc<PathBuf>, bytes: u64) {
        self.to_settle.push((path, bytes));
    }

    /// Waits for all writes, then cuts and syncs every file, then syncs the directories.
    pub(super) fn settle(
        &mut self,
        directories: Vec<PathBuf>,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<(), FileError> {
        self.wait_for_all()?;
        let files = std::mem::take(&mut self.to_settle);
        let total = (files.len() + directories.len()) as u64;
        let settle = files
            .into_iter()
            .map(|(path, bytes)| Job::Settle { path, bytes });
        for (done, job) in (1..).zip(settle.chain(directories.into_iter().map(Job::SyncDirectory)))
        {
            self.submit(job)?;
            progress(done, total);
        }
        self.wait_for_all()
    }

    fn submit(&mut self, job: Job) -> Result<(), FileError> {
        while self.under_way >= MAX_UNDER_WAY {
            self.reap()?;
        }
        let Some(jobs) = &self.jobs else {
            return self.take_back(job.run());
        };
        if jobs.send(job).is_ok() {
            self.under_way += 1;
        }
        Ok(())
    }

    fn reap(&mut self) -> Result<(), FileError> {
        let done = self.done.recv();
        self.under_way -= 1;
        done.map_or(Ok(()), |done| self.take_back(done))
    }

    fn take_back(&mut self, done: Done) -> Result<(), FileError> {
        if let Some(buf) = done? {
            self.give_back(buf);
        }
        Ok(())
    }

    fn wait_for_all(&mut self) -> Result<(), FileError> {
        while self.under_way > 0 {
            self.reap()?;
        }
        Ok(())
    }
}

impl Drop for Behind {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // A thread only panics where this one would have.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_is_told_before_anything_is_settled() {
        let dir = tempfile::tempdir().expect("a place for the test");
        let mut behind = Behind::start(false);
        let path = Arc::new(dir.path().join("absent/file"));
        let buf = behind.buffer(4096);
        let target = Target { path, open: None };
        behind.write(target, buf, 4096, 0).expect("told later");
        let error = behind
            .settle(vec![dir.path().to_owned()], |_, _| {})
            .expect_err("no such file");
        assert_eq!(error.cause, files::Cause::Missing);
    }

    #[test]
    fn what_is_settled_has_its_bytes_and_its_length() {
        let dir = tempfile::tempdir().expect("a place for the test");
        let mut behind = Behind::start(false);
        let path = Arc::new(dir.path().join("file"));
        files::open_write(&path, false, true).expect("made");
        for i in 0..100_u64 {
            let mut buf = behind.buffer(4096);
            buf.fill(i as u8);
            let target = Target {
                path: Arc::clone(&path),
                open: None,
            };
            behind.write(target, buf, 4096, i * 4096).expect("written");
        }
        behind.settle_later(Arc::clone(&path), 99 * 4096 + 5);
        behind
            .settle(vec![dir.path().to_owned()], |_, _| {})
            .expect("settled");
        let bytes = std::fs::read(&*path).expect("read");
        assert_eq!(bytes.len(), 99 * 4096 + 5);
        assert!(
            bytes
                .chunks(4096)
                .zip(0..)
                .all(|(block, i)| block.iter().all(|&b| b == i))
        );
    }
}
