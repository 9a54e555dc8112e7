//! `meshctl install` where nodes run what it applies: the controllers are Pods behind their Service, the agents what the
//! manifests say without a word changed.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use mesh_tests::mesh::{Mesh, Options};
use mesh_tests::world::CONTROLLER_V4;

use crate::agents::trouble;
use crate::network::kube_proxy;
use crate::stage::cluster;

const IMAGE: &str = concat!("registry.example/ferromesh:", env!("CARGO_PKG_VERSION"));

/// A table with one space between words.
fn words(table: &str) -> String {
    table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ") + "\n").collect()
}

#[test]
fn meshctl_install_ends_well_when_controllers_and_agents_are_ready_and_so_does_its_check() -> Result<()> {
    // One node: two of them share this machine, and nobody says here which cgroup is whose.
    let options = Options { kubelets: true, transports: vec!["auto"], ..Options::default() };
    let mut mesh = Mesh::prepare(options)?;
    mesh.cluster.as_mut().context("an API server")?.start_scheduler()?;
    let cluster = cluster(&mesh)?;
    // Whoever watches nodes in a cluster takes it off one that is ready.
    let taint = "node.kubernetes.io/not-ready:NoSchedule-";
    cluster.kubectl(&["taint", "node", "n1", taint])?.success()?;
    // A Service's address is routed by where kube-proxy sends it; before it is asked, a node has a way out.
    let (netns, way) = (&mesh.world.node(1).netns, CONTROLLER_V4.to_string());
    let routed = Command::new("ip").args(["-n", netns, "route", "add", "default", "via", &way]).status()?;
    ensure!(routed.success(), "no default route");
    let _proxy = kube_proxy(&mesh, 1)?;

    let said = cluster.meshctl(&["install", "--image", IMAGE, "--wait", "60"])?;
    ensure!(said.ok(), "{said:?}\n{}", trouble(&mesh));
    let checked = cluster.meshctl(&["check", "--cluster"])?;
    ensure!(checked.ok(), "{checked:?}\n{}", trouble(&mesh));
    for table in [words(&said.stdout), words(&checked.stdout)] {
        for line in [
            "kernel of node n1 cluster yes",
            "authorizationpolicies.ferromesh.io cluster yes there -",
            "controller cluster yes 2 of 2 ready -",
            "agents cluster yes 1 of 1 ready -",
            "plaintext to enrolled pods cluster yes nobody, since",
        ] {
            ensure!(table.contains(line), "no {line:?} in {table}");
        }
        ensure!(!table.contains(" cluster no ") && !table.contains(" weak "), "{table}");
    }
    Ok(())
}
