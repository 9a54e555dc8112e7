//! Kubernetes manifests, written into the folder that the controller watches: one file an object, each replaced at once.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::world::{Pod, PodSpec};

/// The folder.
#[derive(Clone, Debug)]
pub struct Manifests {
    folder: PathBuf,
}

/// One port of a Service: name, port, target port.
pub type ServicePort<'a> = (&'a str, u16, u16);

/// What a Service and its slices say.
#[derive(Clone, Debug)]
pub struct ServiceSpec<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its cluster addresses; empty makes it headless.
    pub vips: Vec<String>,
    /// Its ports.
    pub ports: Vec<ServicePort<'a>>,
    /// The pods behind it, and whether each is ready.
    pub backends: Vec<(&'a Pod, bool)>,
    /// Further fields of `spec`.
    pub more: Value,
}

impl Manifests {
    /// Makes the folder.
    pub fn new(folder: PathBuf) -> Result<Self> {
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        Ok(Self { folder })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes any object, in place of what its file held.
    pub fn put(&self, object: &Value) -> Result<()> {
        self.put_text(&file_name(object), &format!("{object:#}\n"))
    }

    /// Writes a file as it is.
    pub fn put_text(&self, name: &str, text: &str) -> Result<()> {
        let beside = self.folder.with_extension("new");
        fs::write(&beside, text).with_context(|| format!("write {}", beside.display()))?;
        fs::rename(&beside, self.folder.join(name)).with_context(|| format!("put {name} in place"))
    }

    /// Removes an object's file.
    pub fn remove(&self, kind: &str, namespace: &str, name: &str) -> Result<()> {
        self.remove_file(&format!("{}-{namespace}-{name}.yaml", kind.to_lowercase()))
    }

    /// Removes a file.
    pub fn remove_file(&self, name: &str) -> Result<()> {
        fs::remove_file(self.folder.join(name)).with_context(|| format!("remove {name}"))
    }

    /// A namespace, enrolled or not.
    pub fn namespace(&self, name: &str, enrolled: bool) -> Result<()> {
        let labels = if enrolled { json!({ "ferromesh.io/enrolled": "true" }) } else { json!({}) };
        self.put(&json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels },
        }))
    }

    /// A running, ready pod and its service account.
    pub fn pod(&self, pod: &Pod) -> Result<()> {
        self.pod_with(pod, &[])
    }

    /// [`Manifests::pod`] with further labels.
    pub fn pod_with(&self, pod: &Pod, labels: &[(&str, &str)]) -> Result<()> {
        let PodSpec { namespace, name, service_account, .. } = &pod.spec;
        let mut all = self.account_and_labels(&pod.spec)?;
        for (key, value) in labels {
            all[*key] = json!(value);
        }
        self.put(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": namespace, "name": name, "uid": pod.uid, "labels": all },
            "spec": { "nodeName": pod.node, "serviceAccountName": service_account, "containers": [{ "name": "main" }] },
            "status": {
                "phase": "Running",
                "podIP": pod.v4.to_string(),
                "podIPs": [{ "ip": pod.v4.to_string() }, { "ip": pod.v6.to_string() }],
                "conditions": [{ "type": "Ready", "status": "True" }],
            },
        }))
    }

    /// A systemd unit of a plain host and its service account.
    pub fn unit(&self, unit: &Pod) -> Result<()> {
        let PodSpec { namespace, name, service_account, .. } = &unit.spec;
        let labels = self.account_and_labels(&unit.spec)?;
        self.put(&json!({
            "apiVersion": "ferromesh.io/v1alpha1", "kind": "WorkloadEntry",
            "metadata": { "namespace": namespace, "name": name, "labels": labels },
            "spec": { "node": unit.node, "unit": format!("{name}.service"), "serviceAccount": service_account },
        }))
    }

    /// Writes the service account; the labels come back.
    fn account_and_labels(&self, spec: &PodSpec) -> Result<Value> {
        self.put(&json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": { "namespace": spec.namespace, "name": spec.service_account },
        }))?;
        let mut labels = json!({ "app": spec.name });
        for (key, value) in &spec.labels {
            labels[key.as_str()] = json!(value);
        }
        Ok(labels)
    }

    /// A Service of UDP ports (name, port, target port) without slices: its endpoints are the pods with `app=NAME`.
    pub fn udp_service(&self, name: (&str, &str), vips: &[&str], ports: &[ServicePort<'_>]) -> Result<()> {
        let ports: Vec<Value> = ports
            .iter()
            .map(|(name, port, target)| {
                json!({ "name": name, "port": port, "targetPort": target, "protocol": "UDP" })
            })
            .collect();
        self.put(&json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "namespace": name.0, "name": format!("{}-udp", name.1) },
            "spec": {
                "clusterIP": vips.first(), "clusterIPs": vips, "ports": ports, "selector": { "app": name.1 },
            },
        }))
    }

    /// A Service and its slices, one for each family.
    pub fn service(&self, spec: &ServiceSpec<'_>) -> Result<()> {
        let ports: Vec<Value> = spec.ports.iter().map(|(name, port, target)| {
            json!({ "name": name, "port": port, "targetPort": target, "protocol": "TCP" })
        }).collect();
        let first = spec.vips.first().map_or("None", String::as_str);
        let all = if spec.vips.is_empty() { vec!["None".to_owned()] } else { spec.vips.clone() };
        let mut object = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "namespace": spec.namespace, "name": spec.name },
            "spec": { "clusterIP": first, "clusterIPs": all, "ports": ports, "selector": { "app": spec.name } },
        });
        if let Value::Object(more) = &spec.more {
            for (key, value) in more {
                object["spec"][key] = value.clone();
            }
        }
        self.slice(spec, "IPv4")?;
        self.slice(spec, "IPv6")?;
        self.put(&object)
    }

    fn slice(&self, spec: &ServiceSpec<'_>, family: &str) -> Result<()> {
        let endpoints: Vec<Value> = spec
            .backends
            .iter()
            .map(|(pod, ready)| {
                let address = if family == "IPv4" { pod.v4.to_string() } else { pod.v6.to_string() };
                json!({
                    "addresses": [address],
                    "nodeName": pod.node,
                    "conditions": { "ready": ready, "serving": ready, "terminating": false },
                    "targetRef": {
                        "kind": "Pod", "namespace": pod.spec.namespace, "name": pod.spec.name, "uid": pod.uid,
                    },
                })
            })
            .collect();
        let ports: Vec<Value> = spec
            .ports
            .iter()
            .map(|(name, _, target)| json!({ "name": name, "port": target, "protocol": "TCP" }))
            .collect();
        self.put(&json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "namespace": spec.namespace,
                "name": format!("{}-{}", spec.name, family.to_lowercase()),
                "labels": { "kubernetes.io/service-name": spec.name },
            },
            "addressType": family, "endpoints": endpoints, "ports": ports,
        }))
    }

    /// An AuthorizationPolicy on the pods with `app=SELECTED` (empty: the whole namespace).
    pub fn policy(
        &self,
        (namespace, name): (&str, &str),
        selected: &str,
        action: &str,
        rules: Value,
    ) -> Result<()> {
        let mut spec = json!({ "action": action, "rules": rules });
        if !selected.is_empty() {
            spec["selector"] = json!({ "matchLabels": { "app": selected } });
        }
        self.put(&json!({
            "apiVersion": "ferromesh.io/v1alpha1", "kind": "AuthorizationPolicy",
            "metadata": { "namespace": namespace, "name": name }, "spec": spec,
        }))
    }

    /// A MeshConfig of one namespace.
    pub fn mesh_config(&self, namespace: &str, spec: Value) -> Result<()> {
        self.put(&json!({
            "apiVersion": "ferromesh.io/v1alpha1", "kind": "MeshConfig",
            "metadata": { "namespace": namespace, "name": "default" }, "spec": spec,
        }))
    }
}

fn file_name(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let kind = text(&object["kind"]).to_lowercase();
    let (namespace, name) = (text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]));
    format!("{kind}-{namespace}-{name}.yaml")
}

/// A rule that a principal of `namespace` with service account `account` matches on these UDP ports.
pub fn udp_from_account(namespace: &str, account: &str, ports: &[u16]) -> Value {
    let mut rules = from_account(namespace, account);
    rules[0]["to"] = json!([{ "operation": { "protocol": "UDP", "ports": ports } }]);
    rules
}

/// A rule that a principal of `namespace` with service account `account` matches.
pub fn from_account(namespace: &str, account: &str) -> Value {
    json!([{ "from": [{ "source": { "principals": [format!("cluster.local/ns/{namespace}/sa/{account}")] } }] }])
}
