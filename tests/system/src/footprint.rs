//! What a process holds of the machine, as the kernel counts it.

use std::fs;

/// Memory and open files of a process at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Resident memory, in bytes.
    pub resident: u64,
    /// The most that it was since the process began or [`Footprint::forget_peak`], in bytes.
    pub peak: u64,
    /// Open sockets.
    pub sockets: usize,
    /// Everything else that is open.
    pub files: usize,
}

impl Footprint {
    /// Of this process.
    ///
    /// # Panics
    /// When it is gone.
    #[must_use]
    pub fn of(pid: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
        let bytes = |key: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
            kib.map(|kib: u64| kib << 10).expect("a size in KiB")
        };
        let open = fs::read_dir(format!("/proc/{pid}/fd")).expect("a process of ours");
        // One that is closed meanwhile leads nowhere.
        let open = open.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
        let (sockets, files): (Vec<_>, Vec<_>) =
            open.partition(|target| target.to_string_lossy().starts_with("socket:"));
        Self {
            resident: bytes("VmRSS:"),
            peak: bytes("VmHWM:"),
            sockets: sockets.len(),
            files: files.len(),
        }
    }

    /// Lets the peak begin anew at what is resident now.
    ///
    /// # Panics
    /// When the process is gone.
    pub fn forget_peak(pid: u32) {
        fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("a process of ours");
    }
}
