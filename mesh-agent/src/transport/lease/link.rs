//! One `ferromesh/1` connection between two agents: TLS, the frame decoder, and what decides whether it may be leased.

use std::io::{self, IoSlice};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use tokio::net::TcpStream;

use super::ended::Ended;
use super::frame::{Decoder, Frame, encode};
use crate::identify::ProvenPeer;
use crate::transport::near;
use crate::transport::tls_io::{TlsIo, TlsState};

/// One connection between two agents.
#[derive(Debug)]
pub(in crate::transport) struct Link {
    pub(super) tcp: TcpStream,
    pub(super) tls: TlsState,
    pub(super) decoder: Decoder,
    /// Who is at the other end.
    pub(super) peer: Rc<ProvenPeer>,
    /// When it is that no longer.
    pub(super) ended: Ended,
    /// The far side has not said yet that it delivered everything of the last connection.
    pub(super) awaiting_done: bool,
    /// The far side will take no further OPEN.
    pub(super) draining: bool,
    /// When it was last given back.
    pub(super) idle_since: Instant,
}

/// What an idle connection is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Idle {
    /// It can be leased.
    Free,
    /// The far side is still delivering.
    Busy,
    /// It has to be closed.
    Dead,
}

impl Link {
    /// A connection whose handshake is over.
    pub(in crate::transport) fn new(io: TlsIo, peer: Rc<ProvenPeer>) -> Box<Self> {
        Box::new(Self {
            tcp: io.tcp,
            tls: io.tls,
            decoder: Decoder::default(),
            ended: Ended::of(Rc::clone(&peer)),
            peer,
            awaiting_done: false,
            draining: false,
            idle_since: Instant::now(),
        })
    }

    /// Looks at what arrived while the connection was idle. Costs no system call when nothing did.
    pub(super) fn check_idle(&mut self) -> Idle {
        if self.draining || !self.peer.may_carry_more() || self.peer.check().is_err() {
            return Idle::Dead;
        }
        let mut cx = Context::from_waker(Waker::noop());
        loop {
            match self.poll_frame(&mut cx) {
                Poll::Pending if self.awaiting_done => return Idle::Busy,
                Poll::Pending => return Idle::Free,
                Poll::Ready(Ok(Some(Control::Done))) if self.awaiting_done => self.awaiting_done = false,
                // The application of the last connection was reset after its FIN.
                Poll::Ready(Ok(Some(Control::Reset))) if !self.awaiting_done => {}
                // DRAIN, the end of the connection, or what an idle connection must not carry.
                Poll::Ready(_) => return Idle::Dead,
            }
        }
    }

    /// The next frame on a connection that carries no application bytes now; `None` at the end of the connection.
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Control>>> {
        loop {
            let available = match self.tls.poll_fill(&self.tcp, cx) {
                Poll::Pending => {
                    // rustls may have something to answer (KeyUpdate).
                    if self.tls.wants_write()
                        && let Poll::Ready(Err(e)) = self.tls.poll_flush(&self.tcp, cx)
                    {
                        return Poll::Ready(Err(e));
                    }
                    return Poll::Pending;
                }
                Poll::Ready(outcome) => outcome?,
            };
            if available == 0 {
                return Poll::Ready(Ok(None));
            }
            let chunk = self.tls.plaintext();
            let mut rest = chunk;
            let frame = self.decoder.next(&mut rest).map_err(invalid)?.map(Control::from);
            let used = chunk.len() - rest.len();
            self.tls.consume(used);
            if let Some(frame) = frame {
                return Poll::Ready(Ok(Some(frame)));
            }
        }
    }

    /// Encrypts one control frame.
    pub(super) fn put_frame(&mut self, frame: &Frame<'_>) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(64);
        encode(frame, &mut bytes);
        self.tls.put(&[IoSlice::new(&bytes)])
    }

    /// Sends one control frame.
    pub(super) async fn send_frame(&mut self, frame: &Frame<'_>) -> io::Result<()> {
        self.put_frame(frame)?;
        std::future::poll_fn(|cx| self.tls.poll_flush(&self.tcp, cx)).await
    }

    /// Ends the connection in the middle: RESET as far as it goes without waiting, then RST.
    pub(in crate::transport) fn abort(mut self, tell: bool) {
        if tell {
            self.flush_now();
            if !self.tls.wants_write() && self.put_frame(&Frame::Reset).is_ok() {
                self.flush_now();
            }
        }
        near::reset(self.tcp);
    }

    /// Ends an idle connection.
    pub(super) fn close(mut self) {
        self.tls.put_close();
        self.flush_now();
    }

    /// Sends what goes without waiting.
    pub(super) fn flush_now(&mut self) {
        let mut cx = Context::from_waker(Waker::noop());
        if let Poll::Ready(Err(error)) = self.tls.poll_flush(&self.tcp, &mut cx) {
            tracing::debug!(%error, "the last bytes of a tunnel were not sent");
        }
    }
}

/// A frame that was taken off the connection, without the bytes of DATA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Control {
    Open(crate::transport::Open),
    Opened,
    Refused(crate::transport::Refusal),
    Data(usize),
    Fin,
    Reset,
    Drain,
    Done,
}

impl From<Frame<'_>> for Control {
    fn from(frame: Frame<'_>) -> Self {
        match frame {
            Frame::Open(open) => Self::Open(open),
            Frame::Opened => Self::Opened,
            Frame::Refused(refusal) => Self::Refused(refusal),
            Frame::Data(bytes) => Self::Data(bytes.len()),
            Frame::Fin(_) => Self::Fin,
            Frame::Reset => Self::Reset,
            Frame::Drain => Self::Drain,
            Frame::Done => Self::Done,
        }
    }
}

pub(super) fn invalid(error: super::frame::FrameError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
