//! `getsockname()` of an IPv4 socket that was bound to a port before a redirected `connect()`: the pod's address instead
//! of the loopback address that the kernel chose.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use mesh_common::Reason;
use mesh_ebpf::address::{is_zero, to_words};
use mesh_ebpf::count;

use crate::storage;

/// The hook.
#[cgroup_sock_addr(getsockname4)]
fn on_getsockname4(ctx: SockAddrContext) -> i32 {
    if let Some(socket) = storage::of_context(&ctx).filter(|socket| socket.is_outbound()) {
        let local = to_words(socket.local);
        if !is_zero(local) {
            // SAFETY: this hook may write the field.
            unsafe { core::ptr::addr_of_mut!((*ctx.sock_addr).user_ip4).write_volatile(local[3]) };
            count(Reason::SocknameAnswered);
            return 1;
        }
    }
    count(Reason::SocknameUntouched);
    1
}
