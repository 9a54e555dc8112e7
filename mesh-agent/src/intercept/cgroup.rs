//! Where cgroup v2 is mounted, where the kubelet has its pods there, and how deep a folder is in its hierarchy. In:
//! `/proc/self/mounts` and the folders. Out: paths, levels, ids.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::layout;
use crate::sys;

/// The id of the hierarchy's root cgroup, in the namespace of the host.
const ROOT_ID: u64 = 1;
/// How deep the pods' root is looked for: `system.slice/docker-ID.scope/kubelet.slice/kubelet-kubepods.slice` is 4.
const ROOT_LEVELS: u32 = 5;

/// The mount point of cgroup v2, which may be beside v1; the host's, where a container has one of its own as well.
pub(super) fn mount() -> io::Result<Option<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mut points = points(&mounts).into_iter();
    let first = points.next();
    let host = |point: &PathBuf| is_host_hierarchy(point).unwrap_or(false);
    Ok(first.iter().cloned().chain(points).find(host).or(first))
}

/// Every mount point of cgroup v2.
pub(super) fn points(mounts: &str) -> Vec<PathBuf> {
    let point = |line: &str| {
        let mut fields = line.split(' ');
        let (_device, point, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(point))
    };
    mounts.lines().filter_map(point).collect()
}

/// Whether what is mounted is the host's whole hierarchy, not the subtree of a private cgroup namespace.
pub(super) fn is_host_hierarchy(mount: &Path) -> io::Result<bool> {
    Ok(sys::cgroup_id(mount)? == ROOT_ID)
}

/// Why the pods' root was not found.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// No cgroup v2.
    #[error("cgroup v2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup")]
    NoCgroup2,
    /// No kubelet, or an unusual cgroup root.
    #[error("no kubepods.slice and no kubepods below {0}: name the directory with --pods-cgroup")]
    None(PathBuf),
    /// Which one is the kubelet's cannot be told.
    #[error("pods are below {0} and below {1}: say with --pods-cgroup which one the kubelet uses now")]
    Several(PathBuf, PathBuf),
    /// A folder could not be read.
    #[error("looking for the pods' cgroups: {0}")]
    Io(#[from] io::Error),
}

/// The cgroup that the kubelet's pods are below. Of several (the driver was changed) the one that has pods.
pub fn find_pods_root() -> Result<PathBuf, RootError> {
    find_root_below(&mount()?.ok_or(RootError::NoCgroup2)?)
}

fn find_root_below(mount: &Path) -> Result<PathBuf, RootError> {
    let mut roots = Vec::new();
    search(mount, ROOT_LEVELS, &mut roots)?;
    if roots.len() > 1 {
        let has_pods = |root: &PathBuf| super::discover::scan(root).is_ok_and(|pods| !pods.is_empty());
        let (used, unused): (Vec<_>, Vec<_>) = roots.into_iter().partition(has_pods);
        roots = if used.is_empty() { unused } else { used };
    }
    roots.sort();
    match roots.as_slice() {
        [] => Err(RootError::None(mount.to_owned())),
        [root] => Ok(root.clone()),
        [one, other, ..] => Err(RootError::Several(one.clone(), other.clone())),
    }
}

fn search(dir: &Path, levels: u32, roots: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            continue;
        }
        if entry.file_name().to_str().is_some_and(layout::is_pods_root) {
            roots.push(entry.path());
        } else if levels > 1 {
            match search(&entry.path(), levels - 1, roots) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

/// How many levels `cgroup` is below the hierarchy's root.
pub(super) fn level(mount: &Path, cgroup: &Path) -> Option<u32> {
    let below = cgroup.strip_prefix(mount).ok()?;
    let plain = below.components().all(|part| matches!(part, Component::Normal(_)));
    if plain { u32::try_from(below.components().count()).ok() } else { None }
}

/// The id of this process's own cgroup, if it is below `root`: an agent that is itself a pod. Looked for by the process,
/// since in a cgroup namespace of its own an agent is told another path.
pub(super) fn own_below(root: &Path) -> io::Result<Option<u64>> {
    let own = std::process::id();
    let procs = fs::read_to_string(root.join("cgroup.procs"))?;
    if procs.lines().any(|line| line.parse() == Ok(own)) {
        return sys::cgroup_id(root).map(Some);
    }
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            continue;
        }
        match own_below(&entry.path()) {
            Ok(None) => {}
            // It is gone, or a domain that has no processes to list.
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::EOPNOTSUPP)) => {}
            found => return found,
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_counts_folders_below_the_mount() {
        let mount = Path::new("/sys/fs/cgroup");
        assert_eq!(level(mount, Path::new("/sys/fs/cgroup")), Some(0));
        assert_eq!(level(mount, Path::new("/sys/fs/cgroup/kubepods.slice")), Some(1));
        assert_eq!(level(mount, Path::new("/sys/fs/cgroup/a/b/c")), Some(3));
        assert_eq!(level(mount, Path::new("/sys/fs/cgroup/a/../b")), None);
        assert_eq!(level(mount, Path::new("/elsewhere")), None);
    }

    #[test]
    fn every_mount_of_v2_is_seen_alone_or_beside_v1() {
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs ro 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n\
                      cgroup /sys/fs/cgroup/systemd cgroup rw,name=systemd 0 0\nnone /host/cgroup cgroup2 rw 0 0\n";
        let expected = ["/sys/fs/cgroup/unified", "/host/cgroup"].map(PathBuf::from);
        assert_eq!(points(hybrid), expected);
        assert_eq!(points("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0"), [PathBuf::from("/sys/fs/cgroup")]);
        assert!(points("cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n\n").is_empty());
    }

    /// Makes `folders` below a mount and looks there.
    fn found(folders: &[&str]) -> Result<String, RootError> {
        let mount = tempfile::tempdir().unwrap();
        for folder in folders {
            fs::create_dir_all(mount.path().join(folder)).unwrap();
        }
        let root = find_root_below(mount.path())?;
        Ok(root.strip_prefix(mount.path()).unwrap().to_str().unwrap().to_owned())
    }

    #[test]
    fn the_pods_root_is_found_at_the_top_and_below_a_kubelets_own_root() {
        for root in [
            "kubepods",
            "kubepods.slice",
            "kubelet/kubepods",
            "kubelet.slice/kubelet-kubepods.slice",
            "system.slice/docker-0123.scope/kubelet.slice/kubelet-kubepods.slice",
        ] {
            let inside = format!("{root}/kubepods.slice");
            assert_eq!(found(&["system.slice/sshd.service", "user.slice", &inside]).unwrap(), root);
        }
    }

    #[test]
    fn of_two_roots_the_one_with_pods_is_taken_and_a_choice_that_is_none_is_refused() {
        let pod = "kubepods.slice/kubepods-pod1.slice";
        assert_eq!(found(&["kubepods", pod]).unwrap(), "kubepods.slice");
        assert!(matches!(found(&["kubepods/pod2", pod]), Err(RootError::Several(..))));
        assert!(matches!(found(&["kubepods", "kubepods.slice"]), Err(RootError::Several(..))));
        assert!(matches!(found(&["system.slice"]), Err(RootError::None(_))));
    }
}
