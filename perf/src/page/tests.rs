//! Pages of runs that went as they should, that failed at once, and of text that wants to be markup.

use std::time::Duration;

use serde_json::Value;

use super::html;
use crate::error::BenchError;
use crate::latency::Recorder;
use crate::limits::Limits;
use crate::machine::{Between, Host};
use crate::open_loop::ledger::Balance;
use crate::open_loop::timing::{CELL_NS, Cells, Second, Times};
use crate::open_loop::{Outcome, Plan};
use crate::report::{BrokerHere, BrokerProcess, Config, Environment, Facts, Flush, Report, Wal};

const HOSTILE: &str = "</script></td><img src=x onerror=alert(1)>\"'<!--&";

fn limits() -> Limits {
    let of = |us: u64| {
        let mut recorder = Recorder::new();
        recorder.record(Duration::from_micros(us));
        recorder.summary()
    };
    Limits {
        tcp_echo_ns: of(10),
        durable_write_ns: of(80),
        ..Limits::default()
    }
}

fn facts(plan: &Plan) -> Facts {
    let mut config = Config::of(plan);
    config.acks = "durable".into();
    config.server = "127.0.0.1:7311".into();
    Facts {
        config,
        environment: Environment {
            began_unix_ms: 1_735_689_600_000,
            version: "0.1.0".into(),
            commit: "abcdef123456".into(),
            host: Host::look(),
            broker_process: BrokerProcess::Running,
            transport: "loopback",
            broker: serde_json::json!({"kernel": "6.1", "write_cache": "volatile", "fua": "no"}),
            meanwhile: Some(Between {
                elapsed_s: 10.0,
                steal_share: 0.0,
                others_share: Some(0.01),
                others_are_all: true,
                yields_per_s: Some(vec![50_000.0; 64]),
                disk_writes: Some(10),
                disk_flushes: Some(10),
            }),
            flush: Flush::Seen,
        },
        broker: Some(BrokerHere {
            spinning_cpus: vec![],
            limits_apply: true,
        }),
        limits: Some((limits(), limits())),
        limits_failed: None,
        wal: Some(Wal::new(10, 40_960, 10, 1000)),
    }
}

/// A run of ten seconds in which the second one stalls.
fn outcome() -> Outcome {
    let (mut times, mut cells) = (Times::default(), Cells::new(100 * CELL_NS));
    let mut seconds = Vec::new();
    for second in 0..10 {
        let mut of_second = Times::default();
        for n in 0..100 {
            let us = if second == 1 {
                900_000 - n * 8000
            } else {
                90 + n
            };
            of_second.latency.record(Duration::from_micros(us + 10));
            of_second.service.record(Duration::from_micros(us));
            of_second.lag.record(Duration::from_micros(1));
            of_second.end_to_end.record(Duration::from_micros(us + 40));
            let due_ns = second * 1_000_000_000 + n * 10_000_000;
            cells.acked(due_ns, due_ns + us * 1000);
            cells.delivered(due_ns, due_ns + us * 1000);
        }
        seconds.push(Second::of(second, &of_second));
        times.add(&of_second);
    }
    Outcome {
        times,
        seconds,
        cells,
        scheduled: 1000,
        measured: Duration::from_secs(10),
        elapsed: Duration::from_secs(10),
        balance: Balance {
            sent: 1000,
            acked: 1000,
            received: 1000,
            ..Balance::default()
        },
        replayed: 0,
        is_verified: true,
        refusal: None,
        error: None,
    }
}

fn nothing() -> Outcome {
    Outcome {
        times: Times::default(),
        seconds: Vec::new(),
        cells: Cells::new(0),
        scheduled: 0,
        balance: Balance::default(),
        is_verified: false,
        error: Some(BenchError::Interrupted),
        ..outcome()
    }
}

fn report(change: impl FnOnce(&mut Outcome, &mut Facts)) -> Report {
    let plan = Plan::default();
    let (mut outcome, mut facts) = (outcome(), facts(&plan));
    change(&mut outcome, &mut facts);
    Report::new(&plan, &outcome, facts)
}

/// The report that is in a page.
fn embedded(page: &str) -> Value {
    let opening = "<script type=\"application/json\" id=\"report\">";
    let (_, rest) = page.split_once(opening).expect("a report");
    let (json, _) = rest.split_once("</script>").expect("its end");
    serde_json::from_str(json).expect("JSON")
}

/// What attributes of this name say, with the path of their element.
fn stated<'a>(page: &'a str, attribute: &str) -> Vec<(&'a str, &'a str)> {
    let elements = page.split(" data-path=\"").skip(1);
    elements
        .filter_map(|rest| {
            let (path, rest) = rest.split_once('"')?;
            let rest = rest.strip_prefix(&format!(" {attribute}=\""))?;
            Some((path, rest.split_once('"')?.0))
        })
        .collect()
}

#[test]
fn each_figure_is_the_one_of_the_report() {
    let page = html(&report(|_, _| ()));
    let json = embedded(&page);
    let at = |path: &str| {
        let pointer = format!("/{}", path.replace('.', "/"));
        json.pointer(&pointer)
            .unwrap_or_else(|| panic!("{path} is in no report"))
    };
    let times = stated(&page, "data-ns");
    assert_eq!(times.len(), 8 * 6, "four times and four limits");
    for (path, ns) in times {
        assert_eq!(at(path).to_string(), ns, "{path}");
    }
    for (path, value) in stated(&page, "data-value") {
        let value: Value = serde_json::from_str(&value.replace("&quot;", "\"")).expect("JSON");
        assert_eq!(at(path), &value, "{path}");
    }
}

/// The leaves of what is not a series, as paths.
fn leaves(value: &Value, path: &str, out: &mut Vec<String>) {
    let Value::Object(fields) = value else {
        return out.push(path.trim_start_matches('.').into());
    };
    for (name, value) in fields {
        leaves(value, &format!("{path}.{name}"), out);
    }
}

#[test]
fn no_figure_of_the_report_is_left_out() {
    let page = html(&report(|_, _| ()));
    let mut json = embedded(&page);
    let fields = json.as_object_mut().expect("an object");
    // Drawn, or words of the heading; the place is that of the limits before.
    for name in [
        "series",
        "timeline",
        "percentiles",
        "schema_version",
        "kind",
        "valid",
        "reasons",
        "unchecked",
    ] {
        assert!(fields.remove(name).is_some(), "{name}");
    }
    let mut paths = Vec::new();
    leaves(&json, "", &mut paths);
    let shown_elsewhere = |path: &str| {
        path.ends_with(".min")
            || path.ends_with(".mean")
            || path.starts_with("limits.after.place")
            || path.ends_with("duration_each_s")
            || path == "produce.rate_per_s"
            || path == "verify.complete"
            || path == "produce.slower"
            || path.starts_with("limits.ratios")
    };
    for path in paths.iter().filter(|path| !shown_elsewhere(path)) {
        assert!(page.contains(&format!("data-path=\"{path}\"")), "{path}");
    }
    for n in 0..4 {
        assert!(page.contains(&format!("data-path=\"produce.slower.{n}.count\"")));
    }
    for path in ["p50.0", "p50.1", "p99.0", "p99.1"] {
        assert!(page.contains(&format!("data-path=\"limits.ratios.{path}\"")));
    }
}

#[test]
fn text_of_the_report_is_text_on_the_page() {
    let page = html(&report(|outcome, facts| {
        outcome.refusal = Some(HOSTILE.into());
        facts.config.server = HOSTILE.into();
        facts.config.workload = Some(HOSTILE.into());
        facts.config.about = Some(HOSTILE.into());
        facts.config.schedule = "feed".into();
        facts.config.feed = Some(HOSTILE.into());
        facts.environment.commit = HOSTILE.into();
        facts.limits_failed = Some(HOSTILE.into());
        facts.environment.host.cpu = HOSTILE.into();
        facts.environment.broker = serde_json::json!({ HOSTILE: HOSTILE });
    }));
    for markup in ["<img", "<!--", "</script></td>"] {
        assert!(!page.contains(markup), "{markup}");
    }
    assert_eq!(
        page.matches("</script>").count(),
        1,
        "the one of the report"
    );
    assert_eq!(embedded(&page)["config"]["server"], HOSTILE);
    // The quotes end no attribute either.
    let path = format!(
        "data-path=\"environment.broker.{}\"",
        super::escape(HOSTILE)
    );
    assert!(page.contains(&path));
}

#[test]
fn a_run_that_failed_at_once_has_a_page_that_says_so() {
    let plan = Plan::default();
    let mut facts = facts(&plan);
    (facts.limits, facts.wal) = (None, None);
    (facts.environment.meanwhile, facts.broker) = (None, None);
    facts.environment.broker = Value::Null;
    let page = html(&Report::new(&plan, &nothing(), facts));
    assert_eq!(embedded(&page)["valid"], false);
    for words in [
        "<strong>INVALID</strong>",
        "<p>Not checked:</p><ul><li>",
        "interrupted",
        "No record was acknowledged",
        "No record came while",
        "No latency was measured",
        "Deliveries were not looked at",
        "The broker did not say",
    ] {
        assert!(page.contains(words), "{words}");
    }
    for nonsense in ["NaN", "inf"] {
        assert!(!page.contains(&format!(">{nonsense}")), "{nonsense}");
        assert!(!page.contains(&format!(" {nonsense} ")), "{nonsense}");
    }
}

#[test]
fn a_page_asks_for_nothing_and_runs_nothing() {
    let page = html(&report(|_, _| ()));
    for reference in [
        "src=", "href=", "url(", "@import", "http:", "https:", "<link", "onload",
    ] {
        assert!(!page.contains(reference), "{reference}");
    }
    assert_eq!(page.matches("<script").count(), 1, "the one of the report");
    assert!(page.contains("default-src 'none'"));
}

#[test]
fn charts_are_of_what_there_is() {
    let whole = html(&report(|_, _| ()));
    assert_eq!(whole.matches("role=\"img\"").count(), 4);
    assert!(whole.contains("due to delivered"));
    let unread = html(&report(|outcome, _| {
        outcome.times.end_to_end.clear();
        for second in &mut outcome.seconds {
            second.end_to_end_ns = None;
        }
    }));
    assert!(!unread.contains("due to delivered"));
    // Every second had the same rate, which a scatter does not show.
    assert!(whole.contains("Every second had the same rate"));
    let uneven = html(&report(|outcome, _| outcome.seconds[3].acked = 50));
    assert_eq!(uneven.matches("role=\"img\"").count(), 5);
}

#[test]
fn a_second_after_the_end_is_drawn_if_what_came_in_it_was_late() {
    let with = |us: u64| {
        html(&report(|outcome, _| {
            let mut times = Times::default();
            times.latency.record(Duration::from_micros(us));
            outcome.seconds.push(Second::of(13, &times));
        }))
    };
    assert!(with(3_500_000).contains("second 13, max: 3.50 s"));
    assert!(!with(200).contains("second 13, max"));
}

#[test]
fn tags_are_closed_in_the_order_in_which_they_were_opened() {
    let page = html(&report(|outcome, _| outcome.seconds[3].acked = 50));
    let (page, _) = page.split_once("<script").expect("a report");
    let (_, page) = page.split_once("</style>").expect("styles");
    let mut open = vec!["html", "head"];
    for tag in page.split('<').skip(1) {
        let (tag, _) = tag.split_once('>').expect("the end of a tag");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "{tag}");
        } else if !tag.ends_with('/') {
            open.push(tag.split(' ').next().expect("a name"));
        }
    }
    assert_eq!(open, ["html", "body"]);
}
