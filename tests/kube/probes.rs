//! A kubelet asks its pods under strict mutual TLS: the ports that their probes declare, and nothing else; and nobody else on
//! the node may.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use mesh_tests::access_log::names;
use mesh_tests::kube::Cluster;
use mesh_tests::mesh::{Mesh, Options};
use mesh_tests::poll;
use mesh_tests::world::{Place, Pod, Process, binary};
use serde_json::{Value, json};

const SHOP: &str = "shop";
const HEALTH: u16 = 8080;
const MAIN: u16 = 8081;
const LIMIT: Duration = Duration::from_secs(60);

fn cluster(mesh: &Mesh) -> Result<&Cluster> {
    mesh.cluster.as_ref().ok_or_else(|| anyhow!("the mesh has no API server"))
}

/// A pod with two servers, one of which its probe asks.
fn probed(mesh: &Mesh) -> Result<Pod> {
    let cluster = cluster(mesh)?;
    cluster.service_account(SHOP, "db")?;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "namespace": SHOP, "name": "db" },
        "spec": {
            "nodeName": "n1", "serviceAccountName": "db",
            "containers": [{
                "name": "main", "image": "unmodified",
                "command": ["peer", "echo", "--listen", format!("0.0.0.0:{HEALTH}")],
                "ports": [{ "name": "health", "containerPort": HEALTH }],
                "livenessProbe": { "httpGet": { "port": "health", "path": "/" } },
            }],
        },
    });
    cluster.apply(&pod)?.success()?;
    poll::until("the pod to run", LIMIT, || mesh.kubelets[0].pod(SHOP, "db"))
}

/// Asks from a place of the node, as a probe does: says something and waits for the answer.
fn ask(from: &Place, pod: &Pod, port: u16) -> Result<Value> {
    let at = pod.at(port);
    let arguments = ["talk", "--to", &at, "--send", "GET /", "--half-close"];
    static ASKED: AtomicU32 = AtomicU32::new(0);
    let name = format!("ask-{}", ASKED.fetch_add(1, Ordering::Relaxed));
    Process::start(from, &name, Path::new(&binary("peer")?), &arguments)?.wait(LIMIT)?.json()
}

fn answered(told: &Value) -> bool {
    told["received"] == "GET /"
}

#[test]
fn under_strict_the_kubelet_reaches_a_probes_port_and_neither_it_another_nor_the_node_that_one() -> Result<()>
{
    let mesh = Mesh::start_with(Options { kubelets: true, ..Options::default() })?;
    let cluster = cluster(&mesh)?;
    let labels = json!({ "ferromesh.io/enrolled": "true" });
    let namespace =
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": SHOP, "labels": labels } });
    cluster.apply(&namespace)?.success()?;
    let db = probed(&mesh)?;
    let _main = db.spawn_peer(&["echo", "--listen", &format!("0.0.0.0:{MAIN}")])?;
    mesh.enrolled(&[&db])?;
    let node = mesh.world.node(1);
    let (kubelet, host) = (node.kubelet(), node.place());
    mesh.in_force("both ports to answer the node while plaintext is taken", || {
        for port in [HEALTH, MAIN] {
            let told = ask(&host, &db, port)?;
            ensure!(answered(&told), "{told}");
        }
        Ok(())
    })?;

    let strict = json!({
        "apiVersion": "ferromesh.io/v1alpha1", "kind": "MeshConfig",
        "metadata": { "namespace": SHOP, "name": "strict" }, "spec": { "mtls": { "mode": "STRICT" } },
    });
    cluster.apply(&strict)?.success()?;
    mesh.in_force("strict", || {
        let told = ask(&host, &db, MAIN)?;
        ensure!(!answered(&told), "{told}");
        Ok(())
    })?;
    for _ in 0..5 {
        let told = ask(&kubelet, &db, HEALTH)?;
        ensure!(answered(&told), "the kubelet's probe: {told}\n{}", mesh.logs());
        let told = ask(&kubelet, &db, MAIN)?;
        ensure!(!answered(&told), "the kubelet at another port: {told}");
        let told = ask(&host, &db, HEALTH)?;
        ensure!(!answered(&told), "the node at the probe's port: {told}");
    }
    mesh.record(1, &[(names::REPORTER, names::DESTINATION), (names::FLAGS, "strict_mtls")])?;
    ensure!(mesh.metrics(1)?.sum("ferromesh_probes_total", &[]) >= 5.0);

    // Also where policies let nobody in.
    let nobody = json!({
        "apiVersion": "ferromesh.io/v1alpha1", "kind": "AuthorizationPolicy",
        "metadata": { "namespace": SHOP, "name": "nobody" }, "spec": { "action": "ALLOW", "rules": [] },
    });
    cluster.apply(&nobody)?.success()?;
    let told = ask(&kubelet, &db, HEALTH)?;
    ensure!(answered(&told), "the kubelet's probe under a policy: {told}");
    Ok(())
}
