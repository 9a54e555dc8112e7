//! One enrolled pod as the data plane sees it: its network namespace, and sockets made inside it.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;

use mesh_core::model::WorkloadUid;
use tokio::net::TcpStream;

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
}

impl PodNet {
    /// Takes the original destination of a connection accepted on 15001 (one-shot). `local` and `peer` are the accepted
    /// socket's addresses. `None`: nobody was redirected here; the caller resets the connection.
    pub fn take_original_destination(&self, local: SocketAddr, peer: SocketAddr) -> Option<SocketAddr> {
        unimplemented!("{local} {peer}")
    }

    /// Dials an application of this pod at its pod address; the application sees `client` as its peer.
    pub async fn dial_application(&self, dst: SocketAddr, client: SocketAddr) -> io::Result<TcpStream> {
        unimplemented!("{dst} {client}")
    }

    /// Dials any address from within the pod's namespace.
    pub async fn dial(&self, dst: SocketAddr) -> io::Result<TcpStream> {
        unimplemented!("{dst}")
    }
}
