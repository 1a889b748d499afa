//! A file system in this process's memory with a quota, which says that a quota is used up (EDQUOT) while its disk has
//! space (statfs). The kernel uses it like any other, by FUSE.
//!
//! What counts is the blocks of files, as an ordinary quota has it: they are taken when a file grows, never when what it
//! has is written over, and are free when it has no name any more.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyStatfs, ReplyWrite, Request, TimeOrNow,
    WriteFlags,
};
use tempfile::TempDir;

use crate::broker::data_root;
use crate::disk::{is_root, run};

const BLOCK_BYTES: u64 = 4096;
/// Numbers below are taken: by the directory at the top, and by `.` and `..` as places in a directory.
const FIRST_INODE: u64 = 3;
/// Nothing is remembered, so that nothing is wrong.
const TTL: Duration = Duration::ZERO;
/// Blocks that the disk has and has free, whatever the quota is.
const DISK_BLOCKS: u64 = 1 << 24;

/// A mounted file system with a quota, taken down when this is dropped.
pub struct QuotaDisk {
    files: Arc<Mutex<Files>>,
    session: Option<BackgroundSession>,
    dir: TempDir,
}

impl QuotaDisk {
    /// An empty one.
    ///
    /// # Errors
    /// Why it cannot be had here.
    pub fn mount(quota_bytes: u64) -> Result<Self, String> {
        if !is_root() {
            return Err("mounting a file system needs root".into());
        }
        let dir = TempDir::with_prefix_in("quota-", data_root())
            .map_err(|error| format!("no folder to mount at: {error}"))?;
        let files = Arc::new(Mutex::new(Files::new(quota_bytes)));
        let server = Server(files.clone());
        let session = fuser::spawn_mount(server, dir.path(), &Config::default())
            .map_err(|error| format!("no FUSE file system: {error}"))?;
        Ok(Self {
            files,
            session: Some(session),
            dir,
        })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    /// Bytes of the blocks of all files.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.files().used_blocks * BLOCK_BYTES
    }

    /// Changes the quota.
    pub fn set_quota(&self, bytes: u64) {
        self.files().quota_blocks = bytes / BLOCK_BYTES;
    }

    /// How often something was refused because the quota was used up.
    #[must_use]
    pub fn refusals(&self) -> usize {
        self.files().refusals
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        lock(&self.files)
    }
}

impl Drop for QuotaDisk {
    fn drop(&mut self) {
        // Lazy: what a failing test left open must not keep it for ever.
        let mount_point = self.dir.path().display().to_string();
        let _ = run("umount", &["-l", &mount_point]);
        if let Some(session) = self.session.take()
            && !std::thread::panicking()
        {
            let _ = session.join();
        }
    }
}

fn lock(files: &Mutex<Files>) -> MutexGuard<'_, Files> {
    files.lock().expect("nobody panics holding it")
}

enum Node {
    Directory(BTreeMap<OsString, u64>),
    File {
        data: Vec<u8>,
        /// Its blocks count.
        has_name: bool,
    },
}

struct Files {
    nodes: HashMap<u64, Node>,
    next_inode: u64,
    used_blocks: u64,
    quota_blocks: u64,
    refusals: usize,
}

fn blocks(data: &[u8]) -> u64 {
    (data.len() as u64).div_ceil(BLOCK_BYTES)
}

impl Files {
    fn new(quota_bytes: u64) -> Self {
        let root = Node::Directory(BTreeMap::new());
        Self {
            nodes: HashMap::from([(INodeNo::ROOT.0, root)]),
            next_inode: FIRST_INODE,
            used_blocks: 0,
            quota_blocks: quota_bytes / BLOCK_BYTES,
            refusals: 0,
        }
    }

    fn attr(&self, inode: u64) -> Result<FileAttr, Errno> {
        let (kind, size, perm) = match self.nodes.get(&inode).ok_or(Errno::ENOENT)? {
            Node::Directory(_) => (FileType::Directory, 0, 0o755),
            Node::File { data, .. } => (FileType::RegularFile, data.len() as u64, 0o644),
        };
        Ok(FileAttr {
            ino: INodeNo(inode),
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: BLOCK_BYTES as u32,
            flags: 0,
        })
    }

    fn entries(&mut self, directory: u64) -> Result<&mut BTreeMap<OsString, u64>, Errno> {
        match self.nodes.get_mut(&directory) {
            Some(Node::Directory(entries)) => Ok(entries),
            Some(Node::File { .. }) => Err(Errno::ENOTDIR),
            None => Err(Errno::ENOENT),
        }
    }

    fn find(&mut self, directory: u64, name: &OsStr) -> Result<u64, Errno> {
        let found = self.entries(directory)?.get(name);
        found.copied().ok_or(Errno::ENOENT)
    }

    fn add(&mut self, directory: u64, name: &OsStr, node: Node) -> Result<FileAttr, Errno> {
        let inode = self.next_inode;
        self.entries(directory)?.insert(name.into(), inode);
        self.next_inode += 1;
        self.nodes.insert(inode, node);
        self.attr(inode)
    }

    fn data(&mut self, inode: u64) -> Result<&mut Vec<u8>, Errno> {
        match self.nodes.get_mut(&inode) {
            Some(Node::File { data, .. }) => Ok(data),
            Some(Node::Directory(_)) => Err(Errno::EISDIR),
            None => Err(Errno::ENOENT),
        }
    }

    /// Makes a file as long as this, if the quota has room for it.
    fn resize(&mut self, inode: u64, bytes: usize) -> Result<(), Errno> {
        let counts = matches!(
            self.nodes.get(&inode),
            Some(Node::File { has_name: true, .. })
        );
        let before = blocks(self.data(inode)?);
        let after = (bytes as u64).div_ceil(BLOCK_BYTES);
        if counts {
            let used = self.used_blocks - before + after;
            if after > before && used > self.quota_blocks {
                self.refusals += 1;
                return Err(Errno::EDQUOT);
            }
            self.used_blocks = used;
        }
        self.data(inode)?.resize(bytes, 0);
        Ok(())
    }

    fn write(&mut self, inode: u64, position: usize, bytes: &[u8]) -> Result<(), Errno> {
        let end = position + bytes.len();
        if end > self.data(inode)?.len() {
            self.resize(inode, end)?;
        }
        self.data(inode)?[position..end].copy_from_slice(bytes);
        Ok(())
    }

    /// A file has no name any more. Who has it open still reads it.
    fn let_go(&mut self, inode: u64) {
        if let Some(Node::File { data, has_name }) = self.nodes.get_mut(&inode)
            && std::mem::take(has_name)
        {
            self.used_blocks -= blocks(data);
        }
    }

    fn unlink(&mut self, directory: u64, name: &OsStr) -> Result<(), Errno> {
        let inode = self.find(directory, name)?;
        self.data(inode)?;
        self.entries(directory)?.remove(name);
        self.let_go(inode);
        Ok(())
    }

    fn remove_directory(&mut self, parent: u64, name: &OsStr) -> Result<(), Errno> {
        let inode = self.find(parent, name)?;
        if !self.entries(inode)?.is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        self.entries(parent)?.remove(name);
        self.nodes.remove(&inode);
        Ok(())
    }

    fn rename(&mut self, from: (u64, &OsStr), to: (u64, &OsStr)) -> Result<(), Errno> {
        let inode = self.find(from.0, from.1)?;
        let replaced = self.entries(to.0)?.insert(to.1.into(), inode);
        self.entries(from.0)?.remove(from.1);
        if let Some(replaced) = replaced {
            self.let_go(replaced);
        }
        Ok(())
    }

    /// What a directory holds behind a place in it: place, inode, kind and name.
    fn listed(&self, inode: u64, behind: u64) -> Vec<(u64, u64, FileType, OsString)> {
        let Some(Node::Directory(entries)) = self.nodes.get(&inode) else {
            return Vec::new();
        };
        let dots = [".", ".."].into_iter().zip(1..);
        let mut listed: Vec<_> = dots
            .map(|(name, place)| (place, inode, FileType::Directory, name.into()))
            .collect();
        for (name, &inode) in entries {
            let kind = match self.nodes.get(&inode) {
                Some(Node::Directory(_)) => FileType::Directory,
                _ => FileType::RegularFile,
            };
            // A place that stays when others are removed meanwhile.
            listed.push((inode, inode, kind, name.clone()));
        }
        listed.retain(|&(place, ..)| place > behind);
        listed.sort_by_key(|&(place, ..)| place);
        listed
    }
}

struct Server(Arc<Mutex<Files>>);

impl Server {
    fn files(&self) -> MutexGuard<'_, Files> {
        lock(&self.0)
    }
}

fn entry(result: Result<FileAttr, Errno>, reply: ReplyEntry) {
    match result {
        Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
        Err(error) => reply.error(error),
    }
}

fn done(result: Result<(), Errno>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

impl Filesystem for Server {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let mut files = self.files();
        let found = files.find(parent.0, name);
        entry(found.and_then(|inode| files.attr(inode)), reply);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.files().attr(ino.0) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(error) => reply.error(error),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut files = self.files();
        let resized = match size {
            Some(size) => files.resize(ino.0, size as usize),
            None => Ok(()),
        };
        match resized.and_then(|()| files.attr(ino.0)) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(error) => reply.error(error),
        }
    }

    fn mkdir(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let node = Node::Directory(BTreeMap::new());
        entry(self.files().add(parent.0, name, node), reply);
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let node = Node::File {
            data: Vec::new(),
            has_name: true,
        };
        match self.files().add(parent.0, name, node) {
            Ok(attr) => reply.created(
                &TTL,
                &attr,
                Generation(0),
                FileHandle(0),
                FopenFlags::empty(),
            ),
            Err(error) => reply.error(error),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(self.files().unlink(parent.0, name), reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(self.files().remove_directory(parent.0, name), reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let renamed = self
            .files()
            .rename((parent.0, name), (newparent.0, newname));
        done(renamed, reply);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.files().data(ino.0) {
            Ok(data) => {
                let start = (offset as usize).min(data.len());
                let end = (start + size as usize).min(data.len());
                reply.data(&data[start..end]);
            }
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.files().write(ino.0, offset as usize, data) {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(error),
        }
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        for (place, inode, kind, name) in self.files().listed(ino.0, offset) {
            if reply.add(INodeNo(inode), place, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let block = BLOCK_BYTES as u32;
        let files = 1 << 20;
        reply.statfs(
            DISK_BLOCKS,
            DISK_BLOCKS,
            DISK_BLOCKS,
            files,
            files,
            block,
            255,
            block,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: usize = BLOCK_BYTES as usize;

    #[test]
    fn a_quota_is_used_by_growing_files_and_freed_by_those_without_a_name() {
        let mut files = Files::new(2 * BLOCK_BYTES);
        let root = INodeNo::ROOT.0;
        let file = |files: &mut Files, name: &str| {
            let node = Node::File {
                data: Vec::new(),
                has_name: true,
            };
            let added = files.add(root, OsStr::new(name), node);
            added.expect("a directory").ino.0
        };
        let (a, b) = (file(&mut files, "a"), file(&mut files, "b"));
        assert!(files.write(a, 0, &[1; BLOCK + 1]).is_ok());
        let refused = files.write(b, 0, &[2]).expect_err("used up");
        assert_eq!(i32::from(refused), i32::from(Errno::EDQUOT));
        assert!(files.write(a, 0, &[3; 2 * BLOCK]).is_ok(), "written over");
        assert!(files.resize(a, 1).is_ok());
        assert!(files.write(b, 0, &[2]).is_ok());
        assert!(
            files
                .rename((root, OsStr::new("a")), (root, OsStr::new("b")))
                .is_ok()
        );
        assert_eq!((files.used_blocks, files.refusals), (1, 1));
        assert!(files.unlink(root, OsStr::new("b")).is_ok());
        assert_eq!(files.used_blocks, 0);
        assert_eq!(
            files.data(a).map(|data| data.len()).ok(),
            Some(1),
            "open still"
        );
    }
}
