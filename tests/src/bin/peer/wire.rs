//! What servers and clients share: listeners, names for errors, bytes that are known beforehand.

use std::io::{self, ErrorKind, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

use anyhow::{Context, Result};
use socket2::{Domain, Socket, Type};

/// A listener with a long queue; `[::]` takes IPv4 as well.
pub(crate) fn listen(at: SocketAddr) -> Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&at.into()).with_context(|| format!("bind {at}"))?;
    socket.listen(4096)?;
    Ok(socket.into())
}

/// Runs `serve` on a thread of its own for each connection, for ever.
pub(crate) fn each(
    at: SocketAddr,
    serve: impl Fn(TcpStream) -> io::Result<()> + Copy + Send + 'static,
) -> Result<()> {
    let listener = listen(at)?;
    loop {
        let (stream, _) = listener.accept()?;
        let work = move || {
            // How a client ends its connection is no failure of the server.
            drop(serve(stream));
        };
        thread::Builder::new().stack_size(128 << 10).spawn(work)?;
    }
}

/// A short name that tests compare.
pub(crate) fn name_of(error: &io::Error) -> String {
    let name = match error.kind() {
        ErrorKind::ConnectionRefused => "refused",
        ErrorKind::ConnectionReset => "reset",
        ErrorKind::ConnectionAborted => "aborted",
        ErrorKind::HostUnreachable => "host-unreachable",
        ErrorKind::NetworkUnreachable => "net-unreachable",
        ErrorKind::TimedOut | ErrorKind::WouldBlock => "timeout",
        ErrorKind::BrokenPipe => "broken-pipe",
        ErrorKind::AddrNotAvailable => "no-address-left",
        _ => return error.to_string(),
    };
    name.to_owned()
}

/// Reads to the end; says what came and how it ended.
pub(crate) fn drain(stream: &mut TcpStream, limit: usize) -> (Vec<u8>, String) {
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return (all, "eof".to_owned()),
            Ok(read) => all.extend_from_slice(&buffer[..read]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return (all, name_of(&error)),
        }
        if all.len() >= limit {
            return (all, "limit".to_owned());
        }
    }
}

/// Bytes without end that both sides can make for themselves (xorshift).
pub(crate) struct Known(u64);

impl Known {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(crate) fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            chunk.copy_from_slice(&self.0.to_le_bytes()[..chunk.len()]);
        }
    }
}
