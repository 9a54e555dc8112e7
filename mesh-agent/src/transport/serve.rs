//! The accepting side: one TCP connection on a pod's mutual TLS port comes in; handshake with the pod's own SVID, then
//! what ALPN chose until the connection ends. Each OPEN and CONNECT goes to the [`Admit`] handler.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_core::identity::SpiffeId;
use rustls::{Connection, ServerConfig};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::lease::Link;
use super::tls_io::TlsIo;
use super::{ALPN_FERROMESH, ALPN_HBONE, Admit, TransportPreference, hbone, lease, near};
use crate::identify::{ClientVerifier, HandshakeFailure, ProvenPeer, Role, Svid, SvidStore, server_config};

/// Limits of an [`Acceptor`].
#[derive(Clone, Debug)]
pub struct AcceptorSettings {
    /// The longest that a handshake may take.
    pub handshake_timeout: Duration,
    /// Which transports are taken.
    pub preference: TransportPreference,
    /// How long a draining connection waits for the dialler to close it.
    pub drain_timeout: Duration,
}

impl Default for AcceptorSettings {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(10),
            preference: TransportPreference::default(),
            drain_timeout: Duration::from_secs(5),
        }
    }
}

/// Why a connection to the mutual TLS port was not served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The handshake failed.
    #[error("TLS handshake with {peer}: {reason}")]
    Handshake {
        /// The dialler.
        peer: SocketAddr,
        /// What failed.
        reason: HandshakeFailure,
    },
    /// The peer did not speak the transport that it had chosen.
    #[error("tunnel from {peer}: {reason}")]
    Tunnel {
        /// The dialler.
        peer: SocketAddr,
        /// What was wrong.
        reason: String,
    },
}

impl ServeError {
    /// The peer broke the rules of its transport.
    pub(super) fn tunnel(peer: &ProvenPeer, reason: impl ToString) -> Self {
        Self::Tunnel { peer: peer.address, reason: reason.to_string() }
    }
}

/// Tells the connections of a pod, or of the agent, to end when they are idle.
#[derive(Debug)]
pub struct DrainHandle(watch::Sender<bool>);

/// Held by each served connection.
#[derive(Clone, Debug)]
pub struct Drain(watch::Receiver<bool>);

impl Drain {
    /// A connected pair; clone the [`Drain`] for each connection.
    pub fn pair() -> (DrainHandle, Self) {
        let (sender, receiver) = watch::channel(false);
        (DrainHandle(sender), Self(receiver))
    }

    /// Whether draining has begun.
    pub fn is_draining(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits for the begin of draining; for ever when nobody will ask. Cancel-safe.
    pub async fn wait(&mut self) {
        if self.0.wait_for(|draining| *draining).await.is_err() {
            std::future::pending().await
        }
    }
}

impl DrainHandle {
    /// Begins draining.
    pub fn drain(&self) {
        self.0.send_replace(true);
    }
}

/// Serves the mutual TLS ports of one worker's pods.
#[derive(Debug)]
pub struct Acceptor {
    store: Arc<SvidStore>,
    settings: AcceptorSettings,
    configs: RefCell<HashMap<SpiffeId, Configured>>,
}

#[derive(Clone, Debug)]
struct Configured {
    generations: (u64, u64),
    config: Arc<ServerConfig>,
}

impl Acceptor {
    /// `store` has the trust bundle.
    pub fn new(store: Arc<SvidStore>, settings: AcceptorSettings) -> Rc<Self> {
        Rc::new(Self { store, settings, configs: RefCell::default() })
    }

    /// Serves one accepted connection to its end. `svid` is that of the pod whose port was dialled.
    pub async fn serve<H>(
        &self,
        io: TcpStream,
        svid: &Svid,
        handler: Rc<H>,
        drain: Drain,
    ) -> Result<(), ServeError>
    where
        H: Admit + 'static,
    {
        let unknown = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        let address = io.peer_addr().unwrap_or(unknown);
        let failed = |reason| ServeError::Handshake { peer: address, reason };
        if let Err(error) = near::tune_tunnel(&io) {
            tracing::debug!(%error, "a socket option of a tunnel was refused");
        }
        let (io, peer, hbone) = self.handshake(io, svid, address).await.map_err(failed)?;
        handler.proven();
        if hbone {
            Box::pin(hbone::serve(io, peer, handler, drain, &self.settings)).await
        } else {
            let link = Link::new(io, Rc::clone(&peer));
            lease::serve(link, &peer, &*handler, drain, &self.settings).await
        }
    }

    async fn handshake(
        &self,
        io: TcpStream,
        svid: &Svid,
        address: SocketAddr,
    ) -> Result<(TlsIo, Rc<ProvenPeer>, bool), HandshakeFailure> {
        let generation = self.store.trust().generation;
        let config = self.config(svid)?;
        let handshake = TlsAcceptor::from(config).accept(io);
        let stream = tokio::time::timeout(self.settings.handshake_timeout, handshake)
            .await
            .map_err(|_| HandshakeFailure::Timeout)?
            .map_err(|e| HandshakeFailure::from_io(&e))?;
        let (tcp, conn) = stream.into_inner();
        let hbone = match conn.alpn_protocol() {
            Some(ALPN_FERROMESH) => false,
            Some(ALPN_HBONE) => true,
            _ => return Err(HandshakeFailure::NoSharedTransport),
        };
        let chain = conn.peer_certificates().unwrap_or_default();
        let store = Arc::clone(&self.store);
        let peer = ProvenPeer::new((Role::Client, address), chain, svid, generation, store)?;
        Ok((TlsIo::new(tcp, Connection::Server(conn)), Rc::new(peer), hbone))
    }

    /// The configuration for `svid` and the trust bundle of now; made once for each pair of generations.
    fn config(&self, svid: &Svid) -> Result<Arc<ServerConfig>, HandshakeFailure> {
        if svid.not_after <= SystemTime::now() {
            return Err(HandshakeFailure::OwnExpired);
        }
        let trust = self.store.trust();
        let generations = (svid.generation, trust.generation);
        if let Some(held) = self.configs.borrow().get(&svid.identity)
            && held.generations == generations
        {
            return Ok(Arc::clone(&held.config));
        }
        let trust_domain = svid.identity.trust_domain().clone();
        let verifier = Arc::new(ClientVerifier::new(Arc::clone(&trust.roots), trust_domain)?);
        let config = server_config(svid, verifier, self.settings.preference.alpn())?;
        let held = Configured { generations, config: Arc::clone(&config) };
        self.configs.borrow_mut().insert(svid.identity.clone(), held);
        Ok(config)
    }
}
