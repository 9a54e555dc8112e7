//! What the kernel side and the data plane of this node add to the administration socket.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use serde_json::{Value, json};

use super::pods::ServedPods;
use crate::control::admin::Local;
use crate::control::{Listener, Published, rfc3339};
use crate::intercept::{Interceptor, Kubelet, Owner, PodProblem, Probe, WeakSpot, probe, weak_spots};
use crate::observe::{Metrics, Plaintext, PlaintextPeers, Readiness, Speaker};

/// Filled as the agent starts.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) name: Arc<str>,
    pub(super) pods_cgroup: PathBuf,
    /// Units are below it, not pods.
    pub(super) units: bool,
    pub(super) kubelet: Arc<Kubelet>,
    pub(super) published: Published,
    pub(super) pods: Arc<ServedPods>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) readiness: Arc<Readiness>,
    pub(super) interceptor: OnceLock<Arc<Interceptor>>,
    /// Why the pins of an earlier agent are not adopted: this one does not intercept then.
    pub(super) refused: OnceLock<String>,
}

impl Node {
    /// Enrolled pods that are not intercepted.
    pub(super) fn pod_problems(&self) -> Vec<PodProblem> {
        self.interceptor.get().map(|interceptor| interceptor.problems()).unwrap_or_default()
    }

    /// Why not every enrolled pod of this node is taken care of.
    pub(super) fn not_ready(&self) -> Option<String> {
        if let Some(refused) = self.refused.get() {
            return Some(refused.clone());
        }
        if self.interceptor.get().is_none() {
            return Some("the kernel programs are not loaded yet".to_owned());
        }
        self.pods.pending(&self.published.load(), &self.name, &self.pod_problems())
    }
}

impl Local for Node {
    fn pods(&self) -> Value {
        let older = self.interceptor.get().map(|interceptor| interceptor.older_sockets()).unwrap_or_default();
        self.pods.report(&self.published.load(), &self.name, &self.pod_problems(), &older)
    }

    fn listener(&self, at: SocketAddr) -> Listener {
        let Some(host) = self.interceptor.get().and_then(|interceptor| interceptor.host()) else {
            return Listener::Elsewhere;
        };
        match host.is_local(at.ip()).and_then(|local| local.then(|| host.owner(at)).transpose()) {
            Ok(None) => Listener::Elsewhere,
            Ok(Some(Owner::Unit(uid))) => Listener::Unit(uid),
            Ok(Some(Owner::Other | Owner::Nobody)) => Listener::NotEnrolled,
            Ok(Some(Owner::Several)) => {
                Listener::Unclear("several listen there, not all of them one unit".to_owned())
            }
            Err(error) => Listener::Unclear(format!("whose the port is cannot be asked: {error}")),
        }
    }

    fn problems(&self) -> Vec<String> {
        let pods = self.pod_problems();
        let pods = pods.iter().map(|p| format!("pod {}/{}: {}", p.namespace, p.name, p.reason));
        let pins = self.interceptor.get().map(|interceptor| interceptor.pin_problems()).unwrap_or_default();
        self.refused.get().cloned().into_iter().chain(pins).chain(pods).collect()
    }

    fn on_node_network(&self) -> Vec<String> {
        let pods = self.interceptor.get().map(|interceptor| interceptor.on_node_network());
        pods.unwrap_or_default().iter().map(ToString::to_string).collect()
    }

    fn plaintext(&self) -> Value {
        let peers = &self.metrics.plaintext;
        let all = peers.list(&self.published.load(), &self.name, SystemTime::now());
        plaintext(peers, &all)
    }

    fn missing(&self) -> Vec<String> {
        self.readiness.missing()
    }

    fn check(&self) -> Value {
        let mut all = checks(&probe());
        all.extend(match weak_spots(&self.pods_cgroup, self.units, &self.name, &self.published.load()) {
            Ok(found) => weak(&found),
            Err(error) => vec![json!({
                "name": "weak spots", "ok": false, "found": format!("not looked for: {error}"),
                "mend": "let the agent read the pods' cgroups and /proc",
            })],
        });
        all.extend(weak(self.kubelet.weak_spot(&self.name, &self.published.load()).as_slice()));
        Value::Array(all)
    }
}

/// The kernel's features as JSON.
pub(super) fn checks(probes: &[Probe]) -> Vec<Value> {
    probes.iter().map(|p| json!({ "name": p.name, "ok": p.ok, "mend": p.mend })).collect()
}

/// Weak spots as JSON. They do not keep the mesh from working.
pub(super) fn weak(found: &[WeakSpot]) -> Vec<Value> {
    let one = |spot: &WeakSpot| json!({ "name": spot.name, "ok": false, "weak": true, "found": spot.found, "mend": spot.mend });
    found.iter().map(one).collect()
}

/// Who speaks plaintext as JSON. A source that is no workload is an address, or null beyond the cap.
fn plaintext(peers: &PlaintextPeers, all: &[Plaintext]) -> Value {
    let one = |heard: &Plaintext| {
        let mut told = json!({
            "destination": { "namespace": &*heard.destination.namespace, "workload": &*heard.destination.owner },
            "port": heard.port,
            "source": null,
            "connections": heard.connections,
            "open": heard.open,
            "last": rfc3339(heard.last),
        });
        match &heard.source {
            Speaker::Workload(of) => {
                told["source"] = json!({ "namespace": &*of.namespace, "workload": &*of.owner });
            }
            Speaker::Address(address) => told["source"] = json!({ "address": address }),
            Speaker::Others => {}
        }
        told
    };
    json!({
        "since": rfc3339(peers.since()),
        "unnamed": peers.missed(),
        "peers": all.iter().map(one).collect::<Vec<_>>(),
    })
}
