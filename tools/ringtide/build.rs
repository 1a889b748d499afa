//! Names the commit that the binary is built from, as `RINGTIDE_COMMIT`: its first 12 digits, followed by
//! `-dirty` if what is built differs from it; `unknown` without git. It never fails a build, and runs
//! again only when the commit or what is built may have changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Crates of the binary, and folders of such crates.
const CRATES: [&str; 3] = ["schema", "perf", "tools/ringtide"];
const FOLDERS: [&str; 2] = ["engine", "net"];
/// What git writes when another commit is the current one.
const MOVES: [&str; 3] = ["HEAD", "logs/HEAD", "packed-refs"];

fn main() {
    watch(Path::new("build.rs"));
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let sources = sources(&root);
    let commit = commit(&root, &sources);
    let name = commit.as_deref().unwrap_or("unknown");
    println!("cargo:rustc-env=RINGTIDE_COMMIT={name}");
    if commit.is_some() {
        sources.iter().for_each(|source| watch(&root.join(source)));
        heads(&root).iter().for_each(|head| watch(head));
    }
}

/// A path that is not there would count as changed in every build.
fn watch(path: &Path) {
    if path.exists() {
        println!("cargo:rerun-if-changed={}", path.display());
    }
}

/// What the binary is built from, relative to the root. Tests are no part of it.
fn sources(root: &Path) -> Vec<PathBuf> {
    let entries = FOLDERS
        .iter()
        .filter_map(|folder| fs::read_dir(root.join(folder)).ok());
    let inside = entries.flatten().flatten().map(|entry| entry.path());
    let inside = inside.filter_map(|path| Some(path.strip_prefix(root).ok()?.to_owned()));
    let mut sources = vec!["Cargo.toml".into(), "Cargo.lock".into()];
    for folder in CRATES.iter().map(PathBuf::from).chain(inside) {
        sources.push(folder.join("Cargo.toml"));
        sources.push(folder.join("src"));
    }
    sources.push("tools/ringtide/build.rs".into());
    sources
}

/// The commit, if this is a working tree of its own: sources that were unpacked inside of another
/// project's have no commit there.
fn commit(root: &Path, sources: &[PathBuf]) -> Option<String> {
    let top = git(root, &["rev-parse", "--show-toplevel"])?;
    if fs::canonicalize(top).ok()? != fs::canonicalize(root).ok()? {
        return None;
    }
    let mut commit = git(root, &["rev-parse", "--short=12", "HEAD"])?;
    let mut status = vec!["--no-optional-locks", "status", "--porcelain"];
    status.extend(["--untracked-files=no", "--"]);
    status.extend(sources.iter().filter_map(|source| source.to_str()));
    if !git(root, &status)?.is_empty() {
        commit.push_str("-dirty");
    }
    Some(commit)
}

/// Files that change when another commit is the current one.
fn heads(root: &Path) -> Vec<PathBuf> {
    let branch = git(root, &["symbolic-ref", "--quiet", "HEAD"]);
    let files = MOVES.iter().copied().chain(branch.as_deref());
    files
        .filter_map(|file| git(root, &["rev-parse", "--git-path", file]))
        .map(|path| root.join(path))
        .collect()
}

/// What git says, unless there is none or it fails.
fn git(root: &Path, args: &[&str]) -> Option<String> {
    let output = Command::new("git").arg("-C").arg(root).args(args).output();
    let output = output.ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
