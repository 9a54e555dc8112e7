//! What an earlier agent left, and nobody claims any more. In: the local workloads and the pods' cgroups. Out: entries and
//! `sk_lookup` instances of pods that are gone or not enrolled are taken back.

use std::collections::{HashMap, HashSet};

use mesh_common::{POD_ENROLLED, POD_SHARED, Pod};
use mesh_core::model::{Workload, WorkloadUid};

use super::{Scanned, Sync, lookups};

/// Whether listeners and rules wait at the entry's index. A pod that is never held has an entry without one, and the index
/// that it reads as is another pod's.
pub(super) fn has_place(pod: &Pod) -> bool {
    pod.flags & POD_ENROLLED != 0
}

impl Sync {
    /// Opens what an earlier agent closed and nobody claims: pods that are gone, or not enrolled any more. At the first
    /// time also `sk_lookup` instances of an enrolment that was never finished.
    pub(super) fn release_orphans(&mut self, local: &HashMap<&WorkloadUid, &Workload>, scanned: &Scanned) {
        let enrolled: HashSet<u64> = local
            .values()
            .filter(|workload| workload.enrolled)
            .filter_map(|workload| scanned.get(&workload.uid))
            .map(|cgroup| cgroup.id)
            .collect();
        let released: Vec<_> = self.orphans.extract_if(|id, _| !enrolled.contains(id)).collect();
        for (cgroup_id, pod) in released {
            // Without its entry a host's instance would not know that it is one's.
            if pod.flags & POD_SHARED != 0 {
                self.dismantle(cgroup_id, pod.index);
            }
            if let Err(error) = self.maps.pods.lock().remove(&cgroup_id) {
                tracing::warn!(cgroup_id, %error, "removing an entry of an earlier agent");
            }
            if has_place(&pod) && pod.flags & POD_SHARED == 0 {
                self.dismantle(cgroup_id, pod.index);
            }
        }
        if std::mem::replace(&mut self.pins_checked, true) {
            return;
        }
        let attached = lookups::attached_lookups(&self.config).unwrap_or_else(|error| {
            tracing::warn!(%error, "reading the pinned sk_lookup links");
            Vec::new()
        });
        for cgroup_id in attached {
            if !enrolled.contains(&cgroup_id)
                && self.host_root() != Some(cgroup_id)
                && let Err(error) = lookups::detach_lookup(&self.config, cgroup_id)
            {
                tracing::warn!(cgroup_id, %error, "detaching sk_lookup of an earlier agent");
            }
        }
    }
}
