//! An honest `connect()`: it returns when the destination was dialled, and with that outcome, so that programs which
//! choose among addresses by it (libpq, Happy Eyeballs, retries) work as without a mesh.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::access_log::names;
use mesh_tests::apps;
use mesh_tests::capture::Capture;
use mesh_tests::mesh::Options;
use mesh_tests::world::{Pod, PodSpec, netns};
use serde_json::{Value, json};

use crate::shop::{BANNER, ECHO, NOBODY, Shop, VIP, VIP6, echoed, text, was_reset};

fn open(connect: &str) -> Result<Shop> {
    Shop::open_with(Options { connect: connect.to_owned(), ..Options::default() }, true)
}

/// How a `connect()` of a Python program ended, and what it heard back.
fn connect(pod: &Pod, how: &str, (host, port): (&str, u16), say: &[&str]) -> Result<Value> {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("mesh/programs/connect.py");
    let port = port.to_string();
    let program = program.to_string_lossy();
    let mut arguments = vec![&*program, how, host, &port];
    arguments.extend(say);
    pod.run("python3", &arguments)?.json()
}

/// A SYN is sent three times only, so that a time-out takes seven seconds instead of two minutes.
fn impatient(pod: &Pod) -> Result<()> {
    netns::sysctl(pod.netns(), &[("net/ipv4/tcp_syn_retries", "2")])
}

#[test]
fn refused_unreachable_and_lost_destinations_fail_in_connect_as_over_plain_tcp() -> Result<()> {
    let shop = open("honest")?;
    let plain = shop.mesh.pod("plain", "web", 1)?;
    for pod in [&plain, &shop.web] {
        impatient(pod)?;
    }
    // The node's router loses what goes there without a word.
    let lost = [
        "route add blackhole 10.67.0.0/24".to_owned(),
        "route add blackhole fd67::/64".to_owned(),
        "route add unreachable 10.68.0.0/24".to_owned(),
    ];
    netns::batch(&shop.mesh.world.node(1).netns, &lost)?;
    let outsider = shop.mesh.pod("plain", "outsider", 2)?;
    let (outside4, outside6) = (outsider.v4.to_string(), outsider.v6.to_string());
    let cases = [
        ("ECONNREFUSED", outside4.as_str()),
        ("ECONNREFUSED", outside6.as_str()),
        ("ENETUNREACH", "10.66.0.1"),
        ("ENETUNREACH", "fd66::1"),
        ("EHOSTUNREACH", "10.68.0.1"),
        ("ETIMEDOUT", "10.67.0.1"),
        ("ETIMEDOUT", "fd67::1"),
    ];
    for (wanted, host) in cases {
        for how in ["blocking", "edge"] {
            let without = connect(&plain, how, (host, NOBODY), &[])?;
            let meshed = connect(&shop.web, how, (host, NOBODY), &[])?;
            eprintln!("{wanted} {host} {how}: plain {without}, mesh {meshed}");
            ensure!(meshed["connect"] == without["connect"], "{host} {how}: plain {without}, mesh {meshed}");
            ensure!(without["connect"] == wanted, "{host} {how}: plain {without}");
            ensure!(meshed["wakes"] == without["wakes"], "{host} {how}: plain {without}, mesh {meshed}");
        }
    }
    // Inside the mesh, at a pod's own address and behind a service.
    let api = [shop.api.v4.to_string(), shop.api.v6.to_string()];
    for host in [api[0].as_str(), api[1].as_str(), VIP, VIP6] {
        for how in ["blocking", "edge"] {
            let told = connect(&shop.web, how, (host, NOBODY), &[])?;
            ensure!(told["connect"] == "ECONNREFUSED", "{host} {how}: {told}");
        }
    }
    // One record each.
    let dialled = shop.api.at(NOBODY);
    shop.mesh.record(1, &[(names::DIALLED, &dialled), (names::FLAGS, "connection_refused")])?;
    let count = shop.mesh.access_log(1).count(&[(names::DIALLED, &dialled)]);
    ensure!(count == 2, "two connections to {dialled} have {count} records");
    let count = shop.mesh.access_log(1).count(&[(names::DIALLED, &format!("10.67.0.1:{NOBODY}"))]);
    ensure!(count == 2, "two connections that timed out have {count} records");
    Ok(())
}

#[test]
fn applications_see_true_addresses_and_the_first_words_of_the_server() -> Result<()> {
    for transport in ["auto", "hbone"] {
        let options =
            Options { transports: vec![transport; 2], connect: "honest".to_owned(), ..Options::default() };
        let shop = Shop::open_with(options, true)?;
        for (host, own) in [(VIP, shop.web.v4.to_string()), (VIP6, shop.web.v6.to_string())] {
            for how in ["blocking", "edge"] {
                let told = connect(&shop.web, how, (host, ECHO), &["hello"])?;
                ensure!(told["received"] == "hello", "{transport} {host} {how}: {told}");
                ensure!(told["getpeername"] == host && told["getsockname"] == own.as_str(), "{told}");
            }
        }
        for to in [format!("{VIP}:{BANNER}"), shop.api.at6(BANNER)] {
            let told = shop.web.peer(&["talk", "--to", &to, "--limit", "4"])?;
            ensure!(text(&told["received"]).starts_with("220 "), "{transport}: {told}");
        }
        let metrics = shop.mesh.metrics(1)?;
        let held = metrics.sum("ferromesh_kernel_decisions_total", &[("reason", "held_answered")]);
        ensure!(held >= 6.0, "{held} connections were held");
    }
    Ok(())
}

#[test]
fn a_multi_host_driver_takes_the_next_host() -> Result<()> {
    let shop = open("honest")?;
    let db = shop.mesh.pod("shop", "db", 2)?;
    shop.mesh.enrolled(&[&db])?;
    let _postgres = apps::postgres(&db)?;
    // Nothing listens on 5432 of `api`.
    let hosts = format!("host={},{} port=5432,5432 user=postgres", shop.api.v4, db.v4);
    let told = shop.web.run("psql", &[&hosts, "-Atc", "select 'from ' || inet_server_addr()"])?.success()?;
    ensure!(told.contains(&db.v4.to_string()), "{told}");
    Ok(())
}

#[test]
fn happy_eyeballs_fall_back_to_the_family_that_answers() -> Result<()> {
    let shop = open("honest")?;
    let folder = shop.api.files()?;
    std::fs::write(folder.join("index.html"), "over IPv4")?;
    let at = folder.to_string_lossy().into_owned();
    let arguments = ["-m", "http.server", "--bind", "0.0.0.0", "--directory", &at, "8088"];
    let server = shop.api.spawn("http", "python3", &arguments)?;
    apps::listening(&shop.api, 8088, &server)?;
    let resolve = format!("shop.test:8088:[{}],{}", shop.api.v6, shop.api.v4);
    let curl = ["-sS", "--max-time", "10", "--resolve", &resolve, "http://shop.test:8088/"];
    let told = shop.web.run("curl", &curl)?.success()?;
    ensure!(told == "over IPv4", "{told}");
    Ok(())
}

#[test]
fn a_connect_waits_while_the_agent_is_dead_and_nothing_leaks() -> Result<()> {
    let mut shop = open("honest")?;
    echoed(&shop.ask()?)?;
    shop.mesh.kill_agent(1);
    let capture = Capture::start(&shop.mesh.world, 1, "dead")?;
    let talk = ["talk", "--send", "hello", "--half-close", "--timeout-ms", "40000", "--to"];
    let to = [format!("{VIP}:{ECHO}"), shop.api.at6(ECHO)];
    let waiting: Result<Vec<_>> =
        to.iter().map(|to| shop.web.spawn_peer(&[&talk[..], &[to]].concat())).collect();
    std::thread::sleep(Duration::from_secs(2));
    shop.mesh.start_agent(1)?;
    for client in waiting? {
        let told = client.wait(Duration::from_secs(40))?.json().context("a client that waited")?;
        echoed(&told)?;
        ensure!(told["connect_ms"].as_f64().is_some_and(|ms| ms > 1900.0), "{told}");
    }
    let captured = capture.stop()?;
    ensure!(!captured.contains(b"hello"), "plaintext on the wire");
    ensure!(captured.with_port(ECHO) == 0, "{:?}", captured.dialled());
    Ok(())
}

#[test]
fn eager_connects_at_once_and_a_failure_is_a_reset() -> Result<()> {
    let shop = open("eager")?;
    let told = connect(&shop.web, "blocking", (VIP, NOBODY), &[])?;
    ensure!(told["connect"] == "ok", "{told}");
    let told = shop.web.peer(&["talk", "--to", &format!("{VIP}:{NOBODY}"), "--send", "hello"])?;
    ensure!(told["connect"] == "ok" && was_reset(&told), "{told}");
    Ok(())
}

#[test]
fn a_pod_that_nobody_has_classified_waits_and_then_goes_through_the_mesh_or_plainly() -> Result<()> {
    for connect in ["honest", "eager"] {
        let options =
            Options { connect: connect.to_owned(), unclassified: "hold".to_owned(), ..Options::default() };
        let shop = Shop::open_with(options, true)?;
        let outsider = shop.mesh.pod("plain", "outsider", 2)?;
        let _server = apps::peer_server(&outsider, "echo", ECHO, &[])?;
        // The kubelet has made them; the controller has not heard of them.
        let world = &shop.mesh.world;
        let meshed = world.pod(&PodSpec::new("shop", "late", 1))?;
        let plain = world.pod(&PodSpec::new("plain", "late", 1))?;
        let capture = Capture::start(world, 1, &format!("late-{connect}"))?;
        let talk = ["talk", "--send", "hello", "--half-close", "--timeout-ms", "40000", "--to"];
        let waiting = [
            (&meshed, meshed.spawn_peer(&[&talk[..], &[&format!("{VIP}:{ECHO}")]].concat())?),
            (&meshed, meshed.spawn_peer(&[&talk[..], &[&shop.api.at6(ECHO)]].concat())?),
            (&plain, plain.spawn_peer(&[&talk[..], &[&outsider.at(ECHO)]].concat())?),
        ];
        std::thread::sleep(Duration::from_millis(1500));
        for (pod, client) in &waiting {
            ensure!(client.stdout().is_empty(), "{} did not wait: {}", pod.name(), client.stdout());
        }
        let before = capture.stop()?;
        ensure!(before.with_port(ECHO) == 0, "left before it was classified: {:?}", before.dialled());
        let capture = Capture::start(world, 1, &format!("classified-{connect}"))?;
        shop.mesh.manifests.pod(&meshed)?;
        shop.mesh.manifests.pod(&plain)?;
        for (pod, client) in waiting {
            let told = client.wait(Duration::from_secs(40))?.json().context("a client that waited")?;
            echoed(&told)?;
            let name = text(&told["getsockname"]).replace('[', "");
            let own = [pod.v4.to_string(), pod.v6.to_string()];
            ensure!(own.iter().any(|own| name.starts_with(own)), "{}: {told}", pod.name());
        }
        shop.mesh.record(1, &[(names::SOURCE_ID, &meshed.spiffe_id())])?;
        let dialled = capture.stop()?.dialled();
        ensure!(dialled.get(&ECHO) == Some(&1), "one plain connection only, of the pod outside: {dialled:?}");
        let released = shop.mesh.metrics(1)?.sum("ferromesh_held_released_total", &[]);
        ensure!(released == 1.0, "{released} connections were released");
    }
    Ok(())
}

#[test]
fn mptcp_sockets_of_a_pod_that_nobody_has_classified_wait_too() -> Result<()> {
    let shop = Shop::open_with(Options { unclassified: "hold".to_owned(), ..Options::default() }, true)?;
    let outsider = shop.mesh.pod("plain", "outsider", 2)?;
    let _server = apps::peer_server(&outsider, "echo", ECHO, &[])?;
    let world = &shop.mesh.world;
    let (meshed, plain) =
        (world.pod(&PodSpec::new("shop", "late", 1))?, world.pod(&PodSpec::new("plain", "late", 1))?);
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("mesh/programs/sockets.py");
    let (program, port) = (program.to_string_lossy(), ECHO.to_string());
    let (api6, outside) = (shop.api.v6.to_string(), outsider.v4.to_string());
    let mut waiting = Vec::new();
    for (pod, host) in [(&meshed, VIP), (&meshed, api6.as_str()), (&plain, outside.as_str())] {
        let name = format!("mptcp-{}-{}", pod.name(), waiting.len()).replace('/', "-");
        waiting.push((host, pod.spawn(&name, "python3", &[&program, "mptcp", host, &port, "patient"])?));
    }
    std::thread::sleep(Duration::from_millis(1500));
    for (host, client) in &waiting {
        ensure!(client.stdout().is_empty(), "{host} did not wait: {}", client.stdout());
    }
    shop.mesh.manifests.pod(&meshed)?;
    shop.mesh.manifests.pod(&plain)?;
    for (host, client) in waiting {
        let told = client.wait(Duration::from_secs(60))?.json()?;
        ensure!(told["received"] == "hello" && told["getpeername"] == format!("{host}:{port}"), "{told}");
    }
    Ok(())
}

/// Waits until a `connect()` to a port where nobody listens ends like this.
fn until_connect(shop: &Shop, outcome: &str) -> Result<()> {
    shop.mesh.in_force(&format!("connect() to end with {outcome}"), || {
        let told = connect(&shop.web, "blocking", (VIP, NOBODY), &[])?;
        ensure!(told["connect"] == outcome, "{told}");
        Ok(())
    })
}

#[test]
fn honest_is_the_default_and_a_mesh_config_changes_it_for_running_pods() -> Result<()> {
    let shop = open("auto")?;
    let told = connect(&shop.web, "blocking", (VIP, NOBODY), &[])?;
    ensure!(told["connect"] == "ECONNREFUSED", "{told}");
    shop.mesh.manifests.mesh_config("shop", json!({ "connect": "Eager" }))?;
    until_connect(&shop, "ok")?;
    shop.mesh.manifests.mesh_config("shop", json!({ "connect": "Honest" }))?;
    until_connect(&shop, "ECONNREFUSED")
}

#[test]
fn a_node_that_cannot_answer_a_held_connect_accepts_at_once_and_check_says_so() -> Result<()> {
    let mut shop = open("auto")?;
    let script = shop.mesh.world.files.join("agent-without-raw-sockets");
    let agent = mesh_tests::world::binary("mesh-agent")?;
    let text = format!("#!/bin/sh\nexec setpriv --bounding-set -net_raw {} \"$@\"\n", agent.display());
    std::fs::write(&script, text)?;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
    shop.mesh.agent_program = Some(script);
    ensure!(shop.mesh.stop_agent(1)?.ok(), "the agent failed");
    shop.mesh.start_agent(1)?;
    until_connect(&shop, "ok")?;
    let told = shop.mesh.meshctl(1, &["check"])?;
    let named = told.stdout.lines().find(|line| line.contains("CAP_NET_RAW, to answer an honest connect()"));
    ensure!(
        !told.ok() && named.is_some_and(|line| line.contains("connect() returns at once")),
        "{}",
        told.stdout
    );
    Ok(())
}
