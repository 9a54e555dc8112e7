//! Many connections, and destinations that are not there.

use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::access_log::{field, names};
use mesh_tests::apps;
use mesh_tests::manifests::ServiceSpec;
use mesh_tests::mesh::Options;
use serde_json::json;

use crate::shop::{ECHO, NOBODY, Shop, VIP, VIP6, echoed, text, was_reset};

/// How often the kernel programs ended how.
const KERNEL: &str = "ferromesh_kernel_decisions_total";

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
fn a_vip_without_a_ready_endpoint_fails_in_connect() -> Result<()> {
    let shop = Shop::open()?;
    vip_fails_in_connect(&shop, || {
        let wanted = [(names::DIALLED, "198.51.100.30:80"), (names::FLAGS, "no_endpoint")];
        let record = shop.mesh.record(1, &wanted)?;
        ensure!(field(&record, "service") == "shop/empty", "{record}");
        let labels = [("response_flags", "no_endpoint"), ("destination_service", "shop/empty")];
        let counted = shop.mesh.metrics(1)?.sum("ferromesh_tcp_connections_opened_total", &labels);
        ensure!(counted >= 4.0, "{counted} refusals are counted");
        Ok(())
    })
}

/// Where connections are accepted at once the agent would know too late: the kernel refuses, and only counts.
#[test]
fn a_vip_without_a_ready_endpoint_fails_in_connect_where_connections_are_eager_too() -> Result<()> {
    let shop = Shop::open_with(Options { connect: "eager".to_owned(), ..Options::default() }, true)?;
    vip_fails_in_connect(&shop, || {
        let counted = shop.mesh.metrics(1)?.sum(KERNEL, &[("reason", "connect_unserved")]);
        ensure!(counted >= 4.0, "{counted} refusals are counted");
        Ok(())
    })
}

/// A service without an endpoint that is ready, and then with one, and again without; `counted` looks at what was refused.
fn vip_fails_in_connect(shop: &Shop, counted: impl Fn() -> Result<()>) -> Result<()> {
    let put = |ready: bool| {
        shop.mesh.manifests.service(&ServiceSpec {
            namespace: "shop",
            name: "empty",
            vips: vec!["10.99.0.30".to_owned(), "fd99::30".to_owned()],
            ports: vec![("main", 80, ECHO)],
            backends: vec![(&shop.api, ready)],
            more: json!({ "externalIPs": ["198.51.100.30"] }),
        })
    };
    let ask = |to: &str| shop.web.peer(&["talk", "--to", to, "--send", "hello", "--half-close"]);
    let refused = |to: &str| {
        let told = ask(to)?;
        ensure!(told["connect"] == "refused", "{to}: {told}");
        ensure!(told["connect_ms"].as_f64().is_some_and(|ms| ms < 500.0), "{to}: {told}");
        Ok(())
    };
    let all = ["10.99.0.30:80", "[fd99::30]:80", "[::ffff:10.99.0.30]:80", "198.51.100.30:80"];
    put(false)?;
    shop.mesh.in_force("the service to be refused", || refused(all[0]))?;
    // Nobody has looked the others up: their first connection is refused already.
    all.iter().try_for_each(|to| refused(to))?;
    counted()?;
    put(true)?;
    for to in all {
        shop.mesh.in_force("the service to answer", || echoed(&ask(to)?))?;
    }
    put(false)?;
    for to in all {
        shop.mesh.in_force("the service to be refused again", || refused(to))?;
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
    for transport in ["auto", "hbone"] {
        let shop = Shop::open_with(Options { transports: vec![transport; 2], ..Options::default() }, true)?;
        let plain = shop.mesh.pod("plain", "web", 1)?;
        // A warm tunnel to the node, which nobody tells of its end.
        echoed(&shop.ask()?)?;
        shop.mesh.world.plug(2, false)?;
        let to = shop.api.at(NOBODY);
        let talk = ["talk", "--to", &to, "--send", "hello", "--timeout-ms", "30000"];
        let beside = plain.spawn_peer(&talk)?;
        let told = shop.web.peer(&talk)?;
        ensure!(was_reset(&told) || told["connect"] != "ok", "{told}");
        let without = beside.wait(Duration::from_secs(90))?.json()?;
        ensure!(without["connect"] != "ok", "plain TCP reached a node that is gone: {without}");
        eprintln!("{transport}: a node that is gone: {told}, plain {without}");
        let time = |told: &serde_json::Value| told["end_ms"].as_f64().unwrap_or(f64::MAX);
        ensure!(time(&told) < time(&without) + 3000.0, "{transport}: {told}, plain {without}");
        shop.mesh.world.plug(2, true)?;
        shop.until_asking(&shop.web, &format!("{VIP}:{ECHO}"), true)?;
    }
    Ok(())
}

#[test]
fn a_warm_tunnel_whose_far_end_has_forgotten_it_costs_the_client_nothing() -> Result<()> {
    let shop = Shop::open()?;
    let plain = shop.mesh.pod("plain", "web", 1)?;
    echoed(&shop.ask()?)?;
    // As after a reboot: the far kernel has lost the connection, and the reset that says so was lost too.
    shop.mesh.world.plug(2, false)?;
    let killed = shop.api.run("ss", &["-HKtn", "state", "established", "sport", "=", ":15008"])?.success()?;
    ensure!(killed.contains("15008"), "no warm tunnel was found: {killed:?}");
    shop.mesh.world.plug(2, true)?;
    shop.until_asking(&plain, &shop.api.at(ECHO), true)?;
    echoed(&shop.ask()?)
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
