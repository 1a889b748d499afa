//! The state that snapshots begin and log entries continue: groups, topics, partitions.
//!
//! It takes the entries of every chain in turn, shard 0 first because that one has the metadata.
//! A topic is made durable there before any entry of its partitions is written, so metadata is
//! applied in passing. Whatever does not fit is refused, never skipped, but for entries of topics
//! that were deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use ringtide_schema::batch::Header;
use ringtide_schema::flatbuffers;
use ringtide_schema::identity::Identity;
use ringtide_schema::ids::{GroupId, PartitionId, TopicId};
use ringtide_schema::limits::BLOCK_BYTES;
use ringtide_schema::store::{CommitOffset, GroupSnapshotT, PartitionT};
use ringtide_schema::wal::{EntryHeader, EntryKind};

use super::Progress;
use super::behind::Behind;
use super::chain::{At, MAX_SEQ, Sink};
use super::error::{BadEntry, Contradiction, MissingEntries, RecoverError, Shown, UnknownTopic};
use super::metadata::{Metadata, Standing};
use super::partition::Partition;
use super::segments::{Replayed, Writer, index_name, log_name};
use crate::files;

/// How files are treated.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mode {
    /// Read the log and write segments past the page cache.
    pub(super) direct: bool,
    /// Do everything but write: for verification.
    pub(super) dry: bool,
}

/// A log group while it is replayed.
struct Group {
    /// The last entry that the snapshot holds.
    snapshot_index: u64,
    /// The last entry applied.
    applied: u64,
    /// The last entry seen in the log, applied or not.
    seen: Option<u64>,
    term: u64,
    incarnation: u64,
    changed: bool,
}

/// Everything that recovery makes out of snapshots and logs.
pub(super) struct Replay<'a> {
    directory: PathBuf,
    identity: Identity,
    mode: Mode,
    metadata: Metadata,
    groups: Vec<Group>,
    partitions: BTreeMap<PartitionId, Partition>,
    /// Partitions whose entries do not fit what is there, and why. That is right if the topic is
    /// deleted further on in the log, because a snapshot or a directory may know that already;
    /// [`Self::finish`] decides.
    doubtful: BTreeMap<PartitionId, RecoverError>,
    writers: usize,
    /// Absent for a dry run.
    behind: Option<Behind>,
    /// Files that the new snapshots no longer name.
    pub(super) garbage: BTreeSet<PathBuf>,
    pub(super) batches: u64,
    pub(super) skipped: u64,
    wal_bytes: u64,
    pub(super) wal_bytes_total: u64,
    progress: &'a mut dyn FnMut(Progress),
}

impl<'a> Replay<'a> {
    /// Begins with the snapshots, one for each group in order.
    pub(super) fn new(
        directory: &Path,
        identity: Identity,
        mode: Mode,
        snapshots: Vec<GroupSnapshotT>,
        progress: &'a mut dyn FnMut(Progress),
    ) -> Result<Self, RecoverError> {
        let mut replay = Self {
            directory: directory.to_owned(),
            identity,
            mode,
            metadata: Metadata::default(),
            groups: Vec::new(),
            partitions: BTreeMap::new(),
            doubtful: BTreeMap::new(),
            writers: 0,
            behind: (!mode.dry && !identity.clean).then(|| Behind::start(mode.direct)),
            garbage: BTreeSet::new(),
            batches: 0,
            skipped: 0,
            wal_bytes: 0,
            wal_bytes_total: 0,
            progress,
        };
        for (number, snapshot) in (0..=identity.groups).zip(snapshots) {
            let path = replay.snapshot_path(GroupId(number));
            replay
                .begin_group(GroupId(number), snapshot)
                .map_err(|what| Contradiction { path, what })?;
        }
        Ok(replay)
    }

    fn snapshot_path(&self, group: GroupId) -> PathBuf {
        self.directory.join("groups").join(group.snapshot_name())
    }

    fn partition_path(&self, id: PartitionId) -> PathBuf {
        self.directory.join("partitions").join(id.dir_name())
    }

    fn begin_group(&mut self, group: GroupId, snapshot: GroupSnapshotT) -> Result<(), String> {
        if snapshot.group != group.0 {
            return Err(format!("it is of group {}", snapshot.group));
        }
        if snapshot.group_index > MAX_SEQ {
            return Err(format!(
                "its group index {} is out of range",
                snapshot.group_index
            ));
        }
        let metadata = group.0 == self.identity.groups;
        if metadata {
            let topics = snapshot.topics.unwrap_or_default();
            self.metadata = Metadata::new(&topics, snapshot.next_topic_serial)?;
        }
        for stored in snapshot.partitions.unwrap_or_default() {
            let id = check_partition(&stored)?;
            if metadata || id.group(self.identity.groups) != group {
                return Err(format!("partition {id} is not of this group"));
            }
            if self.partitions.insert(id, Partition::new(stored)).is_some() {
                return Err(format!("partition {id} is there twice"));
            }
        }
        self.groups.push(Group {
            snapshot_index: snapshot.group_index,
            applied: snapshot.group_index,
            seen: None,
            term: snapshot.term,
            incarnation: snapshot.incarnation,
            changed: false,
        });
        Ok(())
    }

    /// Puts the entry into the order of its group; whether it is to be applied.
    fn advance(&mut self, at: At<'_>, header: &EntryHeader) -> Result<bool, RecoverError> {
        let index = header.group_index;
        let Some(group) = self.groups.get_mut(usize::from(header.group.0)) else {
            return bad(at, format!("there is no log group {}", header.group.0));
        };
        let expected = match group.seen {
            Some(seen) => seen + 1,
            None => index.clamp(1, group.applied + 1),
        };
        if index != expected {
            let (path, position) = (at.path.to_owned(), at.position);
            let group = header.group.0;
            let found = index;
            return Err(MissingEntries {
                path,
                position,
                group,
                expected,
                found,
            }
            .into());
        }
        group.seen = Some(index);
        if index <= group.applied {
            return Ok(false);
        }
        group.applied = index;
        group.term = group.term.max(header.term);
        group.changed = true;
        Ok(true)
    }

    fn apply_meta(&mut self, at: At<'_>, payload: &[u8]) -> Result<(), RecoverError> {
        match self.metadata.apply(payload) {
            Ok(None) => Ok(()),
            Ok(Some(deleted)) => {
                self.drop_partitions(|id| id.topic == deleted);
                Ok(())
            }
            Err(what) => bad(at, what),
        }
    }

    fn drop_partitions(&mut self, gone: impl Fn(&PartitionId) -> bool) {
        let groups = self.identity.groups;
        let dropped: Vec<PartitionId> = self
            .partitions
            .keys()
            .filter(|id| gone(id))
            .copied()
            .collect();
        for id in dropped {
            self.partitions.remove(&id);
            self.groups[usize::from(id.group(groups).0)].changed = true;
        }
    }

    fn apply_data(
        &mut self,
        at: At<'_>,
        header: &EntryHeader,
        payload: &[u8],
    ) -> Result<(), RecoverError> {
        let id = header.partition;
        let segment_bytes = match self.metadata.standing(id.topic) {
            Standing::Live(topic) if id.partition < topic.partitions => topic.config.segment_bytes,
            Standing::Live(topic) => {
                let have = topic.partitions;
                return bad(at, format!("it is of partition {id}, the topic has {have}"));
            }
            Standing::Deleted => {
                self.skipped += 1;
                return Ok(());
            }
            Standing::Unknown => return Err(self.unknown(at.path.to_owned(), id).into()),
        };
        let partition = self.partitions.entry(id).or_insert_with(|| {
            Partition::new(PartitionT {
                topic: Some(id.topic.into()),
                partition: id.partition,
                ..PartitionT::default()
            })
        });
        if self.doubtful.contains_key(&id) {
            self.skipped += 1;
            return Ok(());
        }
        match header.kind {
            EntryKind::Batch => {
                let next = partition.stored.next_offset;
                let batch = match check_batch(header, payload, next) {
                    Ok(Some(batch)) => batch,
                    Ok(None) => {
                        self.skipped += 1;
                        return Ok(());
                    }
                    Err(what) => {
                        self.doubtful.insert(id, bad_entry(at, what));
                        return Ok(());
                    }
                };
                partition.note(&batch, header.append_time_ms);
                self.batches += 1;
                self.append(id, payload, &batch, segment_bytes)
            }
            EntryKind::CommitOffset => match flatbuffers::root::<CommitOffset<'_>>(payload) {
                Ok(commit) => {
                    partition.commit(commit.unpack());
                    Ok(())
                }
                Err(e) => bad(at, e.to_string()),
            },
            EntryKind::LogStart if header.base_offset > partition.stored.next_offset => {
                let (start, next) = (header.base_offset, partition.stored.next_offset);
                let what = format!("log start {start} of {id} is past its end, {next}");
                self.doubtful.insert(id, bad_entry(at, what));
                Ok(())
            }
            EntryKind::LogStart => {
                let below = partition.raise_log_start(header.base_offset);
                self.discard_segments(id, &below);
                Ok(())
            }
            EntryKind::Meta => bad(at, "metadata in a data group".to_owned()),
        }
    }

    fn discard_segments(&mut self, id: PartitionId, bases: &[u64]) {
        let directory = self.partition_path(id);
        for &base in bases {
            self.garbage.insert(directory.join(log_name(base)));
            self.garbage.insert(directory.join(index_name(base)));
        }
    }

    fn append(
        &mut self,
        id: PartitionId,
        payload: &[u8],
        batch: &Header,
        segment_bytes: u32,
    ) -> Result<(), RecoverError> {
        let Some(partition) = self.partitions.get_mut(&id) else {
            return Ok(());
        };
        if partition.writer.is_none() {
            let directory = self.directory.join("partitions").join(id.dir_name());
            if self.behind.is_some() {
                files::make_directory(&directory)?;
            }
            let opened = Writer::open(
                directory,
                &mut partition.stored,
                (self.identity.incarnation + 1, self.mode.direct),
                self.writers,
                self.behind.as_mut(),
            );
            match opened {
                Ok(writer) => partition.writer = Some(writer),
                Err(error) => {
                    self.doubtful.insert(id, error);
                    return Ok(());
                }
            }
            self.writers += 1;
        }
        let Some(writer) = &mut partition.writer else {
            return Ok(());
        };
        let replayed = Replayed {
            bytes: payload,
            next_offset: batch.next_offset(),
            max_timestamp_ms: batch.max_timestamp_ms,
        };
        writer.append(
            &mut partition.stored,
            &replayed,
            segment_bytes,
            self.behind.as_mut(),
        )
    }

    fn unknown(&self, path: PathBuf, partition: PartitionId) -> UnknownTopic {
        UnknownTopic {
            path,
            partition,
            next_serial: self.metadata.next_serial(),
        }
    }

    /// After the last chain: everything is written and synced but for directories; partitions of
    /// deleted topics go.
    pub(super) fn finish(&mut self) -> Result<(), RecoverError> {
        for (id, error) in std::mem::take(&mut self.doubtful) {
            if !matches!(self.metadata.standing(id.topic), Standing::Deleted) {
                return Err(error);
            }
        }
        for (&id, partition) in &self.partitions {
            let path = || self.snapshot_path(id.group(self.identity.groups));
            match self.metadata.standing(id.topic) {
                Standing::Unknown => return Err(self.unknown(path(), id).into()),
                Standing::Live(topic) if id.partition >= topic.partitions => {
                    let what = format!("partition {id} of a topic with {}", topic.partitions);
                    return Err(Contradiction { path: path(), what }.into());
                }
                Standing::Live(_) if partition.stored.log_start > partition.stored.next_offset => {
                    let what = format!("partition {id} begins behind its end");
                    return Err(Contradiction { path: path(), what }.into());
                }
                Standing::Live(_) | Standing::Deleted => {}
            }
        }
        let metadata = std::mem::take(&mut self.metadata);
        self.drop_partitions(|id| matches!(metadata.standing(id.topic), Standing::Deleted));
        self.metadata = metadata;
        let mut directories = Vec::new();
        for (id, partition) in &mut self.partitions {
            partition.settle();
            if partition.limit_commits() {
                self.groups[usize::from(id.group(self.identity.groups).0)].changed = true;
            }
            if let Some(writer) = partition.writer.take() {
                directories.push(writer.finish(&mut partition.stored, self.behind.as_mut())?);
            }
        }
        if let Some(behind) = &mut self.behind {
            let progress = &mut self.progress;
            behind.settle(directories, |done, total| {
                progress(Progress::Syncing { done, total })
            })?;
        }
        Ok(())
    }

    /// The last entry that the snapshot of each group holds.
    pub(super) fn held(&self) -> Vec<u64> {
        self.groups.iter().map(|g| g.snapshot_index).collect()
    }

    /// Whether nothing is written.
    pub(super) fn is_dry(&self) -> bool {
        self.mode.dry
    }

    /// Replay did not find the space it needs: it gives back what it took.
    pub(super) fn undo(&mut self) -> Result<(), RecoverError> {
        for partition in self.partitions.values_mut() {
            partition.writer = None;
        }
        Ok(self.behind.as_mut().map_or(Ok(()), Behind::undo)?)
    }

    /// Whether the topic of a partition exists.
    pub(super) fn standing(&self, topic: TopicId) -> Standing<'_> {
        self.metadata.standing(topic)
    }

    /// The partition as it is stored, if anything is known of it.
    pub(super) fn partition(&self, id: PartitionId) -> Option<&PartitionT> {
        self.partitions.get(&id).map(|partition| &partition.stored)
    }

    /// Every partition as it is stored.
    pub(super) fn partitions(&self) -> impl Iterator<Item = (PartitionId, &PartitionT)> {
        self.partitions.iter().map(|(&id, p)| (id, &p.stored))
    }

    /// The topics, and the serial number of the next one.
    pub(super) fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// All groups in order, each with whether it changed since its snapshot.
    pub(super) fn into_groups(self) -> Vec<(GroupSnapshotT, bool)> {
        let count = self.identity.groups;
        let mut out: Vec<(GroupSnapshotT, bool)> = (0..=count)
            .zip(&self.groups)
            .map(|(number, group)| {
                let incarnation = group.incarnation;
                let snapshot = GroupSnapshotT {
                    group: number,
                    group_index: group.applied,
                    term: group.term,
                    incarnation: if group.changed {
                        self.identity.incarnation + 1
                    } else {
                        incarnation
                    },
                    ..GroupSnapshotT::default()
                };
                (snapshot, group.changed)
            })
            .collect();
        let mut partitions: Vec<(PartitionId, Partition)> = self.partitions.into_iter().collect();
        partitions.sort_by_key(|&(id, _)| id);
        for (id, partition) in partitions {
            let (snapshot, _) = &mut out[usize::from(id.group(count).0)];
            snapshot
                .partitions
                .get_or_insert_default()
                .push(partition.stored);
        }
        if let Some((snapshot, _)) = out.last_mut() {
            snapshot.topics = Some(self.metadata.to_stored()).filter(|topics| !topics.is_empty());
            snapshot.next_topic_serial = self.metadata.next_serial();
        }
        out
    }
}

impl Sink for Replay<'_> {
    fn entry(
        &mut self,
        at: At<'_>,
        header: &EntryHeader,
        payload: &[u8],
    ) -> Result<(), RecoverError> {
        let groups = self.identity.groups;
        let group = match header.kind {
            EntryKind::Meta => GroupId(groups),
            _ => header.partition.group(groups),
        };
        if header.group != group {
            return bad(
                at,
                format!("it is of group {}, not {}", header.group.0, group.0),
            );
        }
        if !self.advance(at, header)? {
            self.skipped += 1;
            return Ok(());
        }
        match header.kind {
            EntryKind::Meta => self.apply_meta(at, payload),
            _ => self.apply_data(at, header, payload),
        }
    }

    fn beyond_chain(&self, shard: u16) -> Option<Shown> {
        let shards = u16::try_from(self.identity.shards)
            .unwrap_or(u16::MAX)
            .max(1);
        for (number, group) in (0..=self.identity.groups).zip(&self.groups) {
            let id = GroupId(number);
            if let Some(found) = group.seen
                && id.shard(self.identity.groups, shards) == shard
                && group.snapshot_index > found
            {
                let (path, holds) = (self.snapshot_path(id), group.snapshot_index);
                return Some(Shown::Snapshot { path, holds, found });
            }
        }
        None
    }

    fn progress(&mut self, bytes: u64) {
        self.wal_bytes += bytes;
        let (done, total) = (self.wal_bytes, self.wal_bytes_total);
        (self.progress)(Progress::Replaying { done, total });
    }
}

fn bad<T>(at: At<'_>, what: String) -> Result<T, RecoverError> {
    Err(bad_entry(at, what))
}

fn bad_entry(at: At<'_>, what: String) -> RecoverError {
    let (path, position) = (at.path.to_owned(), at.position);
    BadEntry {
        path,
        position,
        what,
    }
    .into()
}

/// `None`: the partition's snapshot holds the batch already. A snapshot is of a group index up to
/// which everything is synced; a partition in it may have been synced further.
fn check_batch(
    entry: &EntryHeader,
    payload: &[u8],
    next_offset: u64,
) -> Result<Option<Header>, String> {
    let header = Header::peek(payload).map_err(|e| e.to_string())?;
    let id = entry.partition;
    if header.batch_bytes != payload.len() {
        let (have, want) = (payload.len(), header.batch_bytes);
        return Err(format!("a batch of {want} bytes in {have}"));
    }
    if header.leader_epoch < 0 {
        return Err(format!("a batch of {id} without a leader epoch"));
    }
    if header.base_offset == entry.base_offset && header.next_offset() <= next_offset {
        return Ok(None);
    }
    if header.base_offset != next_offset || entry.base_offset != next_offset {
        let (batch, entry) = (header.base_offset, entry.base_offset);
        return Err(format!(
            "a batch with offset {batch} (entry: {entry}) of {id}, which is at {next_offset}"
        ));
    }
    Ok(Some(header))
}

fn check_partition(stored: &PartitionT) -> Result<PartitionId, String> {
    let topic = stored
        .topic
        .as_ref()
        .ok_or("a partition has no topic")?
        .into();
    let id = PartitionId {
        topic,
        partition: stored.partition,
    };
    let segments = stored.segments.as_deref().unwrap_or_default();
    for pair in segments.windows(2) {
        if !pair[0].sealed || pair[1].base_offset != pair[0].next_offset {
            return Err(format!("the segments of {id} do not follow one another"));
        }
    }
    if segments.iter().any(|s| s.base_offset > s.next_offset) {
        return Err(format!("a segment of {id} ends before it begins"));
    }
    let tail = stored.tail.as_ref().map_or(0, Vec::len);
    let fits = match segments.last() {
        Some(last) if last.sealed => tail == 0 && last.next_offset == stored.next_offset,
        Some(last) => {
            last.bytes.is_multiple_of(BLOCK_BYTES as u64)
                && (last.base_offset..=stored.next_offset).contains(&last.next_offset)
        }
        None => tail == 0,
    };
    if !fits || tail >= BLOCK_BYTES {
        return Err(format!("the last segment of {id} and its tail do not fit"));
    }
    Ok(id)
}
