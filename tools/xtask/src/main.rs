//! Tasks of the repository, run as `cargo xtask TASK`.
//!
//! `fuzz` runs the fuzz targets; `generate` makes the FlatBuffers code anew, or with `--check` says
//! whether it is as it should be; `instructions` holds what the parts need against their baseline, or
//! with `--accept` makes a new one; `planted` lets the simulation find faults that are planted in a copy
//! of the sources; `tidy` checks the rules of the layout.

mod fuzz;
mod generate;
mod instructions;
mod planted;
mod tidy;
mod tree;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "usage: cargo xtask fuzz [TARGET] [--seconds N] [--merge] | fuzz --planted | \
                     generate [--check] | instructions [--accept] | planted [FAULT] | tidy";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args[..] {
        ["fuzz", ref rest @ ..] => fuzz::run(&root(), rest),
        ["generate"] => generate::write(&root()),
        ["generate", "--check"] => generate::check(&root()),
        ["instructions"] => instructions::check(&root()),
        ["instructions", "--accept"] => instructions::accept(&root()),
        ["planted"] => planted::run(&root(), None),
        ["planted", name] => planted::run(&root(), Some(name)),
        ["tidy"] => tidy::run(&root()),
        _ => Err(USAGE.into()),
    };
    match result {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

/// The root of the repository.
fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    root.canonicalize().unwrap_or(root)
}
