//! `cargo xtask demo`: the mesh at work with real, unmodified programs, step by step with evidence.

use clap::Parser;

/// Shows the mesh at work on two nodes made of namespaces.
#[derive(Parser)]
struct Arguments {
    /// Leave everything running and print how to look around.
    #[arg(long)]
    keep: bool,
}

fn main() -> anyhow::Result<()> {
    mesh_tests::demo::run(Arguments::parse().keep)
}
