//! Plain TCP to plain TCP: one future drives both directions. FIN stays FIN, half-close stays half-close, RST stays RST.

use std::future::poll_fn;
use std::io::IoSlice;
use std::pin::pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes};
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::buf::Buf;
use super::{End, Relayed, Watch, near};
use crate::authorize::CutReason;
use crate::sys;

/// Rounds before other connections of this worker get their turn.
const ROUNDS: usize = 16;

/// One direction: from a socket, through a buffer, to the other socket.
#[derive(Debug, Default)]
struct Direction {
    buf: Option<Buf>,
    /// Bytes that were read by an earlier stage; sent first.
    replay: Bytes,
    eof: bool,
    shut: bool,
    /// The source was found reset while it was written to: what it had sent is delivered, then comes RST, never FIN.
    source_reset: bool,
    carried: u64,
}

/// Which socket failed.
enum Failed {
    Source,
    Sink,
}

impl Direction {
    /// Moves what can be moved; says whether anything was.
    fn pump(&mut self, from: &TcpStream, to: &TcpStream, cx: &mut Context<'_>) -> Result<bool, Failed> {
        let mut moved = self.drain(to, cx)?;
        if !self.replay.is_empty() || self.buf.is_some() {
            return Ok(moved);
        }
        if !self.eof {
            let mut buf = Buf::take();
            match near::poll_recv(from, cx, buf.spare()) {
                Poll::Pending => return Ok(moved),
                Poll::Ready(Ok(0)) => self.eof = true,
                Poll::Ready(Ok(n)) => {
                    buf.commit(n);
                    self.carried += n as u64;
                    self.buf = Some(buf);
                }
                Poll::Ready(Err(_)) => return Err(Failed::Source),
            }
            moved = true;
            self.drain(to, cx)?;
        }
        if self.eof && self.buf.is_none() && !self.shut && !self.source_reset {
            near::shutdown_write(to).map_err(|_| Failed::Sink)?;
            self.shut = true;
            moved = true;
        }
        Ok(moved)
    }

    /// Writes what is held.
    fn drain(&mut self, to: &TcpStream, cx: &mut Context<'_>) -> Result<bool, Failed> {
        let mut moved = false;
        loop {
            let held = match &self.buf {
                _ if !self.replay.is_empty() => &self.replay[..],
                Some(buf) => buf.filled(),
                None => return Ok(moved),
            };
            match near::poll_send(to, cx, &[IoSlice::new(held)]) {
                Poll::Pending => return Ok(moved),
                Poll::Ready(Err(_)) => return Err(Failed::Sink),
                Poll::Ready(Ok(n)) if !self.replay.is_empty() => self.replay.advance(n),
                Poll::Ready(Ok(n)) => {
                    self.buf.take_if(|buf| {
                        buf.consume(n);
                        buf.is_empty()
                    });
                }
            }
            moved = true;
        }
    }
}

/// Which socket was reset, or the end.
enum Outcome {
    Finished,
    Near,
    Far,
    Cut(CutReason),
}

/// Moves what can be moved in both directions; says whether anything was.
fn round(
    up: &mut Direction,
    down: &mut Direction,
    (near, far): (&TcpStream, &TcpStream),
    cx: &mut Context<'_>,
) -> Result<bool, Outcome> {
    let mut moved = false;
    if !down.source_reset {
        match up.pump(near, far, cx) {
            Ok(any) => moved |= any,
            Err(Failed::Source) => return Err(Outcome::Near),
            Err(Failed::Sink) => (down.source_reset, moved) = (true, true),
        }
    }
    if !up.source_reset {
        match down.pump(far, near, cx) {
            Ok(any) => moved |= any,
            Err(Failed::Source) => return Err(Outcome::Far),
            Err(Failed::Sink) => (up.source_reset, moved) = (true, true),
        }
    }
    Ok(moved)
}

/// Moves bytes until nothing can be moved, or it is the turn of others; `reset` says which socket reported an error.
fn rounds(
    up: &mut Direction,
    down: &mut Direction,
    sockets: (&TcpStream, &TcpStream),
    reset: (bool, bool),
    cx: &mut Context<'_>,
) -> Poll<Outcome> {
    for _ in 0..ROUNDS {
        match round(up, down, sockets, cx) {
            Ok(true) if up.shut && down.shut => return Poll::Ready(Outcome::Finished),
            Ok(true) => {}
            Err(outcome) => return Poll::Ready(outcome),
            // A reset that no read or write will meet, because its direction is blocked or finished.
            Ok(false) if reset.0 || up.source_reset => return Poll::Ready(Outcome::Near),
            Ok(false) if reset.1 || down.source_reset => return Poll::Ready(Outcome::Far),
            Ok(false) => return Poll::Pending,
        }
    }
    cx.waker().wake_by_ref();
    Poll::Pending
}

/// Carries bytes between `near` and `far` until both directions are finished, one side is reset, or `watch` ends it.
/// `replay` was read from `near` already.
pub async fn relay(near: TcpStream, far: TcpStream, replay: Bytes, watch: Watch) -> Relayed {
    if let Err(error) = sys::face_application(&far) {
        tracing::debug!(%error, "a socket option was refused");
    }
    let mut up = Direction { carried: replay.len() as u64, replay, ..Direction::default() };
    let mut down = Direction::default();
    let Watch { mut cut, meter } = watch;
    let outcome = {
        let mut cut = pin!(cut.wait());
        let mut alarms = (pin!(near.ready(Interest::ERROR)), pin!(far.ready(Interest::ERROR)));
        let mut reset = (false, false);
        poll_fn(|cx| {
            if let Poll::Ready(reason) = cut.as_mut().poll(cx) {
                return Poll::Ready(Outcome::Cut(reason));
            }
            reset.0 = reset.0 || alarms.0.as_mut().poll(cx).is_ready();
            reset.1 = reset.1 || alarms.1.as_mut().poll(cx).is_ready();
            let polled = rounds(&mut up, &mut down, (&near, &far), reset, cx);
            meter.note(up.carried, down.carried);
            polled
        })
        .await
    };
    let end = match outcome {
        Outcome::Finished => End::Finished,
        Outcome::Near => End::ResetByNear,
        Outcome::Far => End::ResetByFar,
        Outcome::Cut(reason) => End::Cut(reason),
    };
    if !matches!(end, End::Finished) {
        near::reset(near);
        near::reset(far);
    }
    Relayed { from_near: up.carried, to_near: down.carried, end }
}
