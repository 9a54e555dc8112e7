//! Says on the controller's own Deployment that a plugged-in intermediate is refused. What people are told of the authority
//! in; an event for each refusal out, once, from the replica that holds the Lease.

use std::sync::Arc;
use std::time::Duration;

use kube::core::Request;
use kube::core::params::GetParams;
use mesh_api::proto::AuthorityStatus;
use serde::Deserialize;
use tokio::sync::watch;

use super::event::{self, Involved};
use super::lease::Leading;
use crate::api::{ApiError, Client};
use crate::compile::ROOT_NAMESPACE;

/// After an event could not be sent.
const RETRY: Duration = Duration::from_secs(5);
/// What a user looks at when the authority does not do what it should.
const DEPLOYMENT: &str = "ferromesh-controller";
const REASON: &str = "IntermediateRefused";

/// Sends the events.
#[derive(Debug)]
pub struct AuthorityEvents {
    client: Client,
    told: watch::Receiver<Arc<AuthorityStatus>>,
    leading: Leading,
    /// The refusal that was sent last, while it stands.
    sent: String,
}

/// As much of the Deployment as is needed.
#[derive(Deserialize)]
struct Held {
    metadata: HeldMeta,
}

#[derive(Deserialize)]
struct HeldMeta {
    uid: String,
}

impl AuthorityEvents {
    /// Sends what `told` says whenever this replica is `leading`.
    pub fn new(client: Client, told: watch::Receiver<Arc<AuthorityStatus>>, leading: Leading) -> Self {
        Self { client, told, leading, sent: String::new() }
    }

    /// Until the controller ends.
    pub async fn run(mut self) {
        loop {
            let leading = *self.leading.borrow_and_update();
            let problem = self.told.borrow_and_update().problem.clone();
            let failed = leading && self.round(problem).await;
            if !leading {
                // Whoever leads next says it again.
                self.sent.clear();
            }
            let pause = async {
                match failed {
                    true => tokio::time::sleep(RETRY).await,
                    false => std::future::pending().await,
                }
            };
            let changed = tokio::select! {
                changed = self.told.changed(), if !failed => changed,
                changed = self.leading.changed() => changed,
                () = pause => Ok(()),
            };
            if changed.is_err() {
                return;
            }
        }
    }

    /// Whether something failed.
    async fn round(&mut self, problem: String) -> bool {
        if problem == self.sent {
            return false;
        }
        if !problem.is_empty()
            && let Err(error) = self.send(&problem).await
        {
            tracing::warn!(%error, deployment = DEPLOYMENT, "the event of a refused intermediate cannot be sent");
            return true;
        }
        self.sent = problem;
        false
    }

    async fn send(&self, problem: &str) -> Result<(), ApiError> {
        let path = format!("/apis/apps/v1/namespaces/{ROOT_NAMESPACE}/deployments");
        let held: Held = self.client.call(Request::new(path).get(DEPLOYMENT, &GetParams::default())?).await?;
        let about = Involved {
            api_version: "apps/v1",
            kind: "Deployment",
            uid: &held.metadata.uid,
            namespace: ROOT_NAMESPACE,
            name: DEPLOYMENT,
        };
        let message = format!("the intermediate is not taken; the last good one signs on: {problem}");
        event::warn(&self.client, about, REASON, &message).await
    }
}
