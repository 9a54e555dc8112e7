//! What the agent holds, as JSON for the administration socket. Private keys are never part of it.

use std::collections::BTreeMap;
use std::time::SystemTime;

use mesh_core::model::{
    Affinity, AuthorizationPolicy, Endpoint, Rule, Service, StringMatch, TrafficScope, Workload,
};
use mesh_core::snapshot::{Snapshot, UdpBackend};
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::certs::rfc3339;
use super::{Control, NodeSettings};
use crate::identify::Svid;

/// Everything in `snapshot`, sorted by name.
pub(super) fn snapshot(snapshot: &Snapshot) -> Value {
    let mut workloads: Vec<_> = snapshot.workloads().collect();
    workloads.sort_by_key(|w| (w.namespace().to_owned(), w.name.clone()));
    let mut services: Vec<_> = snapshot.services().collect();
    services.sort_by(|a, b| a.name.cmp(&b.name));
    let mut policies: Vec<_> = snapshot.policies().collect();
    policies.sort_by(|a, b| a.name.cmp(&b.name));
    let mut unserved: Vec<_> = snapshot.unserved().iter().copied().collect();
    unserved.sort();
    let backend = |b: &UdpBackend| json!({ "workload": b.workload.to_string(), "port": b.port });
    let behind = |behind: &[UdpBackend]| behind.iter().map(backend).collect::<Vec<_>>();
    let udp: BTreeMap<_, _> = snapshot.udp().map(|(at, all)| (at.to_string(), behind(all))).collect();
    json!({
        "version": snapshot.version,
        "trust_domain": snapshot.trust_domain.as_str(),
        "workloads": workloads.iter().map(|w| workload(w)).collect::<Vec<_>>(),
        "services": services.iter().map(|s| service(s)).collect::<Vec<_>>(),
        "policies": policies.iter().map(|p| policy(p)).collect::<Vec<_>>(),
        "unserved": unserved,
        "udp": udp,
    })
}

/// Every certificate that is held, and what is wrong with those that are wanted.
pub(super) fn certificates(control: &Control) -> Value {
    let now = SystemTime::now();
    let held = control.svids.all();
    let mut held: Vec<_> = held.values().collect();
    held.sort_by(|a, b| a.identity.cmp(&b.identity));
    let problems: Vec<_> = control
        .status
        .certificates()
        .into_iter()
        .map(|p| json!({ "identity": p.identity, "missing": p.missing, "problem": p.problem }))
        .collect();
    json!({
        "held": held.iter().map(|svid| certificate(svid, now)).collect::<Vec<_>>(),
        "problems": problems,
        "trust_bundle": { "roots": control.svids.trust().roots.len(), "generation": control.svids.trust().generation },
    })
}

/// A short report of the whole control plane.
pub(super) fn status(control: &Control, node: &NodeSettings) -> Value {
    let (stream, identity) = (control.status.stream(), control.status.node());
    let kept = control.status.kept();
    let restored = kept.restored.is_some();
    let snapshot = control.published.load();
    let (mut workloads, mut local) = (0_u64, 0_u64);
    for workload in snapshot.workloads() {
        workloads += 1;
        local += u64::from(*workload.node == *node.node);
    }
    let not_ready = control.status.not_ready();
    json!({
        "node": node.node,
        "agent_version": env!("CARGO_PKG_VERSION"),
        "trust_domain": node.trust_domain.as_str(),
        "ready": not_ready.is_none(),
        "not_ready": not_ready,
        "controller": {
            "connected": stream.connected,
            "since": stream.since.map(rfc3339),
            "last_error": stream.last_error,
            "refused": stream.refused,
        },
        "snapshot": {
            "version": snapshot.version,
            "workloads": workloads,
            "local_workloads": local,
            "services": snapshot.services().count(),
            "policies": snapshot.policies().count(),
            "restored_from_disk": restored && !stream.applied,
            "saved": kept.saved.map(rfc3339),
            "problem": kept.problem,
        },
        "node_certificate": {
            "spiffe_id": identity.spiffe_id,
            "not_after": identity.not_after.map(rfc3339),
            "problem": identity.problem,
        },
        "certificates": certificates(control),
    })
}

fn certificate(svid: &Svid, now: SystemTime) -> Value {
    json!({
        "identity": svid.identity.to_string(),
        "not_before": rfc3339(svid.not_before),
        "not_after": rfc3339(svid.not_after),
        "expired": svid.not_after <= now,
        "generation": svid.generation,
        "issuer": svid.key.cert.first().and_then(|leaf| issuer(leaf)),
    })
}

/// The name of the authority that signed it.
fn issuer(leaf: &[u8]) -> Option<String> {
    Some(X509Certificate::from_der(leaf).ok()?.1.issuer().to_string())
}

fn workload(workload: &Workload) -> Value {
    json!({
        "uid": workload.uid.to_string(),
        "namespace": workload.namespace(),
        "name": &*workload.name,
        "identity": workload.identity.to_string(),
        "node": &*workload.node,
        "addresses": workload.addresses,
        "enrolled": workload.enrolled,
        "owner": format!("{}/{}", workload.owner.kind, workload.owner.name),
        "mtls": format!("{:?}", workload.mtls.default).to_lowercase(),
        "mtls_by_port": workload
            .mtls
            .by_port
            .iter()
            .map(|(port, mode)| (port.to_string(), json!(format!("{mode:?}").to_lowercase())))
            .collect::<serde_json::Map<_, _>>(),
        "policies": workload.policies.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "connect": workload.connect.map(|mode| format!("{mode:?}").to_lowercase()),
        "opens_after_seconds": workload.opens_after().map(|after| after.as_secs()),
    })
}

fn service(service: &Service) -> Value {
    json!({
        "name": service.name.to_string(),
        "vips": service.vips,
        "ports": service.ports.iter().map(|p| json!({ "name": &*p.name, "port": p.port })).collect::<Vec<_>>(),
        "endpoints": service.endpoints.iter().map(endpoint).collect::<Vec<_>>(),
        "node_local": service.scope == TrafficScope::NodeLocal,
        "client_ip_affinity_seconds": match service.affinity {
            Affinity::None => None,
            Affinity::ClientIp(idle) => Some(idle.as_secs()),
        },
    })
}

fn endpoint(endpoint: &Endpoint) -> Value {
    json!({
        "workload": endpoint.workload.as_ref().map(ToString::to_string),
        "address": endpoint.address,
        "node": &*endpoint.node,
        "health": format!("{:?}", endpoint.health),
        "ports": endpoint.ports,
    })
}

fn policy(policy: &AuthorizationPolicy) -> Value {
    json!({
        "name": policy.name.to_string(),
        "action": format!("{:?}", policy.action).to_uppercase(),
        "rules": policy.rules.iter().map(rule).collect::<Vec<_>>(),
    })
}

fn rule(rule: &Rule) -> Value {
    let from = rule.from.iter().map(|source| {
        json!({
            "principals": patterns(&source.principals),
            "not_principals": patterns(&source.not_principals),
            "namespaces": patterns(&source.namespaces),
            "not_namespaces": patterns(&source.not_namespaces),
            "ip_blocks": source.ip_blocks,
            "not_ip_blocks": source.not_ip_blocks,
        })
    });
    let to = rule.to.iter().map(
        |o| json!({ "protocol": format!("{:?}", o.protocol), "ports": o.ports, "not_ports": o.not_ports }),
    );
    json!({ "from": from.collect::<Vec<_>>(), "to": to.collect::<Vec<_>>() })
}

fn patterns(list: &[StringMatch]) -> Vec<String> {
    let text = |pattern: &StringMatch| match pattern {
        StringMatch::Exact(text) => text.to_string(),
        StringMatch::Prefix(text) => format!("{text}*"),
        StringMatch::Suffix(text) => format!("*{text}"),
        StringMatch::Present => "*".to_owned(),
    };
    list.iter().map(text).collect()
}
