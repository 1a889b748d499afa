//! The file that `--hlog` names.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::interval_log::IntervalLogWriterBuilder;
use hdrhistogram::serialization::{Serializer as _, V2DeflateSerializer};
use ringtide_perf::open_loop::timing::{Second, Times};

use crate::bench::watching::Listener;
use crate::exit::Failure;

/// What the log says of its figures.
const ABOUT: &str = "ringtide bench: nanoseconds; service from when a record was sent, all others from when it \
                     was due";
/// The largest value of a line is in milliseconds.
const MAX_DIVISOR: f64 = 1e6;

/// A log of histograms, second by second, as HdrHistogram's own tools read it. An error while it is
/// written is kept until the end.
pub(crate) struct HlogFile {
    file: BufWriter<File>,
    path: String,
    serializer: V2DeflateSerializer,
    error: Option<String>,
}

impl HlogFile {
    pub(crate) fn create(path: &Path) -> Result<Self, Failure> {
        let name = path.display().to_string();
        let file = File::create(path)
            .map_err(|e| Failure::usage(format!("--hlog {name}: cannot write there: {e}")))?;
        Ok(Self {
            file: BufWriter::new(file),
            path: name,
            serializer: V2DeflateSerializer::new(),
            error: None,
        })
    }

    /// As the writer of the library does, which would write its head again for each second.
    fn line(&mut self, tag: &str, at_s: u64, histogram: &Histogram<u64>) -> Result<(), String> {
        let mut bytes = Vec::new();
        self.serializer
            .serialize(histogram, &mut bytes)
            .map_err(|e| format!("{e:?}"))?;
        let max = histogram.max() as f64 / MAX_DIVISOR;
        let bytes = STANDARD.encode(bytes);
        writeln!(self.file, "Tag={tag},{at_s}.000,1.000,{max:.3},{bytes}")
            .map_err(|e| e.to_string())
    }

    fn keep(&mut self, written: Result<(), String>) {
        if let Err(error) = written {
            self.error.get_or_insert(error);
        }
    }

    pub(crate) fn finish(mut self) -> Result<(), Failure> {
        let flushed = self.file.flush().map_err(|e| e.to_string());
        self.keep(flushed);
        self.error.map_or(Ok(()), |error| {
            Err(Failure::failed(format!(
                "cannot write {}: {error}",
                self.path
            )))
        })
    }
}

impl Listener for HlogFile {
    fn begin(&mut self, now: SystemTime) {
        let written = IntervalLogWriterBuilder::new()
            .add_comment(ABOUT)
            .with_start_time(now)
            .with_base_time(now)
            .with_max_value_divisor(MAX_DIVISOR)
            .begin_log_with(&mut self.file, &mut self.serializer)
            .map(drop);
        self.keep(written.map_err(|e| e.to_string()));
    }

    fn second(&mut self, second: &Second, times: &Times) {
        for (tag, recorder) in [
            ("produce", &times.latency),
            ("service", &times.service),
            ("lag", &times.lag),
            ("end-to-end", &times.end_to_end),
        ] {
            if recorder.count() > 0 {
                let written = self.line(tag, second.at_s, recorder.histogram());
                self.keep(written);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    use super::*;

    #[test]
    fn the_log_has_its_head_once_and_begins_when_measuring_does() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("run.hlog");
        let mut log = HlogFile::create(&path).expect("writable");
        log.begin(SystemTime::UNIX_EPOCH + Duration::from_millis(5_250));
        let mut times = Times::default();
        times.latency.record(Duration::from_millis(2));
        for at_s in [0, 1, 2] {
            log.second(&Second::of(at_s, &times), &times);
        }
        log.finish().expect("written");
        let text = std::fs::read_to_string(&path).expect("a log");
        let (head, lines): (Vec<&str>, Vec<&str>) = text.lines().partition(|l| l.starts_with('#'));
        let wanted = [
            &format!("#{ABOUT}"),
            "#[StartTime: 5.250 (seconds since epoch)]",
            "#[BaseTime: 5.250 (seconds since epoch)]",
            "#[MaxValueDivisor: 1000000.000]",
        ];
        assert_eq!(head, wanted);
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[2].starts_with("Tag=produce,2.000,1.000,2."), "{text}");
        let read = IntervalLogIterator::new(text.as_bytes());
        let intervals = read.filter(|entry| matches!(entry, Ok(LogEntry::Interval(_))));
        assert_eq!(intervals.count(), 3);
    }
}
