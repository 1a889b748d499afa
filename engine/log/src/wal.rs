//! The write-ahead log of one shard: entries into frames, frames into slots, group commit.
//!
//! Greedy: a frame is sealed and written as soon as somebody waits for it and one of the few
//! writes in flight is free; what arrives meanwhile is the next frame. What nobody waits for goes
//! after [`FLUSH_AFTER_NS`], or with a full frame. Invariant: `committed <= written <= appended`,
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

/// Data that nobody waits for is written at this age (docs/adr/0005-fewer-frames.md).
pub const FLUSH_AFTER_NS: u64 = 25_000_000;
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
/// The end of that is for those that make it by themselves.
const DELETION_BYTES: u64 = 64 << 10;
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

/// What an entry does for space, and so how much of the log it leaves to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryClass {
    /// It takes some.
    Ordinary,
    /// It makes some once a snapshot knows of it, and that may need some first.
    Retention,
    /// It makes some at once.
    Deletion,
}

impl EntryClass {
    /// Bytes of the last slot that may be used.
    fn leaves_bytes(self) -> u64 {
        match self {
            Self::Ordinary => RESERVED_BYTES,
            Self::Retention => DELETION_BYTES,
            Self::Deletion => 0,
        }
    }

    fn leaves_chunks(self) -> usize {
        match self {
            Self::Ordinary => RESERVED_CHUNKS,
            Self::Retention | Self::Deletion => RESERVED_CHUNKS / 2,
        }
    }
}

/// What an entry says beside its payload.
#[derive(Clone, Copy, Debug)]
pub struct EntryMeta {
    /// What the payload is.
    pub kind: EntryKind,
    /// What it does for space.
    pub class: EntryClass,
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

/// There is no room now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalBusy {
    /// All writes are in flight. That passes.
    Writes,
    /// No memory: that is free again when segments were written.
    Memory,
    /// No place in the slots: there is some when one is released.
    Slots,
}

#[derive(Debug)]
struct OpenFrame {
    start: usize,
    first_seq: u64,
    entries: u32,
    /// It is written then if nobody waits for it before.
    due_ns: u64,
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
    /// The last entry before those in it.
    last_before: u64,
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

/// How many of so many slots entries do not take.
fn kept_back_of(slots: usize) -> usize {
    usize::from(slots >= KEEP_BACK_FROM)
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
        kept_back_of(self.slots())
    }

    /// Whether a slot is on its way to being free.
    pub fn is_releasing(&self) -> bool {
        !self.released.is_empty()
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

    /// Gives up a slot that holds nothing, unless the open frame needs it, too few would be left, or
    /// no topic could be deleted without it. A log that ends keeps only what the frame needs. None while nothing
    /// in the current slot is committed: until then what the one before holds shows where the log ends.
    pub fn take_free_slot(&mut self, is_ending: bool) -> Option<FileId> {
        let is_begun_only = |slot: &UsedSlot| self.committed <= slot.last_before;
        if self.next_generation > 2 && self.used.back().is_some_and(is_begun_only) {
            return None;
        }
        let frame = match (&self.chunk, &self.open) {
            (Some(chunk), Some(open)) => chunk.len() - open.start,
            _ => 0,
        };
        let (end, free) = self.placed(self.place(), frame)?;
        let left = free.checked_sub(1)?;
        if !is_ending {
            let slots = self.slots();
            let usable = free.saturating_sub(kept_back_of(slots));
            let usable_left = left.saturating_sub(kept_back_of(slots - 1));
            let is_last = usable > 0 && usable_left == 0;
            let is_needed = is_last && end + DELETION_BYTES > self.config.slot_bytes;
            if slots <= MIN_SLOTS || is_needed {
                return None;
            }
        }
        Some(self.free.remove(0))
    }

    /// Whether an entry with this payload can be appended now, without appending it.
    /// Accepting reserves its place on disk: the open frame always fits into the current slot or
    /// into a free one. What makes space may use places that records may not.
    pub fn room(&self, class: EntryClass, payload_bytes: usize) -> Result<(), WalBusy> {
        let entry = entry_padded(ENTRY_HEADER_BYTES + payload_bytes);
        let alone = FRAME_HEADER_BYTES + entry;
        let place = self.place();
        let mut before = Some(place);
        if let (Some(chunk), Some(open)) = (&self.chunk, &self.open) {
            let frame = chunk.len() - open.start;
            if Self::joins(chunk, open, entry) {
                return self.may_end(class, self.placed(place, frame + entry));
            }
            // The open frame is sealed first; the entry begins the next one.
            if !self.can_write() {
                return Err(WalBusy::Writes);
            }
            before = self.placed(place, frame);
        }
        let has_chunk = self.chunk.as_ref().is_some_and(|c| c.room() >= alone);
        if !has_chunk && self.pool.free_chunks() <= class.leaves_chunks() {
            return Err(WalBusy::Memory);
        }
        self.may_end(class, before.and_then(|before| self.placed(before, alone)))
    }

    /// Whether entries of a class may be put where the frame would end then.
    fn may_end(&self, class: EntryClass, placed: Option<(u64, usize)>) -> Result<(), WalBusy> {
        let (end, free) = placed.ok_or(WalBusy::Slots)?;
        let kept_back = self.kept_back();
        let takes_kept_back = free < self.free.len() && free < kept_back;
        let is_last = free <= kept_back;
        let is_in_reserve = is_last && end + class.leaves_bytes() > self.config.slot_bytes;
        match takes_kept_back || is_in_reserve {
            true => Err(WalBusy::Slots),
            false => Ok(()),
        }
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
        self.room(meta.class, payload_bytes)?;
        let entry = ENTRY_HEADER_BYTES + payload_bytes;
        if let (Some(chunk), Some(open)) = (&self.chunk, &self.open)
            && !Self::joins(chunk, open, entry_padded(entry))
        {
            self.write_frame(0, ops);
        }
        let alone = FRAME_HEADER_BYTES + entry_padded(entry);
        if self.open.is_none() && self.chunk.as_ref().is_none_or(|c| c.room() < alone) {
            let chunk = self.pool.take_above(meta.class.leaves_chunks());
            self.chunk = Some(chunk.ok_or(WalBusy::Memory)?);
        }
        let Some(chunk) = &mut self.chunk else {
            return Err(WalBusy::Memory);
        };
        let open = self.open.get_or_insert_with(|| {
            debug_assert!(chunk.len().is_multiple_of(BLOCK_BYTES));
            let start = chunk.len();
            chunk.leave_hole(FRAME_HEADER_BYTES);
            OpenFrame {
                start,
                first_seq: self.next_seq,
                entries: 0,
                due_ns: now_ns + FLUSH_AFTER_NS,
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

    /// Somebody may wait for what was appended last: it is written by this time.
    pub fn want_by(&mut self, due_ns: u64) {
        if let Some(open) = &mut self.open {
            open.due_ns = open.due_ns.min(due_ns);
        }
    }

    /// Writes what is due. Called at the end of every turn.
    pub fn turn(&mut self, now_ns: u64, ops: &mut Vec<(OpId, DiskOp)>) {
        if let Some(open) = &self.open {
            let due = self.wanted >= open.first_seq || now_ns >= open.due_ns;
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
            Some(open) if !self.can_write() => None,
            Some(open) if self.wanted >= open.first_seq => Some(0),
            Some(open) => Some(open.due_ns),
            None if !self.closed && self.in_flight.is_empty() => {
                Some(self.idle_since_ns + CLOSE_AFTER_NS)
            }
            None => None,
        }
    }

    /// An empty frame that says that all before it was committed, so that a damaged last frame
    /// can be told from a torn one. Never in another slot, nor in what is left to entries that make
    /// space.
    fn write_closing(&mut self, now_ns: u64, ops: &mut Vec<(OpId, DiskOp)>) {
        self.closed = true;
        let placed = self.placed(self.place(), BLOCK_BYTES);
        let takes_slot = placed.is_some_and(|(_, free)| free < self.free.len());
        if takes_slot || self.may_end(EntryClass::Ordinary, placed).is_err() {
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
            due_ns: now_ns,
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
            last_before: self.written,
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

    /// Whether nothing is open or in flight.
    pub fn is_idle(&self) -> bool {
        self.open.is_none() && self.in_flight.is_empty() && self.marking.is_none()
    }
}

#[cfg(test)]
mod tests;
