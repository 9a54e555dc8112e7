//! A TLS connection driven directly: 64 KiB a read from the socket, records written out with one `writev`, plaintext
//! read where rustls left it. The socket and the TLS state are separate values, so that a relay can watch the socket
//! while it drives the state.
//!
//! A finished handshake comes in (bytes that arrived behind it are kept), plaintext goes in and out.

use std::io::{self, BufRead, IoSlice, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::Connection;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::buf::Buf;
use super::near;
use crate::sys;

/// Encrypted bytes that may wait in [`TlsIo`] before `poll_write` asks its caller to wait.
const WRITE_BACKLOG: u64 = 128 * 1024;

/// The state of a TLS connection without its socket.
#[derive(Debug)]
pub(super) struct TlsState {
    conn: Connection,
    raw: Option<Buf>,
    sent: u64,
}

/// A TLS connection with its socket.
#[derive(Debug)]
pub(super) struct TlsIo {
    /// The socket.
    pub(super) tcp: TcpStream,
    /// The rest.
    pub(super) tls: TlsState,
    backlog: u64,
}

impl TlsState {
    /// Whether encrypted bytes wait to be sent.
    pub(super) fn wants_write(&self) -> bool {
        self.conn.wants_write()
    }

    /// How many bytes the kernel has taken since the connection began, the handshake's included.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// Encrypts `slices` as one piece. Bounded by the caller, who flushes before the next.
    pub(super) fn put(&mut self, slices: &[IoSlice<'_>]) -> io::Result<()> {
        let wanted: usize = slices.iter().map(|slice| slice.len()).sum();
        let taken = self.conn.writer().write_vectored(slices)?;
        if taken < wanted { Err(io::ErrorKind::WriteZero.into()) } else { Ok(()) }
    }

    /// Appends a close_notify.
    pub(super) fn put_close(&mut self) {
        self.conn.send_close_notify();
    }

    /// Sends what was encrypted.
    pub(super) fn poll_flush(&mut self, tcp: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.conn.wants_write() {
            let mut sink = Sink { tcp, cx };
            match self.conn.write_tls(&mut sink) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(n) => self.sent += n as u64,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Waits until plaintext is there and says how much is in one piece; 0 is the peer's close_notify. An end without
    /// close_notify is `UnexpectedEof`.
    pub(super) fn poll_fill(&mut self, tcp: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        loop {
            match self.conn.reader().into_first_chunk() {
                Ok(chunk) => return Poll::Ready(Ok(chunk.len())),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
            let mut raw = self.raw.take().unwrap_or_else(Buf::take);
            if raw.is_empty() {
                // Pending drops `raw`, so that a connection that waits holds no buffer.
                let n = ready!(near::poll_recv(tcp, cx, raw.spare()))?;
                if n == 0 {
                    self.conn.read_tls(&mut io::empty())?;
                    continue;
                }
                raw.commit(n);
            }
            let fed = self.feed(&mut raw);
            if !raw.is_empty() {
                self.raw = Some(raw);
            }
            if let Err(error) = fed {
                // The alert that says why; best effort, the connection is lost either way.
                if let Poll::Ready(Err(e)) = self.poll_flush(tcp, cx) {
                    tracing::debug!(error = %e, "the TLS alert was not sent");
                }
                return Poll::Ready(Err(error));
            }
        }
    }

    /// The plaintext that [`TlsState::poll_fill`] found, in one piece.
    pub(super) fn plaintext(&mut self) -> &[u8] {
        self.conn.reader().into_first_chunk().unwrap_or_default()
    }

    /// Drops `n` bytes of [`TlsState::plaintext`].
    pub(super) fn consume(&mut self, n: usize) {
        self.conn.reader().consume(n);
    }

    /// The peer's chain, leaf first.
    pub(super) fn peer_certificates(&self) -> &[rustls::pki_types::CertificateDer<'static>] {
        self.conn.peer_certificates().unwrap_or_default()
    }

    /// Gives rustls bytes until a record has become plaintext or all bytes are taken.
    fn feed(&mut self, raw: &mut Buf) -> io::Result<()> {
        while !raw.is_empty() {
            let n = self.conn.read_tls(&mut raw.filled())?;
            raw.consume(n);
            let state =
                self.conn.process_new_packets().map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
            if state.plaintext_bytes_to_read() > 0 || state.peer_has_closed() {
                break;
            }
            if n == 0 {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a TLS record without end"));
            }
        }
        Ok(())
    }
}

impl TlsIo {
    /// Takes over after the handshake.
    pub(super) fn new(tcp: TcpStream, mut conn: Connection) -> Self {
        // The relays flush before they put more, which bounds what waits.
        conn.set_buffer_limit(None);
        // Unknown counts as none: then nothing that is sent later counts as unread.
        let sent = sys::bytes_written(&tcp).unwrap_or_default();
        Self { tcp, tls: TlsState { conn, raw: None, sent }, backlog: 0 }
    }
}

/// The socket as rustls writes to it.
struct Sink<'a, 'b> {
    tcp: &'a TcpStream,
    cx: &'a mut Context<'b>,
}

impl Write for Sink<'_, '_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(buf)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match near::poll_send(self.tcp, self.cx, slices) {
            Poll::Ready(outcome) => outcome,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsyncRead for TlsIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // KeyUpdate may have left an answer to send.
        if this.tls.wants_write()
            && let Poll::Ready(Err(e)) = this.tls.poll_flush(&this.tcp, cx)
        {
            return Poll::Ready(Err(e));
        }
        while buf.remaining() > 0 {
            match this.tls.poll_fill(&this.tcp, cx)? {
                Poll::Ready(0) => break,
                Poll::Ready(_) => {
                    let chunk = this.tls.plaintext();
                    let n = chunk.len().min(buf.remaining());
                    buf.put_slice(&chunk[..n]);
                    this.tls.consume(n);
                }
                Poll::Pending if buf.filled().is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TlsIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.backlog >= WRITE_BACKLOG {
            ready!(this.tls.poll_flush(&this.tcp, cx))?;
            this.backlog = 0;
        }
        let total: usize = slices.iter().map(|slice| slice.len()).sum();
        this.tls.put(slices)?;
        this.backlog += total as u64;
        Poll::Ready(Ok(total))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.tls.poll_flush(&this.tcp, cx))?;
        this.backlog = 0;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.tls.put_close();
        ready!(this.tls.poll_flush(&this.tcp, cx))?;
        Poll::Ready(near::shutdown_write(&this.tcp))
    }
}
