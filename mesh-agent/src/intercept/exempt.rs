//! Pods that are never held, and what was held of pods that prove not to be enrolled. In: the node's own files and the
//! kernel's map of held connections. Out: `PODS` entries that let a pod pass, and connections to be dialled plainly.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use mesh_common::{OrigKey, Pod};
use mesh_core::model::WorkloadUid;

use super::config::NeverHeld;
use super::discover::{self, PodCgroup, Scanned};
use super::held::Held;
use super::hub::Hub;
use super::maps::Maps;

/// What lets connections of pods pass that the snapshot does not name as enrolled.
#[derive(Debug, Default)]
pub(super) struct Exempt {
    /// Cgroup ids that were given an entry here, because of their namespace.
    passing: HashSet<u64>,
}

impl Exempt {
    /// Lets pods of exempt namespaces pass, as soon as the kubelet has made them. `known` are cgroups with an entry of
    /// another origin.
    pub(super) fn follow(
        &mut self,
        config: &NeverHeld,
        maps: &Maps,
        scanned: &Scanned,
        known: &HashSet<u64>,
    ) {
        self.forget(maps, scanned, |id| known.contains(&id));
        if scanned.values().all(|cgroup| known.contains(&cgroup.id) || self.passing.contains(&cgroup.id)) {
            return;
        }
        for uid in uids_of(&config.pod_logs, &config.namespaces) {
            let uid = WorkloadUid(uid.into());
            let Some(cgroup) = scanned.get(&uid) else { continue };
            if !known.contains(&cgroup.id) {
                self.pass(maps, &uid, cgroup.id);
            }
        }
    }

    /// Lets every unit of a host pass that is not `named` as enrolled, as soon as systemd has started it.
    pub(super) fn follow_host(
        &mut self,
        maps: &Maps,
        scanned: &Scanned,
        known: &HashSet<u64>,
        named: impl Fn(&WorkloadUid) -> bool,
    ) {
        self.forget(maps, scanned, |id| known.contains(&id));
        for (uid, cgroup) in scanned {
            if !known.contains(&cgroup.id) && !named(uid) {
                self.pass(maps, uid, cgroup.id);
            }
        }
    }

    fn pass(&mut self, maps: &Maps, uid: &WorkloadUid, cgroup_id: u64) {
        if !self.passing.insert(cgroup_id) {
            return;
        }
        if let Err(error) = maps.pods.lock().insert(cgroup_id, Pod::default(), 0) {
            self.passing.remove(&cgroup_id);
            tracing::warn!(pod = %uid, %error, "what waits for nobody stays held");
        }
    }

    /// Takes back the entries of cgroups that are gone; one of another origin has replaced it, and stays.
    fn forget(&mut self, maps: &Maps, scanned: &Scanned, known: impl Fn(u64) -> bool) {
        let live: HashSet<u64> = scanned.values().map(|cgroup| cgroup.id).collect();
        for id in self.passing.extract_if(|id| !live.contains(id) || known(*id)) {
            if !known(id) {
                let _gone = maps.pods.lock().remove(&id);
            }
        }
    }

    /// Whether a cgroup passes because of its namespace.
    pub(super) fn passes(&self, cgroup_id: u64) -> bool {
        self.passing.contains(&cgroup_id)
    }
}

/// The connections that wait although their pod is not enrolled, to be dialled plainly. `owner` finds such a pod's
/// cgroup among a socket's.
pub(super) fn released(
    hub: &Arc<Hub>,
    maps: &Maps,
    owner: impl Fn(&[u64]) -> Option<PodCgroup>,
) -> Vec<Held> {
    let one = |key: OrigKey| {
        if hub.offer(key) {
            return None;
        }
        let held = maps.held(&key)?;
        let cgroup = owner(&held.cgroups)?;
        match discover::namespace_by_cookie(&cgroup, key.netns_cookie) {
            Ok(netns) => hub.release(key, &Arc::new(netns)),
            Err(error) => {
                tracing::warn!(cgroup = %cgroup.path.display(), %error, "a held connection cannot be released");
                None
            }
        }
    };
    maps.all_held().into_iter().filter_map(one).collect()
}

/// The uids of the pods whose namespace is one of `namespaces`, by the kubelet's log folders.
fn uids_of(pod_logs: &Path, namespaces: &[String]) -> Vec<String> {
    let Ok(entries) = fs::read_dir(pod_logs) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter_map(|name| uid_of(&name, namespaces)).collect()
}

/// The uid in `NAMESPACE_NAME_UID`; none of the three has an underscore.
fn uid_of(folder: &str, namespaces: &[String]) -> Option<String> {
    let mut parts = folder.split('_');
    let (namespace, _name, uid) = (parts.next()?, parts.next()?, parts.next()?);
    (parts.next().is_none() && namespaces.iter().any(|wanted| wanted == namespace)).then(|| uid.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_folder_says_a_pod_s_namespace_and_uid() {
        let exempt = ["kube-system".to_owned()];
        let uid = |folder| uid_of(folder, &exempt);
        assert_eq!(uid("kube-system_coredns-1_abc-1"), Some("abc-1".to_owned()));
        assert_eq!(uid("shop_kube-system_abc-1"), None);
        assert_eq!(uid("kube-system_coredns"), None);
        assert_eq!(uid("kube-system_a_b_c"), None);
    }
}
