//! Latency and rate from the beginning of the measurement to its end: a stall is a ramp in the one
//! and a hole in the other.

use crate::latency::Latency;
use crate::open_loop::timing::{CELL_NS, Cell, Second};
use crate::report::{Report, Series};

use super::percentiles::tick;
use super::plot::{Axis, Key, Plot, absent, cells_in_one, figure, time_axis};
use super::scale::Scale;
use super::text::{counted, digits, short, time};

/// Of more seconds than this, single ones are not marked.
const MOST_MARKS: usize = 120;
/// Seconds whose rates are no further apart say nothing about latency by rate.
const SAME_RATE: f64 = 1.02;

/// One of the figures of a latency.
type Quantile = fn(&Latency) -> u64;

/// What one chart of latency is of.
struct Subject {
    title: &'static str,
    nothing: &'static str,
    class: &'static str,
    seconds: fn(&Second) -> Option<Latency>,
    cells: fn(&Cell) -> u64,
}

/// Of publishing, and of delivery if there are subscribers.
pub(super) fn latency(report: &Report) -> String {
    let produce = Subject {
        title: "Latency over time: due to acknowledged",
        nothing: "No record was acknowledged while it was measured.",
        class: "produce",
        seconds: |second| second.latency_ns,
        cells: |cell| cell.max_latency_ns,
    };
    let delivery = Subject {
        title: "Latency over time: due to delivered",
        nothing: "No record was delivered while it was measured.",
        class: "delivery",
        seconds: |second| second.end_to_end_ns,
        cells: |cell| cell.max_end_to_end_ns,
    };
    let mut out = produce.chart(report);
    if report.end_to_end.is_some() {
        out.push_str(&delivery.chart(report));
    }
    out
}

impl Subject {
    fn chart(&self, report: &Report) -> String {
        let seconds: Vec<(f64, Latency)> = seconds(report)
            .filter_map(|s| Some((s.at_s as f64 + 0.5, (self.seconds)(s)?)))
            .collect();
        let cells = longest(&report.timeline, self.cells);
        if seconds.is_empty() && cells.iter().all(|(_, ns)| *ns == 0) {
            return absent(self.title, self.nothing);
        }
        let plot = self.draw(report, &seconds, &cells);
        let keys = [
            Key("faint", "longest of a tenth of a second"),
            Key("top", "max of a second"),
            Key("high", "p99"),
            Key(self.class, "p50"),
        ];
        let caption = "Seconds by when a record came, tenths by when it was due: a stall is a ramp, from \
                       its whole length down.";
        figure(self.title, &keys, &plot, caption)
    }

    fn draw(&self, report: &Report, seconds: &[(f64, Latency)], cells: &[(f64, u64)]) -> String {
        let x = time_axis(length_s(report));
        let of_seconds = seconds.iter().flat_map(|(_, l)| [l.p50, l.p99, l.max]);
        let values = of_seconds.chain(cells.iter().map(|(_, ns)| *ns));
        let y = Axis::new(Scale::log_around(values.map(|ns| ns as f64)), tick);
        let mut plot = Plot::new(&x, "since measuring began", &y, self.title);
        plot.line(
            "faint",
            cells
                .iter()
                .map(|(at, ns)| (*ns > 0).then_some((*at, *ns as f64))),
        );
        let quantiles: [(&str, &str, Quantile); 3] = [
            ("top", "max", |l| l.max),
            ("high", "p99", |l| l.p99),
            (self.class, "p50", |l| l.p50),
        ];
        for (class, name, of) in quantiles {
            plot.line(
                class,
                seconds.iter().map(|(at, l)| Some((*at, of(l) as f64))),
            );
            for (at, latency) in seconds.iter().filter(|_| seconds.len() <= MOST_MARKS) {
                let says = format!("second {}, {name}: {}", at.floor(), time(of(latency)));
                plot.dot(class, 3.0, (*at, of(latency) as f64), &says);
            }
        }
        plot.finish()
    }
}

/// Records a second, by tenths.
pub(super) fn rate(report: &Report) -> String {
    let title = "Rate over time";
    let timeline = &report.timeline;
    let target = report.schedule.target_rate_per_s;
    if timeline
        .points
        .iter()
        .all(|cell| cell.acked + cell.delivered == 0)
    {
        return absent(title, "No record came while it was measured.");
    }
    let acked = rates(timeline, |cell| cell.acked);
    let delivered = rates(timeline, |cell| cell.delivered);
    let has_delivered = report.end_to_end.is_some();
    let shown = acked
        .iter()
        .chain(delivered.iter().filter(|_| has_delivered));
    let largest = shown.map(|(_, rate)| *rate).fold(target, f64::max);
    let y = Axis::new(Scale::linear_to(largest), |rate| {
        format!("{}/s", short(rate))
    });
    let x = time_axis(length_s(report));
    let mut plot = Plot::new(
        &x,
        "since measuring began",
        &y,
        "Records a second over time",
    );
    plot.level("target", target);
    if has_delivered {
        plot.line("delivery thin", delivered.into_iter().map(Some));
    }
    plot.line("produce", acked.into_iter().map(Some));
    let due = format!("due on average: {}/s", digits(target));
    let mut keys = vec![Key("produce", "acknowledged")];
    if has_delivered {
        keys.push(Key("delivery", "delivered, to all subscribers together"));
    }
    keys.push(Key("target", &due));
    let caption = "Records a second, by tenths of a second: a stall is a hole.";
    figure(title, &keys, &plot.finish(), caption)
}

/// Achieved rate against p99, second by second.
pub(super) fn rate_and_latency(report: &Report) -> String {
    let title = "Rate and latency";
    let whole = report.config.duration_s.floor() as u64;
    let points: Vec<(&Second, Latency)> = seconds(report)
        .filter(|s| s.at_s < whole)
        .filter_map(|s| Some((s, s.latency_ns?)))
        .collect();
    let Some((least, most)) = ends(points.iter().map(|(s, _)| s.acked)) else {
        return absent(title, "No second was measured as a whole.");
    };
    let (least, most) = (least as f64, most as f64);
    if most < least * SAME_RATE {
        return absent(
            title,
            "Every second had the same rate: how latency grows with it is for a run of another schedule, \
             or for several, to show.",
        );
    }
    let room = ((most - least) * 0.1).max(most * 0.01);
    let from = if least < most * 0.5 {
        0.0
    } else {
        least - room
    };
    let x = Axis::new(Scale::Linear(from, most + room), |rate| {
        format!("{}/s", short(rate))
    });
    let values = points.iter().map(|(_, l)| l.p99 as f64);
    let y = Axis::new(Scale::log_around(values), tick);
    let mut plot = Plot::new(
        &x,
        "records acknowledged in a second",
        &y,
        "Rate and p99 of each second",
    );
    for (second, latency) in &points {
        let says = format!(
            "second {}: {}, p99 {}",
            second.at_s,
            counted(second.acked, "record"),
            time(latency.p99)
        );
        plot.dot(
            "spot high",
            4.5,
            (second.acked as f64, latency.p99 as f64),
            &says,
        );
    }
    let keys = [Key("spot high", "p99 of a second, due to acknowledged")];
    let caption = "Each point is a second of the measurement.";
    figure(title, &keys, &plot.finish(), caption)
}

fn ends(values: impl Iterator<Item = u64> + Clone) -> Option<(u64, u64)> {
    values.clone().min().zip(values.max())
}

/// Seconds that are drawn: those of the measurement, and later ones in which something came late.
fn seconds(report: &Report) -> impl Iterator<Item = &Second> {
    let whole = report.config.duration_s.ceil() as u64;
    let is_late = |latency: Option<Latency>| latency.is_some_and(|latency| latency.max > CELL_NS);
    let all = report.series.points.iter();
    all.filter(move |s| s.at_s < whole || is_late(s.latency_ns) || is_late(s.end_to_end_ns))
}

/// How long the axis is.
fn length_s(report: &Report) -> f64 {
    let last = seconds(report).last().map_or(0, |s| s.at_s + 1);
    let whole = report.config.duration_s.ceil() as u64;
    match last > whole {
        true => last as f64,
        false => report.config.duration_s,
    }
}

/// The longest of so many cells that they can be told apart, and when they began.
fn longest(timeline: &Series<Cell>, of: fn(&Cell) -> u64) -> Vec<(f64, u64)> {
    let together = cells_in_one(timeline.points.len());
    let cells = timeline.points.chunks(together).enumerate();
    cells
        .map(|(n, cells)| {
            let at = (n * together) as f64 + 0.5 * cells.len() as f64;
            let longest = cells.iter().map(of).max().unwrap_or(0);
            (at * timeline.interval_s, longest)
        })
        .collect()
}

/// Rates of cells, as the corners of steps. Of cells that cannot be told apart, the least and the
/// largest, so that none is lost.
fn rates(timeline: &Series<Cell>, of: fn(&Cell) -> u64) -> Vec<(f64, f64)> {
    let together = cells_in_one(timeline.points.len());
    let interval_s = timeline.interval_s;
    let mut corners = Vec::new();
    for (n, cells) in timeline.points.chunks(together).enumerate() {
        let began = (n * together) as f64 * interval_s;
        let ended = began + cells.len() as f64 * interval_s;
        let Some((least, most)) = ends(cells.iter().map(of)) else {
            continue;
        };
        corners.push((began, most as f64 / interval_s));
        if least < most {
            corners.push((began, least as f64 / interval_s));
        }
        corners.push((ended, least as f64 / interval_s));
    }
    corners
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeline(acked: impl Iterator<Item = u64>) -> Series<Cell> {
        let cell = |acked| Cell {
            acked,
            max_latency_ns: acked,
            ..Cell::default()
        };
        Series {
            interval_s: 0.1,
            points: acked.map(cell).collect(),
        }
    }

    #[test]
    fn a_cell_is_a_step() {
        let corners = rates(&timeline([10, 0].into_iter()), |c| c.acked);
        assert_eq!(
            corners,
            [(0.0, 100.0), (0.1, 100.0), (0.1, 0.0), (0.2, 0.0)]
        );
        assert_eq!(rates(&timeline(std::iter::empty()), |c| c.acked), []);
    }

    #[test]
    fn no_stall_of_a_long_run_is_lost() {
        let hour = timeline((0..36_000).map(|n| if n == 20_001 { 0 } else { 10 }));
        let corners = rates(&hour, |c| c.acked);
        assert!(corners.len() < 1100, "{}", corners.len());
        assert_eq!(corners.iter().filter(|(_, rate)| *rate == 0.0).count(), 2);
        let slow = timeline((0..36_000).map(|n| if n == 20_001 { 900 } else { 10 }));
        let cells = longest(&slow, |c| c.max_latency_ns);
        assert_eq!(cells.iter().filter(|(_, ns)| *ns == 900).count(), 1);
    }
}
