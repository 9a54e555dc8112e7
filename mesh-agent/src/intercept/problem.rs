//! Why a pod that should be enrolled is not, or not in full. In: what failed. Out: a sentence for status and log.

use mesh_common::MAX_PODS;
use mesh_core::model::{Workload, WorkloadUid};

use super::discover::Refusal;
use super::listen::ListenError;
use super::object::InterceptError;

/// A local enrolled pod that is not served, or not in full, for status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodProblem {
    /// Which pod.
    pub uid: WorkloadUid,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// Why a pod was not enrolled.
#[derive(Debug, thiserror::Error)]
pub(super) enum EnrolError {
    #[error(transparent)]
    Discover(#[from] Refusal),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Kernel(#[from] InterceptError),
    #[error("a map entry: {0}")]
    Map(#[from] aya::maps::MapError),
    #[error("{MAX_PODS} pods are known on this node already")]
    TooMany,
    #[error("the agent is stopping")]
    Stopping,
}

impl PodProblem {
    pub(super) fn new(workload: &Workload, why: &impl ToString) -> Self {
        Self {
            uid: workload.uid.clone(),
            namespace: workload.namespace().to_owned(),
            name: workload.name.to_string(),
            reason: why.to_string(),
        }
    }
}
