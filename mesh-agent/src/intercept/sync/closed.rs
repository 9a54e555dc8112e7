//! A pod that cannot be served is closed, not open. In: a pod whose enrolment failed after its namespace was accepted.
//! Out: a `PODS` entry that refuses its connections, and an `sk_lookup` instance whose empty slots drop what comes in.
//!
//! The entry is kept like one of an earlier agent: the next scan tries to enrol the pod again, and un-enrolling it or its
//! end takes the entry back.

use std::sync::Arc;

use mesh_common::{POD_CLOSED, Pod};
use mesh_core::model::WorkloadUid;

use super::{EnrolError, LISTENERS_PER_POD, Local, NetNs, Sync, entry, lookups};

impl Sync {
    /// Keeps `pod` closed until its enrolment succeeds.
    pub(super) fn keep_closed(
        &mut self,
        uid: &WorkloadUid,
        mut pod: Local,
        netns: Arc<NetNs>,
        why: &EnrolError,
    ) {
        // An agent that stops leaves everything as it is: what was closed is.
        if matches!(why, EnrolError::Stopping) {
            return;
        }
        self.pods.remove(uid);
        let (cgroup_id, index) = (pod.cgroup.id, pod.index);
        pod.netns = Some(Arc::clone(&netns));
        let closed = closed(&pod);
        if self.orphans.get(&cgroup_id) == Some(&closed) {
            return;
        }
        for slot in 0..LISTENERS_PER_POD {
            self.maps.clear_listener(index * LISTENERS_PER_POD + slot);
        }
        let written = self.maps.pods.lock().insert(cgroup_id, closed, 0);
        // On a host the ports of the others stay open: the entry alone keeps what comes from the unit's.
        let attached = match &self.host {
            Some(host) => {
                host.leave(uid);
                Ok(())
            }
            None => lookups::attach_lookup(&self.config, cgroup_id, index, &netns),
        };
        match (written, attached) {
            (Ok(()), Ok(())) => {
                tracing::error!(pod = %uid, %why, "the pod cannot be served and is kept closed");
                self.orphans.insert(cgroup_id, closed);
            }
            // The next scan tries again.
            (Err(error), _) => {
                tracing::error!(pod = %uid, %error, "closing the pod for outbound connections")
            }
            (_, Err(error)) => tracing::error!(pod = %uid, %error, "closing the pod for inbound connections"),
        }
    }
}

fn closed(pod: &Local) -> Pod {
    let entry = entry(pod);
    Pod { flags: entry.flags | POD_CLOSED, ..entry }
}
