//! Pods on the node's own network (`hostNetwork`): left alone, and said so. In: the pods' cgroups. Out: the uids of those
//! whose processes are all in the node's namespace, for status, log and metrics.
//!
//! The kernel's programs leave the node's namespace alone by its cookie; nothing here decides anything.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use mesh_core::model::WorkloadUid;
use parking_lot::Mutex;

use super::discover::{self, PodCgroup, Scanned};

/// What is known now; shared with status and metrics.
pub(super) type OnNodeNetwork = Arc<Mutex<BTreeSet<WorkloadUid>>>;

/// Looks at each pod until it has a process of its own network.
#[derive(Debug)]
pub(super) struct NodeNetwork {
    inode: u64,
    /// Cgroups of pods with a network of their own: that never changes.
    own: HashSet<u64>,
    found: OnNodeNetwork,
}

impl NodeNetwork {
    /// For a process that is itself on the node's network.
    pub(super) fn new(found: OnNodeNetwork) -> Self {
        Self {
            inode: discover::netns_inode(std::process::id()).unwrap_or_default(),
            own: HashSet::new(),
            found,
        }
    }

    /// Looks at the pods that are there; `enrolled` says of a cgroup that its pod is known to have its own.
    pub(super) fn look(&mut self, scanned: &Scanned, enrolled: impl Fn(u64) -> bool) {
        let live: HashMap<u64, &WorkloadUid> = scanned.iter().map(|(uid, pod)| (pod.id, uid)).collect();
        self.own.retain(|id| live.contains_key(id));
        let mut found = BTreeSet::new();
        for (uid, cgroup) in scanned {
            if self.own.contains(&cgroup.id) || enrolled(cgroup.id) {
                continue;
            }
            match self.is_on_node(cgroup) {
                Some(true) => drop(found.insert(uid.clone())),
                Some(false) => drop(self.own.insert(cgroup.id)),
                None => {}
            }
        }
        let mut held = self.found.lock();
        for uid in found.difference(&held) {
            tracing::info!(pod = %uid, "on the node's own network (hostNetwork): left alone");
        }
        *held = found;
    }

    /// Nothing while no process runs.
    fn is_on_node(&self, cgroup: &PodCgroup) -> Option<bool> {
        let pids = discover::processes(&cgroup.path).ok()?;
        let mut inodes = pids.into_iter().filter_map(discover::netns_inode).peekable();
        inodes.peek()?;
        Some(inodes.all(|inode| inode == self.inode))
    }
}
