//! A pod, or a unit that an entry declares, becomes a workload: is it in the mesh, who is it, which modes and policies concern
//! it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use mesh_core::identity::{SpiffeId, TrustDomain};
use mesh_core::model::Workload;

use super::modes::{self, Reach};
use super::policies::Selection;
use crate::index::{Index, PodInfo};
use crate::object::{Name, Status};

/// What a workload is made from, besides its pod.
pub(super) struct Parts<'a> {
    pub(super) index: &'a Index,
    pub(super) trust_domain: &'a TrustDomain,
    pub(super) selection: &'a Selection<'a>,
    /// The addresses that the pod really has.
    pub(super) addresses: Vec<IpAddr>,
}

/// The workload of `pod`; `None`, with a status, when it cannot have an identity.
pub(super) fn workload(pod: &PodInfo, parts: Parts<'_>, statuses: &mut Vec<Status>) -> Option<Workload> {
    let namespace = &pod.name.namespace;
    let identity = match SpiffeId::new(parts.trust_domain.clone(), namespace, &pod.service_account) {
        Ok(identity) => identity,
        Err(error) => {
            let message = format!("{}: it cannot have an identity: {error}", pod.object());
            statuses.push(Status::refused(&pod.origin, "InvalidIdentity", message));
            return None;
        }
    };
    let reach = modes::configs_of(parts.index, namespace, &pod.labels);
    let enrolled = enrolled(pod, parts.index, &reach, statuses);
    let account = Name::new(namespace, &pod.service_account);
    if enrolled && pod.service_account != "default" && !parts.index.service_accounts.contains(&account) {
        let message = format!("{}: ServiceAccount {account} is not there", pod.object());
        statuses.push(Status::noted(&pod.origin, "NoServiceAccount", message));
    }
    if let Some(unit) = &pod.unit {
        let what = format!("{}: unit {unit} of node {}", pod.object(), pod.node);
        statuses.push(if enrolled {
            Status::noted(&pod.origin, "Accepted", format!("{what} is {identity}"))
        } else {
            Status::noted(&pod.origin, "NotEnrolled", format!("{what} is outside of the mesh"))
        });
    }
    Some(Workload {
        uid: pod.uid.clone(),
        name: pod.name.name.clone(),
        identity,
        node: pod.node.clone(),
        addresses: parts.addresses,
        enrolled,
        owner: pod.owner.clone(),
        mtls: modes::merge(&reach),
        policies: parts.selection.of(namespace, &pod.labels),
        // Known when the services are compiled.
        served: BTreeMap::new(),
        agent_lost_after: modes::agent_lost_after(&reach),
        connect: modes::connect(&reach),
        probes: pod.probes.clone(),
        unit: pod.unit.clone(),
    })
}

/// The namespace enrols; the pod may stay out where the most specific MeshConfig that speaks of it lets it.
fn enrolled(pod: &PodInfo, index: &Index, reach: &[Reach<'_>], statuses: &mut Vec<Status>) -> bool {
    if !index.namespaces.get(&pod.name.namespace).is_some_and(|n| n.enrolled) {
        return false;
    }
    if !pod.opts_out {
        return true;
    }
    if modes::allows_opt_out(reach) {
        return false;
    }
    let message = format!("{}: no MeshConfig with allowOptOut lets it stay out of the mesh", pod.object());
    statuses.push(Status::refused(&pod.origin, "OptOutNotAllowed", message));
    true
}
