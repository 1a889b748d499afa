//! Memory that the kernel writes to while it belongs to nobody's stack: anonymous mappings, the
//! ring of receive buffers, and the buffers for ranges of files.
#![expect(
    unsafe_code,
    reason = "mappings shared with the kernel; each block says what keeps it sound"
)]

use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

/// Zeroed private memory, aligned to a page.
pub(crate) struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
}

impl Mapping {
    pub fn new(bytes: usize) -> io::Result<Self> {
        // SAFETY: a fresh private anonymous mapping, no address asked for.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast::<u8>()).ok_or_else(io::Error::last_os_error)?;
        Ok(Self { base, bytes })
    }

    /// The address of a byte of the mapping (or one past its end).
    fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset <= self.bytes);
        // SAFETY: inside the mapping or one past its end.
        unsafe { self.base.as_ptr().add(offset) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and length are those of the mapping. Whoever gave it to the kernel keeps it
        // until the ring is drained, or never drops it.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// Zeroed memory of one owner, aligned for direct I/O.
pub(crate) struct Blocks(Mapping);

impl Blocks {
    pub fn new(bytes: usize) -> io::Result<Self> {
        Mapping::new(bytes).map(Self)
    }
}

impl Deref for Blocks {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the whole mapping, initialised with zeros, and this is its only owner.
        unsafe { std::slice::from_raw_parts(self.0.at(0), self.0.bytes) }
    }
}

impl DerefMut for Blocks {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.0.at(0), self.0.bytes) }
    }
}

/// Maps an index file for reading.
pub(crate) fn map_index(file: &File) -> io::Result<memmap2::Mmap> {
    // SAFETY: index files are written under another name and renamed into place, never changed or
    // cut afterwards; the data directory belongs to one broker, which is what its lock is for.
    unsafe { memmap2::Mmap::map(file) }
}

/// Consecutive buffers do not begin at the same place of a power of two, or all of them would
/// compete for the same few lines of the caches.
const STAGGER_BYTES: usize = 320;

/// Buffers from which the kernel takes one per receive, through a ring registered with it.
pub(crate) struct ReceiveBuffers {
    entries: Mapping,
    memory: Mapping,
    count: u16,
    bytes: u32,
    tail: u16,
}

impl ReceiveBuffers {
    /// `count` is a power of two.
    pub fn new(count: u16, bytes: u32) -> io::Result<Self> {
        assert!(
            count.is_power_of_two(),
            "{count} receive buffers: not a power of two"
        );
        let stride = bytes as usize + STAGGER_BYTES;
        let entries = Mapping::new(usize::from(count) * size_of::<BufRingEntry>())?;
        let memory = Mapping::new(usize::from(count) * stride)?;
        let mut buffers = Self {
            entries,
            memory,
            count,
            bytes,
            tail: 0,
        };
        for id in 0..count {
            buffers.give(id);
        }
        buffers.publish();
        Ok(buffers)
    }

    /// Address and number of entries, for the registration.
    pub fn registration(&self) -> (u64, u16) {
        (self.entries.at(0) as u64, self.count)
    }

    fn address(&self, id: u16) -> *mut u8 {
        assert!(id < self.count);
        self.memory
            .at(usize::from(id) * (self.bytes as usize + STAGGER_BYTES))
    }

    /// What the kernel received into a buffer that it took and that was not given back since.
    pub fn received(&self, id: u16, bytes: usize) -> &[u8] {
        assert!(bytes <= self.bytes as usize);
        // SAFETY: the range is inside the mapping; the kernel does not touch a buffer between its
        // completion and `give`, which needs `&mut self`.
        unsafe { std::slice::from_raw_parts(self.address(id), bytes) }
    }

    /// Gives a buffer back; the kernel sees it after [`Self::publish`].
    pub fn give(&mut self, id: u16) {
        let index = usize::from(self.tail & (self.count - 1));
        let address = self.address(id) as u64;
        let entry = self
            .entries
            .at(index * size_of::<BufRingEntry>())
            .cast::<BufRingEntry>();
        // SAFETY: inside the mapping, aligned to 16; the kernel reads entries only up to the tail
        // it was shown, and this one lies behind it.
        let entry = unsafe { &mut *entry };
        entry.set_addr(address);
        entry.set_len(self.bytes);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
    }

    /// Shows the kernel all buffers given.
    pub fn publish(&mut self) {
        let first = self.entries.at(0).cast::<BufRingEntry>();
        // SAFETY: the tail shares the first entry's last two bytes; inside the mapping, aligned to
        // 2, accessed atomically by both sides.
        let tail = unsafe { &*BufRingEntry::tail(first).cast::<AtomicU16>() };
        tail.store(self.tail, Ordering::Release);
    }
}

/// Bytes of a file buffer.
pub(crate) const FILE_BUFFER_BYTES: usize = 256 << 10;

/// A bounded number of buffers for ranges of files on their way to sockets.
pub(crate) struct FileBuffers {
    memory: Mapping,
    free: Vec<u16>,
}

/// One of them; goes back with [`FileBuffers::give`].
#[derive(Debug)]
pub(crate) struct FileBuffer(u16);

impl FileBuffers {
    pub fn new(count: u16) -> io::Result<Self> {
        let count = count.max(1);
        let memory = Mapping::new(usize::from(count) * FILE_BUFFER_BYTES)?;
        Ok(Self {
            memory,
            free: (0..count).rev().collect(),
        })
    }

    pub fn take(&mut self) -> Option<FileBuffer> {
        self.free.pop().map(FileBuffer)
    }

    /// How many are free.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    pub fn give(&mut self, buffer: FileBuffer) {
        self.free.push(buffer.0);
    }

    /// The buffer's address, aligned to a page.
    pub fn address(&self, buffer: &FileBuffer) -> *mut u8 {
        self.memory.at(usize::from(buffer.0) * FILE_BUFFER_BYTES)
    }
}
