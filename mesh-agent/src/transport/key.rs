//! What two connections must have in common to share a pooled tunnel: nothing of one pod, identity, certificate or
//! trust bundle ever travels on a tunnel of another.

use std::net::IpAddr;

use mesh_core::identity::SpiffeId;
use mesh_core::model::WorkloadUid;

use super::Target;

/// The key of pooled tunnels.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct PoolKey {
    pub(super) source_pod: WorkloadUid,
    source: SpiffeId,
    workload: WorkloadUid,
    address: IpAddr,
    svid_generation: u64,
    pub(super) trust_generation: u64,
}

impl PoolKey {
    /// The key of `target` under the trust bundle of `trust_generation`.
    pub(super) fn new(target: &Target, trust_generation: u64) -> Self {
        Self {
            source_pod: target.source_pod.uid.clone(),
            source: target.svid.identity.clone(),
            workload: target.workload.uid.clone(),
            address: target.open.destination.ip(),
            svid_generation: target.svid.generation,
            trust_generation,
        }
    }
}
