//! The agents as the chart's DaemonSet, run by the nodes' kubelets from what the API server has. In: a mesh without agents.
//! Out: agents that are Pods, with the manifest's arguments, mounts, capabilities and probes.

use std::os::unix::fs::symlink;
use std::path::PathBuf;

use anyhow::{Context, Result};
use mesh_tests::kube::deploy;
use mesh_tests::kube::kubelet::Driver;
use mesh_tests::mesh::{Mesh, Options};
use mesh_tests::world::Pod;

use crate::stage::{api, cluster, pod, pods_of, rolled_out, running, shop, until_asking};

pub(crate) const SYSTEM: &str = "ferromesh-system";
pub(crate) const AGENTS: &str = "app.kubernetes.io/name=ferromesh-agent";

/// A mesh whose agents are those of the chart, and the pods `web` and `api` of `shop`.
pub(crate) fn open() -> Result<(Mesh, Pod, Pod)> {
    open_by(install)
}

/// [`open`], where the agents are installed in another way.
pub(crate) fn open_by(install: impl Fn(&Mesh) -> Result<()>) -> Result<(Mesh, Pod, Pod)> {
    let drivers = vec![Driver::Cgroupfs; 2];
    let mut mesh = Mesh::prepare(Options { kubelets: true, drivers, ..Options::default() })?;
    mesh.cluster.as_mut().context("an API server")?.start_scheduler()?;
    mesh.start_controller()?;
    for node in [1, 2] {
        symlink(mesh.world.node(node).host.join("run/ferromesh/agent.sock"), mesh.admin_socket(node))?;
    }
    install(&mesh)?;
    shop(&mesh, true)?;
    api(cluster(&mesh)?, 1)?;
    pod(cluster(&mesh)?, "web", 1)?;
    ready(&mesh)?;
    rolled_out(&mesh)?;
    let web = running(&mesh, 1, "web")?;
    let server = running(&mesh, 2, &pods_of(cluster(&mesh)?, "api")?[0])?;
    mesh.enrolled(&[&web, &server])?;
    until_asking(&mesh, &web, true)?;
    Ok((mesh, web, server))
}

/// The chart's values: two nodes share one machine here, so it has to be said what is whose.
pub(crate) fn values(mesh: &Mesh) -> String {
    let of_node = mesh.world.cgroup().join("$(NODE_NAME)");
    let of_node = of_node.display();
    // This one is said from where cgroups are mounted.
    let run = mesh.world.cgroup().components().rev().take(2).collect::<Vec<_>>();
    let run: PathBuf = run.into_iter().rev().collect();
    format!(
        "agent.podsCgroup={of_node}/kubepods,agent.kubeletCgroups[0]={}/$(NODE_NAME)/kubelet.service",
        run.display()
    )
}

/// Applies the agents' part of the chart.
pub(crate) fn install(mesh: &Mesh) -> Result<()> {
    let values = values(mesh);
    let chart = deploy().join("helm/ferromesh").to_string_lossy().into_owned();
    let part = ["--show-only", "templates/agent.yaml", "--namespace", SYSTEM, "--set", &values];
    let rendered =
        cluster(mesh)?.helm(&[&["template", "ferromesh", &chart], &part[..]].concat())?.success()?;
    let file = mesh.world.files.join("agent.yaml");
    std::fs::write(&file, rendered)?;
    cluster(mesh)?.apply_path(&file)
}

/// Waits until the DaemonSet is rolled out.
pub(crate) fn ready(mesh: &Mesh) -> Result<()> {
    let status = ["-n", SYSTEM, "rollout", "status", "daemonset/ferromesh-agent", "--timeout=55s"];
    let rolled = cluster(mesh)?.kubectl(&status)?.success().map(drop);
    rolled.with_context(|| trouble(mesh))
}

pub(crate) fn trouble(mesh: &Mesh) -> String {
    let pods = cluster(mesh).and_then(|c| c.kubectl(&["-n", SYSTEM, "get", "pods", "-o", "wide"])?.success());
    let kubelets: Vec<String> = mesh.kubelets.iter().map(|kubelet| kubelet.trouble()).collect();
    format!("{pods:?}\n{}\n{}", kubelets.join("\n"), mesh.logs())
}

/// The names of the agents' pods.
pub(crate) fn agents(mesh: &Mesh) -> Result<Vec<String>> {
    let names = ["-n", SYSTEM, "get", "pods", "-l", AGENTS, "-o", "name"];
    Ok(cluster(mesh)?.kubectl(&names)?.success()?.lines().map(str::to_owned).collect())
}
