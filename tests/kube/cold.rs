//! Everything from nothing: nodes, controller and API server stop at once and start again, with what the kernel keeps of the
//! mesh, and without it.

use std::fs;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use mesh_tests::capture::{Capture, Captured, Segment};
use mesh_tests::mesh::Mesh;
use mesh_tests::world::Node;
use serde_json::json;

use crate::agents;
use crate::stage::{ECHO, SHOP, cluster, namespace, pod_with, running, running_in, until_asking};

type Address = (IpAddr, u16);

/// What is said to `api`, by a pod of the mesh and by a stranger.
const OURS: &str = "said-within-the-mesh";
const THEIRS: &str = "said-by-a-stranger";

/// How many connections of the containers `ticker` and `stranger` have been answered so far.
fn answered(mesh: &Mesh) -> (usize, usize) {
    let of = |namespace: &str, name: &str| {
        mesh.kubelets[0].output(namespace, name).lines().filter(|line| line.contains("\"ok\"")).count()
    };
    (of(SHOP, "ticker"), of("plain", "stranger"))
}

/// A pod of the mesh and a stranger on node 1 that go on talking to `to`.
fn talkers(mesh: &Mesh, to: &str) -> Result<()> {
    for (space, name, text) in [(SHOP, "ticker", OURS), ("plain", "stranger", THEIRS)] {
        let command = ["peer", "ticker", "--to", to, "--text", text, "--every-ms", "50"];
        pod_with(cluster(mesh)?, (space, name), name, 1, &command)?;
        running_in(mesh, 1, space, name)?;
    }
    Ok(())
}

/// Waits until the mesh serves its own and nobody else.
fn in_service(mesh: &Mesh) -> Result<()> {
    mesh.in_force("the mesh to serve its own and nobody else", || {
        let before = answered(mesh);
        std::thread::sleep(Duration::from_millis(500));
        let after = answered(mesh);
        ensure!(after.0 > before.0 + 3 && after.1 == before.1, "{before:?} {after:?}");
        Ok(())
    })
}

/// The power of both nodes fails, and of what the control plane runs on.
fn power_off(mesh: &mut Mesh) -> Result<()> {
    for kubelet in std::mem::take(&mut mesh.kubelets) {
        kubelet.power_off()?;
    }
    mesh.kill_controller();
    mesh.cluster.as_mut().context("an API server")?.kill_api();
    Ok(())
}

/// What a boot finds of the kernel's state: nothing.
fn forget(mesh: &Mesh) -> Result<()> {
    for node in mesh.world.nodes() {
        for entry in fs::read_dir(&node.pins)? {
            fs::remove_dir_all(entry?.path())?;
        }
        mesh_tests::world::remove_cgroup(&node.pods_cgroup())?;
        fs::remove_dir_all(node.host.join("run"))?;
    }
    Ok(())
}

#[test]
fn all_comes_up_from_nothing_by_itself_and_nobody_talks_around_the_mesh_meanwhile() -> Result<()> {
    let (mut mesh, web, api) = agents::open()?;
    let strict = json!({
        "apiVersion": "ferromesh.io/v1alpha1", "kind": "MeshConfig",
        "metadata": { "namespace": SHOP, "name": "strict" }, "spec": { "mtls": { "mode": "STRICT" } },
    });
    cluster(&mesh)?.apply(&strict)?.success()?;
    namespace(&mesh, "plain", false)?;
    let to = api.at(ECHO);
    talkers(&mesh, &to)?;
    in_service(&mesh)?;
    // That the namespace is strict is on the nodes' disks within two seconds.
    std::thread::sleep(Duration::from_secs(3));
    for boots in [false, true] {
        let (_, strangers) = answered(&mesh);
        power_off(&mut mesh)?;
        if boots {
            forget(&mesh)?;
        }
        let capture = Capture::start(&mesh.world, 2, if boots { "booted" } else { "kept" })?;
        mesh.cluster.as_mut().context("an API server")?.start_api()?;
        for node in [1, 2] {
            mesh.start_kubelet(node)?;
        }
        let there = running(&mesh, 2, &api.spec.name)?;
        ensure!(there.at(ECHO) == to, "another address: {}", there.v4);
        for (space, name) in [(SHOP, "ticker"), ("plain", "stranger")] {
            running_in(&mesh, 1, space, name)?;
        }
        let mut before = (answered(&mesh).0, strangers);
        let mut held_from = SystemTime::UNIX_EPOCH;
        if boots {
            // Until an agent has attached the programs there is nothing in the kernel that could hold anybody.
            held_from = attached(&mesh)?;
            before = answered(&mesh);
        }
        // The controller is the last.
        std::thread::sleep(Duration::from_secs(4));
        ensure!(answered(&mesh) == before, "boots {boots}: {before:?} {:?}", answered(&mesh));
        mesh.start_controller()?;
        let web = running(&mesh, 1, &web.spec.name)?;
        mesh.enrolled(&[&web, &there])?;
        until_asking(&mesh, &web, true)?;
        in_service(&mesh)?;
        let captured = capture.stop()?;
        ensure!(answered(&mesh).1 == before.1, "boots {boots}: a stranger got in");
        ensure!(captured.with_port(15008) > 0, "boots {boots}: no tunnel");
        // What was opened before goes on, until it ends or strict closes it.
        let opened = captured.accepted(ECHO).filter(|answer| answer.at < held_from);
        let opened: Vec<_> = opened.map(|answer| answer.to).collect();
        let mut around = captured.said(OURS.as_bytes());
        around.retain(|ends| !ends.iter().any(|end| opened.contains(end)));
        ensure!(
            around.is_empty(),
            "boots {boots}: plaintext of {around:?}, opened before {held_from:?}: {opened:?}\n{}{:?}",
            history(&captured, &around, held_from),
            mesh.access_log(1).0.iter().filter(|record| record["protocol"] == "plain").collect::<Vec<_>>()
        );
    }
    Ok(())
}

/// What became of these connections, in milliseconds from `held_from`.
fn history(captured: &Captured, of: &[[Address; 2]], held_from: SystemTime) -> String {
    let theirs = |segment: &&Segment| of.contains(&[segment.from, segment.to]);
    let line = |segment: &Segment| {
        let after = segment
            .at
            .duration_since(held_from)
            .map_or_else(|before| -before.duration().as_secs_f64(), |after| after.as_secs_f64());
        let Segment { from, to, flags, payload, .. } = segment;
        format!("{:.1} {from:?} -> {to:?} flags {flags:#x}, {} bytes\n", after * 1000.0, payload.len())
    };
    captured.segments.iter().filter(theirs).map(line).collect()
}

/// The kernel gives a file the time of its last tick, up to so much too early; a whole connection fits into that.
const TICK: Duration = Duration::from_millis(10);

/// Waits until the programs are attached on both nodes, and says since when on the first, which the clients are on.
fn attached(mesh: &Mesh) -> Result<SystemTime> {
    // It is the last one.
    let pin =
        |node: &Node| node.pins.join("ferromesh/links/on_connect4").metadata().and_then(|pin| pin.modified());
    let since = mesh.in_force("the programs to be attached", || {
        let since: std::io::Result<Vec<_>> = mesh.world.nodes().iter().map(pin).collect();
        since?.into_iter().next().context("no nodes")
    })?;
    // What was answered just before is in the output by then.
    std::thread::sleep(Duration::from_millis(300));
    Ok(since + TICK)
}
