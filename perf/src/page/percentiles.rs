//! Latency by percentile: each nine of the axis is as wide as the one before.

use crate::latency::Latency;
use crate::limits::Limits;
use crate::report::Report;

use super::plot::{Axis, Key, Plot, Tick, absent, figure};
use super::scale::{Scale, nines, percentile_ticks};
use super::text::time;

const TITLE: &str = "Latency by percentile";

/// A curve, and the quantiles that are marked on it.
struct Curve<'a> {
    class: &'static str,
    name: &'static str,
    points: &'a [(f64, u64)],
    marks: Latency,
}

/// A limit, before and after.
struct Bound {
    class: &'static str,
    name: &'static str,
    marks: [Option<Latency>; 2],
}

pub(super) fn chart(report: &Report) -> String {
    let curves = curves(report);
    if curves.is_empty() {
        return absent(TITLE, "No record was acknowledged while it was measured.");
    }
    let bounds = bounds(report);
    let plot = draw(&curves, &bounds);
    let keys: Vec<Key<'_>> = curves
        .iter()
        .map(|c| Key(c.class, c.name))
        .chain(bounds.iter().map(|b| Key(b.class, b.name)))
        .collect();
    let caption = "Each curve ends with its slowest record. Dashed: what the machine needs for an echo \
                   and a durable write without a broker, measured before and after.";
    let caption = match bounds.is_empty() {
        true => "Each curve ends with its slowest record.",
        false => caption,
    };
    figure(TITLE, &keys, &plot, caption)
}

fn curves(report: &Report) -> Vec<Curve<'_>> {
    let all = &report.percentiles;
    let delivered = report.end_to_end.map(|e| e.latency_ns);
    // The widest below: all are seen where they are the same.
    [
        (
            "delivery under",
            "due to delivered",
            &all.end_to_end,
            delivered,
        ),
        (
            "produce",
            "due to acknowledged",
            &all.produce,
            report.produce.latency_ns,
        ),
        (
            "service thin",
            "sent to acknowledged",
            &all.service,
            report.produce.service_ns,
        ),
    ]
    .into_iter()
    .filter_map(|(class, name, points, marks)| {
        Some(Curve {
            class,
            name,
            points,
            marks: marks?,
        })
    })
    .collect()
}

fn bounds(report: &Report) -> Vec<Bound> {
    let Some(around) = &report.limits else {
        return Vec::new();
    };
    let both = |of: fn(&Limits) -> Option<Latency>| [of(&around.before), of(&around.after)];
    [
        ("echo", "limit: echo", both(|l| l.tcp_echo_ns)),
        (
            "write",
            "limit: durable write",
            both(|l| l.durable_write_ns),
        ),
    ]
    .into_iter()
    .filter(|(.., marks)| marks.iter().any(Option::is_some))
    .map(|(class, name, marks)| Bound { class, name, marks })
    .collect()
}

fn draw(curves: &[Curve<'_>], bounds: &[Bound]) -> String {
    let limits = || bounds.iter().flat_map(|b| b.marks.iter().flatten());
    let most = curves.iter().map(|c| c.marks.count).max().unwrap_or(2);
    let end = nines(100.0, most.max(100));
    let x = Axis {
        scale: Scale::Linear(0.0, end),
        ticks: percentile_ticks(end)
            .into_iter()
            .map(|(at, label)| Tick {
                at,
                label: label.into(),
            })
            .collect(),
    };
    let of_curves = curves.iter().flat_map(|c| {
        let points = c.points.iter().map(|(_, ns)| *ns);
        points.chain([c.marks.p50, c.marks.max])
    });
    let of_limits = limits().flat_map(|l| [l.p50, l.max]);
    let values = of_curves.chain(of_limits).map(|ns| ns as f64);
    let y = Axis::new(Scale::log_around(values), tick);
    let mut plot = Plot::new(
        &x,
        "percentile",
        &y,
        "Latency by percentile; the table has its figures",
    );
    for bound in bounds {
        for marks in bound.marks.iter().flatten() {
            let ends =
                quantiles(marks).map(|(p, ns, _)| (nines(p, marks.count).min(end), ns as f64));
            plot.line(bound.class, ends.map(Some));
        }
    }
    for curve in curves {
        let count = curve.marks.count;
        let points = curve.points.iter();
        plot.line(
            curve.class,
            points.map(|(p, ns)| Some((nines(*p, count), *ns as f64))),
        );
        for (percentile, ns, name) in quantiles(&curve.marks) {
            let says = format!("{}, {name}: {}", curve.name, time(ns));
            plot.dot(
                curve.class,
                3.5,
                (nines(percentile, count), ns as f64),
                &says,
            );
        }
    }
    plot.finish()
}

fn quantiles(latency: &Latency) -> impl Iterator<Item = (f64, u64, &'static str)> {
    [
        (50.0, latency.p50, "p50"),
        (90.0, latency.p90, "p90"),
        (99.0, latency.p99, "p99"),
        (99.9, latency.p99_9, "p99.9"),
        (99.99, latency.p99_99, "p99.99"),
        (100.0, latency.max, "max"),
    ]
    .into_iter()
}

/// A round time on an axis.
pub(super) fn tick(ns: f64) -> String {
    let units = [(1e9, "s"), (1e6, "ms"), (1e3, "µs")];
    let found = units.into_iter().find(|(unit, _)| ns >= unit * 0.9999);
    let (unit, name) = found.unwrap_or((1.0, "ns"));
    format!("{:.0} {name}", ns / unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_is_a_round_time() {
        let ticks = [500.0, 1e3, 2e4, 5e5, 1e6, 1e8, 1e9, 3.6e12].map(tick);
        let wanted = [
            "500 ns", "1 µs", "20 µs", "500 µs", "1 ms", "100 ms", "1 s", "3600 s",
        ];
        assert_eq!(ticks, wanted);
    }
}
