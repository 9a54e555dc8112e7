//! May this pod send datagrams there? Its table in `UDP_DENIED` answers: what is not in there passes.
//!
//! Asked by `connect()` of UDP sockets, by each datagram that names its destination, and by each packet of a connected UDP
//! socket. The tables are whole and ahead: nothing is ever asked of the agent. Port 53 always passes, and so does what a pod
//! sends to itself.

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::programs::{SkBuffContext, SockAddrContext};
use mesh_common::{POD_ENROLLED, Pod, Reason, UDP_REFUSED, UdpKey};
use mesh_ebpf::address::{AF_INET, Words, is_mapped, left_alone4, left_alone6, mapped, read_words, to_addr};
use mesh_ebpf::count;
use mesh_ebpf::maps::{UDP_DENIED, UDP_TABLES};

use crate::{caller, connect};

const DNS: u16 = 53;
const IPPROTO_UDP: u32 = 17;
const IPPROTO_UDPLITE: u32 = 136;

const REFUSE: i32 = 0;
const PASS: i32 = 1;

/// The answer to a datagram that names its destination. What passes is not counted: it is every packet.
#[inline(always)]
pub(crate) fn answer(ctx: &SockAddrContext, dst: Words) -> i32 {
    match caller::redirected_pod(ctx) {
        Err(Reason::ConnectNotTcp) => verdict(named(ctx, dst)),
        _ => PASS,
    }
}

/// The outcome for a socket that is not redirected for `reason`: that, or a refusal when it is UDP and a rule denies `dst`.
#[inline(always)]
pub(crate) fn or_refusal(ctx: &SockAddrContext, reason: Reason, dst: Words) -> Reason {
    match reason {
        Reason::ConnectNotTcp => named(ctx, dst).unwrap_or(reason),
        _ => reason,
    }
}

/// The answer to a packet of the UDP socket `sk`: by whom it is connected to, if it is. Rules may have changed since its
/// `connect()`, and it may be older than its pod's enrolment.
#[inline(always)]
pub(crate) fn sent(ctx: &SkBuffContext, sk: *mut bpf_sock) -> i32 {
    // SAFETY: a full socket. Volatile, so that the reads stay four bytes wide.
    let (port, family, ip4) = unsafe {
        (
            core::ptr::addr_of!((*sk).dst_port).cast::<u32>().read_volatile(),
            core::ptr::addr_of!((*sk).family).read_volatile(),
            core::ptr::addr_of!((*sk).dst_ip4).read_volatile(),
        )
    };
    let port = u16::from_be(port as u16);
    if port == 0 {
        // Not connected: each datagram names its destination, and was asked about.
        return PASS;
    }
    let dst = if family == AF_INET {
        mapped(ip4)
    } else {
        // SAFETY: as above.
        unsafe { read_words(&raw const (*sk).dst_ip6) }
    };
    match caller::pod_of_packet(ctx) {
        Some(pod) if pod.flags & POD_ENROLLED != 0 => verdict(refusal(pod, dst, port)),
        _ => PASS,
    }
}

/// Whether the transport is UDP, or its sister where owners let it be.
#[inline(always)]
pub(crate) fn is_udp(protocol: u32) -> bool {
    protocol == IPPROTO_UDP || protocol == IPPROTO_UDPLITE
}

#[inline(always)]
fn verdict(refusal: Option<Reason>) -> i32 {
    match refusal {
        None => PASS,
        Some(reason) => {
            count(reason);
            REFUSE
        }
    }
}

#[inline(always)]
fn named(ctx: &SockAddrContext, dst: Words) -> Option<Reason> {
    // SAFETY: the kernel gives a valid context.
    if !is_udp(unsafe { (*ctx.sock_addr).protocol }) {
        return None;
    }
    refusal(caller::pod()?, dst, connect::port(ctx))
}

#[inline(always)]
fn refusal(pod: &Pod, dst: Words, port: u16) -> Option<Reason> {
    // SAFETY: the slot lives as long as the map; the kernel writes a value of eight bytes at once.
    let table = unsafe { UDP_TABLES.get_ptr(pod.index)?.read_volatile() };
    if table == 0 || port == DNS || is_own(dst, pod) {
        return None;
    }
    if table == UDP_REFUSED {
        return Some(Reason::UdpTableFull);
    }
    let key = UdpKey { table, addr: to_addr(dst), port, pad: [0; 3] };
    UDP_DENIED.get_ptr(&key).map(|_| Reason::UdpDenied)
}

/// Whether the datagram stays in the pod.
#[inline(always)]
fn is_own(dst: Words, pod: &Pod) -> bool {
    let reason = if is_mapped(dst) { left_alone4(dst[3], pod) } else { left_alone6(dst, pod) };
    matches!(reason, Some(Reason::ConnectLoopback | Reason::ConnectOwnAddress))
}
