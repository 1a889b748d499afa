//! Tells a simulator of every change to files that this thread is about to make, and lets it fail.
//!
//! Without the feature `watched` nothing of this is left.

#[cfg(feature = "watched")]
use std::cell::RefCell;
use std::io;
use std::path::Path;

/// A change to files, about to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// A file is made, empty, unless it is there.
    Create(&'a Path),
    /// Bytes are written, not durably.
    Write {
        /// The file.
        path: &'a Path,
        /// Where.
        position: u64,
        /// What.
        bytes: &'a [u8],
    },
    /// A file is given a length.
    SetLength {
        /// The file.
        path: &'a Path,
        /// In bytes.
        bytes: u64,
    },
    /// What was written to a file is made durable.
    Sync(&'a Path),
    /// A directory is made, unless it is there.
    MakeDirectory(&'a Path),
    /// The names in a directory are made durable.
    SyncDirectory(&'a Path),
    /// A file takes the name of another.
    Rename {
        /// The file.
        from: &'a Path,
        /// Its name from now on.
        to: &'a Path,
    },
    /// A file is removed, if it is there.
    Remove(&'a Path),
    /// A directory is removed with all that is in it, if it is there.
    RemoveDirectory(&'a Path),
}

#[cfg(feature = "watched")]
type Watcher = Box<dyn FnMut(Change<'_>) -> io::Result<()>>;

#[cfg(feature = "watched")]
thread_local! {
    static WATCHER: RefCell<Option<Watcher>> = const { RefCell::new(None) };
}

/// Does something while the watcher is told of every change that it makes, in an order that does not change
/// from run to run. An error of the watcher is that of the change, which is then not made.
#[cfg(feature = "watched")]
pub fn watched<T>(
    watcher: impl FnMut(Change<'_>) -> io::Result<()> + 'static,
    act: impl FnOnce() -> T,
) -> T {
    WATCHER.set(Some(Box::new(watcher)));
    let done = act();
    WATCHER.set(None);
    done
}

/// Whether somebody watches this thread: then it does everything itself.
pub(crate) fn is_watched() -> bool {
    #[cfg(feature = "watched")]
    return WATCHER.with_borrow(Option::is_some);
    #[cfg(not(feature = "watched"))]
    false
}

/// Tells of a change before it is made.
pub(crate) fn tell(change: Change<'_>) -> io::Result<()> {
    #[cfg(feature = "watched")]
    return WATCHER.with_borrow_mut(|watcher| watcher.as_mut().map_or(Ok(()), |w| w(change)));
    #[cfg(not(feature = "watched"))]
    {
        let _ = change;
        Ok(())
    }
}
