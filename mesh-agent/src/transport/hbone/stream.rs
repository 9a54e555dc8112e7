//! One application connection on one HTTP/2 stream: a single future that drives both directions, at either end.
//! END_STREAM is FIN, RST_STREAM is RST. What was received is released to the sender only when the near socket has it.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::IoSlice;
use std::pin::pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::authorize::CutReason;
use crate::identify::ProvenPeer;
use crate::transport::buf::{BUF_BYTES, Buf};
use crate::transport::{End, Relayed, Watch, near};

/// Rounds before other connections of this worker get their turn.
const ROUNDS: usize = 16;
/// Received pieces that one write takes.
const PIECES: usize = 16;

/// Why the relay stopped.
enum Finish {
    Clean,
    NearReset,
    FarReset,
    Lost(String),
    Cut(CutReason),
}

struct Stream<'a> {
    near: &'a TcpStream,
    send: SendStream<Bytes>,
    recv: RecvStream,
    /// Read from the near socket and not taken by h2 yet.
    up: Bytes,
    /// Received and not written yet.
    down: VecDeque<Bytes>,
    fin_sent: bool,
    fin_received: bool,
    near_shut: bool,
    /// A write to the near socket failed: what it had sent is carried, then it counts as reset.
    near_broken: bool,
    near_failed: bool,
    from_near: u64,
    to_near: u64,
}

/// Carries one connection. `replay` was read from `near` already and is sent first. On every end but `Finished` both
/// sides are reset.
pub(super) async fn run(
    near: TcpStream,
    (send, recv): (SendStream<Bytes>, RecvStream),
    replay: Bytes,
    peer: &ProvenPeer,
    Watch { cut, meter }: &mut Watch,
) -> Relayed {
    let mut stream = Stream {
        near: &near,
        send,
        recv,
        from_near: replay.len() as u64,
        up: replay,
        down: VecDeque::new(),
        fin_sent: false,
        fin_received: false,
        near_shut: false,
        near_broken: false,
        near_failed: false,
        to_near: 0,
    };
    let finish = {
        let mut ended = pin!(peer.ended());
        let mut cut = pin!(cut.wait());
        let mut alarm = pin!(near.ready(Interest::ERROR));
        poll_fn(|cx| {
            if let Poll::Ready(reason) = cut.as_mut().poll(cx) {
                return Poll::Ready(Finish::Cut(reason));
            }
            if ended.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Finish::Cut(CutReason::IdentityEnded));
            }
            stream.near_failed = stream.near_failed || alarm.as_mut().poll(cx).is_ready();
            let polled = stream.poll(cx);
            meter.note(stream.from_near, stream.to_near);
            polled
        })
        .await
    };
    let (from_near, to_near) = (stream.from_near, stream.to_near);
    let end = match finish {
        Finish::Clean => End::Finished,
        Finish::NearReset => End::ResetByNear,
        Finish::FarReset => End::ResetByFar,
        Finish::Lost(text) => End::TunnelLost(text),
        Finish::Cut(reason) => End::Cut(reason),
    };
    if !matches!(end, End::Finished) {
        stream.send.send_reset(Reason::CANCEL);
        drop(stream);
        near::reset(near);
    }
    Relayed { from_near, to_near, end }
}

impl Stream<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Finish> {
        for _ in 0..ROUNDS {
            let moved = match (self.pump_up(cx), self.pump_down(cx)) {
                (Ok(up), Ok(down)) => up || down,
                (_, Err(finish)) | (Err(finish), _) => return Poll::Ready(finish),
            };
            if self.fin_sent && self.near_shut {
                return Poll::Ready(Finish::Clean);
            }
            if !moved {
                if self.near_failed || self.near_broken {
                    return Poll::Ready(Finish::NearReset);
                }
                return self.poll_reset(cx);
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// A reset that no read will meet, because reading is blocked or finished.
    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<Finish> {
        if !self.fin_received && self.down.is_empty() || self.fin_sent {
            return Poll::Pending;
        }
        self.send.poll_reset(cx).map(|outcome| match outcome {
            Ok(_) => Finish::FarReset,
            Err(error) => failed(&error),
        })
    }

    /// Near socket -> stream.
    fn pump_up(&mut self, cx: &mut Context<'_>) -> Result<bool, Finish> {
        let mut moved = false;
        loop {
            if self.fin_sent {
                return Ok(moved);
            }
            let capacity = self.send.capacity();
            if capacity == 0 {
                self.send.reserve_capacity(BUF_BYTES);
                match self.send.poll_capacity(cx) {
                    Poll::Pending => return Ok(moved),
                    Poll::Ready(Some(Ok(_))) => continue,
                    Poll::Ready(Some(Err(error))) => return Err(failed(&error)),
                    // The far side reset the stream; the receiving direction says so.
                    Poll::Ready(None) => return Ok(moved),
                }
            }
            if !self.up.is_empty() {
                let piece = self.up.split_to(capacity.min(self.up.len()));
                self.send.send_data(piece, false).map_err(|e| failed(&e))?;
                moved = true;
                continue;
            }
            let mut buf = Buf::take();
            let room = capacity.min(BUF_BYTES);
            match near::poll_recv(self.near, cx, &mut buf.spare()[..room]) {
                Poll::Pending => return Ok(moved),
                Poll::Ready(Ok(0)) if self.near_broken => return Err(Finish::NearReset),
                Poll::Ready(Ok(0)) => {
                    self.fin_sent = true;
                    self.send.send_data(Bytes::new(), true).map_err(|e| failed(&e))?;
                }
                Poll::Ready(Ok(n)) => {
                    buf.commit(n);
                    self.from_near += n as u64;
                    self.send
                        .send_data(Bytes::copy_from_slice(buf.filled()), false)
                        .map_err(|e| failed(&e))?;
                }
                Poll::Ready(Err(_)) => return Err(Finish::NearReset),
            }
            return Ok(true);
        }
    }

    /// Stream -> near socket.
    fn pump_down(&mut self, cx: &mut Context<'_>) -> Result<bool, Finish> {
        if self.near_broken {
            return Ok(false);
        }
        let mut moved = false;
        let mut end = None;
        while !self.fin_received && self.down.len() < PIECES {
            match self.recv.poll_data(cx) {
                Poll::Pending => break,
                Poll::Ready(None) => self.fin_received = true,
                Poll::Ready(Some(Ok(piece))) if piece.is_empty() => {}
                Poll::Ready(Some(Ok(piece))) => {
                    self.to_near += piece.len() as u64;
                    self.down.push_back(piece);
                }
                Poll::Ready(Some(Err(error))) => {
                    end = Some(failed(&error));
                    break;
                }
            }
            moved = true;
        }
        moved |= self.drain(cx);
        if let Some(end) = end {
            return Err(end);
        }
        if self.fin_received && self.down.is_empty() && !self.near_shut && !self.near_broken {
            moved = true;
            near::finish(self.near, &mut self.near_shut, &mut self.near_broken);
        }
        Ok(moved)
    }

    /// Writes what was received to the near socket.
    fn drain(&mut self, cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        while !self.down.is_empty() {
            let mut slices = [IoSlice::new(&[]); PIECES];
            let count = self.down.len().min(PIECES);
            for (slice, piece) in slices.iter_mut().zip(&self.down) {
                *slice = IoSlice::new(piece);
            }
            match near::poll_send(self.near, cx, &slices[..count]) {
                Poll::Pending => break,
                Poll::Ready(Ok(n)) => self.written(n),
                Poll::Ready(Err(_)) => {
                    self.near_broken = true;
                    self.down.clear();
                }
            }
            moved = true;
        }
        moved
    }

    /// The near socket took `n` bytes: the far side may send as many again.
    fn written(&mut self, n: usize) {
        let mut left = n;
        while left > 0
            && let Some(first) = self.down.front_mut()
        {
            let taken = left.min(first.len());
            first.advance(taken);
            left -= taken;
            if first.is_empty() {
                self.down.pop_front();
            }
        }
        if let Err(error) = self.recv.flow_control().release_capacity(n) {
            tracing::debug!(%error, "h2 refused released capacity");
        }
    }
}

fn failed(error: &h2::Error) -> Finish {
    if error.is_reset() && error.is_remote() { Finish::FarReset } else { Finish::Lost(error.to_string()) }
}
