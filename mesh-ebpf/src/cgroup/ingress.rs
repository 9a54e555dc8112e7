//! The backstop: what comes in over a link for a socket that an application of a pod listens on.
//!
//! In normal life nothing of the kind reaches an enrolled pod: `sk_lookup` has given it to the agent's listener, and what
//! the agent dials comes over loopback. It does where `sk_lookup` is not attached (yet): a pod that was made while no
//! agent ran, a link that went. Then it is dropped, and the other side tries again. Pods that are known not to be enrolled
//! get it; for those that nobody knows the owner chooses (`HOLD_UNCLASSIFIED`).
//!
//! Whether a socket listens is asked of the kernel, not read from the packet: no header can hide a SYN.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::Global;
use aya_ebpf::helpers::{
    bpf_get_netns_cookie, bpf_sk_fullsock, bpf_skb_ancestor_cgroup_id, bpf_skb_cgroup_id,
};
use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;
use mesh_common::{POD_ENROLLED, POD_LEVELS, Pod, Reason};
use mesh_ebpf::address::IPPROTO_TCP;
use mesh_ebpf::count;
use mesh_ebpf::heartbeat::{self, Agent};
use mesh_ebpf::maps::{AGENTS, PODS};

use crate::caller;

/// Whether the kernel tells this hook the network namespace.
#[unsafe(no_mangle)]
static HAS_SKB_NETNS: Global<u32> = Global::new(0);

const DROP: i32 = 0;
const PASS: i32 = 1;

/// `TCP_LISTEN`.
const LISTENING: u32 = 10;
/// Every network namespace's loopback device.
const LOOPBACK_INDEX: u32 = 1;

/// The hook.
#[cgroup_skb(ingress)]
fn on_ingress(ctx: SkBuffContext) -> i32 {
    // What belongs to a connection is not counted: it is every packet.
    if !is_for_listener(&ctx) {
        return PASS;
    }
    let reason = decide(&ctx);
    count(reason);
    if matches!(reason, Reason::IngressEnrolled | Reason::IngressHeld) { DROP } else { PASS }
}

#[inline(always)]
fn is_for_listener(ctx: &SkBuffContext) -> bool {
    // SAFETY: the kernel gives a valid context, whose socket is the receiving one.
    let sk = unsafe { (*ctx.skb.skb).__bindgen_anon_2.sk };
    if sk.is_null() {
        return false;
    }
    // SAFETY: `sk` is not null.
    let sk = unsafe { bpf_sk_fullsock(sk) };
    if sk.is_null() {
        return false;
    }
    // SAFETY: a full socket, for the run of the program.
    unsafe { (*sk).protocol == IPPROTO_TCP && (*sk).state == LISTENING }
}

#[inline(always)]
fn decide(ctx: &SkBuffContext) -> Reason {
    // SAFETY: the kernel gives a valid context.
    if unsafe { (*ctx.skb.skb).ifindex } == LOOPBACK_INDEX {
        return Reason::IngressLocal;
    }
    // SAFETY: the helper takes this context.
    if AGENTS.get_ptr(&unsafe { bpf_skb_cgroup_id(ctx.skb.skb) }).is_some() {
        return Reason::IngressAgent;
    }
    // SAFETY: the helper takes this context (where the kernel has it: the loader asked).
    if HAS_SKB_NETNS.load() != 0 && caller::is_node(unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }) {
        return Reason::IngressNodeNetns;
    }
    match receiver(ctx) {
        Some(pod) if pod.flags & POD_ENROLLED != 0 => match heartbeat::agent(pod) {
            Agent::Lost => Reason::IngressAgentLost,
            Agent::Away | Agent::Alive => Reason::IngressEnrolled,
        },
        Some(_) => Reason::IngressNotEnrolled,
        // Without the namespace a pod on the node's own network could not be told from one that nobody knows.
        None if caller::holds_unclassified() && HAS_SKB_NETNS.load() != 0 => Reason::IngressHeld,
        None => Reason::IngressUnclassified,
    }
}

/// The pod whose socket this is for, read from the top like a caller's.
#[inline(always)]
fn receiver(ctx: &SkBuffContext) -> Option<&'static Pod> {
    for level in 1..=POD_LEVELS {
        // SAFETY: the helper takes any level and answers 0 below the socket's own.
        let id = unsafe { bpf_skb_ancestor_cgroup_id(ctx.skb.skb, (caller::root_level() + level) as i32) };
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
