//! Open files, by the numbers that the logic gave them.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ringtide_io::{DiskError, DiskErrorKind, FileId};

/// An open file; whoever works on it holds it, so that it stays open until they are done.
#[derive(Debug)]
pub(crate) struct OpenFile {
    pub file: File,
    pub path: PathBuf,
}

/// The files of a shard.
#[derive(Default)]
pub(crate) struct Files(HashMap<FileId, Arc<OpenFile>>);

impl Files {
    /// # Panics
    /// If the number is in use.
    pub fn insert(&mut self, id: FileId, file: OpenFile) {
        let path = file.path.clone();
        let before = self.0.insert(id, Arc::new(file));
        assert!(
            before.is_none(),
            "{id:?} is open already, as {}",
            path.display()
        );
    }

    pub fn get(&self, id: FileId) -> Option<&Arc<OpenFile>> {
        self.0.get(&id)
    }

    pub fn close(&mut self, id: FileId) {
        self.0.remove(&id);
    }
}

/// The typed form of a failed operation on a path.
pub(crate) fn failed(what: &str, path: &Path, error: &io::Error) -> DiskError {
    let errno = error.raw_os_error().unwrap_or(libc::EIO);
    DiskError::from_errno(errno, format!("cannot {what} {}: {error}", path.display()))
}

/// The typed form of a failed sync: never one that is tried again, because the kernel reports what
/// it could not write once and forgets it.
pub(crate) fn failed_to_sync(path: &Path, error: &io::Error) -> DiskError {
    let errno = error.raw_os_error().unwrap_or(libc::EIO);
    DiskError {
        kind: DiskErrorKind::Os(errno),
        message: format!("cannot sync {}: {error}", path.display()),
    }
}
