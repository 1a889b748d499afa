//! The files of the simulated host, and what becomes of them when its power is cut or its broker killed.
//!
//! # Fault model
//!
//! - Operations complete late and in any order; the order of submission means nothing.
//! - A write to a slot of the log is durable once it completed, and not before. A power cut keeps or loses each
//!   sector of 512 bytes of a write that is under way.
//! - A write to a segment is durable once a sync completed that was submitted after the write completed. A power cut keeps
//!   or loses each sector that is not, and the length of the file with it.
//! - A name that was made, replaced or removed by a shard is durable once its operation completed (the contract of
//!   [`DiskOp`]); while it is under way each step may have happened or not. Of the name of an index nothing is promised.
//! - Recovery works with the single steps of a file system: a name is durable once its directory was synced, and a
//!   file in a directory whose own name is not durable may be gone with it. It is killed, or the power is cut, before
//!   any of its changes.
//! - A kill of the broker leaves the page cache: what completed stays, of what is under way anything may have happened.
//! - An operation fails with EIO: a write may have written any of its sectors. After a sync that failed, each
//!   sector that it was to save is on the device or is not, and no later sync saves it (as Linux does).
//! - The disk is full for a while: whatever needs more space fails, a write after a part of it; what is removed gives
//!   its space back.
//! - No more files can be opened than so many, for a while: what needs one more fails, with a part of it done.
//! - A read fails with EIO, once: the batch at which the index of a segment was being built, for example.
//! - A bit of a file is another one from now on: of an index, a snapshot, the identity, of a segment but for the leader epoch
//!   of a batch, which nothing covers, or of the log but for the last frames.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::path::{Path, PathBuf};

use ringtide_io::{DiskDone, DiskError, DiskErrorKind, DiskOp, FileId, IndexBytes, OpId, OpenMode};
use ringtide_schema::index;
use ringtide_schema::index::scan::Extent;

use self::index_files::{Readable, built};
use self::rot::LastWrites;
use crate::planted::Planted;
use crate::random::Random;

mod index_files;
mod rot;
mod starting;

/// What a device writes whole or not at all.
const SECTOR: usize = 512;

/// Bytes of a file; those behind the last that was written are zeros.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Bytes {
    written: Vec<u8>,
    len: usize,
}

impl Bytes {
    fn new(written: Vec<u8>) -> Self {
        let len = written.len();
        Self { written, len }
    }

    fn set_len(&mut self, len: usize) {
        self.written.truncate(len);
        self.len = len;
    }

    fn write(&mut self, position: usize, data: &[u8]) {
        let end = position + data.len();
        if self.written.len() < end {
            self.written.resize(end, 0);
        }
        self.written[position..end].copy_from_slice(data);
        self.len = self.len.max(end);
    }

    fn read(&self, position: usize, bytes: usize) -> Vec<u8> {
        let end = (position + bytes).min(self.len);
        let start = position.min(end);
        let written = self.written.len();
        let mut read = self.written[start.min(written)..end.min(written)].to_vec();
        read.resize(end - start, 0);
        read
    }

    fn differs(&self, other: &Self) -> bool {
        let written = self.written.len().max(other.written.len());
        self.len != other.len || self.read(0, written) != other.read(0, written)
    }

    fn sector(&self, sector: usize) -> Vec<u8> {
        self.read(sector * SECTOR, SECTOR)
    }
}

#[derive(Clone, Debug, Default)]
struct Inode {
    /// As the broker sees it.
    now: Bytes,
    /// As it is after a power cut that loses all it may.
    stable: Bytes,
    /// Sectors that differ.
    dirty: BTreeSet<usize>,
}

impl Inode {
    fn stable(bytes: Bytes) -> Self {
        Self {
            now: bytes.clone(),
            stable: bytes,
            dirty: BTreeSet::new(),
        }
    }

    fn unsynced(bytes: Vec<u8>) -> Self {
        Self {
            dirty: (0..bytes.len().div_ceil(SECTOR)).collect(),
            now: Bytes::new(bytes),
            stable: Bytes::default(),
        }
    }

    fn write(&mut self, position: usize, data: &[u8], is_durable: bool) {
        self.now.write(position, data);
        if is_durable {
            self.stable.write(position, data);
        } else {
            let sectors = position / SECTOR..(position + data.len()).div_ceil(SECTOR);
            self.dirty.extend(sectors);
        }
    }

    fn keep(&mut self, sector: usize, contents: &[u8]) {
        self.stable.write(sector * SECTOR, contents);
    }

    /// Everything written so far is durable, but for what an earlier sync failed to save.
    fn sync(&mut self) {
        for sector in mem::take(&mut self.dirty) {
            let contents = self.now.sector(sector);
            self.keep(sector, &contents);
        }
        self.stable.set_len(self.now.len);
    }
}

/// A kind of operation that a crash may wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A write of the log.
    Log,
    /// A write of a segment.
    Segment,
    /// A segment is synced.
    Sync,
    /// A segment is sealed.
    Seal,
    /// A snapshot is replaced.
    Replace,
    /// Files are removed.
    Remove,
    /// A file is made or opened to be written.
    Make,
}

impl Step {
    /// All kinds.
    pub const ALL: [Self; 7] = [
        Self::Log,
        Self::Segment,
        Self::Sync,
        Self::Seal,
        Self::Replace,
        Self::Remove,
        Self::Make,
    ];
}

/// An operation under way.
struct UnderWay {
    shard: u16,
    id: OpId,
    op: DiskOp,
    inode: Option<usize>,
    is_log: bool,
    /// Of a sync: what had been written when it was submitted, and the length then.
    covered: Vec<(usize, Vec<u8>)>,
    covered_len: usize,
}

/// Names an operation under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// An operation that ended: whose it was, and how.
pub struct Ended {
    /// The shard that asked.
    pub shard: u16,
    /// Its number there.
    pub id: OpId,
    /// How it ended.
    pub result: Result<DiskDone, DiskError>,
}

/// How a recovery is interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interruption {
    /// The process is killed before this many more changes of files.
    Killed(u64),
    /// The change after this many more fails with EIO.
    Failed(u64),
}

/// The files of the host.
pub struct Disk {
    random: Random,
    inodes: Vec<Inode>,
    folders: BTreeSet<PathBuf>,
    stable_folders: BTreeSet<PathBuf>,
    names: BTreeMap<PathBuf, usize>,
    stable_names: BTreeMap<PathBuf, usize>,
    open: BTreeMap<(u16, FileId), (usize, bool)>,
    /// A range that is being sent may be of one of these.
    closed: BTreeMap<(u16, FileId), (usize, bool)>,
    under_way: BTreeMap<Ticket, UnderWay>,
    log_writes: BTreeMap<u16, LastWrites>,
    next: u64,
    /// Which fault of the disk's driver is planted.
    pub planted: Planted,
    /// Space left, when it is scarce.
    pub room: Option<u64>,
    /// Files that may be open, when they are few.
    pub most_open: Option<usize>,
    /// The next operation that changes a file fails with EIO.
    pub fails_next: bool,
    /// The next operation that reads a file fails with EIO.
    pub fails_next_read: bool,
    /// Operations that changed a file and failed because of that. A read that fails ends nobody.
    pub failures: u64,
    /// What is going to happen to a recovery.
    pub interruption: Option<Interruption>,
    /// It has happened.
    pub is_interrupted: bool,
}

impl Disk {
    /// No files; the seed decides what faults do.
    pub fn new(seed: u64, planted: Planted) -> Self {
        Self {
            random: Random::new(seed),
            inodes: Vec::new(),
            folders: BTreeSet::new(),
            stable_folders: BTreeSet::new(),
            names: BTreeMap::new(),
            stable_names: BTreeMap::new(),
            open: BTreeMap::new(),
            closed: BTreeMap::new(),
            under_way: BTreeMap::new(),
            log_writes: BTreeMap::new(),
            next: 0,
            planted,
            room: None,
            most_open: None,
            fails_next: false,
            fails_next_read: false,
            failures: 0,
            interruption: None,
            is_interrupted: false,
        }
    }

    /// Gives everything away.
    pub fn take(&mut self) -> Self {
        mem::replace(self, Self::new(0, self.planted))
    }

    /// Takes an operation; it ends when the world says so. Closing has no end.
    pub fn submit(&mut self, shard: u16, id: OpId, op: DiskOp) -> Option<Ticket> {
        let file = match &op {
            DiskOp::Close { file } => {
                if let Some(open) = self.open.remove(&(shard, *file)) {
                    self.closed.insert((shard, *file), open);
                }
                return None;
            }
            DiskOp::Write { file, .. }
            | DiskOp::Sync { file }
            | DiskOp::Read { file, .. }
            | DiskOp::Seal { file, .. } => Some(self.open[&(shard, *file)]),
            _ => None,
        };
        let inode = file.map(|(inode, _)| inode);
        let (mut covered, mut covered_len) = (Vec::new(), 0);
        if let (DiskOp::Sync { .. }, Some(inode)) = (&op, inode) {
            let inode = &self.inodes[inode];
            covered = inode
                .dirty
                .iter()
                .map(|&s| (s, inode.now.sector(s)))
                .collect();
            covered_len = inode.now.len;
        }
        self.next += 1;
        let ticket = Ticket(self.next);
        let is_log = file.is_some_and(|(_, is_log)| is_log);
        let under_way = UnderWay {
            shard,
            id,
            op,
            inode,
            is_log,
            covered,
            covered_len,
        };
        self.under_way.insert(ticket, under_way);
        Some(ticket)
    }

    /// Whether an operation is a write to the log.
    pub fn is_log_write(&self, ticket: Ticket) -> bool {
        self.under_way.get(&ticket).is_some_and(|u| u.is_log)
    }

    /// The kind of an operation under way.
    pub fn step(&self, ticket: Ticket) -> Option<Step> {
        let under_way = self.under_way.get(&ticket)?;
        match under_way.op {
            DiskOp::Write { .. } if under_way.is_log => Some(Step::Log),
            DiskOp::Write { .. } => Some(Step::Segment),
            DiskOp::Sync { .. } => Some(Step::Sync),
            DiskOp::Seal { .. } => Some(Step::Seal),
            DiskOp::Replace { .. } => Some(Step::Replace),
            DiskOp::Remove { .. } => Some(Step::Remove),
            DiskOp::CreateSlot { .. }
            | DiskOp::Open {
                mode: OpenMode::Append { .. },
                ..
            } => Some(Step::Make),
            _ => None,
        }
    }

    /// Carries an operation out. Nothing, if a fault has done away with it.
    pub fn complete(&mut self, ticket: Ticket) -> Option<Ended> {
        let under_way = self.under_way.remove(&ticket)?;
        let (shard, id) = (under_way.shard, under_way.id);
        let changes = !matches!(
            under_way.op,
            DiskOp::Read { .. } | DiskOp::LoadIndex { .. } | DiskOp::Open { .. }
        );
        let reads = match &under_way.op {
            DiskOp::Read { .. } | DiskOp::LoadIndex { .. } => true,
            DiskOp::Open { mode, .. } => *mode == OpenMode::Read,
            _ => false,
        };
        let opens = matches!(
            under_way.op,
            DiskOp::Open { .. }
                | DiskOp::LoadIndex { .. }
                | DiskOp::Replace { .. }
                | DiskOp::Remove { .. }
                | DiskOp::CreateSlot { .. }
        );
        let result = if opens && !self.has_files() {
            let message = format!("{:?}: Too many open files", under_way.op);
            if self.random.percent(50) {
                self.interrupt(under_way, false);
            }
            Err(DiskError {
                kind: DiskErrorKind::TooManyFiles,
                message,
            })
        } else if reads && mem::take(&mut self.fails_next_read) {
            self.fail_to_read(under_way.op)
        } else if changes && mem::take(&mut self.fails_next) {
            self.failures += 1;
            let message = format!("{:?}: Input/output error", under_way.op);
            self.fail(under_way);
            Err(DiskError {
                kind: DiskErrorKind::Os(5),
                message,
            })
        } else {
            self.carry_out(under_way)
        };
        Some(Ended { shard, id, result })
    }

    /// Something of it happened.
    fn fail(&mut self, under_way: UnderWay) {
        if let (DiskOp::Sync { .. } | DiskOp::Seal { .. }, Some(inode)) =
            (&under_way.op, under_way.inode)
        {
            return self.fail_to_sync(inode);
        }
        self.interrupt(under_way, false);
    }

    fn fail_to_sync(&mut self, inode: usize) {
        let Inode { now, stable, dirty } = &mut self.inodes[inode];
        for sector in mem::take(dirty) {
            if self.random.percent(50) {
                stable.write(sector * SECTOR, &now.sector(sector));
            }
        }
    }

    /// Files that are open.
    pub fn open_files(&self) -> usize {
        self.open.len()
    }

    /// Whether one more can be opened.
    fn has_files(&self) -> bool {
        self.most_open.is_none_or(|most| self.open.len() < most)
    }

    /// Takes space, if there is any.
    fn grow(&mut self, bytes: u64) -> Result<(), DiskError> {
        match &mut self.room {
            Some(room) if *room < bytes => Err(DiskError {
                kind: DiskErrorKind::Full,
                message: "No space left on device".into(),
            }),
            Some(room) => {
                *room -= bytes;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn give_back(&mut self, inode: usize) {
        if let Some(room) = &mut self.room {
            *room += self.inodes[inode].now.len as u64;
        }
    }

    fn carry_out(&mut self, under_way: UnderWay) -> Result<DiskDone, DiskError> {
        let UnderWay {
            shard,
            op,
            inode,
            is_log,
            covered,
            covered_len,
            ..
        } = under_way;
        let inode = inode.unwrap_or(usize::MAX);
        match op {
            DiskOp::Open { file, path, mode } => self.opened(shard, file, path, mode),
            DiskOp::Write { position, data, .. } => {
                let position = position as usize;
                let have = self.inodes[inode].now.len;
                let more = (position + data.len()).saturating_sub(have);
                if let Err(full) = self.grow(more as u64) {
                    let part = self.random.below(data.len() as u64 / 4096) as usize * 4096;
                    let part = part.min(have.saturating_sub(position));
                    self.inodes[inode].write(position, &data[..part], is_log);
                    return Err(full);
                }
                let is_durable = is_log && self.planted != Planted::LogWithoutSync;
                self.inodes[inode].write(position, &data, is_durable);
                if is_log {
                    self.log_written(shard, inode, position);
                }
                Ok(DiskDone::Done)
            }
            DiskOp::Sync { .. } => {
                let inode = &mut self.inodes[inode];
                if self.planted != Planted::SyncDoesNothing {
                    for (sector, contents) in covered {
                        inode.keep(sector, &contents);
                        if inode.now.sector(sector) == contents {
                            inode.dirty.remove(&sector);
                        }
                    }
                    inode.stable.set_len(covered_len);
                }
                Ok(DiskDone::Done)
            }
            DiskOp::Read {
                position,
                bytes,
                mut into,
                ..
            } => {
                let read = self.inodes[inode].now.read(position as usize, bytes);
                into.append(&read);
                let bytes = read.len();
                Ok(DiskDone::Read { chunk: into, bytes })
            }
            DiskOp::Seal {
                bytes,
                index_path,
                index,
                ..
            } => {
                self.inodes[inode].now.set_len(bytes as usize);
                self.inodes[inode].sync();
                // Without space or a file there is none.
                if !index.is_empty() && self.has_files() && self.grow(index.len() as u64).is_ok() {
                    let index = self.add(Inode::unsynced(index));
                    self.names.insert(index_path, index);
                }
                Ok(DiskDone::Done)
            }
            DiskOp::LoadIndex {
                index_path,
                log_path,
                base_offset,
                bytes,
                tail,
                next_offset,
                keep,
            } => {
                if let Some(index) = self.index(&index_path, base_offset, bytes) {
                    return Ok(DiskDone::Index(index));
                }
                let inode = self.find(&log_path)?;
                let segment = Readable {
                    bytes: self.inodes[inode].now.read(0, bytes as usize),
                    lost: 0..0,
                };
                let extent = Extent {
                    base_offset,
                    bytes,
                    tail: &tail,
                    next_offset,
                };
                let (index, is_sound) = built(segment, extent);
                if let (true, IndexBytes::Built { entries, .. }) = (keep && is_sound, &index) {
                    let contents = index::encode(base_offset, bytes as u32, entries);
                    if self.grow(contents.len() as u64).is_ok() {
                        let inode = self.add(Inode::unsynced(contents));
                        self.names.insert(index_path, inode);
                    }
                }
                Ok(DiskDone::Index(index))
            }
            DiskOp::Replace { path, contents } => {
                self.grow(contents.len() as u64)?;
                if let Some(&old) = self.names.get(&path) {
                    self.give_back(old);
                }
                let inode = self.add(Inode::stable(Bytes::new(contents)));
                if self.planted != Planted::NamesNotSynced {
                    self.stable_names.insert(path.clone(), inode);
                }
                self.names.insert(path, inode);
                Ok(DiskDone::Done)
            }
            DiskOp::Remove {
                paths,
                and_directory,
            } => {
                let is_gone = |path: &Path| {
                    paths.iter().any(|gone| gone == path)
                        || and_directory.as_ref().is_some_and(|d| path.starts_with(d))
                };
                let gone = self.names.iter().filter(|(path, _)| is_gone(path));
                let gone: Vec<usize> = gone.map(|(_, &inode)| inode).collect();
                gone.into_iter().for_each(|inode| self.give_back(inode));
                self.names.retain(|path, _| !is_gone(path));
                self.stable_names.retain(|path, _| !is_gone(path));
                if let Some(directory) = and_directory {
                    self.folders.remove(&directory);
                    self.stable_folders.remove(&directory);
                }
                Ok(DiskDone::Done)
            }
            DiskOp::CreateSlot { path, bytes } => {
                self.grow(bytes)?;
                let mut zeros = Bytes::default();
                zeros.set_len(bytes as usize);
                self.put(path, zeros);
                Ok(DiskDone::Done)
            }
            DiskOp::Close { .. } => Ok(DiskDone::Done),
        }
    }

    fn opened(
        &mut self,
        shard: u16,
        file: FileId,
        path: PathBuf,
        mode: OpenMode,
    ) -> Result<DiskDone, DiskError> {
        let mut is_deleted = false;
        if let OpenMode::Append { .. } = mode {
            if !self.names.contains_key(&path) {
                self.grow(4096)?;
                let folder = path.parent().expect("a segment is in a folder");
                is_deleted = self.folders.insert(folder.to_path_buf());
                self.stable_folders.insert(folder.to_path_buf());
                let inode = self.add(Inode::default());
                self.names.insert(path.clone(), inode);
            }
            if let Some(&inode) = self.names.get(&path) {
                self.stable_names.insert(path.clone(), inode);
            }
        }
        let inode = self.find(&path)?;
        let now = &mut self.inodes[inode].now;
        if let OpenMode::Append { keep_bytes } = mode {
            // The topic may have been deleted since this was asked for.
            if is_deleted && keep_bytes > 0 {
                return Err(DiskError {
                    kind: DiskErrorKind::Corrupt,
                    message: format!("{} has none of {keep_bytes} bytes", path.display()),
                });
            }
            assert!(
                now.len as u64 >= keep_bytes,
                "{}: synced bytes are gone",
                path.display()
            );
            now.set_len(keep_bytes as usize);
        }
        let bytes = now.len as u64;
        let is_log = mode == OpenMode::Wal;
        self.open.insert((shard, file), (inode, is_log));
        Ok(DiskDone::Opened { bytes })
    }

    /// A range of an open file, as a socket sends it; nothing if the file is shorter.
    pub fn range(&self, shard: u16, file: FileId, position: u64, bytes: usize) -> Option<Vec<u8>> {
        let key = (shard, file);
        let (inode, _) = *self.open.get(&key).unwrap_or_else(|| &self.closed[&key]);
        let read = self.inodes[inode].now.read(position as usize, bytes);
        (read.len() == bytes).then_some(read)
    }

    fn find(&self, path: &Path) -> Result<usize, DiskError> {
        let found = self.names.get(path).copied();
        found.ok_or_else(|| DiskError {
            kind: DiskErrorKind::NotFound,
            message: format!("{} is not there", path.display()),
        })
    }

    fn add(&mut self, inode: Inode) -> usize {
        self.inodes.push(inode);
        self.inodes.len() - 1
    }

    fn put(&mut self, path: PathBuf, bytes: Bytes) {
        let inode = self.add(Inode::stable(bytes));
        self.names.insert(path.clone(), inode);
        self.stable_names.insert(path, inode);
    }

    /// Writes a file durably, as what is no shard does.
    pub fn write_file(&mut self, path: PathBuf, contents: Vec<u8>) {
        self.put(path, Bytes::new(contents));
    }

    /// The files of a directory, by name.
    pub fn files_in<'a>(&'a self, dir: &'a Path) -> impl Iterator<Item = (&'a Path, Vec<u8>)> {
        let names = self
            .names
            .iter()
            .filter(move |(path, _)| path.starts_with(dir));
        names.map(|(path, &inode)| {
            let bytes = &self.inodes[inode].now;
            (path.as_path(), bytes.read(0, bytes.len))
        })
    }

    /// The broker is killed: what is under way happened, in part or in whole, or did not.
    pub fn kill(&mut self) {
        self.end(false);
    }

    fn end(&mut self, is_power_cut: bool) {
        for (_, under_way) in mem::take(&mut self.under_way) {
            self.interrupt(under_way, is_power_cut);
        }
        self.open.clear();
        self.closed.clear();
        self.log_writes.clear();
    }

    /// The power is cut.
    pub fn cut_power(&mut self) {
        self.end(true);
        let Self { random, .. } = self;
        // Some cuts lose all they may, some nothing.
        let kept = [0, 10, 50, 90, 100][random.below(5) as usize];
        for inode in &mut self.inodes {
            let dirty = mem::take(&mut inode.dirty);
            if inode.now.len != inode.stable.len && random.percent(kept) {
                inode.stable.set_len(inode.now.len);
            }
            let len = inode.stable.len;
            for sector in dirty {
                if sector * SECTOR < len && random.percent(kept) {
                    inode
                        .stable
                        .write(sector * SECTOR, &inode.now.sector(sector));
                }
            }
            inode.stable.set_len(len);
            inode.now = inode.stable.clone();
        }
        let folders: Vec<PathBuf> = self.folders.union(&self.stable_folders).cloned().collect();
        for folder in folders {
            let (now, stable) = (
                self.folders.contains(&folder),
                self.stable_folders.contains(&folder),
            );
            let outlives = if random.percent(kept) { now } else { stable };
            if outlives {
                self.folders.insert(folder.clone());
                self.stable_folders.insert(folder);
            } else {
                self.folders.remove(&folder);
                self.stable_folders.remove(&folder);
                self.names.retain(|path, _| !path.starts_with(&folder));
                self.stable_names
                    .retain(|path, _| !path.starts_with(&folder));
            }
        }
        let paths: BTreeSet<PathBuf> = self
            .names
            .keys()
            .chain(self.stable_names.keys())
            .cloned()
            .collect();
        for path in paths {
            let (now, stable) = (self.names.get(&path), self.stable_names.get(&path));
            if now == stable {
                continue;
            }
            let outlives = match random.percent(kept) {
                true => now.copied(),
                false => stable.copied(),
            };
            match outlives {
                Some(inode) => self.stable_names.insert(path, inode),
                None => self.stable_names.remove(&path),
            };
        }
        self.names = self.stable_names.clone();
    }

    /// An operation did not come to its end.
    fn interrupt(&mut self, under_way: UnderWay, is_power_cut: bool) {
        let UnderWay {
            op, inode, is_log, ..
        } = under_way;
        match (op, inode) {
            (DiskOp::Write { position, data, .. }, Some(inode)) => {
                let kept = [0, 50, 100][self.random.below(3) as usize];
                for (n, sector) in data.chunks(SECTOR).enumerate() {
                    if self.random.percent(kept) {
                        let at = position as usize + n * SECTOR;
                        self.inodes[inode].write(at, sector, is_log && is_power_cut);
                    }
                }
            }
            (DiskOp::Seal { bytes, .. }, Some(inode)) if self.random.percent(50) => {
                self.inodes[inode].now.set_len(bytes as usize);
            }
            (DiskOp::Replace { path, contents }, _) => self.replace_in_part(path, contents),
            (DiskOp::CreateSlot { path, bytes }, _) => {
                let mut zeros = Bytes::default();
                match self.random.below(3) {
                    0 => {}
                    1 => {
                        zeros.set_len(self.random.below(bytes) as usize);
                        self.put(beside(&path), zeros);
                    }
                    _ => {
                        zeros.set_len(bytes as usize);
                        self.put(path, zeros);
                    }
                }
            }
            (
                DiskOp::Remove {
                    paths,
                    and_directory,
                },
                _,
            ) => {
                let concerned = |path: &&PathBuf| {
                    paths.contains(path)
                        || and_directory.as_ref().is_some_and(|d| path.starts_with(d))
                };
                let all: Vec<PathBuf> = self.names.keys().filter(concerned).cloned().collect();
                for path in all {
                    if self.random.percent(50) {
                        self.names.remove(&path);
                    }
                }
            }
            _ => {}
        }
    }

    /// Written beside, synced, renamed, directory synced: up to some step.
    fn replace_in_part(&mut self, path: PathBuf, contents: Vec<u8>) {
        match self.random.below(4) {
            0 => {}
            1 => {
                let part = self.random.below(contents.len() as u64 + 1) as usize;
                let inode = self.add(Inode::unsynced(contents[..part].to_vec()));
                self.names.insert(beside(&path), inode);
            }
            2 => self.put(beside(&path), Bytes::new(contents)),
            _ => {
                let inode = self.add(Inode::stable(Bytes::new(contents)));
                self.names.insert(path, inode);
            }
        }
    }
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    name.into()
}
