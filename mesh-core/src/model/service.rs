//! A service: virtual addresses, ports and the endpoints behind them, with kube-proxy's semantics.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::WorkloadUid;

/// `namespace/name` of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A TCP port of a service. Target ports are resolved for each endpoint, since named ports differ by pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// The name; empty for the only port of a service.
    pub name: Arc<str>,
    /// The port on the virtual address.
    pub port: u16,
}

/// `internalTrafficPolicy`: which endpoints a client may be sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TrafficScope {
    /// Any endpoint of the cluster.
    Cluster,
    /// Only endpoints on the client's own node; none there means the connection fails.
    NodeLocal,
}

/// `sessionAffinity`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Affinity {
    /// Each connection is balanced for itself.
    None,
    /// A client address stays with its endpoint until it has been silent for this long.
    ClientIp(Duration),
}

/// What an EndpointSlice says of an endpoint's conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndpointHealth {
    /// Ready: takes new connections (also set for every endpoint under `publishNotReadyAddresses`).
    Ready,
    /// Terminating but still serving: used only when no endpoint is ready.
    ServingTerminating,
    /// Neither: never used.
    NotReady,
}

/// One backend of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The pod behind it; `None` for an address that no pod of the mesh's knowledge has (selectorless Services).
    pub workload: Option<WorkloadUid>,
    /// The address to dial.
    pub address: IpAddr,
    /// The node it is on; empty when unknown.
    pub node: Arc<str>,
    /// Its condition.
    pub health: EndpointHealth,
    /// `(service port, target port)` pairs; a service port that is missing here is not served by this endpoint.
    pub ports: Vec<(u16, u16)>,
}

impl Endpoint {
    /// The port to dial for `service_port`.
    pub fn target_port(&self, service_port: u16) -> Option<u16> {
        self.ports.iter().find(|(from, _)| *from == service_port).map(|(_, to)| *to)
    }
}

/// A Service with its endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: ServiceName,
    /// Cluster IPs, external IPs and load-balancer addresses; empty for a headless service.
    pub vips: Vec<IpAddr>,
    /// TCP ports.
    pub ports: Vec<ServicePort>,
    /// The backends.
    pub endpoints: Vec<Endpoint>,
    /// Which of them a client may use.
    pub scope: TrafficScope,
    /// Session affinity.
    pub affinity: Affinity,
}
