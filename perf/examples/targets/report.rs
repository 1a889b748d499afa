//! The figures: a table for a person, JSON for everything else.

use std::fmt;
use std::path::Path;

use ringtide_perf::BenchError;
use serde::Serialize;

use crate::context::Context;

/// What a figure has to reach.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
    /// Anything: told for comparison.
    Nothing,
}

impl Target {
    fn is_met(self, figure: f64) -> Option<bool> {
        match self {
            Self::AtMost(most) => Some(figure <= most),
            Self::AtLeast(least) => Some(figure >= least),
            Self::Nothing => None,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(most) => write!(f, "<= {}", round(*most)),
            Self::AtLeast(least) => write!(f, ">= {}", round(*least)),
            Self::Nothing => f.write_str("-"),
        }
    }
}

/// One measurement of the limit, if there is one, and of the broker.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Pair {
    pub limit: Option<f64>,
    pub broker: f64,
}

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    pub name: String,
    pub unit: &'static str,
    /// Median of the limits.
    pub limit: Option<f64>,
    /// Median of the broker's figures.
    pub broker: f64,
    /// Median of the pairs' ratios, broker to limit.
    pub ratio: Option<f64>,
    pub target: Target,
    /// Whether the ratio, or without a limit the broker's figure, is what it has to be.
    pub met: Option<bool>,
    pub pairs: Vec<Pair>,
    /// What else is to be known of it.
    pub note: String,
}

impl Line {
    /// Judged by the ratio of broker to limit.
    pub fn ratio(
        name: impl Into<String>,
        unit: &'static str,
        pairs: impl IntoIterator<Item = (f64, f64)>,
        target: Target,
    ) -> Self {
        let pairs: Vec<(f64, f64)> = pairs.into_iter().collect();
        let ratio = median(pairs.iter().map(|(limit, broker)| broker / limit));
        Self {
            name: name.into(),
            unit,
            limit: Some(median(pairs.iter().map(|pair| pair.0))),
            broker: median(pairs.iter().map(|pair| pair.1)),
            ratio: Some(ratio),
            target,
            met: target.is_met(ratio),
            pairs: pairs
                .into_iter()
                .map(|(limit, broker)| Pair {
                    limit: Some(limit),
                    broker,
                })
                .collect(),
            note: String::new(),
        }
    }

    /// Judged by itself.
    pub fn figure(
        name: impl Into<String>,
        unit: &'static str,
        figures: impl IntoIterator<Item = f64>,
        target: Target,
    ) -> Self {
        let figures: Vec<f64> = figures.into_iter().collect();
        let broker = median(figures.iter().copied());
        Self {
            name: name.into(),
            unit,
            limit: None,
            broker,
            ratio: None,
            target,
            met: target.is_met(broker),
            pairs: figures
                .into_iter()
                .map(|broker| Pair {
                    limit: None,
                    broker,
                })
                .collect(),
            note: String::new(),
        }
    }

    /// With something else to be known.
    pub fn noting(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }
}

/// The middle one; of an even number the mean of the two in the middle.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

/// A measurement that gave no figures.
#[derive(Clone, Debug, Serialize)]
pub struct Failure {
    pub name: String,
    pub why: String,
}

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub kernel: String,
    pub client_cpu: usize,
    pub broker_cpu: usize,
    pub pairs: usize,
    pub seconds: f64,
    pub lines: Vec<Line>,
    pub failures: Vec<Failure>,
}

impl Report {
    /// Without figures.
    pub fn new(context: &Context) -> Self {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            kernel: kernel.trim().into(),
            client_cpu: context.client_cpu,
            broker_cpu: context.broker_cpu,
            pairs: context.pairs,
            seconds: context.duration.as_secs_f64(),
            lines: Vec::new(),
            failures: Vec::new(),
        }
    }

    /// Says that something could not be measured.
    pub fn failed(&mut self, name: &str, error: &BenchError) {
        eprintln!("{name}: {error}");
        self.failures.push(Failure {
            name: name.into(),
            why: error.to_string(),
        });
    }

    /// Writes the JSON.
    pub fn write(&self, path: &Path) -> Result<(), BenchError> {
        let failed = || format!("cannot write {}", path.display());
        let text = serde_json::to_string_pretty(self)
            .map_err(|error| BenchError::io(failed())(error.into()))?;
        std::fs::write(path, text + "\n").map_err(BenchError::io(failed()))
    }
}

/// To four digits or so.
fn round(figure: f64) -> String {
    let digits = match figure.abs() {
        0.0..10.0 => 2,
        10.0..1000.0 => 1,
        _ => 0,
    };
    format!("{figure:.digits$}")
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dash = |figure: Option<f64>| figure.map_or_else(|| "-".into(), round);
        writeln!(
            f,
            "{:<40}{:>8}{:>11}{:>11}{:>8}{:>11}  met",
            "", "unit", "limit", "broker", "ratio", "target"
        )?;
        for line in &self.lines {
            let met = match line.met {
                Some(true) => "yes",
                Some(false) => "NO",
                None => "-",
            };
            writeln!(
                f,
                "{:<40}{:>8}{:>11}{:>11}{:>8}{:>11}  {met}",
                line.name,
                line.unit,
                dash(line.limit),
                round(line.broker),
                dash(line.ratio),
                line.target.to_string(),
            )?;
            if !line.note.is_empty() {
                writeln!(f, "    {}", line.note)?;
            }
        }
        for failure in &self.failures {
            writeln!(f, "{:<40}not measured: {}", failure.name, failure.why)?;
        }
        Ok(())
    }
}
