//! The socket's own storage: what it shows instead of its real peer.

use aya_ebpf::Global;
use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock};
use aya_ebpf::helpers::{bpf_sk_storage_get, bpf_skc_to_mptcp_sock};
use aya_ebpf::programs::SockAddrContext;
use mesh_common::{SOCKET_PASSED, Socket};
use mesh_ebpf::maps::SOCKETS;

/// Whether the kernel has MPTCP.
#[unsafe(no_mangle)]
static HAS_MPTCP: Global<u32> = Global::new(0);

/// The storage of the context's socket, if it has any.
#[inline(always)]
pub(crate) fn of_context(ctx: &SockAddrContext) -> Option<&'static mut Socket> {
    // SAFETY: the context's socket is valid for the run of the program.
    let storage = unsafe { SOCKETS.get_ptr_mut(ctx) };
    // SAFETY: null, or memory that lives as long as the socket; one caller owns a socket's connect at a time.
    unsafe { storage.as_mut() }
}

/// Makes or replaces the storage of the context's socket.
#[inline(always)]
pub(crate) fn save(ctx: &SockAddrContext, value: &mut Socket) -> Option<&'static mut Socket> {
    let copy = *value;
    // SAFETY: as above.
    let storage = unsafe { SOCKETS.get_or_insert_ptr_mut(ctx, Some(value)).as_mut() }?;
    *storage = copy;
    if let Some(parent) = of_parent(ctx, Some(value)) {
        *parent = copy;
    }
    Some(storage)
}

/// The context's socket is not redirected (any more): what it shows from now on is the kernel's truth.
#[inline(always)]
pub(crate) fn forget(ctx: &SockAddrContext) {
    if let Some(stale) = of_context(ctx) {
        stale.kind = 0;
    }
    if let Some(stale) = of_parent(ctx, None) {
        stale.kind = 0;
    }
}

/// The context's socket goes its own way by a decision of the connect hook; the egress hook lets such a SYN out.
#[inline(always)]
pub(crate) fn pass(ctx: &SockAddrContext) {
    // Without storage the SYN will be dropped: closed rather than open.
    let _saved = save(ctx, &mut Socket { kind: SOCKET_PASSED, ..Socket::default() });
}

/// The storage of the MPTCP socket that the application holds, when the context's socket is a subflow of it: `connect()`
/// shows the hook the subflow, `getpeername()` the parent.
#[inline(always)]
fn of_parent(ctx: &SockAddrContext, create: Option<&mut Socket>) -> Option<&'static mut Socket> {
    // SAFETY: the context's socket is valid for the run of the program.
    of_socket(parent(unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk }), create)
}

/// Whether a TCP socket is a subflow of an MPTCP socket.
#[inline(always)]
pub(crate) fn is_subflow(sk: *mut bpf_sock) -> bool {
    !parent(sk).is_null()
}

/// The MPTCP socket of a subflow; null when the socket is none.
#[inline(always)]
fn parent(sk: *mut bpf_sock) -> *mut bpf_sock {
    if HAS_MPTCP.load() == 0 {
        // Not even the helper's name may reach the verifier of a kernel that has no MPTCP.
        return core::ptr::null_mut();
    }
    // SAFETY: `sk` is a full socket that the kernel holds for the run of the program.
    unsafe { bpf_skc_to_mptcp_sock(sk.cast()) }.cast()
}

/// The storage of a socket, if it has any; `create` makes it.
#[inline(always)]
pub(crate) fn of_socket(sk: *mut bpf_sock, create: Option<&mut Socket>) -> Option<&'static mut Socket> {
    if sk.is_null() {
        return None;
    }
    let map = core::ptr::from_ref(&SOCKETS).cast_mut().cast();
    let (value, flags) = match create {
        Some(value) => (core::ptr::from_mut(value).cast(), BPF_SK_STORAGE_GET_F_CREATE as u64),
        None => (core::ptr::null_mut(), 0),
    };
    // SAFETY: `sk` is a full socket that the kernel holds for the run of the program.
    unsafe { bpf_sk_storage_get(map, sk.cast(), value, flags).cast::<Socket>().as_mut() }
}
