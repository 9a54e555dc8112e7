//! What manifests mean: enrolment, owners, modes, policies, services, and what is said of those that cannot be honoured.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::common::{changes, compiled, index_of, namespace, pod, status, trust_domain};
use mesh_api::crd::MeshSettings;
use mesh_controller::compile::{Compiled, Reach, Target, compile, merge};
use mesh_controller::object::Object;
use mesh_controller::object::{Kind, Name, ObjectRef, Origin};
use mesh_controller::watch::{Batch, Change};
use mesh_core::model::{
    Affinity, ConnectMode, Endpoint, EndpointHealth, MtlsMode, Service, ServiceName, TrafficScope, Workload,
    WorkloadUid,
};
use proptest::prelude::*;

fn workload<'a>(compiled: &'a Compiled, name: &str) -> &'a Workload {
    compiled.workloads.get(&WorkloadUid(format!("uid-{name}").into())).unwrap_or_else(|| panic!("no {name}"))
}

fn service<'a>(compiled: &'a Compiled, name: &str) -> &'a Service {
    let name = ServiceName { namespace: "shop".into(), name: name.into() };
    compiled.services.get(&name).expect("the service")
}

fn config(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: ferromesh.io/v1alpha1\nkind: MeshConfig\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

fn policy(namespace: &str, name: &str, spec: &str) -> String {
    config(namespace, name, spec).replace("MeshConfig", "AuthorizationPolicy")
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn a_namespace_enrols_and_a_pod_opts_out_where_it_may() {
    let out = pod("out", "n", "10.0.0.2").replace("app: out", "app: out, ferromesh.io/enrolled: \"false\"");
    let host = pod("host", "n", "10.9.0.1").replace("nodeName: n", "nodeName: n\n  hostNetwork: true");
    let base = [namespace("shop", true), pod("in", "n", "10.0.0.1"), out, host].concat();

    let closed = compiled(&base);
    assert!(workload(&closed, "in").enrolled && workload(&closed, "out").enrolled);
    assert!(status(&closed.statuses, "OptOutNotAllowed").message.contains("shop/out"));
    assert!(!closed.workloads.contains_key(&WorkloadUid("uid-host".into())), "a pod on the node's network");

    let mesh = config("ferromesh-system", "mesh", "{allowOptOut: true}");
    assert!(!workload(&compiled(&format!("{base}{mesh}")), "out").enrolled);
    // The namespace is more specific than the mesh; two of one reach that disagree mean no.
    let forbids = config("shop", "a", "{allowOptOut: false}");
    assert!(workload(&compiled(&format!("{base}{mesh}{forbids}")), "out").enrolled);
    let allows = config("shop", "b", "{allowOptOut: true}");
    assert!(workload(&compiled(&format!("{base}{mesh}{forbids}{allows}")), "out").enrolled);
    assert!(!workload(&compiled(&base.replace("\"true\"", "\"false\"")), "in").enrolled);
}

#[test]
fn a_lost_agent_opens_a_pod_only_where_the_owner_says_so_and_nothing_is_strict() {
    let base = [namespace("shop", true), pod("api", "n", "10.0.0.1")].concat();
    let after = |more: &str| {
        let compiled = compiled(&format!("{base}{more}"));
        let api = workload(&compiled, "api");
        (api.agent_lost_after.map(|after| after.as_secs()), api.opens_after().map(|after| after.as_secs()))
    };
    assert_eq!(after(""), (None, None));
    let mesh = config("ferromesh-system", "mesh", "{agentLostAfter: 5m}");
    assert_eq!(after(&mesh), (Some(300), Some(300)));
    let never = config("shop", "a", "{agentLostAfter: never}");
    assert_eq!(after(&format!("{mesh}{never}")), (None, None));
    // Two of one reach that disagree: the longer.
    let (short, long) =
        (config("shop", "b", "{agentLostAfter: 30s}"), config("shop", "c", "{agentLostAfter: 1h}"));
    assert_eq!(after(&format!("{mesh}{short}{long}")), (Some(3600), Some(3600)));
    assert_eq!(after(&format!("{mesh}{short}{never}")), (None, None));
    // One strict port closes the pod.
    let strict = config("shop", "d", "{mtls: {ports: {'5432': STRICT}}}");
    assert_eq!(after(&format!("{mesh}{strict}")), (Some(300), None));
}

#[test]
fn the_most_specific_mesh_config_says_when_connect_returns() {
    let base = [namespace("shop", true), pod("api", "n", "10.0.0.1")].concat();
    let connect = |more: &str| workload(&compiled(&format!("{base}{more}")), "api").connect;
    assert_eq!(connect(""), None);
    let mesh = config("ferromesh-system", "mesh", "{connect: Eager}");
    assert_eq!(connect(&mesh), Some(ConnectMode::Eager));
    let own = config("shop", "a", "{selector: {matchLabels: {app: api}}, connect: Honest}");
    assert_eq!(connect(&format!("{mesh}{own}")), Some(ConnectMode::Honest));
    let other = config("shop", "a", "{selector: {matchLabels: {app: web}}, connect: Honest}");
    assert_eq!(connect(&format!("{mesh}{other}")), Some(ConnectMode::Eager));
    // Two of one reach that disagree: honest.
    let (eager, honest) = (config("shop", "b", "{connect: Eager}"), config("shop", "c", "{connect: Honest}"));
    assert_eq!(connect(&format!("{mesh}{eager}{honest}")), Some(ConnectMode::Honest));
}

#[test]
fn a_workload_is_named_by_its_top_owner() {
    let owned = |kind: &str, name: &str, hash: &str| {
        let reference = format!(
            "uid: uid-x\n  ownerReferences: [{{apiVersion: v1, kind: {kind}, name: {name}, uid: u, controller: true}}]"
        );
        let yaml = pod("x", "n", "10.0.0.1").replace("uid: uid-x", &reference);
        let compiled = compiled(&yaml.replace("app: x", &format!("app: x, pod-template-hash: \"{hash}\"")));
        let owner = workload(&compiled, "x").owner.clone();
        format!("{}/{}", owner.kind, owner.name)
    };
    assert_eq!(owned("ReplicaSet", "web-6d4f", "6d4f"), "Deployment/web");
    assert_eq!(owned("ReplicaSet", "web-6d4f", "other"), "ReplicaSet/web-6d4f");
    assert_eq!(owned("Job", "report-28123456", ""), "CronJob/report");
    assert_eq!(owned("Job", "once", ""), "Job/once");
    assert_eq!(owned("StatefulSet", "db", ""), "StatefulSet/db");
    let bare = compiled(&pod("x", "n", "10.0.0.1"));
    assert_eq!(&*workload(&bare, "x").owner.kind, "Pod");
}

#[test]
fn the_most_specific_mode_wins() {
    let base = [namespace("shop", true), pod("x", "n", "10.0.0.1")].concat();
    let modes =
        |configs: &[String]| workload(&compiled(&format!("{base}{}", configs.concat())), "x").mtls.clone();
    let mesh = config("ferromesh-system", "m", "{mtls: {mode: STRICT, ports: {\"81\": PERMISSIVE}}}");
    let space = config("shop", "n", "{mtls: {mode: PERMISSIVE}}");
    let chosen = config("shop", "w", "{selector: {matchLabels: {app: x}}, mtls: {ports: {\"82\": STRICT}}}");
    let other = config("shop", "o", "{selector: {matchLabels: {app: y}}, mtls: {mode: STRICT}}");
    let elsewhere = config("bank", "b", "{mtls: {mode: STRICT}}");

    assert_eq!(modes(&[]).default, MtlsMode::Permissive);
    assert_eq!(modes(std::slice::from_ref(&mesh)).default, MtlsMode::Strict);
    assert_eq!(modes(std::slice::from_ref(&mesh)).of(81), MtlsMode::Permissive);
    let all = modes(&[mesh.clone(), space.clone(), chosen, other, elsewhere]);
    assert_eq!(
        (all.of(80), all.of(81), all.of(82)),
        (MtlsMode::Permissive, MtlsMode::Permissive, MtlsMode::Strict)
    );
    // A tie in one reach is strict.
    let tie = config("shop", "t", "{mtls: {mode: STRICT}}");
    assert_eq!(modes(&[mesh, space, tie]).default, MtlsMode::Strict);
}

#[test]
fn a_mesh_config_that_cannot_be_decoded_counts_as_strict_unless_it_was_good_before() {
    let base = [namespace("shop", true), pod("x", "n", "10.0.0.1")].concat();
    let mut index = index_of(&base);
    let key = ObjectRef { kind: Kind::MeshConfig, name: Name::new("shop", "c") };
    let broken = || Change::Undecodable(key.clone(), Origin::Place("c.yaml:1".into()));
    index.update(Batch { changes: vec![broken()], statuses: vec![] });
    let strict = compile(&index, &trust_domain(), 1, None);
    assert_eq!(workload(&strict, "x").mtls.default, MtlsMode::Strict);
    assert_eq!(status(&strict.statuses, "CountsAsStrict").source.to_string(), "c.yaml:1");

    let good = changes(&config("shop", "c", "{mtls: {mode: PERMISSIVE}}"));
    index.update(Batch { changes: good, statuses: vec![] });
    index.update(Batch { changes: vec![broken()], statuses: vec![] });
    assert_eq!(workload(&compile(&index, &trust_domain(), 2, None), "x").mtls.default, MtlsMode::Permissive);
    index.update(Batch { changes: vec![Change::Delete(key.clone())], statuses: vec![] });
    assert!(index.configs.is_empty());
}

#[test]
fn policies_are_resolved_to_workloads() {
    let yaml = [
        namespace("shop", true),
        pod("x", "n", "10.0.0.1"),
        pod("y", "n", "10.0.0.2"),
        policy("shop", "all", "{}"),
        policy("shop", "only-x", "{selector: {matchLabels: {app: x}}}"),
        policy("ferromesh-system", "mesh", "{action: DENY}"),
        policy("ferromesh-system", "mesh-y", "{selector: {matchLabels: {app: y}}}"),
        policy("bank", "far", "{}"),
        policy("shop", "nobody", "{selector: {matchLabels: {app: z}}}"),
    ];
    let compiled = compiled(&yaml.concat());
    let names =
        |pod: &str| workload(&compiled, pod).policies.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(names("x"), ["ferromesh-system/mesh", "shop/all", "shop/only-x"]);
    assert_eq!(names("y"), ["ferromesh-system/mesh", "ferromesh-system/mesh-y", "shop/all"]);
    let nothing: Vec<_> = compiled.statuses.iter().filter(|s| s.reason == "SelectsNothing").collect();
    assert_eq!(nothing.len(), 2, "{nothing:#?}");
    assert!(nothing.iter().any(|s| s.message.contains("shop/nobody")));

    let unenforced =
        crate::common::compiled(&[pod("x", "n", "10.0.0.1"), policy("shop", "all", "{}")].concat());
    assert!(!status(&unenforced.statuses, "NotEnforced").accepted);
}

#[test]
fn a_policy_says_where_it_is_not_enforced_and_why() {
    let on_node = pod("h", "n", "192.168.0.1").replace("nodeName: n", "nodeName: n\n  hostNetwork: true");
    let yaml = [
        namespace("shop", true),
        pod("x", "n", "10.0.0.1"),
        on_node,
        policy("shop", "all", "{}"),
        policy("shop", "x", "{selector: {matchLabels: {app: x}}}"),
        policy("shop", "h", "{selector: {matchLabels: {app: h}}}"),
        policy("shop", "nobody", "{selector: {matchLabels: {app: z}}}"),
        policy("shop", "http", "{action: DENY, rules: [{to: [{operation: {methods: [POST]}}]}]}"),
    ];
    let compiled = compiled(&yaml.concat());
    let of = |name: &str| -> Vec<_> {
        let subject = format!("AuthorizationPolicy shop/{name}:");
        let own = compiled.statuses.iter().filter(|s| s.message.starts_with(&subject));
        own.map(|s| (s.reason, s.enforced)).collect()
    };
    assert_eq!(of("all"), [("PartlyEnforced", Some(false))]);
    assert_eq!(of("x"), [("Accepted", Some(true))]);
    assert_eq!(of("h"), [("NotEnforced", Some(false))]);
    assert_eq!(of("nobody"), [("SelectsNothing", Some(false))]);
    assert!(of("http").contains(&("HttpNotEnforced", Some(false))), "{:?}", of("http"));
    let host = status(&compiled.statuses, "NotEnforced");
    assert!(host.message.contains("hostNetwork): shop/h"), "{}", host.message);
    let http = status(&compiled.statuses, "HttpNotEnforced");
    assert!(http.message.contains("spec.rules[0].to[0].operation.methods"), "{}", http.message);
    assert!(http.message.contains("more is denied"), "{}", http.message);
}

#[test]
fn an_invalid_edit_keeps_the_last_good_policy() {
    let mut index = index_of(
        &[namespace("shop", true), pod("x", "n", "10.0.0.1"), policy("shop", "p", "{action: DENY}")].concat(),
    );
    // As a source delivers it that does not look into specs.
    let mut changes = changes(&policy("shop", "p", "{action: ALLOW}"));
    let Change::Apply(_, object, _) = &mut changes[0] else { panic!("{changes:?}") };
    let Object::AuthorizationPolicy(bad) = Arc::make_mut(object) else { panic!("{object:?}") };
    bad.spec.rules = serde_json::from_str(r#"[{"to": [{"operation": {}}]}]"#).unwrap();
    index.update(Batch { changes, statuses: vec![] });
    let compiled = compile(&index, &trust_domain(), 2, None);
    assert_eq!(compiled.policies.len(), 1);
    let status = status(&compiled.statuses, "Invalid");
    assert!(status.message.contains("spec.rules[0].to[0].operation"), "{}", status.message);
    assert!(status.message.contains("last good version is kept"));
}

#[test]
fn a_workload_names_the_one_service_behind_each_port() {
    let service = |name: &str, target: u16| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{clusterIP: None, selector: {{app: x}}, ports: [{{port: 80, targetPort: {target}}}]}}\n"
        )
    };
    let yaml = [
        namespace("shop", true),
        pod("x", "n", "10.0.0.1"),
        service("alone", 8080),
        service("one", 9090),
        service("other", 9090),
    ];
    let compiled = compiled(&yaml.concat());
    let served: Vec<_> = workload(&compiled, "x").served.iter().map(|(p, s)| format!("{p} {s}")).collect();
    assert_eq!(served, ["8080 shop/alone"], "a port behind two services has no name");
}

#[test]
fn an_address_has_one_owner_and_the_loser_is_told() {
    let younger = |yaml: String, time: &str| {
        yaml.replace("namespace: shop", &format!("namespace: shop\n  creationTimestamp: \"{time}\""))
    };
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: shop}\nspec: {clusterIP: 10.96.0.1, externalIPs: [10.0.0.1, 10.96.0.2], ports: [{port: 80}]}\n";
    let thief = service
        .replace("name: s", "name: a")
        .replace("10.96.0.1", "10.96.0.3")
        .replace("10.0.0.1, 10.96.0.2", "10.96.0.1");
    let yaml = [
        younger(pod("a", "n", "10.0.0.1"), "2026-01-01T00:00:00Z"),
        younger(pod("b", "n", "10.0.0.1"), "2026-02-01T00:00:00Z"),
        pod("c", "n", "10.0.0.3").replace("uid-c", "uid-b"),
        service.into(),
        thief,
    ];
    let compiled = compiled(&yaml.concat());
    assert_eq!(workload(&compiled, "b").addresses, [ip("10.0.0.1")]);
    assert_eq!(workload(&compiled, "a").addresses, Vec::<IpAddr>::new());
    assert_eq!(
        crate::common::status(&compiled.statuses, "DuplicateUid").message.matches("shop/c").count(),
        1
    );
    assert_eq!(compiled.by_address[&ip("10.0.0.1")], Target::Workload(WorkloadUid("uid-b".into())));
    // A Service cannot draw a pod's or another Service's cluster address to itself.
    assert_eq!(self::service(&compiled, "s").vips, [ip("10.96.0.1"), ip("10.96.0.2")]);
    assert_eq!(self::service(&compiled, "a").vips, [ip("10.96.0.3")]);
    let conflicts: Vec<_> = compiled.statuses.iter().filter(|s| s.reason == "AddressConflict").collect();
    assert_eq!(conflicts.len(), 3, "{conflicts:#?}");
}

const SERVICE: &str = r#"---
apiVersion: v1
kind: Service
metadata: {name: s, namespace: shop}
spec:
  clusterIPs: [10.96.0.1, "fd00::1"]
  externalIPs: [192.0.2.1]
  internalTrafficPolicy: Local
  sessionAffinity: ClientIP
  selector: {app: x}
  ports:
    - {name: http, port: 80, targetPort: web}
    - {name: dns, port: 53, protocol: UDP}
    - {name: raw, port: 81, targetPort: 9000}
status:
  loadBalancer:
    ingress: [{ip: 192.0.2.2}, {ip: 192.0.2.3, ipMode: Proxy}, {hostname: lb.example}]
"#;

fn slice(name: &str, kind: &str, ports: &str, endpoints: &str) -> String {
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, namespace: shop, labels: {{kubernetes.io/service-name: s}}}}\naddressType: {kind}\nports: {ports}\nendpoints: {endpoints}\n"
    )
}

#[test]
fn a_service_is_what_kube_proxy_would_serve() {
    let compiled = compiled(&[SERVICE.into(), pod("x", "n", "10.0.0.1")].concat());
    let service = service(&compiled, "s");
    assert_eq!(service.vips, [ip("10.96.0.1"), ip("fd00::1"), ip("192.0.2.1"), ip("192.0.2.2")]);
    assert_eq!(
        service.ports.iter().map(|p| (&*p.name, p.port)).collect::<Vec<_>>(),
        [("http", 80), ("raw", 81)]
    );
    assert_eq!(service.scope, TrafficScope::NodeLocal);
    assert_eq!(service.affinity, Affinity::ClientIp(Duration::from_secs(10_800)));
    // No slice: the pods that the selector matches, with the named port resolved in each.
    let [endpoint] = &service.endpoints[..] else { panic!("{:?}", service.endpoints) };
    assert_eq!((endpoint.address, &*endpoint.node), (ip("10.0.0.1"), "n"));
    assert_eq!(endpoint.ports, [(80, 8080), (81, 9000)]);
    assert_eq!(endpoint.health, EndpointHealth::Ready);
    assert_eq!(compiled.by_address[&ip("fd00::1")], Target::Service(service.name.clone()));
}

#[test]
fn slices_give_the_endpoints_with_their_conditions_and_port_numbers() {
    let endpoints = "
  - {addresses: [10.0.0.1], conditions: {ready: true}, targetRef: {kind: Pod, name: x}}
  - {addresses: [10.0.0.2], conditions: {ready: false, serving: true, terminating: true}}
  - {addresses: [10.0.0.3], conditions: {ready: false}}
  - {addresses: [10.0.0.4], targetRef: {kind: Pod, name: not-known-yet}}
  - {addresses: [10.9.0.1], nodeName: m, targetRef: {kind: Pod, name: host}}";
    let host = pod("host", "m", "10.9.0.1").replace("nodeName: m", "nodeName: m\n  hostNetwork: true");
    let yaml = [
        SERVICE.into(),
        pod("x", "n", "10.0.0.1"),
        host,
        slice("s-1", "IPv4", "[{name: http, port: 8080}]", endpoints),
        slice(
            "s-2",
            "IPv4",
            "[{name: raw, port: 9001}, {name: dns, port: 53, protocol: UDP}]",
            "[{addresses: [10.0.0.1]}]",
        ),
        slice("s-3", "IPv6", "[{name: http, port: 8081}]", "[{addresses: [\"fd00::9\"]}]"),
        slice("s-4", "FQDN", "[]", "[{addresses: [db.example]}]"),
    ];
    let compiled = compiled(&yaml.concat());
    let all = &service(&compiled, "s").endpoints;
    let at = |address: &str| -> &Endpoint { all.iter().find(|e| e.address == ip(address)).expect(address) };
    assert_eq!(all.len(), 5, "{all:#?}");
    assert_eq!(at("10.0.0.1").ports, [(80, 8080), (81, 9001)]);
    assert_eq!(at("10.0.0.1").workload, Some(WorkloadUid("uid-x".into())));
    assert_eq!(at("10.0.0.2").health, EndpointHealth::ServingTerminating);
    assert_eq!(at("10.0.0.3").health, EndpointHealth::NotReady);
    assert_eq!(at("10.0.0.3").workload, None, "a bare address");
    assert_eq!((&at("10.9.0.1").workload, &*at("10.9.0.1").node), (&None, "m"));
    assert_eq!(at("fd00::9").target_port(80), Some(8081));
    assert!(!all.iter().any(|e| e.address == ip("10.0.0.4")), "its pod could be enrolled");
    assert!(status(&compiled.statuses, "UnsupportedAddressType").message.contains("shop/s-4"));
}

#[test]
fn unready_headless_selectorless_and_external_name_services() {
    let unready = pod("x", "n", "10.0.0.1")
        .replace("phase: Running", "phase: Running\n  conditions: [{type: Ready, status: \"False\"}]");
    let health = |service: &str| {
        let compiled = compiled(&format!("{service}{unready}"));
        self::service(&compiled, "s").endpoints[0].health
    };
    assert_eq!(health(SERVICE), EndpointHealth::NotReady);
    let publishing = SERVICE.replace("selector:", "publishNotReadyAddresses: true\n  selector:");
    assert_eq!(health(&publishing), EndpointHealth::Ready);

    let headless = "---\napiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: shop}\nspec: {clusterIP: None, selector: {app: x}, ports: [{port: 80}]}\n";
    let compiled_headless = compiled(&[headless, &pod("x", "n", "10.0.0.1")].concat());
    let got = service(&compiled_headless, "s");
    assert!(got.vips.is_empty() && got.endpoints.len() == 1);
    assert_eq!(compiled_headless.by_address.len(), 1);

    let bare = "---\napiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: shop}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}\n";
    let compiled_bare =
        compiled(&[bare, &slice("s-1", "IPv4", "[{port: 8000}]", "[{addresses: [192.0.2.9]}]")].concat());
    let [endpoint] = &service(&compiled_bare, "s").endpoints[..] else { panic!() };
    assert_eq!(
        (endpoint.address, endpoint.target_port(80), &endpoint.workload),
        (ip("192.0.2.9"), Some(8000), &None)
    );

    let external = "---\napiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: shop}\nspec: {type: ExternalName, externalName: db.example, externalIPs: [192.0.2.7]}\n";
    assert!(compiled(external).by_address.is_empty());
}

#[test]
fn the_ports_of_probes_and_hooks_are_the_workloads_by_number_and_by_name() {
    let probes = "    - name: main
      ports: [{name: health, containerPort: 8081}]
      livenessProbe: {httpGet: {port: health, path: /}}
      readinessProbe: {tcpSocket: {port: 8082}}
      startupProbe: {grpc: {port: 8083}}
      lifecycle: {preStop: {httpGet: {port: 8084}}}
    - name: beside
      livenessProbe: {httpGet: {port: health}}
      readinessProbe: {httpGet: {port: 8085, host: 192.0.2.1}}
      startupProbe: {exec: {command: [\"true\"]}}
  initContainers:
    - name: sidecar
      readinessProbe: {httpGet: {port: 8086}}";
    let compiled = compiled(
        &pod("x", "n", "10.0.0.1")
            .replace("    - name: main\n      ports: [{name: web, containerPort: 8080}]", probes),
    );
    let ports: Vec<u16> = workload(&compiled, "x").probes.iter().copied().collect();
    assert_eq!(ports, [8081, 8082, 8083, 8084, 8086], "{:?}", compiled.statuses);
}

#[test]
fn pods_that_are_over_are_no_workloads() {
    for phase in ["Succeeded", "Failed", "Unknown"] {
        let yaml = pod("x", "n", "10.0.0.1").replace("Running", phase);
        assert!(compiled(&yaml).workloads.is_empty(), "{phase}");
    }
    let pending = compiled(&pod("x", "n", "10.0.0.1").replace("Running", "Pending"));
    assert_eq!(pending.workloads.len(), 1);
    let without_uid = compiled(&pod("x", "n", "10.0.0.1").replace("uid: uid-x", "generation: 1"));
    assert!(status(&without_uid.statuses, "MissingUid").message.contains("shop/x"));
}

#[test]
fn what_did_not_change_keeps_its_allocation() {
    let index = index_of(&[pod("x", "n", "10.0.0.1"), SERVICE.into()].concat());
    let first = compile(&index, &trust_domain(), 1, None);
    let second = compile(&index, &trust_domain(), 2, Some(&first));
    for (uid, workload) in &second.workloads {
        assert!(std::sync::Arc::ptr_eq(workload, &first.workloads[uid]));
    }
}

#[test]
fn the_shop_example_is_in_order() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/examples/shop");
    let mut source = mesh_controller::watch::DirSource::new(folder);
    let mut index = mesh_controller::index::Index::new(true);
    index.update(source.poll().expect("a first batch"));
    let compiled = compile(&index, &trust_domain(), 1, None);
    assert!(compiled.statuses.iter().all(|s| s.reason == "Accepted"), "{:#?}", compiled.statuses);
    assert_eq!((compiled.workloads.len(), compiled.services.len()), (3, 3));
    assert!(compiled.workloads.values().all(|w| w.enrolled && &*w.owner.kind == "Deployment"));
    assert!(compiled.services.values().all(|s| s.endpoints.len() == 1 && s.endpoints[0].workload.is_some()));
}

fn any_mode() -> impl Strategy<Value = MtlsMode> {
    prop_oneof![Just(MtlsMode::Strict), Just(MtlsMode::Permissive)]
}

fn any_config() -> impl Strategy<Value = (u8, Option<MeshSettings>)> {
    let settings = (prop::option::of(any_mode()), prop::collection::btree_map(1_u16..4, any_mode(), 0..3));
    let settings = settings.prop_map(|(mode, ports)| MeshSettings { mode, ports, ..MeshSettings::default() });
    (0_u8..4, prop::option::weighted(0.9, settings))
}

proptest! {
    #[test]
    fn merging_modes_does_not_depend_on_the_order(
        configs in prop::collection::vec(any_config(), 0..6).prop_flat_map(|c| (Just(c.clone()), Just(c).prop_shuffle()))
    ) {
        let reach = |list: &[(u8, Option<MeshSettings>)]| {
            merge(&list.iter().map(|(rank, s)| Reach { rank: *rank, settings: s.as_ref() }).collect::<Vec<_>>())
        };
        prop_assert_eq!(reach(&configs.0), reach(&configs.1));
    }

    #[test]
    fn one_more_strict_voice_in_the_highest_reach_makes_everything_strict(
        configs in prop::collection::vec(any_config(), 0..6)
    ) {
        let strict = MeshSettings { mode: Some(MtlsMode::Strict), ..MeshSettings::default() };
        let mut reach: Vec<_> = configs.iter().map(|(rank, s)| Reach { rank: *rank, settings: s.as_ref() }).collect();
        reach.push(Reach { rank: 4, settings: Some(&strict) });
        let modes = merge(&reach);
        prop_assert_eq!(modes.default, MtlsMode::Strict);
        prop_assert!(modes.by_port.is_empty());
    }
}

#[test]
fn the_addresses_that_udp_rules_speak_of_are_known_with_who_is_behind_them() {
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: dns, namespace: shop}\n\
                   spec: {clusterIP: 10.96.0.9, selector: {app: db}, ports: [{name: a, port: 1053, targetPort: 5300, protocol: UDP}, \
                   {name: b, port: 1054, targetPort: 5300}]}\n";
    let spec = |ports: &str| {
        format!(
            "{{selector: {{matchLabels: {{app: db}}}}, rules: [{{to: [{{operation: {{protocol: UDP, ports: {ports}}}}}]}}]}}"
        )
    };
    let base =
        [namespace("shop", true), pod("db", "n", "10.0.0.2"), pod("web", "n", "10.0.0.1"), service.into()]
            .concat();
    let udp = |text: &str| -> Vec<String> {
        let compiled = compiled(text);
        let all = compiled.udp.iter().map(|(at, behind)| {
            let behind: Vec<String> = behind.iter().map(|b| format!("{}:{}", b.workload, b.port)).collect();
            format!("{at} {}", behind.join(","))
        });
        all.collect()
    };
    assert_eq!(udp(&base), [""; 0], "without rules there is nothing to know");
    let ruled = format!("{base}{}", policy("shop", "p", &spec("[5300]")));
    assert_eq!(udp(&ruled), ["10.0.0.2:5300 uid-db:5300", "10.96.0.9:1053 uid-db:5300"]);
    let said = compiled(&ruled);
    assert!(status(&said.statuses, "UdpAtSourceOnly").message.contains("enforced at the source only"));
    assert_eq!(udp(&format!("{base}{}", policy("shop", "p", &spec("[53]")))), [""; 0], "DNS is never cut");
    assert_eq!(
        udp(&ruled.replace("enrolled: \"true\"", "enrolled: \"false\"")),
        [""; 0],
        "of enrolled pods only"
    );
}
