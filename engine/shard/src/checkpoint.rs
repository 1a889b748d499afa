//! Checkpoints: everything up to a point of the log goes to segments and snapshots, so that the
//! slots before it can be used again.

use ringtide_io::{DiskDone, DiskError, DiskErrorKind, DiskOp, FatalReason, Now, OpId};
use ringtide_schema::ids::GroupId;
use ringtide_schema::snapshot;
use ringtide_schema::store::GroupSnapshotT;

use crate::open_files::Relief;
use crate::settings::MAX_SNAPSHOTS_IN_FLIGHT;
use crate::upkeep::fatal;
use crate::{Fx, Pending, Shard};

/// A checkpoint under way.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    /// Everything up to this entry will be in snapshots.
    cut_seq: u64,
    /// Partitions with what must be synced first.
    waiting: Vec<(usize, u64)>,
    /// Groups whose snapshots are to be written, with the index that they will hold.
    groups: Vec<(GroupId, u64)>,
    /// Snapshots on their way.
    writing: Vec<(GroupId, u64)>,
    /// On a full disk: snapshots on their way that let files go, with the last entry that they
    /// know of.
    early: Vec<(GroupId, u64)>,
    /// The log was asked to write everything up to the cut.
    is_flushed: bool,
}

impl Shard {
    /// Starts a checkpoint when slots run low or the broker stops, and drives the one under way.
    pub(crate) fn run_checkpoint(&mut self, fx: &mut Fx) {
        if self.checkpoint.is_none() {
            let (free, all) = self.wal.free_slots();
            // A slot that is being written is not released, so two must be in use.
            let is_low = all - free > 1 && free * 2 < all;
            let is_due = is_low || self.is_stopping || self.upkeep.wants_checkpoint;
            if is_due && self.begin_checkpoint() {
                self.upkeep.checkpoint_moved = true;
                self.upkeep.wants_checkpoint = false;
            } else if is_low || self.upkeep.wants_checkpoint {
                // Snapshots of an earlier checkpoint hold everything, though they were cut before it.
                self.upkeep.wants_checkpoint = false;
                self.upkeep.checkpointed_seq = self.wal.committed();
                self.wal.release_through(self.wal.committed(), &mut fx.disk);
            }
        }
        if !std::mem::take(&mut self.upkeep.checkpoint_moved) {
            return;
        }
        let committed = self.wal.committed();
        let Some(mut c) = self.checkpoint.take() else {
            return;
        };
        if committed < c.cut_seq {
            if !c.is_flushed {
                self.wal.want(c.cut_seq);
                c.is_flushed = true;
            }
            // Looked at again when the log moves.
            self.upkeep.checkpoint_moved = true;
            self.checkpoint = Some(c);
            return;
        }
        c.waiting.retain(|&(i, offset)| {
            let Some(Some(held)) = self.partitions.get(i) else {
                return false;
            };
            !held.log.is_synced_to(offset)
        });
        if !c.waiting.is_empty() {
            for &(i, _) in &c.waiting {
                self.queue_writer(i, true);
            }
            if self.upkeep.disk_full.is_some() && c.early.is_empty() {
                c.early = self.write_early_snapshots(fx);
            }
            self.checkpoint = Some(c);
            return;
        }
        if !c.early.is_empty() {
            // They are the same files. Looked at again when they are written.
            self.upkeep.checkpoint_moved = true;
            self.checkpoint = Some(c);
            return;
        }
        while c.writing.len() < MAX_SNAPSHOTS_IN_FLIGHT {
            let Some((group, index)) = c.groups.pop() else {
                break;
            };
            let index = self.write_snapshot(group, index, fx);
            c.writing.push((group, index));
        }
        if c.writing.is_empty() {
            self.wal.release_through(c.cut_seq, &mut fx.disk);
            self.upkeep.checkpointed_seq = c.cut_seq;
            return;
        }
        self.checkpoint = Some(c);
    }

    /// Whether there is something to checkpoint; it is under way then.
    fn begin_checkpoint(&mut self) -> bool {
        let cut_seq = self.wal.appended();
        let groups: Vec<_> = self
            .groups
            .iter()
            .filter(|(_, g)| g.last_index > g.snapshot_index)
            .map(|(&id, g)| (id, g.last_index))
            .collect();
        if groups.is_empty() {
            return false;
        }
        let mut waiting = Vec::new();
        for (id, _) in &groups {
            for &i in &self.groups[id].partitions {
                if let Some(Some(held)) = self.partitions.get(i)
                    && !held.log.is_synced_to(held.log.latest())
                {
                    waiting.push((i, held.log.latest()));
                }
            }
        }
        let is_flushed = false;
        self.checkpoint = Some(Checkpoint {
            cut_seq,
            waiting,
            groups,
            writing: Vec::new(),
            early: Vec::new(),
            is_flushed,
        });
        true
    }

    /// Where segments cannot be written before files are removed: snapshots that do not name those
    /// files any more. They claim no more of the log than the last ones did.
    fn write_early_snapshots(&mut self, fx: &mut Fx) -> Vec<(GroupId, u64)> {
        let is_removing = |&i: &usize| {
            let held = self.partitions.get(i).and_then(Option::as_ref);
            held.is_some_and(|held| held.log.is_removing())
        };
        let groups: Vec<(GroupId, u64)> = self
            .groups
            .iter()
            .filter(|(_, group)| group.partitions.iter().any(is_removing))
            .map(|(&id, group)| (id, group.snapshot_index))
            .take(MAX_SNAPSHOTS_IN_FLIGHT)
            .collect();
        let known = self.wal.committed();
        let mut early = Vec::new();
        for (id, index) in groups {
            self.write_snapshot(id, index, fx);
            early.push((id, known));
        }
        early
    }

    /// Returns the index that the snapshot holds. A data group's may hold more than it says (replay
    /// skips what is there); changes of topics are not to be applied twice, so it says all of them.
    fn write_snapshot(&mut self, id: GroupId, index: u64, fx: &mut Fx) -> u64 {
        let is_metadata = id == self.placement.metadata_group();
        let index = if is_metadata {
            self.control.applied_index
        } else {
            index
        };
        let partitions = self
            .groups
            .get(&id)
            .map(|g| g.partitions.as_slice())
            .unwrap_or_default();
        let stored = partitions
            .iter()
            .filter_map(|&i| self.partitions.get(i).and_then(Option::as_ref))
            .map(|held| held.log.store())
            .collect();
        let contents = snapshot::encode(&GroupSnapshotT {
            group: id.0,
            group_index: index,
            term: 0,
            incarnation: self.settings.incarnation,
            partitions: Some(stored),
            topics: is_metadata.then(|| self.topics.to_store()),
            next_topic_serial: if is_metadata {
                self.topics.next_serial
            } else {
                0
            },
        });
        let path = self
            .settings
            .data_dir
            .join("groups")
            .join(id.snapshot_name());
        let op = self.op(Pending::Snapshot(id));
        fx.disk.push((op, DiskOp::Replace { path, contents }));
        index
    }

    fn no_snapshot(&mut self, error: &DiskError, now: Now, fx: &mut Fx) {
        if error.kind == DiskErrorKind::TooManyFiles {
            match self.give_up_files(now, fx) {
                Relief::Now => self.upkeep.checkpoint_moved = true,
                // It is tried again when something was synced, and at the next upkeep.
                Relief::Soon => {}
                Relief::Elsewhere => self.files_are_out(&error.message, now),
            }
            return;
        }
        self.disk_is_full(&error.message, now);
        self.give_up_slot(now, fx);
    }

    pub(crate) fn snapshot_written(
        &mut self,
        id: GroupId,
        result: Result<DiskDone, DiskError>,
        now: Now,
        fx: &mut Fx,
    ) {
        let Some(c) = &mut self.checkpoint else {
            return;
        };
        if let Some(at) = c.early.iter().position(|(g, _)| *g == id) {
            let (_, known) = c.early.swap_remove(at);
            match result {
                Ok(_) => self.remove_files(id, known, fx),
                Err(e) if e.is_shortage() => self.no_snapshot(&e, now, fx),
                Err(e) => fatal(fx, FatalReason::Snapshot, e.message),
            }
            return;
        }
        let Some(at) = c.writing.iter().position(|(g, _)| *g == id) else {
            return;
        };
        let (group, index) = c.writing.swap_remove(at);
        match result {
            Ok(_) => {
                if let Some(group) = self.groups.get_mut(&id) {
                    assert!(index >= group.snapshot_index, "a snapshot goes back");
                    group.snapshot_index = index;
                }
                self.upkeep.checkpoint_moved = true;
                self.disk_has_space();
            }
            Err(e) if e.is_shortage() => {
                c.groups.push((group, index));
                self.no_snapshot(&e, now, fx);
            }
            Err(e) => fatal(fx, FatalReason::Snapshot, e.message),
        }
    }

    /// A snapshot knows the log up to an entry: files of its partitions that nothing names go.
    fn remove_files(&mut self, id: GroupId, known: u64, fx: &mut Fx) {
        let partitions = self.groups.get(&id).map(|g| g.partitions.clone());
        for i in partitions.unwrap_or_default() {
            let closed = self.with_log(i, fx, |log, ops| log.remove_files(known, ops));
            for file in closed.unwrap_or_default() {
                fx.disk.push((OpId(0), DiskOp::Close { file }));
            }
        }
    }
}
