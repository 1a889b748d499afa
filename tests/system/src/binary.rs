//! Finding the binary under test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The binary: what `RINGTIDE_BIN` names, or the release build of this workspace, which is brought
/// up to date once per test process.
///
/// # Panics
/// When it cannot be built.
pub fn binary() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| match std::env::var_os("RINGTIDE_BIN") {
        Some(path) => {
            let path = PathBuf::from(path);
            assert!(
                path.is_file(),
                "RINGTIDE_BIN names no file: {}",
                path.display()
            );
            path
        }
        None => build(),
    })
}

/// The root of the workspace.
pub(crate) fn workspace() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    root.canonicalize()
        .expect("the workspace is where it was built")
}

/// Where cargo builds.
pub(crate) fn target() -> PathBuf {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    workspace().join(target)
}

fn build() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args([
            "build",
            "--release",
            "--package",
            "ringtide",
            "--bin",
            "ringtide",
        ])
        .current_dir(workspace())
        .output()
        .expect("cargo runs");
    assert!(
        built.status.success(),
        "the binary does not build:\n{}",
        String::from_utf8_lossy(&built.stderr)
    );
    target().join("release/ringtide")
}
