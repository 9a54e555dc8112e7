//! Which datagrams may a workload not send? A snapshot and a source come in, the denied addresses and ports go out: the
//! source's whole table, since the kernel decides each datagram without asking anybody.
//!
//! A virtual address is denied when any workload behind it is: who of them gets the datagram is chosen after the kernel's
//! hook. What is behind an address and has not reached this agent denies.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::authorize::{Peer, Request, Verdict, decide_traced};
use crate::model::{DNS_PORT, Protocol, Workload};
use crate::snapshot::{Snapshot, UdpBackend};

/// The addresses and ports that `source` may not send datagrams to.
pub fn denied(snapshot: &Snapshot, source: &Workload) -> BTreeSet<SocketAddr> {
    let refused = |at: SocketAddr, backend: &UdpBackend| {
        !decide_behind(snapshot, source, at, backend, &mut |_, _| {})
            .is_some_and(|verdict| verdict.is_allow())
    };
    let named = snapshot.udp().filter(|(at, _)| at.port() != DNS_PORT);
    named.filter(|(at, behind)| behind.iter().any(|b| refused(*at, b))).map(|(at, _)| at).collect()
}

/// Whether `source` may send to one of the workloads behind `at`, telling `trace` each step as [`decide_traced`] does. `None`:
/// the workload has not reached this agent.
pub fn decide_behind(
    snapshot: &Snapshot,
    source: &Workload,
    at: SocketAddr,
    backend: &UdpBackend,
    trace: &mut dyn FnMut(fmt::Arguments<'_>, fmt::Arguments<'_>),
) -> Option<Verdict> {
    let workload = snapshot.workload(&backend.workload)?;
    if workload.uid == source.uid {
        // A workload's datagrams to itself never meet a hook.
        return Some(Verdict::Allow { by: None, audit: Vec::new() });
    }
    // A workload without an address of the family sends nothing there; with one of the other, the rule still speaks of it.
    let of_family = source.addresses.iter().find(|own| own.is_ipv6() == at.is_ipv6());
    let client = of_family.or(source.addresses.first()).copied().unwrap_or(IpAddr::from([0, 0, 0, 0]));
    let peer = Peer::Authenticated(source.identity.clone());
    let request = Request { peer: &peer, client, workload, protocol: Protocol::Udp, port: backend.port };
    Some(decide_traced(snapshot, &request, trace))
}
