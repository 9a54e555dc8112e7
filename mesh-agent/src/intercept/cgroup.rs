//! Where cgroup v2 is mounted, and how deep a folder is in its hierarchy. In: `/proc/self/mounts`. Out: paths, levels, ids.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use crate::sys;

/// The id of the hierarchy's root cgroup, in the namespace of the host.
const ROOT_ID: u64 = 1;

/// The mount point of cgroup v2, which may be beside v1.
pub(super) fn mount() -> io::Result<Option<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    Ok(mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_device, point, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(point))
    }))
}

/// Whether what is mounted is the host's whole hierarchy, not the subtree of a private cgroup namespace.
pub(super) fn is_host_hierarchy(mount: &Path) -> io::Result<bool> {
    Ok(sys::cgroup_id(mount)? == ROOT_ID)
}

/// How many levels `cgroup` is below the hierarchy's root.
pub(super) fn level(mount: &Path, cgroup: &Path) -> Option<u32> {
    let below = cgroup.strip_prefix(mount).ok()?;
    let plain = below.components().all(|part| matches!(part, Component::Normal(_)));
    if plain { u32::try_from(below.components().count()).ok() } else { None }
}

/// The id of this process's own cgroup, if it is below `root`: an agent that is itself a pod.
pub(super) fn own_below(mount: &Path, root: &Path) -> io::Result<Option<u64>> {
    let text = fs::read_to_string("/proc/self/cgroup")?;
    let Some(own) = text.lines().find_map(|line| line.strip_prefix("0::/")) else { return Ok(None) };
    let own = mount.join(own);
    if own.starts_with(root) { sys::cgroup_id(&own).map(Some) } else { Ok(None) }
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
}
