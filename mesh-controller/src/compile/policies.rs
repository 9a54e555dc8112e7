//! Which policies concern a workload: those of its namespace and those of the root namespace, where their selector fits.

use std::collections::{BTreeMap, HashMap};

use mesh_core::model::{Action, PolicyName, Workload, WorkloadUid};

use super::ROOT_NAMESPACE;
use crate::index::{Index, Labels, PodInfo, PodPhase, PolicyInfo, selects};
use crate::object::{Origin, Status};

/// The most workloads that a status names.
const MOST_NAMES: usize = 3;

/// The policies by namespace.
pub(super) struct Selection<'a> {
    by_namespace: HashMap<&'a str, Vec<&'a PolicyInfo>>,
}

impl<'a> Selection<'a> {
    pub(super) fn new(index: &'a Index) -> Self {
        let mut by_namespace: HashMap<&str, Vec<&PolicyInfo>> = HashMap::new();
        for (name, policy) in &index.policies {
            by_namespace.entry(&name.namespace).or_default().push(policy);
        }
        Self { by_namespace }
    }

    /// The names of the policies that select a pod with these labels, sorted.
    pub(super) fn of(&self, namespace: &str, labels: &Labels) -> Vec<PolicyName> {
        let root = if namespace == ROOT_NAMESPACE { None } else { self.by_namespace.get(ROOT_NAMESPACE) };
        let all = self.by_namespace.get(namespace).into_iter().chain(root).flatten();
        let mut names: Vec<_> =
            all.filter(|p| selects(&p.selector, labels)).map(|p| p.policy.name.clone()).collect();
        names.sort();
        names
    }
}

/// Says of each policy what it selects, and where it is not enforced: what nobody enforces must not go unseen.
pub(super) fn report(index: &Index, workloads: &BTreeMap<WorkloadUid, Workload>, statuses: &mut Vec<Status>) {
    let mut by_namespace: BTreeMap<&str, Vec<&PodInfo>> = BTreeMap::new();
    for pod in index.candidates().filter(|p| p.phase == PodPhase::Live) {
        by_namespace.entry(&pod.name.namespace).or_default().push(pod);
    }
    for (name, info) in &index.policies {
        let mut selected = Selected::default();
        let namespaces = match &*name.namespace {
            ROOT_NAMESPACE => by_namespace.values().collect(),
            own => Vec::from_iter(by_namespace.get(own)),
        };
        for pod in namespaces.into_iter().flatten().filter(|p| selects(&info.selector, &p.labels)) {
            selected.add(pod, workloads.get(&pod.uid));
        }
        let subject = format!("AuthorizationPolicy {name}");
        statuses.push(selected.status(&subject, &info.origin));
        if info.policy.udp_ports().next().is_some() {
            let message = format!("{subject}: UDP rules are enforced at the source only");
            statuses.push(Status::noted(&info.origin, "UdpAtSourceOnly", message));
        }
        if !info.unenforced.is_empty() {
            let effect = match info.policy.action {
                Action::Deny => "they are left out, so that more is denied than was asked for",
                Action::Allow => {
                    "alternatives with them are left out, so that less is allowed than was asked for"
                }
                Action::Audit => "alternatives with them are left out",
            };
            let message = format!("{subject}: only L4 is enforced: {}: {effect}", info.unenforced.join(", "));
            statuses.push(Status::refused(&info.origin, "HttpNotEnforced", message).enforced(false));
        }
    }
}

/// The workloads that a policy selects, by whether it is enforced for them.
#[derive(Default)]
struct Selected<'a> {
    enforced: usize,
    not_enrolled: Vec<&'a PodInfo>,
    on_node_network: Vec<&'a PodInfo>,
}

impl<'a> Selected<'a> {
    fn add(&mut self, pod: &'a PodInfo, workload: Option<&Workload>) {
        // A unit that several entries declare is the workload of one of them.
        let own = |w: &&Workload| w.name == pod.name.name && w.namespace() == &*pod.name.namespace;
        match workload.filter(own) {
            Some(workload) if workload.enrolled => self.enforced += 1,
            None if pod.host_network => self.on_node_network.push(pod),
            _ => self.not_enrolled.push(pod),
        }
    }

    fn status(&self, subject: &str, origin: &Origin) -> Status {
        let missed = self.not_enrolled.len() + self.on_node_network.len();
        if missed == 0 {
            return match self.enforced {
                0 => {
                    let message = format!("{subject}: no workload is selected");
                    Status::noted(origin, "SelectsNothing", message).enforced(false)
                }
                all => {
                    let message = format!("{subject}: enforced for the {all} selected workloads");
                    Status::noted(origin, "Accepted", message).enforced(true)
                }
            };
        }
        let mut why = Vec::new();
        if !self.not_enrolled.is_empty() {
            why.push(format!("not enrolled: {}", some(&self.not_enrolled)));
        }
        if !self.on_node_network.is_empty() {
            why.push(format!("on the node's network (hostNetwork): {}", some(&self.on_node_network)));
        }
        let (all, why) = (self.enforced + missed, why.join("; "));
        let message = format!("{subject}: enforced for {} of {all} selected workloads; {why}", self.enforced);
        let status = match self.enforced {
            0 => Status::refused(origin, "NotEnforced", message),
            _ => Status::noted(origin, "PartlyEnforced", message),
        };
        status.enforced(false)
    }
}

/// The first names, and how many more there are. Most are pods, so only the others say their kind.
fn some(selected: &[&PodInfo]) -> String {
    let name = |pod: &&PodInfo| match &pod.unit {
        None => pod.name.to_string(),
        Some(_) => pod.object().to_string(),
    };
    let shown: Vec<String> = selected.iter().take(MOST_NAMES).map(name).collect();
    match selected.len().saturating_sub(MOST_NAMES) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
