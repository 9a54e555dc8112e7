//! A Service: what kube-proxy reads of it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use mesh_core::model::{Affinity, Protocol, TrafficScope};

use super::{Labels, Problems, is_of};
use crate::object::{Name, Origin};

/// Kubernetes' own default of `sessionAffinityConfig.clientIP.timeoutSeconds`.
const AFFINITY_SECONDS: u64 = 10_800;

/// Where a port of a Service leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// This port.
    Number(u16),
    /// The container port of this name.
    Named(String),
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortInfo {
    /// Its name; empty for the only port.
    pub name: Arc<str>,
    /// The port on the virtual addresses.
    pub port: u16,
    /// Where it leads, for endpoints that come from pods; slices carry their own numbers.
    pub target: TargetPort,
}

/// One Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceInfo {
    /// Its name.
    pub name: Name,
    /// Where it was found.
    pub origin: Origin,
    /// Cluster IPs; empty for a headless Service.
    pub cluster_ips: Vec<IpAddr>,
    /// External IPs and load-balancer addresses.
    pub external_ips: Vec<IpAddr>,
    /// TCP ports.
    pub ports: Vec<PortInfo>,
    /// UDP ports: for the rules that speak of them.
    pub udp_ports: Vec<PortInfo>,
    /// Its selector, if it has one.
    pub selector: Option<Labels>,
    /// `publishNotReadyAddresses`.
    pub publish_not_ready: bool,
    /// `internalTrafficPolicy`.
    pub scope: TrafficScope,
    /// `sessionAffinity`.
    pub affinity: Affinity,
}

impl ServiceInfo {
    pub(super) fn read(name: &Name, object: &Service, origin: &Origin, problems: &mut Problems<'_>) -> Self {
        let none = ServiceSpec::default();
        let spec = object.spec.as_ref().unwrap_or(&none);
        // An ExternalName is DNS' business: it has no address of its own.
        let external_name = spec.type_.as_deref() == Some("ExternalName");
        let mut cluster_ips = Vec::new();
        let mut external_ips = Vec::new();
        if !external_name {
            let listed = spec.cluster_ips.iter().flatten().map(String::as_str);
            cluster_ips =
                parse_addresses(listed.chain(spec.cluster_ip.as_deref()), "spec.clusterIPs", problems);
            let external = spec.external_ips.iter().flatten().map(String::as_str);
            external_ips = parse_addresses(external, "spec.externalIPs", problems);
            let ingress =
                object.status.iter().filter_map(|s| s.load_balancer.as_ref()?.ingress.as_ref()).flatten();
            // With ipMode Proxy the load balancer itself must see the connection.
            let ours =
                ingress.filter(|i| i.ip_mode.as_deref() != Some("Proxy")).filter_map(|i| i.ip.as_deref());
            for address in parse_addresses(ours, "status.loadBalancer.ingress", problems) {
                if !external_ips.contains(&address) {
                    external_ips.push(address);
                }
            }
        }
        Self {
            name: name.clone(),
            origin: origin.clone(),
            cluster_ips,
            external_ips,
            ports: ports(spec, Protocol::Tcp, problems),
            udp_ports: ports(spec, Protocol::Udp, problems),
            selector: spec.selector.clone().filter(|labels| !labels.is_empty() && !external_name),
            publish_not_ready: spec.publish_not_ready_addresses == Some(true),
            scope: scope(spec, problems),
            affinity: affinity(spec, problems),
        }
    }
}

fn parse_addresses<'a>(
    texts: impl Iterator<Item = &'a str>,
    field: &str,
    problems: &mut Problems<'_>,
) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for text in texts.filter(|text| !text.is_empty() && *text != "None") {
        match text.parse::<IpAddr>().map(|address| address.to_canonical()) {
            Ok(address) if address.is_loopback() || address.is_unspecified() || address.is_multicast() => {
                problems.refuse("InvalidAddress", format!("{field}: {text} cannot be a service's address"));
            }
            Ok(address) if addresses.contains(&address) => {}
            Ok(address) => addresses.push(address),
            Err(_) => problems.refuse("InvalidAddress", format!("{field}: {text:?} is not an address")),
        }
    }
    addresses
}

fn ports(spec: &ServiceSpec, protocol: Protocol, problems: &mut Problems<'_>) -> Vec<PortInfo> {
    let mut ports: Vec<PortInfo> = Vec::new();
    for port in spec.ports.iter().flatten() {
        if !is_of(port.protocol.as_deref(), protocol) {
            continue;
        }
        match port_info(port) {
            Ok(info) if ports.iter().any(|p| p.port == info.port || p.name == info.name) => {
                let name = &info.name;
                problems
                    .refuse("DuplicatePort", format!("spec.ports: {} ({name:?}) is there twice", info.port));
            }
            Ok(info) => ports.push(info),
            Err(message) => problems.refuse("InvalidPort", format!("spec.ports: {message}")),
        }
    }
    ports
}

fn port_info(port: &ServicePort) -> Result<PortInfo, String> {
    let number = |value: i32| {
        u16::try_from(value)
            .ok()
            .filter(|p| *p != 0)
            .ok_or_else(|| format!("{value} is not a port: 1 to 65535"))
    };
    let own = number(port.port)?;
    let target = match &port.target_port {
        None | Some(IntOrString::Int(0)) => TargetPort::Number(own),
        Some(IntOrString::Int(value)) => TargetPort::Number(number(*value)?),
        Some(IntOrString::String(text)) => match text.parse::<i32>() {
            Ok(value) => TargetPort::Number(number(value)?),
            Err(_) => TargetPort::Named(text.clone()),
        },
    };
    Ok(PortInfo { name: port.name.as_deref().unwrap_or_default().into(), port: own, target })
}

fn scope(spec: &ServiceSpec, problems: &mut Problems<'_>) -> TrafficScope {
    match spec.internal_traffic_policy.as_deref() {
        None | Some("" | "Cluster") => TrafficScope::Cluster,
        Some("Local") => TrafficScope::NodeLocal,
        Some(other) => {
            problems
                .refuse("InvalidValue", format!("spec.internalTrafficPolicy: {other:?}; Cluster is used"));
            TrafficScope::Cluster
        }
    }
}

fn affinity(spec: &ServiceSpec, problems: &mut Problems<'_>) -> Affinity {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => Affinity::None,
        Some("ClientIP") => {
            let client_ip = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
            let seconds = client_ip.and_then(|c| c.timeout_seconds).and_then(|s| u64::try_from(s).ok());
            Affinity::ClientIp(Duration::from_secs(seconds.filter(|s| *s > 0).unwrap_or(AFFINITY_SECONDS)))
        }
        Some(other) => {
            problems.refuse("InvalidValue", format!("spec.sessionAffinity: {other:?}; None is used"));
            Affinity::None
        }
    }
}
