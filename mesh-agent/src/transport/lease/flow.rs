//! The two directions of one application connection on a leased tunnel connection, as a state machine that is polled:
//! near socket -> DATA and FIN; DATA and FIN -> near socket; RESET and REFUSED end it.

use std::io::{self, IoSlice};
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::net::TcpStream;

use super::frame::{Decoder, Frame, HEADER_BYTES, data_header, encode};
use super::relay::{Finish, lost};
use crate::sys;
use crate::transport::Open;
use crate::transport::buf::{BUF_BYTES, Buf};
use crate::transport::near;
use crate::transport::tls_io::TlsState;

/// What is kept of the near side's bytes until OPENED, so that they can be sent again elsewhere.
pub(super) const REPLAY_BYTES: usize = 64 * 1024;
/// Payload of one DATA frame: with its header it fills whole TLS records.
const READ_BYTES: usize = BUF_BYTES - HEADER_BYTES;
/// Plaintext of one TLS record at most: the room that gathering needs.
const RECORD_BYTES: usize = 16 * 1024;
/// Rounds before other connections of this worker get their turn.
const ROUNDS: usize = 16;

/// Which end of the tunnel this is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Role {
    /// Sends OPEN.
    Dialler(Open),
    /// Answers OPENED.
    Acceptor,
}

/// Both directions of a connection.
pub(super) struct Flow<'a> {
    tcp: &'a TcpStream,
    tls: &'a mut TlsState,
    decoder: &'a mut Decoder,
    near: &'a TcpStream,
    role: Role,
    /// Control frames that leave with the next write.
    prefix: Vec<u8>,
    /// What was sent before OPENED came.
    pub(super) replay: BytesMut,
    replay_unsent: bool,
    opening: bool,
    sent_before: u64,
    out: Option<Buf>,
    fin_sent: bool,
    fin_received: bool,
    near_shut: bool,
    done_sent: bool,
    /// A write to the near socket failed: what it had sent is carried, then it counts as reset.
    near_broken: bool,
    /// A write to the tunnel failed: what it had brought is delivered, then it counts as lost.
    tunnel_broken: Option<String>,
    /// The near socket reported an error (a reset that no read may meet).
    pub(super) near_failed: bool,
    /// The tunnel's socket reported an error.
    pub(super) tunnel_failed: bool,
    /// DRAIN came: not to be leased again.
    pub(super) drain_seen: bool,
    pub(super) from_near: u64,
    pub(super) to_near: u64,
}

impl<'a> Flow<'a> {
    /// A connection at its beginning: OPEN or OPENED is the first thing that leaves.
    pub(super) fn new(
        tcp: &'a TcpStream,
        tls: &'a mut TlsState,
        decoder: &'a mut Decoder,
        near: &'a TcpStream,
        role: Role,
        replay: BytesMut,
    ) -> Self {
        let mut prefix = Vec::with_capacity(64);
        let first = match role {
            Role::Dialler(open) => Frame::Open(open),
            Role::Acceptor => Frame::Opened,
        };
        encode(&first, &mut prefix);
        Self {
            sent_before: tls.sent(),
            from_near: replay.len() as u64,
            replay_unsent: !replay.is_empty(),
            opening: matches!(role, Role::Dialler(_)),
            tcp,
            tls,
            decoder,
            near,
            role,
            prefix,
            replay,
            out: None,
            fin_sent: false,
            fin_received: false,
            near_shut: false,
            done_sent: false,
            near_broken: false,
            tunnel_broken: None,
            near_failed: false,
            tunnel_failed: false,
            drain_seen: false,
            to_near: 0,
        }
    }

    /// Drives both directions as far as they go.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Finish> {
        for _ in 0..ROUNDS {
            let moved = match self.round(cx) {
                Ok(moved) => moved,
                Err(finish) => return Poll::Ready(finish),
            };
            if self.is_complete() {
                return Poll::Ready(Finish::Clean);
            }
            if !moved {
                return match self.tunnel_broken.take() {
                    _ if self.near_failed || self.near_broken => Poll::Ready(Finish::NearReset),
                    Some(text) => Poll::Ready(self.gone(text)),
                    None if self.tunnel_failed => Poll::Ready(self.gone("the tunnel's socket failed".into())),
                    None => Poll::Pending,
                };
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn round(&mut self, cx: &mut Context<'_>) -> Result<bool, Finish> {
        let up = self.pump_up(cx)?;
        let down = self.pump_down(cx)?;
        let mut moved = up || down;
        if matches!(self.role, Role::Acceptor) && self.fin_sent && self.near_shut && !self.done_sent {
            self.done_sent = true;
            encode(&Frame::Done, &mut self.prefix);
            self.put(None);
            self.flush(cx);
            moved = true;
        }
        Ok(moved)
    }

    fn is_complete(&self) -> bool {
        self.fin_sent && self.near_shut && !self.tls.wants_write() && self.tunnel_broken.is_none()
    }

    /// Near socket -> tunnel.
    fn pump_up(&mut self, cx: &mut Context<'_>) -> Result<bool, Finish> {
        if self.tunnel_broken.is_some() {
            return Ok(false);
        }
        let mut moved = self.put_replay();
        if self.tls.wants_write() {
            if !self.flush(cx) {
                return Ok(moved);
            }
            moved = true;
        }
        let room = if self.opening { REPLAY_BYTES.saturating_sub(self.replay.len()) } else { READ_BYTES };
        if !self.fin_sent && room > 0 {
            let mut buf = Buf::take();
            let spare = &mut buf.spare()[..room.min(READ_BYTES)];
            match near::poll_recv(self.near, cx, spare) {
                Poll::Pending => {}
                Poll::Ready(Ok(0)) if self.near_broken => return Err(Finish::NearReset),
                Poll::Ready(Ok(0)) => {
                    self.fin_sent = true;
                    encode(&Frame::Fin, &mut self.prefix);
                    if self.near_shut && matches!(self.role, Role::Acceptor) {
                        self.done_sent = true;
                        encode(&Frame::Done, &mut self.prefix);
                    }
                }
                Poll::Ready(Ok(n)) => {
                    buf.commit(n);
                    self.from_near += n as u64;
                    if self.opening {
                        self.replay.extend_from_slice(buf.filled());
                    }
                    self.put(Some(buf.filled()));
                }
                Poll::Ready(Err(_)) => return Err(Finish::NearReset),
            }
        }
        if !self.prefix.is_empty() {
            self.put(None);
        }
        if self.tls.wants_write() {
            moved = true;
            self.flush(cx);
        }
        Ok(moved)
    }

    /// Encrypts what an earlier stage had read, with OPEN before it.
    fn put_replay(&mut self) -> bool {
        if !self.replay_unsent {
            return false;
        }
        self.replay_unsent = false;
        let replay = std::mem::take(&mut self.replay);
        for piece in replay.chunks(READ_BYTES) {
            self.put(Some(piece));
        }
        self.replay = replay;
        true
    }

    /// Encrypts the waiting control frames and, behind them, `data` as one DATA frame.
    fn put(&mut self, data: Option<&[u8]>) {
        let outcome = match data {
            Some(data) => {
                let header = data_header(data.len());
                let slices = [IoSlice::new(&self.prefix), IoSlice::new(&header), IoSlice::new(data)];
                self.tls.put(if self.prefix.is_empty() { &slices[1..] } else { &slices })
            }
            None => self.tls.put(&[IoSlice::new(&self.prefix)]),
        };
        self.prefix.clear();
        self.note(outcome);
    }

    /// Sends; true when nothing is left.
    fn flush(&mut self, cx: &mut Context<'_>) -> bool {
        match self.tls.poll_flush(self.tcp, cx) {
            Poll::Pending => false,
            Poll::Ready(outcome) => {
                let ok = outcome.is_ok();
                self.note(outcome);
                ok
            }
        }
    }

    fn note(&mut self, outcome: io::Result<()>) {
        if let Err(error) = outcome {
            self.tunnel_broken.get_or_insert(lost(&error));
        }
    }

    /// Tunnel -> near socket.
    fn pump_down(&mut self, cx: &mut Context<'_>) -> Result<bool, Finish> {
        if self.near_broken {
            return Ok(false);
        }
        let mut moved = self.drain(cx);
        if self.out.is_some() || self.near_broken {
            return Ok(moved);
        }
        if !self.fin_received {
            let mut buf = Buf::take();
            let end = self.gather(&mut buf, cx);
            if !buf.is_empty() {
                self.to_near += buf.filled().len() as u64;
                self.out = Some(buf);
                moved = true;
                self.drain(cx);
            }
            moved |= end?;
        }
        if self.fin_received && self.out.is_none() && !self.near_shut && !self.near_broken {
            moved = true;
            near::finish(self.near, &mut self.near_shut, &mut self.near_broken);
        }
        Ok(moved)
    }

    /// Writes what is held to the near socket.
    fn drain(&mut self, cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        while let Some(buf) = &mut self.out {
            match near::poll_send(self.near, cx, &[IoSlice::new(buf.filled())]) {
                Poll::Pending => break,
                Poll::Ready(Ok(n)) => buf.consume(n),
                Poll::Ready(Err(_)) => {
                    self.near_broken = true;
                    self.out = None;
                    return true;
                }
            }
            moved = true;
            self.out.take_if(|buf| buf.is_empty());
        }
        moved
    }

    /// Collects the payload of DATA frames up to one buffer, so that one write takes it. Stops behind FIN, because what
    /// follows belongs to the next connection. Says whether a frame was taken.
    fn gather(&mut self, buf: &mut Buf, cx: &mut Context<'_>) -> Result<bool, Finish> {
        let mut moved = false;
        while !self.fin_received && buf.spare().len() >= RECORD_BYTES {
            match self.tls.poll_fill(self.tcp, cx) {
                Poll::Pending => break,
                Poll::Ready(Ok(0)) => return Err(self.gone("the far agent closed the tunnel".into())),
                Poll::Ready(Err(error)) => return Err(self.gone(lost(&error))),
                Poll::Ready(Ok(_)) => {
                    self.take_frames(buf)?;
                    moved = true;
                }
            }
        }
        Ok(moved)
    }

    /// Takes the frames of one piece of plaintext.
    fn take_frames(&mut self, buf: &mut Buf) -> Result<(), Finish> {
        let chunk = self.tls.plaintext();
        let whole = chunk.len();
        let mut rest = chunk;
        let mut end = None;
        while !self.fin_received && end.is_none() {
            match self.decoder.next(&mut rest) {
                Ok(None) => break,
                Ok(Some(Frame::Data(piece))) if !self.opening => {
                    buf.append(piece);
                }
                Ok(Some(Frame::Fin)) if !self.opening => self.fin_received = true,
                Ok(Some(Frame::Reset)) => end = Some(Finish::FarReset),
                Ok(Some(frame)) => match (self.role, frame) {
                    (Role::Dialler(_), Frame::Opened) if self.opening => {
                        self.opening = false;
                        self.replay = BytesMut::new();
                    }
                    (Role::Dialler(_), Frame::Refused(refusal)) if self.opening => {
                        end = Some(Finish::Refused(refusal));
                    }
                    (Role::Dialler(_), Frame::Drain) => {
                        self.drain_seen = true;
                        if self.opening {
                            end = Some(Finish::Unread("the far agent drains".into()));
                        }
                    }
                    (_, frame) => end = Some(Finish::Lost(format!("unexpected frame {frame:?}"))),
                },
                Err(error) => end = Some(Finish::Lost(error.to_string())),
            }
        }
        let used = whole - rest.len();
        self.tls.consume(used);
        end.map_or(Ok(()), Err)
    }

    /// Whether the far side has not answered OPEN, and its kernel has acknowledged nothing of it.
    pub(super) fn is_unanswered(&self) -> bool {
        self.opening && !sys::acknowledged_beyond(self.tcp, self.sent_before).unwrap_or(true)
    }

    /// The tunnel is gone; when none of OPEN left, or none of it had arrived, the far side cannot have read it.
    fn gone(&self, text: String) -> Finish {
        let unread = || sys::ended_unread(self.tcp, self.sent_before).unwrap_or(false);
        if self.opening && (self.tls.sent() == self.sent_before || unread()) {
            Finish::Unread(text)
        } else {
            Finish::Lost(text)
        }
    }
}
