//! Finds the pods of this node. In: the pods' cgroup root and what the snapshot says of local workloads. Out: for each
//! pod its cgroup and its network namespace, or the reason why the namespace is not believed to be the pod's.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use mesh_common::POD_LEVELS;
use mesh_core::model::WorkloadUid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::layout;
use crate::sys::{self, NetNs};

/// A pod's cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PodCgroup {
    pub(super) path: PathBuf,
    pub(super) id: u64,
}

/// Why a pod's network namespace is not known (yet).
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The kubelet has not made it yet, or it is gone.
    #[error("no cgroup of this pod is below the pods' root")]
    NoCgroup,
    /// Nothing runs in it.
    #[error("no process runs in the pod's cgroup")]
    NoProcess,
    /// `hostNetwork`, or a process that was moved.
    #[error("the pod's processes are in the node's own network namespace")]
    NodeNamespace,
    /// Without them any namespace that a process of the pod made for itself would be the pod's.
    #[error("the API server does not know the pod's addresses yet")]
    AddressesUnknown,
    /// `PrivateNetwork=`, or a service that made one.
    #[error("the unit's processes are in a network namespace of their own, not in the host's")]
    OtherNamespace,
    /// Held connections are told apart by the kernel, accepted ones are not.
    #[error("units need an honest connect(), which this node does not carry or --connect eager forbids")]
    NotHonest,
    /// Two pods in one namespace: their identities could not be told apart.
    #[error("the pod's network namespace is already pod {0}'s")]
    Taken(WorkloadUid),
    /// Addresses not there yet, or a mix-up.
    #[error("the pod's network namespace does not have the pod's address {0}")]
    NoAddress(IpAddr),
    /// Bind mounts of two namespaces with the same addresses: one is stale, or a pod gave itself another's address.
    #[error("no process runs in the pod's cgroup, and several network namespaces have its addresses")]
    Ambiguous,
    /// The process left while it was looked at.
    #[error("the pod's process left its cgroup meanwhile")]
    ProcessMoved,
    /// A system call.
    #[error("looking at the pod: {0}")]
    Io(#[from] io::Error),
}

impl Refusal {
    /// Whether all that it says is that nobody was found.
    pub(super) fn says_nothing(&self) -> bool {
        matches!(self, Self::NoProcess)
    }
}

/// The pods' cgroups, by uid.
pub(super) type Scanned = HashMap<WorkloadUid, PodCgroup>;

/// Every pod's cgroup below `root`. What is below a pod is the pod's, whatever its name is.
pub(super) fn scan(root: &Path) -> io::Result<Scanned> {
    let mut found = HashMap::new();
    descend(root, POD_LEVELS, &layout::pod_uid, &mut found)?;
    Ok(found)
}

/// Every unit's cgroup below `root`, a slice; each by the uid that the unit has as a workload of `node`, whether it is one or not.
pub(super) fn scan_units(root: &Path, node: &str) -> io::Result<Scanned> {
    let mut found = HashMap::new();
    let uid = |folder: &str| layout::unit(folder).map(|unit| format!("{node}/{unit}"));
    descend(root, POD_LEVELS, &uid, &mut found)?;
    Ok(found)
}

fn descend(
    dir: &Path,
    levels: u32,
    uid_of: &dyn Fn(&str) -> Option<String>,
    found: &mut Scanned,
) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            continue;
        }
        let path = entry.path();
        let Ok(name) = entry.file_name().into_string() else { continue };
        if let Some(uid) = uid_of(&name) {
            match sys::cgroup_id(&path) {
                Ok(id) => drop(found.insert(WorkloadUid(uid.into()), PodCgroup { path, id })),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        } else if levels > 1 {
            match descend(&path, levels - 1, uid_of, found) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

/// The processes of a cgroup and of those below it.
pub(super) fn processes(cgroup: &Path) -> io::Result<Vec<u32>> {
    let mut pids = Vec::new();
    collect(cgroup, &mut pids)?;
    Ok(pids)
}

fn collect(cgroup: &Path, pids: &mut Vec<u32>) -> io::Result<()> {
    pids.extend(listed(&fs::read_to_string(cgroup.join("cgroup.procs"))?));
    for entry in fs::read_dir(cgroup)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            match collect(&entry.path(), pids) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

/// The processes in a `cgroup.procs`. One of another pid namespace reads as 0.
pub(super) fn listed(procs: &str) -> impl Iterator<Item = u32> {
    procs.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid != 0)
}

/// The ids of a pod's cgroup and of those below it.
pub(super) fn ids_below(cgroup: &PodCgroup) -> io::Result<HashSet<u64>> {
    fn walk(dir: &Path, ids: &mut HashSet<u64>) -> io::Result<()> {
        ids.insert(sys::cgroup_id(dir)?);
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                match walk(&entry.path(), ids) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }
    let mut ids = HashSet::new();
    walk(&cgroup.path, &mut ids)?;
    Ok(ids)
}

/// The network namespace of the pod in `cgroup`. Whether it is another's is for the caller to ask.
pub(super) fn namespace(
    cgroup: &PodCgroup,
    addresses: &[IpAddr],
    node_cookie: u64,
) -> Result<NetNs, Refusal> {
    if addresses.is_empty() {
        return Err(Refusal::AddressesUnknown);
    }
    let pids = processes(&cgroup.path)?;
    let mut refusal = Refusal::NoProcess;
    for pid in pids {
        match of_process(pid, cgroup, addresses, node_cookie) {
            Ok(netns) => return Ok(netns),
            Err(why) => refusal = why,
        }
    }
    Err(refusal)
}

/// The network namespace with this cookie, if a process of the pod is in it.
pub(super) fn namespace_by_cookie(cgroup: &PodCgroup, cookie: u64) -> Result<NetNs, Refusal> {
    for pid in processes(&cgroup.path)? {
        // A process that has just ended has none.
        if let Ok(netns) = NetNs::of_process(pid)
            && netns.cookie == cookie
        {
            return Ok(netns);
        }
    }
    Err(Refusal::NoProcess)
}

fn of_process(
    pid: u32,
    cgroup: &PodCgroup,
    addresses: &[IpAddr],
    node_cookie: u64,
) -> Result<NetNs, Refusal> {
    let handle = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Refusal::NoProcess)?;
    let pidfd = pidfd_open(handle, PidfdFlags::empty()).map_err(io::Error::from)?;
    let netns = NetNs::of_process(pid)?;
    if netns.cookie == node_cookie {
        return Err(Refusal::NodeNamespace);
    }
    for address in addresses {
        if !netns.has_address(*address)? {
            return Err(Refusal::NoAddress(*address));
        }
    }
    // The number could be another process's by now; the pidfd says whether the one that was asked still lives.
    let mut ended = [PollFd::new(&pidfd, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    if poll(&mut ended, Some(&now)).map_err(io::Error::from)? != 0
        || !processes(&cgroup.path)?.contains(&pid)
        || sys::cgroup_id(&cgroup.path)? != cgroup.id
    {
        return Err(Refusal::ProcessMoved);
    }
    Ok(netns)
}

/// Whether the cgroup that was found is still there, and is the same.
pub(super) fn still_exists(cgroup: &PodCgroup) -> bool {
    sys::cgroup_id(&cgroup.path).ok() == Some(cgroup.id)
}

/// Whether a pod that was found is still where it was: its cgroup lives, and if processes run in it, one of them is in
/// the namespace with this inode.
pub(super) fn still_there(cgroup: &PodCgroup, netns_inode: u64) -> bool {
    if !still_exists(cgroup) {
        return false;
    }
    let Ok(pids) = processes(&cgroup.path) else { return false };
    let mut readable = pids.into_iter().filter_map(self::netns_inode).peekable();
    readable.peek().is_none() || readable.any(|inode| inode == netns_inode)
}

/// The inode of a process's network namespace; nothing when it has ended.
pub(super) fn netns_inode(pid: u32) -> Option<u64> {
    let link = fs::read_link(format!("/proc/{pid}/ns/net")).ok()?;
    inode_in(link.to_str()?)
}

/// The inode in `net:[4026531840]`.
pub(super) fn inode_in(link: &str) -> Option<u64> {
    link.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process, ended with the test.
    struct Sleeper(std::process::Child);

    impl Sleeper {
        fn start() -> Self {
            Self(std::process::Command::new("sleep").arg("60").spawn().unwrap())
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }

    /// As when a pod's process ends while it is looked at and another one gets its number: the number was read from the
    /// cgroup, the process behind it is not in there.
    #[test]
    fn a_process_number_that_is_another_process_by_now_lends_the_pod_no_namespace() {
        let Some(mount) = super::super::cgroup::mount().unwrap() else { return };
        let path = mount.join(format!("ferromesh-discover-{}", std::process::id()));
        if fs::create_dir(&path).is_err() {
            eprintln!("skipped: needs root");
            return;
        }
        let cgroup = PodCgroup { id: sys::cgroup_id(&path).unwrap(), path: path.clone() };
        let (own, mut stranger) = (Sleeper::start(), Sleeper::start());
        fs::write(path.join("cgroup.procs"), own.0.id().to_string()).unwrap();
        // No cookie is 0, and no address is asked for: what is left is whether the process is the pod's.
        let found = of_process(own.0.id(), &cgroup, &[], 0);
        let reused = of_process(stranger.0.id(), &cgroup, &[], 0);
        stranger.0.kill().unwrap();
        stranger.0.wait().unwrap();
        let ended = of_process(stranger.0.id(), &cgroup, &[], 0);
        drop(own);
        while fs::remove_dir(&path).is_err() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert!(found.is_ok(), "{found:?}");
        assert!(matches!(reused, Err(Refusal::ProcessMoved)), "{reused:?}");
        assert!(matches!(ended, Err(Refusal::Io(_))), "{ended:?}");
    }

    /// A tree of folders as the kubelet's, with what a container makes below its own.
    #[test]
    fn pods_are_found_in_the_layouts_of_both_drivers_and_nothing_below_them_is_one() {
        let root = std::env::temp_dir().join(format!("ferromesh-scan-{}", std::process::id()));
        let make = |below: &str| fs::create_dir_all(root.join(below)).unwrap();
        make("kubepods-poda_1.slice/cri-containerd-01.scope/kubepods-burstable-podz_9.slice");
        make("kubepods-burstable.slice/kubepods-burstable-podb_2.slice/crio-02.scope");
        make("kubepods-besteffort.slice/kubepods-besteffort-podc_3.slice");
        make("besteffort/podd-4/05/pode-5");
        make("podf0123456789abcdef0123456789abcd");
        make("burstable/leaf");
        let scanned = scan(&root).unwrap();
        fs::remove_dir_all(&root).unwrap();
        let mut uids: Vec<_> = scanned.keys().map(|uid| &*uid.0).collect();
        uids.sort_unstable();
        assert_eq!(uids, ["a-1", "b-2", "c-3", "d-4", "f0123456789abcdef0123456789abcd"]);
        for (uid, cgroup) in &scanned {
            let name = cgroup.path.file_name().unwrap().to_str().unwrap();
            assert_eq!(layout::pod_uid(name).as_deref(), Some(&*uid.0));
        }
    }

    #[test]
    fn units_are_found_below_slices_by_the_names_that_systemd_knows_them_by() {
        let root = std::env::temp_dir().join(format!("ferromesh-units-{}", std::process::id()));
        let make = |below: &str| fs::create_dir_all(root.join(below)).unwrap();
        make("db.service/workers/one.service");
        make("_cpu.service");
        make("system-getty.slice/getty@tty1.service");
        make("boot.mount");
        let scanned = scan_units(&root, "host-1").unwrap();
        fs::remove_dir_all(&root).unwrap();
        let mut uids: Vec<_> = scanned.keys().map(|uid| &*uid.0).collect();
        uids.sort_unstable();
        let wanted =
            ["host-1/boot.mount", "host-1/cpu.service", "host-1/db.service", "host-1/getty@tty1.service"];
        assert_eq!(uids, wanted);
    }
}
