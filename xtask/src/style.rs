//! Rules of style that no compiler knows: every file says what it is, and none is too long to be read.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Folders of the workspace with Rust in them.
const FOLDERS: &[&str] = &[
    "mesh-common",
    "mesh-ebpf",
    "mesh-core",
    "mesh-api",
    "mesh-agent",
    "mesh-controller",
    "mesh-cli",
    "xtask",
    "tests",
    "fuzz",
];
const LINES: usize = 400;
const TEST_LINES: usize = 600;

/// Checks every Rust file.
pub(crate) fn check(root: &Path) -> Result<()> {
    let mut faults = Vec::new();
    for folder in FOLDERS {
        let mut files = Vec::new();
        rust_files(&root.join(folder), &mut files)?;
        for file in files {
            let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
            let shown = file.strip_prefix(root).unwrap_or(&file).display().to_string();
            faults.extend(fault(&shown, &text));
        }
    }
    if faults.is_empty() {
        return Ok(());
    }
    bail!("{}", faults.join("\n"))
}

fn fault(file: &str, text: &str) -> Option<String> {
    if !text.starts_with("//!") && !text.starts_with("#!") {
        return Some(format!("{file}: does not open with //! (what it is, what comes in, what goes out)"));
    }
    let is_test = file.contains("/tests/")
        || file.ends_with("tests.rs")
        || file.starts_with("tests/mesh/")
        || file.starts_with("tests/kube/");
    let own = text.split_once("#[cfg(test)]\nmod tests {").map_or(text, |(own, _)| own);
    let (lines, limit) =
        if is_test { (text.lines().count(), TEST_LINES) } else { (own.lines().count(), LINES) };
    (lines > limit).then(|| format!("{file}: {lines} lines, at most {limit}"))
}

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            if !path.ends_with("target") {
                rust_files(&path, files)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::fault;

    #[test]
    fn a_file_without_its_opening_or_too_long_is_named() {
        assert_eq!(fault("a/src/x.rs", "//! Good.\n"), None);
        assert!(fault("a/src/x.rs", "fn main() {}\n").is_some_and(|text| text.contains("a/src/x.rs")));
        let long = format!("//! Long.\n{}", "// x\n".repeat(400));
        assert!(fault("a/src/x.rs", &long).is_some_and(|text| text.contains("401 lines")));
        assert_eq!(fault("a/tests/x.rs", &long), None);
    }
}
