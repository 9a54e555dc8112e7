//! Plain sockets as the relays use them: reads and writes that never spend a system call to learn that there is nothing
//! more, socket options, half-close and reset.
//!
//! Everything works on `&TcpStream`, so that a relay can watch the socket for errors at the same time.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::buf::Buf;

const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;
/// How long sent bytes may stay unacknowledged before the peer counts as dead.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// Options of a socket between agents: no Nagle delay, and a dead node is noticed.
pub fn tune_tunnel(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))
}

/// Closes with RST instead of FIN; what was not sent yet is dropped.
pub fn reset(stream: TcpStream) {
    arm_reset(&stream);
    drop(stream);
}

/// Lets the coming close be a RST.
pub(super) fn arm_reset(stream: &TcpStream) {
    if let Err(error) = SockRef::from(stream).set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%error, "SO_LINGER was refused; the peer sees FIN instead of RST");
    }
}

/// Sends FIN.
pub(super) fn shutdown_write(stream: &TcpStream) -> io::Result<()> {
    SockRef::from(stream).shutdown(Shutdown::Write)
}

/// Sends FIN and notes what came of it: the direction is finished, or its socket was found reset.
pub(super) fn finish(stream: &TcpStream, shut: &mut bool, broken: &mut bool) {
    match shutdown_write(stream) {
        Ok(()) => *shut = true,
        Err(_) => *broken = true,
    }
}

/// Receives into `buf`; `Ok(0)` is the peer's FIN. A short read clears the readiness, because there is nothing more.
pub(super) fn poll_recv(stream: &TcpStream, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
    loop {
        ready!(stream.poll_read_ready(cx))?;
        let mut received = None;
        let outcome = stream.try_io(Interest::READABLE, || {
            let (_, n) = rustix::net::recv(stream, &mut *buf, RecvFlags::empty())?;
            received = Some(n);
            if n > 0 && n < buf.len() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        if let Some(n) = received {
            return Poll::Ready(Ok(n));
        }
        retry_or_fail(outcome)?;
    }
}

/// What a socket has received before its runtime has heard of it; empty when there is nothing yet, or only the peer's FIN.
pub(super) fn recv_early(stream: &TcpStream) -> io::Result<Bytes> {
    let mut buf = Buf::take();
    match rustix::net::recv(stream, buf.spare(), RecvFlags::DONTWAIT) {
        Ok((_, n)) => {
            buf.commit(n);
            Ok(Bytes::copy_from_slice(buf.filled()))
        }
        Err(Errno::AGAIN | Errno::INTR) => Ok(Bytes::new()),
        Err(error) => Err(error.into()),
    }
}

/// Sends from `slices`; a short write clears the readiness.
pub(super) fn poll_send(
    stream: &TcpStream,
    cx: &mut Context<'_>,
    slices: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    poll_send_with(stream, cx, slices, SendFlags::NOSIGNAL)
}

/// Sends bytes which [`shutdown_write`] follows at once: the kernel puts the FIN into their last segment.
pub(super) fn poll_send_last(
    stream: &TcpStream,
    cx: &mut Context<'_>,
    bytes: &[u8],
) -> Poll<io::Result<usize>> {
    poll_send_with(stream, cx, &[IoSlice::new(bytes)], SendFlags::NOSIGNAL | SendFlags::MORE)
}

fn poll_send_with(
    stream: &TcpStream,
    cx: &mut Context<'_>,
    slices: &[IoSlice<'_>],
    flags: SendFlags,
) -> Poll<io::Result<usize>> {
    let wanted: usize = slices.iter().map(|slice| slice.len()).sum();
    loop {
        ready!(stream.poll_write_ready(cx))?;
        let mut sent = None;
        let outcome = stream.try_io(Interest::WRITABLE, || {
            let n = match slices {
                [slice] => rustix::net::send(stream, slice, flags)?,
                _ => rustix::io::writev(stream, slices)?,
            };
            sent = Some(n);
            if n < wanted { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        if let Some(n) = sent {
            return Poll::Ready(Ok(n));
        }
        retry_or_fail(outcome)?;
    }
}

fn retry_or_fail(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(()),
        other => other,
    }
}
