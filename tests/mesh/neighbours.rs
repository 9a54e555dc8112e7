//! One agent for many pods: what one of them does to it, the others do not feel.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::apps;
use mesh_tests::mesh::Options;
use mesh_tests::world::Process;
use serde_json::Value;

use crate::shop::{ECHO, Shop, VIP, echoed};

const SINK: u16 = 7020;
/// Few, so that a greedy pod could take them all.
const OPEN_FILES: &str = "1200";
/// What a new connection may take at the 99th percentile while neighbours misbehave, besides so many times what it takes
/// without them. Far below what a connection takes that waits for a place.
const P99_MS: f64 = 500.0;
const P99_FACTOR: f64 = 20.0;

/// Every new connection of `seconds`: the 99th percentile in milliseconds. All have to work.
fn p99(shop: &Shop, seconds: u64) -> Result<f64> {
    let to = format!("{VIP}:{ECHO}");
    let ticker = shop.web.spawn_peer(&["ticker", "--to", &to, "--text", "tick", "--every-ms", "20"])?;
    std::thread::sleep(Duration::from_secs(seconds));
    let told = ticker.stdout();
    drop(ticker);
    let ticks: Vec<Value> = told.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let failed: Vec<&Value> = ticks.iter().filter(|tick| tick["outcome"] != "ok").collect();
    ensure!(failed.is_empty() && ticks.len() > 50, "{} of {} failed: {failed:?}", failed.len(), ticks.len());
    let mut times: Vec<f64> = ticks.iter().filter_map(|tick| tick["took_ms"].as_f64()).collect();
    times.sort_by(f64::total_cmp);
    times.get(times.len() * 99 / 100).copied().context("no times")
}

/// How often something was the reason to hold a pod back, on a node.
fn held_back(shop: &Shop, node: u8, reason: &str) -> Result<f64> {
    let name = "ferromesh_accept_failures_total";
    Ok(shop.mesh.metrics(node)?.sum(name, &[("reason", reason)]))
}

#[test]
fn a_greedy_pod_and_a_flood_of_half_handshakes_do_not_hold_up_the_neighbours() -> Result<()> {
    let agent_arguments = vec!["--max-open-files", OPEN_FILES];
    let mut shop = Shop::open_with(Options { agent_arguments, ..Options::default() }, true)?;
    let (greedy, victim) = (shop.mesh.pod("shop", "greedy", 1)?, shop.mesh.pod("shop", "victim", 2)?);
    let outsider = shop.mesh.pod("plain", "outsider", 1)?;
    shop.mesh.enrolled(&[&greedy, &victim])?;
    // The greedy pod dials two: with an honest connect(), a destination at its own limit would hold it back before its
    // agent does.
    let second = shop.mesh.pod("shop", "second", 2)?;
    shop.mesh.enrolled(&[&second])?;
    let _sinks =
        [apps::peer_server(&victim, "sink", SINK, &[])?, apps::peer_server(&second, "sink", SINK, &[])?];
    echoed(&shop.ask()?)?;
    let quiet = p99(&shop, 4)?;
    let mut hogs: Vec<Process> = vec![
        greedy.spawn_peer(&["hog", "--to", &victim.at(SINK), "--count", "4000"])?,
        greedy.spawn_peer(&["hog", "--to", &second.at(SINK), "--count", "4000"])?,
    ];
    shop.mesh.in_force("the greedy pod to be held back", || {
        let by_cap = held_back(&shop, 1, "pod_limit")? + held_back(&shop, 1, "descriptor_reserve")?;
        ensure!(by_cap > 0.0, "nothing was counted");
        Ok(())
    })?;
    let flood = ["hog", "--to", &victim.at(15008), "--count", "2000", "--half-handshake"];
    hogs.push(outsider.spawn_peer(&flood)?);
    shop.mesh.in_force("the flood to be held back", || {
        let by_cap = held_back(&shop, 2, "pod_limit")?
            + held_back(&shop, 2, "handshake_limit")?
            + held_back(&shop, 2, "descriptor_reserve")?;
        ensure!(by_cap > 0.0, "nothing was counted");
        Ok(())
    })?;
    let loud = p99(&shop, 8)?;
    for hog in &hogs {
        let open = hog.stdout().lines().last().map(ToOwned::to_owned);
        eprintln!("{}: {open:?}", hog.name);
    }
    eprintln!("new connections of a third pod, p99: {quiet:.1} ms alone, {loud:.1} ms beside the others");
    ensure!(loud < P99_MS.max(quiet * P99_FACTOR), "p99 {loud} ms, {quiet} ms without the others");
    for node in [1, 2] {
        ensure!(held_back(&shop, node, "exhausted")? == 0.0, "node {node} ran out of descriptors");
        ensure!(shop.mesh.agent(node)?.running(), "the agent of node {node} ended");
    }
    drop(hogs);
    // What was held comes back.
    shop.mesh.in_force("the victim to be reached again", || {
        let told = greedy.peer(&["bulk", "--to", &victim.at(SINK), "--seconds", "0.1"])?;
        ensure!(told["bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{told}");
        Ok(())
    })?;
    echoed(&shop.ask()?)
}
