//! What the kernel is told of a pod. In: a pod of this node, and its network namespace. Out: its `PODS` entry.

use std::net::IpAddr;
use std::time::Duration;

use mesh_common::{Addr, POD_ENROLLED, POD_HONEST, POD_JOINED, POD_PORTS_KNOWN, POD_SHARED, Pod};
use mesh_core::model::{ConnectMode, Workload};

use super::{Local, NetNs};
use crate::intercept::maps::addr;

/// The interface that has all of a pod's addresses; 0 when there is no such one: then any that a socket is bound to counts as it.
pub(super) fn interface(netns: &NetNs, workload: &Workload) -> u32 {
    match netns.interface_of(&workload.addresses) {
        Ok(index) => index.unwrap_or_default(),
        Err(error) => {
            tracing::warn!(pod = %workload.uid, %error, "looking for the pod's interface");
            0
        }
    }
}

/// What the kernel is told of a pod.
pub(super) fn entry(pod: &Local) -> Pod {
    let honest = if pod.connect == ConnectMode::Honest { POD_HONEST } else { 0 };
    let ports = if pod.ports_known { POD_PORTS_KNOWN } else { 0 };
    let joined = if pod.joined.is_some() { POD_JOINED } else { 0 };
    let (shared, addresses) = match &pod.on_host {
        Some(addresses) => (POD_SHARED, addresses),
        None => (0, &pod.addresses),
    };
    Pod {
        netns_cookie: pod.netns.as_ref().map_or(0, |netns| netns.cookie),
        addr4: of_family(addresses, false),
        addr6: of_family(addresses, true),
        index: pod.index,
        flags: if pod.netns.is_some() { POD_ENROLLED | honest | ports | joined | shared } else { 0 },
        lost_after: seconds(pod.opens_after),
        interface: pod.interface,
    }
}

/// How many seconds the kernel waits for a lost agent; 0: for ever.
pub(super) fn seconds(opens_after: Option<Duration>) -> u32 {
    opens_after.map_or(0, |after| u32::try_from(after.as_secs()).unwrap_or(u32::MAX))
}

/// The address of a family; all zero when there is none.
fn of_family(addresses: &[IpAddr], ipv6: bool) -> Addr {
    let found = addresses.iter().find(|address| address.is_ipv6() == ipv6);
    found.map(|address| addr(*address)).unwrap_or_default()
}
