//! The write-ahead log of one shard: entries into frames, frames into slots, group commit.
//!
//! Greedy: a frame is sealed and written as soon as somebody waits for it and one of the few
//! writes in flight is free; what arrives meanwhile is the next frame. What nobody waits for goes
//! after [`FLUSH_AFTER_NS`] or [`FLUSH_BYTES`]. Invariant: `committed <= written <= appended`,
//! each only grows; `committed` moves over whole frames in order, whatever order the writes
//! complete in. Recovery (`recovery/`) is the reader of what is written here.

use std::collections::VecDeque;

use ringtide_io::{Chunk, DiskOp, FileId, OpId, Pool, Slice};
use ringtide_schema::ids::{GroupId, PartitionId, TopicId};
use ringtide_schema::limits::BLOCK_BYTES;
use ringtide_schema::wal::{
    ENTRY_HEADER_BYTES, EntryHeader, EntryKind, FRAME_CLOSING, FRAME_HEADER_BYTES, FrameHeader,
    SlotHeader, entry_padded,
};

/// Data that nobody waits for is written at this age.
pub const FLUSH_AFTER_NS: u64 = 10_000_000;
/// Data that nobody waits for is written at this size.
pub const FLUSH_BYTES: usize = 256 << 10;
/// A frame is sealed before it grows past this.
pub const FRAME_BYTES: usize = 1 << 20;
/// A shard that was idle this long writes a closing frame.
pub const CLOSE_AFTER_NS: u64 = 200_000_000;

/// With this many slots or more one of them is kept back.
const KEEP_BACK_FROM: usize = 4;
/// Fewer slots cannot go round: the one that is being written is never released.
pub const MIN_SLOTS: usize = 2;
/// The end of the last slot that may be used is for entries that make space, when nothing else fits.
const RESERVED_BYTES: u64 = 1 << 20;
/// Chunks that appends leave to what makes memory free again: segment writers and reads.
pub const RESERVED_CHUNKS: usize = 4;

/// What a writer must know of its log.
#[derive(Clone, Debug)]
pub struct WalConfig {
    /// The shard.
    pub shard: u16,
    /// The data directory's identity.
    pub data_directory: TopicId,
    /// This start of the broker.
    pub incarnation: u64,
    /// Bytes of every slot.
    pub slot_bytes: u64,
    /// Most writes in flight.
    pub max_in_flight: usize,
}

/// What an entry says beside its payload.
#[derive(Clone, Copy, Debug)]
pub struct EntryMeta {
    /// What the payload is.
    pub kind: EntryKind,
    /// The log group.
    pub group: GroupId,
    /// The group's own number of the entry.
    pub group_index: u64,
    /// The partition.
    pub partition: PartitionId,
    /// Of the batch, or the new log start.
    pub base_offset: u64,
    /// When it was appended, ms since 1970.
    pub append_time_ms: i64,
}

/// An appended entry.
#[derive(Debug)]
pub struct Appended {
    /// Its number in the shard's log.
    pub seq: u64,
    /// The payload where it lies in the log's memory.
    pub payload: Slice,
}

/// There is no room now: no place in the slots, no memory, or all writes are in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalBusy;

#[derive(Debug)]
struct OpenFrame {
    start: usize,
    first_seq: u64,
    entries: u32,
    opened_ns: u64,
}

#[derive(Debug)]
struct InFlight {
    op: OpId,
    /// The slot it goes to.
    file: FileId,
    /// The last entry that is on stable storage once this and all before it completed.
    last_seq: u64,
    done: bool,
    /// Keeps the memory until the kernel is done with it.
    _data: Slice,
}

#[derive(Debug)]
struct UsedSlot {
    file: FileId,
    generation: u64,
    /// Where the next frame goes.
    position: u64,
    /// The last entry in it.
    last_seq: u64,
}

/// Counters of a log since its start.
#[derive(Clone, Copy, Debug, Default)]
pub struct WalStats {
    /// Frames written.
    pub frames: u64,
    /// Bytes written, padding included.
    pub bytes: u64,
    /// Entries written.
    pub entries: u64,
}

/// The writer of one shard's log.
#[derive(Debug)]
pub struct Wal {
    config: WalConfig,
    pool: Pool,
    /// Headers of slots on their way to the disk.
    headers: Chunk,
    /// A block of zeros.
    blank: Slice,
    chunk: Option<Chunk>,
    open: Option<OpenFrame>,
    in_flight: VecDeque<InFlight>,
    used: VecDeque<UsedSlot>,
    /// Slots that hold nothing newer than snapshots; the first is being marked free.
    released: VecDeque<FileId>,
    marking: Option<OpId>,
    free: Vec<FileId>,
    next_seq: u64,
    written: u64,
    committed: u64,
    /// Somebody waits for the durability of this entry.
    wanted: u64,
    next_frame: u64,
    next_generation: u64,
    next_op: u64,
    previous_crc: u32,
    closed: bool,
    idle_since_ns: u64,
    stats: WalStats,
}

/// The operations of the log carry this in the highest byte of their [`OpId`].
pub const WAL_OP: u64 = 1 << 56;

impl Wal {
    /// A log whose slots are all free. `slots`: open files of `config.slot_bytes` bytes each.
    ///
    /// # Panics
    /// If the pool has no chunk left.
    pub fn new(config: WalConfig, pool: Pool, slots: Vec<FileId>) -> Self {
        let (Some(headers), Some(mut blank)) = (pool.take(), pool.take()) else {
            panic!("the log is made before anything else takes memory");
        };
        blank.append_with(BLOCK_BYTES, |block| block.fill(0));
        Self {
            config,
            pool,
            headers,
            blank: blank.slice(0..BLOCK_BYTES),
            chunk: None,
            open: None,
            in_flight: VecDeque::new(),
            used: VecDeque::new(),
            released: VecDeque::new(),
            marking: None,
            free: slots,
            next_seq: 1,
            written: 0,
            committed: 0,
            wanted: 0,
            next_frame: 1,
            next_generation: 1,
            next_op: 0,
            previous_crc: 0,
            closed: true,
            idle_since_ns: 0,
            stats: WalStats::default(),
        }
    }

    /// The last entry appended.
    pub fn appended(&self) -> u64 {
        self.next_seq - 1
    }

    /// The last entry on stable storage, with all before it.
    pub fn committed(&self) -> u64 {
        self.committed
    }

    /// Counters since the start.
    pub fn stats(&self) -> WalStats {
        self.stats
    }

    /// Slots that hold no entry that is still needed, and all slots, without the one kept back.
    pub fn free_slots(&self) -> (usize, usize) {
        let kept_back = self.kept_back();
        let free = self.free.len() + self.released.len();
        (free.saturating_sub(kept_back), self.slots() - kept_back)
    }

    /// All slots.
    pub fn slots(&self) -> usize {
        self.free.len() + self.released.len() + self.used.len()
    }

    /// Slots that entries do not take: on a full disk one gives its space to what makes space.
    fn kept_back(&self) -> usize {
        usize::from(self.slots() >= KEEP_BACK_FROM)
    }

    /// Where the next frame begins: the position in the current slot, and the free slots.
    fn place(&self) -> (u64, usize) {
        let last = self.used.back();
        let position = last.map_or(self.config.slot_bytes, |slot| slot.position);
        (position, self.free.len())
    }

    /// Takes another empty slot.
    pub fn add_slot(&mut self, file: FileId) {
        self.free.push(file);
    }

    /// Gives up a slot that holds nothing, unless the open frame needs it or too few would be left.
    pub fn take_free_slot(&mut self) -> Option<FileId> {
        if self.slots() <= MIN_SLOTS {
            return None;
        }
        let frame = match (&self.chunk, &self.open) {
            (Some(chunk), Some(open)) => chunk.len() - open.start,
            _ => 0,
        };
        let (_, free) = self.placed(self.place(), frame)?;
        (free > 0).then(|| self.free.remove(0))
    }

    /// Whether an entry of this kind with this payload can be appended now, without appending it.
    /// Accepting reserves its place on disk: the open frame always fits into the current slot or
    /// into a free one. What makes space may use places that records may not.
    pub fn has_room(&self, kind: EntryKind, payload_bytes: usize) -> bool {
        let entry = entry_padded(ENTRY_HEADER_BYTES + payload_bytes);
        let alone = FRAME_HEADER_BYTES + entry;
        let place = self.place();
        let fits_new_chunk = |c: &Option<Chunk>| {
            c.as_ref().is_some_and(|c| c.room() >= alone)
                || self.pool.free_chunks() > RESERVED_CHUNKS
        };
        match (&self.chunk, &self.open) {
            (Some(chunk), Some(open)) => {
                let frame = chunk.len() - open.start;
                if Self::joins(chunk, open, entry) {
                    return self.is_for(kind, self.placed(place, frame + entry));
                }
                // The open frame is sealed first; the entry begins the next one.
                let sealed = self.placed(place, frame);
                self.can_write()
                    && fits_new_chunk(&self.chunk)
                    && self.is_for(kind, sealed.and_then(|after| self.placed(after, alone)))
            }
            (chunk, _) => fits_new_chunk(chunk) && self.is_for(kind, self.placed(place, alone)),
        }
    }

    /// Whether entries of a kind may be put where the frame would end then.
    fn is_for(&self, kind: EntryKind, placed: Option<(u64, usize)>) -> bool {
        let Some((end, free)) = placed else {
            return false;
        };
        let kept_back = self.kept_back();
        let makes_space = matches!(kind, EntryKind::LogStart | EntryKind::Meta);
        let is_last = free <= kept_back;
        let takes_slot = free < self.free.len();
        !(takes_slot && free < kept_back)
            && (makes_space || !is_last || end + RESERVED_BYTES <= self.config.slot_bytes)
    }

    /// Whether the entry can be part of the open frame.
    fn joins(chunk: &Chunk, open: &OpenFrame, entry: usize) -> bool {
        let frame = chunk.len() - open.start + entry;
        chunk.room() >= entry && frame <= FRAME_BYTES
    }

    /// The position in the current slot and the free slots left after a frame was placed.
    fn placed(&self, (position, free): (u64, usize), frame: usize) -> Option<(u64, usize)> {
        let frame = frame.next_multiple_of(BLOCK_BYTES) as u64;
        if position + frame <= self.config.slot_bytes {
            return Some((position + frame, free));
        }
        Some((BLOCK_BYTES as u64 + frame, free.checked_sub(1)?))
    }

    fn can_write(&self) -> bool {
        self.in_flight.len() < self.config.max_in_flight
    }

    /// Appends an entry. `fill` writes the payload where it will stay.
    pub fn append(
        &mut self,
        meta: EntryMeta,
        payload_bytes: usize,
        fill: impl FnOnce(&mut [u8]),
        now_ns: u64,
        ops: &mut Vec<(OpId, DiskOp)>,
    ) -> Result<Appended, WalBusy> {
        if !self.has_room(meta.kind, payload_bytes) {
            return Err(WalBusy);
        }
        let entry = ENTRY_HEADER_BYTES + payload_bytes;
        if let (Some(chunk), Some(open)) = (&self.chunk, &self.open)
            && !Self::joins(chunk, open, entry_padded(entry))
        {
            self.write_frame(0, ops);
        }
        let alone = FRAME_HEADER_BYTES + entry_padded(entry);
        if self.open.is_none() && self.chunk.as_ref().is_none_or(|c| c.room() < alone) {
            self.chunk = Some(self.pool.take_above(RESERVED_CHUNKS).ok_or(WalBusy)?);
        }
        let Some(chunk) = &mut self.chunk else {
            return Err(WalBusy);
        };
        let open = self.open.get_or_insert_with(|| {
            debug_assert!(chunk.len().is_multiple_of(BLOCK_BYTES));
            let start = chunk.len();
            chunk.leave_hole(FRAME_HEADER_BYTES);
            OpenFrame {
                start,
                first_seq: self.next_seq,
                entries: 0,
                opened_ns: now_ns,
            }
        });
        let at = chunk.len();
        let seq = self.next_seq;
        chunk.append_with(entry, |bytes| {
            let (header, payload) = bytes.split_at_mut(ENTRY_HEADER_BYTES);
            fill(payload);
            EntryHeader {
                kind: meta.kind,
                group: meta.group,
                seq,
                group_index: meta.group_index,
                term: 0,
                partition: meta.partition,
                base_offset: meta.base_offset,
                append_time_ms: meta.append_time_ms,
                payload_bytes: payload.len() as u32,
                payload_crc: crc32c::crc32c(payload),
            }
            .encode(self.config.incarnation, header);
        });
        let payload = chunk.slice(at + ENTRY_HEADER_BYTES..at + entry);
        chunk.pad_to(8);
        open.entries += 1;
        self.next_seq += 1;
        self.closed = false;
        Ok(Appended { seq, payload })
    }

    /// Somebody waits until `seq` is durable: it is written as soon as a write is free.
    pub fn want(&mut self, seq: u64) {
        assert!(seq < self.next_seq);
        self.wanted = self.wanted.max(seq);
    }

    /// Writes what is due. Called at the end of every turn.
    pub fn turn(&mut self, now_ns: u64, ops: &mut Vec<(OpId, DiskOp)>) {
        if let Some(open) = &self.open {
            let bytes = self.chunk.as_ref().map_or(0, |c| c.len() - open.start);
            let due = self.wanted >= open.first_seq
                || bytes >= FLUSH_BYTES
                || now_ns >= open.opened_ns + FLUSH_AFTER_NS;
            if due && self.can_write() {
                self.write_frame(0, ops);
            }
        } else if !self.closed
            && self.in_flight.is_empty()
            && now_ns >= self.idle_since_ns + CLOSE_AFTER_NS
        {
            self.write_closing(now_ns, ops);
        }
    }

    /// When [`Self::turn`] is to be called at the latest.
    pub fn deadline_ns(&self) -> Option<u64> {
        match &self.open {
            Some(open) if self.can_write() => Some(open.opened_ns + FLUSH_AFTER_NS),
            Some(_) => None,
            None if !self.closed && self.in_flight.is_empty() => {
                Some(self.idle_since_ns + CLOSE_AFTER_NS)
            }
            None => None,
        }
    }

    /// An empty frame that says that all before it was committed, so that a damaged last frame
    /// can be told from a torn one.
    fn write_closing(&mut self, now_ns: u64, ops: &mut Vec<(OpId, DiskOp)>) {
        self.closed = true;
        let room = |s: &UsedSlot| s.position + BLOCK_BYTES as u64 <= self.config.slot_bytes;
        if !self.used.back().is_some_and(room) {
            return;
        }
        if self.chunk.as_ref().is_none_or(|c| c.room() < BLOCK_BYTES) {
            let Some(chunk) = self.pool.take() else {
                return;
            };
            self.chunk = Some(chunk);
        }
        let Some(chunk) = &mut self.chunk else { return };
        let start = chunk.len();
        chunk.leave_hole(FRAME_HEADER_BYTES);
        let first_seq = self.next_seq;
        self.open = Some(OpenFrame {
            start,
            first_seq,
            entries: 0,
            opened_ns: now_ns,
        });
        self.write_frame(FRAME_CLOSING, ops);
    }

    fn op(&mut self) -> OpId {
        self.next_op += 1;
        OpId(WAL_OP | self.next_op)
    }

    /// Seals the open frame and submits it.
    fn write_frame(&mut self, flags: u8, ops: &mut Vec<(OpId, DiskOp)>) {
        let Some(open) = self.open.take() else { return };
        let Some(mut chunk) = self.chunk.take() else {
            return;
        };
        let entries_bytes = chunk.len() - open.start - FRAME_HEADER_BYTES;
        chunk.pad_to(BLOCK_BYTES);
        let disk_bytes = (chunk.len() - open.start) as u64;
        let room = |s: &UsedSlot| s.position + disk_bytes <= self.config.slot_bytes;
        if !self.used.back().is_some_and(room) {
            self.start_slot(ops);
        }
        let last_seq = open.first_seq + u64::from(open.entries) - 1;
        let op = self.op();
        let slot = self.used.back_mut();
        assert!(
            slot.is_some(),
            "a slot was reserved when the entries were accepted"
        );
        let Some(slot) = slot else { return };
        let header = FrameHeader {
            flags,
            shard: self.config.shard,
            generation: slot.generation,
            incarnation: self.config.incarnation,
            frame_seq: self.next_frame,
            committed: self.committed,
            first_seq: open.first_seq,
            entries_bytes: entries_bytes as u32,
            entry_count: open.entries,
            previous_crc: self.previous_crc,
        };
        self.previous_crc = chunk.fill_hole(|h| header.encode(h));
        self.next_frame += 1;
        let data = chunk.slice(open.start..chunk.len());
        let file = slot.file;
        ops.push((
            op,
            DiskOp::Write {
                file,
                position: slot.position,
                data: data.clone(),
            },
        ));
        slot.position += disk_bytes;
        slot.last_seq = last_seq;
        self.in_flight.push_back(InFlight {
            op,
            file,
            last_seq,
            done: false,
            _data: data,
        });
        self.stats.frames += 1;
        self.stats.bytes += disk_bytes;
        self.stats.entries += u64::from(open.entries);
        assert!(last_seq >= self.written, "frames are written in order");
        self.written = last_seq;
        if chunk.room() > 0 {
            self.chunk = Some(chunk);
        }
    }

    /// Takes a free slot and writes its header. The header counts as a write before the frames in
    /// it: nothing in the slot is committed until its name is durable.
    fn start_slot(&mut self, ops: &mut Vec<(OpId, DiskOp)>) {
        let file = self.free.pop();
        assert!(
            file.is_some(),
            "a slot was reserved when the entries were accepted"
        );
        let Some(file) = file else { return };
        let header = SlotHeader {
            data_directory: self.config.data_directory,
            shard: self.config.shard,
            generation: self.next_generation,
            incarnation: self.config.incarnation,
            slot_bytes: self.config.slot_bytes,
        };
        if self.headers.room() < BLOCK_BYTES {
            // As many headers as blocks in a chunk ago: none of them is in flight any more.
            self.headers.clear();
        }
        let at = self.headers.len();
        self.headers
            .append_with(BLOCK_BYTES, |block| header.encode(block));
        let data = self.headers.slice(at..at + BLOCK_BYTES);
        let op = self.op();
        ops.push((
            op,
            DiskOp::Write {
                file,
                position: 0,
                data: data.clone(),
            },
        ));
        self.in_flight.push_back(InFlight {
            op,
            file,
            last_seq: self.written,
            done: false,
            _data: data,
        });
        self.used.push_back(UsedSlot {
            file,
            generation: self.next_generation,
            position: BLOCK_BYTES as u64,
            last_seq: self.written,
        });
        self.next_generation += 1;
    }

    /// A write of this log completed. Returns whether `committed` moved.
    pub fn completed(&mut self, op: OpId, now_ns: u64, ops: &mut Vec<(OpId, DiskOp)>) -> bool {
        if self.marking.take_if(|marking| *marking == op).is_some() {
            self.free.splice(0..0, self.released.pop_front());
            self.mark_free(ops);
            return false;
        }
        if let Some(write) = self.in_flight.iter_mut().find(|w| w.op == op) {
            write.done = true;
        }
        let before = self.committed;
        while self.in_flight.front().is_some_and(|w| w.done) {
            if let Some(write) = self.in_flight.pop_front() {
                assert!(write.last_seq >= self.committed && write.last_seq <= self.written);
                self.committed = write.last_seq;
            }
        }
        if self.in_flight.is_empty() {
            self.idle_since_ns = now_ns;
        }
        self.committed > before
    }

    /// Everything up to `seq` is held by snapshots: slots with nothing newer become free.
    pub fn release_through(&mut self, seq: u64, ops: &mut Vec<(OpId, DiskOp)>) {
        assert!(
            seq <= self.committed,
            "only committed entries can be in snapshots"
        );
        // A closing frame, of no entry, may still be on its way to a slot.
        let is_done = |s: &UsedSlot| {
            s.last_seq <= seq && self.in_flight.iter().all(|write| write.file != s.file)
        };
        while self.used.len() > 1 && self.used.front().is_some_and(is_done) {
            self.released.extend(self.used.pop_front().map(|s| s.file));
        }
        self.mark_free(ops);
    }

    /// Blanks the header of the next released slot. Before that is durable the slot is not used
    /// again: a slot with a header is one whose entries recovery needs or finds whole. One at a
    /// time, so that the slots with headers have no gap.
    fn mark_free(&mut self, ops: &mut Vec<(OpId, DiskOp)>) {
        let (None, Some(&file)) = (self.marking, self.released.front()) else {
            return;
        };
        let op = self.op();
        let data = self.blank.clone();
        ops.push((
            op,
            DiskOp::Write {
                file,
                position: 0,
                data,
            },
        ));
        self.marking = Some(op);
    }

    /// Whether anything is open or in flight.
    pub fn is_idle(&self) -> bool {
        self.open.is_none() && self.in_flight.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOT: u64 = 4 << 20;

    fn wal(slots: u64) -> Wal {
        let config = WalConfig {
            shard: 0,
            data_directory: TopicId { hi: 1, lo: 2 },
            incarnation: 1,
            slot_bytes: SLOT,
            max_in_flight: 2,
        };
        let pool = Pool::new(64 << 20).expect("memory");
        Wal::new(config, pool, (0..slots).map(FileId).collect())
    }

    fn meta(index: u64) -> EntryMeta {
        EntryMeta {
            kind: EntryKind::Batch,
            group: GroupId(0),
            group_index: index,
            partition: PartitionId::default(),
            base_offset: index,
            append_time_ms: 0,
        }
    }

    fn append(wal: &mut Wal, bytes: usize, ops: &mut Vec<(OpId, DiskOp)>) -> Result<u64, WalBusy> {
        wal.append(meta(wal.next_seq), bytes, |p| p.fill(7), 0, ops)
            .map(|a| a.seq)
    }

    /// Appends an entry in a frame of its own, which is written.
    fn append_whole(wal: &mut Wal, kind: EntryKind, bytes: usize) -> Result<u64, WalBusy> {
        let mut ops = Vec::new();
        let meta = EntryMeta {
            kind,
            ..meta(wal.next_seq)
        };
        let seq = wal.append(meta, bytes, |p| p.fill(7), 0, &mut ops)?.seq;
        wal.want(seq);
        wal.turn(0, &mut ops);
        for op in std::mem::take(&mut ops) {
            wal.completed(op.0, 0, &mut ops);
        }
        Ok(seq)
    }

    /// Appends until there is no room. Returns the last.
    fn fill_up(wal: &mut Wal, kind: EntryKind, bytes: usize) -> u64 {
        let mut last = 0;
        while let Ok(seq) = append_whole(wal, kind, bytes) {
            last = seq;
        }
        last
    }

    #[test]
    fn entries_leave_the_slot_that_is_kept_back() {
        let mut wal = wal(4);
        fill_up(&mut wal, EntryKind::Batch, 60_000);
        fill_up(&mut wal, EntryKind::LogStart, 0);
        assert_eq!(wal.used.len(), 3);
        assert_eq!(wal.free_slots(), (0, 3));
        assert!(wal.take_free_slot().is_some(), "it is there to be given up");
        assert_eq!(wal.take_free_slot(), None);
    }

    #[test]
    fn what_makes_space_has_room_where_records_have_none() {
        for slots in [2, 3, 6] {
            for kind in [EntryKind::Batch, EntryKind::CommitOffset] {
                let mut wal = wal(slots);
                let before = fill_up(&mut wal, kind, 200_000);
                let records = fill_up(&mut wal, EntryKind::Batch, 0);
                assert!(before > 0 && records < before + 60, "no frame was full");
                assert!(!wal.has_room(EntryKind::CommitOffset, 0));
                let topics = fill_up(&mut wal, EntryKind::Meta, 300);
                assert!(topics - before.max(records) > 200, "a MiB of blocks");
                assert!(!wal.has_room(EntryKind::LogStart, 0));
            }
        }
    }

    #[test]
    fn what_makes_space_has_room_when_the_slot_that_was_kept_back_is_given_up() {
        let mut wal = wal(6);
        let before = fill_up(&mut wal, EntryKind::Batch, 60_000);
        assert!(wal.take_free_slot().is_some());
        assert!(fill_up(&mut wal, EntryKind::LogStart, 0) > before);
    }

    #[test]
    fn two_slots_are_never_given_up() {
        let mut wal = wal(3);
        assert!(wal.take_free_slot().is_some());
        assert_eq!(wal.take_free_slot(), None);
        assert_eq!(wal.slots(), 2);
    }

    #[test]
    fn a_slot_stays_until_its_closing_frame_is_written() {
        let (mut wal, mut ops) = (wal(3), Vec::new());
        let first = append(&mut wal, 100, &mut ops).expect("room");
        wal.want(first);
        wal.turn(0, &mut ops);
        for op in std::mem::take(&mut ops) {
            wal.completed(op.0, 0, &mut ops);
        }
        wal.turn(CLOSE_AFTER_NS, &mut ops);
        let [(closing, _)] = ops[..] else {
            panic!("{ops:?}")
        };
        // The log goes on in the next slot while that write is on its way.
        wal.used.back_mut().expect("a slot").position = SLOT;
        let second = append(&mut wal, 100, &mut ops).expect("room");
        wal.want(second);
        wal.turn(CLOSE_AFTER_NS, &mut ops);
        assert_eq!(wal.used.len(), 2);
        wal.release_through(first, &mut ops);
        assert_eq!(wal.used.len(), 2, "its last write is in flight");
        wal.completed(closing, CLOSE_AFTER_NS, &mut ops);
        wal.release_through(first, &mut ops);
        assert_eq!(wal.used.len(), 1);
    }

    #[test]
    fn a_slot_that_the_open_frame_needs_is_not_given_up() {
        let mut wal = wal(3);
        while wal.used.len() < 2 {
            append_whole(&mut wal, EntryKind::Batch, 100_000).expect("room");
        }
        wal.used.back_mut().expect("a slot").position = SLOT;
        append(&mut wal, 100, &mut Vec::new()).expect("room");
        assert_eq!((wal.slots(), wal.free.len()), (3, 1));
        assert_eq!(wal.take_free_slot(), None);
    }

    #[test]
    fn nothing_is_written_before_somebody_waits_or_the_time_has_come() {
        let (mut wal, mut ops) = (wal(2), Vec::new());
        append(&mut wal, 100, &mut ops).expect("room");
        wal.turn(FLUSH_AFTER_NS - 1, &mut ops);
        assert!(ops.is_empty());
        wal.turn(FLUSH_AFTER_NS, &mut ops);
        assert_eq!(ops.len(), 2, "slot header and frame: {ops:?}");
    }

    #[test]
    fn what_arrives_during_a_write_is_the_next_frame() {
        let (mut wal, mut ops) = (wal(2), Vec::new());
        let first = append(&mut wal, 100, &mut ops).expect("room");
        wal.want(first);
        wal.turn(0, &mut ops);
        for op in std::mem::take(&mut ops) {
            wal.completed(op.0, 0, &mut ops);
        }
        let mut last = 0;
        for _ in 0..3 {
            let seq = append(&mut wal, 100, &mut ops).expect("room");
            wal.want(seq);
            wal.turn(0, &mut ops);
            last = seq;
        }
        // Two writes may be in flight; the third entry waits for one of them.
        assert_eq!(ops.len(), 2);
        assert!(wal.completed(ops[0].0, 0, &mut Vec::new()));
        wal.turn(0, &mut ops);
        assert_eq!(ops.len(), 3);
        wal.completed(ops[1].0, 0, &mut Vec::new());
        wal.completed(ops[2].0, 0, &mut Vec::new());
        assert_eq!(wal.committed(), last);
    }

    #[test]
    fn a_write_that_completes_early_commits_nothing_before_its_predecessors() {
        let (mut wal, mut ops) = (wal(2), Vec::new());
        let first = append(&mut wal, 100, &mut ops).expect("room");
        wal.want(first);
        wal.turn(0, &mut ops);
        let (header, frame) = (ops[0].0, ops[1].0);
        assert!(
            !wal.completed(frame, 0, &mut ops),
            "the slot's header is not durable yet"
        );
        assert_eq!(wal.committed(), 0);
        assert!(wal.completed(header, 0, &mut ops));
        assert_eq!(wal.committed(), first);
    }

    #[test]
    fn accepted_entries_always_have_a_place_on_disk() {
        let (mut wal, mut ops) = (wal(2), Vec::new());
        let mut accepted = 0;
        // No slot is ever released: the log must say "busy" before it runs out, never fail.
        while let Ok(seq) = append(&mut wal, 100_000, &mut ops) {
            accepted = seq;
            wal.want(seq);
            wal.turn(0, &mut ops);
            for op in std::mem::take(&mut ops) {
                wal.completed(op.0, 0, &mut ops);
            }
        }
        assert_eq!(wal.committed(), accepted);
        assert!(
            accepted > 60,
            "{accepted} of about 80 entries of 100 kB in 8 MiB"
        );
    }

    #[test]
    fn a_slot_is_used_again_only_when_its_blank_header_is_durable() {
        let (mut wal, mut ops) = (wal(3), Vec::new());
        let mut accepted = 0;
        while let Ok(seq) = append(&mut wal, 100_000, &mut ops) {
            accepted = seq;
            wal.want(seq);
            wal.turn(0, &mut ops);
            for op in std::mem::take(&mut ops) {
                wal.completed(op.0, 0, &mut ops);
            }
        }
        wal.release_through(accepted, &mut ops);
        let mut blanked = Vec::new();
        while let Some((op, write)) = ops.pop() {
            assert!(append(&mut wal, 100_000, &mut Vec::new()).is_err());
            let DiskOp::Write {
                file,
                position,
                data,
            } = write
            else {
                panic!("{write:?}")
            };
            assert_eq!((position, &data[..]), (0, &[0; BLOCK_BYTES][..]));
            assert!(ops.is_empty(), "one at a time, so that no gap can come up");
            blanked.push(file);
            wal.completed(op, 0, &mut ops);
            if blanked.len() == 1 {
                assert_eq!(wal.free_slots(), (2, 3));
                assert_eq!(wal.free.len(), 1);
                // The second is looked at with the first still free.
                wal.free.clear();
            }
        }
        assert_eq!(blanked.len(), 2, "the newest slot stays");
        assert_eq!(wal.free.len(), 1);
        assert!(append(&mut wal, 100_000, &mut ops).is_ok());
    }

    #[test]
    fn an_idle_log_is_closed_by_an_empty_frame() {
        let (mut wal, mut ops) = (wal(2), Vec::new());
        let seq = append(&mut wal, 100, &mut ops).expect("room");
        wal.want(seq);
        wal.turn(0, &mut ops);
        for op in std::mem::take(&mut ops) {
            wal.completed(op.0, 5, &mut ops);
        }
        assert_eq!(wal.deadline_ns(), Some(5 + CLOSE_AFTER_NS));
        wal.turn(5 + CLOSE_AFTER_NS, &mut ops);
        let [(op, DiskOp::Write { data, .. })] = &ops[..] else {
            panic!("{ops:?}")
        };
        let (header, _) = FrameHeader::decode(data).expect("a frame");
        assert_eq!(
            (header.flags, header.committed, header.entry_count),
            (FRAME_CLOSING, seq, 0)
        );
        wal.completed(*op, 6, &mut Vec::new());
        assert_eq!(wal.deadline_ns(), None);
    }

    #[test]
    fn frames_are_a_chain() {
        let (mut wal, mut ops) = (wal(2), Vec::new());
        let mut crc = 0;
        for _ in 0..3 {
            let seq = append(&mut wal, 100, &mut ops).expect("room");
            wal.want(seq);
            wal.turn(0, &mut ops);
            let writes = std::mem::take(&mut ops);
            let Some((_, DiskOp::Write { data, .. })) = writes.last() else {
                panic!()
            };
            let (header, own) = FrameHeader::decode(data).expect("a frame");
            assert_eq!(header.previous_crc, crc);
            crc = own;
            for op in writes {
                wal.completed(op.0, 0, &mut ops);
            }
        }
    }
}
