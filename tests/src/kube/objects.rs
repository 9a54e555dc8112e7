//! The world's nodes and pods as objects of the API server: what a kubelet reports of them.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Cluster;
use crate::world::{Pod, PodSpec, World};

/// Where the mesh itself is installed, the agents' service account, and the audience of their tokens.
const SYSTEM: &str = "ferromesh-system";
const AGENT: &str = "ferromesh-agent";
const AUDIENCE: &str = "ferromesh-controller";

impl Cluster {
    /// Makes the agent's pod of a node, which its kubelet starts on the node's network, and gives the token that is
    /// projected into it.
    pub fn agent_token(&self, node: &str) -> Result<String> {
        let name = format!("agent-{node}");
        self.service_account(SYSTEM, AGENT)?;
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "namespace": SYSTEM, "name": name },
            "spec": {
                "nodeName": node, "serviceAccountName": AGENT, "hostNetwork": true,
                "containers": [{ "name": "agent", "image": "unmodified" }],
            },
        });
        self.apply(&pod)?.success()?;
        let running = ["-n", SYSTEM, "wait", "--for=jsonpath={.status.phase}=Running", "pod", &name];
        self.kubectl(&running)?.success()?;
        let bound = ["--bound-object-kind=Pod", "--bound-object-name", &name];
        let mut arguments = vec!["-n", SYSTEM, "create", "token", AGENT, "--audience", AUDIENCE];
        arguments.extend(bound);
        Ok(self.kubectl(&arguments)?.success()?.trim().to_owned())
    }

    /// Makes a service account.
    pub fn service_account(&self, namespace: &str, name: &str) -> Result<()> {
        let account = json!({
            "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "namespace": namespace, "name": name },
        });
        self.apply(&account)?.success().map(drop)
    }

    /// Makes the world's nodes known.
    pub fn nodes(&self, world: &World) -> Result<()> {
        for node in world.nodes() {
            let object = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": node.name } });
            self.apply(&object)?.success()?;
        }
        Ok(())
    }

    /// A namespace without labels, with the service account that a controller-manager would make.
    pub fn namespace(&self, name: &str) -> Result<()> {
        self.kubectl(&["create", "namespace", name])?.success()?;
        self.kubectl(&["-n", name, "create", "serviceaccount", "default"])?.success().map(drop)
    }

    /// Makes a pod of the world that is a Pod object as well: bound to its node, with the server's uid, Running and
    /// Ready with its addresses.
    pub fn pod(&self, world: &World, spec: &PodSpec) -> Result<Pod> {
        let (namespace, name) = (spec.namespace.as_str(), spec.name.as_str());
        if spec.service_account != "default" {
            let account = json!({
                "apiVersion": "v1", "kind": "ServiceAccount",
                "metadata": { "namespace": namespace, "name": spec.service_account },
            });
            self.apply(&account)?.success()?;
        }
        let mut labels = json!({ "app": name });
        for (key, value) in &spec.labels {
            labels[key.as_str()] = json!(value);
        }
        let object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": namespace, "name": name, "labels": labels },
            "spec": {
                "nodeName": world.node(spec.node).name, "serviceAccountName": spec.service_account,
                "containers": [{ "name": "main", "image": "unmodified" }],
            },
        });
        self.apply(&object)?.success()?;
        let made = self.get("pod", namespace, name)?;
        let uid = made["metadata"]["uid"].as_str().context("the server gave no uid")?;
        let pod = world.pod_with_uid(spec, uid)?;
        self.pod_status(&pod, "Running", true)?;
        Ok(pod)
    }

    /// Reports a pod's phase and readiness, as its kubelet does.
    pub fn pod_status(&self, pod: &Pod, phase: &str, ready: bool) -> Result<()> {
        let ready = if ready { "True" } else { "False" };
        let status = json!({ "status": {
            "phase": phase,
            "podIP": pod.v4.to_string(),
            "podIPs": [{ "ip": pod.v4.to_string() }, { "ip": pod.v6.to_string() }],
            "conditions": [{ "type": "Ready", "status": ready }],
        } });
        let (namespace, name) = (&pod.spec.namespace, &pod.spec.name);
        let patch = status.to_string();
        let arguments =
            ["-n", namespace, "patch", "pod", name, "--subresource=status", "--type=merge", "-p", &patch];
        self.kubectl(&arguments)?.success().map(drop)
    }

    /// A service with one port in front of pods, and the slices that a controller-manager would make.
    pub fn service(&self, name: (&str, &str), vip: &str, port: u16, pods: &[&Pod]) -> Result<()> {
        let (namespace, name) = name;
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "namespace": namespace, "name": name },
            "spec": { "clusterIP": vip, "ports": [{ "name": "main", "port": port, "protocol": "TCP" }] },
        });
        self.apply(&service)?.success()?;
        let endpoints: Vec<Value> = pods
            .iter()
            .map(|pod| {
                json!({
                    "addresses": [pod.v4.to_string()], "nodeName": pod.node,
                    "conditions": { "ready": true, "serving": true, "terminating": false },
                    "targetRef": {
                        "kind": "Pod", "namespace": pod.spec.namespace, "name": pod.spec.name, "uid": pod.uid,
                    },
                })
            })
            .collect();
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "namespace": namespace, "name": format!("{name}-1"),
                "labels": { "kubernetes.io/service-name": name },
            },
            "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{ "name": "main", "port": port, "protocol": "TCP" }],
        });
        self.apply(&slice)?.success().map(drop)
    }
}
