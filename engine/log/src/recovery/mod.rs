//! Making a data directory ready for the shards, after whatever ended the last run.
//!
//! [`recover`] runs before the shards, blocking and alone. It reads `identity`, the snapshots of
//! all log groups, and, unless the broker stopped cleanly, the write-ahead log of every shard of the
//! last start; it writes what the log has beyond the snapshots into segments and new snapshots,
//! and hands complete groups to however many shards there are now.
//!
//! The order of its writes makes it safe to interrupt at any point: segments, then snapshots of
//! data groups, then that of the metadata group, then `identity` with the next incarnation (which
//! makes every WAL slot free), and only then is anything removed. Before `identity` is replaced,
//! a second run finds the same log and comes to the same result. After a clean stop there is nothing to
//! write but `identity`. On a full disk slots of the log go earlier: free ones, and then the oldest once
//! snapshots hold what is in them.
//!
//! What stops a start rather than lose or change acknowledged data is in [`error`]; what a break in
//! the log means is decided by the table in [`table`]. [`verify`] and [`inspect`] read the same
//! files with the same readers and change nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ringtide_schema::identity::Identity;
use ringtide_schema::ids::{GroupId, PartitionId, TopicId};
use ringtide_schema::limits::BLOCK_BYTES;
use ringtide_schema::snapshot;
use ringtide_schema::store::{GroupSnapshotT, PartitionT};

pub use self::chain::LogEnd;
use self::chain::{Chain, ChainCounts};
pub use self::error::RecoverError;
use self::error::{BadIdentity, BadSegment, Contradiction, OldSnapshot};
use self::layout::{FOLDERS, Garbage, Top};
pub use self::metadata::TopicRecord;
use self::replay::{Mode, Replay};
pub use self::segments::{index_name, log_name};
pub use self::verify::{PartitionEnd, Problem, Report, verify};
use crate::files;

mod behind;
mod chain;
pub mod cut;
pub mod error;
pub mod inspect;
mod layout;
mod metadata;
mod partition;
pub mod repair;
mod replay;
mod scan;
mod segments;
mod slots;
mod stream;
pub mod table;
mod verify;

/// What recovery is told.
#[derive(Clone, Copy, Debug)]
pub struct RecoverOptions {
    /// Read the log and write segments past the page cache.
    pub direct: bool,
    /// Shards from now on.
    pub shards: u16,
    /// Bytes of each WAL slot from now on.
    pub slot_bytes: u64,
    /// Data groups, if the data directory has to be made; at least one.
    pub groups_for_new: u16,
    /// The identity of the data directory, if it has to be made.
    pub random: [u64; 2],
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Bytes of the log that were replayed, of at most so many.
    Replaying {
        /// Bytes so far.
        done: u64,
        /// Bytes of all live slots.
        total: u64,
    },
    /// Bytes of segments that were verified.
    Reading {
        /// Bytes so far.
        done: u64,
        /// Bytes of all segments.
        total: u64,
    },
    /// Files and directories that are being made durable.
    Syncing {
        /// So far.
        done: u64,
        /// Of how many.
        total: u64,
    },
}

/// A WAL slot that is free.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotFile {
    /// The file.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
}

/// What recovery did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// The data directory was made.
    pub fresh: bool,
    /// The last run stopped cleanly: no log was read.
    pub was_clean: bool,
    /// Bytes of the frames that were replayed.
    pub wal_bytes: u64,
    /// Frames replayed.
    pub frames: u64,
    /// Entries in them.
    pub entries: u64,
    /// Record batches that were not in a snapshot yet.
    pub batches: u64,
    /// Entries that a snapshot held already, or of deleted topics.
    pub skipped: u64,
    /// Where the log of each shard ended, by shard.
    pub log_ends: Vec<LogEnd>,
    /// WAL slots that were removed because the disk is full; they are made again when there is space.
    pub slots_given_up: u64,
    /// How long it took.
    pub duration: Duration,
}

impl Summary {
    /// The first log that ended in something that an interrupted write left, if any did.
    pub fn torn_tail(&self) -> Option<&LogEnd> {
        self.log_ends
            .iter()
            .find(|end| end.found == table::Found::Torn || end.later_frames > 0)
    }
}

/// A data directory that shards can take over.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// Durable already: incarnation raised, not clean.
    pub identity: Identity,
    /// The topics, by id.
    pub topics: Vec<TopicRecord>,
    /// The serial number of the next topic.
    pub next_topic_serial: u64,
    /// All groups, `0..=identity.groups`; the last is the metadata group.
    pub groups: Vec<GroupSnapshotT>,
    /// WAL slots of the wanted size, all free, by name.
    pub slots: Vec<SlotFile>,
    /// What was done.
    pub summary: Summary,
}

/// Recovers the data directory, or makes it when there is nothing. The caller holds its lock.
///
/// # Errors
/// A refusal when going on would lose or change acknowledged data; a failed file operation.
pub fn recover(
    dir: &Path,
    options: RecoverOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Recovered, RecoverError> {
    let began = Instant::now();
    let mut slots_given_up = 0;
    loop {
        let mut leftovers = Vec::new();
        let (recovered, old) = match layout::look(dir, &mut leftovers)? {
            Top::Fresh => (make(dir, &options), None),
            Top::Used(old) => {
                let recovered = take_over(dir, old, &options, leftovers, progress);
                (recovered, Some(old))
            }
        };
        if let (Err(error), Some(old)) = (&recovered, &old)
            && error.is_full()
            && make_room(dir, old, options.direct)?
        {
            slots_given_up += 1;
            continue;
        }
        let mut recovered = recovered?;
        recovered.summary.slots_given_up = slots_given_up;
        recovered.summary.duration = began.elapsed();
        return Ok(recovered);
    }
}

fn make(dir: &Path, options: &RecoverOptions) -> Result<Recovered, RecoverError> {
    files::make_directories(dir, &mut Vec::new())?;
    files::sync_directory(files::parent(dir))?;
    for folder in FOLDERS {
        files::make_directory(&dir.join(folder))?;
    }
    files::sync_directory(dir)?;
    let identity = Identity {
        data_directory: TopicId {
            hi: options.random[0],
            lo: options.random[1],
        },
        groups: options.groups_for_new.max(1),
        clean: false,
        incarnation: 1,
        leader_epoch: 1,
        shards: u32::from(options.shards),
        slot_bytes: options.slot_bytes,
        snapshots_crc: 0,
    };
    write_identity(dir, &identity)?;
    Ok(Recovered {
        identity,
        topics: Vec::new(),
        next_topic_serial: 0,
        groups: (0..=identity.groups)
            .map(|group| GroupSnapshotT {
                group,
                ..GroupSnapshotT::default()
            })
            .collect(),
        slots: Vec::new(),
        summary: Summary {
            fresh: true,
            ..Summary::default()
        },
    })
}

/// The broker stopped cleanly: says so, and which snapshots it leaves.
pub fn write_clean_stop(dir: &Path, identity: &Identity) -> Result<(), files::FileError> {
    let clean = Identity {
        clean: true,
        snapshots_crc: layout::snapshots_crc(dir)?,
        ..*identity
    };
    write_identity(dir, &clean)
}

/// Replaces `identity` durably.
fn write_identity(dir: &Path, identity: &Identity) -> Result<(), files::FileError> {
    files::replace(&dir.join("identity"), &identity.encode())?;
    files::sync_directory(dir)
}

/// The identity of the start that follows one.
fn next_start(dir: &Path, old: &Identity) -> Result<Identity, RecoverError> {
    let path = dir.join("identity");
    Ok(old.next_start().map_err(|why| BadIdentity { path, why })?)
}

fn take_over(
    dir: &Path,
    old: Identity,
    options: &RecoverOptions,
    leftovers: Vec<PathBuf>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Recovered, RecoverError> {
    let next = next_start(dir, &old)?;
    let slot_files = slots::list(&dir.join("wal"))?;
    let directories = layout::partitions(dir)?;
    let snapshots = layout::snapshots(dir, &old)?;
    slots::remove_unfinished(&dir.join("wal"))?;
    let mode = Mode {
        direct: options.direct,
        dry: false,
    };
    let mut replay = Replay::new(dir, old, mode, snapshots, progress)?;
    let mut summary = Summary {
        was_clean: old.clean,
        ..Summary::default()
    };
    let replayed = replay_logs(&old, &slot_files, options.direct, &mut replay, &mut summary)
        .and_then(|()| replay.finish());
    if let Err(error) = replayed {
        if error.is_full() {
            replay.undo()?;
        }
        return Err(error);
    }
    summary.batches = replay.batches;
    summary.skipped = replay.skipped;
    let directories = match old.clean {
        true => directories,
        // With those that the replay made for topics that are deleted later in the log.
        false => layout::partitions(dir)?,
    };
    let mut garbage = layout::garbage(directories, &replay, !old.clean)?;
    garbage.files.extend(leftovers);

    let identity = Identity {
        shards: u32::from(options.shards),
        slot_bytes: options.slot_bytes,
        ..next
    };
    let topics = replay.metadata().topics().cloned().collect();
    let next_topic_serial = replay.metadata().next_serial();
    // Even if nothing was made now: what a killed run made may not be durable yet, and once a
    // snapshot is, the log is not needed for what it names.
    files::sync_directory(&dir.join("partitions"))?;
    let groups = replay.into_groups();
    for (snapshot, _) in &groups {
        check_open_segments(dir, snapshot, old.clean)?;
    }
    let groups = match old.clean {
        // Those of the stop stay until this start is durable: an interrupted one is begun again from them.
        true => groups.into_iter().map(|(snapshot, _)| snapshot).collect(),
        false => write_snapshots(dir, groups)?,
    };
    files::sync_directory(&dir.join("groups"))?;
    write_identity(dir, &identity)?;

    let (fit, unfit): (Vec<_>, Vec<_>) = slot_files
        .into_iter()
        .partition(|&(_, bytes)| bytes == options.slot_bytes);
    garbage
        .files
        .extend(unfit.into_iter().map(|(path, _)| path));
    clear(&garbage)?;
    let slots = fit
        .into_iter()
        .map(|(path, bytes)| SlotFile { path, bytes })
        .collect();
    Ok(Recovered {
        identity,
        topics,
        next_topic_serial,
        groups,
        slots,
        summary,
    })
}

/// On a full disk a start has the space of slots of the log: of one that is free, or of the oldest of one shard, once what
/// it holds is in segments and snapshots. Whether there was one; nothing is taken that the next attempt needs.
fn make_room(dir: &Path, identity: &Identity, direct: bool) -> Result<bool, RecoverError> {
    let wal = dir.join("wal");
    let listed = slots::list(&wal)?;
    if identity.clean {
        return match listed.first() {
            Some((path, _)) => remove_slot(&wal, path),
            None => Ok(false),
        };
    }
    let looked = slots::look_at_all(&listed, direct)?;
    let held = layout::held(&layout::snapshots(dir, identity)?);
    let live = slots::sort_out(&looked, identity, &held, direct)?;
    // Only of a log that is whole.
    let dry = Mode { direct, dry: true };
    let Some((_, counts)) = replay_some(dir, identity, dry, &live, None)? else {
        return Ok(false);
    };
    if let Some(path) = slots::expendable(&live, identity)? {
        return remove_slot(&wal, path);
    }
    // What stays must be a log of its own.
    let long = counts.iter().filter(|(_, counts)| counts.behind_first > 0);
    let mode = Mode { direct, dry: false };
    for (&shard, _) in long {
        let Some((groups, _)) = replay_some(dir, identity, mode, &live, Some(shard))? else {
            continue;
        };
        files::sync_directory(&dir.join("partitions"))?;
        write_snapshots(dir, groups)?;
        files::sync_directory(&dir.join("groups"))?;
        return remove_slot(&wal, &live.shards[&shard][0].path);
    }
    Ok(false)
}

fn remove_slot(wal: &Path, path: &Path) -> Result<bool, RecoverError> {
    files::remove_file(path)?;
    files::sync_directory(wal)?;
    Ok(true)
}

/// All groups, each with whether it changed, and what was read of each shard's log.
type Replayed = (Vec<(GroupSnapshotT, bool)>, BTreeMap<u16, ChainCounts>);

/// Replays the logs of all shards, or up to the end of the oldest slot of one: topics are in the log of the first. Nothing if
/// there is no space for that, or if that much alone does not say enough.
fn replay_some(
    dir: &Path,
    identity: &Identity,
    mode: Mode,
    live: &slots::LiveSlots,
    up_to: Option<u16>,
) -> Result<Option<Replayed>, RecoverError> {
    let snapshots = layout::snapshots(dir, identity)?;
    let mut ignore = |_| ();
    let mut replay = Replay::new(dir, *identity, mode, snapshots, &mut ignore)?;
    let mut read = BTreeMap::new();
    let mut follow = || {
        for (&shard, slots) in live.shards.range(..=up_to.unwrap_or(u16::MAX)) {
            let chain = Chain {
                shard,
                incarnation: identity.incarnation,
                slots,
                strays: &live.unclaimed,
                direct: mode.direct,
                only_first: up_to == Some(shard),
            };
            let (_, counts) = chain.follow(&mut replay)?;
            if counts.frames == 0 {
                return Ok(false);
            }
            read.insert(shard, counts);
        }
        replay.finish()?;
        Ok::<_, RecoverError>(true)
    };
    if matches!(follow(), Ok(true)) {
        return Ok(Some((replay.into_groups(), read)));
    }
    replay.undo()?;
    Ok(None)
}

/// Follows the log of every shard of the last start, shard 0 first. After a clean stop there is none, and only
/// where the slots are from is looked at.
fn replay_logs(
    identity: &Identity,
    slot_files: &[(PathBuf, u64)],
    direct: bool,
    replay: &mut Replay<'_>,
    summary: &mut Summary,
) -> Result<(), RecoverError> {
    let looked = slots::look_at_all(slot_files, direct)?;
    if identity.clean {
        return looked
            .iter()
            .try_for_each(|slot| slot.check_origin(identity));
    }
    let live = slots::sort_out(&looked, identity, &replay.held(), direct)?;
    if !replay.is_dry() {
        slots::sync(&live)?;
    }
    replay.wal_bytes_total = live.shards.values().flatten().map(|slot| slot.bytes).sum();
    for (&shard, slots) in &live.shards {
        if u32::from(shard) >= identity.shards {
            let path = slots[0].path.clone();
            let what = format!(
                "it is of shard {shard}, the last start had {}",
                identity.shards
            );
            return Err(Contradiction { path, what }.into());
        }
        let incarnation = identity.incarnation;
        let chain = Chain {
            shard,
            incarnation,
            slots,
            strays: &live.unclaimed,
            direct,
            only_first: false,
        };
        let (
            end,
            ChainCounts {
                frames,
                entries,
                bytes,
                ..
            },
        ) = chain.follow(replay)?;
        summary.frames += frames;
        summary.entries += entries;
        summary.wal_bytes += bytes;
        summary.log_ends.push(end);
    }
    Ok(())
}

/// The segments that shards will append to have at least what was synced of them: found here, it
/// concerns nobody yet. After a clean stop they have no more than the block that the snapshot holds itself.
fn check_open_segments(
    dir: &Path,
    group: &GroupSnapshotT,
    is_clean: bool,
) -> Result<(), RecoverError> {
    for partition in group.partitions.iter().flatten() {
        let Some((path, want, have)) = open_segment(dir, partition)? else {
            continue;
        };
        if have > want + BLOCK_BYTES as u64 {
            if is_clean {
                return Err(OldSnapshot { path, want, have }.into());
            }
            // What a killed broker wrote and no log has any more; an index of it is wrong.
            files::remove_file(&path.with_extension("index"))?;
            let file = files::open_write(&path, false, false)?;
            files::set_len(&file, &path, want)?;
            files::sync_data(&file, &path)?;
        }
    }
    Ok(())
}

/// The segment that a shard will append to, and how many bytes of it were synced and are there: not fewer.
fn open_segment(
    dir: &Path,
    partition: &PartitionT,
) -> Result<Option<(PathBuf, u64, u64)>, RecoverError> {
    let Some(topic) = &partition.topic else {
        return Ok(None);
    };
    let last = partition.segments.iter().flatten().next_back();
    let (base_offset, want) = match last.filter(|last| !last.sealed) {
        Some(last) => (last.base_offset, last.bytes),
        None => (partition.next_offset, 0),
    };
    let id = PartitionId {
        topic: topic.into(),
        partition: partition.partition,
    };
    let folder = dir.join("partitions").join(id.dir_name());
    let path = folder.join(log_name(base_offset));
    let have = match files::bytes_at(&path) {
        Err(e) if e.cause == files::Cause::Missing => 0,
        bytes => bytes?,
    };
    if have < want {
        return Err(BadSegment { path, want, have }.into());
    }
    Ok(Some((path, want, have)))
}

/// Writes the snapshots of changed groups, the metadata group's when all others are durable: until
/// it is there, an interrupted recovery replays into the same topics again.
fn write_snapshots(
    dir: &Path,
    groups: Vec<(GroupSnapshotT, bool)>,
) -> Result<Vec<GroupSnapshotT>, RecoverError> {
    let folder = dir.join("groups");
    let last = groups.len().saturating_sub(1);
    for (number, (snapshot, changed)) in groups.iter().enumerate() {
        if !changed {
            continue;
        }
        if number == last {
            files::sync_directory(&folder)?;
        }
        let path = folder.join(GroupId(snapshot.group).snapshot_name());
        files::replace(&path, &snapshot::encode(snapshot))?;
    }
    Ok(groups.into_iter().map(|(snapshot, _)| snapshot).collect())
}

fn clear(garbage: &Garbage) -> Result<(), RecoverError> {
    for path in &garbage.files {
        files::remove_file(path)?;
    }
    for path in &garbage.directories {
        files::remove_directory(path)?;
    }
    Ok(())
}
