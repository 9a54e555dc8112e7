//! `cargo xtask test`: everything that has to hold, ordered so that what fails often fails early.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::steps::{self, Steps, cargo};
use crate::{ebpf, generate, go, need_root, packages, style, tools};

/// The crates without a kernel or a network, then the rest; the scenarios come last.
const PURE: &[&str] = &["-p", "mesh-common", "-p", "mesh-core", "-p", "mesh-api", "-p", "xtask"];
const PROGRAMS: &[&str] = &["-p", "mesh-agent", "-p", "mesh-controller", "-p", "mesh-cli"];

/// Runs everything; `only` keeps the scenarios whose name contains it, and skips what comes before them.
pub(crate) fn run_all(root: &Path, steps: &mut Steps, only: Option<&str>) -> Result<()> {
    if only.is_none() {
        steps.run("style: every file opens with what it is, none is too long", || style::check(root))?;
        steps.run("format", || cargo(root, &["fmt", "--all", "--check"], &[]))?;
        steps.run("format of the kernel programs", || format_of(root, "mesh-ebpf"))?;
        steps.run("format of the fuzz targets", || format_of(root, "fuzz"))?;
    }
    steps.run("programs from Debian", || packages::install(&[packages::DEMO, packages::TEST].concat()))?;
    steps.run("build the kernel programs", || ebpf::build(root))?;
    if only.is_none() {
        steps.run("licences, bans and sources", || deny(root))?;
        steps.run("clippy", || {
            let clippy =
                ["clippy", "--release", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
            cargo(root, &clippy, &[])
        })?;
        steps.run("documentation", || {
            let doc = ["doc", "--release", "--workspace", "--no-deps", "--locked"];
            cargo(root, &doc, &[("RUSTDOCFLAGS", "-D warnings")])
        })?;
        steps.run("tests of the crates without I/O", || test(root, PURE, &[]))?;
        steps.run("tests of the programs", || test(root, PROGRAMS, &[]))?;
        steps.run("generated files", || generate::run(root, true))?;
    }
    // Before this one's, which takes its place again.
    steps.run("build another agent, which upgrades are tried with", || ebpf::build_other(root))?;
    steps.run("build what the scenarios run", || {
        cargo(root, &["build", "--release", "--workspace", "--bins", "--locked"], &[])
    })?;
    let mut arguments = vec!["--test-threads=1"];
    arguments.extend(only);
    steps.run("scenarios with real programs on this kernel", || {
        test(root, &["-p", "mesh-tests", "--lib", "--bins", "--test", "mesh"], &arguments)
    })?;
    steps.run("build a control plane and helm", || {
        go::KUBE.build(root)?;
        go::HELM.build(root).map(drop)
    })?;
    steps.run("kube: scenarios on a real API server", || {
        test(root, &["-p", "mesh-tests", "--test", "kube"], &arguments)
    })
}

/// [`run_all`], with a summary at its end.
pub(crate) fn run(root: &Path, only: Option<&str>) -> Result<()> {
    need_root()?;
    go::need_go()?;
    let mut steps = Steps::new();
    run_all(root, &mut steps, only)?;
    steps.finish();
    Ok(())
}

fn test(root: &Path, packages: &[&str], arguments: &[&str]) -> Result<()> {
    let mut all = vec!["test", "--release", "--locked"];
    all.extend(packages);
    all.push("--");
    all.extend(arguments);
    cargo(root, &all, &[])
}

/// Of a folder that is a workspace of its own.
fn format_of(root: &Path, folder: &str) -> Result<()> {
    let manifest = root.join(folder).join("Cargo.toml");
    cargo(root, &["fmt", "--check", "--manifest-path", &manifest.to_string_lossy()], &[])
}

fn deny(root: &Path) -> Result<()> {
    let program = tools::cargo_deny()?;
    let mut checks = vec!["bans", "licenses", "sources"];
    if tools::has_advisories() {
        checks.push("advisories");
    } else {
        eprintln!("    advisories are not checked: no database of them is on this machine");
    }
    let arguments = ["--workspace", "check", "--hide-inclusion-graph"];
    steps::run(Command::new(program).args(arguments).args(checks).current_dir(root))
}
