//! The host's processors, and which of them a device interrupts.
#![expect(unsafe_code, reason = "the affinity mask has no wrapper in std")]

use std::fs;

/// The CPUs that this thread may run on, ascending.
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

/// The CPUs that are online, ascending; empty where the system does not say.
pub fn online() -> Vec<usize> {
    list_file("/sys/devices/system/cpu/online")
}

/// The CPUs kept free of other work by the `isolcpus` boot option.
pub fn isolated() -> Vec<usize> {
    list_file("/sys/devices/system/cpu/isolated")
}

/// The frequency governor of a CPU, where there is one (virtual machines have none).
pub fn governor(cpu: usize) -> Option<String> {
    let path = format!("/sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor");
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// The CPU that took most interrupts of a block device (`vda`, `nvme0n1`), and how many. A guess:
/// lines of /proc/interrupts are matched by the names that drivers give them.
pub fn interrupts_of(device: &str) -> Option<(usize, u64)> {
    busiest(
        &fs::read_to_string("/proc/interrupts").ok()?,
        &interrupt_names(device),
    )
}

/// What lines of /proc/interrupts for a block device contain.
fn interrupt_names(device: &str) -> Vec<String> {
    // nvme0n1 interrupts as nvme0q1, nvme0q2 and so on.
    if let Some((controller, _)) = device.strip_prefix("nvme").and_then(|d| d.split_once('n')) {
        return vec![format!("nvme{controller}q")];
    }
    // A virtio disk interrupts as virtio<n>-req.<queue>; the device's link tells n.
    let link = fs::read_link(format!("/sys/block/{device}/device")).ok();
    let name = link
        .as_deref()
        .and_then(|link| link.file_name())
        .and_then(|name| name.to_str());
    match name {
        Some(name) if name.starts_with("virtio") => vec![format!("{name}-")],
        _ => vec![device.to_owned(), "ahci".to_owned()],
    }
}

/// The CPU with the highest sum over the lines that contain one of the names.
fn busiest(interrupts: &str, names: &[String]) -> Option<(usize, u64)> {
    let mut lines = interrupts.lines();
    let cpus: Vec<usize> = lines
        .next()?
        .split_whitespace()
        .filter_map(|name| name.strip_prefix("CPU")?.parse().ok())
        .collect();
    let mut counts = vec![0u64; cpus.len()];
    for line in lines.filter(|line| names.iter().any(|name| line.contains(name.as_str()))) {
        let numbers = line.split_whitespace().skip(1).map(str::parse::<u64>);
        for (count, number) in counts.iter_mut().zip(numbers) {
            *count += number.unwrap_or(0);
        }
    }
    let (at, &most) = counts.iter().enumerate().max_by_key(|&(_, count)| count)?;
    (most > 0).then(|| (cpus[at], most))
}

fn list_file(path: &str) -> Vec<usize> {
    fs::read_to_string(path)
        .map(|list| parse_list(&list))
        .unwrap_or_default()
}

/// Reads a list as the kernel writes it: `0-2,5`.
fn parse_list(list: &str) -> Vec<usize> {
    let mut cpus = Vec::new();
    for part in list.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<usize>(), last.parse::<usize>()) {
            cpus.extend(first..=last.min(first + 4096));
        }
    }
    cpus
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_as_the_kernel_writes_them() {
        assert_eq!(parse_list("0-2,5,7-8\n"), [0, 1, 2, 5, 7, 8]);
        assert_eq!(parse_list("\n"), [0usize; 0]);
    }

    #[test]
    fn the_busiest_cpu_of_a_device_is_found() {
        let text = "           CPU0       CPU2\n\
                     35:          9          1  PCI-MSIX-0000:00:02.0   0-edge      virtio1-config\n\
                     36:          0      75022  PCI-MSIX-0000:00:02.0   1-edge      virtio1-req.0\n\
                     39:     944759          0  PCI-MSIX-0000:00:03.0   2-edge      virtio2-output.0\n";
        assert_eq!(busiest(text, &["virtio1-".to_owned()]), Some((2, 75023)));
        assert_eq!(busiest(text, &["nvme0q".to_owned()]), None);
    }
}
