//! What one stream has been sent, and the delta that brings it up to date. No I/O: a compiled state in, a delta out.
//!
//! An agent holds its own node's workloads, and for each address that it asked for whatever is there: a service with the
//! workloads of its endpoints, a workload, or the answer that the mesh does not know it. Each workload comes with the
//! policies that it names. Virtual addresses without an endpoint are told unasked, all of them: the kernel refuses the
//! first connection to one already.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh_core::model::{AuthorizationPolicy, PolicyName, Service, ServiceName, Workload, WorkloadUid};
use mesh_core::snapshot::{Delta, Remove, Upsert};

use crate::compile::{Compiled, Target};

/// The state of one stream.
#[derive(Debug)]
pub struct View {
    node: Arc<str>,
    addresses: HashSet<IpAddr>,
    sent: Option<Held>,
}

#[derive(Debug, Default)]
struct Held {
    workloads: HashMap<WorkloadUid, Arc<Workload>>,
    services: HashMap<ServiceName, Arc<Service>>,
    policies: HashMap<PolicyName, Arc<AuthorizationPolicy>>,
    absent: HashSet<IpAddr>,
    unserved: HashSet<SocketAddr>,
}

impl View {
    /// A stream of the agent on `node` that has been sent nothing.
    pub fn new(node: Arc<str>) -> Self {
        Self { node, addresses: HashSet::new(), sent: None }
    }

    /// Adds addresses. `false` when there would be more than `limit`.
    pub fn subscribe(&mut self, addresses: impl IntoIterator<Item = IpAddr>, limit: usize) -> bool {
        self.addresses.extend(addresses);
        self.addresses.len() <= limit
    }

    /// Takes addresses away.
    pub fn unsubscribe(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        for address in addresses {
            self.addresses.remove(&address);
        }
    }

    /// The delta from what was sent to what `compiled` says; `None` when nothing differs. The first is never `None`.
    pub fn advance(&mut self, compiled: &Compiled) -> Option<Delta> {
        let wanted = self.wanted(compiled);
        let first = self.sent.is_none();
        let sent = self.sent.take().unwrap_or_default();
        let mut delta = Delta { version: compiled.version, reset: first, ..Delta::default() };
        diff(&sent.policies, &wanted.policies, &mut delta, Upsert::Policy, Remove::Policy);
        diff(&sent.workloads, &wanted.workloads, &mut delta, Upsert::Workload, Remove::Workload);
        diff(&sent.services, &wanted.services, &mut delta, Upsert::Service, Remove::Service);
        delta.removes.extend(sent.absent.difference(&wanted.absent).map(|a| Remove::Absent(*a)));
        delta.upserts.extend(wanted.absent.difference(&sent.absent).map(|a| Upsert::Absent(*a)));
        delta.removes.extend(sent.unserved.difference(&wanted.unserved).map(|a| Remove::Unserved(*a)));
        delta.upserts.extend(wanted.unserved.difference(&sent.unserved).map(|a| Upsert::Unserved(*a)));
        self.sent = Some(wanted);
        (first || !delta.upserts.is_empty() || !delta.removes.is_empty()).then_some(delta)
    }

    fn wanted(&self, compiled: &Compiled) -> Held {
        let unserved = compiled.unserved_on(&self.node).collect();
        let mut wanted = Held { unserved, ..Held::default() };
        for workload in compiled.on_node(&self.node) {
            wanted.add(compiled, workload);
        }
        for address in &self.addresses {
            match compiled.by_address.get(address) {
                None => drop(wanted.absent.insert(*address)),
                Some(Target::Workload(uid)) => {
                    if let Some(workload) = compiled.workloads.get(uid) {
                        wanted.add(compiled, workload);
                    }
                }
                Some(Target::Service(name)) => {
                    let Some(service) = compiled.services.get(name) else { continue };
                    if wanted.services.insert(name.clone(), Arc::clone(service)).is_some() {
                        continue;
                    }
                    let behind = service.endpoints.iter().filter_map(|e| e.workload.as_ref());
                    for workload in behind.filter_map(|uid| compiled.workloads.get(uid)) {
                        wanted.add(compiled, workload);
                    }
                }
            }
        }
        wanted
    }
}

impl Held {
    fn add(&mut self, compiled: &Compiled, workload: &Arc<Workload>) {
        if self.workloads.insert(workload.uid.clone(), Arc::clone(workload)).is_some() {
            return;
        }
        for name in &workload.policies {
            if let Some(policy) = compiled.policies.get(name) {
                self.policies.insert(name.clone(), Arc::clone(policy));
            }
        }
    }
}

fn diff<K: Clone + Eq + Hash, V: Clone + PartialEq>(
    sent: &HashMap<K, Arc<V>>,
    wanted: &HashMap<K, Arc<V>>,
    delta: &mut Delta,
    upsert: fn(V) -> Upsert,
    remove: fn(K) -> Remove,
) {
    for (key, value) in wanted {
        let same = |old: &Arc<V>| Arc::ptr_eq(old, value) || old == value;
        if !sent.get(key).is_some_and(same) {
            delta.upserts.push(upsert(V::clone(value)));
        }
    }
    delta.removes.extend(sent.keys().filter(|k| !wanted.contains_key(*k)).cloned().map(remove));
}
