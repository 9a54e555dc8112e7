//! How an agent proves itself on a real API server: by the token that is projected into its own pod, and by no other.

use std::fs;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use mesh_tests::kube::Cluster;
use mesh_tests::mesh::{Mesh, Options};
use mesh_tests::poll;
use serde_json::json;

const SYSTEM: &str = "ferromesh-system";
const AGENT: &str = "ferromesh-agent";
const AUDIENCE: &str = "ferromesh-controller";

fn cluster(mesh: &Mesh) -> Result<&Cluster> {
    mesh.cluster.as_ref().ok_or_else(|| anyhow!("the mesh has no API server"))
}

/// A running pod on the node's network, as the DaemonSet makes one.
fn agent_pod(cluster: &Cluster, (namespace, account): (&str, &str), name: &str, node: &str) -> Result<()> {
    let account_object = json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "namespace": namespace, "name": account },
    });
    cluster.apply(&account_object)?.success()?;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "namespace": namespace, "name": name },
        "spec": {
            "nodeName": node, "serviceAccountName": account, "hostNetwork": true,
            "containers": [{ "name": "agent", "image": "unmodified" }],
        },
    });
    cluster.apply(&pod)?.success()?;
    let running = r#"{"status":{"phase":"Running"}}"#;
    let patch =
        ["-n", namespace, "patch", "pod", name, "--subresource=status", "--type=merge", "-p", running];
    cluster.kubectl(&patch)?.success().map(drop)
}

/// A token as the kubelet asks for it: bound to the pod, for an audience.
fn token(cluster: &Cluster, (namespace, account): (&str, &str), pod: &str, audience: &str) -> Result<String> {
    let arguments = [
        "-n",
        namespace,
        "create",
        "token",
        account,
        "--audience",
        audience,
        "--bound-object-kind=Pod",
        "--bound-object-name",
        pod,
    ];
    Ok(cluster.kubectl(&arguments)?.success()?.trim().to_owned())
}

/// Gives the agent of a node this token for its start.
fn give(mesh: &Mesh, node: u8, token: &str) -> Result<()> {
    let state = mesh.world.files.join(format!("agent-n{node}"));
    fs::create_dir_all(&state)?;
    Ok(fs::write(state.join("join-token"), token)?)
}

/// Starts an agent whose token the controller refuses for `reason`: the agent ends, the audit log says why.
fn refused(mesh: &mut Mesh, node: u8, token: &str, reason: &str) -> Result<()> {
    give(mesh, node, token)?;
    mesh.launch_agent(node)?;
    let ended = mesh.take_agent(node)?.wait(Duration::from_secs(30))?;
    ensure!(
        !ended.ok() && format!("{}{}", ended.stdout, ended.stderr).contains("did not admit node"),
        "{ended:?}"
    );
    let log = mesh.controller()?.stderr();
    let line = log.lines().rev().find(|line| line.contains("agent's token refused"));
    let line = line.ok_or_else(|| anyhow!("nothing in the audit log: {log}"))?;
    ensure!(line.contains(reason) && line.contains("\"target\":\"audit\""), "{line}");
    Ok(())
}

#[test]
fn an_agent_is_admitted_by_its_own_pod_s_token_for_its_own_node_and_by_no_other() -> Result<()> {
    let mut mesh = Mesh::prepare(Options { kube: true, ..Options::default() })?;
    let ours = (SYSTEM, AGENT);
    {
        let cluster = cluster(&mesh)?;
        cluster.nodes(&mesh.world)?;
        agent_pod(cluster, ours, "agent-1", "n1")?;
        agent_pod(cluster, ours, "agent-2", "n2")?;
        cluster.namespace("shop")?;
        agent_pod(cluster, ("shop", "web"), "web", "n2")?;
    }
    mesh.start_controller()?;
    let own = token(cluster(&mesh)?, ours, "agent-1", AUDIENCE)?;
    let other_audience = token(cluster(&mesh)?, ours, "agent-2", "https://kubernetes.default.svc")?;
    let workload = token(cluster(&mesh)?, ("shop", "web"), "web", AUDIENCE)?;
    let unbound = ["-n", SYSTEM, "create", "token", AGENT, "--audience", AUDIENCE];
    let unbound = cluster(&mesh)?.kubectl(&unbound)?.success()?.trim().to_owned();

    refused(&mut mesh, 2, &own, "the token's pod is on node n1")?;
    refused(&mut mesh, 2, &other_audience, "not authenticated")?;
    refused(&mut mesh, 2, &workload, "it is the token of system:serviceaccount:shop:web")?;
    refused(&mut mesh, 2, &unbound, "it is bound to no pod")?;
    refused(&mut mesh, 2, "a.b.c", "not authenticated")?;

    give(&mesh, 1, &own)?;
    mesh.start_agent(1)?;

    // A token ends with its pod.
    let late = token(cluster(&mesh)?, ours, "agent-2", AUDIENCE)?;
    let delete = ["-n", SYSTEM, "delete", "pod", "agent-2", "--grace-period=0", "--force"];
    cluster(&mesh)?.kubectl(&delete)?.success()?;
    poll::until("the pod to be gone", Duration::from_secs(20), || {
        ensure!(cluster(&mesh)?.get("pod", SYSTEM, "agent-2").is_err(), "it is there");
        Ok(())
    })?;
    refused(&mut mesh, 2, &late, "not authenticated")
}
