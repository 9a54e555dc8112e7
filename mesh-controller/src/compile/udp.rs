//! Which addresses and ports UDP rules speak of, and who is behind them. In: the policies, the enrolled pods and the Services.
//! Out: what every agent holds ahead, for the kernel decides on a datagram at once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;

use mesh_core::model::{PolicyName, Protocol, Workload, WorkloadUid};
use mesh_core::snapshot::UdpBackend;

use super::addresses::Owners;
use super::services;
use crate::index::Index;

/// Every address and port that a datagram to an enrolled pod can be sent to, where a rule names the pod's port.
pub(super) fn targets(
    index: &Index,
    owners: &Owners<'_>,
    workloads: &BTreeMap<WorkloadUid, Workload>,
) -> BTreeMap<SocketAddr, Vec<UdpBackend>> {
    let named = named_ports(index, workloads);
    let mut targets: BTreeMap<SocketAddr, Vec<UdpBackend>> = BTreeMap::new();
    if named.is_empty() {
        return targets;
    }
    let backend = |workload: &WorkloadUid, port| UdpBackend { workload: workload.clone(), port };
    for (uid, ports) in &named {
        for address in workloads.get(uid).into_iter().flat_map(|workload| &workload.addresses) {
            for port in ports {
                targets.insert(SocketAddr::new(*address, *port), vec![backend(uid, *port)]);
            }
        }
    }
    let ruled = |uid: &WorkloadUid, port: u16| named.get(uid).is_some_and(|ports| ports.contains(&port));
    for service in services::compile(Protocol::Udp, index, owners, workloads).values() {
        for port in &service.ports {
            let behind = service.endpoints.iter().filter_map(|endpoint| {
                let (workload, port) = (endpoint.workload.as_ref()?, endpoint.target_port(port.port)?);
                ruled(workload, port).then(|| backend(workload, port))
            });
            let behind: BTreeSet<UdpBackend> = behind.collect();
            if !behind.is_empty() {
                for vip in &service.vips {
                    let at = SocketAddr::new(*vip, port.port);
                    targets.insert(at, behind.iter().cloned().collect());
                }
            }
        }
    }
    targets
}

/// The UDP ports of each enrolled pod that rules name.
fn named_ports(
    index: &Index,
    workloads: &BTreeMap<WorkloadUid, Workload>,
) -> HashMap<WorkloadUid, BTreeSet<u16>> {
    let spoken = index
        .policies
        .values()
        .map(|info| (&info.policy.name, info.policy.udp_ports().collect::<BTreeSet<_>>()));
    let spoken: HashMap<&PolicyName, BTreeSet<u16>> = spoken.filter(|(_, ports)| !ports.is_empty()).collect();
    if spoken.is_empty() {
        return HashMap::new();
    }
    let of = |workload: &Workload| -> BTreeSet<u16> {
        workload.policies.iter().filter_map(|name| spoken.get(name)).flatten().copied().collect()
    };
    let enrolled = workloads.iter().filter(|(_, workload)| workload.enrolled);
    enrolled.map(|(uid, w)| (uid.clone(), of(w))).filter(|(_, ports)| !ports.is_empty()).collect()
}
