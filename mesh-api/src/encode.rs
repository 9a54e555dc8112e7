//! Core values in, protocol messages out. The controller sends with these; [`crate::decode`] is the other direction.

use std::net::SocketAddr;

use mesh_core::identity::TrustDomain;
use mesh_core::model::{
    Action, Affinity, AuthorizationPolicy, ConnectMode, Endpoint, EndpointHealth, MtlsMode, Operation,
    PolicyName, Protocol, Rule, Service, ServiceName, Source, StringMatch, TrafficScope, Workload,
};
use mesh_core::snapshot::{Delta, Remove, UdpBackend, Upsert};

use crate::proto;

pub use crate::addr::to_bytes as address;

/// A whole delta. The trust bundle is left for the caller to add.
pub fn delta(delta: &Delta, trust_domain: &TrustDomain) -> proto::ControllerMessage {
    proto::ControllerMessage {
        version: delta.version,
        reset: delta.reset,
        trust_domain: trust_domain.as_str().to_owned(),
        upserts: delta.upserts.iter().map(upsert).collect(),
        removes: delta.removes.iter().map(remove).collect(),
        trust_bundle: None,
    }
}

/// A resource to add or replace.
pub fn upsert(upsert: &Upsert) -> proto::Resource {
    use proto::resource::Kind;
    let kind = match upsert {
        Upsert::Workload(w) => Kind::Workload(workload(w)),
        Upsert::Service(s) => Kind::Service(service(s)),
        Upsert::Policy(p) => Kind::Policy(policy(p)),
        Upsert::Absent(a) => Kind::Absent(address(*a)),
        Upsert::Unserved(a) => Kind::Unserved(socket_address(*a)),
        Upsert::Udp(a, behind) => Kind::Udp(udp_target(*a, behind)),
    };
    proto::Resource { kind: Some(kind) }
}

/// The name of a resource to remove.
pub fn remove(remove: &Remove) -> proto::ResourceName {
    use proto::resource_name::Kind;
    let kind = match remove {
        Remove::Workload(uid) => Kind::WorkloadUid(uid.to_string()),
        Remove::Service(name) => Kind::Service(service_name(name)),
        Remove::Policy(name) => Kind::Policy(policy_name(name)),
        Remove::Absent(a) => Kind::Absent(address(*a)),
        Remove::Unserved(a) => Kind::Unserved(socket_address(*a)),
        Remove::Udp(a) => Kind::Udp(socket_address(*a)),
    };
    proto::ResourceName { kind: Some(kind) }
}

/// A workload.
pub fn workload(workload: &Workload) -> proto::Workload {
    proto::Workload {
        uid: workload.uid.to_string(),
        name: workload.name.to_string(),
        spiffe_id: workload.identity.to_string(),
        node: workload.node.to_string(),
        addresses: workload.addresses.iter().map(|a| address(*a)).collect(),
        enrolled: workload.enrolled,
        owner_kind: workload.owner.kind.to_string(),
        owner_name: workload.owner.name.to_string(),
        mtls: mtls(workload.mtls.default).into(),
        mtls_by_port: workload
            .mtls
            .by_port
            .iter()
            .map(|(port, mode)| (u32::from(*port), mtls(*mode).into()))
            .collect(),
        policies: workload.policies.iter().map(policy_name).collect(),
        served: workload.served.iter().map(|(port, name)| (u32::from(*port), service_name(name))).collect(),
        // 0 says "stays closed", so less than a second is sent as one second.
        agent_lost_after_seconds: workload
            .agent_lost_after
            .map_or(0, |after| u32::try_from(after.as_secs()).unwrap_or(u32::MAX).max(1)),
        connect: connect(workload.connect).into(),
        probes: workload.probes.iter().map(|port| u32::from(*port)).collect(),
        unit: workload.unit.as_deref().unwrap_or_default().to_owned(),
    }
}

/// A service with its endpoints.
pub fn service(service: &Service) -> proto::Service {
    proto::Service {
        name: Some(service_name(&service.name)),
        vips: service.vips.iter().map(|a| address(*a)).collect(),
        ports: service
            .ports
            .iter()
            .map(|p| proto::ServicePort { name: p.name.to_string(), port: p.port.into() })
            .collect(),
        endpoints: service.endpoints.iter().map(endpoint).collect(),
        node_local: service.scope == TrafficScope::NodeLocal,
        client_ip_affinity_seconds: match service.affinity {
            Affinity::None => 0,
            // 0 says "none", so an affinity of less than a second is sent as one second.
            Affinity::ClientIp(idle) => u32::try_from(idle.as_secs()).unwrap_or(u32::MAX).max(1),
        },
    }
}

/// An authorization policy.
pub fn policy(policy: &AuthorizationPolicy) -> proto::AuthorizationPolicy {
    let action = match policy.action {
        Action::Allow => proto::PolicyAction::Allow,
        Action::Deny => proto::PolicyAction::Deny,
        Action::Audit => proto::PolicyAction::Audit,
    };
    proto::AuthorizationPolicy {
        name: Some(policy_name(&policy.name)),
        action: action.into(),
        rules: policy.rules.iter().map(rule).collect(),
    }
}

/// The name of a service.
pub fn service_name(name: &ServiceName) -> proto::NamespacedName {
    proto::NamespacedName { namespace: name.namespace.to_string(), name: name.name.to_string() }
}

/// The name of a policy.
pub fn policy_name(name: &PolicyName) -> proto::NamespacedName {
    proto::NamespacedName { namespace: name.namespace.to_string(), name: name.name.to_string() }
}

fn socket_address(at: SocketAddr) -> proto::SocketAddress {
    proto::SocketAddress { address: address(at.ip()), port: at.port().into() }
}

fn mtls(mode: MtlsMode) -> proto::MtlsMode {
    match mode {
        MtlsMode::Strict => proto::MtlsMode::Strict,
        MtlsMode::Permissive => proto::MtlsMode::Permissive,
    }
}

fn connect(mode: Option<ConnectMode>) -> proto::ConnectMode {
    match mode {
        None => proto::ConnectMode::Unspecified,
        Some(ConnectMode::Honest) => proto::ConnectMode::Honest,
        Some(ConnectMode::Eager) => proto::ConnectMode::Eager,
    }
}

fn endpoint(endpoint: &Endpoint) -> proto::Endpoint {
    let health = match endpoint.health {
        EndpointHealth::Ready => proto::EndpointHealth::Ready,
        EndpointHealth::ServingTerminating => proto::EndpointHealth::ServingTerminating,
        EndpointHealth::NotReady => proto::EndpointHealth::NotReady,
    };
    proto::Endpoint {
        workload_uid: endpoint.workload.as_ref().map(ToString::to_string).unwrap_or_default(),
        address: address(endpoint.address),
        node: endpoint.node.to_string(),
        health: health.into(),
        ports: endpoint.ports.iter().map(|(from, to)| (u32::from(*from), u32::from(*to))).collect(),
    }
}

fn udp_target(address: SocketAddr, behind: &[UdpBackend]) -> proto::UdpTarget {
    let backend =
        |b: &UdpBackend| proto::UdpBackend { workload_uid: b.workload.to_string(), port: b.port.into() };
    proto::UdpTarget { address: Some(socket_address(address)), behind: behind.iter().map(backend).collect() }
}

fn rule(rule: &Rule) -> proto::Rule {
    proto::Rule { from: rule.from.iter().map(source).collect(), to: rule.to.iter().map(operation).collect() }
}

fn source(source: &Source) -> proto::Source {
    let patterns = |list: &[StringMatch]| list.iter().map(pattern).collect();
    proto::Source {
        principals: patterns(&source.principals),
        not_principals: patterns(&source.not_principals),
        namespaces: patterns(&source.namespaces),
        not_namespaces: patterns(&source.not_namespaces),
        ip_blocks: source.ip_blocks.iter().map(ToString::to_string).collect(),
        not_ip_blocks: source.not_ip_blocks.iter().map(ToString::to_string).collect(),
    }
}

fn operation(operation: &Operation) -> proto::Operation {
    let ports = |list: &[u16]| list.iter().map(|p| u32::from(*p)).collect();
    let protocol = match operation.protocol {
        Protocol::Tcp => proto::Protocol::Tcp,
        Protocol::Udp => proto::Protocol::Udp,
    };
    proto::Operation {
        ports: ports(&operation.ports),
        not_ports: ports(&operation.not_ports),
        protocol: protocol.into(),
    }
}

fn pattern(pattern: &StringMatch) -> String {
    match pattern {
        StringMatch::Exact(text) => text.to_string(),
        StringMatch::Prefix(text) => format!("{text}*"),
        StringMatch::Suffix(text) => format!("*{text}"),
        StringMatch::Present => "*".to_owned(),
    }
}
