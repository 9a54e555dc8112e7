//! What the scenarios, the demo and the bench stand on: nodes and pods on one machine, the mesh's programs, and eyes
//! on what they do.
//!
//! In: a machine with root, cgroup v2 and network namespaces, and the workspace's binaries beside the running one.
//! Out: [`world::World`] (namespaces, cgroups, processes), [`mesh::Mesh`] (controller and agents over a world),
//! [`kube::Cluster`] (a real API server), [`capture::Capture`] (bytes on the link between nodes) and [`access_log::AccessLog`] (the agents' records).
//! No address outside of the namespaces is ever used.

pub mod access_log;
pub mod apps;
pub mod bench;
pub mod capture;
pub mod demo;
mod http;
pub mod kube;
pub mod manifests;
pub mod mesh;
mod mesh_status;
pub mod metrics;
mod options;
pub mod poll;
pub mod world;

/// All scenarios can be played in either mode.
fn mode(name: &str, default: &str) -> String {
    std::env::var(format!("FERROMESH_TEST_{name}")).unwrap_or_else(|_| default.to_owned())
}
