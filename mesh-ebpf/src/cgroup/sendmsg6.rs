//! `sendto()` and `sendmsg()` of a UDP socket to an IPv6 address: on its way, or refused by a rule.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use mesh_ebpf::address::read_words;

use crate::udp;

/// The hook.
#[cgroup_sock_addr(sendmsg6)]
fn on_sendmsg6(ctx: SockAddrContext) -> i32 {
    // SAFETY: the kernel gives a valid context.
    let dst = unsafe { read_words(&raw const (*ctx.sock_addr).user_ip6) };
    udp::answer(&ctx, dst)
}
