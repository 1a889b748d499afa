//! The instructions of each part of a record's path, counted by callgrind and held against
//! `benches/instructions.json`. Counts do not depend on the machine's speed or load, so a few
//! percent are a change of the code, or of the compiler.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

const BASELINE: &str = "benches/instructions.json";
/// A part may need this much more than its baseline, in percent.
const MOST_GROWTH: f64 = 5.0;
/// As in `benches/benches/instructions.rs`.
const COUNTED: u64 = 16;
const HOW_TO_ACCEPT: &str = "if that is meant, run `cargo xtask instructions --accept` and commit benches/instructions.json";

/// Instructions of one operation of each part, and what they were counted with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Counts {
    rustc: String,
    valgrind: String,
    /// The kind of processor: code chooses its instructions by it.
    processor: String,
    parts: BTreeMap<String, u64>,
}

/// Compares the parts with the baseline.
pub(crate) fn check(root: &Path) -> Result<String, String> {
    let path = root.join(BASELINE);
    let text = fs::read_to_string(&path)
        .map_err(|error| format!("cannot read {BASELINE}: {error}; {HOW_TO_ACCEPT}"))?;
    compare(&Counts::from_json(&text)?, &count(root)?)
}

/// Makes what is counted now the baseline.
pub(crate) fn accept(root: &Path) -> Result<String, String> {
    let counts = count(root)?;
    fs::write(root.join(BASELINE), counts.to_json())
        .map_err(|error| format!("cannot write {BASELINE}: {error}"))?;
    let parts = counts.parts.len();
    Ok(format!("{BASELINE} has the counts of {parts} parts"))
}

impl Counts {
    fn from_json(text: &str) -> Result<Self, String> {
        let value: Value =
            serde_json::from_str(text).map_err(|error| format!("{BASELINE}: {error}"))?;
        let word = |name: &str| value[name].as_str().unwrap_or("unknown").to_owned();
        let parts = value["instructions"]
            .as_object()
            .ok_or_else(|| format!("{BASELINE}: has no instructions"))?;
        let part = |(name, count): (&String, &Value)| {
            let count = count.as_u64();
            let count = count.ok_or_else(|| format!("{BASELINE}: {name} has no count"))?;
            Ok((name.clone(), count))
        };
        Ok(Self {
            rustc: word("rustc"),
            valgrind: word("valgrind"),
            processor: word("processor"),
            parts: parts.iter().map(part).collect::<Result<_, String>>()?,
        })
    }

    fn to_json(&self) -> String {
        let value = json!({
            "rustc": self.rustc,
            "valgrind": self.valgrind,
            "processor": self.processor,
            "instructions": self.parts,
        });
        format!("{value:#}\n")
    }
}

/// A table of all parts, or with it why it is not well.
fn compare(baseline: &Counts, now: &Counts) -> Result<String, String> {
    let mut table = format!(
        "{:<28} {:>12} {:>12} {:>8}\n",
        "instructions of", "baseline", "now", "change"
    );
    let (mut wrong, mut more, mut fewer) = (Vec::new(), Vec::new(), 0);
    let names: BTreeSet<&String> = baseline.parts.keys().chain(now.parts.keys()).collect();
    for name in names {
        let (before, after) = (baseline.parts.get(name), now.parts.get(name));
        let change = before.zip(after).map(|(&b, &a)| growth(b, a));
        let cell = |count: Option<&u64>| count.map_or_else(|| "-".into(), u64::to_string);
        let shown = change.map_or_else(String::new, |change| format!("{change:+.2} %"));
        let (before, after) = (cell(before), cell(after));
        // Writing to a String cannot fail.
        let _ = writeln!(table, "{name:<28} {before:>12} {after:>12} {shown:>8}");
        match change {
            Some(change) if change > MOST_GROWTH => {
                more.push(format!("{name} needs {change:.2} % more instructions"));
            }
            Some(change) => fewer += usize::from(change < -MOST_GROWTH),
            None if before == "-" => wrong.push(format!("{name} has no baseline")),
            None => wrong.push(format!("{name} is in the baseline, but was not counted")),
        }
    }
    let tools = other_tools(baseline, now);
    if tools.is_empty() {
        wrong.append(&mut more);
    }
    if wrong.is_empty() {
        if !more.is_empty() {
            let more = more.join("\n");
            let _ = write!(table, "{more}\n{tools}so it is not judged");
            return Ok(table);
        }
        if fewer > 0 {
            let _ = writeln!(
                table,
                "{fewer} need over {MOST_GROWTH} % fewer: keep it that way with `cargo xtask \
                 instructions --accept`"
            );
        }
        let _ = write!(
            table,
            "no part needs over {MOST_GROWTH} % more than its baseline"
        );
        return Ok(table);
    }
    let wrong = wrong.join("\n");
    Err(format!("{table}{wrong}\n{tools}{HOW_TO_ACCEPT}"))
}

/// By how much it became more, in percent.
fn growth(before: u64, after: u64) -> f64 {
    (after as f64 - before as f64) * 100.0 / before.max(1) as f64
}

/// Says that the counts are of other tools, if they are.
fn other_tools(baseline: &Counts, now: &Counts) -> String {
    let mut said = String::new();
    for (before, after) in [
        (&baseline.rustc, &now.rustc),
        (&baseline.valgrind, &now.valgrind),
        (&baseline.processor, &now.processor),
    ] {
        if before != after {
            let _ = writeln!(
                said,
                "the baseline was counted with {before}, this with {after}: the change may be \
                 theirs. Count the code of the baseline with {after} too; if it has changed alike, \
                 accept that first, in a commit of its own"
            );
        }
    }
    said
}

fn processor() -> String {
    let arch = std::env::consts::ARCH;
    #[cfg(target_arch = "x86_64")]
    if !std::arch::is_x86_feature_detected!("avx2") {
        return format!("{arch} without AVX2");
    }
    format!("{arch}, all features")
}

/// Counts every part.
fn count(root: &Path) -> Result<Counts, String> {
    let valgrind = first_line("valgrind", &["--version"]).map_err(|error| {
        format!("{error}; it counts the instructions, install the package `valgrind`")
    })?;
    let runner = runner(root)?;
    let output = cargo(root)
        .args(["bench", "--quiet", "--locked", "-p", "ringtide-benches"])
        .args(["--bench", "instructions", "--", "--output-format=json"])
        .env("GUNGRAUN_RUNNER", runner)
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cannot run cargo: {error}"))?;
    if !output.status.success() {
        return Err("the parts could not be counted".into());
    }
    Ok(Counts {
        rustc: first_line("rustc", &["--version"])?,
        valgrind,
        processor: processor(),
        parts: parts(&String::from_utf8_lossy(&output.stdout))?,
    })
}

/// The counts among what the runner printed: a line of JSON for each part.
fn parts(printed: &str) -> Result<BTreeMap<String, u64>, String> {
    let mut parts = BTreeMap::new();
    for line in printed.lines().filter(|line| line.starts_with('{')) {
        let part: Value =
            serde_json::from_str(line).map_err(|error| format!("not a summary: {error}"))?;
        let name = part["id"].as_str().ok_or("a summary without an id")?;
        let count = instructions(&part).ok_or_else(|| format!("{name}: no count"))?;
        parts.insert(name.to_owned(), count / COUNTED);
    }
    Ok(parts)
}

fn instructions(part: &Value) -> Option<u64> {
    let count = part.pointer("/profiles/0/data/total/metrics/Ir/values/new")?;
    // As text, so that no reader rounds it.
    count.as_u64().or_else(|| count.as_str()?.parse().ok())
}

/// The program that runs the parts under callgrind, of the very version of the crate; installed
/// below `target/` if it is not there.
fn runner(root: &Path) -> Result<PathBuf, String> {
    const NAME: &str = "gungraun-runner";
    let version = locked_version(root, "gungraun")?;
    let place = root.join("target").join(NAME);
    let runner = place.join("bin").join(NAME);
    let is_there = first_line(&runner.to_string_lossy(), &["--version"])
        .is_ok_and(|line| line.ends_with(&version));
    if !is_there {
        let status = cargo(root)
            .args([
                "install",
                "--quiet",
                "--locked",
                "--debug",
                NAME,
                "--version",
            ])
            .arg(format!("={version}"))
            .arg("--root")
            .arg(&place)
            .status()
            .map_err(|error| format!("cannot run cargo: {error}"))?;
        if !status.success() {
            return Err(format!("{NAME} {version} could not be installed"));
        }
    }
    Ok(runner)
}

fn locked_version(root: &Path, name: &str) -> Result<String, String> {
    let text = fs::read_to_string(root.join("Cargo.lock"))
        .map_err(|error| format!("cannot read Cargo.lock: {error}"))?;
    let lock: toml::Table = text
        .parse()
        .map_err(|error| format!("Cargo.lock: {error}"))?;
    let packages = lock.get("package").and_then(toml::Value::as_array);
    let found = packages.into_iter().flatten().find(|package| {
        let known = package.get("name").and_then(toml::Value::as_str);
        known == Some(name)
    });
    let version = found.and_then(|package| package.get("version")?.as_str());
    version
        .map(str::to_owned)
        .ok_or_else(|| format!("Cargo.lock has no {name}"))
}

fn cargo(root: &Path) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root);
    cargo
}

/// What a program says first.
fn first_line(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program)
        .args(args)
        .output()
        .map_err(|error| format!("cannot run {program}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    Ok(said.lines().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(parts: &[(&str, u64)]) -> Counts {
        Counts {
            rustc: "rustc 1.95.0".into(),
            valgrind: "valgrind-3.19.0".into(),
            processor: "x86_64, all features".into(),
            parts: parts.iter().map(|(n, c)| ((*n).to_owned(), *c)).collect(),
        }
    }

    fn compared(before: &[(&str, u64)], after: &[(&str, u64)]) -> Result<String, String> {
        compare(&counts(before), &counts(after))
    }

    fn refusal(before: &[(&str, u64)], after: &[(&str, u64)]) -> String {
        let why = compared(before, after).expect_err("it is not well");
        assert!(why.contains("cargo xtask instructions --accept"), "{why}");
        why
    }

    #[test]
    fn four_percent_more_pass_and_six_fail() {
        compared(
            &[("crc", 1000), ("peek", 50)],
            &[("crc", 1040), ("peek", 50)],
        )
        .expect("4 % pass");
        let why = refusal(
            &[("crc", 1000), ("peek", 50)],
            &[("crc", 1060), ("peek", 50)],
        );
        assert!(why.contains("crc needs 6.00 % more"), "{why}");
        assert!(!why.contains("peek needs"), "{why}");
    }

    #[test]
    fn less_passes_and_is_worth_a_word() {
        let said = compared(&[("crc", 1000)], &[("crc", 500)]).expect("less is fine");
        assert!(
            said.contains("-50.00 %") && said.contains("--accept"),
            "{said}"
        );
    }

    #[test]
    fn a_part_that_is_not_counted_any_more_fails() {
        let why = refusal(&[("crc", 1000), ("peek", 50)], &[("crc", 1000)]);
        assert!(
            why.contains("peek is in the baseline, but was not"),
            "{why}"
        );
    }

    #[test]
    fn a_part_without_a_baseline_fails() {
        let why = refusal(&[("crc", 1000)], &[("crc", 1000), ("peek", 50)]);
        assert!(why.contains("peek has no baseline"), "{why}");
    }

    #[test]
    fn growth_with_another_compiler_is_not_judged_and_names_both() {
        let mut now = counts(&[("crc", 2000)]);
        now.rustc = "rustc 1.99.0".into();
        let why = compare(&counts(&[("crc", 1000)]), &now).expect("it may be the compiler's");
        assert!(
            why.contains("with rustc 1.95.0, this with rustc 1.99.0"),
            "{why}"
        );
        assert!(
            why.ends_with("not judged") && !why.contains("valgrind"),
            "{why}"
        );
        now.parts.clear();
        compare(&counts(&[("crc", 1000)]), &now).expect_err("a part is missing all the same");
    }

    #[test]
    fn a_baseline_is_read_as_it_was_written() {
        let written = counts(&[("crc", 1000), ("peek", 50)]);
        assert_eq!(Counts::from_json(&written.to_json()), Ok(written));
        Counts::from_json("{}").expect_err("it has no counts");
    }
}
