//! Reading everything that a data directory holds and listing what is wrong with it.
//!
//! Nothing is changed. The log is judged by running recovery without its writes, so that a verdict
//! here is the verdict of the next start.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use ringtide_schema::identity::Identity;
use ringtide_schema::ids::PartitionId;
use ringtide_schema::index::{IndexError, IndexView};
use ringtide_schema::limits::BLOCK_BYTES;
use ringtide_schema::store::{GroupSnapshotT, PartitionT, SegmentT};

use super::chain::LogEnd;
use super::cut::{self, PastCut};
use super::error::{BadSegment, RecoverError};
use super::layout::{self, Top};
use super::metadata::Standing;
use super::replay::{Mode, Replay};
use super::scan::{Contents, IndexCheck, Scan};
use super::segments::{index_name, log_name};
use super::{Progress, Summary, check_open_segments, next_start, open_segment, replay_logs, slots};
use crate::files::{self, FileError};

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file or directory.
    pub path: PathBuf,
    /// Where in it, in bytes, if anywhere.
    pub position: Option<u64>,
    /// What is wrong and what it means.
    pub what: String,
    /// Records are lost or changed, or the broker will not start; otherwise it mends itself.
    pub serious: bool,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(position) = self.position {
            write!(f, " at byte {position}")?;
        }
        write!(f, ": {}", self.what)
    }
}

/// How far a partition goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionEnd {
    /// Its topic.
    pub topic: String,
    /// The partition.
    pub id: PartitionId,
    /// Its first offset.
    pub begins: u64,
    /// One past its last offset.
    pub ends: u64,
}

/// What verification found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The identity, if it could be read; without one there is nothing else.
    pub identity: Option<Identity>,
    /// Topics, the log included.
    pub topics: usize,
    /// Partitions with data, as the snapshots have them.
    pub partitions: u64,
    /// Segments read.
    pub segments: u64,
    /// Their bytes, tails included.
    pub segment_bytes: u64,
    /// Batches in them.
    pub batches: u64,
    /// Records in those.
    pub records: u64,
    /// What the next start will find in the log.
    pub log: Summary,
    /// How far each partition goes then, in the order of their ids; none if it will be refused.
    pub ends: Vec<PartitionEnd>,
    /// Cuts of the log that `repair.log` tells of, oldest first: what they took is not there.
    pub cuts: Vec<PastCut>,
    /// What is wrong, in the order it was found.
    pub problems: Vec<Problem>,
}

impl Report {
    /// Whether nothing is wrong that does not mend itself.
    pub fn is_sound(&self) -> bool {
        self.problems.iter().all(|problem| !problem.serious)
    }

    /// Where the logs end.
    pub fn log_ends(&self) -> &[LogEnd] {
        &self.log.log_ends
    }

    fn note(&mut self, path: &Path, position: Option<u64>, what: impl Into<String>, serious: bool) {
        self.problems.push(Problem {
            path: path.to_owned(),
            position,
            what: what.into(),
            serious,
        });
    }

    /// A refusal of recovery as a problem: its message names the file and the place.
    fn refusal(&mut self, dir: &Path, error: &RecoverError) {
        self.note(
            dir,
            None,
            format!("the broker will not start: {error}"),
            true,
        );
    }
}

/// Verifies a data directory that no broker is running on; the caller holds its lock.
///
/// # Errors
/// Only what keeps it from looking at all; whatever is found is in the report.
pub fn verify(dir: &Path, progress: &mut dyn FnMut(Progress)) -> Result<Report, FileError> {
    let mut report = Report::default();
    let mut leftovers = Vec::new();
    let identity = match layout::look(dir, &mut leftovers) {
        Ok(Top::Used(identity)) => identity,
        Ok(Top::Fresh) => {
            report.note(dir, None, "there is no data directory here", true);
            return Ok(report);
        }
        Err(RecoverError::File(error)) => return Err(error),
        Err(error) => {
            report.refusal(dir, &error);
            return Ok(report);
        }
    };
    report.identity = Some(identity);
    report.cuts = cut::past_cuts(dir)?;
    if let Err(error) = next_start(dir, &identity) {
        report.refusal(dir, &error);
    }
    for path in leftovers {
        report.note(
            &path,
            None,
            "left by an interrupted replacement; the next start removes it",
            false,
        );
    }
    let snapshots = match layout::snapshots(dir, &identity) {
        Ok(snapshots) => snapshots,
        Err(error) => {
            report.refusal(dir, &error);
            return Ok(report);
        }
    };
    let partitions: Vec<PartitionT> = snapshots
        .iter()
        .flat_map(|g| g.partitions.iter().flatten())
        .cloned()
        .collect();
    let deleted = match log(dir, &identity, snapshots, &mut report, progress) {
        Ok(deleted) => deleted,
        Err(error) => {
            report.refusal(dir, &error);
            Vec::new()
        }
    };
    // What a damaged snapshot says has no bound.
    let segments = partitions.iter().flat_map(|p| p.segments.iter().flatten());
    let total = segments.fold(0_u64, |sum, s| sum.saturating_add(s.bytes));
    let mut done = 0_u64;
    for stored in &partitions {
        let Some(topic) = stored.topic.as_ref() else {
            continue;
        };
        let id = PartitionId {
            topic: topic.into(),
            partition: stored.partition,
        };
        if deleted.contains(&id) {
            continue;
        }
        report.partitions += 1;
        let directory = dir.join("partitions").join(id.dir_name());
        for segment in stored.segments.iter().flatten() {
            check_segment(&directory, segment, stored, &mut report);
            done = done.saturating_add(segment.bytes);
            progress(Progress::Reading { done, total });
        }
    }
    // More than one reader may come upon the same.
    let mut seen = HashSet::new();
    let told = |p: &Problem| (p.path.clone(), p.position, p.what.clone());
    report.problems.retain(|problem| seen.insert(told(problem)));
    Ok(report)
}

/// Runs the next start without its writes.
///
/// # Errors
/// Its refusal.
pub(super) fn dry_start(
    dir: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report, RecoverError> {
    let mut report = Report::default();
    if let Top::Used(identity) = layout::look(dir, &mut Vec::new())? {
        report.identity = Some(identity);
        next_start(dir, &identity)?;
        let snapshots = layout::snapshots(dir, &identity)?;
        log(dir, &identity, snapshots, &mut report, progress)?;
    }
    Ok(report)
}

/// Judges the log as recovery would; gives the partitions of deleted topics.
fn log(
    dir: &Path,
    identity: &Identity,
    snapshots: Vec<GroupSnapshotT>,
    report: &mut Report,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<PartitionId>, RecoverError> {
    let slot_files = slots::list(&dir.join("wal"))?;
    for slot in slots::look_at_all(&slot_files, false)? {
        if slot.is_cut() {
            // Where the log is needed it is refused below.
            if identity.clean {
                let what = format!(
                    "it has {} bytes, which no slot of the log is made with; the broker stopped cleanly, so that the next \
                     start needs nothing of it, and removes it",
                    slot.bytes
                );
                report.note(&slot.path, None, what, false);
            }
        } else if let Some(error) = slot.damaged_header() {
            let what = format!(
                "{error}; frames say where their slot belongs, and its next use writes the header anew"
            );
            report.note(&slot.path, Some(0), what, false);
        }
    }
    let directories = layout::partitions(dir)?;
    let stored: Vec<(PartitionId, Option<BadSegment>)> = snapshots
        .iter()
        .flat_map(|g| g.partitions.iter().flatten())
        .filter_map(|p| {
            let topic = p.topic.as_ref()?.into();
            let id = PartitionId {
                topic,
                partition: p.partition,
            };
            match open_segment(dir, p) {
                Err(RecoverError::BadSegment(bad)) => Some(Ok((id, Some(bad)))),
                opened => Some(opened.map(|_| (id, None))),
            }
        })
        .collect::<Result<_, _>>()?;
    let mode = Mode {
        direct: false,
        dry: true,
    };
    let mut replay = Replay::new(dir, *identity, mode, snapshots, progress)?;
    report.log.was_clean = identity.clean;
    replay_logs(identity, &slot_files, false, &mut replay, &mut report.log)?;
    report.log.batches = replay.batches;
    report.log.skipped = replay.skipped;
    replay.finish()?;
    report.topics = replay.metadata().topics().count();
    let open_indexes: HashSet<PathBuf> = directories
        .iter()
        .flat_map(|(id, directory)| {
            let stored = replay.partition(*id);
            let segments = stored
                .and_then(|p| p.segments.as_deref())
                .unwrap_or_default();
            let open = segments.iter().filter(|segment| !segment.sealed);
            open.map(|segment| directory.join(index_name(segment.base_offset)))
        })
        .collect();
    let garbage = layout::garbage(directories, &replay, !identity.clean)?;
    for path in garbage.files.iter().chain(&garbage.directories) {
        let what = if open_indexes.contains(path) {
            "the index of a segment that is still open to the broker: it ended before it had recorded \
             that the segment was sealed; the next start removes it, and it is made anew"
        } else {
            "no longer needed; the next start after a crash removes it"
        };
        report.note(path, None, what, false);
    }
    report.ends = ends(&replay);
    let mut deleted = Vec::new();
    for (id, short) in stored {
        match (replay.standing(id.topic), short) {
            (Standing::Live(_), Some(short)) => return Err(short.into()),
            (Standing::Live(_), None) => {}
            _ => deleted.push(id),
        }
    }
    if identity.clean {
        for (snapshot, _) in replay.into_groups() {
            check_open_segments(dir, &snapshot, true)?;
        }
    }
    Ok(deleted)
}

fn ends(replay: &Replay<'_>) -> Vec<PartitionEnd> {
    let end = |(id, stored): (PartitionId, &PartitionT)| match replay.standing(id.topic) {
        Standing::Live(topic) => Some(PartitionEnd {
            topic: topic.name.clone(),
            id,
            begins: stored.log_start,
            ends: stored.next_offset,
        }),
        _ => None,
    };
    replay.partitions().filter_map(end).collect()
}

fn check_segment(directory: &Path, segment: &SegmentT, stored: &PartitionT, report: &mut Report) {
    let path = directory.join(log_name(segment.base_offset));
    report.segments += 1;
    match files::bytes_at(&path) {
        Err(error) => {
            let nothing_synced = !segment.sealed && segment.bytes == 0;
            if !(nothing_synced && error.cause == files::Cause::Missing) {
                report.note(&path, None, error.to_string(), true);
                return;
            }
        }
        Ok(have) => {
            let want = segment.bytes;
            if have < want || (segment.sealed && have != want) {
                let what = format!("it has {have} bytes instead of {want}");
                report.note(&path, None, what, true);
            }
        }
    }
    if let Err(error) = read_segment(&path, directory, segment, stored, report) {
        report.note(&path, None, error.to_string(), true);
    }
}

fn read_segment(
    path: &Path,
    directory: &Path,
    segment: &SegmentT,
    stored: &PartitionT,
    report: &mut Report,
) -> Result<(), FileError> {
    let (tail, end) = if segment.sealed {
        (Vec::new(), segment.next_offset)
    } else {
        (stored.tail.clone().unwrap_or_default(), stored.next_offset)
    };
    let log_bytes = segment.bytes.saturating_add(tail.len() as u64);
    report.segment_bytes = report.segment_bytes.saturating_add(log_bytes);
    let index_path = directory.join(index_name(segment.base_offset));
    let index_bytes = files::read_whole(&index_path)?.filter(|_| segment.sealed);
    let mut index = None;
    if let Some(bytes) = &index_bytes {
        match IndexView::check(bytes) {
            Ok(view) => index = Some(IndexCheck::new(view)),
            Err(error) => wrong_index(&index_path, Some(error), report),
        }
    }
    let mut index_is_true = true;
    let mut prefix_is_told = false;
    let mut contents = Contents::new(segment.base_offset);
    if log_bytes > 0 {
        let mut scan = Scan::open(path, segment.bytes, tail)?;
        loop {
            let position = scan.position();
            let (header, batch) = match scan.next_at_any_offset()? {
                None => break,
                Some(Ok(batch)) => batch,
                Some(Err(error)) => {
                    let what = format!(
                        "{error}; the records of a batch are lost, from offset {} on, and what follows in the segment was not looked at",
                        contents.next_offset
                    );
                    report.note(path, Some(position), what, true);
                    return Ok(());
                }
            };
            if header.base_offset != contents.next_offset {
                let (found, expected) = (header.base_offset, contents.next_offset);
                let what = format!("a batch with offset {found} where {expected} was to come");
                report.note(path, Some(position), what, true);
                prefix_is_told = true;
            }
            let epoch = header.leader_epoch.cast_unsigned();
            if let Some(written) = epoch_at(stored, contents.next_offset)
                && epoch != written
            {
                let what = format!(
                    "a batch with leader epoch {epoch} that was written under {written}; its records are whole, and \
                     readers are given them with the wrong epoch"
                );
                report.note(path, Some(position), what, true);
                prefix_is_told = true;
            }
            if let Some(index) = &mut index {
                index_is_true &= index.batch(position, &header, &contents);
            }
            contents.add(&header, batch);
        }
    }
    report.batches += contents.batches;
    report.records += contents.records;
    if contents.next_offset != end {
        let found = contents.next_offset;
        report.note(
            path,
            None,
            format!("it ends at offset {found} instead of {end}"),
            true,
        );
    }
    if contents.prefix_crc != segment.prefix_crc && !prefix_is_told {
        let what = "offsets or epochs of its batches are not those that were written";
        report.note(path, None, what, true);
    }
    if !segment.sealed && !segment.bytes.is_multiple_of(BLOCK_BYTES as u64) {
        report.note(
            path,
            Some(segment.bytes),
            "its synced position is within a block",
            true,
        );
    }
    if index.is_some_and(|index| !index_is_true || !index.is_complete(log_bytes)) {
        wrong_index(&index_path, None, report);
    }
    Ok(())
}

/// The epoch under which a partition wrote an offset.
pub(super) fn epoch_at(stored: &PartitionT, offset: u64) -> Option<u32> {
    let mut starts = stored.epochs.iter().flatten().rev();
    let start = starts.find(|start| start.start_offset <= offset)?;
    Some(start.epoch)
}

fn wrong_index(path: &Path, error: Option<IndexError>, report: &mut Report) {
    let why = error.map_or_else(
        || "it does not fit its segment".to_owned(),
        |e| e.to_string(),
    );
    report.note(
        path,
        None,
        format!("{why}; remove it, it is built anew"),
        false,
    );
}
