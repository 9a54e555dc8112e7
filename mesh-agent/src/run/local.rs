//! What the kernel side and the data plane of this node add to the administration socket.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use serde_json::{Value, json};

use super::pods::ServedPods;
use crate::control::Published;
use crate::control::admin::Local;
use crate::intercept::{Interceptor, PodProblem, Probe, WeakSpot, probe, weak_spots};

/// Filled as the agent starts.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) name: Arc<str>,
    pub(super) pods_cgroup: PathBuf,
    pub(super) published: Published,
    pub(super) pods: Arc<ServedPods>,
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

    fn problems(&self) -> Vec<String> {
        let pods = self.pod_problems();
        let pods = pods.iter().map(|p| format!("pod {}/{}: {}", p.namespace, p.name, p.reason));
        let pins = self.interceptor.get().map(|interceptor| interceptor.pin_problems()).unwrap_or_default();
        self.refused.get().cloned().into_iter().chain(pins).chain(pods).collect()
    }

    fn check(&self) -> Value {
        let mut all = checks(&probe());
        all.extend(match weak_spots(&self.pods_cgroup, &self.name, &self.published.load()) {
            Ok(found) => weak(&found),
            Err(error) => vec![json!({
                "name": "weak spots", "ok": false, "found": format!("not looked for: {error}"),
                "mend": "let the agent read the pods' cgroups and /proc",
            })],
        });
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
