//! What one node pays: nanoseconds in each kernel program while connections are made and datagrams sent, and the memory of
//! an agent that serves many pods.
//!
//! The nanoseconds are the kernel's own (`kernel.bpf_stats_enabled`, put back afterwards); the memory is what
//! `/proc/PID/smaps_rollup` says.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::apps;
use crate::manifests::udp_from_account;
use crate::mesh::{Mesh, Options};
use crate::world::Pod;

const STATISTICS: &str = "/proc/sys/kernel/bpf_stats_enabled";
const ONCE: u16 = 7002;
/// A UDP port that a rule names.
const RULED: u16 = 5300;
/// How long so many pods may take until they are served.
const ENROLMENT: Duration = Duration::from_secs(300);

/// Run-time statistics, for as long as this lives.
struct Statistics(String);

impl Statistics {
    fn enable() -> Result<Self> {
        let before = fs::read_to_string(STATISTICS).context(STATISTICS)?;
        fs::write(STATISTICS, "1").context(STATISTICS)?;
        Ok(Self(before))
    }
}

impl Drop for Statistics {
    fn drop(&mut self) {
        if let Err(error) = fs::write(STATISTICS, self.0.trim()) {
            eprintln!("{STATISTICS} could not be put back to {}: {error}", self.0.trim());
        }
    }
}

/// Time and number of runs of programs, by name.
type Runs = BTreeMap<String, (u64, u64)>;

fn runs() -> Result<Runs> {
    let output = Command::new("bpftool").args(["-j", "prog", "show"]).output().context("run bpftool")?;
    let shown: Value = serde_json::from_slice(&output.stdout)?;
    let mut runs = Runs::new();
    for program in shown.as_array().context("not a list")? {
        let name = program["name"].as_str().unwrap_or_default();
        if name.starts_with("on_") || name == "steer" {
            let run = runs.entry(name.to_owned()).or_default();
            run.0 += program["run_time_ns"].as_u64().unwrap_or_default();
            run.1 += program["run_cnt"].as_u64().unwrap_or_default();
        }
    }
    Ok(runs)
}

/// Makes connections between two nodes, and sends datagrams under a rule, and prints what each hook took.
pub fn hooks(seconds: f64) -> Result<()> {
    let mut mesh = Mesh::prepare(Options::default())?;
    mesh.manifests.namespace("shop", true)?;
    let (web, api) = (mesh.pod("shop", "web", 1)?, mesh.pod("shop", "api", 2)?);
    let _server = apps::peer_server(&api, "once", ONCE, &[])?;
    let _datagrams = api.spawn_peer(&["udp-echo", "--listen", &format!("[::]:{RULED}")])?;
    mesh.manifests.policy(("shop", "udp"), "api", "ALLOW", udp_from_account("shop", "web", &[RULED]))?;
    mesh.start_controller()?;
    for node in [1, 2] {
        mesh.start_agent(node)?;
    }
    mesh.enrolled(&[&web, &api])?;
    let rate = |seconds: f64| -> Result<f64> {
        let told = web.peer(&["rate", "--to", &api.at(ONCE), "--seconds", &seconds.to_string()])?;
        told["good"].as_f64().filter(|good| *good > 0.0).with_context(|| told.to_string())
    };
    let echoed = |more: &[&str]| -> Result<f64> {
        let told = web.peer(&[&["datagrams", "--to", &api.at(RULED), "--count", "20000"], more].concat())?;
        told["outcomes"]["echoed"].as_f64().filter(|echoed| *echoed > 0.0).with_context(|| told.to_string())
    };
    rate(1.0)?;
    measured("connections", || rate(seconds))?;
    measured("datagrams by sendto(), each from a socket of its own, and their echoes", || {
        echoed(&["--fresh"])
    })?;
    let connected = ["--fresh", "--how", "connected"];
    measured("datagrams of connected sockets, each of its own, and their echoes", || echoed(&connected))
}

/// Prints what the programs of both nodes took while `work` was done; it says how much it did.
fn measured(what: &str, work: impl FnOnce() -> Result<f64>) -> Result<()> {
    let statistics = Statistics::enable()?;
    let before = runs()?;
    let done = work()?;
    let after = runs()?;
    drop(statistics);
    println!("\nKernel programs of both nodes over {done} {what}:\n");
    println!("| hook | runs each | ns a run | ns each |\n|---|---|---|---|");
    let mut total = 0.0;
    for (name, (time, count)) in &after {
        let (time_before, count_before) = before.get(name).copied().unwrap_or_default();
        let (time, count) = ((time - time_before) as f64, (count - count_before) as f64);
        if count > 0.0 {
            total += time / done;
            println!("| {name} | {:.2} | {:.0} | {:.0} |", count / done, time / count, time / done);
        }
    }
    println!("| all | | | {total:.0} |");
    Ok(())
}

/// Prints the memory of an agent without pods and with `count` pods on its node.
pub fn memory(count: u32) -> Result<()> {
    let mut mesh = Mesh::prepare(Options { transports: vec!["auto"], ..Options::default() })?;
    mesh.manifests.namespace("shop", true)?;
    mesh.start_controller()?;
    mesh.start_agent(1)?;
    let empty = resident(mesh.agent(1)?.id())?;
    let start = Instant::now();
    let pods: Vec<Pod> = (0..count)
        .map(|number| mesh.pod("shop", &format!("p{number}"), 1))
        .collect::<Result<_>>()
        .context("make the pods")?;
    eprintln!("made {count} pods in {:.0} s", start.elapsed().as_secs_f64());
    let start = Instant::now();
    while let Some(missing) = pods.iter().find(|pod| !pod.listens(15001)) {
        if start.elapsed() > ENROLMENT {
            bail!("{} is not enrolled after {ENROLMENT:?}\n{}", missing.name(), mesh.logs());
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    eprintln!("the last was enrolled {:.0} s later", start.elapsed().as_secs_f64());
    let full = resident(mesh.agent(1)?.id())?;
    let files = fs::read_dir(format!("/proc/{}/fd", mesh.agent(1)?.id()))?.count();
    ensure!(full > empty, "the memory did not grow");
    println!("\n| pods | agent's memory, MiB | files and sockets |\n|---|---|---|");
    println!("| 0 | {:.1} | |\n| {count} | {:.1} | {files} |", mib(empty), mib(full));
    println!("\n{:.0} KiB a pod", (full - empty) as f64 / f64::from(count) / 1024.0);
    Ok(())
}

pub(super) fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// The resident memory of a process, in bytes.
pub(super) fn resident(process: u32) -> Result<u64> {
    let rollup = fs::read_to_string(format!("/proc/{process}/smaps_rollup"))?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:")).context("no Rss")?;
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kilobytes * 1024)
}
