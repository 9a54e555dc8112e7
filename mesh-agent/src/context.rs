//! What every stage of the data plane may look at: the snapshot, the lookup of what is not held yet, certificates,
//! metrics, limits. Made once by `main`, shared by all workers.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_core::identity::SpiffeId;
use mesh_core::snapshot::Snapshot;

use crate::balance::Balancer;
use crate::control::{Lookup, Published};
use crate::identify::{Svid, SvidStore};
use crate::intercept::Kubelet;
use crate::observe::Metrics;
use crate::route::Known;
use crate::transport::{AcceptorSettings, DialerSettings};

/// How often a missing certificate is looked for again while a connection waits.
const SVID_POLL: Duration = Duration::from_millis(20);

/// Limits of the data plane.
#[derive(Clone, Debug)]
pub struct DataplaneConfig {
    /// Worker threads; 0: one a core.
    pub workers: usize,
    /// The longest that a dial of an application or of an address outside the mesh may take.
    pub dial_timeout: Duration,
    /// How long a connection waits for the first certificate of a pod that has just been enrolled.
    pub svid_wait: Duration,
    /// How long the destination waits for the name of a client whose address is not in doubt.
    pub label_wait: Duration,
    /// The most connections that one pod may have open through the agent; accept pauses for it alone above that.
    pub connections_per_pod: usize,
    /// The most connections to one pod's 15008 that have not proven who they are; each has the handshake's time limit.
    pub handshakes_per_pod: usize,
    /// The most connections that one pod may make in a second; as many may come at once.
    pub dials_per_second: u32,
    /// Limits of the dialling side.
    pub dialer: DialerSettings,
    /// Limits of the accepting side.
    pub acceptor: AcceptorSettings,
}

impl Default for DataplaneConfig {
    fn default() -> Self {
        Self {
            workers: 0,
            dial_timeout: Duration::from_secs(10),
            svid_wait: Duration::from_secs(5),
            label_wait: Duration::from_millis(300),
            connections_per_pod: 16_384,
            handshakes_per_pod: 512,
            dials_per_second: 20_000,
            dialer: DialerSettings::default(),
            acceptor: AcceptorSettings::default(),
        }
    }
}

/// Shared by all workers.
#[derive(Debug)]
pub struct Context {
    /// The name of this node, as workloads have it.
    pub node: Arc<str>,
    /// The snapshot and the signal that it changed. The slot is written before the signal is sent: whoever wakes sees
    /// the new one.
    pub published: Published,
    /// Asks the controller for addresses that the snapshot does not hold.
    pub lookup: Lookup,
    /// Certificates and trust bundle.
    pub svids: Arc<SvidStore>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Open connections of each endpoint, and session affinity.
    pub balancer: Balancer,
    /// Who may ask probes' ports in plaintext; nobody where this is not known.
    pub kubelet: Option<Arc<Kubelet>>,
    /// Limits.
    pub config: DataplaneConfig,
}

impl Context {
    /// The current snapshot.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.published.load()
    }

    /// What the routing of a connection goes by.
    pub fn known(&self) -> Known<'_> {
        Known { published: &self.published, lookup: &self.lookup }
    }

    /// The SVID of a local identity. A pod that was enrolled a moment ago may wait for its first one; `None` when there
    /// is none within the limit.
    pub async fn svid(&self, identity: &SpiffeId) -> Option<Arc<Svid>> {
        if let Some(svid) = self.svids.get(identity, SystemTime::now()) {
            return Some(svid);
        }
        let found = async {
            loop {
                tokio::time::sleep(SVID_POLL).await;
                if let Some(svid) = self.svids.get(identity, SystemTime::now()) {
                    return svid;
                }
            }
        };
        tokio::time::timeout(self.config.svid_wait, found).await.ok()
    }
}
