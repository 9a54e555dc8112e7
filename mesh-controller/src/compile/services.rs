//! Services with their endpoints, as kube-proxy would serve them.
//!
//! Endpoints come from EndpointSlices. Where nobody makes those (the `dir` source) a Service that has a selector and no
//! slice takes them from the pods that the selector matches, ready by their Ready condition. Those of TCP are what agents are
//! sent; those of UDP say who is behind an address that UDP rules speak of.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use mesh_core::model::{
    Endpoint, EndpointHealth, Protocol, Service, ServiceName, ServicePort, Workload, WorkloadUid,
};

use super::addresses::{Owners, service_name};
use crate::index::{
    Index, PodInfo, PodPhase, PortInfo, ServiceInfo, SliceEndpoint, SliceInfo, TargetPort, selects,
};
use crate::object::Name;

/// Compiles every Service of `index`, with its ports of `protocol`.
pub(super) fn compile(
    protocol: Protocol,
    index: &Index,
    owners: &Owners<'_>,
    workloads: &BTreeMap<WorkloadUid, Workload>,
) -> BTreeMap<ServiceName, Service> {
    let mut slices: HashMap<&Name, Vec<&SliceInfo>> = HashMap::new();
    for slice in index.slices.values() {
        if let Some(service) = &slice.service {
            slices.entry(service).or_default().push(slice);
        }
    }
    let mut pods: HashMap<&str, Vec<&PodInfo>> = HashMap::new();
    for pod in index.pods.values().filter(|p| p.phase == PodPhase::Live) {
        pods.entry(&pod.name.namespace).or_default().push(pod);
    }
    let builder = Builder { index, owners, workloads, protocol };
    let compiled = index.services.iter().map(|(name, info)| {
        let endpoints = match (slices.get(name), &info.selector) {
            (None, Some(selector)) if index.derives_endpoints => {
                let namespace = pods.get(&*name.namespace).map(Vec::as_slice).unwrap_or_default();
                let selected = namespace.iter().filter(|pod| selects(selector, &pod.labels));
                selected.flat_map(|pod| builder.pod_endpoints(info, pod)).collect()
            }
            (slices, _) => builder.union_of(info, slices.map(Vec::as_slice).unwrap_or_default()),
        };
        let name = service_name(name);
        (name.clone(), builder.service(name, info, endpoints))
    });
    compiled.collect()
}

/// Tells each workload which service it is an endpoint of, port by port, where that is one service only.
pub(super) fn name_at_workloads(
    services: &BTreeMap<ServiceName, Service>,
    workloads: &mut BTreeMap<WorkloadUid, Workload>,
) {
    let mut named: HashMap<(&WorkloadUid, u16), Option<&ServiceName>> = HashMap::new();
    for service in services.values() {
        for endpoint in &service.endpoints {
            let Some(uid) = &endpoint.workload else { continue };
            for (_, target) in &endpoint.ports {
                let held = named.entry((uid, *target)).or_insert(Some(&service.name));
                if *held != Some(&service.name) {
                    *held = None;
                }
            }
        }
    }
    for ((uid, port), name) in named {
        if let (Some(workload), Some(name)) = (workloads.get_mut(uid), name) {
            workload.served.insert(port, name.clone());
        }
    }
}

struct Builder<'a> {
    index: &'a Index,
    owners: &'a Owners<'a>,
    workloads: &'a BTreeMap<WorkloadUid, Workload>,
    protocol: Protocol,
}

impl Builder<'_> {
    fn service(&self, name: ServiceName, info: &ServiceInfo, endpoints: Vec<Endpoint>) -> Service {
        let ports =
            self.ports_of(info).iter().map(|p| ServicePort { name: p.name.clone(), port: p.port }).collect();
        let (vips, scope, affinity) = (self.owners.of_service(info), info.scope, info.affinity);
        Service { name, vips, ports, endpoints, scope, affinity }
    }

    fn ports_of<'i>(&self, info: &'i ServiceInfo) -> &'i [PortInfo] {
        match self.protocol {
            Protocol::Tcp => &info.ports,
            Protocol::Udp => &info.udp_ports,
        }
    }

    fn target_port(&self, port: &PortInfo, pod: &PodInfo) -> Option<u16> {
        let named = match self.protocol {
            Protocol::Tcp => &pod.ports,
            Protocol::Udp => &pod.udp_ports,
        };
        match &port.target {
            TargetPort::Number(number) => Some(*number),
            TargetPort::Named(name) => named.iter().find(|(n, _)| n == name).map(|(_, number)| *number),
        }
    }

    /// The union of the slices. An address that several slices name is one endpoint with the ports of all.
    fn union_of(&self, info: &ServiceInfo, slices: &[&SliceInfo]) -> Vec<Endpoint> {
        let mut endpoints: BTreeMap<IpAddr, Endpoint> = BTreeMap::new();
        for slice in slices {
            let listed = match self.protocol {
                Protocol::Tcp => &slice.ports,
                Protocol::Udp => &slice.udp_ports,
            };
            let ports: Vec<(u16, u16)> = self
                .ports_of(info)
                .iter()
                .filter_map(|port| {
                    let (_, number) = listed.iter().find(|(name, _)| *name == port.name)?;
                    Some((port.port, number.unwrap_or(port.port)))
                })
                .collect();
            for endpoint in &slice.endpoints {
                let fresh = self.slice_endpoint(info, endpoint, ports.clone());
                let Some(fresh) = fresh else { continue };
                match endpoints.get_mut(&fresh.address) {
                    Some(held) => combine(held, fresh),
                    None => drop(endpoints.insert(fresh.address, fresh)),
                }
            }
        }
        endpoints.into_values().collect()
    }

    fn slice_endpoint(
        &self,
        info: &ServiceInfo,
        e: &SliceEndpoint,
        ports: Vec<(u16, u16)>,
    ) -> Option<Endpoint> {
        let health = if info.publish_not_ready { EndpointHealth::Ready } else { e.health };
        // Who is dialled is decided by the address alone: whoever has it must be met with its own identity.
        let workload = match (self.owners.pod_at(e.address), &e.pod) {
            (Some(uid), _) => Some(uid.clone()),
            (None, Some((name, uid))) if !self.is_on_node_network(name, uid.as_ref()) => return None,
            (None, _) => None,
        };
        let node = match workload.as_ref().and_then(|uid| self.workloads.get(uid)) {
            Some(workload) => Arc::clone(&workload.node),
            None => Arc::clone(&e.node),
        };
        Some(Endpoint { workload, address: e.address, node, health, ports })
    }

    /// Whether an endpoint's pod, which is no workload with that address, lives on the node's network and so is dialled as
    /// it is. A pod that is not known yet could be enrolled: its endpoint is left out until it is known.
    fn is_on_node_network(&self, name: &Name, uid: Option<&WorkloadUid>) -> bool {
        self.index.pods.get(name).is_some_and(|pod| pod.host_network && uid.is_none_or(|uid| *uid == pod.uid))
    }

    fn pod_endpoints(&self, info: &ServiceInfo, pod: &PodInfo) -> Vec<Endpoint> {
        let health = match (pod.ready || info.publish_not_ready, pod.terminating) {
            (true, false) => EndpointHealth::Ready,
            (true, true) if info.publish_not_ready => EndpointHealth::Ready,
            (true, true) => EndpointHealth::ServingTerminating,
            (false, _) => EndpointHealth::NotReady,
        };
        let ports: Vec<_> =
            self.ports_of(info).iter().filter_map(|p| Some((p.port, self.target_port(p, pod)?))).collect();
        let workload = (!pod.host_network).then(|| pod.uid.clone());
        let addresses = if pod.host_network { pod.addresses.clone() } else { self.owners.of_pod(pod) };
        let endpoint = |address| Endpoint {
            workload: workload.clone(),
            address,
            node: Arc::clone(&pod.node),
            health,
            ports: ports.clone(),
        };
        addresses.into_iter().map(endpoint).collect()
    }
}

fn combine(held: &mut Endpoint, other: Endpoint) {
    for (port, target) in other.ports {
        if held.target_port(port).is_none() {
            held.ports.push((port, target));
        }
    }
    held.ports.sort_unstable();
    let rank = |health| match health {
        EndpointHealth::Ready => 2,
        EndpointHealth::ServingTerminating => 1,
        EndpointHealth::NotReady => 0,
    };
    if rank(other.health) > rank(held.health) {
        held.health = other.health;
    }
}
