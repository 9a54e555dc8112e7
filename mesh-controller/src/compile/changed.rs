//! What differs between two compiled states. In: the one before and the one after, which share what is equal. Out: whom it can
//! concern, so that a stream tells by a few look-ups whether it does: there are thousands of them, and a change is small.
//!
//! A resource that stays where it is, behind the same names, is only replaced in the streams that hold it ([`Replaced`]).
//! Whatever can change what a stream holds at all is named by how a stream would come to hold it: its node, an address
//! that it asked for, a workload or a service that it holds.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use mesh_core::model::{AuthorizationPolicy, Service, ServiceName, Workload, WorkloadUid};

use super::{Compiled, Target};

/// Resources that are the same ones with other contents.
#[derive(Clone, Debug, Default)]
pub struct Replaced {
    /// Workloads on the same node, with the same policies.
    pub workloads: Vec<Arc<Workload>>,
    /// Services with the same workloads behind them.
    pub services: Vec<Arc<Service>>,
    /// Policies.
    pub policies: Vec<Arc<AuthorizationPolicy>>,
}

/// The differences.
#[derive(Clone, Debug, Default)]
pub struct Changed {
    /// The version of the state before.
    pub since: u64,
    /// What every stream is sent has changed.
    pub everybody: bool,
    /// Nodes with other workloads than before.
    pub nodes: HashSet<Arc<str>>,
    /// Workloads that came, went, moved, or name other policies.
    pub workloads: HashSet<WorkloadUid>,
    /// Services that came, went, or have other workloads behind them, or one of `workloads`.
    pub services: HashSet<ServiceName>,
    /// Addresses that are somebody else's than before.
    pub addresses: HashSet<IpAddr>,
    /// What is only replaced.
    pub replaced: Replaced,
}

/// The differences between two states.
pub(super) fn between(before: &Compiled, after: &Compiled) -> Changed {
    let mut changed = Changed { since: before.version, ..Changed::default() };
    merged(&before.workloads, &after.workloads, |old, new| changed.workload(old, new));
    merged(&before.services, &after.services, |old, new| changed.service(old, new));
    merged(&before.policies, &after.policies, |old, new| changed.policy(old, new));
    if !changed.workloads.is_empty() {
        let of_changed = |uid: &WorkloadUid| changed.workloads.contains(uid);
        let concerned = |service: &&Arc<Service>| behind(service).any(of_changed);
        let names: Vec<_> = after.services.values().filter(concerned).map(|s| s.name.clone()).collect();
        changed.services.extend(names);
    }
    changed.addresses = addresses(&before.by_address, &after.by_address);
    let replaced = &changed.replaced.services;
    let local = |name: &ServiceName| {
        changed.services.contains(name) || replaced.iter().any(|service| service.name == *name)
    };
    changed.everybody |= before.unserved != after.unserved
        || before.udp != after.udp
        || before.node_local != after.node_local
        || after.node_local.iter().any(local);
    changed
}

impl Changed {
    fn workload(&mut self, old: Option<&Arc<Workload>>, new: Option<&Arc<Workload>>) {
        if let (Some(old), Some(new)) = (old, new)
            && old.node == new.node
            && old.policies == new.policies
        {
            self.replaced.workloads.push(Arc::clone(new));
            return;
        }
        for workload in [old, new].into_iter().flatten() {
            self.nodes.insert(Arc::clone(&workload.node));
            self.workloads.insert(workload.uid.clone());
        }
    }

    fn service(&mut self, old: Option<&Arc<Service>>, new: Option<&Arc<Service>>) {
        if let (Some(old), Some(new)) = (old, new)
            && behind(old).eq(behind(new))
        {
            self.replaced.services.push(Arc::clone(new));
            return;
        }
        self.services.extend(old.or(new).map(|service| service.name.clone()));
    }

    fn policy(&mut self, old: Option<&Arc<AuthorizationPolicy>>, new: Option<&Arc<AuthorizationPolicy>>) {
        match (old, new) {
            (Some(_), Some(new)) => self.replaced.policies.push(Arc::clone(new)),
            // Workloads may have named it before it was there.
            _ => self.everybody = true,
        }
    }
}

fn behind(service: &Service) -> impl Iterator<Item = &WorkloadUid> {
    service.endpoints.iter().filter_map(|endpoint| endpoint.workload.as_ref())
}

fn addresses(before: &HashMap<IpAddr, Target>, after: &HashMap<IpAddr, Target>) -> HashSet<IpAddr> {
    let other = |(address, target): &(&IpAddr, &Target)| before.get(*address) != Some(*target);
    let gone = before.keys().filter(|address| !after.contains_key(*address));
    after.iter().filter(other).map(|(address, _)| *address).chain(gone.copied()).collect()
}

/// Walks two maps together and shows what is not shared.
fn merged<'a, K: Ord, V>(
    before: &'a BTreeMap<K, Arc<V>>,
    after: &'a BTreeMap<K, Arc<V>>,
    mut show: impl FnMut(Option<&'a Arc<V>>, Option<&'a Arc<V>>),
) {
    let (mut old, mut new) = (before.iter().peekable(), after.iter().peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((a, _)), Some((b, _))) => a.cmp(b),
        };
        let gone = (order != Ordering::Greater).then(|| old.next()).flatten();
        let come = (order != Ordering::Less).then(|| new.next()).flatten();
        let shared = matches!((gone, come), (Some((_, a)), Some((_, b))) if Arc::ptr_eq(a, b));
        if !shared {
            show(gone.map(|(_, value)| value), come.map(|(_, value)| value));
        }
    }
}
