//! The `ferromesh/1` transport: warm mutual TLS connections, each leased to one application connection at a time.
//! `docs/wire.md` has the bytes.

mod client;
mod deliver;
mod ended;
mod finish;
mod flow;
pub mod frame;
mod link;
mod pool;
mod relay;
mod server;

pub(super) use client::{Lease, carry, carry_opened, open};
pub(super) use link::Link;
pub(super) use pool::LeasePool;
pub(super) use server::serve;
