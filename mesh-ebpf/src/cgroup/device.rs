//! Sockets bound to a device (`SO_BINDTODEVICE`). In: the socket of a `connect()` and its pod. Out: whether the socket is
//! kept to an interface that is not the pod's own; and its freedom, for a redirected socket must reach loopback.
//!
//! A socket bound to the pod's own interface is freed of it before it is redirected: the agent dials on from the pod's
//! address, which is on that interface. One bound to another interface goes where its owner sent it, past the mesh.

use aya_ebpf::helpers::bpf_setsockopt;
use aya_ebpf::programs::SockAddrContext;
use mesh_common::Pod;

const SOL_SOCKET: i32 = 1;
const SO_BINDTODEVICE: i32 = 25;

/// The index of the interface that the socket is bound to; 0: none.
#[inline(always)]
fn bound_to(ctx: &SockAddrContext) -> u32 {
    // SAFETY: the context's socket is valid; this field may be read by this program type.
    unsafe { core::ptr::addr_of!((*(*ctx.sock_addr).__bindgen_anon_1.sk).bound_dev_if).read_volatile() }
}

/// Whether the socket is bound to an interface that is not the pod's own. Where the pod's is not known, none is another.
#[inline(always)]
pub(crate) fn is_other(ctx: &SockAddrContext, pod: &Pod) -> bool {
    let device = bound_to(ctx);
    device != 0 && pod.interface != 0 && device != pod.interface
}

/// Takes the socket off the interface that it is bound to, if it is; false when it cannot be.
#[inline(always)]
pub(crate) fn release(ctx: &SockAddrContext) -> bool {
    if bound_to(ctx) == 0 {
        return true;
    }
    // An empty name.
    let mut name = [0_u8; 4];
    // SAFETY: the helper takes this context; the name is on the stack and of the given length.
    let result = unsafe {
        bpf_setsockopt(ctx.sock_addr.cast(), SOL_SOCKET, SO_BINDTODEVICE, name.as_mut_ptr().cast(), 4)
    };
    result == 0
}
