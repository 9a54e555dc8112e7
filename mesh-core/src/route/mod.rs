//! What a dialled address means: pass through, one pod, or the candidates of a service (kube-proxy's semantics).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::model::{
    Affinity, Endpoint, EndpointHealth, Service, ServiceName, TrafficScope, Workload, WorkloadUid,
};
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
    // A pod that has not reached this agent yet could be enrolled: it is not dialled in plaintext.
    let candidates: Vec<Candidate> = usable(service, node, dst, |uid| snapshot.workload(uid).is_some())
        .into_iter()
        .map(|(endpoint, port)| Candidate {
            address: SocketAddr::new(endpoint.address, port),
            workload: endpoint.workload.as_ref().and_then(|uid| snapshot.workload(uid)).cloned(),
        })
        .collect();
    if candidates.is_empty() {
        return Err(NoRoute::NoEndpoint { service: name, port: dst.port() });
    }
    Ok(Route::Service { service: name, candidates, affinity: service.affinity })
}

/// The virtual addresses and ports of `service` for which [`resolve`] answers [`NoRoute::NoEndpoint`] to a client on `node`.
pub fn unserved<'a>(
    service: &'a Service,
    node: &'a str,
    known: impl Fn(&WorkloadUid) -> bool + 'a,
) -> impl Iterator<Item = SocketAddr> + 'a {
    let ports = || service.ports.iter().map(|port| port.port);
    let all = service.vips.iter().flat_map(move |vip| ports().map(|port| SocketAddr::new(*vip, port)));
    all.filter(move |dst| usable(service, node, *dst, &known).is_empty())
}

/// The endpoints that a client on `node` may be sent to, each with its target port: the ready ones, or else those that
/// terminate but still serve. An endpoint whose pod is not `known` is left out.
fn usable<'a>(
    service: &'a Service,
    node: &str,
    dst: SocketAddr,
    known: impl Fn(&WorkloadUid) -> bool,
) -> Vec<(&'a Endpoint, u16)> {
    let of_health = |health: EndpointHealth| -> Vec<_> {
        let eligible = service.endpoints.iter().filter(|e| {
            e.health == health
                && e.address.is_ipv4() == dst.is_ipv4()
                && (service.scope == TrafficScope::Cluster || &*e.node == node)
                && e.workload.as_ref().is_none_or(&known)
        });
        eligible.filter_map(|e| Some((e, e.target_port(dst.port())?))).collect()
    };
    let ready = of_health(EndpointHealth::Ready);
    if ready.is_empty() { of_health(EndpointHealth::ServingTerminating) } else { ready }
}
