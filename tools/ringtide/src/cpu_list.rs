//! CPU numbers in the kernel's list notation, as settings and messages have them.

/// Reads `0`, `2,3`, `2-5,8`. Nothing for an empty or malformed list.
pub(crate) fn parse_list(text: &str) -> Option<Vec<usize>> {
    /// More than any kernel has; keeps a mistyped range from filling memory.
    const MOST: usize = 65_536;
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last >= MOST {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

/// Writes `2-5,8`.
pub(crate) fn show(cpus: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &cpu in cpus {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => runs.push((cpu, cpu)),
        }
    }
    let runs = runs.iter().map(|(first, last)| {
        if first == last {
            first.to_string()
        } else {
            format!("{first}-{last}")
        }
    });
    runs.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_notation_round_trips() {
        assert_eq!(parse_list("0-3,8,10-11"), Some(vec![0, 1, 2, 3, 8, 10, 11]));
        assert_eq!(show(&[0, 1, 2, 3, 8, 10, 11]), "0-3,8,10-11");
        assert_eq!(parse_list("1, 0"), Some(vec![1, 0]));
    }

    #[test]
    fn a_malformed_list_is_refused() {
        for text in ["", ",", "1-", "3-1", "a", "-1", "0-99999999999"] {
            assert_eq!(parse_list(text), None, "{text:?}");
        }
    }
}
