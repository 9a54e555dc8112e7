//! `connect()` of an IPv4 socket: to the agent at a token address of 127.128.0.0/9, or on its way.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use mesh_common::Reason;
use mesh_ebpf::address::{left_alone4, mapped, to_words};

use crate::{caller, connect, token, udp};

/// The hook.
#[cgroup_sock_addr(connect4)]
fn on_connect4(ctx: SockAddrContext) -> i32 {
    let outcome = redirect(&ctx);
    connect::answer(&ctx, outcome)
}

#[inline(always)]
fn redirect(ctx: &SockAddrContext) -> Result<(), Reason> {
    // SAFETY: the kernel gives a valid context.
    let dst = unsafe { core::ptr::addr_of!((*ctx.sock_addr).user_ip4).read_volatile() };
    let pod = caller::redirected_pod(ctx).map_err(|reason| udp::or_refusal(ctx, reason, mapped(dst)))?;
    if let Some(reason) = left_alone4(dst, &pod) {
        return Err(reason);
    }
    let (address, key) = token::draw(pod.netns_cookie).ok_or(Reason::ConnectNoToken)?;
    let kind = connect::kind(ctx, &pod);
    connect::remember(ctx, mapped(dst), (key, kind), to_words(pod.addr4))?;
    // SAFETY: connect4 may write this field.
    unsafe { core::ptr::addr_of_mut!((*ctx.sock_addr).user_ip4).write_volatile(address) };
    connect::set_port(ctx, connect::port_of(kind));
    Ok(())
}
