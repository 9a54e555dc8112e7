//! The socket's own storage: what it shows instead of its real peer.

use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock};
use aya_ebpf::helpers::bpf_sk_storage_get;
use aya_ebpf::programs::SockAddrContext;
use mesh_common::Socket;
use mesh_ebpf::maps::SOCKETS;

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
    Some(storage)
}

/// The storage of a socket in `sock_ops`, if it has any; `create` makes it.
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
