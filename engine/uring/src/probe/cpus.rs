//! The host's processors.
#![expect(unsafe_code, reason = "the affinity mask has no wrapper in std")]

/// The CPUs that this process may run on, ascending.
pub fn allowed() -> Vec<usize> {
    // SAFETY: a cpu_set_t is a plain bit set; zeros are the empty one.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is a local, passed with its size; 0 is the calling thread.
    let result = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) };
    if result < 0 {
        return Vec::new();
    }
    (0..libc::CPU_SETSIZE as usize)
        // SAFETY: the number is below the set's size.
        .filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) })
        .collect()
}
