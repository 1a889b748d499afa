//! Everything that a run is stamped with: its options and where it was. Fields are shown by their
//! names, whatever they are, so that none is left out; the names say the units.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use crate::report::Report;

use super::text::{bytes, digits, escape, grouped, moment, plain, source, time};

/// Fields in the order in which they are read best; others come after them.
const ORDER: [&str; 41] = [
    "workload",
    "about",
    "server",
    "schedule",
    "rate",
    "feed",
    "speed",
    "size",
    "batch",
    "acks",
    "visible",
    "compression",
    "keys",
    "publishers",
    "partitions",
    "subscribers",
    "replayers",
    "preload",
    "duration_s",
    "warm_up_s",
    "seed",
    "began_unix_ms",
    "version",
    "commit",
    "transport",
    "broker_process",
    "flush",
    "kernel",
    "cpu",
    "cpus",
    "governor",
    "memory_bytes",
    "is_virtual",
    "shards",
    "idle",
    "file_system",
    "device",
    "write_cache",
    "fua",
    "elapsed_s",
    "steal_share",
];

/// Names that are not the field's own, and units that it does not name.
const WORDS: [(&str, &str, &str); 23] = [
    ("broker_process", "broker's process", ""),
    ("began_unix_ms", "began", ""),
    ("rate", "rate asked for", "records/s"),
    ("size", "size of a value", "B"),
    ("batch", "records of a batch, at most", ""),
    ("preload", "preload", "B"),
    ("speed", "speed of a feed", "×"),
    ("visible", "visible once", ""),
    ("warm_up_s", "warm-up", ""),
    ("cpu", "processor", ""),
    ("cpus", "CPUs", ""),
    ("fua", "force unit access", ""),
    ("is_virtual", "virtual machine", ""),
    ("commit", "built from commit", ""),
    ("flush", "flush of the device", ""),
    ("write_cache", "write cache", ""),
    ("steal_share", "given to other guests", ""),
    ("others_share", "taken by other processes", ""),
    ("others_are_all", "all other processes seen", ""),
    ("yields_per_s", "yields on each CPU", "/s"),
    ("wal_slots", "WAL slots", ""),
    ("wal_slot_bytes", "WAL slot", ""),
    ("memory_bytes", "memory", ""),
];

/// All of it, in groups.
pub(super) fn stamps(report: &Report) -> String {
    let config = json!(report.config);
    let environment = json!(report.environment);
    let of = |name: &str| environment.get(name).cloned().unwrap_or_default();
    let mut own = environment.as_object().cloned().unwrap_or_default();
    own.retain(|_, value| !value.is_object());
    own.remove("broker");
    own.remove("meanwhile");
    let mut out = String::from(
        "<section class=\"stamps\">\n<h2>What and where</h2>\n<div class=\"groups\">\n",
    );
    out.push_str(&group("What was asked for", "config", &config));
    out.push_str(&group("The generator", "environment", &Value::Object(own)));
    out.push_str(&group("Its host", "environment.host", &of("host")));
    out.push_str(&group(
        "The broker, as it says",
        "environment.broker",
        &of("broker"),
    ));
    out.push_str(&group(
        "Meanwhile",
        "environment.meanwhile",
        &of("meanwhile"),
    ));
    if let Some(around) = &report.limits {
        let place = json!(around.before.place);
        out.push_str(&group("Where limits were measured", "limits.place", &place));
    }
    out.push_str("</div>\n</section>\n");
    out
}

fn group(title: &str, path: &str, fields: &Value) -> String {
    let mut out = format!("<div class=\"group\"><h3>{title}</h3>\n<dl>\n");
    let Some(fields) = fields.as_object().filter(|fields| !fields.is_empty()) else {
        let _ = writeln!(out, "</dl>\n<p class=\"note\">Unknown.</p></div>");
        return out;
    };
    for (name, value) in in_order(fields) {
        let words = WORDS.iter().find(|(field, ..)| field == name);
        // A list is of their numbers.
        let words = words.filter(|_| name != "cpus" || value.is_number());
        let label = words.map_or_else(|| label(name), |(_, label, _)| (*label).into());
        let unit = words.map_or("", |(.., unit)| unit);
        let _ = writeln!(
            out,
            "<div><dt>{}</dt><dd{}>{}</dd></div>",
            escape(&label),
            source(&format!("{path}.{name}"), value),
            escape(&shown(name, value, unit))
        );
    }
    out.push_str("</dl></div>\n");
    out
}

fn in_order(fields: &Map<String, Value>) -> Vec<(&String, &Value)> {
    let mut all: Vec<_> = fields.iter().collect();
    let rank = |name: &str| ORDER.iter().position(|o| *o == name);
    all.sort_by_key(|(name, _)| rank(name).unwrap_or(ORDER.len()));
    all
}

/// A field's name as words; its unit is with its value.
fn label(name: &str) -> String {
    let name = ["_per_s", "_bytes", "_share", "_ms", "_ns", "_s"]
        .iter()
        .find_map(|unit| name.strip_suffix(unit))
        .unwrap_or(name);
    match name {
        "cpus" => "on CPUs".into(),
        name => name.replace('_', " ").replace("cpu", "CPU"),
    }
}

/// A field's value as text, with the unit that its name says, or the one that is given.
fn shown(name: &str, value: &Value, unit: &str) -> String {
    match value {
        Value::Null if name.starts_with("cpu") => "any".into(),
        Value::Null => "unknown".into(),
        Value::Bool(yes) => if *yes { "yes" } else { "no" }.into(),
        Value::String(text) if text.is_empty() => "unknown".into(),
        Value::String(text) => text.clone(),
        Value::Array(all) if all.is_empty() => "none".into(),
        Value::Array(all) => {
            let all: Vec<String> = all.iter().map(|one| shown(name, one, unit)).collect();
            all.join(", ")
        }
        Value::Number(_) => number(name, value, unit),
        Value::Object(_) => value.to_string(),
    }
}

fn number(name: &str, value: &Value, unit: &str) -> String {
    let float = value.as_f64().unwrap_or(f64::NAN);
    let whole = value.as_u64();
    match (name, whole) {
        ("began_unix_ms", Some(ms)) => moment(ms),
        // Not a quantity.
        ("seed", Some(seed)) => seed.to_string(),
        ("preload", Some(count)) => bytes(count),
        (name, Some(count)) if name.ends_with("_bytes") => bytes(count),
        (name, Some(ns)) if name.ends_with("_ns") => time(ns),
        (name, _) if name.ends_with("_share") => format!("{} % of a CPU", digits(100.0 * float)),
        (name, _) if name.ends_with("_ms") => format!("{} ms", plain(float)),
        (name, _) if name.ends_with("_s") && unit.is_empty() => format!("{} s", plain(float)),
        (_, Some(count)) if unit.is_empty() => grouped(count),
        _ => format!("{} {unit}", plain(float)).trim_end().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_has_the_unit_that_its_name_says() {
        for (name, value, unit, text) in [
            ("memory_bytes", json!(4u64 << 30), "", "4 GiB"),
            ("steal_share", json!(0.0123), "", "1.23 % of a CPU"),
            ("durable_write_ns", json!(81_234), "", "81.2 µs"),
            ("sync_interval_ms", json!(50), "", "50 ms"),
            ("warm_up_s", json!(1.0), "", "1 s"),
            ("rate", json!(10_000.0), "records/s", "10,000 records/s"),
            ("seed", json!(12_345), "", "12345"),
            ("cpus", json!([1, null]), "", "1, any"),
            ("yields_per_s", json!([10.5]), "/s", "10.5 /s"),
            ("anything", json!({"a": 1}), "", "{\"a\":1}"),
        ] {
            assert_eq!(shown(name, &value, unit), text, "{name}");
        }
    }

    #[test]
    fn fields_that_nobody_knows_are_shown_after_those_that_are_known() {
        let fields = json!({"novel_thing_ms": 5, "version": "1"});
        let html = group("Group", "a.b", &fields);
        let at = |words: &str| {
            html.find(words)
                .unwrap_or_else(|| panic!("{words}: {html}"))
        };
        assert!(at("version") < at("novel thing"));
        assert!(at("data-path=\"a.b.novel_thing_ms\" data-value=\"5\">5 ms<") > 0);
        assert!(group("Group", "a", &Value::Null).contains("Unknown"));
    }
}
