//! A file that an option names, such as `--json` or `--report`.

use std::fs::{File, Metadata};
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::exit::Failure;

/// The file for what comes of a measurement: opened before the measurement, so that a wrong path costs no time. It is
/// written beside its place and put there when it is whole; what is no file is written directly, and
/// so is standard output or error, which may be a file that holds more than this.
pub(crate) struct OutputFile {
    path: PathBuf,
    beside: Option<PathBuf>,
    file: File,
    pub(crate) is_stdout: bool,
}

impl OutputFile {
    /// `option` is the one that names it.
    pub(crate) fn create(option: &str, path: &Path) -> Result<Self, Failure> {
        let refused = |error: io::Error| {
            let path = path.display();
            Failure::usage(format!("{option} {path}: cannot write there: {error}"))
        };
        let direct = |file, is_stdout| Self {
            path: path.into(),
            beside: None,
            file,
            is_stdout,
        };
        if let Ok(found) = path.metadata() {
            if let Some(stdout) = stream_at(&found, io::stdout()) {
                return Ok(direct(stdout, true));
            }
            if let Some(stderr) = stream_at(&found, io::stderr()) {
                return Ok(direct(stderr, false));
            }
            if !found.is_file() {
                let file = File::options().write(true).open(path).map_err(refused)?;
                return Ok(direct(file, false));
            }
        }
        // Of a link, the file that it leads to.
        let path = path.canonicalize().unwrap_or_else(|_| path.into());
        let mut beside = path.clone().into_os_string();
        beside.push(format!(".{}.tmp", std::process::id()));
        let beside = PathBuf::from(beside);
        let file = File::create(&beside).map_err(refused)?;
        Ok(Self {
            path,
            beside: Some(beside),
            file,
            is_stdout: false,
        })
    }

    /// Writes it and puts it in its place.
    pub(crate) fn write(mut self, text: &str) -> Result<(), Failure> {
        self.put(text).map_err(|error| {
            Failure::failed(format!("cannot write {}: {error}", self.path.display()))
        })
    }

    fn put(&mut self, text: &str) -> io::Result<()> {
        self.file.write_all(text.as_bytes())?;
        if let Some(beside) = &self.beside {
            std::fs::rename(beside, &self.path)?;
            self.beside = None;
        }
        Ok(())
    }
}

/// The stream, if it leads to the file that was found.
fn stream_at(found: &Metadata, stream: impl AsFd) -> Option<File> {
    let stream: File = stream.as_fd().try_clone_to_owned().ok()?.into();
    let metadata = stream.metadata().ok()?;
    ((metadata.dev(), metadata.ino()) == (found.dev(), found.ino())).then_some(stream)
}

impl Drop for OutputFile {
    fn drop(&mut self) {
        if let Some(beside) = &self.beside {
            // A file left behind would do no harm.
            let _ = std::fs::remove_file(beside);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_replace_those_of_before_when_they_are_whole_and_not_before() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("figures.json");
        let files = || std::fs::read_dir(dir.path()).expect("a directory").count();
        drop(OutputFile::create("--json", &path).expect("writable"));
        assert_eq!(files(), 0);
        std::fs::write(&path, "before").expect("written");
        drop(OutputFile::create("--json", &path).expect("writable"));
        assert_eq!(std::fs::read(&path).expect("there"), b"before");
        let mut file = OutputFile::create("--json", &path).expect("writable");
        file.put("after").expect("written");
        drop(file);
        assert_eq!(std::fs::read(&path).expect("there"), b"after");
        assert_eq!(files(), 1);
        assert!(OutputFile::create("--json", &dir.path().join("absent/figures.json")).is_err());
    }
}
