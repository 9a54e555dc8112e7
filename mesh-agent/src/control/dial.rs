//! The way to the controller: TLS 1.3 with the node certificate, to a server that proves the controller's DNS name.
//!
//! The roots are those of the operator's file and of the trust bundle, read at each new connection, and so is the node
//! certificate: a renewal or a rotation needs no restart.

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tonic::codegen::Service;
use tonic::transport::{Channel, Endpoint};

use crate::identify::{SvidStore, provider};

/// The DNS name in the controller's server certificate.
pub const CONTROLLER_NAME: &str = "ferromesh-controller.ferromesh-system.svc";

const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEPALIVE_LIMIT: Duration = Duration::from_secs(5);

/// Why the controller cannot be dialled at all.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// The URL is not `https://HOST:PORT`.
    #[error("{0:?} is not the controller's address: give --controller https://IP:15010")]
    Url(String),
    /// The file of roots has no certificate.
    #[error(
        "--controller-ca {path}: {problem}; it is the controller's root certificate as PEM (root.pem in its state directory)"
    )]
    Roots {
        /// The file.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// The controller, as this agent reaches it.
#[derive(Debug)]
pub struct Controller {
    endpoint: Endpoint,
    /// Read at each new connection.
    tls: Arc<Tls>,
    /// Shared by all calls; made anew when the node certificate changes.
    channel: Mutex<Option<Channel>>,
}

#[derive(Debug)]
struct Tls {
    host: String,
    port: u16,
    /// The operator's file, and what was last good in it.
    roots_path: String,
    file_roots: Mutex<Vec<CertificateDer<'static>>>,
    svids: Arc<SvidStore>,
    node: Mutex<Option<Arc<CertifiedKey>>>,
}

impl Controller {
    /// The controller at `url` (`https://HOST:PORT`), trusted by `roots_pem`, which was read from `roots_path`.
    pub fn new(
        url: &str,
        roots_path: &str,
        roots_pem: &[u8],
        svids: Arc<SvidStore>,
    ) -> Result<Arc<Self>, ControllerError> {
        let bad = || ControllerError::Url(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| bad())?;
        let (Some("https"), Some(host), Some(port)) = (uri.scheme_str(), uri.host(), uri.port_u16()) else {
            return Err(bad());
        };
        let roots = |problem: String| ControllerError::Roots { path: roots_path.to_owned(), problem };
        let file_roots = Mutex::new(certificates(roots_pem).map_err(roots)?);
        // TLS is done by our own connector, so that the certificate and the roots can change: tonic sees plain `http`.
        let origin = format!("https://{CONTROLLER_NAME}:{port}").parse().map_err(|_| bad())?;
        let endpoint = Endpoint::from_shared(format!("http://{host}:{port}"))
            .map_err(|_| bad())?
            .origin(origin)
            .connect_timeout(CONNECT_LIMIT)
            .http2_keep_alive_interval(KEEPALIVE_EVERY)
            .keep_alive_timeout(KEEPALIVE_LIMIT)
            .keep_alive_while_idle(true);
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let roots_path = roots_path.to_owned();
        let tls = Arc::new(Tls { host, port, roots_path, file_roots, svids, node: Mutex::new(None) });
        Ok(Arc::new(Self { endpoint, tls, channel: Mutex::new(None) }))
    }

    /// New connections show this node certificate.
    pub(super) fn present(&self, node: Arc<CertifiedKey>) {
        *self.tls.node.lock() = Some(node);
        *self.channel.lock() = None;
    }

    /// A channel that connects when it is first used, and again after a loss.
    pub(super) fn channel(&self) -> Channel {
        let mut held = self.channel.lock();
        held.get_or_insert_with(|| {
            self.endpoint.connect_with_connector_lazy(Connector(Arc::clone(&self.tls)))
        })
        .clone()
    }
}

impl Tls {
    fn config(&self) -> Result<ClientConfig, rustls::Error> {
        let mut roots = RootCertStore::clone(&self.svids.trust().roots);
        for root in self.file_roots() {
            roots.add(root)?;
        }
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots);
        let node = self.node.lock().clone();
        let mut config = match node {
            Some(key) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key))),
            None => builder.with_no_client_auth(),
        };
        config.resumption = Resumption::disabled();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }

    /// What the operator's file holds now, or held last when it cannot be read.
    fn file_roots(&self) -> Vec<CertificateDer<'static>> {
        let mut held = self.file_roots.lock();
        let read = std::fs::read(&self.roots_path).map_err(|e| e.to_string());
        match read.and_then(|pem| certificates(&pem)) {
            Ok(roots) => held.clone_from(&roots),
            Err(problem) => {
                tracing::debug!(path = self.roots_path, problem, "the roots that were read before stay")
            }
        }
        held.clone()
    }

    async fn connect(&self) -> io::Result<TlsStream<TcpStream>> {
        let config = self.config().map_err(io::Error::other)?;
        let name = ServerName::try_from(CONTROLLER_NAME).map_err(io::Error::other)?;
        let tcp = match self.host.parse::<IpAddr>() {
            Ok(address) => TcpStream::connect((address, self.port)).await?,
            Err(_) => TcpStream::connect((self.host.as_str(), self.port)).await?,
        };
        tcp.set_nodelay(true)?;
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match read {
        Ok(roots) if roots.is_empty() => Err("no certificate in it".to_owned()),
        other => other.map_err(|e| format!("{e:?}")),
    }
}

/// Makes one TLS connection for tonic.
#[derive(Clone, Debug)]
struct Connector(Arc<Tls>);

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let tls = Arc::clone(&self.0);
        Box::pin(async move { tls.connect().await.map(TokioIo::new) })
    }
}

/// A gRPC status as one line, with the cause that tonic hides behind "transport error".
pub(super) fn explain_status(status: &tonic::Status) -> String {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        let inner = error.to_string();
        if !text.ends_with(&inner) {
            text = format!("{text}: {inner}");
        }
        source = error.source();
    }
    text
}
