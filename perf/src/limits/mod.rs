//! What the machine can do without a broker: figures of a broker are given as ratios to these.
//!
//! Each does the least that could be called the same work, in the way that costs least: sockets are
//! polled by both sides with `sched_yield` in idle turns, files are written past the page cache.
//! [`measure`] takes all of them, or those that are wanted, with threads placed as a broker and its
//! client would be; nothing it makes is left behind.

mod disk;
mod echo;
mod memory;
mod pace;
mod place;
mod scratch;
mod send;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ringtide_schema::limits::BLOCK_BYTES;
use serde::Serialize;

use crate::cpu;
use crate::error::BenchError;
use crate::latency::Latency;

pub use disk::{DurableFile, Writes, read_direct, write_direct};
pub use echo::{Waiting, echo};
pub use memory::{MemoryCopy, copy, crc32c};
pub use pace::Pace;
pub use place::Place;
pub use send::{Sending, fastest_sending, send_files};

/// Bytes that go there and back in an echo.
const ECHO_BYTES: usize = 128;
/// Bytes of the larger durable write.
const LARGE_WRITE_BYTES: usize = 64 << 10;

/// Something that a machine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// 128 bytes there and back over loopback TCP, both sides polling.
    TcpEcho,
    /// The same, both sides sleeping in the kernel.
    TcpEchoBlocking,
    /// A durable write of 4 KiB.
    DurableWrite,
    /// A durable write of 64 KiB.
    DurableWrite64k,
    /// Copying memory.
    MemoryCopy,
    /// The checksum of the formats.
    Crc32c,
    /// Sending a file in the page cache over loopback TCP.
    SendFile,
}

impl Limit {
    /// Each of them, in the order in which they are measured.
    pub const ALL: [Self; 7] = [
        Self::TcpEcho,
        Self::TcpEchoBlocking,
        Self::DurableWrite,
        Self::DurableWrite64k,
        Self::MemoryCopy,
        Self::Crc32c,
        Self::SendFile,
    ];

    /// For a line that says how far it is.
    fn phase(self) -> &'static str {
        match self {
            Self::TcpEcho => "echo, polling",
            Self::TcpEchoBlocking => "echo, blocking",
            Self::DurableWrite => "durable writes of 4 KiB",
            Self::DurableWrite64k => "durable writes of 64 KiB",
            Self::MemoryCopy => "copying memory",
            Self::Crc32c => "CRC-32C",
            Self::SendFile => "sending a file",
        }
    }
}

/// A set of limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Which(u8);

impl Which {
    /// All there are.
    pub const ALL: Self = Self((1 << Limit::ALL.len()) - 1);

    /// Whether it is wanted.
    #[must_use]
    pub fn contains(self, limit: Limit) -> bool {
        self.0 & 1 << limit as u8 != 0
    }

    /// How many there are.
    fn count(self) -> u32 {
        self.0.count_ones()
    }
}

impl FromIterator<Limit> for Which {
    fn from_iter<T: IntoIterator<Item = Limit>>(limits: T) -> Self {
        let bits = limits.into_iter().map(|limit| 1 << limit as u8);
        Self(bits.fold(0, |set, bit| set | bit))
    }
}

/// What is measured, where and for how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// A directory on the device to be measured; files in it have no name.
    pub dir: PathBuf,
    /// The CPU of the side that answers and of the one that asks; the former sends files to the
    /// latter.
    pub echo_cpus: (usize, usize),
    /// Where a shard would write its log; copies and checksums are measured there too.
    pub disk_cpu: usize,
    /// Where something spins while durable writes are measured, as a client would. On the CPU that
    /// the device interrupts it may cost milliseconds.
    pub beside_spinner: Option<usize>,
    /// How long each is measured, after a tenth of it as warm-up.
    pub duration_each: Duration,
    /// What is measured.
    pub which: Which,
}

impl Options {
    /// All limits, for three seconds each, placed as a shard and a busy-polling client on these CPUs.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>, broker_cpu: usize, client_cpu: usize) -> Self {
        Self {
            dir: dir.into(),
            echo_cpus: (broker_cpu, client_cpu),
            disk_cpu: broker_cpu,
            beside_spinner: Some(client_cpu),
            duration_each: Duration::from_secs(3),
            which: Which::ALL,
        }
    }
}

/// How far it is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// What is being measured.
    pub phase: &'static str,
    /// How long it has been.
    pub elapsed: Duration,
    /// How long it will be, but for making files.
    pub total: Duration,
}

/// What the machine did; what was not wanted is absent. Times are in nanoseconds, rates in bytes a
/// second.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Limits {
    /// Where.
    pub place: Place,
    /// How long each was measured.
    pub duration_each_s: f64,
    /// 128 bytes there and back over loopback TCP, both sides polling.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_echo_ns: Option<Latency>,
    /// The same, both sides sleeping in the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_echo_blocking_ns: Option<Latency>,
    /// 4 KiB, O_DIRECT and O_DSYNC over zero-written blocks, one in flight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub durable_write_ns: Option<Latency>,
    /// The same of 64 KiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub durable_write_64k_ns: Option<Latency>,
    /// On one CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_copy_bytes_per_s: Option<MemoryCopy>,
    /// On one CPU, over 64 KiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crc32c_bytes_per_s: Option<u64>,
    /// From the page cache over loopback TCP, in the fastest of the ways in [`Sending::ALL`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub send_file_bytes_per_s: Option<u64>,
}

impl Limits {
    fn nothing(options: &Options) -> Self {
        let (device, file_system) = place::device(&options.dir).unzip();
        Self {
            place: Place {
                kernel: place::kernel(),
                server_cpu: options.echo_cpus.0,
                client_cpu: options.echo_cpus.1,
                disk_cpu: options.disk_cpu,
                spinner_cpu: options.beside_spinner,
                device,
                file_system,
            },
            duration_each_s: options.duration_each.as_secs_f64(),
            tcp_echo_ns: None,
            tcp_echo_blocking_ns: None,
            durable_write_ns: None,
            durable_write_64k_ns: None,
            memory_copy_bytes_per_s: None,
            crc32c_bytes_per_s: None,
            send_file_bytes_per_s: None,
        }
    }
}

/// Measures one after the other. `progress` is called now and then, between samples; it may ask for
/// the end.
///
/// # Errors
/// What the machine refused, and where; [`BenchError::Interrupted`].
pub fn measure(
    options: &Options,
    mut progress: impl FnMut(Progress) -> ControlFlow<()> + Send,
) -> Result<Limits, BenchError> {
    if options.duration_each.is_zero() {
        return Err(BenchError::Usage(
            "the duration must be longer than nothing".into(),
        ));
    }
    let (server, client) = options.echo_cpus;
    for cpu in [server, client, options.disk_cpu]
        .into_iter()
        .chain(options.beside_spinner)
    {
        cpu::on(Some(cpu), || ()).map_err(BenchError::io("cannot place the measurement"))?;
    }
    let total = options.duration_each.mul_f64(1.1) * options.which.count();
    let began = Instant::now();
    let mut limits = Limits::nothing(options);
    let wanted = Limit::ALL.into_iter();
    for limit in wanted.filter(|limit| options.which.contains(*limit)) {
        let mut pace = Pace::telling(options.duration_each, || {
            progress(Progress {
                phase: limit.phase(),
                elapsed: began.elapsed().min(total),
                total,
            })
        });
        one(limit, options, &mut pace, &mut limits)?;
    }
    Ok(limits)
}

/// Measures this one.
fn one(
    limit: Limit,
    options: &Options,
    pace: &mut Pace<'_>,
    limits: &mut Limits,
) -> Result<(), BenchError> {
    let (server, client) = options.echo_cpus;
    let mut echo = |waiting| echo(client, server, ECHO_BYTES, waiting, pace).map(Some);
    match limit {
        Limit::TcpEcho => limits.tcp_echo_ns = echo(Waiting::Polling)?,
        Limit::TcpEchoBlocking => limits.tcp_echo_blocking_ns = echo(Waiting::Blocking)?,
        Limit::DurableWrite => {
            limits.durable_write_ns = Some(durable(options, BLOCK_BYTES, pace)?);
        }
        Limit::DurableWrite64k => {
            limits.durable_write_64k_ns = Some(durable(options, LARGE_WRITE_BYTES, pace)?);
        }
        Limit::MemoryCopy => limits.memory_copy_bytes_per_s = Some(copy(options.disk_cpu, pace)?),
        Limit::Crc32c => limits.crc32c_bytes_per_s = Some(crc32c(options.disk_cpu, pace)?),
        Limit::SendFile => {
            let rate = fastest_sending(&options.dir, server, client, pace)?;
            limits.send_file_bytes_per_s = Some(rate);
        }
    }
    Ok(())
}

fn durable(options: &Options, bytes: usize, pace: &mut Pace<'_>) -> Result<Latency, BenchError> {
    let writes = Writes {
        bytes,
        cpu: options.disk_cpu,
        beside_spinner: options.beside_spinner,
    };
    DurableFile::create(&options.dir)?.measure(writes, pace)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// As short as can be, all on one CPU, on a file system that may have direct I/O.
    fn short(which: impl IntoIterator<Item = Limit>) -> (tempfile::TempDir, Options) {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory");
        let mut options = Options::new(dir.path(), 0, 0);
        options.duration_each = Duration::from_millis(20);
        options.which = which.into_iter().collect();
        (dir, options)
    }

    fn figures(limits: &Limits) -> Vec<String> {
        let json = serde_json::to_value(limits).expect("JSON");
        let Value::Object(fields) = json else {
            panic!("{json}");
        };
        let names = fields.into_iter().map(|(name, _)| name);
        names
            .filter(|name| name.ends_with("_ns") || name.ends_with("_bytes_per_s"))
            .collect()
    }

    #[test]
    fn one_that_is_wanted_gives_that_one() {
        for (limit, name) in Limit::ALL.into_iter().zip([
            "tcp_echo_ns",
            "tcp_echo_blocking_ns",
            "durable_write_ns",
            "durable_write_64k_ns",
            "memory_copy_bytes_per_s",
            "crc32c_bytes_per_s",
            "send_file_bytes_per_s",
        ]) {
            let (_dir, options) = short([limit]);
            let limits = measure(&options, |_| ControlFlow::Continue(())).expect("measured");
            assert_eq!(figures(&limits), [name], "{limit:?}");
        }
    }

    #[test]
    fn quantiles_ascend() {
        let (_dir, options) = short([Limit::TcpEchoBlocking, Limit::DurableWrite]);
        let limits = measure(&options, |_| ControlFlow::Continue(())).expect("measured");
        for of in [limits.tcp_echo_blocking_ns, limits.durable_write_ns] {
            let l = of.expect("it was wanted");
            let ascending = [l.min, l.p50, l.p90, l.p99, l.p99_9, l.p99_99, l.max];
            assert!(l.min > 0 && l.count > 0 && ascending.is_sorted(), "{l:?}");
        }
    }

    #[test]
    fn nothing_is_in_the_directory_while_it_is_measured_nor_after() {
        let (dir, options) = short([Limit::DurableWrite, Limit::SendFile]);
        let files = || std::fs::read_dir(dir.path()).expect("there").count();
        let mut phases = Vec::new();
        let measured = measure(&options, |now| {
            phases.push(now.phase);
            assert_eq!(files(), 0, "{now:?}");
            ControlFlow::Continue(())
        });
        measured.expect("measured");
        phases.dedup();
        assert_eq!(phases, ["durable writes of 4 KiB", "sending a file"]);
        assert_eq!(files(), 0);
    }

    #[test]
    fn a_measurement_that_is_interrupted_gives_no_figures() {
        for limit in Limit::ALL {
            let (dir, mut options) = short([limit]);
            options.duration_each = Duration::from_secs(3600);
            let ended = measure(&options, |_| ControlFlow::Break(()));
            assert!(matches!(ended, Err(BenchError::Interrupted)), "{ended:?}");
            assert_eq!(std::fs::read_dir(dir.path()).expect("there").count(), 0);
        }
    }

    #[test]
    fn a_cpu_that_is_not_there_is_named_before_anything_is_measured() {
        let (_dir, options) = short(Limit::ALL);
        let with = |change: fn(&mut Options)| {
            let mut options = options.clone();
            change(&mut options);
            options
        };
        for options in [
            with(|options| options.echo_cpus.0 = 1023),
            with(|options| options.echo_cpus.1 = 1023),
            with(|options| options.disk_cpu = 1023),
            with(|options| options.beside_spinner = Some(1023)),
        ] {
            let error = measure(&options, |now| panic!("{now:?}")).expect_err("no such CPU");
            assert!(error.to_string().contains("1023"), "{error}");
        }
    }
}
