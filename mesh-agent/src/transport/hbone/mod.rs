//! HBONE: HTTP/2 CONNECT over mutual TLS, on the h2 crate (hyper's upgrade hides a stream's reset). It interoperates
//! with Istio's ztunnel.

mod client;
pub mod connect;
mod pool;
mod server;
mod stream;

use std::time::Duration;

pub(super) use client::{Asked, carry, carry_opened, open};
pub(super) use pool::{Shard, ShardPool};
pub(super) use server::serve;

/// Window of one stream: what a fast path of some milliseconds keeps in flight.
const STREAM_WINDOW: u32 = 1 << 20;
/// Window of a connection: several streams at full speed.
const CONNECTION_WINDOW: u32 = 8 << 20;
/// Payload of one DATA frame that we take.
const FRAME_BYTES: u32 = 64 * 1024;
/// Bytes of one stream that wait to be sent.
const SEND_BUFFER: usize = 256 * 1024;
/// Request headers of a CONNECT are a few hundred bytes.
const HEADER_LIST_BYTES: u32 = 16 * 1024;
/// Streams of one connection that the accepting side takes.
const SERVER_STREAMS: u32 = 512;
/// Streams that are remembered after a local reset, and how long.
const RESET_STREAMS: usize = 64;
const RESET_MEMORY: Duration = Duration::from_secs(5);
/// Resets by the peer that may wait to be accepted, and errors of the peer, before the connection is closed.
const PENDING_RESETS: usize = 64;
const LOCAL_ERRORS: usize = 1024;
/// Overhead of small DATA frames that may be buffered. h2's default lets one application that writes single bytes to a
/// slow reader end the connection, and with it the streams of others.
const SMALL_FRAME_BUDGET: usize = 32 << 20;
