//! Cutting a damaged write-ahead log off at its damage, so that an ordinary start finds a log that ends there, as after a
//! torn write. Recovery knows nothing of it.
//!
//! [`plan()`] says where each damaged log is to be cut and what can still be read behind that. [`make`] copies what a start
//! may read or change to another directory, writes zeros over the logs from their ends back to the cuts, and judges what is
//! left as a start would: a directory that no cut mends is written back as it was. Interrupted anywhere it leaves a
//! directory that is refused as before, or one that is cut, and made again it comes to the same end.

use std::path::{Path, PathBuf};

use self::keep::{pieces, put_back};
pub use self::plan::{Behind, LogCut, Outlook, Plan, Span, plan};
use super::PartitionEnd;
use super::error::RecoverError;
use super::layout::REPAIR_LOG;
use super::verify::dry_start;
use crate::files::{self, FileError};

mod keep;
mod plan;

/// How the line of a cut begins in `repair.log`, behind its time.
const CUTTING: &str = "cutting the write-ahead log: ";
const DONE: &str = "the write-ahead log is cut";
const PUT_BACK: &str = "wrote the write-ahead log back as it was before the cut: ";

/// Why a log was not cut.
#[derive(Debug, thiserror::Error)]
pub enum CutError {
    /// Nothing was changed, and nothing is left of the copies.
    #[error("what the cut takes cannot be kept, and nothing was changed: {0}")]
    Keep(FileError),
    /// It may be cut in part.
    #[error(
        "the cut is not finished: {error}; everything that it takes is in {}; repair again, with another --keep",
        kept.display()
    )]
    Interrupted {
        /// What failed.
        error: FileError,
        /// Where the copies are.
        kept: PathBuf,
    },
    /// The slots are again as they were.
    #[error(
        "no cut mends this: with the log cut a start is still refused, so that it was written back as it was. {why}{}",
        way_out(.0), why = .0
    )]
    Useless(RecoverError),
    /// It is cut, in vain, and could not be written back.
    #[error(
        "no cut mends this: with the log cut a start is still refused ({why}), and it could not be written back: {error}; \
         copy {} over those of the data directory",
        kept.join("wal").display()
    )]
    NotPutBack {
        /// What failed.
        error: FileError,
        /// Why a start is refused.
        why: Box<RecoverError>,
        /// Where the copies are.
        kept: PathBuf,
    },
}

fn way_out(why: &RecoverError) -> &'static str {
    match why {
        RecoverError::Unlisted(_) => {
            ". If no snapshot is missing, because all of that partition came behind the damage, move the segment out of \
             the data directory and repair again: what it holds is lost with the log"
        }
        _ => "",
    }
}

/// Keeps what a cut takes in `kept`, a directory that is empty or not there yet, and cuts. `note` adds a line to the log
/// of repairs, durably. Gives how far each partition goes from now on.
pub fn make(
    dir: &Path,
    plan: &Plan,
    kept: &Path,
    note: &mut dyn FnMut(&str) -> Result<(), FileError>,
) -> Result<Vec<PartitionEnd>, CutError> {
    keep::keep(dir, &plan.kept, kept).map_err(CutError::Keep)?;
    let interrupted = |error| CutError::Interrupted {
        error,
        kept: kept.to_owned(),
    };
    let places: Vec<String> = plan.logs.iter().map(LogCut::place).collect();
    let line = format!(
        "{CUTTING}{}; what it takes is in {}",
        places.join(", "),
        kept.display()
    );
    note(&line).map_err(interrupted)?;
    change(plan).map_err(interrupted)?;
    match dry_start(dir, &mut |_| {}) {
        Ok(report) => {
            note(DONE).map_err(interrupted)?;
            Ok(report.ends)
        }
        Err(why) => {
            let slots = plan.logs.iter().flat_map(LogCut::oldest_first);
            let changed = slots.chain(plan.segments.iter().map(|path| &**path));
            let back =
                put_back(dir, changed, kept).and_then(|()| note(&format!("{PUT_BACK}{why}")));
            Err(match back {
                Ok(()) => CutError::Useless(why),
                Err(error) => CutError::NotPutBack {
                    error,
                    why: Box::new(why),
                    kept: kept.to_owned(),
                },
            })
        }
    }
}

/// Segments go first: while the logs are damaged nothing starts.
fn change(plan: &Plan) -> Result<(), FileError> {
    for path in &plan.segments {
        files::remove_file(path)?;
        files::sync_directory(files::parent(path))?;
    }
    plan.logs.iter().try_for_each(zero)
}

/// Writes zeros over a log behind its cut. The newest slot goes first, durably, because the slots that are left must be one
/// run; the damage itself goes last, so that until then nothing behind it can be taken for its continuation.
fn zero(log: &LogCut) -> Result<(), FileError> {
    for (path, from) in log.newest_first() {
        let slot = files::open_read(path, false)?;
        let file = files::open_write(path, false, false)?;
        pieces(&slot, path, from, |at, piece| {
            files::write_at(&file, path, &vec![0; piece.len()], at)
        })?;
        files::sync_data(&file, path)?;
    }
    Ok(())
}

/// A cut that the log of repairs tells of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PastCut {
    /// When it was begun.
    pub time: String,
    /// Where it was, and where what it took was kept.
    pub what: String,
    /// It was made to its end.
    pub finished: bool,
}

/// Says of a cut that was interrupted behind its last change, and that a start would take, that it is made.
pub fn finish(
    dir: &Path,
    note: &mut dyn FnMut(&str) -> Result<(), FileError>,
) -> Result<(), FileError> {
    match past_cuts(dir)?.iter().all(|cut| cut.finished) {
        true => Ok(()),
        false => note(DONE),
    }
}

/// The cuts that `repair.log` tells of, but those that were written back.
pub fn past_cuts(dir: &Path) -> Result<Vec<PastCut>, FileError> {
    let text = files::read_whole(&dir.join(REPAIR_LOG))?.unwrap_or_default();
    let mut cuts: Vec<PastCut> = Vec::new();
    for line in String::from_utf8_lossy(&text).lines() {
        let (time, said) = line.split_once(' ').unwrap_or_default();
        if let Some(what) = said.strip_prefix(CUTTING) {
            let (time, what) = (time.to_owned(), what.to_owned());
            cuts.push(PastCut {
                time,
                what,
                finished: false,
            });
        } else if said == DONE {
            cuts.iter_mut().for_each(|cut| cut.finished = true);
        } else if said.starts_with(PUT_BACK) {
            cuts.pop();
        }
    }
    Ok(cuts)
}
