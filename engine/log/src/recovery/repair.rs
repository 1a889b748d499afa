//! Mending a data directory that no broker runs on: what is derived is removed, so that it is built anew
//! ([`mend`]), and what a checksum proves is written as it was ([`mend_batches`]).

use std::path::{Path, PathBuf};

use ringtide_schema::batch::{CRC_START, LENGTH_EXCLUDES_BYTES};
use ringtide_schema::ids::PartitionId;
use ringtide_schema::store::{GroupSnapshotT, PartitionT, SegmentT};

use super::Report;
use super::error::RecoverError;
use super::layout::{self, REPAIR_LOG, Top};
use super::scan::Scan;
use super::segments::log_name;
use super::verify::epoch_at;
use crate::files::{self, FileError};

/// Removes what verification found to be wrong and is derived, or was left by an interrupted replacement; gives
/// what was removed, and tells what could not be. A start builds it anew.
pub fn mend(report: &Report, tell: &mut dyn FnMut(FileError)) -> Vec<PathBuf> {
    let mut removed = Vec::new();
    for problem in report.problems.iter().filter(|problem| !problem.serious) {
        let derived = problem
            .path
            .extension()
            .is_some_and(|e| e == "index" || e == "tmp");
        if derived && !removed.contains(&problem.path) {
            let ended = files::remove_file(&problem.path).and_then(|()| {
                removed.push(problem.path.clone());
                files::sync_directory(files::parent(&problem.path))
            });
            if let Err(error) = ended {
                tell(error);
            }
        }
    }
    removed
}

/// Writes base offsets and leader epochs of stored batches anew where they are wrong; gives where it did, file and byte.
/// A segment that cannot be read or written is told, and those behind it are mended.
///
/// No checksum of a batch covers them. What they must be follows from the batches before and from the snapshot, and
/// the segment's own checksum of them shows that this is what was written: else nothing is changed.
pub fn mend_batches(
    dir: &Path,
    tell: &mut dyn FnMut(FileError),
) -> Result<Vec<(PathBuf, u64)>, RecoverError> {
    let mut mended = Vec::new();
    let Top::Used(identity) = layout::look(dir, &mut Vec::new())? else {
        return Ok(mended);
    };
    let snapshots = layout::snapshots(dir, &identity)?;
    for stored in partitions(&snapshots) {
        let Some(id) = id_of(stored) else { continue };
        let directory = dir.join("partitions").join(id.dir_name());
        for segment in stored.segments.iter().flatten() {
            let path = directory.join(log_name(segment.base_offset));
            if let Err(error) = mend_segment(&path, segment, stored, &mut mended) {
                tell(error);
            }
        }
    }
    Ok(mended)
}

fn mend_segment(
    path: &Path,
    segment: &SegmentT,
    stored: &PartitionT,
    mended: &mut Vec<(PathBuf, u64)>,
) -> Result<(), FileError> {
    let Some(wrong) = wrong_batches(path, segment, stored)? else {
        return Ok(());
    };
    let file = files::open_write(path, false, false)?;
    for (position, prefix) in wrong {
        files::write_at(&file, path, &prefix, position)?;
        mended.push((path.to_owned(), position));
    }
    files::sync_data(&file, path)
}

/// Batches of a segment whose offset or epoch is wrong, each with its first bytes as they were written, if the
/// segment's checksum shows that they were.
fn wrong_batches(
    path: &Path,
    segment: &SegmentT,
    stored: &PartitionT,
) -> Result<Option<Vec<(u64, Prefix)>>, FileError> {
    let (tail, end) = held(segment, stored);
    let mut scan = match Scan::open(path, segment.bytes, tail) {
        Err(error) if error.cause == files::Cause::Missing => return Ok(None),
        opened => opened?,
    };
    let (mut wrong, mut crc, mut offset) = (Vec::new(), 0, segment.base_offset);
    loop {
        let position = scan.position();
        let (header, batch) = match scan.next_at_any_offset()? {
            None => break,
            Some(Ok(batch)) => batch,
            Some(Err(_)) => return Ok(None),
        };
        let mut prefix = Prefix::default();
        prefix.copy_from_slice(&batch[..CRC_START]);
        let epoch = epoch_at(stored, offset).map_or(header.leader_epoch, u32::cast_signed);
        assign(&mut prefix, offset, epoch);
        if prefix[..] != batch[..CRC_START] {
            wrong.push((position, prefix));
        }
        crc = crc32c::crc32c_append(crc, &prefix);
        offset += u64::from(header.record_count);
    }
    let is_proven = crc == segment.prefix_crc && offset == end;
    let is_in_file = wrong
        .last()
        .is_none_or(|(at, prefix)| at + prefix.len() as u64 <= segment.bytes);
    Ok(Some(wrong).filter(|wrong| is_proven && is_in_file && !wrong.is_empty()))
}

/// What the checksum of a batch leaves out.
type Prefix = [u8; CRC_START];

fn assign(prefix: &mut Prefix, offset: u64, epoch: i32) {
    prefix[..8].copy_from_slice(&offset.to_be_bytes());
    prefix[LENGTH_EXCLUDES_BYTES..][..4].copy_from_slice(&epoch.to_be_bytes());
}

/// What of a segment lies in the snapshot, and the offset that it ends at.
fn held(segment: &SegmentT, stored: &PartitionT) -> (Vec<u8>, u64) {
    match segment.sealed {
        true => (Vec::new(), segment.next_offset),
        false => (stored.tail.clone().unwrap_or_default(), stored.next_offset),
    }
}

pub(super) fn partitions(groups: &[GroupSnapshotT]) -> impl Iterator<Item = &PartitionT> {
    groups
        .iter()
        .flat_map(|group| group.partitions.iter().flatten())
}

pub(super) fn id_of(stored: &PartitionT) -> Option<PartitionId> {
    Some(PartitionId {
        topic: stored.topic.as_ref()?.into(),
        partition: stored.partition,
    })
}

/// Adds lines to what repairs did, durably.
pub fn log(dir: &Path, lines: &str) -> Result<(), FileError> {
    let path = dir.join(REPAIR_LOG);
    let file = files::open_write(&path, false, true)?;
    let end = files::file_bytes(&file, &path)?;
    files::write_at(&file, &path, lines.as_bytes(), end)?;
    files::sync_data(&file, &path)?;
    files::sync_directory(dir)
}
