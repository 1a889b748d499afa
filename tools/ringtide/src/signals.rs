//! SIGTERM and SIGINT: the first asks for an orderly end, the second does not wait for it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use ringtide_uring::StopSignal;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::exit::{Exit, Failure};
use crate::logging::LogFlusher;

/// Signals this soon after the first are the same wish: timeout(1) sends two.
const ONE_WISH: Duration = Duration::from_millis(250);

/// Lets a broker be stopped: watches for signals on a thread of its own, to the end of the process.
pub(crate) fn watch(stop: StopSignal, timeout: Duration, log: LogFlusher) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::failed(format!("cannot watch signals: {error}"));
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(failed)?;
    let timer_log = log.clone();
    let watch = move || {
        let mut signals = signals.forever();
        let Some(signal) = signals.next() else { return };
        tracing::info!(
            signal = name(signal),
            "stopping: draining what was accepted"
        );
        stop.stop();
        let timer = move || {
            std::thread::sleep(timeout);
            let timeout_ms = timeout.as_millis() as u64;
            tracing::error!(
                timeout_ms,
                "not drained in time; the next start replays the log"
            );
            end(&timer_log);
        };
        // Without the timer a second signal still ends it.
        let _ = std::thread::Builder::new()
            .name("stop-timer".into())
            .spawn(timer);
        let came = Instant::now();
        if let Some(signal) = signals.find(|_| came.elapsed() > ONE_WISH) {
            let signal = name(signal);
            tracing::error!(signal, "stopping at once; the next start replays the log");
            end(&log);
        }
    };
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(watch)
        .map_err(failed)?;
    Ok(())
}

/// A flag that the first SIGINT or SIGTERM raises; the second ends the process.
pub(crate) fn stop_flag() -> Result<Arc<AtomicBool>, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&stop))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&stop)))
            .map_err(|error| Failure::failed(format!("cannot handle signals: {error}")))?;
    }
    Ok(stop)
}

fn name(signal: i32) -> &'static str {
    if signal == SIGINT {
        "SIGINT"
    } else {
        "SIGTERM"
    }
}

fn end(log: &LogFlusher) -> ! {
    log.flush();
    std::process::exit(i32::from(Exit::StoppedAtOnce as u8))
}
