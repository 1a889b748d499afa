//! `doctor --flush-test`: whether flushes of the device under the data directory cost what they should.
//!
//! A flush that reaches a medium takes time, and more if there is more to flush; one that nobody carries out takes
//! its way there and back. That is all that can be measured: a cache that is protected against power cuts is as fast
//! as one that lies, so the verdict is a suspicion or its absence, never a proof.

use std::fmt::Write as _;
use std::time::Duration;

use ringtide_schema::limits::BLOCK_BYTES;
use ringtide_uring::probe::{self, FLUSH_BYTES, FlushTimes, WriteLatency};
use serde::Serialize;

use super::Check;
use super::host::Directory;
use crate::exit::Failure;

/// Of each kind.
const ROUNDS: usize = 200;
/// What has to wait for the medium takes at least this many hundredths of what need not. Two of the same kind
/// differ by a few on a busy host.
const AT_LEAST_PERCENT: u128 = 120;
/// A flush of 1 MiB takes at least this much longer than one of nothing. No medium that needs a volatile cache in front
/// of it is faster: flash needs more to program a single page. Without a medium it is a few microseconds.
const MEDIUM_AT_LEAST: Duration = Duration::from_micros(30);

/// What was measured, for a program.
#[derive(Debug, Serialize)]
pub(super) struct FlushTest {
    /// How many of each kind.
    rounds: usize,
    write_bytes: usize,
    /// Written before each `flush_of_much`.
    flush_bytes: usize,
    unsynced_write: Times,
    durable_write: Times,
    write_and_flush: Times,
    flush_of_nothing: Times,
    flush_of_much: Times,
}

#[derive(Debug, Serialize)]
struct Times {
    p50_ns: u64,
    p99_ns: u64,
    max_ns: u64,
}

impl From<WriteLatency> for Times {
    fn from(latency: WriteLatency) -> Self {
        let ns = |time: Duration| time.as_nanos() as u64;
        Self {
            p50_ns: ns(latency.p50),
            p99_ns: ns(latency.p99),
            max_ns: ns(latency.max),
        }
    }
}

/// Measures, which takes a second or so on most devices, and judges.
pub(super) fn run(directory: &Directory) -> Result<(Check, FlushTest), Failure> {
    let times = probe::flush_times(&directory.path, ROUNDS).map_err(|error| {
        let path = directory.path.display();
        Failure::failed(format!("the flush test could not write in {path}: {error}"))
    })?;
    let test = FlushTest {
        rounds: ROUNDS,
        write_bytes: BLOCK_BYTES,
        flush_bytes: FLUSH_BYTES,
        unsynced_write: times.unsynced.into(),
        durable_write: times.durable.into(),
        write_and_flush: times.flushed.into(),
        flush_of_nothing: times.flush_of_nothing.into(),
        flush_of_much: times.flush_of_much.into(),
    };
    Ok((judge(directory, probe::is_virtual(), &times), test))
}

/// The figures and what they cannot say, for a person.
pub(super) fn explained(test: &FlushTest) -> String {
    let mut out = format!(
        "Flush test, {} of each in turn, in microseconds:\n\n{:<42}  {:>7}  {:>7}  {:>7}\n",
        test.rounds, "", "p50", "p99", "max"
    );
    for (name, times) in [
        ("4 KiB written, not synced", &test.unsynced_write),
        ("4 KiB durable, as the log writes", &test.durable_write),
        ("4 KiB written and flushed", &test.write_and_flush),
        ("flush when nothing was written", &test.flush_of_nothing),
        ("flush when 1 MiB was written", &test.flush_of_much),
    ] {
        let us = |ns: u64| ns as f64 / 1000.0;
        let (p50, p99, max) = (us(times.p50_ns), us(times.p99_ns), us(times.max_ns));
        let _ = writeln!(out, "{name:<42}  {p50:>7.1}  {p99:>7.1}  {max:>7.1}");
    }
    out.push_str(ONLY_A_POWER_CUT);
    out
}

const ONLY_A_POWER_CUT: &str = "
That a flush takes its time does not prove that it does its work. Only a power cut does: publish from another
machine with `ringtide produce TOPIC --offsets > acknowledged`, cut the power of this one while it runs, start it
again, and look for every offset of that file. A reset, a kill or a panic is none: the device keeps its power. For
a virtual machine it is the power of the host. docs/DURABILITY.md has the steps.
";

/// What the times say. Pure.
fn judge(directory: &Directory, is_virtual: bool, times: &FlushTimes) -> Check {
    const NAME: &str = "flush";
    let us = |latency: WriteLatency| latency.p50.as_micros();
    let found = format!(
        "{}: 4 KiB durable in {} us, not synced in {} us; a flush of 1 MiB in {} us, of nothing in {} us",
        directory.device_name(),
        us(times.durable),
        us(times.unsynced),
        us(times.flush_of_much),
        us(times.flush_of_nothing)
    );
    let takes_longer = |latency: WriteLatency, than: WriteLatency| {
        latency.p50.as_nanos() * 100 >= than.p50.as_nanos() * AT_LEAST_PERCENT
    };
    let (much, nothing) = (times.flush_of_much.p50, times.flush_of_nothing.p50);
    let reaches = much >= nothing + MEDIUM_AT_LEAST;
    if matches!(directory.file_system.as_str(), "tmpfs" | "ramfs") {
        return Check::advice(
            NAME,
            found,
            "It was written to memory, which no flush makes durable",
            "Choose with --data-dir a directory on a disk",
        );
    }
    match directory.volatile_cache {
        Some(false) => Check::ok(
            NAME,
            format!(
                "{found}; the device says that it has no cache to flush, and is taken at its word"
            ),
        ),
        volatile if !takes_longer(times.durable, times.unsynced) => {
            let what = "A durable write takes no longer than one that is not synced";
            suspicion(Check::ok(NAME, found), what, volatile, is_virtual)
        }
        // A flush that nobody carries out still takes its way there and back.
        volatile if !takes_longer(times.flush_of_much, times.flush_of_nothing) || !reaches => {
            let what = "A flush of 1 MiB takes hardly longer than one of nothing";
            suspicion(Check::ok(NAME, found), what, volatile, is_virtual)
        }
        _ => Check::ok(
            NAME,
            format!("{found}; it waits for something, as it should"),
        ),
    }
}

fn suspicion(check: Check, what: &str, volatile: Option<bool>, is_virtual: bool) -> Check {
    let says = match volatile {
        Some(_) => "although the device says that its cache is volatile",
        None => "and what cache there is cannot be told from here",
    };
    let who = if is_virtual {
        "the hypervisor, or the device under it,"
    } else {
        "the device"
    };
    let matters = format!(
        "{what}, {says}: either what was written is safe from power cuts already, or {who} ignores flushes, and a \
         power cut loses records that were acknowledged as durable"
    );
    let mend = if is_virtual {
        "Ask whoever runs the host for a disk whose flushes are passed on (QEMU: cache=none or cache=writethrough, \
         never cache=unsafe; elsewhere: no write-back cache on the host without a battery), then measure again"
    } else {
        "Look up whether the device has power-loss protection; if it has none, turn its cache off (`nvme set-feature \
         DEVICE -f 6 -v 0`, `hdparm -W 0 DEVICE`) and measure again, or choose another device"
    };
    Check::advice(check.name, check.found, matters, mend)
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    fn directory(volatile_cache: Option<bool>) -> Directory {
        Directory {
            path: "/data".into(),
            file_system: "ext4".into(),
            device: Some("vda".into()),
            access: Ok(()),
            direct_io: Ok(()),
            free_bytes: None,
            volatile_cache,
            fua: Some(false),
        }
    }

    /// In microseconds.
    fn times(unsynced: u64, durable: u64, of_nothing: u64, of_much: u64) -> FlushTimes {
        let latency = |us| WriteLatency {
            p50: Duration::from_micros(us),
            p99: Duration::from_micros(10 * us),
            max: Duration::from_micros(20 * us),
        };
        FlushTimes {
            unsynced: latency(unsynced),
            durable: latency(durable),
            flushed: latency(durable),
            flush_of_nothing: latency(of_nothing),
            flush_of_much: latency(of_much),
        }
    }

    fn verdict(volatile_cache: Option<bool>, times: FlushTimes) -> Verdict {
        judge(&directory(volatile_cache), true, &times).verdict
    }

    #[test]
    fn a_volatile_cache_whose_flush_takes_no_time_is_suspicious() {
        let nothing_waits = times(50, 52, 1, 1);
        let only_the_way_takes_time = times(500, 1000, 500, 540);
        let in_memory = times(21, 36, 18, 25);
        for lying in [nothing_waits, only_the_way_takes_time, in_memory] {
            assert_eq!(verdict(Some(true), lying), Verdict::Advice, "{lying:?}");
            assert_eq!(verdict(None, lying), Verdict::Advice, "{lying:?}");
        }
        let honest = times(50, 400, 50, 900);
        assert_eq!(verdict(Some(true), honest), Verdict::Ok);
        assert_eq!(verdict(None, honest), Verdict::Ok);
    }

    #[test]
    fn without_a_volatile_cache_a_flush_need_not_take_time() {
        let check = judge(&directory(Some(false)), false, &times(50, 50, 1, 1));
        assert_eq!(check.verdict, Verdict::Ok);
        assert!(check.found.contains("taken at its word"), "{check:?}");
    }

    #[test]
    fn memory_is_never_durable_however_long_it_takes() {
        let mut memory = directory(None);
        memory.file_system = "tmpfs".into();
        let check = judge(&memory, false, &times(1, 100, 1, 100));
        assert_eq!(check.verdict, Verdict::Advice);
    }

    #[test]
    fn whoever_may_ignore_the_flush_is_named() {
        let lying = times(50, 50, 1, 1);
        let words = |is_virtual| {
            let check = judge(&directory(Some(true)), is_virtual, &lying);
            check.matters.expect("words")
        };
        assert!(words(true).contains("hypervisor"));
        assert!(!words(false).contains("hypervisor"));
    }
}
