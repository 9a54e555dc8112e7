//! `getpeername()` and `accept()` of an IPv6 socket, v4-mapped ones included: the peer that the application expects.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use mesh_common::Reason;
use mesh_ebpf::address::to_words;
use mesh_ebpf::count;

use crate::{connect, connect6, storage};

/// The hook.
#[cgroup_sock_addr(getpeername6)]
fn on_getpeername6(ctx: SockAddrContext) -> i32 {
    let Some(socket) = storage::of_context(&ctx).filter(|socket| socket.has_other_peer()) else {
        count(Reason::PeernameUntouched);
        return 1;
    };
    connect6::write(&ctx, to_words(socket.peer.addr));
    connect::set_port(&ctx, socket.peer.port);
    count(Reason::PeernameAnswered);
    1
}
