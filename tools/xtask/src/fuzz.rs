//! Building the targets of tests/fuzz with instructions for coverage, and running them.
//!
//! What they are built with is in `tests/fuzz/.cargo/config.toml`, what a run is told is here.

use std::ffi::OsString;
use std::fs;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

/// Of `tests/fuzz/.cargo/config.toml`.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";
const CRATE: &str = "tests/fuzz";
/// The target with a fault in it, and how long it may take to be found.
const PLANTED: &str = "planted";
const PLANTED_SECONDS: u32 = 60;
/// How long each target runs, unless told.
const SECONDS: u32 = 5;
/// One input may take this long, and the process hold so much memory.
const BOUNDS: [&str; 2] = ["-timeout=10", "-rss_limit_mb=2048"];

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ask {
    target: Option<String>,
    seconds: u32,
    planted: bool,
    merge: bool,
}

impl Ask {
    /// What stands behind `fuzz` on the command line.
    pub(crate) fn parse(args: &[&str]) -> Result<Self, String> {
        let mut ask = Self {
            target: None,
            seconds: SECONDS,
            planted: false,
            merge: false,
        };
        let mut args = args.iter();
        while let Some(&arg) = args.next() {
            match arg {
                "--planted" => ask.planted = true,
                "--merge" => ask.merge = true,
                "--seconds" => {
                    let given = args.next().and_then(|seconds| seconds.parse().ok());
                    ask.seconds = given.ok_or("--seconds: give a number")?;
                }
                name if ask.target.is_none() && !name.starts_with('-') => {
                    ask.target = Some(name.into());
                }
                other => return Err(format!("fuzz does not know {other}")),
            }
        }
        if ask.planted && (ask.target.is_some() || ask.merge) {
            return Err("--planted is a target by itself".into());
        }
        Ok(ask)
    }
}

/// Where everything is.
struct Places {
    /// Of the crate.
    home: PathBuf,
    /// Of what is built, found and learned.
    target: PathBuf,
    /// For files of targets: in memory if there is such a place.
    scratch: PathBuf,
}

/// Runs what is asked for; an error if a target fails, or does not although a fault is planted.
pub(crate) fn run(root: &Path, args: &[&str]) -> Result<String, String> {
    let ask = Ask::parse(args)?;
    let places = Places::of(root);
    made(places.scratch.clone())?;
    let result = run_in(&places, &ask);
    // What is left in it is of targets that were ended.
    let _ = fs::remove_dir_all(&places.scratch);
    result
}

fn run_in(places: &Places, ask: &Ask) -> Result<String, String> {
    places.build(ask.planted)?;
    if ask.planted {
        return places.find_planted();
    }
    let targets = match &ask.target {
        Some(target) => vec![target.clone()],
        None => places.targets()?,
    };
    each_at_once(&targets, |target| match ask.merge {
        true => places.merge(target),
        false => places.fuzz(target, ask.seconds),
    })?;
    let done = match ask.merge {
        true => "what was learned is in the corpus of",
        false => "nothing was found by",
    };
    Ok(format!("{done} {}", targets.join(", ")))
}

/// Does it for each target, as many at once as there are processors; gives the first error.
fn each_at_once(
    targets: &[String],
    run: impl Fn(&str) -> Result<(), String> + Sync,
) -> Result<(), String> {
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    let left = Mutex::new(targets.iter());
    let next = || left.lock().ok()?.next();
    let work = || {
        while let Some(target) = next() {
            run(target)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..processors).map(|_| scope.spawn(work)).collect();
        let panicked = |_| Err("a run panicked".into());
        let mut ended = workers.into_iter().map(|worker| worker.join());
        ended.try_for_each(|ended| ended.unwrap_or_else(panicked))
    })
}

impl Places {
    fn of(root: &Path) -> Self {
        let target = std::env::var_os("CARGO_TARGET_DIR");
        let target = root.join(target.unwrap_or_else(|| "target".into()));
        let memory = Path::new("/dev/shm");
        let scratch = match memory.is_dir() {
            true => memory.to_owned(),
            false => std::env::temp_dir(),
        };
        Self {
            home: root.join(CRATE),
            target: target.join("fuzz"),
            scratch: scratch.join(format!("ringtide-fuzz-{}", std::process::id())),
        }
    }

    /// The names of all targets but the planted one.
    fn targets(&self) -> Result<Vec<String>, String> {
        let folder = self.home.join("src/bin");
        let entries = fs::read_dir(&folder)
            .map_err(|error| format!("cannot read {}: {error}", folder.display()))?;
        let names = entries.flatten().filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            Some(name.strip_suffix(".rs")?.to_owned())
        });
        let mut names: Vec<String> = names.filter(|name| name != PLANTED).collect();
        names.sort();
        Ok(names)
    }

    fn build(&self, planted: bool) -> Result<(), String> {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo
            .current_dir(&self.home)
            .args(["build", "--quiet", "--locked", "--release", "--target-dir"])
            .arg(&self.target)
            // It would take the place of the flags for coverage.
            .env_remove("RUSTFLAGS");
        match planted {
            true => cargo.args(["--features", PLANTED, "--bin", PLANTED]),
            false => cargo.arg("--bins"),
        };
        let status = cargo
            .status()
            .map_err(|error| format!("cannot run cargo: {error}"))?;
        if !status.success() {
            return Err("the targets could not be built".into());
        }
        Ok(())
    }

    /// A run of a target, which tells libFuzzer's progress in a file.
    fn run(&self, target: &str, seconds: u32) -> Result<Run, String> {
        let program = self.target.join(PLATFORM).join("release").join(target);
        if !program.is_file() {
            let targets = self.targets()?.join(", ");
            return Err(format!("there is no target {target}; there are {targets}"));
        }
        let log = self.below("logs", "")?.join(format!("{target}.log"));
        let mut command = Command::new(&program);
        command
            .env("TMPDIR", &self.scratch)
            .args(BOUNDS)
            .arg(format!("-max_total_time={seconds}"));
        Ok(Run {
            program,
            command,
            log,
        })
    }

    /// The checked-in inputs of a target.
    fn corpus(&self, target: &str) -> PathBuf {
        self.home.join("corpus").join(target)
    }

    /// A directory beside what is built, made if it is not there.
    fn below(&self, kind: &str, target: &str) -> Result<PathBuf, String> {
        made(self.target.join(kind).join(target))
    }

    /// Runs a target from the checked-in corpus and what earlier runs have learned.
    fn fuzz(&self, target: &str, seconds: u32) -> Result<(), String> {
        let found = self.below("found", target)?;
        let mut run = self.run(target, seconds)?;
        run.command
            .arg(prefix(&found))
            .arg(self.below("learned", target)?)
            .arg(self.corpus(target));
        println!("{target}: {seconds} s, progress in {}", run.log.display());
        if run.ends_well()? {
            println!("{target}: {}", run.summary());
            return Ok(());
        }
        let input = newest(&found);
        let input = input.map_or_else(|| "INPUT".into(), |input| input.display().to_string());
        Err(format!(
            "{}\n{target} failed with the input {input}\nto repeat it: {} {input}",
            run.end(),
            run.program.display()
        ))
    }

    /// Adds to the corpus what covers more than it does.
    fn merge(&self, target: &str) -> Result<(), String> {
        let mut run = self.run(target, 0)?;
        run.command
            // As few as reach all code; how often they pass it would make them ten times as many.
            .args(["-set_cover_merge=1", "-use_counters=0"])
            .arg(self.corpus(target))
            .arg(self.below("learned", target)?);
        match run.ends_well()? {
            true => Ok(()),
            false => Err(format!(
                "{}\nthe corpus of {target} is as it was",
                run.end()
            )),
        }
    }

    /// Runs the target with the fault from its corpus alone, the same way each time.
    fn find_planted(&self) -> Result<String, String> {
        let found = made(self.scratch.join("found"))?;
        let learned = made(self.scratch.join("learned"))?;
        let mut run = self.run(PLANTED, PLANTED_SECONDS)?;
        run.command
            .arg("-seed=1")
            .arg(prefix(&found))
            .arg(&learned)
            .arg(self.corpus(PLANTED));
        let began = Instant::now();
        let held = run.ends_well()?;
        let is_crash = |input: PathBuf| {
            let name = input.file_name();
            name.is_some_and(|name| name.to_string_lossy().starts_with("crash-"))
        };
        if held || !newest(&found).is_some_and(is_crash) {
            return Err(format!(
                "{}\nthe planted fault was not found within {PLANTED_SECONDS} s: the targets find \
                 nothing, whatever there is",
                run.end()
            ));
        }
        let seconds = began.elapsed().as_secs_f32();
        Ok(format!("the planted fault was found after {seconds:.1} s"))
    }
}

/// One run of a target.
struct Run {
    program: PathBuf,
    command: Command,
    log: PathBuf,
}

impl Run {
    fn ends_well(&mut self) -> Result<bool, String> {
        let log = fs::File::create(&self.log)
            .map_err(|error| format!("cannot write {}: {error}", self.log.display()))?;
        match self.command.stderr(log).status() {
            Ok(status) => Ok(status.success()),
            Err(error) => Err(format!("cannot run {}: {error}", self.program.display())),
        }
    }

    fn log(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What libFuzzer says when it is done: executions, coverage, inputs.
    fn summary(&self) -> String {
        let log = self.log();
        let done = log.lines().find(|line| line.contains("DONE"));
        done.unwrap_or_default().replace('\t', " ")
    }

    /// What was said last.
    fn end(&self) -> String {
        const LINES: usize = 60;
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }
}

fn made(path: PathBuf) -> Result<PathBuf, String> {
    match fs::create_dir_all(&path) {
        Ok(()) => Ok(path),
        Err(error) => Err(format!("cannot make {}: {error}", path.display())),
    }
}

fn prefix(folder: &Path) -> OsString {
    let mut argument = OsString::from("-artifact_prefix=");
    argument.push(folder.join(""));
    argument
}

/// The file in a directory that was written last.
fn newest(folder: &Path) -> Option<PathBuf> {
    let files = fs::read_dir(folder).ok()?.flatten();
    let written = |entry: &fs::DirEntry| entry.metadata().and_then(|m| m.modified()).ok();
    files.max_by_key(written).map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_word_all_targets_run_for_a_few_seconds() {
        let ask = Ask::parse(&[]).expect("fine");
        assert_eq!(
            (ask.target, ask.seconds, ask.planted),
            (None, SECONDS, false)
        );
    }

    #[test]
    fn a_target_and_its_time_are_taken_in_any_order() {
        let ask = Ask::parse(&["--seconds", "60", "batch"]).expect("fine");
        assert_eq!(
            ask,
            Ask::parse(&["batch", "--seconds", "60"]).expect("fine")
        );
        assert_eq!((ask.target.as_deref(), ask.seconds), (Some("batch"), 60));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for args in [
            &["--seconds"][..],
            &["--seconds", "x"],
            &["batch", "frame"],
            &["--fast"],
            &["batch", "--planted"],
        ] {
            assert!(Ask::parse(args).is_err(), "{args:?}");
        }
    }
}
