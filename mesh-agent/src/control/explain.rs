//! What would happen to a connection or, behind `udp://`, to a datagram, step by step: the same route and the same decision
//! as the data plane's, told as a list. A pod and a destination come in as text, an [`Explanation`] goes out.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use mesh_core::authorize::{Peer, PlainReason, Request, Verdict, decide_traced};
use mesh_core::model::{EndpointHealth, Protocol, Service, ServiceName, Workload, WorkloadUid};
use mesh_core::route::{Candidate, NoRoute, Route, resolve};
use mesh_core::snapshot::{Destination, Snapshot};
use serde::Serialize;

use super::{Lookup, Published};

mod udp;

/// The most endpoints that are explained one by one.
const MOST_ENDPOINTS: usize = 16;

/// Why there is nothing to explain.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExplainError {
    #[error("{0:?} is not a source: give NAMESPACE/POD")]
    Source(String),
    #[error(
        "{0:?} is not a destination: give IP:PORT, [IPV6]:PORT, NAMESPACE/SERVICE:PORT or SERVICE.NAMESPACE:PORT, for UDP with udp:// in front"
    )]
    Destination(String),
    #[error("this agent knows no pod {0}: ask the agent of the node that the pod runs on")]
    NoSuchPod(String),
    #[error(
        "this agent holds no service or pod {0}, since no pod of this node has used it: give its address instead"
    )]
    NoSuchService(String),
    #[error("service {0} has no address of its own and no endpoint")]
    NoAddress(ServiceName),
}

/// One step: which stage, what was looked at, what came of it.
#[derive(Debug, Serialize)]
pub(super) struct Step {
    stage: &'static str,
    subject: String,
    outcome: String,
}

/// The whole answer.
#[derive(Debug, Serialize)]
pub(super) struct Explanation {
    source: String,
    identity: String,
    destination: String,
    snapshot_version: u64,
    steps: Vec<Step>,
    /// `allowed`, `denied`, `mixed` (it depends on the endpoint), `unreachable`, or `passed_through`.
    pub(super) verdict: &'static str,
    pub(super) reason: String,
}

/// In front of a destination of datagrams.
const UDP: &str = "udp://";

/// Who has the port of a host that a unit dials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listener {
    /// The address is not this host's.
    Elsewhere,
    /// An enrolled unit.
    Unit(WorkloadUid),
    /// Somebody who is not enrolled, or nobody.
    NotEnrolled,
    /// Several, or it cannot be asked.
    Unclear(String),
}

/// Explains a connection of the pod `source` to `destination`, or a datagram. `listener` knows this host's ports.
pub(super) async fn explain(
    published: &Published,
    lookup: &Lookup,
    source: &str,
    destination: &str,
    listener: impl Fn(SocketAddr) -> Listener,
) -> Result<Explanation, ExplainError> {
    let snapshot = published.load();
    let pod = find_pod(&snapshot, source)?;
    let mut steps = Steps(Vec::new());
    steps.add("source", format!("pod {source}"), source_outcome(&pod));
    let (protocol, named) = match destination.strip_prefix(UDP) {
        Some(named) => (Protocol::Udp, named),
        None => (Protocol::Tcp, destination),
    };
    let dst = find_destination(&snapshot, &pod, named, &mut steps)?;
    let listener =
        if protocol == Protocol::Tcp && pod.unit.is_some() { listener(dst) } else { Listener::Elsewhere };
    // What UDP rules speak of is here ahead.
    if listener == Listener::Elsewhere
        && protocol == Protocol::Tcp
        && matches!(snapshot.destination(dst.ip()), Destination::NotLoaded)
    {
        let outcome = match lookup.ensure(dst.ip()).await {
            Ok(()) => "the controller answered".to_owned(),
            Err(error) => error.to_string(),
        };
        steps.add("lookup", dst.ip().to_string(), outcome);
    }
    // The lookup may have made a new snapshot; the rest is told of one.
    let snapshot = published.load();
    let (verdict, reason) = match protocol {
        Protocol::Tcp if listener != Listener::Elsewhere => {
            within_host(&snapshot, &pod, (dst, listener), &mut steps)
        }
        Protocol::Tcp => follow(&snapshot, &pod, dst, &mut steps),
        Protocol::Udp => udp::follow(&snapshot, &pod, dst, &mut steps),
    };
    Ok(Explanation {
        source: source.to_owned(),
        identity: pod.identity.to_string(),
        destination: if protocol == Protocol::Udp { format!("{UDP}{dst}") } else { dst.to_string() },
        snapshot_version: snapshot.version,
        steps: steps.0,
        verdict,
        reason,
    })
}

struct Steps(Vec<Step>);

impl Steps {
    fn add(&mut self, stage: &'static str, subject: String, outcome: String) {
        self.0.push(Step { stage, subject, outcome });
    }
}

fn source_outcome(pod: &Workload) -> String {
    let enrolled = if pod.enrolled {
        "enrolled"
    } else {
        "not enrolled: it speaks plaintext, the agent does not see it"
    };
    format!("{}, on node {}, {enrolled}", pod.identity, pod.node)
}

fn find_pod(snapshot: &Snapshot, source: &str) -> Result<Arc<Workload>, ExplainError> {
    let (namespace, name) = source.split_once('/').ok_or_else(|| ExplainError::Source(source.to_owned()))?;
    pod_named(snapshot, namespace, name).ok_or_else(|| ExplainError::NoSuchPod(source.to_owned()))
}

fn pod_named(snapshot: &Snapshot, namespace: &str, name: &str) -> Option<Arc<Workload>> {
    snapshot.workloads().find(|w| w.namespace() == namespace && &*w.name == name).cloned()
}

fn find_destination(
    snapshot: &Snapshot,
    pod: &Workload,
    text: &str,
    steps: &mut Steps,
) -> Result<SocketAddr, ExplainError> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(SocketAddr::new(address.ip().to_canonical(), address.port()));
    }
    let bad = || ExplainError::Destination(text.to_owned());
    let (name, port) = text.rsplit_once(':').ok_or_else(bad)?;
    let port: u16 = port.parse().map_err(|_| bad())?;
    // An unbracketed IPv6 address would be taken for a name.
    if name.is_empty() || name.contains([':', '[', ']']) {
        return Err(bad());
    }
    let (namespace, short) = split_name(name, pod.namespace());
    let service = snapshot.services().find(|s| &*s.name.namespace == namespace && &*s.name.name == short);
    if let Some(service) = service {
        let address = service_address(service, pod, port)?;
        steps.add("resolve", format!("service {}", service.name), address.to_string());
        return Ok(address);
    }
    let target =
        pod_named(snapshot, namespace, short).ok_or_else(|| ExplainError::NoSuchService(name.to_owned()))?;
    if target.unit.is_some() && target.node == pod.node {
        let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
        steps.add("resolve", format!("unit {namespace}/{short}"), address.to_string());
        return Ok(address);
    }
    let address =
        same_family(&target.addresses, pod).ok_or_else(|| ExplainError::NoSuchService(name.to_owned()))?;
    steps.add("resolve", format!("pod {namespace}/{short}"), address.to_string());
    Ok(SocketAddr::new(address, port))
}

/// `ns/name`, `name.ns`, `name.ns.svc.cluster.local`, or `name` in the pod's own namespace.
fn split_name<'a>(name: &'a str, own: &'a str) -> (&'a str, &'a str) {
    if let Some((namespace, name)) = name.split_once('/') {
        return (namespace, name);
    }
    match name.split_once('.') {
        Some((name, rest)) => (rest.split('.').next().unwrap_or(rest), name),
        None => (own, name),
    }
}

/// The virtual address, or for a headless service that of an endpoint, as DNS would answer.
fn service_address(service: &Service, pod: &Workload, port: u16) -> Result<SocketAddr, ExplainError> {
    if let Some(vip) = same_family(&service.vips, pod) {
        return Ok(SocketAddr::new(vip, port));
    }
    let ready = service.endpoints.iter().filter(|e| e.health == EndpointHealth::Ready);
    let addresses: Vec<IpAddr> = ready.map(|e| e.address).collect();
    same_family(&addresses, pod)
        .map(|address| SocketAddr::new(address, port))
        .ok_or_else(|| ExplainError::NoAddress(service.name.clone()))
}

fn same_family(addresses: &[IpAddr], pod: &Workload) -> Option<IpAddr> {
    // A unit has its host's.
    let reachable =
        |a: &&IpAddr| pod.unit.is_some() || pod.addresses.iter().any(|own| own.is_ipv4() == a.is_ipv4());
    addresses.iter().find(reachable).copied()
}

/// What a unit dials on its own host.
fn within_host(
    snapshot: &Snapshot,
    pod: &Workload,
    (dst, listener): (SocketAddr, Listener),
    steps: &mut Steps,
) -> (&'static str, String) {
    let reason = match listener {
        Listener::Unit(uid) if uid == pod.uid => "the unit listens there itself: no policy".to_owned(),
        Listener::Unit(uid) => match snapshot.workload(&uid).cloned() {
            Some(workload) => {
                let subject = format!("{dst} is a port of {}/{}", workload.namespace(), workload.name);
                steps.add(
                    "route",
                    subject,
                    "on this host, by the cgroup of the socket that listens".to_owned(),
                );
                return judge(snapshot, pod, &[Candidate { address: dst, workload: Some(workload) }], steps);
            }
            None => format!("the unit {uid} that listens there has just left the mesh"),
        },
        Listener::Unclear(why) => {
            steps.add("route", dst.to_string(), why.clone());
            return ("unreachable", why);
        }
        Listener::NotEnrolled | Listener::Elsewhere => {
            "no enrolled unit of this host listens there: it is dialled as it is, in plaintext".to_owned()
        }
    };
    steps.add("route", dst.to_string(), reason.clone());
    ("passed_through", reason)
}

fn follow(snapshot: &Snapshot, pod: &Workload, dst: SocketAddr, steps: &mut Steps) -> (&'static str, String) {
    if pod.addresses.contains(&dst.ip()) {
        let reason = "the pod's own address is never redirected".to_owned();
        steps.add("route", dst.to_string(), reason.clone());
        return ("passed_through", reason);
    }
    let (subject, candidates) = match resolve(snapshot, &pod.node, dst) {
        Ok(Route::PassThrough(_)) => {
            let reason =
                "the mesh does not know the address: it is dialled as it is, in plaintext".to_owned();
            steps.add("route", dst.to_string(), reason.clone());
            return ("passed_through", reason);
        }
        Ok(Route::Direct(candidate)) => (format!("{dst} is a pod's own address"), vec![candidate]),
        Ok(Route::Service { service, candidates, .. }) => (format!("{dst} is service {service}"), candidates),
        Err(error) => {
            steps.add("route", dst.to_string(), error.to_string());
            let verdict = match error {
                NoRoute::NotLoaded(_) => "unknown",
                NoRoute::NoSuchPort { .. } | NoRoute::NoEndpoint { .. } => "unreachable",
            };
            return (verdict, error.to_string());
        }
    };
    steps.add("route", subject, format!("{} usable endpoint(s)", candidates.len()));
    judge(snapshot, pod, &candidates, steps)
}

fn judge(
    snapshot: &Snapshot,
    pod: &Workload,
    candidates: &[Candidate],
    steps: &mut Steps,
) -> (&'static str, String) {
    let (mut allowed, mut denied) = (None, None);
    for candidate in candidates.iter().take(MOST_ENDPOINTS) {
        match one(snapshot, pod, candidate, steps) {
            Ok(reason) => allowed = allowed.or(Some(reason)),
            Err(reason) => denied = denied.or(Some(reason)),
        }
    }
    if candidates.len() > MOST_ENDPOINTS {
        let subject = format!("{} more endpoints", candidates.len() - MOST_ENDPOINTS);
        steps.add("authorize", subject, "not shown".to_owned());
    }
    match (allowed, denied) {
        (Some(reason), None) => ("allowed", reason),
        (None, Some(reason)) => ("denied", reason),
        (Some(_), Some(reason)) => ("mixed", format!("it depends on the endpoint: {reason}")),
        (None, None) => ("unreachable", "no endpoint".to_owned()),
    }
}

/// The decision for one endpoint: why it is allowed, or why it is denied.
fn one(
    snapshot: &Snapshot,
    pod: &Workload,
    candidate: &Candidate,
    steps: &mut Steps,
) -> Result<String, String> {
    let address = candidate.address;
    let outside = match &candidate.workload {
        None => Some(format!("{address} is no pod of the mesh: plaintext, no policy")),
        Some(w) if !w.enrolled => Some(format!(
            "pod {}/{} is not enrolled: plaintext, no policy is enforced",
            w.namespace(),
            w.name
        )),
        Some(_) => None,
    };
    if let Some(reason) = outside {
        steps.add("transport", address.to_string(), reason.clone());
        return Ok(reason);
    }
    let Some(workload) = &candidate.workload else { return Ok(String::new()) };
    let peer = if pod.enrolled {
        Peer::Authenticated(pod.identity.clone())
    } else {
        Peer::Plain(PlainReason::NotMeshed)
    };
    let client = same_family(&[address.ip()], pod)
        .and_then(|_| pod.addresses.iter().find(|a| a.is_ipv4() == address.is_ipv4()))
        .copied()
        .unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let request = Request { peer: &peer, client, workload, protocol: Protocol::Tcp, port: address.port() };
    let at = format!("{address} ({}/{})", workload.namespace(), workload.name);
    let verdict = decide_traced(snapshot, &request, &mut |subject, outcome| {
        steps.add("authorize", format!("{at}: {subject}"), outcome.to_string());
    });
    let outcome = match verdict {
        Verdict::Allow { by: Some(policy), .. } => Ok(format!("allowed by AuthorizationPolicy {policy}")),
        Verdict::Allow { by: None, .. } => Ok("allowed: no ALLOW policy selects the workload".to_owned()),
        Verdict::Deny(reason) => Err(reason.to_string()),
    };
    let (Ok(text) | Err(text)) = &outcome;
    steps.add("authorize", at, text.clone());
    if outcome.is_ok() {
        let transport = if workload.unit.is_some() && workload.node == pod.node {
            "within the host: both ends are known by their cgroups, nothing leaves it".to_owned()
        } else if pod.enrolled {
            format!("mutual TLS to {}", workload.identity)
        } else {
            "plaintext".to_owned()
        };
        steps.add("transport", address.to_string(), transport);
    }
    outcome
}
