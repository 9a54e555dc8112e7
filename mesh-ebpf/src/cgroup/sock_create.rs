//! `socket()` in a pod: TCP and UDP sockets are seen and pass; what could send past the hooks is refused to enrolled pods.
//!
//! Raw, UDP-Lite and SCTP sockets reach the wire without `connect()`, or by one that no hook steers. (Packet sockets are
//! not Internet sockets: no cgroup hook sees them.) The owner may let them be: `REFUSE_SOCKETS`.

use aya_ebpf::Global;
use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::macros::cgroup_sock;
use aya_ebpf::programs::SockContext;
use mesh_common::{POD_ENROLLED, Reason};
use mesh_ebpf::address::{IPPROTO_MPTCP, IPPROTO_TCP, SOCK_STREAM};
use mesh_ebpf::count;

use crate::caller;

/// Whether sockets that the mesh cannot steer are refused.
#[unsafe(no_mangle)]
static REFUSE_SOCKETS: Global<u32> = Global::new(1);

const REFUSE: i32 = 0;
const PASS: i32 = 1;

const SOCK_DGRAM: u32 = 2;
const IPPROTO_ICMP: u32 = 1;
const IPPROTO_UDP: u32 = 17;
const IPPROTO_ICMPV6: u32 = 58;

/// The hook.
#[cgroup_sock(sock_create)]
fn on_sock_create(ctx: SockContext) -> i32 {
    // SAFETY: the kernel gives a valid context.
    let reason = decide(unsafe { &*ctx.sock });
    count(reason);
    if matches!(reason, Reason::SocketRefused) { REFUSE } else { PASS }
}

#[inline(always)]
fn decide(sock: &bpf_sock) -> Reason {
    if !caller::pod().is_some_and(|pod| pod.flags & POD_ENROLLED != 0) {
        return Reason::SocketNotEnrolled;
    }
    match (sock.type_, sock.protocol) {
        (SOCK_STREAM, IPPROTO_TCP | IPPROTO_MPTCP) => Reason::SocketTcp,
        (SOCK_DGRAM, IPPROTO_UDP) => Reason::SocketUdp,
        (SOCK_DGRAM, IPPROTO_ICMP | IPPROTO_ICMPV6) => Reason::SocketPing,
        _ if REFUSE_SOCKETS.load() == 0 => Reason::SocketLetBe,
        _ => Reason::SocketRefused,
    }
}
