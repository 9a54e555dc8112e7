//! How interception is set up. In: the command line. Out: what the loader and the synchronisation go by.

use std::path::PathBuf;
use std::sync::Arc;

/// Where the interceptor works.
#[derive(Clone, Debug)]
pub struct Config {
    /// The cgroup that the pods' cgroups are below.
    pub pods_root: PathBuf,
    /// A folder on bpffs that is this agent's alone; made when missing.
    pub pin_dir: PathBuf,
    /// The name of this node, as workloads have it.
    pub node: Arc<str>,
    /// Refuse enrolled pods the kinds of sockets that could send past the mesh (raw, UDP-Lite, SCTP).
    pub refuse_sockets: bool,
    /// Hold connections of pods that nobody has classified yet, and to them.
    pub hold_unclassified: bool,
    /// Which pods are never held.
    pub never_held: NeverHeld,
    /// How pods are connected.
    pub connect: ConnectMode,
}

/// Pods that wait for nobody, found without the controller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NeverHeld {
    /// Their namespaces.
    pub namespaces: Vec<String>,
    /// The kubelet's folder of pod logs, `NAMESPACE_NAME_UID` each.
    pub pod_logs: PathBuf,
}

/// When a redirected `connect()` returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConnectMode {
    /// When the agent has dialled the destination, and as that ended: connected, refused, unreachable, or not at all.
    Honest,
    /// At once: a failure reaches the client as a reset.
    #[default]
    Eager,
}
