//! Operators' calls.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_api::proto::admin_server::Admin;
use mesh_api::proto::{
    AuthorityStatus, CreateJoinTokenRequest, CreateJoinTokenResponse, ObjectStatus, RotateRootRequest,
    StatusRequest, StatusResponse,
};
use mesh_core::identity::TrustDomain;
use tokio::sync::{mpsc, oneshot, watch};
use tonic::{Request, Response, Status};

use super::{Agents, Callers, CompiledFeed, TlsState};
use crate::ca::{TokenError, TokenStore};
use crate::metrics::Metrics;

/// How long a token lives when the operator does not say.
const DEFAULT_TOKEN_TTL: Duration = Duration::from_secs(600);

/// Where the outcome of a rotation is awaited.
pub type RotateRequest = oneshot::Sender<Result<AuthorityStatus, Status>>;

/// What operators see and ask of the authority.
#[derive(Clone, Debug)]
pub struct AuthorityHandle {
    /// What is told of it.
    pub told: watch::Receiver<Arc<AuthorityStatus>>,
    /// Asks for another root.
    pub requests: mpsc::Sender<RotateRequest>,
}

/// The service.
#[derive(Clone, Debug)]
pub(super) struct AdminService {
    pub(super) trust_domain: TrustDomain,
    pub(super) tokens: TokenStore,
    pub(super) callers: Callers,
    pub(super) compiled: CompiledFeed,
    pub(super) tls: watch::Receiver<Arc<TlsState>>,
    pub(super) agents: Arc<Agents>,
    pub(super) authority: AuthorityHandle,
    pub(super) metrics: Arc<Metrics>,
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        self.callers.admin(&request).map_err(|s| self.metrics.rejected("Status", s))?;
        let compiled = self.compiled.borrow().clone();
        let tls = Arc::clone(&self.tls.borrow());
        let objects = compiled.iter().flat_map(|c| &c.statuses).chain(&tls.statuses);
        let object = |status: &crate::object::Status| ObjectStatus {
            source: status.source.to_string(),
            accepted: status.accepted,
            reason: status.reason.into(),
            message: status.message.clone(),
            enforced: status.enforced,
        };
        Ok(Response::new(StatusResponse {
            version: compiled.as_ref().map_or(0, |c| c.version),
            trust_domain: self.trust_domain.to_string(),
            agents: self.agents.statuses(),
            objects: objects.map(object).collect(),
            authority: Some(self.authority.told.borrow().as_ref().clone()),
        }))
    }

    async fn rotate_root(
        &self,
        request: Request<RotateRootRequest>,
    ) -> Result<Response<AuthorityStatus>, Status> {
        let rejected = |status| self.metrics.rejected("RotateRoot", status);
        self.callers.admin(&request).map_err(rejected)?;
        tracing::info!(target: "audit", "an operator asks for another root");
        let (answer, answered) = oneshot::channel();
        let stopping = || Status::unavailable("the controller is stopping");
        self.authority.requests.send(answer).await.map_err(|_| rejected(stopping()))?;
        let status = answered.await.map_err(|_| rejected(stopping()))?;
        status.map(Response::new).map_err(rejected)
    }

    async fn create_join_token(
        &self,
        request: Request<CreateJoinTokenRequest>,
    ) -> Result<Response<CreateJoinTokenResponse>, Status> {
        let rejected = |status| self.metrics.rejected("CreateJoinToken", status);
        self.callers.admin(&request).map_err(rejected)?;
        let request = request.into_inner();
        let ttl = match request.ttl_seconds {
            0 => DEFAULT_TOKEN_TTL,
            seconds => Duration::from_secs(seconds.into()),
        };
        let token = self.tokens.create(&request.node, ttl, SystemTime::now()).map_err(|error| {
            rejected(match error {
                TokenError::Store(error) => {
                    tracing::error!(%error, "token store failed");
                    Status::internal("the token store failed; the controller's log says why")
                }
                other => Status::invalid_argument(other.to_string()),
            })
        })?;
        tracing::info!(target: "audit", node = %request.node, seconds = ttl.as_secs(), "join token made");
        Ok(Response::new(CreateJoinTokenResponse { token }))
    }
}
