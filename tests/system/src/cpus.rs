//! The CPUs that a broker under test may be pinned to.

/// The first `shards` CPUs that this process may run on, as `--cpus` takes them.
///
/// # Panics
/// When there are fewer.
#[must_use]
pub fn cpu_list(shards: usize) -> String {
    let allowed = rustix::thread::sched_getaffinity(None).expect("the affinity can be read");
    let cpus: Vec<String> = (0..rustix::thread::CpuSet::MAX_CPU)
        .filter(|&cpu| allowed.is_set(cpu))
        .take(shards)
        .map(|cpu| cpu.to_string())
        .collect();
    assert_eq!(
        cpus.len(),
        shards,
        "a broker of {shards} shards needs as many CPUs"
    );
    cpus.join(",")
}
