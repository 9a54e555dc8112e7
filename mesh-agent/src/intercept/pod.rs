//! One enrolled pod as the data plane sees it: its network namespace, and sockets made inside it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use mesh_common::{
    CLIENT_TOKEN_MASK, CLIENT_TOKEN_PREFIX, ClientKey, DIAL_MARK, ORIG_TOKEN_MASK, ORIG_TOKEN_PREFIX, OrigKey,
};
use mesh_core::model::WorkloadUid;
use socket2::Socket;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::connect::connect;
use super::held::Held;
use super::host::Host;
use super::maps::{Maps, addr, socket_addr};
use crate::sys::{self, NetNs};

/// How often a taken client key is drawn again.
const DRAWS: u32 = 64;
/// The ports that IPv6 applications are dialled from: the kernel's ephemeral range, in turn, since its own search takes a
/// millisecond once most of them are in TIME_WAIT.
const PORTS_FIRST: u16 = 32_768;
/// How many there are.
const PORTS: u16 = 28_232;

/// What changed among the enrolled pods of this node.
#[derive(Debug)]
pub enum PodEvent {
    /// A pod was enrolled: serve these listeners.
    Up(Arc<PodNet>, PodListeners),
    /// A pod was un-enrolled or is gone: stop accepting for it. `gone` also ends its open connections.
    Down {
        /// Which pod.
        uid: WorkloadUid,
        /// The pod no longer exists.
        gone: bool,
    },
    /// A connection that was held until its pod proved not to be enrolled: dial it plainly.
    Plain(Box<Held>),
}

/// The agent's listeners in one pod's network namespace (one a family; non-blocking).
#[derive(Debug, Default)]
pub struct PodListeners {
    /// 15001: redirected outbound connections.
    pub outbound: Vec<TcpListener>,
    /// 15006: inbound plaintext.
    pub inbound: Vec<TcpListener>,
    /// 15008: inbound mutual TLS.
    pub mtls: Vec<TcpListener>,
    /// Outbound connections that wait for an answer in `connect()`; `None`: accepted at once.
    pub held: Option<mpsc::UnboundedReceiver<Held>>,
}

/// An enrolled pod's network namespace.
#[derive(Debug)]
pub struct PodNet {
    /// The pod.
    pub uid: WorkloadUid,
    /// Cookie of the namespace.
    pub netns_cookie: u64,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// The namespace and the kernel's records; `None`: see [`PodNet::unintercepted`].
    kernel: Option<(Arc<NetNs>, Arc<Maps>)>,
    /// The host, where the namespace is one that units share.
    host: Option<Arc<Host>>,
    next_port: AtomicU16,
}

impl PodNet {
    pub(super) fn new(uid: WorkloadUid, addresses: Vec<IpAddr>, netns: Arc<NetNs>, maps: Arc<Maps>) -> Self {
        let next_port = AtomicU16::new(rand::random());
        Self {
            uid,
            netns_cookie: netns.cookie,
            addresses,
            kernel: Some((netns, maps)),
            host: None,
            next_port,
        }
    }

    /// A unit of a host, which has no address of its own.
    pub(super) fn on_host(uid: WorkloadUid, host: Arc<Host>, maps: Arc<Maps>) -> Self {
        let net = Self::new(uid, Vec::new(), Arc::clone(&host.netns), maps);
        Self { host: Some(host), ..net }
    }

    /// The host that it is a unit of, if it is one.
    pub fn host(&self) -> Option<&Arc<Host>> {
        self.host.as_ref()
    }

    /// A pod that no kernel program knows: everything is dialled from where the agent is, and applications see the
    /// agent as their client. For tests of the later stages.
    pub fn unintercepted(uid: WorkloadUid, addresses: Vec<IpAddr>) -> Self {
        Self { uid, netns_cookie: 0, addresses, kernel: None, host: None, next_port: AtomicU16::new(0) }
    }

    /// Takes the original destination of a connection accepted on 15001 (one-shot). `local` and `peer` are the accepted
    /// socket's addresses. `None`: nobody was redirected here; the caller resets the connection.
    pub fn take_original_destination(&self, local: SocketAddr, peer: SocketAddr) -> Option<SocketAddr> {
        let (_, maps) = self.kernel.as_ref()?;
        let (address, port) = match local.ip().to_canonical() {
            IpAddr::V4(token) if u32::from(token) & !ORIG_TOKEN_MASK == ORIG_TOKEN_PREFIX => {
                (IpAddr::V4(token), 0)
            }
            IpAddr::V4(_) => return None,
            IpAddr::V6(local) if local.is_loopback() => (peer.ip(), peer.port()),
            IpAddr::V6(_) => return None,
        };
        let key = OrigKey { netns_cookie: self.netns_cookie, addr: addr(address), port, pad: [0; 3] };
        maps.take_original(&key).map(|found| socket_addr(&found))
    }

    /// Dials an application of this pod at its pod address; the application sees `client` as its peer.
    pub async fn dial_application(&self, dst: SocketAddr, client: SocketAddr) -> io::Result<TcpStream> {
        let (dst, client) = (canonical(dst), canonical(client));
        let Some((netns, maps)) = &self.kernel else {
            let stream = TcpStream::connect(dst).await?;
            sys::face_application(&stream)?;
            return Ok(stream);
        };
        // Without a record the application would take a stranger for a local process: then it is not dialled at all.
        if dst.is_ipv4() {
            let (socket, record) = recorded_by_token(netns, maps, client)?;
            self.mark(&socket)?;
            let stream = connect_recorded(socket, dst, record).await?;
            return self.only_own(stream, dst).await;
        }
        for draw in 0..DRAWS {
            let port = PORTS_FIRST + self.next_port.fetch_add(1, Ordering::Relaxed) % PORTS;
            // The pod's own address first: the kernel does not route an application's RST to `::1`. But only `::1` may
            // use a port again that is in TIME_WAIT, so it takes over when the others run out.
            let from = if draw < DRAWS / 2 { dst.ip() } else { Ipv6Addr::LOCALHOST.into() };
            let from = SocketAddr::new(from, port);
            let Some((socket, record)) = recorded_by_port(netns, maps, from, client)? else { continue };
            self.mark(&socket)?;
            match connect_recorded(socket, dst, record).await {
                // The port was used towards this destination within the last second.
                Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {}
                result => return self.only_own(result?, dst).await,
            }
        }
        Err(no_free_key())
    }

    /// On a host the backstop asks for it.
    fn mark(&self, socket: &Socket) -> io::Result<()> {
        if self.host.is_some() { socket.set_mark(DIAL_MARK) } else { Ok(()) }
    }

    /// On a host the port may have passed to another unit since it was asked whose it is: not a byte is sent before it is seen
    /// whose socket took the connection.
    async fn only_own(&self, stream: TcpStream, dst: SocketAddr) -> io::Result<TcpStream> {
        let Some(host) = &self.host else { return Ok(stream) };
        if host.taker(dst, stream.local_addr()?).await?.as_ref() == Some(&self.uid) {
            return Ok(stream);
        }
        sys::reset_on_close(&stream)?;
        Err(io::Error::new(io::ErrorKind::ConnectionRefused, format!("{dst} is not {}'s any more", self.uid)))
    }

    /// Dials any address from within the pod's namespace.
    pub async fn dial(&self, dst: SocketAddr) -> io::Result<TcpStream> {
        let dst = canonical(dst);
        let Some((netns, _)) = &self.kernel else {
            let stream = TcpStream::connect(dst).await?;
            sys::watch_peer(&stream)?;
            return Ok(stream);
        };
        let socket = netns.tcp_socket(dst.is_ipv6())?;
        if let Some(own) = self.addresses.iter().find(|own| own.is_ipv6() == dst.is_ipv6()) {
            sys::bind_address_no_port(&socket)?;
            socket.bind(&SocketAddr::new(*own, 0).into())?;
        }
        let stream = connect(socket, dst).await?;
        // Only now: a time-out of the handshake stays as long as plain TCP's.
        sys::watch_peer(&stream)?;
        Ok(stream)
    }
}

/// A v4-mapped address as the IPv4 address that it is.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

async fn connect_recorded(
    socket: Socket,
    dst: SocketAddr,
    record: ClientRecord<'_>,
) -> io::Result<TcpStream> {
    sys::face_application(&socket)?;
    let stream = connect(socket, dst).await?;
    record.keep();
    Ok(stream)
}

/// A client record that is taken back unless the dial succeeds: also when the dialling task is dropped.
struct ClientRecord<'a> {
    maps: &'a Maps,
    key: ClientKey,
    kept: bool,
}

impl ClientRecord<'_> {
    /// The connection is there: the kernel moves the record to the application's socket.
    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for ClientRecord<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.maps.remove_client(&self.key);
        }
    }
}

/// IPv4: binds to a fresh token address, which is the record's key whatever port `connect()` picks.
fn recorded_by_token<'a>(
    netns: &NetNs,
    maps: &'a Maps,
    client: SocketAddr,
) -> io::Result<(Socket, ClientRecord<'a>)> {
    let socket = netns.tcp_socket(false)?;
    sys::bind_address_no_port(&socket)?;
    for _ in 0..DRAWS {
        let address = Ipv4Addr::from(CLIENT_TOKEN_PREFIX | (rand::random::<u32>() & CLIENT_TOKEN_MASK));
        let key = ClientKey { netns_cookie: netns.cookie, addr: addr(address.into()), port: 0, pad: [0; 3] };
        if maps.put_client(&key, client).map_err(io::Error::other)? {
            let record = ClientRecord { maps, key, kept: false };
            socket.bind(&SocketAddr::new(address.into(), 0).into())?;
            return Ok((socket, record));
        }
    }
    Err(no_free_key())
}

/// IPv6 has no range of loopback addresses: the key is address and port, taken before `connect()`. `None`: the port is
/// not free.
fn recorded_by_port<'a>(
    netns: &NetNs,
    maps: &'a Maps,
    from: SocketAddr,
    client: SocketAddr,
) -> io::Result<Option<(Socket, ClientRecord<'a>)>> {
    let socket = netns.tcp_socket(true)?;
    // A port in TIME_WAIT may be taken again, and so may one whose connection is established: its record has gone to
    // the application's socket by then.
    socket.set_reuse_address(true)?;
    match socket.bind(&from.into()) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Ok(None),
        result => result?,
    }
    let key = ClientKey { netns_cookie: netns.cookie, addr: addr(from.ip()), port: from.port(), pad: [0; 3] };
    if maps.put_client(&key, client).map_err(io::Error::other)? {
        Ok(Some((socket, ClientRecord { maps, key, kept: false })))
    } else {
        Ok(None)
    }
}

fn no_free_key() -> io::Error {
    io::Error::new(io::ErrorKind::ResourceBusy, "no free key for a client record")
}
