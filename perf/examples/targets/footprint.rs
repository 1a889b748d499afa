//! What a broker costs while it does little.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::ControlFlow;
use std::time::Duration;

use ringtide_client::Acks;
use ringtide_perf::pipe::Pipe;
use ringtide_perf::{BenchError, closed_loop};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::context::Context;
use crate::report::{Line, Target};
use crate::starting::populate;
use ringtide_perf::broker::Broker;

const MIB: f64 = 1024.0 * 1024.0;
/// After the last request, until everything is as it will stay.
const CALM: Duration = Duration::from_secs(3);

/// Resident memory with 100 partitions, on a new data directory and after a restart.
pub fn memory(context: &Context) -> Result<Vec<Line>, BenchError> {
    let dir = context.data_dir("memory")?;
    let broker = context.launch().start(&dir, "adaptive", &[])?;
    populate(&broker, 100)?;
    let fresh = calm_resident(&broker)?;
    broker.stop()?;
    let broker = context.launch().start(&dir, "adaptive", &[])?;
    let again = calm_resident(&broker)?;
    broker.stop()?;
    let line =
        |name, bytes: u64| Line::figure(name, "MiB", [bytes as f64 / MIB], Target::AtMost(32.0));
    Ok(vec![
        line("resident, 100 partitions", fresh),
        line("resident, 100 partitions, restarted", again),
    ])
}

fn calm_resident(broker: &Broker) -> Result<u64, BenchError> {
    std::thread::sleep(CALM);
    broker.resident_bytes()
}

/// Time on a CPU of an adaptive broker that nobody asks anything.
pub fn idle(context: &Context) -> Result<Vec<Line>, BenchError> {
    const WATCHED: Duration = Duration::from_secs(10);
    let dir = context.data_dir("idle")?;
    let broker = context.launch().start(&dir, "adaptive", &[])?;
    populate(&broker, 100)?;
    let connected = Pipe::connect(&broker.server, None)?;
    crate::context::settle(&broker)?;
    std::thread::sleep(CALM);
    let before = broker.cpu_time()?;
    std::thread::sleep(WATCHED);
    let used = broker.cpu_time()?.saturating_sub(before);
    drop(connected);
    broker.stop()?;
    let percent = used.as_secs_f64() / WATCHED.as_secs_f64() * 100.0;
    Ok(vec![Line::figure(
        "idle, adaptive",
        "% CPU",
        [percent],
        Target::AtMost(1.0),
    )])
}

/// Bytes of the binary.
pub fn binary(context: &Context) -> Result<Vec<Line>, BenchError> {
    let path = &context.binary;
    let file = std::fs::metadata(path)
        .map_err(BenchError::io(format!("cannot look at {}", path.display())))?;
    let size = file.len() as f64 / 1e6;
    Ok(vec![Line::figure(
        "binary",
        "MB",
        [size],
        Target::AtMost(12.0),
    )])
}

/// What idle connections cost, in memory and to one that is not idle.
pub fn connections(context: &Context) -> Result<Vec<Line>, BenchError> {
    let wanted = context.connections;
    allow_files(wanted as u64 + 100)?;
    let (broker, _) = context.broker("connections")?;
    let mut active = context.closed_loop(&broker);
    active.acks = Acks::Accepted;
    let p99 = || {
        let report = closed_loop::run(&active, |_| ControlFlow::Continue(()))?;
        Ok::<_, BenchError>(report.produce.latency_ns.p99 as f64 / 1000.0)
    };
    let mut costs = Vec::new();
    let pairs = context.in_pairs(|pair| {
        let alone = p99()?;
        let before = broker.resident_bytes()?;
        // An address of their own: the ports of those closed before are not free at once.
        let source = IpAddr::V4(Ipv4Addr::new(127, 0, 1, 1 + (pair % 250) as u8));
        let idle: Vec<Pipe> = (0..wanted)
            .map(|_| Pipe::connect(&broker.server, Some(source)))
            .collect::<Result<_, _>>()?;
        std::thread::sleep(CALM);
        let cost = broker.resident_bytes()?.saturating_sub(before);
        costs.push(cost as f64 / wanted as f64);
        let beside = p99()?;
        drop(idle);
        std::thread::sleep(CALM);
        Ok((alone, beside))
    })?;
    broker.stop()?;
    // Memory once taken is used again, so that only the first time tells.
    let first = costs.first().copied().unwrap_or(f64::NAN);
    Ok(vec![
        Line::figure(
            format!("resident per idle connection of {wanted}"),
            "bytes",
            [first],
            Target::AtMost(8192.0),
        ),
        Line::ratio(
            "accepted p99 beside idle ones / alone",
            "us",
            pairs,
            Target::AtMost(1.2),
        ),
    ])
}

/// Allows this process, and the brokers that it starts, as many open files as the system does.
fn allow_files(wanted: u64) -> Result<(), BenchError> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    )
    .map_err(|errno| BenchError::io("cannot raise the limit of open files")(errno.into()))?;
    if maximum.is_some_and(|maximum| maximum < wanted) {
        return Err(BenchError::Wrong(format!(
            "only {maximum:?} files may be open, {wanted} are needed; raise it with `ulimit -Hn`"
        )));
    }
    Ok(())
}
