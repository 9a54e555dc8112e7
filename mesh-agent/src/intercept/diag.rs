//! The TCP sockets of a network namespace, as `ss` lists and closes them (`NETLINK_SOCK_DIAG`). In: a namespace. Out: its
//! connected sockets, with the cgroup that each was made in; and an end to one of them; the ports that are listened on.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::sys::NetNs;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const INET_DIAG_SKV6ONLY: u16 = 11;
const INET_DIAG_CGROUP_ID: u16 = 21;
const ENOENT: i32 = 2;

/// Lengths of `nlmsghdr`, `inet_diag_sockid`, and `inet_diag_msg`.
const HEADER: usize = 16;
const ID: usize = 48;
const MESSAGE: usize = 72;

/// Those in which bytes may still flow: ESTABLISHED, SYN_SENT, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT (as bits of their numbers).
const CONNECTED: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 8;

/// TCP_LISTEN. The kernel answers this from its table of listeners alone: `/proc/net/tcp` walks through every socket in
/// TIME_WAIT as well.
const LISTENING: u32 = 1 << 10;
const SYN_SENT: u8 = 2;

/// A TCP socket; one that listens has no remote end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DiagSocket {
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
    /// The cgroup that it was made in; of an accepted one, its listener's.
    pub(super) cgroup: Option<u64>,
    /// Of one that listens on every IPv6 address: not on IPv4 ones as well (`IPV6_V6ONLY`).
    pub(super) v6only: bool,
    /// Names the socket for as long as it lives, and no other.
    pub(super) cookie: u64,
    /// Whether its `connect()` has not been answered yet (SYN_SENT).
    pub(super) connecting: bool,
    family: u8,
    id: [u8; ID],
}

/// Every connected TCP socket of the namespace.
pub(super) fn connected(netns: &NetNs) -> io::Result<Vec<DiagSocket>> {
    in_state(netns, CONNECTED)
}

/// The connected socket of the namespace with these ends.
pub(super) fn find(netns: &NetNs, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<DiagSocket>> {
    let mut id = [0; ID];
    let ports = [(0, local.port()), (2, remote.port())];
    ports.into_iter().for_each(|(at, port)| id[at..at + 2].copy_from_slice(&port.to_be_bytes()));
    for (at, end) in [(4, local), (20, remote)] {
        match end.ip() {
            IpAddr::V4(v4) => id[at..at + 4].copy_from_slice(&v4.octets()),
            IpAddr::V6(v6) => id[at..at + 16].copy_from_slice(&v6.octets()),
        }
    }
    // INET_DIAG_NOCOOKIE: whichever it is now.
    id[40..].fill(u8::MAX);
    let family = if local.is_ipv4() { AF_INET } else { AF_INET6 };
    let socket = netns.diag_socket()?;
    ask(&socket, (SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_ACK), (family, CONNECTED), &id)?;
    let mut found = None;
    match answers(&socket, |body| found = parse(body)) {
        Err(error) if error.raw_os_error() == Some(ENOENT) => Ok(None),
        // A listener is found where no connection is.
        other => other.map(|()| found.filter(|socket| (socket.local, socket.remote) == (local, remote))),
    }
}

/// Every TCP socket of the namespace that listens.
pub(super) fn listeners(netns: &NetNs) -> io::Result<Vec<DiagSocket>> {
    in_state(netns, LISTENING)
}

/// The TCP ports of the namespace that somebody listens on for more than loopback.
pub(super) fn listening(netns: &NetNs) -> io::Result<HashSet<u16>> {
    let found = listeners(netns)?;
    Ok(found
        .iter()
        .map(|socket| socket.local)
        .filter(|at| !at.ip().is_loopback())
        .map(|at| at.port())
        .collect())
}

fn in_state(netns: &NetNs, states: u32) -> io::Result<Vec<DiagSocket>> {
    let mut found = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let socket = netns.diag_socket()?;
        ask(&socket, (SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP), (family, states), &[0; ID])?;
        match answers(&socket, |body| found.extend(parse(body))) {
            // A kernel without IPv6.
            Err(error) if family == AF_INET6 && error.raw_os_error() == Some(ENOENT) => {}
            other => other?,
        }
    }
    Ok(found)
}

/// Closes a socket of the namespace: its application gets ECONNABORTED, its peer RST. One that is gone already is fine.
pub(super) fn destroy(netns: &NetNs, victim: &DiagSocket) -> io::Result<()> {
    let socket = netns.diag_socket()?;
    ask(&socket, (SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK), (victim.family, u32::MAX), &victim.id)?;
    match answers(&socket, |_| {}) {
        Err(error) if error.raw_os_error() == Some(ENOENT) => Ok(()),
        other => other,
    }
}

/// Sends an `inet_diag_req_v2`.
fn ask(
    socket: &OwnedFd,
    (kind, flags): (u16, u16),
    (family, states): (u8, u32),
    id: &[u8; ID],
) -> io::Result<()> {
    let mut message = Vec::with_capacity(HEADER + 8 + ID);
    message.extend(((HEADER + 8 + ID) as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([family, IPPROTO_TCP, 0, 0]);
    message.extend(states.to_ne_bytes());
    message.extend(id);
    send(socket, &message, SendFlags::empty())?;
    Ok(())
}

/// Gives each answer's body to `each`, until the last.
fn answers(socket: &OwnedFd, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let (_, read) = recv(socket, &mut buffer[..], RecvFlags::empty())?;
        if walk(&buffer[..read.min(buffer.len())], &mut each)? {
            return Ok(());
        }
    }
}

/// The answers that came in one piece; true behind the last of all.
pub(super) fn walk(mut rest: &[u8], each: &mut impl FnMut(&[u8])) -> io::Result<bool> {
    while rest.len() >= HEADER {
        let length = u32_at(rest, 0) as usize;
        let body = rest.get(HEADER..length).ok_or(io::ErrorKind::InvalidData)?;
        match u16_at(rest, 4) {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR if body.len() < 4 => return Err(io::ErrorKind::InvalidData.into()),
            NLMSG_ERROR => {
                let error = (u32_at(body, 0) as i32).checked_neg().ok_or(io::ErrorKind::InvalidData)?;
                return if error == 0 { Ok(true) } else { Err(io::Error::from_raw_os_error(error)) };
            }
            _ => each(body),
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// Reads an `inet_diag_msg` and its attributes.
pub(super) fn parse(body: &[u8]) -> Option<DiagSocket> {
    let family = *body.first()?;
    let state = *body.get(1)?;
    let id: [u8; ID] = body.get(4..4 + ID)?.try_into().ok()?;
    let port = |at: usize| u16::from_be_bytes([id[at], id[at + 1]]);
    let address = |at: usize| -> IpAddr {
        let mut octets = [0; 16];
        octets.copy_from_slice(&id[at..at + 16]);
        match family {
            AF_INET => Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]).into(),
            _ => Ipv6Addr::from(octets).to_canonical(),
        }
    };
    let attributes = body.get(MESSAGE..)?;
    Some(DiagSocket {
        local: SocketAddr::new(address(4), port(0)),
        remote: SocketAddr::new(address(20), port(2)),
        cgroup: cgroup(attributes),
        v6only: attribute(attributes, INET_DIAG_SKV6ONLY).is_some_and(|value| value == [1]),
        cookie: u64::from(u32_at(&id, 40)) | u64::from(u32_at(&id, 44)) << 32,
        connecting: state == SYN_SENT,
        family,
        id,
    })
}

fn cgroup(attributes: &[u8]) -> Option<u64> {
    Some(u64::from_ne_bytes(attribute(attributes, INET_DIAG_CGROUP_ID)?.try_into().ok()?))
}

fn attribute(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    while attributes.len() >= 4 {
        let length = usize::from(u16_at(attributes, 0));
        let value = attributes.get(4..length)?;
        if u16_at(attributes, 2) == kind {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_socket_is_listed_with_its_cgroup_and_closed_by_its_cookie() {
        let Ok(netns) = NetNs::current() else {
            eprintln!("skipped: needs root");
            return;
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, from) = listener.accept().unwrap();
        let mine = |socket: &DiagSocket| socket.local == from;
        let listed = connected(&netns).unwrap();
        let socket = listed.iter().find(|socket| mine(socket)).unwrap();
        assert_eq!(socket.remote, listener.local_addr().unwrap());
        assert!(socket.cgroup.is_some_and(|id| id > 0), "{socket:?}");
        let at = listener.local_addr().unwrap();
        assert_eq!(find(&netns, from, at).unwrap().as_ref(), Some(socket));
        assert_eq!(find(&netns, "127.0.0.1:1".parse().unwrap(), at).unwrap(), None);
        assert_eq!(
            find(&netns, at, "127.0.0.1:1".parse().unwrap()).unwrap(),
            None,
            "only a listener is there"
        );
        destroy(&netns, socket).unwrap();
        assert_eq!(near.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
        assert_eq!(far.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        destroy(&netns, socket).unwrap();
        assert!(!connected(&netns).unwrap().iter().any(mine));
    }

    #[test]
    fn a_port_is_listened_on_for_more_than_loopback_or_not_at_all() {
        let Ok(netns) = NetNs::current() else {
            eprintln!("skipped: needs root");
            return;
        };
        let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
        let any: Vec<TcpListener> =
            ["0.0.0.0:0", "[::]:0"].iter().map(|at| TcpListener::bind(at).unwrap()).collect();
        let own: Vec<TcpListener> =
            ["127.0.0.1:0", "[::1]:0"].iter().map(|at| TcpListener::bind(at).unwrap()).collect();
        let connected = TcpStream::connect(any[0].local_addr().unwrap()).unwrap();
        let ports = listening(&netns).unwrap();
        assert!(any.iter().all(|listener| ports.contains(&port(listener))), "{ports:?}");
        assert!(!own.iter().any(|listener| ports.contains(&port(listener))), "{ports:?}");
        assert!(!ports.contains(&connected.local_addr().unwrap().port()));
    }

    #[test]
    fn what_is_cut_short_is_no_socket() {
        let whole = [AF_INET; MESSAGE];
        assert!(parse(&whole).is_some());
        for length in 0..MESSAGE {
            assert_eq!(parse(&whole[..length]), None);
        }
        assert_eq!(cgroup(&[200, 0, 21, 0, 1]), None);
        assert_eq!(cgroup(&[0, 0, 0, 0, 0]), None);
    }

    #[test]
    fn an_error_is_the_number_that_the_kernel_negates() {
        let answer = |error: i32| {
            let mut bytes = ((HEADER + 4) as u32).to_ne_bytes().to_vec();
            bytes.extend(NLMSG_ERROR.to_ne_bytes());
            bytes.extend([0; 10]);
            bytes.extend(error.to_ne_bytes());
            walk(&bytes, &mut |_| {})
        };
        assert!(answer(0).unwrap());
        assert_eq!(answer(-ENOENT).unwrap_err().raw_os_error(), Some(ENOENT));
        assert_eq!(answer(i32::MIN).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
