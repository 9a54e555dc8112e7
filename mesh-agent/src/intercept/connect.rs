//! A socket of a pod's namespace, connected. In: the socket, bound or not, and where to. Out: a stream of the calling runtime.

use std::io;
use std::net::SocketAddr;

use rustix::io::Errno;
use socket2::Socket;
use tokio::net::TcpStream;

/// Over loopback the connection is there when the system call returns: then no turn of the runtime is waited for.
pub(super) async fn connect(socket: Socket, dst: SocketAddr) -> io::Result<TcpStream> {
    match socket.connect(&dst.into()) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::INPROGRESS) => {}
        result => result?,
    }
    let there = socket.peer_addr().is_ok();
    let stream = TcpStream::from_std(socket.into())?;
    if !there {
        stream.writable().await?;
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
    }
    Ok(stream)
}
