//! What the mesh knows about: workloads, services and policies, compiled by the controller and held by the agents.
//!
//! The controller resolves every label selector, so no label is here: a workload names the policies that select it and
//! carries its own mTLS modes.

mod policy;
mod service;
mod workload;

pub use policy::{
    Action, AuthorizationPolicy, DNS_PORT, Operation, PolicyName, Protocol, Rule, Source, StringMatch,
};
pub use service::{Affinity, Endpoint, EndpointHealth, Service, ServiceName, ServicePort, TrafficScope};
pub use workload::{ConnectMode, MtlsMode, MtlsModes, Owner, Workload, WorkloadUid};
