//! The load of the subcommands that run an open loop more than once, and what is shared by what they
//! say of it.

use std::io::{self, Write as _};
use std::path::PathBuf;

use clap::Args;
use ringtide_perf::feed::Feed;
use ringtide_perf::machine::Between;
use ringtide_perf::open_loop::Plan;
use ringtide_perf::report::{EndToEnd, Kept, Produce, Report, Verified, Wal};
use ringtide_perf::workload::Workload;
use serde::Serialize;

use crate::bench::failure;
use crate::bench::json_file::JsonFile;
use crate::bench::placement::Placement;
use crate::exit::Failure;
use crate::output::print;

/// Of the JSON; it grows when a field's meaning changes or a field goes.
pub(crate) const SCHEMA_VERSION: u32 = 1;

/// What is done, and on which CPUs.
#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// A load by its name (market-data, order-entry, telemetry, fan-out, log-shipping,
    /// replay-beside-live) or a file; flags win
    #[arg(long, value_name = "NAME|FILE")]
    pub(crate) workload: Option<String>,
    #[command(flatten)]
    pub(crate) load: Workload,
    /// CPUs of the generator, a thread on each, such as 1 or 2,3 [default: the last]
    #[arg(long, alias = "cpu", value_name = "LIST", value_delimiter = ',')]
    pub(crate) cpus: Option<Vec<usize>>,
    /// CPUs of the shards of a broker that is started here [default: the first]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(crate) broker_cpus: Option<Vec<usize>>,
    /// Write the figures to this file as JSON; /dev/stdout: to standard output, and the table to
    /// standard error
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// Which broker is measured.
#[derive(Debug, Args)]
pub(crate) struct SubjectArgs {
    /// The broker: any shard of it; HOST or HOST:PORT [default: one is started for the measurement]
    #[arg(long, value_name = "HOST:PORT", env = "RINGTIDE_SERVER", value_parser = crate::cli::server)]
    pub(crate) server: Option<String>,
}

/// A load that is known to be possible.
pub(crate) struct Prepared {
    pub(crate) workload: Workload,
    pub(crate) feed: Option<Feed>,
    pub(crate) plan: Plan,
}

impl LoadArgs {
    /// The load as flags and workload have it.
    pub(crate) fn workload(&self) -> Result<Workload, Failure> {
        let flags = self.load.clone();
        Ok(match &self.workload {
            Some(name) => flags.or(Workload::load(name).map_err(failure)?),
            None => flags,
        })
    }

    pub(crate) fn placement(&self, server: Option<&str>) -> Result<Placement, Failure> {
        Placement::choose(self.cpus.as_deref(), self.broker_cpus.as_deref(), server)
    }

    pub(crate) fn json_file(&self) -> Result<Option<JsonFile>, Failure> {
        self.json.as_deref().map(JsonFile::create).transpose()
    }
}

impl Prepared {
    pub(crate) fn new(workload: Workload, placement: &Placement) -> Result<Self, Failure> {
        let feed = workload.read_feed().map_err(failure)?;
        let mut plan = workload.plan();
        plan.cpus.clone_from(&placement.generator);
        // Nothing that is said of many runs, or of hours, has it.
        plan.timeline = false;
        plan.check(feed.as_ref()).map_err(failure)?;
        Ok(Self {
            workload,
            feed,
            plan,
        })
    }
}

/// Tells lines as they come: to standard output, or to standard error if JSON goes there.
#[derive(Clone, Copy)]
pub(crate) struct Teller {
    aside: bool,
}

impl Teller {
    pub(crate) fn beside(json: Option<&JsonFile>) -> Self {
        let aside = json.is_some_and(|json| json.is_stdout);
        Self { aside }
    }

    pub(crate) fn tell(self, text: &str) -> Result<(), Failure> {
        if self.aside {
            let _ = io::stderr().write_all(text.as_bytes());
            return Ok(());
        }
        print(text)
    }

    /// The last lines: whether it counts, or why not.
    pub(crate) fn judge(self, reasons: &[String]) -> Result<(), Failure> {
        if reasons.is_empty() {
            return self.tell("\nvalid\n");
        }
        let lines: Vec<String> = reasons.iter().map(|why| format!("  {why}\n")).collect();
        self.tell(&format!("\nINVALID:\n{}", lines.concat()))
    }
}

/// One run of many, as JSON has it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Run {
    pub(crate) valid: bool,
    pub(crate) reasons: Vec<String>,
    /// What could not be judged.
    pub(crate) unchecked: Vec<String>,
    pub(crate) produce: Produce,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) end_to_end: Option<EndToEnd>,
    pub(crate) schedule: Kept,
    pub(crate) verify: Verified,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) wal: Option<Wal>,
    /// What else happened on the machine.
    pub(crate) meanwhile: Option<Between>,
}

impl Run {
    pub(crate) fn of(report: &Report) -> Self {
        Self {
            valid: report.valid,
            reasons: report.reasons.clone(),
            unchecked: report.unchecked.clone(),
            produce: report.produce.clone(),
            end_to_end: report.end_to_end,
            schedule: report.schedule,
            verify: report.verify,
            wal: report.wal,
            meanwhile: report.environment.meanwhile.clone(),
        }
    }
}

/// Microseconds with one digit; a dash for what was not measured.
pub(crate) fn us(ns: Option<u64>) -> String {
    ns.map_or_else(|| "-".into(), |ns| format!("{:.1}", ns as f64 / 1000.0))
}
