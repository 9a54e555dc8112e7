//! `mesh-lookup.o`: one `sk_lookup` instance for each enrolled pod's network namespace.
//!
//! A SYN for the pod comes in; the agent's listener of the pod goes out. What the pod sends to itself, and what the agent
//! dials from loopback, finds the application. An empty listener slot (the agent is away) drops: never plaintext around
//! the agent. The pod is a constant of the instance, since the kernel has no netns cookie to give here.
//!
//! On a host's own network (`POD_SHARED`) the ports of enrolled units are the agent's, wherever a SYN comes from, unless the
//! agent itself dials; every other port is left alone, also when the agent is away.

#![no_std]
#![no_main]

use aya_ebpf::Global;
use aya_ebpf::bindings::{BPF_SK_LOOKUP_F_NO_REUSEPORT, bpf_sk_lookup};
use aya_ebpf::macros::sk_lookup;
use aya_ebpf::programs::SkLookupContext;
use mesh_common::{
    LISTENERS_PER_POD, ListenerSlot, POD_PORTS_KNOWN, POD_SHARED, PORT_MTLS, Pod, PortKey, Reason, SteeredKey,
};
use mesh_ebpf::address::{AF_INET, IPPROTO_TCP, LOOPBACK6, Words, equal, mapped, read_words, to_addr};
use mesh_ebpf::heartbeat::{self, Agent};
use mesh_ebpf::maps::{LISTENERS, LISTENING, PODS, SEEDED, STEERED};
use mesh_ebpf::{count, dialled};

/// The pod's index: names its slots in `LISTENERS`.
#[unsafe(no_mangle)]
static POD_INDEX: Global<u32> = Global::new(0);

/// The pod's cgroup: its key in `PODS`.
#[unsafe(no_mangle)]
static POD_CGROUP: Global<u64> = Global::new(0);

const SK_DROP: u32 = 0;
const SK_PASS: u32 = 1;

/// The hook.
#[sk_lookup]
fn steer(ctx: SkLookupContext) -> u32 {
    let (verdict, reason) = decide(&ctx);
    count(reason);
    verdict
}

#[inline(always)]
fn decide(ctx: &SkLookupContext) -> (u32, Reason) {
    // SAFETY: the kernel gives a valid context; every field below may be read by this program type.
    let lookup = unsafe { &*ctx.lookup };
    if lookup.protocol != IPPROTO_TCP {
        return (SK_PASS, Reason::LookupNotTcp);
    }
    let v4 = lookup.family == AF_INET;
    // Read once, and volatile: the kernel refuses a pointer to the field that is kept for later.
    // SAFETY: as above.
    let port = unsafe { (&raw const lookup.local_port).read_volatile() } as u16;
    if let Some(host) = pod().filter(|pod| pod.flags & POD_SHARED != 0) {
        return match decide_on_host(lookup, host, (v4, port)) {
            Some(reason) => (SK_PASS, reason),
            None => assign(ctx, inbound_slot(v4), Reason::LookupPlain),
        };
    }
    let local = if v4 { local4(lookup) } else { local6(lookup) };
    if local {
        return (SK_PASS, Reason::LookupLocal);
    }
    let mtls = port == PORT_MTLS;
    if !mtls && let Some(pod) = pod() {
        if heartbeat::agent(pod) == Agent::Lost {
            return (SK_PASS, Reason::LookupAgentLost);
        }
        if pod.flags & POD_PORTS_KNOWN != 0 && !is_open(pod, port) {
            return (SK_DROP, Reason::LookupClosedPort);
        }
    }
    match (mtls, v4) {
        (true, true) => assign(ctx, ListenerSlot::MtlsV4, Reason::LookupMtls),
        (true, false) => assign(ctx, ListenerSlot::MtlsV6, Reason::LookupMtls),
        (false, _) => assign(ctx, inbound_slot(v4), Reason::LookupPlain),
    }
}

/// Why a SYN on a host's network is left alone, if it is.
#[inline(always)]
fn decide_on_host(lookup: &bpf_sk_lookup, host: &Pod, (v4, port): (bool, u16)) -> Option<Reason> {
    let (from, to) = if v4 {
        (mapped(lookup.remote_ip4), mapped(lookup.local_ip4))
    } else {
        // SAFETY: sk_lookup may read these fields.
        unsafe { (read_words(&raw const lookup.remote_ip6), read_words(&raw const lookup.local_ip6)) }
    };
    // SAFETY: as above.
    let from_port = u16::from_be(unsafe { (&raw const lookup.remote_port).read_volatile() });
    let any = if v4 { mapped(0) } else { [0; 4] };
    let Some(lost_after) = steered(host, to, port).or_else(|| steered(host, any, port)) else {
        return Some(Reason::LookupNotEnrolled);
    };
    if dialled::by_agent(host.netns_cookie, from, from_port) {
        Some(Reason::LookupDialled)
    } else if heartbeat::silent_for(lost_after) == Agent::Lost {
        Some(Reason::LookupAgentLost)
    } else {
        None
    }
}

/// Where an enrolled unit listens: how long its owner would wait for a lost agent.
#[inline(always)]
fn steered(host: &Pod, address: Words, port: u16) -> Option<u32> {
    let key = SteeredKey { netns_cookie: host.netns_cookie, addr: to_addr(address), port, pad: [0; 3] };
    // SAFETY: the slot lives until an RCU grace period after its removal; the kernel writes a value of four bytes at once.
    STEERED.get_ptr(&key).map(|lost_after| unsafe { lost_after.read_volatile() })
}

/// The slot of the listener for plaintext.
#[inline(always)]
fn inbound_slot(v4: bool) -> ListenerSlot {
    if v4 { ListenerSlot::InboundV4 } else { ListenerSlot::InboundV6 }
}

/// Gives the SYN to a listener of the agent.
#[inline(always)]
fn assign(ctx: &SkLookupContext, slot: ListenerSlot, reason: Reason) -> (u32, Reason) {
    let index = POD_INDEX.load() * LISTENERS_PER_POD + slot as u32;
    // Without NO_REUSEPORT a pod's process could join the listener's group and be given the connection.
    match LISTENERS.redirect_sk_lookup(ctx, index, BPF_SK_LOOKUP_F_NO_REUSEPORT as u64) {
        Ok(()) => (SK_PASS, reason),
        Err(-2) => (SK_DROP, Reason::LookupEmptySlot),
        Err(_) => (SK_DROP, Reason::LookupAssignFailed),
    }
}

/// What the kernel was told of this pod.
#[inline(always)]
fn pod() -> Option<&'static Pod> {
    // SAFETY: the entry is replaced as a whole by the agent; its memory is freed only after an RCU grace period.
    PODS.get_ptr(&POD_CGROUP.load()).map(|pod| unsafe { &*pod })
}

/// Whether an application of the pod listens on `port`.
#[inline(always)]
fn is_open(pod: &Pod, port: u16) -> bool {
    let key = PortKey { netns_cookie: pod.netns_cookie, port, pad: [0; 3] };
    // SAFETY: the slot lives until an RCU grace period after its removal.
    let counted = LISTENING.get_ptr(&key).is_some_and(|count| unsafe { count.read_volatile() } != 0);
    counted || SEEDED.get_ptr(&key).is_some()
}

/// From loopback (the agent dials the application), to loopback (a redirected connection comes from the pod's own
/// address), or from the address that it goes to. Nothing of this can come over a link: the stack drops it there.
#[inline(always)]
fn local4(lookup: &bpf_sk_lookup) -> bool {
    let (remote, local) = (lookup.remote_ip4, lookup.local_ip4);
    remote == local || u32::from_be(remote) >> 24 == 127 || u32::from_be(local) >> 24 == 127
}

#[inline(always)]
fn local6(lookup: &bpf_sk_lookup) -> bool {
    // SAFETY: sk_lookup may read these fields.
    let (remote, local) =
        unsafe { (read_words(&raw const lookup.remote_ip6), read_words(&raw const lookup.local_ip6)) };
    equal(remote, local) || equal(remote, LOOPBACK6) || equal(local, LOOPBACK6)
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
