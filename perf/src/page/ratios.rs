//! A run's times as multiples of what the machine needs for the same.

use std::fmt::Write as _;

use serde_json::json;

use crate::report::{Around, Report};

use super::plot::absent;
use super::text::{digits, escape, source};

const TITLE: &str = "Against the machine's limits";

pub(super) fn chart(report: &Report) -> String {
    let Some(around) = &report.limits else {
        let why = "The limits of the machine were not measured before and after this run.";
        return absent(TITLE, why);
    };
    let Some(bars) = bars(around) else {
        return absent(TITLE, "There is nothing to compare with the limits.");
    };
    bars
}

fn bars(around: &Around) -> Option<String> {
    let ratios = around.ratios?;
    let bars = [
        ("p50", "before", ratios.p50.0, "p50.0"),
        ("p50", "after", ratios.p50.1, "p50.1"),
        ("p99", "before", ratios.p99.0, "p99.0"),
        ("p99", "after", ratios.p99.1, "p99.1"),
    ];
    let largest = bars.iter().map(|bar| bar.2).filter(|r| r.is_finite());
    let whole = largest.fold(1.0f64, f64::max) * 1.02;
    let mut out = format!("<figure>\n<h2>{TITLE}</h2>\n<div class=\"bars\">\n");
    for (quantile, when, ratio, path) in bars {
        let share = |of: f64| (100.0 * of / whole).clamp(0.0, 100.0);
        let shown = if ratio.is_finite() { ratio } else { 0.0 };
        let _ = writeln!(
            out,
            "<div><span>{quantile}, {when}</span><span class=\"track\"><span class=\"bar {when}\" \
             style=\"width:{:.2}%\"></span><span class=\"one\" style=\"left:{:.2}%\"></span></span>\
             <b{}>{} ×</b></div>",
            share(shown),
            share(1.0),
            source(&format!("limits.ratios.{path}"), &json!(ratio)),
            digits(ratio)
        );
    }
    let _ = writeln!(
        out,
        "</div>\n<figcaption>Sent to acknowledged, as a multiple of the limit: {}, just before the run and \
         just after it. The line is at 1 ×.</figcaption>\n</figure>",
        escape(ratios.reference)
    );
    Some(out)
}
