//! The index becomes what agents hold: selectors resolved, modes merged, addresses given to exactly one owner.
//!
//! Everything is compiled anew on each change; what did not change keeps its `Arc`, so that the streams can tell by pointer.

mod addresses;
mod changed;
mod enrol;
mod modes;
mod policies;
mod services;
mod udp;

pub use changed::{Changed, Replaced};
pub use modes::{Reach, merge};

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh_core::identity::TrustDomain;
use mesh_core::model::{
    AuthorizationPolicy, PolicyName, Protocol, Service, ServiceName, TrafficScope, Workload, WorkloadUid,
};
use mesh_core::route::unserved;
use mesh_core::snapshot::UdpBackend;

use crate::index::{Index, PodInfo, PodPhase};
use crate::object::Status;

/// The namespace whose policies and configurations speak for the whole mesh.
pub const ROOT_NAMESPACE: &str = "ferromesh-system";

/// The service account of the agents, in the root namespace.
pub const AGENT_ACCOUNT: &str = "ferromesh-agent";

/// What an address is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A virtual address.
    Service(ServiceName),
    /// A pod.
    Workload(WorkloadUid),
}

/// One compiled state of the mesh.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// Grows with each compilation, across restarts too.
    pub version: u64,
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// Every live pod with a network of its own, and every systemd unit that an entry declares.
    pub workloads: BTreeMap<WorkloadUid, Arc<Workload>>,
    /// Every service.
    pub services: BTreeMap<ServiceName, Arc<Service>>,
    /// Every policy.
    pub policies: BTreeMap<PolicyName, Arc<AuthorizationPolicy>>,
    /// Whose an address is.
    pub by_address: HashMap<IpAddr, Target>,
    /// The workloads of each node.
    pub by_node: HashMap<Arc<str>, Vec<WorkloadUid>>,
    /// The nodes of the agents' own pods that are alive.
    pub agents: BTreeMap<WorkloadUid, Arc<str>>,
    /// Nodes whose agent's pod is Ready, with the keys of their taints; those without taints are left out.
    pub ready_taints: BTreeMap<Arc<str>, Vec<String>>,
    /// Virtual addresses and ports that have no endpoint, whatever node the client is on.
    pub unserved: Arc<HashSet<SocketAddr>>,
    /// The addresses and ports that UDP rules speak of, with who is behind them.
    pub udp: BTreeMap<SocketAddr, Arc<Vec<UdpBackend>>>,
    /// Services whose clients are sent to endpoints of their own node only.
    pub node_local: Vec<ServiceName>,
    /// What became of the objects, sorted.
    pub statuses: Vec<Status>,
    /// What differs from the state before; `None` for the first one.
    pub changed: Option<Changed>,
}

impl Compiled {
    /// The workloads on `node`.
    pub fn on_node(&self, node: &str) -> impl Iterator<Item = &Arc<Workload>> {
        self.by_node.get(node).into_iter().flatten().filter_map(|uid| self.workloads.get(uid))
    }

    /// The virtual addresses and ports that have no endpoint for clients on `node`.
    pub fn unserved_on<'a>(&'a self, node: &'a str) -> impl Iterator<Item = SocketAddr> + 'a {
        let local = self.node_local.iter().filter_map(|name| self.services.get(name));
        self.unserved.iter().copied().chain(
            local.flat_map(move |service| unserved(service, node, |uid| self.workloads.contains_key(uid))),
        )
    }
}

/// Compiles `index`. `previous` gives unchanged resources their old `Arc`.
pub fn compile(
    index: &Index,
    trust_domain: &TrustDomain,
    version: u64,
    previous: Option<&Compiled>,
) -> Compiled {
    let mut statuses: Vec<Status> = index.statuses().cloned().collect();
    let owners = addresses::assign(index, &mut statuses);
    let selection = policies::Selection::new(index);
    let mut workloads = BTreeMap::new();
    let mut by_node: HashMap<Arc<str>, Vec<WorkloadUid>> = HashMap::new();
    for (uid, pod) in &owners.by_uid {
        let parts =
            enrol::Parts { index, trust_domain, selection: &selection, addresses: owners.of_pod(pod) };
        let Some(workload) = enrol::workload(pod, parts, &mut statuses) else { continue };
        by_node.entry(Arc::clone(&workload.node)).or_default().push(uid.clone());
        workloads.insert(uid.clone(), workload);
    }
    let services = services::compile(Protocol::Tcp, index, &owners, &workloads);
    services::name_at_workloads(&services, &mut workloads);
    policies::report(index, &workloads, &mut statuses);
    modes::report(index, &mut statuses);
    statuses.sort();
    statuses.dedup();
    let udp = udp::targets(index, &owners, &workloads);
    let policies = index.policies.values().map(|p| (p.policy.name.clone(), (*p.policy).clone())).collect();
    let by_address = owners.targets(&workloads);
    let (cluster, local): (Vec<&Service>, Vec<&Service>) =
        services.values().partition(|service| service.scope == TrafficScope::Cluster);
    let known = |uid: &WorkloadUid| workloads.contains_key(uid);
    let nowhere = cluster.into_iter().flat_map(|service| unserved(service, "", known)).collect();
    let node_local = local.into_iter().map(|service| service.name.clone()).collect();
    let mut compiled = Compiled {
        version,
        trust_domain: trust_domain.clone(),
        workloads: shared(workloads, previous.map(|p| &p.workloads)),
        services: shared(services, previous.map(|p| &p.services)),
        policies: shared(policies, previous.map(|p| &p.policies)),
        by_address,
        by_node,
        agents: agents(index).map(|pod| (pod.uid.clone(), Arc::clone(&pod.node))).collect(),
        ready_taints: agents(index).filter_map(|pod| ready_taints(index, pod)).collect(),
        unserved: Arc::new(nowhere),
        udp: shared(udp, previous.map(|p| &p.udp)),
        node_local,
        statuses,
        changed: None,
    };
    compiled.changed = previous.map(|previous| changed::between(previous, &compiled));
    compiled
}

/// Pods that are the agents': by their namespace and service account, which only an administrator of the mesh can use.
fn agents(index: &Index) -> impl Iterator<Item = &PodInfo> {
    let ours = |pod: &&PodInfo| {
        &*pod.name.namespace == ROOT_NAMESPACE
            && pod.service_account == AGENT_ACCOUNT
            && pod.phase == PodPhase::Live
            && !pod.node.is_empty()
    };
    index.pods.values().filter(ours)
}

fn ready_taints(index: &Index, agent: &PodInfo) -> Option<(Arc<str>, Vec<String>)> {
    let (node, keys) = index.nodes.get_key_value(&agent.node)?;
    (agent.ready && !agent.terminating && !keys.is_empty()).then(|| (Arc::clone(node), keys.clone()))
}

fn shared<K: Ord, V: PartialEq>(
    fresh: BTreeMap<K, V>,
    previous: Option<&BTreeMap<K, Arc<V>>>,
) -> BTreeMap<K, Arc<V>> {
    let same = |key: &K, value: &V| previous.and_then(|p| p.get(key)).filter(|old| ***old == *value).cloned();
    fresh
        .into_iter()
        .map(|(key, value)| {
            let value = same(&key, &value).unwrap_or_else(|| Arc::new(value));
            (key, value)
        })
        .collect()
}
