//! What lies in a data directory and what does not belong there.

use std::path::{Path, PathBuf};

use ringtide_schema::identity::Identity;
use ringtide_schema::ids::{GroupId, PartitionId};
use ringtide_schema::snapshot;
use ringtide_schema::store::GroupSnapshotT;

use super::error::{
    BadIdentity, BadSnapshot, Foreign, MissingFolder, MissingIdentity, OtherSnapshots,
    RecoverError, UnknownTopic, Unlisted,
};
use super::metadata::Standing;
use super::replay::Replay;
use super::segments::parse_name;
use crate::files::{self, FileError, Listed};

/// The directories of a data directory.
pub(super) const FOLDERS: [&str; 3] = ["groups", "partitions", "wal"];
const TEMPORARY: &str = ".tmp";
/// What repairs did, line by line.
pub(super) const REPAIR_LOG: &str = "repair.log";

/// What the top level holds.
pub(super) enum Top {
    /// Nothing that counts: to be made.
    Fresh,
    /// A data directory.
    Used(Identity),
}

/// Looks at the top level. Files that an interrupted replacement left are added to `leftovers`.
pub(super) fn look(dir: &Path, leftovers: &mut Vec<PathBuf>) -> Result<Top, RecoverError> {
    for listed in files::list(dir)?.unwrap_or_default() {
        match (listed.name.as_str(), listed.directory) {
            ("identity" | "lock" | REPAIR_LOG, false) | ("lost+found", true) => {}
            (name, true) if FOLDERS.contains(&name) => {}
            (name, false) if name.ends_with(TEMPORARY) => leftovers.push(listed.path),
            _ => return Err(Foreign { path: listed.path }.into()),
        }
    }
    let path = dir.join("identity");
    let Some(bytes) = files::read_whole(&path)? else {
        for folder in FOLDERS {
            let held = files::list(&dir.join(folder))?.unwrap_or_default();
            if let Some(Listed { path: found, .. }) = held.into_iter().next() {
                return Err(MissingIdentity {
                    directory: dir.to_owned(),
                    found,
                }
                .into());
            }
        }
        return Ok(Top::Fresh);
    };
    let identity = Identity::decode(&bytes).map_err(|why| BadIdentity { path, why })?;
    for folder in FOLDERS {
        let path = dir.join(folder);
        if files::list(&path)?.is_none() {
            return Err(MissingFolder { path }.into());
        }
        for listed in files::list(&path)?.unwrap_or_default() {
            if listed.name.ends_with(TEMPORARY) && !listed.directory {
                leftovers.push(listed.path);
            }
        }
    }
    Ok(Top::Used(identity))
}

/// Reads the snapshots of all groups, in order; a group that never had anything has an empty one. After a
/// clean stop they must be those that it left.
pub(super) fn snapshots(
    dir: &Path,
    identity: &Identity,
) -> Result<Vec<GroupSnapshotT>, RecoverError> {
    let groups = dir.join("groups");
    let mut crc = 0;
    let mut out: Vec<GroupSnapshotT> = (0..=identity.groups)
        .map(|group| GroupSnapshotT {
            group,
            ..GroupSnapshotT::default()
        })
        .collect();
    for Listed {
        name,
        path,
        directory,
    } in files::list(&groups)?.unwrap_or_default()
    {
        if name.ends_with(TEMPORARY) && !directory {
            continue;
        }
        let number = name
            .strip_suffix(".snapshot")
            .and_then(|number| number.parse().ok());
        let slot = number
            .filter(|&number| GroupId(number).snapshot_name() == name && !directory)
            .and_then(|number| out.get_mut(usize::from(number)));
        let Some(slot) = slot else {
            return Err(Foreign { path }.into());
        };
        let Some(bytes) = files::read_whole(&path)? else {
            continue;
        };
        crc = crc32c::crc32c_append(crc, &bytes);
        *slot = snapshot::decode(&bytes).map_err(|why| BadSnapshot { path, why })?;
    }
    if identity.clean && crc != identity.snapshots_crc {
        return Err(OtherSnapshots { path: groups }.into());
    }
    Ok(out)
}

/// The last entry that each snapshot holds.
pub(super) fn held(snapshots: &[GroupSnapshotT]) -> Vec<u64> {
    snapshots.iter().map(|group| group.group_index).collect()
}

/// CRC-32C over all snapshots, by group.
pub(super) fn snapshots_crc(dir: &Path) -> Result<u32, FileError> {
    let mut crc = 0;
    for listed in files::list(&dir.join("groups"))?.unwrap_or_default() {
        if listed.name.ends_with(".snapshot") {
            let bytes = files::read_whole(&listed.path)?.unwrap_or_default();
            crc = crc32c::crc32c_append(crc, &bytes);
        }
    }
    Ok(crc)
}

/// The directories of partitions, with what they are.
pub(super) fn partitions(dir: &Path) -> Result<Vec<(PartitionId, PathBuf)>, RecoverError> {
    let mut out = Vec::new();
    for listed in files::list(&dir.join("partitions"))?.unwrap_or_default() {
        match PartitionId::from_dir_name(&listed.name) {
            Some(id) if listed.directory => out.push((id, listed.path)),
            _ if listed.name.ends_with(TEMPORARY) && !listed.directory => {}
            _ => return Err(Foreign { path: listed.path }.into()),
        }
    }
    Ok(out)
}

/// What is to be removed once the new snapshots are durable.
#[derive(Debug, Default)]
pub(super) struct Garbage {
    pub(super) files: Vec<PathBuf>,
    pub(super) directories: Vec<PathBuf>,
}

/// Finds what no snapshot names any more, after replay. `every`: look into each partition's
/// directory; otherwise only into those of partitions that nothing is known of.
pub(super) fn garbage(
    directories: Vec<(PartitionId, PathBuf)>,
    replay: &Replay<'_>,
    every: bool,
) -> Result<Garbage, RecoverError> {
    let mut garbage = Garbage::default();
    for (id, path) in directories {
        match replay.standing(id.topic) {
            Standing::Unknown => {
                let next_serial = replay.metadata().next_serial();
                return Err(UnknownTopic {
                    path,
                    partition: id,
                    next_serial,
                }
                .into());
            }
            Standing::Deleted => garbage.directories.push(path),
            Standing::Live(topic) if id.partition >= topic.partitions => {
                return Err(Foreign { path }.into());
            }
            Standing::Live(_) if every || replay.partition(id).is_none() => {
                strays(&path, id, replay, &mut garbage.files)?;
            }
            Standing::Live(_) => {}
        }
    }
    garbage.files.extend(replay.garbage.iter().cloned());
    Ok(garbage)
}

/// The files of a partition that its manifest does not name, and the index of a segment that is not
/// sealed, which may know of more than there is. A log with data at or past the
/// partition's end is none of them: segments hold committed batches only, so it shows a loss.
fn strays(
    directory: &Path,
    id: PartitionId,
    replay: &Replay<'_>,
    out: &mut Vec<PathBuf>,
) -> Result<(), RecoverError> {
    let stored = replay.partition(id);
    let segments = stored
        .and_then(|p| p.segments.as_deref())
        .unwrap_or_default();
    let next_offset = stored.map_or(0, |p| p.next_offset);
    for Listed {
        name,
        path,
        directory,
    } in files::list(directory)?.unwrap_or_default()
    {
        if name.ends_with(TEMPORARY) && !directory {
            out.push(path);
            continue;
        }
        let Some((base, log)) = parse_name(&name).filter(|_| !directory) else {
            return Err(Foreign { path }.into());
        };
        let listed = segments.iter().find(|segment| segment.base_offset == base);
        if listed.is_some_and(|segment| log || segment.sealed) {
            continue;
        }
        if log && base >= next_offset && files::bytes_at(&path)? > 0 {
            return Err(Unlisted { path, next_offset }.into());
        }
        out.push(path);
    }
    Ok(())
}
