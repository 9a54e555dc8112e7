//! `bind()` of a pod's stream socket: the agent's ports and the loopback addresses that name connections are not for pods.
//!
//! Who held one of those ports would be given the pod's connections while the agent is away, and keep the agent from
//! serving the pod; who bound a token address would look like the agent to its neighbours. Enrolled or not: a pod must
//! not prepare for its enrolment either. A pod that nobody has classified yet is not kept from it; its enrolment then
//! finds the port taken, and closes the pod.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_set_retval};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use mesh_common::{
    CLIENT_TOKEN_MASK, CLIENT_TOKEN_PREFIX, ORIG_TOKEN_MASK, ORIG_TOKEN_PREFIX, PORT_HELD, PORT_INBOUND,
    PORT_MTLS, PORT_OUTBOUND, Reason,
};
use mesh_ebpf::address::{SOCK_STREAM, Words, is_mapped, mapped, read_words};
use mesh_ebpf::count;

use crate::{caller, connect};

const REFUSE: i32 = 0;
const PASS: i32 = 1;
const EADDRINUSE: i32 = -98;

/// The IPv4 hook.
#[cgroup_sock_addr(bind4)]
fn on_bind4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the kernel gives a valid context.
    let ip4 = unsafe { core::ptr::addr_of!((*ctx.sock_addr).user_ip4).read_volatile() };
    answer(&ctx, mapped(ip4))
}

/// The IPv6 hook, v4-mapped addresses included.
#[cgroup_sock_addr(bind6)]
fn on_bind6(ctx: SockAddrContext) -> i32 {
    // SAFETY: the kernel gives a valid context.
    let ip6 = unsafe { read_words(&raw const (*ctx.sock_addr).user_ip6) };
    answer(&ctx, ip6)
}

#[inline(always)]
fn answer(ctx: &SockAddrContext, address: Words) -> i32 {
    let reason = decide(ctx, address);
    count(reason);
    if matches!(reason, Reason::BindPassed | Reason::BindNotAPod) {
        return PASS;
    }
    // SAFETY: bind hooks may set the error that the caller gets.
    unsafe { bpf_set_retval(EADDRINUSE) };
    REFUSE
}

#[inline(always)]
fn decide(ctx: &SockAddrContext, address: Words) -> Reason {
    // SAFETY: the kernel gives a valid context.
    let kind = unsafe { core::ptr::addr_of!((*ctx.sock_addr).type_).read_volatile() };
    let refusal = if kind != SOCK_STREAM {
        return Reason::BindPassed;
    } else if matches!(connect::port(ctx), PORT_OUTBOUND | PORT_HELD | PORT_INBOUND | PORT_MTLS) {
        Reason::BindReservedPort
    } else if is_token(address) {
        Reason::BindTokenAddress
    } else {
        return Reason::BindPassed;
    };
    // SAFETY: the helper takes any socket-address context.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // The agents' own pods may be known like any other, and dial from these addresses.
    if caller::is_node(cookie) || caller::is_agent() || caller::pod().is_none() {
        Reason::BindNotAPod
    } else {
        refusal
    }
}

/// Whether connections are told apart by this address.
#[inline(always)]
fn is_token(address: Words) -> bool {
    let host = u32::from_be(address[3]);
    is_mapped(address)
        && (host & !CLIENT_TOKEN_MASK == CLIENT_TOKEN_PREFIX || host & !ORIG_TOKEN_MASK == ORIG_TOKEN_PREFIX)
}
