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
pub(super) struct Owners<'a> {
    /// What can be a workload, by uid: pods, and the units of entries, which have no address.
    pub(super) by_uid: BTreeMap<WorkloadUid, &'a PodInfo>,
    by_address: HashMap<IpAddr, Owner>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Owner {
    Pod(WorkloadUid, Origin),
    Service(Name, Origin),
}

impl Owners<'_> {
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
pub(super) fn assign<'a>(index: &'a Index, statuses: &mut Vec<Status>) -> Owners<'a> {
    let mut owners = Owners { by_uid: BTreeMap::new(), by_address: HashMap::new() };
    let mut pods: Vec<&PodInfo> =
        index.pods.values().filter(|p| p.phase == PodPhase::Live && !p.host_network).collect();
    pods.sort_by_key(|pod| (Reverse(pod.created), &pod.name));
    // Of two entries with one unit the first by namespace and name wins: an index is read in that order.
    for pod in pods.into_iter().chain(index.entries.values()) {
        if let Some(winner) = owners.by_uid.get(&pod.uid) {
            statuses.push(taken(pod, winner));
            continue;
        }
        owners.by_uid.insert(pod.uid.clone(), pod);
        let subject = pod.object().to_string();
        for address in &pod.addresses {
            let owner = Owner::Pod(pod.uid.clone(), pod.origin.clone());
            claim(&mut owners, *address, (owner, &subject), statuses);
        }
    }
    type Addresses = fn(&ServiceInfo) -> &[IpAddr];
    let by_rank: [Addresses; 2] = [|s| &s.cluster_ips, |s| &s.external_ips];
    for addresses in by_rank {
        for service in index.services.values() {
            let subject = format!("Service {}", service.name);
            for address in addresses(service) {
                let owner = Owner::Service(service.name.clone(), service.origin.clone());
                claim(&mut owners, *address, (owner, &subject), statuses);
            }
        }
    }
    owners
}

/// What is said of `loser`, whose uid is already `winner`'s.
fn taken(loser: &PodInfo, winner: &PodInfo) -> Status {
    let (subject, winner) = (loser.object(), winner.object());
    let (reason, what) = match &loser.unit {
        None => ("DuplicateUid", format!("uid {}", loser.uid)),
        Some(unit) => ("DuplicateUnit", format!("unit {unit} of node {}", loser.node)),
    };
    let message = format!("{subject}: {what} is also that of {winner}, which wins");
    Status::refused(&loser.origin, reason, message)
}

fn claim(
    owners: &mut Owners<'_>,
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
                    let name = owners.by_uid.get(uid).map(|p| p.name.to_string());
                    format!("Pod {} ({at})", name.unwrap_or_default())
                }
                Owner::Service(name, at) => format!("Service {name} ({at})"),
            };
            let message = format!("{subject}: address {address} belongs to {winner}, which wins");
            statuses.push(Status::refused(&origin, "AddressConflict", message));
        }
    }
}
