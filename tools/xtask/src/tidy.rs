//! The rules of the layout, with their reasons. Each rule is a function from the repository to the
//! places that break it; a test plants a fault for each.

use std::collections::BTreeSet;
use std::path::Path;

use crate::tree::Tree;

/// A file longer than this, tests aside, holds a second idea.
const MOST_LINES: usize = 800;

/// What may stand at the top, besides dotfiles.
const TOP: [&str; 14] = [
    "Cargo.lock",
    "Cargo.toml",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "README.md",
    "benches",
    "docs",
    "engine",
    "net",
    "perf",
    "schema",
    "tests",
    "tools",
];

/// Which of our crates a crate may be built from. What is absent here is an invariant: the schema
/// knows bytes only, the logic (log, shard) knows no kernel, the client knows no engine.
const MAY_IMPORT: [(&str, &[&str]); 12] = [
    ("ringtide-schema", &[]),
    ("ringtide-io", &["ringtide-schema"]),
    ("ringtide-log", &["ringtide-schema", "ringtide-io"]),
    (
        "ringtide-shard",
        &[
            "ringtide-schema",
            "ringtide-io",
            "ringtide-log",
            "ringtide-session",
        ],
    ),
    ("ringtide-uring", &["ringtide-io", "ringtide-schema"]),
    ("ringtide-session", &["ringtide-schema"]),
    ("ringtide-client", &["ringtide-schema", "ringtide-session"]),
    (
        "ringtide-perf",
        &["ringtide-schema", "ringtide-session", "ringtide-client"],
    ),
    ("ringtide-peers", &["ringtide-perf"]),
    (
        "ringtide-system-tests",
        &[
            "ringtide-schema",
            "ringtide-session",
            "ringtide-client",
            "ringtide-perf",
        ],
    ),
    (
        "ringtide-fuzz",
        &[
            "ringtide-schema",
            "ringtide-io",
            "ringtide-log",
            "ringtide-session",
            "ringtide-shard",
            "ringtide-client",
        ],
    ),
    ("xtask", &[]),
];
/// These may import any.
const MAY_IMPORT_ALL: [&str; 3] = ["ringtide", "ringtide-benches", "ringtide-sim"];

/// The only folders that may say `unsafe`: memory handed to the kernel.
const MAY_BE_UNSAFE: [&str; 2] = ["engine/io/", "engine/uring/"];

/// Words of unfinished work, written apart so that this file may name them.
const UNFINISHED: [&str; 4] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("to", "do!("),
    concat!("unimple", "mented!("),
];

/// What the logic must not do itself: it is told of time and files, and asks for effects.
const NOT_IN_LOGIC: [&str; 5] = [
    "Instant::now",
    "SystemTime::now",
    "thread::spawn",
    "std::fs",
    "std::net::Tcp",
];
/// The logic: a shard, and the log except for what runs before the shards.
const LOGIC: [&str; 2] = ["engine/shard/src/", "engine/log/src/"];
const BEFORE_THE_SHARDS: [&str; 2] = ["engine/log/src/recovery/", "engine/log/src/files.rs"];

/// Checks all rules.
pub(crate) fn run(root: &Path) -> Result<String, String> {
    let broken = check(&Tree::read(root)?)?;
    if broken.is_empty() {
        return Ok("the repository is tidy".into());
    }
    Err(format!(
        "{}\n{} to put right",
        broken.join("\n"),
        broken.len()
    ))
}

/// Every place that breaks a rule.
fn check(tree: &Tree) -> Result<Vec<String>, String> {
    let mut broken = top_level(tree);
    broken.extend(imports(tree)?);
    broken.extend(dependencies(tree)?);
    broken.extend(unsafe_outside(tree));
    broken.extend(long_files(tree));
    broken.extend(opening_comment(tree));
    broken.extend(unfinished(tree));
    broken.extend(logic_without_io(tree));
    Ok(broken)
}

fn top_level(tree: &Tree) -> Vec<String> {
    let stray = |name: &&String| !name.starts_with('.') && !TOP.contains(&name.as_str());
    let stray = tree.top.iter().filter(stray);
    stray
        .map(|name| format!("{name}: does not belong at the top level"))
        .collect()
}

fn imports(tree: &Tree) -> Result<Vec<String>, String> {
    let mut broken = Vec::new();
    let manifests = tree.manifests()?;
    let ours: BTreeSet<&str> = manifests.iter().map(|m| m.name.as_str()).collect();
    for manifest in &manifests {
        let (path, name) = (&manifest.path, manifest.name.as_str());
        let may = MAY_IMPORT
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, may)| *may);
        for import in manifest
            .dependencies
            .iter()
            .filter(|import| ours.contains(import.as_str()))
        {
            let fine = MAY_IMPORT_ALL.contains(&name)
                || may.is_some_and(|may| may.contains(&import.as_str()));
            if !fine {
                broken.push(format!(
                    "{path}/Cargo.toml: {name} must not import {import}; docs/ARCHITECTURE.md says \
                     what each crate must not know"
                ));
            }
        }
    }
    Ok(broken)
}

/// Each dependency has a row in docs/DEPENDENCIES.md, and each row a dependency.
fn dependencies(tree: &Tree) -> Result<Vec<String>, String> {
    const MANUAL: &str = "docs/DEPENDENCIES.md";
    let manual = tree
        .files
        .get(MANUAL)
        .map(String::as_str)
        .unwrap_or_default();
    let rows: BTreeSet<&str> = manual
        .lines()
        .filter_map(|line| {
            line.strip_prefix("| `")?
                .split_once('`')
                .map(|(name, _)| name)
        })
        .collect();
    let manifests = tree.manifests()?;
    let ours: BTreeSet<&str> = manifests.iter().map(|m| m.name.as_str()).collect();
    let used = manifests
        .iter()
        .flat_map(|m| m.dependencies.iter().chain(&m.others));
    let used: BTreeSet<&str> = used
        .map(String::as_str)
        .filter(|name| !ours.contains(name))
        .collect();
    let missing = used
        .difference(&rows)
        .map(|name| format!("{MANUAL}: lacks a row for {name}"));
    let stale = rows
        .difference(&used)
        .map(|name| format!("{MANUAL}: {name} is no dependency"));
    Ok(missing.chain(stale).collect())
}

fn unsafe_outside(tree: &Tree) -> Vec<String> {
    let lint = concat!("unsafe", "_code");
    let outside = |path: &str| !MAY_BE_UNSAFE.iter().any(|folder| path.starts_with(folder));
    tree.sources()
        // Generated code stands in a module of its own that must lift the lint.
        .filter(|(path, _)| outside(path) && *path != "schema/src/lib.rs")
        .filter(|(_, text)| text.contains(lint))
        .map(|(path, _)| format!("{path}: only {} may be unsafe", MAY_BE_UNSAFE.join(" and ")))
        .collect()
}

fn long_files(tree: &Tree) -> Vec<String> {
    let is_test = |path: &str| path.starts_with("tests/") || path.contains("/tests/");
    tree.sources()
        .filter(|(path, _)| !is_test(path))
        .map(|(path, text)| {
            let lines = text
                .lines()
                .take_while(|line| !line.starts_with("#[cfg(test)]"))
                .count();
            (path, lines)
        })
        .filter(|(_, lines)| *lines > MOST_LINES)
        .map(|(path, lines)| format!("{path}: {lines} lines; look for the second idea in it"))
        .collect()
}

/// A reader learns from the first line what lives in a file.
fn opening_comment(tree: &Tree) -> Vec<String> {
    tree.sources()
        .filter(|(_, text)| !text.starts_with("//! "))
        .map(|(path, _)| format!("{path}: does not open with a //! paragraph"))
        .collect()
}

fn unfinished(tree: &Tree) -> Vec<String> {
    let mut broken = Vec::new();
    for (path, text) in tree
        .files
        .iter()
        .filter(|(path, _)| !path.contains("/generated/"))
    {
        for (line, words) in text.lines().zip(1..).map(|(words, line)| (line, words)) {
            if let Some(word) = UNFINISHED.iter().find(|word| words.contains(*word)) {
                broken.push(format!("{path}:{line}: {word} is unfinished work"));
            }
        }
    }
    broken
}

fn logic_without_io(tree: &Tree) -> Vec<String> {
    let is_logic = |path: &str| {
        LOGIC.iter().any(|folder| path.starts_with(folder))
            && !BEFORE_THE_SHARDS.iter().any(|part| path.starts_with(part))
    };
    let mut broken = Vec::new();
    for (path, text) in tree.sources().filter(|(path, _)| is_logic(path)) {
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for call in NOT_IN_LOGIC.iter().filter(|call| code.contains(**call)) {
            broken.push(format!("{path}: the logic must not use {call}"));
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree that keeps all rules.
    fn good() -> Tree {
        let mut tree = Tree {
            top: vec!["Cargo.toml".into(), ".ci".into()],
            ..Tree::default()
        };
        for (path, text) in [
            ("Cargo.toml", "[workspace]\n"),
            ("docs/DEPENDENCIES.md", "| `bytes` | for bytes |\n"),
            (
                "schema/Cargo.toml",
                "[package]\nname = \"ringtide-schema\"\n[dependencies]\nbytes = \"1\"\n",
            ),
            (
                "engine/log/Cargo.toml",
                "[package]\nname = \"ringtide-log\"\n[dependencies]\nringtide-schema = \"1\"\n",
            ),
            ("engine/log/src/wal.rs", "//! The log.\nfn append() {}\n"),
            (
                "engine/log/src/recovery/mod.rs",
                "//! Recovery.\nuse std::fs;\n",
            ),
        ] {
            tree.files.insert(path.into(), text.into());
        }
        tree
    }

    fn with(path: &str, text: &str) -> Vec<String> {
        let mut tree = good();
        tree.files.insert(path.into(), text.into());
        check(&tree).expect("readable")
    }

    #[test]
    fn the_repository_keeps_its_own_rules() {
        if let Err(broken) = run(&crate::root()) {
            panic!("{broken}");
        }
    }

    #[test]
    fn a_tidy_tree_passes() {
        assert_eq!(check(&good()).expect("readable"), Vec::<String>::new());
    }

    #[test]
    fn every_rule_finds_its_planted_fault() {
        let mut stray = good();
        stray.top.push("scripts".into());
        assert_eq!(check(&stray).expect("readable").len(), 1);

        let long = format!("//! Long.\n{}", "fn f() {}\n".repeat(MOST_LINES));
        let doubled = format!(
            "//! Fine.\n#[cfg(test)]\n{}",
            "fn f() {}\n".repeat(MOST_LINES)
        );
        let upward = "[package]\nname = \"ringtide-log\"\n[dependencies]\nringtide-shard = \"1\"\n";
        let shard = "[package]\nname = \"ringtide-shard\"\n";
        let unlisted = "[package]\nname = \"ringtide-schema\"\n[dependencies]\nbytes = \"1\"\n\
                        [dev-dependencies]\nrand = \"1\"\n";
        let word = format!("//! A file.\n// {} later\n", UNFINISHED[0]);
        let lint = format!(
            "//! A file.\n#![expect({}_code, reason = \"\")]\n",
            "unsafe"
        );
        for (path, text, faults) in [
            ("engine/log/src/long.rs", long.as_str(), 1),
            ("engine/log/src/fine.rs", doubled.as_str(), 0),
            ("schema/Cargo.toml", unlisted, 1),
            ("docs/DEPENDENCIES.md", "| `bytes` | |\n| `gone` | |\n", 1),
            ("net/client/src/word.rs", &word, 1),
            ("net/client/src/lint.rs", &lint, 1),
            ("engine/uring/src/lint.rs", &lint, 0),
            ("net/client/src/mute.rs", "fn f() {}\n", 1),
            ("engine/log/src/clock.rs", "//! A file.\nuse std::fs;\n", 1),
            (
                "engine/log/src/test.rs",
                "//! A file.\n#[cfg(test)]\nuse std::fs;\n",
                0,
            ),
        ] {
            let found = with(path, text);
            assert_eq!(found.len(), faults, "{path}: {found:?}");
        }
        let mut upside = good();
        upside
            .files
            .insert("engine/log/Cargo.toml".into(), upward.into());
        upside
            .files
            .insert("engine/shard/Cargo.toml".into(), shard.into());
        let found = check(&upside).expect("readable");
        assert!(
            found.len() == 1 && found[0].contains("must not import ringtide-shard"),
            "{found:?}"
        );
    }
}
