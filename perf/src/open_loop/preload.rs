//! Publishing what is to be there before the schedule begins. None of it is timed.

use std::collections::HashMap;
use std::time::Instant;

use crate::error::BenchError;
use crate::open_loop::ledger::{Lane, PRELOADER, Sent};
use crate::open_loop::stamp::{NOT_TIMED, Stamp};
use crate::open_loop::target::{Outgoing, PublishSide};
use crate::open_loop::{PROGRESS_EVERY, Plan, Progress, Watch};

/// Bytes of a batch of what is to be there, at the most.
const PRELOAD_BATCH_BYTES: usize = 64 << 10;

/// Publishes it through a publisher's side, as fast as it goes; what was sent.
pub(crate) fn preload(
    plan: &Plan,
    run: u32,
    side: &mut dyn PublishSide,
    watch: &mut dyn Watch,
) -> Result<HashMap<Lane, Sent>, BenchError> {
    let mut lanes: HashMap<Lane, Sent> = HashMap::new();
    let bytes = plan.value_bytes();
    let mut left = plan.preload_bytes / bytes as u64;
    let per_batch = (PRELOAD_BATCH_BYTES / bytes).max(1);
    let (mut in_flight, mut refused, mut batches) = (HashMap::new(), None, 0_u64);
    let began = Instant::now();
    let mut told = began;
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
        if told.elapsed() >= PROGRESS_EVERY {
            told = Instant::now();
            let progress = Progress {
                phase: "preloading",
                elapsed: began.elapsed(),
                total: began.elapsed(),
                acked: lanes.values().map(|lane| lane.acked).sum(),
            };
            if watch.progress(progress).is_break() {
                return Err(BenchError::Interrupted);
            }
        }
    }
    Ok(lanes)
}
