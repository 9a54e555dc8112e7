//! The ground of scenarios with kubelets: two nodes and the namespace `shop`, pods and a Deployment `api` behind a service in
//! it, and asking it. In: a mesh. Out: objects as a user applies them, pods as their kubelets run them, and what they hear.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use mesh_tests::access_log::{field, names};
use mesh_tests::kube::Cluster;
use mesh_tests::mesh::{Mesh, Options};
use mesh_tests::poll;
use mesh_tests::world::{Pod, Process};
use serde_json::{Value, json};

pub(crate) const SHOP: &str = "shop";
pub(crate) const VIP: &str = "10.99.0.10";
pub(crate) const ECHO: u16 = 7000;
/// How long the controllers and a kubelet may take with a few pods.
pub(crate) const MADE: Duration = Duration::from_secs(60);

pub(crate) fn cluster(mesh: &Mesh) -> Result<&Cluster> {
    mesh.cluster.as_ref().ok_or_else(|| anyhow!("the mesh has no API server"))
}

/// Two nodes with kubelets and agents, and the namespace `shop`, enrolled or not.
pub(crate) fn open(enrolled: bool) -> Result<Mesh> {
    let mesh = Mesh::start_with(Options { kubelets: true, ..Options::default() })?;
    shop(&mesh, enrolled)?;
    Ok(mesh)
}

/// Makes the namespace `shop`.
pub(crate) fn shop(mesh: &Mesh, enrolled: bool) -> Result<()> {
    namespace(mesh, SHOP, enrolled)
}

/// Makes a namespace.
pub(crate) fn namespace(mesh: &Mesh, name: &str, enrolled: bool) -> Result<()> {
    let labels = if enrolled { json!({ "ferromesh.io/enrolled": "true" }) } else { json!({}) };
    let namespace =
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } });
    cluster(mesh)?.apply(&namespace)?.success().map(drop)
}

/// What runs on a node as a service account that has the app's name.
pub(crate) fn template(app: &str, node: u8, command: &[&str]) -> Value {
    json!({
        "metadata": { "labels": { "app": app } },
        "spec": {
            "nodeName": format!("n{node}"), "serviceAccountName": app,
            "containers": [{ "name": "main", "image": "unmodified", "command": command }],
        },
    })
}

/// A pod of `shop` that does nothing by itself.
pub(crate) fn pod(cluster: &Cluster, app: &str, node: u8) -> Result<()> {
    pod_with(cluster, (SHOP, app), app, node, &[])
}

/// A pod that has another name than its app.
pub(crate) fn pod_with(
    cluster: &Cluster,
    (namespace, name): (&str, &str),
    app: &str,
    node: u8,
    command: &[&str],
) -> Result<()> {
    cluster.service_account(namespace, app)?;
    let mut pod = template(app, node, command);
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    pod["metadata"]["namespace"] = json!(namespace);
    pod["metadata"]["name"] = json!(name);
    cluster.apply(&pod)?.success().map(drop)
}

/// A Deployment of echo servers, ready when they listen, with a service in front.
pub(crate) fn api(cluster: &Cluster, replicas: u32) -> Result<()> {
    cluster.service_account(SHOP, "api")?;
    let mut template = template("api", 2, &["peer", "echo", "--listen", &format!("0.0.0.0:{ECHO}")]);
    let container = &mut template["spec"]["containers"][0];
    container["readinessProbe"] = json!({ "tcpSocket": { "port": ECHO }, "periodSeconds": 1 });
    container["lifecycle"] = json!({ "preStop": { "sleep": { "seconds": 3 } } });
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "namespace": SHOP, "name": "api" },
        "spec": {
            "replicas": replicas, "selector": { "matchLabels": { "app": "api" } }, "template": template,
            "strategy": { "rollingUpdate": { "maxUnavailable": 0, "maxSurge": 1 } },
        },
    });
    cluster.apply(&deployment)?.success()?;
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "namespace": SHOP, "name": "api" },
        "spec": {
            "clusterIP": VIP, "selector": { "app": "api" },
            "ports": [{ "name": "main", "port": ECHO, "protocol": "TCP" }],
        },
    });
    cluster.apply(&service)?.success().map(drop)
}

/// The pod `name` of `shop` as its kubelet runs it.
pub(crate) fn running(mesh: &Mesh, node: u8, name: &str) -> Result<Pod> {
    running_in(mesh, node, SHOP, name)
}

/// The same, of any namespace.
pub(crate) fn running_in(mesh: &Mesh, node: u8, namespace: &str, name: &str) -> Result<Pod> {
    let kubelet = &mesh.kubelets[usize::from(node) - 1];
    poll::until(&format!("{name} to run"), MADE, || kubelet.pod(namespace, name)).with_context(|| mesh.logs())
}

/// The names of an app's pods that are not being deleted.
pub(crate) fn pods_of(cluster: &Cluster, app: &str) -> Result<Vec<String>> {
    let select = format!("app={app}");
    let list = cluster.kubectl(&["-n", SHOP, "get", "pods", "-l", &select, "-o", "json"])?.json()?;
    let live = list["items"].as_array().into_iter().flatten();
    let live = live.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    Ok(live.filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned)).collect())
}

/// Waits until the servers are ready, and the Service's EndpointSlices say so: their controller may take a second longer than
/// the Deployment's (it tries again after a second when its cache was behind), and until then nobody serves.
pub(crate) fn rolled_out(mesh: &Mesh) -> Result<()> {
    let cluster = cluster(mesh)?;
    let status = ["-n", SHOP, "rollout", "status", "deployment/api", "--timeout=55s"];
    let rolled = cluster.kubectl(&status)?.success().map(drop);
    rolled.with_context(|| mesh.kubelets.iter().map(|k| k.trouble()).collect::<Vec<_>>().join("\n"))?;
    poll::until("the endpoints to be ready", MADE, || {
        let wanted = cluster.get("deployment", SHOP, "api")?["spec"]["replicas"].as_u64();
        let of_service =
            ["-n", SHOP, "get", "endpointslices", "-l", "kubernetes.io/service-name=api", "-o", "json"];
        let slices: Value = serde_json::from_str(&cluster.kubectl(&of_service)?.success()?)?;
        let slices = slices["items"].as_array().into_iter().flatten();
        let endpoints = slices.flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
        let ready = endpoints.filter(|endpoint| endpoint["conditions"]["ready"] == true).count() as u64;
        ensure!(Some(ready) >= wanted, "{ready} of {wanted:?} are ready");
        Ok(())
    })
}

pub(crate) fn ask(from: &Pod) -> Result<Value> {
    from.peer(&["talk", "--to", &format!("{VIP}:{ECHO}"), "--send", "hello", "--half-close"])
}

pub(crate) fn is_echo(told: &Value) -> bool {
    told["received"] == "hello" && told["end"] == "eof"
}

pub(crate) fn until_asking(mesh: &Mesh, from: &Pod, works: bool) -> Result<Value> {
    mesh.in_force(&format!("asking to be {works}"), || {
        let told = ask(from)?;
        if is_echo(&told) == works { Ok(told) } else { Err(anyhow!("{told}")) }
    })
}

/// Who the server's agent says has asked from `client`.
pub(crate) fn source(mesh: &Mesh, client: &Value) -> Result<String> {
    let client = client["getsockname"].as_str().unwrap_or_default();
    let record = mesh.record(2, &[(names::CLIENT, client), (names::REPORTER, names::DESTINATION)])?;
    Ok(field(&record, names::SOURCE_ID))
}

/// The ticks so far that did not work.
pub(crate) fn failed(ticker: &Process) -> Vec<String> {
    ticker.stdout().lines().filter(|tick| !tick.contains("\"ok\"")).map(str::to_owned).collect()
}
