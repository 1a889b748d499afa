//! The way of committed batches into segments: rounds of whole blocks, one sync for many rounds.
//!
//! A round copies what is committed behind the bytes that did not fill a block the last time
//! (`carry`), writes the whole blocks in pieces, and keeps the rest. What a snapshot may claim
//! (`synced`) is what was written at the last sync, with the carry of that moment. A round that
//! meets a full disk is undone and tried again; every other failure is final.

use ringtide_io::{DiskDone, DiskError, DiskErrorKind, DiskOp, FileId, IndexBytes};
use ringtide_schema::batch::Header;
use ringtide_schema::index::{self, IndexEntry};
use ringtide_schema::limits::BLOCK_BYTES;
use ringtide_schema::store::SegmentT;

use super::{Ops, Partition, PartitionOp};
use crate::segment::{Index, Reader, Segment, index_path, log_path};

/// A piece of a segment that is written at once.
pub const PIECE_BYTES: usize = 256 << 10;
/// What a round takes at the most, unless one batch is larger.
const ROUND_BYTES: usize = 1536 << 10;
/// A writer that is asked to sync does so before it goes on when this much is unsynced.
pub const SYNC_BYTES: u64 = 32 << 20;
/// The next round begins when so few pieces of the last are still under way.
const OVERLAP_PIECES: usize = 4;
const BLOCK: u64 = BLOCK_BYTES as u64;
/// The part of a batch outside its checksum, which the manifest's `prefix_crc` covers.
const PREFIX_BYTES: usize = 21;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// No file is open for append.
    #[default]
    Closed,
    /// Waits for the index or the file.
    Opening,
    /// Nothing under way.
    Ready,
    /// This many pieces are under way.
    Writing(usize),
    /// A sync is under way.
    Syncing,
    /// The seal is under way.
    Sealing,
}

/// What a snapshot may claim of the active segment.
#[derive(Debug, Default)]
pub(super) struct Synced {
    /// Its line in the manifest, `bytes` being whole blocks.
    pub(super) active: Option<SegmentT>,
    /// What follows those blocks.
    pub(super) tail: Vec<u8>,
}

/// How to undo the round under way.
#[derive(Debug)]
struct Undo {
    carry: Vec<u8>,
    aligned: u64,
    assigned: u64,
    /// The first batch that the round took.
    first_offset: u64,
    index_entries: usize,
    meta: SegmentT,
}

/// The writer of a partition's active segment.
#[derive(Debug, Default)]
pub(super) struct Writer {
    state: State,
    pub(super) file: Option<FileId>,
    /// The turn in which an operation of it ended last.
    used: u64,
    /// Bytes of the active segment that were given to the writer, carry included.
    pub(super) assigned: u64,
    /// Whole blocks written or under way.
    aligned: u64,
    /// The bytes from `aligned` to `assigned`.
    carry: Vec<u8>,
    /// Readers of the active segment find whole batches up to here in the file, synced; or, in a partition that
    /// was just loaded, a part of the first batch of `carried`.
    pub(super) readable: u64,
    /// What the snapshot held behind the whole blocks of the file: readers take it from here until the file
    /// has it, too.
    carried: Vec<u8>,
    /// Blocks were written since the last sync.
    unsynced: u64,
    /// The partial block is to be written, too, so that memory can be given up.
    needs_flush: bool,
    /// This round wrote the last, partial block too.
    flushing: bool,
    /// The round under way is the segment's last.
    seal_next: bool,
    /// The segment is to be sealed although it is not full.
    seal_asked: bool,
    /// What a piece of the round under way met on a full disk.
    full: Option<String>,
    /// The last round met a full disk.
    is_short: bool,
    undo: Option<Undo>,
    pub(super) synced: Synced,
    /// What `synced` becomes when the sync under way completes.
    syncing: Option<(SegmentT, Vec<u8>, u64)>,
}

/// A failure that the shard must act on.
#[derive(Debug)]
pub enum WriteError {
    /// The disk is full, or too many files are open; nothing is lost, the round is to be tried again later.
    DiskFull(String),
    /// A file could not be opened for readers, or an index not be loaded; appending goes on.
    Unreadable(String),
    /// Final.
    Fatal(String),
}

/// What became possible by a completion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteProgress {
    /// Batches became synced: memory can be given up, a snapshot can go further.
    pub synced: bool,
    /// A segment was sealed because it is damaged. Until a snapshot says so, a start after a crash puts what follows into it.
    pub is_damage_left: bool,
}

impl Writer {
    /// As a snapshot has it: whole blocks of the active segment, and what follows them.
    pub(super) fn load(active_bytes: Option<u64>, tail: Vec<u8>) -> Self {
        let aligned = active_bytes.unwrap_or(0);
        assert!(
            aligned.is_multiple_of(BLOCK),
            "the synced position {aligned} is within a block"
        );
        Self {
            assigned: aligned + tail.len() as u64,
            aligned,
            readable: aligned,
            carried: tail.clone(),
            synced: Synced {
                active: None,
                tail: tail.clone(),
            },
            carry: tail,
            ..Self::default()
        }
    }

    pub(super) fn has_open_file(&self) -> bool {
        self.file.is_some() && self.state != State::Opening
    }

    /// Where the file of the active segment ends for readers, and the bytes behind that which are here.
    pub(super) fn carried(&self) -> (u64, &[u8]) {
        (self.readable, &self.carried)
    }

    /// The file has whole batches up to here.
    fn now_readable(&mut self, position: u64) {
        if position > self.readable {
            self.readable = position;
            // A round begins with the carry, so that the file has all of it, or nothing.
            self.carried = Vec::new();
        }
    }
}

impl Partition {
    /// Completes what `load` began, once the segments are known.
    pub(super) fn loaded(mut self) -> Self {
        let bytes = self.writer.aligned;
        self.writer.synced.active = self.active().map(|s| SegmentT {
            bytes,
            ..s.meta.clone()
        });
        self
    }

    /// Whether a round may begin although pieces of the last are under way. Rounds that overlap
    /// are undone together; a sync, a seal or a flush waits for all of them.
    pub fn can_overlap(&self) -> bool {
        let w = &self.writer;
        let begun = w.undo.as_ref().map_or(0, |undo| w.aligned - undo.aligned);
        matches!(w.state, State::Writing(left) if left <= OVERLAP_PIECES)
            && !(w.seal_next || w.seal_asked || w.needs_flush || w.flushing || w.full.is_some())
            && w.unsynced + begun < SYNC_BYTES
            && self.waiting_bytes() >= PIECE_BYTES
            && self
                .tail
                .get(self.given)
                .is_some_and(|b| b.next_offset <= self.committed)
    }

    /// Whether an operation of the writer is under way.
    pub fn is_writing(&self) -> bool {
        !matches!(self.writer.state, State::Closed | State::Ready)
    }

    /// Bytes written since the last sync, and bytes that the writer holds back.
    pub fn unsynced_bytes(&self) -> u64 {
        self.writer.unsynced
    }

    /// Whether a snapshot taken now holds everything up to `offset`.
    pub fn is_synced_to(&self, offset: u64) -> bool {
        self.synced_offset() >= offset
    }

    /// Whether the partial block is still to be written.
    pub fn needs_flush(&self) -> bool {
        self.writer.needs_flush
    }

    /// Starts a round if none is under way: opens the segment first if need be. `sync` also syncs
    /// when there is nothing (more) to write, or when enough was written. Returns whether anything
    /// was started; nothing is when memory for a round is short.
    pub fn write_out(&mut self, sync: bool, ops: &mut Ops<'_>) -> bool {
        // On a full disk what was written can be synced all the same, and its file be closed for others.
        let least = if self.writer.is_short { 1 } else { SYNC_BYTES };
        let is_sync_due = sync && self.writer.unsynced >= least;
        match self.writer.state {
            State::Closed => self.open_append(sync, ops),
            State::Ready if self.writer.seal_next => self.seal(ops),
            State::Ready if is_sync_due => self.sync(ops),
            State::Ready => self.round(ops) || (sync && self.sync(ops)),
            State::Writing(_) if self.can_overlap() => self.round(ops),
            _ => false,
        }
    }

    /// Whether [`Self::write_out`] would find something to do.
    pub fn has_work(&self, sync: bool) -> bool {
        let pending = self
            .tail
            .get(self.given)
            .is_some_and(|b| b.next_offset <= self.committed);
        pending
            || self.writer.needs_flush
            || self.writer.seal_asked
            || (sync && self.writer.unsynced > 0)
    }

    fn open_append(&mut self, sync: bool, ops: &mut Ops<'_>) -> bool {
        if !self.has_work(sync) {
            return false;
        }
        if self.active().is_none() {
            let Some(first) = self.tail.get(self.given) else {
                return false;
            };
            let segment = Segment::create(first.base_offset, self.incarnation);
            self.segments.push(segment);
            self.writer = Writer {
                state: State::Closed,
                ..Writer::default()
            };
        }
        let aligned = self.writer.aligned;
        let dir = self.dir.clone();
        let Some(active) = self.segments.last_mut() else {
            return false;
        };
        let base = active.meta.base_offset;
        match active.index {
            Index::Memory(_) | Index::File(_) => {
                // With damage in it, what is there of it is all that it becomes.
                self.writer.seal_asked |= active.has_damage();
                let file = ops.file();
                self.writer.file = Some(file);
                // A flush wrote what readers have of the last block.
                let readable = self.writer.readable.next_multiple_of(BLOCK);
                let mode = ringtide_io::OpenMode::Append {
                    keep_bytes: aligned.max(readable),
                };
                let path = log_path(&dir, base);
                ops.out
                    .push((PartitionOp::OpenAppend, DiskOp::Open { file, path, mode }));
            }
            Index::Unloaded if aligned == 0 => {
                active.index = Index::Memory(Vec::new());
                let carry = self.writer.carry.clone();
                self.reindex_carry(&carry);
                return self.open_append(sync, ops);
            }
            Index::Unloaded => {
                active.index = Index::Loading;
                ops.out.push((
                    PartitionOp::LoadIndex(base),
                    DiskOp::LoadIndex {
                        index_path: index_path(&dir, base),
                        log_path: log_path(&dir, base),
                        base_offset: base,
                        bytes: aligned,
                        tail: self.writer.carry.clone(),
                        next_offset: active.meta.next_offset,
                        keep: false,
                    },
                ));
            }
            Index::Loading => {}
        }
        self.writer.state = State::Opening;
        true
    }

    /// A segment that is all carry has its batches in `carry`: they are indexed from there.
    fn reindex_carry(&mut self, carry: &[u8]) {
        let Some(active) = self.segments.last_mut() else {
            return;
        };
        if let Ok(header) = Header::peek(carry) {
            active.index_batch(header.base_offset, 0, header.base_timestamp_ms);
        }
    }

    /// Copies committed batches, writes whole blocks.
    fn round(&mut self, ops: &mut Ops<'_>) -> bool {
        if !self.has_work(false) {
            return false;
        }
        let Some(file) = self.writer.file else {
            return false;
        };
        let Some(mut chunk) = ops.pool.take() else {
            return false;
        };
        let Some(active) = self.segments.last_mut() else {
            return false;
        };
        let w = &mut self.writer;
        let index_entries = match &active.index {
            Index::Memory(entries) => entries.len(),
            _ => 0,
        };
        let undo = Undo {
            carry: w.carry.clone(),
            aligned: w.aligned,
            assigned: w.assigned,
            first_offset: active.meta.next_offset,
            index_entries,
            meta: active.meta.clone(),
        };
        chunk.append(&w.carry);
        let mut seal = w.seal_asked;
        while !seal && let Some(batch) = self.tail.get_mut(self.given) {
            let bytes = batch.bytes.len();
            if batch.next_offset > self.committed || chunk.len() >= ROUND_BYTES {
                break;
            }
            // The last block is padded, so a block of room must stay.
            if chunk.room() < bytes + BLOCK_BYTES {
                break;
            }
            let too_far = batch.next_offset - active.meta.base_offset > u64::from(u32::MAX);
            let too_large = w.assigned + bytes as u64 > u64::from(self.config.segment_bytes);
            if w.assigned > 0 && (too_large || too_far) {
                seal = true;
                break;
            }
            chunk.append(&batch.bytes);
            let first_timestamp_ms =
                Header::peek(&batch.bytes).map_or(batch.max_timestamp_ms, |h| h.base_timestamp_ms);
            active.index_batch(batch.base_offset, w.assigned, first_timestamp_ms);
            w.assigned += bytes as u64;
            batch.place = Some((active.meta.base_offset, w.assigned));
            let meta = &mut active.meta;
            meta.prefix_crc = crc32c::crc32c_append(meta.prefix_crc, &batch.bytes[..PREFIX_BYTES]);
            meta.max_timestamp_ms = meta.max_timestamp_ms.max(batch.max_timestamp_ms);
            meta.next_offset = batch.next_offset;
            self.given += 1;
            self.given_bytes += bytes;
        }
        let flush = seal || w.needs_flush;
        let whole = chunk.len() / BLOCK_BYTES * BLOCK_BYTES;
        w.carry.clear();
        if chunk.len() > whole {
            w.carry.extend_from_slice(&chunk.slice(whole..chunk.len()));
        }
        let mut end = whole;
        if flush && chunk.len() > whole {
            chunk.pad_to(BLOCK_BYTES);
            end = chunk.len();
        }
        w.seal_next = seal;
        w.flushing = flush;
        let mut pieces = 0;
        for start in (0..end).step_by(PIECE_BYTES) {
            let data = chunk.slice(start..end.min(start + PIECE_BYTES));
            let position = w.aligned + start as u64;
            ops.out.push((
                PartitionOp::Write,
                DiskOp::Write {
                    file,
                    position,
                    data,
                },
            ));
            pieces += 1;
        }
        w.aligned += whole as u64;
        if pieces == 0 {
            w.needs_flush &= !flush;
            if matches!(w.state, State::Writing(_)) {
                // The pieces under way come first; then `seal_next` says what to do.
                return true;
            }
            if seal {
                return self.seal(ops);
            }
            // All of it fits into the carry: a snapshot can hold it, and memory does.
            return false;
        }
        let under_way = match w.state {
            State::Writing(left) => left,
            _ => 0,
        };
        // Rounds that overlap are undone together, from the first.
        w.undo.get_or_insert(undo);
        w.state = State::Writing(under_way + pieces);
        true
    }

    fn sync(&mut self, ops: &mut Ops<'_>) -> bool {
        let (Some(file), Some(active)) = (self.writer.file, self.active()) else {
            return false;
        };
        let w = &self.writer;
        if w.unsynced == 0 {
            self.claim_carry();
            return false;
        }
        let meta = SegmentT {
            bytes: w.aligned,
            ..active.meta.clone()
        };
        let written = if w.flushing { w.assigned } else { w.aligned };
        self.writer.syncing = Some((meta, w.carry.clone(), written));
        self.writer.state = State::Syncing;
        ops.out.push((PartitionOp::Sync, DiskOp::Sync { file }));
        true
    }

    /// With nothing in the file that is not synced, a snapshot holds the rest.
    fn claim_carry(&mut self) {
        if self.claims_less_than_given()
            && let Some(active) = self.active()
        {
            let meta = SegmentT {
                bytes: self.writer.aligned,
                ..active.meta.clone()
            };
            let tail = self.writer.carry.clone();
            self.writer.synced = Synced {
                active: Some(meta),
                tail,
            };
        }
    }

    /// Whether the writer has batches that `synced` does not claim.
    fn claims_less_than_given(&self) -> bool {
        let given = self.active().map_or(0, |s| s.meta.next_offset);
        self.writer
            .synced
            .active
            .as_ref()
            .is_none_or(|s| s.next_offset < given)
    }

    fn seal(&mut self, ops: &mut Ops<'_>) -> bool {
        let dir = self.dir.clone();
        let bytes = self.writer.assigned;
        let (Some(file), Some(active)) = (self.writer.file, self.active()) else {
            return false;
        };
        let base = active.meta.base_offset;
        let index = match active.has_damage() {
            // Whoever reads it looks whether it is whole again.
            true => Vec::new(),
            false => index::encode(base, bytes as u32, &active.index.entries()),
        };
        let index_path = index_path(&dir, base);
        ops.out.push((
            PartitionOp::Seal,
            DiskOp::Seal {
                file,
                bytes,
                index_path,
                index,
            },
        ));
        self.writer.seal_next = true;
        self.writer.state = State::Sealing;
        true
    }

    /// Asks that the active segment be sealed as soon as possible although it is not full.
    pub fn roll(&mut self) {
        self.writer.seal_asked = self.writer.assigned > 0 && self.active().is_some();
    }

    /// Has the partial last block written too, so that its batches need not stay in memory.
    pub fn flush(&mut self) {
        self.writer.needs_flush |=
            !self.writer.carry.is_empty() && self.writer.readable < self.writer.assigned;
    }

    /// Whether the active segment was asked to be sealed.
    pub fn wants_roll(&self) -> bool {
        self.writer.seal_asked
    }

    /// An operation of this partition ended.
    pub fn completed(
        &mut self,
        op: PartitionOp,
        result: Result<DiskDone, DiskError>,
        turn: u64,
    ) -> Result<WriteProgress, WriteError> {
        let mut progress = WriteProgress::default();
        if let PartitionOp::OpenAppend | PartitionOp::Write | PartitionOp::Sync = op {
            self.writer.used = turn;
        }
        match (op, result) {
            (PartitionOp::OpenAppend, Ok(_)) => self.writer.state = State::Ready,
            (PartitionOp::Write, Ok(_)) => self.piece_written(None)?,
            (PartitionOp::Write, Err(e)) if e.kind == DiskErrorKind::Full => {
                self.piece_written(Some(e.message))?;
            }
            (PartitionOp::Sync, Ok(_)) => {
                if let Some((meta, tail, readable)) = self.writer.syncing.take() {
                    // A flush may have gone further than the whole blocks written since.
                    self.writer.now_readable(readable);
                    self.writer.synced = Synced {
                        active: Some(meta),
                        tail,
                    };
                }
                self.writer.unsynced = 0;
                self.writer.state = State::Ready;
                progress.synced = true;
            }
            (PartitionOp::Seal, Ok(_)) => {
                progress.is_damage_left = self.active().is_some_and(Segment::has_damage);
                self.sealed();
                progress.synced = true;
            }
            (PartitionOp::Seal, Err(e)) if e.kind == DiskErrorKind::Full => {
                self.writer.state = State::Ready;
                return Err(WriteError::DiskFull(e.message));
            }
            (PartitionOp::OpenAppend, Err(e)) if e.is_shortage() => {
                self.writer.file = None;
                self.writer.state = State::Closed;
                return Err(WriteError::DiskFull(e.message));
            }
            (PartitionOp::LoadIndex(base), result) => {
                self.index_loaded(base, result)?;
            }
            (PartitionOp::OpenRead(base), result) => {
                self.read_opened(base, result, turn)?;
            }
            // A file that could not be removed is found and removed at a start after a crash.
            (PartitionOp::Remove, _) => {}
            (_, Err(e)) => return Err(WriteError::Fatal(e.message)),
        }
        Ok(progress)
    }

    /// A piece was written, or met a full disk; the round ends with its last piece.
    fn piece_written(&mut self, full: Option<String>) -> Result<(), WriteError> {
        let State::Writing(left) = self.writer.state else {
            return Err(WriteError::Fatal(format!(
                "{}: a write nobody asked for",
                self.id
            )));
        };
        let w = &mut self.writer;
        w.full = w.full.take().or(full);
        if left > 1 {
            w.state = State::Writing(left - 1);
            return Ok(());
        }
        w.state = State::Ready;
        let undo = w.undo.take();
        let full = w.full.take();
        w.is_short = full.is_some();
        if full.is_none() {
            if let Some(undo) = undo {
                w.unsynced += w.aligned - undo.aligned + u64::from(w.flushing);
            }
            if w.flushing {
                w.needs_flush = false;
                // Not synced, but in the file: a reader finds it there, and no acknowledgement
                // rests on it (the snapshot or the log holds the bytes).
                w.now_readable(w.assigned);
            }
        } else if let Some(undo) = undo {
            w.carry = undo.carry;
            w.aligned = undo.aligned;
            w.assigned = undo.assigned;
            w.seal_next = false;
            // A segment without a batch is not sealed.
            w.seal_asked &= w.assigned > 0;
            w.flushing = false;
            let first = undo.first_offset;
            let kept = self.tail.partition_point(|b| b.base_offset < first);
            for batch in self.tail.range_mut(kept..self.given) {
                batch.place = None;
                self.given_bytes -= batch.bytes.len();
            }
            self.given = kept;
            if let Some(active) = self.segments.last_mut() {
                active.meta = undo.meta;
                if let Index::Memory(entries) = &mut active.index {
                    entries.truncate(undo.index_entries);
                }
            }
        }
        match full {
            Some(message) => Err(WriteError::DiskFull(message)),
            None => Ok(()),
        }
    }

    fn sealed(&mut self) {
        let bytes = self.writer.assigned;
        if let Some(active) = self.segments.last_mut() {
            active.meta.sealed = true;
            active.meta.bytes = bytes;
            // From its file when a reader asks; memory holds only the active segment's.
            active.index = Index::Unloaded;
        }
        // The file stays with its number; the shard closes it.
        self.writer = Writer {
            file: self.writer.file,
            ..Writer::default()
        };
    }

    /// The file of a writer that has had nothing under way since a turn, and nothing in it that is not synced; it opens
    /// it again when it has something to write. What waits in memory by then waits on.
    pub fn take_idle_file(&mut self, before: u64) -> Option<FileId> {
        let w = &self.writer;
        let is_idle = w.state == State::Ready && w.unsynced == 0 && !w.seal_next;
        if !is_idle || w.used >= before {
            return None;
        }
        self.claim_carry();
        self.writer.state = State::Closed;
        self.writer.file.take()
    }

    /// Files that turned out to be of no use.
    pub fn take_unused(&mut self) -> Vec<FileId> {
        std::mem::take(&mut self.unused)
    }

    /// The file that is not written any more after a seal.
    pub fn take_sealed_file(&mut self) -> Option<FileId> {
        if self.writer.state == State::Closed {
            self.writer.file.take()
        } else {
            None
        }
    }

    fn index_loaded(
        &mut self,
        base: u64,
        result: Result<DiskDone, DiskError>,
    ) -> Result<(), WriteError> {
        let id = self.id;
        let is_opening = self.writer.state == State::Opening;
        let Some(segment) = self
            .segments
            .iter_mut()
            .find(|s| s.meta.base_offset == base)
        else {
            return Ok(());
        };
        let is_writers = is_opening && !segment.meta.sealed;
        let failed = result.as_ref().err().map(|e| e.message.clone());
        match result {
            Ok(DiskDone::Index(index)) => segment.set_index(index),
            Ok(_) => return Err(WriteError::Fatal(format!("{id}: no index in the answer"))),
            // It is asked for again.
            Err(e) if is_writers && e.kind == DiskErrorKind::TooManyFiles => {
                segment.index = Index::Unloaded;
                self.writer.state = State::Closed;
                return Err(WriteError::DiskFull(e.message));
            }
            // The writer needs nothing of what is there: it goes on in the next segment.
            Err(_) if is_writers => segment.set_index(IndexBytes::Built {
                entries: vec![IndexEntry::damaged(0, 0, i64::MIN)],
                covered_bytes: 0,
            }),
            Err(_) => segment.index = Index::Unloaded,
        }
        if is_writers {
            self.writer.state = State::Closed;
        }
        failed.map_or(Ok(()), |message| Err(WriteError::Unreadable(message)))
    }

    fn read_opened(
        &mut self,
        base: u64,
        result: Result<DiskDone, DiskError>,
        turn: u64,
    ) -> Result<(), WriteError> {
        // A segment that retention removed meanwhile is closed with the rest of it.
        let removed = self.removing.iter_mut().map(|(_, s)| s);
        let Some(segment) = self
            .segments
            .iter_mut()
            .chain(removed)
            .find(|s| s.meta.base_offset == base)
        else {
            return Ok(());
        };
        segment.reader = match (segment.reader, result) {
            (Reader::Opening(file), Ok(DiskDone::Opened { bytes }))
                if segment.meta.sealed && bytes < segment.meta.bytes =>
            {
                let want = segment.meta.bytes;
                let message = format!(
                    "segment {base} of {} has {bytes} bytes instead of {want}",
                    self.id
                );
                segment.reader = Reader::Closed;
                self.unused.push(file);
                return Err(WriteError::Unreadable(message));
            }
            (Reader::Opening(file), Ok(_)) => Reader::Opened(file, turn),
            (_, Ok(_)) => Reader::Closed,
            (_, Err(e)) => {
                segment.reader = Reader::Closed;
                return Err(WriteError::Unreadable(e.message));
            }
        };
        Ok(())
    }
}
