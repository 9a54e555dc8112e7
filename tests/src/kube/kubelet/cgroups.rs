//! The names that a kubelet and its runtime give their cgroups. In: driver, class, uid, container. Out: folders.
//!
//! Written after `pkg/kubelet/cm` (`cgroupName.ToSystemd()`, `ToCgroupfs()`, `GetPodContainerName`) and containerd's CRI,
//! not after the agent, which has to find them.

use std::path::{Path, PathBuf};

/// Who manages the node's cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// systemd: slices and scopes.
    Systemd,
    /// Plain folders.
    Cgroupfs,
}

impl Driver {
    /// The folder that all pods are below, in `above`.
    pub fn root(self, above: &Path) -> PathBuf {
        above.join(match self {
            Self::Systemd => "kubepods.slice",
            Self::Cgroupfs => "kubepods",
        })
    }

    /// The pod's folder. `class` is `status.qosClass`.
    pub fn pod(self, above: &Path, class: &str, uid: &str) -> PathBuf {
        let class = Some(class.to_lowercase()).filter(|class| class != "guaranteed");
        let root = self.root(above);
        match (self, class) {
            (Self::Systemd, Some(class)) => root
                .join(format!("kubepods-{class}.slice"))
                .join(format!("kubepods-{class}-pod{}.slice", uid.replace('-', "_"))),
            (Self::Systemd, None) => root.join(format!("kubepods-pod{}.slice", uid.replace('-', "_"))),
            (Self::Cgroupfs, Some(class)) => root.join(class).join(format!("pod{uid}")),
            (Self::Cgroupfs, None) => root.join(format!("pod{uid}")),
        }
    }

    /// A container's folder, in its pod's.
    pub fn container(self, pod: &Path, id: &str) -> PathBuf {
        pod.join(match self {
            Self::Systemd => format!("cri-containerd-{id}.scope"),
            Self::Cgroupfs => id.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_named_as_on_a_node() {
        let (above, uid) = (Path::new("/c"), "0f61eb58-5f2d-4b8a-9d0e-6a1c2b3d4e5f");
        let of = |driver: Driver, class| {
            driver.container(&driver.pod(above, class, uid), "ab12").to_string_lossy().into_owned()
        };
        let slice = "pod0f61eb58_5f2d_4b8a_9d0e_6a1c2b3d4e5f.slice/cri-containerd-ab12.scope";
        assert_eq!(of(Driver::Systemd, "Guaranteed"), format!("/c/kubepods.slice/kubepods-{slice}"));
        assert_eq!(
            of(Driver::Systemd, "BestEffort"),
            format!("/c/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-{slice}")
        );
        assert_eq!(of(Driver::Cgroupfs, "Guaranteed"), format!("/c/kubepods/pod{uid}/ab12"));
        assert_eq!(of(Driver::Cgroupfs, "Burstable"), format!("/c/kubepods/burstable/pod{uid}/ab12"));
    }
}
