//! `ringtide verify` and `ringtide inspect`: a stopped broker's files, read without it.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufWriter, ErrorKind};
use std::path::Path;
use std::time::Duration;

use ringtide_log::files::{self, LockError};
use ringtide_log::recovery::inspect::{self, InspectError};
use ringtide_log::recovery::{Progress as Step, Report, verify};

use crate::cli::FileKind;
use crate::exit::{Exit, Failure};
use crate::output;
use crate::progress::{Progress, grouped, rate};

impl From<LockError> for Failure {
    fn from(error: LockError) -> Self {
        let exit = match error {
            LockError::Running { .. } => Exit::DirectoryLocked,
            LockError::File(_) => Exit::DirectoryUnusable,
        };
        Self::new(exit, error.to_string())
    }
}

/// Runs `verify`.
pub(crate) fn verify_directory(dir: &Path) -> Result<(), Failure> {
    check_directory(dir)?;
    let _lock = files::lock_read_only(dir)?;
    judge(dir, &look(dir)?)
}

/// Refuses what is no directory.
pub(crate) fn check_directory(dir: &Path) -> Result<(), Failure> {
    if dir.is_dir() {
        return Ok(());
    }
    let message = format!(
        "{} is not a directory; name one with --data-dir",
        dir.display()
    );
    Err(Failure::new(Exit::DirectoryUnusable, message))
}

/// Reads a directory whose lock is held, and prints what is wrong with it.
pub(crate) fn look(dir: &Path) -> Result<Report, Failure> {
    let mut progress = Progress::new();
    let report = verify(dir, &mut |step| {
        progress.tick(|elapsed| show(step, elapsed))
    })
    .map_err(|error| Failure::new(Exit::DirectoryUnusable, error.to_string()))?;
    progress.clear();
    output::print(&text(dir, &report))?;
    Ok(report)
}

/// Fails if a report has serious problems.
pub(crate) fn judge(dir: &Path, report: &Report) -> Result<(), Failure> {
    let serious = report
        .problems
        .iter()
        .filter(|problem| problem.serious)
        .count();
    if serious == 0 {
        return Ok(());
    }
    let message = format!("{}: problems that are serious: {serious}", dir.display());
    Err(Failure::new(Exit::ProblemsFound, message))
}

pub(crate) fn show(step: Step, elapsed: Duration) -> String {
    match step {
        Step::Replaying { done, total } => of_mib("reading the log", done, total, elapsed),
        Step::Reading { done, total } => of_mib("reading segments", done, total, elapsed),
        Step::Syncing { done, total } => {
            format!("making durable: {} of {}", grouped(done), grouped(total))
        }
    }
}

fn of_mib(what: &str, done: u64, total: u64, elapsed: Duration) -> String {
    format!(
        "{what}: {} of {} MiB, {}",
        done >> 20,
        total >> 20,
        rate(done, elapsed)
    )
}

fn text(dir: &Path, report: &Report) -> String {
    let mut out = String::new();
    for problem in &report.problems {
        let class = if problem.serious {
            "PROBLEM"
        } else {
            "note   "
        };
        let _ = writeln!(out, "{class}  {problem}");
    }
    let _ = writeln!(
        out,
        "{}: {} topics, {} partitions, {} segments of {} bytes with {} records",
        dir.display(),
        report.topics,
        grouped(report.partitions),
        grouped(report.segments),
        grouped(report.segment_bytes),
        grouped(report.records),
    );
    let log = &report.log;
    let _ = if log.was_clean {
        writeln!(
            out,
            "the broker stopped cleanly: the next start has no log to replay"
        )
    } else {
        let (frames, entries, bytes) = (grouped(log.frames), grouped(log.entries), log.wal_bytes);
        let bytes = grouped(bytes);
        writeln!(
            out,
            "the next start will replay {bytes} bytes of log: {frames} frames, {entries} entries"
        )
    };
    for cut in &report.cuts {
        let _ = writeln!(
            out,
            "the write-ahead log was cut on {}, and what was acknowledged behind the cut is not here: {}",
            cut.time, cut.what
        );
    }
    if report.is_sound() {
        out.push_str(match report.cuts.is_empty() {
            true => "nothing that was acknowledged is missing, as far as the directory can show\n",
            false => "nothing else is wrong\n",
        });
    }
    out
}

/// Runs `inspect`.
pub(crate) fn inspect_file(kind: FileKind, path: &Path) -> Result<(), Failure> {
    if let Some(other) = kind_by_name(path).filter(|&other| other != kind) {
        let (path, kind, other) = (path.display(), name(kind), name(other));
        return Err(Failure::failed(format!(
            "{path} is by its name no {kind} file; try `ringtide inspect {other} {path}`"
        )));
    }
    readable(kind, path)?;
    if let Some(dir) = data_directory_of(path) {
        // A file that changes while it is read would be shown as damaged.
        let _lock = files::lock_read_only(&dir)?;
        return show_file(kind, path);
    }
    show_file(kind, path)
}

/// Whether there is a file that can be read, in the words of who gave its path: it may lie anywhere,
/// so that advice about data directories would mislead.
fn readable(kind: FileKind, path: &Path) -> Result<(), Failure> {
    let shown = path.display();
    if path.is_dir() {
        let (kind, place) = (name(kind), place(kind));
        return Err(Failure::failed(format!(
            "{shown} is a directory; name one {kind} file, in a data directory {place}"
        )));
    }
    let Err(error) = File::open(path) else {
        return Ok(());
    };
    let advice = match error.kind() {
        ErrorKind::NotFound => "check the path",
        ErrorKind::PermissionDenied => "run this as a user who may read it, such as the broker's",
        _ => "read it on the host that has it, or copy it first",
    };
    Err(Failure::failed(format!(
        "cannot open {shown}: {error}; {advice}"
    )))
}

fn show_file(kind: FileKind, path: &Path) -> Result<(), Failure> {
    let mut out = BufWriter::with_capacity(64 << 10, io::stdout().lock());
    let shown = match kind {
        FileKind::Wal => inspect::wal(path, &mut out),
        FileKind::Segment => inspect::segment(path, &mut out),
        FileKind::Index => inspect::index(path, &mut out),
        FileKind::Snapshot => inspect::snapshot(path, &mut out),
    };
    let flushed = shown.and_then(|bad| {
        io::Write::flush(&mut out)?;
        Ok(bad)
    });
    match flushed {
        Ok(0) => Ok(()),
        Ok(bad) => Err(Failure::new(
            Exit::ProblemsFound,
            format!(
                "{} is damaged: lines that begin with BAD say where ({bad}); `ringtide verify` says \
                 what that means for the data directory",
                path.display()
            ),
        )),
        Err(InspectError::Out(error)) => Err(output::failure(error)),
        Err(error) => Err(Failure::failed(error.to_string())),
    }
}

fn name(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Wal => "wal",
        FileKind::Segment => "segment",
        FileKind::Index => "index",
        FileKind::Snapshot => "snapshot",
    }
}

fn place(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Wal => "wal/NUMBER.wal",
        FileKind::Segment => "partitions/ID/OFFSET.log",
        FileKind::Index => "partitions/ID/OFFSET.index",
        FileKind::Snapshot => "groups/NUMBER.snapshot",
    }
}

/// What a file's extension says it is. A copy may have any name.
fn kind_by_name(path: &Path) -> Option<FileKind> {
    match path.extension()?.to_str()? {
        "wal" => Some(FileKind::Wal),
        "log" => Some(FileKind::Segment),
        "index" => Some(FileKind::Index),
        "snapshot" => Some(FileKind::Snapshot),
        _ => None,
    }
}

/// The data directory that a file lies in: the nearest above it that has a lock.
fn data_directory_of(path: &Path) -> Option<std::path::PathBuf> {
    let path = path.canonicalize().ok()?;
    let found = path
        .ancestors()
        .skip(1)
        .take(3)
        .find(|dir| dir.join("lock").is_file());
    found.map(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_another_kind_is_refused_with_the_command_that_would_do() {
        let failure = inspect_file(FileKind::Wal, Path::new("/nowhere/00001.snapshot"));
        let message = failure.expect_err("another kind").message;
        assert!(
            message.contains("inspect snapshot /nowhere/00001.snapshot"),
            "{message}"
        );
    }

    #[test]
    fn a_path_without_a_file_to_show_is_refused_with_what_to_do() {
        let home = tempfile::tempdir().expect("a directory");
        let message = |path: &Path| inspect_file(FileKind::Wal, path).expect_err("none").message;
        let absent = message(&home.path().join("000000.wal"));
        assert!(
            absent.contains("000000.wal") && absent.contains("check the path"),
            "{absent}"
        );
        assert!(!absent.contains("restore"), "{absent}");
        let directory = message(home.path());
        assert!(directory.contains("name one wal file"), "{directory}");
    }

    #[test]
    fn damage_decides_the_exit_code() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("00000000000000000000.index");
        std::fs::write(&path, "junk").expect("written");
        let failure = inspect_file(FileKind::Index, &path).expect_err("damage");
        assert_eq!(failure.exit, Exit::ProblemsFound);
        assert!(
            failure.message.contains("00000.index is damaged"),
            "{failure}"
        );
    }

    #[test]
    fn a_directory_that_is_none_is_refused() {
        let failure = verify_directory(Path::new("/nowhere")).expect_err("no directory");
        assert_eq!(failure.exit, Exit::DirectoryUnusable);
    }
}
