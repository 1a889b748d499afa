//! The benchmarks that run a load many times or for long: what they write, not how fast it was. A busy
//! machine may make any of their figures worthless, which has an exit code of its own.

use std::path::Path;

use ringtide_system_tests::{Broker, Cli, Finished, binary, data_root, disturbed_at_most, exit};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

/// The exit code of figures that do not count.
const INVALID: i32 = 3;
/// A load that any machine can do.
const SMALL: [&str; 6] = ["--acks", "accepted", "--warm-up", "0.1", "--size", "64"];

fn folder() -> TempDir {
    TempDir::new_in(data_root()).expect("a folder")
}

/// What is in a folder.
fn files(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.expect("an entry").file_name();
    entries
        .map(|entry| name(entry).into_string().expect("text"))
        .collect()
}

/// Runs `bench` in a folder, with its figures in a file there, and says whether they count.
fn bench(folder: &Path, args: &[&str]) -> (Finished, Value) {
    let line = [&["bench"], args, &SMALL[..], &["--json", "figures.json"]].concat();
    let done = Cli::without_server().run_in(folder, &line);
    let report = figures(folder, &done);
    (done, report)
}

/// The figures of a command that ended.
fn figures(folder: &Path, done: &Finished) -> Value {
    assert_eq!(files(folder), ["figures.json"], "{done:?}");
    let report = std::fs::read(folder.join("figures.json")).expect("a report");
    let report: Value = serde_json::from_slice(&report).expect("JSON");
    assert_eq!(report["schema_version"], 1, "{report}");
    judged(&report);
    let wanted = match report["valid"].as_bool() {
        Some(true) => exit::DONE,
        _ => INVALID,
    };
    assert_eq!(done.code(), wanted, "{done:?}");
    report
}

/// What counts has no reasons not to.
fn judged(report: &Value) {
    let reasons = list(&report["reasons"]);
    assert_eq!(report["valid"], reasons.is_empty(), "{report}");
}

fn list(value: &Value) -> &[Value] {
    let list = value.as_array();
    list.unwrap_or_else(|| panic!("no list: {value}"))
}

fn number(value: &Value) -> f64 {
    let number = value.as_f64();
    number.unwrap_or_else(|| panic!("no number: {value}"))
}

/// A run that is whole and lost nothing.
fn verified(run: &Value) {
    disturbed_at_most(run);
    let verify = &run["verify"];
    assert_eq!(verify["complete"], true, "{run}");
    assert!(number(&verify["sent"]) > 0.0, "{run}");
    for fault in ["lost", "duplicated", "reordered", "corrupt"] {
        assert_eq!(verify[fault], 0, "{run}");
    }
    let at = |k: &str| number(&run["produce"]["latency_ns"][k]);
    let ascending = ["p50", "p99", "p99_9", "max"].map(at);
    assert!(ascending[0] > 0.0 && ascending.is_sorted(), "{run}");
}

#[test]
fn a_sweep_goes_up_and_says_the_highest_rate_that_held() {
    let home = folder();
    let line = "sweep --from 200 --to 400 --p99 60000000 --step-duration 0.3";
    let (done, report) = bench(home.path(), &words(line));
    assert_eq!(report["kind"], "sweep");
    disturbed_at_most(&report);
    assert_eq!(report["p99_limit_ns"], 60_000_000_000_u64);
    assert!(number(&report["environment"]["broker"]["shards"]) > 0.0);
    let steps = list(&report["steps"]);
    assert_eq!(steps[0]["rate_per_s"], 200.0, "{report}");
    let (mut held, mut fell) = (Vec::new(), f64::INFINITY);
    for step in steps {
        verified(step);
        let rate = number(&step["rate_per_s"]);
        assert!((200.0..=400.0).contains(&rate), "{step}");
        let target = number(&step["schedule"]["target_rate_per_s"]);
        assert!((target / rate - 1.0).abs() < 0.05, "{step}");
        assert_eq!(step["holds"], step["fault"].is_null(), "{step}");
        match (step["believed"] == true, step["holds"] == true) {
            (true, true) => held.push(rate),
            (true, false) => fell = fell.min(rate),
            _ => {}
        }
    }
    let highest = held.iter().copied().filter(|rate| *rate < fell);
    let highest = highest.max_by(f64::total_cmp);
    let times = held.iter().filter(|rate| Some(**rate) == highest).count();
    assert_eq!(times, 2 * usize::from(highest.is_some()), "{report}");
    assert_eq!(report["highest_rate_per_s"].as_f64(), highest, "{report}");
    assert_eq!(report["reached_to"], highest == Some(400.0), "{report}");
    for words in ["achieved", "p99.9", "a p99 of 60000000 us"] {
        assert!(done.text().contains(words), "{words}: {}", done.text());
    }
}

#[test]
fn a_sweep_that_never_holds_tries_twice_and_leaves_no_topic() {
    let broker = Broker::start();
    let home = folder();
    let line =
        "bench sweep --from 200 --to 400 --p99 0.001 --step-duration 0.3 --json figures.json";
    let line = [&words(line)[..], &SMALL].concat();
    let done = broker.cli().run_in(home.path(), &line).failed();
    let report = figures(home.path(), &done);
    let rates: Vec<f64> = list(&report["steps"])
        .iter()
        .map(|step| number(&step["rate_per_s"]))
        .collect();
    assert_eq!(rates, [200.0, 200.0], "{report}");
    assert_eq!(report["highest_rate_per_s"], Value::Null, "{report}");
    assert!(done.text().contains("no rate was seen to hold"), "{done:?}");
    let left = broker.cli().run(&["topic", "list", "--json"]).ok();
    assert!(!left.text().contains("bench-"), "{}", left.text());
}

#[test]
fn a_comparison_holds_two_settings_against_each_other() {
    let home = folder();
    let line =
        "compare serve:idle=park load:subscribers=2,batch=2 --pairs 1 --duration 0.3 --rate 300";
    let (done, report) = bench(home.path(), &words(line));
    assert_eq!(report["kind"], "compare");
    disturbed_at_most(&report);
    assert_eq!(report["a"]["environment"]["broker"]["idle"], "park");
    assert_ne!(report["b"]["environment"]["broker"]["idle"], "park");
    for (key, a, b) in [("subscribers", 1, 2), ("batch", 1, 2)] {
        assert_eq!(report["a"]["config"][key], a, "{report}");
        assert_eq!(report["b"]["config"][key], b, "{report}");
    }
    let runs = list(&report["runs"]);
    let sides: Vec<&Value> = runs.iter().map(|run| &run["side"]).collect();
    assert_eq!(sides, ["a", "b"]);
    runs.iter().for_each(verified);
    let compared = list(&report["figures"]);
    assert_eq!(compared.len(), 7, "{report}");
    assert_eq!(report["chance_of_any"], 1.0, "of one pair");
    for figure in compared {
        let ratio = number(&figure["b"]) / number(&figure["a"]);
        for of in ["median", "min", "max"] {
            let told = number(&figure["ratio"][of]);
            assert!((told / ratio - 1.0).abs() < 1e-6, "{figure}");
        }
        assert_eq!(figure["differs"], false, "one pair says nothing: {figure}");
    }
    assert!(done.text().contains("one pair says nothing"), "{done:?}");
}

#[test]
fn a_comparison_takes_turns_and_another_binary_with_settings() {
    let home = folder();
    let path = binary().to_str().expect("a path of text");
    let other = format!("{path}:serve:sync-interval-ms=123");
    let line = "--pairs 2 --duration 0.2 --rate 200";
    let line = [&["compare", path, &other], &words(line)[..]].concat();
    let (_, report) = bench(home.path(), &line);
    let broker = |side: &str| &report[side]["environment"]["broker"]["sync_interval_ms"];
    assert_eq!((broker("a"), broker("b")), (&1000.into(), &123.into()));
    let runs = list(&report["runs"]).iter();
    let order: Vec<(&Value, &Value)> = runs.map(|run| (&run["pair"], &run["side"])).collect();
    let wanted = [(0, "a"), (0, "b"), (1, "b"), (1, "a")];
    assert_eq!(
        order,
        wanted
            .map(|(n, side)| (Value::from(n), Value::from(side)))
            .each_ref()
            .map(|(n, s)| (n, s))
    );
}

#[test]
fn a_soak_removes_segments_and_looks_at_the_broker() {
    let home = folder();
    let line =
        "soak --duration 5 --every 1 --rate 4000 --segment-bytes 64KiB --retention-bytes 512KiB";
    let (done, report) = bench(home.path(), &words(line));
    assert_eq!(report["kind"], "soak");
    disturbed_at_most(&report);
    assert_eq!(report["segment_bytes"], 64 << 10);
    assert_eq!(report["retention_bytes"], 512 << 10);
    verified(&report["run"]);
    let lines = list(&report["lines"]);
    let seconds: f64 = lines.iter().map(|line| number(&line["length_s"])).sum();
    assert_eq!(seconds, 5.0, "{report}");
    for line in lines {
        assert!(number(&line["resident_bytes"]) > 0.0, "{line}");
        assert!(number(&line["open_files"]) > 0.0, "{line}");
        assert!(number(&line["segments"]) > 0.0, "{line}");
    }
    let acked: f64 = lines.iter().map(|line| number(&line["acked"])).sum();
    assert!(acked > 0.0 && acked <= number(&report["run"]["produce"]["count"]));
    let writes: f64 = lines.iter().map(|line| number(&line["wal_writes"])).sum();
    assert!(writes > 0.0, "{report}");
    let removed = lines.iter().map(|line| number(&line["removed_records"]));
    assert!(removed.is_sorted_by(|a, b| a <= b), "{report}");
    let last = lines.last().expect("lines");
    assert!(number(&last["removed_records"]) > 0.0, "{report}");
    for what in ["resident_bytes", "open_files"] {
        let growth = &report[what];
        assert_eq!(growth["first"], lines[0][what], "{growth}");
        assert_eq!(growth["last"], last[what], "{growth}");
        assert_eq!(growth["keeps_growing"], Value::Null, "too few lines");
    }
    for words in ["WAL writes", "open files of the broker", "0 lost"] {
        assert!(done.text().contains(words), "{words}: {}", done.text());
    }
}

#[test]
fn what_is_interrupted_writes_what_it_has_and_that_it_does_not_count() {
    for line in [
        "sweep --step-duration 3600 --from 100",
        "compare serve: serve:idle=park --duration 3600 --rate 100",
        "soak --every 1 --hours 10 --rate 100",
    ] {
        let home = folder();
        let args = words(line);
        let args = [&["bench"], &args[..], &SMALL, &["--json", "figures.json"]].concat();
        let mut running = Cli::without_server().start_in(home.path(), &args);
        // With the first line signals are watched.
        running.line().expect("a first line");
        running.signal(Signal::INT);
        let ended = running.finish().failed();
        let report = figures(home.path(), &ended);
        assert_eq!(report["valid"], false, "{report}");
        let reasons = report["reasons"].to_string();
        assert!(reasons.contains("interrupted"), "{reasons}");
    }
}

#[test]
fn what_cannot_be_measured_is_a_usage_error_that_says_why() {
    let home = folder();
    for (line, said) in [
        ("sweep --from 0", "--from: a rate of 0"),
        ("sweep --from 10 --to 5", "--from 10 is above --to 5"),
        ("sweep --rate 5", "--from and --to instead of --rate"),
        ("sweep --p99 0", "--p99 0: give microseconds"),
        ("sweep --schedule ramp:5", "a sweep chooses the rate"),
        ("compare serve: serve: --pairs 0", "--pairs"),
        ("compare serve: serve: --rate 0", "a rate of 0"),
        ("compare serve:idel=spin serve:", "did you mean \"idle\"?"),
        ("compare serve:idle=never serve:", "spin, adaptive, park"),
        (
            "compare serve:listen=h:1 serve:",
            "chosen by the measurement",
        ),
        ("compare serve: load:rat=5", "--rat"),
        ("compare serve: ./absent", "./absent cannot be run"),
        ("compare serve:", "<B>"),
        ("soak --subscribers 0", "a soak needs subscribers"),
        ("soak --hours 0", "--hours 0: give more than 0"),
        ("soak --hours 1 --duration 1", "cannot be used with"),
        ("soak --segment-bytes 3GiB", "at most 2 GiB"),
    ] {
        let args = [&["bench"], &words(line)[..]].concat();
        let refused = Cli::without_server().run_in(home.path(), &args).failed();
        assert_eq!(refused.code(), exit::USAGE, "{line}: {refused:?}");
        assert!(refused.stderr.contains(said), "{line}: {}", refused.stderr);
        assert_eq!(
            (refused.text(), files(home.path()).len()),
            ("", 0),
            "{line}"
        );
    }
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}
