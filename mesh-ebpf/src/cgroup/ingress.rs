//! The backstop: what comes in over a link for a socket that an application of a pod listens on, and the answers to SYNs that
//! no connect hook has seen (`unseen.rs`).
//!
//! In normal life nothing of the kind reaches an enrolled pod: `sk_lookup` has given it to the agent's listener, and what
//! the agent dials comes over loopback. It does where `sk_lookup` is not attached (yet): a pod that was made while no
//! agent ran, a link that went. Then it is dropped, and the other side tries again. Pods that are known not to be enrolled
//! get it; for those that nobody knows the owner chooses (`HOLD_UNCLASSIFIED`).
//!
//! Where a pod that was known joins, a handshake to it may be under way: its last part passes, or the client would talk to
//! nobody until the kernel gives the handshake up. It meets this hook with the listener. A SYN it cannot be, and without one
//! nothing begins here: a SYN cookie of the application's is older than the enrolment, too.
//!
//! Whether a socket listens or dials is asked of the kernel, not read from the packet; only what is no SYN for certain is let
//! through for it.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_skb_cgroup_id};
use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;
use mesh_common::{DIAL_MARK, POD_ENROLLED, POD_JOINED, POD_SHARED, Pod, Reason};
use mesh_ebpf::address::{IPPROTO_TCP, Words, mapped};
use mesh_ebpf::heartbeat::{self, Agent};
use mesh_ebpf::maps::AGENTS;
use mesh_ebpf::{count, dialled};

use crate::packet::{DROP, HAS_SKB_NETNS, LOOPBACK_INDEX, PASS, SYN_SENT};
use crate::{caller, unseen};

/// `TCP_LISTEN`.
const LISTENING: u32 = 10;

/// The flag in byte 13 of a TCP header (RFC 9293, section 3.1).
const SYN: u8 = 2;

/// An enrolled unit on its host's network.
const ON_HOST: u32 = POD_ENROLLED | POD_SHARED;

/// The hook.
#[cgroup_skb(ingress)]
fn on_ingress(ctx: SkBuffContext) -> i32 {
    let Some(sk) = caller::socket_of_packet(&ctx) else { return PASS };
    // SAFETY: a full socket; this program type may read both fields.
    let (state, protocol) = unsafe { ((*sk).state, (*sk).protocol) };
    if protocol != IPPROTO_TCP {
        return PASS;
    }
    if state == SYN_SENT {
        return unseen::answered(&ctx, sk);
    }
    // What belongs to a connection is not counted: it is every packet.
    if state != LISTENING {
        return PASS;
    }
    let reason = decide(&ctx);
    count(reason);
    if matches!(reason, Reason::IngressEnrolled | Reason::IngressHeld) { DROP } else { PASS }
}

#[inline(always)]
fn decide(ctx: &SkBuffContext) -> Reason {
    let pod = caller::pod_of_packet(ctx);
    if let Some(pod) = pod.filter(|pod| pod.flags & ON_HOST == ON_HOST) {
        return match () {
            () if is_dialled(ctx, pod) => Reason::IngressDialled,
            () if heartbeat::agent(pod) == Agent::Lost => Reason::IngressAgentLost,
            () if pod.flags & POD_JOINED != 0 && !may_be_syn(ctx) => Reason::IngressBegun,
            () => Reason::IngressEnrolled,
        };
    }
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
    match pod {
        Some(pod) if pod.flags & POD_ENROLLED != 0 => match heartbeat::agent(pod) {
            Agent::Lost => Reason::IngressAgentLost,
            _ if pod.flags & POD_JOINED != 0 && !may_be_syn(ctx) => Reason::IngressBegun,
            Agent::Away | Agent::Alive => Reason::IngressEnrolled,
        },
        Some(_) => Reason::IngressNotEnrolled,
        // Without the namespace a pod on the node's own network could not be told from one that nobody knows.
        None if caller::holds_unclassified() && HAS_SKB_NETNS.load() != 0 => Reason::IngressHeld,
        None => Reason::IngressUnclassified,
    }
}

/// Whether the agent dials, on a host's network where others speak from loopback as well. What cannot be read is not the agent's,
/// which sends no IPv6 extension headers.
#[inline(always)]
fn is_dialled(ctx: &SkBuffContext, pod: &Pod) -> bool {
    // SAFETY: the kernel gives a valid context.
    if unsafe { (*ctx.skb.skb).mark } != DIAL_MARK {
        return false;
    }
    let (from, port) = match ctx.load::<u8>(0).map(|first| (first >> 4, first & 0xf)) {
        Ok((4, words)) => match (ctx.load::<u32>(12), ctx.load::<u16>(usize::from(words) * 4)) {
            (Ok(from), Ok(port)) => (mapped(from), port),
            _ => return false,
        },
        Ok((6, _)) if ctx.load::<u8>(6) == Ok(IPPROTO_TCP as u8) => {
            match (ctx.load::<Words>(8), ctx.load::<u16>(40)) {
                (Ok(from), Ok(port)) => (from, port),
                _ => return false,
            }
        }
        _ => return false,
    };
    dialled::by_agent(pod.netns_cookie, from, u16::from_be(port))
}

/// Whether this TCP segment has the SYN flag, or it cannot be told (behind IPv6 extension headers).
#[inline(always)]
fn may_be_syn(ctx: &SkBuffContext) -> bool {
    let Ok(first) = ctx.load::<u8>(0) else { return true };
    let header = match first >> 4 {
        4 => usize::from(first & 0xf) * 4,
        6 if ctx.load::<u8>(6) == Ok(IPPROTO_TCP as u8) => 40,
        _ => return true,
    };
    !ctx.load::<u8>(header + 13).is_ok_and(|flags| flags & SYN == 0)
}
