//! The ports that a kubelet asks. In: a pod's containers, with their probes and lifecycle hooks. Out: port numbers.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler, PodSpec, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// Every TCP port of the pod that a probe or a hook of its containers names. What names no port is left out: the API
/// server refuses it, and a port that is not here is only not exempt.
pub(super) fn ports(spec: &PodSpec) -> BTreeSet<u16> {
    spec.containers.iter().chain(spec.init_containers.iter().flatten()).flat_map(of_container).collect()
}

fn of_container(container: &Container) -> Vec<u16> {
    let probes = [&container.startup_probe, &container.liveness_probe, &container.readiness_probe];
    let hooks = container.lifecycle.as_ref().map(|l| [&l.post_start, &l.pre_stop]);
    let probes = probes.into_iter().flatten().flat_map(of_probe);
    let hooks = hooks.into_iter().flatten().flatten().filter_map(of_hook);
    probes.chain(hooks).filter_map(|port| number(&port, container)).collect()
}

fn of_probe(probe: &Probe) -> Vec<IntOrString> {
    let own = |host: &Option<String>| host.as_ref().is_none_or(String::is_empty);
    let http = probe.http_get.as_ref().filter(|http| own(&http.host)).map(|http| http.port.clone());
    let tcp = probe.tcp_socket.as_ref().filter(|tcp| own(&tcp.host)).map(|tcp| tcp.port.clone());
    let grpc = probe.grpc.as_ref().map(|grpc| IntOrString::Int(grpc.port));
    [http, tcp, grpc].into_iter().flatten().collect()
}

fn of_hook(hook: &LifecycleHandler) -> Option<IntOrString> {
    hook.http_get.as_ref().filter(|http| http.host.is_none()).map(|http| http.port.clone())
}

/// A name is one of the same container's ports.
fn number(port: &IntOrString, container: &Container) -> Option<u16> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|p| p.name.as_ref() == Some(name));
            named.map(|p| p.container_port).or_else(|| name.parse().ok())?
        }
    };
    u16::try_from(number).ok().filter(|port| *port != 0)
}
