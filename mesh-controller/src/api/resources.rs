//! Which API each kind is served by.

use kube::core::ApiResource;
use mesh_api::crd::{GROUP, VERSION};

use crate::object::Kind;

/// The group of the Gateway API.
const GATEWAY: &str = "gateway.networking.k8s.io";

/// The API of a kind.
pub fn resource(kind: Kind) -> ApiResource {
    let (group, version, plural) = match kind {
        Kind::Namespace => ("", "v1", "namespaces"),
        Kind::Node => ("", "v1", "nodes"),
        Kind::ServiceAccount => ("", "v1", "serviceaccounts"),
        Kind::Pod => ("", "v1", "pods"),
        Kind::Service => ("", "v1", "services"),
        Kind::EndpointSlice => ("discovery.k8s.io", "v1", "endpointslices"),
        Kind::AuthorizationPolicy => (GROUP, VERSION, "authorizationpolicies"),
        Kind::MeshConfig => (GROUP, VERSION, "meshconfigs"),
        Kind::WorkloadEntry => (GROUP, VERSION, "workloadentries"),
        Kind::HTTPRoute => (GATEWAY, "v1", "httproutes"),
        Kind::GRPCRoute => (GATEWAY, "v1", "grpcroutes"),
        Kind::TCPRoute => (GATEWAY, "v1alpha2", "tcproutes"),
        Kind::TLSRoute => (GATEWAY, "v1alpha2", "tlsroutes"),
    };
    let api_version = if group.is_empty() { version.into() } else { format!("{group}/{version}") };
    ApiResource {
        group: group.into(),
        version: version.into(),
        api_version,
        kind: kind.to_string(),
        plural: plural.into(),
    }
}

/// The kinds without which nothing can be said: it is waited until each was listed, or its definition found missing.
pub fn required() -> &'static [Kind] {
    &[
        Kind::Namespace,
        Kind::Node,
        Kind::ServiceAccount,
        Kind::Pod,
        Kind::Service,
        Kind::EndpointSlice,
        Kind::AuthorizationPolicy,
        Kind::MeshConfig,
        Kind::WorkloadEntry,
    ]
}

/// Whether a kind's definition may be missing. That of WorkloadEntry came after the others, and a cluster of pods needs none:
/// a controller that was upgraded before its definitions starts. Where it is there it is waited for like the others, for
/// a first state without the units would let them leave the mesh.
pub fn optional(kind: Kind) -> bool {
    kind == Kind::WorkloadEntry || routes().contains(&kind)
}

/// Routes of the Gateway API.
pub fn routes() -> &'static [Kind] {
    &[Kind::HTTPRoute, Kind::GRPCRoute, Kind::TCPRoute, Kind::TLSRoute]
}
