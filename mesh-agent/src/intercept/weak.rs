//! What weakens the mesh on this node although everything is loaded: pods whose processes may pass by the source's hooks,
//! foreign programs that keep ours out, runtimes whose sockets the node's kernel does not see, and ports that still take
//! plaintext. In: the pods' cgroups, `/proc`, and the snapshot. Out: findings for `meshctl check`, each with its mend.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use mesh_common::{PORT_INBOUND, PORT_MTLS, PORT_OUTBOUND};
use mesh_core::model::{MtlsMode, Workload};
use mesh_core::snapshot::Snapshot;

use super::{cgroup, discover};
use crate::sys;

const CAP_NET_ADMIN: u32 = 12;
const CAP_NET_RAW: u32 = 13;
/// `TCP_LISTEN` in `/proc/net/tcp`.
const LISTEN: &str = "0A";

/// The attach types that interception uses, with the kernel's numbers.
const ATTACH_TYPES: &[(&str, u32)] = &[
    ("cgroup_inet_ingress", 0),
    ("cgroup_inet_egress", 1),
    ("cgroup_inet_sock_create", 2),
    ("cgroup_sock_ops", 3),
    ("cgroup_inet4_bind", 8),
    ("cgroup_inet6_bind", 9),
    ("cgroup_inet4_connect", 10),
    ("cgroup_inet6_connect", 11),
    ("cgroup_inet4_getpeername", 29),
    ("cgroup_inet6_getpeername", 30),
    ("cgroup_inet4_getsockname", 31),
    ("cgroup_inet6_getsockname", 32),
];

/// Names of processes by which a sandboxed runtime is known, and the runtime.
const SANDBOXES: &[(&str, &str)] = &[
    ("runsc", "gVisor"),
    ("kata-", "Kata"),
    ("qemu-system", "a virtual machine"),
    ("cloud-hyperviso", "a virtual machine"),
    ("firecracker", "a virtual machine"),
];

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeakSpot {
    /// What was looked at, and whose it is.
    pub name: String,
    /// What was found.
    pub found: String,
    /// What to do about it.
    pub mend: &'static str,
}

/// Looks at the enrolled pods of `node` below `pods_root` (or its `units`), and at the cgroups above them.
pub fn weak_spots(
    pods_root: &Path,
    units: bool,
    node: &str,
    snapshot: &Snapshot,
) -> io::Result<Vec<WeakSpot>> {
    let mut found = exclusive_programs(pods_root)?;
    let scanned = if units { discover::scan_units(pods_root, node)? } else { discover::scan(pods_root)? };
    let mut pods: Vec<_> = snapshot.workloads().filter(|w| w.enrolled && *w.node == *node).collect();
    pods.sort_by_key(|pod| (pod.namespace().to_owned(), pod.name.clone()));
    for pod in pods {
        let Some(cgroup) = scanned.get(&pod.uid) else { continue };
        match discover::processes(&cgroup.path) {
            Ok(pids) => look_at(pod, &pids, &mut found),
            // It ended meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Programs that were attached with flags 0 (or, on the pods' cgroup itself, without `BPF_F_ALLOW_MULTI`): the kernel
/// answers EPERM to whoever comes after them.
pub fn exclusive_programs(pods_root: &Path) -> io::Result<Vec<WeakSpot>> {
    const ALLOW_OVERRIDE: u32 = 1;
    const ALLOW_MULTI: u32 = 2;
    let mount = cgroup::mount()?.unwrap_or_else(|| PathBuf::from("/"));
    let mut found = Vec::new();
    for place in pods_root.ancestors().take_while(|place| place.starts_with(&mount)) {
        for (name, number) in ATTACH_TYPES {
            let (count, flags) = match sys::cgroup_programs(place, *number) {
                Ok(answer) => answer,
                // A kernel that does not know this attach type: the list of features says so.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => continue,
                Err(error) => return Err(error),
            };
            let shared = if place == pods_root { ALLOW_MULTI } else { ALLOW_MULTI | ALLOW_OVERRIDE };
            if count != 0 && flags & shared == 0 {
                found.push(WeakSpot {
                    name: format!("exclusive program: {name}"),
                    found: format!("{} has one (attach flags {flags})", place.display()),
                    mend: "nothing can be attached beside or below it (EPERM): have its owner attach it with \
                           BPF_F_ALLOW_MULTI or as a link (`bpftool cgroup show` tells whose it is)",
                });
            }
        }
    }
    Ok(found)
}

fn look_at(pod: &Workload, pids: &[u32], found: &mut Vec<WeakSpot>) {
    let kind = if pod.unit.is_some() { "unit" } else { "pod" };
    let title = |what: &str| format!("{what}: {kind} {}/{}", pod.namespace(), pod.name);
    let (mut raw, mut sandboxed, mut ports) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for pid in pids {
        // A process that ended meanwhile can be read no more, and is no weak spot either.
        let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { continue };
        let comm = field(&status, "Name:").unwrap_or_default();
        if let Some(capabilities) = raw_capabilities(&status) {
            raw.insert(format!("{comm} ({pid}) {capabilities}"));
        }
        if let Some((_, runtime)) = SANDBOXES.iter().find(|(prefix, _)| comm.starts_with(prefix)) {
            sandboxed.insert(format!("{comm} ({pid}): {runtime}"));
        }
        // A unit's table is its whole host's.
        for file in ["tcp", "tcp6"].iter().filter(|_| pod.unit.is_none()) {
            let table = fs::read_to_string(format!("/proc/{pid}/net/{file}")).unwrap_or_default();
            ports.extend(listening(&table));
        }
    }
    ports.retain(|port| {
        ![PORT_OUTBOUND, PORT_INBOUND, PORT_MTLS].contains(port) && pod.mtls.of(*port) == MtlsMode::Permissive
    });
    let mut add = |name, list: BTreeSet<String>, mend| {
        if !list.is_empty() {
            let found_text = list.into_iter().collect::<Vec<_>>().join(", ");
            found.push(WeakSpot { name: title(name), found: found_text, mend });
        }
    };
    add(
        "raw sockets",
        raw,
        "drop NET_RAW and NET_ADMIN in the pod's securityContext (the unit's CapabilityBoundingSet=): with them a process \
         can send around the hooks of its own node (what it sends is still judged at its destination)",
    );
    add(
        "sandboxed runtime",
        sandboxed,
        "the node's kernel does not see its sockets, so nothing of it is in the mesh: label the pod \
         ferromesh.io/enrolled=false, or run it with the node's own runtime",
    );
    add(
        "plaintext is taken",
        ports.iter().map(|port| format!("port {port}")).collect(),
        "set mtls.mode STRICT in a MeshConfig when its last plaintext client has gone",
    );
}

/// What a process may do to pass by the hooks, if anything.
pub(super) fn raw_capabilities(status: &str) -> Option<String> {
    let set = |name| field(status, name).and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(0);
    let (effective, permitted, bounding) = (set("CapEff:"), set("CapPrm:"), set("CapBnd:"));
    let names = |set: u64| {
        let both = [(CAP_NET_RAW, "CAP_NET_RAW"), (CAP_NET_ADMIN, "CAP_NET_ADMIN")];
        both.into_iter().filter(|(bit, _)| set & (1 << bit) != 0).map(|(_, name)| name).collect::<Vec<_>>()
    };
    let (held, within_reach) = (names(effective | permitted), names(bounding));
    match (held.is_empty(), within_reach.is_empty()) {
        (false, _) => Some(format!("has {}", held.join(" and "))),
        (true, false) => Some(format!("may gain {} (bounding set)", within_reach.join(" and "))),
        (true, true) => None,
    }
}

/// The value of a line of `/proc/PID/status`.
fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// The ports of a `/proc/PID/net/tcp` table that listen on more than loopback.
pub(super) fn listening(table: &str) -> Vec<u16> {
    let port = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, state) = (fields.next()?, fields.nth(1)?);
        let (address, port) = local.split_once(':')?;
        // Written as words of the machine's order: the first byte of an IPv4 address is the last pair of its word.
        let loopback = match address.len() {
            8 => address.ends_with("7F"),
            _ => {
                address == "00000000000000000000000001000000"
                    || (address.starts_with("0000000000000000FFFF0000") && address.ends_with("7F"))
            }
        };
        (state == LISTEN && !loopback).then(|| u16::from_str_radix(port, 16).ok()).flatten()
    };
    table.lines().skip(1).filter_map(port).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_capabilities_come_before_those_within_reach() {
        let status = |eff: &str, bnd: &str| {
            format!("Name:\tnginx\nCapInh:\t0\nCapPrm:\t{eff}\nCapEff:\t{eff}\nCapBnd:\t{bnd}\n")
        };
        assert_eq!(raw_capabilities(&status("0000000000002000", "3fff")).unwrap(), "has CAP_NET_RAW");
        assert_eq!(raw_capabilities(&status("3000", "0")).unwrap(), "has CAP_NET_RAW and CAP_NET_ADMIN");
        let gain = raw_capabilities(&status("0000000000000400", "00000000a80425fb")).unwrap();
        assert_eq!(gain, "may gain CAP_NET_RAW (bounding set)");
        assert_eq!(raw_capabilities(&status("0", "0000000000000400")), None);
    }

    #[test]
    fn only_sockets_that_listen_beyond_loopback_count() {
        let table = "  sl  local_address rem_address   st tx_queue\n\
             0: 00000000:1F90 00000000:0000 0A 00000000:00000000\n\
             1: 0100007F:1538 00000000:0000 0A 00000000:00000000\n\
             2: 0100000A:0016 0200000A:9C40 01 00000000:00000000\n\
             3: 00000000000000000000000000000000:0050 0:0 0A 0\n\
             4: 00000000000000000000000001000000:0051 0:0 0A 0\n\
             5: 0000000000000000FFFF00000100007F:0052 0:0 0A 0\n";
        assert_eq!(listening(table), [8080, 80]);
    }
}
