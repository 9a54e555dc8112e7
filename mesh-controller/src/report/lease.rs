//! Which replica writes: the one that holds the Lease `ferromesh-controller`. An API server in, a changing yes or no out.
//!
//! Time is the replica's own: a holder is believed to be gone when its Lease did not change for as long as it lasts, as seen
//! here, so clocks need not agree. One that cannot renew stops writing before another may begin.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease as Object, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::core::params::{GetParams, PostParams};
use kube::core::{Request, Resource};
use tokio::sync::watch;

use crate::api::{ApiError, Client};
use crate::compile::ROOT_NAMESPACE;

/// The Lease's name.
const NAME: &str = "ferromesh-controller";
/// How long it lasts without being renewed.
const LASTS: Duration = Duration::from_secs(15);
/// How often it is renewed, or looked at.
const EVERY: Duration = Duration::from_secs(4);
/// After so long without a renewal its holder no longer trusts it.
const TRUST: Duration = Duration::from_secs(10);

/// Whether this replica holds the Lease.
pub type Leading = watch::Receiver<bool>;

/// One replica's hand on the Lease.
#[derive(Debug)]
pub struct Lease {
    client: Client,
    identity: String,
    /// What was last seen, and since when it is so.
    seen: Option<(Option<String>, Instant)>,
    renewed: Option<Instant>,
    leading: watch::Sender<bool>,
}

impl Lease {
    /// A replica that is known as `identity`.
    pub fn new(client: Client, identity: String) -> Self {
        Self { client, identity, seen: None, renewed: None, leading: watch::Sender::new(false) }
    }

    /// Where changes are seen.
    pub fn subscribe(&self) -> Leading {
        self.leading.subscribe()
    }

    /// Takes the Lease when it is free and keeps it.
    pub async fn run(mut self) {
        let mut last = String::new();
        loop {
            let begun = Instant::now();
            match self.step(begun).await {
                Ok(true) => self.renewed = Some(begun),
                Ok(false) => self.renewed = None,
                // Somebody was faster: the next look tells who.
                Err(error) if error.is(409) => {}
                Err(error) => {
                    let text = error.to_string();
                    if text != last {
                        tracing::warn!(error = text, "the Lease cannot be asked for");
                        last = text;
                    }
                }
            }
            let holds = self.renewed.is_some_and(|at| at.elapsed() < TRUST);
            if self.leading.send_if_modified(|held| std::mem::replace(held, holds) != holds) {
                tracing::info!(identity = self.identity, leading = holds, "the Lease");
                last.clear();
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    fn request() -> Request {
        Request::new(Object::url_path(&(), Some(ROOT_NAMESPACE)))
    }

    /// One look; whether it is ours after it.
    async fn step(&mut self, now: Instant) -> Result<bool, ApiError> {
        let asked = Self::request().get(NAME, &GetParams::default())?;
        let held: Object = match self.client.call(asked).await {
            Ok(held) => held,
            Err(error) if error.is(404) => {
                let request = Self::request().create(&PostParams::default(), self.claim(None)?)?;
                return self.client.call::<Object>(request).await.map(|_| true);
            }
            Err(error) => return Err(error),
        };
        let version = held.metadata.resource_version.clone();
        if self.seen.as_ref().is_none_or(|(last, _)| *last != version) {
            self.seen = Some((version, now));
        }
        let holder = held.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default();
        let still = self.seen.as_ref().map_or(Duration::ZERO, |(_, since)| now.duration_since(*since));
        if holder != self.identity && !holder.is_empty() && still < LASTS {
            return Ok(false);
        }
        let request = Self::request().replace(NAME, &PostParams::default(), self.claim(Some(held))?)?;
        self.client.call::<Object>(request).await.map(|_| true)
    }

    /// The Lease as ours; refused by the server (409) when `held` is no longer what is there.
    fn claim(&self, held: Option<Object>) -> Result<Vec<u8>, ApiError> {
        let now = MicroTime(Timestamp::now());
        let before = held.as_ref().and_then(|held| held.spec.clone()).unwrap_or_default();
        let mine = before.holder_identity.as_deref() == Some(&self.identity);
        let changes = before.lease_transitions.unwrap_or_default();
        let spec = LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(LASTS.as_secs()).ok(),
            acquire_time: if mine { before.acquire_time.clone() } else { Some(now.clone()) },
            renew_time: Some(now),
            lease_transitions: Some(if mine { changes } else { changes.saturating_add(1) }),
            ..before
        };
        let metadata = held.map_or_else(
            || ObjectMeta {
                name: Some(NAME.into()),
                namespace: Some(ROOT_NAMESPACE.into()),
                ..ObjectMeta::default()
            },
            |held| held.metadata,
        );
        let object = Object { metadata, spec: Some(spec) };
        serde_json::to_vec(&object).map_err(|error| ApiError::Request(error.to_string()))
    }
}
