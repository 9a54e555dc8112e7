//! Pods that leave. In: the local workloads. Out: what is gone, or no longer to be enrolled, is taken out of the kernel. A pod
//! that stays on the node is known all the while: between two entries it would be one that nobody knows, which is held.

use std::collections::HashMap;
use std::thread;
use std::time::Duration;

use mesh_common::LISTENERS_PER_POD;
use mesh_core::model::{Workload, WorkloadUid};

use super::entry::entry;
use super::{Local, PodEvent, Sync, discover, lookups, sweep};

/// How long a pod that stays is left with what was on its way: a `connect()` that was redirected reaches a listener, a
/// handshake that a listener has answered ends.
pub(super) const SETTLE: Duration = Duration::from_millis(50);

impl Sync {
    /// Un-enrols what is gone or no longer to be enrolled.
    pub(super) fn depart(&mut self, local: &HashMap<&WorkloadUid, &Workload>) {
        let mut leaving = Vec::new();
        for (uid, pod) in &self.pods {
            let inode = pod.netns.as_ref().map_or(0, |netns| netns.inode);
            let here = match &pod.netns {
                Some(_) => discover::still_there(&pod.cgroup, inode),
                None => discover::still_exists(&pod.cgroup),
            };
            let stays = local.get(uid).is_some_and(|workload| {
                pod.netns.is_none() || (workload.enrolled && workload.addresses == pod.addresses)
            });
            if !here || !stays {
                leaving.push((uid.clone(), !here));
            }
        }
        let mut staying = Vec::new();
        for (uid, gone) in leaving {
            let Some(pod) = self.pods.remove(&uid) else { continue };
            let workload = local.get(&uid).filter(|_| !gone);
            if workload.is_some_and(|workload| workload.enrolled) {
                // It is enrolled anew, with other addresses: closed in between, like one of an earlier agent.
                self.orphans.insert(pod.cgroup.id, entry(&pod));
                // When the data plane has ended there is nobody to tell.
                let _stopping = self.send(PodEvent::Down { uid, gone });
            } else if workload.is_some() && self.let_pass(&uid, &pod) {
                staying.push((uid, pod));
            } else {
                self.leave(uid, &pod, gone);
            }
        }
        self.let_go(staying);
    }

    /// Turns a pod's entry into that of one which is known not to be enrolled. `false`: it could not be written.
    fn let_pass(&mut self, uid: &WorkloadUid, pod: &Local) -> bool {
        let outside = Local {
            cgroup: pod.cgroup.clone(),
            addresses: pod.addresses.clone(),
            on_host: pod.on_host.clone(),
            ports_known: false,
            joined: None,
            netns: None,
            ..*pod
        };
        if let Err(error) = self.maps.pods.lock().insert(pod.cgroup.id, entry(&outside), 0) {
            tracing::warn!(pod = %uid, %error, "writing the entry of a pod that leaves the mesh");
            return false;
        }
        self.pods.insert(uid.clone(), outside);
        true
    }

    /// Takes pods that stay on the node out of the kernel. Nothing new is redirected by now; then nothing new is steered, then
    /// nobody listens.
    fn let_go(&mut self, pods: Vec<(WorkloadUid, Local)>) {
        if pods.is_empty() {
            return;
        }
        thread::sleep(SETTLE);
        for (uid, pod) in &pods {
            self.maps.beat();
            self.detach(uid, pod);
        }
        thread::sleep(SETTLE);
        for (uid, _) in pods {
            tracing::info!(pod = %uid, "un-enrolled");
            // The data plane is told last; when it has ended there is nobody to tell.
            let _stopping = self.send(PodEvent::Down { uid, gone: false });
        }
    }

    /// Takes a pod out of the kernel that is gone, or that nobody knows any more.
    fn leave(&mut self, uid: WorkloadUid, pod: &Local, gone: bool) {
        if let Err(error) = self.maps.pods.lock().remove(&pod.cgroup.id) {
            tracing::warn!(pod = %uid, %error, "removing the pod's entry");
        }
        let Some(netns) = &pod.netns else { return };
        self.detach(&uid, pod);
        tracing::info!(pod = %uid, gone, "un-enrolled");
        // As above.
        let _stopping = self.send(PodEvent::Down { uid, gone });
        // On a host the records of others are there as well.
        if pod.on_host.is_none() {
            sweep::clear(&self.maps, Some(netns.cookie));
        }
    }

    fn detach(&mut self, uid: &WorkloadUid, pod: &Local) {
        if let Some(host) = &self.host {
            host.leave(uid);
        }
        if let Some(netns) = &pod.netns {
            self.hub.leave(netns.cookie, pod.cgroup.id);
        }
        self.dismantle(pod.cgroup.id, pod.index);
    }

    pub(super) fn dismantle(&mut self, cgroup_id: u64, index: u32) {
        self.udp.leave(index);
        if let Err(error) = lookups::detach_lookup(&self.config, cgroup_id) {
            tracing::warn!(cgroup_id, %error, "detaching sk_lookup");
        }
        for slot in 0..LISTENERS_PER_POD {
            self.maps.clear_listener(index * LISTENERS_PER_POD + slot);
        }
    }
}
