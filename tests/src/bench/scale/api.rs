//! Many writes to the API server. In: jobs, each a list of requests in order. Out: all done, over a few kept connections.

use std::fs;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::kube::{Cluster, User};
use crate::world::CONTROLLER_V4;

/// The connections that share the work.
const CONNECTIONS: usize = 16;

/// One request: method, path, body.
pub(super) type Write = (&'static str, String, Value);

/// The API server, as an administrator.
#[derive(Clone)]
pub(super) struct Api {
    address: String,
    bearer: String,
    tls: TlsConnector,
}

impl Api {
    pub(super) fn new(cluster: &Cluster) -> Result<Self> {
        let config = fs::read(cluster.kubeconfig(User::Admin))?;
        let config: Value = serde_json::from_slice(&config)?;
        let part = |path: &str| config.pointer(path).and_then(Value::as_str).with_context(|| path.to_owned());
        let server = part("/clusters/0/cluster/server")?;
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_file_iter(part("/clusters/0/cluster/certificate-authority")?)? {
            roots.add(root?)?;
        }
        let tls = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        Ok(Self {
            address: server.trim_start_matches("https://").to_owned(),
            bearer: format!("Bearer {}", part("/users/0/user/token")?),
            tls: TlsConnector::from(Arc::new(tls)),
        })
    }

    /// Does all jobs, in no order.
    pub(super) async fn all(&self, jobs: Vec<Vec<Write>>) -> Result<()> {
        let jobs = Arc::new(Mutex::new(jobs.into_iter()));
        let mut workers = tokio::task::JoinSet::new();
        for _ in 0..CONNECTIONS {
            let (api, jobs) = (self.clone(), Arc::clone(&jobs));
            workers.spawn(async move {
                let mut connection = api.connect().await?;
                loop {
                    let Some(job) = jobs.lock().next() else { return Ok::<_, anyhow::Error>(()) };
                    for write in job {
                        api.send(&mut connection, write).await?;
                    }
                }
            });
        }
        while let Some(ended) = workers.join_next().await {
            ended??;
        }
        Ok(())
    }

    /// A connection for single requests.
    pub(super) async fn connect(&self) -> Result<SendRequest<Full<Bytes>>> {
        let stream = TcpStream::connect(&self.address).await.context("connect to the API server")?;
        stream.set_nodelay(true)?;
        let stream =
            self.tls.connect(ServerName::from(std::net::IpAddr::from(CONTROLLER_V4)), stream).await?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // Its error is that of the request, which tells it.
        tokio::spawn(async move { drop(connection.await) });
        Ok(sender)
    }

    pub(super) async fn send(
        &self,
        connection: &mut SendRequest<Full<Bytes>>,
        (method, path, body): Write,
    ) -> Result<()> {
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let request = Request::builder()
            .method(method)
            .uri(&path)
            .header("host", &self.address)
            .header("authorization", &self.bearer)
            .header("content-type", kind)
            .body(Full::new(Bytes::from(body.to_string())))?;
        connection.ready().await?;
        let answer = connection.send_request(request).await?;
        let status = answer.status();
        let text = answer.into_body().collect().await?.to_bytes();
        if !status.is_success() {
            bail!("{method} {path}: {status} {}", String::from_utf8_lossy(&text));
        }
        Ok(())
    }
}
