//! Pods that are not held (any more). In: the pods' cgroups, and what the kernel holds. Out: entries for pods of exempt
//! namespaces; what was held of a pod goes to the data plane when the pod is classified, enrolled or not.

use std::collections::HashMap;

use mesh_core::model::{Workload, WorkloadUid};

use super::{PodEvent, Scanned, Sync};
use crate::intercept::exempt;

impl Sync {
    /// Before the first snapshot: what is exempt waits for nobody.
    pub(super) fn release_exempt(&mut self) {
        // Which of a host's units are exempt only the snapshot says; until then none is held.
        if self.host.is_some() {
            return;
        }
        // An error is told when there is a snapshot.
        if let Ok(scanned) = self.config.scan() {
            self.release(&HashMap::new(), &scanned);
        }
    }

    /// Lets pass what is exempt, and answers what waited for its pod to be classified.
    pub(super) fn release(&mut self, local: &HashMap<&WorkloadUid, &Workload>, scanned: &Scanned) {
        let known = self.pods.values().map(|pod| pod.cgroup.id).chain(self.orphans.keys().copied()).collect();
        match (self.config.hold_unclassified, self.host.is_some()) {
            (false, _) => {}
            (true, false) => self.exempt.follow(&self.config.never_held, &self.maps, scanned, &known),
            (true, true) => {
                let named = |uid: &WorkloadUid| local.get(uid).is_some_and(|workload| workload.enrolled);
                self.exempt.follow_host(&self.maps, scanned, &known, named);
            }
        }
        let passes = |id: u64| {
            self.exempt.passes(id) || self.pods.values().any(|pod| pod.netns.is_none() && pod.cgroup.id == id)
        };
        let owner = |ids: &[u64]| {
            scanned.values().find(|cgroup| ids.contains(&cgroup.id) && passes(cgroup.id)).cloned()
        };
        for held in exempt::released(&self.hub, &self.maps, owner) {
            // When the data plane has ended there is nobody to tell; the client asks again.
            let _stopping = self.send(PodEvent::Plain(Box::new(held)));
        }
    }
}
