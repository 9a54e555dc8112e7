//! Nothing gets past it: the agent's ports, the loopback addresses that name connections, and every kind of socket.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use mesh_tests::access_log::{field, names};
use mesh_tests::apps;
use mesh_tests::mesh::Options;
use mesh_tests::world::{Pod, PodSpec, Process, binary};
use serde_json::Value;

use crate::shop::{ECHO, Shop, VIP, VIP6, echoed, is_echoed, text};

/// How often the kernel programs ended how.
const KERNEL: &str = "ferromesh_kernel_decisions_total";

fn program(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("mesh/programs").join(name)
}

/// Runs `sockets.py` in a pod.
pub(crate) fn sockets(pod: &Pod, arguments: &[&str]) -> Result<Value> {
    let script = program("sockets.py").to_string_lossy().into_owned();
    let mut all = vec![script.as_str()];
    all.extend(arguments);
    pod.run("python3", &all)?.json()
}

pub(crate) fn counted(shop: &Shop, reason: &str) -> Result<f64> {
    Ok(shop.mesh.metrics(1)?.sum(KERNEL, &[("reason", reason)]))
}

#[test]
fn pods_cannot_bind_the_ports_and_addresses_of_the_agent_even_while_it_is_dead() -> Result<()> {
    let mut shop = Shop::open()?;
    let plain = shop.mesh.pod("plain", "web", 1)?;
    let reserved: Vec<(&str, &str)> = ["0.0.0.0", "::", "::ffff:127.0.0.1", "127.0.0.1"]
        .into_iter()
        .flat_map(|host| ["15001", "15006", "15008"].map(|port| (host, port)))
        .chain([("127.64.0.1", "8000"), ("127.255.0.1", "0"), ("::ffff:127.64.0.1", "8000")])
        .collect();
    let refused = |pod: &Pod| -> Result<()> {
        for (host, port) in &reserved {
            for more in [&[][..], &["reuse"]] {
                let told = sockets(pod, &[&["bind", *host, *port], more].concat())?;
                ensure!(told["bind"] == "EADDRINUSE", "{host} {port} {more:?} in {}: {told}", pod.name());
            }
        }
        for (host, port) in [("0.0.0.0", "15003"), ("127.0.0.1", "0"), ("::", "15009")] {
            let told = sockets(pod, &["bind", host, port])?;
            ensure!(told["listen"] == "ok", "{host} {port} in {}: {told}", pod.name());
        }
        Ok(())
    };
    // A pod outside of the mesh must not prepare for its enrolment either.
    shop.mesh.in_force("the plain pod to be known", || refused(&plain))?;
    refused(&shop.web)?;
    ensure!(counted(&shop, "bind_reserved_port")? >= 48.0 && counted(&shop, "bind_token_address")? >= 12.0);
    shop.mesh.kill_agent(1);
    refused(&shop.web)?;
    refused(&plain)?;
    shop.mesh.start_agent(1)?;
    echoed(&shop.ask()?)
}

#[test]
fn a_pod_whose_process_took_a_port_before_enrolment_stays_closed_and_the_status_says_so() -> Result<()> {
    const STOLEN: &str = "this is the squatter";
    let shop = Shop::open()?;
    let plain = shop.mesh.pod("plain", "web", 1)?;
    for port in [15001, 15006, 15008_u16] {
        // Nobody knows the pod yet.
        let pod = shop.mesh.world.pod(&PodSpec::new("shop", &format!("squat-{port}"), 1))?;
        let squatter = apps::peer_server(&pod, "banner", port, &["--text", STOLEN])?;
        let _echo = apps::peer_server(&pod, "echo", ECHO, &[])?;
        shop.mesh.manifests.pod(&pod)?;
        let said = format!("{}: port {port} is taken", pod.name());
        shop.mesh.in_force("the status to say it", || {
            let status = shop.mesh.meshctl(1, &["status"])?;
            ensure!(status.stdout.contains(&said), "{said}: {status:?}");
            Ok(())
        })?;
        let told = shop.ask_from(&pod, &format!("{VIP}:{ECHO}"))?;
        ensure!(text(&told["connect"]).starts_with("Operation not permitted"), "{port}: {told}");
        for from in [&plain, &shop.web] {
            for to in [pod.at(port), pod.at(ECHO), pod.at6(port), pod.at6(ECHO)] {
                let told = from.peer(&["talk", "--to", &to, "--send", "hello", "--timeout-ms", "2000"])?;
                ensure!(!is_echoed(&told) && text(&told["received"]).is_empty(), "{port} {to}: {told}");
            }
        }
        ensure!(counted(&shop, "connect_pod_closed")? >= 1.0);
        ensure!(shop.mesh.metrics(1)?.sum("ferromesh_unserved_pods", &[]) >= 1.0);
        drop(squatter);
        shop.until_asking(&pod, &format!("{VIP}:{ECHO}"), true)?;
        shop.until_asking(&shop.web, &pod.at(ECHO), true)?;
    }
    Ok(())
}

#[test]
fn beside_a_socket_load_balancer_above_the_pods_the_mesh_still_sees_the_virtual_address() -> Result<()> {
    let mut shop = Shop::open()?;
    let plain = shop.mesh.pod("plain", "web", 1)?;
    let node = shop.mesh.world.node(1).clone();
    let (cgroup, backend) = (node.cgroup.to_string_lossy().into_owned(), shop.api.v4.to_string());
    let pins = node.pins.join("stand-in").to_string_lossy().into_owned();
    let arguments = ["--cgroup", &cgroup, "--vip", VIP, "--backend", &backend, "--pins", &pins];
    let balancer = Process::start(&node.place(), "stand-in", &binary("standin")?, &arguments)?;
    shop.mesh.in_force("the stand-in to be attached", || {
        ensure!(balancer.stdout().contains("attached"), "{}", balancer.tail());
        Ok(())
    })?;
    let to = format!("{VIP}:{ECHO}");
    let seen_in_full = |shop: &Shop| -> Result<()> {
        // It does its work for whom the mesh leaves alone.
        let told = shop.ask_from(&plain, &to)?;
        ensure!(is_echoed(&told) && told["getpeername"] == to, "{told}");
        // Ours run first, whoever came first.
        let told = shop.ask()?;
        ensure!(is_echoed(&told) && told["getpeername"] == to, "{told}");
        let client = text(&told["getsockname"]).to_owned();
        let record = shop.mesh.record(1, &[(names::CLIENT, &client), (names::REPORTER, names::SOURCE)])?;
        ensure!(field(&record, names::DIALLED) == to, "{record}");
        Ok(())
    };
    seen_in_full(&shop)?;
    shop.mesh.kill_agent(1);
    // All hooks are attached anew, now after the stand-in.
    std::fs::remove_dir_all(&node.pins)?;
    shop.mesh.start_agent(1)?;
    shop.until_asking(&shop.web, &to, true)?;
    seen_in_full(&shop)
}

#[test]
fn every_kind_of_socket_is_redirected_passed_or_refused_and_counted() -> Result<()> {
    let shop = Shop::open()?;
    let port = ECHO.to_string();
    let host = shop.api.v4.to_string();
    for kind in ["tcp", "fastopen", "mptcp"] {
        for host in [host.as_str(), VIP, VIP6] {
            let told = sockets(&shop.web, &[kind, host, &port])?;
            ensure!(told["received"] == "hello", "{kind} {host}: {told}");
            ensure!(told["getpeername"] == format!("{host}:{port}"), "{kind} {host}: {told}");
            let own = if host.contains(':') { shop.web.v6.to_string() } else { shop.web.v4.to_string() };
            ensure!(told["getsockname"] == own, "{kind} {host}: {told}");
        }
    }
    for kind in ["udplite", "sctp", "sctp-packets", "raw", "raw-icmp", "raw-tcp"] {
        let told = sockets(&shop.web, &[kind, &host, &port])?;
        ensure!(
            ["EPERM", "EPROTONOSUPPORT", "ESOCKTNOSUPPORT"].contains(&text(&told["socket"])),
            "{kind}: {told}"
        );
    }
    let udp = sockets(&shop.web, &["udp", &host, &port])?;
    ensure!(udp["send"] == "ok", "{udp}");
    let uring = shop.mesh.world.files.join("uring");
    let built =
        Command::new("cc").args(["-O1", "-o"]).arg(&uring).arg(program("uring.c")).status().context("cc")?;
    ensure!(built.success(), "{built}");
    let told = shop.web.run(&uring.to_string_lossy(), &[VIP, &port])?.json()?;
    ensure!(told["ring"] == "unsupported" || told["received"] == "hello", "{told}");
    for (reason, at_least) in [("socket_tcp", 9.0), ("socket_udp", 1.0), ("socket_refused", 3.0)] {
        ensure!(counted(&shop, reason)? >= at_least, "{reason}: {}", counted(&shop, reason)?);
    }
    // Outside of the mesh nothing is refused.
    let plain = shop.mesh.pod("plain", "web", 1)?;
    let told = sockets(&plain, &["raw-icmp", &host, &port])?;
    ensure!(told["socket"] == "ok", "{told}");
    Ok(())
}

#[test]
fn where_the_owner_allows_other_sockets_an_enrolled_pod_gets_them_and_they_are_counted() -> Result<()> {
    let agent_arguments = vec!["--other-sockets", "allow"];
    let shop = Shop::open_with(Options { agent_arguments, ..Options::default() }, true)?;
    let host = shop.api.v4.to_string();
    for kind in ["raw", "raw-icmp", "udplite"] {
        let told = sockets(&shop.web, &[kind, &host, &ECHO.to_string()])?;
        ensure!(["ok", "EPROTONOSUPPORT"].contains(&text(&told["socket"])), "{kind}: {told}");
    }
    ensure!(counted(&shop, "socket_let_be")? >= 2.0 && counted(&shop, "socket_refused")? < 1.0);
    echoed(&shop.ask()?)
}
