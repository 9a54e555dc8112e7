//! Who is in the mesh: a pod that opts out by its label, a namespace that leaves and comes back under load, a node that is
//! added and removed.

use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::access_log::names;
use mesh_tests::mesh::{Mesh, Options};
use mesh_tests::poll;
use mesh_tests::world::{Pod, Process};
use serde_json::json;

use crate::stage::{
    ECHO, MADE, SHOP, VIP, api, ask, cluster, failed, is_echo, open, pod, pods_of, rolled_out, running, shop,
    source, template, until_asking,
};

const LABEL: &str = "ferromesh.io/enrolled";

/// Puts the label on an object of `shop`, or takes it off (`-`).
fn label(mesh: &Mesh, kind: &str, name: &str, value: &str) -> Result<()> {
    let value = format!("{LABEL}{value}");
    let arguments = ["-n", SHOP, "label", "--overwrite", kind, name, &value];
    cluster(mesh)?.kubectl(&arguments)?.success().map(drop)
}

fn until_let_go(mesh: &Mesh, pods: &[&Pod]) -> Result<()> {
    mesh.in_force("the pods to be let go", || {
        let held: Vec<String> = pods.iter().filter(|pod| pod.listens(15001)).map(|pod| pod.name()).collect();
        ensure!(held.is_empty(), "still enrolled: {held:?}");
        Ok(())
    })
}

/// Asks until the other side's agent says that nobody has proven to be `from`.
fn until_plain(mesh: &Mesh, from: &Pod, to: &str) -> Result<()> {
    mesh.in_force("a plain connection", || {
        let told = from.peer(&["talk", "--to", to, "--send", "hello", "--half-close"])?;
        ensure!(is_echo(&told), "{told}");
        let id = source(mesh, &told)?;
        ensure!(id == names::NOBODY, "it is {id}");
        Ok(())
    })
}

#[test]
fn a_pod_opts_out_by_its_label_where_its_namespace_lets_it() -> Result<()> {
    let mesh = open(true)?;
    let cluster = cluster(&mesh)?;
    api(cluster, 1)?;
    pod(cluster, "web", 1)?;
    rolled_out(&mesh)?;
    let web = running(&mesh, 1, "web")?;
    let server = running(&mesh, 2, &pods_of(cluster, "api")?[0])?;
    mesh.enrolled(&[&web, &server])?;
    until_asking(&mesh, &web, true)?;

    label(&mesh, "pod", "web", "=false")?;
    poll::until("an event", MADE, || {
        let events = cluster.kubectl(&["-n", SHOP, "events", "--for", "pod/web"])?.success()?;
        ensure!(events.contains("Warning") && events.contains("OptOutNotAllowed"), "{events}");
        Ok(())
    })?;
    let told = ask(&web)?;
    ensure!(web.listens(15001) && source(&mesh, &told)? == web.spiffe_id(), "nobody let it leave: {told}");

    let config = json!({
        "apiVersion": "ferromesh.io/v1alpha1", "kind": "MeshConfig",
        "metadata": { "namespace": SHOP, "name": "free" }, "spec": { "allowOptOut": true },
    });
    cluster.apply(&config)?.success()?;
    until_let_go(&mesh, &[&web])?;
    until_plain(&mesh, &web, &server.at(ECHO))?;

    // One that has been outside since it was made.
    let mut late = template("late", 1, &[]);
    late["apiVersion"] = json!("v1");
    late["kind"] = json!("Pod");
    late["metadata"] = json!({ "namespace": SHOP, "name": "late", "labels": { LABEL: "false" } });
    cluster.service_account(SHOP, "late")?;
    cluster.apply(&late)?.success()?;
    let late = running(&mesh, 1, "late")?;
    until_plain(&mesh, &late, &server.at(ECHO))?;
    ensure!(!late.listens(15001) && server.listens(15001));

    label(&mesh, "pod", "web", "-")?;
    mesh.enrolled(&[&web])?;
    let told = until_asking(&mesh, &web, true)?;
    ensure!(source(&mesh, &told)? == web.spiffe_id(), "{told}");
    Ok(())
}

#[test]
fn a_namespace_leaves_and_comes_back_under_load() -> Result<()> {
    let mesh = open(true)?;
    let cluster = cluster(&mesh)?;
    api(cluster, 1)?;
    pod(cluster, "web", 1)?;
    rolled_out(&mesh)?;
    let web = running(&mesh, 1, "web")?;
    let server = running(&mesh, 2, &pods_of(cluster, "api")?[0])?;
    mesh.enrolled(&[&web, &server])?;
    until_asking(&mesh, &web, true)?;
    // Nothing but the mesh knows services here.
    let to = server.at(ECHO);
    let ticker = web.spawn_peer(&["ticker", "--to", &to, "--text", "tick", "--every-ms", "10"])?;
    let open = ["talk", "--to", &to, "--send", "hello", "--again-after-ms", "6000", "--limit", "10"];
    let open = web.spawn_peer(&open)?;
    for turn in 0..2 {
        label(&mesh, "namespace", SHOP, "-")?;
        until_let_go(&mesh, &[&web, &server])?;
        until_no_agent(&mesh)?;
        label(&mesh, "namespace", SHOP, "=true")?;
        mesh.enrolled(&[&web, &server])?;
        let told = until_asking(&mesh, &web, true)?;
        ensure!(source(&mesh, &told)? == web.spiffe_id(), "turn {turn}: {told}");
    }
    let told = open.wait(MADE)?.json()?;
    ensure!(told["received"] == "hellohello", "a connection that was there before: {told}");
    let ticks = ticker.stdout().lines().count();
    ensure!(ticks > 100 && failed(&ticker).is_empty(), "of {ticks}: {:?}", failed(&ticker));
    Ok(())
}

/// Waits until what is asked all the time passes no agent any more.
fn until_no_agent(mesh: &Mesh) -> Result<()> {
    let records = || [1, 2].map(|node| mesh.access_log(node).0.len());
    mesh.in_force("connections without an agent", || {
        let before = records();
        std::thread::sleep(Duration::from_millis(300));
        ensure!(records() == before, "{before:?} {:?}", records());
        Ok(())
    })
}

/// A server that the service `api` selects as well.
fn another_server(mesh: &Mesh, name: &str, node: u8) -> Result<Pod> {
    let mut server = template("api", node, &["peer", "echo", "--listen", &format!("0.0.0.0:{ECHO}")]);
    server["apiVersion"] = json!("v1");
    server["kind"] = json!("Pod");
    server["metadata"]["namespace"] = json!(SHOP);
    server["metadata"]["name"] = json!(name);
    server["spec"]["containers"][0]["readinessProbe"] = json!({ "tcpSocket": { "port": ECHO } });
    cluster(mesh)?.apply(&server)?.success()?;
    running(mesh, node, name)
}

/// How many connections the agent of a node has taken for its pods.
fn taken_by(mesh: &Mesh, node: u8) -> usize {
    mesh.access_log(node).count(&[(names::REPORTER, names::DESTINATION)])
}

#[test]
fn a_node_that_is_added_serves_at_once_and_one_that_dies_and_is_removed_is_asked_no_more() -> Result<()> {
    let mut mesh = Mesh::start_with(Options {
        kubelets: true,
        transports: vec!["auto"; 3],
        late_nodes: 1,
        ..Options::default()
    })?;
    shop(&mesh, true)?;
    api(cluster(&mesh)?, 1)?;
    pod(cluster(&mesh)?, "web", 1)?;
    rolled_out(&mesh)?;
    let web = running(&mesh, 1, "web")?;
    mesh.enrolled(&[&web])?;
    until_asking(&mesh, &web, true)?;
    let to = format!("{VIP}:{ECHO}");
    let ticker = web.spawn_peer(&["ticker", "--to", &to, "--text", "tick", "--every-ms", "20"])?;

    mesh.start_kubelet(3)?;
    mesh.start_agent(3)?;
    let server = another_server(&mesh, "far", 3)?;
    mesh.enrolled(&[&server])?;
    mesh.in_force("the new node's pod to be asked", || {
        ensure!(taken_by(&mesh, 3) > 3, "{}", taken_by(&mesh, 3));
        Ok(())
    })?;
    let told = server.peer(&["talk", "--to", &to, "--send", "hello", "--half-close"])?;
    ensure!(is_echo(&told), "{told}");
    ensure!(failed(&ticker).is_empty(), "{:?}", failed(&ticker));

    // Nothing of it answers any more, and the cluster's owner gives it up.
    mesh.kill_agent(3);
    mesh.world.plug(3, false)?;
    let cluster = cluster(&mesh)?;
    cluster.kubectl(&["delete", "node", "n3"])?.success()?;
    for (namespace, name) in [(SHOP, "far"), ("ferromesh-system", "agent-n3")] {
        let delete = ["-n", namespace, "delete", "pod", name, "--grace-period=0", "--force"];
        cluster.kubectl(&delete)?.success()?;
    }
    mesh.in_force("the endpoint to be dropped", || {
        let dump = mesh.meshctl(1, &["-o", "json", "dump"])?.success()?;
        ensure!(!dump.contains(&server.v4.to_string()), "it is there: {dump}");
        Ok(())
    })?;
    let before = failed(&ticker).len();
    eprintln!("{before} of {} failed until the node was removed", ticker.stdout().lines().count());
    let ticks = |ticker: &Process| ticker.stdout().lines().count();
    let begun = ticks(&ticker);
    mesh.in_force("fifty more ticks", || {
        ensure!(ticks(&ticker) > begun + 50, "{}", ticks(&ticker));
        Ok(())
    })?;
    // One or two were on their way.
    let late = failed(&ticker).len() - before;
    ensure!(late <= 2, "{late}: {:?}", failed(&ticker));
    Ok(())
}
