//! `getpeername()` and `accept()` of an IPv4 socket: the peer that the application expects.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use mesh_common::Reason;
use mesh_ebpf::address::{is_mapped, to_words};
use mesh_ebpf::count;

use crate::{connect, storage};

/// The hook.
#[cgroup_sock_addr(getpeername4)]
fn on_getpeername4(ctx: SockAddrContext) -> i32 {
    let Some(socket) = storage::of_context(&ctx).filter(|socket| socket.has_other_peer()) else {
        count(Reason::PeernameUntouched);
        return 1;
    };
    let peer = to_words(socket.peer.addr);
    // An IPv6 client cannot be shown to an IPv4 socket: better no address than one that looks local.
    let shown = if is_mapped(peer) { peer[3] } else { 0 };
    // SAFETY: this hook may write the field.
    unsafe { core::ptr::addr_of_mut!((*ctx.sock_addr).user_ip4).write_volatile(shown) };
    connect::set_port(&ctx, socket.peer.port);
    count(Reason::PeernameAnswered);
    1
}
