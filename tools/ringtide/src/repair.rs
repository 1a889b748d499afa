//! `ringtide repair`: mends what is derived, or proven by a checksum. How is in `ringtide_log::recovery::repair`. Cutting a
//! damaged log is apart from it, in [`crate::cut_log`].

use std::fmt::Write as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use ringtide_log::files::{self, FileError};
use ringtide_log::recovery::{RecoverError, Report, repair};

use crate::cli::RepairArgs;
use crate::cut_log;
use crate::exit::{Exit, Failure};
use crate::offline::{check_directory, judge, look};
use crate::output;

/// Runs `repair`.
pub(crate) fn run(args: &RepairArgs) -> Result<(), Failure> {
    let dir = &*args.data_dir;
    check_directory(dir)?;
    if let (true, Some(keep)) = (args.cut_log, &args.keep) {
        return cut_log::run(dir, keep, args.yes);
    }
    let lock = files::lock(dir)?;
    let report = look(dir)?;
    if report.identity.is_none() {
        lock.undo();
        return judge(dir, &report);
    }
    let mut failures = 0;
    let mut tell = |error: FileError| {
        output::say(error);
        failures += 1;
    };
    // First, so that indexes are judged by what the segments hold then.
    let report = match report.is_sound() {
        true => report,
        false => mend_batches(dir, report, &mut tell)?,
    };
    remove_derived(dir, &report, &mut tell)?;
    if failures > 0 {
        let message = format!(
            "{}: operations on files that failed: {failures}",
            dir.display()
        );
        return Err(Failure::new(Exit::DirectoryUnusable, message));
    }
    if report.is_sound() {
        return Ok(());
    }
    output::say(
        "nothing more can be mended: restore the whole data directory from a copy; for a damaged write-ahead log \
         without a copy there is --cut-log",
    );
    judge(dir, &report)
}

/// Mends what the segments' checksums prove, and looks again if that was something.
fn mend_batches(
    dir: &Path,
    report: Report,
    tell: &mut dyn FnMut(FileError),
) -> Result<Report, Failure> {
    let mended = match repair::mend_batches(dir, tell) {
        Ok(mended) => mended,
        Err(error) => {
            match error {
                RecoverError::File(error) => tell(error),
                error => output::say(format!("batches could not be mended: {error}")),
            }
            return Ok(report);
        }
    };
    let mut done = String::new();
    for (path, position) in &mended {
        let _ = writeln!(
            done,
            "wrote offset and leader epoch of the batch at byte {position} of {} as they had been",
            path.display()
        );
    }
    note(dir, &done)?;
    if mended.is_empty() {
        return Ok(report);
    }
    look(dir)
}

/// Removes what is derived and wrong.
fn remove_derived(
    dir: &Path,
    report: &Report,
    tell: &mut dyn FnMut(FileError),
) -> Result<(), Failure> {
    let mut done = String::new();
    for path in repair::mend(report, tell) {
        let _ = writeln!(
            done,
            "removed {}: it is built anew when it is needed",
            path.display()
        );
    }
    note(dir, &done)
}

pub(crate) fn failed(error: FileError) -> Failure {
    Failure::new(Exit::DirectoryUnusable, error.to_string())
}

/// Prints lines and writes them to the log of repairs, if there are any.
fn note(dir: &Path, lines: &str) -> Result<(), Failure> {
    if lines.is_empty() {
        return Ok(());
    }
    let printed = output::print(lines);
    add(dir, lines).map_err(failed)?;
    printed
}

/// Adds lines to the log of repairs, each with the time.
pub(crate) fn add(dir: &Path, lines: &str) -> Result<(), FileError> {
    let time = utc(SystemTime::now());
    let stamped: String = lines
        .lines()
        .map(|line| format!("{time} {line}\n"))
        .collect();
    repair::log(dir, &stamped)
}

/// A time as in the name of a file: 20261122T013000Z.
fn utc(time: SystemTime) -> String {
    let seconds = time
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let (mut days, of_day) = (seconds / 86_400, seconds % 86_400);
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let mut month = 1;
    for length in [
        31,
        28 + u64::from(is_leap(year)),
        31,
        30,
        31,
        30,
        31,
        31,
        30,
        31,
        30,
        31,
    ] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!(
        "{year:04}{month:02}{:02}T{hour:02}{minute:02}{second:02}Z",
        days + 1
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_are_those_of_the_calendar() {
        let at = |seconds| utc(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "19700101T000000Z");
        assert_eq!(at(951_782_399), "20000228T235959Z");
        assert_eq!(at(951_782_400), "20000229T000000Z");
        assert_eq!(at(1_798_761_599), "20261231T235959Z");
    }
}
