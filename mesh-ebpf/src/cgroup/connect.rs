//! What both families of `connect()` share: the order of the questions, and the bookkeeping of an answer.
//!
//! A connection that is left alone keeps its destination; one that is redirected keeps it in the socket's storage; one
//! that cannot be redirected is refused, for it must not go out in plaintext; one to a virtual address without an
//! endpoint, which the agent would accept before it knows, is refused as a closed port would.

use aya_ebpf::helpers::{bpf_bind, bpf_set_retval};
use aya_ebpf::programs::SockAddrContext;
use mesh_common::{
    Endpoint, OrigKey, POD_HONEST, PORT_HELD, PORT_OUTBOUND, Pod, Reason, SOCKET_HELD, SOCKET_OUTBOUND,
    Socket,
};
use mesh_ebpf::address::{AF_INET, AF_INET6, IPPROTO_TCP, Words, is_loopback, is_zero, to_addr};
use mesh_ebpf::count;
use mesh_ebpf::maps::UNSERVED;

use crate::{device, storage};

/// With no error set, the caller gets EPERM.
const REFUSE: i32 = 0;
const ECONNREFUSED: i32 = -111;
const PASS: i32 = 1;

/// Counts the outcome and turns it into the hook's answer.
#[inline(always)]
pub(crate) fn answer(ctx: &SockAddrContext, outcome: Result<(), Reason>) -> i32 {
    match outcome {
        Ok(()) => {
            count(Reason::ConnectRedirected);
            PASS
        }
        Err(
            reason @ (Reason::ConnectNoStorage
            | Reason::ConnectNoToken
            | Reason::ConnectPodClosed
            | Reason::ConnectDeviceKept
            | Reason::UdpDenied
            | Reason::UdpTableFull),
        ) => {
            count(reason);
            REFUSE
        }
        Err(reason @ Reason::ConnectUnserved) => {
            count(reason);
            // SAFETY: connect hooks may set the error that the caller gets.
            unsafe { bpf_set_retval(ECONNREFUSED) };
            REFUSE
        }
        // Loopback needs no mark: nothing of it is dropped.
        Err(
            reason @ (Reason::ConnectNeverRedirected
            | Reason::ConnectForeignNetns
            | Reason::ConnectOtherDevice),
        ) => {
            count(reason);
            storage::pass(ctx);
            PASS
        }
        Err(reason) => {
            count(reason);
            // A socket may have been redirected at an earlier attempt; what it shows from now on is the kernel's truth.
            storage::forget(ctx);
            PASS
        }
    }
}

/// Which kind of redirected socket this one becomes: held for the agent's answer, or accepted at once.
#[inline(always)]
pub(crate) fn kind(ctx: &SockAddrContext, pod: &Pod) -> u32 {
    // SAFETY: the kernel gives a valid context.
    let protocol = unsafe { (*ctx.sock_addr).protocol };
    // Where the kernel shows this hook an MPTCP socket itself, not its subflow, the subflow's SYN could not be told apart.
    if pod.flags & POD_HONEST != 0 && protocol == IPPROTO_TCP { SOCKET_HELD } else { SOCKET_OUTBOUND }
}

/// The agent's port for sockets of a kind.
#[inline(always)]
pub(crate) fn port_of(kind: u32) -> u16 {
    if kind == SOCKET_HELD { PORT_HELD } else { PORT_OUTBOUND }
}

/// Unless it would be accepted and nobody serves the destination: saves it, and keeps the socket's own address true. `own` is the pod's address of the family.
#[inline(always)]
pub(crate) fn remember(
    ctx: &SockAddrContext,
    dst: Words,
    (key, kind): (OrigKey, u32),
    own: Words,
) -> Result<(), Reason> {
    let peer = Endpoint { addr: to_addr(dst), port: port(ctx), pad: 0 };
    // The agent refuses a held connection itself, and writes its record; an accepted one it could only reset.
    if kind == SOCKET_OUTBOUND && UNSERVED.get_ptr(&peer).is_some() {
        return Err(Reason::ConnectUnserved);
    }
    if !device::release(ctx) {
        return Err(Reason::ConnectDeviceKept);
    }
    let mut socket = Socket { peer, kind, key, local: [0; 16] };
    let Some(saved) = storage::save(ctx, &mut socket) else { return Err(Reason::ConnectNoStorage) };
    // Loopback is dialled from loopback, where that is not the pod's alone and so redirected.
    if is_zero(own) || is_loopback(dst) {
        return Ok(());
    }
    match bound(ctx) {
        Bound::Address => {}
        Bound::No if bind(ctx, own) => {}
        Bound::No => {
            count(Reason::ConnectBindFailed);
            saved.local = to_addr(own);
        }
        Bound::Port => saved.local = to_addr(own),
    }
    Ok(())
}

/// The port that the caller named, host order.
#[inline(always)]
pub(crate) fn port(ctx: &SockAddrContext) -> u16 {
    // SAFETY: the kernel gives a valid context. Volatile, so that the read stays four bytes wide.
    let raw = unsafe { core::ptr::addr_of!((*ctx.sock_addr).user_port).read_volatile() };
    u16::from_be(raw as u16)
}

/// Sets the dialled port, host order.
#[inline(always)]
pub(crate) fn set_port(ctx: &SockAddrContext, port: u16) {
    // SAFETY: connect hooks may write this field.
    unsafe { core::ptr::addr_of_mut!((*ctx.sock_addr).user_port).write_volatile(port.to_be() as u32) };
}

/// What the application bound its socket to before `connect()`.
enum Bound {
    /// Nothing.
    No,
    /// A port at the wildcard address: the kernel would choose a loopback source, and `bpf_bind` comes too late.
    Port,
    /// An address of its own choice, which stays.
    Address,
}

#[inline(always)]
fn bound(ctx: &SockAddrContext) -> Bound {
    // SAFETY: the context's socket is valid; these fields may be read by this program type.
    let (family, ip4, ip6, port) = unsafe {
        let sk = (*ctx.sock_addr).__bindgen_anon_1.sk;
        (
            core::ptr::addr_of!((*sk).family).read_volatile(),
            core::ptr::addr_of!((*sk).src_ip4).read_volatile(),
            core::ptr::addr_of!((*sk).src_ip6[0]).read_volatile()
                | core::ptr::addr_of!((*sk).src_ip6[1]).read_volatile()
                | core::ptr::addr_of!((*sk).src_ip6[2]).read_volatile()
                | core::ptr::addr_of!((*sk).src_ip6[3]).read_volatile(),
            core::ptr::addr_of!((*sk).src_port).read_volatile(),
        )
    };
    if ip4 != 0 || (family == AF_INET6 && ip6 != 0) {
        Bound::Address
    } else if port != 0 {
        Bound::Port
    } else {
        Bound::No
    }
}

#[repr(C)]
struct SockAddrIn {
    family: u16,
    port: u16,
    addr: u32,
    zero: [u32; 2],
}

#[repr(C)]
struct SockAddrIn6 {
    family: u16,
    port: u16,
    flow: u32,
    addr: Words,
    scope: u32,
}

/// Binds the socket to the pod's address, port chosen later.
#[inline(always)]
fn bind(ctx: &SockAddrContext, own: Words) -> bool {
    // SAFETY: the kernel gives a valid context.
    let family = unsafe { (*ctx.sock_addr).family };
    let result = if family == AF_INET {
        let mut sa = SockAddrIn { family: AF_INET as u16, port: 0, addr: own[3], zero: [0; 2] };
        // SAFETY: the address is on the stack and of the given length.
        unsafe { bpf_bind(ctx.sock_addr, (&raw mut sa).cast(), size_of::<SockAddrIn>() as i32) }
    } else {
        let mut sa = SockAddrIn6 { family: AF_INET6 as u16, port: 0, flow: 0, addr: own, scope: 0 };
        // SAFETY: as above.
        unsafe { bpf_bind(ctx.sock_addr, (&raw mut sa).cast(), size_of::<SockAddrIn6>() as i32) }
    };
    result == 0
}
