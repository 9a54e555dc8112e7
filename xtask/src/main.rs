//! Development tasks. In: a checkout and a machine (root, for all that touches the kernel). Out: kernel objects, a
//! verdict on the workspace, a demo, a table of figures. What is missing on the machine is installed first.

mod ebpf;
mod fuzz;
mod generate;
mod go;
mod packages;
mod steps;
mod style;
mod test;
mod tools;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

use steps::{Steps, cargo};

/// Development tasks of Ferromesh.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Builds the kernel programs, with the tools that this needs.
    BuildEbpf,
    /// Builds another agent beside this one, for the scenarios of an upgrade.
    BuildOther,
    /// Builds a real control plane from its Go modules into `target/kube`, for the scenarios on it.
    Kube,
    /// Writes what is generated: the chart of the custom resources, and `deploy/manifests`.
    Gen {
        /// Only compare, and fail if anything would change.
        #[arg(long)]
        check: bool,
    },
    /// Proves the workspace: style, licences, units, and scenarios with real programs on this kernel (root).
    Test {
        /// Only scenarios whose name contains this.
        #[arg(long)]
        only: Option<String>,
    },
    /// Fuzzes everything that is parsed from a peer, a pod or a pin, in the long form.
    Fuzz {
        /// Inputs of each target.
        #[arg(long, default_value_t = 10_000_000)]
        inputs: u64,
        /// Only this target.
        #[arg(long)]
        target: Option<String>,
    },
    /// Shows the mesh at work with nginx, PostgreSQL and redis in namespaces (root).
    Demo {
        /// Leave everything running and print how to look around.
        #[arg(long)]
        keep: bool,
    },
    /// Prints what the mesh costs, as shares of direct connections, as an image ships it (root).
    Bench {
        /// Rounds of each path; the medians are printed.
        #[arg(long, default_value_t = 5)]
        rounds: u32,
        /// Seconds of each measurement.
        #[arg(long, default_value_t = 2.0)]
        seconds: f64,
        /// Only these paths, beside direct: `ferromesh`, `eager`, `hbone`, `haproxy`, `haproxy-in-pods`, `haproxy-mtls`.
        #[arg(long)]
        path: Vec<String>,
        /// Only these measurements: `stream`, `ping-pong`, `connect`, `keep-alive`.
        #[arg(long)]
        measure: Vec<String>,
        /// Instead: the time in each kernel program.
        #[arg(long)]
        hooks: bool,
        /// Instead: the memory of an agent with so many pods.
        #[arg(long)]
        pods: Option<u32>,
        /// Instead: the control plane's times and memory with so many services of twenty pods each.
        #[arg(long)]
        services: Option<u32>,
    },
}

fn main() -> Result<()> {
    let root = root()?;
    match Arguments::parse().task {
        Task::BuildEbpf => {
            let mut steps = Steps::new();
            steps.run("build the kernel programs", || ebpf::build(&root))
        }
        Task::BuildOther => {
            let mut steps = Steps::new();
            steps.run("build another agent", || ebpf::build_other(&root))
        }
        Task::Kube => {
            let mut steps = Steps::new();
            steps.run("build a control plane", || go::KUBE.build(&root).map(drop))
        }
        Task::Gen { check } => generate::run(&root, check),
        Task::Test { only } => test::run(&root, only.as_deref()),
        Task::Fuzz { inputs, target } => fuzz::run(&root, inputs, target.as_deref()),
        Task::Demo { keep } => {
            prepare(&root, packages::DEMO, Profile::Release)?;
            exec(&root, (Profile::Release, "demo"), if keep { vec!["--keep".to_owned()] } else { Vec::new() })
        }
        Task::Bench { rounds, seconds, path, measure, hooks, pods, services } => {
            prepare(&root, packages::BENCH, Profile::Dist)?;
            if services.is_some() {
                Steps::new().run("build a control plane", || go::KUBE.build(&root).map(drop))?;
            }
            let mut arguments =
                vec!["--rounds".to_owned(), rounds.to_string(), "--seconds".to_owned(), seconds.to_string()];
            arguments.extend(path.into_iter().flat_map(|path| ["--path".to_owned(), path]));
            arguments.extend(measure.into_iter().flat_map(|measure| ["--measure".to_owned(), measure]));
            arguments.extend(hooks.then(|| "--hooks".to_owned()));
            arguments.extend(pods.iter().flat_map(|pods| ["--pods".to_owned(), pods.to_string()]));
            arguments.extend(services.iter().flat_map(|count| ["--services".to_owned(), count.to_string()]));
            exec(&root, (Profile::Dist, "bench"), arguments)
        }
    }
}

/// The workspace's folder.
fn root() -> Result<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().map(Path::to_path_buf).context("xtask lies in the workspace's folder")
}

/// Refuses at once when not root.
fn need_root() -> Result<()> {
    let output = Command::new("id").arg("-u").output().context("run id")?;
    if output.stdout.trim_ascii() != b"0" {
        bail!("this needs root: it makes network namespaces and cgroups and loads programs into the kernel");
    }
    Ok(())
}

/// How programs are compiled.
#[derive(Clone, Copy)]
enum Profile {
    /// For tests: soon.
    Release,
    /// For images: well.
    Dist,
}

impl Profile {
    fn name(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Dist => "dist",
        }
    }
}

/// What the demo and the bench need before they can run.
fn prepare(root: &Path, wanted: &[packages::Needed], profile: Profile) -> Result<()> {
    need_root()?;
    let mut steps = Steps::new();
    steps.run("programs from Debian", || packages::install(wanted))?;
    steps.run("build the kernel programs", || ebpf::build(root))?;
    steps.run("build the workspace", || {
        cargo(root, &["build", "--profile", profile.name(), "--workspace", "--bins"], &[])
    })
}

/// Runs a program of the workspace and takes over its exit code.
fn exec(root: &Path, (profile, name): (Profile, &str), arguments: Vec<String>) -> Result<()> {
    let program = tools::target_directory(root).join(profile.name()).join(name);
    let status = Command::new(&program)
        .args(arguments)
        .current_dir(root)
        .status()
        .with_context(|| format!("run {}", program.display()))?;
    std::process::exit(status.code().unwrap_or(1));
}
