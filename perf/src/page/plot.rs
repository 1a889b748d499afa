//! The frame that charts share: a plot with two axes, and what is drawn into it.
//!
//! Lengths are units of the view box; a page scales it to the width that there is, and sets larger
//! letters where that is little. There is room for those.

use std::fmt::Write as _;

use super::scale::Scale;
use super::text::escape;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 340.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 26.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 56.0;
/// More points of a curve than this cannot be told apart.
const MOST_POINTS: usize = 500;

/// A value on an axis that has a tick.
pub(super) struct Tick {
    /// Where.
    pub(super) at: f64,
    /// What is written there.
    pub(super) label: String,
}

/// One of the axes.
pub(super) struct Axis {
    /// Where values are.
    pub(super) scale: Scale,
    /// From the beginning to the end.
    pub(super) ticks: Vec<Tick>,
}

impl Axis {
    /// With ticks where the scale has them.
    pub(super) fn new(scale: Scale, label: impl Fn(f64) -> String) -> Self {
        let ticks = scale.ticks().into_iter();
        Self {
            scale,
            ticks: ticks
                .map(|at| Tick {
                    at,
                    label: label(at),
                })
                .collect(),
        }
    }
}

/// A chart as it is drawn.
pub(super) struct Plot {
    x: Scale,
    y: Scale,
    svg: String,
}

impl Plot {
    /// Its axes; `about` is for those who do not see it.
    pub(super) fn new(x: &Axis, x_title: &str, y: &Axis, about: &str) -> Self {
        let mut plot = Self {
            x: x.scale,
            y: y.scale,
            svg: format!(
                "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">\n",
                escape(about)
            ),
        };
        plot.y_axis(y);
        plot.x_axis(x, x_title);
        plot
    }

    fn y_axis(&mut self, axis: &Axis) {
        let (right, label_x) = (WIDTH - RIGHT, LEFT - 9.0);
        for tick in &axis.ticks {
            let y = self.at(0.0, tick.at).1;
            let _ = writeln!(
                self.svg,
                "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{right}\"/>\
                 <text class=\"end\" x=\"{label_x}\" y=\"{y:.1}\" dy=\".34em\">{}</text>",
                escape(&tick.label)
            );
        }
    }

    fn x_axis(&mut self, axis: &Axis, title: &str) {
        let bottom = HEIGHT - BOTTOM;
        let _ = writeln!(
            self.svg,
            "<path class=\"axis\" d=\"M{LEFT} {bottom}H{}\"/>",
            WIDTH - RIGHT
        );
        let count = axis.ticks.len();
        for (n, tick) in axis.ticks.iter().enumerate() {
            // Where letters are large there is room for every second one.
            let is_sparse = count > 6 && n % 2 == 1;
            let class = if is_sparse { "mid sparse" } else { "mid" };
            let x = LEFT + self.x.place(tick.at) * (WIDTH - LEFT - RIGHT);
            let _ = writeln!(
                self.svg,
                "<path class=\"axis\" d=\"M{x:.1} {bottom}v5\"/>\
                 <text class=\"{class}\" x=\"{x:.1}\" y=\"{}\" dy=\".9em\">{}</text>",
                bottom + 8.0,
                escape(&tick.label)
            );
        }
        let _ = writeln!(
            self.svg,
            "<text class=\"mid title\" x=\"{}\" y=\"{}\">{}</text>",
            (LEFT + WIDTH - RIGHT) / 2.0,
            HEIGHT - 5.0,
            escape(title)
        );
    }

    /// Where a pair of values is.
    fn at(&self, x: f64, y: f64) -> (f64, f64) {
        (
            LEFT + self.x.place(x) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - self.y.place(y) * (HEIGHT - TOP - BOTTOM),
        )
    }

    /// A line through points; `None` is a gap in it.
    pub(super) fn line(&mut self, class: &str, points: impl Iterator<Item = Option<(f64, f64)>>) {
        let mut path = String::new();
        let (mut is_first, mut alone) = (true, None);
        for point in points {
            let Some((x, y)) = point else {
                dot_out(&mut path, alone.take());
                is_first = true;
                continue;
            };
            let (x, y) = self.at(x, y);
            alone = is_first.then_some(());
            let _ = write!(path, "{}{x:.1} {y:.1}", if is_first { 'M' } else { 'L' });
            is_first = false;
        }
        dot_out(&mut path, alone);
        if !path.is_empty() {
            let _ = writeln!(self.svg, "<path class=\"line {class}\" d=\"{path}\"/>");
        }
    }

    /// A line from side to side.
    pub(super) fn level(&mut self, class: &str, y: f64) {
        let y = self.at(0.0, y).1;
        let _ = writeln!(
            self.svg,
            "<path class=\"line {class}\" d=\"M{LEFT} {y:.1}H{}\"/>",
            WIDTH - RIGHT
        );
    }

    /// A point that says what it is when it is pointed at.
    pub(super) fn dot(&mut self, class: &str, radius: f64, (x, y): (f64, f64), says: &str) {
        let (x, y) = self.at(x, y);
        let _ = writeln!(
            self.svg,
            "<circle class=\"dot {class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\"><title>{}</title></circle>",
            escape(says)
        );
    }

    /// The whole.
    pub(super) fn finish(mut self) -> String {
        self.svg.push_str("</svg>\n");
        self.svg
    }
}

/// A point between two gaps is drawn as a line of no length, which has round ends.
fn dot_out(path: &mut String, alone: Option<()>) {
    if alone.is_some() {
        path.push_str("h0");
    }
}

/// A line of a legend: the class of what it explains, and its name.
pub(super) struct Key<'a>(pub(super) &'a str, pub(super) &'a str);

/// A chart with its heading, legend and a sentence on how to read it.
pub(super) fn figure(title: &str, keys: &[Key<'_>], svg: &str, caption: &str) -> String {
    let mut out = format!("<figure>\n<h2>{}</h2>\n<p class=\"legend\">", escape(title));
    for Key(class, name) in keys {
        let sample = match class.starts_with("spot") {
            true => format!("<circle class=\"dot {class}\" cx=\"13\" cy=\"5\" r=\"4.5\"/>"),
            false => format!("<path class=\"line {class}\" d=\"M2 5H24\"/>"),
        };
        let _ = write!(
            out,
            "<span><svg class=\"key\" viewBox=\"0 0 26 10\" aria-hidden=\"true\">{sample}</svg>{}</span> ",
            escape(name)
        );
    }
    let _ = writeln!(
        out,
        "</p>\n{svg}<figcaption>{}</figcaption>\n</figure>",
        escape(caption)
    );
    out
}

/// A figure that there is nothing to draw for.
pub(super) fn absent(title: &str, why: &str) -> String {
    format!(
        "<figure class=\"absent\">\n<h2>{}</h2>\n<p>{}</p>\n</figure>\n",
        escape(title),
        escape(why)
    )
}

/// How many cells are drawn as one.
pub(super) fn cells_in_one(count: usize) -> usize {
    count.div_ceil(MOST_POINTS).max(1)
}

/// Seconds in the unit that suits the longest, for an axis from 0 on.
pub(super) fn time_axis(longest_s: f64) -> Axis {
    let (unit_s, name) = match longest_s {
        s if s > 7200.0 => (3600.0, "h"),
        s if s > 300.0 => (60.0, "min"),
        _ => (1.0, "s"),
    };
    let longest_s = longest_s.max(0.1);
    let ticks = Scale::Linear(0.0, longest_s / unit_s).ticks().into_iter();
    Axis {
        scale: Scale::Linear(0.0, longest_s),
        ticks: ticks
            .map(|at| Tick {
                at: at * unit_s,
                label: format!("{} {name}", super::text::short(at)),
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot() -> Plot {
        let axis = || Axis::new(Scale::Linear(0.0, 1.0), |v| format!("{v:.1} <s>"));
        Plot::new(&axis(), "x & y", &axis(), "\"a\"")
    }

    #[test]
    fn a_gap_splits_a_line_and_a_lone_point_is_seen() {
        let mut plot = plot();
        let points = [
            Some((0.0, 0.0)),
            Some((0.5, 1.0)),
            None,
            Some((1.0, 0.0)),
            None,
        ];
        plot.line("a", points.into_iter());
        let svg = plot.finish();
        assert!(
            svg.contains("d=\"M76.0 284.0L345.0 14.0M614.0 284.0h0\""),
            "{svg}"
        );
    }

    #[test]
    fn a_line_without_points_is_not_drawn() {
        let mut plot = plot();
        plot.line("a", std::iter::empty());
        plot.line("a", [None, None].into_iter());
        assert!(!plot.finish().contains("class=\"line"));
    }

    #[test]
    fn labels_are_escaped() {
        let svg = plot().finish();
        assert!(svg.contains("aria-label=\"&quot;a&quot;\""), "{svg}");
        assert!(svg.contains(">x &amp; y<"), "{svg}");
        assert!(svg.contains(">1.0 &lt;s&gt;<"), "{svg}");
    }

    #[test]
    fn time_has_the_unit_that_suits_its_length() {
        for (s, last) in [
            (5.0, "5 s"),
            (600.0, "10 min"),
            (36_000.0, "10 h"),
            (0.0, "0.1 s"),
        ] {
            let axis = time_axis(s);
            assert_eq!(axis.ticks.last().map(|t| &*t.label), Some(last));
        }
    }
}
