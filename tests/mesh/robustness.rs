//! Many connections, and destinations that are not there.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mesh_tests::access_log::{field, names};
use mesh_tests::apps;
use mesh_tests::mesh::Options;

use crate::shop::{ECHO, NOBODY, Shop, VIP, VIP6, echoed, text, was_reset};

#[test]
fn two_thousand_connections_are_open_at_once() -> Result<()> {
    for transport in ["auto", "hbone"] {
        let shop = Shop::open_with(Options { transports: vec![transport; 2], ..Options::default() }, true)?;
        let hold = ["hold", "--to", &format!("{VIP}:{ECHO}"), "--count", "2000"];
        let told = shop.web.spawn_peer(&hold)?.wait(Duration::from_secs(120))?.json()?;
        ensure!(told["open"] == 2000 && told["good_answers"] == 4000, "{transport}: {told}");
        eprintln!("{transport}: {told}");
    }
    Ok(())
}

#[test]
fn connections_that_their_clients_reset_burden_nobody_else() -> Result<()> {
    let shop = Shop::open()?;
    let storm = ["storm", "--to", &format!("{VIP}:{ECHO}"), "--count", "10000", "--threads", "16", "--reset"];
    let told = shop.web.spawn_peer(&storm)?.wait(Duration::from_secs(120))?.json()?;
    ensure!(told["ok"] == 10_000, "{told}");
    eprintln!("{told}");
    echoed(&shop.ask()?)
}

#[test]
fn a_vip_without_a_ready_endpoint_resets_its_client_at_once_with_the_reason_logged() -> Result<()> {
    let shop = Shop::open()?;
    shop.mesh.service(("shop", "empty"), &["10.99.0.30", "fd99::30"], (80, 80), &[])?;
    for to in ["10.99.0.30:80", "[fd99::30]:80"] {
        shop.mesh.in_force("the service to be known", || {
            let told = shop.web.peer(&["talk", "--to", to, "--send", "hello", "--timeout-ms", "3000"])?;
            ensure!(was_reset(&told), "{to}: {told}");
            ensure!(told["end_ms"].as_f64().is_some_and(|ms| ms < 500.0), "{to}: {told}");
            shop.mesh.record(1, &[(names::FLAGS, "no_endpoint"), ("dialled", to)]).map(drop)
        })?;
    }
    Ok(())
}

#[test]
fn a_refused_connection_reaches_the_client_as_a_reset_with_its_reason_logged() -> Result<()> {
    let mut shop = Shop::open()?;
    for to in [format!("{VIP}:{NOBODY}"), format!("[{VIP6}]:{NOBODY}"), shop.api.at(NOBODY)] {
        let told = shop.web.peer(&["talk", "--to", &to, "--send", "hello"])?;
        ensure!(was_reset(&told) && told["end_ms"].as_f64().is_some_and(|ms| ms < 1000.0), "{to}: {told}");
    }
    let record = shop.mesh.record(1, &[(names::FLAGS, "connection_refused")])?;
    ensure!(field(&record, names::SOURCE_ID) == shop.web.spiffe_id(), "{record}");
    // A server that goes and comes back.
    shop.close_servers();
    let gone = shop.ask()?;
    ensure!(text(&gone["received"]).is_empty(), "{gone}");
    let _echo = apps::peer_server(&shop.api, "echo", ECHO, &[])?;
    echoed(&shop.ask()?)
}

#[test]
fn a_destination_whose_node_is_gone_fails_sooner_than_plain_tcp_gives_up() -> Result<()> {
    let shop = Shop::open()?;
    echoed(&shop.ask()?)?;
    shop.mesh.world.plug(2, false)?;
    let start = Instant::now();
    let told =
        shop.web.peer(&["talk", "--to", &shop.api.at(NOBODY), "--send", "hello", "--timeout-ms", "60000"])?;
    ensure!(was_reset(&told) || told["connect"] != "ok", "{told}");
    ensure!(start.elapsed() < Duration::from_secs(35), "{:?}", start.elapsed());
    eprintln!("a node that is gone: {told}");
    shop.mesh.world.plug(2, true)?;
    shop.until_asking(&shop.web, &format!("{VIP}:{ECHO}"), true)?;
    Ok(())
}

#[test]
fn a_node_that_is_unplugged_under_an_idle_connection_is_noticed() -> Result<()> {
    let shop = Shop::open()?;
    let talk = ["talk", "--to", &format!("{VIP}:{ECHO}"), "--send", "hello", "--timeout-ms", "90000"];
    let idle = shop.web.spawn_peer(&talk)?;
    std::thread::sleep(Duration::from_millis(500));
    shop.mesh.world.plug(2, false)?;
    let told = idle.wait(Duration::from_secs(100))?.json()?;
    ensure!(told["received"] == "hello" && told["end"] == "reset", "{told}");
    eprintln!("noticed after {} ms", told["end_ms"]);
    Ok(())
}

#[test]
fn an_unreachable_address_reaches_the_client_as_a_reset_in_the_time_that_plain_tcp_takes() -> Result<()> {
    let shop = Shop::open()?;
    let plain = shop.mesh.pod("plain", "web", 1)?;
    // No route leads from the node to these.
    for to in ["10.66.0.1:80", "[fd66::1]:80"] {
        let without = plain.peer(&["talk", "--to", to])?;
        ensure!(text(&without["connect"]).ends_with("unreachable"), "{to}: plain {without}");
        let meshed = shop.web.peer(&["talk", "--to", to, "--send", "hello"])?;
        ensure!(was_reset(&meshed) || meshed["connect"] == without["connect"], "{to}: {meshed}");
        let time = |told: &serde_json::Value| told["end_ms"].as_f64().unwrap_or(f64::MAX);
        ensure!(time(&meshed) < time(&without) + 1500.0, "{to}: {meshed}, plain {without}");
        let record = shop.mesh.record(1, &[(names::DIALLED, to)])?;
        ensure!(!field(&record, "reason").is_empty(), "{record}");
    }
    Ok(())
}
