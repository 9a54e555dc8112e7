//! What would happen to a datagram: the kernel's table is made from the same decisions. A pod and an address come in, steps and
//! a verdict go out.

use std::net::SocketAddr;

use mesh_core::authorize::Verdict;
use mesh_core::model::{DNS_PORT, Workload};
use mesh_core::snapshot::{Snapshot, UdpBackend};
use mesh_core::udp::decide_behind;

use super::Steps;

/// The verdict, and why.
pub(super) fn follow(
    snapshot: &Snapshot,
    pod: &Workload,
    dst: SocketAddr,
    steps: &mut Steps,
) -> (&'static str, String) {
    let behind = snapshot.udp().find(|(at, _)| *at == dst).map(|(_, behind)| behind);
    let passes = match behind {
        _ if !pod.enrolled => Some("the pod is not enrolled: nobody looks at its datagrams"),
        _ if pod.addresses.contains(&dst.ip()) || dst.ip().is_loopback() => {
            Some("what stays in the pod is not looked at")
        }
        _ if dst.port() == DNS_PORT => Some("DNS always passes"),
        None => Some("no UDP rule speaks of this address and port"),
        Some(_) => None,
    };
    let behind = behind.unwrap_or_default();
    if let Some(reason) = passes {
        steps.add("route", dst.to_string(), reason.to_owned());
        return ("passed_through", reason.to_owned());
    }
    steps.add("route", dst.to_string(), format!("{} workload(s) behind it", behind.len()));
    let judged: Vec<_> = behind.iter().map(|backend| one(snapshot, pod, dst, backend, steps)).collect();
    // The kernel decides before anybody is chosen: one that is denied denies them all.
    let first = judged.iter().find(|outcome| outcome.is_err()).or(judged.first());
    match first {
        Some(Ok(reason)) => ("allowed", reason.clone()),
        Some(Err(reason)) => ("denied", format!("the source's kernel refuses it: {reason}")),
        None => ("allowed", "nobody is behind it".to_owned()),
    }
}

fn one(
    snapshot: &Snapshot,
    pod: &Workload,
    dst: SocketAddr,
    backend: &UdpBackend,
    steps: &mut Steps,
) -> Result<String, String> {
    let name = snapshot.workload(&backend.workload).map(|w| format!("{}/{}", w.namespace(), w.name));
    let at = format!("{} port {}", name.unwrap_or_else(|| backend.workload.to_string()), backend.port);
    let verdict = decide_behind(snapshot, pod, dst, backend, &mut |subject, outcome| {
        steps.add("authorize", format!("{at}: {subject}"), outcome.to_string());
    });
    let outcome = match verdict {
        None => Err("the workload behind it has not reached this agent".to_owned()),
        Some(Verdict::Deny(reason)) => Err(reason.to_string()),
        Some(Verdict::Allow { by: Some(policy), .. }) => {
            Ok(format!("allowed by AuthorizationPolicy {policy}"))
        }
        Some(Verdict::Allow { by: None, .. }) => Ok("allowed: no ALLOW policy speaks of it".to_owned()),
    };
    let (Ok(text) | Err(text)) = &outcome;
    steps.add("authorize", at, text.clone());
    outcome
}
