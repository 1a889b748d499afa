//! Which CPU a measurement runs on.

use std::io;
use std::panic::resume_unwind;

use rustix::thread::{CpuSet, sched_setaffinity};

/// Ties the calling thread to one CPU, for the rest of its life.
///
/// # Errors
/// When there is no such CPU, or this process may not use it.
pub fn pin(cpu: usize) -> io::Result<()> {
    let failed = |why: String| {
        io::Error::other(format!(
            "cannot run on CPU {cpu}: {why}; choose one that `taskset -p $$` allows"
        ))
    };
    if cpu >= CpuSet::MAX_CPU {
        return Err(failed(format!(
            "the highest number is {}",
            CpuSet::MAX_CPU - 1
        )));
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).map_err(|errno| failed(errno.to_string()))
}

/// Runs `work` on a thread of its own that is tied to `cpu`, so that the caller, and the processes
/// that it starts later, are not; without a CPU, on the calling thread.
///
/// # Errors
/// Those of [`pin`].
pub fn on<T: Send>(cpu: Option<usize>, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let Some(cpu) = cpu else { return Ok(work()) };
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || pin(cpu).map(|()| work()));
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_that_is_not_there_is_refused_by_its_number() {
        for cpu in [1023, usize::MAX] {
            let error = on(Some(cpu), || ()).expect_err("no machine here has it");
            assert!(error.to_string().contains(&cpu.to_string()), "{error}");
        }
    }
}
