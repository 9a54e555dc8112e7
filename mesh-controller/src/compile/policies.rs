//! Which policies concern a workload: those of its namespace and those of the root namespace, where their selector fits.

use std::collections::{BTreeMap, HashMap};

use mesh_core::model::{PolicyName, Workload, WorkloadUid};

use super::ROOT_NAMESPACE;
use crate::index::{Index, Labels, PolicyInfo, selects};
use crate::object::Status;

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

/// Says of each policy what it selects: one that nobody enforces must not go unseen.
pub(super) fn report(index: &Index, workloads: &BTreeMap<WorkloadUid, Workload>, statuses: &mut Vec<Status>) {
    let mut counts: HashMap<&PolicyName, (usize, usize)> = HashMap::new();
    for workload in workloads.values() {
        for name in &workload.policies {
            let (selected, enrolled) = counts.entry(name).or_default();
            *selected += 1;
            *enrolled += usize::from(workload.enrolled);
        }
    }
    for policy in index.policies.values() {
        let name = &policy.policy.name;
        let subject = format!("AuthorizationPolicy {name}");
        let (reason, message) = match counts.get(name).copied().unwrap_or_default() {
            (0, _) => ("SelectsNothing", format!("{subject}: no pod is selected")),
            (pods, 0) => {
                ("NotEnforced", format!("{subject}: selects {pods} pods, and none of them is enrolled"))
            }
            (pods, enrolled) => {
                ("Accepted", format!("{subject}: enforced for {enrolled} of {pods} selected pods"))
            }
        };
        let status = match reason {
            "NotEnforced" => Status::refused(&policy.origin, reason, message),
            _ => Status::noted(&policy.origin, reason, message),
        };
        statuses.push(status);
    }
}
