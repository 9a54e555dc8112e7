//! Namespaces that the container runtime keeps by bind mounts: how a pod's is found while no process of it runs. CRI-O
//! starts no pause process, so a pod has none until its first container starts, and between two starts of it.
//!
//! In: the folders of the bind mounts, and the pods' cgroups. Out: the one namespace that has the pod's addresses. A
//! namespace that a process of any pod is in is that pod's, and is found by the process; an address proves less.

use std::collections::HashSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::discover::{self, Refusal, Scanned};
use crate::sys::NetNs;

/// The namespaces that nobody is known to be in; looked for once a round, when a pod first needs one.
#[derive(Debug, Default)]
pub(super) struct Bound {
    free: Option<Vec<NetNs>>,
}

impl Bound {
    /// Begins a round.
    pub(super) fn renew(&mut self) {
        self.free = None;
    }

    /// The one namespace with all of `addresses`. It is nobody else's for the rest of the round.
    pub(super) fn take(
        &mut self,
        folders: &[PathBuf],
        scanned: &Scanned,
        held: impl Iterator<Item = u64>,
        addresses: &[IpAddr],
    ) -> Result<NetNs, Refusal> {
        // Without an address anything would be the pod's.
        if addresses.is_empty() {
            return Err(Refusal::AddressesUnknown);
        }
        let free = self.free.get_or_insert_with(|| look(folders, scanned, held));
        let has_all = |netns: &NetNs| addresses.iter().all(|a| netns.has_address(*a).unwrap_or(false));
        let mut fitting = (0..free.len()).filter(|at| has_all(&free[*at]));
        let (first, second) = (fitting.next(), fitting.next());
        drop(fitting);
        match (first, second) {
            (Some(at), None) => Ok(free.swap_remove(at)),
            (Some(_), Some(_)) => Err(Refusal::Ambiguous),
            (None, _) => Err(Refusal::NoProcess),
        }
    }
}

/// What is in the folders but for the node's namespace, those in `held`, and those of pods' processes.
fn look(folders: &[PathBuf], scanned: &Scanned, held: impl Iterator<Item = u64>) -> Vec<NetNs> {
    let mut others: HashSet<u64> = held.collect();
    others.extend(NetNs::current().map(|node| node.inode));
    for cgroup in scanned.values() {
        // A cgroup that went meanwhile has no processes.
        let pids = discover::processes(&cgroup.path).unwrap_or_default();
        others.extend(pids.into_iter().filter_map(discover::netns_inode));
    }
    let mut free = Vec::new();
    for file in folders.iter().flat_map(|folder| files(folder)) {
        // What is not a network namespace cannot be opened as one, and is none of ours.
        if let Ok(netns) = NetNs::open(&file)
            && others.insert(netns.inode)
        {
            free.push(netns);
        }
    }
    free
}

/// The plain files of a folder, as a bind mount of a namespace looks like; none when there is no such folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let plain = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_file());
    entries.flatten().filter(plain).map(|entry| entry.path()).collect()
}
