//! `ringtide bench`: a load that does not wait for the broker, against one that runs or one of its own.

use std::io::{self, Write as _};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ringtide_client::TopicSettings;
use ringtide_perf::limits::{self, Limit, Limits};
use ringtide_perf::report::Report;
use ringtide_perf::workload::Workload;

use crate::bench::hlog_file::HlogFile;
use crate::bench::json_file::JsonFile;
use crate::bench::open_table::table;
use crate::bench::own_broker::Start;
use crate::bench::page_file::PageFile;
use crate::bench::placement::Placement;
use crate::bench::subject::{Load, Subject};
use crate::bench::watching::Listener;
use crate::bench::{BenchArgs, does_not_count, failure};
use crate::exit::Failure;
use crate::output::print;
use crate::progress::Progress;
use crate::signals::stop_flag;

/// How long each limit is measured.
const LIMIT_TIME: Duration = Duration::from_secs(1);

/// Runs it.
pub(crate) fn run(args: &BenchArgs) -> Result<(), Failure> {
    let mut workload = args.load.clone();
    if let Some(name) = &args.workload {
        workload = workload.or(Workload::load(name).map_err(failure)?);
    }
    let feed = workload.read_feed().map_err(failure)?;
    let placement = Placement::choose(
        args.cpus.as_deref(),
        args.broker_cpus.as_deref(),
        args.server.as_deref(),
    )?;
    let mut plan = workload.plan();
    plan.cpus.clone_from(&placement.generator);
    plan.verify = !args.no_verify;
    plan.check(feed.as_ref()).map_err(failure)?;
    let json = args.json.as_deref().map(JsonFile::create).transpose()?;
    let page = |path| PageFile::create(path, args.json.as_deref());
    let page = args.report.as_deref().map(page).transpose()?;
    let mut hlog = args.hlog.as_deref().map(HlogFile::create).transpose()?;
    let interrupted = stop_flag()?;

    let running = match (&args.server, &args.limits_dir) {
        (Some(server), Some(_)) => Some(Subject::running(server).map_err(failure)?),
        _ => None,
    };
    let broker_cpu = running.and_then(|subject| subject.cpu());
    let around = || limits_around(args, &placement, broker_cpu, &interrupted);
    let before = around()?;
    let load = Load {
        name: args.workload.as_deref(),
        workload: &workload,
        feed: feed.as_ref(),
        plan: &plan,
        settings: TopicSettings::default(),
    };
    let mut start = Start::this(&placement).map_err(failure)?;
    start.in_process = args.in_process;
    let mut subject = Subject::at(args.server.as_deref(), &start).map_err(failure)?;
    let limits_apply = limits_dir(args).is_some_and(|dir| subject.is_beside(dir));
    let topic = subject.topic(&load).map_err(failure)?;
    let listener = hlog.as_mut().map(|hlog| hlog as &mut dyn Listener);
    let ran = subject.run(&load, &topic, Progress::new(), &interrupted, listener);
    subject.stop();
    // Before much is removed, which the device would be busy with.
    let after = match (&before, &ran) {
        (Some(_), Ok((outcome, _))) if outcome.error.is_none() => around(),
        _ => Ok(None),
    };
    subject.end(&topic, ran.is_ok());
    let (outcome, mut facts) = ran.map_err(failure)?;
    if let Some(broker) = &mut facts.broker {
        broker.limits_apply = limits_apply;
    }
    match after {
        Ok(after) => facts.limits = before.zip(after),
        // What was measured is not lost with it.
        Err(why) => facts.limits_failed = Some(why.to_string()),
    }
    let report = Report::new(&plan, &outcome, facts);

    let hlog = hlog.map_or(Ok(()), HlogFile::finish);
    let mut table = table(&report);
    // Whoever reads standard output reads JSON or the page, and nothing else.
    let is_stdout_taken = json.as_ref().is_some_and(|json| json.is_stdout)
        || page.as_ref().is_some_and(PageFile::is_stdout);
    let page = page.map_or(Ok(String::new()), |page| page.write(&report));
    if let Ok(note) = &page {
        table.push_str(note);
    }
    let json = json.map_or(Ok(()), |json| json.write(&report));
    match is_stdout_taken {
        true => {
            let _ = io::stderr().write_all(table.as_bytes());
        }
        false => print(&table)?,
    }
    json?;
    page?;
    hlog?;
    if report.valid {
        return Ok(());
    }
    Err(does_not_count())
}

/// Where limits are measured, if that is wanted.
fn limits_dir(args: &BenchArgs) -> Option<&Path> {
    let here = args.server.is_none() && !args.no_limits;
    let dir = args.limits_dir.as_deref();
    dir.or_else(|| here.then_some(Path::new(".")))
}

/// What the machine can do now, if that is wanted. Nothing else may run here: with a broker of
/// our own that is the time before it and after it.
fn limits_around(
    args: &BenchArgs,
    placement: &Placement,
    broker_cpu: Option<usize>,
    interrupted: &AtomicBool,
) -> Result<Option<Limits>, Failure> {
    let Some(dir) = limits_dir(args) else {
        return Ok(None);
    };
    let client = placement.generator.first().copied().flatten().unwrap_or(0);
    let broker = broker_cpu.or_else(|| placement.broker.first().copied());
    let broker = broker.unwrap_or(client);
    let mut options = limits::Options::new(dir, broker, client);
    options.duration_each = LIMIT_TIME;
    options.which = [Limit::TcpEcho, Limit::DurableWrite].into_iter().collect();
    let mut progress = Progress::new();
    let measured = limits::measure(&options, |now| {
        progress.tick(|_| format!("limits of the machine: {}", now.phase));
        match interrupted.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    measured.map(Some).map_err(failure)
}
