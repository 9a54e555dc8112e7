//! A workload: one pod (or one systemd unit), with its identity, addresses and the rules that concern it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::{PolicyName, ServiceName};
use crate::identity::SpiffeId;

/// The cluster-wide unique key of a workload: a pod's `metadata.uid`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkloadUid(pub Arc<str>);

impl fmt::Display for WorkloadUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The top owner of a pod (Deployment, CronJob, ...), which names the workload in metrics.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    /// The kind, for example `Deployment`; `Pod` when the pod has no owner.
    pub kind: Arc<str>,
    /// The owner's name.
    pub name: Arc<str>,
}

/// Whether a workload takes plaintext connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MtlsMode {
    /// Both mutual TLS and plaintext are taken.
    Permissive,
    /// Only mutual TLS is taken.
    Strict,
}

/// The mTLS mode of a workload, with exceptions by port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MtlsModes {
    /// The mode of every port that `by_port` does not name.
    pub default: MtlsMode,
    /// Exceptions, keyed by the application's port.
    pub by_port: BTreeMap<u16, MtlsMode>,
}

impl MtlsModes {
    /// The mode that holds for `port`.
    pub fn of(&self, port: u16) -> MtlsMode {
        self.by_port.get(&port).copied().unwrap_or(self.default)
    }
}

/// When the `connect()` of an enrolled pod returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConnectMode {
    /// When the agent has dialled the destination, and as that ended: connected, refused, unreachable, or not at all.
    Honest,
    /// At once: a failure reaches the client as a reset.
    Eager,
}

/// One pod as the mesh knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// The pod's uid.
    pub uid: WorkloadUid,
    /// The pod's name.
    pub name: Arc<str>,
    /// The pod's identity; its namespace is the pod's namespace.
    pub identity: SpiffeId,
    /// The node that the pod runs on.
    pub node: Arc<str>,
    /// The pod's addresses, one a family.
    pub addresses: Vec<IpAddr>,
    /// Whether the mesh carries this pod's traffic: it is never sent plaintext while this is true.
    pub enrolled: bool,
    /// Who owns the pod.
    pub owner: Owner,
    /// Whether plaintext is taken.
    pub mtls: MtlsModes,
    /// The authorization policies that select this pod (namespace-wide and mesh-wide ones included), sorted.
    pub policies: Vec<PolicyName>,
    /// The services that this pod is an endpoint of, by target port; a port behind several is not here. It names the
    /// service in the records of the destination, which decides nothing by it.
    pub served: BTreeMap<u16, ServiceName>,
    /// How long its node's agent may be lost until the owner would rather have its connections in plaintext than none;
    /// `None`: it stays closed.
    pub agent_lost_after: Option<Duration>,
    /// When its `connect()` returns; `None`: as its node's agent has it.
    pub connect: Option<ConnectMode>,
    /// Ports that its probes and lifecycle hooks declare: the node's own kubelet may ask them in plaintext.
    pub probes: BTreeSet<u16>,
    /// The systemd unit whose cgroup it is, on a host that has one network namespace for all; `None`: a pod.
    pub unit: Option<Arc<str>>,
}

impl Workload {
    /// When the kernel lets this pod's connections pass around a lost agent: never while any of its ports is strict.
    pub fn opens_after(&self) -> Option<Duration> {
        let strict = |mode: &MtlsMode| *mode == MtlsMode::Strict;
        let any = strict(&self.mtls.default) || self.mtls.by_port.values().any(strict);
        self.agent_lost_after.filter(|_| !any)
    }

    /// The namespace of the pod.
    pub fn namespace(&self) -> &str {
        self.identity.namespace()
    }
}
