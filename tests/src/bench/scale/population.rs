//! A generated cluster: services of twenty pods each, in namespaces of fifty services. In: numbers. Out: requests for the
//! API server, and the addresses that agents ask for.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::api::Write;

/// Pods of one service, one slice.
pub(super) const PODS_PER_SERVICE: u32 = 20;
const SERVICES_PER_NAMESPACE: u32 = 50;
/// The port of each service.
pub(super) const PORT: u16 = 80;

/// Which services the nodes' pods use, and the nodes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Population {
    /// How many simulated nodes there are; pods are spread over them.
    pub(super) nodes: u32,
}

fn namespace(service: u32) -> String {
    format!("team-{}", service / SERVICES_PER_NAMESPACE)
}

/// A simulated node.
pub(super) fn node(number: u32) -> String {
    format!("sim-{number}")
}

/// The virtual address of a service.
pub(super) fn vip(service: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 99, 4, 0)) + service)
}

fn pod_address(service: u32, pod: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 64, 0, 1)) + service * PODS_PER_SERVICE + pod)
}

fn pod_name(service: u32, pod: u32) -> String {
    format!("s{service}-{pod}")
}

/// What has to be there before the services.
pub(super) fn namespaces(services: std::ops::Range<u32>) -> Vec<Vec<Write>> {
    let first = services.start.next_multiple_of(SERVICES_PER_NAMESPACE);
    let step = SERVICES_PER_NAMESPACE as usize;
    (first..services.end).step_by(step).map(|service| enrolled(&namespace(service))).collect()
}

/// A namespace in the mesh with the service account of its pods.
fn enrolled(name: &str) -> Vec<Write> {
    let labels = json!({ "ferromesh.io/enrolled": "true" });
    let account = json!({ "metadata": { "name": "app" } });
    vec![
        ("POST", "/api/v1/namespaces".into(), json!({ "metadata": { "name": name, "labels": labels } })),
        ("POST", format!("/api/v1/namespaces/{name}/serviceaccounts"), account),
    ]
}

impl Population {
    /// The services and their pods, running and ready.
    pub(super) fn services(self, services: std::ops::Range<u32>) -> Vec<Vec<Write>> {
        let pods = |service| (0..PODS_PER_SERVICE).map(move |pod| self.pod(service, pod));
        services.flat_map(|service| pods(service).chain([self.service(service)])).collect()
    }

    fn node_of(self, service: u32, pod: u32) -> String {
        node((service * PODS_PER_SERVICE + pod) % self.nodes)
    }

    fn pod(self, service: u32, pod: u32) -> Vec<Write> {
        let (folder, name) =
            (format!("/api/v1/namespaces/{}/pods", namespace(service)), pod_name(service, pod));
        let status = format!("{folder}/{name}/status");
        let object = json!({
            "metadata": { "name": name, "labels": { "app": format!("s{service}") } },
            "spec": {
                "nodeName": self.node_of(service, pod), "serviceAccountName": "app",
                "automountServiceAccountToken": false,
                "containers": [{ "name": "main", "image": "unmodified", "ports": [{ "containerPort": 8080 }] }],
            },
        });
        let address = pod_address(service, pod).to_string();
        let running = json!({ "status": {
            "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }],
            "conditions": [{ "type": "Ready", "status": "True" }],
        } });
        vec![("POST", folder, object), ("PATCH", status, running)]
    }

    fn service(self, service: u32) -> Vec<Write> {
        let (space, name) = (namespace(service), format!("s{service}"));
        let port = json!({ "name": "main", "port": PORT, "targetPort": 8080, "protocol": "TCP" });
        let object = json!({
            "metadata": { "name": name },
            "spec": { "clusterIP": vip(service).to_string(), "ports": [port] },
        });
        let slice = json!({
            "metadata": { "name": name, "labels": { "kubernetes.io/service-name": name } },
            "addressType": "IPv4", "endpoints": self.endpoints(service, true),
            "ports": [{ "name": "main", "port": 8080, "protocol": "TCP" }],
        });
        vec![
            ("POST", format!("/api/v1/namespaces/{space}/services"), object),
            ("POST", format!("/apis/discovery.k8s.io/v1/namespaces/{space}/endpointslices"), slice),
        ]
    }

    fn endpoints(self, service: u32, first_ready: bool) -> Vec<Value> {
        let one = |pod| {
            let ready = pod != 0 || first_ready;
            json!({
                "addresses": [pod_address(service, pod).to_string()], "nodeName": self.node_of(service, pod),
                "conditions": { "ready": ready, "serving": ready, "terminating": false },
                "targetRef": { "kind": "Pod", "namespace": namespace(service), "name": pod_name(service, pod) },
            })
        };
        (0..PODS_PER_SERVICE).map(one).collect()
    }

    /// The first pod of a service becomes ready, or is no longer.
    pub(super) fn readiness(self, service: u32, ready: bool) -> Write {
        let space = namespace(service);
        let path = format!("/apis/discovery.k8s.io/v1/namespaces/{space}/endpointslices/s{service}");
        ("PATCH", path, json!({ "endpoints": self.endpoints(service, ready) }))
    }
}
