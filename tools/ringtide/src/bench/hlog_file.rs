//! The file that `--hlog` names.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
use ringtide_perf::open_loop::timing::{Second, Times};

use crate::bench::watching::Listener;
use crate::exit::Failure;

/// A log of histograms, second by second, as HdrHistogram's own tools read it. An error while it is
/// written is kept until the end.
pub(crate) struct HlogFile {
    file: BufWriter<File>,
    path: String,
    began: SystemTime,
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
            began: UNIX_EPOCH,
            error: None,
        })
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
    fn begin(&mut self, began: SystemTime) {
        self.began = began;
        let mut serializer = V2DeflateSerializer::new();
        let written = IntervalLogWriterBuilder::new()
            .add_comment("ringtide bench: nanoseconds from when each record was due")
            .with_start_time(began)
            .with_base_time(began)
            .with_max_value_divisor(1e6)
            .begin_log_with(&mut self.file, &mut serializer)
            .map(drop);
        self.keep(written.map_err(|e| e.to_string()));
    }

    fn second(&mut self, second: &Second, times: &Times) {
        let mut serializer = V2DeflateSerializer::new();
        let written = (|| {
            let mut log = IntervalLogWriterBuilder::new()
                .with_max_value_divisor(1e6)
                .begin_log_with(&mut self.file, &mut serializer)
                .map_err(|e| e.to_string())?;
            for (tag, recorder) in [
                ("produce", &times.latency),
                ("service", &times.service),
                ("lag", &times.lag),
                ("end-to-end", &times.end_to_end),
            ] {
                if recorder.count() > 0 {
                    let start = Duration::from_secs(second.at_s);
                    let length = Duration::from_secs(1);
                    log.write_histogram(recorder.histogram(), start, length, Tag::new(tag))
                        .map_err(|e| format!("{e:?}"))?;
                }
            }
            Ok(())
        })();
        self.keep(written);
    }
}
