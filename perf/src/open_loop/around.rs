//! What is done before the schedule begins and after it has ended: publishing what is to be there, and
//! reading everything back. None of it is timed.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::error::BenchError;
use crate::open_loop::ledger::{Lane, PRELOADER, Received, Sent};
use crate::open_loop::stamp::{NOT_TIMED, Stamp};
use crate::open_loop::target::{From, Outgoing, Target};
use crate::open_loop::{PROGRESS_EVERY, Plan, Progress, Watch};

/// Bytes of a batch of what is to be there, at the most.
const PRELOAD_BATCH_BYTES: usize = 64 << 10;

/// Tells how far it is, now and then.
struct Teller<'a> {
    watch: &'a mut dyn Watch,
    phase: &'static str,
    began: Instant,
    told: Duration,
}

impl<'a> Teller<'a> {
    fn new(watch: &'a mut dyn Watch, phase: &'static str) -> Self {
        Self {
            watch,
            phase,
            began: Instant::now(),
            told: Duration::ZERO,
        }
    }

    fn tell(&mut self, acked: impl FnOnce() -> u64) -> Result<(), BenchError> {
        let elapsed = self.began.elapsed();
        if elapsed < self.told + PROGRESS_EVERY {
            return Ok(());
        }
        self.told = elapsed;
        let progress = Progress {
            phase: self.phase,
            elapsed,
            total: elapsed,
            acked: acked(),
        };
        match self.watch.progress(progress).is_break() {
            true => Err(BenchError::Interrupted),
            false => Ok(()),
        }
    }
}

/// Publishes what is to be there before the run, as fast as it goes.
pub(crate) fn preload(
    plan: &Plan,
    run: u32,
    target: &dyn Target,
    watch: &mut dyn Watch,
) -> Result<HashMap<Lane, Sent>, BenchError> {
    let mut lanes: HashMap<Lane, Sent> = HashMap::new();
    let bytes = plan.value_bytes();
    let mut left = plan.preload_bytes / bytes as u64;
    if left == 0 {
        return Ok(lanes);
    }
    let mut side = target.publishers(1)?;
    let per_batch = (PRELOAD_BATCH_BYTES / bytes).max(1);
    let (mut in_flight, mut refused, mut batches) = (HashMap::new(), None, 0_u64);
    let mut teller = Teller::new(watch, "preloading");
    while left > 0 || !in_flight.is_empty() {
        let partition = (batches % u64::from(plan.partitions)) as u32;
        let may_send = left > 0 && side.may_send(0, partition);
        if may_send {
            let records = per_batch.min(left as usize);
            let lane = lanes.entry((PRELOADER, partition)).or_default();
            let mut values = vec![0; records * bytes];
            for value in values.chunks_exact_mut(bytes) {
                Stamp {
                    run,
                    publisher: PRELOADER,
                    partition,
                    sequence: lane.sent,
                    due_ns: NOT_TIMED,
                }
                .write(value);
                lane.sent += 1;
            }
            let batch = Outgoing {
                keys: &vec![None; records],
                values: &values,
                value_bytes: bytes,
            };
            side.send(batches, 0, partition, batch)?;
            in_flight.insert(batches, (partition, records as u64));
            batches += 1;
            left -= records as u64;
        }
        let heard = side.turn(&mut |token, verdict| {
            let Some((partition, records)) = in_flight.remove(&token) else {
                return;
            };
            match verdict {
                Ok(()) => lanes.entry((PRELOADER, partition)).or_default().acked += records,
                Err(why) => refused = Some(why.to_owned()),
            }
        })?;
        if let Some(why) = refused {
            return Err(BenchError::Wrong(format!(
                "what is to be there before the run was {why}"
            )));
        }
        if !heard && !may_send {
            std::thread::yield_now();
        }
        teller.tell(|| lanes.values().map(|lane| lane.acked).sum())?;
    }
    Ok(lanes)
}

/// Reads all there is, until everything was seen or nothing comes any more.
pub(crate) fn read_back(
    plan: &Plan,
    run: u32,
    sent: &HashMap<Lane, Sent>,
    target: &dyn Target,
    watch: &mut dyn Watch,
) -> Result<Received, BenchError> {
    let mut received = Received::new(run);
    let mut side = target.subscribers(1)?;
    side.subscribe(From::Earliest)?;
    let mut heard = Instant::now();
    let mut teller = Teller::new(watch, "reading back");
    while !received.has_all(sent) && heard.elapsed() < plan.drain {
        let before = Instant::now();
        // Between two looks at the whole balance as much is read as there is.
        while side.turn(&mut |_, partition, value| {
            received.take(partition, value);
        })? {
            heard = Instant::now();
            if heard - before > PROGRESS_EVERY {
                break;
            }
        }
        teller.tell(|| received.count())?;
        std::thread::yield_now();
    }
    match side.unanswered() {
        Some(server) => Err(BenchError::unanswered(server, plan.drain)),
        None => Ok(received),
    }
}
