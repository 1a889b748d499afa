//! The one binary of Ringtide: the broker and the tools around it.
//!
//! What lives here is the command line, configuration, logging and the outer shell of each command.
//! How a broker works is in `engine/`, how to talk to one in `net/client`.

mod bench;
mod cli;
mod config;
mod connect;
mod consume;
mod cpu_list;
mod cut_log;
mod doctor;
mod exit;
mod ledger;
mod lines;
mod logging;
mod offline;
mod output;
mod produce;
mod progress;
mod raw_config;
mod record_json;
mod repair;
mod serve;
mod setting;
mod signals;
mod topic;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};
use exit::Exit;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve(args) => serve::run(*args),
        Command::Topic(command) => topic::run(command),
        Command::Produce(args) => produce::run(&args),
        Command::Consume(args) => consume::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Inspect { kind, path } => offline::inspect_file(kind, &path),
        Command::Verify { data_dir } => offline::verify_directory(&data_dir),
        Command::Repair(args) => repair::run(&args),
        Command::Doctor(args) => doctor::run(args),
    };
    match result {
        Ok(()) => Exit::Done.into(),
        Err(failure) => {
            if !failure.message.is_empty() {
                output::say(&failure);
            }
            failure.exit.into()
        }
    }
}
