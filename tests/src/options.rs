//! How a mesh of a scenario is started: defaults in, what the scenario wants otherwise out.

use anyhow::Result;

use crate::kube::kubelet::Driver;

/// How a mesh is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which transport each node's agent offers, in order of nodes: `auto` or `hbone`.
    pub transports: Vec<&'static str>,
    /// When a pod's `connect()` returns: `honest`, `eager`, or `auto` (as MeshConfigs say, else honest).
    pub connect: String,
    /// What becomes of pods that nobody has classified yet: `hold` or `pass`.
    pub unclassified: String,
    /// How long certificates live.
    pub svid_ttl: &'static str,
    /// Further arguments of the controller.
    pub controller_arguments: Vec<String>,
    /// Further arguments of every agent.
    pub agent_arguments: Vec<&'static str>,
    /// Each agent is in a cgroup of its own below the pods' root, as a DaemonSet's is.
    pub agents_as_pods: bool,
    /// Objects come from a real API server, [`Mesh::cluster`](crate::mesh::Mesh::cluster), instead of from a folder.
    pub kube: bool,
    /// As `kube`, with a kubelet on each node and the controllers that make Pods of Deployments and Jobs.
    pub kubelets: bool,
    /// How the nodes' kubelets name cgroups; those that are left out as the last one.
    pub drivers: Vec<Driver>,
    /// So many of the nodes, the first ones, are plain hosts: their agent is told of units instead of pods.
    pub hosts: u8,
    /// So many of the nodes, the last ones, are not started until [`Mesh::start_kubelet`](crate::mesh::Mesh::start_kubelet) and its agent's start.
    pub late_nodes: u8,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            transports: vec!["auto", "auto"],
            connect: crate::mode("CONNECT", "auto"),
            unclassified: crate::mode("UNCLASSIFIED", "hold"),
            svid_ttl: "24h",
            controller_arguments: Vec::new(),
            agent_arguments: Vec::new(),
            agents_as_pods: false,
            kube: false,
            kubelets: false,
            drivers: vec![Driver::Systemd, Driver::Cgroupfs],
            hosts: 0,
            late_nodes: 0,
        }
    }
}

impl Options {
    /// How many nodes are started with the mesh.
    pub(crate) fn first_nodes(&self) -> Result<u8> {
        Ok(u8::try_from(self.transports.len())?.saturating_sub(self.late_nodes))
    }

    /// How the kubelet of a node names cgroups.
    pub(crate) fn driver(&self, number: u8) -> Driver {
        let own = self.drivers.get(usize::from(number).saturating_sub(1));
        own.or(self.drivers.last()).copied().unwrap_or(Driver::Cgroupfs)
    }
}
