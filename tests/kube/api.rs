//! What the API server makes of the custom resources, and what the controller may do there.

use anyhow::{Result, ensure};
use mesh_tests::kube::{Cluster, User};
use mesh_tests::world::World;
use serde_json::{Value, json};

fn policy(name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "ferromesh.io/v1alpha1", "kind": "AuthorizationPolicy",
        "metadata": { "namespace": "default", "name": name }, "spec": spec,
    })
}

fn config(spec: Value) -> Value {
    json!({
        "apiVersion": "ferromesh.io/v1alpha1", "kind": "MeshConfig",
        "metadata": { "namespace": "default", "name": "c" }, "spec": spec,
    })
}

fn entry(spec: Value) -> Value {
    json!({
        "apiVersion": "ferromesh.io/v1alpha1", "kind": "WorkloadEntry",
        "metadata": { "namespace": "default", "name": "e" }, "spec": spec,
    })
}

/// Entries that name no unit of a node, and what is said of each.
fn bad_entries() -> [(Value, &'static str); 7] {
    [
        (entry(json!({ "node": "host-1" })), "spec.unit"),
        (entry(json!({ "node": "Host_1", "unit": "db.service" })), "a node's name is a DNS subdomain"),
        (entry(json!({ "node": "host-1", "unit": "db.socket" })), "with .service at the end"),
        (
            entry(json!({ "node": "host-1", "unit": "../db.service" })),
            "a unit is named as systemctl shows it",
        ),
        (entry(json!({ "node": "host-1", "unit": "db@.service" })), "a template with its instance"),
        (
            entry(json!({ "node": "host-1", "unit": "db.service", "serviceAccount": "a/b" })),
            "a service account's name is a DNS subdomain",
        ),
        (entry(json!({ "node": "host-1", "unit": "db.service", "port": 1 })), "unknown field"),
    ]
}

#[test]
fn the_api_server_refuses_what_makes_no_sense_and_explains_what_does() -> Result<()> {
    let world = World::with_nodes(0)?;
    let cluster = Cluster::start(&world)?;
    let from = |source: Value| policy("bad", json!({ "rules": [{ "from": [{ "source": source }] }] }));
    let to = |operation: Value| policy("bad", json!({ "rules": [{ "to": [{ "operation": operation }] }] }));
    let cases = [
        (to(json!({ "ports": [0] })), "greater than or equal to 1"),
        (to(json!({ "ports": [65536] })), "less than or equal to 65535"),
        (to(json!({ "ports": ["http"] })), "ports[0]"),
        (to(json!({})), "an operation needs a condition"),
        (from(json!({})), "a source needs a condition"),
        (from(json!({ "principals": [] })), "at least 1 items"),
        (from(json!({ "principals": ["spiffe://cluster.local/ns/a/sa/b"] })), "principals[0]"),
        (from(json!({ "namespaces": ["a*b"] })), "namespaces[0]"),
        (from(json!({ "ipBlocks": ["shop"] })), "ipBlocks[0]"),
        (from(json!({ "principal": ["x"] })), "unknown field"),
        (policy("bad", json!({ "action": "REFUSE" })), "Unsupported value"),
        (config(json!({ "mtls": { "mode": "strict" } })), "Unsupported value"),
        (config(json!({ "mtls": { "ports": { "http": "STRICT" } } })), "the keys are ports"),
        (config(json!({ "mtls": { "ports": { "65536": "STRICT" } } })), "the keys are ports"),
        (config(json!({ "agentLostAfter": "5 days" })), "agentLostAfter"),
    ];
    for (object, want) in cases.into_iter().chain(bad_entries()) {
        let answer = cluster.apply(&object)?;
        ensure!(!answer.ok() && answer.stderr.contains(want), "{object}: {answer:?}");
    }
    let spec = json!({
        "action": "DENY", "selector": { "matchLabels": { "app": "db" } },
        "rules": [{
            "from": [{ "source": { "principals": ["*"], "ipBlocks": ["10.0.0.0/8", "fd00::1"] } }],
            "to": [{ "operation": { "ports": [5432, "6432"], "notPorts": [1] } }],
        }],
    });
    cluster.apply(&policy("db", spec.clone()))?.success()?;
    let held = cluster.get("fap", "default", "db")?;
    ensure!(held["spec"] == spec, "what was applied is not what is read back: {held}");
    let spec = json!({ "node": "host-1", "unit": r"a\x2db@1.service", "serviceAccount": "db" });
    cluster.apply(&entry(spec.clone()))?.success()?;
    let held = cluster.get("fwe", "default", "e")?;
    ensure!(held["spec"] == spec, "what was applied is not what is read back: {held}");
    let shown = cluster.kubectl(&["-n", "default", "get", "ferromesh"])?.success()?;
    for column in ["ACTION", "ACCEPTED", "ENFORCED", "AGE", "DENY", "NODE", "UNIT", "host-1"] {
        ensure!(shown.contains(column), "no {column} in {shown}");
    }
    let field = "authorizationpolicy.spec.rules.from.source.principals";
    let explained = cluster.kubectl(&["explain", field])?.success()?;
    ensure!(explained.contains("SPIFFE IDs without"), "{explained}");
    let explained = cluster.kubectl(&["explain", "workloadentry.spec.unit"])?.success()?;
    ensure!(explained.contains("whose cgroup is the workload"), "{explained}");
    Ok(())
}

#[test]
fn the_controller_s_account_may_read_the_mesh_and_write_conditions_and_nothing_else() -> Result<()> {
    let world = World::with_nodes(0)?;
    let cluster = Cluster::start(&world)?;
    let may = |verb: &str, what: &str, namespace: &str| -> Result<bool> {
        let mut arguments = vec!["auth", "can-i", verb, "-n", namespace];
        arguments.extend(what.split(' '));
        let answer = cluster.kubectl_as(User::Controller, &arguments)?;
        Ok(answer.stdout.trim() == "yes")
    };
    for (verb, what, namespace, wanted) in [
        ("list", "pods", "shop", true),
        ("watch", "endpointslices.discovery.k8s.io", "shop", true),
        ("patch", "authorizationpolicies.ferromesh.io --subresource=status", "shop", true),
        ("update", "leases.coordination.k8s.io", "ferromesh-system", true),
        ("update", "leases.coordination.k8s.io", "kube-system", false),
        ("watch", "workloadentries.ferromesh.io", "shop", true),
        ("patch", "workloadentries.ferromesh.io --subresource=status", "shop", true),
        ("patch", "workloadentries.ferromesh.io", "shop", false),
        ("patch", "authorizationpolicies.ferromesh.io", "shop", false),
        ("patch", "pods", "shop", false),
        ("delete", "pods", "shop", false),
        ("list", "secrets", "shop", false),
        ("get", "secrets", "ferromesh-system", false),
        ("get", "secrets/ferromesh-ca", "ferromesh-system", true),
        // When the root rotates.
        ("update", "secrets/ferromesh-ca", "ferromesh-system", true),
        ("update", "secrets/another", "ferromesh-system", false),
        ("get", "secrets/another", "ferromesh-system", false),
        ("delete", "secrets/ferromesh-ca", "ferromesh-system", false),
        // Its own Deployment, for the uid in an event's reference.
        ("get", "deployments.apps/ferromesh-controller", "ferromesh-system", true),
        ("patch", "deployments.apps/ferromesh-controller", "ferromesh-system", false),
        ("get", "deployments.apps/another", "ferromesh-system", false),
        ("patch", "configmaps/ferromesh-root", "ferromesh-system", true),
        ("patch", "configmaps/another", "ferromesh-system", false),
        ("create", "configmaps", "shop", false),
        ("create", "serviceaccounts --subresource=token", "shop", false),
        ("impersonate", "users", "shop", false),
    ] {
        ensure!(may(verb, what, namespace)? == wanted, "{verb} {what} in {namespace} is not {wanted}");
    }
    Ok(())
}
