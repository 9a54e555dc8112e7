//! The custom resources: what is taken, what is refused and how it is named, and that the schema holds no default.

use kube::CustomResourceExt;
use mesh_core::model::{self as core, Action, MtlsMode, StringMatch};
use serde_json::{Value, json};

use super::*;

fn policy(spec: Value) -> Result<core::AuthorizationPolicy, String> {
    let object = json!({
        "apiVersion": "ferromesh.io/v1alpha1", "kind": "AuthorizationPolicy",
        "metadata": { "namespace": "shop", "name": "db" }, "spec": spec,
    });
    let decoded: AuthorizationPolicy = serde_json::from_value(object).map_err(|e| e.to_string())?;
    core::AuthorizationPolicy::try_from(&decoded).map_err(|e| e.to_string())
}

#[test]
fn a_policy_becomes_the_core_s_policy() {
    let got = policy(json!({
        "selector": { "matchLabels": { "app": "db" } },
        "rules": [{
            "from": [{ "source": { "principals": ["cluster.local/ns/shop/sa/api"], "ipBlocks": ["10.1.0.0/16"] } }],
            "to": [{ "operation": { "ports": ["5432", 6432] } }],
        }],
    }))
    .unwrap();
    assert_eq!(got.action, Action::Allow);
    assert_eq!(got.rules[0].from[0].principals, [StringMatch::Exact("cluster.local/ns/shop/sa/api".into())]);
    assert_eq!(got.rules[0].to[0].ports, [5432, 6432]);
    assert_eq!(policy(json!({ "action": "DENY" })).unwrap().rules, []);
}

#[test]
fn what_cannot_be_honoured_is_refused_by_path() {
    let cases = [
        (json!({ "rulez": [] }), "rulez"),
        (json!({ "action": "PERMIT" }), "PERMIT"),
        (json!({ "rules": [{ "from": [] }] }), "spec.rules[0].from: is an empty list"),
        (
            json!({ "rules": [{ "from": [{ "source": {} }] }] }),
            "spec.rules[0].from[0].source: has no condition",
        ),
        (
            json!({ "rules": [{ "from": [{ "source": { "ipBlocks": ["x"] } }] }] }),
            "spec.rules[0].from[0].source.ipBlocks[0]",
        ),
        (json!({ "rules": [{ "to": [{ "operation": { "ports": ["http"] } }] }] }), "is not a port"),
        (json!({ "rules": [{ "to": [{ "operation": { "ports": [70000] } }] }] }), "70000 is not a port"),
        (json!({ "rules": [{ "to": [{ "operation": { "metods": ["GET"] } }] }] }), "metods"),
    ];
    for (spec, want) in cases {
        let error = policy(spec.clone()).unwrap_err();
        assert!(error.contains(want), "{spec}: {error}");
    }
}

/// Rules with conditions that only HTTP could answer, and what L4 makes of them.
fn with_http(action: &str) -> (Vec<core::Rule>, Vec<String>) {
    let rules = json!([
        { "to": [{ "operation": { "ports": [80], "methods": ["GET"] } }, { "operation": { "ports": [81] } }] },
        { "from": [{ "source": { "namespaces": ["a"], "requestPrincipals": ["*"] } }] },
        { "to": [{ "operation": { "ports": [82] } }], "when": [{ "key": "request.headers[x]", "values": ["y"] }] },
        { "to": [{ "operation": { "paths": ["/admin"] } }] },
    ]);
    let object = json!({
        "metadata": { "namespace": "shop", "name": "p" }, "spec": { "action": action, "rules": rules },
    });
    let decoded: AuthorizationPolicy = serde_json::from_value(object).unwrap();
    (core::AuthorizationPolicy::try_from(&decoded).unwrap().rules, decoded.unenforced_fields())
}

#[test]
fn an_http_condition_makes_a_deny_wider_and_never_narrower() {
    let (rules, fields) = with_http("DENY");
    assert_eq!(
        fields,
        [
            "spec.rules[0].to[0].operation.methods",
            "spec.rules[1].from[0].source.requestPrincipals",
            "spec.rules[2].when",
            "spec.rules[3].to[0].operation.paths",
        ]
    );
    let ports = |rule: &core::Rule| rule.to.iter().map(|o| o.ports.clone()).collect::<Vec<_>>();
    assert_eq!(rules.len(), 4);
    assert_eq!(ports(&rules[0]), [[80], [81]]);
    assert_eq!(rules[1].from[0].namespaces, [StringMatch::Exact("a".into())]);
    assert_eq!(ports(&rules[2]), [[82]]);
    assert_eq!(rules[3].to, [core::Operation::default()], "any request is denied");
}

#[test]
fn an_http_condition_makes_an_allow_or_an_audit_narrower_and_never_wider() {
    for action in ["ALLOW", "AUDIT"] {
        let (rules, _) = with_http(action);
        let only = core::Operation { ports: vec![81], ..core::Operation::default() };
        assert_eq!(rules, [core::Rule { from: vec![], to: vec![only] }], "{action}");
    }
}

#[test]
fn a_mesh_config_keeps_absent_fields_absent() {
    let object =
        json!({ "metadata": { "name": "x" }, "spec": { "mtls": { "ports": { "8080": "PERMISSIVE" } } } });
    let config: MeshConfig = serde_json::from_value(object).unwrap();
    let settings = MeshSettings::try_from(&config).unwrap();
    assert_eq!((settings.mode, settings.allow_opt_out), (None, None));
    assert_eq!(settings.ports.get(&8080), Some(&MtlsMode::Permissive));
    let again = serde_json::to_value(&config.spec).unwrap();
    assert_eq!(again, json!({ "mtls": { "ports": { "8080": "PERMISSIVE" } } }));
}

fn entry(spec: Value) -> Result<DeclaredUnit, String> {
    let object = json!({
        "apiVersion": "ferromesh.io/v1alpha1", "kind": "WorkloadEntry",
        "metadata": { "namespace": "shop", "name": "db" }, "spec": spec,
    });
    let decoded: WorkloadEntry = serde_json::from_value(object).map_err(|e| e.to_string())?;
    DeclaredUnit::try_from(&decoded).map_err(|e| e.to_string())
}

#[test]
fn a_workload_entry_names_a_node_and_a_unit_and_perhaps_a_service_account() {
    let got = entry(json!({ "node": "host-1", "unit": "db@a.service", "serviceAccount": "db" })).unwrap();
    assert_eq!((&*got.node, &*got.unit, got.service_account.as_str()), ("host-1", "db@a.service", "db"));
    let got = entry(json!({ "node": "host-1.example", "unit": "db.service" })).unwrap();
    assert_eq!(got.service_account, "default");
}

#[test]
fn a_workload_entry_that_names_no_unit_of_a_node_is_refused_by_path() {
    let cases = [
        (json!({ "unit": "db.service" }), "`node`"),
        (json!({ "node": "host-1" }), "`unit`"),
        (json!({ "node": "host-1", "unit": "db.service", "port": 1 }), "port"),
        (json!({ "node": "Host_1", "unit": "db.service" }), "spec.node: \"Host_1\" is not a DNS subdomain"),
        (json!({ "node": "", "unit": "db.service" }), "spec.node"),
        (json!({ "node": "host-1", "unit": "db" }), "spec.unit: \"db\" does not end in .service"),
        (json!({ "node": "host-1", "unit": "../db.service" }), "spec.unit"),
        (json!({ "node": "host-1", "unit": "db@.service" }), "spec.unit: \"db@.service\" is a template"),
        (json!({ "node": "host-1", "unit": "db.service", "serviceAccount": "a/b" }), "spec.serviceAccount"),
        (json!({ "node": "host-1", "unit": "db.service", "serviceAccount": "" }), "spec.serviceAccount"),
    ];
    for (spec, want) in cases {
        let error = entry(spec.clone()).unwrap_err();
        assert!(error.contains(want), "{spec}: {error}");
    }
}

#[test]
fn schemas_hold_no_defaults_and_are_structural() {
    for crd in [AuthorizationPolicy::crd(), MeshConfig::crd(), WorkloadEntry::crd()] {
        let text = serde_json::to_string(&crd).unwrap();
        assert!(!text.contains("\"default\""), "{text}");
        assert!(!text.contains("\"additionalProperties\":false"), "{text}");
    }
}

#[test]
fn a_rule_for_udp_names_its_ports_and_asks_nothing_that_datagrams_cannot_answer() {
    let udp = |operation: Value, more: Value, action: &str| {
        let mut rule = json!({ "to": [{ "operation": operation }] });
        if let (Value::Object(rule), Value::Object(more)) = (&mut rule, more) {
            rule.extend(more);
        }
        policy(json!({ "action": action, "rules": [rule] }))
    };
    let named = json!({ "protocol": "UDP", "ports": [5300] });
    let got = udp(named.clone(), json!({}), "ALLOW").unwrap();
    assert_eq!(got.rules[0].to[0].protocol, core::Protocol::Udp);
    assert_eq!(got.udp_ports().collect::<Vec<_>>(), [5300]);
    let tcp = udp(json!({ "protocol": "TCP", "ports": [5300] }), json!({}), "ALLOW").unwrap();
    assert_eq!((tcp.rules[0].to[0].protocol, tcp.udp_ports().count()), (core::Protocol::Tcp, 0));
    let jwt = json!({ "from": [{ "source": { "requestPrincipals": ["*"] } }] });
    for (operation, more, action, want) in [
        (json!({ "protocol": "TCP" }), json!({}), "ALLOW", "has no condition"),
        (json!({ "protocol": "UDP" }), json!({}), "ALLOW", "names its UDP ports"),
        (json!({ "protocol": "UDP", "notPorts": [1] }), json!({}), "DENY", "names its UDP ports"),
        (
            json!({ "protocol": "UDP", "ports": [1], "notPorts": [2] }),
            json!({}),
            "DENY",
            "names its UDP ports",
        ),
        (
            json!({ "protocol": "UDP", "ports": [1], "methods": ["GET"] }),
            json!({}),
            "ALLOW",
            "conditions of HTTP",
        ),
        (named.clone(), json!({ "when": [{ "key": "x" }] }), "ALLOW", "UDP cannot answer"),
        (named.clone(), jwt, "ALLOW", "UDP cannot answer"),
        (named, json!({}), "AUDIT", "no say in UDP"),
        (json!({ "protocol": "SCTP", "ports": [1] }), json!({}), "ALLOW", "SCTP"),
    ] {
        let error = udp(operation.clone(), more, action).unwrap_err();
        assert!(error.contains(want), "{operation} {action}: {error}");
    }
}
