//! The files of the simulated host, and what becomes of them when its power is cut or its broker killed.
//!
//! # Fault model
//!
//! - Operations complete late and in any order; the order of submission means nothing.
//! - A write to a slot of the log is durable once it completed, and not before. A power cut keeps or loses each
//!   sector of 512 bytes of a write that is under way.
//! - A write to a segment is durable once a sync completed that was submitted after the write completed. A power cut keeps
//!   or loses each sector that is not, and the length of the file with it.
//! - A name that was made, replaced or removed is durable once its operation completed (the contract of
//!   [`DiskOp`]); while it is under way each step may have happened or not. Of the name of an index nothing is promised.
//! - A kill of the broker leaves the page cache: what completed stays, of what is under way anything may have happened.
//!
//! Not modelled yet: errors of the device, a full disk, bits that rot, faults during recovery, which sees the files as they
//! are after the fault and leaves them durable.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use ringtide_io::{DiskDone, DiskError, DiskErrorKind, DiskOp, FileId, IndexBytes, OpId, OpenMode};
use ringtide_schema::batch::Header;
use ringtide_schema::index::{INTERVAL_BYTES, IndexEntry};

use crate::planted::Planted;
use crate::random::Random;

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

/// The files of the host.
#[derive(Default)]
pub struct Disk {
    inodes: Vec<Inode>,
    /// Those of the start: a shard makes only what is in its own name.
    folders: Vec<PathBuf>,
    names: BTreeMap<PathBuf, usize>,
    stable_names: BTreeMap<PathBuf, usize>,
    open: BTreeMap<(u16, FileId), (usize, bool)>,
    under_way: BTreeMap<Ticket, UnderWay>,
    next: u64,
    /// Which fault of the disk's driver is planted.
    pub planted: Planted,
}

impl Disk {
    /// No files.
    pub fn new(planted: Planted) -> Self {
        Self {
            planted,
            ..Self::default()
        }
    }

    /// Takes an operation; it ends when the world says so. Closing has no end.
    pub fn submit(&mut self, shard: u16, id: OpId, op: DiskOp) -> Option<Ticket> {
        let file = match &op {
            DiskOp::Close { file } => {
                self.open.remove(&(shard, *file));
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

    /// Carries an operation out. Nothing, if a fault has done away with it.
    pub fn complete(&mut self, ticket: Ticket) -> Option<Ended> {
        let UnderWay {
            shard,
            id,
            op,
            inode,
            is_log,
            covered,
            covered_len,
        } = self.under_way.remove(&ticket)?;
        let inode = inode.unwrap_or(usize::MAX);
        let result = match op {
            DiskOp::Open { file, path, mode } => self.opened(shard, file, path, mode),
            DiskOp::Write { position, data, .. } => {
                let is_durable = is_log && self.planted != Planted::LogWithoutSync;
                self.inodes[inode].write(position as usize, &data, is_durable);
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
                let inode = &mut self.inodes[inode];
                inode.now.set_len(bytes as usize);
                *inode = Inode::stable(inode.now.clone());
                let index = self.add(Inode::unsynced(index));
                self.names.insert(index_path, index);
                Ok(DiskDone::Done)
            }
            DiskOp::LoadIndex {
                log_path, bytes, ..
            } => self.find(&log_path).map(|inode| {
                let segment = self.inodes[inode].now.read(0, bytes as usize);
                DiskDone::Index(index_of(&segment))
            }),
            DiskOp::Replace { path, contents } => {
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
                self.names.retain(|path, _| !is_gone(path));
                self.stable_names.retain(|path, _| !is_gone(path));
                Ok(DiskDone::Done)
            }
            DiskOp::CreateSlot { path, bytes } => {
                let mut zeros = Bytes::default();
                zeros.set_len(bytes as usize);
                self.put(path, zeros);
                Ok(DiskDone::Done)
            }
            DiskOp::Close { .. } => Ok(DiskDone::Done),
        };
        Some(Ended { shard, id, result })
    }

    fn opened(
        &mut self,
        shard: u16,
        file: FileId,
        path: PathBuf,
        mode: OpenMode,
    ) -> Result<DiskDone, DiskError> {
        if let OpenMode::Append { .. } = mode {
            if !self.names.contains_key(&path) {
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
        let (inode, _) = self.open[&(shard, file)];
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
    pub fn kill(&mut self, random: &mut Random) {
        self.interrupt(random, false);
        self.open.clear();
    }

    /// The power is cut.
    pub fn cut_power(&mut self, random: &mut Random) {
        self.interrupt(random, true);
        self.open.clear();
        // Some cuts lose all they may, some nothing.
        let kept = [0, 10, 50, 90, 100][random.below(5) as usize];
        for inode in &mut self.inodes {
            let dirty = std::mem::take(&mut inode.dirty);
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

    fn interrupt(&mut self, random: &mut Random, is_power_cut: bool) {
        for (_, under_way) in std::mem::take(&mut self.under_way) {
            let UnderWay {
                op, inode, is_log, ..
            } = under_way;
            match (op, inode) {
                (DiskOp::Write { position, data, .. }, Some(inode)) => {
                    let kept = [0, 50, 100][random.below(3) as usize];
                    for (n, sector) in data.chunks(SECTOR).enumerate() {
                        if random.percent(kept) {
                            let at = position as usize + n * SECTOR;
                            self.inodes[inode].write(at, sector, is_log && is_power_cut);
                        }
                    }
                }
                (DiskOp::Seal { bytes, .. }, Some(inode)) if random.percent(50) => {
                    self.inodes[inode].now.set_len(bytes as usize);
                }
                (DiskOp::Replace { path, contents }, _) => {
                    self.replace_in_part(path, contents, random)
                }
                (DiskOp::CreateSlot { path, bytes }, _) => {
                    let mut zeros = Bytes::default();
                    match random.below(3) {
                        0 => {}
                        1 => {
                            zeros.set_len(random.below(bytes) as usize);
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
                    let concerned = |path: &PathBuf| {
                        paths.contains(path)
                            || and_directory.as_ref().is_some_and(|d| path.starts_with(d))
                    };
                    let all: Vec<PathBuf> = self
                        .names
                        .keys()
                        .filter(|p| concerned(p))
                        .cloned()
                        .collect();
                    for path in all {
                        if random.percent(50) {
                            self.names.remove(&path);
                        }
                    }
                }
                _ => {}
            }
        }
    }

    /// Written beside, synced, renamed, directory synced: up to some step.
    fn replace_in_part(&mut self, path: PathBuf, contents: Vec<u8>, random: &mut Random) {
        match random.below(4) {
            0 => {}
            1 => {
                let part = random.below(contents.len() as u64 + 1) as usize;
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

    /// Writes every file below a directory, for recovery to work on.
    pub fn store(&self, root: &Path) {
        for folder in &self.folders {
            fs::create_dir_all(root.join(folder)).expect("a directory");
        }
        for (path, &inode) in &self.names {
            let path = root.join(path);
            fs::create_dir_all(path.parent().expect("a file")).expect("a directory");
            let bytes = &self.inodes[inode].now;
            let mut file = fs::File::create(path).expect("a file");
            file.write_all(&bytes.written).expect("space");
            file.set_len(bytes.len as u64).expect("space");
        }
    }

    /// Takes every file below a directory, durable as it is there.
    pub fn load(root: &Path, planted: Planted) -> Self {
        let mut disk = Self::new(planted);
        let mut folders = vec![root.to_path_buf()];
        while let Some(folder) = folders.pop() {
            let entries = fs::read_dir(folder).expect("readable");
            let mut paths: Vec<PathBuf> = entries.map(|e| e.expect("readable").path()).collect();
            // A seed decides the order of everything.
            paths.sort();
            for path in paths {
                let name = path.strip_prefix(root).expect("below").to_path_buf();
                if path.is_dir() {
                    disk.folders.push(name);
                    folders.push(path);
                    continue;
                }
                disk.put(name, read(&path));
            }
        }
        disk
    }
}

/// A file that may have holes.
fn read(path: &Path) -> Bytes {
    const PIECE: usize = 256 << 10;
    let file = fs::File::open(path).expect("readable");
    let len = file.metadata().expect("known").len() as usize;
    let mut bytes = Bytes::default();
    let mut piece = vec![0; PIECE];
    for position in (0..len).step_by(PIECE) {
        let piece = &mut piece[..PIECE.min(len - position)];
        file.read_exact_at(piece, position as u64)
            .expect("readable");
        if let Some(last) = piece.iter().rposition(|&b| b != 0) {
            bytes.write(position, &piece[..=last]);
        }
    }
    bytes.set_len(len);
    bytes
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    name.into()
}

/// The index of a segment, as the driver builds one that is missing: of every batch that begins in it.
fn index_of(segment: &[u8]) -> IndexBytes {
    let mut entries: Vec<IndexEntry> = Vec::new();
    let (mut base, mut position, mut max_before_ms) = (None, 0, i64::MIN);
    while let Some(Ok(header)) = segment.get(position..).map(Header::peek) {
        let base = *base.get_or_insert(header.base_offset);
        let at = position as u32;
        let is_near = |last: &IndexEntry| at < last.position + INTERVAL_BYTES;
        if !entries.last().is_some_and(is_near) {
            entries.push(IndexEntry {
                relative_offset: (header.base_offset - base) as u32,
                position: at,
                timestamp_ms: header.base_timestamp_ms,
                max_timestamp_before_ms: max_before_ms,
            });
        }
        max_before_ms = max_before_ms.max(header.max_timestamp_ms);
        position += header.batch_bytes;
    }
    IndexBytes::Built {
        entries,
        covered_bytes: position as u64,
    }
}
