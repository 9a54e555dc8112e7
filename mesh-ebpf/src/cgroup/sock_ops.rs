//! TCP events of the pods' sockets: publishes original destinations for the agent's accept, and moves the true client
//! from the agent's record into the socket that an application accepts.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{
    BPF_ANY, BPF_NOEXIST, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB,
    BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB,
    BPF_SOCK_OPS_TCP_LISTEN_CB, BPF_TCP_CLOSE, BPF_TCP_LISTEN, BPF_TCP_SYN_RECV, BPF_TCP_SYN_SENT,
    bpf_sock_ops,
};
use aya_ebpf::helpers::bpf_get_netns_cookie;
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use mesh_common::{
    CLIENT_TOKEN_MASK, CLIENT_TOKEN_PREFIX, ClientKey, Reason, SOCKET_HELD, SOCKET_INBOUND, Socket,
};
use mesh_ebpf::address::{AF_INET, LOOPBACK6, equal, is_mapped, mapped, read_words, to_addr, to_words};
use mesh_ebpf::count;
use mesh_ebpf::maps::{CLIENTS, ORIG_DST};

use crate::{egress, listening, storage};

const EEXIST: i32 = -17;

/// The hook.
#[sock_ops]
fn on_sock_ops(ctx: SockOpsContext) -> u32 {
    let reason = match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => publish(&ctx),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => established(&ctx),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => {
            listening::disinherit(&ctx);
            // A held connection is established by a simultaneous open, which the kernel calls passive.
            established(&ctx).or_else(|| move_client(&ctx))
        }
        BPF_SOCK_OPS_TCP_LISTEN_CB => listening::began(&ctx),
        BPF_SOCK_OPS_STATE_CB if ctx.arg(0) == BPF_TCP_LISTEN => listening::ended(&ctx),
        BPF_SOCK_OPS_STATE_CB => state_changed(&ctx),
        _ => None,
    };
    count(reason.unwrap_or(Reason::SockOpsIgnored));
    1
}

/// The SYN is about to go out: source address and port are known.
#[inline(always)]
fn publish(ctx: &SockOpsContext) -> Option<Reason> {
    let socket = outbound(ctx)?;
    let mut key = socket.key;
    let token = is_mapped(to_words(key.addr));
    if !token {
        // SAFETY: the kernel gives a valid context.
        let ops = unsafe { &*ctx.ops };
        // SAFETY: sock_ops may read this field.
        key.addr = to_addr(unsafe { read_words(&raw const ops.local_ip6) });
        key.port = ops.local_port as u16;
        socket.key = key;
    }
    let peer = socket.peer;
    // Before the record, so that no record stays without someone to remove it.
    if ctx.set_cb_flags((ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG) as i32).is_err() {
        return Some(Reason::OrigDstFull);
    }
    if socket.kind == SOCKET_HELD {
        // The egress hook has yet to hold the SYN; only then is its sequence number known.
        return None;
    }
    // An IPv6 key is the connection's own address and port: whatever is there belongs to a connection that is gone.
    let flags = if token { BPF_NOEXIST } else { BPF_ANY };
    Some(match ORIG_DST.insert(&key, &peer, flags as u64) {
        Ok(()) => Reason::OrigDstPublished,
        Err(EEXIST) => {
            // Which of the two the agent accepts first is not known: neither may have the record.
            // Nothing to do when it is gone already.
            let _gone = ORIG_DST.remove(&key);
            Reason::OrigDstCollision
        }
        Err(_) => Reason::OrigDstFull,
    })
}

/// From here on the agent's accept takes the record, however soon the client closes.
#[inline(always)]
fn established(ctx: &SockOpsContext) -> Option<Reason> {
    outbound(ctx)?;
    // Costs a callback for each further state when it fails, nothing else.
    let _still_followed = ctx.set_cb_flags((ctx.cb_flags() & !BPF_SOCK_OPS_STATE_CB_FLAG) as i32);
    Some(Reason::ConnectEstablished)
}

/// A connection that ends before it was established never reaches the agent's accept: its record goes with it.
#[inline(always)]
fn state_changed(ctx: &SockOpsContext) -> Option<Reason> {
    if ctx.arg(0) != BPF_TCP_SYN_SENT {
        return None;
    }
    let to = ctx.arg(1);
    let socket = outbound(ctx)?;
    let (key, peer) = (socket.key, socket.peer);
    if socket.kind == SOCKET_HELD {
        let answered = to == BPF_TCP_SYN_RECV;
        egress::forget(key, answered);
        return Some(if answered { Reason::HeldAnswered } else { Reason::HeldEnded });
    }
    if to != BPF_TCP_CLOSE {
        return None;
    }
    // SAFETY: read within the run of the program.
    let held = unsafe { ORIG_DST.get(&key) }?;
    if held.port != peer.port || !equal(to_words(held.addr), to_words(peer.addr)) {
        return None;
    }
    ORIG_DST.remove(&key).ok()?;
    Some(Reason::OrigDstAbandoned)
}

/// An application is about to accept: if the agent dialled, the true client becomes the socket's.
#[inline(always)]
fn move_client(ctx: &SockOpsContext) -> Option<Reason> {
    // SAFETY: the kernel gives a valid context.
    let ops = unsafe { &*ctx.ops };
    let remote = if ops.family == AF_INET {
        mapped(ops.remote_ip4)
    } else {
        // SAFETY: sock_ops may read this field.
        unsafe { read_words(&raw const ops.remote_ip6) }
    };
    let host = u32::from_be(remote[3]);
    let port = if is_mapped(remote) && host & !CLIENT_TOKEN_MASK == CLIENT_TOKEN_PREFIX {
        0
    } else if equal(remote, LOOPBACK6) || is_own6(ops, remote) {
        u32::from_be(ops.remote_port) as u16
    } else {
        return None;
    };
    // SAFETY: the helper takes this context.
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let key = ClientKey { netns_cookie, addr: to_addr(remote), port, pad: [0; 3] };
    // SAFETY: read within the run of the program.
    let Some(client) = (unsafe { CLIENTS.get(&key) }) else { return Some(Reason::ClientUnknown) };
    let mut value = Socket { peer: *client, kind: SOCKET_INBOUND, ..Socket::default() };
    let copy = value;
    let moved = storage::of_socket(socket(ops), Some(&mut value)).map(|saved| *saved = copy).is_some();
    // The record is one-shot; the agent may have removed it when its dial was given up.
    let _gone = CLIENTS.remove(&key);
    Some(if moved { Reason::ClientMoved } else { Reason::ClientNoStorage })
}

/// The agent dials an IPv6 application from the application's own address.
#[inline(always)]
fn is_own6(ops: &bpf_sock_ops, remote: [u32; 4]) -> bool {
    if ops.family == AF_INET {
        return false;
    }
    // SAFETY: sock_ops may read this field.
    equal(remote, unsafe { read_words(&raw const ops.local_ip6) })
}

/// The storage of a redirected connection's socket.
#[inline(always)]
fn outbound(ctx: &SockOpsContext) -> Option<&'static mut Socket> {
    // SAFETY: the kernel gives a valid context.
    let sk = socket(unsafe { &*ctx.ops });
    storage::of_socket(sk, None).filter(|socket| socket.is_outbound())
}

#[inline(always)]
fn socket(ops: &bpf_sock_ops) -> *mut aya_ebpf::bindings::bpf_sock {
    // SAFETY: either variant of the union is the same pointer.
    unsafe { ops.__bindgen_anon_2.sk }
}
