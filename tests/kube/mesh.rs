//! The mesh on a real API server: two nodes, pods that are Pod objects, and what a user does with kubectl.

use std::fs;

use anyhow::{Result, anyhow, ensure};
use mesh_tests::access_log::{field, names};
use mesh_tests::apps;
use mesh_tests::kube::Cluster;
use mesh_tests::mesh::{Mesh, Options};
use mesh_tests::world::{Pod, PodSpec, Process};
use rustix::process::Signal;
use serde_json::{Value, json};

const VIP: &str = "10.99.0.10";
const ECHO: u16 = 7000;

/// `web` on node 1 asks `api` on node 2, both in `shop`.
struct Shop {
    web: Pod,
    api: Pod,
    _server: Process,
    mesh: Mesh,
}

impl Shop {
    /// Everything runs; nothing is enrolled.
    fn open() -> Result<Self> {
        let mut mesh = Mesh::prepare(Options { kube: true, ..Options::default() })?;
        let cluster = cluster(&mesh)?;
        cluster.nodes(&mesh.world)?;
        cluster.namespace("shop")?;
        let web = cluster.pod(&mesh.world, &PodSpec::new("shop", "web", 1))?;
        let api = cluster.pod(&mesh.world, &PodSpec::new("shop", "api", 2))?;
        cluster.service(("shop", "api"), VIP, ECHO, &[&api])?;
        let server = apps::peer_server(&api, "echo", ECHO, &[])?;
        mesh.start_controller()?;
        mesh.start_agent(1)?;
        mesh.start_agent(2)?;
        Ok(Self { web, api, _server: server, mesh })
    }

    /// What a user types.
    fn enrol(&self) -> Result<()> {
        let label = ["label", "namespace", "shop", "ferromesh.io/enrolled=true"];
        cluster(&self.mesh)?.kubectl(&label)?.success()?;
        self.mesh.enrolled(&[&self.web, &self.api])
    }

    fn ask(&self) -> Result<Value> {
        self.web.peer(&["talk", "--to", &format!("{VIP}:{ECHO}"), "--send", "hello", "--half-close"])
    }

    fn until_asking(&self, works: bool) -> Result<Value> {
        self.mesh.in_force(&format!("asking to be {works}"), || {
            let told = self.ask()?;
            let echoed = told["received"] == "hello" && told["end"] == "eof";
            if echoed == works { Ok(told) } else { Err(anyhow!("{told}")) }
        })
    }
}

fn cluster(mesh: &Mesh) -> Result<&Cluster> {
    mesh.cluster.as_ref().ok_or_else(|| anyhow!("the mesh has no API server"))
}

fn deny() -> Value {
    json!({
        "apiVersion": "ferromesh.io/v1alpha1", "kind": "AuthorizationPolicy",
        "metadata": { "namespace": "shop", "name": "closed" },
        "spec": {
            "action": "DENY", "selector": { "matchLabels": { "app": "api" } },
            "rules": [{ "from": [{ "source": { "principals": ["cluster.local/ns/shop/sa/web"] } }] }],
        },
    })
}

#[test]
fn a_label_enrols_running_pods_and_a_policy_denies_until_it_is_deleted() -> Result<()> {
    let shop = Shop::open()?;
    shop.enrol()?;
    let told = shop.until_asking(true)?;
    let client = told["getsockname"].as_str().unwrap_or_default();
    let record = shop.mesh.record(2, &[(names::CLIENT, client), (names::REPORTER, names::DESTINATION)])?;
    ensure!(field(&record, names::SOURCE_ID) == shop.web.spiffe_id(), "{record}");

    let cluster = cluster(&shop.mesh)?;
    cluster.apply(&deny())?.success()?;
    shop.until_asking(false)?;
    cluster.kubectl(&["-n", "shop", "delete", "fap", "closed"])?.success()?;
    shop.until_asking(true)?;
    Ok(())
}

#[test]
fn traffic_goes_on_while_the_api_server_is_away_and_what_changed_meanwhile_holds_when_it_is_back()
-> Result<()> {
    let mut shop = Shop::open()?;
    shop.enrol()?;
    shop.until_asking(true)?;
    let Some(cluster) = &mut shop.mesh.cluster else { return Err(anyhow!("no API server")) };
    cluster.kill_api();
    let begun = std::time::Instant::now();
    while begun.elapsed() < std::time::Duration::from_secs(8) {
        let told = shop.ask()?;
        ensure!(told["received"] == "hello", "{told}");
    }
    let Some(cluster) = &mut shop.mesh.cluster else { return Err(anyhow!("no API server")) };
    cluster.start_api()?;
    cluster.apply(&deny())?.success()?;
    shop.until_asking(false)?;
    Ok(())
}

#[test]
fn a_policy_that_was_deleted_in_a_history_that_is_forgotten_is_not_in_force_after_the_relist() -> Result<()> {
    let mut shop = Shop::open()?;
    shop.enrol()?;
    shop.until_asking(true)?;
    cluster(&shop.mesh)?.apply(&deny())?.success()?;
    shop.until_asking(false)?;
    // The controller hears of nothing until the API server cannot tell it any more what has happened.
    shop.mesh.controller()?.signal(Signal::STOP)?;
    let cluster = shop.mesh.cluster.as_mut().ok_or_else(|| anyhow!("no API server"))?;
    // Its watches break first: what they bring waits in no buffer.
    cluster.kill_api();
    cluster.start_api()?;
    cluster.kubectl(&["-n", "shop", "delete", "fap", "closed"])?.success()?;
    cluster.kill_api();
    cluster.compact()?;
    cluster.start_api()?;
    shop.mesh.controller()?.signal(Signal::CONT)?;
    shop.until_asking(true)?;
    shop.mesh.in_force("the controller to say that its place was forgotten", || {
        let log = shop.mesh.controller()?.stderr();
        ensure!(log.contains("the watch's place is forgotten: listed again"), "it does not");
        Ok(())
    })
}

/// What a process keeps in memory, in bytes.
fn resident(of: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{of}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

#[test]
fn ten_thousand_services_of_one_namespace_hold_up_nobody_of_another() -> Result<()> {
    let mut shop = Shop::open()?;
    shop.enrol()?;
    shop.until_asking(true)?;
    let agent = shop.mesh.agent(1)?.id();
    let before = resident(agent)?;
    let to = format!("{VIP}:{ECHO}");
    let ticker = shop.web.spawn_peer(&["ticker", "--to", &to, "--text", "tick", "--every-ms", "20"])?;
    let cluster = cluster(&shop.mesh)?;
    cluster.namespace("crowd")?;
    let service = |number: u32| {
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": format!("s{number}") },
            "spec": { "clusterIP": "None", "selector": { "app": "none" }, "ports": [{ "port": 80 }] },
        })
    };
    let services: Vec<Value> = (0..10_000).map(service).collect();
    cluster.make_many("/api/v1/namespaces/crowd/services", &services)?;
    let ticks = ticker.stdout();
    ensure!(ticks.lines().count() > 100 && ticks.lines().all(|tick| tick.contains("\"ok\"")), "{ticks}");
    drop(ticker);
    cluster.apply(&deny())?.success()?;
    shop.until_asking(false)?;
    cluster.kubectl(&["-n", "shop", "delete", "fap", "closed"])?.success()?;
    shop.until_asking(true)?;
    // An agent holds what its own pods ask for.
    let grown = resident(agent)?.saturating_sub(before);
    ensure!(grown < 16 << 20, "the agent has grown by {grown} bytes");
    Ok(())
}
