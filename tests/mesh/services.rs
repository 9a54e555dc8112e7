//! Services as kube-proxy gives them, without a kube-proxy.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use mesh_tests::apps;
use mesh_tests::manifests::ServiceSpec;
use mesh_tests::mesh::Mesh;
use mesh_tests::world::{Pod, Process, netns};
use serde_json::{Value, json};

use crate::shop::text;

const VIP: &str = "10.99.1.1";

/// A client on node 1 and servers behind one VIP on both nodes.
struct Servers {
    client: Pod,
    pods: Vec<Pod>,
    _processes: Vec<Process>,
    mesh: Mesh,
}

fn servers(more: &Value, ready: [bool; 3]) -> Result<Servers> {
    let mesh = Mesh::start()?;
    mesh.manifests.namespace("shop", true)?;
    let client = mesh.pod("shop", "web", 1)?;
    let pods = [mesh.pod("shop", "a", 1)?, mesh.pod("shop", "b", 2)?, mesh.pod("shop", "c", 2)?];
    put(&mesh, &pods, more, ready)?;
    let processes: Result<Vec<_>> =
        pods.iter().map(|pod| apps::peer_server(pod, "names", 7001, &[])).collect();
    mesh.enrolled(&[&client, &pods[0], &pods[1], &pods[2]])?;
    Ok(Servers { client, pods: pods.to_vec(), _processes: processes?, mesh })
}

fn put(mesh: &Mesh, pods: &[Pod], more: &Value, ready: [bool; 3]) -> Result<()> {
    mesh.manifests.service(&ServiceSpec {
        namespace: "shop",
        name: "names",
        vips: vec![VIP.to_owned()],
        ports: vec![("main", 80, 7001)],
        backends: pods.iter().zip(ready).collect(),
        more: more.clone(),
    })
}

impl Servers {
    /// Which pods answered `count` connections, by name.
    fn answers(&self, count: u32) -> Result<BTreeMap<String, u32>> {
        let mut seen = BTreeMap::new();
        for _ in 0..count {
            let told = self.client.peer(&["talk", "--to", &format!("{VIP}:80")])?;
            let server: Value = serde_json::from_str(text(&told["received"])).unwrap_or(Value::Null);
            let address = text(&server["getsockname"]);
            let pod = self.pods.iter().find(|pod| address.contains(&format!("{}]", pod.v4)));
            let name = pod.map_or_else(|| format!("{told}"), |pod| pod.spec.name.clone());
            *seen.entry(name).or_default() += 1;
        }
        Ok(seen)
    }

    fn until_only(&self, names: &[&str]) -> Result<()> {
        self.mesh.in_force(&format!("only {names:?} to answer"), || {
            let seen = self.answers(12)?;
            ensure!(seen.keys().map(String::as_str).eq(names.iter().copied()), "{seen:?}");
            Ok(())
        })
    }
}

#[test]
fn a_vip_spreads_connections_over_ready_endpoints_only() -> Result<()> {
    let servers = servers(&Value::Null, [true, true, false])?;
    servers.until_only(&["a", "b"])?;
    let seen = servers.answers(40)?;
    ensure!(seen.values().all(|count| *count >= 5), "{seen:?}");
    put(&servers.mesh, &servers.pods, &Value::Null, [false, false, true])?;
    servers.until_only(&["c"])
}

#[test]
fn internal_traffic_policy_local_stays_on_the_node() -> Result<()> {
    let servers = servers(&json!({ "internalTrafficPolicy": "Local" }), [true, true, true])?;
    servers.until_only(&["a"])
}

#[test]
fn session_affinity_keeps_a_client_with_its_endpoint() -> Result<()> {
    let affinity = json!({
        "sessionAffinity": "ClientIP", "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": 60 } },
    });
    let servers = servers(&affinity, [true, true, true])?;
    servers.mesh.in_force("one endpoint to answer", || {
        let seen = servers.answers(20)?;
        ensure!(seen.len() == 1 && seen.keys().all(|name| name.len() == 1), "{seen:?}");
        Ok(())
    })
}

#[test]
fn endpoints_that_fall_silent_cost_a_client_no_connection() -> Result<()> {
    let servers = servers(&Value::Null, [true, true, true])?;
    // From now on there are warm tunnels to all three.
    servers.until_only(&["a", "b", "c"])?;
    // What comes for `b` and `c` is dropped without a word, as on a node that has taken their network away.
    let gone = servers.pods[1..].iter().map(|pod| format!("route add blackhole {}/32", pod.v4));
    netns::batch(&servers.mesh.world.node(1).netns, &gone.collect::<Vec<_>>())?;
    let mut longest: f64 = 0.0;
    for _ in 0..15 {
        // As patient as an impatient client.
        let to = format!("{VIP}:80");
        let told = servers.client.peer(&["talk", "--to", &to, "--nonblocking", "--timeout-ms", "2500"])?;
        ensure!(text(&told["received"]).contains(&format!("{}]", servers.pods[0].v4)), "{told}");
        longest = longest.max(told["connect_ms"].as_f64().unwrap_or_default());
    }
    ensure!(longest > 400.0, "no silent endpoint was tried: {longest} ms");
    Ok(())
}

#[test]
fn a_pod_behind_a_headless_service_is_reached_by_its_own_address() -> Result<()> {
    let servers = servers(&Value::Null, [true, true, true])?;
    let pods: Vec<&Pod> = servers.pods.iter().collect();
    servers.mesh.service(("shop", "headless"), &[], (7001, 7001), &pods)?;
    for pod in pods {
        let told = servers.client.peer(&["talk", "--to", &pod.at(7001)])?;
        ensure!(text(&told["received"]).contains(&pod.v4.to_string()), "{told}");
    }
    Ok(())
}
