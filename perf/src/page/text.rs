//! Text of the page: escaping, and numbers with their units.

use std::fmt::Write as _;

use serde_json::Value;

/// As the text of an element or of an attribute in double quotes.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // Browsers drop or replace it; here it is seen.
            '\0' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// With commas.
pub(super) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Microseconds without their unit, to a tenth.
pub(super) fn micros(ns: u64) -> String {
    // Rounded as a whole, so that 999.96 becomes 1,000.0.
    let tenths = ns / 100 + u64::from(ns % 100 >= 50);
    format!("{}.{}", grouped(tenths / 10), tenths % 10)
}

/// A time in the unit that suits it, to three digits.
pub(super) fn time(ns: u64) -> String {
    let units = [(1e9, "s"), (1e6, "ms"), (1e3, "µs")];
    let ns_f = ns as f64;
    let found = units.iter().find(|(unit, _)| ns_f >= 0.9995 * unit);
    match found {
        Some((unit, name)) => format!("{} {name}", digits(ns_f / unit)),
        None => format!("{ns} ns"),
    }
}

/// Three digits, or all that are before the point.
pub(super) fn digits(value: f64) -> String {
    match value.abs() {
        a if !a.is_finite() => "unknown".into(),
        0.0 => "0".into(),
        a if a >= 999.5 => grouped_signed(value),
        a if a >= 99.95 => format!("{value:.0}"),
        a if a >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn grouped_signed(value: f64) -> String {
    let sign = if value < 0.0 { "-" } else { "" };
    format!("{sign}{}", grouped(value.abs().round() as u64))
}

/// A number that is not more exact than it is.
pub(super) fn plain(value: f64) -> String {
    match value {
        v if v.fract() == 0.0 && v.abs() < 1e15 => grouped_signed(v),
        v => digits(v),
    }
}

/// Bytes in the unit that suits them.
pub(super) fn bytes(count: u64) -> String {
    let units = [(1u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.iter().find(|(unit, _)| count >= *unit) {
        Some((unit, name)) if count.is_multiple_of(*unit) => {
            format!("{} {name}", grouped(count / unit))
        }
        Some((unit, name)) => format!("{} {name}", digits(count as f64 / *unit as f64)),
        None => format!("{count} B"),
    }
}

/// Short, for a tick of an axis: 20k, 1.5M.
pub(super) fn short(value: f64) -> String {
    let units = [(1e9, "G"), (1e6, "M"), (1e3, "k")];
    let (unit, name) = units
        .into_iter()
        .find(|(unit, _)| value >= *unit)
        .unwrap_or((1.0, ""));
    let text = format!("{:.2}", value / unit);
    let text = text.trim_end_matches('0').trim_end_matches('.');
    format!("{text}{name}")
}

/// So many of them.
pub(super) fn counted(count: impl Into<u64>, what: &str) -> String {
    let count = count.into();
    let s = if count == 1 { "" } else { "s" };
    format!("{} {what}{s}", grouped(count))
}

/// A moment in UTC.
pub(super) fn moment(unix_ms: u64) -> String {
    let (days, second) = (unix_ms / 86_400_000, unix_ms / 1000 % 86_400);
    // Years begin in March here, so that the day of a leap year is the last.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = (shifted_month + 2) % 12 + 1;
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year}-{month:02}-{day_of_month:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// JSON that may stand in a `<script>`: no tag and no comment begins in it.
pub(super) fn script_json(json: &str) -> String {
    // In JSON it is in strings only.
    json.replace('<', "\\u003c")
}

/// The attributes that say where in the report a figure is, and what it is there.
pub(super) fn source(path: &str, value: &Value) -> String {
    let mut out = String::new();
    let _ = write!(
        out,
        " data-path=\"{}\" data-value=\"{}\"",
        escape(path),
        escape(&value.to_string())
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_text_becomes_markup() {
        let hostile = "</td><script>alert('x')</script> & \"quoted\"\0";
        let escaped = escape(hostile);
        assert!(!escaped.contains(['<', '>', '"', '\'', '\0']), "{escaped}");
        assert!(escaped.contains("&amp; &quot;quoted&quot;"), "{escaped}");
        let json = script_json("{\"a\":\"</script><!--\"}");
        assert!(!json.contains('<'));
        let value: Value = serde_json::from_str(&json).expect("JSON still");
        assert_eq!(value["a"], "</script><!--");
    }

    #[test]
    fn numbers_are_rounded_as_a_whole() {
        assert_eq!(
            [0, 49, 50, 95_249, 999_960, 1_234_567_890].map(micros),
            ["0.0", "0.0", "0.1", "95.2", "1,000.0", "1,234,567.9"]
        );
        assert_eq!(
            [999, 999_600, 1_234_000, 99_990_000, 30_000_000_000].map(time),
            ["999 ns", "1.00 ms", "1.23 ms", "100 ms", "30.0 s"]
        );
        assert_eq!(
            [0.0, 20_000.0, 1_500_000.0, 250.0].map(short),
            ["0", "20k", "1.5M", "250"]
        );
        assert_eq!(
            [5, 4096, 1_572_864].map(bytes),
            ["5 B", "4 KiB", "1.50 MiB"]
        );
        assert_eq!([digits(f64::NAN), plain(-1234.0)], ["unknown", "-1,234"]);
    }

    #[test]
    fn a_moment_is_a_date() {
        for (ms, date) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_400_000, "2000-02-29 00:00:00 UTC"),
            (1_709_251_199_000, "2024-02-29 23:59:59 UTC"),
            (1_735_689_600_000, "2025-01-01 00:00:00 UTC"),
        ] {
            assert_eq!(moment(ms), date);
        }
    }
}
