//! The kernel: its version, whether it gives us a ring, and how much memory may be locked.
#![expect(unsafe_code, reason = "uname and getrlimit have no wrapper in std")]

use std::ffi::CStr;
use std::io;

use crate::ring::Ring;

/// The kernel's release, as `uname -r` says it.
pub fn release() -> String {
    // SAFETY: a utsname is arrays of characters; zeros are empty strings.
    let mut names: libc::utsname = unsafe { std::mem::zeroed() };
    // SAFETY: the structure is a local.
    unsafe { libc::uname(&raw mut names) };
    // SAFETY: the kernel ends the string with a zero, and zeros it was before.
    let release = unsafe { CStr::from_ptr(names.release.as_ptr()) };
    release.to_string_lossy().into_owned()
}

/// Whether the processor says that a hypervisor is under this kernel; false where it does not say.
pub fn is_virtual() -> bool {
    let facts = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    facts
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| line.split_whitespace().any(|flag| flag == "hypervisor"))
}

/// Why there is no ring.
#[derive(Debug, thiserror::Error)]
pub enum NoIoUring {
    /// The kernel was built without, or a container hides it.
    #[error("the kernel has no io_uring, or a container's seccomp profile hides it")]
    Absent,
    /// The administrator switched it off.
    #[error("io_uring is switched off: sysctl kernel.io_uring_disabled is {0}; 0 allows it")]
    Disabled(u8),
    /// Not permitted.
    #[error("io_uring is not permitted: a container's seccomp profile or a security module")]
    NotPermitted,
    /// The kernel does not know what we ask for.
    #[error("the kernel is too old: rings with deferred work came with 6.1")]
    TooOld,
    /// Anything else.
    #[error("cannot set up io_uring: {0}")]
    Other(#[from] io::Error),
}

/// Whether a ring as the shards use it can be set up.
pub fn io_uring() -> Result<(), NoIoUring> {
    let Err(error) = Ring::new(8, 16) else {
        return Ok(());
    };
    Err(match error.raw_os_error() {
        Some(libc::ENOSYS) => NoIoUring::Absent,
        Some(libc::EINVAL) => NoIoUring::TooOld,
        Some(libc::EPERM | libc::EACCES) => match disabled() {
            0 => NoIoUring::NotPermitted,
            level => NoIoUring::Disabled(level),
        },
        _ => NoIoUring::Other(error),
    })
}

fn disabled() -> u8 {
    let level = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
    level
        .ok()
        .and_then(|level| level.trim().parse().ok())
        .unwrap_or(0)
}

/// Bytes of memory that the process may lock; absent if there is no limit.
pub fn memlock_limit() -> io::Result<Option<u64>> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the structure is a local.
    if unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur))
}
