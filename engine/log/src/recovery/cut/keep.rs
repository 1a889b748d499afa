//! Copies of what a cut takes, or of what the start behind it may change: made before anything is changed, and written back
//! where a cut is in vain.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use ringtide_schema::ids::PartitionId;
use ringtide_schema::store::{GroupSnapshotT, PartitionT};

use super::{PastCut, Plan};
use crate::files::{self, FileError};
use crate::recovery::error::RecoverError;
use crate::recovery::layout::{self, REPAIR_LOG};
use crate::recovery::repair::{id_of, partitions};
use crate::recovery::segments::parse_name;
use crate::recovery::slots;

/// What is read, and written unless it is all zeros, at a time.
const PIECE_BYTES: usize = 64 << 10;
const MANIFEST: &str = "MANIFEST";

/// A file that is copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    /// Its path in the data directory.
    name: PathBuf,
    /// From where on it is copied, in bytes.
    from: u64,
    what: &'static str,
}

impl Kept {
    fn whole(name: impl Into<PathBuf>, what: &'static str) -> Self {
        Self {
            name: name.into(),
            from: 0,
            what,
        }
    }

    /// The name of the copy.
    fn copy_name(&self) -> PathBuf {
        let mut name = self.name.as_os_str().to_owned();
        if self.from > 0 {
            name.push(format!(".from-{}", self.from));
        }
        name.into()
    }
}

/// What is to be kept of a data directory: identity, log of repairs, snapshots, every slot, and of each segment what its
/// snapshot does not know of, which a start cuts off.
pub(super) fn list(dir: &Path, snapshots: &[GroupSnapshotT]) -> Result<Vec<Kept>, RecoverError> {
    let mut out = vec![Kept::whole("identity", "the identity")];
    if files::read_whole(&dir.join(REPAIR_LOG))?.is_some() {
        out.push(Kept::whole(REPAIR_LOG, "what earlier repairs did"));
    }
    for listed in files::list(&dir.join("groups"))?.unwrap_or_default() {
        out.push(Kept::whole(below(dir, &listed.path), "a snapshot"));
    }
    for (path, _) in slots::list(&dir.join("wal"))? {
        out.push(Kept::whole(
            below(dir, &path),
            "a slot of the write-ahead log, before the cut",
        ));
    }
    let stored = by_id(snapshots);
    for (id, folder) in layout::partitions(dir)? {
        let known = stored.get(&id);
        for listed in files::list(&folder)?.unwrap_or_default() {
            let Some((base, true)) = parse_name(&listed.name) else {
                continue;
            };
            let from = known.map_or(0, |known| known_bytes(known, base));
            if files::bytes_at(&listed.path)? > from {
                out.push(Kept {
                    name: below(dir, &listed.path),
                    from,
                    what: "of a segment, behind what its snapshot knows",
                });
            }
        }
    }
    Ok(out)
}

/// The partitions of snapshots.
pub(super) fn by_id(snapshots: &[GroupSnapshotT]) -> HashMap<PartitionId, &PartitionT> {
    let with_id = |stored| Some((id_of(stored)?, stored));
    partitions(snapshots).filter_map(with_id).collect()
}

fn below(dir: &Path, path: &Path) -> PathBuf {
    path.strip_prefix(dir).unwrap_or(path).to_owned()
}

/// How many bytes of a segment its snapshot knows of.
fn known_bytes(stored: &PartitionT, base_offset: u64) -> u64 {
    let mut segments = stored.segments.iter().flatten();
    let segment = segments.find(|segment| segment.base_offset == base_offset);
    segment.map_or(0, |segment| segment.bytes)
}

/// Bytes that the copies take.
pub(super) fn bytes(dir: &Path, kept: &[Kept], begun: Option<&PastCut>) -> Result<u64, FileError> {
    let mut sum = manifest(dir, kept, begun).len() as u64;
    for one in kept {
        let path = dir.join(&one.name);
        pieces(
            &files::open_read(&path, false)?,
            &path,
            one.from,
            |_, piece| {
                sum += piece.len() as u64;
                Ok(())
            },
        )?;
    }
    Ok(sum)
}

/// Makes the copies, durably, in a directory that is empty or not there. If that fails nothing is left of them.
pub(super) fn keep(dir: &Path, plan: &Plan, to: &Path) -> Result<(), FileError> {
    let (mut folders, mut files) = (Vec::new(), Vec::new());
    let ended = files::make_directories(to, &mut folders)
        .and_then(|()| files::expect_empty(to))
        .and_then(|()| copy_all(dir, plan, to, (&mut folders, &mut files)));
    if ended.is_err() {
        // Nothing that somebody else has put there meanwhile; what cannot be removed stays, without harm.
        for path in &files {
            let _ = fs::remove_file(path);
        }
        for folder in folders.iter().rev() {
            let _ = fs::remove_dir(folder);
        }
    }
    ended
}

/// Adds the directories and files that it makes to `made`.
fn copy_all(
    dir: &Path,
    plan: &Plan,
    to: &Path,
    (made, copied): (&mut Vec<PathBuf>, &mut Vec<PathBuf>),
) -> Result<(), FileError> {
    let mut folders: Vec<PathBuf> = Vec::new();
    for one in &plan.kept {
        let path = to.join(one.copy_name());
        let folder = files::parent(&path);
        // In the order of the list, those of a folder follow one another.
        if folders.last().is_none_or(|last| last != folder) {
            files::make_directories(folder, made)?;
            folders.push(folder.to_owned());
        }
        let file = files::open_new(&path)?;
        copied.push(path.clone());
        copy(&dir.join(&one.name), one.from, &file, &path)?;
    }
    let path = to.join(MANIFEST);
    let file = files::open_new(&path)?;
    copied.push(path.clone());
    let manifest = manifest(dir, &plan.kept, plan.begun.as_ref());
    files::write_at(&file, &path, manifest.as_bytes(), 0)?;
    files::sync_data(&file, &path)?;
    for folder in folders {
        files::sync_directory(&folder)?;
    }
    files::sync_directory(to)
}

fn copy(from: &Path, position: u64, file: &File, to: &Path) -> Result<(), FileError> {
    let source = files::open_read(from, false)?;
    let end = files::file_bytes(&source, from)?;
    files::set_len(file, to, end.saturating_sub(position))?;
    pieces(&source, from, position, |at, piece| {
        files::write_at(file, to, piece, at - position)
    })?;
    files::sync_data(file, to)
}

/// What each file is: a line each.
fn manifest(dir: &Path, kept: &[Kept], begun: Option<&PastCut>) -> String {
    let undo = match begun {
        None => "To undo the cut before any start: copy wal/ over that of the data directory with `cp --sparse=never`, and \
                 those of partitions/ that were removed."
            .to_owned(),
        Some(begun) => format!("Not as it was before all cuts. {}.", begun.undo()),
    };
    let mut out = format!(
        "Kept by `ringtide repair --cut-log` of {}, as it was before the cut.\n{undo}\n\n",
        dir.display()
    );
    for one in kept {
        let name = one.copy_name();
        let _ = match one.from {
            0 => writeln!(out, "{}: {}", name.display(), one.what),
            from => writeln!(
                out,
                "{}: {}, from byte {from} of {} on",
                name.display(),
                one.what,
                one.name.display()
            ),
        };
    }
    out
}

/// Writes files back that were kept whole, each durable before the next.
pub(super) fn put_back<'a>(
    dir: &Path,
    paths: impl Iterator<Item = &'a Path>,
    kept: &Path,
) -> Result<(), FileError> {
    for path in paths {
        let file = files::open_write(path, false, true)?;
        copy(&kept.join(below(dir, path)), 0, &file, path)?;
        files::sync_directory(files::parent(path))?;
    }
    Ok(())
}

/// Goes through a file from a position on: every piece that is not all zeros.
pub(super) fn pieces(
    file: &File,
    path: &Path,
    from: u64,
    mut each: impl FnMut(u64, &[u8]) -> Result<(), FileError>,
) -> Result<(), FileError> {
    let zeros = vec![0; PIECE_BYTES];
    let mut piece = vec![0; PIECE_BYTES];
    let mut at = from;
    loop {
        let got = files::read_at(file, path, &mut piece, at)?;
        if piece[..got] != zeros[..got] {
            each(at, &piece[..got])?;
        }
        if got < piece.len() {
            return Ok(());
        }
        at += got as u64;
    }
}
