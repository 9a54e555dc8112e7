//! Who is who: real programs across two nodes, identities on both sides, not one byte in the clear.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use mesh_tests::access_log::names;
use mesh_tests::apps::Nginx;
use mesh_tests::capture::Capture;
use mesh_tests::mesh::{Mesh, Options};
use mesh_tests::world::{Pod, Process};

use crate::shop::{ECHO, Shop, VIP, both_records, echoed, has, text};

const PAGE: &str = "the page that no capture may see";

#[test]
fn curl_reaches_nginx_by_its_service_with_both_identities_and_not_one_byte_in_the_clear() -> Result<()> {
    let mut mesh = Mesh::prepare(Options::default())?;
    mesh.manifests.namespace("shop", true)?;
    let (web, front) = (mesh.pod("shop", "web", 1)?, mesh.pod("shop", "front", 2)?);
    mesh.service(("shop", "front"), &["10.99.0.20", "fd99::20"], (8080, 80), &[&front])?;
    let nginx = Nginx::start(&front, PAGE)?;
    mesh.start_controller()?;
    mesh.start_agent(1)?;
    mesh.start_agent(2)?;
    mesh.enrolled(&[&web, &front])?;
    let capture = Capture::start(&mesh.world, 2, "mtls")?;
    for url in ["http://10.99.0.20:8080/", "http://[fd99::20]:8080/"] {
        let page = web.run("curl", &["-sS", "--max-time", "5", url])?.success()?;
        ensure!(page == PAGE, "{url}: {page}\n{}", mesh.logs());
    }
    for url in [format!("http://{}/", front.at(80)), format!("http://{}/", front.at6(80))] {
        let page = web.run("curl", &["-sS", "--max-time", "5", &url])?.success()?;
        ensure!(page == PAGE, "{url}: {page}");
    }
    let captured = capture.stop()?;
    ensure!(
        !captured.contains(PAGE.as_bytes()) && !captured.contains(b"GET / HTTP"),
        "plaintext on the link"
    );
    ensure!(captured.with_port(15008) > 0 && captured.is_tls(15008), "{:?}", captured.dialled());
    ensure!(captured.with_port(80) == 0, "{:?}", captured.dialled());
    let log = nginx.access_log();
    let clients: Vec<&str> = log.lines().filter_map(|line| line.split(' ').next()).collect();
    let (v4, v6) = (web.v4.to_string(), web.v6.to_string());
    ensure!(clients == [v4.as_str(), v6.as_str(), v4.as_str(), v6.as_str()], "nginx saw {clients:?}");
    for (node, reporter) in [(1, names::SOURCE), (2, names::DESTINATION)] {
        let record =
            mesh.record(node, &[(names::REPORTER, reporter), (names::SOURCE_ID, &web.spiffe_id())])?;
        has(&record, names::DESTINATION_ID, &front.spiffe_id())?;
        // The last one dialled the pod: only the destination can say which service is behind it.
        if reporter == names::DESTINATION {
            has(&record, "service", "shop/front")?;
        }
    }
    Ok(())
}

#[test]
fn each_connection_has_one_record_at_each_end_with_the_same_client() -> Result<()> {
    let shop = Shop::open()?;
    let told = shop.ask()?;
    echoed(&told)?;
    let client = text(&told["getsockname"]);
    for record in both_records(&shop.mesh, client)? {
        has(&record, names::SOURCE_ID, &shop.web.spiffe_id())?;
        has(&record, names::DESTINATION_ID, &shop.api.spiffe_id())?;
    }
    std::thread::sleep(std::time::Duration::from_millis(300));
    for node in [1, 2] {
        let count = shop.mesh.access_log(node).count(&[(names::CLIENT, client)]);
        ensure!(count == 1, "node {node} wrote {count} records of one connection");
    }
    Ok(())
}

#[test]
fn two_service_accounts_on_one_node_never_share_an_identity() -> Result<()> {
    let shop = Shop::open()?;
    let other = shop.mesh.pod("shop", "other", 1)?;
    shop.mesh.enrolled(&[&other])?;
    let to = format!("{VIP}:{ECHO}");
    shop.until_asking(&other, &to, true)?;
    for _ in 0..20 {
        for pod in [&shop.web, &other] {
            let told = shop.ask_from(pod, &to)?;
            echoed(&told)?;
            let client = text(&told["getsockname"]);
            ensure!(client.starts_with(&pod.v4.to_string()), "{client}");
            for record in both_records(&shop.mesh, client)? {
                has(&record, names::SOURCE_ID, &pod.spiffe_id())?;
            }
        }
    }
    Ok(())
}

#[test]
fn two_pods_of_one_node_meet_with_identities_too() -> Result<()> {
    let shop = Shop::open()?;
    let near = shop.mesh.pod("shop", "near", 2)?;
    shop.mesh.enrolled(&[&near])?;
    let told = shop.until_asking(&near, &format!("{VIP}:{ECHO}"), true)?;
    let record = shop
        .mesh
        .record(2, &[(names::CLIENT, text(&told["getsockname"])), (names::REPORTER, names::DESTINATION)])?;
    has(&record, names::SOURCE_ID, &near.spiffe_id())
}

/// A process of `pod` with this number, which nobody has any more: the next number is the kernel's to give, and may be
/// somebody else's first.
fn with_number(pod: &Pod, number: u32, arguments: &[&str]) -> Result<Process> {
    for _ in 0..200 {
        std::fs::write("/proc/sys/kernel/ns_last_pid", (number - 1).to_string())?;
        let mut process = pod.spawn_peer(arguments)?;
        if process.id() == number {
            return Ok(process);
        }
        process.kill();
    }
    bail!("{number} was never given to a process of {}", pod.name())
}

#[test]
fn a_process_number_that_is_used_again_in_another_pod_brings_nothing_of_the_first_ones_identity() -> Result<()>
{
    let shop = Shop::open()?;
    let (other, plain) = (shop.mesh.pod("shop", "other", 1)?, shop.mesh.pod("plain", "stranger", 1)?);
    shop.mesh.enrolled(&[&other])?;
    let to = shop.api.at(ECHO);
    for pod in [&other, &plain] {
        shop.until_asking(pod, &to, true)?;
    }
    let tick = ["ticker", "--to", &to, "--text", "tick", "--every-ms", "5"];
    let talk = ["talk", "--to", &to, "--send", "hello", "--half-close"];
    for turn in 0..6 {
        // It lives for longer than the agent needs to look at its pod's processes, and its connections are the pod's.
        let mut first = shop.web.spawn_peer(&tick)?;
        shop.mesh.in_force("it to be answered", || {
            ensure!(first.stdout().contains("\"ok\""), "{}", first.tail());
            Ok(())
        })?;
        let number = first.id();
        first.kill();
        let (pod, id) =
            if turn % 2 == 0 { (&other, other.spiffe_id()) } else { (&plain, names::NOBODY.to_owned()) };
        let told = with_number(pod, number, &talk)?.wait(Duration::from_secs(20))?.json()?;
        echoed(&told)?;
        let client = [(names::CLIENT, text(&told["getsockname"])), (names::REPORTER, names::DESTINATION)];
        has(&shop.mesh.record(2, &client)?, names::SOURCE_ID, &id)?;
    }
    Ok(())
}
