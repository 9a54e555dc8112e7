//! An agent that gives way to its successor, under load.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_tests::apps::{Nginx, peer_server};
use mesh_tests::mesh::Options;
use mesh_tests::world::{Finished, Pod, Process};
use rustix::process::Signal;

use crate::shop::{ECHO, EXACT, Shop, VIP, echoed};

const SINK: u16 = 7020;
/// Longer than the scenario: connections end before that by themselves.
const DRAIN_SECONDS: &str = "600";
const END: Duration = Duration::from_secs(60);

fn shop() -> Result<Shop> {
    let agent_arguments = vec!["--drain-seconds", DRAIN_SECONDS];
    Shop::open_with(Options { agent_arguments, ..Options::default() }, true)
}

/// wrk until it is told to end.
fn wrk(pod: &Pod, url: &str, name: &str, more: &[&str]) -> Result<Process> {
    let mut arguments = vec!["-t1", "-c8", "-d3600", "--timeout", "30s"];
    arguments.extend(more);
    arguments.push(url);
    pod.spawn(name, "wrk", &arguments)
}

/// Ends wrk; how many requests were answered. Any error fails.
fn answered(wrk: Process) -> Result<u64> {
    wrk.signal(Signal::INT)?;
    let Finished { stdout, .. } = wrk.wait(END)?;
    ensure!(!stdout.contains("Socket errors") && !stdout.contains("Non-2xx"), "wrk: {stdout}");
    let count = stdout.lines().find_map(|line| line.trim().split_once(" requests in ")).context("wrk")?.0;
    count.parse().with_context(|| format!("wrk: {stdout}"))
}

#[test]
fn the_agent_is_replaced_ten_times_under_http_and_bulk_load() -> Result<()> {
    let mut shop = shop()?;
    echoed(&shop.ask()?)?;
    let _nginx = Nginx::start(&shop.api, "page")?;
    let _sink = peer_server(&shop.api, "sink", SINK, &[])?;
    let url = format!("http://{}/", shop.api.at(80));
    let kept = wrk(&shop.web, &url, "wrk-kept", &[])?;
    let fresh = wrk(&shop.web, &url, "wrk-fresh", &["-H", "Connection: close"])?;
    let to = format!("{VIP}:{ECHO}");
    let ticker = shop.web.spawn_peer(&["ticker", "--to", &to, "--text", "tick", "--every-ms", "20"])?;
    let bulk = shop.web.spawn_peer(&["bulk", "--to", &shop.api.at(SINK), "--seconds", "45"])?;
    let exact = format!("{VIP}:{EXACT}");
    let (mut old, mut streams) = (Vec::new(), Vec::new());
    for turn in 0..10_u8 {
        streams.push(shop.web.spawn_peer(&["exact", "--to", &exact, "--bytes", "100000000"])?);
        let start = Instant::now();
        // The source's agent and the destination's in turn.
        old.push(shop.mesh.replace_agent(1 + turn % 2)?);
        eprintln!("replacement {turn}: {} ms", start.elapsed().as_millis());
        std::thread::sleep(Duration::from_millis(300));
    }
    for stream in streams {
        let told = stream.wait(Duration::from_secs(180))?.json()?;
        ensure!(told["exact"] == true, "a stream was cut: {told}");
    }
    let told = bulk.wait(Duration::from_secs(180))?.json()?;
    eprintln!("bulk through all replacements: {told}");
    let ticks = ticker.stdout();
    let failed: Vec<&str> = ticks.lines().filter(|tick| !tick.contains("\"ok\"")).collect();
    ensure!(failed.is_empty() && ticks.lines().count() > 100, "{failed:?}");
    let (kept, fresh) = (answered(kept)?, answered(fresh)?);
    eprintln!("requests: {kept} on kept connections, {fresh} on fresh ones; {} ticks", ticks.lines().count());
    ensure!(kept > 1000 && fresh > 1000, "{kept} and {fresh} requests are too few to tell");
    drop(ticker);
    for agent in old {
        let ended = agent.wait(END)?;
        ensure!(ended.ok() && ended.stdout.contains("a successor serves"), "{}", ended.stdout);
        ensure!(!ended.stdout.contains("the drain time is over"), "connections were cut: {}", ended.stdout);
    }
    echoed(&shop.ask()?)?;
    shop.mesh.agent_ready(1)
}

#[test]
fn a_successor_that_dies_before_it_serves_leaves_the_running_agent_as_it_was() -> Result<()> {
    let mut shop = shop()?;
    let to = format!("{VIP}:{ECHO}");
    let ticker = shop.web.spawn_peer(&["ticker", "--to", &to, "--text", "tick", "--every-ms", "10"])?;
    for pause in [30, 150, 400] {
        let mut old = shop.mesh.take_agent(1)?;
        shop.mesh.launch_agent(1)?;
        std::thread::sleep(Duration::from_millis(pause));
        let successor = shop.mesh.take_agent(1)?;
        let said = successor.stdout();
        drop(successor);
        if said.contains("took over") {
            // It was faster than the test: the roles have changed, and a killed agent is another scenario.
            eprintln!("the successor served within {pause} ms");
            return Ok(());
        }
        ensure!(old.running(), "{}", old.tail());
        shop.mesh.put_agent(1, old);
        echoed(&shop.ask()?)?;
    }
    // A pod that comes now is enrolled: the running agent keeps the kernel in step again.
    let other = shop.mesh.pod("shop", "other", 1)?;
    shop.mesh.enrolled(&[&other])?;
    let ticks = ticker.stdout();
    let failed: Vec<&str> = ticks.lines().filter(|tick| !tick.contains("\"ok\"")).collect();
    ensure!(failed.is_empty(), "{failed:?}");
    let old = shop.mesh.replace_agent(1)?;
    drop(ticker);
    ensure!(old.wait(END)?.ok(), "the old agent failed");
    echoed(&shop.ask()?)
}
