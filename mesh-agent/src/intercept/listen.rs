//! The agent's listeners in a pod's network namespace. In: the namespace. Out: bound, listening, non-blocking sockets.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use mesh_common::{ListenerSlot, PORT_HELD, PORT_INBOUND, PORT_MTLS, PORT_OUTBOUND};
use socket2::Socket;

use super::pod::PodListeners;
use crate::sys::{self, NetNs};

/// Pending connections of one listener; the kernel lowers it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Why a pod's listeners could not be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum ListenError {
    /// A process of the pod, or another agent, has the port.
    #[error("port {0} is taken in the pod's network namespace")]
    PortTaken(u16),
    /// Anything else.
    #[error("listening on {address}: {source}")]
    Socket {
        /// Where.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The sockets of one pod, before they are given to the data plane.
#[derive(Debug)]
pub(super) struct Sockets {
    outbound: Vec<Socket>,
    /// Those that the kernel's lookup must find.
    pub(super) inbound: Vec<(ListenerSlot, Socket)>,
}

/// Opens every listener of a pod. IPv6 is left out where the namespace has none and the pod needs none.
pub(super) fn open(netns: &NetNs, addresses: &[IpAddr]) -> Result<Sockets, ListenError> {
    // Held connections are answered from there, each from a socket of its own.
    drop(bound(netns, SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), PORT_HELD))?);
    let v4: IpAddr = Ipv4Addr::LOCALHOST.into();
    let v6: IpAddr = Ipv6Addr::LOCALHOST.into();
    let mut sockets = Sockets {
        outbound: vec![listen(netns, SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), PORT_OUTBOUND))?],
        inbound: vec![
            (ListenerSlot::InboundV4, listen(netns, SocketAddr::new(v4, PORT_INBOUND))?),
            (ListenerSlot::MtlsV4, listen(netns, SocketAddr::new(v4, PORT_MTLS))?),
        ],
    };
    let plan = [
        (None, SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), PORT_OUTBOUND)),
        (Some(ListenerSlot::InboundV6), SocketAddr::new(v6, PORT_INBOUND)),
        (Some(ListenerSlot::MtlsV6), SocketAddr::new(v6, PORT_MTLS)),
    ];
    let needed = addresses.iter().any(IpAddr::is_ipv6);
    for (slot, address) in plan {
        match (listen(netns, address), slot) {
            (Ok(socket), Some(slot)) => sockets.inbound.push((slot, socket)),
            (Ok(socket), None) => sockets.outbound.push(socket),
            (Err(ListenError::Socket { .. }), _) if !needed => {}
            (Err(error), _) => return Err(error),
        }
    }
    Ok(sockets)
}

/// Opens the listeners for plaintext alone, on a host: what its units dial is held, and tunnels to them are not there yet.
pub(super) fn open_on_host(netns: &NetNs) -> Result<Sockets, ListenError> {
    let v4 = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT_INBOUND);
    let v6 = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), PORT_INBOUND);
    // Held connections are answered from there, each from a socket of its own.
    drop(bound(netns, SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), PORT_HELD))?);
    let mut inbound = vec![(ListenerSlot::InboundV4, listen(netns, v4)?)];
    match listen(netns, v6) {
        Ok(socket) => inbound.push((ListenerSlot::InboundV6, socket)),
        // A host without IPv6.
        Err(ListenError::Socket { .. }) => {}
        Err(taken) => return Err(taken),
    }
    Ok(Sockets { outbound: Vec::new(), inbound })
}

fn listen(netns: &NetNs, address: SocketAddr) -> Result<Socket, ListenError> {
    let socket = bound(netns, address)?;
    socket.listen(BACKLOG).map_err(|source| failed(address, source))?;
    Ok(socket)
}

fn bound(netns: &NetNs, address: SocketAddr) -> Result<Socket, ListenError> {
    let bind = || -> io::Result<Socket> {
        let socket = netns.tcp_socket(address.is_ipv6())?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        // A restarted agent finds its connections of a moment ago in TIME_WAIT. Never SO_REUSEPORT: a pod's process
        // could join the group.
        socket.set_reuse_address(true)?;
        // Accepted sockets inherit it: an urgent byte that comes with the first segment stays in its place.
        sys::face_application(&socket)?;
        socket.bind(&address.into())?;
        Ok(socket)
    };
    bind().map_err(|source| failed(address, source))
}

fn failed(address: SocketAddr, source: io::Error) -> ListenError {
    match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::PortTaken(address.port()),
        _ => ListenError::Socket { address, source },
    }
}

impl Sockets {
    /// Goes on with the listeners of the agent before: the same sockets, so that what waits in them is not lost.
    pub(super) fn adopt(listeners: PodListeners) -> io::Result<Self> {
        let slots = |listeners: Vec<TcpListener>, v4, v6| {
            listeners.into_iter().map(move |listener| {
                let slot = if listener.local_addr()?.is_ipv6() { v6 } else { v4 };
                Ok((slot, Socket::from(listener)))
            })
        };
        let PodListeners { outbound, inbound, mtls, .. } = listeners;
        let plain = slots(inbound, ListenerSlot::InboundV4, ListenerSlot::InboundV6);
        let mtls = slots(mtls, ListenerSlot::MtlsV4, ListenerSlot::MtlsV6);
        Ok(Self {
            outbound: outbound.into_iter().map(Socket::from).collect(),
            inbound: plain.chain(mtls).collect::<io::Result<_>>()?,
        })
    }

    /// The listeners as the data plane takes them.
    pub(super) fn into_listeners(self) -> PodListeners {
        let mut listeners = PodListeners {
            outbound: self.outbound.into_iter().map(TcpListener::from).collect(),
            ..PodListeners::default()
        };
        for (slot, socket) in self.inbound {
            match slot {
                ListenerSlot::InboundV4 | ListenerSlot::InboundV6 => listeners.inbound.push(socket.into()),
                ListenerSlot::MtlsV4 | ListenerSlot::MtlsV6 => listeners.mtls.push(socket.into()),
            }
        }
        listeners
    }
}
