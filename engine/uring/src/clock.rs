//! The clocks of a turn.
#![expect(
    unsafe_code,
    reason = "std has no wrapper that gives these clocks as numbers"
)]

use ringtide_io::Now;

fn read(clock: libc::clockid_t) -> libc::timespec {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the structure is a local. These clocks exist on every Linux.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time
}

/// Nanoseconds of the monotonic clock.
pub(crate) fn mono_ns() -> u64 {
    let time = read(libc::CLOCK_MONOTONIC);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The time of a turn. The wall clock is the one that the kernel moves at every tick: milliseconds
/// are asked for, and it costs a fifth.
pub(crate) fn now() -> Now {
    let wall = read(libc::CLOCK_REALTIME_COARSE);
    Now {
        mono_ns: mono_ns(),
        wall_ms: wall.tv_sec * 1000 + wall.tv_nsec / 1_000_000,
    }
}
