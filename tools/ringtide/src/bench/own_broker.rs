//! A broker of our own: another process, or threads of this one; on a directory that is removed in the end.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use ringtide_perf::BenchError;
use ringtide_perf::broker::{Broker, Launch};
use ringtide_uring::{StopSignal, probe};
use tempfile::TempDir;

use crate::bench::placement::Placement;
use crate::config::{Config, LogFormat};
use crate::cpu_list;
use crate::logging::{self, LogGuard};
use crate::raw_config::Raw;
use crate::serve::{Opened, Serving};

/// How a broker of our own is started.
#[derive(Clone, Debug)]
pub(crate) struct Start {
    pub(crate) launch: Launch,
    pub(crate) idle: String,
    /// Further settings of `serve`, and their values.
    pub(crate) more: Vec<(String, String)>,
    /// On threads of this process, whatever the binary.
    pub(crate) in_process: bool,
}

impl Start {
    /// This program, as it is placed, in another process.
    pub(crate) fn this(placement: &Placement) -> Result<Self, BenchError> {
        let binary = std::env::current_exe()
            .map_err(BenchError::io("cannot find this program to start a broker"))?;
        let cpus = placement.broker.clone();
        Ok(Self {
            launch: Launch { binary, cpus },
            idle: placement.idle.into(),
            more: Vec::new(),
            in_process: false,
        })
    }
}

/// A broker of our own that runs.
pub(crate) struct OwnBroker {
    pub(crate) server: String,
    runs: Runs,
    home: TempDir,
}

enum Runs {
    Process(Broker),
    /// What the broker has to say goes to standard error.
    Here(Option<Serving>, LogGuard),
}

impl OwnBroker {
    pub(crate) fn start(start: &Start) -> Result<Self, BenchError> {
        let home = tempfile::Builder::new()
            .prefix("ringtide-bench-")
            .tempdir_in(".")
            .map_err(BenchError::io(
                "cannot make a directory for a broker here; go to one that can be written to, or name a \
                 broker with --server",
            ))?;
        let data = home.path().join("data");
        let (server, runs) = match start.in_process {
            true => start_here(start, &data)?,
            false => {
                let more = start
                    .more
                    .iter()
                    .flat_map(|(key, value)| [format!("--{key}"), value.clone()]);
                let more: Vec<String> = more.collect();
                let more: Vec<&str> = more.iter().map(String::as_str).collect();
                let broker = start.launch.start(&data, &start.idle, &more)?;
                (broker.server.clone(), Runs::Process(broker))
            }
        };
        Ok(Self { server, runs, home })
    }
}

fn start_here(start: &Start, data: &Path) -> Result<(String, Runs), BenchError> {
    let wrong = |why: String| BenchError::NotStarted(why);
    let decided = [
        ("data-dir", data.to_string_lossy().into_owned()),
        ("listen", "127.0.0.1:0".into()),
        ("cpus", cpu_list::show(&start.launch.cpus)),
        ("idle", start.idle.clone()),
    ];
    let mut settings: Vec<_> = decided.map(|(key, value)| (key.to_owned(), value)).into();
    settings.extend(start.more.iter().cloned());
    let settings = Raw::from_pairs(&settings).map_err(wrong)?;
    let config = Config::load(settings, None, &probe::allowed())
        .map_err(|error| wrong(error.to_string()))?;
    let log = logging::start(tracing::Level::WARN, LogFormat::Auto)
        .map_err(|failure| wrong(failure.to_string()))?;
    let opened = Opened::open(&config, &log.flusher());
    let serving = opened.and_then(|opened| opened.run(StopSignal::new()));
    let serving = serving.map_err(|failure| wrong(failure.to_string()))?;
    Ok((serving.server(), Runs::Here(Some(serving), log)))
}

impl OwnBroker {
    /// Whether a directory is on the disk that it writes to.
    pub(crate) fn is_beside(&self, dir: &Path) -> bool {
        let device = |path: &Path| Some(path.metadata().ok()?.dev());
        let own = device(self.home.path());
        own.is_some() && own == device(dir)
    }

    /// Ends it; the directory stays until this is dropped.
    pub(crate) fn stop(&mut self) {
        match &mut self.runs {
            Runs::Process(broker) => broker.end(),
            Runs::Here(serving, _log) => {
                if let Some(Err(failure)) = serving.take().map(Serving::stop) {
                    crate::output::say(format!("the broker did not end well: {failure}"));
                }
            }
        }
    }
}

impl Drop for OwnBroker {
    /// Before the directory goes.
    fn drop(&mut self) {
        self.stop();
    }
}
