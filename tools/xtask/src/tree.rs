//! The repository as the rules see it: text files by path, and the manifests among them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Names that are no part of the repository.
const SKIPPED: [&str; 3] = [".git", "target", "ringtide-data"];
/// What is read.
const TEXT: [&str; 5] = [".rs", ".toml", ".md", ".fbs", ".sh"];

/// The files of a repository.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    /// Names at the top, without what is skipped.
    pub(crate) top: Vec<String>,
    /// Contents by path from the top.
    pub(crate) files: BTreeMap<String, String>,
}

/// A crate: where it is and what it depends on.
#[derive(Debug)]
pub(crate) struct Manifest {
    pub(crate) path: String,
    pub(crate) name: String,
    /// What it is built from.
    pub(crate) dependencies: Vec<String>,
    /// What only its tests, benches, examples and build script use.
    pub(crate) others: Vec<String>,
}

impl Tree {
    /// Reads the repository.
    pub(crate) fn read(root: &Path) -> Result<Self, String> {
        let mut tree = Self::default();
        tree.add(root, "")?;
        Ok(tree)
    }

    fn add(&mut self, dir: &Path, prefix: &str) -> Result<(), String> {
        let failed = |error: std::io::Error| format!("cannot read {}: {error}", dir.display());
        for entry in fs::read_dir(dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if SKIPPED.contains(&name.as_str()) {
                continue;
            }
            let path = format!("{prefix}{name}");
            if prefix.is_empty() {
                self.top.push(name.clone());
            }
            if entry.file_type().map_err(failed)?.is_dir() {
                self.add(&entry.path(), &format!("{path}/"))?;
            } else if TEXT.iter().any(|end| name.ends_with(end)) || path == ".ci/run" {
                let text = fs::read_to_string(entry.path())
                    .map_err(|error| format!("cannot read {path}: {error}"))?;
                self.files.insert(path, text);
            }
        }
        Ok(())
    }

    /// Rust files that people wrote.
    pub(crate) fn sources(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files
            .iter()
            .filter(|(path, _)| path.ends_with(".rs") && !path.contains("/generated/"))
            .map(|(path, text)| (path.as_str(), text.as_str()))
    }

    /// The crates.
    pub(crate) fn manifests(&self) -> Result<Vec<Manifest>, String> {
        let mut out = Vec::new();
        for (path, text) in &self.files {
            let Some(folder) = path.strip_suffix("/Cargo.toml") else {
                continue;
            };
            let table: toml::Table = text
                .parse()
                .map_err(|error| format!("{path}: not a TOML file: {error}"))?;
            let names = |section: &str| -> Vec<String> {
                let names = table.get(section).and_then(toml::Value::as_table);
                names
                    .map(|names| names.keys().cloned().collect())
                    .unwrap_or_default()
            };
            let name = table.get("package").and_then(|package| package.get("name"));
            let mut others = names("dev-dependencies");
            others.extend(names("build-dependencies"));
            out.push(Manifest {
                path: folder.into(),
                name: name
                    .and_then(toml::Value::as_str)
                    .unwrap_or_default()
                    .into(),
                dependencies: names("dependencies"),
                others,
            });
        }
        Ok(out)
    }
}
