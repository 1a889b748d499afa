//! Micro-benchmarks of the parts that a record passes through; see `benches/`. What the whole can
//! do is measured from outside, by `ringtide bench` and the examples of `perf/`.
//!
//! `cargo bench -p ringtide-benches` measures, `cargo bench -p ringtide-benches -- --test` only runs
//! each once.
