//! The lines of a soak: at the end of each interval what was measured in it, and how the broker is.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use ringtide_perf::Latency;
use ringtide_perf::broker::memory_and_files;
use ringtide_perf::open_loop::timing::{Second, Times};
use serde::Serialize;

use crate::bench::load_args::{Teller, us};
use crate::bench::subject::{OwnTopic, Subject};
use crate::bench::watching::Listener;
use crate::exit::Failure;
use crate::progress::grouped;

/// An interval, and the broker at its end. What the broker does not say is absent, and so is what
/// cannot be seen of it from here.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Line {
    /// When it began, in seconds since measuring began.
    at_s: u64,
    /// How long it was.
    length_s: u64,
    /// Records acknowledged in it.
    acked: u64,
    rate_per_s: f64,
    /// From due to acknowledged, of the records acknowledged in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_ns: Option<Latency>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) resident_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) open_files: Option<u64>,
    /// Writes of the write-ahead log in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    wal_writes: Option<u64>,
    /// Of the topic.
    #[serde(skip_serializing_if = "Option::is_none")]
    segments: Option<u64>,
    /// Records that the topic has no more, since the beginning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) removed_records: Option<u64>,
}

impl Line {
    /// When it ended, in seconds since measuring began.
    pub(crate) fn end_s(&self) -> u64 {
        self.at_s + self.length_s
    }
}

/// The broker at one moment, as far as it could be seen.
#[derive(Default)]
struct Look {
    memory_and_files: Option<(u64, u64)>,
    wal_writes: Option<u64>,
    segments_and_removed: Option<(u64, u64)>,
}

/// How long it all is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lengths {
    pub(crate) warm_up: Duration,
    pub(crate) duration: Duration,
    /// From one line to the next.
    pub(crate) every: Duration,
}

/// Makes and tells them.
pub(crate) struct Lines<'a> {
    subject: &'a Subject,
    topic: &'a OwnTopic,
    broker_pid: Option<u32>,
    teller: Teller,
    lengths: Lengths,
    interrupted: &'a AtomicBool,
    /// At the ends of intervals whose seconds are not all complete yet.
    looks: VecDeque<Look>,
    looked: u32,
    began_s: u64,
    seconds: u64,
    times: Times,
    wal_writes: Option<u64>,
    lines: Vec<Line>,
    /// The first thing that could not be told.
    failed: Option<Failure>,
}

impl<'a> Lines<'a> {
    pub(crate) fn new(
        subject: &'a Subject,
        topic: &'a OwnTopic,
        teller: Teller,
        lengths: Lengths,
        interrupted: &'a AtomicBool,
    ) -> Self {
        Self {
            subject,
            topic,
            broker_pid: subject.parts().broker_pid,
            teller,
            lengths,
            interrupted,
            looks: VecDeque::new(),
            looked: 0,
            began_s: 0,
            seconds: 0,
            times: Times::default(),
            wal_writes: None,
            lines: Vec::new(),
            failed: None,
        }
    }

    /// All of them, with what is left of the last interval.
    pub(crate) fn finish(mut self) -> Result<Vec<Line>, Failure> {
        if self.seconds > 0 {
            self.close();
        }
        self.failed.map_or(Ok(self.lines), Err)
    }

    fn look(&self) -> Look {
        let pid = self.broker_pid;
        Look {
            memory_and_files: pid.and_then(|pid| memory_and_files(pid).ok()),
            wal_writes: self.subject.wal_writes(),
            segments_and_removed: self.subject.segments(self.topic),
        }
    }

    fn close(&mut self) {
        // A second that nobody told of is in the interval of the next.
        for _ in 1..self.seconds / self.lengths.every.as_secs() {
            self.looks.pop_front();
        }
        // A broker that the same signal may have ended is not asked.
        let is_asked = !self.interrupted.load(Ordering::Relaxed);
        let look = self.looks.pop_front();
        let look = look
            .or_else(|| is_asked.then(|| self.look()))
            .unwrap_or_default();
        let before = std::mem::replace(&mut self.wal_writes, look.wal_writes);
        let acked = self.times.latency.count();
        let line = Line {
            at_s: self.began_s,
            length_s: self.seconds,
            acked,
            rate_per_s: acked as f64
                / measured_s(self.began_s, self.seconds, self.lengths.duration),
            latency_ns: self.times.latency.summary(),
            resident_bytes: look.memory_and_files.map(|(memory, _)| memory),
            open_files: look.memory_and_files.map(|(_, files)| files),
            wal_writes: look
                .wal_writes
                .zip(before)
                .map(|(now, then)| now.saturating_sub(then)),
            segments: look.segments_and_removed.map(|(segments, _)| segments),
            removed_records: look.segments_and_removed.map(|(_, removed)| removed),
        };
        if let Err(failure) = self.teller.tell(&shown(&line)) {
            self.failed.get_or_insert(failure);
        }
        self.lines.push(line);
        self.began_s += self.seconds;
        self.seconds = 0;
        self.times.clear();
    }
}

impl Listener for Lines<'_> {
    fn begin(&mut self, _began: SystemTime) {
        self.wal_writes = self.subject.wal_writes();
    }

    fn passed(&mut self, elapsed: Duration) {
        let Lengths { warm_up, every, .. } = self.lengths;
        if elapsed >= warm_up + every * (self.looked + 1) {
            self.looked += 1;
            self.looks.push_back(self.look());
        }
    }

    fn second(&mut self, second: &Second, times: &Times) {
        self.times.add(times);
        // What is due later is not measured; only what was late arrives then.
        let duration_s = self.lengths.duration.as_secs_f64().ceil() as u64;
        let passed = (second.at_s + 1).min(duration_s);
        self.seconds = passed.saturating_sub(self.began_s);
        if self.seconds >= self.lengths.every.as_secs() {
            self.close();
        }
    }
}

/// How much of an interval is measured, in seconds: the last second of all may be a part of one.
fn measured_s(began_s: u64, seconds: u64, duration: Duration) -> f64 {
    (duration.as_secs_f64() - began_s as f64).min(seconds as f64)
}

/// Above the lines.
pub(crate) fn heading() -> String {
    let columns = ["seconds", "rate", "p50", "p99", "p99.9", "max"];
    let [seconds, rate, p50, p99, p99_9, max] = columns;
    let columns = ["MiB", "files", "WAL writes", "segments", "removed"];
    let [memory, files, wal, segments, removed] = columns;
    format!(
        "{seconds:>8}  {rate:>9}  {p50:>10}  {p99:>10}  {p99_9:>10}  {max:>10}  {memory:>6}  \
         {files:>5}  {wal:>10}  {segments:>8}  {removed:>11}\n"
    )
}

fn shown(line: &Line) -> String {
    let count = |n: Option<u64>| n.map_or_else(|| "-".into(), grouped);
    let latency = line.latency_ns;
    format!(
        "{:>8}  {:>9}  {:>10}  {:>10}  {:>10}  {:>10}  {:>6}  {:>5}  {:>10}  {:>8}  {:>11}\n",
        line.end_s(),
        grouped(line.rate_per_s.round() as u64),
        us(latency.map(|l| l.p50)),
        us(latency.map(|l| l.p99)),
        us(latency.map(|l| l.p99_9)),
        us(latency.map(|l| l.max)),
        count(line.resident_bytes.map(|bytes| bytes >> 20)),
        count(line.open_files),
        count(line.wal_writes),
        count(line.segments),
        count(line.removed_records),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::SLOW;

    #[test]
    fn the_rate_of_the_last_line_is_of_the_time_that_was_measured() {
        let duration = Duration::from_millis(5_500);
        assert_eq!(measured_s(2, 2, duration), 2.0);
        assert_eq!(measured_s(4, 2, duration), 1.5);
        assert_eq!(measured_s(5, 1, duration), 0.5);
    }

    #[test]
    fn columns_stay_apart_however_large_the_figures_are() {
        let line = Line {
            at_s: 0,
            length_s: 60,
            acked: 0,
            rate_per_s: 1e12,
            latency_ns: Some(SLOW),
            resident_bytes: Some(u64::MAX),
            open_files: Some(u64::MAX),
            wal_writes: Some(u64::MAX),
            segments: Some(u64::MAX),
            removed_records: Some(u64::MAX),
        };
        let columns = heading().replace("WAL writes", "writes");
        let count = |line: &str| line.split("  ").filter(|cell| !cell.is_empty()).count();
        assert_eq!(count(&shown(&line)), count(&columns), "{}", shown(&line));
    }
}
