//! Work off the path of a message: write-out to segments, syncs, retention, memory, WAL slots.

use std::collections::VecDeque;
use std::path::PathBuf;

use ringtide_io::{
    DiskDone, DiskError, DiskErrorKind, DiskOp, Fatal, FatalReason, FileId, Now, OpId, OpenMode,
};
use ringtide_log::partition::{PartitionOp, SYNC_BYTES, WriteError, WriteProgress};
use ringtide_log::wal::{EntryClass, EntryMeta, MIN_SLOTS, WalBusy};
use ringtide_schema::error_code::ErrorCode;
use ringtide_schema::wal::EntryKind;
use rustc_hash::FxHashMap;

use crate::commit::Answer;
use crate::fault::Fault;
use crate::open_files::OpenFiles;
use crate::requests::Handled;
use crate::settings::{
    CLOSE_UNUSED_NS, DISK_FULL_RETRY_NS, KEEP_TAIL_BYTES, LACK_FILES_RETRY_NS, MAX_PIECES,
    MAX_WRITERS, UPKEEP_NS, WRITE_OUT_BYTES,
};
use crate::{Fx, Pending, Shard};

/// State of the work behind.
#[derive(Debug, Default)]
pub(crate) struct Upkeep {
    /// Partitions that wait for a writer.
    queue: VecDeque<usize>,
    /// Those among them that found no memory this turn.
    short: Vec<usize>,
    /// Partitions that write.
    pub(crate) writers: usize,
    /// Pieces of segments that wait for the disk.
    pub(crate) pieces: VecDeque<(OpId, DiskOp)>,
    /// Pieces that the disk was given.
    pub(crate) pieces_under_way: usize,
    /// Why publishes are refused.
    pub(crate) disk_full: Option<String>,
    /// It is not space that is missing, but a file.
    pub(crate) is_for_files: bool,
    pub(crate) retry_at_ns: u64,
    slot_retry_ns: u64,
    pub(crate) next_ns: u64,
    next_sync_ns: u64,
    next_pressure_ns: u64,
    /// A checkpoint may be able to go on.
    pub(crate) checkpoint_moved: bool,
    /// Snapshots hold everything up to this entry.
    pub(crate) checkpointed_seq: u64,
    /// Snapshots that hold everything up to this entry know of each segment that was sealed because it is damaged.
    damage_left_seq: u64,
    /// Files can be removed after the next checkpoint, or damage be left behind.
    pub(crate) wants_checkpoint: bool,
    /// Slots still to be made, the next one last.
    new_slots: Vec<PathBuf>,
    opening_slots: usize,
    /// Slots for which no more files could be opened.
    unopened_slots: Vec<PathBuf>,
    /// Files of the slots that are open.
    slot_paths: FxHashMap<FileId, PathBuf>,
    pub(crate) files: OpenFiles,
}

impl Shard {
    /// The first turn: opens the slots of the log, makes those that are missing.
    pub(crate) fn start(&mut self, now: Now, fx: &mut Fx) {
        for path in std::mem::take(&mut self.settings.wal_slots) {
            self.open_slot(path, fx);
        }
        self.upkeep.new_slots = std::mem::take(&mut self.settings.new_wal_slots);
        self.upkeep.new_slots.reverse();
        self.make_slot(fx);
        self.upkeep.next_ns = now.mono_ns + UPKEEP_NS;
        self.upkeep.next_sync_ns = now.mono_ns + self.settings.sync_interval_ms * 1_000_000;
    }

    fn open_slot(&mut self, path: PathBuf, fx: &mut Fx) {
        let file = self.file();
        self.upkeep.opening_slots += 1;
        let op = self.op(Pending::OpenSlot(file, path.clone()));
        fx.disk.push((
            op,
            DiskOp::Open {
                file,
                path,
                mode: OpenMode::Wal,
            },
        ));
    }

    fn make_slot(&mut self, fx: &mut Fx) {
        let Some(path) = self.upkeep.new_slots.pop() else {
            return;
        };
        let bytes = self.settings.wal_slot_bytes;
        let op = self.op(Pending::CreateSlot(path.clone()));
        fx.disk.push((op, DiskOp::CreateSlot { path, bytes }));
    }

    pub(crate) fn slot_opened(
        &mut self,
        file: FileId,
        path: PathBuf,
        result: Result<DiskDone, DiskError>,
        now: Now,
        fx: &mut Fx,
    ) {
        self.upkeep.opening_slots -= 1;
        match result {
            Ok(_) => {
                self.upkeep.slot_paths.insert(file, path);
                self.wal.add_slot(file);
            }
            Err(e) if e.kind == DiskErrorKind::TooManyFiles => {
                self.give_up_files(now, fx);
                self.upkeep.unopened_slots.push(path);
                if self.wal.slots() + self.upkeep.opening_slots < MIN_SLOTS {
                    self.files_are_out(&e.message, now);
                }
            }
            Err(e) => fatal(fx, FatalReason::Wal, e.message),
        }
    }

    /// A snapshot finds no space, or a broker that stops none for its segments: an empty slot of the log
    /// gives its own. It is made again when there is space.
    pub(crate) fn give_up_slot(&mut self, now: Now, fx: &mut Fx) {
        if self
            .ops
            .values()
            .any(|p| matches!(p, Pending::RemoveSlot(_)))
        {
            return;
        }
        let Some(file) = self.wal.take_free_slot(self.is_stopping) else {
            return;
        };
        let Some(path) = self.upkeep.slot_paths.remove(&file) else {
            return;
        };
        tracing::warn!(path = %path.display(), "a slot of the log is given up for now, for its space or its file");
        fx.disk.push((OpId(0), DiskOp::Close { file }));
        let remove = DiskOp::Remove {
            paths: vec![path.clone()],
            and_directory: None,
        };
        let op = self.op(Pending::RemoveSlot(path));
        fx.disk.push((op, remove));
        self.upkeep.slot_retry_ns = now.mono_ns + 10 * UPKEEP_NS;
    }

    pub(crate) fn slot_removed(
        &mut self,
        path: PathBuf,
        result: Result<DiskDone, DiskError>,
        fx: &mut Fx,
    ) {
        self.upkeep.new_slots.push(path);
        match result {
            Ok(_) => {}
            Err(e) if e.is_shortage() || e.kind == DiskErrorKind::NotFound => {
                tracing::warn!(error = e.message, "a slot of the log cannot be removed");
            }
            // A directory whose sync failed once may seem synced to the next who asks.
            Err(e) => fatal(fx, FatalReason::Wal, e.message),
        }
        // What found no space is tried again at once, before anything else takes it.
        self.upkeep.checkpoint_moved = true;
        self.upkeep.retry_at_ns = 0;
    }

    pub(crate) fn slot_made(
        &mut self,
        path: PathBuf,
        result: Result<DiskDone, DiskError>,
        now: Now,
        fx: &mut Fx,
    ) {
        match result {
            Ok(_) => {
                self.disk_has_space();
                self.open_slot(path, fx);
                if !self.is_stopping && now.mono_ns >= self.upkeep.slot_retry_ns {
                    self.make_slot(fx);
                }
            }
            Err(e) if e.is_shortage() => {
                self.upkeep.new_slots.push(path);
                self.upkeep.slot_retry_ns = now.mono_ns + 10 * UPKEEP_NS;
                let lacks_slots = self.wal.slots() + self.upkeep.opening_slots < MIN_SLOTS;
                if e.kind == DiskErrorKind::TooManyFiles {
                    self.give_up_files(now, fx);
                    if lacks_slots {
                        self.files_are_out(&e.message, now);
                    }
                } else {
                    tracing::warn!(error = e.message, "no space for another slot of the log");
                    if lacks_slots {
                        self.disk_is_full(&e.message, now);
                    }
                }
            }
            Err(e) => fatal(fx, FatalReason::Wal, e.message),
        }
    }

    /// Has a partition written out as soon as a writer is free.
    pub(crate) fn queue_writer(&mut self, i: usize, sync: bool) {
        let Some(held) = self.partitions.get_mut(i).and_then(Option::as_mut) else {
            return;
        };
        held.wants_sync |= sync;
        if !held.is_queued && !held.is_writing {
            held.is_queued = true;
            self.upkeep.queue.push_back(i);
        }
    }

    fn run_writers(&mut self, fx: &mut Fx) {
        if self.upkeep.disk_full.is_some() {
            return;
        }
        while self.upkeep.writers < MAX_WRITERS {
            let Some(i) = self.upkeep.queue.pop_front() else {
                break;
            };
            self.run_writer(i, fx);
        }
        let Upkeep { queue, short, .. } = &mut self.upkeep;
        queue.extend(short.drain(..));
    }

    fn run_writer(&mut self, i: usize, fx: &mut Fx) {
        let Some(held) = self.held(i) else { return };
        held.is_queued = false;
        let sync = held.wants_sync;
        let started = self.with_log(i, fx, |log, ops| log.write_out(sync, ops));
        let Some(held) = self.held(i) else { return };
        if held.log.is_writing() {
            held.is_writing = true;
            self.upkeep.writers += 1;
        } else if started == Some(false) && held.log.has_work(false) {
            // Memory was short: the next turn tries again.
            held.is_queued = true;
            self.upkeep.short.push(i);
        } else if sync {
            // Nothing (more) to write or sync: what a snapshot may claim is up to date.
            held.wants_sync = false;
            self.upkeep.checkpoint_moved = true;
        }
    }

    /// Gives the disk as many pieces as it may have.
    pub(crate) fn write_pieces(&mut self, fx: &mut Fx) {
        while self.upkeep.pieces_under_way < MAX_PIECES
            && let Some(piece) = self.upkeep.pieces.pop_front()
        {
            self.upkeep.pieces_under_way += 1;
            fx.disk.push(piece);
        }
    }

    /// An operation of a partition ended.
    pub(crate) fn partition_done(
        &mut self,
        i: usize,
        op: PartitionOp,
        result: Result<DiskDone, DiskError>,
        now: Now,
        fx: &mut Fx,
    ) {
        match (op, &result) {
            (PartitionOp::Write, _) => {
                self.upkeep.pieces_under_way -= 1;
                self.write_pieces(fx);
            }
            (PartitionOp::Remove, Err(error)) => tracing::warn!(
                why = error.message,
                "what is no longer needed stays until a start removes it"
            ),
            _ => {}
        }
        let turn = self.turn;
        let keep = if self.pool.free_chunks() * 2 > self.pool.chunks() {
            KEEP_TAIL_BYTES
        } else {
            0
        };
        let lacks_files = matches!(&result, Err(e) if e.kind == DiskErrorKind::TooManyFiles);
        let Some(held) = self.held(i) else { return };
        let was_writing = held.is_writing;
        let result = held.log.completed(op, result, turn);
        let is_done = was_writing && !held.log.is_writing();
        if is_done {
            held.is_writing = false;
        }
        if held.log.can_overlap() {
            self.with_log(i, fx, |log, ops| log.write_out(false, ops));
        }
        let Some(held) = self.held(i) else { return };
        let again = held.log.waiting_bytes() >= WRITE_OUT_BYTES
            || held.log.unsynced_bytes() >= SYNC_BYTES
            || held.wants_sync
            || held.log.needs_flush()
            || held.log.wants_roll();
        let sync = held.log.unsynced_bytes() >= SYNC_BYTES;
        let mut closed = held.log.take_unused();
        closed.extend(held.log.take_sealed_file());
        if is_done {
            self.upkeep.writers -= 1;
        }
        let close = |file| (OpId(0), DiskOp::Close { file });
        fx.disk.extend(closed.into_iter().map(close));
        match result {
            Ok(progress) => {
                let opened = op == PartitionOp::OpenAppend;
                let wrote = is_done && matches!(op, PartitionOp::Write | PartitionOp::Seal);
                if wrote || opened && self.upkeep.is_for_files {
                    self.disk_has_space();
                }
                if is_done {
                    // It met no full disk: what waits is tried at once.
                    self.upkeep.retry_at_ns = 0;
                }
                if is_done && again {
                    self.queue_writer(i, sync);
                    // Nobody else can have its file until it has used it.
                    if op == PartitionOp::OpenAppend && self.upkeep.queue.back() == Some(&i) {
                        self.upkeep.queue.rotate_right(1);
                    }
                }
                if progress.is_damage_left {
                    self.upkeep.damage_left_seq = self.wal.appended();
                }
                self.progressed(i, progress, keep, fx);
            }
            Err(WriteError::DiskFull(message)) => {
                if lacks_files {
                    if !self.wait_for_a_file(i, true, now, fx) {
                        self.files_are_out(&message, now);
                        // Who reads there waits for the index, too.
                        if matches!(op, PartitionOp::LoadIndex(_))
                            && self.was_long_without_files(now)
                        {
                            self.segment_failed(i, op, ErrorCode::Overloaded, &message, now);
                        }
                        if self.is_stopping {
                            self.give_up_slot(now, fx);
                        }
                        self.queue_writer(i, true);
                    }
                } else {
                    self.disk_is_full(&message, now);
                    if self.is_stopping {
                        self.give_up_slot(now, fx);
                    }
                    self.queue_writer(i, true);
                }
            }
            Err(WriteError::Unreadable(_))
                if lacks_files && self.wait_for_a_file(i, false, now, fx) => {}
            Err(WriteError::Unreadable(message)) => {
                let code = match lacks_files {
                    true => ErrorCode::Overloaded,
                    false => ErrorCode::DataUnreadable,
                };
                self.segment_failed(i, op, code, &message, now);
                if is_done {
                    // The writer goes on without it.
                    self.queue_writer(i, sync);
                }
            }
            Err(WriteError::Fatal(message)) => fatal(fx, FatalReason::Segment, message),
        }
    }

    /// Has all partitions synced that have something to sync.
    pub(crate) fn sync_all(&mut self) {
        for i in 0..self.partitions.len() {
            if self.held(i).is_some_and(|h| h.log.unsynced_bytes() > 0) {
                self.queue_writer(i, true);
            }
        }
    }

    /// A segment cannot be read: what reads there is refused, everybody else goes on.
    fn segment_failed(&mut self, i: usize, op: PartitionOp, code: ErrorCode, why: &str, now: Now) {
        let (PartitionOp::OpenRead(base) | PartitionOp::LoadIndex(base)) = op else {
            return;
        };
        let Some(held) = self.held(i) else { return };
        let end = held.log.segment_end(base);
        let watchers: Vec<_> = held.watchers.sessions().collect();
        let message = format!(
            "offsets {base} to {} of {} cannot be read: {why}",
            end.saturating_sub(1),
            held.log.id()
        );
        if code == ErrorCode::DataUnreadable {
            tracing::error!(why = message, "a segment cannot be read");
        } else if now.mono_ns >= self.upkeep.files.next_read_word_ns {
            self.upkeep.files.next_read_word_ns = now.mono_ns + CLOSE_UNUSED_NS;
            tracing::warn!(
                why = message,
                "as many files are open as may be: readers are told to try again"
            );
        }
        let fault = Fault::new(code, message);
        self.fail_watchers(i, watchers, base..end, &fault);
        self.refuse_searches(i, base, &fault);
    }

    fn progressed(&mut self, i: usize, progress: WriteProgress, keep: usize, fx: &mut Fx) {
        if let Some(held) = self.held(i) {
            held.wants_sync &= !progress.synced;
            held.log.evict(keep);
        }
        self.upkeep.checkpoint_moved |= progress.synced;
        // What readers waited for may be there: an index, a file.
        self.wake(i);
        self.step_searches(i, fx);
    }

    /// The end of a turn.
    pub(crate) fn upkeep(&mut self, now: Now, fx: &mut Fx) {
        if self.upkeep.disk_full.is_some() && now.mono_ns >= self.upkeep.retry_at_ns {
            self.upkeep.retry_at_ns = now.mono_ns + DISK_FULL_RETRY_NS;
            self.probe_disk(fx);
        }
        if !self.upkeep.files.lacking.is_empty() && now.mono_ns >= self.upkeep.files.ask_again_ns {
            self.open_again(fx);
        }
        if now.mono_ns >= self.upkeep.next_ns {
            self.upkeep.next_ns = now.mono_ns + UPKEEP_NS;
            for path in std::mem::take(&mut self.upkeep.unopened_slots) {
                self.open_slot(path, fx);
            }
            self.upkeep.files.last_turns = [self.upkeep.files.last_turns[1], self.turn];
            self.upkeep.checkpoint_moved |= self.checkpoint.is_some();
            // On a full disk, too: retention is what makes space.
            self.retention(now, fx);
            let is_time = now.mono_ns >= self.upkeep.slot_retry_ns;
            let has_space = self.upkeep.disk_full.is_none() && !self.is_stopping;
            if has_space && is_time && !self.slots_are_coming() {
                self.make_slot(fx);
            }
            self.close_unused_files(now, fx);
        }
        if now.mono_ns >= self.upkeep.next_sync_ns {
            self.upkeep.next_sync_ns = now.mono_ns + self.settings.sync_interval_ms * 1_000_000;
            self.sync_all();
        }
        self.relieve_memory(now);
        self.run_checkpoint(fx);
        self.run_writers(fx);
    }

    /// Tries again what met a full disk, while publishes are still refused.
    fn probe_disk(&mut self, fx: &mut Fx) {
        self.upkeep.checkpoint_moved = true;
        let Upkeep { queue, short, .. } = &mut self.upkeep;
        queue.extend(short.drain(..));
        while self.upkeep.writers == 0
            && let Some(i) = self.upkeep.queue.pop_front()
        {
            self.run_writer(i, fx);
        }
        let needs_slot = self.wal.slots() < MIN_SLOTS && !self.is_stopping;
        if needs_slot && !self.slots_are_coming() {
            self.make_slot(fx);
        }
        let is_idle = self.upkeep.writers == 0 && self.upkeep.short.is_empty();
        if is_idle && self.checkpoint.is_none() && !needs_slot {
            // What met the full disk is gone, and nothing else wants to write.
            self.disk_has_space();
        }
    }

    /// Something needs space that is not there: publishes are refused until it could be written.
    pub(crate) fn disk_is_full(&mut self, message: &str, now: Now) {
        let why = format!("it goes on by itself when there is space: {message}");
        let is_news = self.upkeep.disk_full.replace(why).is_none();
        self.upkeep.is_for_files = false;
        self.upkeep.retry_at_ns = now.mono_ns + DISK_FULL_RETRY_NS;
        if is_news {
            tracing::error!(
                why = message,
                "disk full: publishes are refused until there is space"
            );
        }
    }

    /// As [`Self::disk_is_full`], but what is not there is a file, which others may close at any time.
    pub(crate) fn files_are_out(&mut self, message: &str, now: Now) {
        let why = format!("it goes on by itself when files were closed: {message}");
        let is_news = self.upkeep.disk_full.replace(why).is_none();
        self.upkeep.is_for_files = true;
        self.upkeep.retry_at_ns = now.mono_ns + LACK_FILES_RETRY_NS;
        if is_news {
            tracing::error!(
                why = message,
                "as many files are open as may be: publishes are refused until some are closed"
            );
        }
    }

    /// The log has no room for an entry: that passes, unless what holds its memory or its slots waits
    /// for space.
    pub(crate) fn no_room(&self, busy: WalBusy) -> Result<Handled, Fault> {
        let passes = match busy {
            WalBusy::Writes => true,
            WalBusy::Memory => false,
            WalBusy::Slots => self.wal.is_releasing() || self.slots_are_coming(),
        };
        match &self.upkeep.disk_full {
            Some(message) if !passes => Err(Fault::new(ErrorCode::DiskFull, message.clone())),
            _ => Ok(Handled::Blocked),
        }
    }

    /// Something was written that takes space.
    pub(crate) fn disk_has_space(&mut self) {
        let is_for_files = std::mem::take(&mut self.upkeep.is_for_files);
        match self.upkeep.disk_full.take() {
            None => {}
            Some(_) if is_for_files => {
                tracing::info!("files can be opened again: publishes are taken");
            }
            Some(_) => tracing::info!("there is space on the disk again: publishes are taken"),
        }
    }

    /// When upkeep is due at the latest.
    pub(crate) fn upkeep_deadline_ns(&self) -> u64 {
        let mut deadline = self.upkeep.next_ns;
        if self.upkeep.disk_full.is_some() {
            deadline = deadline.min(self.upkeep.retry_at_ns);
        }
        if !self.upkeep.files.lacking.is_empty() {
            deadline = deadline.min(self.upkeep.files.ask_again_ns);
        }
        deadline
    }

    /// Memory runs low: what is in it goes to segments, what is there already is given up.
    fn relieve_memory(&mut self, now: Now) {
        let (free, all) = (self.pool.free_chunks(), self.pool.chunks());
        if free * 2 > all || now.mono_ns < self.upkeep.next_pressure_ns {
            return;
        }
        self.upkeep.next_pressure_ns = now.mono_ns + 5_000_000;
        for i in 0..self.partitions.len() {
            let Some(held) = self.held(i) else { continue };
            if held.log.tail_bytes() == 0 {
                continue;
            }
            held.log.evict(0);
            if held.log.tail_bytes() > 0 {
                if held.log.waiting_bytes() == 0 {
                    held.log.flush();
                }
                self.queue_writer(i, true);
            }
        }
    }

    fn retention(&mut self, now: Now, fx: &mut Fx) {
        let held_seq = self.upkeep.checkpointed_seq;
        let is_full = self.upkeep.disk_full.is_some();
        self.upkeep.wants_checkpoint = self.upkeep.damage_left_seq > held_seq;
        for i in 0..self.partitions.len() {
            let closed = self.with_log(i, fx, |log, ops| log.remove_files(held_seq, ops));
            for file in closed.unwrap_or_default() {
                fx.disk.push((OpId(0), DiskOp::Close { file }));
            }
            let Some(Some(held)) = self.partitions.get_mut(i) else {
                continue;
            };
            held.failed_reads.expire(now.mono_ns);
            self.upkeep.wants_checkpoint |= held.log.is_removing();
            // While files cannot be removed, more of them would take what is left of the log.
            let is_stuck = is_full && held.log.is_removing();
            let expired = held.log.expired(now.wall_ms);
            let expired = expired.filter(|_| !held.is_retiring && !is_stuck);
            if held.log.wants_roll() || held.log.has_overdue(now.wall_ms) {
                self.queue_writer(i, false);
            }
            let Some(log_start) = expired else { continue };
            let Some(Some(held)) = self.partitions.get_mut(i) else {
                continue;
            };
            let group_id = held.log.group();
            let group = self.groups.entry(group_id).or_default();
            let meta = EntryMeta {
                kind: EntryKind::LogStart,
                class: EntryClass::Retention,
                group: group_id,
                group_index: group.last_index + 1,
                partition: held.log.id(),
                base_offset: log_start,
                append_time_ms: now.wall_ms,
            };
            let Ok(entry) = self.wal.append(meta, 0, |_| (), now.mono_ns, &mut fx.disk) else {
                continue;
            };
            group.last_index += 1;
            held.is_retiring = true;
            self.wal.want(entry.seq);
            self.wait_for(
                entry.seq,
                Answer::LogStart {
                    partition: i,
                    log_start,
                },
            );
        }
    }

    /// Whether no segment is being written and none waits to be.
    pub(crate) fn writers_are_idle(&self) -> bool {
        self.upkeep.writers == 0 && self.upkeep.queue.is_empty()
    }

    /// Whether slots of the log are on their way.
    pub(crate) fn slots_are_coming(&self) -> bool {
        self.upkeep.opening_slots > 0
            || self
                .ops
                .values()
                .any(|p| matches!(p, Pending::CreateSlot(_)))
    }
}

/// The shard cannot go on.
pub(crate) fn fatal(fx: &mut Fx, reason: FatalReason, message: String) {
    tracing::error!(?reason, why = message, "cannot go on");
    fx.fatal.get_or_insert(Fatal { reason, message });
}
