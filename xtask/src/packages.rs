//! Debian packages that the scenarios, the demo and the bench run: found by the program that each brings, installed
//! only when that is missing.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::steps::run;

/// A program (a name on the path, or an absolute path that may hold one `*`) and the package that brings it.
pub(crate) type Needed = (&'static str, &'static str);

/// What the demo runs.
pub(crate) const DEMO: &[Needed] = &[
    ("ip", "iproute2"),
    ("tcpdump", "tcpdump"),
    ("curl", "curl"),
    ("setpriv", "util-linux"),
    ("nginx", "nginx"),
    ("redis-server", "redis-server"),
    ("redis-cli", "redis-tools"),
    ("psql", "postgresql-client"),
    ("/usr/lib/postgresql/*/bin/initdb", "postgresql"),
    ("cmake", "cmake"),
    ("cc", "gcc"),
];

/// What the bench runs.
pub(crate) const BENCH: &[Needed] = &[
    ("ip", "iproute2"),
    ("nginx", "nginx"),
    ("haproxy", "haproxy"),
    ("wrk", "wrk"),
    ("bpftool", "bpftool"),
    ("cmake", "cmake"),
    ("cc", "gcc"),
];

/// What the scenarios run besides.
pub(crate) const TEST: &[Needed] = &[
    ("haproxy", "haproxy"),
    ("python3", "python3"),
    ("java", "default-jdk-headless"),
    ("musl-gcc", "musl-tools"),
    ("wrk", "wrk"),
    ("bpftool", "bpftool"),
    // kube-proxy and NetworkPolicies.
    ("nft", "nftables"),
];

/// Installs the packages whose programs are missing.
pub(crate) fn install(wanted: &[Needed]) -> Result<()> {
    let missing: Vec<&str> =
        wanted.iter().filter(|(program, _)| !present(program)).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        eprintln!("    nothing is missing");
        return Ok(());
    }
    eprintln!("    missing: {}", missing.join(" "));
    if !present("apt-get") {
        bail!("install by hand, there is no apt-get: {}", missing.join(" "));
    }
    run(Command::new("apt-get").args(["-q", "update"]))?;
    // RUNLEVEL keeps the packages from starting their services.
    run(Command::new("apt-get")
        .args(["-q", "-y", "--no-install-recommends", "install"])
        .args(&missing)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("RUNLEVEL", "1"))?;
    match wanted.iter().find(|(program, _)| !present(program)) {
        Some((program, package)) => bail!("{package} is installed, but {program} is not there"),
        None => Ok(()),
    }
}

/// True when the program is there.
pub(crate) fn present(program: &str) -> bool {
    if let Some((folder, rest)) = program.split_once('*') {
        let Ok(entries) = std::fs::read_dir(folder) else { return false };
        return entries.flatten().any(|entry| entry.path().join(rest.trim_start_matches('/')).is_file());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([Path::new("/usr/sbin").to_path_buf(), "/sbin".into()]);
    folders.map(|folder| folder.join(program)).any(|file| file.is_file())
}
