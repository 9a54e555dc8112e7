//! `getsockname()` of an IPv6 socket, v4-mapped ones included, that was bound to a port before a redirected `connect()`.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use mesh_common::Reason;
use mesh_ebpf::address::{is_zero, to_words};
use mesh_ebpf::count;

use crate::{connect6, storage};

/// The hook.
#[cgroup_sock_addr(getsockname6)]
fn on_getsockname6(ctx: SockAddrContext) -> i32 {
    if let Some(socket) = storage::of_context(&ctx).filter(|socket| socket.is_outbound()) {
        let local = to_words(socket.local);
        if !is_zero(local) {
            connect6::write(&ctx, local);
            count(Reason::SocknameAnswered);
            return 1;
        }
    }
    count(Reason::SocknameUntouched);
    1
}
