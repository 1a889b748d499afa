//! Looking on while an open loop runs: its progress, an interruption, the counters before and after,
//! and whoever wants to hear of each second.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use ringtide_client::ShardInfo;
use ringtide_client::sync::Client;
use ringtide_perf::machine::{Between, Counters, Parts};
use ringtide_perf::open_loop;
use ringtide_perf::open_loop::timing::{Second, Times};
use ringtide_perf::report::Wal;

use crate::progress::{Progress, grouped};

/// What was counted when measuring began, or ended.
struct Moment {
    counters: Counters,
    /// Nothing when the broker had nothing to say.
    shards: Vec<ShardInfo>,
    acked: u64,
}

/// What happened while it was measured.
pub(crate) struct Meanwhile {
    pub(crate) between: Between,
    pub(crate) shards: Vec<ShardInfo>,
    /// Unless the broker was not asked in the end.
    pub(crate) wal: Option<Wal>,
}

/// Who wants to hear of each second.
pub(crate) trait Listener {
    /// Measuring begins.
    fn begin(&mut self, now: SystemTime);
    /// So long it has run, warm-up included; told ten times a second.
    fn passed(&mut self, _elapsed: Duration) {}
    /// A second is complete, with what came in it; told a few seconds later.
    fn second(&mut self, second: &Second, times: &Times);
}

/// Looks on while it runs.
pub(crate) struct Watching<'a> {
    progress: Progress,
    interrupted: &'a AtomicBool,
    listener: Option<&'a mut dyn Listener>,
    client: &'a Client,
    parts: Parts,
    first: Option<Moment>,
    last: Option<Moment>,
    acked: u64,
    pub(crate) began: SystemTime,
}

impl<'a> Watching<'a> {
    pub(crate) fn new(
        client: &'a Client,
        parts: Parts,
        progress: Progress,
        interrupted: &'a AtomicBool,
        listener: Option<&'a mut dyn Listener>,
    ) -> Self {
        Self {
            progress,
            interrupted,
            listener,
            client,
            parts,
            first: None,
            last: None,
            acked: 0,
            began: SystemTime::now(),
        }
    }

    /// Clears the progress; what happened while it was measured.
    pub(crate) fn end(mut self) -> Option<Meanwhile> {
        self.progress.clear();
        let (first, last) = (self.first.take()?, self.last.take()?);
        let sum = |moment: &Moment, of: fn(&ShardInfo) -> u64| -> u64 {
            moment.shards.iter().map(of).sum()
        };
        let more = |of: fn(&ShardInfo) -> u64| sum(&last, of).saturating_sub(sum(&first, of));
        let wal = (!last.shards.is_empty()).then(|| {
            Wal::new(
                more(|shard| shard.wal_writes),
                more(|shard| shard.wal_bytes),
                more(|shard| shard.wal_records),
                last.acked - first.acked,
            )
        });
        Some(Meanwhile {
            between: first.counters.until(&last.counters),
            wal,
            shards: match last.shards.is_empty() {
                true => first.shards,
                false => last.shards,
            },
        })
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}

impl open_loop::Watch for Watching<'_> {
    fn progress(&mut self, now: open_loop::Progress) -> ControlFlow<()> {
        self.acked = now.acked;
        // Before anybody asks the broker, which the same signal may have ended.
        if self.is_interrupted() {
            return ControlFlow::Break(());
        }
        if let Some(listener) = &mut self.listener {
            listener.passed(now.elapsed);
        }
        self.progress.tick(|_| {
            let (elapsed, total) = (now.elapsed.as_secs_f64(), now.total.as_secs_f64());
            let acked = grouped(now.acked);
            format!(
                "{}: {elapsed:.0} of {total:.0} s, {acked} records",
                now.phase
            )
        });
        ControlFlow::Continue(())
    }

    fn second(&mut self, second: &Second, times: &Times) {
        if let Some(listener) = &mut self.listener {
            listener.second(second, times);
        }
    }

    fn measuring(&mut self, is_measuring: bool) {
        let at = SystemTime::now();
        // First, because they are held against the records acknowledged by now. A broker that is gone has
        // nothing to say.
        let shards = match self.is_interrupted() {
            true => Vec::new(),
            false => self.client.describe_shards().unwrap_or_default(),
        };
        let now = Moment {
            counters: Counters::read(&self.parts),
            shards,
            acked: self.acked,
        };
        if is_measuring {
            if let Some(listener) = &mut self.listener {
                listener.begin(at);
            }
            self.first = Some(now);
        } else {
            self.last = Some(now);
        }
    }
}
