//! New nodes with a taint: the controller takes it off where the agent's pod is Ready, with the rights that the chart gives it for
//! that, and touches nothing else.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use mesh_tests::kube::{Cluster, deploy};
use mesh_tests::mesh::{Mesh, Options};
use mesh_tests::poll;
use serde_json::{Value, json};

const SYSTEM: &str = "ferromesh-system";
const AGENT: &str = "ferromesh-agent";
const TAINT: &str = "ferromesh.io/agent-not-ready";
const LIMIT: Duration = Duration::from_secs(20);

/// A node that is not ready for pods, with another taint that is none of ours.
fn tainted(cluster: &Cluster, name: &str) -> Result<()> {
    let taints = json!([
        { "key": TAINT, "effect": "NoExecute" },
        { "key": "example.com/gpu", "value": "yes", "effect": "NoSchedule" },
    ]);
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": name }, "spec": { "taints": taints },
    });
    cluster.apply(&node)?.success().map(drop)
}

fn agent(cluster: &Cluster, node: &str) -> Result<()> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "namespace": SYSTEM, "name": format!("agent-{node}") },
        "spec": {
            "nodeName": node, "serviceAccountName": AGENT, "hostNetwork": true,
            "containers": [{ "name": "agent", "image": "unmodified" }],
        },
    });
    cluster.apply(&pod)?.success().map(drop)
}

fn agent_is(cluster: &Cluster, node: &str, ready: &str) -> Result<()> {
    let status = json!({
        "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": ready }] },
    });
    let (pod, patch) = (format!("agent-{node}"), status.to_string());
    let arguments =
        ["-n", SYSTEM, "patch", "pod", &pod, "--subresource=status", "--type=merge", "-p", &patch];
    cluster.kubectl(&arguments)?.success().map(drop)
}

fn keys(cluster: &Cluster, node: &str) -> Result<Vec<String>> {
    let node = cluster.get("node", "default", node)?;
    let taints = node["spec"]["taints"].as_array().into_iter().flatten();
    Ok(taints.filter_map(|taint| taint["key"].as_str().map(str::to_owned)).collect())
}

/// The rights of the controller as the chart gives them where a taint is named.
fn rights(mesh: &Mesh, cluster: &Cluster) -> Result<()> {
    let chart = deploy().join("helm/ferromesh").to_string_lossy().into_owned();
    let (taint, only) = (format!("nodeTaint={TAINT}"), "templates/controller-rbac.yaml");
    let rendered =
        cluster.helm(&["template", "m", &chart, "-n", SYSTEM, "--show-only", only, "--set", &taint])?;
    let file = mesh.world.files.join("rights.yaml");
    fs::write(&file, rendered.success()?)?;
    cluster.apply_path(&file)
}

#[test]
fn a_node_s_taint_goes_when_its_agent_is_ready_and_no_other_taint_and_no_other_node_s() -> Result<()> {
    let options = Options {
        kube: true,
        transports: Vec::new(),
        controller_arguments: vec![format!("--remove-taint={TAINT}")],
        ..Options::default()
    };
    let mut mesh = Mesh::prepare(options)?;
    let cluster = mesh.cluster.take().ok_or_else(|| anyhow!("the mesh has no API server"))?;
    rights(&mesh, &cluster)?;
    cluster.service_account(SYSTEM, AGENT)?;
    for node in ["n1", "n2"] {
        tainted(&cluster, node)?;
        agent(&cluster, node)?;
        agent_is(&cluster, node, "False")?;
    }
    let both = keys(&cluster, "n1")?;
    mesh.cluster = Some(cluster);
    mesh.start_controller()?;
    let cluster = mesh.cluster.as_ref().context("the API server")?;
    // The Lease is held, so whatever it does with nodes it does.
    poll::until("the Lease to be held", LIMIT, || {
        let lease: Value = cluster.get("lease", SYSTEM, "ferromesh-controller")?;
        ensure!(lease["spec"]["holderIdentity"].is_string(), "{lease}");
        Ok(())
    })?;
    ensure!(keys(cluster, "n1")? == both && keys(cluster, "n2")? == both, "{both:?}");

    // The API server has one of its own on new nodes.
    let others: Vec<String> = both.iter().filter(|key| *key != TAINT).cloned().collect();
    ensure!(others.contains(&"example.com/gpu".to_owned()) && others.len() + 1 == both.len(), "{both:?}");
    agent_is(cluster, "n1", "True")?;
    poll::until("the taint to go", LIMIT, || {
        let left = keys(cluster, "n1")?;
        ensure!(left == others, "{left:?} of {both:?}");
        Ok(())
    })
    .with_context(|| mesh.logs())?;
    ensure!(keys(cluster, "n2")? == both, "the other node's agent is not ready");
    Ok(())
}
