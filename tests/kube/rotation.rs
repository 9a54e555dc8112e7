//! The root that replicas share: it rotates in the Secret, through a change of the replica that takes the steps.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use mesh_tests::apps;
use mesh_tests::kube::User;
use mesh_tests::mesh::{Mesh, Options};
use mesh_tests::poll;
use mesh_tests::world::{CONTROLLER_V4, PodSpec, Process, binary};
use serde_json::Value;

const VIP: &str = "10.99.0.10";
const ECHO: u16 = 7000;
const SYSTEM: &str = "ferromesh-system";
/// A Lease that nobody renews is free after 15 s; then two looks.
const CHANGE: Duration = Duration::from_secs(60);

/// Another replica, with a state folder of its own.
fn replica(mesh: &Mesh, name: &str) -> Result<(Process, PathBuf)> {
    let state = mesh.world.files.join(name);
    let cluster = mesh.cluster.as_ref().context("no API server")?;
    let arguments = [
        "--source=kube".to_owned(),
        format!("--kubeconfig={}", cluster.kubeconfig(User::Controller).display()),
        format!("--state-dir={}", state.display()),
        format!("--listen={CONTROLLER_V4}:15011"),
        format!("--metrics-addr={CONTROLLER_V4}:15016"),
        "--root-settle=5s".to_owned(),
    ];
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let process = Process::start(&mesh.world.wire(), name, &binary("mesh-controller")?, &arguments)?;
    Ok((process, state))
}

/// The keys of the Secret, and the stages beside the root that signs.
fn shared(mesh: &Mesh) -> Result<(String, Value)> {
    let cluster = mesh.cluster.as_ref().context("no API server")?;
    let secret = cluster.get("secret", SYSTEM, "ferromesh-ca")?;
    let data = secret["data"].as_object().context("data")?;
    let rotation = data.get("rotation.json").cloned().unwrap_or_default();
    Ok((data["tls.crt"].to_string(), rotation))
}

fn root(state: &Path) -> Result<String> {
    Ok(fs::read_to_string(state.join("ca/root.pem"))?)
}

#[test]
fn the_shared_root_rotates_through_a_change_of_the_leading_replica() -> Result<()> {
    let controller_arguments = vec!["--root-settle=5s".to_owned()];
    let options = Options { kube: true, svid_ttl: "5m", controller_arguments, ..Options::default() };
    let mut mesh = Mesh::prepare(options)?;
    let cluster = mesh.cluster.as_ref().context("no API server")?;
    cluster.nodes(&mesh.world)?;
    cluster.namespace("shop")?;
    let web = cluster.pod(&mesh.world, &PodSpec::new("shop", "web", 1))?;
    let api = cluster.pod(&mesh.world, &PodSpec::new("shop", "api", 2))?;
    cluster.service(("shop", "api"), VIP, ECHO, &[&api])?;
    cluster.kubectl(&["label", "namespace", "shop", "ferromesh.io/enrolled=true"])?.success()?;
    let _server = apps::peer_server(&api, "echo", ECHO, &[])?;
    mesh.start_controller()?;
    mesh.start_agent(1)?;
    mesh.start_agent(2)?;
    mesh.enrolled(&[&web, &api])?;
    let (_other, other) = replica(&mesh, "replica-2")?;
    let to = format!("{VIP}:{ECHO}");
    let ticker = web.spawn_peer(&["ticker", "--to", &to, "--text", "tick", "--every-ms", "50"])?;
    let first = shared(&mesh)?.0;
    poll::until("the other replica to follow", CHANGE, || ensure_same(&root(&other)?, &mesh))?;

    // The replica that leads is gone with its folder, as a pod is; the other one takes the steps.
    mesh.operator(&["ca", "rotate"])?.success()?;
    mesh.kill_controller();
    let own = mesh.world.files.join("controller");
    fs::remove_dir_all(own.join("ca"))?;
    mesh.start_controller()?;
    let (second, _) = poll::until("the next root to sign", CHANGE, || {
        let found = shared(&mesh)?;
        ensure!(found.0 != first && !found.1.is_null(), "it does not yet");
        Ok(found)
    })
    .with_context(|| mesh.logs())?;
    ensure!(second != first);
    for state in [&own, &other] {
        poll::until("each replica to follow", CHANGE, || ensure_same(&root(state)?, &mesh))?;
    }
    let shown = mesh.cluster.as_ref().context("no API server")?.get("configmap", SYSTEM, "ferromesh-root")?;
    let shown = shown["data"]["root.pem"].as_str().unwrap_or_default();
    ensure!(shown.matches("BEGIN CERTIFICATE").count() == 2, "agents that start are not shown both: {shown}");
    ensure!(!shown.contains("PRIVATE"), "a key is shown");
    let failed: Vec<_> =
        ticker.stdout().lines().filter(|tick| !tick.contains("\"ok\"")).map(str::to_owned).collect();
    ensure!(failed.is_empty(), "{failed:?}");
    Ok(())
}

/// Fails unless the root of a folder is the one that signs in the Secret.
fn ensure_same(root: &str, mesh: &Mesh) -> Result<()> {
    let cluster = mesh.cluster.as_ref().context("no API server")?;
    let arguments = [
        "-n",
        SYSTEM,
        "get",
        "secret",
        "ferromesh-ca",
        "-o",
        "go-template={{index .data \"tls.crt\" | base64decode}}",
    ];
    let signs = cluster.kubectl(&arguments)?.success()?;
    if signs.trim() == root.trim() { Ok(()) } else { Err(anyhow!("another root: {root}")) }
}
