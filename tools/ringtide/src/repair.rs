//! `ringtide repair`: mends what is derived, and cuts away what is damaged when it is told to.
//!
//! What would be cut is said first, from the same plan that is carried out. Nothing is cut without `--truncate`
//! and a yes. How it is done is in `ringtide_log::recovery::repair`.

use std::fmt::Write as _;
use std::io::{self, IsTerminal};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use ringtide_log::files;
use ringtide_log::recovery::repair::{self, Plan};
use ringtide_log::recovery::{RecoverError, Report};

use crate::cli::RepairArgs;
use crate::exit::{Exit, Failure};
use crate::offline::{check_directory, judge, look};
use crate::output;
use crate::progress::grouped;

/// Runs `repair`.
pub(crate) fn run(args: &RepairArgs) -> Result<(), Failure> {
    let dir = &*args.data_dir;
    check_directory(dir)?;
    let lock = files::lock(dir)?;
    let report = look(dir)?;
    if report.identity.is_none() {
        lock.undo();
        return judge(dir, &report);
    }
    let removed = repair::mend(&report).map_err(failed)?;
    let mut done = String::new();
    for path in &removed {
        let _ = writeln!(
            done,
            "removed {}: it is built anew when it is needed",
            path.display()
        );
    }
    note(dir, &done)?;
    output::print(&done)?;
    if report.is_sound() {
        return Ok(());
    }
    let report = mend_batches(dir, report)?;
    if report.is_sound() {
        return Ok(());
    }
    let plan = repair::plan(dir).map_err(unmended)?;
    if plan.is_empty() {
        output::say("no cut mends what is wrong: restore the whole data directory from a copy");
        return judge(dir, &report);
    }
    output::print(&text(dir, &plan))?;
    if !args.truncate {
        return Err(Failure::new(
            Exit::ProblemsFound,
            "nothing was cut. Restore the whole data directory from a copy if there is one; else --truncate cuts \
             away what is listed above",
        ));
    }
    if !args.yes && !is_confirmed()? {
        return Err(Failure::new(Exit::ProblemsFound, "nothing was cut"));
    }
    note(dir, &text(dir, &plan))?;
    let kept = repair::cut(dir, &plan, &utc(SystemTime::now())).map_err(unmended)?;
    let done = format!(
        "cut what is listed above; it is kept in {}\n",
        kept.display()
    );
    note(dir, &done)?;
    output::print(&done)?;
    judge(dir, &look(dir)?)
}

/// Mends what the segments' checksums prove, and looks again if that was something.
fn mend_batches(dir: &Path, report: Report) -> Result<Report, Failure> {
    // What cannot be read is for the plan to say.
    let mended = repair::mend_batches(dir).unwrap_or_default();
    if mended.is_empty() {
        return Ok(report);
    }
    let mut done = String::new();
    for (path, position) in mended {
        let _ = writeln!(
            done,
            "wrote offset and leader epoch of the batch at byte {position} of {} as they had been",
            path.display()
        );
    }
    note(dir, &done)?;
    output::print(&done)?;
    look(dir)
}

fn failed(error: files::FileError) -> Failure {
    Failure::new(Exit::DirectoryUnusable, error.to_string())
}

/// What stopped a plan or a cut.
fn unmended(error: RecoverError) -> Failure {
    match error {
        RecoverError::File(error) => failed(error),
        error => Failure::new(Exit::ProblemsFound, format!("no cut mends this: {error}")),
    }
}

/// Writes lines to the log of repairs, each with the time.
fn note(dir: &Path, lines: &str) -> Result<(), Failure> {
    if lines.is_empty() {
        return Ok(());
    }
    let time = utc(SystemTime::now());
    let stamped: String = lines
        .lines()
        .map(|line| format!("{time} {line}\n"))
        .collect();
    repair::log(dir, &stamped).map_err(failed)
}

fn is_confirmed() -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::usage(
            "standard input is no terminal to ask at: give --yes to cut without being asked",
        ));
    }
    output::say("cut this away? Type yes to do it");
    let mut answer = String::new();
    let read = io::stdin().read_line(&mut answer);
    read.map_err(|error| Failure::failed(format!("cannot read an answer: {error}")))?;
    Ok(answer.trim() == "yes")
}

fn text(dir: &Path, plan: &Plan) -> String {
    let mut out = String::new();
    for cut in &plan.partitions {
        let _ = writeln!(
            out,
            "CUT  partition {} from byte {} of {}: {}",
            plan.name(cut.partition),
            cut.position,
            cut.path.display(),
            cut.why,
        );
        let (from, bytes) = (cut.from, grouped(cut.bytes));
        let _ = match cut.to.checked_sub(from) {
            Some(count @ 1..) => writeln!(
                out,
                "     lost: {} records, offsets {from} to {}, {bytes} bytes of segments",
                grouped(count),
                cut.to - 1,
            ),
            _ => writeln!(
                out,
                "     lost: what the log has of it from offset {from} on"
            ),
        };
    }
    for cut in &plan.logs {
        let _ = writeln!(
            out,
            "CUT  log of shard {}: {}\n     lost: the damaged entries, and all behind them; {} could be read",
            cut.shard,
            cut.why,
            grouped(cut.entries),
        );
        for (&id, &(from, to)) in &cut.records {
            let name = plan.name(id);
            let (last, count) = (to - 1, grouped(to - from));
            let _ = writeln!(
                out,
                "     lost: of partition {name} at least {count} records, offsets {from} to {last}"
            );
        }
    }
    for path in &plan.strays {
        let _ = writeln!(
            out,
            "CUT  {}: nothing knows of it any more once the rest is cut",
            path.display()
        );
    }
    let _ = writeln!(
        out,
        "     what is cut is kept below {}",
        dir.join("repaired-TIME").display()
    );
    out
}

/// A time as in the name of a file: 20261122T013000Z.
fn utc(time: SystemTime) -> String {
    let seconds = time
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let (mut days, of_day) = (seconds / 86_400, seconds % 86_400);
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let mut month = 1;
    for length in [
        31,
        28 + u64::from(is_leap(year)),
        31,
        30,
        31,
        30,
        31,
        31,
        30,
        31,
        30,
        31,
    ] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!(
        "{year:04}{month:02}{:02}T{hour:02}{minute:02}{second:02}Z",
        days + 1
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_are_those_of_the_calendar() {
        let at = |seconds| utc(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "19700101T000000Z");
        assert_eq!(at(951_782_399), "20000228T235959Z");
        assert_eq!(at(951_782_400), "20000229T000000Z");
        assert_eq!(at(1_798_761_599), "20261231T235959Z");
    }
}
