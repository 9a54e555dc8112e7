//! `mesh-cgroup.o`: the hooks on the pods' cgroup root, one file a hook.
//!
//! A pod's `connect()` comes in and goes out towards the agent's listener in the pod's own network namespace; the
//! original destination waits in `ORIG_DST` for the agent's accept, and both applications are told the addresses that
//! they expect. The direct path between two pods of a node will sit in `connect.rs`, before the redirect.

#![no_std]
#![no_main]
#![feature(core_intrinsics, adt_const_params)]
#![expect(internal_features, reason = "atomic additions: see listening.rs")]

mod bind;
mod caller;
mod connect;
mod connect4;
mod connect6;
mod device;
mod egress;
mod getpeername4;
mod getpeername6;
mod getsockname4;
mod getsockname6;
mod ingress;
mod listening;
mod packet;
mod sendmsg4;
mod sendmsg6;
mod sock_create;
mod sock_ops;
mod storage;
mod token;
mod udp;
mod unseen;

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
