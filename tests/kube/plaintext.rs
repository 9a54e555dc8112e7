//! Who would be shut out by strict, as an operator learns before it comes: `meshctl check --cluster` asks the agents in their
//! pods.

use anyhow::{Result, ensure};
use mesh_tests::mesh::Mesh;
use serde_json::json;

use crate::agents::{open, trouble};
use crate::stage::{ECHO, SHOP, cluster, is_echo, namespace, pod_with, running_in};

const NOBODY: &str = "plaintext to enrolled pods cluster yes nobody, since ";

/// The cluster's checks, a line each, with one space between words.
fn checked(mesh: &Mesh) -> Result<String> {
    // The controller is a process beside the cluster here, so the whole does not end well.
    let table = cluster(mesh)?.meshctl(&["check", "--cluster"])?.stdout;
    Ok(table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ") + "\n").collect())
}

#[test]
fn who_speaks_plaintext_is_named_by_the_check_before_strict_comes_with_its_mend_and_nobody_else_is()
-> Result<()> {
    let (mesh, web, server) = open()?;
    let cluster = cluster(&mesh)?;
    namespace(&mesh, "plain", false)?;
    pod_with(cluster, ("plain", "outsider"), "outsider", 1, &[])?;
    let outsider = running_in(&mesh, 1, "plain", "outsider")?;
    // The mesh's own traffic and the kubelet's probes are none of it.
    let told = checked(&mesh)?;
    ensure!(told.contains(NOBODY), "{told}\n{}", trouble(&mesh));

    let to = server.at(ECHO);
    for from in [&outsider, &outsider, &web] {
        let told = from.peer(&["talk", "--to", &to, "--send", "hello", "--half-close"])?;
        ensure!(is_echo(&told), "{told}");
    }
    let told = mesh.in_force("the outsider to be named", || {
        let told = checked(&mesh)?;
        let named = format!(
            "plaintext to {SHOP}/api:{ECHO} cluster weak from plain/outsider: 2 connections, 0 open,"
        );
        ensure!(told.contains(&named), "{told}");
        Ok(told)
    })?;
    let mend = "before strict: kubectl label namespace plain ferromesh.io/enrolled=true, or leave port 7000 PERMISSIVE";
    ensure!(told.contains(mend), "{told}");
    ensure!(told.matches("plaintext to").count() == 1 && !told.contains(NOBODY), "{told}");
    let status = mesh.meshctl(2, &["status"])?.stdout;
    ensure!(status.contains("PLAINTEXT FROM") && status.contains("plain/outsider"), "{status}");

    let strict = json!({
        "apiVersion": "ferromesh.io/v1alpha1", "kind": "MeshConfig",
        "metadata": { "namespace": SHOP, "name": "strict" }, "spec": { "mtls": { "mode": "STRICT" } },
    });
    cluster.apply(&strict)?.success()?;
    mesh.in_force("a port that is strict to be no concern any more", || {
        let told = checked(&mesh)?;
        ensure!(told.contains(NOBODY), "{told}");
        Ok(())
    })
}
