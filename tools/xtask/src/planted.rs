//! Planting the faults of `tests/sim/planted.toml` in a copy of the sources, and letting the simulation find them.
//!
//! The copy has all of them, each behind its name in the environment, so that it is built once.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The list.
const LIST: &str = "tests/sim/planted.toml";
/// What stands for "this fault is asked for" in the list, and what that is in the copy.
const MARK: &str = "PLANTED";
const VARIABLE: &str = "RINGTIDE_PLANTED";
/// What the copy can do without.
const LEFT_OUT: [&str; 2] = ["docs/", "tests/fuzz/corpus/"];

/// One fault.
#[derive(Debug)]
struct Fault {
    name: String,
    file: String,
    old: String,
    new: String,
    seeds: u64,
}

/// Finds every fault, or the one of this name; an error if one is not found.
pub(crate) fn run(root: &Path, name: Option<&str>) -> Result<String, String> {
    let faults = read(root)?;
    let asked: Vec<&Fault> = faults
        .iter()
        .filter(|fault| name.is_none_or(|name| name == fault.name))
        .collect();
    if asked.is_empty() {
        return Err(format!(
            "{LIST} has no fault {:?}",
            name.unwrap_or_default()
        ));
    }
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let home = target.join("planted");
    let copy = home.join("source");
    make_copy(root, &copy, &faults)?;
    let binary = build(&copy, &home.join("target"))?;
    let missed: Vec<&str> = asked
        .into_iter()
        .filter(|fault| !is_found(&binary, fault))
        .map(|fault| fault.name.as_str())
        .collect();
    match missed[..] {
        [] => Ok("every planted fault was found".into()),
        _ => Err(format!("not found: {}", missed.join(", "))),
    }
}

fn read(root: &Path) -> Result<Vec<Fault>, String> {
    let text = fs::read_to_string(root.join(LIST)).map_err(|e| format!("{LIST}: {e}"))?;
    let table: toml::Table = text.parse().map_err(|e| format!("{LIST}: {e}"))?;
    let faults = table.get("fault").and_then(toml::Value::as_array);
    let faults = faults.ok_or_else(|| format!("{LIST} has no [[fault]]"))?;
    faults
        .iter()
        .map(|fault| {
            let text = |key: &str| {
                let value = fault.get(key).and_then(toml::Value::as_str);
                value
                    .map(str::to_owned)
                    .ok_or_else(|| format!("{LIST}: a fault without {key}"))
            };
            Ok(Fault {
                name: text("name")?,
                file: text("file")?,
                old: text("old")?,
                new: text("new")?,
                seeds: fault
                    .get("seeds")
                    .and_then(toml::Value::as_integer)
                    .and_then(|seeds| u64::try_from(seeds).ok())
                    .ok_or_else(|| format!("{LIST}: a fault without seeds"))?,
            })
        })
        .collect()
}

/// The source of a file with the faults that are in it.
fn plant(path: &str, mut source: String, faults: &[Fault]) -> Result<String, String> {
    for fault in faults.iter().filter(|fault| fault.file == path) {
        let old = fault.old.trim_start_matches('\n');
        let count = source.matches(old).count();
        if count != 1 {
            let name = &fault.name;
            return Err(format!(
                "{name}: what it replaces stands {count} times in {path}"
            ));
        }
        let asked = format!(
            "std::env::var_os(\"{VARIABLE}\").is_some_and(|name| name == \"{}\")",
            fault.name
        );
        let new = fault.new.trim_start_matches('\n').replace(MARK, &asked);
        source = source.replacen(old, &new, 1);
    }
    Ok(source)
}

/// Copies what the repository has; a file that is there already is left alone, so that it is not built again.
fn make_copy(root: &Path, copy: &Path, faults: &[Fault]) -> Result<(), String> {
    let listed = Command::new("git")
        .args(["ls-files", "-co", "--exclude-standard"])
        .current_dir(root)
        .output()
        .map_err(|e| format!("git: {e}"))?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    remove_unlisted(copy, copy, &listed.lines().collect())?;
    for path in listed
        .lines()
        .filter(|path| !LEFT_OUT.iter().any(|out| path.starts_with(out)))
    {
        let failed = |e: std::io::Error| format!("{path}: {e}");
        let mut contents = match fs::read(root.join(path)) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            contents => contents.map_err(failed)?,
        };
        if faults.iter().any(|fault| fault.file == path) {
            let source = String::from_utf8(contents).map_err(|e| format!("{path}: {e}"))?;
            contents = plant(path, source, faults)?.into_bytes();
        }
        let to = copy.join(path);
        if fs::read(&to).is_ok_and(|there| there == contents) {
            continue;
        }
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        fs::write(&to, contents).map_err(failed)?;
    }
    match faults
        .iter()
        .find(|fault| !copy.join(&fault.file).is_file())
    {
        Some(fault) => Err(format!("{}: there is no {}", fault.name, fault.file)),
        None => Ok(()),
    }
}

/// Removes what an earlier copy had and is no source any more.
fn remove_unlisted(copy: &Path, folder: &Path, listed: &HashSet<&str>) -> Result<(), String> {
    let failed = |e: std::io::Error| format!("{}: {e}", folder.display());
    if !folder.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.strip_prefix(copy).ok().and_then(Path::to_str);
        if path.is_dir() {
            remove_unlisted(copy, &path, listed)?;
        } else if name.is_none_or(|name| !listed.contains(name)) {
            fs::remove_file(&path).map_err(failed)?;
        }
    }
    Ok(())
}

fn build(copy: &Path, target: &Path) -> Result<PathBuf, String> {
    let built = Command::new("cargo")
        .args(["build", "--locked", "--release", "-p", "ringtide-sim"])
        .arg("--target-dir")
        .arg(target)
        .current_dir(copy)
        .status()
        .map_err(|e| format!("cargo: {e}"))?;
    match built.success() {
        true => Ok(target.join("release/ringtide-sim")),
        false => Err("the sources with planted faults do not build".into()),
    }
}

/// Plays seeds until one finds the fault; an assertion that fails counts.
fn is_found(binary: &Path, fault: &Fault) -> bool {
    let played = Command::new(binary)
        .args(["--until-found", "--seeds", &fault.seeds.to_string()])
        .env(VARIABLE, &fault.name)
        .env("RUST_BACKTRACE", "0")
        .output();
    let said = played.map(|played| String::from_utf8_lossy(&played.stdout).into_owned());
    let said = said.unwrap_or_else(|e| e.to_string());
    let how = said.lines().find(|line| line.starts_with("seed "));
    match how {
        Some(how) => println!("{:36} {how}", fault.name),
        None => println!("{:36} not found in {} seeds", fault.name, fault.seeds),
    }
    how.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(old: &str) -> Fault {
        Fault {
            name: "f".into(),
            file: "a.rs".into(),
            old: old.into(),
            new: "PLANTED || x".into(),
            seeds: 1,
        }
    }

    #[test]
    fn a_fault_replaces_what_stands_there_once() {
        let planted = plant("a.rs", "if x {}".into(), &[fault("x")]).expect("it stands there");
        assert!(planted.contains("RINGTIDE_PLANTED") && planted.ends_with("|| x {}"));
        for source in ["", "if x { x }"] {
            assert!(plant("a.rs", source.into(), &[fault("x")]).is_err());
        }
    }

    #[test]
    fn every_fault_of_the_list_can_be_planted() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let faults = read(&root).expect("a list");
        for fault in &faults {
            let source = fs::read_to_string(root.join(&fault.file)).expect("a source");
            let planted = plant(&fault.file, source, &faults);
            assert!(planted.is_ok(), "{planted:?}");
        }
    }
}
