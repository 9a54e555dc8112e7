//! What the kernel knows of a TCP connection: how much was written, and how much of it the peer has acknowledged.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// How many bytes were written to a TCP socket since its connection began, as the peer counts acknowledgements.
pub fn bytes_written(socket: &impl AsFd) -> io::Result<u64> {
    loop {
        let before = tcp_info(socket)?.bytes_acked;
        let mut unacknowledged: libc::c_int = 0;
        // SAFETY: TIOCOUTQ writes one int.
        let result =
            unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut unacknowledged) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        // An acknowledgement between the two questions would be counted twice.
        if tcp_info(socket)?.bytes_acked == before {
            return Ok(before + u64::try_from(unacknowledged).unwrap_or(0));
        }
    }
}

/// Whether the peer has acknowledged anything beyond the first `bytes` bytes of the connection.
pub fn acknowledged_beyond(socket: &impl AsFd, bytes: u64) -> io::Result<bool> {
    Ok(tcp_info(socket)?.bytes_acked > bytes)
}

/// Whether a connection that is over ended before the peer can have read anything beyond its first `bytes` bytes: none
/// of that was acknowledged, and none of it was sent twice (else an acknowledgement may have been lost).
pub fn ended_unread(socket: &impl AsFd, bytes: u64) -> io::Result<bool> {
    let info = tcp_info(socket)?;
    Ok(info.bytes_acked <= bytes && info.retransmits == 0)
}

/// Sends the peer a packet without content at once: a window probe, which is what a socket sends that leaves repair mode.
/// Needs `CAP_NET_ADMIN` over the socket's namespace.
pub fn probe_peer(socket: &impl AsFd) -> io::Result<()> {
    for on in [1, 0] {
        set_repair(socket, on)?;
    }
    Ok(())
}

fn set_repair(socket: &impl AsFd, on: libc::c_int) -> io::Result<()> {
    let length = size_of_val(&on) as libc::socklen_t;
    // SAFETY: the option is one int, which lives for the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_REPAIR,
            (&raw const on).cast(),
            length,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The first fields of the kernel's `tcp_info`, as far as they are needed here.
#[repr(C)]
#[derive(Default)]
struct TcpInfo {
    state: u8,
    ca_state: u8,
    retransmits: u8,
    rest: [u8; 5],
    times: [u32; 24],
    rates: [u64; 2],
    bytes_acked: u64,
}

fn tcp_info(socket: &impl AsFd) -> io::Result<TcpInfo> {
    let mut info = TcpInfo::default();
    let mut length = size_of::<TcpInfo>() as libc::socklen_t;
    // SAFETY: the buffer has `length` bytes, of which every pattern is valid; the kernel writes no more.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(info) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use super::*;

    const TCP_REPAIR: libc::c_int = 19;

    /// The socket is gone without FIN or RST, as after a reboot.
    fn vanish(socket: TcpStream) {
        let on: libc::c_int = 1;
        // SAFETY: the value is an int and the length says so.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_TCP,
                TCP_REPAIR,
                (&raw const on).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        drop(socket);
    }

    /// Both ends of a connection that has carried bytes in both directions.
    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut far = listener.accept().unwrap().0;
        near.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        near.write_all(b"hello").unwrap();
        far.read_exact(&mut [0; 5]).unwrap();
        far.write_all(b"hello").unwrap();
        near.read_exact(&mut [0; 5]).unwrap();
        (near, far)
    }

    #[test]
    fn a_peer_that_has_forgotten_the_connection_cannot_have_read_what_its_reset_answers() {
        let (mut near, far) = pair();
        let written = bytes_written(&near).unwrap();
        vanish(far);
        near.write_all(b"open").unwrap();
        let error = near.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(ended_unread(&near, written).unwrap());
    }

    #[test]
    fn a_peer_that_has_received_the_bytes_may_have_read_them() {
        let (mut near, far) = pair();
        let written = bytes_written(&near).unwrap();
        assert!(!acknowledged_beyond(&near, written).unwrap());
        near.write_all(b"open").unwrap();
        while !acknowledged_beyond(&near, written).unwrap() {
            std::thread::sleep(Duration::from_millis(5));
        }
        crate::sys::reset_on_close(&far).unwrap();
        drop(far);
        near.read(&mut [0]).unwrap_err();
        assert!(!ended_unread(&near, written).unwrap());
        assert_eq!(bytes_written(&near).unwrap(), written + 4);
    }
}
