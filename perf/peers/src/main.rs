//! `peers`: the load of `ringtide bench` against other brokers. Schedules, stamps, the ledger and the
//! report are those of `ringtide-perf`; here are only the brokers that are no Ringtide. Who starts them
//! is no business of this program: see `run.sh`.

mod kafka;
mod nats;
mod peer;
mod redis;
mod run;
mod table;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ringtide_perf::BenchError;

use crate::peer::failed;
use crate::run::{Kind, RunArgs};

/// As `ringtide bench` ends when figures do not count.
const INVALID_RUN: u8 = 3;

#[derive(Debug, Parser)]
#[command(version, about = "The load of ringtide bench against other brokers")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure Redis Streams
    Redis(RunArgs),
    /// Measure NATS JetStream
    Nats(RunArgs),
    /// Measure a broker of the Kafka protocol
    Kafka(RunArgs),
    /// Put reports side by side, those of ringtide bench --json too
    Table {
        /// What --json wrote
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
}

fn main() -> ExitCode {
    let is_valid = match Cli::parse().command {
        Command::Redis(args) => run::run(Kind::Redis, &args),
        Command::Nats(args) => run::run(Kind::Nats, &args),
        Command::Kafka(args) => run::run(Kind::Kafka, &args),
        Command::Table { files } => side_by_side(&files).map(|()| true),
    };
    match is_valid {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(INVALID_RUN),
        Err(error) => {
            // Nobody may be reading.
            let _ = writeln!(std::io::stderr(), "peers: {error}");
            ExitCode::FAILURE
        }
    }
}

fn side_by_side(files: &[PathBuf]) -> Result<(), BenchError> {
    let read = |path: &PathBuf| {
        let what = || format!("cannot read {}", path.display());
        let text = std::fs::read(path).map_err(BenchError::io(what()))?;
        serde_json::from_slice(&text).map_err(failed(what()))
    };
    let reports = files.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    std::io::stdout()
        .write_all(table::table(&reports).as_bytes())
        .map_err(BenchError::io("cannot write the table"))
}
