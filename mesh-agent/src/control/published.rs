//! The snapshot that the data plane reads. The discovery client publishes a new one; readers load it without a lock, or
//! wait for the next.

use std::sync::Arc;

use arc_swap::ArcSwap;
use mesh_core::identity::TrustDomain;
use mesh_core::snapshot::Snapshot;
use tokio::sync::watch;

/// The current snapshot, and the signal that it changed. Clones share both.
#[derive(Clone, Debug)]
pub struct Published {
    snapshot: Arc<ArcSwap<Snapshot>>,
    version: watch::Sender<u64>,
}

impl Published {
    /// Begins with a snapshot that holds nothing (version 0).
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self {
            snapshot: Arc::new(ArcSwap::from_pointee(Snapshot::empty(trust_domain))),
            version: watch::Sender::new(0),
        }
    }

    /// The current snapshot.
    pub fn load(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// The slot itself, for readers that load often.
    pub fn slot(&self) -> Arc<ArcSwap<Snapshot>> {
        Arc::clone(&self.snapshot)
    }

    /// Wakes after each publication with the snapshot's version (which may repeat when a controller began anew).
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Makes `snapshot` the current one.
    pub fn publish(&self, snapshot: Snapshot) {
        let version = snapshot.version;
        self.snapshot.store(Arc::new(snapshot));
        // `send_replace` wakes waiters even when the number is the same.
        self.version.send_replace(version);
    }
}
