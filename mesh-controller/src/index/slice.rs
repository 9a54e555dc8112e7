//! An EndpointSlice: some endpoints of a Service, with the numbers of its named ports.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointSlice};
use mesh_core::model::{EndpointHealth, Protocol, WorkloadUid};

use super::{Problems, is_of};
use crate::object::{Name, Origin};

/// The label that says which Service a slice belongs to.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// One address of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// The address.
    pub address: IpAddr,
    /// Its node; empty when unknown.
    pub node: Arc<str>,
    /// Its condition.
    pub health: EndpointHealth,
    /// The pod that the slice names, with the uid if it is given.
    pub pod: Option<(Name, Option<WorkloadUid>)>,
}

/// One slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceInfo {
    /// Where it was found.
    pub origin: Origin,
    /// The Service it belongs to; `None` for a slice of nobody, which has no effect.
    pub service: Option<Name>,
    /// TCP ports by name. Without a number, the service's own port.
    pub ports: Vec<(Arc<str>, Option<u16>)>,
    /// The same of UDP.
    pub udp_ports: Vec<(Arc<str>, Option<u16>)>,
    /// The endpoints.
    pub endpoints: Vec<SliceEndpoint>,
}

impl SliceInfo {
    pub(super) fn read(
        name: &Name,
        slice: &EndpointSlice,
        origin: &Origin,
        problems: &mut Problems<'_>,
    ) -> Self {
        let labels = slice.metadata.labels.as_ref();
        let service = labels.and_then(|l| l.get(SERVICE_LABEL)).map(|s| Name::new(&name.namespace, s));
        if service.is_none() {
            problems.refuse("NoService", format!("has no label {SERVICE_LABEL}, so that no Service has it"));
        }
        let by_address = matches!(slice.address_type.as_str(), "IPv4" | "IPv6");
        if !by_address {
            let kind = &slice.address_type;
            problems
                .refuse("UnsupportedAddressType", format!("addressType {kind:?} is neither IPv4 nor IPv6"));
        }
        let listed: &[Endpoint] = if by_address { &slice.endpoints } else { &[] };
        let endpoints = listed.iter().flat_map(|e| read_endpoint(&name.namespace, e, problems)).collect();
        Self {
            origin: origin.clone(),
            service,
            ports: ports(slice, Protocol::Tcp, problems),
            udp_ports: ports(slice, Protocol::Udp, problems),
            endpoints,
        }
    }
}

fn ports(
    slice: &EndpointSlice,
    protocol: Protocol,
    problems: &mut Problems<'_>,
) -> Vec<(Arc<str>, Option<u16>)> {
    let mut ports = Vec::new();
    for port in slice.ports.iter().flatten() {
        if !is_of(port.protocol.as_deref(), protocol) {
            continue;
        }
        let name: Arc<str> = port.name.as_deref().unwrap_or_default().into();
        match port.port.map(u16::try_from) {
            None => ports.push((name, None)),
            Some(Ok(number)) if number != 0 => ports.push((name, Some(number))),
            Some(_) => {
                problems.refuse("InvalidPort", format!("ports: {:?} of {name:?} is no port", port.port))
            }
        }
    }
    ports
}

fn read_endpoint(namespace: &str, endpoint: &Endpoint, problems: &mut Problems<'_>) -> Option<SliceEndpoint> {
    // Consumers use the first address only (the API's own rule; more than one is deprecated and has no meaning).
    let text = endpoint.addresses.first()?;
    let Ok(address) = text.parse::<IpAddr>() else {
        problems.refuse("InvalidAddress", format!("endpoints: {text:?} is not an address"));
        return None;
    };
    let pod = endpoint.target_ref.as_ref().filter(|r| r.kind.as_deref() == Some("Pod")).and_then(|r| {
        let namespace = r.namespace.as_deref().unwrap_or(namespace);
        Some((Name::new(namespace, r.name.as_deref()?), r.uid.as_deref().map(|uid| WorkloadUid(uid.into()))))
    });
    Some(SliceEndpoint {
        address: address.to_canonical(),
        node: endpoint.node_name.as_deref().unwrap_or_default().into(),
        health: health(endpoint.conditions.as_ref()),
        pod,
    })
}

fn health(conditions: Option<&EndpointConditions>) -> EndpointHealth {
    let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
    let serving = conditions.and_then(|c| c.serving).unwrap_or(ready);
    let terminating = conditions.and_then(|c| c.terminating).unwrap_or(false);
    match (ready, serving, terminating) {
        (true, ..) => EndpointHealth::Ready,
        (false, true, true) => EndpointHealth::ServingTerminating,
        _ => EndpointHealth::NotReady,
    }
}
