//! Network namespaces by name, as `ip netns` makes them, and code that runs inside of one.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Every namespace of this crate begins with this, so that leftovers are known.
pub const PREFIX: &str = "fm-";

/// The file that holds the namespace `name`.
pub fn path(name: &str) -> PathBuf {
    PathBuf::from("/run/netns").join(name)
}

/// Makes the namespace, with its loopback up and addresses usable at once.
pub fn add(name: &str) -> Result<()> {
    ip(&["netns", "add", name])?;
    batch(name, &["link set lo up".to_owned()])?;
    sysctl(name, &[("net/ipv6/conf/all/accept_dad", "0"), ("net/ipv6/conf/default/accept_dad", "0")])
}

/// Removes the namespace.
pub fn delete(name: &str) -> Result<()> {
    ip(&["netns", "delete", name])
}

/// Names of all namespaces of this crate.
pub fn leftovers() -> Result<Vec<String>> {
    let Ok(entries) = std::fs::read_dir("/run/netns") else { return Ok(Vec::new()) };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with(PREFIX) {
            names.push(name);
        }
    }
    Ok(names)
}

/// Runs `ip` with these arguments.
pub fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).stdin(Stdio::null()).output().context("run ip")?;
    if !output.status.success() {
        bail!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Runs these `ip` commands inside the namespace, in one process.
pub fn batch(name: &str, lines: &[String]) -> Result<()> {
    let mut child = Command::new("ip")
        .args(["-n", name, "-batch", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .context("run ip")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(lines.join("\n").as_bytes()).context("write to ip")?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("ip in {name}: {} ({lines:?})", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Sets kernel parameters (paths below `/proc/sys`) of the namespace.
pub fn sysctl(name: &str, values: &[(&str, &str)]) -> Result<()> {
    inside(name, || {
        for (key, value) in values {
            std::fs::write(format!("/proc/sys/{key}"), value)
                .with_context(|| format!("set {key}={value}"))?;
        }
        Ok(())
    })?
}

/// Moves the calling thread into the namespace.
pub fn enter(name: &str) -> Result<()> {
    let file = File::open(path(name)).with_context(|| format!("open the namespace {name}"))?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("enter the namespace {name}"))
}

/// Runs `body` on a thread of its own inside the namespace; sockets that it makes stay there.
pub fn inside<T: Send>(name: &str, body: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                enter(name)?;
                Ok(body())
            })
            .join()
            .map_err(|_| anyhow!("the thread inside {name} panicked"))?
    })
}
