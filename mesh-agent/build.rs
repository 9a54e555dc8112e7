//! Puts the kernel objects where `include_bytes_aligned!` finds them. In: `target/bpf/*.o`, which `cargo xtask build-ebpf`
//! makes; with the feature `other-build` those of `cargo xtask build-other`. Out: copies in `OUT_DIR`.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

const OBJECTS: [&str; 2] = ["mesh-cgroup.o", "mesh-lookup.o"];

fn main() -> ExitCode {
    match copy() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            println!("cargo::error={message}");
            ExitCode::FAILURE
        }
    }
}

fn copy() -> Result<(), String> {
    println!("cargo::rerun-if-changed=build.rs");
    let var = |name: &str| env::var_os(name).map(PathBuf::from).ok_or(format!("cargo did not set {name}"));
    let mut built = var("CARGO_MANIFEST_DIR")?.join("../target/bpf");
    if env::var_os("CARGO_FEATURE_OTHER_BUILD").is_some() {
        built.push("other");
    }
    let out = var("OUT_DIR")?;
    for object in OBJECTS {
        let from = built.join(object);
        println!("cargo::rerun-if-changed={}", from.display());
        fs::copy(&from, out.join(object)).map_err(|error| {
            format!("the kernel program {} is missing ({error}): run cargo xtask build-ebpf", from.display())
        })?;
    }
    Ok(())
}
