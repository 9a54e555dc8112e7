//! `helm uninstall` alone: its hook's Job, run by the job controller and a kubelet, takes every node out of the mesh, or says
//! which it could not.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use mesh_tests::capture::Capture;
use mesh_tests::kube::{Cluster, deploy};
use mesh_tests::mesh::Mesh;
use mesh_tests::poll;
use mesh_tests::world::Finished;
use serde_json::{Value, json};

use crate::agents::{SYSTEM, open_by, trouble, values};
use crate::daemonset::reaches;
use crate::stage::{ECHO, MADE, cluster, failed};

/// What is said between the pods when the mesh is gone.
const WORDS: &str = "said-without-a-mesh";

/// `helm install`, of what is not there yet and what the world made before.
fn install(mesh: &Mesh, more: &str) -> Result<()> {
    let cluster = cluster(mesh)?;
    // Whoever watches nodes in a cluster takes it off one that is ready.
    let taint = "node.kubernetes.io/not-ready:NoSchedule-";
    cluster.kubectl(&["taint", "node", "n1", taint])?.success()?;
    let chart = deploy().join("helm/ferromesh").to_string_lossy().into_owned();
    let values = format!("{},controller.replicas=1,agent.drainSeconds=1,{more}", values(mesh));
    let arguments =
        ["install", "ferromesh", &chart, "--namespace", SYSTEM, "--take-ownership", "--set", &values];
    cluster.helm(&arguments)?.success().map(drop)
}

fn uninstall(mesh: &Mesh) -> Result<Finished> {
    cluster(mesh)?.helm(&["uninstall", "ferromesh", "--namespace", SYSTEM])
}

/// Where a node's programs are pinned.
fn pins(mesh: &Mesh, node: u8) -> PathBuf {
    mesh.world.node(node).pins.join("ferromesh")
}

/// What the namespace has of a kind, as far as it is the mesh's.
fn objects(cluster: &Cluster, kinds: &str) -> Result<String> {
    let label = "app.kubernetes.io/part-of=ferromesh";
    cluster.kubectl(&["-n", SYSTEM, "get", kinds, "-l", label, "-o", "name"])?.success()
}

/// What an Event with this reason says.
fn event(cluster: &Cluster, reason: &str) -> Result<String> {
    let field = format!("reason={reason}");
    let list = cluster
        .kubectl(&["-n", SYSTEM, "get", "events", "--field-selector", &field, "-o", "json"])?
        .json()?;
    let message = list["items"][0]["message"].as_str().map(str::to_owned);
    message.with_context(|| format!("no event {reason}: {list}"))
}

#[test]
fn helm_uninstall_alone_takes_every_node_out_of_the_mesh_and_no_pod_stays_closed() -> Result<()> {
    let (mesh, web, server) = open_by(|mesh| install(mesh, "agent.leaveSeconds=45"))?;
    let cluster = cluster(&mesh)?;
    ensure!(pins(&mesh, 1).exists() && pins(&mesh, 2).exists());
    // Nobody has taken the label off its namespace.
    let ticker =
        web.spawn_peer(&["ticker", "--to", &server.at(ECHO), "--text", WORDS, "--every-ms", "20"])?;
    let said = uninstall(&mesh)?;
    ensure!(said.ok(), "{said:?}\n{}", trouble(&mesh));
    for node in [1, 2] {
        ensure!(!pins(&mesh, node).exists(), "n{node} still has programs: {said:?}");
    }
    ensure!(said.stderr.contains("every node has left the mesh (2)"), "{said:?}");
    ensure!(event(cluster, "NodesLeft")?.contains("every node has left"));
    let kinds =
        "daemonset,deployment,job,configmap,serviceaccount,role,rolebinding,clusterrole,clusterrolebinding";
    // The controller made the last one.
    let left = objects(cluster, kinds)?;
    ensure!(left.trim() == "configmap/ferromesh-root", "{left}");

    let capture = Capture::start(&mesh.world, 2, "left")?;
    let before = ticker.stdout().lines().count();
    let closed = failed(&ticker).len();
    mesh.in_force("fifty more connections", || {
        ensure!(reaches(&web, &server)?, "the pods are closed");
        let ticks = ticker.stdout().lines().count();
        ensure!(ticks > before + 50, "{ticks}");
        Ok(())
    })?;
    eprintln!("{closed} of {before} connections failed while the nodes left");
    ensure!(failed(&ticker).len() <= closed + 1, "{:?}", failed(&ticker));
    let captured = capture.stop()?;
    ensure!(captured.contains(WORDS.as_bytes()) && captured.with_port(15008) == 0, "not plain");
    ensure!(!web.listens(15001) && !server.listens(15001));
    poll::until("the last pods to go", MADE, || {
        let pods = cluster.kubectl(&["-n", SYSTEM, "get", "pods", "-o", "name"])?.success()?;
        ensure!(pods.trim().is_empty(), "{pods}");
        Ok(())
    })
}

/// The agents' container, as the DaemonSet has it.
fn container(cluster: &Cluster) -> Result<Value> {
    let set = cluster.get("daemonset", SYSTEM, "ferromesh-agent")?;
    Ok(set["spec"]["template"]["spec"]["containers"][0].clone())
}

#[test]
fn a_node_that_did_not_leave_stops_the_uninstall_and_one_that_is_not_ready_is_named() -> Result<()> {
    let (mut mesh, web, _) = open_by(|mesh| install(mesh, "agent.leaveSeconds=15"))?;
    // Nobody has noticed yet.
    mesh.kubelets.remove(1).power_off()?;
    let said = uninstall(&mesh)?;
    ensure!(!said.ok(), "it went on without n2: {said:?}");
    ensure!(said.stderr.contains("n2 has not left within 15s: the agent ferromesh-agent-"), "{said:?}");
    ensure!(said.stderr.contains("--no-hooks") && !said.stderr.contains("n1 has not left"), "{said:?}");
    ensure!(!pins(&mesh, 1).exists() && pins(&mesh, 2).exists());
    let cluster = cluster(&mesh)?;
    ensure!(event(cluster, "NodesDidNotLeave")?.ends_with("did not leave the mesh: n2"));
    let select = ["-n", SYSTEM, "get", "pods", "-l", "job-name=ferromesh-leave", "-o", "json"];
    let pods = cluster.kubectl(&select)?.json()?;
    let ended = &pods["items"][0]["status"]["containerStatuses"][0]["state"]["terminated"];
    ensure!(
        ended["message"].as_str().is_some_and(|text| text.contains("did not leave the mesh: n2")),
        "{pods}"
    );
    let left = objects(cluster, "deployment,daemonset,serviceaccount")?;
    for kept in [
        "deployment.apps/ferromesh-controller",
        "daemonset.apps/ferromesh-agent",
        "serviceaccount/ferromesh-agent",
    ] {
        ensure!(left.contains(kept), "{left}");
    }
    ensure!(!left.contains("serviceaccount/ferromesh-leave"), "its rights outlive it: {left}");

    // Whoever thinks better of it.
    cluster.helm(&["rollback", "ferromesh", "1", "--namespace", SYSTEM])?.success()?;
    let agent = container(cluster)?;
    let probe = &agent["readinessProbe"]["exec"]["command"][1];
    ensure!(
        agent["args"][0] == "--node=$(NODE_NAME)" && probe == "--ready=/run/ferromesh/agent.sock",
        "{agent}"
    );
    mesh.enrolled(&[&web]).with_context(|| trouble(&mesh))?;

    let status =
        json!({ "status": { "conditions": [{ "type": "Ready", "status": "Unknown" }] } }).to_string();
    cluster
        .kubectl(&["patch", "node", "n2", "--subresource=status", "--type=merge", "-p", &status])?
        .success()?;
    let said = uninstall(&mesh)?;
    ensure!(said.ok(), "{said:?}\n{}", trouble(&mesh));
    ensure!(said.stderr.contains("could not be reached, since they are not ready: n2"), "{said:?}");
    ensure!(said.stderr.contains("rm -r /sys/fs/bpf/ferromesh"), "{said:?}");
    ensure!(event(cluster, "NodesNotReached")?.ends_with(": n2"));
    ensure!(!pins(&mesh, 1).exists() && pins(&mesh, 2).exists());
    let left = objects(cluster, "deployment,daemonset,job,serviceaccount")?;
    ensure!(left.trim().is_empty(), "{left}");
    mesh.in_force("the pods of n1 to be let go", || {
        ensure!(!web.listens(15001));
        Ok(())
    })
}
