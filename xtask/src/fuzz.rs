//! The long form of the fuzz tests. In: the targets in `fuzz/fuzz_targets`, and how many inputs each is to get. Out: a
//! table of what ran, and the file of the input that a target failed on.
//!
//! It builds as cargo-fuzz does, with the pinned compiler: libFuzzer is guided by the counters that LLVM puts at each edge,
//! which need no runtime of a sanitizer. What is found lives on in `fuzz/corpus`, and is where the next run begins.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::steps::{Steps, cargo};
use crate::{ebpf, tools};

/// Counters at each edge, operands of comparisons, and the checks that a release build leaves out.
const RUSTFLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Cdebug-assertions -Ccodegen-units=1";
/// Bytes of an input, memory of a target, seconds that one input may take.
const LIMITS: [&str; 3] = ["-max_len=4096", "-rss_limit_mb=2048", "-timeout=20"];

/// What became of one target.
struct Outcome {
    target: String,
    told: Told,
    took: Duration,
    failed: bool,
    log: PathBuf,
}

/// What libFuzzer said.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    inputs: u64,
    edges: u64,
    /// The file of the input that it failed on.
    input: Option<String>,
}

/// Gives every target, or the one that is named, `inputs` inputs.
pub(crate) fn run(root: &Path, inputs: u64, only: Option<&str>) -> Result<()> {
    let targets = targets(root, only)?;
    let mut steps = Steps::new();
    steps.run("build the kernel programs", || ebpf::build(root))?;
    steps.run("build the fuzz targets", || build(root))?;
    let mut outcomes = Vec::new();
    for target in targets {
        steps.run(&format!("fuzz {target}"), || {
            outcomes.push(fuzz(root, &target, inputs)?);
            Ok(())
        })?;
    }
    println!("{}", table(&outcomes));
    let failed: Vec<_> = outcomes.iter().filter(|outcome| outcome.failed).map(fault).collect();
    if failed.is_empty() { Ok(()) } else { bail!("{}", failed.join("\n")) }
}

/// The names of the targets.
fn targets(root: &Path, only: Option<&str>) -> Result<Vec<String>> {
    let folder = root.join("fuzz/fuzz_targets");
    let entries = fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))?;
    let stem = |path: PathBuf| Some(path.file_stem()?.to_str()?.to_owned());
    let mut names: Vec<_> = entries.flatten().filter_map(|entry| stem(entry.path())).collect();
    names.sort();
    let known = names.join(", ");
    names.retain(|name| only.is_none_or(|only| only == name));
    if names.is_empty() {
        bail!("there is no such target; there are {known}");
    }
    Ok(names)
}

fn triple() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

fn folder(root: &Path) -> PathBuf {
    tools::target_directory(root).join("fuzz")
}

fn build(root: &Path) -> Result<()> {
    let (manifest, folder, triple) = (root.join("fuzz/Cargo.toml"), folder(root), triple());
    let (manifest, folder) = (manifest.to_string_lossy(), folder.to_string_lossy());
    let build = ["build", "--release", "--locked", "--manifest-path", &manifest, "--target-dir", &folder];
    // With a target named, build scripts and macros are built without the counters.
    cargo(root, &[&build[..], &["--target", &triple]].concat(), &[("RUSTFLAGS", RUSTFLAGS)])
}

fn fuzz(root: &Path, target: &str, inputs: u64) -> Result<Outcome> {
    let (corpus, seeds) = (root.join("fuzz/corpus").join(target), root.join("fuzz/seeds").join(target));
    let artifacts = root.join("fuzz/artifacts").join(target);
    for made in [&corpus, &artifacts] {
        fs::create_dir_all(made).with_context(|| format!("make {}", made.display()))?;
    }
    let log = folder(root).join(format!("{target}.log"));
    let output = File::create(&log).with_context(|| format!("make {}", log.display()))?;
    let program = folder(root).join(triple()).join("release").join(target);
    let mut command = Command::new(&program);
    command.args(LIMITS).args([format!("-runs={inputs}"), "-print_final_stats=1".to_owned()]);
    command.arg(format!("-artifact_prefix={}/", artifacts.display())).arg(corpus);
    command.args(seeds.is_dir().then_some(seeds));
    command.stdout(output.try_clone()?).stderr(output).current_dir(root);
    let begun = Instant::now();
    let status = command.status().with_context(|| format!("run {}", program.display()))?;
    let text = fs::read(&log).with_context(|| format!("read {}", log.display()))?;
    let told = told(&String::from_utf8_lossy(&text));
    let outcome =
        Outcome { target: target.to_owned(), told, took: begun.elapsed(), failed: !status.success(), log };
    println!("{}", line(&outcome));
    Ok(outcome)
}

/// Reads what libFuzzer wrote: its last line of state, its statistics, and where it put an input.
fn told(text: &str) -> Told {
    let mut told = Told::default();
    for line in text.lines() {
        if let Some((_, rest)) = line.split_once(" cov: ") {
            told.edges = number(rest).unwrap_or(told.edges);
        } else if let Some(rest) = line.strip_prefix("stat::number_of_executed_units:") {
            told.inputs = number(rest).unwrap_or_default();
        } else if let Some((_, file)) = line.split_once("Test unit written to ") {
            told.input = Some(file.to_owned());
        }
    }
    told
}

fn number(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

fn line(outcome: &Outcome) -> String {
    let Outcome { target, told: Told { inputs, edges, .. }, took, failed, .. } = outcome;
    let result = if *failed { "FAILED" } else { "passed" };
    format!("{target:<14} {inputs:>12} {edges:>8} {:>8.0}  {result}", took.as_secs_f64())
}

fn table(outcomes: &[Outcome]) -> String {
    let mut table = format!("\n{:<14} {:>12} {:>8} {:>8}  result\n", "target", "inputs", "edges", "seconds");
    for outcome in outcomes {
        // Writing into a string cannot fail.
        let _infallible = writeln!(table, "{}", line(outcome));
    }
    table
}

fn fault(outcome: &Outcome) -> String {
    let (target, log) = (&outcome.target, outcome.log.display());
    match &outcome.told.input {
        Some(input) => format!("{target} fails on the input in {input}; {log} says how"),
        None => format!("{target} ended early; {log} says how"),
    }
}

#[cfg(test)]
mod tests {
    use super::{Told, told};

    #[test]
    fn inputs_edges_and_the_input_of_a_failure_are_read() {
        let passed = "#2\tINITED cov: 12 ft: 13 corp: 1/1b exec/s: 0 rss: 30Mb\n\
             #1000\tDONE   cov: 240 ft: 900 corp: 50/2Kb lim: 14 exec/s: 500 rss: 40Mb\n\
             Done 1000 runs in 2 second(s)\n\
             stat::number_of_executed_units: 1000\n\
             stat::peak_rss_mb:              40\n";
        assert_eq!(told(passed), Told { inputs: 1000, edges: 240, input: None });
        let failed = "#8\tNEW    cov: 20 ft: 13 corp: 1/1b lim: 4 exec/s: 0 rss: 30Mb\n\
             thread '<unnamed>' panicked at src/lib.rs:1:1:\n\
             artifact_prefix='a/'; Test unit written to a/crash-01\n\
             stat::number_of_executed_units: 9\n";
        assert_eq!(told(failed), Told { inputs: 9, edges: 20, input: Some("a/crash-01".to_owned()) });
        assert_eq!(told("no such file"), Told::default());
    }
}
