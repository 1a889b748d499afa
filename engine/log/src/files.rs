//! Blocking access to the files of a data directory, for what runs before or beside the shards:
//! recovery, verification and inspection.
//!
//! Every operating system error is typed here, where it enters, and carries the file and what was
//! being done with it. Nothing here decides what an error means for the data.

use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ringtide_schema::limits::BLOCK_BYTES;

use self::watch::{Change, tell};

pub mod watch;

/// What was being done when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Opening or creating a file.
    Open,
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Forcing to stable storage.
    Sync,
    /// Cutting to a length.
    Truncate,
    /// Listing a directory or asking for a file's length.
    List,
    /// Making a directory.
    MakeDirectory,
    /// Renaming over the file it replaces.
    Rename,
    /// Removing.
    Remove,
    /// Taking the lock.
    Lock,
}

impl Action {
    const fn verb(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Read => "read",
            Self::Write => "write",
            Self::Sync => "sync",
            Self::Truncate => "truncate",
            Self::List => "list",
            Self::MakeDirectory => "make directory",
            Self::Rename => "rename a file to",
            Self::Remove => "remove",
            Self::Lock => "lock",
        }
    }
}

/// Why the operating system refused, as far as it matters to what one does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// No such file or directory.
    Missing,
    /// The process may not.
    Permission,
    /// The disk or the quota is full.
    Full,
    /// The file system is mounted read-only.
    ReadOnly,
    /// The file system does not offer direct I/O.
    NoDirectIo,
    /// The device failed.
    Device,
    /// The limit of open files is reached.
    TooManyOpen,
    /// The file ended before it should.
    Short,
    /// Something is there already.
    Occupied,
    /// Something else has the place of a file.
    NotAFile,
    /// Anything else.
    Other,
}

impl Cause {
    fn of(action: Action, direct: bool, error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return Self::Short;
        }
        if error.kind() == io::ErrorKind::DirectoryNotEmpty {
            return Self::Occupied;
        }
        match error.raw_os_error() {
            Some(libc::EEXIST) => Self::Occupied,
            Some(libc::ENOENT | libc::ENOTDIR) => Self::Missing,
            Some(libc::EACCES | libc::EPERM) => Self::Permission,
            Some(libc::ENOSPC | libc::EDQUOT) => Self::Full,
            Some(libc::EROFS) => Self::ReadOnly,
            Some(libc::EINVAL) if direct && action == Action::Open => Self::NoDirectIo,
            Some(libc::EIO) => Self::Device,
            Some(libc::EMFILE | libc::ENFILE) => Self::TooManyOpen,
            _ => Self::Other,
        }
    }

    const fn advice(self) -> &'static str {
        match self {
            Self::Missing => "restore the whole data directory from a copy",
            Self::Permission => "let the broker's user own the data directory",
            Self::Full => {
                "make room on that file system, of bytes (df) or of inodes (df -i), or copy the data directory to a larger \
                 one, and start again"
            }
            Self::ReadOnly => "mount the file system writable",
            Self::NoDirectIo => "use a file system with direct I/O, or turn it off in the settings",
            Self::Device => "see the kernel log; the disk may be failing",
            Self::TooManyOpen => "raise the limit of open files (ulimit -n)",
            Self::Short => "the file was cut; restore the whole data directory from a copy",
            Self::Occupied => "somebody has put something there; name another place",
            Self::NotAFile => {
                "move it away; if a file of the broker was there, restore the whole data directory from a copy"
            }
            Self::Other => "mend that and start again: nothing is lost by it",
        }
    }
}

/// A file operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {} {}: {source}; {}", action.verb(), path.display(), cause.advice())]
pub struct FileError {
    /// What was being done.
    pub action: Action,
    /// With which file or directory.
    pub path: PathBuf,
    /// Why it failed.
    pub cause: Cause,
    /// As the operating system put it.
    pub source: io::Error,
}

impl FileError {
    fn new(action: Action, path: &Path, direct: bool, source: io::Error) -> Self {
        Self {
            action,
            path: path.to_owned(),
            cause: Cause::of(action, direct, &source),
            source,
        }
    }
}

fn failed(action: Action, path: &Path) -> impl FnOnce(io::Error) -> FileError + '_ {
    move |source| FileError::new(action, path, false, source)
}

/// Refuses pipes, sockets, devices and directories: to open one may wait for ever or have effects of its own, so that it is
/// looked at before.
fn expect_file(action: Action, path: &Path) -> Result<(), FileError> {
    match fs::metadata(path) {
        Ok(found) => expect_file_by(&found, action, path),
        // Opening it says why.
        Err(_) => Ok(()),
    }
}

fn expect_file_by(found: &Metadata, action: Action, path: &Path) -> Result<(), FileError> {
    match found.is_file() {
        true => Ok(()),
        false => Err(FileError {
            action,
            path: path.to_owned(),
            cause: Cause::NotAFile,
            source: io::Error::other("it is not a regular file"),
        }),
    }
}

/// Memory that begins on a block boundary, as direct I/O wants it.
pub struct AlignedBuf {
    raw: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuf {
    /// `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        let raw = vec![0; len + BLOCK_BYTES - 1];
        let start = raw.as_ptr().align_offset(BLOCK_BYTES);
        assert!(start < BLOCK_BYTES);
        Self { raw, start, len }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.raw[self.start..self.start + self.len]
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.raw[self.start..self.start + self.len]
    }
}

/// Opens a file to read; with `direct` past the page cache.
pub fn open_read(path: &Path, direct: bool) -> Result<File, FileError> {
    expect_file(Action::Open, path)?;
    let mut options = OpenOptions::new();
    options.read(true);
    if direct {
        options.custom_flags(libc::O_DIRECT);
    }
    options
        .open(path)
        .map_err(|e| FileError::new(Action::Open, path, direct, e))
}

/// Opens a file to write, made if `create` and missing; with `direct` past the page cache.
pub fn open_write(path: &Path, direct: bool, create: bool) -> Result<File, FileError> {
    expect_file(Action::Open, path)?;
    let mut options = OpenOptions::new();
    options.write(true).create(create).truncate(false);
    if direct {
        options.custom_flags(libc::O_DIRECT);
    }
    let told = match create {
        true => tell(Change::Create(path)),
        false => Ok(()),
    };
    told.and_then(|()| options.open(path))
        .map_err(|e| FileError::new(Action::Open, path, direct, e))
}

/// Makes a file to write; one that is there is a failure.
pub fn open_new(path: &Path) -> Result<File, FileError> {
    tell(Change::Create(path))
        .and_then(|()| OpenOptions::new().write(true).create_new(true).open(path))
        .map_err(failed(Action::Open, path))
}

/// Fails if there is something in a directory.
pub fn expect_empty(path: &Path) -> Result<(), FileError> {
    match list(path)?.is_none_or(|held| held.is_empty()) {
        true => Ok(()),
        false => Err(failed(Action::List, path)(
            io::ErrorKind::DirectoryNotEmpty.into(),
        )),
    }
}

/// Reads at `position` until `out` is full or the file ends; gives the bytes read.
pub fn read_at(
    file: &File,
    path: &Path,
    out: &mut [u8],
    position: u64,
) -> Result<usize, FileError> {
    let mut done = 0;
    while done < out.len() {
        match file.read_at(&mut out[done..], position + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // A direct read that starts past the unaligned end of a file.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) && !done.is_multiple_of(512) => break,
            Err(e) => return Err(FileError::new(Action::Read, path, false, e)),
        }
    }
    Ok(done)
}

/// Writes all of `bytes` at `position`.
pub fn write_at(file: &File, path: &Path, bytes: &[u8], position: u64) -> Result<(), FileError> {
    let change = Change::Write {
        path,
        position,
        bytes,
    };
    tell(change)
        .and_then(|()| file.write_all_at(bytes, position))
        .map_err(failed(Action::Write, path))
}

/// Cuts or extends the file to a length.
pub fn set_len(file: &File, path: &Path, bytes: u64) -> Result<(), FileError> {
    tell(Change::SetLength { path, bytes })
        .and_then(|()| file.set_len(bytes))
        .map_err(failed(Action::Truncate, path))
}

/// Forces what was written to stable storage, the length included.
pub fn sync_data(file: &File, path: &Path) -> Result<(), FileError> {
    tell(Change::Sync(path))
        .and_then(|()| file.sync_data())
        .map_err(failed(Action::Sync, path))
}

/// Forces a directory's entries to stable storage.
pub fn sync_directory(path: &Path) -> Result<(), FileError> {
    let directory = File::open(path).map_err(failed(Action::Open, path))?;
    tell(Change::SyncDirectory(path))
        .and_then(|()| directory.sync_all())
        .map_err(failed(Action::Sync, path))
}

/// The length of a file.
pub fn file_bytes(file: &File, path: &Path) -> Result<u64, FileError> {
    Ok(file.metadata().map_err(failed(Action::List, path))?.len())
}

/// The length of the file at a path.
pub fn bytes_at(path: &Path) -> Result<u64, FileError> {
    let found = fs::metadata(path).map_err(failed(Action::List, path))?;
    expect_file_by(&found, Action::List, path)?;
    Ok(found.len())
}

/// The whole file, or `None` when there is none.
pub fn read_whole(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    expect_file(Action::Read, path)?;
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(FileError::new(Action::Read, path, false, e)),
    }
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// The name; not UTF-8 is replaced, and such a name is never one of ours.
    pub name: String,
    /// The whole path.
    pub path: PathBuf,
    /// Whether it is a directory.
    pub directory: bool,
}

/// What a directory holds, by name, or `None` when there is no such directory.
pub fn list(path: &Path) -> Result<Option<Vec<Listed>>, FileError> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(FileError::new(Action::List, path, false, e)),
    };
    let mut out = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed(Action::List, path))?;
        let kind = entry.file_type().map_err(failed(Action::List, path))?;
        out.push(Listed {
            name: entry.file_name().to_string_lossy().into_owned(),
            path: entry.path(),
            directory: kind.is_dir(),
        });
    }
    out.sort();
    Ok(Some(out))
}

/// Makes a directory unless it is there.
pub fn make_directory(path: &Path) -> Result<(), FileError> {
    match tell(Change::MakeDirectory(path)).and_then(|()| fs::create_dir(path)) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            Err(FileError::new(Action::MakeDirectory, path, false, e))
        }
        _ => Ok(()),
    }
}

/// Makes a directory and those above it unless they are there; what was made is durable, and is
/// added to `made`, the topmost first.
pub(crate) fn make_directories(path: &Path, made: &mut Vec<PathBuf>) -> Result<(), FileError> {
    if path.is_dir() {
        return Ok(());
    }
    make_directories(parent(path), made)?;
    make_directory(path)?;
    made.push(path.to_owned());
    sync_directory(parent(path))
}

/// The directory that a path is in.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Removes a file; that there is none is no failure.
pub fn remove_file(path: &Path) -> Result<(), FileError> {
    match tell(Change::Remove(path)).and_then(|()| fs::remove_file(path)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(FileError::new(Action::Remove, path, false, e))
        }
        _ => Ok(()),
    }
}

/// Removes a directory and what is in it; that there is none is no failure.
pub fn remove_directory(path: &Path) -> Result<(), FileError> {
    match tell(Change::RemoveDirectory(path)).and_then(|()| fs::remove_dir_all(path)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(FileError::new(Action::Remove, path, false, e))
        }
        _ => Ok(()),
    }
}

/// Puts `bytes` at `path` in one step: a crash leaves the old file or the new one. The directory
/// is *not* synced, so that several replacements can share one sync.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    let temporary = PathBuf::from(name);
    let file = open_write(&temporary, false, true)?;
    set_len(&file, &temporary, 0)?;
    write_at(&file, &temporary, bytes, 0)?;
    sync_data(&file, &temporary)?;
    let change = Change::Rename {
        from: &temporary,
        to: path,
    };
    tell(change)
        .and_then(|()| fs::rename(&temporary, path))
        .map_err(failed(Action::Rename, path))
}

/// The lock of a data directory; given back when dropped.
#[derive(Debug)]
pub struct DirectoryLock {
    _file: File,
    made: Made,
}

impl DirectoryLock {
    /// Gives the lock back and removes what was made to take it, so that a directory that is refused
    /// afterwards is left as it was found. A directory that holds something by now stays.
    pub fn undo(self) {
        self.made.remove();
    }
}

/// What taking a lock has made.
#[derive(Debug, Default)]
struct Made {
    /// The topmost first.
    directories: Vec<PathBuf>,
    lock: Option<PathBuf>,
}

impl Made {
    /// What cannot be removed stays, empty and without harm.
    fn remove(&self) {
        if let Some(lock) = &self.lock {
            let _ = fs::remove_file(lock);
        }
        for directory in self.directories.iter().rev() {
            let _ = fs::remove_dir(directory);
        }
    }
}

/// Why the lock was not had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else has it.
    #[error(
        "a broker is running on {}: it holds the lock {}; stop it first",
        directory.display(), lock.display()
    )]
    Running {
        /// The data directory.
        directory: PathBuf,
        /// The lock's file.
        lock: PathBuf,
    },
    /// The lock's file cannot be opened or locked.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Takes the lock of a data directory; directory and lock are made if missing, and removed again if
/// that fails.
pub fn lock(directory: &Path) -> Result<DirectoryLock, LockError> {
    let mut made = Made::default();
    match lock_noting(directory, &mut made) {
        Ok(file) => Ok(DirectoryLock { _file: file, made }),
        Err(error) => {
            made.remove();
            Err(error)
        }
    }
}

fn lock_noting(directory: &Path, made: &mut Made) -> Result<File, LockError> {
    let path = directory.join("lock");
    loop {
        make_directories(directory, &mut made.directories)?;
        let was_there = path.symlink_metadata().is_ok();
        let file = match open_write(&path, false, true) {
            // Removed again by who made the directory and undid it.
            Err(e) if e.cause == Cause::Missing && !directory.is_dir() => continue,
            opened => take(opened?, directory, &path)?,
        };
        // Who undid its lock in the meantime has removed the file: then this is not the lock any more.
        if is_at(&file, &path)? {
            made.lock = (!was_there).then_some(path);
            return Ok(file);
        }
    }
}

fn is_at(file: &File, path: &Path) -> Result<bool, FileError> {
    let held = file.metadata().map_err(failed(Action::Lock, path))?;
    match fs::metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (held.dev(), held.ino())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(FileError::new(Action::Lock, path, false, e)),
    }
}

/// Takes the lock of a data directory without changing anything in it. `None`: no broker has ever
/// run there, so there is nothing to lock.
pub fn lock_read_only(directory: &Path) -> Result<Option<DirectoryLock>, LockError> {
    let path = directory.join("lock");
    match open_read(&path, false) {
        Ok(file) => {
            let file = take(file, directory, &path)?;
            // Removed by who undid its lock: the directory is as if it had none.
            Ok(is_at(&file, &path)?.then(|| DirectoryLock {
                _file: file,
                made: Made::default(),
            }))
        }
        Err(e) if e.cause == Cause::Missing => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn take(file: File, directory: &Path, path: &Path) -> Result<File, LockError> {
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(LockError::Running {
            directory: directory.to_owned(),
            lock: path.to_owned(),
        }),
        Err(TryLockError::Error(e)) => Err(FileError::new(Action::Lock, path, false, e).into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;
    use std::process::Command;

    use super::*;

    #[test]
    fn an_aligned_buffer_begins_on_a_block() {
        for len in [0, 1, BLOCK_BYTES, 100_000] {
            let buf = AlignedBuf::zeroed(len);
            assert_eq!((buf.as_ptr() as usize % BLOCK_BYTES, buf.len()), (0, len));
        }
    }

    #[test]
    fn the_second_who_locks_is_told_that_a_broker_runs() {
        let dir = tempfile::tempdir().expect("a place for the test");
        assert!(lock_read_only(dir.path()).expect("no lock yet").is_none());
        let held = lock(dir.path()).expect("free");
        let error = lock_read_only(dir.path()).expect_err("held");
        assert!(error.to_string().contains("a broker is running"), "{error}");
        drop(held);
        // A process that another test is starting may have it for a moment.
        while lock_read_only(dir.path()).is_err() {
            std::thread::yield_now();
        }
        assert!(lock_read_only(dir.path()).is_ok_and(|lock| lock.is_some()));
    }

    #[test]
    fn a_lock_that_is_undone_leaves_nothing_that_was_made_for_it() {
        let home = tempfile::tempdir().expect("a place for the test");
        let dir = home.path().join("a/b");
        lock(&dir).expect("free").undo();
        assert!(
            list(home.path())
                .expect("readable")
                .expect("there")
                .is_empty()
        );
        lock(&dir).expect("free again");
        assert!(dir.join("lock").exists(), "only undoing removes it");
    }

    #[test]
    fn a_lock_that_is_undone_leaves_what_was_there() {
        let home = tempfile::tempdir().expect("a place for the test");
        drop(lock(home.path()).expect("free"));
        lock(home.path()).expect("free again").undo();
        assert!(home.path().join("lock").exists(), "made by the first");
        let dir = home.path().join("new");
        let held = lock(&dir).expect("free");
        fs::write(dir.join("identity"), "").expect("written");
        held.undo();
        assert!(dir.join("identity").exists());
    }

    #[test]
    fn a_lock_that_was_removed_by_who_undid_it_is_not_taken_for_the_lock() {
        let home = tempfile::tempdir().expect("a place for the test");
        let path = home.path().join("lock");
        let file = open_write(&path, false, true).expect("made");
        assert!(is_at(&file, &path).expect("readable"));
        fs::remove_file(&path).expect("removed");
        assert!(!is_at(&file, &path).expect("readable"));
        fs::write(&path, "").expect("made anew");
        assert!(!is_at(&file, &path).expect("readable"));
    }

    #[test]
    fn who_has_no_space_is_told_that_it_may_be_inodes_that_lack() {
        for code in [libc::ENOSPC, libc::EDQUOT] {
            let error = io::Error::from_raw_os_error(code);
            let error = FileError::new(Action::Open, Path::new("/data/identity"), false, error);
            let text = error.to_string();
            let words = ["/data/identity", "make room", "df -i"];
            assert!(words.iter().all(|word| text.contains(word)), "{text}");
        }
    }

    #[test]
    fn what_is_no_file_is_refused_by_its_name_and_not_opened() {
        let dir = tempfile::tempdir().expect("a place for the test");
        let [pipe, socket, device] = ["pipe", "socket", "device"].map(|name| dir.path().join(name));
        let made = Command::new("mkfifo").arg(&pipe).status();
        assert!(made.expect("mkfifo runs").success());
        let _listener = UnixListener::bind(&socket).expect("a socket");
        symlink("/dev/zero", &device).expect("a link");
        for path in [&pipe, &socket, &device, &dir.path().to_owned()] {
            let refusals = [
                open_read(path, false).err(),
                open_read(path, true).err(),
                open_write(path, false, false).err(),
                open_write(path, false, true).err(),
                read_whole(path).err(),
                bytes_at(path).err(),
            ];
            for refusal in refusals {
                let error = refusal.expect("it is no file");
                assert_eq!(error.cause, Cause::NotAFile, "{error}");
                let (text, name) = (error.to_string(), path.display().to_string());
                assert!(text.contains(&name), "{text}");
                assert!(text.contains("not a regular file"), "{text}");
            }
        }
    }

    #[test]
    fn a_file_that_a_link_leads_to_is_a_file() {
        let dir = tempfile::tempdir().expect("a place for the test");
        let [file, link] = ["file", "link"].map(|name| dir.path().join(name));
        fs::write(&file, "here").expect("written");
        symlink(&file, &link).expect("a link");
        assert_eq!(bytes_at(&link).expect("a length"), 4);
        assert!(open_read(&link, false).is_ok() && open_write(&link, false, false).is_ok());
    }

    #[test]
    fn a_missing_file_is_told_from_one_that_cannot_be_read() {
        let dir = tempfile::tempdir().expect("a place for the test");
        assert!(
            read_whole(&dir.path().join("none"))
                .expect("absent is no error")
                .is_none()
        );
        let error = read_whole(dir.path()).expect_err("a directory is not a file");
        assert!(error.to_string().starts_with("cannot read "), "{error}");
    }
}
