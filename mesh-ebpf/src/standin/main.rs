//! `mesh-standin.o`, for the scenarios only: a socket load balancer as CNIs attach one above the pods.
//!
//! `connect()` to the virtual address goes to the backend, and `getpeername()` shows the virtual address again. It has
//! to find nothing to do in an enrolled pod: the mesh's hooks sit below it and run first.

#![no_std]
#![no_main]

use aya_ebpf::Global;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
// The library has what every kernel program needs: the panic handler.
use mesh_ebpf as _;

/// The virtual address, network order.
#[unsafe(no_mangle)]
static VIP: Global<u32> = Global::new(0);
/// The backend's, network order.
#[unsafe(no_mangle)]
static BACKEND: Global<u32> = Global::new(0);

/// The way there.
#[cgroup_sock_addr(connect4)]
fn balance(ctx: SockAddrContext) -> i32 {
    replace(&ctx, VIP.load(), BACKEND.load())
}

/// The way back.
#[cgroup_sock_addr(getpeername4)]
fn unbalance(ctx: SockAddrContext) -> i32 {
    replace(&ctx, BACKEND.load(), VIP.load())
}

#[inline(always)]
fn replace(ctx: &SockAddrContext, from: u32, to: u32) -> i32 {
    // SAFETY: the kernel gives a valid context, and these hooks may write the field.
    unsafe {
        let address = core::ptr::addr_of_mut!((*ctx.sock_addr).user_ip4);
        if address.read_volatile() == from {
            address.write_volatile(to);
        }
    }
    1
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
