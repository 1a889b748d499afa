//! `ringtide bench soak`: a load for hours, while segments and the log's files come and go.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::Args;
use ringtide_client::TopicSettings;
use ringtide_perf::BenchError;
use ringtide_perf::feed::Feed;
use ringtide_perf::open_loop::Plan;
use ringtide_perf::open_loop::schedule::Schedule;
use ringtide_perf::report::{Config, Environment, Report};
use ringtide_perf::workload::Seconds;
use serde::Serialize;

use crate::bench::growth::{Growth, Look};
use crate::bench::load_args::{LoadArgs, Prepared, Run, SCHEMA_VERSION, SubjectArgs, Teller};
use crate::bench::open_table::accounts;
use crate::bench::own_broker::Start;
use crate::bench::placement::Placement;
use crate::bench::soak_lines::{Lengths, Line, Lines, heading};
use crate::bench::subject::{Load, Subject};
use crate::bench::{does_not_count, failure};
use crate::exit::Failure;
use crate::progress::Progress;
use crate::setting::{parse_bytes, show_bytes};
use crate::signals::stop_flag;

/// What the topic keeps: subscribers that are as far behind lose nothing.
const KEPT: Duration = Duration::from_secs(30);
/// Segments of what is kept.
const SEGMENTS_KEPT: u64 = 8;
/// Bytes that a record takes beside its value, at the most, in a batch of its own.
const BESIDE_A_VALUE: u64 = 128;
/// The least that a topic keeps, unless told otherwise.
const LEAST_KEPT: u64 = 8 << 20;
/// No larger segment is needed to see many.
const LARGEST_SEGMENT: u64 = 256 << 20;
/// Files of the write-ahead log of a broker of our own, so that they are used again and again.
const WAL_SLOT: &str = "16MiB";
/// Growth that is none.
const LEAST_MEMORY: u64 = 64 << 20;
const LEAST_FILES: u64 = 32;

#[derive(Debug, Args)]
pub(crate) struct SoakArgs {
    #[command(flatten)]
    pub(crate) load: LoadArgs,
    #[command(flatten)]
    pub(crate) subject: SubjectArgs,
    /// How long is measured; hours, at most 168 [default: 1, unless --duration says it in seconds]
    #[arg(
        long,
        value_name = "H",
        conflicts_with = "duration",
        allow_negative_numbers = true
    )]
    pub(crate) hours: Option<f64>,
    /// How often there is a line; whole seconds
    #[arg(long, value_name = "SECONDS", default_value = "60",
        value_parser = clap::value_parser!(u32).range(1..=86_400), allow_negative_numbers = true)]
    pub(crate) every: u32,
    /// Of the topic: a segment is sealed before it grows past this; bytes, plain or with KiB, MiB or
    /// GiB [default: an eighth of --retention-bytes]
    #[arg(long, value_name = "BYTES", value_parser = bytes, allow_negative_numbers = true)]
    pub(crate) segment_bytes: Option<u64>,
    /// Of the topic: what each partition keeps; bytes, plain or with KiB, MiB or GiB
    /// [default: 30 s of the load, at least 8 MiB]
    #[arg(long, value_name = "BYTES", value_parser = bytes, allow_negative_numbers = true)]
    pub(crate) retention_bytes: Option<u64>,
}

fn bytes(text: &str) -> Result<u64, String> {
    let bytes = parse_bytes(text).filter(|bytes| (4096..=1 << 40).contains(bytes));
    bytes.ok_or_else(|| {
        "give bytes from 4 KiB to 1 TiB, as a number or with KiB, MiB or GiB behind it".into()
    })
}

/// What is written as JSON.
#[derive(Debug, Serialize)]
struct Soak {
    schema_version: u32,
    kind: &'static str,
    valid: bool,
    reasons: Vec<String>,
    config: Config,
    environment: Environment,
    segment_bytes: u64,
    retention_bytes: u64,
    /// All of it.
    run: Run,
    /// From one line to the next.
    interval_s: u32,
    lines: Vec<Line>,
    /// Of the broker, in bytes; absent for one that is not here.
    #[serde(skip_serializing_if = "Option::is_none")]
    resident_bytes: Option<Growth>,
    /// Of the broker; absent for one that is not here.
    #[serde(skip_serializing_if = "Option::is_none")]
    open_files: Option<Growth>,
}

/// Segments and retention of the topic, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sizes {
    segment: u64,
    retention: u64,
}

impl Sizes {
    /// As asked for; else by the load.
    fn choose(args: &SoakArgs, plan: &Plan, feed: Option<&Feed>) -> Self {
        let record = plan.value_bytes() as u64 + BESIDE_A_VALUE;
        let rate_per_s = match (plan.schedule, feed) {
            (Schedule::Feed, Some(feed)) => feed.rate_per_s(plan.speed, plan.max_silence),
            _ => plan.rate_per_s,
        };
        let rate = rate_per_s / f64::from(plan.partitions);
        let of_the_load = (rate * record as f64 * KEPT.as_secs_f64()) as u64;
        let retention = args
            .retention_bytes
            .unwrap_or_else(|| of_the_load.max(LEAST_KEPT));
        let segment = (retention / SEGMENTS_KEPT).clamp(4096, LARGEST_SEGMENT);
        Self {
            segment: args.segment_bytes.unwrap_or(segment),
            retention,
        }
    }

    fn settings(self) -> Result<TopicSettings, Failure> {
        let segment = u32::try_from(self.segment)
            .ok()
            .filter(|&bytes| bytes <= 1 << 31);
        let segment = segment.ok_or_else(|| {
            Failure::usage("--segment-bytes: a segment has at most 2 GiB: give less")
        })?;
        Ok(TopicSettings {
            segment_bytes: Some(segment),
            retention_bytes: Some(self.retention.cast_signed()),
            ..TopicSettings::default()
        })
    }
}

/// Runs it.
pub(crate) fn run(args: &SoakArgs) -> Result<(), Failure> {
    let server = args.subject.server.as_deref();
    let placement = args.load.placement(server)?;
    let prepared = prepare(args, &placement)?;
    let sizes = Sizes::choose(args, &prepared.plan, prepared.feed.as_ref());
    let load = Load {
        name: args.load.workload.as_deref(),
        workload: &prepared.workload,
        feed: prepared.feed.as_ref(),
        plan: &prepared.plan,
        settings: sizes.settings()?,
    };
    let json = args.load.json_file()?;
    let teller = Teller::beside(json.as_ref());
    let interrupted = stop_flag()?;

    let subject = match server {
        Some(server) => Subject::running(server),
        None => own(&placement),
    };
    let subject = subject.map_err(failure)?;
    teller.tell(&introduction(args, &prepared.plan, sizes))?;
    let (report, lines) = soak(args, &subject, &load, teller, &interrupted)?;
    drop(subject);
    let soak = judged(args, sizes, &report, lines);
    teller.tell(&summary(&soak))?;
    teller.judge(&soak.reasons)?;
    if let Some(json) = json {
        json.write(&soak)?;
    }
    match soak.valid {
        true => Ok(()),
        false => Err(does_not_count()),
    }
}

/// The load, for as long as is asked for.
fn prepare(args: &SoakArgs, placement: &Placement) -> Result<Prepared, Failure> {
    let mut workload = args.load.workload()?;
    if let Some(hours) = args
        .hours
        .or_else(|| workload.duration.is_none().then_some(1.0))
    {
        if !(hours > 0.0 && hours <= 168.0) {
            return Err(Failure::usage(format!(
                "--hours {hours}: give more than 0, and at most 168"
            )));
        }
        workload.duration = Some(Seconds(Duration::from_secs_f64(hours * 3600.0)));
    }
    let prepared = Prepared::new(workload, placement)?;
    let plan = &prepared.plan;
    if plan.subscribers == 0 {
        return Err(Failure::usage(
            "a soak needs subscribers, because what they have read is removed and cannot be read \
             back in the end: give --subscribers 1 or more",
        ));
    }
    if plan.replayers > 0 || plan.preload_bytes > 0 {
        return Err(Failure::usage(
            "a soak removes what was published: leave --replayers and --preload out",
        ));
    }
    Ok(prepared)
}

/// A broker of our own, with small files of its log.
fn own(placement: &Placement) -> Result<Subject, BenchError> {
    let mut start = Start::this(placement)?;
    start.more = vec![("wal-slot-bytes".into(), WAL_SLOT.into())];
    Subject::own(&start)
}

fn soak(
    args: &SoakArgs,
    subject: &Subject,
    load: &Load<'_>,
    teller: Teller,
    interrupted: &AtomicBool,
) -> Result<(Report, Vec<Line>), Failure> {
    let topic = subject.topic(load).map_err(failure)?;
    let lengths = Lengths {
        warm_up: load.plan.warm_up,
        duration: load.plan.duration,
        every: Duration::from_secs(args.every.into()),
    };
    let mut lines = Lines::new(subject, &topic, teller, lengths, interrupted);
    let progress = Progress::beside_output();
    let ran = subject.run(load, &topic, progress, interrupted, Some(&mut lines));
    let lines = lines.finish();
    let went_well = matches!(&ran, Ok((outcome, _)) if outcome.error.is_none());
    if !subject.is_own() {
        subject.delete(&topic, went_well);
    }
    let (outcome, facts) = ran.map_err(failure)?;
    Ok((Report::new(load.plan, &outcome, facts), lines?))
}

fn judged(args: &SoakArgs, sizes: Sizes, report: &Report, lines: Vec<Line>) -> Soak {
    let growth = |of: fn(&Line) -> Option<u64>, least: u64| -> Option<Growth> {
        // What is left of the last interval is one as well.
        let looks = lines
            .iter()
            .filter_map(|line| Some((line.end_s(), of(line)?)));
        let looks: Vec<Look> = looks.collect();
        // Until it removes something the topic still fills up.
        let settled = lines.iter().find(|line| line.removed_records > Some(0));
        Growth::of(&looks, settled.map(Line::end_s), least)
    };
    let resident_bytes = growth(|line| line.resident_bytes, LEAST_MEMORY);
    let open_files = growth(|line| line.open_files, LEAST_FILES);
    let mut reasons = report.reasons.clone();
    if let Some(growth) = resident_bytes.as_ref().filter(|growth| growth.is_a_leak()) {
        reasons.push(format!(
            "the broker's memory keeps growing: from {} MiB after the first line to {} MiB",
            growth.first >> 20,
            growth.last >> 20
        ));
    }
    if let Some(growth) = open_files.as_ref().filter(|growth| growth.is_a_leak()) {
        reasons.push(format!(
            "the broker's open files keep growing: from {} after the first line to {}",
            growth.first, growth.last
        ));
    }
    Soak {
        schema_version: SCHEMA_VERSION,
        kind: "soak",
        valid: reasons.is_empty(),
        reasons,
        config: report.config.clone(),
        environment: report.environment.clone(),
        segment_bytes: sizes.segment,
        retention_bytes: sizes.retention,
        run: Run::of(report),
        interval_s: args.every,
        lines,
        resident_bytes,
        open_files,
    }
}

fn introduction(args: &SoakArgs, plan: &Plan, sizes: Sizes) -> String {
    format!(
        "{} s after {} s of warm-up, segments of {}, {} kept of each partition; a line every {} s, \
         latencies in microseconds from due to acknowledged\n\n{}",
        plan.duration.as_secs_f64(),
        plan.warm_up.as_secs_f64(),
        show_bytes(sizes.segment),
        show_bytes(sizes.retention),
        args.every,
        heading()
    )
}

fn summary(soak: &Soak) -> String {
    let mut text = String::from("\n");
    if let Some(memory) = &soak.resident_bytes {
        text.push_str(&format!(
            "memory of the broker: {} MiB after the first line, {} MiB at the end, {} MiB at most\n",
            memory.first >> 20,
            memory.last >> 20,
            memory.most >> 20
        ));
    }
    if let Some(files) = &soak.open_files {
        text.push_str(&format!(
            "open files of the broker: {} after the first line, {} at the end, {} at most\n",
            files.first, files.last, files.most
        ));
    }
    if soak
        .lines
        .last()
        .is_some_and(|line| line.removed_records == Some(0))
    {
        text.push_str("nothing was removed: run it longer, or give a smaller --retention-bytes\n");
    }
    text.push_str(&accounts(&soak.run.verify.balance));
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::bench::BenchCommand;
    use crate::cli::{Cli, Command};

    fn args() -> SoakArgs {
        let cli = Cli::try_parse_from(["ringtide", "bench", "soak"]).expect("good");
        match cli.command {
            Command::Bench(bench) => match bench.command {
                Some(BenchCommand::Soak(args)) => *args,
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_a_topic_keeps_is_of_the_rate_at_which_a_feed_is_played() {
        let feed = Feed::generated(1, 70_000);
        let played = |speed| Plan {
            schedule: Schedule::Feed,
            speed,
            ..Plan::default()
        };
        let kept = |plan: &Plan| Sizes::choose(&args(), plan, Some(&feed)).retention;
        let constant = kept(&Plan::default());
        assert_eq!(constant, 30 * 10_000 * (128 + BESIDE_A_VALUE));
        let fast = kept(&played(1000.0));
        assert!(
            fast > 2 * kept(&played(100.0)) && fast != constant,
            "{fast}"
        );
    }
}
