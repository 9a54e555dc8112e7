//! cargo-deny, and where things are: installed once, outside of the workspace, and used by path.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::packages::present;
use crate::steps::run;

const CARGO_DENY: &str = "cargo-deny";

/// Where something is kept between runs.
pub(crate) fn folder(of: &str) -> Result<PathBuf> {
    let home = std::env::var_os("HOME").context("HOME is not set")?;
    Ok(PathBuf::from(home).join(".cache/ferromesh").join(of))
}

/// The program cargo-deny; built when it is missing.
pub(crate) fn cargo_deny() -> Result<PathBuf> {
    if present(CARGO_DENY) {
        return Ok(PathBuf::from(CARGO_DENY));
    }
    let folder = folder("tools")?;
    let program = folder.join("bin").join(CARGO_DENY);
    if !program.is_file() {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        run(Command::new(cargo).args(["install", "--quiet", "--locked", CARGO_DENY, "--root"]).arg(&folder))?;
    }
    Ok(program)
}

/// True when a database of advisories is on this machine (it cannot be fetched everywhere).
pub(crate) fn has_advisories() -> bool {
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo_home = cargo_home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let Some(entries) = cargo_home.and_then(|home| std::fs::read_dir(home.join("advisory-dbs")).ok()) else {
        return false;
    };
    entries.flatten().any(|entry| entry.path().join("crates").is_dir())
}

/// Where cargo puts what it builds.
pub(crate) fn target_directory(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from)
}
