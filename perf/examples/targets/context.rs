//! What every measurement is given.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ringtide_perf::{BenchError, closed_loop};

use ringtide_perf::broker::{Broker, Launch};

/// A disk that was written to for this long after everything was said is written to for ever.
const SETTLE_AT_MOST: Duration = Duration::from_secs(60);

/// The arguments.
#[derive(Clone, Debug)]
pub struct Context {
    pub home: PathBuf,
    pub binary: PathBuf,
    pub pairs: usize,
    pub duration: Duration,
    pub steady: Duration,
    pub client_cpu: usize,
    pub broker_cpu: usize,
    pub bytes: u64,
    pub connections: usize,
    pub large_bytes: u64,
}

impl Context {
    /// A data directory that is not there yet.
    pub fn data_dir(&self, name: &str) -> Result<PathBuf, BenchError> {
        let dir = self.home.join(name);
        if dir.exists() {
            std::fs::remove_dir_all(&dir)
                .map_err(BenchError::io(format!("cannot remove {}", dir.display())))?;
        }
        Ok(dir)
    }

    /// How brokers are started here.
    pub fn launch(&self) -> Launch {
        Launch {
            binary: self.binary.clone(),
            cpus: vec![self.broker_cpu],
        }
    }

    /// A spinning broker on a new data directory that has made all files of its log.
    pub fn broker(&self, name: &str) -> Result<(Broker, PathBuf), BenchError> {
        let dir = self.data_dir(name)?;
        let broker = self.launch().start(&dir, "spin", &[])?;
        settle(&broker)?;
        Ok((broker, dir))
    }

    /// A closed loop on the client's CPU.
    pub fn closed_loop(&self, broker: &Broker) -> closed_loop::Options {
        let mut options = closed_loop::Options::new(&broker.server);
        options.cpu = Some(self.client_cpu);
        options.duration = self.duration;
        options.warm_up = self.duration / 4;
        options
    }

    /// Measures in pairs.
    pub fn in_pairs<T>(
        &self,
        mut pair: impl FnMut(usize) -> Result<T, BenchError>,
    ) -> Result<Vec<T>, BenchError> {
        (0..self.pairs).map(&mut pair).collect()
    }
}

/// Waits until the broker has written nothing for a while.
pub fn settle(broker: &Broker) -> Result<(), BenchError> {
    const QUIET: Duration = Duration::from_millis(2500);
    let began = Instant::now();
    let (mut written, mut since) = (broker.written_bytes()?, began);
    while since.elapsed() < QUIET {
        if began.elapsed() > SETTLE_AT_MOST {
            return Err(BenchError::Wrong(
                "the broker writes although nobody publishes".into(),
            ));
        }
        std::thread::sleep(Duration::from_millis(100));
        let now = broker.written_bytes()?;
        if now != written {
            (written, since) = (now, Instant::now());
        }
    }
    Ok(())
}

/// The segments of a data directory, in the order of their names.
pub fn segments(dir: &Path) -> Result<Vec<PathBuf>, BenchError> {
    let mut found = Vec::new();
    for partition in list(&dir.join("partitions"))? {
        found.extend(
            list(&partition)?
                .into_iter()
                .filter(|f| f.extension() == Some("log".as_ref())),
        );
    }
    found.sort();
    Ok(found)
}

/// What a directory holds.
pub fn list(dir: &Path) -> Result<Vec<PathBuf>, BenchError> {
    let entries =
        std::fs::read_dir(dir).map_err(BenchError::io(format!("cannot list {}", dir.display())))?;
    Ok(entries.flatten().map(|entry| entry.path()).collect())
}
