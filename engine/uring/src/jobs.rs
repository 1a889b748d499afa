//! Work on files that blocks: it runs on threads of glommio's blocking pool, away from the shard,
//! and never on the path of a message.

use std::cell::{Cell, RefCell};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;

use ringtide_io::{DiskError, DiskErrorKind, FileId, IndexBytes, OpId, OpenMode, is_unreadable};
use ringtide_schema::index::scan::{Extent, Scanned, Source, scan};
use ringtide_schema::index::{self, IndexView};
use ringtide_schema::limits::BLOCK_BYTES;

use crate::files::{OpenFile, failed, failed_to_sync};
use crate::host;
use crate::memory::Blocks;
use crate::wake::Wake;

/// One piece of blocking work.
pub(crate) enum Job {
    Open {
        file: FileId,
        path: PathBuf,
        mode: OpenMode,
    },
    Seal {
        file: Arc<OpenFile>,
        bytes: u64,
        index_path: PathBuf,
        index: Vec<u8>,
    },
    LoadIndex {
        index_path: PathBuf,
        log_path: PathBuf,
        base_offset: u64,
        bytes: u64,
        tail: Vec<u8>,
        next_offset: u64,
        keep: bool,
    },
    Replace {
        path: PathBuf,
        contents: Vec<u8>,
    },
    Remove {
        paths: Vec<PathBuf>,
        and_directory: Option<PathBuf>,
    },
    CreateSlot {
        path: PathBuf,
        bytes: u64,
    },
}

/// How it ended well.
pub(crate) enum Outcome {
    Done,
    Opened {
        id: FileId,
        file: OpenFile,
        bytes: u64,
    },
    Index(IndexBytes),
}

type Finished = (OpId, Result<Outcome, DiskError>);

/// Ends of jobs that the executor may not have seen; a turn that it is given seldom has it look.
const MOST_UNREAPED: usize = 256;

/// The jobs of one shard.
pub(crate) struct Jobs {
    results: Arc<Results>,
    under_way: usize,
    /// When the first of those under way was started, or the last one ended since.
    moved_ns: u64,
    /// Jobs that the executor has not seen the end of.
    unreaped: Rc<Unreaped>,
    /// Some were spawned or have ended that the executor has not seen yet.
    unseen: bool,
}

#[derive(Default)]
struct Unreaped {
    count: Cell<usize>,
    /// Who waits for one fewer.
    waker: RefCell<Option<Waker>>,
}

impl Unreaped {
    fn one_fewer(&self) {
        self.count.set(self.count.get() - 1);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

struct Results {
    list: Mutex<Vec<Finished>>,
    any: AtomicBool,
    shard: Arc<Wake>,
}

impl Jobs {
    pub fn new(shard: Arc<Wake>) -> Self {
        let results = Results {
            list: Mutex::default(),
            any: AtomicBool::new(false),
            shard,
        };
        Self {
            results: Arc::new(results),
            under_way: 0,
            moved_ns: 0,
            unreaped: Rc::default(),
            unseen: false,
        }
    }

    /// Hands a job over. It begins when the shard loop next yields to the executor.
    pub fn start(&mut self, op: OpId, job: Job, now_ns: u64) {
        if self.under_way == 0 {
            self.moved_ns = now_ns;
        }
        self.under_way += 1;
        self.unseen = true;
        let results = self.results.clone();
        let work = move || {
            let result = job.run();
            results
                .list
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push((op, result));
            results.any.store(true, Ordering::SeqCst);
            results.shard.wake_if_parked();
        };
        let handed_over = glommio_ng::executor().spawn_blocking(work);
        let unreaped = self.unreaped.clone();
        unreaped.count.set(unreaped.count.get() + 1);
        let reap = async move {
            handed_over.await;
            unreaped.one_fewer();
        };
        glommio_ng::spawn_local(reap).detach();
    }

    /// Whether the executor has seen the end of all jobs. Until then a thread may want to tell it, and one that finds
    /// it gone panics.
    pub fn are_reaped(&self) -> bool {
        self.unreaped.count.get() == 0
    }

    /// Has the executor see the ends of jobs if they have become many. It has room for 4,096; a thread that finds none
    /// stands still, and with all threads every job.
    pub async fn reap(&self) {
        while self.unreaped.count.get().saturating_sub(self.under_way) > MOST_UNREAPED {
            let before = self.unreaped.count.get();
            host::wait_for(|context| {
                *self.unreaped.waker.borrow_mut() = Some(context.waker().clone());
                self.unreaped.count.get() < before
            })
            .await;
        }
    }

    /// Whether jobs were started or collected since this was last asked: the executor must have a
    /// turn to hand them to a thread, or to reap them.
    pub fn want_a_turn(&mut self) -> bool {
        std::mem::take(&mut self.unseen)
    }

    /// Jobs that were started and not collected.
    pub fn under_way(&self) -> usize {
        self.under_way
    }

    /// When the first of those was started, or the last one was collected since.
    pub fn moved_ns(&self) -> u64 {
        self.moved_ns
    }

    /// Whether there are results to collect.
    pub fn has_results(&self) -> bool {
        self.under_way > 0 && self.results.any.load(Ordering::SeqCst)
    }

    /// The results that have come.
    pub fn collect(&mut self, now_ns: u64) -> Vec<Finished> {
        self.moved_ns = now_ns;
        self.results.any.store(false, Ordering::SeqCst);
        let mut list = self
            .results
            .list
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let finished = std::mem::take(&mut *list);
        self.under_way -= finished.len();
        self.unseen = true;
        finished
    }
}

impl Job {
    fn run(self) -> Result<Outcome, DiskError> {
        match self {
            Self::Open { file, path, mode } => open(file, path, mode),
            Self::Seal {
                file,
                bytes,
                index_path,
                index,
            } => seal(&file, bytes, &index_path, &index).map(|()| Outcome::Done),
            Self::LoadIndex {
                index_path,
                log_path,
                base_offset,
                bytes,
                tail,
                next_offset,
                keep,
            } => {
                let extent = Extent {
                    base_offset,
                    bytes,
                    tail: &tail,
                    next_offset,
                };
                load_index(&index_path, &log_path, extent, keep).map(Outcome::Index)
            }
            Self::Replace { path, contents } => replace(&path, &contents).map(|()| Outcome::Done),
            Self::Remove {
                paths,
                and_directory,
            } => remove(&paths, and_directory.as_deref()).map(|()| Outcome::Done),
            Self::CreateSlot { path, bytes } => create_slot(&path, bytes).map(|()| Outcome::Done),
        }
    }
}

fn open(id: FileId, path: PathBuf, mode: OpenMode) -> Result<Outcome, DiskError> {
    let failed_to = |what: &str, error: io::Error| failed(what, &path, &error);
    let mut options = OpenOptions::new();
    options.read(true);
    let file = match mode {
        OpenMode::Read => options.open(&path),
        OpenMode::Wal => options
            .write(true)
            .custom_flags(libc::O_DIRECT | libc::O_DSYNC)
            .open(&path),
        OpenMode::Append { .. } => {
            create_directory(parent(&path))?;
            options
                .write(true)
                .create(true)
                .custom_flags(libc::O_DIRECT)
                .open(&path)
        }
    }
    .map_err(|error| failed_to("open", error))?;
    let mut bytes = file
        .metadata()
        .map_err(|error| failed_to("look at", error))?
        .len();
    if let OpenMode::Append { keep_bytes } = mode {
        if bytes < keep_bytes {
            return Err(DiskError {
                kind: DiskErrorKind::Corrupt,
                message: format!(
                    "{} has {bytes} bytes, {keep_bytes} of it were synced before",
                    path.display()
                ),
            });
        }
        if bytes > keep_bytes {
            file.set_len(keep_bytes)
                .map_err(|error| failed_to("cut", error))?;
            bytes = keep_bytes;
        }
        // Not known whether it was there: syncing the directory once too often does no harm.
        sync_directory(parent(&path))?;
    }
    Ok(Outcome::Opened {
        id,
        file: OpenFile { file, path },
        bytes,
    })
}

fn seal(file: &OpenFile, bytes: u64, index_path: &Path, index: &[u8]) -> Result<(), DiskError> {
    let failed_to = |what: &str, error: io::Error| failed(what, &file.path, &error);
    let have = file
        .file
        .metadata()
        .map_err(|error| failed_to("look at", error))?
        .len();
    if have < bytes {
        return Err(DiskError {
            kind: DiskErrorKind::Corrupt,
            message: format!("{} has {have} bytes, {bytes} to seal", file.path.display()),
        });
    }
    file.file
        .set_len(bytes)
        .map_err(|error| failed_to("cut", error))?;
    file.file
        .sync_all()
        .map_err(|error| failed_to_sync(&file.path, &error))?;
    // Derived data: without it the index is built anew when it is asked for.
    if !index.is_empty()
        && let Err(error) = write_index(index_path, index)
    {
        tracing::warn!("cannot write index {}: {error}", index_path.display());
    }
    Ok(())
}

fn write_index(path: &Path, contents: &[u8]) -> io::Result<()> {
    let beside = beside(path);
    let written = fs::write(&beside, contents).and_then(|()| fs::rename(&beside, path));
    written.inspect_err(|_| drop(fs::remove_file(&beside)))
}

fn load_index(
    index_path: &Path,
    log_path: &Path,
    extent: Extent<'_>,
    keep: bool,
) -> Result<IndexBytes, DiskError> {
    let base_offset = extent.base_offset;
    if let Some(map) = mapped_index(index_path, base_offset, extent.bytes)? {
        return Ok(IndexBytes::File(map));
    }
    let log = File::open(log_path).map_err(|error| failed("open", log_path, &error))?;
    let Scanned {
        entries,
        covered_bytes,
        damage,
    } = build_index(&log, log_path, extent)?;
    if keep && damage.is_empty() {
        let contents = index::encode(base_offset, covered_bytes as u32, &entries);
        if let Err(error) = write_index(index_path, &contents) {
            tracing::warn!("cannot write index {}: {error}", index_path.display());
        }
    }
    Ok(IndexBytes::Built {
        entries,
        covered_bytes,
    })
}

/// The index file, if it is there, whole, and knows enough.
fn mapped_index(
    path: &Path,
    base_offset: u64,
    bytes: u64,
) -> Result<Option<Arc<dyn AsRef<[u8]> + Send + Sync>>, DiskError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) => {
            let error = failed("open", path, &error);
            // That none can be opened now says nothing of this one.
            return if error.is_shortage() {
                Err(error)
            } else {
                Ok(None)
            };
        }
    };
    let Ok(map) = crate::memory::map_index(&file) else {
        return Ok(None);
    };
    let fits = IndexView::check(&map).is_ok_and(|view| {
        view.base_offset == base_offset && u64::from(view.covered_bytes) >= bytes
    });
    Ok(fits.then(|| Arc::new(map) as _))
}

/// Builds the index of the segment in a file.
fn build_index(log: &File, path: &Path, extent: Extent<'_>) -> Result<Scanned, DiskError> {
    let bytes = extent.bytes;
    let length = log
        .metadata()
        .map_err(|error| failed("look at", path, &error))?
        .len();
    if length < bytes {
        return Err(DiskError {
            kind: DiskErrorKind::Corrupt,
            message: format!("{} has {length} bytes instead of {bytes}", path.display()),
        });
    }
    let scanned = scan(&mut SegmentFile { log, path }, extent)
        .map_err(|error| failed("read", path, &error))?;
    for what in &scanned.damage {
        tracing::error!("{} is {what}", path.display());
    }
    Ok(scanned)
}

/// A segment whose index is built.
struct SegmentFile<'a> {
    log: &'a File,
    path: &'a Path,
}

impl Source for SegmentFile<'_> {
    type Error = io::Error;

    fn read(&mut self, into: &mut [u8], position: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < into.len() {
            match self.log.read_at(&mut into[done..], position + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error().is_some_and(is_unreadable) => {
                    let at = position + done as u64;
                    tracing::error!(
                        "{} cannot be read at byte {at}: {error}",
                        self.path.display()
                    );
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }
}

fn replace(path: &Path, contents: &[u8]) -> Result<(), DiskError> {
    create_directory(parent(path))?;
    let beside = beside(path);
    let written = File::create(&beside).and_then(|mut file| {
        file.write_all(contents)?;
        file.sync_all()
    });
    let replaced = written
        .map_err(|error| failed("write", &beside, &error))
        .and_then(|()| fs::rename(&beside, path).map_err(|error| failed("replace", path, &error)));
    if replaced.is_err() {
        // On a full disk what could be written of it is in the way of everything else.
        let _ = fs::remove_file(&beside);
    }
    replaced?;
    sync_directory(parent(path))
}

fn remove(paths: &[PathBuf], and_directory: Option<&Path>) -> Result<(), DiskError> {
    let absent_is_fine = |result: io::Result<()>| match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    for path in paths {
        absent_is_fine(fs::remove_file(path)).map_err(|error| failed("remove", path, &error))?;
    }
    if let Some(directory) = and_directory {
        absent_is_fine(fs::remove_dir_all(directory))
            .map_err(|error| failed("remove", directory, &error))?;
    }
    let mut parents: Vec<_> = paths
        .iter()
        .map(PathBuf::as_path)
        .chain(and_directory)
        .map(parent)
        .collect();
    parents.sort_unstable();
    parents.dedup();
    for directory in parents {
        match sync_directory(directory) {
            // Went with the directory, whose own parent is in the list.
            Err(error) if error.kind == DiskErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}

/// Pieces in which a slot is filled with zeros: small, so that writes of the log beside it wait
/// for one piece at the most.
const ZEROS_BYTES: usize = 256 << 10;

fn create_slot(path: &Path, bytes: u64) -> Result<(), DiskError> {
    create_directory(parent(path))?;
    let beside = beside(path);
    let written = || -> io::Result<()> {
        let zeros = Blocks::new(ZEROS_BYTES)?;
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .custom_flags(libc::O_DIRECT)
            .open(&beside)?;
        let mut position = 0;
        while position < bytes {
            let piece = (bytes - position).min(ZEROS_BYTES as u64) as usize;
            file.write_all_at(&zeros[..piece], position)?;
            position += piece as u64;
        }
        file.sync_all()
    };
    assert!(
        bytes.is_multiple_of(BLOCK_BYTES as u64),
        "slot of {bytes} bytes"
    );
    // A slot takes no more than a part of what is left: what could be written of one would be in the
    // way of everything else.
    if free_bytes(parent(path)).is_some_and(|free| free < bytes + bytes / 2) {
        let full = io::Error::from_raw_os_error(libc::ENOSPC);
        return Err(failed("make", path, &full));
    }
    if let Err(error) = written() {
        let _ = fs::remove_file(&beside);
        return Err(failed("write", &beside, &error));
    }
    fs::rename(&beside, path).map_err(|error| failed("create", path, &error))?;
    sync_directory(parent(path))
}

/// What can still be written to the file system of a directory; absent if it does not say.
fn free_bytes(directory: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(directory).ok()?;
    Some(stat.f_bavail * stat.f_frsize)
}

/// Where the next contents of a file are written before they take its name.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    PathBuf::from(name)
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Creates a directory and those above it; what was created is durable.
fn create_directory(path: &Path) -> Result<(), DiskError> {
    if path.is_dir() {
        return Ok(());
    }
    create_directory(parent(path))?;
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(failed("create directory", path, &error))
        }
        // Who finds it there takes it to be synced.
        _ => sync_directory(parent(path)).inspect_err(|_| drop(fs::remove_dir(path))),
    }
}

fn sync_directory(path: &Path) -> Result<(), DiskError> {
    let directory = File::open(path).map_err(|error| failed("open", path, &error))?;
    directory
        .sync_all()
        .map_err(|error| failed_to_sync(path, &error))
}
