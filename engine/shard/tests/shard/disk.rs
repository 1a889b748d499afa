//! Files in memory. An operation ends in the next step of the world, well or as a test wants it to
//! fail, unless it is held back.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use ringtide_io::{
    Disconnect, DiskDone, DiskError, DiskErrorKind, DiskOp, FileId, IndexBytes, OpId, OpenMode,
};
use ringtide_schema::batch::{self, Header};
use ringtide_schema::index::IndexBuilder;

type Contents = Rc<RefCell<Vec<u8>>>;
type Holds = dyn Fn(&Path, &DiskOp) -> bool;
type Fails = dyn Fn(&Path, &DiskOp) -> Option<DiskErrorKind>;
type RangeFails = dyn Fn(&Path, Range<u64>) -> bool;
type Ended = (OpId, Result<DiskDone, DiskError>);

#[derive(Clone)]
struct File {
    path: PathBuf,
    contents: Contents,
}

struct Waiting {
    id: OpId,
    op: DiskOp,
    /// Of an operation on an open file: it goes on when the file is closed.
    file: Option<File>,
}

/// The files of one shard.
pub struct Disk {
    paths: BTreeMap<PathBuf, Contents>,
    open: BTreeMap<FileId, File>,
    waiting: Vec<Waiting>,
    released: usize,
    /// Files that may be open.
    pub most_open: usize,
    /// Whether an operation is held back.
    pub holds: Box<Holds>,
    /// How an operation fails, if it does.
    pub fails: Box<Fails>,
    /// Whether a range of a file cannot be read while it is sent.
    pub range_fails: Box<RangeFails>,
    /// What its reader learns of that.
    pub range_failure: Disconnect,
}

impl Disk {
    pub fn new() -> Self {
        Self {
            paths: BTreeMap::new(),
            open: BTreeMap::new(),
            waiting: Vec::new(),
            released: 0,
            most_open: usize::MAX,
            holds: Box::new(|_, _| false),
            fails: Box::new(|_, _| None),
            range_fails: Box::new(|_, _| false),
            range_failure: Disconnect::File(5),
        }
    }

    /// Writes a file that is there from the start.
    pub fn put(&mut self, path: PathBuf, contents: Vec<u8>) {
        self.paths.insert(path, Rc::new(RefCell::new(contents)));
    }

    /// Whether there is a file of this name.
    pub fn has(&self, path: &Path) -> bool {
        self.paths.contains_key(path)
    }

    /// Files that are open.
    pub fn open_files(&self) -> usize {
        self.open.len()
    }

    /// The size of the file of this name, 0 for none.
    pub fn bytes(&self, path: &Path) -> usize {
        self.paths.get(path).map_or(0, |c| c.borrow().len())
    }

    /// Operations that are held back.
    pub fn held(&self) -> usize {
        self.waiting.len()
    }

    /// Lets the first of the held operations go.
    pub fn release_one(&mut self) {
        self.released += 1;
    }

    /// A range of an open file, as a socket sends it; nothing if it cannot be read.
    pub fn range(&self, file: FileId, position: u64, bytes: usize) -> Option<Vec<u8>> {
        let file = &self.open[&file];
        if (self.range_fails)(&file.path, position..position + bytes as u64) {
            return None;
        }
        let contents = file.contents.borrow();
        Some(contents[position as usize..position as usize + bytes].to_vec())
    }

    pub fn submit(&mut self, id: OpId, op: DiskOp) {
        let file = match &op {
            DiskOp::Close { file } => {
                self.open.remove(file);
                return;
            }
            DiskOp::Write { file, .. }
            | DiskOp::Sync { file }
            | DiskOp::Read { file, .. }
            | DiskOp::Seal { file, .. } => Some(self.open[file].clone()),
            _ => None,
        };
        self.waiting.push(Waiting { id, op, file });
    }

    /// Carries out what is not held back.
    pub fn complete(&mut self) -> Vec<Ended> {
        let mut ended = Vec::new();
        for waiting in std::mem::take(&mut self.waiting) {
            let path = waiting.path();
            let mut is_held = (self.holds)(&path, &waiting.op);
            if is_held && self.released > 0 {
                self.released -= 1;
                is_held = false;
            }
            if is_held {
                self.waiting.push(waiting);
                continue;
            }
            let result = match (self.fails)(&path, &waiting.op) {
                Some(kind) => Err(failure(kind, &path)),
                None => self.carry_out(waiting.op, waiting.file),
            };
            ended.push((waiting.id, result));
        }
        ended
    }

    fn carry_out(&mut self, op: DiskOp, open: Option<File>) -> Result<DiskDone, DiskError> {
        let contents = open.map(|file| file.contents).unwrap_or_default();
        match op {
            DiskOp::Open { path, .. } if self.open.len() >= self.most_open => {
                return Err(failure(DiskErrorKind::TooManyFiles, &path));
            }
            DiskOp::Open { file, path, mode } => {
                if let OpenMode::Append { .. } = mode {
                    self.paths.entry(path.clone()).or_default();
                }
                let contents = self.find(&path)?;
                if let OpenMode::Append { keep_bytes } = mode {
                    contents.borrow_mut().truncate(keep_bytes as usize);
                }
                let bytes = contents.borrow().len() as u64;
                self.open.insert(file, File { path, contents });
                return Ok(DiskDone::Opened { bytes });
            }
            DiskOp::Write { position, data, .. } => {
                let mut contents = contents.borrow_mut();
                let (start, end) = (position as usize, position as usize + data.len());
                if contents.len() < end {
                    contents.resize(end, 0);
                }
                contents[start..end].copy_from_slice(&data);
            }
            DiskOp::Read {
                position,
                bytes,
                mut into,
                ..
            } => {
                let contents = contents.borrow();
                let start = (position as usize).min(contents.len());
                let end = (start + bytes).min(contents.len());
                into.append(&contents[start..end]);
                return Ok(DiskDone::Read {
                    chunk: into,
                    bytes: end - start,
                });
            }
            DiskOp::Seal {
                bytes,
                index_path,
                index,
                ..
            } => {
                contents.borrow_mut().truncate(bytes as usize);
                if !index.is_empty() {
                    self.put(index_path, index);
                }
            }
            DiskOp::LoadIndex {
                log_path, bytes, ..
            } => {
                let contents = self.find(&log_path)?;
                let index = index_of(&contents.borrow()[..bytes as usize]);
                return Ok(DiskDone::Index(index));
            }
            DiskOp::Replace { path, contents } => self.put(path, contents),
            DiskOp::Remove {
                paths,
                and_directory,
            } => {
                let is_gone = |path: &Path| {
                    paths.iter().any(|gone| gone == path)
                        || and_directory.as_ref().is_some_and(|d| path.starts_with(d))
                };
                self.paths.retain(|path, _| !is_gone(path));
            }
            DiskOp::CreateSlot { path, .. } => self.put(path, Vec::new()),
            DiskOp::Sync { .. } | DiskOp::Close { .. } => {}
        }
        Ok(DiskDone::Done)
    }

    fn find(&self, path: &Path) -> Result<Contents, DiskError> {
        let contents = self.paths.get(path).cloned();
        contents.ok_or_else(|| failure(DiskErrorKind::NotFound, path))
    }
}

impl Waiting {
    fn path(&self) -> PathBuf {
        match (&self.file, &self.op) {
            (Some(file), _) => file.path.clone(),
            (
                None,
                DiskOp::Open { path, .. }
                | DiskOp::Replace { path, .. }
                | DiskOp::CreateSlot { path, .. },
            ) => path.clone(),
            (None, DiskOp::LoadIndex { index_path, .. }) => index_path.clone(),
            (
                None,
                DiskOp::Remove {
                    paths,
                    and_directory,
                },
            ) => and_directory
                .clone()
                .or_else(|| paths.first().cloned())
                .unwrap_or_default(),
            (None, _) => PathBuf::new(),
        }
    }
}

fn failure(kind: DiskErrorKind, path: &Path) -> DiskError {
    let message = format!("{}: {kind:?}, as the test asked for", path.display());
    DiskError { kind, message }
}

fn index_of(segment: &[u8]) -> IndexBytes {
    let base = Header::peek(segment).map_or(0, |first| first.base_offset);
    let mut index = IndexBuilder::new(base);
    let mut position = 0;
    // The last may not be there as a whole.
    while let Some(Ok(header)) = segment.get(position..).map(Header::peek) {
        let is_right = batch::check_stored(&segment[position..]).is_ok();
        index.add(position as u32, &header, is_right);
        position += header.batch_bytes;
    }
    IndexBytes::Built {
        entries: index.finish(),
        covered_bytes: segment.len() as u64,
    }
}
