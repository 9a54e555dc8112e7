//! Attaches the stand-in socket load balancer (`mesh-standin.o`) to a cgroup and stays until it is killed.

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use aya::EbpfLoader;
use aya::programs::{CgroupAttachMode, CgroupSockAddr};
use clap::Parser;

/// A socket load balancer above the pods.
#[derive(Parser)]
struct Arguments {
    /// The cgroup that it is attached to
    #[arg(long)]
    cgroup: PathBuf,
    /// The virtual address
    #[arg(long)]
    vip: Ipv4Addr,
    /// Where connections to it go
    #[arg(long)]
    backend: Ipv4Addr,
    /// A folder of a bpffs for the maps that its object names
    #[arg(long)]
    pins: PathBuf,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let object = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/mesh-standin.o");
    let (vip, backend) = (u32::from(arguments.vip).to_be(), u32::from(arguments.backend).to_be());
    std::fs::create_dir_all(&arguments.pins).with_context(|| format!("make {}", arguments.pins.display()))?;
    let mut object = EbpfLoader::new()
        .default_map_pin_directory(&arguments.pins)
        .override_global("VIP", &vip, true)
        .override_global("BACKEND", &backend, true)
        .load_file(&object)
        .with_context(|| format!("load {}", object.display()))?;
    let cgroup = File::open(&arguments.cgroup)?;
    for name in ["balance", "unbalance"] {
        let program: &mut CgroupSockAddr = object.program_mut(name).context(name)?.try_into()?;
        program.load()?;
        program.attach(&cgroup, CgroupAttachMode::Single)?;
    }
    println!("attached");
    loop {
        std::thread::park();
    }
}
