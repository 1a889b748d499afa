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
pub use self::topics::SetBack;
use super::PartitionEnd;
use super::error::{MissingSegment, RecoverError};
use super::layout::{self, REPAIR_LOG};
use super::segments::log_name;
use super::verify::dry_start;
use crate::files::{self, FileError};

mod keep;
mod plan;
mod topics;

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
        "no cut mends this: with the log cut a start is still refused, so that what was changed was written back. {why}{}{}",
        way_out(why), earlier(begun.as_deref())
    )]
    Useless {
        /// Why a start is refused.
        why: Box<RecoverError>,
        /// A cut before this one that was not finished: it is not undone.
        begun: Option<Box<PastCut>>,
    },
    /// It is cut, in vain, and could not be written back.
    #[error(
        "no cut mends this: with the log cut a start is still refused ({why}), and it could not be written back: {error}; \
         copy {} over those of the data directory, and what {} has of segments that were removed{}",
        kept.join("wal").display(), kept.join("partitions").display(), earlier(begun.as_deref())
    )]
    NotPutBack {
        /// What failed.
        error: FileError,
        /// Why a start is refused.
        why: Box<RecoverError>,
        /// Where the copies are.
        kept: PathBuf,
        /// A cut before this one that was not finished.
        begun: Option<Box<PastCut>>,
    },
}

/// What to do about a cut that was begun, and neither finished nor written back.
fn earlier(begun: Option<&PastCut>) -> String {
    begun.map_or_else(String::new, |begun| format!(". {}", begun.undo()))
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
    keep::keep(dir, plan, kept).map_err(CutError::Keep)?;
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
    match look_at_cut(dir) {
        Ok(ends) => {
            note(DONE).map_err(interrupted)?;
            Ok(ends)
        }
        Err(why) => {
            let slots = plan.logs.iter().flat_map(LogCut::oldest_first);
            let changed = slots.chain(plan.segments.iter().map(|path| &**path));
            let back =
                put_back(dir, changed, kept).and_then(|()| note(&format!("{PUT_BACK}{why}")));
            let (why, begun) = (Box::new(why), plan.begun.clone().map(Box::new));
            Err(match back {
                Ok(()) => CutError::Useless { why, begun },
                Err(error) => CutError::NotPutBack {
                    error,
                    why,
                    kept: kept.to_owned(),
                    begun,
                },
            })
        }
    }
}

/// How far each partition goes now that the log is cut. Beyond what a start looks at, the segments that the snapshots name must
/// be there: those of a topic that was deleted behind the cut are not, and it would be back without them.
fn look_at_cut(dir: &Path) -> Result<Vec<PartitionEnd>, RecoverError> {
    let report = dry_start(dir, &mut |_| {})?;
    let Some(identity) = report.identity else {
        return Ok(report.ends);
    };
    let snapshots = layout::snapshots(dir, &identity)?;
    let stored = keep::by_id(&snapshots);
    for end in &report.ends {
        let segments = stored
            .get(&end.id)
            .and_then(|stored| stored.segments.as_ref());
        let directory = dir.join("partitions").join(end.id.dir_name());
        for segment in segments.into_iter().flatten().filter(|s| s.bytes > 0) {
            let path = directory.join(log_name(segment.base_offset));
            match files::bytes_at(&path) {
                Err(e) if e.cause == files::Cause::Missing => {
                    let topic = end.topic.clone();
                    return Err(MissingSegment { path, topic }.into());
                }
                bytes => bytes?,
            };
        }
    }
    Ok(report.ends)
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

impl PastCut {
    /// What to do about one that is neither finished nor written back.
    pub fn undo(&self) -> String {
        format!(
            "A cut was begun on {} and neither finished nor written back: {}. If no broker was started on this directory \
             since, that has all as it was before: copy its wal/ over the one here, and what its partitions/ has of \
             segments that were removed; else leave it",
            self.time, self.what
        )
    }
}

/// The oldest cut that was begun, and neither finished nor written back: what it kept is as it was before all others.
pub fn begun(dir: &Path) -> Result<Option<PastCut>, FileError> {
    Ok(past_cuts(dir)?.into_iter().find(|cut| !cut.finished))
}

/// Says of a cut that was interrupted behind its last change, and that a start would take, that it is made. Gives it, and how
/// far each partition goes.
///
/// # Errors
/// It was made in vain, or a file operation failed.
pub fn finish(
    dir: &Path,
    note: &mut dyn FnMut(&str) -> Result<(), FileError>,
) -> Result<Option<(PastCut, Vec<PartitionEnd>)>, RecoverError> {
    let Some(cut) = begun(dir)? else {
        return Ok(None);
    };
    let ends = look_at_cut(dir)?;
    note(DONE)?;
    Ok(Some((cut, ends)))
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
