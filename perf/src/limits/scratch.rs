//! Files that nobody has to remove: they lose their name as soon as they are open, and their room
//! when they are closed, however the process ends.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Makes an empty file in the directory, has it opened, and takes its name away.
pub(super) fn nameless<T>(dir: &Path, open: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    static MADE: AtomicU64 = AtomicU64::new(0);
    let number = MADE.fetch_add(1, Ordering::Relaxed);
    let path = dir.join(format!("limits-{}-{number}.tmp", std::process::id()));
    File::create_new(&path)?;
    let opened = open(&path);
    std::fs::remove_file(&path)?;
    opened
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_open_has_no_name_and_neither_has_one_that_could_not_be_opened() {
        let dir = tempfile::tempdir().expect("a directory");
        let files = || std::fs::read_dir(dir.path()).expect("there").count();
        let file = nameless(dir.path(), |path| {
            assert_eq!(files(), 1);
            File::open(path)
        });
        assert_eq!(file.expect("open").metadata().expect("open").len(), 0);
        assert_eq!(files(), 0);
        let refused = nameless(dir.path(), |_| Err::<File, _>(io::Error::other("refused")));
        assert_eq!(refused.expect_err("refused").to_string(), "refused");
        assert_eq!(files(), 0);
    }
}
