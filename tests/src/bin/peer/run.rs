//! `peer run`: how a program gets into a pod. Joins the cgroup first and the network namespace second, then becomes the
//! program, so that the program never ran anywhere else.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, anyhow};
use mesh_tests::world::netns;

/// Joins a cgroup and a network namespace, then becomes the program.
#[derive(clap::Args)]
pub(crate) struct Run {
    #[arg(long)]
    netns: String,
    #[arg(long)]
    cgroup: PathBuf,
    #[arg(last = true, required = true)]
    program: Vec<String>,
}

impl Run {
    pub(crate) fn run(self) -> Result<()> {
        let procs = self.cgroup.join("cgroup.procs");
        std::fs::write(&procs, "0").with_context(|| format!("join {}", procs.display()))?;
        netns::enter(&self.netns)?;
        let (program, arguments) = self.program.split_first().ok_or_else(|| anyhow!("no program"))?;
        let error = Command::new(program).args(arguments).exec();
        Err(anyhow!(error).context(format!("run {program}")))
    }
}
