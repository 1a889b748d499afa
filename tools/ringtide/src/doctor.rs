//! `ringtide doctor`: what of the host matters to a broker, what was found, and what mends it.
//!
//! [`host`] gathers facts, [`checks`] judges them without touching the machine, and here they are
//! shown. `serve` makes the same checks and refuses in the same words. [`flush`] is only for who asks: it writes.

mod checks;
mod flush;
mod host;

use std::fmt::Write as _;
use std::path::Path;

use ringtide_uring::probe;
use serde::Serialize;

use crate::cli::DoctorArgs;
use crate::config::Config;
use crate::exit::{Exit, Failure};
use crate::raw_config::Raw;

pub(crate) use host::Host;

/// Whether a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// As it should be.
    Ok,
    /// The broker works, though slower or with less than it could have.
    Advice,
    /// The broker cannot do without.
    Required,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    /// What was looked at.
    pub(crate) name: &'static str,
    pub(crate) verdict: Verdict,
    /// What it is on this host.
    pub(crate) found: String,
    /// Why it matters, unless it is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) matters: Option<String>,
    /// The command, or the change, that mends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mend: Option<String>,
    /// How `serve` ends if it is required.
    #[serde(skip)]
    pub(crate) exit: Exit,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            name,
            verdict: Verdict::Ok,
            found: found.into(),
            matters: None,
            mend: None,
            exit: Exit::HostUnfit,
        }
    }

    fn advice(
        name: &'static str,
        found: impl Into<String>,
        matters: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self {
            name,
            verdict: Verdict::Advice,
            found: found.into(),
            matters: Some(matters.into()),
            mend: Some(mend.into()),
            exit: Exit::HostUnfit,
        }
    }

    fn required(
        name: &'static str,
        found: impl Into<String>,
        matters: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self {
            verdict: Verdict::Required,
            ..Self::advice(name, found, matters, mend)
        }
    }
}

/// Runs the command.
pub(crate) fn run(args: DoctorArgs) -> Result<(), Failure> {
    let flags = Raw {
        data_dir: args.data_dir,
        cpus: args.cpus,
        ..Raw::default()
    };
    let config = Config::load(flags, args.config.as_deref(), &probe::allowed())
        .map_err(|error| Failure::usage(error.to_string()))?;
    let host = Host::look(&config);
    let mut checks = checks::all(&host);
    let mut flush_test = None;
    // Where no broker can write there is nothing to measure either.
    if args.flush_test && host.directory.access.is_ok() && host.directory.direct_io.is_ok() {
        let (check, test) = flush::run(&host.directory)?;
        checks.push(check);
        flush_test = Some(test);
    }
    let text = if args.json {
        json(&checks, flush_test.as_ref())
    } else {
        let explained = flush_test.as_ref().map(flush::explained);
        let apart = explained.map(|text| format!("\n{text}"));
        table(&checks) + &apart.unwrap_or_default()
    };
    crate::output::print(&text)?;
    match unfit(&checks, &config.data_dir) {
        Some(failure) => Err(failure),
        None => Ok(()),
    }
}

/// The failure of a host that a broker cannot run on, in the words of `doctor`.
pub(crate) fn require(host: &Host, data_dir: &Path) -> Result<(), Failure> {
    unfit(&checks::all(host), data_dir).map_or(Ok(()), Err)
}

fn unfit(checks: &[Check], data_dir: &Path) -> Option<Failure> {
    let mut words = String::new();
    for check in checks
        .iter()
        .filter(|check| check.verdict == Verdict::Required)
    {
        let matters = check.matters.as_deref().unwrap_or_default();
        let mend = check.mend.as_deref().unwrap_or_default();
        let _ = write!(
            words,
            "\n  {}: {}; {matters}. {mend}",
            check.name, check.found
        );
    }
    let first = checks
        .iter()
        .find(|check| check.verdict == Verdict::Required)?;
    let dir = data_dir.display();
    Some(Failure::new(
        first.exit,
        format!("this host cannot run a broker on {dir}:{words}"),
    ))
}

/// For a person: a line each, and below it what to do.
fn table(checks: &[Check]) -> String {
    let width = checks
        .iter()
        .map(|check| check.name.len())
        .max()
        .unwrap_or(0);
    let mut out = String::new();
    for check in checks {
        let verdict = match check.verdict {
            Verdict::Ok => "ok      ",
            Verdict::Advice => "advice  ",
            Verdict::Required => "REQUIRED",
        };
        let _ = writeln!(out, "{verdict}  {:width$}  {}", check.name, check.found);
        let indent = 10 + width + 2;
        for line in [&check.matters, &check.mend].into_iter().flatten() {
            let _ = writeln!(out, "{:indent$}{line}", "");
        }
    }
    let count = |verdict| {
        checks
            .iter()
            .filter(|check| check.verdict == verdict)
            .count()
    };
    let _ = match (count(Verdict::Required), count(Verdict::Advice)) {
        (0, 0) => writeln!(
            out,
            "\nA broker can run here, and nothing stands in its way."
        ),
        (0, advice) => writeln!(out, "\nA broker can run here. Pieces of advice: {advice}."),
        (required, _) => writeln!(
            out,
            "\nA broker cannot run here. To be mended first: {required}."
        ),
    };
    out
}

fn json(checks: &[Check], flush_test: Option<&flush::FlushTest>) -> String {
    #[derive(Serialize)]
    struct Report<'a> {
        verdict: Verdict,
        checks: &'a [Check],
        #[serde(skip_serializing_if = "Option::is_none")]
        flush_test: Option<&'a flush::FlushTest>,
    }
    let verdict = checks
        .iter()
        .map(|check| check.verdict)
        .max()
        .unwrap_or(Verdict::Ok);
    let report = Report {
        verdict,
        checks,
        flush_test,
    };
    let mut text = serde_json::to_string_pretty(&report).expect("strings are always JSON");
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checks() -> Vec<Check> {
        vec![
            Check::ok("kernel", "6.18"),
            Check::advice(
                "cpu governor",
                "powersave on CPU 1",
                "It is slow",
                "cpupower x",
            ),
            Check::required("io_uring", "forbidden", "Everything needs it", "sysctl y"),
        ]
    }

    #[test]
    fn a_person_reads_found_matters_and_mend_below_each_other() {
        let text = table(&checks());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "ok        kernel        6.18");
        assert_eq!(lines[1], "advice    cpu governor  powersave on CPU 1");
        assert_eq!(lines[2], "                        It is slow");
        assert_eq!(lines[3], "                        cpupower x");
        assert_eq!(lines[4], "REQUIRED  io_uring      forbidden");
        assert!(
            text.ends_with("cannot run here. To be mended first: 1.\n"),
            "{text}"
        );
        assert!(table(&checks()[..2]).ends_with("can run here. Pieces of advice: 1.\n"));
    }

    #[test]
    fn a_program_reads_the_same_with_the_worst_verdict_on_top() {
        let json: serde_json::Value = serde_json::from_str(&json(&checks(), None)).expect("JSON");
        assert_eq!(json["verdict"], "required");
        assert_eq!(json["checks"][0]["verdict"], "ok");
        assert_eq!(json["checks"][0].get("mend"), None);
        assert_eq!(json["checks"][2]["mend"], "sysctl y");
    }

    #[test]
    fn only_what_is_required_makes_a_host_unfit_and_it_is_named_with_its_mend() {
        assert!(unfit(&checks()[..2], Path::new("/d")).is_none());
        let failure = unfit(&checks(), Path::new("/d")).expect("unfit");
        assert_eq!(failure.exit, Exit::HostUnfit);
        for word in [
            "/d",
            "io_uring",
            "forbidden",
            "Everything needs it",
            "sysctl y",
        ] {
            assert!(failure.message.contains(word), "{}", failure.message);
        }
        assert!(
            !failure.message.contains("powersave"),
            "{}",
            failure.message
        );
    }
}
