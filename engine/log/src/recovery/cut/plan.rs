//! Where a damaged log is to be cut, and what can still be read behind that.
//!
//! Each log is followed as a start would follow it, but its entries are not applied. Frames behind the damage are found
//! by their headers, wherever they lie; of their entries those count whose checksums hold.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use ringtide_schema::batch::Header;
use ringtide_schema::flatbuffers;
use ringtide_schema::identity::Identity;
use ringtide_schema::ids::{GroupId, PartitionId};
use ringtide_schema::limits::BLOCK_BYTES;
use ringtide_schema::store::{CommitOffset, GroupSnapshotT, PartitionT};
use ringtide_schema::wal::{
    ENTRY_HEADER_BYTES, EntryError, EntryHeader, EntryKind, FRAME_HEADER_BYTES, FrameHeader,
    MAX_FRAME_BYTES,
};

use super::keep::{self, Kept, by_id};
use super::topics::{SetBack, Topics};
use super::{PastCut, begun};
use crate::files::{self, FileError};
use crate::recovery::Progress;
use crate::recovery::chain::{At, Chain, Sink, each_frame};
use crate::recovery::error::{MissingEntries, RecoverError, Shown, Unlisted};
use crate::recovery::layout::{self, Top};
use crate::recovery::segments::{log_name, parse_name};
use crate::recovery::slots::{self, LiveSlot, LiveSlots, Unclaimed};
use crate::recovery::verify::dry_start;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// What a cut would do.
#[derive(Debug)]
pub struct Plan {
    /// Why a start is refused.
    pub why: RecoverError,
    /// What is cut, by shard.
    pub logs: Vec<LogCut>,
    /// Segments of which neither a snapshot nor the log knows then, and which a start would refuse: they are removed.
    pub segments: Vec<PathBuf>,
    /// Bytes that the copies of it take.
    pub keep_bytes: u64,
    /// A cut that was begun before, and neither finished nor written back.
    pub begun: Option<PastCut>,
    pub(super) kept: Vec<Kept>,
    identity: Identity,
    topics: Topics,
}

/// What there is to cut.
#[derive(Debug)]
pub enum Outlook {
    /// There is no data directory.
    Empty,
    /// A start would not be refused.
    Sound,
    /// Damage of logs.
    Damaged(Box<Plan>),
}

/// Where the log of a shard is cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogCut {
    /// The shard.
    pub shard: u16,
    /// The slot in which the log ends from then on.
    pub slot: PathBuf,
    /// Where in it, in bytes.
    pub position: u64,
    /// Slots that are cut whole, the oldest first.
    pub later: Vec<PathBuf>,
    /// What can be read of what is cut.
    pub behind: Behind,
}

/// What lies behind a cut. Of the damage itself nothing is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Behind {
    /// Frames whose headers are whole.
    pub frames: u64,
    /// Entries in them that can be read.
    pub entries: u64,
    /// Entries in them that cannot.
    pub damaged_entries: u64,
    /// Bytes, in whole blocks, that belong to no such frame and are not zeros: damaged, or of an earlier use.
    pub unknown_bytes: u64,
    /// Records that can be read.
    pub records: BTreeMap<PartitionId, Span>,
    /// The last offset that each consumer committed.
    pub commits: BTreeMap<(PartitionId, String), u64>,
    /// The offset that each partition was to begin at.
    pub log_starts: BTreeMap<PartitionId, u64>,
    /// Topics that were made, altered or deleted, in order and in words.
    pub topics: Vec<String>,
    /// Settings of topics that are as they were in front of the damage again.
    pub set_back: Vec<SetBack>,
}

/// Records of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The offset that the partition ends at once the log is cut: those between it and the first cannot be read.
    pub end: u64,
    /// The first offset.
    pub first: u64,
    /// The last offset.
    pub last: u64,
    /// How many records; fewer than lie between the offsets if some cannot be read.
    pub records: u64,
}

impl Plan {
    /// Whether a partition is in one of the logs that are cut.
    pub fn concerns(&self, id: PartitionId) -> bool {
        let Identity { groups, shards, .. } = self.identity;
        let shards = u16::try_from(shards).unwrap_or(u16::MAX).max(1);
        let shard = id.group(groups).shard(groups, shards);
        self.logs.iter().any(|log| log.shard == shard)
    }

    /// The first offset of a partition that can be read behind the cut, if there is one.
    fn first_behind(&self, id: PartitionId) -> Option<u64> {
        let spans = self
            .logs
            .iter()
            .filter_map(|log| log.behind.records.get(&id));
        spans.map(|span| span.first).min()
    }

    /// Topic and number of a partition.
    pub fn name(&self, id: PartitionId) -> String {
        match self.topics.name(id.topic) {
            Some(topic) => format!("{topic}/{}", id.partition),
            None => id.to_string(),
        }
    }
}

impl LogCut {
    /// Where it is, in words.
    pub fn place(&self) -> String {
        let (shard, position, slot) = (self.shard, self.position, self.slot.display());
        match self.later.len() {
            0 => format!("shard {shard} from byte {position} of {slot} on"),
            more => {
                format!("shard {shard} from byte {position} of {slot} on, with {more} later slots")
            }
        }
    }

    /// Every slot that is changed.
    pub(super) fn oldest_first(&self) -> impl Iterator<Item = &Path> {
        [&self.slot].into_iter().chain(&self.later).map(|p| &**p)
    }

    /// Every slot that is changed, and from which byte on.
    pub(super) fn newest_first(&self) -> impl Iterator<Item = (&Path, u64)> {
        let whole = self.later.iter().rev().map(|path| (&**path, 0));
        whole.chain([(&*self.slot, self.position)])
    }
}

/// Looks at a directory whose lock is held, and plans.
///
/// # Errors
/// A refusal that is not about damage of a log, so that no cut mends it; a failed file operation.
pub fn plan(dir: &Path, progress: &mut dyn FnMut(Progress)) -> Result<Outlook, RecoverError> {
    let why = match dry_start(dir, progress) {
        Ok(report) if report.identity.is_none() => return Ok(Outlook::Empty),
        Ok(_) => return Ok(Outlook::Sound),
        Err(why) => why,
    };
    let of_a_log = matches!(
        why,
        RecoverError::Lost(_) | RecoverError::CorruptFrame(_) | RecoverError::MissingSlot(_)
    );
    let (true, Top::Used(identity)) = (of_a_log, layout::look(dir, &mut Vec::new())?) else {
        return Err(why);
    };
    let looked = slots::look_at_all(&slots::list(&dir.join("wal"))?, false)?;
    let snapshots = layout::snapshots(dir, &identity)?;
    let live = slots::place(&looked, &identity, &layout::held(&snapshots), false)?;
    let mut look = Look::new(&identity, &live, &snapshots);
    let mut logs = Vec::new();
    for (&shard, slots) in &live.shards {
        logs.extend(look.log(shard, slots)?);
    }
    if logs.is_empty() {
        // A snapshot shows the loss: of the log itself there is nothing behind it.
        return Err(why);
    }
    let kept = keep::list(dir, &snapshots)?;
    let begun = begun(dir)?;
    look.check_open_segments(dir)?;
    let mut plan = Plan {
        why,
        logs,
        segments: Vec::new(),
        keep_bytes: keep::bytes(dir, &kept, begun.as_ref())?,
        begun,
        kept,
        topics: look.topics,
        identity,
    };
    let (ends, proven) = (look.ends, look.proven);
    plan.segments = stranded(dir, &snapshots, &ends, |id| {
        let is_proven = proven.contains(&id.group(identity.groups));
        if is_proven {
            Some(0)
        } else {
            plan.first_behind(id)
        }
    })?;
    Ok(Outlook::Damaged(Box::new(plan)))
}

/// Segments with nothing but what comes behind the cut. That is shown for all of a partition's where the log has entries of its
/// group in front of the damage, which its snapshot fits; else only from the first record on that the log has behind it
/// (`first_behind`): before that a snapshot may be missing or old, and a start says so.
fn stranded(
    dir: &Path,
    snapshots: &[GroupSnapshotT],
    ends: &BTreeMap<PartitionId, u64>,
    first_behind: impl Fn(PartitionId) -> Option<u64>,
) -> Result<Vec<PathBuf>, RecoverError> {
    let stored: HashMap<PartitionId, &PartitionT> = by_id(snapshots);
    let mut out = Vec::new();
    for (id, folder) in layout::partitions(dir)? {
        let Some(first) = first_behind(id) else {
            continue;
        };
        let stored = stored.get(&id);
        let held = stored.map_or(0, |stored| stored.next_offset);
        let end = ends.get(&id).map_or(held, |&end| end.max(held));
        for listed in files::list(&folder)?.unwrap_or_default() {
            let Some((base, true)) = parse_name(&listed.name) else {
                continue;
            };
            let mut segments = stored.iter().flat_map(|s| s.segments.iter().flatten());
            let is_known = segments.any(|segment| segment.base_offset == base);
            if base >= end.max(first) && !is_known && files::bytes_at(&listed.path)? > 0 {
                out.push(listed.path);
            }
        }
    }
    Ok(out)
}

/// Reads the logs one after the other.
struct Look<'a> {
    identity: &'a Identity,
    live: &'a LiveSlots,
    snapshots: &'a [GroupSnapshotT],
    topics: Topics,
    stored: HashMap<PartitionId, &'a PartitionT>,
    /// Where partitions end by the logs.
    ends: BTreeMap<PartitionId, u64>,
    /// Groups with entries in front of the damage.
    proven: BTreeSet<GroupId>,
    /// Groups with entries so far.
    seen: BTreeSet<GroupId>,
    /// The last entry of the log that is being read, if that is known.
    last_seq: Option<u64>,
    /// Bytes of the log that is being read that entries may have had which cannot be read.
    hidden: Hidden,
    /// And of each damaged log.
    hidden_of: BTreeMap<u16, u64>,
    /// Bytes of the records of each partition that can be read behind the damage.
    readable: BTreeMap<PartitionId, u64>,
}

/// Bytes that may have been entries.
#[derive(Default)]
struct Hidden {
    bytes: u64,
    /// Zeros, or of an earlier use, and counted only once something of the log comes behind them.
    maybe: u64,
}

impl Hidden {
    fn add(&mut self, bytes: u64) {
        self.bytes += std::mem::take(&mut self.maybe) + bytes;
    }
}

impl Sink for Look<'_> {
    fn entry(
        &mut self,
        _: At<'_>,
        header: &EntryHeader,
        payload: &[u8],
    ) -> Result<(), RecoverError> {
        self.seen.insert(header.group);
        self.proven.insert(header.group);
        self.last_seq = Some(header.seq);
        match header.kind {
            EntryKind::Meta => drop(self.topics.change(payload)),
            EntryKind::Batch => {
                let batch = Header::peek(payload);
                let end = batch.map_or(0, |batch| batch.next_offset());
                self.ends.insert(header.partition, end);
            }
            EntryKind::CommitOffset | EntryKind::LogStart => {}
        }
        Ok(())
    }

    fn beyond_chain(&self, _: u16) -> Option<Shown> {
        None
    }

    fn progress(&mut self, _: u64) {}
}

impl<'a> Look<'a> {
    fn new(identity: &'a Identity, live: &'a LiveSlots, snapshots: &'a [GroupSnapshotT]) -> Self {
        Self {
            identity,
            live,
            snapshots,
            topics: Topics::of(snapshots),
            stored: by_id(snapshots),
            ends: BTreeMap::new(),
            proven: BTreeSet::new(),
            seen: BTreeSet::new(),
            last_seq: None,
            hidden: Hidden::default(),
            hidden_of: BTreeMap::new(),
            readable: BTreeMap::new(),
        }
    }

    /// Where a partition ends by its snapshot and the log in front of the damage.
    fn end(&self, id: PartitionId) -> u64 {
        let held = self.stored.get(&id).map_or(0, |stored| stored.next_offset);
        self.ends.get(&id).map_or(held, |&end| end.max(held))
    }

    /// The open segment of a group that is not proven has no more behind what its snapshot knows than the log can have had of
    /// it: or the snapshot is old, and what it lacks is no matter of the damage.
    fn check_open_segments(&self, dir: &Path) -> Result<(), RecoverError> {
        let Identity { groups, shards, .. } = *self.identity;
        for (id, stored) in &self.stored {
            let shards = u16::try_from(shards).unwrap_or(u16::MAX).max(1);
            let Some(hidden) = self.hidden_of.get(&id.group(groups).shard(groups, shards)) else {
                continue;
            };
            let last = stored.segments.iter().flatten().next_back();
            let Some(open) = last.filter(|last| !last.sealed) else {
                continue;
            };
            let path = dir.join("partitions").join(id.dir_name());
            let path = path.join(log_name(open.base_offset));
            let have = match files::bytes_at(&path) {
                Err(e) if e.cause == files::Cause::Missing => 0,
                bytes => bytes?,
            };
            let tail = stored.tail.as_ref().map_or(0, |tail| tail.len() as u64);
            let readable = self.readable.get(id).copied().unwrap_or(0);
            let is_proven = self.proven.contains(&id.group(groups));
            if !is_proven && have > open.bytes + tail + readable + hidden + BLOCK {
                let next_offset = self.end(*id);
                return Err(Unlisted { path, next_offset }.into());
            }
        }
        Ok(())
    }

    fn is_own(&self, shard: u16, header: &FrameHeader) -> bool {
        header.shard == shard && header.incarnation == self.identity.incarnation
    }

    /// Where the log of a shard is to be cut, if it is damaged.
    fn log(&mut self, shard: u16, slots: &[LiveSlot]) -> Result<Option<LogCut>, RecoverError> {
        let gap = slots::gap(shard, slots);
        let (run, behind_gap) = match &gap {
            Some((before, missing)) => {
                // Header and first frame of a slot may be damaged; one that is not there at all is no damage of a log.
                let found = self.generations(shard, |own| own == missing.generation)?;
                if slots[*before].generation < missing.generation || found.is_empty() {
                    return Err(missing.clone().into());
                }
                slots.split_at(*before)
            }
            None => (slots, &[][..]),
        };
        let mut unclaimed = self.live.unclaimed.clone();
        for slot in behind_gap {
            let path = slot.path.clone();
            unclaimed.push(Unclaimed::new(path, slot.bytes, false, false));
        }
        self.last_seq = (run[0].generation == 1).then_some(0);
        let chain = Chain {
            shard,
            incarnation: self.identity.incarnation,
            slots: run,
            strays: &unclaimed,
            direct: false,
            only_first: false,
        };
        let (slot, position) = match chain.follow(self) {
            Ok(_) if gap.is_none() => return Ok(None),
            Ok((end, _)) => (end.path, end.position),
            Err(RecoverError::Lost(lost)) => {
                self.last_seq = Some(lost.first_lost.saturating_sub(1));
                (lost.path, lost.position)
            }
            Err(RecoverError::CorruptFrame(corrupt)) => (corrupt.path, corrupt.position),
            Err(other) => return Err(other),
        };
        let Some(at) = run.iter().find(|live| live.path == slot) else {
            return Ok(None);
        };
        let mut later = self.generations(shard, |own| own > at.generation)?;
        let live = slots.iter().filter(|live| live.generation > at.generation);
        later.extend(live.map(|live| (live.generation, live.path.clone(), live.bytes)));
        later.sort();
        let mut behind = Behind::default();
        self.hidden = Hidden::default();
        let topics = self.topics.clone();
        self.read(
            shard,
            (&slot, position, at.bytes),
            at.generation,
            &mut behind,
        )?;
        for (_, path, bytes) in &later {
            self.read(shard, (path, BLOCK, *bytes), at.generation, &mut behind)?;
        }
        self.hidden_of.insert(shard, self.hidden.bytes);
        behind.set_back = self.topics.set_back(&topics);
        Ok(Some(LogCut {
            shard,
            slot,
            position,
            later: later.into_iter().map(|(_, path, _)| path).collect(),
            behind,
        }))
    }

    /// The slots that nothing claims and that have frames of a shard of such a generation: the newest in each, the slot and
    /// its length.
    fn generations(
        &self,
        shard: u16,
        wanted: impl Fn(u64) -> bool,
    ) -> Result<Vec<(u64, PathBuf, u64)>, FileError> {
        let mut out = Vec::new();
        for slot in &self.live.unclaimed {
            let mut newest = None;
            each_frame(&slot.path, slot.bytes, false, |_, header, _| {
                if self.is_own(shard, header) && wanted(header.generation) {
                    newest = newest.max(Some(header.generation));
                }
            })?;
            out.extend(newest.map(|newest| (newest, slot.path.clone(), slot.bytes)));
        }
        Ok(out)
    }

    /// Reads what lies in a part of a slot of the log, whose frames are of this generation or later.
    fn read(
        &mut self,
        shard: u16,
        (path, from, end): (&Path, u64, u64),
        generation: u64,
        behind: &mut Behind,
    ) -> Result<(), RecoverError> {
        let file = files::open_read(path, false)?;
        let mut buf = vec![0; MAX_FRAME_BYTES];
        let (mut position, mut older_to) = (from, from);
        while position < end {
            let got = files::read_at(&file, path, &mut buf[..BLOCK_BYTES], position)?;
            match FrameHeader::decode(&buf[..got]) {
                Ok((header, _))
                    if self.is_own(shard, &header) && header.generation >= generation =>
                {
                    let bytes = FRAME_HEADER_BYTES + header.entries_bytes as usize;
                    let got = files::read_at(&file, path, &mut buf[..bytes], position)?;
                    let at = At { path, position };
                    self.frame(at, &header, &buf[FRAME_HEADER_BYTES..got], behind)?;
                    position += header.disk_bytes() as u64;
                    continue;
                }
                Ok((older, _)) => {
                    older_to = position + older.disk_bytes() as u64;
                    self.hidden.maybe += BLOCK;
                }
                Err(_) if position >= older_to && buf[..got].iter().any(|&b| b != 0) => {
                    behind.unknown_bytes += got as u64;
                    self.hidden.add(BLOCK);
                }
                Err(_) => self.hidden.maybe += BLOCK,
            }
            position += BLOCK;
        }
        Ok(())
    }

    fn frame(
        &mut self,
        frame: At<'_>,
        header: &FrameHeader,
        entries: &[u8],
        behind: &mut Behind,
    ) -> Result<(), RecoverError> {
        behind.frames += 1;
        self.hidden.add(0);
        let (mut at, mut read, mut read_bytes) = (0, 0, 0);
        while let Some(rest) = entries.get(at..)
            && rest.len() >= ENTRY_HEADER_BYTES
        {
            match EntryHeader::decode(rest, header.incarnation) {
                Ok((entry, payload))
                    if (header.first_seq..header.next_seq()).contains(&entry.seq) =>
                {
                    let at_entry = At {
                        position: frame.position + (FRAME_HEADER_BYTES + at) as u64,
                        ..frame
                    };
                    let hidden = at as u64 - read_bytes;
                    self.check_snapshot(at_entry, &entry, (behind.entries, hidden))?;
                    behind.entries += 1;
                    read += 1;
                    read_bytes += entry.disk_bytes() as u64;
                    self.note(&entry, payload, behind);
                    at += entry.disk_bytes();
                }
                // Its header is right, and with it its length.
                Err(EntryError::PayloadChecksum { .. }) => at += padded_bytes(rest),
                _ => break,
            }
        }
        behind.damaged_entries += u64::from(header.entry_count).saturating_sub(read);
        let damaged = u64::from(header.entries_bytes).saturating_sub(read_bytes);
        self.hidden.add(damaged);
        Ok(())
    }

    /// A group whose entries begin behind the damage: what its snapshot does not hold of it can be no more than what is
    /// damaged, or the snapshot is missing or old. The log would show that no more once it is cut.
    fn check_snapshot(
        &mut self,
        at: At<'_>,
        entry: &EntryHeader,
        (read, hidden): (u64, u64),
    ) -> Result<(), RecoverError> {
        let Some(last_seq) = self.last_seq else {
            return Ok(());
        };
        if !self.seen.insert(entry.group) {
            return Ok(());
        }
        let damaged = entry.seq.saturating_sub(last_seq + 1 + read);
        let damaged = damaged.min((self.hidden.bytes + hidden) / ENTRY_HEADER_BYTES as u64);
        let snapshot = self.snapshots.get(usize::from(entry.group.0));
        let holds = snapshot.map_or(0, |snapshot| snapshot.group_index);
        if entry.group_index <= holds.saturating_add(1 + damaged) {
            return Ok(());
        }
        Err(MissingEntries {
            path: at.path.to_owned(),
            position: at.position,
            group: entry.group.0,
            expected: holds + 1,
            found: entry.group_index,
        }
        .into())
    }

    fn note(&mut self, entry: &EntryHeader, payload: &[u8], behind: &mut Behind) {
        let id = entry.partition;
        match entry.kind {
            EntryKind::Batch => {
                let Ok(batch) = Header::peek(payload) else {
                    return;
                };
                let (first, last) = (batch.base_offset, batch.next_offset().saturating_sub(1));
                *self.readable.entry(id).or_default() += payload.len() as u64;
                let end = self.end(id);
                let span = behind.records.entry(id).or_insert(Span {
                    end,
                    first,
                    last,
                    records: 0,
                });
                span.first = span.first.min(first);
                span.last = span.last.max(last);
                span.records += u64::from(batch.record_count);
            }
            EntryKind::CommitOffset => {
                if let Ok(commit) = flatbuffers::root::<CommitOffset<'_>>(payload) {
                    let commit = commit.unpack();
                    behind.commits.insert((id, commit.consumer), commit.offset);
                }
            }
            EntryKind::LogStart => {
                behind.log_starts.insert(id, entry.base_offset);
            }
            EntryKind::Meta => behind.topics.extend(self.topics.change(payload)),
        }
    }
}

/// Bytes that an entry takes whose header is whole.
fn padded_bytes(entry: &[u8]) -> usize {
    let length = entry.first_chunk().copied().map_or(0, u32::from_le_bytes);
    (length as usize)
        .max(ENTRY_HEADER_BYTES)
        .next_multiple_of(8)
}
