//! Protocol messages in, checked core values out. A delta is decoded whole or refused whole, and the error names the
//! resource and the field, so that the controller's status can say what is wrong and where.
//!
//! What is not understood is closed: an unknown mTLS mode is strict, an unknown endpoint condition is not ready, an
//! unknown policy action refuses the delta.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use mesh_core::identity::{IdentityError, SpiffeId};
use mesh_core::model::{
    Action, Affinity, AuthorizationPolicy, ConnectMode, Endpoint, EndpointHealth, MtlsMode, MtlsModes,
    Operation, Owner, PolicyName, Protocol, Rule, Service, ServiceName, ServicePort, Source, StringMatch,
    TrafficScope, Workload, WorkloadUid,
};
use mesh_core::snapshot::{Delta, Remove, UdpBackend, Upsert};

use crate::{addr, proto};

/// A message that is not a delta of this mesh.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{resource}: {field}: {problem}")]
pub struct DecodeError {
    /// Which resource, for example `service shop/db`.
    pub resource: String,
    /// Which of its fields.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// It has to be there.
    #[error("is missing")]
    Missing,
    /// An address has 4 or 16 bytes.
    #[error("an address has 4 or 16 bytes, this one has {0}")]
    AddressLength(usize),
    /// A port is at most 65535.
    #[error("{0} is not a port")]
    Port(u32),
    /// Not an identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Not a CIDR block.
    #[error("{0:?} is not a CIDR block")]
    Block(String),
    /// Not a pattern.
    #[error("{0:?} is not a pattern: x, x*, *x or *")]
    Pattern(String),
    /// Not an action that this version knows.
    #[error("{0} is not an action that this version knows")]
    Action(i32),
    /// Not a protocol that this version knows.
    #[error("{0} is not a protocol that this version knows")]
    Protocol(i32),
}

/// Decodes a whole message. The trust domain and the bundle are the caller's to check.
pub fn delta(message: proto::ControllerMessage) -> Result<Delta, DecodeError> {
    Ok(Delta {
        version: message.version,
        reset: message.reset,
        upserts: message.upserts.into_iter().map(upsert).collect::<Result<_, _>>()?,
        removes: message.removes.into_iter().map(remove).collect::<Result<_, _>>()?,
    })
}

/// Decodes one resource.
pub fn upsert(resource: proto::Resource) -> Result<Upsert, DecodeError> {
    use proto::resource::Kind;
    match resource.kind {
        Some(Kind::Workload(w)) => workload(w).map(Upsert::Workload),
        Some(Kind::Service(s)) => service(s).map(Upsert::Service),
        Some(Kind::Policy(p)) => policy(p).map(Upsert::Policy),
        Some(Kind::Absent(bytes)) => absent(&bytes).map(Upsert::Absent),
        Some(Kind::Unserved(address)) => unserved(&address).map(Upsert::Unserved),
        Some(Kind::Udp(target)) => udp_target(target),
        None => Err(At("resource").error("kind", Problem::Missing)),
    }
}

/// Decodes the name of a resource to remove.
pub fn remove(name: proto::ResourceName) -> Result<Remove, DecodeError> {
    use proto::resource_name::Kind;
    let at = At("removed resource");
    match name.kind {
        Some(Kind::WorkloadUid(uid)) => Ok(Remove::Workload(WorkloadUid(at.text("workload_uid", uid)?))),
        Some(Kind::Service(name)) => at.service_name("service", Some(name)).map(Remove::Service),
        Some(Kind::Policy(name)) => at.policy_name("policy", Some(name)).map(Remove::Policy),
        Some(Kind::Absent(bytes)) => absent(&bytes).map(Remove::Absent),
        Some(Kind::Unserved(address)) => unserved(&address).map(Remove::Unserved),
        Some(Kind::Udp(address)) => At("address of UDP rules").socket(&address).map(Remove::Udp),
        None => Err(at.error("kind", Problem::Missing)),
    }
}

/// Decodes a workload.
pub fn workload(workload: proto::Workload) -> Result<Workload, DecodeError> {
    let resource = format!("workload {} ({})", workload.name, workload.uid);
    let at = At(&resource);
    let by_port = workload.mtls_by_port.into_iter();
    Ok(Workload {
        uid: WorkloadUid(at.text("uid", workload.uid)?),
        name: at.text("name", workload.name)?,
        identity: SpiffeId::parse(&workload.spiffe_id).map_err(|e| at.error("spiffe_id", e.into()))?,
        node: at.text("node", workload.node)?,
        addresses: at.addresses("addresses", &workload.addresses)?,
        enrolled: workload.enrolled,
        owner: Owner { kind: workload.owner_kind.into(), name: workload.owner_name.into() },
        mtls: MtlsModes {
            default: mtls(workload.mtls),
            by_port: by_port
                .map(|(port, mode)| Ok((at.port("mtls_by_port", port)?, mtls(mode))))
                .collect::<Result<_, _>>()?,
        },
        policies: workload
            .policies
            .into_iter()
            .map(|name| at.policy_name("policies", Some(name)))
            .collect::<Result<_, _>>()?,
        served: workload
            .served
            .into_iter()
            .map(|(port, name)| Ok((at.port("served", port)?, at.service_name("served", Some(name))?)))
            .collect::<Result<_, _>>()?,
        agent_lost_after: match workload.agent_lost_after_seconds {
            0 => None,
            seconds => Some(Duration::from_secs(seconds.into())),
        },
        connect: connect(workload.connect),
        probes: workload.probes.into_iter().map(|port| at.port("probes", port)).collect::<Result<_, _>>()?,
        unit: (!workload.unit.is_empty()).then(|| workload.unit.into()),
    })
}

/// Decodes a service with its endpoints.
pub fn service(service: proto::Service) -> Result<Service, DecodeError> {
    let name = At("service").service_name("name", service.name)?;
    let resource = format!("service {name}");
    let at = At(&resource);
    let port =
        |p: proto::ServicePort| Ok(ServicePort { name: p.name.into(), port: at.port("ports", p.port)? });
    Ok(Service {
        vips: at.addresses("vips", &service.vips)?,
        ports: service.ports.into_iter().map(port).collect::<Result<_, _>>()?,
        endpoints: service.endpoints.into_iter().map(|e| endpoint(&at, e)).collect::<Result<_, _>>()?,
        scope: if service.node_local { TrafficScope::NodeLocal } else { TrafficScope::Cluster },
        affinity: match service.client_ip_affinity_seconds {
            0 => Affinity::None,
            seconds => Affinity::ClientIp(Duration::from_secs(seconds.into())),
        },
        name,
    })
}

/// Decodes a policy.
pub fn policy(policy: proto::AuthorizationPolicy) -> Result<AuthorizationPolicy, DecodeError> {
    let name = At("policy").policy_name("name", policy.name)?;
    let resource = format!("policy {name}");
    let at = At(&resource);
    let action = match proto::PolicyAction::try_from(policy.action) {
        Ok(proto::PolicyAction::Allow) => Action::Allow,
        Ok(proto::PolicyAction::Deny) => Action::Deny,
        Ok(proto::PolicyAction::Audit) => Action::Audit,
        Ok(proto::PolicyAction::Unspecified) | Err(_) => {
            return Err(at.error("action", Problem::Action(policy.action)));
        }
    };
    let rules = policy.rules.into_iter().map(|r| rule(&at, r)).collect::<Result<_, _>>()?;
    Ok(AuthorizationPolicy { name, action, rules })
}

fn absent(bytes: &[u8]) -> Result<IpAddr, DecodeError> {
    At("absent address").address("absent", bytes)
}

fn unserved(unserved: &proto::SocketAddress) -> Result<SocketAddr, DecodeError> {
    At("unserved address").socket(unserved)
}

fn udp_target(target: proto::UdpTarget) -> Result<Upsert, DecodeError> {
    let at = At("address of UDP rules");
    let address = target.address.ok_or_else(|| at.error("address", Problem::Missing))?;
    let backend = |b: proto::UdpBackend| {
        let workload = WorkloadUid(at.text("behind.workload_uid", b.workload_uid)?);
        Ok(UdpBackend { workload, port: at.port("behind.port", b.port)? })
    };
    let behind = target.behind.into_iter().map(backend).collect::<Result<_, _>>()?;
    Ok(Upsert::Udp(at.socket(&address)?, behind))
}

fn mtls(mode: i32) -> MtlsMode {
    match proto::MtlsMode::try_from(mode) {
        Ok(proto::MtlsMode::Permissive) => MtlsMode::Permissive,
        Ok(proto::MtlsMode::Strict | proto::MtlsMode::Unspecified) | Err(_) => MtlsMode::Strict,
    }
}

/// What this build does not know is left to the node.
fn connect(mode: i32) -> Option<ConnectMode> {
    match proto::ConnectMode::try_from(mode) {
        Ok(proto::ConnectMode::Honest) => Some(ConnectMode::Honest),
        Ok(proto::ConnectMode::Eager) => Some(ConnectMode::Eager),
        Ok(proto::ConnectMode::Unspecified) | Err(_) => None,
    }
}

fn endpoint(at: &At<'_>, endpoint: proto::Endpoint) -> Result<Endpoint, DecodeError> {
    let health = match proto::EndpointHealth::try_from(endpoint.health) {
        Ok(proto::EndpointHealth::Ready) => EndpointHealth::Ready,
        Ok(proto::EndpointHealth::ServingTerminating) => EndpointHealth::ServingTerminating,
        Ok(proto::EndpointHealth::NotReady | proto::EndpointHealth::Unspecified) | Err(_) => {
            EndpointHealth::NotReady
        }
    };
    let pair = |(from, to)| Ok((at.port("endpoints.ports", from)?, at.port("endpoints.ports", to)?));
    Ok(Endpoint {
        workload: match endpoint.workload_uid {
            uid if uid.is_empty() => None,
            uid => Some(WorkloadUid(uid.into())),
        },
        address: at.address("endpoints.address", &endpoint.address)?,
        node: endpoint.node.into(),
        health,
        ports: endpoint.ports.into_iter().map(pair).collect::<Result<_, _>>()?,
    })
}

fn rule(at: &At<'_>, rule: proto::Rule) -> Result<Rule, DecodeError> {
    Ok(Rule {
        from: rule.from.into_iter().map(|s| source(at, s)).collect::<Result<_, _>>()?,
        to: rule.to.into_iter().map(|o| operation(at, &o)).collect::<Result<_, _>>()?,
    })
}

fn source(at: &At<'_>, source: proto::Source) -> Result<Source, DecodeError> {
    Ok(Source {
        principals: at.patterns("rules.from.principals", &source.principals)?,
        not_principals: at.patterns("rules.from.not_principals", &source.not_principals)?,
        namespaces: at.patterns("rules.from.namespaces", &source.namespaces)?,
        not_namespaces: at.patterns("rules.from.not_namespaces", &source.not_namespaces)?,
        ip_blocks: at.blocks("rules.from.ip_blocks", source.ip_blocks)?,
        not_ip_blocks: at.blocks("rules.from.not_ip_blocks", source.not_ip_blocks)?,
    })
}

fn operation(at: &At<'_>, operation: &proto::Operation) -> Result<Operation, DecodeError> {
    let ports = |field, list: &[u32]| list.iter().map(|p| at.port(field, *p)).collect::<Result<_, _>>();
    let protocol = match proto::Protocol::try_from(operation.protocol) {
        Ok(proto::Protocol::Tcp) => Protocol::Tcp,
        Ok(proto::Protocol::Udp) => Protocol::Udp,
        Err(_) => return Err(at.error("rules.to.protocol", Problem::Protocol(operation.protocol))),
    };
    Ok(Operation {
        protocol,
        ports: ports("rules.to.ports", &operation.ports)?,
        not_ports: ports("rules.to.not_ports", &operation.not_ports)?,
    })
}

/// The resource that is being decoded, for errors.
struct At<'a>(&'a str);

impl At<'_> {
    fn error(&self, field: &'static str, problem: Problem) -> DecodeError {
        DecodeError { resource: self.0.to_owned(), field, problem }
    }

    fn text(&self, field: &'static str, text: String) -> Result<Arc<str>, DecodeError> {
        if text.is_empty() { Err(self.error(field, Problem::Missing)) } else { Ok(text.into()) }
    }

    fn port(&self, field: &'static str, port: u32) -> Result<u16, DecodeError> {
        u16::try_from(port).map_err(|_| self.error(field, Problem::Port(port)))
    }

    fn address(&self, field: &'static str, bytes: &[u8]) -> Result<IpAddr, DecodeError> {
        addr::from_bytes(bytes).ok_or_else(|| self.error(field, Problem::AddressLength(bytes.len())))
    }

    fn socket(&self, address: &proto::SocketAddress) -> Result<SocketAddr, DecodeError> {
        Ok(SocketAddr::new(self.address("address", &address.address)?, self.port("port", address.port)?))
    }

    fn addresses(&self, field: &'static str, list: &[Vec<u8>]) -> Result<Vec<IpAddr>, DecodeError> {
        list.iter().map(|bytes| self.address(field, bytes)).collect()
    }

    fn blocks(&self, field: &'static str, list: Vec<String>) -> Result<Vec<IpNet>, DecodeError> {
        list.into_iter()
            .map(|text| match text.parse() {
                Ok(block) => Ok(addr::canonical_block(block)),
                Err(_) => Err(self.error(field, Problem::Block(text))),
            })
            .collect()
    }

    fn patterns(&self, field: &'static str, list: &[String]) -> Result<Vec<StringMatch>, DecodeError> {
        list.iter()
            .map(|text| pattern(text).ok_or_else(|| self.error(field, Problem::Pattern(text.clone()))))
            .collect()
    }

    fn names(
        &self,
        field: &'static str,
        name: Option<proto::NamespacedName>,
    ) -> Result<(Arc<str>, Arc<str>), DecodeError> {
        let name = name.ok_or_else(|| self.error(field, Problem::Missing))?;
        Ok((self.text(field, name.namespace)?, self.text(field, name.name)?))
    }

    fn service_name(
        &self,
        field: &'static str,
        name: Option<proto::NamespacedName>,
    ) -> Result<ServiceName, DecodeError> {
        self.names(field, name).map(|(namespace, name)| ServiceName { namespace, name })
    }

    fn policy_name(
        &self,
        field: &'static str,
        name: Option<proto::NamespacedName>,
    ) -> Result<PolicyName, DecodeError> {
        self.names(field, name).map(|(namespace, name)| PolicyName { namespace, name })
    }
}

/// Parses `x`, `x*`, `*x` or `*`; a star anywhere else has no meaning and is refused.
fn pattern(text: &str) -> Option<StringMatch> {
    let (pattern, rest) = match (text.strip_prefix('*'), text.strip_suffix('*')) {
        (Some(""), _) => (StringMatch::Present, ""),
        (Some(rest), _) => (StringMatch::Suffix(rest.into()), rest),
        (None, Some(rest)) => (StringMatch::Prefix(rest.into()), rest),
        (None, None) if text.is_empty() => return None,
        (None, None) => (StringMatch::Exact(text.into()), text),
    };
    (!rest.contains('*')).then_some(pattern)
}
