//! `ringtide repair --cut-log`: says what a cut of the damaged write-ahead log takes, asks, keeps that, and cuts. How is in
//! `ringtide_log::recovery::cut`.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};
use std::path::{Component, Path, PathBuf};

use ringtide_log::files;
use ringtide_log::recovery::cut::{self, CutError, LogCut, Outlook, PastCut, Plan};
use ringtide_log::recovery::{PartitionEnd, RecoverError};

use crate::exit::{Exit, Failure};
use crate::offline::show;
use crate::output;
use crate::progress::{Progress, grouped};
use crate::repair::{add, failed};

/// Runs `repair --cut-log`; there is such a directory.
pub(crate) fn run(dir: &Path, keep: &Path, yes: bool) -> Result<(), Failure> {
    let keep = place_to_keep(dir, keep)?;
    let lock = files::lock(dir)?;
    let mut progress = Progress::new();
    let outlook = cut::plan(dir, &mut |step| {
        progress.tick(|elapsed| show(step, elapsed))
    });
    progress.clear();
    let plan = match outlook {
        Ok(Outlook::Damaged(plan)) => plan,
        Ok(Outlook::Sound) => {
            return match cut::finish(dir, &mut |line| add(dir, line)) {
                Ok(begun) => output::print(&without_damage(begun)),
                Err(RecoverError::File(error)) => Err(failed(error)),
                Err(why) => Err(not_mended(dir, &why)?),
            };
        }
        Ok(Outlook::Empty) => {
            lock.undo();
            let message = format!("there is no data directory in {}", dir.display());
            return Err(Failure::new(Exit::DirectoryUnusable, message));
        }
        Err(RecoverError::File(error)) => return Err(failed(error)),
        Err(why) => return Err(not_mended(dir, &why)?),
    };
    output::print(&text(&plan, &keep))?;
    check_space(&plan, &keep)?;
    if !(yes || is_confirmed()) {
        let message = "nothing was changed; to cut the log type `cut` when asked, or give --yes";
        return Err(Failure::new(Exit::DirectoryCorrupt, message));
    }
    let ends = cut::make(dir, &plan, &keep, &mut |line| add(dir, line)).map_err(|error| {
        let exit = match error {
            CutError::Keep(_) | CutError::Interrupted { .. } => Exit::DirectoryUnusable,
            CutError::Useless { .. } | CutError::NotPutBack { .. } => Exit::DirectoryCorrupt,
        };
        Failure::new(exit, error.to_string())
    })?;
    output::print(&after(&plan, &ends, &keep))
}

/// A start is refused, or a topic is not whole, and a cut does not change that.
fn not_mended(dir: &Path, why: &RecoverError) -> Result<Failure, Failure> {
    let mut message = format!("no cut of the log mends this, and nothing was changed: {why}");
    if let Some(begun) = cut::begun(dir).map_err(failed)? {
        let _ = write!(message, ". {}", begun.undo());
    }
    Ok(Failure::new(Exit::DirectoryCorrupt, message))
}

/// A start would not be refused; that may be so because a cut was interrupted behind its last change.
fn without_damage(begun: Option<(PastCut, Vec<PartitionEnd>)>) -> String {
    let Some((cut, ends)) = begun else {
        return "nothing to cut: a start would not be refused; `ringtide verify` reads the rest as well\n"
            .to_owned();
    };
    let mut out = format!(
        "nothing more to cut: a start would not be refused. The cut that was begun on {} is made: {}\n",
        cut.time, cut.what
    );
    for end in &ends {
        push_end(&mut out, end);
    }
    out
}

fn push_end(out: &mut String, end: &PartitionEnd) {
    let _ = writeln!(
        out,
        "  {}/{} begins at offset {}, its next one is {}",
        end.topic, end.id.partition, end.begins, end.ends
    );
}

/// The directory for what is kept, by a path that stays true; refuses one that cannot be it.
fn place_to_keep(dir: &Path, keep: &Path) -> Result<PathBuf, Failure> {
    let shown = keep.display();
    let refused = |why: &str| Err(Failure::usage(format!("--keep {shown}: {why}")));
    if keep.exists() && !keep.is_dir() {
        return refused("it is not a directory");
    }
    match files::list(keep) {
        Ok(Some(held)) if !held.is_empty() => return refused("the directory is not empty"),
        Err(error) => return refused(&error.to_string()),
        Ok(_) => {}
    }
    let absolute =
        |path: &Path| std::path::absolute(path).map_err(|e| Failure::failed(e.to_string()));
    let real = |path: &Path| {
        let said =
            |e: io::Error| Failure::failed(format!("cannot look at {}: {e}", path.display()));
        path.canonicalize().map_err(said)
    };
    let path = absolute(keep)?;
    let there = existing(&path);
    let rest = path.strip_prefix(there).unwrap_or(Path::new(""));
    if !rest.components().all(|c| matches!(c, Component::Normal(_))) {
        return refused("name it without `..` behind what is there");
    }
    let place = real(there)?.join(rest);
    if place.starts_with(real(dir)?) {
        return refused("it lies in the data directory");
    }
    Ok(place)
}

/// The nearest directory above a path, or itself, that there is.
fn existing(path: &Path) -> &Path {
    let mut above = path.ancestors();
    above.find(|at| at.exists()).unwrap_or(Path::new("/"))
}

fn check_space(plan: &Plan, keep: &Path) -> Result<(), Failure> {
    let there = existing(keep);
    let space = rustix::fs::statvfs(there).map_err(|error| {
        Failure::failed(format!(
            "cannot ask for the space in {}: {error}",
            there.display()
        ))
    })?;
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    if free > plan.keep_bytes {
        return Ok(());
    }
    Err(Failure::failed(format!(
        "{} bytes are to be kept, and {} are free in {}: name a --keep where there is more; nothing was changed",
        grouped(plan.keep_bytes),
        grouped(free),
        there.display()
    )))
}

/// Asks, if there is somebody.
fn is_confirmed() -> bool {
    if !io::stdin().is_terminal() {
        return false;
    }
    output::say(
        "type cut to cut the log as it is said above, anything else to leave all as it is:",
    );
    let mut line = String::new();
    io::stdin().read_line(&mut line).is_ok() && line.trim() == "cut"
}

/// What a cut would do.
fn text(plan: &Plan, keep: &Path) -> String {
    let mut out = format!("a start is refused: {}\n", plan.why);
    if let Some(begun) = &plan.begun {
        let _ = writeln!(
            out,
            "\na cut that was begun on {} is not finished: {}. Only that is as it was before all of them",
            begun.time, begun.what
        );
    }
    for log in &plan.logs {
        let _ = write!(out, "\n{}", of_a_log(plan, log));
    }
    for segment in &plan.segments {
        let _ = writeln!(
            out,
            "{} has only what comes behind the cut: it is removed",
            segment.display()
        );
    }
    let _ = writeln!(
        out,
        "\nwhat is damaged itself is not counted here: nobody can tell what it was. All of it is kept in {} ({} bytes, \
         with what a start may change), before anything is cut",
        keep.display(),
        grouped(plan.keep_bytes)
    );
    out
}

fn of_a_log(plan: &Plan, log: &LogCut) -> String {
    let behind = &log.behind;
    let mut out = format!("the log of {} is cut\n", log.place());
    for slot in &log.later {
        let _ = writeln!(out, "  all of {} is cut", slot.display());
    }
    let _ = writeln!(
        out,
        "  from there on {} frames can be told, with {} entries that can be read and {} that cannot; {} bytes are damaged \
         or of an earlier use",
        grouped(behind.frames),
        grouped(behind.entries),
        grouped(behind.damaged_entries),
        grouped(behind.unknown_bytes)
    );
    for (&id, span) in &behind.records {
        if span.end < span.first {
            let _ = writeln!(
                out,
                "  lost, and cannot be read: {}: offsets {} to {}",
                plan.name(id),
                span.end,
                span.first - 1
            );
        }
        let _ = writeln!(
            out,
            "  lost, though they can be read: {}: {} records, offsets {} to {}",
            plan.name(id),
            grouped(span.records),
            span.first,
            span.last
        );
    }
    for topic in &behind.topics {
        let _ = writeln!(out, "  undone: topic {topic}");
    }
    for back in &behind.set_back {
        let _ = writeln!(
            out,
            "  undone: topic {}: {} goes from {} back to {}{}",
            back.topic,
            back.key,
            back.from,
            back.to,
            match back.keeps_less() {
                true =>
                    ": WARNING: the next start removes what is over it at once, and that is not kept",
                false => "",
            }
        );
    }
    for (&id, start) in &behind.log_starts {
        let _ = writeln!(
            out,
            "  undone: {}: records before offset {start} removed",
            plan.name(id)
        );
    }
    for ((id, consumer), offset) in &behind.commits {
        let _ = writeln!(
            out,
            "  undone: {}: offset {offset} committed by {consumer}",
            plan.name(*id)
        );
    }
    out
}

/// What a cut has done: how far the partitions go that its logs are of.
fn after(plan: &Plan, ends: &[PartitionEnd], keep: &Path) -> String {
    let mut out = String::from("the log is cut; a start would not be refused any more\n");
    for end in ends.iter().filter(|end| plan.concerns(end.id)) {
        push_end(&mut out, end);
    }
    let _ = writeln!(
        out,
        "what was cut is kept in {}; repair.log says so",
        keep.display()
    );
    out
}
