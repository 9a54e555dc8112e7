//! Who has left the mesh. In: the definition of the pods that leave, and the cluster's nodes and agents. Out: the nodes that
//! have left, those that nobody reaches, and those that are still waited for; and the same in words.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerStatus, Node, Pod, PodSpec};

/// How many nodes are named one by one.
const NAMED: usize = 50;

/// What became of the nodes on which an agent may be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Their pod says that nothing of the mesh is attached there any more.
    pub left: BTreeSet<String>,
    /// They are not ready: no kubelet starts a pod there, so nobody can be sent.
    pub unreachable: BTreeSet<String>,
    /// They are ready and have not left, and what is in the way.
    pub waiting: BTreeMap<String, String>,
}

impl Standing {
    /// `leaving` is what the pods of the way out are made from: it says which nodes have agents, and by its arguments a pod
    /// is known as one that leaves.
    pub fn of(leaving: &PodSpec, nodes: &[Node], pods: &[Pod]) -> Self {
        let mut standing = Self::default();
        for node in nodes.iter().filter(|node| is_selected(leaving, node)) {
            let name = node.metadata.name.clone().unwrap_or_default();
            let here = pods.iter().filter(|pod| is_on(pod, &name)).collect::<Vec<_>>();
            match hindrance(leaving, &here) {
                None => drop(standing.left.insert(name)),
                Some(_) if !is_ready_node(node) => drop(standing.unreachable.insert(name)),
                Some(why) => drop(standing.waiting.insert(name, why)),
            }
        }
        standing
    }

    /// How far it has come, in one line.
    pub fn progress(&self) -> String {
        let all = self.left.len() + self.unreachable.len() + self.waiting.len();
        let mut text = format!("{} of {all} nodes have left", self.left.len());
        if !self.waiting.is_empty() {
            text.push_str(&format!("; waiting for {}", names(self.waiting.keys())));
        }
        if !self.unreachable.is_empty() {
            text.push_str(&format!("; not ready: {}", names(&self.unreachable)));
        }
        text
    }

    /// Why it is not over after `wait`, node by node.
    pub fn hindrances(&self, wait: Duration) -> Vec<String> {
        let late = self.waiting.iter().take(NAMED);
        late.map(|(node, why)| format!("{node} has not left within {wait:?}: {why}")).collect()
    }

    /// The end, in one line.
    pub fn verdict(&self) -> String {
        let mut parts = Vec::new();
        if !self.waiting.is_empty() {
            parts.push(format!("did not leave the mesh: {}", names(self.waiting.keys())));
        }
        if !self.unreachable.is_empty() {
            parts.push(format!(
                "could not be reached, since they are not ready: {}",
                names(&self.unreachable)
            ));
        }
        match parts.is_empty() {
            true => format!("every node has left the mesh ({})", self.left.len()),
            false => format!("nodes that {}", parts.join("; and nodes that ")),
        }
    }

    /// What whoever removes the mesh can do about it; nothing when there is nothing to do.
    pub fn mend(&self) -> Option<&'static str> {
        if !self.waiting.is_empty() {
            return Some(
                "Nothing is removed yet. Mend these nodes and uninstall again; `helm uninstall --no-hooks` goes on without \
                 them, and their enrolled pods stay closed; `helm rollback RELEASE REVISION`, of the last in `helm history`, brings the \
                 agents back.",
            );
        }
        (!self.unreachable.is_empty()).then_some(
            "Enrolled pods there stay closed, when such a node comes back without a boot, until \
             `rm -r /sys/fs/bpf/ferromesh` is run on it.",
        )
    }
}

/// Names, as many as a line can hold.
fn names<'a>(of: impl IntoIterator<Item = &'a String>) -> String {
    let all: Vec<&str> = of.into_iter().map(String::as_str).collect();
    let (first, rest) = all.split_at(all.len().min(NAMED));
    match rest.len() {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

fn is_selected(leaving: &PodSpec, node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    let mut wanted = leaving.node_selector.iter().flatten();
    wanted.all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

fn is_ready_node(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|held| held.type_ == "Ready" && held.status == "True")
}

/// Whether the pod is on this node and something of it may run.
fn is_on(pod: &Pod, node: &str) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let over = matches!(phase, Some("Succeeded" | "Failed"));
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(node) && !over
}

/// What keeps a node from having left; `pods` are all that are on it.
fn hindrance(leaving: &PodSpec, pods: &[&Pod]) -> Option<String> {
    let name = |pod: &Pod| pod.metadata.name.clone().unwrap_or_default();
    if let Some(agent) = pods.iter().find(|pod| !is_leaving(leaving, pod)) {
        return Some(format!("the agent {} has not ended", name(agent)));
    }
    let Some(pod) = pods.iter().find(|pod| pod.metadata.deletion_timestamp.is_none()) else {
        return Some("no pod that leaves is on it yet".to_owned());
    };
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    if conditions.iter().any(|held| held.type_ == "Ready" && held.status == "True") {
        return None;
    }
    let containers = pod.status.as_ref().and_then(|status| status.container_statuses.as_deref());
    let why = containers.unwrap_or_default().iter().find_map(trouble);
    Some(format!("{} is not ready{}", name(pod), why.map_or_else(String::new, |why| format!(" ({why})"))))
}

/// Known by its arguments: a label that only such pods have would stay on the DaemonSet when helm brings the agents back.
fn is_leaving(leaving: &PodSpec, pod: &Pod) -> bool {
    let arguments = |spec: &PodSpec| spec.containers.first().and_then(|container| container.args.clone());
    pod.spec.as_ref().and_then(arguments) == arguments(leaving)
}

/// What the kubelet says of a container that does not run.
fn trouble(container: &ContainerStatus) -> Option<String> {
    let of = |status: &ContainerStatus| {
        let state = status.state.as_ref()?;
        let waits = state.waiting.as_ref().and_then(|waiting| waiting.reason.clone());
        waits.or_else(|| Some(format!("exit code {}", state.terminated.as_ref()?.exit_code)))
    };
    of(container).filter(|reason| reason != "ContainerCreating" && reason != "PodInitializing")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    const LEAVE: &str = "--leave=/sys/fs/bpf/ferromesh";

    fn node(name: &str, ready: &str, labels: &Value) -> Node {
        let conditions = json!([{ "type": "Ready", "status": ready }]);
        from_value(json!({
            "metadata": { "name": name, "labels": labels }, "status": { "conditions": conditions },
        }))
        .unwrap()
    }

    fn pod(node: &str, argument: &str, ready: bool) -> Pod {
        let ready = if ready { "True" } else { "False" };
        from_value(json!({
            "metadata": { "name": format!("agent-{node}") },
            "spec": { "nodeName": node, "containers": [{ "name": "agent", "args": [argument] }] },
            "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": ready }] },
        }))
        .unwrap()
    }

    fn standing(nodes: &[Node], pods: &[Pod]) -> Standing {
        let leaving = json!({
            "nodeSelector": { "os": "linux" }, "containers": [{ "name": "agent", "args": [LEAVE] }],
        });
        Standing::of(&from_value(leaving).unwrap(), nodes, pods)
    }

    #[test]
    fn a_node_has_left_when_its_pod_of_the_way_out_is_ready_and_no_agent_is_beside_it() {
        let linux = json!({ "os": "linux" });
        let nodes = [node("n1", "True", &linux)];
        let (agent, done) = (pod("n1", "--node=n1", true), pod("n1", LEAVE, true));
        let held = |pods: &[Pod]| standing(&nodes, pods).waiting.get("n1").cloned();
        assert_eq!(held(std::slice::from_ref(&done)), None);
        assert!(standing(&nodes, std::slice::from_ref(&done)).left.contains("n1"));
        // An agent that runs, beside it or alone, a pod that has not said it, and no pod at all.
        assert_eq!(held(&[agent.clone(), done.clone()]).unwrap(), "the agent agent-n1 has not ended");
        assert_eq!(held(&[agent]).unwrap(), "the agent agent-n1 has not ended");
        assert_eq!(held(&[pod("n1", LEAVE, false)]).unwrap(), "agent-n1 is not ready");
        assert_eq!(held(&[]).unwrap(), "no pod that leaves is on it yet");
        // What is said by a pod that goes is said of nothing that stays.
        let mut going = done.clone();
        going.metadata.deletion_timestamp = Some(from_value(json!("2026-01-01T00:00:00Z")).unwrap());
        assert!(held(&[going]).is_some());
        let mut failed = pod("n1", "--node=n1", false);
        failed.status.as_mut().unwrap().phase = Some("Failed".into());
        assert_eq!(held(&[failed, done]), None);
        // Windows has no agent.
        let nodes = [node("w1", "True", &json!({ "os": "windows" }))];
        assert_eq!(standing(&nodes, &[]), Standing::default());
    }

    #[test]
    fn a_node_that_is_not_ready_is_named_and_not_waited_for_and_one_that_is_ready_is() {
        let linux = json!({ "os": "linux" });
        let nodes = ["True", "False", "Unknown", "True"];
        let nodes: Vec<Node> =
            nodes.iter().enumerate().map(|(i, ready)| node(&format!("n{i}"), ready, &linux)).collect();
        let mut stuck = pod("n3", LEAVE, false);
        stuck.status.as_mut().unwrap().container_statuses = Some(vec![
            from_value(json!({
                "name": "agent", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": { "waiting": { "reason": "ImagePullBackOff" } },
            }))
            .unwrap(),
        ]);
        // The third one's pod said it before its node was lost.
        let pods = [pod("n0", LEAVE, true), pod("n1", "--node=n1", true), pod("n2", LEAVE, true), stuck];
        let mut held = standing(&nodes, &pods);
        assert_eq!((held.left.len(), held.unreachable.len(), held.waiting.len()), (2, 1, 1));
        assert_eq!(held.progress(), "2 of 4 nodes have left; waiting for n3; not ready: n1");
        let why = held.hindrances(Duration::from_secs(240));
        assert_eq!(why, ["n3 has not left within 240s: agent-n3 is not ready (ImagePullBackOff)"]);
        assert!(held.verdict().contains("did not leave the mesh: n3; and nodes that could not be reached"));
        assert!(held.mend().unwrap().contains("--no-hooks"));
        held.waiting.clear();
        assert_eq!(held.verdict(), "nodes that could not be reached, since they are not ready: n1");
        assert!(held.mend().unwrap().contains("stay closed"));
        held.unreachable.clear();
        assert_eq!((held.verdict().as_str(), held.mend()), ("every node has left the mesh (2)", None));
    }

    #[test]
    fn of_many_nodes_the_first_are_named_and_the_rest_counted() {
        let many: BTreeSet<String> = (0..NAMED + 7).map(|number| format!("n{number:03}")).collect();
        assert!(names(&many).ends_with("n049 and 7 more"), "{}", names(&many));
    }
}
