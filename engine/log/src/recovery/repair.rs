//! Mending a data directory that no broker runs on.
//!
//! What is derived is removed, so that it is built anew: [`mend`]. What is damaged can only be cut: a shard's
//! log at its first damaged frame, a partition at its first damaged batch, each with everything behind it. That
//! loses records, so [`plan`] says which, without changing anything, and [`cut`] does it only when it is called.
//!
//! Operators are not offered a cut yet: it does not keep, or name, all that it can lose (what a log alone has of a
//! partition that is cut, snapshots, segments that are ahead of their snapshot).
//!
//! A cut is a recovery that ends logs at their damage instead of refusing; partitions are cut after it. What is
//! cut is kept in a directory beside, before it is cut. An interrupted cut leaves a directory that is as
//! damaged as before, or less; a second one comes to the same end. The identity stays that of a broker that did not
//! stop cleanly, so that the leader epoch grows and offsets that are given again can be told from those lost.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use ringtide_schema::batch::{CRC_START, Header, LENGTH_EXCLUDES_BYTES};
use ringtide_schema::identity::Identity;
use ringtide_schema::ids::{GroupId, PartitionId, TopicId};
use ringtide_schema::limits::BLOCK_BYTES;
use ringtide_schema::snapshot;
use ringtide_schema::store::{GroupSnapshotT, PartitionT, SegmentT};
use ringtide_schema::wal::{
    ENTRY_HEADER_BYTES, EntryHeader, EntryKind, FRAME_HEADER_BYTES, FrameHeader,
};

use super::chain::each_frame;
use super::error::RecoverError;
use super::layout::{self, REPAIR_LOG, REPAIRED, Top};
use super::replay::{Cut, Mode, Replay};
use super::scan::{Contents, Scan};
use super::segments::{index_name, log_name};
use super::slots::{self, LiveSlots};
use super::verify::epoch_at;
use super::{RecoverOptions, Report, Summary, check_open_segments, recover_or_cut, replay_logs};
use crate::files::{self, FileError};

const BLOCK: u64 = BLOCK_BYTES as u64;
const COPIED_BYTES: usize = 1 << 20;

/// Removes what verification found to be wrong and is derived, or was left by an interrupted replacement; gives
/// what was removed. A start builds it anew.
pub fn mend(report: &Report) -> Result<Vec<PathBuf>, FileError> {
    let mut removed = Vec::new();
    for problem in report.problems.iter().filter(|problem| !problem.serious) {
        let derived = problem
            .path
            .extension()
            .is_some_and(|e| e == "index" || e == "tmp");
        if derived && !removed.contains(&problem.path) {
            files::remove_file(&problem.path)?;
            files::sync_directory(files::parent(&problem.path))?;
            removed.push(problem.path.clone());
        }
    }
    Ok(removed)
}

/// Writes base offsets and leader epochs of stored batches anew where they are wrong; gives where it did, file and byte.
///
/// No checksum of a batch covers them. What they must be follows from the batches before and from the snapshot, and
/// the segment's own checksum of them shows that this is what was written: else nothing is changed.
pub fn mend_batches(dir: &Path) -> Result<Vec<(PathBuf, u64)>, RecoverError> {
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
            let Some(wrong) = wrong_batches(&path, segment, stored)? else {
                continue;
            };
            let file = files::open_write(&path, false, false)?;
            for (position, prefix) in wrong {
                files::write_at(&file, &path, &prefix, position)?;
                mended.push((path.clone(), position));
            }
            files::sync_data(&file, &path)?;
        }
    }
    Ok(mended)
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
        let (header, batch) = match scan.next()? {
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

/// What has to be cut before the broker starts and serves only what is whole.
#[derive(Debug, Default)]
pub struct Plan {
    /// Logs of shards.
    pub logs: Vec<LogCut>,
    /// Partitions.
    pub partitions: Vec<PartitionCut>,
    /// Files and directories with data that nothing knows of any more once that is cut.
    pub strays: Vec<PathBuf>,
    /// The names of the topics.
    pub names: BTreeMap<TopicId, String>,
}

impl Plan {
    /// How a partition is called, if its topic is known.
    pub fn name(&self, id: PartitionId) -> String {
        match self.names.get(&id.topic) {
            Some(name) => format!("{name}/{}", id.partition),
            None => id.dir_name(),
        }
    }

    /// Whether there is nothing to cut.
    pub fn is_empty(&self) -> bool {
        self.logs.is_empty() && self.partitions.is_empty() && self.strays.is_empty()
    }
}

/// A shard's log that is cut at its first damaged frame.
#[derive(Debug)]
pub struct LogCut {
    /// The shard.
    pub shard: u16,
    /// What is damaged and where, as a start would put it.
    pub why: String,
    /// The slots that hold the damage or come behind it; they are kept.
    pub slots: Vec<PathBuf>,
    /// Entries from the damage on whose headers could be read.
    pub entries: u64,
    /// What is known to be lost: offsets, from the first to the one after the last.
    pub records: BTreeMap<PartitionId, (u64, u64)>,
}

/// A partition that is cut at its first damaged batch.
#[derive(Debug)]
pub struct PartitionCut {
    /// The partition.
    pub partition: PartitionId,
    /// Its first damaged segment, or the log that does not fit.
    pub path: PathBuf,
    /// Where the first damaged batch begins in it, in bytes.
    pub position: u64,
    /// What is damaged.
    pub why: String,
    /// The first offset that is lost.
    pub from: u64,
    /// The offset after the last one that is lost.
    pub to: u64,
    /// Bytes of segments that are cut.
    pub bytes: u64,
}

/// Where the batches of a partition stop being whole.
struct Damage {
    /// The number of the segment.
    segment: usize,
    position: u64,
    /// What is whole before it in the segment.
    contents: Contents,
    /// The next offset behind the last batch that ends in a whole block.
    covered: u64,
    why: String,
}

/// Says what has to be cut. Nothing is changed.
///
/// # Errors
/// What no cut can mend, in the words of a start that is refused.
pub fn plan(dir: &Path) -> Result<Plan, RecoverError> {
    let mut plan = Plan::default();
    let Top::Used(identity) = layout::look(dir, &mut Vec::new())? else {
        return Ok(plan);
    };
    let snapshots = layout::snapshots(dir, &identity)?;
    let before: Vec<PartitionT> = partitions(&snapshots).cloned().collect();
    let slot_files = slots::list(&dir.join("wal"))?;
    let directories = layout::partitions(dir)?;
    let mode = Mode {
        direct: false,
        dry: true,
        cut: true,
    };
    let mut ignore = |_| ();
    let mut replay = Replay::new(dir, identity, mode, snapshots, &mut ignore)?;
    replay_logs(
        &identity,
        &slot_files,
        false,
        &mut replay,
        &mut Summary::default(),
    )?;
    replay.finish()?;
    plan.strays = layout::garbage(directories, &replay, !identity.clean)?.lost;
    let mut doubtful = BTreeMap::new();
    for cut in std::mem::take(&mut replay.cuts) {
        match cut {
            Cut::Log { shard, error } => {
                let live = slots::sort_out(&slots::look_at_all(&slot_files, false)?, &identity)?;
                plan.logs.push(log_cut(&identity, &live, shard, &error)?);
            }
            Cut::Partition { id, error } => {
                doubtful.insert(id, error);
            }
        }
    }
    let topics = replay.metadata().topics();
    plan.names = topics.map(|topic| (topic.id, topic.name.clone())).collect();
    for stored in &before {
        let Some(id) = id_of(stored) else {
            continue;
        };
        // Deleted further on in the log, or without a topic.
        let Some(after) = replay.partition(id) else {
            continue;
        };
        let directory = dir.join("partitions").join(id.dir_name());
        // What retention has given up since then is not cut for.
        let mut stored = stored.clone();
        let is_kept = |base| {
            let mut kept = after.segments.iter().flatten();
            kept.any(|segment| segment.base_offset == base)
        };
        let segments = stored.segments.get_or_insert_default();
        segments.retain(|segment| is_kept(segment.base_offset));
        let Some(damage) = first_damage(&directory, &stored)? else {
            continue;
        };
        doubtful.remove(&id);
        let segments = stored.segments.unwrap_or_default();
        let bytes: u64 = segments[damage.segment..].iter().map(|s| s.bytes).sum();
        let tail = stored.tail.map_or(0, |tail| tail.len() as u64);
        let first_lost = damage.contents.next_offset.max(after.log_start);
        plan.partitions.push(PartitionCut {
            partition: id,
            path: directory.join(log_name(segments[damage.segment].base_offset)),
            position: damage.position,
            why: damage.why,
            from: first_lost,
            to: after.next_offset,
            bytes: bytes + tail - damage.position,
        });
    }
    // What the log has of them does not fit what their segments hold, which are whole.
    for (id, error) in doubtful {
        let end = replay.partition(id).map_or(0, |after| after.next_offset);
        plan.partitions.push(PartitionCut {
            partition: id,
            path: dir.join("wal"),
            position: 0,
            why: error.to_string(),
            from: end,
            to: end,
            bytes: 0,
        });
    }
    for log in &mut plan.logs {
        let end = |id: &PartitionId| replay.partition(*id).map_or(0, |p| p.next_offset);
        log.records.retain(|id, (from, to)| {
            *from = end(id);
            *to > *from
        });
    }
    if identity.clean {
        for (snapshot, _) in replay.into_groups() {
            match check_open_segments(dir, &snapshot, true) {
                Err(RecoverError::BadSegment(_)) => {}
                checked => checked?,
            }
        }
    }
    Ok(plan)
}

fn partitions(groups: &[GroupSnapshotT]) -> impl Iterator<Item = &PartitionT> {
    groups
        .iter()
        .flat_map(|group| group.partitions.iter().flatten())
}

fn id_of(stored: &PartitionT) -> Option<PartitionId> {
    Some(PartitionId {
        topic: stored.topic.as_ref()?.into(),
        partition: stored.partition,
    })
}

/// Reads what lies behind the damage of a log, as far as it is whole.
fn log_cut(
    identity: &Identity,
    live: &LiveSlots,
    shard: u16,
    error: &RecoverError,
) -> Result<LogCut, RecoverError> {
    let mut cut = LogCut {
        shard,
        why: error.to_string(),
        slots: Vec::new(),
        entries: 0,
        records: BTreeMap::new(),
    };
    let (path, damage) = match error {
        RecoverError::Lost(lost) => (&lost.path, lost.position),
        RecoverError::CorruptFrame(bad) => (&bad.path, bad.position),
        RecoverError::MissingEntries(bad) => (&bad.path, bad.position),
        RecoverError::BadEntry(bad) => (&bad.path, bad.position),
        _ => return Ok(cut),
    };
    // Entries are in frames, which begin on blocks.
    let damage = damage / BLOCK * BLOCK;
    let slots = live.shards.get(&shard).map_or(&[][..], |slots| slots);
    for slot in slots.iter().skip_while(|slot| &slot.path != path) {
        let from = if &slot.path == path { damage } else { BLOCK };
        let mut frames = Vec::new();
        each_frame(&slot.path, slot.bytes, false, |position, header, _| {
            let is_own = (header.incarnation, header.generation, header.shard)
                == (identity.incarnation, slot.generation, shard);
            if is_own && position > from {
                frames.push((position, header.disk_bytes()));
            }
        })?;
        // Of the damaged one whatever is whole, as if it went up to the next.
        let next = frames.first().map_or(slot.bytes, |&(position, _)| position);
        frames.insert(0, (from, (next - from).min(MAX_READ) as usize));
        let file = files::open_read(&slot.path, false)?;
        for (position, bytes) in frames {
            let mut frame = vec![0; bytes];
            let got = files::read_at(&file, &slot.path, &mut frame, position)?;
            note_entries(&frame[..got], identity.incarnation, &mut cut);
        }
        cut.slots.push(slot.path.clone());
    }
    Ok(cut)
}

/// The largest frame.
const MAX_READ: u64 = ringtide_schema::wal::MAX_FRAME_BYTES as u64;

fn note_entries(frame: &[u8], incarnation: u64, cut: &mut LogCut) {
    let end = match FrameHeader::decode(frame) {
        Ok((header, _)) => FRAME_HEADER_BYTES + header.entries_bytes as usize,
        Err(_) => frame.len(),
    };
    let mut at = FRAME_HEADER_BYTES;
    while at + ENTRY_HEADER_BYTES <= end.min(frame.len()) {
        let rest = &frame[at..];
        let Ok(entry) = EntryHeader::decode_header(rest, incarnation) else {
            return;
        };
        at += entry.disk_bytes();
        cut.entries += 1;
        if entry.kind != EntryKind::Batch {
            continue;
        }
        // Of a damaged batch only the first offset is known.
        let whole = EntryHeader::decode(rest, incarnation).ok();
        let batch = whole.and_then(|(_, payload)| Header::peek(payload).ok());
        let end = batch.map_or(entry.base_offset + 1, |batch| batch.next_offset());
        let of = cut.records.entry(entry.partition).or_default();
        of.1 = of.1.max(end);
    }
}

/// The first batch of a partition that is not what was written there.
fn first_damage(directory: &Path, stored: &PartitionT) -> Result<Option<Damage>, FileError> {
    let segments = stored.segments.as_deref().unwrap_or_default();
    for (number, segment) in segments.iter().enumerate() {
        let path = directory.join(log_name(segment.base_offset));
        let (tail, end) = held(segment, stored);
        let mut contents = Contents::new(segment.base_offset);
        // Ends of the batches behind the last whole block, and the offset up to there.
        let (mut ends, mut covered) = (Vec::new(), segment.base_offset);
        let mut position = 0;
        let damage = |position, contents: &Contents, covered, why| {
            Ok(Some(Damage {
                segment: number,
                position,
                contents: contents.clone(),
                covered,
                why,
            }))
        };
        let mut scan = match Scan::open(&path, segment.bytes, tail) {
            Err(error) if error.cause == files::Cause::Missing => {
                return damage(0, &contents, covered, "the segment is missing".to_owned());
            }
            opened => opened?,
        };
        loop {
            let (header, batch) = match scan.next()? {
                None => break,
                Some(Ok(batch)) => batch,
                Some(Err(error)) => return damage(position, &contents, covered, error.to_string()),
            };
            if header.base_offset != contents.next_offset {
                let (found, expected) = (header.base_offset, contents.next_offset);
                let why = format!("a batch with offset {found} where {expected} was to come");
                return damage(position, &contents, covered, why);
            }
            position += header.batch_bytes as u64;
            contents.add(&header, batch);
            ends.push((position, contents.next_offset));
            let whole = position / BLOCK * BLOCK;
            ends.retain(|&(end, next_offset)| {
                if end <= whole {
                    covered = next_offset;
                }
                end > whole
            });
        }
        if contents.next_offset != end {
            let why = format!("the segment ends before offset {end}");
            return damage(position, &contents, covered, why);
        }
    }
    Ok(None)
}

/// Carries out a plan, which must be of this directory as it is. What is cut is kept in the directory whose path is given
/// back.
///
/// # Errors
/// A failed file operation: then nothing is lost that is not kept, and it can be done again.
pub fn cut(dir: &Path, plan: &Plan, name: &str) -> Result<PathBuf, RecoverError> {
    let kept = dir.join(format!("{REPAIRED}{name}"));
    files::make_directory(&kept)?;
    files::sync_directory(dir)?;
    for slot in plan.logs.iter().flat_map(|log| &log.slots) {
        let part = Part {
            path: slot,
            range: 0..files::bytes_at(slot)?,
            behind: &[],
        };
        keep(
            dir,
            &kept,
            &part,
            slot.file_name().unwrap_or_default().as_ref(),
        )?;
    }
    for stray in &plan.strays {
        put_away(dir, &kept, stray)?;
    }
    let Top::Used(identity) = layout::look(dir, &mut Vec::new())? else {
        return Ok(kept);
    };
    let options = RecoverOptions {
        direct: false,
        shards: u16::try_from(identity.shards).unwrap_or(u16::MAX),
        slot_bytes: identity.slot_bytes,
        groups_for_new: identity.groups,
        random: [0; 2],
    };
    let mut recovered = recover_or_cut(dir, options, true, &mut |_| ())?;
    let mut to_remove = Vec::new();
    let mut changed = Vec::new();
    for group in &mut recovered.groups {
        let number = group.group;
        for stored in group.partitions.iter_mut().flatten() {
            let Some(id) =
                id_of(stored).filter(|id| plan.partitions.iter().any(|cut| cut.partition == *id))
            else {
                continue;
            };
            let directory = dir.join("partitions").join(id.dir_name());
            if let Some(damage) = first_damage(&directory, stored)? {
                cut_partition(dir, &kept, &directory, stored, &damage, &mut to_remove)?;
            } else {
                forget_from(stored);
            }
            changed.push(number);
        }
    }
    changed.dedup();
    let groups = dir.join("groups");
    for group in recovered
        .groups
        .iter()
        .filter(|group| changed.contains(&group.group))
    {
        let path = groups.join(GroupId(group.group).snapshot_name());
        files::replace(&path, &snapshot::encode(group))?;
    }
    files::sync_directory(&groups)?;
    for (path, bytes) in to_remove {
        if let Some(bytes) = bytes {
            let file = files::open_write(&path, false, false)?;
            files::set_len(&file, &path, bytes)?;
            files::sync_data(&file, &path)?;
        } else {
            files::remove_file(&path)?;
        }
        files::remove_file(&path.with_extension("index"))?;
        files::sync_directory(files::parent(&path))?;
    }
    Ok(kept)
}

/// Ends a partition where it is damaged. Files to be removed or cut to a length when the snapshot is durable are
/// added to `to_remove`.
fn cut_partition(
    dir: &Path,
    kept: &Path,
    directory: &Path,
    stored: &mut PartitionT,
    damage: &Damage,
    to_remove: &mut Vec<(PathBuf, Option<u64>)>,
) -> Result<(), RecoverError> {
    let tail = stored.tail.take().unwrap_or_default();
    let segments = stored.segments.get_or_insert_default();
    let behind = segments.split_off(damage.segment);
    let first_lost = damage.contents.next_offset;
    for (number, segment) in behind.iter().enumerate() {
        let path = directory.join(log_name(segment.base_offset));
        let tail = if segment.sealed { &[][..] } else { &tail };
        // A file that begins with the first damaged batch is named by its offset, as any segment.
        let (from, name) = match number {
            0 => (damage.position, log_name(first_lost)),
            _ => (0, log_name(segment.base_offset)),
        };
        let in_tail = from.saturating_sub(segment.bytes) as usize;
        let part = Part {
            path: &path,
            range: from..segment.bytes,
            behind: &tail[in_tail..],
        };
        keep(dir, kept, &part, name.as_ref())?;
        if from > 0 {
            to_remove.push((path, Some(from / BLOCK * BLOCK)));
        } else {
            // Before the snapshot: it may not lie there unnamed, at or behind the partition's end.
            files::remove_file(&path)?;
        }
        files::remove_file(&directory.join(index_name(segment.base_offset)))?;
    }
    if let Some(mut segment) = behind.into_iter().next().filter(|_| damage.position > 0) {
        let path = directory.join(log_name(segment.base_offset));
        let synced = segment.bytes;
        segment.bytes = damage.position / BLOCK * BLOCK;
        let mut rest = vec![0; (damage.position - segment.bytes) as usize];
        let in_file = synced.min(damage.position).saturating_sub(segment.bytes) as usize;
        let file = files::open_read(&path, false)?;
        files::read_at(&file, &path, &mut rest[..in_file], segment.bytes)?;
        let in_tail = rest.len() - in_file;
        rest[in_file..].copy_from_slice(&tail[..in_tail]);
        segment.sealed = false;
        segment.next_offset = damage.covered;
        segment.prefix_crc = damage.contents.prefix_crc;
        segment.max_timestamp_ms = damage.contents.max_timestamp_ms;
        segments.push(segment);
        stored.tail = Some(rest).filter(|rest| !rest.is_empty());
    }
    stored.next_offset = first_lost;
    if stored.log_start >= first_lost {
        // Retention had given up what is whole.
        for segment in stored.segments.take().unwrap_or_default() {
            let path = directory.join(log_name(segment.base_offset));
            to_remove.push((path, None));
        }
        stored.tail = None;
        stored.next_offset = stored.log_start;
    }
    forget_from(stored);
    Ok(())
}

/// Forgets what was noted of records at and behind the end of a partition.
fn forget_from(stored: &mut PartitionT) {
    let end = stored.next_offset;
    stored
        .epochs
        .get_or_insert_default()
        .retain(|epoch| epoch.start_offset < end);
    let producers = stored.producers.get_or_insert_default();
    for producer in &mut *producers {
        let batches = producer.batches.get_or_insert_default();
        batches.retain(|batch| batch.base_offset < end);
    }
    producers.retain(|producer| producer.batches.as_ref().is_some_and(|b| !b.is_empty()));
    for committed in stored.committed.iter_mut().flatten() {
        committed.offset = committed.offset.min(end);
    }
}

/// What is kept of a file.
struct Part<'a> {
    path: &'a Path,
    range: Range<u64>,
    /// What belongs behind it.
    behind: &'a [u8],
}

/// Copies a part of a file to the file's place below `kept`, under this name; durable. A file that is missing has nothing.
fn keep(dir: &Path, kept: &Path, part: &Part<'_>, name: &Path) -> Result<(), FileError> {
    let path = part.path;
    let target = place(dir, kept, path)?.with_file_name(name);
    let out = files::open_write(&target, false, true)?;
    let file = match files::open_read(path, false) {
        Err(error) if error.cause == files::Cause::Missing => None,
        opened => Some(opened?),
    };
    let Range { start, end } = part.range;
    let (mut at, mut buf) = (start, vec![0; COPIED_BYTES]);
    while let Some(file) = &file
        && at < end
    {
        let want = COPIED_BYTES.min(usize::try_from(end - at).unwrap_or(COPIED_BYTES));
        let got = files::read_at(file, path, &mut buf[..want], at)?;
        if got == 0 {
            break;
        }
        files::write_at(&out, &target, &buf[..got], at - start)?;
        at += got as u64;
    }
    files::write_at(&out, &target, part.behind, at - start)?;
    files::sync_data(&out, &target)?;
    files::sync_directory(files::parent(&target))
}

/// Moves a file or directory to its place below `kept`.
fn put_away(dir: &Path, kept: &Path, path: &Path) -> Result<(), FileError> {
    let target = place(dir, kept, path)?;
    files::rename(path, &target)?;
    files::sync_directory(files::parent(&target))?;
    files::sync_directory(files::parent(path))
}

/// The place of something below `kept`; directories down to it are made.
fn place(dir: &Path, kept: &Path, path: &Path) -> Result<PathBuf, FileError> {
    let target = kept.join(path.strip_prefix(dir).unwrap_or(path));
    files::make_directories(files::parent(&target), &mut Vec::new())?;
    Ok(target)
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
