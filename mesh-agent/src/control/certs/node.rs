//! The node's own identity: a join token is exchanged for a node certificate once; the certificate is kept in the state
//! directory (0600), used again after a restart, and renewed at half of its life or soon after the authority began to sign
//! under another certificate.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_api::proto::certificate_authority_client::CertificateAuthorityClient;
use mesh_api::proto::{JoinRequest, RenewNodeRequest, SignedCertificate};
use mesh_core::identity::TrustDomain;
use rcgen::KeyPair;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::{Code, Status};

use super::issued::{CertificateError, Issued, accept, new_key, request, rfc3339};
use super::renewal;
use crate::control::bundle::Bundle;
use crate::control::dial::explain_status;
use crate::control::status::NodeStatus;
use crate::control::{Backoff, ControlMetrics, ControlStatus, Controller, files};

const CALL_LIMIT: Duration = Duration::from_secs(10);
const FILE: &str = "node.pem";

/// Why the node has no identity. Each text says how to mend it.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The state directory cannot be used.
    #[error("{path}: {source}; --state-dir has to be a directory that the agent may write")]
    StateDir {
        /// Which path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Others may read the key.
    #[error(
        "{path} holds the node's key but others may read it (mode {mode:o}): chmod 600 it, or remove it and join again"
    )]
    Permissions {
        /// Which file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The saved certificate cannot be used, and there is no token to get another.
    #[error(
        "the node certificate in {path} cannot be used: {problem}; make a token with `meshctl token create --node {node}` and give it with --join-token-file"
    )]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// This node.
        node: String,
    },
    /// A first start without a token.
    #[error(
        "node {node} has no certificate in {path} and no token to get one: make one with `meshctl token create --node {node}` and give it with --join-token-file"
    )]
    NoToken {
        /// Where it was looked for.
        path: PathBuf,
        /// This node.
        node: String,
    },
    /// The token file cannot be read, or is empty.
    #[error("--join-token-file {path}: {source}")]
    TokenFile {
        /// Which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The controller does not admit the node.
    #[error(
        "the controller did not admit node {node}: {status}; a token is for one node, works once and ends: make another with `meshctl token create --node {node}`"
    )]
    Refused {
        /// This node.
        node: String,
        /// What the controller said.
        status: String,
    },
    /// What the controller signed cannot be used.
    #[error("the node certificate: {0}")]
    Certificate(#[from] CertificateError),
}

/// Which node this is, and where its identity is kept.
#[derive(Clone, Debug)]
pub struct NodeSettings {
    /// The node's name.
    pub node: String,
    /// The mesh's trust domain.
    pub trust_domain: TrustDomain,
    /// Where the node certificate is kept.
    pub state_dir: PathBuf,
    /// The token for the first start.
    pub token_file: Option<PathBuf>,
}

impl NodeSettings {
    /// The node's SPIFFE ID. Its path is not a workload's, so no workload takes it for a peer.
    pub fn spiffe_id(&self) -> String {
        format!("spiffe://{}/ns/ferromesh-system/sa/ferromesh-agent/node/{}", self.trust_domain, self.node)
    }

    fn file(&self) -> PathBuf {
        self.state_dir.join(FILE)
    }

    fn state_error(&self, source: io::Error) -> NodeError {
        NodeError::StateDir { path: self.state_dir.clone(), source }
    }
}

/// The node certificate in use.
#[derive(Clone, Debug)]
pub struct NodeIdentity {
    issued: Issued,
    obtained: SystemTime,
}

impl NodeIdentity {
    /// Loads the saved certificate, or joins with the token; the controller sees it from then on. Waits for a controller
    /// that is away, and fails where waiting does not help.
    pub async fn obtain(controller: &Controller, settings: &NodeSettings) -> Result<Self, NodeError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&settings.state_dir)
            .map_err(|e| settings.state_error(e))?;
        let identity = match load(settings)? {
            Saved::Good(issued) => Self { obtained: issued.not_before, issued },
            Saved::None => join(controller, settings, None).await?,
            Saved::Bad(problem) => join(controller, settings, Some(problem)).await?,
        };
        controller.present(Arc::clone(&identity.issued.key));
        Ok(identity)
    }

    /// End of validity.
    pub fn not_after(&self) -> SystemTime {
        self.issued.not_after
    }

    /// Waits until it is to be renewed.
    async fn due(&self, bundle: &Bundle) {
        let (issued, mut issuers) = (&self.issued, bundle.issuers());
        let now = SystemTime::now();
        let mut at = Instant::now() + renewal::wait(self.obtained, issued.not_before, issued.not_after, now);
        loop {
            issuers.mark_unchanged();
            if !bundle.is_current(&issued.key.cert) {
                at = at.min(Instant::now() + renewal::soon(issued.not_after, SystemTime::now()));
            }
            tokio::select! {
                () = sleep_until(at) => return,
                // The sender lives as long as the bundle.
                _ = issuers.changed() => {}
            }
        }
    }
}

/// Renews the node certificate for as long as the agent lives.
pub(in crate::control) async fn keep_renewed(
    controller: Arc<Controller>,
    settings: NodeSettings,
    mut held: NodeIdentity,
    bundle: Bundle,
    (status, metrics): (Arc<ControlStatus>, ControlMetrics),
) {
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
    let status_of = |held: &NodeIdentity| NodeStatus {
        spiffe_id: settings.spiffe_id(),
        not_after: Some(held.issued.not_after),
        problem: None,
    };
    status.set_node(status_of(&held));
    loop {
        held.due(&bundle).await;
        held = loop {
            match renew(&controller, &settings).await {
                Ok(renewed) => break renewed,
                Err(error) => {
                    metrics.certificate_failures.inc();
                    tracing::warn!(%error, "renewing the node certificate failed; the old one stays until it ends");
                    status.node_problem(error.to_string());
                    sleep(backoff.wait()).await;
                }
            }
        };
        backoff.reset();
        controller.present(Arc::clone(&held.issued.key));
        metrics.certificates_signed.inc();
        tracing::info!(until = %rfc3339(held.issued.not_after), "renewed the node certificate");
        status.set_node(status_of(&held));
    }
}

async fn renew(controller: &Controller, settings: &NodeSettings) -> Result<NodeIdentity, NodeError> {
    let key = new_key()?;
    let request = RenewNodeRequest { csr_der: request(&key)? };
    let mut client = CertificateAuthorityClient::new(controller.channel());
    let refused =
        |status: &Status| NodeError::Refused { node: settings.node.clone(), status: explain_status(status) };
    let signed = match timeout(CALL_LIMIT, client.renew_node(request)).await {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) => return Err(refused(&status)),
        Err(_) => return Err(refused(&Status::deadline_exceeded("no answer in time"))),
    };
    keep(settings, &key, signed)
}

async fn join(
    controller: &Controller,
    settings: &NodeSettings,
    saved: Option<String>,
) -> Result<NodeIdentity, NodeError> {
    let (node, path) = (settings.node.clone(), settings.file());
    let Some(token_file) = &settings.token_file else {
        return Err(match saved {
            Some(problem) => NodeError::Unusable { path, problem, node },
            None => NodeError::NoToken { path, node },
        });
    };
    let token_error = |source| NodeError::TokenFile { path: token_file.clone(), source };
    let token = fs::read_to_string(token_file).map_err(token_error)?.trim().to_owned();
    if token.is_empty() {
        return Err(token_error(io::Error::new(io::ErrorKind::InvalidData, "the file is empty")));
    }
    let key = new_key()?;
    let request = JoinRequest { node: node.clone(), token, csr_der: request(&key)? };
    let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(5));
    loop {
        let mut client = CertificateAuthorityClient::new(controller.channel());
        let status = match timeout(CALL_LIMIT, client.join(request.clone())).await {
            Ok(Ok(response)) => return keep(settings, &key, response.into_inner()),
            Ok(Err(status)) => status,
            Err(_) => Status::deadline_exceeded("no answer in time"),
        };
        if is_final(status.code()) {
            return Err(NodeError::Refused { node, status: explain_status(&status) });
        }
        tracing::warn!(error = %explain_status(&status), "waiting for the controller to join the mesh");
        sleep(backoff.wait()).await;
    }
}

/// Whether asking again with the same token is in vain.
fn is_final(code: Code) -> bool {
    matches!(
        code,
        Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::Unauthenticated
            | Code::Unimplemented
    )
}

fn keep(
    settings: &NodeSettings,
    key: &KeyPair,
    signed: SignedCertificate,
) -> Result<NodeIdentity, NodeError> {
    let now = SystemTime::now();
    let pem = to_pem(key, &signed.chain_der);
    let issued = accept(key.serialize_der(), signed.chain_der, &settings.spiffe_id(), now)?;
    files::replace(&settings.file(), pem.as_bytes()).map_err(|e| settings.state_error(e))?;
    Ok(NodeIdentity { issued, obtained: now })
}

enum Saved {
    Good(Issued),
    Bad(String),
    None,
}

fn load(settings: &NodeSettings) -> Result<Saved, NodeError> {
    let path = settings.file();
    let pem = match fs::read(&path) {
        Ok(pem) => pem,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Saved::None),
        Err(source) => return Err(NodeError::StateDir { path, source }),
    };
    let metadata =
        fs::metadata(&path).map_err(|source| NodeError::StateDir { path: path.clone(), source })?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(NodeError::Permissions { path, mode });
    }
    let key = PrivatePkcs8KeyDer::from_pem_slice(&pem);
    let chain = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let (Ok(key), Ok(chain)) = (key, chain) else {
        return Ok(Saved::Bad("it is not a key and a certificate chain as PEM".to_owned()));
    };
    let chain = chain.into_iter().map(|der| der.to_vec()).collect();
    let now = SystemTime::now();
    match accept(key.secret_pkcs8_der().to_vec(), chain, &settings.spiffe_id(), now) {
        Ok(issued) => Ok(Saved::Good(issued)),
        Err(error) => Ok(Saved::Bad(error.to_string())),
    }
}

fn to_pem(key: &KeyPair, chain: &[Vec<u8>]) -> String {
    let mut text = key.serialize_pem();
    for der in chain {
        text.push_str(&pem::encode(&pem::Pem::new("CERTIFICATE", der.as_slice())));
    }
    text
}
