//! The FlatBuffers code: made by the compiler of the same version as the crate, and checked in.

use std::fs;
use std::path::Path;
use std::process::Command;

const SCHEMAS: [&str; 2] = ["schema/fbs/wire.fbs", "schema/fbs/store.fbs"];
const GENERATED: [&str; 2] = ["wire_generated.rs", "store_generated.rs"];
const INTO: &str = "schema/src/generated";

/// What flatc says of every table as a struct, and what is taken out: we build these by their fields,
/// and the code is ours alone, so that a new field is meant to be noticed.
const TAKEN_OUT: &str = "#[non_exhaustive]\n";

/// Writes the generated code.
pub(crate) fn write(root: &Path) -> Result<String, String> {
    flatc(root, &root.join(INTO))?;
    Ok(format!("generated {INTO} from {}", SCHEMAS.join(" and ")))
}

/// Compares what is checked in with what would be generated.
pub(crate) fn check(root: &Path) -> Result<String, String> {
    let fresh = root.join("target/generated");
    fs::create_dir_all(&fresh).map_err(|e| format!("cannot make {}: {e}", fresh.display()))?;
    flatc(root, &fresh)?;
    for name in GENERATED {
        let read = |dir: &Path| {
            let path = dir.join(name);
            fs::read(&path).map_err(|e| format!("cannot read {}: {e}", path.display()))
        };
        if read(&fresh)? != read(&root.join(INTO))? {
            return Err(format!(
                "{INTO}/{name} is not what its schema gives; run `cargo xtask generate`"
            ));
        }
    }
    Ok(format!("{INTO} is what the schemas give"))
}

fn flatc(root: &Path, into: &Path) -> Result<(), String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .current_dir(root)
        .args([
            "run",
            "--quiet",
            "--locked",
            "--manifest-path",
            "tools/flatc/Cargo.toml",
        ])
        .arg("--target-dir")
        .arg(root.join("target/flatc"))
        .args(["--", "--rust", "--gen-object-api", "-o"])
        .arg(into)
        .args(SCHEMAS)
        .status()
        .map_err(|error| format!("cannot run cargo: {error}"))?;
    if !status.success() {
        return Err(
            "flatc failed; it is built with cmake and a C++ compiler, are both installed?".into(),
        );
    }
    GENERATED
        .iter()
        .try_for_each(|name| finish(root, &into.join(name)))
}

/// Makes the compiler's output what is checked in: as above, and formatted like everything else.
fn finish(root: &Path, path: &Path) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("cannot finish {}: {error}", path.display());
    let text = fs::read_to_string(path).map_err(failed)?;
    fs::write(path, text.replace(TAKEN_OUT, "")).map_err(failed)?;
    let status = Command::new("rustfmt")
        .args(["--edition", "2024", "--config-path"])
        .arg(root)
        .arg(path)
        .status()
        .map_err(failed)?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("rustfmt failed on {}", path.display()))
    }
}
