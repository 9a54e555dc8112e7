//! What a policy means at its edges: plaintext against identity conditions, no way back to plaintext, names while policies
//! change, and what `meshctl check` says of this host's weak spots.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use mesh_tests::apps;
use mesh_tests::capture::Capture;
use mesh_tests::mesh::{Mesh, Options};
use mesh_tests::poll;
use mesh_tests::world::{Place, Pod, Process};
use serde_json::{Value, json};

use crate::shop::{ECHO, Shop, VIP, is_echoed, was_reset};

fn program(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("mesh/programs").join(name).to_string_lossy().into_owned()
}

/// Waits until a program of ours has said that it is ready.
fn ready(process: Process) -> Result<Process> {
    let mut process = process;
    poll::until("a program to be ready", Duration::from_secs(15), || {
        ensure!(process.running() && process.stdout().contains("ready"), "{}", process.tail());
        Ok(())
    })?;
    Ok(process)
}

fn python(pod: &Pod, name: &str, arguments: &[&str]) -> Result<Process> {
    let path = program(name);
    let mut all = vec![path.as_str()];
    all.extend(arguments);
    ready(pod.spawn(name, "python3", &all)?)
}

#[test]
fn identity_conditions_neither_let_plaintext_in_nor_are_evaded_by_it() -> Result<()> {
    let shop = Shop::open()?;
    let outsider = shop.mesh.pod("plain", "outsider", 1)?;
    let (direct, vip) = (shop.api.at(ECHO), format!("{VIP}:{ECHO}"));
    shop.until_asking(&outsider, &direct, true)?;
    let rules =
        |field: &str| json!([{ "from": [{ "source": { field: ["cluster.local/ns/shop/sa/somebody"] } }] }]);
    // Neither pod is `somebody`: the one that proves it goes on, the one that cannot is refused.
    for (action, field) in [("DENY", "principals"), ("ALLOW", "notPrincipals")] {
        shop.mesh.manifests.policy(("shop", "edge"), "api", action, rules(field))?;
        shop.until_asking(&outsider, &direct, false)?;
        shop.until_asking(&shop.web, &vip, true)?;
        let explained = shop.mesh.meshctl(1, &["explain", "shop/web", &vip])?;
        let wanted = if action == "DENY" {
            "did not match: rules[0].from[0]: principals"
        } else {
            "matched by rules[0]"
        };
        ensure!(explained.stdout.contains(wanted), "{}{}", explained.stdout, explained.stderr);
        shop.mesh.manifests.remove("AuthorizationPolicy", "shop", "edge")?;
        shop.until_asking(&outsider, &direct, true)?;
    }
    // The rule that refuses is named.
    shop.mesh.manifests.policy(
        ("shop", "edge"),
        "api",
        "DENY",
        json!([{ "to": [{ "operation": { "ports": [1] } }] }, {}]),
    )?;
    shop.until_asking(&shop.web, &vip, false)?;
    let explained = shop.mesh.meshctl(1, &["explain", "shop/web", &vip])?;
    ensure!(
        explained.stdout.contains("denied by AuthorizationPolicy shop/edge, rules[1]"),
        "{}",
        explained.stdout
    );
    Ok(())
}

#[test]
fn a_workload_whose_tunnel_port_refuses_or_is_silent_is_never_sent_plaintext() -> Result<()> {
    const SECRET: &str = "secret-that-must-not-be-plain";
    let mut mesh = Mesh::prepare(Options::default())?;
    mesh.manifests.namespace("shop", true)?;
    mesh.manifests.namespace("plain", false)?;
    let (web, api) = (mesh.pod("shop", "web", 1)?, mesh.pod("shop", "api", 2)?);
    let outsider = mesh.pod("plain", "outsider", 1)?;
    mesh.service(("shop", "api"), &[VIP], (ECHO, ECHO), &[&api])?;
    let _echo = apps::peer_server(&api, "echo", ECHO, &[])?;
    mesh.start_controller()?;
    // Node 2 has no agent: its pod is enrolled by the controller's word, and open to plaintext in truth.
    mesh.start_agent(1)?;
    mesh.enrolled(&[&web])?;
    let told = outsider.peer(&["talk", "--to", &api.at(ECHO), "--send", "hello", "--half-close"])?;
    ensure!(is_echoed(&told), "the application must be reachable in plaintext: {told}");
    let capture = Capture::start(&mesh.world, 2, "tunnel-port")?;
    for mode in ["closed", "silent", "full"] {
        let own = api.v4.to_string();
        let _holder =
            if mode == "closed" { None } else { Some(python(&api, "tunnel_port.py", &[mode, &own])?) };
        let talk = |to: &str| {
            web.spawn_peer(&["talk", "--to", to, "--send", SECRET, "--half-close", "--timeout-ms", "45000"])
        };
        for client in [talk(&format!("{VIP}:{ECHO}"))?, talk(&api.at(ECHO))?] {
            let told = client.wait(Duration::from_secs(60))?.json()?;
            ensure!(was_reset(&told) || told["connect"] != "ok", "{mode}: {told}");
            ensure!(told["received"].as_str().unwrap_or_default().is_empty(), "{mode}: {told}");
        }
    }
    let records = mesh.access_log(1);
    let captured = capture.stop()?;
    ensure!(captured.with_port(15008) > 0, "the tunnel port was never tried");
    ensure!(!captured.contains(SECRET.as_bytes()), "plaintext to an enrolled workload: {records:?}");
    Ok(())
}

/// Makes one connection after the other until one is not refused. True if that one had waited; a false may be chance: it may
/// have begun when there was nothing to wait for any more.
fn waits_for(
    mesh: &mut Mesh,
    web: &Pod,
    to: &str,
    change: impl FnOnce(&mut Mesh) -> Result<()>,
) -> Result<bool> {
    let mut ticker = web.spawn_peer(&["ticker", "--to", to, "--text", "tick", "--every-ms", "1"])?;
    mesh.in_force("a connection to be refused", || {
        ensure!(ticker.stdout().contains("refused"), "{}", ticker.stdout());
        Ok(())
    })?;
    change(mesh)?;
    mesh.in_force("the pod to be reached", || {
        ensure!(ticker.stdout().contains("\"ok\""), "{}", ticker.stdout());
        Ok(())
    })?;
    ticker.kill();
    let ticks: Result<Vec<Value>, _> = ticker.stdout().lines().map(serde_json::from_str).collect();
    let ticks = ticks?;
    let took = |tick: &Value| tick["took_ms"].as_f64().unwrap_or_default();
    let refused = ticks.iter().take_while(|tick| tick["outcome"] != "ok");
    for tick in refused.clone() {
        ensure!(tick["outcome"] == "refused" && took(tick) > 1400.0, "did not wait: {tick}");
    }
    Ok(ticks.get(refused.count()).is_some_and(|tick| took(tick) > 30.0))
}

#[test]
fn a_connection_waits_until_both_nodes_agree_on_a_pod_that_leaves_the_mesh_or_joins_it() -> Result<()> {
    let mut mesh = Mesh::prepare(Options::default())?;
    mesh.manifests.namespace("shop", true)?;
    mesh.manifests.namespace("bank", true)?;
    let (web, vault) = (mesh.pod("shop", "web", 1)?, mesh.pod("bank", "vault", 2)?);
    let _echo = apps::peer_server(&vault, "echo", ECHO, &[])?;
    let to = vault.at(ECHO);
    mesh.start_controller()?;
    // Node 2 has no agent: to node 1 its pod is one that has left the mesh, or is about to join it.
    mesh.start_agent(1)?;
    mesh.enrolled(&[&web])?;
    let enrol = |mesh: &mut Mesh, enrolled: bool| mesh.manifests.namespace("bank", enrolled).map(drop);
    let mut waited = false;
    for _ in 0..4 {
        waited = waits_for(&mut mesh, &web, &to, |mesh| enrol(mesh, false))?;
        enrol(&mut mesh, true)?;
        mesh.in_force("the pod to be of the mesh again", || {
            let told = web.peer(&["talk", "--to", &to, "--send", "hello", "--half-close"])?;
            ensure!(told["connect"] == "refused", "{told}");
            Ok(())
        })?;
        if waited {
            break;
        }
    }
    ensure!(waited, "none was connected that had waited for the pod to leave");
    for _ in 0..4 {
        if waits_for(&mut mesh, &web, &to, |mesh| mesh.start_agent(2))? {
            return Ok(());
        }
        mesh.kill_agent(2);
        fs::remove_dir_all(&mesh.world.node(2).pins)?;
    }
    bail!("none was connected that had waited for the pod to join")
}

#[test]
fn ten_thousand_names_are_resolved_while_policies_change_and_none_is_lost() -> Result<()> {
    let shop = Shop::open()?;
    let own = shop.api.v4.to_string();
    let _server = python(&shop.api, "dns_server.py", &[&own, "53"])?;
    let client = program("dns_client.py");
    let asking = shop.web.spawn("dns-client", "python3", &[&client, &own, "53", "10000"])?;
    let (mut asking, mut changes) = (asking, 0_u32);
    while asking.running() {
        let rules = json!([{ "to": [{ "operation": { "ports": [5000 + changes % 100] } }] }]);
        for pod in ["web", "api"] {
            shop.mesh.manifests.policy(
                ("shop", pod),
                pod,
                if changes % 2 == 0 { "DENY" } else { "ALLOW" },
                rules.clone(),
            )?;
        }
        let mode = if changes % 3 == 0 { "STRICT" } else { "PERMISSIVE" };
        shop.mesh.manifests.mesh_config("shop", json!({ "mtls": { "mode": mode } }))?;
        changes += 1;
        std::thread::sleep(Duration::from_millis(250));
    }
    let told = asking.wait(Duration::from_secs(60))?.json()?;
    ensure!(told["asked"] == 10_000 && told["answered"] == 10_000, "after {changes} changes: {told}");
    ensure!(changes > 10, "only {changes} changes while it asked");
    Ok(())
}

fn finding<'a>(checks: &'a Value, name: &str) -> Option<&'a Value> {
    checks["checks"].as_array()?.iter().find(|check| check["name"] == name)
}

#[test]
fn check_names_raw_sockets_plaintext_ports_and_sandboxed_runtimes_of_pods() -> Result<()> {
    let shop = Shop::open()?;
    // A process by which gVisor is known.
    let sandbox = shop.mesh.world.files.join("runsc-sandbox");
    std::fs::copy("/bin/sleep", &sandbox)?;
    let _sandbox = shop.web.spawn("sandbox", &sandbox.to_string_lossy(), &["600"])?;
    let look = |node: u8| -> Result<Value> {
        let told = shop.mesh.meshctl(node, &["-o", "json", "check"])?;
        Ok(serde_json::from_str(&told.stdout)?)
    };
    let checks = shop.mesh.in_force("the sandbox to be found", || {
        let checks = look(1)?;
        ensure!(finding(&checks, "sandboxed runtime: pod shop/web").is_some(), "{checks:#}");
        Ok(checks)
    })?;
    ensure!(checks["ok"] == true, "a weak spot is no failure: {checks:#}");
    let checks = look(2)?;
    let raw = finding(&checks, "raw sockets: pod shop/api");
    ensure!(raw.is_some_and(|r| r["found"].to_string().contains("CAP_NET_RAW")), "{checks:#}");
    let plain = finding(&checks, "plaintext is taken: pod shop/api");
    ensure!(plain.is_some_and(|p| p["found"].to_string().contains(&format!("port {ECHO}"))), "{checks:#}");
    shop.mesh.manifests.mesh_config("shop", json!({ "mtls": { "mode": "STRICT" } }))?;
    shop.mesh.in_force("no port to take plaintext", || {
        let checks = look(2)?;
        ensure!(finding(&checks, "plaintext is taken: pod shop/api").is_none(), "{checks:#}");
        Ok(())
    })?;
    let table = shop.mesh.meshctl(2, &["check"])?;
    ensure!(
        table.stdout.contains("raw sockets: pod shop/api") && table.stdout.contains("weak"),
        "{}",
        table.stdout
    );
    Ok(())
}

#[test]
fn an_exclusive_foreign_program_is_named_by_check_and_by_the_agent_that_cannot_start() -> Result<()> {
    let mut mesh = Mesh::prepare(Options::default())?;
    mesh.manifests.namespace("shop", true)?;
    mesh.start_controller()?;
    let node = mesh.world.node(2).clone();
    let place: Place = node.place();
    let cgroup = node.pods_cgroup().to_string_lossy().into_owned();
    let script = program("exclusive.py");
    let _held = ready(Process::start(&place, "exclusive", Path::new("python3"), &[&script, &cgroup])?)?;
    let agent = mesh_tests::world::binary("mesh-agent")?;
    let check = format!("--check={cgroup}");
    let told = Process::start(&place, "check", &agent, &[&check])?.wait(Duration::from_secs(30))?;
    ensure!(!told.ok() && told.stdout.contains("exclusive program: cgroup_inet4_connect"), "{}", told.stdout);
    mesh.launch_agent(2)?;
    poll::until("the agent to give up", Duration::from_secs(30), || {
        let agent = mesh.agent(2)?;
        ensure!(!agent.running(), "it runs");
        let said = format!("{}{}", agent.stdout(), agent.stderr());
        ensure!(said.contains("exclusive program: cgroup_inet4_connect") && said.contains(&cgroup), "{said}");
        Ok(())
    })?;
    // Where nobody is in the way, nothing is named.
    let free = mesh.world.node(1).pods_cgroup().to_string_lossy().into_owned();
    let check = format!("--check={free}");
    let told = Process::start(&mesh.world.node(1).place(), "check-free", &agent, &[&check])?;
    let told = told.wait(Duration::from_secs(30))?;
    ensure!(!told.stdout.contains("exclusive program"), "{}", told.stdout);
    Ok(())
}
