//! A disk in this process's memory that the kernel uses like any other, and that notes what it was told.
//!
//! A file system of a single file (FUSE) serves the disk, a loop device makes a block device of it, and its ext4 is
//! mounted. The loop device reads and writes past the page cache, several requests at a time, so that each
//! write of the block layer arrives here by itself, and each flush as an fsync. What a write and a flush mean is in
//! [`crate::block_trace`]; here is only how they come, and that answers are held back and given in random order. A test
//! can have requests fail: the file system on the disk is then told of an error of its device (EIO).

use std::ffi::OsStr;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, WriteFlags,
};
use tempfile::TempDir;

use crate::block_trace::Trace;
use crate::broker::data_root;
use crate::disk::{is_root, run};
use crate::random::Random;
use crate::wait;

/// The name of the one file.
const DISK: &str = "disk";
/// Its number; that of the directory is 1.
const DISK_INODE: INodeNo = INodeNo(2);
/// Nothing of it changes, so the kernel may remember for long.
const FOR_LONG: Duration = Duration::from_secs(3600);
/// The longest time that answers are held back, mostly and now and then.
const HELD_US: u64 = 150;
const SELDOM_HELD_US: u64 = 10_000;

/// What the disk is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskRequest {
    /// To read.
    Read,
    /// To write, or to make zeros of a range.
    Write,
    /// To put on the medium what was written.
    Flush,
}

/// A request as it arrives, before anything is done.
#[derive(Debug)]
pub struct Asked<'a> {
    /// What is to be done,
    pub request: DiskRequest,
    /// with these bytes of the disk; none for a flush.
    pub bytes: Range<u64>,
    /// What is to be written.
    pub data: &'a [u8],
}

impl Asked<'_> {
    /// Whether it touches one of these.
    #[must_use]
    pub fn touches(&self, ranges: &[Range<u64>]) -> bool {
        let touches = |r: &Range<u64>| r.start < self.bytes.end && self.bytes.start < r.end;
        ranges.iter().any(touches)
    }
}

/// Says of each request whether it fails, and may do more to the disk.
type Fails = dyn FnMut(&Asked<'_>, &mut Trace) -> bool + Send;

/// How requests fail.
#[derive(Default)]
struct Faults {
    fails: Option<Box<Fails>>,
    /// How many did.
    failed: usize,
}

/// A disk whose ext4 is mounted. All of it is taken down when this is dropped.
pub struct RecordedDisk {
    trace: Arc<Mutex<Trace>>,
    faults: Arc<Mutex<Faults>>,
    device: Option<String>,
    session: Option<BackgroundSession>,
    answers: Option<JoinHandle<()>>,
    dir: TempDir,
}

impl RecordedDisk {
    /// The bytes of an ext4 that nothing was written to.
    ///
    /// # Errors
    /// Why it cannot be made here.
    pub fn blank_ext4(bytes: u64) -> Result<Vec<u8>, String> {
        Self::blank(bytes, "has_journal")
    }

    /// The same without a journal: it does not stop at an error of its device.
    ///
    /// # Errors
    /// Why it cannot be made here.
    pub fn blank_ext4_without_journal(bytes: u64) -> Result<Vec<u8>, String> {
        Self::blank(bytes, "^has_journal")
    }

    fn blank(bytes: u64, features: &str) -> Result<Vec<u8>, String> {
        let no_image = |error: io::Error| format!("no image: {error}");
        let dir = TempDir::new_in(data_root()).map_err(no_image)?;
        let path = dir.path().join("image");
        let file = std::fs::File::create(&path).map_err(no_image)?;
        file.set_len(bytes).map_err(no_image)?;
        let eager = "lazy_itable_init=0,lazy_journal_init=0";
        let path_arg = path.display().to_string();
        run(
            "mkfs.ext4",
            &[
                "-q", "-F", "-b", "4096", "-m", "0", "-O", features, "-E", eager, &path_arg,
            ],
        )?;
        std::fs::read(&path).map_err(no_image)
    }

    /// Mounts the ext4 that these bytes are, as after a boot: its journal is replayed.
    ///
    /// # Errors
    /// Why it cannot be mounted here.
    pub fn mount(image: Vec<u8>, random: &mut Random) -> Result<Self, String> {
        if !is_root() {
            return Err("mounting a file system needs root".into());
        }
        if !Path::new("/dev/fuse").exists() || !Path::new("/dev/loop-control").exists() {
            return Err("there is no /dev/fuse or no /dev/loop-control".into());
        }
        let dir = TempDir::with_prefix_in("recorded-", data_root())
            .map_err(|error| format!("no folder to mount at: {error}"))?;
        for name in ["fuse", "mnt"] {
            std::fs::create_dir(dir.path().join(name))
                .map_err(|error| format!("no mount point: {error}"))?;
        }
        let bytes = image.len() as u64;
        let trace = Arc::new(Mutex::new(Trace::new(image)));
        let faults = Arc::new(Mutex::new(Faults::default()));
        let (sender, receiver) = channel();
        let mut disk = Self {
            trace: trace.clone(),
            faults: faults.clone(),
            device: None,
            session: None,
            answers: None,
            dir,
        };
        let server = Server {
            trace: trace.clone(),
            faults,
            bytes,
            answers: Mutex::new(sender),
        };
        let session = fuser::spawn_mount(server, disk.dir.path().join("fuse"), &Config::default())
            .map_err(|error| format!("no FUSE file system: {error}"))?;
        disk.session = Some(session);
        let random = Random::new(random.next_u64());
        disk.answers = Some(std::thread::spawn(move || {
            answer(&trace, &receiver, random)
        }));
        let file = disk.dir.path().join("fuse").join(DISK);
        let file_arg = file.display().to_string();
        let device = run(
            "losetup",
            &["--find", "--show", "--direct-io=on", &file_arg],
        )?;
        let device = device.trim().to_owned();
        disk.device = Some(device.clone());
        if !is_direct(&device) {
            return Err("a loop device over FUSE without direct I/O is of no use here".into());
        }
        disk.mount_device("rw")?;
        Ok(disk)
    }

    fn mount_device(&self, options: &str) -> Result<(), String> {
        let mount_point = self.path().display().to_string();
        let device = self.device.as_deref().unwrap_or_default();
        run(
            "mount",
            &["-t", "ext4", "-o", options, device, &mount_point],
        )?;
        Ok(())
    }

    /// Unmounts it and mounts it again with these options (`rw` or `ro`, say): nothing of it is in the page cache
    /// then.
    ///
    /// # Panics
    /// When it cannot be unmounted for long, or not be mounted.
    pub fn remount(&self, options: &str) {
        let mount_point = self.path().display().to_string();
        // The ring of a process that has ended holds its files a little longer.
        wait::for_it("the end of all use of the file system", || {
            run("umount", &[&mount_point]).is_ok()
        });
        self.mount_device(options).expect("mounted again");
    }

    /// From now on requests of which this is true fail with EIO, and nothing of them is done.
    ///
    /// # Panics
    /// When the recorder panicked.
    pub fn fail_when(&self, fails: impl FnMut(&Asked<'_>, &mut Trace) -> bool + Send + 'static) {
        self.faults().fails = Some(Box::new(fails));
    }

    /// From now on no request fails any more.
    ///
    /// # Panics
    /// When the recorder panicked.
    pub fn heal(&self) {
        self.faults().fails = None;
    }

    /// How many requests have failed.
    ///
    /// # Panics
    /// When the recorder panicked.
    #[must_use]
    pub fn failed_requests(&self) -> usize {
        self.faults().failed
    }

    fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().expect("a recorder that did not panic")
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// What happened to it so far.
    ///
    /// # Panics
    /// When the recorder panicked.
    pub fn trace(&self) -> MutexGuard<'_, Trace> {
        self.trace.lock().expect("a recorder that did not panic")
    }
}

impl Drop for RecordedDisk {
    fn drop(&mut self) {
        let mount_point = self.path().display().to_string();
        // Lazy if need be: what a failing test left open must not keep the device for ever.
        if run("umount", &[&mount_point]).is_err() {
            let _ = run("umount", &["-l", &mount_point]);
        }
        if let Some(device) = &self.device {
            let _ = run("losetup", &["-d", device]);
        }
        if let Some(session) = self.session.take() {
            // The loop device lets go of the file a moment after it was detached.
            let fuse = self.dir.path().join("fuse").display().to_string();
            let _ = run("umount", &["-l", &fuse]);
            // What a failing test left open keeps both threads; they end with the process.
            if !std::thread::panicking() {
                let _ = session.join();
                if let Some(answers) = self.answers.take() {
                    let _ = answers.join();
                }
            }
        }
    }
}

/// Whether the loop device passes the page cache of the file under it.
fn is_direct(device: &str) -> bool {
    let name = device.trim_start_matches("/dev/");
    let dio = std::fs::read_to_string(format!("/sys/block/{name}/loop/dio"));
    dio.is_ok_and(|text| text.trim() == "1")
}

/// What is still to be answered.
enum Answer {
    Written(usize, u32, ReplyWrite),
    Zeroed(usize, ReplyEmpty),
    Flushed(usize, ReplyEmpty),
}

/// Answers what was done, a little late, now and then quite late, and in no particular order.
fn answer(trace: &Mutex<Trace>, due: &Receiver<Answer>, mut random: Random) {
    let mut answers = Vec::new();
    loop {
        if answers.is_empty() {
            let Ok(next) = due.recv() else { return };
            answers.push(next);
        }
        let most = if random.percent(2) {
            SELDOM_HELD_US
        } else {
            HELD_US
        };
        std::thread::sleep(Duration::from_micros(random.below(most)));
        answers.extend(due.try_iter());
        for _ in 0..=random.below(answers.len() as u64) {
            let next = answers.swap_remove(random.below(answers.len() as u64) as usize);
            let mut trace = trace.lock().expect("a recorder that did not panic");
            match &next {
                Answer::Written(write, ..) | Answer::Zeroed(write, _) => trace.written(*write),
                Answer::Flushed(flush, _) => trace.flushed(*flush),
            }
            drop(trace);
            match next {
                Answer::Written(_, bytes, reply) => reply.written(bytes),
                Answer::Zeroed(_, reply) | Answer::Flushed(_, reply) => reply.ok(),
            }
        }
    }
}

/// The file system of one file.
struct Server {
    trace: Arc<Mutex<Trace>>,
    faults: Arc<Mutex<Faults>>,
    bytes: u64,
    answers: Mutex<Sender<Answer>>,
}

impl Server {
    fn trace(&self) -> MutexGuard<'_, Trace> {
        self.trace.lock().expect("a recorder that did not panic")
    }

    /// Whether a request fails.
    fn fails(&self, request: DiskRequest, offset: u64, data: &[u8], bytes: u64) -> bool {
        let mut faults = self.faults.lock().expect("a recorder that did not panic");
        let Some(fails) = &mut faults.fails else {
            return false;
        };
        let bytes = offset..offset + bytes;
        let asked = Asked {
            request,
            bytes,
            data,
        };
        let does = fails(&asked, &mut self.trace());
        faults.failed += usize::from(does);
        does
    }

    fn answer(&self, answer: Answer) {
        let answers = self.answers.lock().expect("nobody panics holding it");
        answers.send(answer).expect("somebody answers");
    }

    fn attr(&self, ino: INodeNo) -> Option<FileAttr> {
        let (kind, size) = match ino {
            INodeNo::ROOT => (FileType::Directory, 0),
            DISK_INODE => (FileType::RegularFile, self.bytes),
            _ => return None,
        };
        Some(FileAttr {
            ino,
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm: 0o700,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

impl Filesystem for Server {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Without it one write would be under way at a time.
        config
            .add_capabilities(InitFlags::FUSE_ASYNC_DIO)
            .map_err(|_| io::Error::other("the kernel knows no asynchronous direct I/O on FUSE"))
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.attr(DISK_INODE) {
            Some(attr) if parent == INodeNo::ROOT && name == DISK => {
                reply.entry(&FOR_LONG, &attr, Generation(0));
            }
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr(ino) {
            Some(attr) => reply.attr(&FOR_LONG, &attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let start = offset.min(self.bytes) as usize;
        let end = (offset + u64::from(size)).min(self.bytes) as usize;
        if self.fails(DiskRequest::Read, offset, &[], u64::from(size)) {
            return reply.error(Errno::EIO);
        }
        reply.data(&self.trace().bytes()[start..end]);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if self.fails(DiskRequest::Write, offset, data, data.len() as u64) {
            return reply.error(Errno::EIO);
        }
        let number = self.trace().write(offset as usize, data);
        self.answer(Answer::Written(number, data.len() as u32, reply));
    }

    /// A discard, or a range of zeros.
    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        // Without a mode it would be to keep what is there.
        if mode == 0 {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let zeros = vec![0; length as usize];
        if self.fails(DiskRequest::Write, offset, &zeros, length) {
            return reply.error(Errno::EIO);
        }
        let number = self.trace().write(offset as usize, &zeros);
        self.answer(Answer::Zeroed(number, reply));
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        if self.fails(DiskRequest::Flush, 0, &[], 0) {
            return reply.error(Errno::EIO);
        }
        let number = self.trace().flush();
        self.answer(Answer::Flushed(number, reply));
    }

    /// A descriptor was closed, which flushes nothing.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }
}
