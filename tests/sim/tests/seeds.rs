//! A few seeds, as often as all other tests run; `cargo run --release -p ringtide-sim` plays many.

use ringtide_sim::{Limits, Planted, run};

/// Played by this test; `RINGTIDE_SEEDS` for another number.
const SEEDS: u64 = 12;

#[test]
fn a_seed_plays_the_same_every_time() {
    let mut looked_at = 0;
    for seed in 1..50 {
        let first = run(seed, Planted::Nothing, Limits::NONE);
        if first.faults > 0 && first.delivered > 0 {
            assert_eq!(run(seed, Planted::Nothing, Limits::NONE), first);
            looked_at += 1;
        }
        if looked_at == 3 {
            return;
        }
    }
    panic!("only {looked_at} of 50 seeds play faults and deliver anything");
}

#[test]
fn no_seed_breaks_a_promise() {
    let seeds = std::env::var("RINGTIDE_SEEDS").map_or(SEEDS, |n| n.parse().expect("a number"));
    for seed in 1..=seeds {
        let outcome = run(seed, Planted::Nothing, Limits::NONE);
        assert_eq!(outcome.violation, None, "seed {seed}");
    }
}

#[test]
fn a_log_that_is_not_synced_is_found() {
    let is_found = |seed: u64| {
        run(seed, Planted::LogWithoutSync, Limits::NONE)
            .violation
            .is_some()
    };
    assert!((1..100).any(is_found));
}

#[test]
fn a_limit_leaves_less_to_play() {
    let limits = Limits {
        clients: 1,
        faults: 0,
        records: 3,
    };
    let outcome = run(8, Planted::Nothing, limits);
    assert!(outcome.faults == 0 && outcome.records <= 3, "{outcome:?}");
}
