//! Which pods the data plane serves, written down as the events pass by on their way from interception to it. For status
//! and readiness.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use mesh_core::model::WorkloadUid;
use mesh_core::snapshot::Snapshot;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::intercept::{OlderSocket, OlderSockets, PodEvent, PodNet, PodProblem};

/// The pods that are served now.
#[derive(Debug, Default)]
pub(super) struct ServedPods(Mutex<HashMap<WorkloadUid, Arc<PodNet>>>);

impl ServedPods {
    /// Passes events on and writes them down, until either side ends.
    pub(super) async fn follow(
        self: Arc<Self>,
        mut events: mpsc::Receiver<PodEvent>,
        to: mpsc::Sender<PodEvent>,
    ) {
        while let Some(event) = events.recv().await {
            match &event {
                PodEvent::Up(net, _) => drop(self.0.lock().insert(net.uid.clone(), Arc::clone(net))),
                PodEvent::Down { uid, .. } => drop(self.0.lock().remove(uid)),
                PodEvent::Plain(_) => {}
            }
            if to.send(event).await.is_err() {
                return;
            }
        }
    }

    /// Each enrolled pod of `node`, whether it is served, and why not.
    pub(super) fn report(
        &self,
        snapshot: &Snapshot,
        node: &str,
        problems: &[PodProblem],
        older: &OlderSockets,
    ) -> Value {
        let served = self.0.lock();
        let mut pods: Vec<_> =
            snapshot.workloads().filter(|w| w.enrolled && *w.node == *node).map(Arc::clone).collect();
        pods.sort_by_key(|pod| (pod.namespace().to_owned(), Arc::clone(&pod.name)));
        let report = pods.iter().map(|pod| {
            let problem = problems.iter().find(|problem| problem.uid == pod.uid);
            json!({
                "uid": pod.uid.to_string(),
                "namespace": pod.namespace(),
                "name": &*pod.name,
                "identity": pod.identity.to_string(),
                "addresses": pod.addresses,
                "served": served.contains_key(&pod.uid),
                "netns_cookie": served.get(&pod.uid).map(|net| net.netns_cookie),
                "problem": problem.map(|problem| problem.reason.as_str()),
                "older_sockets": older.of(&pod.uid).iter().map(older_socket).collect::<Vec<_>>(),
            })
        });
        Value::Array(report.collect())
    }

    /// The first enrolled pod of `node` that is neither served nor known to have a problem.
    pub(super) fn pending(&self, snapshot: &Snapshot, node: &str, problems: &[PodProblem]) -> Option<String> {
        let served = self.0.lock();
        snapshot
            .workloads()
            .filter(|w| w.enrolled && *w.node == *node)
            .find(|w| !served.contains_key(&w.uid) && !problems.iter().any(|p| p.uid == w.uid))
            .map(|w| format!("pod {}/{} is not served yet", w.namespace(), w.name))
    }
}

/// A connection that goes past the mesh; `closes_in_seconds` is null where it is only shown.
fn older_socket(socket: &OlderSocket) -> Value {
    let left = socket.closes_at.map(|at| at.saturating_duration_since(Instant::now()).as_secs());
    json!({
        "local": socket.local.to_string(),
        "remote": socket.remote.to_string(),
        "closes_in_seconds": left,
    })
}
