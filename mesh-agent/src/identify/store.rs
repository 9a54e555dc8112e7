//! The SVIDs of local workload identities and the trust bundle, as the control plane last gave them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use mesh_core::identity::SpiffeId;
use rustls::RootCertStore;
use rustls::sign::CertifiedKey;
use tokio::sync::watch;

/// One X.509 SVID with its key.
#[derive(Debug)]
pub struct Svid {
    /// Whose it is.
    pub identity: SpiffeId,
    /// Chain (leaf first) and private key.
    pub key: Arc<CertifiedKey>,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
    /// Grows with each renewal of this identity: pooled connections are keyed by it.
    pub generation: u64,
}

/// The roots that are trusted now.
#[derive(Debug)]
pub struct Trust {
    /// The roots.
    pub roots: Arc<RootCertStore>,
    /// Grows with each change of the bundle: connections verified under an older one are verified again.
    pub generation: u64,
}

/// Shared by the control plane (writes) and the data plane (reads, lock-free).
#[derive(Debug)]
pub struct SvidStore {
    svids: ArcSwap<HashMap<SpiffeId, Arc<Svid>>>,
    trust: ArcSwap<Trust>,
    /// The generation of `trust`, written after it.
    changes: watch::Sender<u64>,
}

impl SvidStore {
    /// A store without SVIDs that trusts nobody.
    pub fn new() -> Self {
        let trust = Trust { roots: Arc::new(RootCertStore::empty()), generation: 0 };
        let changes = watch::channel(trust.generation).0;
        Self { svids: ArcSwap::default(), trust: ArcSwap::from_pointee(trust), changes }
    }

    /// The SVID of `identity`, if one is held that has not expired at `now`.
    pub fn get(&self, identity: &SpiffeId, now: SystemTime) -> Option<Arc<Svid>> {
        self.svids.load().get(identity).filter(|svid| svid.not_after > now).cloned()
    }

    /// Every SVID that is held, expired ones included.
    pub fn all(&self) -> Arc<HashMap<SpiffeId, Arc<Svid>>> {
        self.svids.load_full()
    }

    /// The trust bundle.
    pub fn trust(&self) -> Arc<Trust> {
        self.trust.load_full()
    }

    /// Adds or replaces an SVID.
    pub fn put(&self, svid: Arc<Svid>) {
        self.svids.rcu(|held| {
            let mut next = HashMap::clone(held);
            next.insert(svid.identity.clone(), Arc::clone(&svid));
            next
        });
    }

    /// Forgets the SVID of an identity that no pod of this node has any more.
    pub fn remove(&self, identity: &SpiffeId) {
        self.svids.rcu(|held| {
            let mut next = HashMap::clone(held);
            next.remove(identity);
            next
        });
    }

    /// Replaces the trust bundle.
    pub fn set_roots(&self, roots: Arc<RootCertStore>) {
        self.trust.rcu(|held| Trust { roots: Arc::clone(&roots), generation: held.generation + 1 });
        self.changes.send_replace(self.trust().generation);
    }

    /// Waits until the trust bundle is another one than that of `generation`.
    pub async fn trust_changed(&self, generation: u64) {
        let mut changes = self.changes.subscribe();
        if changes.wait_for(|now| *now != generation).await.is_err() {
            // The sender lives as long as the store.
            std::future::pending().await
        }
    }
}

impl Default for SvidStore {
    fn default() -> Self {
        Self::new()
    }
}
