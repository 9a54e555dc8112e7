//! Which ports of a pod an application listens on: counted as sockets begin and cease to listen.
//!
//! The pod's `sk_lookup` refuses what comes for any other port at once, as if no agent stood in between. What began to
//! listen before these hooks were there is the agent's to find (`SEEDED`).

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{BPF_NOEXIST, BPF_SOCK_OPS_STATE_CB_FLAG};
use aya_ebpf::helpers::bpf_get_netns_cookie;
use aya_ebpf::programs::SockOpsContext;
use core::intrinsics::{AtomicOrdering, atomic_xadd, atomic_xsub};
use mesh_common::{PortKey, Reason};
use mesh_ebpf::address::{AF_INET, LOOPBACK6, equal, is_mapped, mapped, read_words};
use mesh_ebpf::maps::LISTENING;

use crate::caller;

/// A socket begins to listen.
#[inline(always)]
pub(crate) fn began(ctx: &SockOpsContext) -> Option<Reason> {
    let key = key(ctx)?;
    // Before the count, so that none stays without someone to take it back.
    if ctx.set_cb_flags((ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG) as i32).is_err() {
        return Some(Reason::ListenNotCounted);
    }
    if let Some(count) = LISTENING.get_ptr_mut(&key) {
        add(count);
        return Some(Reason::ListenBegan);
    }
    if LISTENING.insert(&key, &1, BPF_NOEXIST as u64).is_ok() {
        return Some(Reason::ListenBegan);
    }
    // Somebody else was first, or the map is full: the agent's next look finds the port.
    Some(match LISTENING.get_ptr_mut(&key) {
        Some(count) => {
            add(count);
            Reason::ListenBegan
        }
        None => Reason::ListenNotCounted,
    })
}

/// A listening socket is closed.
#[inline(always)]
pub(crate) fn ended(ctx: &SockOpsContext) -> Option<Reason> {
    let count = LISTENING.get_ptr_mut(&key(ctx)?)?;
    // SAFETY: as in `add`. A socket that was not counted has no state callbacks: this one was.
    unsafe { atomic_xsub::<u64, u64, { AtomicOrdering::Relaxed }>(count, 1) };
    Some(Reason::ListenEnded)
}

/// An accepted socket inherits its listener's callbacks, which it does not need.
#[inline(always)]
pub(crate) fn disinherit(ctx: &SockOpsContext) {
    let flags = ctx.cb_flags();
    if flags & BPF_SOCK_OPS_STATE_CB_FLAG != 0 {
        // Costs a callback for each further state when it fails, nothing else.
        let _still_followed = ctx.set_cb_flags((flags & !BPF_SOCK_OPS_STATE_CB_FLAG) as i32);
    }
}

/// The kernel's target has atomic additions, but `core` offers them only to targets that can also compare and swap.
#[inline(always)]
fn add(count: *mut u64) {
    // SAFETY: aligned, and alive until an RCU grace period after its removal.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(count, 1) };
}

/// The port in its namespace; none when only the pod itself can reach it, or when it is the node's.
#[inline(always)]
fn key(ctx: &SockOpsContext) -> Option<PortKey> {
    // SAFETY: the kernel gives a valid context.
    let ops = unsafe { &*ctx.ops };
    let local = if ops.family == AF_INET {
        mapped(ops.local_ip4)
    } else {
        // SAFETY: sock_ops may read this field.
        unsafe { read_words(&raw const ops.local_ip6) }
    };
    if equal(local, LOOPBACK6) || (is_mapped(local) && u32::from_be(local[3]) >> 24 == 127) {
        return None;
    }
    // SAFETY: the helper takes this context.
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let port = ops.local_port as u16;
    (!caller::is_node(netns_cookie)).then_some(PortKey { netns_cookie, port, pad: [0; 3] })
}
