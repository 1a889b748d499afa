//! Allocations of each part once it is warm. On the path of a message there are to be none; where
//! there are some, the number stands here with its reason, so that it can only become better.
//! `cargo test -p ringtide-benches -- --nocapture` prints all of them.

use ringtide_benches::{Operation, PARTS, ready};

/// Operations that are looked at.
const LOOKED_AT: usize = 101;
/// Until every buffer has the size that it keeps: a tail's as well, once segments are written.
const BEFORE: usize = 400;

/// What usual operations of a part allocate, where it is not nothing.
const EXPECTED: [(&str, u64); 3] = [
    // The answers are over 16 KiB, so that the session gives their buffer up once they are sent
    // (`Logic::sent`), and the next one grows from nothing; and half of the requests wait for the next turn.
    ("session_of_256_publishes", 10),
    ("group_commit_of_256", 10),
    // A round of the segment writer, which four large batches fill; it is not on their way.
    ("group_commit_of_4_large", 3),
];

/// Allocations of one operation: the median, and the mean, which has a share of those that few
/// operations make for many (a chunk of memory, a round of a segment).
struct Allocations {
    median: u64,
    mean: f64,
}

fn allocations(operation: &mut Operation) -> Allocations {
    (0..BEFORE).for_each(|_| operation.run());
    let count = |_| allocation_counter::measure(|| operation.run()).count_total;
    let mut counts: Vec<u64> = (0..LOOKED_AT).map(count).collect();
    counts.sort_unstable();
    Allocations {
        median: counts[LOOKED_AT / 2],
        mean: counts.iter().sum::<u64>() as f64 / LOOKED_AT as f64,
    }
}

#[test]
fn a_warm_part_allocates_what_is_known() {
    println!("{:<28} {:>8} {:>8}", "part", "median", "mean");
    let mut wrong = Vec::new();
    for (name, _) in PARTS {
        let Allocations { median, mean } = allocations(&mut ready(name));
        println!("{name:<28} {median:>8} {mean:>8.2}");
        let known = EXPECTED.iter().find(|(known, _)| known == name);
        let expected = known.map_or(0, |(_, expected)| *expected);
        if median != expected {
            wrong.push(format!("{name} allocates {median} times, not {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("; "));
}
