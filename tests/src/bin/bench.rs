//! `cargo xtask bench`: prints what the mesh costs, as shares of direct connections and beside two haproxy.

use clap::Parser;
use mesh_tests::bench::{Path, hooks, memory, run};

/// Measures each path between two nodes in interleaved rounds.
#[derive(Parser)]
struct Arguments {
    /// Rounds; the medians are printed.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Only these paths (and direct).
    #[arg(long)]
    path: Vec<Path>,
    /// Instead: the time in each kernel program.
    #[arg(long)]
    hooks: bool,
    /// Instead: the memory of an agent with so many pods.
    #[arg(long)]
    pods: Option<u32>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if arguments.hooks {
        return hooks(arguments.seconds);
    }
    if let Some(pods) = arguments.pods {
        return memory(pods);
    }
    let wanted =
        |path: &Path| arguments.path.is_empty() || *path == Path::Direct || arguments.path.contains(path);
    let paths: Vec<Path> = Path::ALL.into_iter().filter(wanted).collect();
    run(arguments.rounds, arguments.seconds, &paths)
}
