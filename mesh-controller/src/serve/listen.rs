//! The listener: TCP, TLS with whatever certificates hold now, then gRPC.
//!
//! A client certificate is optional here because Join needs none; every other call asks [`Callers`] for one.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_api::proto::admin_server::AdminServer;
use mesh_api::proto::certificate_authority_server::CertificateAuthorityServer;
use mesh_api::proto::discovery_server::DiscoveryServer;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;

use super::admin::{AdminService, AuthorityHandle};
use super::certificates::CertificateService;
use super::discovery::DiscoveryService;
use super::limit::SignLimit;
use super::{Agents, Callers, CompiledFeed, Reviewer, TlsState};
use crate::ca::{Authority, TokenStore};
use crate::metrics::Metrics;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes at a time; more wait in the kernel's backlog.
const MAX_HANDSHAKES: usize = 256;
/// After a restart all agents come at once. What the backlog has no room for is lost without a word: the agent's kernel believes
/// in a connection that ours never made, for minutes.
const BACKLOG: u32 = 4096;
const KEEPALIVE: Duration = Duration::from_secs(10);
const MAX_STREAMS_PER_CONNECTION: u32 = 128;
/// A request is small; only Hello and Subscribe carry lists.
const MAX_REQUEST_BYTES: usize = 16 << 20;

/// What the services are made of.
#[derive(Debug)]
pub struct ServerParts {
    /// Signs.
    pub authority: Arc<Authority>,
    /// Join tokens.
    pub tokens: TokenStore,
    /// Who knows service accounts' tokens, in a cluster.
    pub reviewer: Option<Reviewer>,
    /// What to serve.
    pub compiled: CompiledFeed,
    /// Certificates and roots.
    pub tls: watch::Receiver<Arc<TlsState>>,
    /// What is known of the agents.
    pub agents: Arc<Agents>,
    /// What operators see and ask of the authority.
    pub operators: AuthorityHandle,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Lifetime of workload certificates.
    pub svid_ttl: Duration,
    /// Lifetime of node certificates.
    pub node_ttl: Duration,
}

/// The bound server.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    parts: ServerParts,
}

impl Server {
    /// Binds.
    pub fn bind(address: SocketAddr, parts: ServerParts) -> io::Result<Self> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(Self { listener: socket.listen(BACKLOG)?, parts })
    }

    /// The address that was bound.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` completes.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), tonic::transport::Error> {
        let parts = self.parts;
        let callers = Callers::new(parts.authority.trust_domain().clone(), parts.tls.clone());
        let discovery = DiscoveryService {
            callers: callers.clone(),
            compiled: parts.compiled.clone(),
            tls: parts.tls.clone(),
            agents: Arc::clone(&parts.agents),
            metrics: Arc::clone(&parts.metrics),
        };
        let admin = AdminService {
            trust_domain: parts.authority.trust_domain().clone(),
            tokens: parts.tokens.clone(),
            callers: callers.clone(),
            compiled: parts.compiled.clone(),
            tls: parts.tls.clone(),
            agents: parts.agents,
            authority: parts.operators,
            metrics: Arc::clone(&parts.metrics),
        };
        let certificates = CertificateService {
            authority: parts.authority,
            tokens: parts.tokens,
            reviewer: parts.reviewer,
            limit: SignLimit::default(),
            callers,
            compiled: parts.compiled,
            tls: parts.tls.clone(),
            metrics: Arc::clone(&parts.metrics),
            svid_ttl: parts.svid_ttl,
            node_ttl: parts.node_ttl,
        };
        let (accepted, incoming) = mpsc::channel(16);
        let acceptor = tokio::spawn(accept(self.listener, parts.tls, parts.metrics, accepted));
        let served = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .max_concurrent_streams(Some(MAX_STREAMS_PER_CONNECTION))
            .add_service(DiscoveryServer::new(discovery).max_decoding_message_size(MAX_REQUEST_BYTES))
            .add_service(CertificateAuthorityServer::new(certificates))
            .add_service(AdminServer::new(admin))
            .serve_with_incoming_shutdown(ReceiverStream::new(incoming), stop)
            .await;
        acceptor.abort();
        served
    }
}

async fn accept(
    listener: TcpListener,
    tls: watch::Receiver<Arc<TlsState>>,
    metrics: Arc<Metrics>,
    accepted: mpsc::Sender<io::Result<TlsStream<TcpStream>>>,
) {
    let slots = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    while let Ok(slot) = Arc::clone(&slots).acquire_owned().await {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: it passes.
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let config = Arc::clone(&tls.borrow().server);
        let (accepted, metrics) = (accepted.clone(), Arc::clone(&metrics));
        tokio::spawn(async move {
            let _slot = slot;
            let result = match stream.set_nodelay(true) {
                Ok(()) => {
                    tokio::time::timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(config).accept(stream)).await
                }
                Err(error) => Ok(Err(error)),
            };
            match result {
                // The receiver goes only when the server stops.
                Ok(Ok(stream)) => drop(accepted.send(Ok(stream)).await),
                Ok(Err(error)) => {
                    metrics.handshakes_failed.inc();
                    tracing::debug!(%error, "handshake failed");
                }
                Err(_) => drop(metrics.handshakes_failed.inc()),
            }
        });
    }
}
