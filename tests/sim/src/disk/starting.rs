//! Recovery at work: its files are laid out for it, and each change that it makes is made here as well, or is
//! interrupted.

use std::fs;
use std::io::{self, Write as _};
use std::mem;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use ringtide_log::files::watch::Change;

use super::{Bytes, Disk, Inode, Interruption};

impl Disk {
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

    /// A change that recovery is about to make below `root`, where the files are laid out.
    ///
    /// # Errors
    /// When recovery is interrupted there, or the disk is full.
    pub fn change(&mut self, root: &Path, change: Change<'_>) -> io::Result<()> {
        match &mut self.interruption {
            Some(Interruption::Killed(0)) => {
                if !mem::replace(&mut self.is_interrupted, true) {
                    self.interrupt_change(root, change);
                }
                return Err(io::Error::other("killed"));
            }
            Some(Interruption::Failed(0)) if !mem::replace(&mut self.is_interrupted, true) => {
                self.interrupt_change(root, change);
                return Err(io::Error::from_raw_os_error(5));
            }
            Some(Interruption::Killed(left) | Interruption::Failed(left)) => {
                *left = left.saturating_sub(1);
            }
            None => {}
        }
        let needs = match change {
            Change::Create(path) if !self.names.contains_key(&name(root, path)) => 4096,
            Change::Write {
                path,
                position,
                bytes,
            } => {
                let have = self.names.get(&name(root, path));
                let have = have.map_or(0, |&inode| self.inodes[inode].now.len as u64);
                (position + bytes.len() as u64).saturating_sub(have)
            }
            _ => 0,
        };
        self.grow(needs)
            .map_err(|_| io::Error::from_raw_os_error(28))?;
        self.make_change(root, change);
        Ok(())
    }

    fn make_change(&mut self, root: &Path, change: Change<'_>) {
        let name = |path| name(root, path);
        match change {
            Change::Create(path) => {
                if !self.names.contains_key(&name(path)) {
                    let inode = self.add(Inode::default());
                    self.names.insert(name(path), inode);
                }
            }
            Change::Write {
                path,
                position,
                bytes,
            } => {
                let inode = self.names[&name(path)];
                self.inodes[inode].write(position as usize, bytes, false);
            }
            Change::SetLength { path, bytes } => {
                let inode = self.names[&name(path)];
                self.inodes[inode].now.set_len(bytes as usize);
            }
            Change::Sync(path) => {
                let inode = self.names[&name(path)];
                self.inodes[inode].sync();
            }
            Change::MakeDirectory(path) => {
                self.folders.insert(name(path));
            }
            Change::SyncDirectory(path) => {
                let folder = name(path);
                let is_in = |path: &Path| path.parent() == Some(&folder);
                self.stable_names.retain(|path, _| !is_in(path));
                let names = self.names.iter().filter(|(path, _)| is_in(path));
                self.stable_names
                    .extend(names.map(|(path, &inode)| (path.clone(), inode)));
                self.stable_folders.retain(|path| !is_in(path));
                let folders = self.folders.iter().filter(|path| is_in(path));
                self.stable_folders.extend(folders.cloned());
            }
            Change::Rename { from, to } => {
                if let Some(inode) = self.names.remove(&name(from)) {
                    self.names.insert(name(to), inode);
                }
            }
            Change::Remove(path) => {
                if let Some(inode) = self.names.remove(&name(path)) {
                    self.give_back(inode);
                }
            }
            Change::RemoveDirectory(path) => {
                let folder = name(path);
                self.names.retain(|path, _| !path.starts_with(&folder));
                self.folders.remove(&folder);
            }
        }
    }

    /// A change that did not come to its end.
    fn interrupt_change(&mut self, root: &Path, change: Change<'_>) {
        match change {
            Change::Write {
                path,
                position,
                bytes,
            } => {
                let part = self.random.below(bytes.len() as u64 + 1) as usize;
                let bytes = &bytes[..part];
                let change = Change::Write {
                    path,
                    position,
                    bytes,
                };
                self.make_change(root, change);
            }
            Change::Sync(path) => {
                let inode = self.names[&name(root, path)];
                self.fail_to_sync(inode);
            }
            change if self.random.percent(50) => self.make_change(root, change),
            _ => {}
        }
    }

    /// Whether a directory holds what is here.
    pub fn is_as_in(&self, root: &Path) -> bool {
        let mut found = 0;
        let mut folders = vec![root.to_path_buf()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).expect("readable") {
                let path = entry.expect("readable").path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let inode = self.names.get(&name(root, &path));
                if inode.is_none_or(|&inode| self.inodes[inode].now.differs(&read(&path))) {
                    return false;
                }
                found += 1;
            }
        }
        found == self.names.len()
    }
}

/// The name of a file below a directory.
fn name(root: &Path, path: &Path) -> PathBuf {
    // What is synced above it has no names of ours.
    path.strip_prefix(root).unwrap_or(path).to_path_buf()
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
