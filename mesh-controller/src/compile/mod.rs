//! The index becomes what agents hold: selectors resolved, modes merged, addresses given to exactly one owner.
//!
//! Everything is compiled anew on each change; what did not change keeps its `Arc`, so that the streams can tell by pointer.

mod addresses;
mod enrol;
mod modes;
mod policies;
mod services;

pub use modes::{Reach, merge};

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh_core::identity::TrustDomain;
use mesh_core::model::{
    AuthorizationPolicy, PolicyName, Service, ServiceName, TrafficScope, Workload, WorkloadUid,
};
use mesh_core::route::unserved;

use crate::index::Index;
use crate::object::Status;

/// The namespace whose policies and configurations speak for the whole mesh.
pub const ROOT_NAMESPACE: &str = "ferromesh-system";

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
    /// Every live pod with a network of its own.
    pub workloads: BTreeMap<WorkloadUid, Arc<Workload>>,
    /// Every service.
    pub services: BTreeMap<ServiceName, Arc<Service>>,
    /// Every policy.
    pub policies: BTreeMap<PolicyName, Arc<AuthorizationPolicy>>,
    /// Whose an address is.
    pub by_address: HashMap<IpAddr, Target>,
    /// The workloads of each node.
    pub by_node: HashMap<Arc<str>, Vec<WorkloadUid>>,
    /// Virtual addresses and ports that have no endpoint, whatever node the client is on.
    pub unserved: Arc<HashSet<SocketAddr>>,
    /// Services whose clients are sent to endpoints of their own node only.
    pub node_local: Vec<ServiceName>,
    /// What became of the objects, sorted.
    pub statuses: Vec<Status>,
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
    for (uid, name) in &owners.pods {
        let Some(pod) = index.pods.get(name) else { continue };
        let parts =
            enrol::Parts { index, trust_domain, selection: &selection, addresses: owners.of_pod(pod) };
        let Some(workload) = enrol::workload(pod, parts, &mut statuses) else { continue };
        by_node.entry(Arc::clone(&workload.node)).or_default().push(uid.clone());
        workloads.insert(uid.clone(), workload);
    }
    let services = services::compile(index, &owners, &workloads);
    services::name_at_workloads(&services, &mut workloads);
    policies::report(index, &workloads, &mut statuses);
    modes::report(index, &mut statuses);
    statuses.sort();
    statuses.dedup();
    let policies = index.policies.values().map(|p| (p.policy.name.clone(), (*p.policy).clone())).collect();
    let by_address = owners.targets(&workloads);
    let (cluster, local): (Vec<&Service>, Vec<&Service>) =
        services.values().partition(|service| service.scope == TrafficScope::Cluster);
    let known = |uid: &WorkloadUid| workloads.contains_key(uid);
    let nowhere = cluster.into_iter().flat_map(|service| unserved(service, "", known)).collect();
    let node_local = local.into_iter().map(|service| service.name.clone()).collect();
    Compiled {
        version,
        trust_domain: trust_domain.clone(),
        workloads: shared(workloads, previous.map(|p| &p.workloads)),
        services: shared(services, previous.map(|p| &p.services)),
        policies: shared(policies, previous.map(|p| &p.policies)),
        by_address,
        by_node,
        unserved: Arc::new(nowhere),
        node_local,
        statuses,
    }
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
