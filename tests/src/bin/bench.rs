//! `cargo xtask bench`: prints what the mesh costs, as shares of direct connections and beside two haproxy.

use clap::Parser;
use mesh_tests::bench::{Measure, Path, Size, hooks, memory, run, scale};

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
    /// Only these measurements.
    #[arg(long)]
    measure: Vec<Measure>,
    /// Instead: the time in each kernel program.
    #[arg(long)]
    hooks: bool,
    /// Instead: the memory of an agent with so many pods.
    #[arg(long)]
    pods: Option<u32>,
    /// Instead: the control plane's times and memory with so many services of twenty pods each.
    #[arg(long)]
    services: Option<u32>,
    /// With --services: agents while changes are measured.
    #[arg(long, default_value_t = 200)]
    agents: u32,
    /// With --services: changes.
    #[arg(long, default_value_t = 100)]
    changes: u32,
    /// With --services: streams that open again after a restart.
    #[arg(long, default_value_t = 5_000)]
    streams: u32,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if arguments.hooks {
        return hooks(arguments.seconds);
    }
    if let Some(pods) = arguments.pods {
        return memory(pods);
    }
    if let Some(services) = arguments.services {
        let Arguments { agents, changes, streams, .. } = arguments;
        return scale(Size { services, agents, changes, streams });
    }
    let wanted =
        |path: &Path| arguments.path.is_empty() || *path == Path::Direct || arguments.path.contains(path);
    let paths: Vec<Path> = Path::ALL.into_iter().filter(wanted).collect();
    let measures = if arguments.measure.is_empty() { Measure::ALL.to_vec() } else { arguments.measure };
    run(arguments.rounds, arguments.seconds, &paths, &measures)
}
