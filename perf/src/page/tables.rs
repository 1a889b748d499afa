//! Figures as figures: latencies, rates, the verification and the write-ahead log.

use std::borrow::Cow;
use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::latency::Latency;
use crate::report::Report;

use super::text::{bytes, digits, escape, grouped, micros, source};

/// One of the figures of a latency.
type Quantile = fn(&Latency) -> u64;

/// Quantiles with the names of their columns and fields.
const COLUMNS: [(&str, &str, Quantile); 6] = [
    ("p50", "p50", |l| l.p50),
    ("p90", "p90", |l| l.p90),
    ("p99", "p99", |l| l.p99),
    ("p99.9", "p99_9", |l| l.p99_9),
    ("p99.99", "p99_99", |l| l.p99_99),
    ("max", "max", |l| l.max),
];

/// A time as microseconds, with where it is in the report.
fn time_cell(path: &str, ns: u64) -> String {
    let path = escape(path);
    format!(
        "<td data-path=\"{path}\" data-ns=\"{ns}\">{}</td>",
        micros(ns)
    )
}

/// The table of latencies.
pub(super) fn latencies(report: &Report) -> String {
    if report.produce.latency_ns.is_none() && report.limits.is_none() {
        return "<section>\n<h2>Latency</h2>\n<p class=\"note\">No latency was measured.</p>\n</section>\n".into();
    }
    let mut out = String::from(
        "<section>\n<h2>Latency in microseconds</h2>\n<div class=\"wide\"><table class=\"latency\">\n<thead><tr><th></th>",
    );
    for (name, ..) in COLUMNS {
        let _ = write!(out, "<th scope=\"col\">{name}</th>");
    }
    out.push_str("<th scope=\"col\">records</th></tr></thead>\n<tbody>\n");
    let mut line = |class: &str, name: &str, path: &str, latency: Option<Latency>| {
        let Some(latency) = latency else { return };
        let _ = write!(out, "<tr class=\"{class}\"><th scope=\"row\">{name}</th>");
        for (_, field, of) in COLUMNS {
            out.push_str(&time_cell(&format!("{path}.{field}"), of(&latency)));
        }
        let count = source(&format!("{path}.count"), &json!(latency.count));
        let _ = writeln!(out, "<td{count}>{}</td></tr>", grouped(latency.count));
    };
    let delivered = report.end_to_end.map(|e| e.latency_ns);
    line(
        "",
        "due to acknowledged",
        "produce.latency_ns",
        report.produce.latency_ns,
    );
    line(
        "",
        "sent to acknowledged",
        "produce.service_ns",
        report.produce.service_ns,
    );
    line("", "due to delivered", "end_to_end.latency_ns", delivered);
    line(
        "",
        "lag: due to turned to",
        "schedule.lag_ns",
        report.schedule.lag_ns,
    );
    if let Some(around) = &report.limits {
        for (name, when, path, limits) in [
            ("limit", "before", "limits", &around.before),
            ("limit", "after", "limits.after", &around.after),
        ] {
            let echo = format!("{name}: echo, {when}");
            line(
                "of-limit",
                &echo,
                &format!("{path}.tcp_echo_ns"),
                limits.tcp_echo_ns,
            );
            let write = format!("{name}: durable write, {when}");
            let path = format!("{path}.durable_write_ns");
            line("of-limit", &write, &path, limits.durable_write_ns);
        }
    }
    out.push_str(
        "</tbody></table></div>\n<p class=\"note\">A record's time runs from when the schedule had it due, \
         whether or not it could be sent then. A quantile with only a few records beyond it says little: \
         p99.99 needs 100,000 of them.",
    );
    if report.limits.is_some() {
        out.push_str(
            " Limits are of one echo and one durable write at a time; their last column counts those.",
        );
    }
    out.push_str("</p>\n</section>\n");
    out
}

/// One figure of a list: what it is, where it is in the report, and how it is written.
struct Row {
    name: Cow<'static, str>,
    path: Cow<'static, str>,
    value: Value,
    text: String,
    is_bad: bool,
}

impl Row {
    fn new(
        name: impl Into<Cow<'static, str>>,
        path: impl Into<Cow<'static, str>>,
        value: impl Into<Value>,
        text: String,
    ) -> Self {
        Self {
            name: name.into(),
            path: path.into(),
            value: value.into(),
            text,
            is_bad: false,
        }
    }

    fn count(
        name: impl Into<Cow<'static, str>>,
        path: impl Into<Cow<'static, str>>,
        count: u64,
    ) -> Self {
        Self::new(name, path, count, format!("{} records", grouped(count)))
    }

    /// Of which there should be none.
    fn fault(name: &'static str, path: &'static str, count: u64) -> Self {
        Self {
            is_bad: count > 0,
            ..Self::count(name, path, count)
        }
    }
}

fn list(title: &str, rows: &[Row], note: &str) -> String {
    let mut out = format!(
        "<section>\n<h2>{}</h2>\n<dl class=\"figures\">\n",
        escape(title)
    );
    for row in rows {
        let class = if row.is_bad { " class=\"bad\"" } else { "" };
        let _ = writeln!(
            out,
            "<div{class}><dt>{}</dt><dd{}>{}</dd></div>",
            escape(&row.name),
            source(&row.path, &row.value),
            escape(&row.text)
        );
    }
    let _ = writeln!(
        out,
        "</dl>\n<p class=\"note\">{}</p>\n</section>",
        escape(note)
    );
    out
}

/// Rates that were asked for and achieved.
pub(super) fn rates(report: &Report) -> String {
    let (schedule, produce) = (&report.schedule, &report.produce);
    let per_s = |rate: f64| format!("{} records/s", digits(rate));
    let mut rows = vec![
        Row::new(
            "due",
            "schedule.target_rate_per_s",
            schedule.target_rate_per_s,
            per_s(schedule.target_rate_per_s),
        ),
        Row::new(
            "achieved",
            "schedule.achieved_rate_per_s",
            schedule.achieved_rate_per_s,
            per_s(schedule.achieved_rate_per_s),
        ),
        Row::new(
            "achieved, as values",
            "produce.bytes_per_s",
            produce.bytes_per_s,
            format!("{} MB/s", digits(produce.bytes_per_s / 1e6)),
        ),
        Row::count("due and acknowledged", "produce.count", produce.count),
    ];
    if let Some(end_to_end) = &report.end_to_end {
        rows.push(Row::count(
            "due and delivered",
            "end_to_end.count",
            end_to_end.count,
        ));
    }
    for (n, slower) in produce.slower.iter().enumerate() {
        let name = format!(
            "took longer than {} ms",
            grouped(slower.than_ns / 1_000_000)
        );
        let path = format!("produce.slower.{n}.count");
        rows.push(Row::count(name, path, slower.count));
    }
    if let Some(replay) = &report.replay {
        let text = bytes(replay.bytes);
        rows.push(Row::new(
            "read by replayers",
            "replay.bytes",
            replay.bytes,
            text,
        ));
    }
    list(
        "Rates",
        &rows,
        "While it was measured; warm-up is not counted.",
    )
}

/// Every record accounted for.
pub(super) fn verification(report: &Report) -> String {
    let balance = &report.verify.balance;
    let rows = [
        Row::count("sent", "verify.sent", balance.sent),
        Row::count("acknowledged", "verify.acked", balance.acked),
        Row::count("delivered", "verify.received", balance.received),
        Row::fault("not sent", "verify.unsent", balance.unsent),
        Row::fault(
            "not acknowledged",
            "verify.unacknowledged",
            balance.unacknowledged,
        ),
        Row::fault("refused", "verify.refused", balance.refused),
        Row::fault("lost", "verify.lost", balance.lost),
        Row::fault("duplicated", "verify.duplicated", balance.duplicated),
        Row::fault("reordered", "verify.reordered", balance.reordered),
        Row::fault("corrupt", "verify.corrupt", balance.corrupt),
    ];
    let note = match report.verify.complete {
        true => "Every record of the run, warm-up included, was looked for among those delivered.",
        false => {
            "Deliveries were not looked at: nothing is known of records that were lost, duplicated, \
                  reordered or corrupt."
        }
    };
    list("Verification", &rows, note)
}

/// What the write-ahead log did.
pub(super) fn wal(report: &Report) -> String {
    let Some(wal) = &report.wal else {
        return "<section>\n<h2>Write-ahead log</h2>\n<p class=\"note\">The broker did not say what its log \
                did.</p>\n</section>\n"
            .into();
    };
    let rows = [
        Row::new(
            "writes",
            "wal.writes",
            wal.writes,
            format!("{} writes", grouped(wal.writes)),
        ),
        Row::new("written", "wal.bytes", wal.bytes, bytes(wal.bytes)),
        Row::new(
            "entries",
            "wal.entries",
            wal.entries,
            format!("{} entries", grouped(wal.entries)),
        ),
        Row::new(
            "records in a write",
            "wal.records_per_write",
            wal.records_per_write,
            format!("{} records", digits(wal.records_per_write)),
        ),
        Row::new(
            "bytes in a write",
            "wal.bytes_per_write",
            wal.bytes_per_write,
            format!("{} B", digits(wal.bytes_per_write)),
        ),
    ];
    list(
        "Write-ahead log",
        &rows,
        "While it was measured, of all shards; padding included.",
    )
}
