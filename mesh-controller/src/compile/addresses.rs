//! Whose an address is. Each belongs to one owner; who loses one, loses it everywhere, and a status says to whom.
//!
//! Between pods the younger wins (addresses are reused, and the older one is on its way out), then the first by
//! namespace and name. A pod wins over a Service, so that no Service can draw a pod's traffic to itself. Between Services
//! a cluster IP wins over an external address, then the first by namespace and name.

use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use mesh_core::model::{ServiceName, Workload, WorkloadUid};

use super::Target;
use crate::index::{Index, PodInfo, PodPhase, ServiceInfo};
use crate::object::{Name, Origin, Status};

/// Who has which address.
pub(super) struct Owners {
    /// Pods that are workloads, by uid.
    pub(super) pods: BTreeMap<WorkloadUid, Name>,
    by_address: HashMap<IpAddr, Owner>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Owner {
    Pod(WorkloadUid, Origin),
    Service(Name, Origin),
}

impl Owners {
    /// The addresses that `pod` really has.
    pub(super) fn of_pod(&self, pod: &PodInfo) -> Vec<IpAddr> {
        pod.addresses.iter().copied().filter(|a| self.pod_at(*a) == Some(&pod.uid)).collect()
    }

    /// The virtual addresses that `service` really has.
    pub(super) fn of_service(&self, service: &ServiceInfo) -> Vec<IpAddr> {
        let all = service.cluster_ips.iter().chain(&service.external_ips).copied();
        let mut vips = Vec::new();
        for address in all {
            let ours = matches!(self.by_address.get(&address), Some(Owner::Service(name, _)) if *name == service.name);
            if ours && !vips.contains(&address) {
                vips.push(address);
            }
        }
        vips
    }

    /// The pod that has `address`.
    pub(super) fn pod_at(&self, address: IpAddr) -> Option<&WorkloadUid> {
        match self.by_address.get(&address) {
            Some(Owner::Pod(uid, _)) => Some(uid),
            _ => None,
        }
    }

    /// What each address means to an agent.
    pub(super) fn targets(&self, workloads: &BTreeMap<WorkloadUid, Workload>) -> HashMap<IpAddr, Target> {
        let target = |owner: &Owner| match owner {
            Owner::Pod(uid, _) => workloads.contains_key(uid).then(|| Target::Workload(uid.clone())),
            Owner::Service(name, _) => Some(Target::Service(service_name(name))),
        };
        self.by_address.iter().filter_map(|(address, owner)| Some((*address, target(owner)?))).collect()
    }
}

/// The core's form of a service's name.
pub(super) fn service_name(name: &Name) -> ServiceName {
    ServiceName { namespace: name.namespace.clone(), name: name.name.clone() }
}

/// Decides.
pub(super) fn assign(index: &Index, statuses: &mut Vec<Status>) -> Owners {
    let mut owners = Owners { pods: BTreeMap::new(), by_address: HashMap::new() };
    let mut pods: Vec<&PodInfo> =
        index.pods.values().filter(|p| p.phase == PodPhase::Live && !p.host_network).collect();
    pods.sort_by_key(|pod| (Reverse(pod.created), &pod.name));
    for pod in pods {
        match owners.pods.get(&pod.uid) {
            Some(winner) => {
                let message =
                    format!("Pod {}: uid {} is also that of Pod {winner}, which wins", pod.name, pod.uid);
                statuses.push(Status::refused(&pod.origin, "DuplicateUid", message));
                continue;
            }
            None => owners.pods.insert(pod.uid.clone(), pod.name.clone()),
        };
        let subject = format!("Pod {}", pod.name);
        for address in &pod.addresses {
            let owner = Owner::Pod(pod.uid.clone(), pod.origin.clone());
            claim(&mut owners, index, *address, (owner, &subject), statuses);
        }
    }
    type Addresses = fn(&ServiceInfo) -> &[IpAddr];
    let by_rank: [Addresses; 2] = [|s| &s.cluster_ips, |s| &s.external_ips];
    for addresses in by_rank {
        for service in index.services.values() {
            let subject = format!("Service {}", service.name);
            for address in addresses(service) {
                let owner = Owner::Service(service.name.clone(), service.origin.clone());
                claim(&mut owners, index, *address, (owner, &subject), statuses);
            }
        }
    }
    owners
}

fn claim(
    owners: &mut Owners,
    index: &Index,
    address: IpAddr,
    (owner, subject): (Owner, &str),
    statuses: &mut Vec<Status>,
) {
    let origin = match &owner {
        Owner::Pod(_, origin) | Owner::Service(_, origin) => origin.clone(),
    };
    match owners.by_address.entry(address) {
        Entry::Vacant(free) => drop(free.insert(owner)),
        Entry::Occupied(held) if *held.get() == owner => {}
        Entry::Occupied(held) => {
            let winner = match held.get() {
                Owner::Pod(uid, at) => {
                    let name = index.pods.values().find(|p| p.uid == *uid).map(|p| p.name.to_string());
                    format!("Pod {} ({at})", name.unwrap_or_default())
                }
                Owner::Service(name, at) => format!("Service {name} ({at})"),
            };
            let message = format!("{subject}: address {address} belongs to {winner}, which wins");
            statuses.push(Status::refused(&origin, "AddressConflict", message));
        }
    }
}
