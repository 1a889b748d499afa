//! Memory of a shard: one mapping with a fixed bound, cut into chunks, shared by reference count.
//!
//! A [`Chunk`] has one writer, which fills it from the front; a [`Slice`] is a finished range that
//! anybody on the shard's thread may read, and that keeps the chunk alive. The invariant that makes
//! this sound: **a byte that a slice covers is never written again** while a slice exists. The
//! chunk's `sealed` mark is where writing may go on; behind it only a *hole* that was left open on
//! purpose (a frame's header, whose contents are known last) may still be filled, and no slice may
//! be made of it before.
//!
//! This module and the ring are the only places with `unsafe`.
#![expect(
    unsafe_code,
    reason = "shared memory handed to the kernel; see the invariant above"
)]

use std::cell::{Cell, RefCell};
use std::ops::{Deref, Range};
use std::ptr::NonNull;
use std::rc::Rc;

use ringtide_schema::limits::BLOCK_BYTES;

/// Bytes of every chunk: room for the largest frame.
pub const CHUNK_BYTES: usize = ringtide_schema::wal::MAX_FRAME_BYTES;
const _: () = assert!(CHUNK_BYTES.is_multiple_of(BLOCK_BYTES));
/// The smallest pool: what a shard needs to make progress, and as much again for data.
pub const MIN_CHUNKS: usize = 16;

/// The chunks of one shard.
#[derive(Clone)]
pub struct Pool(Rc<PoolMemory>);

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Pool({} of {} chunks free)",
            self.free_chunks(),
            self.chunks()
        )
    }
}

struct PoolMemory {
    base: NonNull<u8>,
    chunks: usize,
    /// Numbers of chunks that nobody holds; the most recently used is taken first.
    free: RefCell<Vec<u32>>,
}

impl Pool {
    /// Maps memory for `bytes`, rounded up to whole chunks (at least [`MIN_CHUNKS`]). Pages cost
    /// nothing until they are touched.
    pub fn new(bytes: usize) -> std::io::Result<Self> {
        let chunks = bytes.div_ceil(CHUNK_BYTES).max(MIN_CHUNKS);
        // SAFETY: a fresh private anonymous mapping, no address asked for.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                chunks * CHUNK_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast::<u8>()).ok_or_else(std::io::Error::last_os_error)?;
        let free = (0..chunks as u32).rev().collect();
        Ok(Self(Rc::new(PoolMemory {
            base,
            chunks,
            free: RefCell::new(free),
        })))
    }

    /// An empty chunk, or nothing when all are held.
    pub fn take(&self) -> Option<Chunk> {
        let index = self.0.free.borrow_mut().pop()?;
        Some(Chunk {
            memory: Rc::new(ChunkMemory {
                pool: self.0.clone(),
                index,
                slices: Cell::new(0),
            }),
            sealed: 0,
            hole: 0..0,
        })
    }

    /// An empty chunk, unless fewer than `reserve` would be left.
    pub fn take_above(&self, reserve: usize) -> Option<Chunk> {
        if self.free_chunks() > reserve {
            self.take()
        } else {
            None
        }
    }

    /// Chunks that nobody holds.
    pub fn free_chunks(&self) -> usize {
        self.0.free.borrow().len()
    }

    /// All chunks.
    pub fn chunks(&self) -> usize {
        self.0.chunks
    }
}

impl Drop for PoolMemory {
    fn drop(&mut self) {
        // SAFETY: base and length are those of the mapping; every chunk holds an Rc of this, so
        // none is left.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.chunks * CHUNK_BYTES) };
    }
}

struct ChunkMemory {
    pool: Rc<PoolMemory>,
    index: u32,
    slices: Cell<u32>,
}

impl ChunkMemory {
    fn base(&self) -> NonNull<u8> {
        // SAFETY: `index` is below the number of chunks, so the result is inside the mapping.
        unsafe { self.pool.base.add(self.index as usize * CHUNK_BYTES) }
    }
}

impl Drop for ChunkMemory {
    fn drop(&mut self) {
        self.pool.free.borrow_mut().push(self.index);
    }
}

/// A chunk with its one writer. Its address is a multiple of 4,096.
pub struct Chunk {
    memory: Rc<ChunkMemory>,
    /// Bytes before this are finished, except the hole.
    sealed: usize,
    /// A range before `sealed` that may still be written; empty if none.
    hole: Range<usize>,
}

impl std::fmt::Debug for Chunk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Chunk({}, {} of {CHUNK_BYTES})",
            self.memory.index, self.sealed
        )
    }
}

impl Chunk {
    /// Bytes that are finished.
    pub fn len(&self) -> usize {
        self.sealed
    }

    /// Whether nothing was written yet.
    pub fn is_empty(&self) -> bool {
        self.sealed == 0
    }

    /// Bytes that can still be appended.
    pub fn room(&self) -> usize {
        CHUNK_BYTES - self.sealed
    }

    /// Whether a slice of this chunk is alive.
    pub fn is_shared(&self) -> bool {
        self.memory.slices.get() > 0
    }

    /// The next `bytes` bytes for writing, finished when the call returns. Their contents before
    /// are whatever the chunk held earlier.
    ///
    /// # Panics
    /// If there is no room.
    pub fn append_with<R>(&mut self, bytes: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        assert!(bytes <= self.room(), "append of {bytes} bytes to {self:?}");
        // SAFETY: [sealed, sealed + bytes) is inside the chunk, and no slice reaches past
        // `sealed`; &mut self makes this the only writer.
        let target = unsafe {
            std::slice::from_raw_parts_mut(self.memory.base().add(self.sealed).as_ptr(), bytes)
        };
        let result = fill(target);
        self.sealed += bytes;
        result
    }

    /// Appends a copy of `bytes`.
    pub fn append(&mut self, bytes: &[u8]) {
        self.append_with(bytes.len(), |target| target.copy_from_slice(bytes));
    }

    /// Appends zeros up to the next multiple of `align`.
    pub fn pad_to(&mut self, align: usize) {
        let bytes = self.sealed.next_multiple_of(align) - self.sealed;
        self.append_with(bytes, |target| target.fill(0));
    }

    /// Leaves `bytes` bytes open, to be filled later by [`Self::fill_hole`]. Only one hole at a
    /// time; no slice may cover it before it is filled.
    pub fn leave_hole(&mut self, bytes: usize) {
        assert!(self.hole.is_empty(), "a hole is open already in {self:?}");
        assert!(bytes <= self.room(), "hole of {bytes} bytes in {self:?}");
        self.hole = self.sealed..self.sealed + bytes;
        self.sealed += bytes;
    }

    /// Fills the open hole.
    pub fn fill_hole<R>(&mut self, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let hole = std::mem::take(&mut self.hole);
        // SAFETY: the hole is inside the chunk and no slice covers it: `slice` refuses to.
        let target = unsafe {
            std::slice::from_raw_parts_mut(self.memory.base().add(hole.start).as_ptr(), hole.len())
        };
        fill(target)
    }

    /// Memory from `len()` on for a read by the kernel: its address and length. What was read is
    /// then made part of the chunk by [`Self::filled`].
    pub fn spare(&mut self) -> (*mut u8, usize) {
        // SAFETY: `sealed` is at most CHUNK_BYTES, one past the end at the most.
        (
            unsafe { self.memory.base().add(self.sealed).as_ptr() },
            self.room(),
        )
    }

    /// Says that the kernel wrote `bytes` bytes to the memory that [`Self::spare`] gave.
    pub fn filled(&mut self, bytes: usize) {
        assert!(bytes <= self.room());
        self.sealed += bytes;
    }

    /// A finished range, to be read by anybody on this thread.
    pub fn slice(&self, range: Range<usize>) -> Slice {
        assert!(
            range.start <= range.end && range.end <= self.sealed,
            "{range:?} of {self:?}"
        );
        assert!(
            self.hole.is_empty() || range.end <= self.hole.start || range.start >= self.hole.end,
            "{range:?} covers the open hole {:?}",
            self.hole
        );
        let slices = &self.memory.slices;
        slices.set(slices.get() + 1);
        Slice {
            memory: self.memory.clone(),
            start: range.start as u32,
            end: range.end as u32,
        }
    }

    /// Empties the chunk, to be written from the front again.
    ///
    /// # Panics
    /// If a slice of it is alive.
    pub fn clear(&mut self) {
        assert!(
            !self.is_shared(),
            "clearing {self:?} while slices of it are alive"
        );
        self.sealed = 0;
        self.hole = 0..0;
    }
}

/// A finished range of a chunk. Cheap to clone; the chunk lives as long as any of its slices.
pub struct Slice {
    memory: Rc<ChunkMemory>,
    start: u32,
    end: u32,
}

impl Slice {
    /// A part of this slice.
    pub fn part(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len());
        let mut part = self.clone();
        part.end = self.start + range.end as u32;
        part.start = self.start + range.start as u32;
        part
    }

    /// Whether `next` follows this slice without a gap in the same chunk.
    pub fn is_followed_by(&self, next: &Self) -> bool {
        Rc::ptr_eq(&self.memory, &next.memory) && self.end == next.start
    }

    /// This slice and the one that follows it as one.
    pub fn joined(&self, next: &Self) -> Self {
        assert!(self.is_followed_by(next));
        let mut whole = self.clone();
        whole.end = next.end;
        whole
    }
}

impl Clone for Slice {
    fn clone(&self) -> Self {
        self.memory.slices.set(self.memory.slices.get() + 1);
        Self {
            memory: self.memory.clone(),
            start: self.start,
            end: self.end,
        }
    }
}

impl Drop for Slice {
    fn drop(&mut self) {
        self.memory.slices.set(self.memory.slices.get() - 1);
    }
}

impl Deref for Slice {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the range is finished, inside the chunk, and never written again while this
        // slice is alive (see the module's invariant).
        unsafe {
            std::slice::from_raw_parts(
                self.memory.base().add(self.start as usize).as_ptr(),
                (self.end - self.start) as usize,
            )
        }
    }
}

impl std::fmt::Debug for Slice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Slice({}, {}..{})",
            self.memory.index, self.start, self.end
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_returns_to_the_pool_with_its_last_slice() {
        let pool = Pool::new(2 * CHUNK_BYTES).expect("memory");
        let mut chunk = pool.take().expect("a chunk");
        chunk.append(b"hello world");
        let slice = chunk.slice(6..11);
        drop(chunk);
        assert_eq!(pool.free_chunks(), MIN_CHUNKS - 1);
        assert_eq!(&*slice, b"world");
        drop(slice);
        assert_eq!(pool.free_chunks(), MIN_CHUNKS);
    }

    #[test]
    fn the_pool_is_bounded() {
        let pool = Pool::new(1).expect("memory");
        let held: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(held.len(), pool.chunks());
        assert!(pool.take().is_none());
    }

    #[test]
    fn a_hole_can_be_filled_after_slices_behind_it_were_shared() {
        let pool = Pool::new(1).expect("memory");
        let mut chunk = pool.take().expect("a chunk");
        chunk.leave_hole(4);
        chunk.append(b"body");
        let body = chunk.slice(4..8);
        chunk.fill_hole(|h| h.copy_from_slice(b"head"));
        assert_eq!(&*chunk.slice(0..8), b"headbody");
        assert_eq!(&*body, b"body");
    }

    #[test]
    #[should_panic(expected = "covers the open hole")]
    fn an_open_hole_cannot_be_shared() {
        let pool = Pool::new(1).expect("memory");
        let mut chunk = pool.take().expect("a chunk");
        chunk.leave_hole(4);
        let _ = chunk.slice(0..4);
    }

    #[test]
    fn adjacent_slices_join() {
        let pool = Pool::new(1).expect("memory");
        let mut chunk = pool.take().expect("a chunk");
        chunk.append(b"abcdef");
        let joined = chunk.slice(0..2).joined(&chunk.slice(2..6));
        assert_eq!(&*joined, b"abcdef");
        assert_eq!(&*joined.part(1..3), b"bc");
    }

    #[test]
    #[should_panic(expected = "while slices of it are alive")]
    fn a_chunk_that_is_being_read_cannot_be_cleared() {
        let pool = Pool::new(1).expect("memory");
        let mut chunk = pool.take().expect("a chunk");
        chunk.append(b"x");
        let _slice = chunk.slice(0..1);
        chunk.clear();
    }
}
