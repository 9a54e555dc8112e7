//! What a dialled address means: pass through, one pod, or the candidates of a service (kube-proxy's semantics).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::model::{Affinity, EndpointHealth, Service, ServiceName, TrafficScope, Workload};
use crate::snapshot::{Destination, Snapshot};

/// One place that a connection may be sent to.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The address of the application.
    pub address: SocketAddr,
    /// The pod there; `None` for an address outside the mesh's knowledge (plaintext).
    pub workload: Option<Arc<Workload>>,
}

/// Where a connection goes.
#[derive(Clone, Debug)]
pub enum Route {
    /// The mesh does not know the address: dial it as it is.
    PassThrough(SocketAddr),
    /// A pod's own address.
    Direct(Candidate),
    /// A service: one of these. Never empty.
    Service {
        /// The service, for logs and metrics.
        service: ServiceName,
        /// Usable endpoints.
        candidates: Vec<Candidate>,
        /// Session affinity.
        affinity: Affinity,
    },
}

/// Why there is no route.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRoute {
    /// The controller has to be asked first.
    #[error("{0} has not been looked up yet")]
    NotLoaded(IpAddr),
    /// The address is a service's, the port is not.
    #[error("service {service} has no port {port}")]
    NoSuchPort {
        /// The service.
        service: ServiceName,
        /// The port that was dialled.
        port: u16,
    },
    /// No endpoint can be used.
    #[error("service {service} has no ready endpoint for port {port}")]
    NoEndpoint {
        /// The service.
        service: ServiceName,
        /// The port that was dialled.
        port: u16,
    },
}

/// Finds the route of a connection that a pod on `node` made to `dst`.
pub fn resolve(snapshot: &Snapshot, node: &str, dst: SocketAddr) -> Result<Route, NoRoute> {
    match snapshot.destination(dst.ip()) {
        Destination::NotLoaded => Err(NoRoute::NotLoaded(dst.ip())),
        Destination::Absent => Ok(Route::PassThrough(dst)),
        Destination::Workload(workload) => {
            Ok(Route::Direct(Candidate { address: dst, workload: Some(workload) }))
        }
        Destination::Service(service) => of_service(snapshot, node, &service, dst),
    }
}

fn of_service(snapshot: &Snapshot, node: &str, service: &Service, dst: SocketAddr) -> Result<Route, NoRoute> {
    let name = service.name.clone();
    if !service.ports.iter().any(|p| p.port == dst.port()) {
        return Err(NoRoute::NoSuchPort { service: name, port: dst.port() });
    }
    let usable = |health: EndpointHealth| -> Vec<Candidate> {
        let endpoints = service.endpoints.iter().filter(|e| {
            e.health == health
                && e.address.is_ipv4() == dst.is_ipv4()
                && (service.scope == TrafficScope::Cluster || &*e.node == node)
        });
        endpoints
            .filter_map(|e| {
                let workload = match &e.workload {
                    // A pod that has not reached this agent yet could be enrolled: it is not dialled in plaintext.
                    Some(uid) => Some(Arc::clone(snapshot.workload(uid)?)),
                    None => None,
                };
                Some(Candidate { address: SocketAddr::new(e.address, e.target_port(dst.port())?), workload })
            })
            .collect()
    };
    let mut candidates = usable(EndpointHealth::Ready);
    if candidates.is_empty() {
        candidates = usable(EndpointHealth::ServingTerminating);
    }
    if candidates.is_empty() {
        return Err(NoRoute::NoEndpoint { service: name, port: dst.port() });
    }
    Ok(Route::Service { service: name, candidates, affinity: service.affinity })
}
