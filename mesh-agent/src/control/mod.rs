//! The control plane's side of the agent: discovery, certificates, administration. On a runtime of its own.
//!
//! The controller's deltas and signatures come in; a [`Published`] snapshot, an [`SvidStore`] and the [`Lookup`] handle
//! go out to the data plane, which never waits for anything here but `Lookup::ensure`.

pub mod admin;
mod backoff;
mod bundle;
mod certs;
mod client;
mod dial;
mod explain;
mod files;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod handover;
mod kept;
mod lookup;
mod metrics;
mod published;
mod status;
mod view;

use std::sync::Arc;
use std::time::Duration;

pub use backoff::Backoff;
use certs::Keyring;
pub(crate) use certs::rfc3339;
pub use certs::{CertificateError, NodeError, NodeIdentity, NodeSettings, PortableSvid};
pub use dial::{CONTROLLER_NAME, Controller, ControllerError};
pub use explain::Listener;
pub use handover::{ControlState, ImportError};
pub use lookup::{Lookup, LookupError, LookupSettings};
pub use metrics::ControlMetrics;
pub use published::Published;
pub use status::{CertificateProblem, ControlStatus, NodeStatus, StreamStatus};

use crate::identify::SvidStore;
use bundle::Bundle;

/// Waits between attempts; tests shorten them.
#[derive(Clone, Debug)]
pub struct ControlSettings {
    /// Between discovery streams.
    pub stream_backoff: Backoff,
    /// Between attempts to obtain one certificate.
    pub sign_backoff: Backoff,
    /// Limits of lookups.
    pub lookup: LookupSettings,
}

impl Default for ControlSettings {
    fn default() -> Self {
        let backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(15));
        Self { stream_backoff: backoff.clone(), sign_backoff: backoff, lookup: LookupSettings::default() }
    }
}

/// What the control plane gives to the rest of the agent. Clones share everything.
#[derive(Clone, Debug)]
pub struct Control {
    /// The snapshot in use.
    pub published: Published,
    /// SVIDs and the trust bundle.
    pub svids: Arc<SvidStore>,
    /// Asks for addresses.
    pub lookup: Lookup,
    /// How it fares.
    pub status: Arc<ControlStatus>,
    /// What it counts.
    pub metrics: ControlMetrics,
    bundle: Bundle,
    keyring: Arc<Keyring>,
}

impl Control {
    /// Handles that nothing feeds yet: see [`Control::run`].
    pub fn new(node: &NodeSettings, svids: Arc<SvidStore>, settings: &ControlSettings) -> Self {
        let published = Published::new(node.trust_domain.clone());
        let metrics = ControlMetrics::default();
        let lookup = Lookup::new(published.clone(), settings.lookup, metrics.clone());
        let (bundle, keyring) = (Bundle::default(), Arc::default());
        Self { published, svids, lookup, status: Arc::default(), metrics, bundle, keyring }
    }

    /// Takes over the snapshot that an earlier agent of this node kept on disk, so that pods are classified before the
    /// controller has said anything. To be called once, before [`Control::run`]. What is wrong with the file is counted
    /// and told in the status, and nothing of it is taken.
    pub fn restore(&self, node: &NodeSettings) {
        match kept::read(node) {
            Ok(Some(kept)) => self.adopt(kept),
            Ok(None) => {}
            Err(error) => {
                self.metrics.kept_refused.inc();
                tracing::error!(%error, "the snapshot on disk is not used");
                self.status.kept_problem(error.to_string());
            }
        }
    }

    fn adopt(&self, kept: kept::Kept) {
        if let Some(bundle) = kept.bundle
            && let Err(problem) = self.bundle.adopt(bundle, &self.svids)
        {
            self.metrics.kept_refused.inc();
            tracing::error!(%problem, "the trust bundle on disk is not used, nor the snapshot");
            self.status.kept_problem(format!("its trust bundle: {problem}"));
            return;
        }
        let snapshot = self.published.load().apply(kept.delta);
        let version = snapshot.version;
        tracing::info!(version, saved = %certs::rfc3339(kept.saved), "took over the snapshot on disk");
        self.lookup.resume(kept.addresses);
        self.status.restored(version, kept.saved);
        self.metrics.snapshot_version.set(i64::try_from(version).unwrap_or(i64::MAX));
        self.published.publish(snapshot);
    }

    /// Feeds the handles from `controller`, as the node that `identity` proves, for ever. Cancel by dropping.
    pub async fn run(
        &self,
        controller: Arc<Controller>,
        node: NodeSettings,
        identity: NodeIdentity,
        settings: ControlSettings,
    ) {
        let discovery = client::Discovery {
            controller: Arc::clone(&controller),
            published: self.published.clone(),
            svids: Arc::clone(&self.svids),
            bundle: self.bundle.clone(),
            lookup: self.lookup.clone(),
            status: Arc::clone(&self.status),
            metrics: self.metrics.clone(),
            backoff: settings.stream_backoff,
        };
        let signer = certs::Signer {
            controller: Arc::clone(&controller),
            published: self.published.clone(),
            svids: Arc::clone(&self.svids),
            keyring: Arc::clone(&self.keyring),
            bundle: self.bundle.clone(),
            node: node.node.as_str().into(),
            status: Arc::clone(&self.status),
            metrics: self.metrics.clone(),
            backoff: settings.sign_backoff,
        };
        let told = (Arc::clone(&self.status), self.metrics.clone());
        // Made before anything is published, so that what `restore` took over is not written again.
        let keeper = kept::Keeper::new(self, &node);
        tokio::join!(
            keeper.run(),
            discovery.run(),
            signer.run(),
            certs::keep_renewed(controller, node, identity, self.bundle.clone(), told),
            self.lookup.clone().expire_idle(),
        );
    }
}
