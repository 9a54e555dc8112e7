//! The SYN of a connection that no connect hook has seen: its `connect()` is older than the hooks (what starts at a boot before
//! the agent) or than its pod's enrolment. In: a SYN that is not held, or the answer to one. Out: whether it passes.
//!
//! It would go around the mesh, and with it all that the client says. Of an enrolled pod it is dropped, each time that it
//! is sent; the agent ends its socket (`intercept/older.rs`), so that the client need not wait for its own patience. Of a
//! pod that nobody knows it is dropped until the pod is known. The answer to a SYN that had left before would let the client
//! speak around the mesh just the same, and is dropped likewise; but where a pod that was known joins, what it dialled
//! before was in order, and no connection is lost.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{bpf_sock, bpf_tcp_sock};
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_skb_cgroup_id, bpf_tcp_sock as tcp_sock};
use aya_ebpf::programs::SkBuffContext;
use mesh_common::{POD_ENROLLED, POD_JOINED, Reason, SOCKET_PASSED};
use mesh_ebpf::count;
use mesh_ebpf::heartbeat::{self, Agent};
use mesh_ebpf::maps::AGENTS;

use crate::packet::{DROP, HAS_SKB_NETNS, LOOPBACK_INDEX, PASS};
use crate::{caller, storage};

/// The egress hook's answer.
#[inline(always)]
pub(crate) fn sent(ctx: &SkBuffContext, sk: *mut bpf_sock) -> i32 {
    verdict(ctx, sk, is_first(sk))
}

/// Whether this SYN is not one that is sent again: the kernel counts before it sends.
#[inline(always)]
fn is_first(sk: *mut bpf_sock) -> bool {
    // SAFETY: `sk` is a full TCP socket.
    let tcp: *mut bpf_tcp_sock = unsafe { tcp_sock(sk) };
    // SAFETY: not null; this program type may read the field.
    !tcp.is_null() && unsafe { (*tcp).total_retrans } == 0
}

/// The ingress hook's answer: `sk` waits for one to its SYN.
#[inline(always)]
pub(crate) fn answered(ctx: &SkBuffContext, sk: *mut bpf_sock) -> i32 {
    verdict(ctx, sk, true)
}

/// `begun`: a pod that joins may go on with it.
#[inline(always)]
fn verdict(ctx: &SkBuffContext, sk: *mut bpf_sock, begun: bool) -> i32 {
    // SAFETY: the kernel gives a valid context.
    if unsafe { (*ctx.skb.skb).ifindex } == LOOPBACK_INDEX {
        // To the agent or from it, or within the pod.
        return PASS;
    }
    if storage::of_socket(sk, None).is_some_and(|socket| socket.kind == SOCKET_PASSED) {
        return PASS;
    }
    let Some(reason) = refusal(ctx, begun) else { return PASS };
    count(reason);
    DROP
}

#[inline(always)]
fn refusal(ctx: &SkBuffContext, begun: bool) -> Option<Reason> {
    let pod = caller::pod_of_packet(ctx);
    if pod.is_some_and(|pod| pod.flags & POD_ENROLLED == 0 || (begun && pod.flags & POD_JOINED != 0)) {
        return None;
    }
    // SAFETY: the helper takes this context.
    if AGENTS.get_ptr(&unsafe { bpf_skb_cgroup_id(ctx.skb.skb) }).is_some() {
        return None;
    }
    // Without the namespace a pod on the node's own network could not be told from one that nobody knows.
    let netns = if HAS_SKB_NETNS.load() != 0 {
        // SAFETY: the helper takes this context (where the kernel has it: the loader asked).
        Some(unsafe { bpf_get_netns_cookie(ctx.as_ptr()) })
    } else {
        None
    };
    if netns.is_some_and(caller::is_node) {
        return None;
    }
    match pod {
        Some(pod) if netns.is_some_and(|netns| netns != pod.netns_cookie) => None,
        Some(pod) => match heartbeat::agent(pod) {
            Agent::Lost => None,
            Agent::Away | Agent::Alive => Some(Reason::SynUnseen),
        },
        None if caller::holds_unclassified() && netns.is_some() => Some(Reason::SynUnseenHeld),
        None => None,
    }
}
