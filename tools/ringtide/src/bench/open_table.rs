//! The report of an open loop for a person.

use std::fmt::Write as _;

use ringtide_perf::Latency;
use ringtide_perf::open_loop::ledger::Balance;
use ringtide_perf::report::{BrokerProcess, Report};

use crate::progress::grouped;

/// For a person.
pub(crate) fn table(report: &Report) -> String {
    let config = &report.config;
    let mut out = String::new();
    let whose = match report.environment.broker_process {
        BrokerProcess::Running => None,
        BrokerProcess::Started => Some("A broker of its own"),
        BrokerProcess::Same => Some("A broker on threads of the generator's process"),
    };
    if let Some(whose) = whose {
        let _ = writeln!(
            out,
            "{whose} was measured, on a directory that is removed now.\n"
        );
    }
    let _ = writeln!(
        out,
        "open loop, {} schedule, acks {}, {} bytes, {} to {} to {}, {} s after {} s of warm-up\n",
        config.schedule,
        config.acks,
        config.size,
        counted(config.publishers, "publisher"),
        counted(config.partitions, "partition"),
        counted(config.subscribers, "subscriber"),
        config.duration_s,
        config.warm_up_s
    );
    let _ = writeln!(
        out,
        "{:<24}  {:>7}  {:>7}  {:>7}  {:>7}  {:>8}  {:>8}  {:>10}",
        "microseconds", "p50", "p90", "p99", "p99.9", "p99.99", "max", "records"
    );
    let mut line = |name: &str, latency: Option<Latency>| {
        out.push_str(&latency.map_or_else(String::new, |latency| row(name, &latency)));
    };
    let produce = &report.produce;
    line("due to acknowledged", produce.latency_ns);
    line("sent to acknowledged", produce.service_ns);
    line("due to delivered", report.end_to_end.map(|e| e.latency_ns));
    line("due to turned to", report.schedule.lag_ns);
    if let Some(around) = &report.limits {
        line("limit: echo, before", around.before.tcp_echo_ns);
        line("  after", around.after.tcp_echo_ns);
        line("limit: write, before", around.before.durable_write_ns);
        line("  after", around.after.durable_write_ns);
    }
    let _ = writeln!(
        out,
        "\n{} records a second were due, {} were achieved ({:.1} MB/s)",
        grouped(report.schedule.target_rate_per_s.round() as u64),
        grouped(report.schedule.achieved_rate_per_s.round() as u64),
        produce.bytes_per_s / 1e6
    );
    out.push_str(&accounts(&report.verify.balance));
    if let Some(wal) = &report.wal {
        let _ = writeln!(
            out,
            "{} log writes of {:.0} bytes with {:.1} records each",
            grouped(wal.writes),
            wal.bytes_per_write,
            wal.records_per_write
        );
    }
    if let Some(ratios) = report.limits.as_ref().and_then(|around| around.ratios) {
        let _ = writeln!(
            out,
            "sent to acknowledged is {:.2} and {:.2} times {} at p50, {:.2} and {:.2} times at p99",
            ratios.p50.0, ratios.p50.1, ratios.reference, ratios.p99.0, ratios.p99.1
        );
    }
    if report.valid {
        out.push_str("\nvalid\n");
    } else {
        out.push_str("\nINVALID:\n");
        for reason in &report.reasons {
            let _ = writeln!(out, "  {reason}");
        }
    }
    if !report.unchecked.is_empty() {
        out.push_str("not checked:\n");
    }
    for what in &report.unchecked {
        let _ = writeln!(out, "  {what}");
    }
    out
}

fn row(name: &str, latency: &Latency) -> String {
    let us = |ns: u64| ns as f64 / 1000.0;
    format!(
        "{name:<24}  {:>7.1}  {:>7.1}  {:>7.1}  {:>7.1}  {:>8.1}  {:>8.1}  {:>10}\n",
        us(latency.p50),
        us(latency.p90),
        us(latency.p99),
        us(latency.p99_9),
        us(latency.p99_99),
        us(latency.max),
        grouped(latency.count),
    )
}

/// The line that says what became of all records.
pub(crate) fn accounts(balance: &Balance) -> String {
    format!(
        "{} sent, {} acknowledged, {} delivered: {} unsent, {} lost, {} duplicated, {} reordered, \
         {} corrupt\n",
        grouped(balance.sent),
        grouped(balance.acked),
        grouped(balance.received),
        balance.unsent,
        balance.lost,
        balance.duplicated,
        balance.reordered,
        balance.corrupt
    )
}

fn counted(count: u32, what: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{} {what}{s}", grouped(count.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::SLOW;

    #[test]
    fn columns_stay_apart_however_large_the_latencies_are() {
        let row = row("a name of 24 characters.", &SLOW);
        let us = "18446744073709552.0";
        let cells: Vec<&str> = row
            .trim_end()
            .split("  ")
            .filter(|cell| !cell.is_empty())
            .collect();
        let apart = [
            "a name of 24 characters.",
            us,
            us,
            us,
            us,
            us,
            us,
            "18,446,744,073,709,551,615",
        ];
        assert_eq!(cells, apart);
    }
}
