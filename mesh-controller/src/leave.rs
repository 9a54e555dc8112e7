//! The way out of the mesh, for the hook that runs before the chart is removed (ADR 0017). In: an API server, and the DaemonSet
//! whose pods take the mesh's programs off their nodes. Out: it stands in the agents' place, and what became of each node, told
//! line by line and as an Event.

mod standing;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use k8s_openapi::List;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Pod, PodSpec};
use k8s_openapi::jiff::Timestamp;
use kube::core::params::{GetParams, ListParams, PostParams};
use kube::core::{Request, Resource};
use serde_json::{Value, json};

pub use standing::Standing;

use crate::api::{ApiError, Client, MANAGER};

/// Between two looks at the nodes, and after a request that failed.
const EVERY: Duration = Duration::from_secs(1);
/// What `kubectl` can show of an event.
const MAX_EVENT_MESSAGE: usize = 1024;

/// Why nobody could be asked to leave.
#[derive(Debug, thiserror::Error)]
pub enum LeaveError {
    /// The DaemonSet of the way out cannot be read.
    #[error("{path}: {message}")]
    Definition {
        /// The file.
        path: String,
        /// What is wrong with it.
        message: String,
    },
    /// The API server refused, or was away until the end.
    #[error(transparent)]
    Api(#[from] ApiError),
}

/// The DaemonSet whose pods leave.
#[derive(Debug)]
pub struct WayOut {
    object: DaemonSet,
    name: String,
    namespace: String,
    pod: PodSpec,
    labels: BTreeMap<String, String>,
}

impl WayOut {
    /// Reads it from a manifest, as the chart renders it.
    pub fn read(path: &Path) -> Result<Self, LeaveError> {
        let wrong = |message: String| LeaveError::Definition { path: path.display().to_string(), message };
        let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
        Self::parse(&text).map_err(wrong)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let object: DaemonSet = serde_saphyr::from_str(text).map_err(|e| e.without_snippet().to_string())?;
        let missing = |what: &str| format!("it has no {what}");
        let name = object.metadata.name.clone().ok_or_else(|| missing("name"))?;
        let namespace = object.metadata.namespace.clone().ok_or_else(|| missing("namespace"))?;
        let spec = object.spec.as_ref().ok_or_else(|| missing("spec"))?;
        let pod = spec.template.spec.clone().ok_or_else(|| missing("pod"))?;
        let labels = spec.selector.match_labels.clone().ok_or_else(|| missing("selector"))?;
        let arguments = pod.containers.first().and_then(|container| container.args.as_deref());
        // Without any, every agent would be taken for one that leaves.
        if !arguments.unwrap_or_default().iter().any(|argument| argument.starts_with("--leave=")) {
            return Err("its pods do not leave".to_owned());
        }
        Ok(Self { object, name, namespace, pod, labels })
    }

    /// Puts it in the agents' place, waits until every node that is ready has left or `wait` is over, and says what became of
    /// them: by `tell` line by line, and as an Event of the DaemonSet.
    pub async fn take(
        &self,
        client: &Client,
        wait: Duration,
        tell: impl Fn(&str),
    ) -> Result<Standing, LeaveError> {
        let until = Instant::now() + wait;
        let uid = loop {
            match self.replace(client).await {
                Ok(uid) => break uid,
                Err(error) if is_passing(&error) && Instant::now() < until => tell(&error.to_string()),
                Err(error) => return Err(error.into()),
            }
            tokio::time::sleep(EVERY).await;
        };
        tell("every node is asked to leave the mesh");
        let standing = self.follow(client, until, &tell).await?;
        standing.hindrances(wait).iter().for_each(|line| tell(line));
        tell(&standing.verdict());
        standing.mend().into_iter().for_each(&tell);
        if let Err(error) = self.event(client, &uid, &standing).await {
            tell(&format!("its Event cannot be sent: {error}"));
        }
        Ok(standing)
    }

    /// Replaces what the agents' DaemonSet is made of, nothing else of it. One that somebody deleted is made again: its nodes
    /// still have the programs.
    async fn replace(&self, client: &Client) -> Result<String, ApiError> {
        let request = Request::new(DaemonSet::url_path(&(), Some(&self.namespace)));
        let params = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
        let body = |object: &DaemonSet| {
            serde_json::to_vec(object).map_err(|error| ApiError::Request(error.to_string()))
        };
        let held = client.call::<DaemonSet>(request.get(&self.name, &GetParams::default())?).await;
        let put = match held {
            Ok(held) => {
                let object = DaemonSet { spec: self.object.spec.clone(), ..held };
                request.replace(&self.name, &params, body(&object)?)?
            }
            Err(error) if error.is(404) => request.create(&params, body(&self.object)?)?,
            Err(error) => return Err(error),
        };
        let now: DaemonSet = client.call(put).await?;
        Ok(now.metadata.uid.unwrap_or_default())
    }

    async fn follow(
        &self,
        client: &Client,
        until: Instant,
        tell: &impl Fn(&str),
    ) -> Result<Standing, ApiError> {
        let mut told = String::new();
        loop {
            let late = Instant::now() >= until;
            let text = match self.look(client).await {
                Ok(standing) if late || standing.waiting.is_empty() => return Ok(standing),
                Ok(standing) => standing.progress(),
                Err(error) if late || !is_passing(&error) => return Err(error),
                Err(error) => error.to_string(),
            };
            if text != told {
                tell(&text);
                told = text;
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    async fn look(&self, client: &Client) -> Result<Standing, ApiError> {
        let labels: Vec<String> = self.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let of_agents = ListParams::default().labels(&labels.join(","));
        let pods = Request::new(Pod::url_path(&(), Some(&self.namespace))).list(&of_agents)?;
        let nodes = Request::new(Node::url_path(&(), None)).list(&ListParams::default())?;
        // A pod that is seen is on a node that is asked for after it.
        let pods: List<Pod> = client.call(pods).await?;
        let nodes: List<Node> = client.call(nodes).await?;
        Ok(Standing::of(&self.pod, &nodes.items, &pods.items))
    }

    async fn event(&self, client: &Client, uid: &str, standing: &Standing) -> Result<(), ApiError> {
        let (kind, reason) = match (standing.waiting.is_empty(), standing.unreachable.is_empty()) {
            (true, true) => ("Normal", "NodesLeft"),
            (true, false) => ("Warning", "NodesNotReached"),
            (false, _) => ("Warning", "NodesDidNotLeave"),
        };
        let now = Timestamp::now();
        let second = Timestamp::from_second(now.as_second()).unwrap_or_default().to_string();
        let message: String = standing.verdict().chars().take(MAX_EVENT_MESSAGE).collect();
        let (name, namespace) = (&self.name, &self.namespace);
        let event = json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": { "namespace": namespace, "name": format!("{name}.{:x}", now.as_nanosecond()) },
            "involvedObject": {
                "apiVersion": "apps/v1", "kind": "DaemonSet", "uid": uid, "namespace": namespace, "name": name,
            },
            "type": kind, "reason": reason, "message": message, "count": 1,
            "firstTimestamp": second, "lastTimestamp": second, "source": { "component": MANAGER },
        });
        let path = format!("/api/v1/namespaces/{namespace}/events");
        let request = Request::new(path).create(&PostParams::default(), event.to_string().into_bytes())?;
        client.call::<Value>(request).await.map(drop)
    }
}

/// Whether it may go well the next time: the server is away or busy, or somebody else was faster.
fn is_passing(error: &ApiError) -> bool {
    match error {
        ApiError::Connection { .. } => true,
        ApiError::Refused { code, .. } => matches!(code, 409 | 429 | 500..),
        ApiError::Request(_) | ApiError::Answer(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same template renders it into the chart's ConfigMap.
    const RENDERED: &str = include_str!("../../deploy/leave/agent.yaml");

    #[test]
    fn what_the_chart_renders_is_a_way_out_and_an_agent_is_none() {
        let set = RENDERED.split("---\n").find(|part| part.contains("kind: DaemonSet")).unwrap();
        let out = WayOut::parse(set).unwrap();
        assert_eq!((out.name.as_str(), out.namespace.as_str()), ("ferromesh-agent", "ferromesh-system"));
        assert_eq!(out.labels.len(), 1);
        let agent = set.replace("--leave=", "--pin-dir=");
        assert_eq!(WayOut::parse(&agent).unwrap_err(), "its pods do not leave");
        assert!(WayOut::parse("metadata: {name: x}").is_err());
    }

    #[test]
    fn a_server_that_is_away_is_asked_again_and_one_that_says_no_is_not() {
        let refused = |code| ApiError::Refused { code, reason: String::new(), message: String::new() };
        assert!([409, 429, 500, 503].into_iter().all(|code| is_passing(&refused(code))));
        assert!([400, 401, 403, 404, 422].into_iter().all(|code| !is_passing(&refused(code))));
    }
}
