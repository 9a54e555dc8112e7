//! Whose connection is it? The socket's network namespace and the caller's cgroup ancestors come in, the enrolled pod
//! goes out, or the reason to leave the connection alone.

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::{
    bpf_get_current_ancestor_cgroup_id, bpf_get_current_cgroup_id, bpf_get_netns_cookie, bpf_sk_fullsock,
    bpf_skb_ancestor_cgroup_id,
};
use aya_ebpf::programs::{SkBuffContext, SockAddrContext};
use aya_ebpf::{EbpfContext as _, Global};
use mesh_common::{HOLD_WHILE_ALIVE, POD_CLOSED, POD_ENROLLED, POD_HONEST, POD_LEVELS, Pod, Reason};
use mesh_ebpf::address::{IPPROTO_MPTCP, IPPROTO_TCP, SOCK_STREAM};
use mesh_ebpf::count;
use mesh_ebpf::heartbeat::{self, Agent};
use mesh_ebpf::maps::{AGENTS, PODS};

use crate::device;

/// Cookie of the node's own network namespace.
#[unsafe(no_mangle)]
static NODE_NETNS_COOKIE: Global<u64> = Global::new(0);
/// Whether pods that nobody has classified yet are held; `HOLD_WHILE_ALIVE`: only while the agent is there to classify them.
#[unsafe(no_mangle)]
static HOLD_UNCLASSIFIED: Global<u32> = Global::new(1);
/// Depth of the pods' root in the cgroup hierarchy.
#[unsafe(no_mangle)]
static ROOT_LEVEL: Global<u32> = Global::new(0);

/// The pod whose TCP connection is to be redirected: an enrolled one, or one that nobody has classified yet.
#[inline(always)]
pub(crate) fn redirected_pod(ctx: &SockAddrContext) -> Result<Pod, Reason> {
    // SAFETY: the helper takes any socket-address context.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    if is_node(cookie) {
        return Err(Reason::ConnectNodeNetns);
    }
    let pod = match pod() {
        Some(pod) if pod.flags & POD_ENROLLED == 0 => return Err(Reason::ConnectNotEnrolled),
        Some(pod) if pod.netns_cookie != cookie => return Err(Reason::ConnectForeignNetns),
        Some(pod) => *pod,
        None if !holds_unclassified() || is_agent() => return Err(Reason::ConnectUnclassified),
        // Its address is not known; the egress hook names it when the agent answers.
        None => Pod { netns_cookie: cookie, flags: POD_ENROLLED | POD_HONEST, ..NOBODY },
    };
    // SAFETY: the kernel gives a valid context.
    let (kind, protocol) = unsafe { ((*ctx.sock_addr).type_, (*ctx.sock_addr).protocol) };
    if kind != SOCK_STREAM || (protocol != IPPROTO_TCP && protocol != IPPROTO_MPTCP) {
        return Err(Reason::ConnectNotTcp);
    }
    if device::is_other(ctx, &pod) {
        return Err(Reason::ConnectOtherDevice);
    }
    match heartbeat::agent(&pod) {
        Agent::Lost => return Err(Reason::ConnectAgentLost),
        Agent::Away => count(Reason::ConnectAgentAway),
        Agent::Alive => {}
    }
    if pod.flags & POD_CLOSED != 0 {
        return Err(Reason::ConnectPodClosed);
    }
    Ok(pod)
}

const NOBODY: Pod =
    Pod { netns_cookie: 0, addr4: [0; 16], addr6: [0; 16], index: 0, flags: 0, lost_after: 0, interface: 0 };

/// Whether connections of pods that nobody has classified yet, and to them, wait until somebody has.
#[inline(always)]
pub(crate) fn holds_unclassified() -> bool {
    match HOLD_UNCLASSIFIED.load() {
        0 => false,
        HOLD_WHILE_ALIVE => heartbeat::agent(&NOBODY) == Agent::Alive,
        _ => true,
    }
}

/// Whether the caller is an agent that runs below the pods' root: what it dials for a pod waits for nobody.
#[inline(always)]
pub(crate) fn is_agent() -> bool {
    // SAFETY: the helper has no preconditions.
    AGENTS.get_ptr(&unsafe { bpf_get_current_cgroup_id() }).is_some()
}

/// Whether this is the cookie of the node's own network namespace.
#[inline(always)]
pub(crate) fn is_node(netns_cookie: u64) -> bool {
    netns_cookie == NODE_NETNS_COOKIE.load()
}

/// Depth of the pods' root in the cgroup hierarchy.
#[inline(always)]
pub(crate) fn root_level() -> u32 {
    ROOT_LEVEL.load()
}

/// The pod whose cgroup the caller is in, read from the top: containers cannot make themselves an ancestor.
#[inline(always)]
pub(crate) fn pod() -> Option<&'static Pod> {
    let root = root_level();
    for level in 1..=POD_LEVELS {
        // SAFETY: the helper takes any level and answers 0 below the caller's own.
        let id = unsafe { bpf_get_current_ancestor_cgroup_id((root + level) as i32) };
        if id == 0 {
            return None;
        }
        if let Some(pod) = PODS.get_ptr(&id) {
            // SAFETY: the entry is replaced as a whole by the agent; its memory is freed only after an RCU grace period.
            return Some(unsafe { &*pod });
        }
    }
    None
}

/// The pod whose socket a packet is of or for, read from the top like a caller's.
#[inline(always)]
pub(crate) fn pod_of_packet(ctx: &SkBuffContext) -> Option<&'static Pod> {
    let root = root_level();
    for level in 1..=POD_LEVELS {
        // SAFETY: the helper takes any level and answers 0 below the socket's own.
        let id = unsafe { bpf_skb_ancestor_cgroup_id(ctx.skb.skb, (root + level) as i32) };
        if id == 0 {
            return None;
        }
        if let Some(pod) = PODS.get_ptr(&id) {
            // SAFETY: the entry is replaced as a whole by the agent; its memory is freed only after an RCU grace period.
            return Some(unsafe { &*pod });
        }
    }
    None
}

/// The socket that a packet is of or for, if it is a full one.
#[inline(always)]
pub(crate) fn socket_of_packet(ctx: &SkBuffContext) -> Option<*mut bpf_sock> {
    // SAFETY: the kernel gives a valid context, whose socket may be null.
    let sk = unsafe { (*ctx.skb.skb).__bindgen_anon_2.sk };
    if sk.is_null() {
        return None;
    }
    // SAFETY: the socket is not null.
    let sk = unsafe { bpf_sk_fullsock(sk) };
    if sk.is_null() { None } else { Some(sk) }
}
