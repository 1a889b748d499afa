//! The instructions of each part, counted by callgrind: they do not drift with the machine.
//! `cargo xtask instructions` runs this and compares it with `instructions.json`.

#![expect(missing_docs, reason = "the macros make functions without")]

use gungraun::{
    Callgrind, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main,
};
use ringtide_benches::{Operation, ready, with_parts};

/// Operations that are counted together, so that what is done for several is in the count. The
/// counter divides by it.
const COUNTED: usize = 16;

/// Long copies by vectors: an instruction that repeats itself counts once for each byte, which has
/// nothing to do with its time.
const NO_REPEATS: &str =
    "glibc.cpu.x86_rep_movsb_threshold=1073741824:glibc.cpu.x86_rep_stosb_threshold=1073741824";

macro_rules! counted {
    ($($module:ident $name:ident),* $(,)?) => {
        #[library_benchmark]
        $(#[bench::$name(ready(stringify!($name)))])*
        fn part(mut operation: Operation) -> Operation {
            (0..COUNTED).for_each(|_| operation.run());
            operation
        }
    };
}

with_parts!(counted);

library_benchmark_group!(name = parts, benchmarks = part);
main!(
    config = LibraryBenchmarkConfig::default()
        .env("GLIBC_TUNABLES", NO_REPEATS)
        .tool(Callgrind::with_args(["--cache-sim=no"])),
    library_benchmark_groups = parts
);
