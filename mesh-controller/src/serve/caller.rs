//! Who is calling: the certificate of the TLS connection, verified again on each call.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use mesh_core::identity::TrustDomain;
use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::sync::watch;
use tonic::{Request, Status};
use x509_parser::extensions::GeneralName;

use super::TlsState;
use crate::ca::{NODE_PATH, admin_id, is_node_name};

/// A proven caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// The agent of a node.
    Node(Arc<str>),
    /// An operator.
    Admin,
}

/// A node's agent, as long as its certificate lasts.
#[derive(Clone, Debug)]
pub struct NodeCaller {
    /// The node.
    pub node: Arc<str>,
    /// When its certificate ends.
    pub not_after: SystemTime,
    chain: Arc<Vec<CertificateDer<'static>>>,
}

/// Proves callers.
#[derive(Clone, Debug)]
pub struct Callers {
    trust_domain: TrustDomain,
    tls: watch::Receiver<Arc<TlsState>>,
}

impl Callers {
    /// Proves callers of `trust_domain` against the roots of `tls`.
    pub fn new(trust_domain: TrustDomain, tls: watch::Receiver<Arc<TlsState>>) -> Self {
        Self { trust_domain, tls }
    }

    /// The node whose agent is calling.
    pub fn node<T>(&self, request: &Request<T>) -> Result<NodeCaller, Status> {
        let chain = request.peer_certs().ok_or_else(no_certificate)?;
        match self.prove(&chain)? {
            (Caller::Node(node), not_after) => Ok(NodeCaller { node, not_after, chain }),
            (Caller::Admin, _) => Err(Status::permission_denied("this call is for agents")),
        }
    }

    /// Whether an operator is calling.
    pub fn admin<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let chain = request.peer_certs().ok_or_else(no_certificate)?;
        match self.prove(&chain)? {
            (Caller::Admin, _) => Ok(()),
            (Caller::Node(_), _) => Err(Status::permission_denied("this call is for operators")),
        }
    }

    /// Whether a caller that was proven before still is, the roots being what they are now.
    pub fn still(&self, caller: &NodeCaller) -> Result<(), Status> {
        self.prove(&caller.chain).map(drop)
    }

    fn prove(&self, chain: &[CertificateDer<'static>]) -> Result<(Caller, SystemTime), Status> {
        let (leaf, intermediates) = chain.split_first().ok_or_else(no_certificate)?;
        let verifier = Arc::clone(&self.tls.borrow().verifier);
        verifier
            .verify_client_cert(leaf, intermediates, UnixTime::now())
            .map_err(|error| Status::unauthenticated(format!("client certificate refused: {error}")))?;
        let malformed = || Status::unauthenticated("client certificate refused: malformed");
        let (_, parsed) = x509_parser::parse_x509_certificate(leaf).map_err(|_| malformed())?;
        let seconds = u64::try_from(parsed.validity().not_after.timestamp()).map_err(|_| malformed())?;
        let not_after = UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        let names = parsed.subject_alternative_name().map_err(|_| malformed())?.ok_or_else(malformed)?;
        match names.value.general_names.as_slice() {
            [GeneralName::URI(id)] => Ok((self.role(id)?, not_after)),
            _ => {
                Err(Status::unauthenticated("client certificate refused: it must have exactly one URI name"))
            }
        }
    }

    fn role(&self, id: &str) -> Result<Caller, Status> {
        if id == admin_id(&self.trust_domain) {
            return Ok(Caller::Admin);
        }
        let path =
            id.strip_prefix("spiffe://").and_then(|rest| rest.strip_prefix(self.trust_domain.as_str()));
        match path.and_then(|path| path.strip_prefix(NODE_PATH)) {
            Some(node) if is_node_name(node) => Ok(Caller::Node(node.into())),
            _ => Err(Status::permission_denied(format!("{id} is neither an agent nor an operator"))),
        }
    }
}

fn no_certificate() -> Status {
    Status::unauthenticated("this call needs a client certificate")
}
