//! How interception is set up. In: the command line. Out: what the loader and the synchronisation go by.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use mesh_common::HOLD_WHILE_ALIVE;
use mesh_core::model::ConnectMode;

use super::discover::{self, Scanned};
use super::probe;

/// Where the interceptor works.
#[derive(Clone, Debug)]
pub struct Config {
    /// The cgroup that the pods' cgroups are below.
    pub pods_root: PathBuf,
    /// Where the container runtime has bind mounts of the pods' network namespaces.
    pub netns_folders: Vec<PathBuf>,
    /// A folder on bpffs that is this agent's alone; made when missing.
    pub pin_dir: PathBuf,
    /// The name of this node, as workloads have it.
    pub node: Arc<str>,
    /// Refuse enrolled pods the kinds of sockets that could send past the mesh (raw, UDP-Lite, SCTP).
    pub refuse_sockets: bool,
    /// The workloads are systemd units that share the network namespace of this agent, not pods; `pods_root` is the cgroup that
    /// their cgroups are below.
    pub units: bool,
    /// Hold connections of pods that nobody has classified yet, and to them; of units only while this agent runs.
    pub hold_unclassified: bool,
    /// Which pods are never held.
    pub never_held: NeverHeld,
    /// When the `connect()` of enrolled pods returns.
    pub connect: ConnectChoice,
}

/// Pods that wait for nobody, found without the controller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NeverHeld {
    /// Their namespaces.
    pub namespaces: Vec<String>,
    /// The kubelet's folder of pod logs, `NAMESPACE_NAME_UID` each.
    pub pod_logs: PathBuf,
}

/// Who says when a redirected `connect()` returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConnectChoice {
    /// Each pod's MeshConfigs; honest where they say nothing.
    #[default]
    Pods,
    /// This node, for all of them.
    Node(ConnectMode),
}

impl Config {
    /// What the kernel is told of those that nobody has classified yet. A host's own services never wait for an agent that is
    /// not there: one of them is how its owner gets in.
    pub(super) fn hold(&self) -> u32 {
        match (self.hold_unclassified, self.units) {
            (false, _) => 0,
            (true, false) => 1,
            (true, true) => HOLD_WHILE_ALIVE,
        }
    }

    /// The cgroups of what may be a workload here, by uid.
    pub(super) fn scan(&self) -> io::Result<Scanned> {
        if self.units {
            discover::scan_units(&self.pods_root, &self.node)
        } else {
            discover::scan(&self.pods_root)
        }
    }

    /// Where this node does not carry an honest `connect()`, nobody gets it.
    pub(super) fn where_carried(mut self) -> Self {
        if !probe::carries_honest_connect() {
            tracing::warn!("this node does not carry an honest connect(): connections are accepted at once");
            self.connect = ConnectChoice::Node(ConnectMode::Eager);
        }
        self
    }
}

impl ConnectChoice {
    /// The mode of a pod whose MeshConfigs have `said` it.
    pub(super) fn of(self, said: Option<ConnectMode>) -> ConnectMode {
        match self {
            Self::Pods => said.unwrap_or(ConnectMode::Honest),
            Self::Node(mode) => mode,
        }
    }
}
