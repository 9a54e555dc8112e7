//! What interception needs of this node, asked of the kernel feature by feature (never by its version). In: nothing.
//! Out: a list for `meshctl check` and for readiness, each with the mend.

use std::fs;
use std::path::Path;

use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported, is_program_supported};
use rustix::fs::statfs;
use rustix::thread::{CapabilitySet, capabilities};

use super::cgroup;
use crate::sys::NetNs;

/// Magic number of bpffs.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// One thing that interception needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// What.
    pub name: &'static str,
    /// Whether this node has it.
    pub ok: bool,
    /// What to do when it does not; empty when it does.
    pub mend: String,
}

/// Asks everything.
pub fn probe() -> Vec<Probe> {
    let one =
        |name, ok: bool, mend: &str| Probe { name, ok, mend: if ok { String::new() } else { mend.into() } };
    let mount = cgroup::mount().ok().flatten();
    let host = mount.as_deref().is_some_and(|mount| cgroup::is_host_hierarchy(mount).unwrap_or(false));
    let mut probes = vec![
        one("cgroup2", mount.is_some(), "mount cgroup v2: mount -t cgroup2 none /sys/fs/cgroup"),
        one(
            "cgroup namespace",
            host,
            "run the agent in the host's cgroup namespace (mount the host's cgroup2)",
        ),
        one("bpffs", is_bpffs(Path::new("/sys/fs/bpf")), "mount -t bpf bpf /sys/fs/bpf"),
        one("BTF", Path::new("/sys/kernel/btf/vmlinux").exists(), "a kernel with CONFIG_DEBUG_INFO_BTF=y"),
        one("netns cookies", NetNs::current().is_ok(), "Linux 5.14 or newer, and CAP_SYS_ADMIN"),
    ];
    probes.extend(CAPABILITIES.iter().map(|(name, wanted)| {
        let held = capabilities(None).is_ok_and(|sets| sets.effective.contains(*wanted));
        one(name, held, "give the agent this capability")
    }));
    let mend = "a kernel with CONFIG_BPF_SYSCALL and CONFIG_CGROUP_BPF, Linux 6.1 or newer";
    for (name, kind) in PROGRAMS {
        probes.push(one(name, is_program_supported(*kind).unwrap_or(false), mend));
    }
    for (name, kind, helper) in HELPERS {
        probes.push(one(name, is_helper_supported(*kind, *helper).unwrap_or(false), mend));
    }
    let mend =
        "give the agent this capability: until then connect() returns at once, and failures are resets";
    probes.push(one("CAP_NET_RAW, to answer an honest connect()", carries_honest_connect(), mend));
    probes
}

/// Whether a `connect()` can be held and answered. The programs that hold it are those that everything needs; refusals are
/// sent by a raw socket.
pub(super) fn carries_honest_connect() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_RAW))
}

/// Whether a `cgroup_skb` program can tell the network namespace (Linux 6.15): without it, inbound connections to pods
/// that nobody has classified are not held.
pub(super) fn has_skb_netns() -> bool {
    is_helper_supported(ProgramType::CgroupSkb, BpfHelper::BPF_FUNC_get_netns_cookie).unwrap_or(false)
}

/// Whether the kernel has MPTCP.
pub(super) fn has_mptcp() -> bool {
    Path::new("/proc/sys/net/mptcp").exists()
}

const CAPABILITIES: &[(&str, CapabilitySet)] = &[
    ("CAP_BPF", CapabilitySet::BPF),
    ("CAP_NET_ADMIN", CapabilitySet::NET_ADMIN),
    ("CAP_SYS_ADMIN", CapabilitySet::SYS_ADMIN),
    ("CAP_SYS_PTRACE", CapabilitySet::SYS_PTRACE),
];

const PROGRAMS: &[(&str, ProgramType)] = &[
    ("program: cgroup_sock_addr", ProgramType::CgroupSockAddr),
    ("program: cgroup_sock", ProgramType::CgroupSock),
    ("program: cgroup_skb", ProgramType::CgroupSkb),
    ("program: sock_ops", ProgramType::SockOps),
    ("program: sk_lookup", ProgramType::SkLookup),
];

const HELPERS: &[(&str, ProgramType, BpfHelper)] = &[
    ("helper: bind in connect", ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_bind),
    ("helper: socket storage in connect", ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_sk_storage_get),
    ("helper: netns cookie in connect", ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_get_netns_cookie),
    (
        "helper: cgroup ancestors in connect",
        ProgramType::CgroupSockAddr,
        BpfHelper::BPF_FUNC_get_current_ancestor_cgroup_id,
    ),
    (
        "helper: error of the caller in connect and bind",
        ProgramType::CgroupSockAddr,
        BpfHelper::BPF_FUNC_set_retval,
    ),
    (
        "helper: cgroup ancestors in sock_create",
        ProgramType::CgroupSock,
        BpfHelper::BPF_FUNC_get_current_ancestor_cgroup_id,
    ),
    (
        "helper: the receiver's cgroup in ingress",
        ProgramType::CgroupSkb,
        BpfHelper::BPF_FUNC_skb_ancestor_cgroup_id,
    ),
    ("helper: socket storage in egress", ProgramType::CgroupSkb, BpfHelper::BPF_FUNC_sk_storage_get),
    ("helper: ring of events in egress", ProgramType::CgroupSkb, BpfHelper::BPF_FUNC_ringbuf_output),
    ("helper: socket storage in sock_ops", ProgramType::SockOps, BpfHelper::BPF_FUNC_sk_storage_get),
    ("helper: netns cookie in sock_ops", ProgramType::SockOps, BpfHelper::BPF_FUNC_get_netns_cookie),
    ("helper: socket assignment in sk_lookup", ProgramType::SkLookup, BpfHelper::BPF_FUNC_sk_assign),
];

/// Whether `path` is on a BPF file system.
pub(super) fn is_bpffs(path: &Path) -> bool {
    // The nearest parent that exists decides.
    let existing = path.ancestors().find(|ancestor| fs::symlink_metadata(ancestor).is_ok());
    existing.and_then(|path| statfs(path).ok()).is_some_and(|found| found.f_type as u64 == BPF_FS_MAGIC)
}
