//! How the kubelet names its cgroups. In: the names of folders on cgroup v2. Out: which of them the pods are below, and
//! which pod one of them is.
//!
//! | driver | the pods' root | a pod |
//! |---|---|---|
//! | systemd | `kubepods.slice` | `[kubepods-CLASS.slice/]kubepods[-CLASS]-podUID.slice`, a dash of the uid as `_` |
//! | cgroupfs | `kubepods` | `[CLASS/]podUID` |
//!
//! CLASS is `burstable` or `besteffort`; a guaranteed pod is directly below the root. A kubelet that was given a cgroup
//! root (kind's: `/kubelet`) has all of it below that, and the systemd driver writes it in front of each name
//! (`kubelet.slice/kubelet-kubepods.slice/..`). A static pod's uid is a hash without dashes. The same holds where v2 is
//! mounted beside v1.

/// What the kubelet calls the root of its pods.
const ROOT: &str = "kubepods";
/// The classes of pods that have a cgroup of their own.
const CLASSES: [&str; 2] = ["burstable", "besteffort"];
/// The most characters of a uid; the kubelet's have 36.
const LONGEST_UID: usize = 128;

/// The systemd unit whose cgroup has this name; `None`: a slice, which units are below. Where the name of a unit could be taken for a
/// file of the kernel's (`cpu.service`), systemd puts an underscore in front of it.
pub(super) fn unit(folder: &str) -> Option<&str> {
    (!folder.ends_with(".slice")).then(|| folder.strip_prefix('_').unwrap_or(folder))
}

/// The uid of the pod whose cgroup has this name, as the API server writes it.
pub(super) fn pod_uid(folder: &str) -> Option<String> {
    let Some(slice) = folder.strip_suffix(".slice") else {
        return folder.strip_prefix("pod").filter(|uid| is_uid(uid)).map(str::to_owned);
    };
    let (above, last) = slice.rsplit_once('-')?;
    let above =
        CLASSES.iter().find_map(|class| above.strip_suffix(class)?.strip_suffix('-')).unwrap_or(above);
    let uid = last.strip_prefix("pod")?.replace('_', "-");
    (is_root_slice(above) && is_uid(&uid)).then_some(uid)
}

/// Whether the pods of a kubelet are below a cgroup of this name.
pub(super) fn is_pods_root(folder: &str) -> bool {
    folder == ROOT || folder.strip_suffix(".slice").is_some_and(is_root_slice)
}

/// `kubepods`, or behind the name of what it is in.
fn is_root_slice(name: &str) -> bool {
    name.strip_suffix(ROOT).is_some_and(|above| above.is_empty() || above.ends_with('-'))
}

fn is_uid(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    (1..=LONGEST_UID).contains(&text.len()) && text.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UID: &str = "0f61eb58-5f2d-4b8a-9d0e-6a1c2b3d4e5f";
    const HASH: &str = "3f2a9c1db4e85a60718293a4b5c6d7e8";

    #[test]
    fn pods_of_both_drivers_and_every_class_have_their_uid() {
        let slice = UID.replace('-', "_");
        for folder in [
            format!("pod{UID}"),
            format!("kubepods-pod{slice}.slice"),
            format!("kubepods-burstable-pod{slice}.slice"),
            format!("kubepods-besteffort-pod{slice}.slice"),
            format!("kubelet-kubepods-pod{slice}.slice"),
            format!("kubelet-kubepods-burstable-pod{slice}.slice"),
            format!("a-b-kubepods-besteffort-pod{slice}.slice"),
        ] {
            assert_eq!(pod_uid(&folder).as_deref(), Some(UID), "{folder}");
        }
        assert_eq!(pod_uid(&format!("pod{HASH}")).as_deref(), Some(HASH));
        assert_eq!(pod_uid(&format!("kubepods-burstable-pod{HASH}.slice")).as_deref(), Some(HASH));
    }

    #[test]
    fn what_is_no_pod_has_no_uid() {
        for folder in [
            "kubepods.slice",
            "kubepods-burstable.slice",
            "kubelet-kubepods.slice",
            "burstable",
            "pod",
            "pods",
            "pod.slice",
            "pod a",
            "podman-1.scope",
            "kubepods-pod.slice",
            "user-pod0f61.slice",
            "mykubepods-pod0f61.slice",
            "kubepods-guaranteed-pod0f61.slice",
            "cri-containerd-0123.scope",
            "libpod-0123.scope",
            "machine-libpod_pod_0123.slice",
        ] {
            let expected = (folder == "pods").then_some("s");
            assert_eq!(pod_uid(folder).as_deref(), expected, "{folder}");
        }
    }

    #[test]
    fn a_root_is_known_by_its_name_alone() {
        for root in ["kubepods", "kubepods.slice", "kubelet-kubepods.slice", "a-b-kubepods.slice"] {
            assert!(is_pods_root(root), "{root}");
        }
        for other in [
            "kubepods-burstable.slice",
            "kubelet",
            "kubelet.slice",
            "kubepods.scope",
            "notkubepods.slice",
            "",
        ] {
            assert!(!is_pods_root(other), "{other}");
        }
    }

    fn uid() -> impl Strategy<Value = String> {
        prop_oneof!["[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "[0-9a-f]{32}"]
    }

    /// As the kubelet makes them: `cgroupName.ToSystemd()` and `ToCgroupfs()`.
    fn folders(above: &[&str], class: Option<&str>, uid: &str) -> (String, String) {
        let escaped = format!("pod{}", uid.replace('-', "_"));
        let parts = above.iter().copied().chain([ROOT]).chain(class).chain([escaped.as_str()]);
        (format!("{}.slice", parts.collect::<Vec<_>>().join("-")), format!("pod{uid}"))
    }

    proptest! {
        #[test]
        fn what_the_kubelet_writes_is_read_back(
            uid in uid(),
            class in prop::option::of(prop::sample::select(CLASSES.to_vec())),
            above in prop::sample::select(vec![vec![], vec!["kubelet"], vec!["a", "b"]]),
        ) {
            let (systemd, cgroupfs) = folders(&above, class, &uid);
            prop_assert_eq!(pod_uid(&systemd), Some(uid.clone()));
            prop_assert_eq!(pod_uid(&cgroupfs), Some(uid));
            prop_assert!(!is_pods_root(&systemd) && !is_pods_root(&cgroupfs));
        }

        #[test]
        fn a_name_from_anywhere_is_read_without_panic_and_gives_only_a_uid(name in "\\PC{0,60}") {
            if let Some(uid) = pod_uid(&name) {
                prop_assert!(is_uid(&uid));
            }
            is_pods_root(&name);
        }

        #[test]
        fn two_pods_are_never_one_name(a in uid(), b in uid()) {
            prop_assume!(a != b);
            let (one, two) = (folders(&[], Some("burstable"), &a), folders(&[], Some("burstable"), &b));
            prop_assert!(pod_uid(&one.0) != pod_uid(&two.0) && pod_uid(&one.1) != pod_uid(&two.1));
        }
    }
}
