//! The file that `--report` names.

use std::path::{Path, PathBuf};

use ringtide_perf::page;
use ringtide_perf::report::Report;

use crate::bench::output_file::OutputFile;
use crate::exit::Failure;

/// The file for the page.
pub(crate) struct PageFile {
    file: OutputFile,
    path: PathBuf,
}

impl PageFile {
    /// `json` is where the figures go: one file does not hold both.
    pub(crate) fn create(path: &Path, json: Option<&Path>) -> Result<Self, Failure> {
        let whole = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.into());
        if json.is_some_and(|json| whole(json) == whole(path)) {
            return Err(Failure::usage(
                "--json and --report name one file: give each its own",
            ));
        }
        Ok(Self {
            file: OutputFile::create("--report", path)?,
            path: path.into(),
        })
    }

    pub(crate) fn is_stdout(&self) -> bool {
        self.file.is_stdout
    }

    /// Writes the page; the line of the table that says where it is.
    pub(crate) fn write(self, report: &Report) -> Result<String, Failure> {
        self.file.write(&page::html(report))?;
        Ok(format!("\nThe page of this run: {}\n", self.path.display()))
    }
}
