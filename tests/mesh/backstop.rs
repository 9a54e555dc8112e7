//! No plaintext reaches an application around the agent: not while the agent is dead, not without `sk_lookup`, not before
//! a pod is known.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mesh_tests::apps;
use mesh_tests::mesh::Options;
use mesh_tests::world::{Pod, PodSpec, Process, binary};
use serde_json::{Value, json};

use crate::shop::{ECHO, NOBODY, Shop, VIP, echoed, text};

/// How often the kernel programs ended how.
const KERNEL: &str = "ferromesh_kernel_decisions_total";

fn counted(shop: &Shop, reason: &str) -> Result<f64> {
    Ok(shop.mesh.metrics(2)?.sum(KERNEL, &[("reason", reason)]))
}

/// Asks, not waiting long.
fn ask(from: &Pod, to: &str) -> Result<Value> {
    from.peer(&["talk", "--to", to, "--send", "hello", "--timeout-ms", "1500"])
}

/// Neither family of `pod` lets anybody in: no connection (to whom an agent stands between: none that carries), so not
/// one byte.
fn unreached(from: &Pod, pod: &Pod) -> Result<()> {
    for to in [pod.at(ECHO), pod.at6(ECHO)] {
        let told = ask(from, &to)?;
        ensure!(
            (told["connect"] != "ok" || from.spec.namespace == "shop") && text(&told["received"]).is_empty(),
            "{} {to}: {told}",
            from.name()
        );
    }
    Ok(())
}

#[test]
fn not_one_plaintext_byte_reaches_an_application_while_the_agent_is_dead() -> Result<()> {
    let mut shop = Shop::open()?;
    shop.mesh.manifests.mesh_config("shop", json!({ "mtls": { "mode": "STRICT" } }))?;
    let (far, near) = (shop.mesh.pod("plain", "far", 1)?, shop.mesh.pod("plain", "near", 2)?);
    let _near = apps::peer_server(&near, "echo", ECHO, &[])?;
    shop.mesh.in_force("the plain pod to be known", || echoed(&shop.ask_from(&far, &near.at(ECHO))?))?;
    let empty = counted(&shop, "lookup_empty_slot")?;
    shop.mesh.kill_agent(2);
    // The old pod: its lookup stays pinned and its slots are empty.
    let pin =
        shop.mesh.world.node(2).pins.join("lookups").join(fs::metadata(shop.api.cgroup())?.ino().to_string());
    ensure!(pin.exists(), "{} is gone", pin.display());
    for from in [&far, &near, &shop.web] {
        unreached(from, &shop.api)?;
    }
    // A new pod, which nobody has classified.
    let late = shop.mesh.pod("shop", "late", 2)?;
    let _late = apps::peer_server(&late, "echo", ECHO, &[])?;
    for from in [&far, &near, &shop.web] {
        unreached(from, &late)?;
    }
    // Who is known not to be enrolled is served as ever, and so is what a pod dials itself.
    echoed(&shop.ask_from(&far, &near.at(ECHO))?)?;
    echoed(&shop.ask_from(&near, &near.at(ECHO))?)?;
    shop.mesh.start_agent(2)?;
    shop.until_asking(&shop.web, &late.at(ECHO), true)?;
    echoed(&shop.ask()?)?;
    ensure!(counted(&shop, "lookup_empty_slot")? >= empty + 6.0);
    ensure!(counted(&shop, "ingress_held")? >= 6.0, "{}", counted(&shop, "ingress_held")?);
    // Strict all the same.
    let told = ask(&far, &late.at(ECHO))?;
    ensure!(text(&told["received"]).is_empty(), "{told}");
    Ok(())
}

#[test]
fn a_lost_agent_opens_only_pods_whose_owner_chose_it_and_never_strict_ones() -> Result<()> {
    let mut shop = Shop::open()?;
    let far = shop.mesh.pod("plain", "far", 1)?;
    let _far = apps::peer_server(&far, "echo", ECHO, &[])?;
    let mut pods = Vec::new();
    let mut servers = Vec::new();
    for namespace in ["vault", "bank"] {
        shop.mesh.manifests.namespace(namespace, true)?;
        let pod = shop.mesh.pod(namespace, "db", 2)?;
        servers.push(apps::peer_server(&pod, "echo", ECHO, &[])?);
        pods.push(pod);
    }
    shop.mesh.manifests.mesh_config("shop", json!({ "agentLostAfter": "3s" }))?;
    shop.mesh
        .manifests
        .mesh_config("vault", json!({ "agentLostAfter": "3s", "mtls": { "mode": "STRICT" } }))?;
    shop.mesh.enrolled(&[&pods[0], &pods[1]])?;
    shop.mesh.in_force("the choice to be known", || {
        let dump = shop.mesh.meshctl(2, &["-o", "json", "dump"])?.json()?;
        ensure!(dump.to_string().contains("\"opens_after_seconds\":3"), "{dump}");
        Ok(())
    })?;
    // The kernel is told right after.
    std::thread::sleep(Duration::from_secs(1));
    shop.mesh.kill_agent(2);
    let killed = Instant::now();
    unreached(&far, &shop.api)?;
    let (out, to) = (far.at(ECHO), shop.api.at(ECHO));
    shop.until_asking(&far, &to, true)?;
    shop.until_asking(&far, &shop.api.at6(ECHO), true)?;
    shop.until_asking(&shop.api, &out, true)?;
    // After five seconds an agent counts as away.
    std::thread::sleep(Duration::from_secs(6).saturating_sub(killed.elapsed()));
    for pod in &pods {
        unreached(&far, pod)?;
        let told = ask(pod, &out)?;
        ensure!(text(&told["received"]).is_empty(), "{}: {told}", pod.name());
    }
    shop.mesh.start_agent(2)?;
    let passed = ["connect_agent_lost", "lookup_agent_lost"];
    for reason in [passed[0], passed[1], "connect_agent_away"] {
        ensure!(counted(&shop, reason)? >= 1.0, "{reason}");
    }
    // Everything is the mesh's again.
    let before: Result<Vec<f64>> = passed.iter().map(|reason| counted(&shop, reason)).collect();
    echoed(&shop.ask()?)?;
    echoed(&shop.ask_from(&far, &to)?)?;
    echoed(&shop.ask_from(&shop.api, &out)?)?;
    let after: Result<Vec<f64>> = passed.iter().map(|reason| counted(&shop, reason)).collect();
    ensure!(before? == after?);
    // Strict all the same: the agent takes the connection and resets it.
    let told = ask(&far, &pods[0].at(ECHO))?;
    ensure!(text(&told["received"]).is_empty(), "{told}");
    Ok(())
}

#[test]
fn a_closed_port_of_a_permissive_pod_refuses_an_outsider_at_once() -> Result<()> {
    let shop = Shop::open()?;
    let far = shop.mesh.pod("plain", "far", 1)?;
    let refused = |pod: &Pod, port: u16| -> Result<()> {
        for to in [pod.at(port), pod.at6(port)] {
            let told = ask(&far, &to)?;
            ensure!(told["connect"] == "refused", "{to}: {told}");
        }
        Ok(())
    };
    // The servers of `api` have listened since before it was enrolled.
    shop.until_asking(&far, &shop.api.at(ECHO), true)?;
    for port in [NOBODY, 15001, 15006] {
        refused(&shop.api, port)?;
    }
    // One that begins to listen now is there at once, and gone at once.
    let first = apps::peer_server(&shop.api, "echo", NOBODY, &[])?;
    echoed(&shop.ask_from(&far, &shop.api.at(NOBODY))?)?;
    echoed(&shop.ask_from(&far, &shop.api.at6(NOBODY))?)?;
    drop(first);
    refused(&shop.api, NOBODY)?;
    // One that listens on loopback only is nobody for others.
    let _own = shop.api.spawn_peer(&["echo", "--listen", "127.0.0.1:7300"])?;
    shop.until_asking(&shop.api, "127.0.0.1:7300", true)?;
    refused(&shop.api, 7300)?;
    // One that is older than the mesh and dies is noticed a little later.
    let old = shop.mesh.world.pod(&PodSpec::new("shop", "old", 2))?;
    let server = apps::peer_server(&old, "echo", ECHO, &[])?;
    shop.mesh.manifests.pod(&old)?;
    shop.mesh.enrolled(&[&old])?;
    shop.until_asking(&far, &old.at(ECHO), true)?;
    drop(server);
    shop.mesh.in_force("the old server to be missed", || refused(&old, ECHO))?;
    ensure!(counted(&shop, "lookup_closed_port")? >= 12.0);
    Ok(())
}

#[test]
fn an_enrolled_pod_without_its_lookup_is_reached_by_nobody_around_the_agent() -> Result<()> {
    let shop = Shop::open()?;
    let far = shop.mesh.pod("plain", "far", 1)?;
    shop.until_asking(&far, &shop.api.at(ECHO), true)?;
    let lookups = shop.mesh.world.node(2).pins.join("lookups");
    fs::remove_file(lookups.join(fs::metadata(shop.api.cgroup())?.ino().to_string()))?;
    unreached(&far, &shop.api)?;
    ensure!(counted(&shop, "ingress_enrolled")? >= 2.0);
    // The pod itself still reaches its own, and others.
    echoed(&shop.ask_from(&shop.api, &shop.api.at(ECHO))?)?;
    echoed(&shop.ask_from(&shop.api, &format!("127.0.0.1:{ECHO}"))?)
}

#[test]
fn a_pod_that_nobody_knows_is_held_and_the_node_itself_is_not() -> Result<()> {
    let shop = Shop::open()?;
    let far = shop.mesh.pod("plain", "far", 1)?;
    let stranger = shop.mesh.world.pod(&PodSpec::new("plain", "stranger", 2))?;
    let _echo = apps::peer_server(&stranger, "echo", ECHO, &[])?;
    unreached(&far, &stranger)?;
    // A pod on the node's own network: its cgroup is a pod's, nobody knows it, and it serves.
    let node = shop.mesh.world.node(2).clone();
    let mut place = node.place();
    place.cgroup = node.pods_cgroup().join("podhostnetwork");
    fs::create_dir_all(&place.cgroup)?;
    let listen = format!("[::]:{ECHO}");
    let _host = Process::start(&place, "host-echo", &binary("peer")?, &["echo", "--listen", &listen])?;
    let at_node = format!("{}:{ECHO}", node.v4);
    shop.mesh.in_force("the node's own to answer", || echoed(&shop.ask_from(&far, &at_node)?))?;
    // What a held pod dials waits for its classification.
    let dial = ["talk", "--to", &at_node, "--send", "hello", "--half-close", "--timeout-ms", "40000"];
    let waiting = stranger.spawn_peer(&dial)?;
    std::thread::sleep(Duration::from_secs(1));
    ensure!(waiting.stdout().is_empty(), "a held pod did not wait: {}", waiting.stdout());
    // As a kubelet's probe would: from the node, to a pod that is not enrolled and to one that is.
    shop.mesh.manifests.pod(&stranger)?;
    echoed(&waiting.wait(Duration::from_secs(40))?.json()?)?;
    for to in [stranger.at(ECHO), shop.api.at(ECHO)] {
        shop.mesh.in_force("the node to reach the pod", || {
            let probe = ["talk", "--to", &to, "--send", "hello", "--half-close"];
            let ended = Process::start(&node.place(), "probe", &binary("peer")?, &probe)?
                .wait(Duration::from_secs(20))?;
            // All probes write to the same file.
            echoed(&serde_json::from_str(ended.stdout.lines().last().unwrap_or_default())?)
        })?;
    }
    echoed(&shop.ask_from(&far, &stranger.at(ECHO))?)?;
    shop.until_asking(&shop.web, &format!("{VIP}:{ECHO}"), true)?;
    Ok(())
}

#[test]
fn where_the_owner_lets_unclassified_pods_pass_one_talks_and_is_reached_until_it_is_known() -> Result<()> {
    let mut shop = Shop::open_with(Options { unclassified: "pass".to_owned(), ..Options::default() }, true)?;
    shop.mesh.manifests.mesh_config("shop", json!({ "mtls": { "mode": "STRICT" } }))?;
    let far = shop.mesh.pod("plain", "far", 1)?;
    let late = shop.mesh.world.pod(&PodSpec::new("shop", "late", 2))?;
    for pod in [&far, &late] {
        shop.serve(pod)?;
    }
    shop.mesh.in_force("the plain pod to be known", || echoed(&shop.ask_from(&late, &far.at(ECHO))?))?;
    for (from, to) in [(&far, &late), (&late, &far)] {
        for to in [to.at(ECHO), to.at6(ECHO)] {
            echoed(&shop.ask_from(from, &to)?)?;
        }
    }
    for reason in ["connect_unclassified", "ingress_unclassified"] {
        ensure!(counted(&shop, reason)? >= 2.0, "{reason}: {}", counted(&shop, reason)?);
    }
    shop.mesh.manifests.pod(&late)?;
    shop.mesh.enrolled(&[&late])?;
    let told = ask(&far, &late.at(ECHO))?;
    ensure!(text(&told["received"]).is_empty(), "{told}");
    shop.until_asking(&shop.web, &late.at(ECHO), true).map(drop)
}
