//! An agent's proof in a cluster: the service-account token that its kubelet projects into its pod. A token in, the uid of
//! the pod that it is bound to out.
//!
//! The API server is asked for each token (TokenReview), so a token ends with its pod. It must be for our audience and
//! name the agents' own service account; which node it speaks for is not its own to say.

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::core::params::PostParams;
use kube::core::{Request, Resource};
use mesh_core::model::WorkloadUid;

use crate::api::{ApiError, Client};
use crate::compile::{AGENT_ACCOUNT, ROOT_NAMESPACE};

/// Whom an agent's token is for.
pub const AUDIENCE: &str = "ferromesh-controller";
/// Where the API server says which pod a token is bound to.
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
/// No service account's token is longer.
const MAX_TOKEN: usize = 16 * 1024;

/// Why a token proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    /// The API server cannot be asked now.
    #[error("the API server cannot be asked: {0}")]
    Api(#[from] ApiError),
    /// It is not one of this cluster's, has ended, or is for somebody else.
    #[error("not authenticated: {0}")]
    Unknown(String),
    /// It belongs to another account.
    #[error("it is the token of {0}")]
    OtherAccount(String),
    /// It is not bound to a pod.
    #[error("it is bound to no pod")]
    Unbound,
}

/// Asks the API server about tokens.
#[derive(Clone, Debug)]
pub struct Reviewer {
    client: Client,
}

impl Reviewer {
    /// Asks `client`.
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// Whether this has the form of a service account's token; join tokens have no dots.
    pub fn concerns(token: &str) -> bool {
        token.split('.').count() == 3
    }

    /// The pod of an agent's token.
    pub async fn review(&self, token: &str) -> Result<WorkloadUid, ReviewError> {
        if token.len() > MAX_TOKEN {
            return Err(ReviewError::Unknown(format!("{} bytes are too many", token.len())));
        }
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                audiences: Some(vec![AUDIENCE.to_owned()]),
            },
            ..TokenReview::default()
        };
        let body = serde_json::to_vec(&review).map_err(|e| ApiError::Request(e.to_string()))?;
        let request = Request::new(TokenReview::url_path(&(), None)).create(&PostParams::default(), body);
        let answer: TokenReview = self.client.call(request.map_err(ApiError::from)?).await?;
        judge(answer)
    }
}

fn judge(answer: TokenReview) -> Result<WorkloadUid, ReviewError> {
    let status = answer.status.unwrap_or_default();
    if status.authenticated != Some(true) {
        return Err(ReviewError::Unknown(status.error.unwrap_or_default()));
    }
    // A server that does not know audiences answers without: then the token was for anybody.
    if !status.audiences.iter().flatten().any(|audience| audience == AUDIENCE) {
        return Err(ReviewError::Unknown("it is for another audience".into()));
    }
    let user = status.user.unwrap_or_default();
    let name = user.username.unwrap_or_default();
    if name != format!("system:serviceaccount:{ROOT_NAMESPACE}:{AGENT_ACCOUNT}") {
        return Err(ReviewError::OtherAccount(name));
    }
    let uids = user.extra.as_ref().and_then(|extra| extra.get(POD_UID));
    match uids.map(Vec::as_slice) {
        Some([uid]) if !uid.is_empty() => Ok(WorkloadUid(uid.as_str().into())),
        _ => Err(ReviewError::Unbound),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn judged(status: Value) -> Result<WorkloadUid, String> {
        let answer = json!({ "spec": {}, "status": status });
        judge(serde_json::from_value(answer).unwrap()).map_err(|e| e.to_string())
    }

    #[test]
    fn only_an_agent_s_token_for_our_audience_that_is_bound_to_a_pod_counts() {
        let agent = "system:serviceaccount:ferromesh-system:ferromesh-agent";
        let status = |authenticated: bool, audience: &str, name: &str, uid: Value| {
            json!({
                "authenticated": authenticated, "audiences": [audience],
                "user": { "username": name, "extra": { (POD_UID): uid } },
            })
        };
        let good = status(true, AUDIENCE, agent, json!(["u1"]));
        assert_eq!(judged(good), Ok(WorkloadUid("u1".into())));
        let workload = "system:serviceaccount:shop:web";
        for (wrong, want) in [
            (status(false, AUDIENCE, agent, json!(["u1"])), "not authenticated"),
            (status(true, "https://kubernetes.default.svc", agent, json!(["u1"])), "another audience"),
            (json!({ "authenticated": true, "user": { "username": agent } }), "another audience"),
            (status(true, AUDIENCE, workload, json!(["u1"])), "shop:web"),
            (status(true, AUDIENCE, "admin", json!(["u1"])), "admin"),
            (status(true, AUDIENCE, agent, json!([])), "no pod"),
            (status(true, AUDIENCE, agent, json!(["u1", "u2"])), "no pod"),
            (status(true, AUDIENCE, agent, json!([""])), "no pod"),
        ] {
            let error = judged(wrong.clone()).unwrap_err();
            assert!(error.contains(want), "{wrong}: {error}");
        }
        assert!(Reviewer::concerns("a.b.c") && !Reviewer::concerns("0123abcd"));
    }
}
