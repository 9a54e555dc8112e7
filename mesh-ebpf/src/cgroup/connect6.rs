//! `connect()` of an IPv6 socket: to the agent at `::1`, to a v4-mapped token address when the destination is v4-mapped,
//! or on its way.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use mesh_common::{OrigKey, Reason};
use mesh_ebpf::address::{
    LOOPBACK6, Words, is_mapped, left_alone4, left_alone6, mapped, read_words, to_words,
};

use crate::{caller, connect, token, udp};

/// The hook.
#[cgroup_sock_addr(connect6)]
fn on_connect6(ctx: SockAddrContext) -> i32 {
    let outcome = redirect(&ctx);
    connect::answer(&ctx, outcome)
}

#[inline(always)]
fn redirect(ctx: &SockAddrContext) -> Result<(), Reason> {
    // SAFETY: the kernel gives a valid context.
    let dst = unsafe { read_words(&raw const (*ctx.sock_addr).user_ip6) };
    let pod = caller::redirected_pod(ctx).map_err(|reason| udp::or_refusal(ctx, reason, dst))?;
    let kind = connect::kind(ctx, &pod);
    if is_mapped(dst) {
        if let Some(reason) = left_alone4(dst[3], &pod) {
            return Err(reason);
        }
        let (address, key) = token::draw(pod.netns_cookie).ok_or(Reason::ConnectNoToken)?;
        connect::remember(ctx, dst, (key, kind), to_words(pod.addr4))?;
        write(ctx, mapped(address));
    } else {
        if let Some(reason) = left_alone6(dst, &pod) {
            return Err(reason);
        }
        // The source address and port complete the key when they are known, at SYN time.
        let key = OrigKey { netns_cookie: pod.netns_cookie, addr: [0; 16], port: 0, pad: [0; 3] };
        connect::remember(ctx, dst, (key, kind), to_words(pod.addr6))?;
        write(ctx, LOOPBACK6);
    }
    connect::set_port(ctx, connect::port_of(kind));
    Ok(())
}

#[inline(always)]
pub(crate) fn write(ctx: &SockAddrContext, words: Words) {
    // SAFETY: connect6 may write this field.
    unsafe {
        let ip6 = core::ptr::addr_of_mut!((*ctx.sock_addr).user_ip6).cast::<u32>();
        ip6.write_volatile(words[0]);
        ip6.add(1).write_volatile(words[1]);
        ip6.add(2).write_volatile(words[2]);
        ip6.add(3).write_volatile(words[3]);
    }
}
