//! Builds the kernel programs. In: `mesh-ebpf/` and whatever tools the machine already has. Out: `target/bpf/*.o`, which
//! the agent's build embeds; missing tools are installed first. And another build of the agent, which upgrades are tried with.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::steps::cargo;
use crate::tools;

/// The linker's version; it must know the bitcode of rustc's LLVM.
const BPF_LINKER: &str = "0.13.0";
/// The LLVM that rustc 1.95 is built on.
const LLVM: &str = "22";
/// The objects, named after their binaries in `mesh-ebpf`.
const OBJECTS: [&str; 3] = ["mesh-cgroup", "mesh-lookup", "mesh-standin"];

/// The feature of `mesh-ebpf` and of `mesh-agent` that makes another build of each.
const OTHER: &str = "other-build";

/// Builds all objects into `target/bpf` below `root`, the workspace's folder.
pub(crate) fn build(root: &Path) -> Result<()> {
    build_into(root, "target/bpf", &[])
}

/// Builds an agent of the same sources whose kernel programs and some of whose maps are others, beside the one of this build:
/// `other-build/mesh-agent`.
pub(crate) fn build_other(root: &Path) -> Result<()> {
    build_into(root, "target/bpf/other", &["--features", OTHER])?;
    let feature = format!("mesh-agent/{OTHER}");
    // Of the workspace, so that its dependencies are those of the other builds.
    let agent = ["--workspace", "--bin", "mesh-agent", "--features", feature.as_str()];
    cargo(root, &[&["build", "--release", "--locked"], &agent[..]].concat(), &[])?;
    let built = tools::target_directory(root).join("release");
    let beside = built.join(OTHER);
    fs::create_dir_all(&beside).with_context(|| format!("creating {}", beside.display()))?;
    let copied = fs::copy(built.join("mesh-agent"), beside.join("mesh-agent"));
    copied.map(drop).with_context(|| format!("copying the agent to {}", beside.display()))
}

fn build_into(root: &Path, out: &str, features: &[&str]) -> Result<()> {
    let tools = ensure_tools()?;
    let manifest = root.join("mesh-ebpf/Cargo.toml");
    let target = root.join("mesh-ebpf/target");
    let flags = ["-Cdebuginfo=2", "-Clink-arg=--btf", "--cfg=bpf_target_arch=\"x86_64\""];
    let flags = if cfg!(target_arch = "aarch64") {
        [flags[0], flags[1], "--cfg=bpf_target_arch=\"aarch64\""]
    } else {
        flags
    };
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args([
            "build",
            "--quiet",
            "--release",
            "--locked",
            "--target",
            "bpfel-unknown-none",
            "-Zbuild-std=core",
        ])
        .arg("--manifest-path")
        .arg(&manifest)
        .arg("--target-dir")
        .arg(&target)
        .args(features)
        .current_dir(root.join("mesh-ebpf"))
        .env("PATH", path_with(&tools))
        // The pinned stable compiler builds `core` for the kernel's target, and the programs count with its atomics.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("CARGO_BUILD_TARGET");
    run(&mut cargo).context("building mesh-ebpf")?;
    let out = root.join(out);
    fs::create_dir_all(&out).with_context(|| format!("creating {}", out.display()))?;
    for name in OBJECTS {
        let built = target.join("bpfel-unknown-none/release").join(name);
        publish(&built, &out.join(format!("{name}.o")))?;
    }
    Ok(())
}

/// Installs what the build needs and is missing; returns the folder of the tools.
pub(crate) fn ensure_tools() -> Result<PathBuf> {
    let bin = tools_dir()?.join("bin");
    ensure_rust_src()?;
    if has_linker(&bin) {
        return Ok(bin);
    }
    let llvm = PathBuf::from(format!("/usr/lib/llvm-{LLVM}"));
    if !llvm.join("bin/llvm-config").exists() {
        eprintln!("installing llvm-{LLVM}-dev");
        let package = format!("llvm-{LLVM}-dev");
        // A fresh machine has no package lists.
        run(Command::new("apt-get").args(["update", "-qq"]))?;
        run(Command::new("apt-get").args(["install", "-y", "-qq", "--no-install-recommends", &package]))
            .with_context(|| format!("installing {package}; install it by hand where there is no apt"))?;
    }
    eprintln!("installing bpf-linker {BPF_LINKER}");
    let feature = format!("llvm-{LLVM}");
    let mut install = Command::new("cargo");
    install
        .args([
            "install",
            "bpf-linker",
            "--version",
            BPF_LINKER,
            "--no-default-features",
            "--features",
            &feature,
        ])
        .arg("--root")
        .arg(tools_dir()?)
        .env("PATH", path_with(&llvm.join("bin")))
        // Without it the linker's build does not find the LLVM library.
        .env("LLVM_PREFIX", &llvm)
        .env_remove("CARGO_TARGET_DIR");
    run(&mut install).context("installing bpf-linker")?;
    ensure!(
        has_linker(&bin),
        "bpf-linker {BPF_LINKER} was installed but does not run from {}",
        bin.display()
    );
    Ok(bin)
}

/// Where tools that this project installs for itself live.
fn tools_dir() -> Result<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME")
        .filter(|dir| !dir.is_empty())
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set")?;
    Ok(cache.join("ferromesh/tools"))
}

fn has_linker(bin: &Path) -> bool {
    let output = Command::new(bin.join("bpf-linker")).arg("--version").output();
    output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(BPF_LINKER))
}

fn ensure_rust_src() -> Result<()> {
    let output = Command::new("rustc").args(["--print", "sysroot"]).output().context("running rustc")?;
    let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    if sysroot.join("lib/rustlib/src/rust/library/core").exists() {
        return Ok(());
    }
    eprintln!("installing rust-src");
    run(Command::new("rustup").args(["component", "add", "rust-src"])).context("installing rust-src")
}

/// `dir` before everything that is on the path already.
fn path_with(dir: &Path) -> OsString {
    let mut dirs = vec![dir.to_owned()];
    if let Some(path) = env::var_os("PATH") {
        dirs.extend(env::split_paths(&path));
    }
    // Only a folder with a colon in its name cannot be joined; the plain path is the best answer then.
    env::join_paths(dirs).unwrap_or_else(|_| env::var_os("PATH").unwrap_or_default())
}

/// Copies an object when it differs, so that an unchanged one does not make the agent build again.
fn publish(from: &Path, to: &Path) -> Result<()> {
    let built = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == built) {
        return Ok(());
    }
    fs::write(to, built).with_context(|| format!("writing {}", to.display()))
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("starting {}", command.get_program().display()))?;
    if !status.success() {
        bail!("{} ended with {status}", command.get_program().display());
    }
    Ok(())
}
