//! cgroup v2 directories of the tests: found, made, emptied and removed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::poll;

/// Name of the directory below which every cgroup of this crate lies.
pub(crate) const ROOT: &str = "ferromesh-test";

/// Where cgroup v2 is mounted: alone, or beside v1.
pub(crate) fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(1);
        if let (Some(at), Some("cgroup2")) = (fields.next(), fields.next()) {
            return Ok(PathBuf::from(at));
        }
    }
    bail!("no cgroup2 in /proc/self/mounts: mount it with `mount -t cgroup2 none /sys/fs/cgroup/unified`")
}

/// The directory below which every cgroup of this crate lies.
pub(crate) fn root() -> Result<PathBuf> {
    Ok(mount_point()?.join(ROOT))
}

/// Ends every process below the directory and removes it with all that is in it.
pub(crate) fn destroy(directory: &Path) -> Result<()> {
    if !directory.exists() {
        return Ok(());
    }
    kill(directory)?;
    poll::until(&format!("{} to be removed", directory.display()), Duration::from_secs(10), || {
        remove_tree(directory)
    })
}

/// Ends every process below the directory, by membership.
pub(crate) fn kill(directory: &Path) -> Result<()> {
    fs::write(directory.join("cgroup.kill"), "1")
        .with_context(|| format!("kill what is in {}", directory.display()))
}

fn remove_tree(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(directory).with_context(|| format!("remove {}", directory.display()))
}
