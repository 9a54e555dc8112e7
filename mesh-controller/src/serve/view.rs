//! What one stream has been sent, and the delta that brings it up to date. No I/O: a compiled state in, a delta out.
//!
//! An agent holds its own node's workloads, and for each address that it asked for whatever is there: a service with the
//! workloads of its endpoints, a workload, or the answer that the mesh does not know it. Each workload comes with the
//! policies that it names. Virtual addresses without an endpoint are told unasked, all of them: the kernel refuses the
//! first eager connection to one already. So are the addresses that UDP rules speak of, with the workloads behind them.
//!
//! What a stream holds is found anew only when it may hold something else than before: most changes concern few streams, and
//! most of the others replace what they hold one by one.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh_core::model::{AuthorizationPolicy, PolicyName, Service, ServiceName, Workload, WorkloadUid};
use mesh_core::snapshot::{Delta, Remove, UdpBackend, Upsert};

use crate::compile::{Compiled, Target};

/// The state of one stream.
#[derive(Debug)]
pub struct View {
    node: Arc<str>,
    addresses: HashSet<IpAddr>,
    sent: Option<Held>,
    /// The version that `sent` is of.
    version: u64,
    /// It asked for other addresses since.
    asked: bool,
}

#[derive(Debug, Default)]
struct Held {
    workloads: HashMap<WorkloadUid, Arc<Workload>>,
    services: HashMap<ServiceName, Arc<Service>>,
    policies: HashMap<PolicyName, Arc<AuthorizationPolicy>>,
    absent: HashSet<IpAddr>,
    unserved: HashSet<SocketAddr>,
    udp: HashMap<SocketAddr, Arc<Vec<UdpBackend>>>,
}

impl View {
    /// A stream of the agent on `node` that has been sent nothing.
    pub fn new(node: Arc<str>) -> Self {
        Self { node, addresses: HashSet::new(), sent: None, version: 0, asked: false }
    }

    /// Adds addresses. `false` when there would be more than `limit`.
    pub fn subscribe(&mut self, addresses: impl IntoIterator<Item = IpAddr>, limit: usize) -> bool {
        self.asked = true;
        self.addresses.extend(addresses);
        self.addresses.len() <= limit
    }

    /// Takes addresses away.
    pub fn unsubscribe(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.asked = true;
        for address in addresses {
            self.addresses.remove(&address);
        }
    }

    /// The delta from what was sent to what `compiled` says; `None` when nothing differs. The first is never `None`.
    pub fn advance(&mut self, compiled: &Compiled) -> Option<Delta> {
        let delta = self.replace(compiled).unwrap_or_else(|| self.renew(compiled));
        (self.version, self.asked) = (compiled.version, false);
        (delta.reset || !delta.upserts.is_empty() || !delta.removes.is_empty()).then_some(delta)
    }

    /// The delta where this stream holds what it held, some of it with other contents; `None` where that is not known.
    fn replace(&mut self, compiled: &Compiled) -> Option<Delta> {
        let changed =
            compiled.changed.as_ref().filter(|changed| changed.since == self.version && !self.asked)?;
        let sent = self.sent.as_mut()?;
        let concerned = changed.everybody
            || changed.nodes.contains(&self.node)
            || changed.addresses.iter().any(|address| self.addresses.contains(address))
            || changed.workloads.iter().any(|uid| sent.workloads.contains_key(uid))
            || changed.services.iter().any(|name| sent.services.contains_key(name));
        if concerned {
            return None;
        }
        let mut delta = Delta { version: compiled.version, ..Delta::default() };
        let replaced = &changed.replaced;
        exchange(&mut sent.policies, &replaced.policies, |p| &p.name, &mut delta, Upsert::Policy);
        exchange(&mut sent.workloads, &replaced.workloads, |w| &w.uid, &mut delta, Upsert::Workload);
        exchange(&mut sent.services, &replaced.services, |s| &s.name, &mut delta, Upsert::Service);
        Some(delta)
    }

    /// The delta from what was sent to what is wanted now.
    fn renew(&mut self, compiled: &Compiled) -> Delta {
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
        udp(&sent.udp, &wanted.udp, &mut delta);
        self.sent = Some(wanted);
        delta
    }

    fn wanted(&self, compiled: &Compiled) -> Held {
        let unserved = compiled.unserved_on(&self.node).collect();
        let mut wanted = Held { unserved, ..Held::default() };
        for workload in compiled.on_node(&self.node) {
            wanted.add(compiled, workload);
        }
        for (at, behind) in &compiled.udp {
            wanted.udp.insert(*at, Arc::clone(behind));
            for workload in behind.iter().filter_map(|backend| compiled.workloads.get(&backend.workload)) {
                wanted.add(compiled, workload);
            }
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

fn udp(
    sent: &HashMap<SocketAddr, Arc<Vec<UdpBackend>>>,
    wanted: &HashMap<SocketAddr, Arc<Vec<UdpBackend>>>,
    delta: &mut Delta,
) {
    for (at, behind) in wanted {
        if !sent.get(at).is_some_and(|old| Arc::ptr_eq(old, behind) || old == behind) {
            delta.upserts.push(Upsert::Udp(*at, behind.to_vec()));
        }
    }
    delta.removes.extend(sent.keys().filter(|at| !wanted.contains_key(at)).map(|at| Remove::Udp(*at)));
}

/// Puts the newer ones in place of those that are held.
fn exchange<K: Eq + Hash, V: Clone>(
    held: &mut HashMap<K, Arc<V>>,
    newer: &[Arc<V>],
    key: fn(&V) -> &K,
    delta: &mut Delta,
    upsert: fn(V) -> Upsert,
) {
    for value in newer {
        if let Some(held) = held.get_mut(key(value)) {
            *held = Arc::clone(value);
            delta.upserts.push(upsert(V::clone(value)));
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
