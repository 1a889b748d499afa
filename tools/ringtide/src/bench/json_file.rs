//! The file that `--json` names.

use std::fs::{File, Metadata};
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::exit::Failure;
use crate::output::print;

/// The file for the figures: opened before the measurement, so that a wrong path costs no time. It is
/// written beside its place and put there when it is whole; what is no file is written directly, and
/// so is standard output or error, which may be a file that holds more than this.
pub(crate) struct JsonFile {
    path: PathBuf,
    beside: Option<PathBuf>,
    file: File,
    pub(crate) is_stdout: bool,
}

impl JsonFile {
    pub(crate) fn create(path: &Path) -> Result<Self, Failure> {
        let refused = |error: io::Error| {
            let path = path.display();
            Failure::usage(format!("--json {path}: cannot write there: {error}"))
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

    pub(crate) fn write(mut self, report: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(report)
            .map_err(|error| Failure::failed(format!("cannot write JSON: {error}")))?;
        self.put(&text).map_err(|error| {
            Failure::failed(format!("cannot write {}: {error}", self.path.display()))
        })
    }

    fn put(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.file, "{text}")?;
        if let Some(beside) = &self.beside {
            std::fs::rename(beside, &self.path)?;
            self.beside = None;
        }
        Ok(())
    }
}

/// Writes a report where it is wanted: the table to standard output, or to standard error if the JSON
/// goes there.
pub(crate) fn write_out(
    json: Option<JsonFile>,
    table: &str,
    report: &impl Serialize,
) -> Result<(), Failure> {
    match json {
        Some(json) if json.is_stdout => {
            // Whoever reads it reads JSON and nothing else.
            let _ = io::stderr().write_all(table.as_bytes());
            json.write(report)
        }
        Some(json) => {
            json.write(report)?;
            print(table)
        }
        None => print(table),
    }
}

/// The stream, if it leads to the file that was found.
fn stream_at(found: &Metadata, stream: impl AsFd) -> Option<File> {
    let stream: File = stream.as_fd().try_clone_to_owned().ok()?.into();
    let metadata = stream.metadata().ok()?;
    ((metadata.dev(), metadata.ino()) == (found.dev(), found.ino())).then_some(stream)
}

impl Drop for JsonFile {
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
        drop(JsonFile::create(&path).expect("writable"));
        assert_eq!(files(), 0);
        std::fs::write(&path, "before").expect("written");
        drop(JsonFile::create(&path).expect("writable"));
        assert_eq!(std::fs::read(&path).expect("there"), b"before");
        let mut file = JsonFile::create(&path).expect("writable");
        file.put("after").expect("written");
        drop(file);
        assert_eq!(std::fs::read(&path).expect("there"), b"after\n");
        assert_eq!(files(), 1);
        assert!(JsonFile::create(&dir.path().join("absent/figures.json")).is_err());
    }
}
