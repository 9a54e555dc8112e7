//! One `sk_lookup` instance for each enrolled pod: attached in the pod's namespace, pinned by the pod's cgroup, detached. In:
//! the pod's cgroup, index and namespace. Out: a pinned link.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use aya::programs::links::FdLink;
use aya::programs::{ProgramError, SkLookup};
use aya::{Ebpf, EbpfLoader};
use mesh_common::{GLOBAL_POD_CGROUP, GLOBAL_POD_INDEX};

use super::config::Config;
use super::object::{InterceptError, LOOKUP_OBJECT, pin, program};
use crate::sys::{NetNs, PinnedLink};

/// The folder of the pods' `sk_lookup` links.
pub(super) fn lookups_dir(pin_dir: &Path) -> PathBuf {
    pin_dir.join("lookups")
}

/// The pin of one pod's `sk_lookup` link. (A bpffs name must not have a dot: a uid might.)
pub(super) fn lookup_pin(pin_dir: &Path, cgroup_id: u64) -> PathBuf {
    lookups_dir(pin_dir).join(cgroup_id.to_string())
}

/// The object, for one pod.
pub(super) fn lookup_object(pin_dir: &Path, cgroup_id: u64, index: u32) -> Result<Ebpf, InterceptError> {
    Ok(EbpfLoader::new()
        .default_map_pin_directory(pin_dir)
        .override_global(GLOBAL_POD_INDEX, &index, true)
        .override_global(GLOBAL_POD_CGROUP, &cgroup_id, true)
        .load(LOOKUP_OBJECT)?)
}

/// Loads a pod's own `sk_lookup` instance and attaches it, in the link of an earlier agent where there is one.
pub(super) fn attach_lookup(
    config: &Config,
    cgroup_id: u64,
    index: u32,
    netns: &NetNs,
) -> Result<(), InterceptError> {
    let path = lookup_pin(&config.pin_dir, cgroup_id);
    let what = || InterceptError::io(format!("adopting the link {}", path.display()));
    let mut object = lookup_object(&config.pin_dir, cgroup_id, index)?;
    let program: &mut SkLookup = program(&mut object, "steer")?;
    program.load()?;
    if let Some(link) = PinnedLink::open(&path).map_err(what())? {
        let live = link.netns_inode().map_err(what())? == netns.inode;
        if live && link.update(program.fd()?.as_fd()).is_ok() {
            return Ok(());
        }
        fs::remove_file(&path).map_err(what())?;
    }
    let id = program.attach(netns)?;
    let link = program.take_link(id)?;
    pin(Ok::<_, ProgramError>(FdLink::from(link)), &path)
}

/// The cgroup ids of the pods whose `sk_lookup` instance is pinned.
pub(super) fn attached_lookups(config: &Config) -> io::Result<Vec<u64>> {
    let names =
        fs::read_dir(lookups_dir(&config.pin_dir))?.filter_map(Result::ok).map(|entry| entry.file_name());
    Ok(names.filter_map(|name| pinned_for(name.to_str()?)).collect())
}

/// The cgroup id that a pin is named by, and nothing that only reads as the same number.
pub(super) fn pinned_for(name: &str) -> Option<u64> {
    name.parse().ok().filter(|id: &u64| id.to_string() == name)
}

/// Detaches a pod's `sk_lookup` instance: when this returns, no connection is steered any more. (The kernel ends a link that is
/// only unpinned some time later, and slots that were emptied meanwhile would refuse.)
pub(super) fn detach_lookup(config: &Config, cgroup_id: u64) -> io::Result<()> {
    let path = lookup_pin(&config.pin_dir, cgroup_id);
    let Some(link) = PinnedLink::open(&path)? else { return Ok(()) };
    let detached = link.detach();
    fs::remove_file(path)?;
    detached
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_one_pods_by_exactly_its_own_name() {
        assert_eq!(pinned_for("4711"), Some(4711));
        for other in ["+4711", "04711", "4711 ", "-1", "", "18446744073709551616", "new"] {
            assert_eq!(pinned_for(other), None, "{other:?}");
        }
    }
}
