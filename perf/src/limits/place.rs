//! Where limits were measured: without it a figure says nothing.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{major, minor};
use serde::Serialize;

/// The machine's parts that were measured.
#[derive(Default, Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Of the system.
    pub kernel: String,
    /// The CPU of the side that answers, and of the one that sends a file.
    pub server_cpu: usize,
    /// The CPU of the side that asks, and of the one that reads a file.
    pub client_cpu: usize,
    /// The CPU of the durable writes, of copying and of CRC-32C.
    pub disk_cpu: usize,
    /// The CPU that something spun on beside the durable writes.
    pub spinner_cpu: Option<usize>,
    /// What the directory is mounted from, such as `/dev/vda`; absent where the system does not say.
    pub device: Option<String>,
    /// The type of its file system, such as `ext4`; absent with the device.
    pub file_system: Option<String>,
}

/// The running kernel's version; empty if the system does not say.
pub(super) fn kernel() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    text.trim().into()
}

/// What a directory is mounted from, and the type of its file system.
pub(super) fn device(dir: &Path) -> Option<(String, String)> {
    let device = std::fs::metadata(dir).ok()?.dev();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    find(&mounts, &format!("{}:{}", major(device), minor(device)))
}

/// Looks a device's number up in mountinfo, of proc(5).
fn find(mounts: &str, number: &str) -> Option<(String, String)> {
    mounts.lines().find_map(|line| {
        let (place, source) = line.split_once(" - ")?;
        let mut source = source.split(' ');
        let (file_system, device) = (source.next()?, source.next()?);
        (place.split(' ').nth(2)? == number).then(|| (device.into(), file_system.into()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_found_by_its_number() {
        let mounts = "22 27 0:20 / /proc rw,relatime shared:5 - proc proc rw\n\
                      27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard\n";
        let found = Some(("/dev/vda".into(), "ext4".into()));
        assert_eq!(find(mounts, "254:0"), found);
        assert_eq!(find(mounts, "54:0"), None);
    }

    #[test]
    fn proc_is_known_as_what_it_is() {
        assert_eq!(
            device(Path::new("/proc")),
            Some(("proc".into(), "proc".into()))
        );
    }
}
