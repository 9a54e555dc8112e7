//! Stage 1: a socket that came in on one of a pod's listeners becomes an [`Accepted`]: what it is for, from whom, and
//! where it was meant to go.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use mesh_common::{PORT_HELD, PORT_INBOUND, PORT_MTLS, PORT_OUTBOUND};
use mesh_core::model::WorkloadUid;
use tokio::net::TcpStream;

use crate::intercept::{Host, Owner, PodNet};
use crate::sys;

/// A connection and where it was meant to go.
#[derive(Debug)]
pub struct Accepted {
    /// The accepted socket.
    pub io: TcpStream,
    /// Who connected.
    pub client: SocketAddr,
    /// Outbound: what the application dialled. Inbound: the pod's address and port that the client dialled.
    pub orig_dst: SocketAddr,
    /// The pod whose listener took it.
    pub pod: Arc<PodNet>,
}

/// Why a socket is not a connection of the mesh; it has been reset.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// Nobody was redirected here: somebody dialled the agent's port, or the client closed meanwhile.
    #[error("there is no original destination for {client}")]
    NoOriginalDestination {
        /// Who connected.
        client: SocketAddr,
    },
    /// The address is not one of the pod's, or the port is the agent's own.
    #[error("{dst} is not a port of the pod's applications")]
    NotAnApplication {
        /// What was dialled.
        dst: SocketAddr,
    },
    /// The socket was gone before it was looked at.
    #[error("the accepted socket failed: {0}")]
    Socket(#[from] io::Error),
}

/// From the listener on 15001.
pub fn outbound(io: TcpStream, client: SocketAddr, pod: Arc<PodNet>) -> Result<Accepted, AcceptError> {
    let client = canonical(client);
    match pod.take_original_destination(canonical(io.local_addr()?), client) {
        Some(dst) => {
            Ok(Accepted { io, client: shown(&pod, client, canonical(dst)), orig_dst: canonical(dst), pod })
        }
        None => {
            reset(io);
            Err(AcceptError::NoOriginalDestination { client })
        }
    }
}

/// The address that a client believes to have. A socket that was bound to a port before `connect()` could not be given
/// the pod's address by the kernel program, so it comes from loopback, with the port that the application chose. On a host it
/// is the one that the kernel would have chosen for what was `dialled`.
pub fn shown(pod: &PodNet, client: SocketAddr, dialled: SocketAddr) -> SocketAddr {
    if !client.ip().is_loopback() {
        return client;
    }
    let own = match pod.host() {
        Some(host) => host.source(dialled.ip()).ok(),
        None => pod.addresses.iter().find(|own| own.is_ipv4() == client.is_ipv4()).copied(),
    };
    own.map_or(client, |own| SocketAddr::new(own, client.port()))
}

/// From the listener on 15006. The kernel keeps the address and port that the client dialled.
pub fn inbound_plain(io: TcpStream, client: SocketAddr, pod: Arc<PodNet>) -> Result<Accepted, AcceptError> {
    let dst = canonical(io.local_addr()?);
    if !is_application(&pod, dst) {
        reset(io);
        return Err(AcceptError::NotAnApplication { dst });
    }
    Ok(Accepted { io, client: canonical(client), orig_dst: dst, pod })
}

/// Whether `dst` names an application of `pod` from outside: an address of its own and no port of the agent.
pub fn is_application(pod: &PodNet, dst: SocketAddr) -> bool {
    let ip = dst.ip().to_canonical();
    let ours = [PORT_OUTBOUND, PORT_HELD, PORT_INBOUND, PORT_MTLS];
    pod.addresses.contains(&ip) && !ip.is_loopback() && dst.port() != 0 && !ours.contains(&dst.port())
}

/// From a host's listener on 15006: which of its units it is for, which is asked of the kernel, and what was dialled.
pub fn inbound_on_host(io: &TcpStream, host: &Host) -> Result<(WorkloadUid, SocketAddr), AcceptError> {
    let dst = canonical(io.local_addr()?);
    match host.owner(dst)? {
        Owner::Unit(uid) => Ok((uid, dst)),
        Owner::Other | Owner::Several | Owner::Nobody => Err(AcceptError::NotAnApplication { dst }),
    }
}

/// Closes with RST: the client learns that it failed, not that it was served.
pub fn reset(io: TcpStream) {
    if let Err(error) = sys::reset_on_close(&io) {
        tracing::debug!(%error, "the client sees FIN instead of RST");
    }
    drop(io);
}

/// A v4-mapped address as the IPv4 address that it is.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
