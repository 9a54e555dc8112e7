//! The network namespace of a pod. In: the pod and its cgroup. Out: a namespace that is that pod's alone, found by its
//! processes, or, while none runs, among the runtime's bind mounts; and which pods are on the node's.

use std::collections::HashSet;

use mesh_core::model::Workload;

use super::{EnrolError, Local, NetNs, PodCgroup, Refusal, Scanned, Sync, discover};

impl Sync {
    /// The network namespace of a pod, when it is that pod's alone.
    pub(super) fn namespace(
        &mut self,
        workload: &Workload,
        cgroup: &PodCgroup,
        scanned: &Scanned,
    ) -> Result<NetNs, EnrolError> {
        let netns = match discover::namespace(cgroup, &workload.addresses, self.node_cookie) {
            // A runtime's monitor may be in the pod's cgroup, on the node's network.
            Err(why @ (Refusal::NoProcess | Refusal::NodeNamespace)) => self
                .bound(workload, scanned)
                .map_err(|other| if other.says_nothing() { why } else { other })?,
            found => found?,
        };
        let same = |other: &Local| other.netns.as_ref().is_some_and(|held| held.cookie == netns.cookie);
        if let Some((uid, _)) = self.pods.iter().find(|(uid, other)| **uid != workload.uid && same(other)) {
            return Err(Refusal::Taken(uid.clone()).into());
        }
        Ok(netns)
    }

    /// Which pods have no network of their own.
    pub(super) fn note_node_network(&mut self, scanned: &Scanned) {
        if self.host.is_some() {
            return;
        }
        let enrolled: HashSet<u64> =
            self.pods.values().filter(|pod| pod.netns.is_some()).map(|pod| pod.cgroup.id).collect();
        self.node_network.look(scanned, |id| enrolled.contains(&id));
    }

    fn bound(&mut self, workload: &Workload, scanned: &Scanned) -> Result<NetNs, Refusal> {
        let held = self.pods.values().filter_map(|pod| Some(pod.netns.as_ref()?.inode));
        self.bound.take(&self.config.netns_folders, scanned, held, &workload.addresses)
    }
}
