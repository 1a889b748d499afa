//! The file that `--json` names.

use std::io::{self, Write as _};
use std::path::Path;

use serde::Serialize;

use crate::bench::output_file::OutputFile;
use crate::exit::Failure;
use crate::output::print;

/// The file for the figures.
pub(crate) struct JsonFile {
    file: OutputFile,
    pub(crate) is_stdout: bool,
}

impl JsonFile {
    pub(crate) fn create(path: &Path) -> Result<Self, Failure> {
        let file = OutputFile::create("--json", path)?;
        let is_stdout = file.is_stdout;
        Ok(Self { file, is_stdout })
    }

    pub(crate) fn write(self, report: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(report)
            .map_err(|error| Failure::failed(format!("cannot write JSON: {error}")))?;
        self.file.write(&format!("{text}\n"))
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
