//! The certificate authority's calls. Each decision is one line in the log, target `audit`.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mesh_api::proto::certificate_authority_server::CertificateAuthority;
use mesh_api::proto::{JoinRequest, RenewNodeRequest, SignWorkloadRequest, SignedCertificate};
use mesh_core::identity::SpiffeId;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::discovery::bundle;
use super::limit::SignLimit;
use super::{Callers, CompiledFeed, ReviewError, Reviewer, TlsState};
use crate::ca::{
    Authority, CaError, Profile, TokenError, TokenStore, admin_id, is_node_name, node_id, request_key,
};
use crate::metrics::Metrics;

/// The service.
#[derive(Clone, Debug)]
pub(super) struct CertificateService {
    pub(super) authority: Arc<Authority>,
    pub(super) tokens: TokenStore,
    /// Knows service accounts' tokens, in a cluster.
    pub(super) reviewer: Option<Reviewer>,
    pub(super) limit: SignLimit,
    pub(super) callers: Callers,
    pub(super) compiled: CompiledFeed,
    pub(super) tls: watch::Receiver<Arc<TlsState>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) svid_ttl: Duration,
    pub(super) node_ttl: Duration,
}

type Answer = Result<Response<SignedCertificate>, Status>;

#[tonic::async_trait]
impl CertificateAuthority for CertificateService {
    async fn join(&self, request: Request<JoinRequest>) -> Answer {
        let from = request.remote_addr().map(|a| a.to_string()).unwrap_or_default();
        let request = request.into_inner();
        let node = request.node.clone();
        let result = match &self.reviewer {
            Some(reviewer) if Reviewer::concerns(&request.token) => self.admit_agent(reviewer, request).await,
            _ => self.admit(request),
        };
        self.audit("Join", &node, &from, result)
    }

    async fn renew_node(&self, request: Request<RenewNodeRequest>) -> Answer {
        let caller = self.callers.node(&request).map_err(|s| self.metrics.rejected("RenewNode", s))?;
        let id = node_id(self.authority.trust_domain(), &caller.node);
        let result = self
            .within_limit(&caller.node)
            .and_then(|()| self.sign(&request.get_ref().csr_der, id.clone(), self.node_ttl, "node"));
        self.audit("RenewNode", &caller.node, &id, result)
    }

    async fn sign_workload(&self, request: Request<SignWorkloadRequest>) -> Answer {
        let caller = self.callers.node(&request).map_err(|s| self.metrics.rejected("SignWorkload", s))?;
        let request = request.into_inner();
        let result = self
            .within_limit(&caller.node)
            .and_then(|()| self.entitled(&caller.node, &request.spiffe_id))
            .and_then(|id| self.sign(&request.csr_der, id.to_string(), self.svid_ttl, "workload"));
        self.audit("SignWorkload", &caller.node, &request.spiffe_id, result)
    }
}

impl CertificateService {
    /// A node joins: the token is looked at first and spent last, so that a bad request does not cost it.
    fn admit(&self, request: JoinRequest) -> Result<SignedCertificate, Status> {
        if !is_node_name(&request.node) {
            return Err(Status::invalid_argument("the node's name is not a DNS subdomain"));
        }
        let refused = |error: TokenError| match error {
            TokenError::Store(error) => internal(&error),
            // Which of the reasons it was is in the log, and nothing that a guesser could use is in the answer.
            other => {
                tracing::warn!(target: "audit", node = %request.node, reason = %other, "join token refused");
                Status::unauthenticated("join token refused")
            }
        };
        let ticket = self.tokens.check(&request.token, &request.node, SystemTime::now()).map_err(refused)?;
        request_key(&request.csr_der).map_err(status_of)?;
        ticket.spend().map_err(refused)?;
        let id = node_id(self.authority.trust_domain(), &request.node);
        self.sign(&request.csr_der, id, self.node_ttl, "node")
    }

    /// A node joins by its agent's own pod: the token says which pod that is, and the pod's object says on which node.
    async fn admit_agent(
        &self,
        reviewer: &Reviewer,
        request: JoinRequest,
    ) -> Result<SignedCertificate, Status> {
        let pod = reviewer.review(&request.token).await.map_err(|error| match error {
            ReviewError::Api(error) => {
                tracing::error!(%error, "a token cannot be reviewed");
                Status::unavailable("the API server cannot be asked about the token now")
            }
            other => {
                tracing::warn!(target: "audit", node = %request.node, reason = %other, "agent's token refused");
                Status::unauthenticated("service account token refused")
            }
        })?;
        let compiled = self.compiled.borrow().clone();
        let node = compiled.as_ref().and_then(|compiled| compiled.agents.get(&pod));
        // The kubelet may be faster than the watch: asking again helps then.
        let node =
            node.ok_or_else(|| Status::unavailable("the token's pod is no agent that is known here"))?;
        if **node != *request.node {
            let reason = format!("the token's pod is on node {node}");
            tracing::warn!(target: "audit", node = %request.node, reason, "agent's token refused");
            return Err(Status::permission_denied("the token's pod is on another node"));
        }
        self.within_limit(node)?;
        let id = node_id(self.authority.trust_domain(), node);
        self.sign(&request.csr_der, id, self.node_ttl, "node")
    }

    fn within_limit(&self, node: &str) -> Result<(), Status> {
        if self.limit.take(node, Instant::now()) {
            return Ok(());
        }
        Err(Status::resource_exhausted("this node asks for too many certificates"))
    }

    /// The identity, if an enrolled pod or unit on the caller's node has it.
    fn entitled(&self, node: &str, requested: &str) -> Result<SpiffeId, Status> {
        let id = SpiffeId::parse(requested).map_err(|e| Status::invalid_argument(e.to_string()))?;
        if requested == admin_id(self.authority.trust_domain()) {
            return Err(Status::permission_denied("this identity is the operators'"));
        }
        let compiled = self.compiled.borrow().clone();
        let compiled = compiled.ok_or_else(|| Status::unavailable("the source has not delivered yet"))?;
        if compiled.on_node(node).any(|workload| workload.enrolled && workload.identity == id) {
            return Ok(id);
        }
        Err(Status::permission_denied(format!("no enrolled workload on node {node} has the identity {id}")))
    }

    fn sign(
        &self,
        csr: &[u8],
        id: String,
        ttl: Duration,
        kind: &'static str,
    ) -> Result<SignedCertificate, Status> {
        let key = request_key(csr).map_err(status_of)?;
        let signed =
            self.authority.sign(&key, Profile::Spiffe(id), ttl, SystemTime::now()).map_err(status_of)?;
        self.metrics.signed(kind);
        let end = signed.not_after.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        tracing::debug!(kind, not_after_unix = end, "signed");
        Ok(SignedCertificate {
            chain_der: signed.chain.iter().map(|der| der.to_vec()).collect(),
            trust_bundle: Some(bundle(&self.tls.borrow())),
        })
    }

    fn audit(
        &self,
        call: &'static str,
        node: &str,
        subject: &str,
        result: Result<SignedCertificate, Status>,
    ) -> Answer {
        match result {
            Ok(signed) => {
                tracing::info!(target: "audit", call, node, subject, "certificate signed");
                Ok(Response::new(signed))
            }
            Err(status) => {
                let reason = status.message();
                tracing::warn!(target: "audit", call, node, subject, reason, "certificate refused");
                Err(self.metrics.rejected(call, status))
            }
        }
    }
}

fn status_of(error: CaError) -> Status {
    match error {
        CaError::Request(_) => Status::invalid_argument(error.to_string()),
        other => internal(&other),
    }
}

/// Paths and system errors are for the log, not for callers.
fn internal(error: &CaError) -> Status {
    tracing::error!(%error, "certificate authority failed");
    Status::internal("the certificate authority failed; its log says why")
}
