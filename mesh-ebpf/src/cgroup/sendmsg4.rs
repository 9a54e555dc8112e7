//! `sendto()` and `sendmsg()` of a UDP socket to an IPv4 address, also from a dual-stack socket: on its way, or refused by a rule.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use mesh_ebpf::address::mapped;

use crate::udp;

/// The hook.
#[cgroup_sock_addr(sendmsg4)]
fn on_sendmsg4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the kernel gives a valid context.
    let dst = unsafe { core::ptr::addr_of!((*ctx.sock_addr).user_ip4).read_volatile() };
    udp::answer(&ctx, mapped(dst))
}
