//! The agents' DaemonSet rolled under load, and deleted without un-enrolling anybody.

use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::poll;
use mesh_tests::world::{Pod, Process};
use serde_json::json;

use crate::agents::{AGENTS, SYSTEM, agents, install, open, ready, trouble};
use crate::stage::{
    ECHO, MADE, VIP, cluster, failed, is_echo, namespace, pod_with, running_in, until_asking,
};

fn ticker(from: &Pod, to: &str) -> Result<Process> {
    from.spawn_peer(&["ticker", "--to", to, "--text", "tick", "--every-ms", "10"])
}

#[test]
fn the_daemonset_is_rolled_under_load_and_no_connect_fails() -> Result<()> {
    let (mesh, web, server) = open()?;
    let before = agents(&mesh)?;
    let service = ticker(&web, &format!("{VIP}:{ECHO}"))?;
    let direct = ticker(&web, &server.at(ECHO))?;
    cluster(&mesh)?.kubectl(&["-n", SYSTEM, "rollout", "restart", "daemonset/ferromesh-agent"])?.success()?;
    ready(&mesh)?;
    poll::until("the old agents to be gone", MADE, || {
        let live = agents(&mesh)?;
        ensure!(live.len() == 2 && before.iter().all(|name| !live.contains(name)), "{before:?} {live:?}");
        Ok(())
    })?;
    let told = until_asking(&mesh, &web, true)?;
    ensure!(is_echo(&told));
    for ticker in [service, direct] {
        let ticks = ticker.stdout().lines().count();
        eprintln!("{ticks} connections");
        ensure!(
            failed(&ticker).is_empty() && ticks > 100,
            "{ticks}: {:?}\n{}",
            failed(&ticker),
            trouble(&mesh)
        );
    }
    Ok(())
}

/// Asks, not waiting long.
pub(crate) fn reaches(from: &Pod, to: &Pod) -> Result<bool> {
    let told = from.peer(&[
        "talk",
        "--to",
        &to.at(ECHO),
        "--send",
        "hello",
        "--half-close",
        "--timeout-ms",
        "1500",
    ])?;
    Ok(is_echo(&told))
}

#[test]
fn a_daemonset_deleted_without_hooks_leaves_pods_closed_or_as_their_owner_says_and_the_next_one_adopts_them()
-> Result<()> {
    let (mesh, web, server) = open()?;
    let cluster = cluster(&mesh)?;
    // Another namespace, whose owner would rather have plaintext than nothing.
    namespace(&mesh, "lax", true)?;
    let config = json!({
        "apiVersion": "ferromesh.io/v1alpha1", "kind": "MeshConfig",
        "metadata": { "namespace": "lax", "name": "lax" }, "spec": { "agentLostAfter": "2s" },
    });
    cluster.apply(&config)?.success()?;
    let listen = format!("0.0.0.0:{ECHO}");
    for (name, node) in [("near", 1), ("far", 2)] {
        pod_with(cluster, ("lax", name), name, node, &["peer", "echo", "--listen", &listen])?;
    }
    let (near, far) = (running_in(&mesh, 1, "lax", "near")?, running_in(&mesh, 2, "lax", "far")?);
    mesh.enrolled(&[&near, &far])?;
    mesh.in_force("both to answer", || {
        ensure!(reaches(&near, &far)? && reaches(&web, &server)?);
        Ok(())
    })?;
    for node in [1, 2] {
        mesh.in_force("the choice to be known", || {
            let dump = mesh.meshctl(node, &["-o", "json", "dump"])?.success()?;
            ensure!(dump.replace(' ', "").contains("\"opens_after_seconds\":2"), "{dump}");
            Ok(())
        })?;
    }
    // The kernel is told right after.
    std::thread::sleep(Duration::from_millis(500));

    cluster
        .kubectl(&["-n", SYSTEM, "delete", "daemonset", "ferromesh-agent", "--cascade=orphan"])?
        .success()?;
    let delete = ["-n", SYSTEM, "delete", "pods", "-l", AGENTS, "--grace-period=0", "--force"];
    cluster.kubectl(&delete)?.success()?;
    mesh.in_force("the agents to be gone", || {
        ensure!(agents(&mesh)?.is_empty());
        // The API server forgets them before their kubelets have ended them.
        for node in [1, 2] {
            ensure!(!mesh.meshctl(node, &["status"])?.ok(), "the agent of node {node} answers");
        }
        Ok(())
    })?;
    mesh.in_force("the pods of the owner who chose so to talk plainly", || {
        ensure!(reaches(&near, &far)?);
        Ok(())
    })?;
    for _ in 0..3 {
        ensure!(
            !reaches(&web, &server)? && !reaches(&near, &server)?,
            "a pod is open whose owner chose nothing"
        );
    }

    install(&mesh)?;
    ready(&mesh)?;
    mesh.enrolled(&[&web, &server, &near, &far])?;
    let told = until_asking(&mesh, &web, true)?;
    ensure!(told["connect"] == "ok");
    mesh.in_force("the lax pods to be the mesh's again", || {
        ensure!(reaches(&near, &far)?);
        Ok(())
    })?;
    Ok(())
}
