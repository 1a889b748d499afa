//! Reports side by side, for a person.

use std::fmt::Write as _;

use serde_json::Value;

/// A line for each report, ours or another broker's, and below why some do not count.
pub fn table(reports: &[Value]) -> String {
    let mut out = format!(
        "{:<20}{:<10}{:<12}{:>12}{:>12}{:>12}{:>12}{:>12}  {}\n",
        "workload",
        "peer",
        "durability",
        "p50 us",
        "p99 us",
        "p99.9 us",
        "max us",
        "achieved/s",
        "valid"
    );
    let mut reasons = String::new();
    for report in reports {
        let name = text(report, "/config/workload").unwrap_or("(flags)");
        let name = name.rsplit('/').next().unwrap_or(name);
        let peer = text(report, "/environment/broker/peer").unwrap_or("ringtide");
        let durability = match text(report, "/config/acks") {
            Some("accepted") => "usual",
            level => level.unwrap_or("?"),
        };
        let us = |quantile: &str| {
            let ns = report.pointer(&format!("/produce/latency_ns/{quantile}"));
            let ns = ns.and_then(Value::as_f64);
            ns.map_or_else(|| "-".into(), |ns| format!("{:.1}", ns / 1000.0))
        };
        let achieved = report.pointer("/schedule/achieved_rate_per_s");
        let is_valid = report.get("valid").and_then(Value::as_bool) == Some(true);
        // Memory takes everything.
        let _ = writeln!(
            out,
            "{name:<20}{peer:<10}{durability:<12}{:>12}{:>12}{:>12}{:>12}{:>12.0}  {}",
            us("p50"),
            us("p99"),
            us("p99_9"),
            us("max"),
            achieved.and_then(Value::as_f64).unwrap_or(0.0),
            if is_valid { "yes" } else { "NO" }
        );
        let why = report.get("reasons").and_then(Value::as_array);
        for why in why.into_iter().flatten().filter_map(Value::as_str) {
            let _ = writeln!(reasons, "  {name}, {peer}, {durability}: {why}");
        }
    }
    if !reasons.is_empty() {
        let _ = write!(out, "\nwhy figures do not count:\n{reasons}");
    }
    out
}

fn text<'a>(report: &'a Value, pointer: &str) -> Option<&'a str> {
    report.pointer(pointer)?.as_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_report_has_its_line_and_each_reason_its_owner() {
        let report = |peer: Option<&str>, valid: bool| {
            let reasons: &[&str] = if valid { &[] } else { &["too slow"] };
            serde_json::json!({
                "valid": valid,
                "reasons": reasons,
                "config": {"workload": "telemetry", "acks": "durable"},
                "environment": {"broker": {"peer": peer}},
                "produce": {"latency_ns": {"p50": 1500, "p99": 2500, "p99_9": 3500, "max": 4500}},
                "schedule": {"achieved_rate_per_s": 999.6},
            })
        };
        let table = table(&[report(Some("redis"), true), report(None, false)]);
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[1].contains("redis") && lines[1].ends_with("yes"));
        assert!(lines[1].contains(" 1.5 ") && lines[1].contains(" 1000 "));
        assert!(lines[2].contains("ringtide") && lines[2].ends_with("NO"));
        assert_eq!(lines[5], "  telemetry, ringtide, durable: too slow");
    }
}
