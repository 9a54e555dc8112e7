//! The delta stream over real TLS and real files: what is sent, when, and that nothing else is.

use std::time::Duration;

use crate::common::{Harness, namespace, pod, removes, upserts};
use mesh_api::proto::agent_message::Kind;
use mesh_api::proto::{self, Ack, Unsubscribe};

const DB_SERVICE: &str = "---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec:
  clusterIPs: [10.96.0.5]
  selector: {app: db}
  ports: [{port: 5432, targetPort: web}]
";

fn policy(name: &str, app: &str) -> String {
    format!(
        "---
apiVersion: ferromesh.io/v1alpha1
kind: AuthorizationPolicy
metadata: {{name: {name}, namespace: shop}}
spec:
  selector: {{matchLabels: {{app: {app}}}}}
  rules:
    - from: [{{source: {{principals: [cluster.local/ns/shop/sa/api]}}}}]
"
    )
}

async fn shop() -> Harness {
    let pods =
        [namespace("shop", true), pod("api", "node-a", "10.1.1.1"), pod("db", "node-b", "10.1.2.1")].concat();
    Harness::start(&[
        ("pods.yaml", &pods),
        ("db.yaml", DB_SERVICE),
        ("policy.yaml", &policy("db-only", "db")),
    ])
    .await
}

#[tokio::test]
async fn local_workloads_come_in_full_and_the_rest_on_demand() {
    let harness = shop().await;
    let identity = harness.join("node-a").await;
    let mut agent = harness.agent(identity.clone(), &[]).await;
    let first = agent.next().await;
    assert!(first.reset);
    assert_eq!(first.trust_domain, "cluster.local");
    assert_eq!(upserts(&first), ["workload:uid-api"]);
    assert_eq!(first.trust_bundle.unwrap().roots_der.len(), 1);

    // A VIP brings the service with what is behind it, in one message.
    agent.subscribe(&["10.96.0.5"]).await;
    let service = agent.next().await;
    assert!(!service.reset);
    assert_eq!(upserts(&service), ["policy:shop/db-only", "service:shop/db", "workload:uid-db"]);
    assert!(service.version >= first.version);

    agent.subscribe(&["8.8.8.8", "2001:db8::1"]).await;
    assert_eq!(upserts(&agent.next().await), ["absent:2001:db8::1", "absent:8.8.8.8"]);
    // Asked again, nothing is new.
    agent.subscribe(&["8.8.8.8", "10.96.0.5", "10.1.2.1"]).await;
    agent.silent(Duration::from_millis(500)).await;

    agent
        .send(Kind::Unsubscribe(Unsubscribe { addresses: crate::common::bytes(&["10.96.0.5", "8.8.8.8"]) }))
        .await;
    let gone = agent.next().await;
    // The pod's own address is still subscribed.
    assert_eq!(removes(&gone), ["absent:8.8.8.8", "service:shop/db"]);

    // A new stream starts with what Hello names.
    let mut again = harness.agent(identity, &["10.1.2.1"]).await;
    assert_eq!(upserts(&again.next().await), ["policy:shop/db-only", "workload:uid-api", "workload:uid-db"]);
}

#[tokio::test]
async fn only_what_changed_is_sent() {
    let harness = shop().await;
    let mut agent = harness.agent(harness.join("node-a").await, &["10.96.0.5", "10.96.0.9"]).await;
    let first = agent.next().await;
    assert_eq!(
        upserts(&first),
        ["absent:10.96.0.9", "policy:shop/db-only", "service:shop/db", "workload:uid-api", "workload:uid-db"]
    );

    // A policy for a local pod: the policy, and the pod that now names it.
    harness.write("api.yaml", &policy("api-only", "api"));
    let added = agent.next().await;
    assert_eq!(upserts(&added), ["policy:shop/api-only", "workload:uid-api"]);
    assert!(removes(&added).is_empty() && added.version > first.version && added.trust_bundle.is_none());

    // The same text again is no change, and neither is a pod elsewhere that nobody asked for.
    harness.write("api.yaml", &policy("api-only", "api"));
    harness.write("far.yaml", &pod("far", "node-c", "10.1.3.1"));
    agent.silent(Duration::from_millis(1200)).await;

    // An address that changes its meaning; the pod behind it is told too, since two services share its port from now on.
    harness
        .write("web.yaml", &DB_SERVICE.replace("name: db,", "name: web,").replace("10.96.0.5", "10.96.0.9"));
    let moved = agent.next().await;
    assert_eq!(upserts(&moved), ["service:shop/web", "workload:uid-db"]);
    assert_eq!(removes(&moved), ["absent:10.96.0.9"]);

    std::fs::remove_file(harness.dir.path().join("manifests/api.yaml")).unwrap();
    let removed = agent.next().await;
    assert_eq!(upserts(&removed), ["workload:uid-api"]);
    assert_eq!(removes(&removed), ["policy:shop/api-only"]);
}

#[tokio::test]
async fn addresses_without_an_endpoint_are_told_unasked_and_taken_back() {
    let harness = shop().await;
    let mut agent = harness.agent(harness.join("node-a").await, &[]).await;
    agent.next().await;
    let empty = |selected: &str, more: &str| {
        let service = DB_SERVICE.replace("name: db,", "name: empty,").replace("app: db", selected);
        service.replace("clusterIPs: [10.96.0.5]", &format!("clusterIPs: [10.96.0.6, 'fd96::6']{more}"))
            + "status: {loadBalancer: {ingress: [{ip: 198.51.100.7}]}}\n"
    };
    harness.write("empty.yaml", &empty("app: nobody", ""));
    let told = agent.next().await;
    let both = ["unserved:10.96.0.6:5432", "unserved:198.51.100.7:5432", "unserved:[fd96::6]:5432"];
    assert_eq!(upserts(&told), both);
    // Now there is an endpoint in one family.
    harness.write("empty.yaml", &empty("app: db", ""));
    assert_eq!(removes(&agent.next().await), &both[..2]);
    // It is on another node.
    harness.write("empty.yaml", &empty("app: db", "\n  internalTrafficPolicy: Local"));
    assert_eq!(upserts(&agent.next().await), &both[..2]);
    let mut there = harness.agent(harness.join("node-b").await, &[]).await;
    assert_eq!(upserts(&there.next().await), ["policy:shop/db-only", both[2], "workload:uid-db"]);
    // A stream that begins is told of all; a Service that goes takes its addresses with it.
    std::fs::remove_file(harness.dir.path().join("manifests/empty.yaml")).unwrap();
    assert_eq!(removes(&agent.next().await), both);
}

#[tokio::test]
async fn a_malformed_manifest_keeps_the_last_good_state_and_names_file_and_line() {
    let harness = shop().await;
    let mut agent = harness.agent(harness.join("node-b").await, &[]).await;
    assert_eq!(upserts(&agent.next().await), ["policy:shop/db-only", "workload:uid-db"]);

    harness.write("policy.yaml", &policy("db-only", "db").replace("principals:", "principal:"));
    harness.write("pods.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: [}\n");
    agent.silent(Duration::from_millis(1200)).await;
    let mut admin = harness.admin().await;
    let status = admin.status(proto::StatusRequest {}).await.unwrap().into_inner();
    let at = |line: &str| status.objects.iter().find(|o| o.source.ends_with(line) && !o.accepted);
    let policy_status = at("policy.yaml:8").unwrap_or_else(|| panic!("{:#?}", status.objects));
    assert_eq!(policy_status.reason, "Malformed");
    assert!(policy_status.message.contains("principal"), "{}", policy_status.message);
    assert!(policy_status.message.contains("last good version is kept"), "{}", policy_status.message);
    let pods = at("pods.yaml:3").unwrap_or_else(|| panic!("{:#?}", status.objects));
    assert!(pods.message.contains("last good state is kept"), "{}", pods.message);

    // Mended: the change arrives and the status goes.
    harness.write("policy.yaml", &policy("db-only", "db").replace("sa/api", "sa/web"));
    assert_eq!(upserts(&agent.next().await), ["policy:shop/db-only"]);
    let status = admin.status(proto::StatusRequest {}).await.unwrap().into_inner();
    assert!(
        status.objects.iter().all(|o| o.accepted || o.source.ends_with("pods.yaml:3")),
        "{:#?}",
        status.objects
    );
}

#[tokio::test]
async fn enrolment_and_its_end_reach_the_agent() {
    let harness = Harness::start(&[
        ("ns.yaml", &namespace("shop", false)),
        ("p.yaml", &pod("api", "node-a", "10.1.1.1")),
    ])
    .await;
    let mut agent = harness.agent(harness.join("node-a").await, &[]).await;
    let enrolled = |message: &proto::ControllerMessage| match message.upserts[0].kind.as_ref().unwrap() {
        proto::resource::Kind::Workload(w) => w.enrolled,
        other => panic!("{other:?}"),
    };
    assert!(!enrolled(&agent.next().await));
    harness.write("ns.yaml", &namespace("shop", true));
    assert!(enrolled(&agent.next().await));
    harness.write("ns.yaml", &namespace("shop", false));
    assert!(!enrolled(&agent.next().await));
}

#[tokio::test]
async fn the_admin_sees_agents_and_what_they_acknowledged() {
    let harness = shop().await;
    let mut agent = harness.agent(harness.join("node-a").await, &[]).await;
    let version = agent.next().await.version;
    let certificates = vec![proto::CertificateInfo { spiffe_id: "spiffe://x".into(), not_after_unix: 7 }];
    agent.send(Kind::Ack(Ack { version, certificates, ..Ack::default() })).await;
    agent.send(Kind::Ack(Ack { version: version + 1, error: "no".into(), ..Ack::default() })).await;
    let mut admin = harness.admin().await;
    for _ in 0..100 {
        let status = admin.status(proto::StatusRequest {}).await.unwrap().into_inner();
        let agent = &status.agents[0];
        if agent.last_error == "no" {
            assert_eq!((agent.node.as_str(), agent.connected), ("node-a", true));
            assert_eq!((agent.sent_version, agent.acknowledged_version), (version, version));
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(agent);
    for _ in 0..100 {
        let status = admin.status(proto::StatusRequest {}).await.unwrap().into_inner();
        if !status.agents[0].connected {
            let token = proto::CreateJoinTokenRequest { node: "node-z".into(), ttl_seconds: 5 };
            assert_eq!(admin.create_join_token(token).await.unwrap().into_inner().token.len(), 64);
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("still connected");
}

#[tokio::test]
async fn a_restarted_controller_knows_its_agents_and_goes_on_counting() {
    let mut harness = shop().await;
    let identity = harness.join("node-a").await;
    let before = harness.agent(identity.clone(), &[]).await.next().await;
    harness.restart().await;
    let after = harness.agent(identity, &[]).await.next().await;
    assert!(after.reset && after.version > before.version);
    assert_eq!(after.trust_bundle, before.trust_bundle);
    assert_eq!(upserts(&after), upserts(&before));
}
