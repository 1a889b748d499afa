//! `ringtide bench sweep`: the highest rate at which a latency is kept.

use std::sync::atomic::AtomicBool;

use clap::Args;
use ringtide_client::TopicSettings;
use ringtide_perf::BenchError;
use ringtide_perf::open_loop::ledger::Balance;
use ringtide_perf::open_loop::schedule::Schedule;
use ringtide_perf::report::{Config, Environment, Report};
use ringtide_perf::workload::{Seconds, Workload};
use serde::Serialize;

use crate::bench::load_args::{LoadArgs, Prepared, Run, SCHEMA_VERSION, SubjectArgs, Teller, us};
use crate::bench::own_broker::Start;
use crate::bench::search::{Figures, GENERATOR_LATE, Search, Seen};
use crate::bench::subject::{Load, Subject};
use crate::bench::{does_not_count, failure};
use crate::exit::Failure;
use crate::progress::{Progress, grouped};
use crate::signals::stop_flag;

#[derive(Debug, Args)]
pub(crate) struct SweepArgs {
    #[command(flatten)]
    pub(crate) load: LoadArgs,
    #[command(flatten)]
    pub(crate) subject: SubjectArgs,
    /// The first rate; records a second
    #[arg(
        long,
        value_name = "R",
        default_value = "1000",
        allow_negative_numbers = true
    )]
    pub(crate) from: f64,
    /// No higher rate is tried; records a second
    #[arg(
        long,
        value_name = "R",
        default_value = "10000000",
        allow_negative_numbers = true
    )]
    pub(crate) to: f64,
    /// 99 of 100 records are to be acknowledged within this, from when they were due; microseconds
    #[arg(
        long,
        value_name = "US",
        default_value = "1000",
        allow_negative_numbers = true
    )]
    pub(crate) p99: f64,
    /// How many steps it takes on the way up to double the rate
    #[arg(long, value_name = "N", default_value = "1",
        value_parser = clap::value_parser!(u32).range(1..=10), allow_negative_numbers = true)]
    pub(crate) steps_per_doubling: u32,
    /// How long each step is measured, after --warm-up; seconds
    #[arg(
        long,
        value_name = "SECONDS",
        default_value = "5",
        allow_negative_numbers = true
    )]
    pub(crate) step_duration: Seconds,
}

/// What is written as JSON.
#[derive(Debug, Serialize)]
struct Sweep {
    schema_version: u32,
    kind: &'static str,
    valid: bool,
    reasons: Vec<String>,
    from_per_s: f64,
    to_per_s: f64,
    p99_limit_ns: u64,
    /// Null when none was seen to hold.
    highest_rate_per_s: Option<f64>,
    /// Whether that is `to_per_s`, and a higher one may hold as well.
    reached_to: bool,
    steps: Vec<Step>,
    /// Of the first step.
    config: Config,
    /// Of the first step.
    environment: Environment,
}

/// One step.
#[derive(Clone, Debug, Serialize)]
struct Step {
    rate_per_s: f64,
    holds: bool,
    /// Why it does not hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<&'static str>,
    /// Whether somebody else took time of the machine.
    disturbed: bool,
    /// Whether it decided anything: it was not repeated.
    believed: bool,
    #[serde(flatten)]
    run: Run,
}

/// Runs it.
pub(crate) fn run(args: &SweepArgs) -> Result<(), Failure> {
    let workload = args.load.workload()?;
    check(args, &workload)?;
    let server = args.subject.server.as_deref();
    let placement = args.load.placement(server)?;
    let prepared = Prepared::new(at_rate(workload, args, args.from), &placement)?;
    let json = args.load.json_file()?;
    let teller = Teller::beside(json.as_ref());
    let interrupted = stop_flag()?;

    let subject =
        Subject::at(server, &Start::this(&placement).map_err(failure)?).map_err(failure)?;
    teller.tell(&heading(args))?;
    let mut sweeping = Sweeping {
        args,
        prepared,
        subject,
        interrupted: &interrupted,
        teller,
        search: Search::new(args.from, args.to, args.steps_per_doubling),
        steps: Vec::new(),
        first: None,
        ended_by: None,
    };
    sweeping.walk()?;
    let sweep = sweeping.judged()?;
    teller.tell(&last_line(&sweep))?;
    teller.judge(&sweep.reasons)?;
    let valid = sweep.valid;
    if let Some(json) = json {
        json.write(&sweep)?;
    }
    match valid {
        true => Ok(()),
        false => Err(does_not_count()),
    }
}

/// What cannot be.
fn check(args: &SweepArgs, workload: &Workload) -> Result<(), Failure> {
    let refuse = |why: String| Err(Failure::usage(why));
    let (from, to) = (args.from, args.to);
    if args.load.load.rate.is_some() || args.load.load.duration.is_some() {
        return refuse(
            "a sweep has many rates: give --from and --to instead of --rate, and --step-duration \
             instead of --duration"
                .into(),
        );
    }
    if workload.feed.is_some() && workload.schedule.is_none()
        || matches!(workload.schedule, Some(Schedule::Feed | Schedule::Ramp(_)))
    {
        return refuse(
            "a sweep chooses the rate: give --schedule constant, poisson or bursts:N".into(),
        );
    }
    for (flag, rate) in [("from", from), ("to", to)] {
        if !(rate > 0.0 && rate <= 1e8) {
            return refuse(format!(
                "--{flag}: a rate of {rate} records a second is impossible: give more than 0 and at \
                 most 100 million"
            ));
        }
    }
    if from > to {
        return refuse(format!(
            "--from {from} is above --to {to}: the rate goes up from the one to the other"
        ));
    }
    if !(args.p99 > 0.0 && args.p99 <= 1e9) {
        return refuse(format!(
            "--p99 {}: give microseconds above 0, at most 1,000,000,000",
            args.p99
        ));
    }
    if args.step_duration.0.is_zero() {
        return refuse("--step-duration must be longer than nothing".into());
    }
    Ok(())
}

fn at_rate(mut workload: Workload, args: &SweepArgs, rate: f64) -> Workload {
    workload.rate = Some(rate);
    workload.duration = Some(args.step_duration);
    workload
}

fn limit_ns(args: &SweepArgs) -> u64 {
    (args.p99 * 1000.0).round() as u64
}

/// A sweep as it goes.
struct Sweeping<'a> {
    args: &'a SweepArgs,
    prepared: Prepared,
    subject: Subject,
    interrupted: &'a AtomicBool,
    teller: Teller,
    search: Search,
    steps: Vec<Step>,
    first: Option<(Config, Environment)>,
    /// Before its time.
    ended_by: Option<BenchError>,
}

impl Sweeping<'_> {
    fn walk(&mut self) -> Result<(), Failure> {
        while self.ended_by.is_none()
            && let Some(rate) = self.search.next()
        {
            match self.measure(rate) {
                Ok(report) => self.take(rate, &report)?,
                Err(error) => self.ended_by = Some(error),
            }
        }
        Ok(())
    }

    /// One step, with a topic of its own.
    fn measure(&mut self, rate: f64) -> Result<Report, BenchError> {
        self.prepared.plan.rate_per_s = rate;
        let load = Load {
            name: self.args.load.workload.as_deref(),
            workload: &self.prepared.workload,
            feed: self.prepared.feed.as_ref(),
            plan: &self.prepared.plan,
            settings: TopicSettings::default(),
        };
        let topic = self.subject.topic(&load)?;
        let progress = Progress::beside_output();
        let ran = self
            .subject
            .run(&load, &topic, progress, self.interrupted, None);
        let went_well = matches!(&ran, Ok((outcome, _)) if outcome.error.is_none());
        if went_well || !self.subject.is_own() {
            self.subject.delete(&topic, went_well);
        }
        let (mut outcome, facts) = ran?;
        let report = Report::new(&self.prepared.plan, &outcome, facts);
        self.ended_by = outcome.error.take();
        Ok(report)
    }

    fn take(&mut self, rate: f64, report: &Report) -> Result<(), Failure> {
        let figures = Figures {
            is_achieved: report.is_achieved(),
            is_in_time: report.is_in_time(),
            p99_ns: report.produce.latency_ns.map(|latency| latency.p99),
        };
        let fault = match &self.ended_by {
            Some(_) => Some("cut short"),
            None => figures.fault(limit_ns(self.args)),
        };
        let seen = Seen {
            rate,
            holds: fault.is_none(),
            is_disturbed: report.was_disturbed(),
        };
        // What was cut short decides nothing.
        let believed = self.ended_by.is_none() && self.search.take(seen);
        let step = Step {
            rate_per_s: rate,
            holds: seen.holds,
            fault,
            disturbed: seen.is_disturbed,
            believed,
            run: Run::of(report),
        };
        self.teller.tell(&line(&step))?;
        self.steps.push(step);
        self.first
            .get_or_insert_with(|| (report.config.clone(), report.environment.clone()));
        Ok(())
    }

    fn judged(self) -> Result<Sweep, Failure> {
        let Some((config, environment)) = self.first else {
            return Err(match self.ended_by {
                Some(error) => failure(error),
                None => Failure::failed("no step was measured"),
            });
        };
        let highest = self.search.highest();
        let reasons = reasons(&self.steps, highest, self.ended_by.as_ref());
        Ok(Sweep {
            schema_version: SCHEMA_VERSION,
            kind: "sweep",
            valid: reasons.is_empty(),
            reasons,
            from_per_s: self.args.from,
            to_per_s: self.args.to,
            p99_limit_ns: limit_ns(self.args),
            highest_rate_per_s: highest,
            reached_to: self.search.reached_the_bound(),
            steps: self.steps,
            config,
            environment,
        })
    }
}

/// Why the highest rate does not count.
fn reasons(steps: &[Step], highest: Option<f64>, ended_by: Option<&BenchError>) -> Vec<String> {
    let mut reasons: Vec<String> = ended_by.iter().map(ToString::to_string).collect();
    // The last at that rate: the one that confirmed it.
    let decisive = highest.and_then(|highest| {
        let is_it = |step: &Step| step.believed && step.rate_per_s == highest;
        steps.iter().rposition(is_it)
    });
    match (decisive, ended_by) {
        (Some(decisive), _) => {
            let step = &steps[decisive];
            let rate = shown(step.rate_per_s);
            let at = |why: &String| format!("at {rate} records a second: {why}");
            reasons.extend(step.run.reasons.iter().map(at));
        }
        (None, None) => {
            reasons.push("not even the first rate was seen to hold: give a lower --from, or measure when it is quiet".into());
        }
        (None, Some(_)) => {}
    }
    // The lowest that did not hold is what bounds the highest that did.
    let failed = steps.iter().filter(|step| step.believed && !step.holds);
    let bound = failed.min_by(|a, b| a.rate_per_s.total_cmp(&b.rate_per_s));
    if let Some(step) = bound.filter(|step| step.disturbed) {
        reasons.push(format!(
            "{} records a second did not hold, and others took time of the machine meanwhile: a \
             higher rate may hold",
            shown(step.rate_per_s)
        ));
    }
    if let Some(step) = bound.filter(|step| step.fault == Some(GENERATOR_LATE)) {
        reasons.push(format!(
            "at {} records a second the generator was late, which says nothing of the broker: give it \
             more --cpus",
            shown(step.rate_per_s)
        ));
    }
    for (_, step) in (0..).zip(steps).filter(|(n, _)| Some(*n) != decisive) {
        let rate = shown(step.rate_per_s);
        // What a rate that is too high leaves unsent is no fault of the sweep: it does not hold.
        let balance = Balance {
            unsent: 0,
            ..step.run.verify.balance
        };
        let of_verification = balance.faults(true);
        let at = |why: &String| format!("at {rate} records a second: {why}");
        reasons.extend(of_verification.iter().map(at));
    }
    reasons
}

fn shown(rate: f64) -> String {
    match rate < 100.0 {
        true => format!("{rate:.1}"),
        false => grouped(rate.round() as u64),
    }
}

fn heading(args: &SweepArgs) -> String {
    let columns = ["rate", "achieved", "p50", "p99", "p99.9"];
    let [rate, achieved, p50, p99, p99_9] = columns;
    format!(
        "from {} records a second until p99 is beyond {} us, {} s each\n\n\
         {rate:>12}  {achieved:>10}  {p50:>10}  {p99:>10}  {p99_9:>10}  valid  holds\n",
        shown(args.from),
        args.p99,
        args.step_duration.0.as_secs_f64()
    )
}

fn line(step: &Step) -> String {
    let latency = step.run.produce.latency_ns;
    let mut text = format!(
        "{:>12}  {:>10}  {:>10}  {:>10}  {:>10}  {:<5}  {}",
        shown(step.rate_per_s),
        shown(step.run.schedule.achieved_rate_per_s),
        us(latency.map(|l| l.p50)),
        us(latency.map(|l| l.p99)),
        us(latency.map(|l| l.p99_9)),
        if step.run.valid { "yes" } else { "NO" },
        step.fault.unwrap_or("yes"),
    );
    if step.disturbed {
        text.push_str(", disturbed");
    }
    if !step.believed {
        text.push_str(", not believed");
    }
    text.push('\n');
    text
}

fn last_line(sweep: &Sweep) -> String {
    let limit = sweep.p99_limit_ns as f64 / 1000.0;
    match sweep.highest_rate_per_s {
        None => format!("\nno rate was seen to hold a p99 of {limit} us\n"),
        Some(rate) if sweep.reached_to => format!(
            "\n{} records a second hold a p99 of {limit} us; that is --to, and more may hold\n",
            shown(rate)
        ),
        Some(rate) => format!(
            "\nthe highest rate that holds a p99 of {limit} us: {} records a second\n",
            shown(rate)
        ),
    }
}

#[cfg(test)]
mod tests {
    use ringtide_perf::open_loop::ledger::Balance;
    use ringtide_perf::report::{Kept, Produce, Verified};

    use super::*;

    fn step(rate_per_s: f64, fault: Option<&'static str>, reasons: &[&str]) -> Step {
        Step {
            rate_per_s,
            holds: fault.is_none(),
            fault,
            disturbed: false,
            believed: true,
            run: Run {
                valid: reasons.is_empty(),
                reasons: reasons.iter().map(ToString::to_string).collect(),
                unchecked: Vec::new(),
                produce: Produce {
                    count: 0,
                    rate_per_s: 0.0,
                    bytes_per_s: 0.0,
                    latency_ns: None,
                    service_ns: None,
                    slower: Vec::new(),
                },
                end_to_end: None,
                schedule: Kept {
                    target_rate_per_s: rate_per_s,
                    achieved_rate_per_s: rate_per_s,
                    lag_ns: None,
                },
                verify: Verified {
                    complete: true,
                    balance: Balance::default(),
                },
                wal: None,
                meanwhile: None,
            },
        }
    }

    fn of(steps: &[Step]) -> Vec<String> {
        reasons(steps, Some(1000.0), None)
    }

    #[test]
    fn a_rate_that_the_generator_bounds_does_not_count() {
        let held = || [1, 2].map(|_| step(1000.0, None, &[]));
        let bounded = |fault| [&held()[..], &[step(2000.0, Some(fault), &["late"])]].concat();
        assert_eq!(of(&bounded("not achieved")), [""; 0]);
        let said = of(&bounded(GENERATOR_LATE));
        assert!(said.len() == 1 && said[0].contains("the generator was late"));
    }

    #[test]
    fn the_highest_rate_counts_if_the_step_that_confirmed_it_does() {
        let (good, bad) = (&[][..], &["disturbed"][..]);
        for (first, last, count) in [(good, good, 0), (bad, good, 0), (good, bad, 1)] {
            let steps = [step(1000.0, None, first), step(1000.0, None, last)];
            assert_eq!(of(&steps).len(), count);
        }
        let mut steps = [step(1000.0, None, good), step(1000.0, None, good)];
        steps[0].run.verify.balance.lost = 1;
        assert_eq!(of(&steps).len(), 1, "whatever the last says");
    }
}
