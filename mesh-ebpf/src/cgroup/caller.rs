//! Whose connection is it? The socket's network namespace and the caller's cgroup ancestors come in, the enrolled pod
//! goes out, or the reason to leave the connection alone.

use aya_ebpf::helpers::{bpf_get_current_ancestor_cgroup_id, bpf_get_netns_cookie};
use aya_ebpf::programs::SockAddrContext;
use aya_ebpf::{EbpfContext as _, Global};
use mesh_common::{POD_CLOSED, POD_ENROLLED, POD_LEVELS, Pod, Reason};
use mesh_ebpf::address::{IPPROTO_MPTCP, IPPROTO_TCP, SOCK_STREAM};
use mesh_ebpf::maps::PODS;

/// Cookie of the node's own network namespace.
#[unsafe(no_mangle)]
static NODE_NETNS_COOKIE: Global<u64> = Global::new(0);
/// Depth of the pods' root in the cgroup hierarchy.
#[unsafe(no_mangle)]
static ROOT_LEVEL: Global<u32> = Global::new(0);

/// The enrolled pod whose TCP connection this is.
#[inline(always)]
pub(crate) fn enrolled_pod(ctx: &SockAddrContext) -> Result<&'static Pod, Reason> {
    // SAFETY: the helper takes any socket-address context.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    if is_node(cookie) {
        return Err(Reason::ConnectNodeNetns);
    }
    let pod = pod().ok_or(Reason::ConnectUnclassified)?;
    if pod.flags & POD_ENROLLED == 0 {
        return Err(Reason::ConnectNotEnrolled);
    }
    if pod.netns_cookie != cookie {
        return Err(Reason::ConnectForeignNetns);
    }
    // SAFETY: the kernel gives a valid context.
    let (kind, protocol) = unsafe { ((*ctx.sock_addr).type_, (*ctx.sock_addr).protocol) };
    if kind != SOCK_STREAM || (protocol != IPPROTO_TCP && protocol != IPPROTO_MPTCP) {
        return Err(Reason::ConnectNotTcp);
    }
    if pod.flags & POD_CLOSED != 0 {
        return Err(Reason::ConnectPodClosed);
    }
    Ok(pod)
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
