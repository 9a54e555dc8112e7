//! The two directions of one application connection on a leased tunnel connection, as a state machine that is polled:
//! near socket -> DATA and FIN; DATA and FIN -> near socket; RESET and REFUSED end it.

use std::io::{self, IoSlice};
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::net::TcpStream;

use super::finish::{Finish, lost};
use super::frame::{Decoder, Frame, HEADER_BYTES, data_header, encode};
use crate::sys;
use crate::transport::Open;
use crate::transport::buf::{BUF_BYTES, Buf};
use crate::transport::near;
use crate::transport::tls_io::TlsState;

/// What is kept of the near side's bytes until OPENED, so that they can be sent again elsewhere.
pub(super) const REPLAY_BYTES: usize = 64 * 1024;
/// Payload of one DATA frame: with its header it fills whole TLS records.
const READ_BYTES: usize = BUF_BYTES - HEADER_BYTES;
/// How much the application may be given before OPENED leaves without waiting for its first bytes. Far less than the
/// dialler's replay window, so that it never waits for OPENED.
const HOLD_BYTES: u64 = 16 * 1024;
/// Rounds before other connections of this worker get their turn.
const ROUNDS: usize = 16;

/// Which end of the tunnel this is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Role {
    /// Sends OPEN, unless the far side said OPENED before there was a near socket.
    Dialler(Option<Open>),
    /// Answers OPENED.
    Acceptor,
}

/// Both directions of a connection.
pub(super) struct Flow<'a> {
    pub(super) tcp: &'a TcpStream,
    pub(super) tls: &'a mut TlsState,
    pub(super) decoder: &'a mut Decoder,
    pub(super) near: &'a TcpStream,
    pub(super) role: Role,
    /// Control frames that leave with the next write.
    prefix: Vec<u8>,
    /// OPENED is still in `prefix`.
    holds_opened: bool,
    /// What was sent before OPENED came.
    pub(super) replay: BytesMut,
    replay_unsent: bool,
    pub(super) opening: bool,
    sent_before: u64,
    pub(super) out: Option<Buf>,
    pub(super) fin_sent: bool,
    pub(super) fin_received: bool,
    pub(super) near_shut: bool,
    /// What the acceptor's FIN said that its application had been given.
    pub(super) delivered_at_fin: Option<u64>,
    done_sent: bool,
    reset_sent: bool,
    /// In this turn of the task a read has found nothing more: it wakes the task, and need not be asked again.
    near_quiet: bool,
    /// The same of the tunnel.
    pub(super) tunnel_quiet: bool,
    /// A read of the near socket failed; what it had brought goes first.
    near_unreadable: bool,
    /// A write to the near socket failed: what it had sent is carried, then it counts as reset.
    pub(super) near_broken: bool,
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
        match role {
            Role::Dialler(Some(open)) => encode(&Frame::Open(open), &mut prefix),
            Role::Dialler(None) => {}
            Role::Acceptor => encode(&Frame::Opened, &mut prefix),
        }
        Self {
            sent_before: tls.sent(),
            from_near: replay.len() as u64,
            replay_unsent: !replay.is_empty(),
            opening: matches!(role, Role::Dialler(Some(_))),
            tcp,
            tls,
            decoder,
            near,
            role,
            prefix,
            holds_opened: matches!(role, Role::Acceptor),
            replay,
            out: None,
            fin_sent: false,
            fin_received: false,
            near_shut: false,
            delivered_at_fin: None,
            done_sent: false,
            reset_sent: false,
            near_quiet: false,
            tunnel_quiet: false,
            near_unreadable: false,
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
        (self.near_quiet, self.tunnel_quiet) = (false, false);
        for _ in 0..ROUNDS {
            let moved = match self.round(cx) {
                Ok(moved) => moved,
                // The far side's answer to RESET.
                Err(Finish::Lost(_)) if self.reset_sent => return Poll::Ready(Finish::NearReset),
                Err(finish) => return Poll::Ready(finish),
            };
            if self.is_complete() {
                return Poll::Ready(Finish::Clean);
            }
            if !moved {
                return match self.tunnel_broken.take() {
                    _ if self.near_failed || self.near_broken => self.without_near(cx),
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
        let mut moved = match self.role {
            Role::Dialler(_) => self.pump_up(cx)? | self.pump_down(cx)?,
            // What came with OPEN is delivered first: the answer may take OPENED along.
            Role::Acceptor => self.pump_down(cx)? | self.pump_up(cx)?,
        };
        let over = self.fin_sent && self.near_shut;
        if matches!(self.role, Role::Acceptor) && over && !self.done_sent && !self.is_free() {
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

    /// Whether both FINs have passed and the acceptor's said that everything had been delivered: then nothing of this
    /// connection follows, and the dialler need not wait for DONE.
    pub(super) fn is_free(&self) -> bool {
        self.fin_sent && self.fin_received && self.is_delivered()
    }

    /// Whether everything that the dialler has sent was delivered when the acceptor's FIN left.
    fn is_delivered(&self) -> bool {
        let carried = if matches!(self.role, Role::Acceptor) { self.to_near } else { self.from_near };
        self.delivered_at_fin == Some(carried)
    }

    /// The near socket was reset. After a FIN that said that all was delivered, the dialler may have leased the
    /// connection again already, so it is told without ending the connection: its next frame shows where it is.
    fn without_near(&mut self, cx: &mut Context<'_>) -> Poll<Finish> {
        if !(matches!(self.role, Role::Acceptor) && self.fin_sent && self.is_delivered()) {
            return Poll::Ready(Finish::NearReset);
        }
        if !self.fin_received {
            if !self.reset_sent {
                self.reset_sent = true;
                encode(&Frame::Reset, &mut self.prefix);
                self.put(None);
            }
            if self.tls.wants_write() {
                self.flush(cx);
            }
            let mut late = Buf::take();
            match self.gather(&mut late, cx) {
                Err(_) => return Poll::Ready(Finish::NearReset),
                Ok(_) if !late.is_empty() => return Poll::Ready(Finish::NearReset),
                Ok(_) if !self.fin_received => return Poll::Pending,
                Ok(_) => {}
            }
        }
        if self.tls.wants_write() && !self.flush(cx) && self.tunnel_broken.is_none() {
            return Poll::Pending;
        }
        Poll::Ready(Finish::NearReset)
    }

    /// Lets nothing follow that would stand before OPENED.
    pub(super) fn end(&mut self) {
        if self.holds_opened && self.tunnel_broken.is_none() {
            self.put(None);
        }
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
        if self.near_unreadable {
            return Err(Finish::NearReset);
        }
        let room = if self.opening { REPLAY_BYTES.saturating_sub(self.replay.len()) } else { READ_BYTES };
        if !self.fin_sent && room > 0 && !self.near_quiet {
            let mut buf = Buf::take();
            let eof = self.read_near(&mut buf, room.min(READ_BYTES), cx);
            if eof && self.near_broken {
                return Err(Finish::NearReset);
            }
            let data = buf.filled();
            self.from_near += data.len() as u64;
            if self.opening {
                self.replay.extend_from_slice(data);
            }
            if !data.is_empty() || eof {
                self.put_data(data, eof);
            }
        }
        if !self.prefix.is_empty() && !self.may_hold() {
            self.put(None);
        }
        if self.tls.wants_write() {
            moved = true;
            self.flush(cx);
        }
        Ok(moved)
    }

    /// Reads what the near socket has, at most `room` bytes; says whether its FIN is behind them.
    fn read_near(&mut self, buf: &mut Buf, room: usize, cx: &mut Context<'_>) -> bool {
        while buf.filled().len() < room {
            let left = room - buf.filled().len();
            match near::poll_recv(self.near, cx, &mut buf.spare()[..left]) {
                Poll::Pending => {
                    self.near_quiet = true;
                    return false;
                }
                Poll::Ready(Ok(0)) => return true,
                Poll::Ready(Ok(n)) => buf.commit(n),
                Poll::Ready(Err(_)) => {
                    self.near_unreadable = true;
                    return false;
                }
            }
        }
        false
    }

    /// Whether OPENED may wait for the application's first bytes: the client has sent something, so it waits for an
    /// answer and not for the connection.
    fn may_hold(&self) -> bool {
        self.holds_opened && (1..=HOLD_BYTES).contains(&self.to_near)
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

    /// Encrypts what was read, with FIN behind it when the near socket sent one.
    fn put_data(&mut self, data: &[u8], eof: bool) {
        if !eof {
            return self.put(Some(data));
        }
        self.fin_sent = true;
        if matches!(self.role, Role::Acceptor) {
            let waiting = self.out.as_ref().map_or(0, |buf| buf.filled().len() as u64);
            self.delivered_at_fin = Some(self.to_near - waiting);
        }
        let delivered = self.delivered_at_fin.filter(|_| matches!(self.role, Role::Acceptor));
        if !data.is_empty() {
            self.prefix.extend_from_slice(&data_header(data.len()));
            self.prefix.extend_from_slice(data);
        }
        encode(&Frame::Fin(delivered), &mut self.prefix);
        self.put(None);
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
        self.holds_opened = false;
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

    /// Whether the far side has not answered OPEN, and its kernel has acknowledged nothing of it.
    pub(super) fn is_unanswered(&self) -> bool {
        self.opening && !sys::acknowledged_beyond(self.tcp, self.sent_before).unwrap_or(true)
    }

    /// The tunnel is gone; when none of OPEN left, or none of it had arrived, the far side cannot have read it.
    pub(super) fn gone(&self, text: String) -> Finish {
        let unread = || sys::ended_unread(self.tcp, self.sent_before).unwrap_or(false);
        if self.opening && (self.tls.sent() == self.sent_before || unread()) {
            Finish::Unread(text)
        } else {
            Finish::Lost(text)
        }
    }
}
