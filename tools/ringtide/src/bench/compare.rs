//! `ringtide bench compare`: two brokers, or two loads, in pairs.

use std::sync::atomic::AtomicBool;

use clap::Args;
use ringtide_client::TopicSettings;
use ringtide_perf::BenchError;
use ringtide_perf::report::{Config, Environment, Report};
use serde::Serialize;

use crate::bench::load_args::{LoadArgs, Prepared, Run, SCHEMA_VERSION, Teller, us};
use crate::bench::own_broker::Start;
use crate::bench::pairs::{Compared, chance_of_any};
use crate::bench::side::Side;
use crate::bench::subject::{Load, Subject};
use crate::bench::{does_not_count, failure};
use crate::exit::Failure;
use crate::progress::{Progress, grouped};
use crate::signals::stop_flag;

#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// The one: serve:KEY=VALUE,... (settings of ringtide serve; serve: alone for none),
    /// load:KEY=VALUE,... (flags of the load), the path of another ringtide, or these joined by
    /// colons as in ./old/ringtide:serve:idle=park:load:acks=accepted
    #[arg(value_name = "A")]
    pub(crate) a: Side,
    /// The other, in the same way
    #[arg(value_name = "B")]
    pub(crate) b: Side,
    #[command(flatten)]
    pub(crate) load: LoadArgs,
    /// How many pairs of runs
    #[arg(long, value_name = "N", default_value = "9",
        value_parser = clap::value_parser!(u32).range(1..=1000), allow_negative_numbers = true)]
    pub(crate) pairs: u32,
}

/// What is written as JSON.
#[derive(Debug, Serialize)]
struct Comparison {
    schema_version: u32,
    kind: &'static str,
    valid: bool,
    reasons: Vec<String>,
    /// As asked for.
    pairs: u32,
    a: Described,
    b: Described,
    /// Of pairs that are whole.
    figures: Vec<Compared>,
    /// How likely a figure that does not differ has all pairs on one side; of the one with the fewest.
    chance: f64,
    /// How likely, at the most, any of them has when nothing differs.
    chance_of_any: f64,
    /// In the order in which they were made.
    runs: Vec<OneRun>,
}

/// A side, as its first run had it.
#[derive(Debug, Serialize)]
struct Described {
    side: String,
    config: Option<Config>,
    environment: Option<Environment>,
}

/// A run.
#[derive(Debug, Serialize)]
struct OneRun {
    side: &'static str,
    /// From 0 on.
    pair: u32,
    /// It ended before its time, and is held against nothing.
    #[serde(skip)]
    is_cut: bool,
    #[serde(flatten)]
    run: Run,
}

/// A side that is known to be possible.
struct Ready {
    prepared: Prepared,
    start: Start,
    described: Described,
}

/// Runs it.
pub(crate) fn run(args: &CompareArgs) -> Result<(), Failure> {
    let placement = args.load.placement(None)?;
    let common = args.load.workload()?;
    let ready = |side: &Side| -> Result<Ready, Failure> {
        Ok(Ready {
            prepared: Prepared::new(side.workload(&common)?, &placement)?,
            start: side.start(&placement)?,
            described: Described {
                side: side.text.clone(),
                config: None,
                environment: None,
            },
        })
    };
    let sides = [ready(&args.a)?, ready(&args.b)?];
    let json = args.load.json_file()?;
    let teller = Teller::beside(json.as_ref());
    let interrupted = stop_flag()?;

    teller.tell(&heading(args))?;
    let mut comparing = Comparing {
        args,
        sides,
        interrupted: &interrupted,
        teller,
        runs: Vec::new(),
        ended_by: None,
    };
    comparing.all()?;
    let comparison = comparing.judged()?;
    teller.tell(&table(&comparison))?;
    teller.judge(&comparison.reasons)?;
    let valid = comparison.valid;
    if let Some(json) = json {
        json.write(&comparison)?;
    }
    match valid {
        true => Ok(()),
        false => Err(does_not_count()),
    }
}

/// The sides of a pair, in turn: AB, BA, AB.
fn order(pair: u32) -> [usize; 2] {
    match pair.is_multiple_of(2) {
        true => [0, 1],
        false => [1, 0],
    }
}

/// A comparison as it goes.
struct Comparing<'a> {
    args: &'a CompareArgs,
    sides: [Ready; 2],
    interrupted: &'a AtomicBool,
    teller: Teller,
    runs: Vec<OneRun>,
    /// Before its time.
    ended_by: Option<BenchError>,
}

impl Comparing<'_> {
    fn all(&mut self) -> Result<(), Failure> {
        for pair in 0..self.args.pairs {
            for side in order(pair) {
                match self.measure(side) {
                    Ok(report) => self.take(pair, side, &report)?,
                    Err(error) => self.ended_by = Some(error),
                }
                if self.ended_by.is_some() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// One run, of a broker and a directory of its own.
    fn measure(&mut self, side: usize) -> Result<Report, BenchError> {
        let side = &self.sides[side];
        let prepared = &side.prepared;
        let load = Load {
            name: self.args.load.workload.as_deref(),
            workload: &prepared.workload,
            feed: prepared.feed.as_ref(),
            plan: &prepared.plan,
            settings: TopicSettings::default(),
        };
        let subject = Subject::own(&side.start)?;
        let topic = subject.topic(&load)?;
        let progress = Progress::beside_output();
        let ran = subject.run(&load, &topic, progress, self.interrupted, None);
        subject.end(&topic, ran.is_ok());
        let (mut outcome, facts) = ran?;
        let report = Report::new(&prepared.plan, &outcome, facts);
        self.ended_by = outcome.error.take();
        Ok(report)
    }

    fn take(&mut self, pair: u32, side: usize, report: &Report) -> Result<(), Failure> {
        let described = &mut self.sides[side].described;
        described
            .config
            .get_or_insert_with(|| report.config.clone());
        let environment = || report.environment.clone();
        described.environment.get_or_insert_with(environment);
        let run = OneRun {
            side: ["a", "b"][side],
            pair,
            is_cut: self.ended_by.is_some(),
            run: Run::of(report),
        };
        self.teller.tell(&line(&run))?;
        self.runs.push(run);
        Ok(())
    }

    fn judged(self) -> Result<Comparison, Failure> {
        let ended_by = self.ended_by;
        if self.runs.is_empty() {
            return Err(match ended_by {
                Some(error) => failure(error),
                None => Failure::failed("no run was made"),
            });
        }
        let mut reasons: Vec<String> = ended_by.iter().map(ToString::to_string).collect();
        for OneRun {
            side, pair, run, ..
        } in &self.runs
        {
            let at = |why: &String| format!("{} of pair {}: {why}", name(side), pair + 1);
            reasons.extend(run.reasons.iter().map(at));
        }
        let figures = figures(&self.runs);
        if figures.is_empty() {
            reasons.push("not one pair is whole".into());
        }
        let [a, b] = self.sides.map(|side| side.described);
        Ok(Comparison {
            schema_version: SCHEMA_VERSION,
            kind: "compare",
            valid: reasons.is_empty(),
            reasons,
            pairs: self.args.pairs,
            a,
            b,
            chance: figures.iter().map(|f| f.chance).fold(0.0, f64::max),
            chance_of_any: chance_of_any(&figures),
            figures,
            runs: self.runs,
        })
    }
}

fn name(side: &str) -> &'static str {
    match side {
        "a" => "A",
        _ => "B",
    }
}

type Figure = (&'static str, &'static str, fn(&Run) -> Option<f64>);

/// What is compared, by name and unit.
const FIGURES: [Figure; 7] = [
    ("due to acknowledged, p50", "us", |run| {
        Some(run.produce.latency_ns?.p50 as f64 / 1000.0)
    }),
    ("due to acknowledged, p99", "us", |run| {
        Some(run.produce.latency_ns?.p99 as f64 / 1000.0)
    }),
    ("due to acknowledged, p99.9", "us", |run| {
        Some(run.produce.latency_ns?.p99_9 as f64 / 1000.0)
    }),
    ("due to delivered, p50", "us", |run| {
        Some(run.end_to_end?.latency_ns.p50 as f64 / 1000.0)
    }),
    ("due to delivered, p99", "us", |run| {
        Some(run.end_to_end?.latency_ns.p99 as f64 / 1000.0)
    }),
    ("due to delivered, p99.9", "us", |run| {
        Some(run.end_to_end?.latency_ns.p99_9 as f64 / 1000.0)
    }),
    ("achieved", "records/s", |run| {
        Some(run.schedule.achieved_rate_per_s)
    }),
];

fn figures(runs: &[OneRun]) -> Vec<Compared> {
    let whole: Vec<(&Run, &Run)> = runs
        .chunks_exact(2)
        .filter(|pair| pair.iter().all(|run| !run.is_cut))
        .map(|pair| match pair[0].side {
            "a" => (&pair[0].run, &pair[1].run),
            _ => (&pair[1].run, &pair[0].run),
        })
        .collect();
    let compare = |(name, unit, of): &Figure| {
        let values = whole.iter().map(|(a, b)| Some((of(a)?, of(b)?)));
        let values: Vec<(f64, f64)> = values.flatten().collect();
        Compared::of(name, unit, &values)
    };
    FIGURES.iter().filter_map(compare).collect()
}

fn heading(args: &CompareArgs) -> String {
    let columns = ["achieved", "p50", "p99", "p99.9"];
    let [achieved, p50, p99, p99_9] = columns;
    format!(
        "A: {}\nB: {}\n\npair  side  {achieved:>10}  {p50:>10}  {p99:>10}  {p99_9:>10}  valid\n",
        args.a.text, args.b.text
    )
}

fn line(run: &OneRun) -> String {
    let latency = run.run.produce.latency_ns;
    format!(
        "{:>4}  {:<4}  {:>10}  {:>10}  {:>10}  {:>10}  {}\n",
        run.pair + 1,
        name(run.side),
        grouped(run.run.schedule.achieved_rate_per_s.round() as u64),
        us(latency.map(|l| l.p50)),
        us(latency.map(|l| l.p99)),
        us(latency.map(|l| l.p99_9)),
        if run.run.valid { "yes" } else { "NO" },
    )
}

fn table(comparison: &Comparison) -> String {
    let columns = ["A", "B", "B/A", "min", "max"];
    let [a, b, ratio, min, max] = columns;
    let mut text = format!(
        "\n{:<28}  {a:>10}  {b:>10}  {ratio:>6}  {min:>6}  {max:>6}\n",
        "medians"
    );
    for figure in &comparison.figures {
        let Compared {
            name, a, b, ratio, ..
        } = figure;
        let verdict = match (figure.differs, figure.ratios.len()) {
            (true, _) => "all pairs agree",
            (false, 1) => "one pair says nothing",
            (false, _) => "pairs disagree",
        };
        text.push_str(&format!(
            "{name:<28}  {a:>10.1}  {b:>10.1}  {:>6.3}  {:>6.3}  {:>6.3}  {verdict}\n",
            ratio.median, ratio.min, ratio.max
        ));
    }
    if comparison.figures.is_empty() {
        return text;
    }
    text.push_str(&format!(
        "\nall pairs agree: B/A is on the same side of 1 in each. If nothing differs that is so by chance \
         for one figure in {:.2} % of comparisons, and for any of them in at most {:.2} %\n",
        100.0 * comparison.chance,
        100.0 * comparison.chance_of_any
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_first_alternates_so_that_a_drift_favours_nobody() {
        assert_eq!([0, 1, 2].map(order), [[0, 1], [1, 0], [0, 1]]);
    }
}
