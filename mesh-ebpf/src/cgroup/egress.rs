//! Packets that the pods' sockets send: the SYN of a held connection is dropped, and the agent is told of it. So are datagrams
//! of a connected UDP socket that a rule denies by now: no other hook sees its `send()`.
//!
//! The agent dials the destination first and then answers: it connects back (a TCP simultaneous open), refuses by RST, or
//! says by ICMP that nothing leads there. Until then the client waits in `connect()`; its kernel sends the SYN again and
//! again, and each of them asks once more, so that nothing is lost when the ring is full or no agent runs.

use aya_ebpf::bindings::{bpf_sock, bpf_tcp_sock};
use aya_ebpf::helpers::{bpf_skb_ancestor_cgroup_id, bpf_tcp_sock as tcp_sock};
use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;
use mesh_common::{
    Endpoint, HELD_GONE, HELD_MPTCP, HELD_SYN, Held, HeldEvent, OrigKey, POD_LEVELS, Reason, SOCKET_HELD,
    Socket,
};
use mesh_ebpf::address::{AF_INET, IPPROTO_TCP, is_loopback, is_mapped, is_zero, mapped, to_addr, to_words};
use mesh_ebpf::count;
use mesh_ebpf::maps::{HELD, HELD_EVENTS, PODS};

use crate::packet::{DROP, PASS, SYN_SENT};
use crate::{caller, storage, udp, unseen};

const SYN_RECV: u32 = 3;

/// The hook.
#[cgroup_skb(egress)]
fn on_egress(ctx: SkBuffContext) -> i32 {
    let Some(sk) = caller::socket_of_packet(&ctx) else { return PASS };
    // SAFETY: a full socket; this program type may read both fields.
    let (state, protocol) = unsafe { ((*sk).state, (*sk).protocol) };
    if udp::is_udp(protocol) {
        return udp::sent(&ctx, sk);
    }
    if (state != SYN_SENT && state != SYN_RECV) || protocol != IPPROTO_TCP {
        return PASS;
    }
    let socket = storage::of_socket(sk, None);
    let Some(socket) = socket.filter(|socket| socket.kind == SOCKET_HELD) else {
        return if state == SYN_SENT { unseen::sent(&ctx, sk) } else { PASS };
    };
    if state == SYN_SENT {
        // Held whatever comes of telling: a SYN that passed would find nobody there.
        count(tell(&ctx, sk, socket));
        return DROP;
    }
    name_own_address(&ctx, sk, socket);
    PASS
}

/// Writes down what the agent needs for its answer, and wakes it.
#[inline(always)]
fn tell(ctx: &SkBuffContext, sk: *mut bpf_sock, socket: &Socket) -> Reason {
    // SAFETY: `sk` is a full TCP socket.
    let tcp: *mut bpf_tcp_sock = unsafe { tcp_sock(sk) };
    if tcp.is_null() {
        return Reason::HeldFull;
    }
    let held = Held {
        dst: socket.peer,
        client: source(sk, &socket.key),
        // The first byte that is not acknowledged is the SYN.
        // SAFETY: not null; this program type may read the field.
        isn: unsafe { (*tcp).snd_una },
        flags: if storage::is_subflow(sk) { HELD_MPTCP } else { 0 },
        cgroups: cgroups(ctx),
    };
    let key = socket.key;
    if HELD.insert(&key, &held, 0).is_err() {
        return Reason::HeldFull;
    }
    if announce(key, HELD_SYN) { Reason::SynHeld } else { Reason::HeldRingFull }
}

/// A socket that was held before its pod was classified comes from loopback: the pod's address is known by now, and is
/// what `getsockname()` answers.
#[inline(always)]
fn name_own_address(ctx: &SkBuffContext, sk: *mut bpf_sock, socket: &mut Socket) {
    let from = to_words(source(sk, &socket.key).addr);
    // What was dialled on loopback comes from there.
    if !is_loopback(from) || !is_zero(to_words(socket.local)) || is_loopback(to_words(socket.peer.addr)) {
        return;
    }
    for id in cgroups(ctx) {
        if let Some(pod) = PODS.get_ptr(&id) {
            // SAFETY: the entry is replaced as a whole by the agent; its memory is freed only after an RCU grace period.
            let pod = unsafe { &*pod };
            socket.local = if is_mapped(from) { pod.addr4 } else { pod.addr6 };
            return;
        }
    }
}

/// Where the SYN comes from.
#[inline(always)]
fn source(sk: *mut bpf_sock, key: &OrigKey) -> Endpoint {
    if !is_mapped(to_words(key.addr)) {
        // The key of an IPv6 connection is its source.
        return Endpoint { addr: key.addr, port: key.port, pad: 0 };
    }
    // SAFETY: a full socket. Volatile, so that the reads stay four bytes wide.
    let (family, ip4, ip6, port) = unsafe {
        (
            core::ptr::addr_of!((*sk).family).read_volatile(),
            core::ptr::addr_of!((*sk).src_ip4).read_volatile(),
            core::ptr::addr_of!((*sk).src_ip6[3]).read_volatile(),
            core::ptr::addr_of!((*sk).src_port).read_volatile(),
        )
    };
    // A dual-stack socket has its IPv4 address in the last word.
    let ip4 = if family == AF_INET { ip4 } else { ip6 };
    Endpoint { addr: to_addr(mapped(ip4)), port: port as u16, pad: 0 }
}

/// The cgroups of the packet's socket, from the top: where the pod is among them is the agent's to say.
#[inline(always)]
fn cgroups(ctx: &SkBuffContext) -> [u64; POD_LEVELS as usize] {
    let root = caller::root_level();
    let mut ids = [0; POD_LEVELS as usize];
    for (level, id) in (1..).zip(ids.iter_mut()) {
        // SAFETY: the helper takes any level and answers 0 below the socket's own.
        *id = unsafe { bpf_skb_ancestor_cgroup_id(ctx.skb.skb, (root + level) as i32) };
    }
    ids
}

/// Puts an event into the ring; false when it is full.
#[inline(always)]
fn announce(key: OrigKey, kind: u32) -> bool {
    let event = HeldEvent { key, kind, pad: 0 };
    HELD_EVENTS.output::<HeldEvent>(&event, 0).is_ok()
}

/// The client waits no longer. The agent knows when it was `answered`, and is told otherwise.
#[inline(always)]
pub(crate) fn forget(key: OrigKey, answered: bool) {
    // Absent when the map was full: then there is nothing to take back.
    let _absent = HELD.remove(&key);
    if !answered {
        // A full ring: the agent finds out when it next looks the key up.
        let _unheard = announce(key, HELD_GONE);
    }
}
