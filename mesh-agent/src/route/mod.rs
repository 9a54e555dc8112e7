//! Stage 4: what a dialled address means, by the current snapshot, and by the controller's word where the snapshot is
//! silent. A [`SourcePermit`] and an address come in, the candidates go out.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_core::model::{Affinity, ServiceName, Workload};
use mesh_core::route::{Candidate, NoRoute, Route, resolve};
use mesh_core::snapshot::Snapshot;

use crate::authorize::SourcePermit;
use crate::control::{Lookup, LookupError, Published};

/// What this node knows of the mesh, and whom to ask for the rest.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// The snapshot.
    pub published: &'a Published,
    /// The controller's word.
    pub lookup: &'a Lookup,
}

/// Where a connection may go, and the view of the mesh that said so.
#[derive(Clone, Debug)]
pub struct Routed {
    /// The snapshot that this connection keeps.
    pub snapshot: Arc<Snapshot>,
    /// The service that was dialled.
    pub service: Option<ServiceName>,
    /// Its session affinity.
    pub affinity: Affinity,
    /// Where it may go; never empty.
    pub candidates: Vec<Candidate>,
    /// The address is outside the mesh's knowledge: there is nobody to look up behind it.
    pub pass_through: bool,
}

/// Why a connection goes nowhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// The snapshot says so. The operator's fault (no such port) or a matter of time (no endpoint).
    #[error(transparent)]
    NoRoute(#[from] NoRoute),
    /// The controller did not say what the address is. Trying again later may help.
    #[error(transparent)]
    Lookup(#[from] LookupError),
}

impl RouteError {
    /// The service whose address was dialled, where it is one's.
    pub fn service(&self) -> Option<&ServiceName> {
        match self {
            Self::NoRoute(NoRoute::NoSuchPort { service, .. } | NoRoute::NoEndpoint { service, .. }) => {
                Some(service)
            }
            Self::NoRoute(NoRoute::NotLoaded(_)) | Self::Lookup(_) => None,
        }
    }
}

/// Finds the candidates of a connection that the pod behind `permit` made to `dst`.
pub async fn route(known: Known<'_>, permit: &SourcePermit, dst: SocketAddr) -> Result<Routed, RouteError> {
    let dst = SocketAddr::new(dst.ip().to_canonical(), dst.port());
    // Also for what is held already: it must not be given up as idle while it is used.
    known.lookup.ensure(dst.ip()).await?;
    let snapshot = known.published.load();
    let (service, affinity, candidates, pass_through) =
        match resolve(&snapshot, &permit.workload().node, dst)? {
            Route::PassThrough(address) => {
                (None, Affinity::None, vec![Candidate { address, workload: None }], true)
            }
            Route::Direct(candidate) => (None, Affinity::None, vec![candidate], false),
            Route::Service { service, candidates, affinity } => (Some(service), affinity, candidates, false),
        };
    Ok(Routed { snapshot, service, affinity, candidates, pass_through })
}

/// The enrolled pod behind a candidate, with the snapshot that said so: what it names must be tunnelled to. An endpoint
/// that names no pod (a Service without selector) may still be a pod's address, so it is looked up before plaintext is
/// sent there.
pub async fn enrolled_behind(
    known: Known<'_>,
    routed: &Routed,
    candidate: &Candidate,
) -> Result<(Arc<Snapshot>, Option<Arc<Workload>>, bool), RouteError> {
    let (snapshot, workload) = match &candidate.workload {
        Some(workload) => (Arc::clone(&routed.snapshot), Some(Arc::clone(workload))),
        None if routed.pass_through => (Arc::clone(&routed.snapshot), None),
        None => {
            let address = candidate.address.ip().to_canonical();
            known.lookup.ensure(address).await?;
            let snapshot = known.published.load();
            let workload = snapshot.workload_at(address).cloned();
            (snapshot, workload)
        }
    };
    let enrolled = workload.as_ref().is_some_and(|workload| workload.enrolled);
    Ok((snapshot, workload, enrolled))
}
