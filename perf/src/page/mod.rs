//! A [`Report`] as a page that is read without a network: one HTML file with its styles and charts in
//! it, and the report itself as JSON. No script runs; a browser that shows it asks for nothing else.
//!
//! Each figure names where it is in the report: `data-path`, with `data-ns` for the nanoseconds of a
//! time in the table of latencies and `data-value` for the JSON of anything else.

mod over_time;
mod percentiles;
mod plot;
mod ratios;
mod scale;
mod stamps;
mod tables;
#[cfg(test)]
mod tests;
mod text;

use std::fmt::Write as _;

use crate::report::{Config, Report};

use text::{bytes, counted, digits, escape, moment, plain, script_json, time};

const STYLE: &str = include_str!("style.css");
/// What a browser may do for the page: apply the styles in it.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";

/// The whole page.
#[must_use]
pub fn html(report: &Report) -> String {
    // A report is made of plain figures and text, which are always JSON.
    let json = serde_json::to_string(report).unwrap_or_default();
    let mut out = head(report);
    out.push_str(&masthead(report));
    out.push_str(&tables::latencies(report));
    out.push_str("<div class=\"charts\">\n");
    out.push_str(&percentiles::chart(report));
    out.push_str(&over_time::rate(report));
    out.push_str(&over_time::latency(report));
    out.push_str(&ratios::chart(report));
    out.push_str(&over_time::rate_and_latency(report));
    out.push_str("</div>\n<div class=\"lists\">\n");
    out.push_str(&tables::rates(report));
    out.push_str(&tables::verification(report));
    out.push_str(&tables::wal(report));
    out.push_str("</div>\n");
    out.push_str(&stamps::stamps(report));
    let _ = write!(
        out,
        "<footer>Written by ringtide bench {}, built from commit {}. The report itself is in this file as \
         JSON, in the element with the id <code>report</code>.</footer>\n</main>\n\
         <script type=\"application/json\" id=\"report\">{}</script>\n</body>\n</html>\n",
        escape(&report.environment.version),
        escape(&report.environment.commit),
        script_json(&json)
    );
    out
}

fn head(report: &Report) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{}: {}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n",
        escape(&name(&report.config)),
        escape(&load(report))
    )
}

/// What was measured, whether it counts, and the figures that are looked for first.
fn masthead(report: &Report) -> String {
    let config = &report.config;
    let mut out = String::from("<header>\n");
    let (word, class) = match report.valid {
        true => ("VALID", "valid"),
        false => ("INVALID", "invalid"),
    };
    let _ = writeln!(
        out,
        "<p class=\"eyebrow\"><span>{}, {} loop</span><span>{}</span></p>\n<h1>{}</h1>\n<p class=\"about\">{}</p>",
        escape(&name(config)),
        escape(report.kind.trim_end_matches("-loop")),
        moment(report.environment.began_unix_ms),
        escape(&load(report)),
        escape(&shape(config))
    );
    if let Some(about) = &config.about {
        let _ = writeln!(out, "<p class=\"about\">{}</p>", escape(about));
    }
    let _ = writeln!(
        out,
        "<div class=\"verdict {class}\"><strong>{word}</strong><div>{}</div></div>",
        verdict(report)
    );
    out.push_str(&tiles(report));
    out.push_str("</header>\n");
    out
}

fn verdict(report: &Report) -> String {
    let open = match report.unchecked.is_empty() {
        true => String::new(),
        false => format!("<p>Not checked:</p>{}", items(&report.unchecked)),
    };
    let words = match (report.valid, report.verify.complete) {
        (true, true) => {
            "The schedule was kept, every record is accounted for, and nothing was seen to be in the way."
        }
        (true, false) => {
            "The schedule was kept, and nothing was seen to be in the way. Deliveries were not looked at."
        }
        (false, _) => return items(&report.reasons) + &open,
    };
    format!("<p>{words}</p>{open}")
}

fn items(words: &[String]) -> String {
    let items: String = words
        .iter()
        .map(|words| format!("<li>{}</li>", escape(words)))
        .collect();
    format!("<ul>{items}</ul>")
}

/// The workload's name.
fn name(config: &Config) -> String {
    match &config.workload {
        Some(workload) => format!("ringtide bench, {workload}"),
        None => "ringtide bench".into(),
    }
}

/// How much of what is published, and what is promised.
fn load(report: &Report) -> String {
    let config = &report.config;
    let rate = match config.schedule.as_str() {
        "feed" => format!(
            "{} records a second of {}",
            plain(report.schedule.target_rate_per_s.round()),
            feed(config)
        ),
        ramp if ramp.starts_with("ramp") => {
            format!("up to {} records a second", plain(config.rate))
        }
        _ => format!("{} records a second", plain(config.rate)),
    };
    format!(
        "{rate}, {} each, acks {}",
        bytes(config.size as u64),
        config.acks
    )
}

fn feed(config: &Config) -> String {
    match config.feed.as_deref() {
        Some("generated") | None => "a generated feed".into(),
        Some(file) => format!("the feed {file}"),
    }
}

/// From whom to whom, and for how long.
fn shape(config: &Config) -> String {
    let replayers = match config.replayers {
        0 => String::new(),
        count => format!(" and {}", counted(count, "replayer")),
    };
    let speed = match config.schedule.as_str() {
        "feed" => format!(", {} times as fast as recorded", plain(config.speed)),
        _ => String::new(),
    };
    format!(
        "{} schedule{speed}; {} to {} to {}{replayers}; {} s measured after {} s of warm-up; against {}",
        config.schedule,
        counted(config.publishers, "publisher"),
        counted(config.partitions, "partition"),
        counted(config.subscribers, "subscriber"),
        plain(config.duration_s),
        plain(config.warm_up_s),
        config.server
    )
}

/// The figures that are looked for first.
fn tiles(report: &Report) -> String {
    let schedule = &report.schedule;
    let mut tiles = Vec::new();
    if let Some(latency) = report.produce.latency_ns {
        tiles.push(("p50, due to acknowledged", time(latency.p50)));
        tiles.push(("p99, due to acknowledged", time(latency.p99)));
        tiles.push(("p99.9, due to acknowledged", time(latency.p99_9)));
    }
    if let Some(end_to_end) = &report.end_to_end {
        tiles.push(("p99, due to delivered", time(end_to_end.latency_ns.p99)));
    }
    let share = 100.0 * schedule.achieved_rate_per_s / schedule.target_rate_per_s;
    if share.is_finite() {
        tiles.push(("of the records due in a second", format!("{share:.1} %")));
    }
    if let Some(ratios) = report.limits.as_ref().and_then(|around| around.ratios) {
        let (before, after) = (digits(ratios.p50.0), digits(ratios.p50.1));
        let both = match before == after {
            true => format!("{before}\u{a0}×"),
            false => format!("{before}, {after}\u{a0}×"),
        };
        tiles.push(("the machine's limit before, after; at p50", both));
    }
    if tiles.is_empty() {
        return String::new();
    }
    let mut out = String::from("<div class=\"tiles\">\n");
    for (what, figure) in tiles {
        let _ = writeln!(
            out,
            "<div><b>{}</b><span>{what}</span></div>",
            escape(&figure)
        );
    }
    out.push_str("</div>\n");
    out
}
