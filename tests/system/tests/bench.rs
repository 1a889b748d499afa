//! `ringtide bench` against real brokers: what it counts, what makes its figures worthless, and that
//! a broker that stands still shows as all the records that were due meanwhile.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use ringtide_schema::error_code::ErrorCode;
use ringtide_schema::frame::{FrameHeader, HEADER_BYTES, Op};
use ringtide_schema::wire;
use ringtide_session::Encoder;
use ringtide_system_tests::{
    Broker, Cli, MountedDisk, Setup, cpu_list, data_root, disturbed_at_most, exit, skip, wait,
};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

/// A load that any machine can do, and that needs no limits.
const SMALL: [&str; 9] = [
    "bench",
    "--no-limits",
    "--rate",
    "500",
    "--duration",
    "1",
    "--warm-up",
    "0.2",
    "--json",
];

fn json(path: &Path) -> Value {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&bytes).expect("JSON")
}

fn number(report: &Value, pointer: &str) -> u64 {
    let found = report.pointer(pointer).and_then(Value::as_u64);
    found.unwrap_or_else(|| panic!("{pointer} is missing: {report}"))
}

/// Runs the load with more flags; its report, and whether it counts.
fn measure(broker: &Broker, more: &[&str]) -> Value {
    let file = broker.home().join("report.json");
    let path = file.to_str().expect("a path of text");
    let args = [&SMALL[..], &[path], more].concat();
    let done = broker.cli().run(&args);
    let report = json(&file);
    // A busy machine may make the figures worthless, which has an exit code of its own.
    let expected = match report["valid"].as_bool() {
        Some(true) => exit::DONE,
        _ => 3,
    };
    assert_eq!(done.code(), expected, "{done:?}");
    report
}

/// Waits until so many records are in the topic that a measurement has made.
fn wait_for_records(broker: &Broker, count: u64) {
    wait::until("the measurement has published", || {
        let topics = broker.cli().run(&["topic", "list", "--json"]).ok();
        let topics: Value = serde_json::from_slice(topics.text().as_bytes()).expect("JSON");
        let name = |topic: &Value| topic["name"].as_str().map(str::to_owned);
        let found = topics.as_array().expect("a list").iter().find_map(name)?;
        let described = broker.cli().run(&["topic", "describe", &found, "--json"]);
        let topic: Value = serde_json::from_slice(described.text().as_bytes()).ok()?;
        let latest = topic.pointer("/partitions/0/latest")?.as_u64()?;
        (latest >= count).then_some(())
    });
}

#[test]
fn every_record_is_accounted_for_whatever_the_load_is_like() {
    let broker = Setup::new().shards(2).start();
    for more in [
        &[][..],
        &[
            "--schedule",
            "poisson",
            "--acks",
            "accepted",
            "--keys",
            "zipf:50",
            "--partitions",
            "4",
        ],
        &[
            "--schedule",
            "bursts:50",
            "--publishers",
            "7",
            "--subscribers",
            "3",
        ],
        &[
            "--batch",
            "8",
            "--compression",
            "zstd",
            "--size",
            "1KiB",
            "--partitions",
            "3",
        ],
        &["--acks", "none", "--subscribers", "0"],
        &[
            "--feed",
            "generated",
            "--speed",
            "50",
            "--size",
            "feed",
            "--partitions",
            "2",
        ],
        &[
            "--replayers",
            "1",
            "--preload",
            "1MiB",
            "--schedule",
            "ramp:10",
        ],
    ] {
        let report = measure(&broker, more);
        disturbed_at_most(&report);
        let verify = &report["verify"];
        for what in [
            "lost",
            "duplicated",
            "reordered",
            "corrupt",
            "unacknowledged",
            "refused",
            "unsent",
        ] {
            assert_eq!(verify[what], 0, "{what} with {more:?}: {verify}");
        }
        let (sent, received) = (
            number(&report, "/verify/sent"),
            number(&report, "/verify/received"),
        );
        assert!(sent > 0 && received >= sent, "{more:?}: {verify}");
        assert_eq!(verify["complete"], true);
        let latency = &report["produce"]["latency_ns"];
        let ascending = ["p50", "p90", "p99", "p99_9", "p99_99", "max"].map(|k| {
            latency[k]
                .as_u64()
                .unwrap_or_else(|| panic!("{k}: {report}"))
        });
        assert!(ascending[0] > 0 && ascending.is_sorted(), "{ascending:?}");
        let kept = number(&report, "/produce/service_ns/p50") <= ascending[0];
        assert!(kept, "what is sent is not due later: {report}");
    }
    let topics = broker.cli().run(&["topic", "list", "--json"]).ok();
    assert_eq!(topics.text().trim(), "[]", "nothing is left behind");
}

#[test]
fn a_report_says_what_was_measured_and_on_what() {
    let broker = Broker::start();
    let report = measure(&broker, &["--hlog", "/dev/null"]);
    disturbed_at_most(&report);
    assert_eq!(report["schema_version"], 1);
    assert_eq!(report["kind"], "open-loop");
    assert_eq!(report["config"]["acks"], "durable");
    assert_eq!(report["config"]["rate"], 500.0);
    assert_eq!(report["environment"]["transport"], "loopback");
    let host = &report["environment"]["host"];
    let told = &report["environment"]["broker"];
    assert_eq!(host["kernel"], told["kernel"]);
    assert_eq!(report["environment"]["commit"], told["commit"]);
    for key in ["idle", "file_system", "write_cache", "fua", "version"] {
        assert!(
            told[key].as_str().is_some_and(|s| !s.is_empty()),
            "{key}: {told}"
        );
    }
    let (writes, bytes) = (
        number(&report, "/wal/writes"),
        number(&report, "/wal/bytes"),
    );
    assert!(writes > 0 && bytes >= writes * 4096, "{}", report["wal"]);
    let target = report["schedule"]["target_rate_per_s"].as_f64();
    assert_eq!(target, Some(500.0));
    let points = report.pointer("/timeline/points").and_then(Value::as_array);
    let acked = points.expect("points").iter().map(|p| p["acked"].as_u64());
    let acked: u64 = acked.map(|n| n.expect("a number")).sum();
    assert!(acked > 0 && acked <= number(&report, "/produce/count"));
    let meanwhile = &report["environment"]["meanwhile"];
    let elapsed = meanwhile["elapsed_s"].as_f64();
    assert!(elapsed.is_some_and(|s| s > 0.0), "{meanwhile}");
    assert!(meanwhile["others_share"].is_f64(), "{meanwhile}");
    let unchecked = report["unchecked"].to_string();
    assert!(
        unchecked.contains("limits were not measured"),
        "{unchecked}"
    );
    assert!(
        !unchecked.contains("not found on this machine"),
        "{unchecked}"
    );
}

#[test]
fn a_log_of_histograms_has_a_line_for_each_second_and_kind() {
    let broker = Broker::start();
    let file = broker.home().join("run.hlog");
    let path = file.to_str().expect("a path of text");
    let report = measure(&broker, &["--hlog", path, "--duration", "2"]);
    let text = fs::read_to_string(&file).expect("a log");
    for tag in ["produce", "service", "lag", "end-to-end"] {
        let lines = text
            .lines()
            .filter(|l| l.starts_with(&format!("Tag={tag},")));
        assert!(lines.count() >= 2, "{tag}: {text}");
    }
    let (_, start) = text.split_once("[StartTime: ").expect("a start");
    let start: f64 = start
        .split(' ')
        .next()
        .and_then(|s| s.parse().ok())
        .expect("a time");
    let began = number(&report, "/environment/began_unix_ms") as f64 / 1000.0;
    assert!(start >= began + 0.2, "behind the warm-up: {start}, {began}");
}

#[test]
fn a_broker_that_is_paused_shows_as_every_record_that_was_due_meanwhile() {
    let broker = Broker::start();
    let file = broker.home().join("paused.json");
    let path = file.to_str().expect("a path of text");
    let run = broker.cli().start(&[
        "bench",
        "--no-limits",
        "--acks",
        "accepted",
        "--rate",
        "10000",
        "--duration",
        "4",
        "--json",
        path,
    ]);
    // Beyond the second of warm-up.
    wait_for_records(&broker, 15_000);
    broker.signal(Signal::STOP);
    std::thread::sleep(Duration::from_millis(500));
    broker.signal(Signal::CONT);
    let done = run.finish();
    assert!([exit::DONE, 3].contains(&done.code()), "{done:?}");
    let report = json(&file);
    assert!(number(&report, "/produce/latency_ns/max") >= 490_000_000);
    assert_eq!(report["produce"]["slower"][0]["than_ns"], 1_000_000);
    let slow = number(&report, "/produce/slower/0/count");
    assert!(slow >= 4_500, "{slow} of about 5,000 records were slow");
    // The hole: tenths in which nothing came back.
    let points = report.pointer("/timeline/points").and_then(Value::as_array);
    let points = points.expect("points");
    let holes = points.iter().filter(|point| point["acked"] == 0).count();
    assert!(holes >= 3, "{holes} empty tenths of a second: {points:?}");
    assert_eq!(report["verify"]["lost"], 0);
}

#[test]
fn a_closed_loop_shows_the_same_pause_as_one_slow_record() {
    let broker = Broker::start();
    let file = broker.home().join("closed.json");
    let path = file.to_str().expect("a path of text");
    let run = broker.cli().start(&[
        "bench",
        "--closed-loop",
        "--acks",
        "accepted",
        "--duration",
        "6",
        "--warm-up",
        "0",
        "--json",
        path,
    ]);
    wait_for_records(&broker, 1);
    broker.signal(Signal::STOP);
    std::thread::sleep(Duration::from_millis(500));
    broker.signal(Signal::CONT);
    let done = run.finish();
    assert!([exit::DONE, 3].contains(&done.code()), "{done:?}");
    let report = json(&file);
    assert_eq!(report["mode"], "closed-loop");
    assert!(number(&report, "/produce/latency_ns/max") >= 490_000_000);
    let latency = number(&report, "/produce/latency_ns/p99_9");
    assert!(
        latency < 490_000_000,
        "one record in many was slow: {latency}"
    );
}

#[test]
fn a_rate_that_the_generator_cannot_keep_makes_the_run_invalid() {
    let broker = Broker::start();
    let report = measure(
        &broker,
        &[
            "--rate",
            "20000000",
            "--drain",
            "0.3",
            "--acks",
            "none",
            "--duration",
            "0.3",
            "--subscribers",
            "0",
            "--no-verify",
        ],
    );
    assert_eq!(report["valid"], false);
    let reasons = report["reasons"].to_string();
    assert!(
        reasons.contains("schedule") || reasons.contains("target"),
        "{reasons}"
    );
}

#[test]
fn a_broker_that_dies_leaves_what_was_measured_marked_as_invalid() {
    let mut broker = Broker::start();
    let file = broker.home().join("died.json");
    let path = file.to_str().expect("a path of text");
    let run = broker.cli().start(&[
        "bench",
        "--no-limits",
        // So that it is not the disk that decides how many were acknowledged by then.
        "--acks",
        "accepted",
        "--rate",
        "2000",
        "--duration",
        "30",
        "--warm-up",
        "0",
        "--json",
        path,
    ]);
    wait_for_records(&broker, 1000);
    broker.kill();
    let done = run.finish();
    assert_eq!(done.code(), 3, "{done:?}");
    let report = json(&file);
    assert_eq!(report["valid"], false);
    let count = number(&report, "/produce/count");
    assert!(count > 500, "{report}");
    let rate = report
        .pointer("/produce/rate_per_s")
        .and_then(Value::as_f64);
    assert!(
        rate > Some(count as f64 / 30.0),
        "of the time it had: {report}"
    );
    let reasons = report["reasons"].to_string();
    assert!(reasons.contains("was lost"), "{reasons}");
    assert!(!reasons.contains("(after 0 "), "{reasons}");
    assert!(!reasons.contains("other processes"), "{reasons}");
    assert!(
        !reasons.contains("not delivered"),
        "of a broker that is gone nobody knows: {reasons}"
    );
}

#[test]
fn a_disk_that_fills_up_leaves_what_was_measured_marked_as_invalid() {
    let disk = match MountedDisk::ext4(96 << 20) {
        Ok(disk) => disk,
        Err(reason) => {
            return skip(
                "a_disk_that_fills_up_leaves_what_was_measured_marked_as_invalid",
                &reason,
            );
        }
    };
    let broker = Setup::new().data_dir(&disk.path().join("data")).start();
    let report = measure(&broker, &["--size", "200000"]);
    assert_eq!(report["valid"], false);
    assert!(number(&report, "/verify/acked") > 0);
    assert!(number(&report, "/verify/refused") > 0);
    assert_eq!(number(&report, "/verify/lost"), 0);
    let reasons = report["reasons"].to_string();
    assert!(reasons.contains("when there is space"), "{reasons}");
    broker.logs(&["full"]);
}

#[test]
fn without_a_server_it_measures_a_broker_of_its_own_and_leaves_nothing() {
    let home = TempDir::new_in(data_root()).expect("a folder");
    let args = [
        "bench",
        "--rate",
        "200",
        "--duration",
        "0.5",
        "--warm-up",
        "0.1",
        "--no-limits",
    ];
    let done = Cli::without_server().run_in(home.path(), &args);
    assert!([exit::DONE, 3].contains(&done.code()), "{done:?}");
    assert!(done.text().contains("broker of its own"), "{}", done.text());
    assert!(done.text().contains("0 lost"), "{}", done.text());
    let left = fs::read_dir(home.path()).expect("a folder").count();
    assert_eq!(left, 0);
}

#[test]
fn limits_beside_a_broker_that_runs_are_of_its_cpu() {
    let cpus = cpu_list(2);
    let (first, last) = cpus.split_once(',').expect("two");
    let broker = Setup::new().args(&["--cpus", last]).start();
    let file = broker.home().join("run.json");
    let home = broker.home().to_str().expect("a path of text");
    let apart = ["bench", "--cpus", first, "--limits-dir", home];
    let args = [&apart, &SMALL[2..]].concat();
    let args = [&args[..], &[file.to_str().expect("a path of text")]].concat();
    let done = broker.cli().run(&args);
    assert!([exit::DONE, 3].contains(&done.code()), "{done:?}");
    let report = json(&file);
    disturbed_at_most(&report);
    let cpu = &report["environment"]["broker"]["cpus"][0];
    assert_eq!(cpu.to_string(), last, "{report}");
    assert_eq!(&report["limits"]["place"]["server_cpu"], cpu, "{report}");
}

/// Processes that another has started and that have not ended.
fn children(of: u32) -> usize {
    let stats = fs::read_dir("/proc").expect("processes").flatten();
    let stats = stats.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    let parents = stats.filter_map(|stat| {
        let (_, rest) = stat.rsplit_once(") ")?;
        rest.split(' ').nth(1)?.parse::<u32>().ok()
    });
    parents.filter(|parent| *parent == of).count()
}

/// Whether a process has a file open whose name ends so.
fn has_open(pid: u32, end: &str) -> bool {
    let files = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten();
    let mut names = files
        .flatten()
        .filter_map(|file| fs::read_link(file.path()).ok());
    names.any(|name| name.to_string_lossy().ends_with(end))
}

#[test]
fn an_interruption_after_the_run_loses_the_limits_and_not_the_run() {
    let home = TempDir::new_in(data_root()).expect("a folder");
    let files = || fs::read_dir(home.path()).expect("a folder").count();
    let args = [&["bench"], &SMALL[2..], &["run.json"]].concat();
    let mut run = Cli::without_server().start_in(home.path(), &args);
    let bench = run.pid();
    wait::for_it("the broker runs", || children(bench) == 1);
    wait::for_it("the broker has ended", || children(bench) == 0);
    // A file without a name: that of the durable writes.
    wait::for_it("limits are measured", || has_open(bench, " (deleted)"));
    let mut left = fs::read_dir(home.path()).expect("a folder").flatten();
    let is_dir = |entry: fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    assert!(left.any(is_dir), "its directory is still there");
    run.signal(Signal::INT);
    let done = run.finish();
    assert_eq!(done.code(), 3, "{done:?}");
    let report = json(&home.path().join("run.json"));
    let reasons = report["reasons"].to_string();
    assert!(
        reasons.contains("could not be measured after the run: "),
        "{reasons}"
    );
    assert_eq!(report["limits"], Value::Null);
    assert_eq!(
        number(&report, "/verify/acked"),
        number(&report, "/verify/received")
    );
    assert_eq!(files(), 1, "only the figures are left");
}

#[test]
fn a_broker_in_the_process_of_the_generator_says_so_and_leaves_nothing() {
    let home = TempDir::new_in(data_root()).expect("a folder");
    let args = [&SMALL[..], &["/dev/stdout", "--in-process"]].concat();
    let done = Cli::without_server().run_in(home.path(), &args);
    assert!([exit::DONE, 3].contains(&done.code()), "{done:?}");
    let report: Value = serde_json::from_slice(done.text().as_bytes()).expect("JSON");
    disturbed_at_most(&report);
    assert_eq!(report["environment"]["broker_process"], "same");
    let acked = number(&report, "/verify/acked");
    assert!(acked > 0 && acked == number(&report, "/verify/received"));
    assert!(!done.stderr.contains("did not end well"), "{done:?}");
    let left = fs::read_dir(home.path()).expect("a folder").count();
    assert_eq!(left, 0);
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_measured() {
    let home = TempDir::new_in(data_root()).expect("a folder");
    fs::write(home.path().join("noise"), [7; 300]).expect("written");
    fs::write(home.path().join("load.toml"), "rate = 5\nsubscriber = 1\n").expect("written");
    for (more, words) in [
        (&["--rate", "0"][..], "rate"),
        (&["--rate", "-5"], "rate"),
        (&["--rate", "many"], "rate"),
        (&["--schedule", "sometimes"], "poisson"),
        (&["--feed", "absent"], "absent"),
        (&["--feed", "noise"], "noise is no feed"),
        (&["--schedule", "feed"], "--feed"),
        (&["--size", "8"], "at least 32"),
        (&["--batch", "100000"], "do not fit"),
        (&["--partitions", "0"], "partitions"),
        (&["--workload", "weather"], "market-data"),
        (&["--workload", "load.toml"], "subscriber"),
        (
            &["--no-limits", "--cpus", "4095", "--duration", "3600"],
            "4095",
        ),
        (
            &["--no-limits", "--broker-cpus", "4095", "--duration", "3600"],
            "--broker-cpus",
        ),
        (&["--closed-loop", "--rate", "5"], "closed loop"),
    ] {
        let args = [&["bench"], more].concat();
        let done = Cli::without_server().run_in(home.path(), &args);
        assert!(
            [exit::FAILED, 2].contains(&done.code()),
            "{more:?}: {done:?}"
        );
        let said = &done.stderr;
        assert!(said.contains(words), "{more:?} says {said}");
    }
}

#[test]
fn a_server_that_is_absent_or_speaks_something_else_is_named() {
    let broker = Cli::new("127.0.0.1:1".parse().expect("an address"));
    let done = broker.run(&["bench", "--duration", "0.2"]);
    assert_eq!(done.code(), 4, "{done:?}");
    let address = listen(|stream| {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    let done = Cli::new(address).run(&["bench", "--duration", "0.2"]);
    assert_ne!(done.code(), 0, "{done:?}");
    let said = &done.stderr;
    assert!(said.contains(&address.to_string()), "{said}");
}

#[test]
fn a_broker_of_another_version_is_refused_in_its_own_words() {
    const WORDS: &str = "this broker speaks versions 7 to 9";
    let address = listen(|stream| {
        let mut header = [0; HEADER_BYTES];
        stream.read_exact(&mut header).expect("a hello");
        let hello = FrameHeader::decode(&header)
            .expect("a header")
            .expect("whole");
        let refusal = wire::ErrorResponseT {
            code: ErrorCode::UnsupportedVersion as u16,
            message: Some(WORDS.into()),
            ..wire::ErrorResponseT::default()
        };
        let mut answer = Vec::new();
        Encoder::new().error(&mut answer, Op::Hello, hello.correlation, &refusal);
        let _ = stream.write_all(&answer);
        // The rest of what it sends is taken, so that the end does not overtake the answer.
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let done = Cli::new(address).run(&["bench", "--duration", "0.2"]);
    assert_ne!(done.code(), 0, "{done:?}");
    let said = &done.stderr;
    assert!(said.contains(&address.to_string()), "{said}");
    assert!(said.contains(WORDS), "{said}");
}

/// Who does the same to everyone that connects; where.
fn listen(meet: impl Fn(&mut TcpStream) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            meet(&mut stream);
        }
    });
    address
}
