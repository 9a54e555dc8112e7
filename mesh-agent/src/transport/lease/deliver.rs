//! The direction from the tunnel to the near socket: frames become bytes, FIN becomes a half-close. Belongs to
//! [`Flow`], whose state it drives.

use std::io::IoSlice;
use std::task::{Context, Poll};

use bytes::BytesMut;

use super::finish::{Finish, lost};
use super::flow::{Flow, Role};
use super::frame::Frame;
use super::link::Control;
use crate::transport::buf::Buf;
use crate::transport::near;

/// Plaintext of one TLS record at most: the room that gathering needs.
const RECORD_BYTES: usize = 16 * 1024;

impl Flow<'_> {
    /// Tunnel -> near socket.
    pub(super) fn pump_down(&mut self, cx: &mut Context<'_>) -> Result<bool, Finish> {
        if self.near_broken {
            return Ok(false);
        }
        let mut moved = self.drain(cx);
        if self.out.is_some() || self.near_broken {
            return Ok(moved);
        }
        if !self.fin_received && !self.tunnel_quiet {
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
        if self.fin_received && !self.fin_sent && matches!(self.role, Role::Dialler(_)) {
            self.watch(cx)?;
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
            let sent = if self.fin_received {
                near::poll_send_last(self.near, cx, buf.filled())
            } else {
                near::poll_send(self.near, cx, &[IoSlice::new(buf.filled())])
            };
            match sent {
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
    pub(super) fn gather(&mut self, buf: &mut Buf, cx: &mut Context<'_>) -> Result<bool, Finish> {
        let mut moved = false;
        while !self.fin_received && buf.spare().len() >= RECORD_BYTES {
            match self.tls.poll_fill(self.tcp, cx) {
                Poll::Pending => {
                    self.tunnel_quiet = true;
                    break;
                }
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

    /// Looks for what may follow the acceptor's FIN while the client can still send: its application is reset, the
    /// agent drains, or the tunnel ends. Before the dialler's own FIN nothing of a next connection can come.
    fn watch(&mut self, cx: &mut Context<'_>) -> Result<(), Finish> {
        loop {
            match self.tls.poll_fill(self.tcp, cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(0)) => return Err(self.gone("the far agent closed the tunnel".into())),
                Poll::Ready(Err(error)) => return Err(self.gone(lost(&error))),
                Poll::Ready(Ok(_)) => {}
            }
            let chunk = self.tls.plaintext();
            let mut rest = chunk;
            let frame = self.decoder.next(&mut rest).map(|frame| frame.map(Control::from));
            let used = chunk.len() - rest.len();
            self.tls.consume(used);
            match frame {
                Ok(None) => {}
                Ok(Some(Control::Drain)) => self.drain_seen = true,
                Ok(Some(Control::Reset)) => return Err(Finish::FarReset),
                Ok(Some(_)) => return Err(Finish::Lost("a frame behind FIN".into())),
                Err(error) => return Err(Finish::Lost(error.to_string())),
            }
        }
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
                Ok(Some(Frame::Fin(delivered))) if !self.opening => {
                    self.fin_received = true;
                    if matches!(self.role, Role::Dialler(_)) {
                        self.delivered_at_fin = delivered;
                    }
                }
                // Of the connection before: its application was reset after its FIN.
                Ok(Some(Frame::Reset)) if self.opening => {}
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
}
