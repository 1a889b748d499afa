//! File systems made for one test: a small one to fill, and one that cannot do direct I/O.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::broker::data_root;
use crate::wait;

/// Whether this process may do anything.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A file system mounted for a test, unmounted when this is dropped.
#[derive(Debug)]
pub struct MountedDisk {
    mount_point: PathBuf,
    /// What it is mounted with.
    args: Vec<String>,
    _dir: TempDir,
}

impl MountedDisk {
    /// An ext4 of this size, in a file.
    ///
    /// # Errors
    /// Why it cannot be had here.
    pub fn ext4(bytes: u64) -> Result<Self, String> {
        Self::ext4_below(&data_root(), bytes)
    }

    /// An ext4 of this size in memory: its device takes flushes, and they do nothing.
    ///
    /// # Errors
    /// Why it cannot be had here.
    pub fn ext4_in_memory(bytes: u64) -> Result<Self, String> {
        const TMPFS: u32 = 0x0102_1994;
        let memory = Path::new("/dev/shm");
        match rustix::fs::statfs(memory) {
            Ok(facts) if facts.f_type as u32 == TMPFS => Self::ext4_below(memory, bytes),
            _ => Err("/dev/shm is no file system in memory".into()),
        }
    }

    fn ext4_below(root: &Path, bytes: u64) -> Result<Self, String> {
        let dir = prepare(root)?;
        let image = dir.path().join("image");
        let file = std::fs::File::create(&image).map_err(|e| format!("no image: {e}"))?;
        file.set_len(bytes).map_err(|e| format!("no image: {e}"))?;
        let image_arg = image.display().to_string();
        run(
            "mkfs.ext4",
            &[
                "-q",
                "-F",
                "-b",
                "4096",
                "-m",
                "0",
                "-O",
                "^has_journal",
                &image_arg,
            ],
        )?;
        Self::mount(dir, &["-o", "loop", &image_arg])
    }

    /// An XFS with so much space, and more that is taken: one that small cannot be made.
    ///
    /// # Errors
    /// Why it cannot be had here.
    pub fn xfs(bytes: u64) -> Result<Self, String> {
        const LEAST_BYTES: u64 = 320 << 20;
        let dir = prepare(&data_root())?;
        let image = dir.path().join("image");
        let file = std::fs::File::create(&image).map_err(|e| format!("no image: {e}"))?;
        let all = LEAST_BYTES + bytes;
        file.set_len(all).map_err(|e| format!("no image: {e}"))?;
        let image_arg = image.display().to_string();
        run("mkfs.xfs", &["-q", "-f", &image_arg])?;
        let disk = Self::mount(dir, &["-t", "xfs", "-o", "loop", &image_arg])?;
        let taken = std::fs::File::create(disk.path().join("taken"));
        let taken = taken.map_err(|e| format!("no file on XFS: {e}"))?;
        let too_much = disk.free_bytes().saturating_sub(bytes);
        rustix::fs::fallocate(&taken, rustix::fs::FallocateFlags::empty(), 0, too_much)
            .map_err(|e| format!("no space on XFS: {e}"))?;
        Ok(disk)
    }

    /// Mounts it again with these options (`ro` or `rw`, say), in place.
    ///
    /// # Panics
    /// When it cannot be for long: while files are open for writing it cannot become read-only.
    pub fn remount(&self, options: &str) {
        let mount_point = self.mount_point.display().to_string();
        let options = format!("remount,{options}");
        // The ring of a process that has ended holds its files a little longer.
        wait::for_it("the end of all use of the file system", || {
            run("mount", &["-o", &options, &mount_point]).is_ok()
        });
    }

    /// A file system in memory that refuses direct I/O.
    ///
    /// # Errors
    /// Why it cannot be had here.
    pub fn ramfs() -> Result<Self, String> {
        Self::mount(prepare(&data_root())?, &["-t", "ramfs", "ramfs"])
    }

    fn mount(dir: TempDir, args: &[&str]) -> Result<Self, String> {
        let mount_point = dir.path().join("mnt");
        std::fs::create_dir(&mount_point).map_err(|e| format!("no mount point: {e}"))?;
        let mount_arg = mount_point.display().to_string();
        run("mount", &[args, &[&mount_arg]].concat())?;
        Ok(Self {
            mount_point,
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            _dir: dir,
        })
    }

    /// Shuts the file system down at once, as XFS does at an error of its own: nothing of it can be used any more, and
    /// what it had not written of its journal is lost.
    ///
    /// # Errors
    /// Why that cannot be done here.
    pub fn shut_down(&self) -> Result<(), String> {
        let mount_point = self.mount_point.display().to_string();
        run("xfs_io", &["-x", "-c", "shutdown", &mount_point]).map(drop)
    }

    /// Unmounts it and mounts it again, as after a boot.
    ///
    /// # Panics
    /// When it cannot be unmounted for long, or not be mounted.
    pub fn mount_again(&self) {
        let mount_point = self.mount_point.display().to_string();
        // The ring of a process that has ended holds its files a little longer.
        wait::for_it("the end of all use of the file system", || {
            run("umount", &[&mount_point]).is_ok()
        });
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        run("mount", &[&args[..], &[&mount_point]].concat()).expect("mounted again");
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.mount_point
    }

    /// The block device that it lies on.
    ///
    /// # Panics
    /// When it lies on none.
    #[must_use]
    pub fn device(&self) -> PathBuf {
        let mount_point = self.mount_point.display().to_string();
        let device = run("findmnt", &["-n", "-o", "SOURCE", &mount_point]).expect("it is mounted");
        let device = PathBuf::from(device.trim());
        assert!(device.is_absolute(), "{device:?} is no device");
        device
    }

    /// Bytes that can still be written.
    ///
    /// # Panics
    /// When the file system cannot be asked.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.mount_point).expect("a mounted file system");
        stat.f_bavail * stat.f_frsize
    }
}

impl Drop for MountedDisk {
    fn drop(&mut self) {
        // Lazy: a broker that a failing test left behind must not keep the loop device for ever.
        let _ = run("umount", &["-l", &self.mount_point.display().to_string()]);
    }
}

fn prepare(root: &Path) -> Result<TempDir, String> {
    if !is_root() {
        return Err("mounting a file system needs root".into());
    }
    TempDir::new_in(root).map_err(|e| format!("no folder to mount at: {e}"))
}

/// Runs a program to its end; gives what it said.
pub(crate) fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program)
        .args(args)
        .output()
        .map_err(|e| format!("{program} cannot be run: {e}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!(
        "{program} failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    ))
}
