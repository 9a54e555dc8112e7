//! The agent's control plane against a controller that speaks the real protocol over real TLS, in this process: joining,
//! deltas, refusals, reconnects, lookups, certificates and the administration socket. Needs no privileges.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod control_fixture;

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use control_fixture::{Rig, ServerStream, eventually, policy, service, workload};
use mesh_agent::control::{NodeError, NodeIdentity};
use mesh_api::proto::agent_message::Kind;
use mesh_api::proto::resource::Kind as Resource;
use mesh_api::{encode, proto};
use mesh_core::identity::SpiffeId;
use mesh_core::snapshot::Destination;
use prost::Message;

const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 2, 0, 1));

fn id(account: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://cluster.local/ns/shop/sa/{account}")).unwrap()
}

/// A reset with the local pod `shop/web`.
fn first(version: u64) -> proto::ControllerMessage {
    let mut message = control_fixture::message(version);
    message.reset = true;
    message.upserts = vec![workload("web", "n1", [10, 1, 0, 1])];
    message
}

async fn begun() -> (Rig, ServerStream) {
    begun_with(3600).await
}

async fn begun_with(ttl_seconds: i64) -> (Rig, ServerStream) {
    let mut rig = Rig::start().await;
    rig.ca.ttl_seconds.store(ttl_seconds, Ordering::Relaxed);
    rig.ca.node_ttl_seconds.store(ttl_seconds, Ordering::Relaxed);
    rig.run().await;
    let mut stream = rig.stream().await;
    assert!(stream.hello().await.addresses.is_empty());
    let mut message = first(1);
    message.trust_bundle = Some(rig.ca.bundle());
    stream.send(message).await;
    assert_eq!(stream.ack(1).await, "");
    (rig, stream)
}

#[tokio::test]
async fn a_node_joins_once_and_uses_its_certificate_again() {
    let rig = Rig::start().await;
    let mut settings = rig.node_with_token();
    NodeIdentity::obtain(&rig.controller(), &settings).await.unwrap();
    let file = settings.state_dir.join("node.pem");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    settings.token_file = None;
    NodeIdentity::obtain(&rig.controller(), &settings).await.unwrap();
    assert_eq!(rig.ca.joins.load(Ordering::Relaxed), 1);

    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = NodeIdentity::obtain(&rig.controller(), &settings).await.unwrap_err();
    assert!(matches!(error, NodeError::Permissions { mode: 0o644, .. }), "{error}");
}

#[tokio::test]
async fn a_start_that_cannot_succeed_says_how_to_mend_it() {
    let rig = Rig::start().await;
    let mut settings = rig.node_with_token();
    settings.token_file = None;
    let error = NodeIdentity::obtain(&rig.controller(), &settings).await.unwrap_err().to_string();
    assert!(error.contains("meshctl token create --node n1"), "{error}");

    let mut settings = rig.node_with_token();
    std::fs::write(settings.token_file.as_ref().unwrap(), "another token\n").unwrap();
    let error = NodeIdentity::obtain(&rig.controller(), &settings).await.unwrap_err().to_string();
    assert!(error.contains("did not admit node n1") && error.contains("join token refused"), "{error}");

    settings.node = "n2".to_owned();
    std::fs::create_dir_all(&settings.state_dir).unwrap();
    let file = settings.state_dir.join("node.pem");
    std::fs::write(&file, "not a certificate").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    settings.token_file = None;
    let error = NodeIdentity::obtain(&rig.controller(), &settings).await.unwrap_err().to_string();
    assert!(error.contains("cannot be used") && error.contains("--node n2"), "{error}");
}

#[tokio::test]
async fn a_controller_with_another_root_or_name_is_not_talked_to() {
    for server in [control_fixture::Server::OtherRoot, control_fixture::Server::OtherName] {
        let rig = Rig::start_as(server).await;
        let (controller, settings) = (rig.controller(), rig.node_with_token());
        let joining = NodeIdentity::obtain(&controller, &settings);
        assert!(tokio::time::timeout(Duration::from_secs(1), joining).await.is_err());
        assert_eq!(rig.ca.joins.load(Ordering::Relaxed), 0, "the token was shown to a stranger");
    }
}

#[tokio::test]
async fn deltas_are_applied_and_acknowledged() {
    let (rig, mut stream) = begun().await;
    let control = rig.control.clone();
    let mut versions = control.published.watch();
    assert_eq!(control.published.load().version, 1);
    assert_eq!(control.svids.trust().roots.len(), 1);
    let generation = control.svids.trust().generation;

    let mut message = control_fixture::message(2);
    message.upserts = vec![policy("db", 1)];
    message.trust_bundle = Some(rig.ca.bundle());
    stream.send(message).await;
    assert_eq!(stream.ack(2).await, "");
    versions.changed().await.unwrap();
    let snapshot = control.published.load();
    assert_eq!((snapshot.version, snapshot.policies().count(), snapshot.workloads().count()), (2, 1, 1));
    assert_eq!(control.svids.trust().generation, generation, "the same bundle is no change");
}

#[tokio::test]
async fn a_refused_delta_keeps_the_last_good_snapshot_and_the_stream_begins_anew() {
    let (mut rig, mut stream) = begun().await;
    let mut bad = control_fixture::message(2);
    bad.upserts = vec![policy("good", 1), policy("bad", 0)];
    stream.send(bad).await;
    let error = stream.ack(2).await;
    assert!(error.contains("policy shop/bad: action"), "{error}");
    assert_eq!(rig.control.status.stream().refused.as_deref(), Some(&*error));
    // What follows builds on what was refused.
    let mut next = control_fixture::message(3);
    next.upserts = vec![policy("later", 1)];
    stream.send(next).await;

    let mut stream = rig.stream().await;
    stream.hello().await;
    let snapshot = rig.control.published.load();
    assert_eq!((snapshot.version, snapshot.policies().count(), snapshot.workloads().count()), (1, 0, 1));
    let mut message = first(4);
    message.upserts.push(policy("good", 1));
    stream.send(message).await;
    assert_eq!(stream.ack(4).await, "");
    assert_eq!(rig.control.published.load().policies().count(), 1);
    assert_eq!(rig.control.status.stream().refused, None);
}

#[tokio::test]
async fn a_reset_heals_a_refusal_on_the_same_stream() {
    let (rig, mut stream) = begun().await;
    let mut bad = control_fixture::message(2);
    bad.upserts = vec![policy("bad", 0)];
    stream.send(bad).await;
    assert_ne!(stream.ack(2).await, "");
    stream.send(first(3)).await;
    assert_eq!(stream.ack(3).await, "");
    assert_eq!(rig.control.status.stream().refused, None);
}

#[tokio::test]
async fn another_trust_domain_or_an_empty_bundle_is_refused() {
    let (mut rig, mut stream) = begun().await;
    let mut message = first(2);
    message.trust_domain = "other.example".to_owned();
    stream.send(message).await;
    let error = stream.ack(2).await;
    assert!(error.contains("other.example") && error.contains("cluster.local"), "{error}");

    let mut stream = rig.stream().await;
    stream.hello().await;
    let mut message = first(3);
    message.trust_bundle = Some(proto::TrustBundle::default());
    stream.send(message).await;
    assert!(stream.ack(3).await.contains("trust bundle"));
    assert_eq!(rig.control.published.load().version, 1);
    assert_eq!(rig.control.svids.trust().roots.len(), 1);
}

#[tokio::test]
async fn a_stream_has_to_begin_with_a_reset() {
    let mut rig = Rig::start().await;
    rig.run().await;
    let mut stream = rig.stream().await;
    stream.hello().await;
    stream.send(control_fixture::message(9)).await;
    assert!(stream.ack(9).await.contains("reset"));
    assert_eq!(rig.control.published.load().version, 0);
}

#[tokio::test]
async fn the_snapshot_stays_while_the_controller_is_away_and_hello_tells_what_is_in_use() {
    let (mut rig, mut stream) = begun().await;
    let lookup = rig.control.lookup.clone();
    let asked = tokio::spawn(async move { lookup.ensure(PEER).await });
    assert_eq!(stream.subscribed().await, [encode::address(PEER)]);
    let mut answer = control_fixture::message(2);
    answer.upserts = vec![workload("api", "n2", [10, 2, 0, 1])];
    stream.send(answer).await;
    asked.await.unwrap().unwrap();
    stream.ack(2).await;

    drop(stream);
    eventually("the loss to be seen", || !rig.control.status.stream().connected).await;
    assert!(matches!(rig.control.published.load().destination(PEER), Destination::Workload(_)));
    assert!(rig.control.status.stream().last_error.is_some());
    let mut stream = rig.stream().await;
    assert_eq!(stream.hello().await.addresses, [encode::address(PEER)]);
    // A reset forgets what was held before.
    stream.send(first(10)).await;
    stream.ack(10).await;
    assert!(matches!(rig.control.published.load().destination(PEER), Destination::NotLoaded));
}

#[tokio::test]
async fn a_hundred_waiters_ask_once_and_idle_addresses_are_given_up() {
    let (rig, mut stream) = begun().await;
    let absent: IpAddr = "203.0.113.9".parse().unwrap();
    let waiters: Vec<_> = (0..100)
        .map(|_| {
            let lookup = rig.control.lookup.clone();
            tokio::spawn(async move { lookup.ensure(absent).await })
        })
        .collect();
    assert_eq!(stream.subscribed().await, [encode::address(absent)]);
    let mut answer = control_fixture::message(2);
    let kind = Some(Resource::Absent(encode::address(absent)));
    answer.upserts = vec![proto::Resource { kind }];
    stream.send(answer).await;
    for waiter in waiters {
        waiter.await.unwrap().unwrap();
    }
    assert!(matches!(rig.control.published.load().destination(absent), Destination::Absent));
    // Nothing but acknowledgements until the address is idle for long enough (shortened by the rig).
    loop {
        match stream.next().await {
            Kind::Ack(_) => {}
            Kind::Unsubscribe(gone) => break assert_eq!(gone.addresses, [encode::address(absent)]),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn svids_are_obtained_renewed_at_half_life_and_forgotten() {
    let rig = Rig::start().await;
    rig.ca.ttl_seconds.store(4, Ordering::Relaxed);
    let (mut rig, settings) = (rig.clone_handles(), rig.node_with_token());
    rig.run_as(settings).await;
    let mut stream = rig.stream().await;
    stream.hello().await;
    stream.send(first(1)).await;
    let svids = rig.control.svids.clone();
    let held = || svids.get(&id("web"), SystemTime::now());
    eventually("an SVID", || held().is_some()).await;
    let one = held().unwrap();
    assert!(one.key.cert.len() == 1 && one.not_after > SystemTime::now());
    let begun = tokio::time::Instant::now();
    eventually("a renewal", || {
        let now = held();
        assert!(now.is_some(), "a moment without a valid certificate");
        now.unwrap().generation > one.generation
    })
    .await;
    assert!(begun.elapsed() > Duration::from_millis(1000), "renewed after {:?}", begun.elapsed());
    assert_ne!(held().unwrap().key.cert, one.key.cert);
    assert!(rig.control.metrics.certificates_signed.get() >= 2);

    let mut message = control_fixture::message(2);
    let kind = Some(proto::resource_name::Kind::WorkloadUid("uid-web".to_owned()));
    message.removes = vec![proto::ResourceName { kind }];
    stream.send(message).await;
    eventually("the SVID to be forgotten", || svids.all().is_empty()).await;
}

#[tokio::test]
async fn a_certificate_outlives_the_ca_until_its_end_and_comes_back_with_it() {
    let rig = Rig::start().await;
    rig.ca.ttl_seconds.store(4, Ordering::Relaxed);
    let (mut rig, settings) = (rig.clone_handles(), rig.node_with_token());
    rig.run_as(settings).await;
    let mut stream = rig.stream().await;
    stream.hello().await;
    stream.send(first(1)).await;
    let svids = rig.control.svids.clone();
    let held = || svids.get(&id("web"), SystemTime::now());
    eventually("an SVID", || held().is_some()).await;
    assert_eq!(rig.control.status.not_ready(), None);
    let one = held().unwrap();
    rig.ca.away.store(true, Ordering::Relaxed);
    eventually("a failed renewal", || !rig.control.status.certificates().is_empty()).await;
    assert_eq!(held().unwrap().generation, one.generation, "the old one stays");
    eventually("its end", || held().is_none()).await;
    assert!(SystemTime::now() >= one.not_after);
    eventually("readiness to say so", || rig.control.status.not_ready().is_some()).await;
    rig.ca.away.store(false, Ordering::Relaxed);
    eventually("a new one", || held().is_some()).await;
    eventually("readiness", || rig.control.status.not_ready().is_none()).await;
}

#[tokio::test]
async fn what_another_root_signed_is_signed_anew_soon_and_the_bundle_in_use_is_told() {
    // A hundredth of 120 s is how soon.
    let (rig, mut stream) = begun_with(120).await;
    let held = || rig.control.svids.get(&id("web"), SystemTime::now());
    eventually("a certificate", || held().is_some()).await;
    let (first, renewals) = (held().unwrap(), rig.ca.renewals.load(Ordering::Relaxed));

    // The next root is trusted, and signs nothing yet: nothing is asked for.
    let mut message = control_fixture::message(2);
    message.trust_bundle = Some(rig.ca.both());
    stream.send(message).await;
    assert_eq!(stream.acknowledged(2).await.bundle_id, b"both");
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(held().unwrap().generation, first.generation);

    // It signs: half of the life would be a minute away.
    rig.ca.rotated.store(true, Ordering::Relaxed);
    let mut message = control_fixture::message(3);
    message.trust_bundle = Some(rig.ca.both());
    stream.send(message).await;
    assert_eq!(stream.acknowledged(3).await.bundle_id, b"both");
    eventually("a certificate of the next root", || held().unwrap().generation > first.generation).await;
    eventually("a node certificate of it", || rig.ca.renewals.load(Ordering::Relaxed) > renewals).await;
    let second = held().unwrap().generation;
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(held().unwrap().generation, second, "once is enough");
}

#[tokio::test]
async fn only_enrolled_workloads_of_this_node_get_certificates() {
    let (rig, mut stream) = begun().await;
    let mut message = control_fixture::message(2);
    let mut outside = workload("outside", "n1", [10, 1, 0, 7]);
    let Some(Resource::Workload(plain)) = &mut outside.kind else { panic!("not a workload") };
    plain.enrolled = false;
    message.upserts = vec![outside, workload("remote", "n2", [10, 2, 0, 7])];
    stream.send(message).await;
    stream.ack(2).await;
    eventually("an SVID", || rig.control.svids.all().len() == 1).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(rig.control.svids.all().keys().collect::<Vec<_>>(), [&id("web")]);
}

#[tokio::test]
async fn the_controller_hears_of_new_certificates() {
    let (_rig, mut stream) = begun().await;
    let told = loop {
        match stream.next().await {
            Kind::Ack(ack) if !ack.certificates.is_empty() => break ack,
            Kind::Ack(_) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((told.version, told.error.as_str()), (1, ""));
    assert_eq!(told.certificates[0].spiffe_id, id("web").to_string());
}

#[tokio::test]
async fn a_certificate_for_another_name_is_not_used() {
    let rig = Rig::start().await;
    rig.ca.wrong_name.store(true, Ordering::Relaxed);
    let (mut rig, settings) = (rig.clone_handles(), rig.node_with_token());
    rig.run_as(settings).await;
    let mut stream = rig.stream().await;
    stream.hello().await;
    stream.send(first(1)).await;
    eventually("the refusal", || {
        rig.control.status.not_ready().is_some_and(|why| why.contains("was asked for"))
    })
    .await;
    assert!(rig.control.svids.all().is_empty());
}

#[tokio::test]
async fn the_node_certificate_is_renewed_and_shown_from_then_on() {
    let rig = Rig::start().await;
    rig.ca.node_ttl_seconds.store(4, Ordering::Relaxed);
    let (mut rig, settings) = (rig.clone_handles(), rig.node_with_token());
    let file = settings.state_dir.join("node.pem");
    rig.run_as(settings).await;
    let mut stream = rig.stream().await;
    let shown = stream.node_certificate.clone();
    stream.hello().await;
    let before = std::fs::read(&file).unwrap();
    eventually("a renewal", || rig.ca.renewals.load(Ordering::Relaxed) > 0).await;
    eventually("the saved one to change", || std::fs::read(&file).unwrap() != before).await;
    drop(stream);
    let stream = rig.stream().await;
    assert_ne!(stream.node_certificate, shown, "the new stream shows the new certificate");
    assert_eq!(rig.ca.joins.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn the_administration_socket_explains_with_the_decisions_of_the_data_plane() {
    let (rig, mut stream) = begun().await;
    let mut message = control_fixture::message(2);
    let mut api = workload("api", "n2", [10, 2, 0, 1]);
    let Some(Resource::Workload(pod)) = &mut api.kind else { panic!("not a workload") };
    let name = |name: &str| proto::NamespacedName { namespace: "shop".into(), name: name.into() };
    pod.policies = vec![name("only-db")];
    message.upserts = vec![api, policy("only-db", 1), service("api", [10, 96, 0, 1], (80, 8080), "uid-api")];
    stream.send(message).await;
    stream.ack(2).await;
    let admin = rig.admin().await;
    assert_eq!(std::fs::metadata(&admin).unwrap().permissions().mode() & 0o777, 0o600);

    let (status, denied) = control_fixture::get(&admin, "/explain?src=shop/web&dst=10.96.0.1:80").await;
    assert_eq!((status, &denied["verdict"]), (200, &"denied".into()), "{denied:#}");
    assert!(denied["reason"].as_str().unwrap().contains("no ALLOW policy matched"), "{denied:#}");
    let (_, by_name) = control_fixture::get(&admin, "/explain?src=shop/web&dst=shop/api:80").await;
    assert_eq!(by_name["destination"], "10.96.0.1:80");
    assert_eq!(by_name["verdict"], "denied");
    let (_, by_dns) = control_fixture::get(&admin, "/explain?src=shop/web&dst=api.shop.svc:80").await;
    assert_eq!(by_dns["destination"], "10.96.0.1:80");
    let (_, port) = control_fixture::get(&admin, "/explain?src=shop/web&dst=shop/api:81").await;
    assert_eq!(port["verdict"], "unreachable", "{port:#}");
    let (status, missing) = control_fixture::get(&admin, "/explain?src=shop/none&dst=shop/api:80").await;
    assert_eq!(status, 404, "{missing:#}");
    let (status, _) = control_fixture::get(&admin, "/explain?src=shop/web&dst=nonsense").await;
    assert_eq!(status, 400);

    let looking = tokio::spawn(async move {
        control_fixture::get(&admin, "/explain?src=shop/web&dst=198.51.100.1:443").await
    });
    assert_eq!(stream.subscribed().await, [vec![198, 51, 100, 1]]);
    let mut answer = control_fixture::message(3);
    answer.upserts = vec![proto::Resource { kind: Some(Resource::Absent(vec![198, 51, 100, 1])) }];
    stream.send(answer).await;
    let (_, outside) = looking.await.unwrap();
    assert_eq!(outside["verdict"], "passed_through", "{outside:#}");
}

#[tokio::test]
async fn the_administration_socket_shows_status_and_dump_without_keys() {
    let (rig, _stream) = begun().await;
    eventually("an SVID", || rig.control.svids.all().len() == 1).await;
    let admin = rig.admin().await;
    eventually("status", || rig.control.status.not_ready().is_none()).await;
    let (code, status) = control_fixture::get(&admin, "/status").await;
    assert_eq!(code, 200);
    assert_eq!(status["ready"], true, "{status:#}");
    assert_eq!(status["controller"]["connected"], true);
    assert_eq!(status["snapshot"]["version"], 1);
    assert_eq!(status["certificates"]["held"][0]["identity"], id("web").to_string());
    assert_eq!(status["problems"][0], "a problem of the kernel side");
    let (_, dump) = control_fixture::get(&admin, "/dump").await;
    assert_eq!(dump["snapshot"]["workloads"][0]["name"], "web");
    assert!(!dump.to_string().contains("PRIVATE"));
    assert_eq!(control_fixture::get(&admin, "/nothing").await.0, 404);
}

/// A node whose agent holds a peer, a service and a policy, has written them, and then ended.
async fn ended_with_a_snapshot() -> Rig {
    let (rig, mut stream) = begun().await;
    let looking = tokio::spawn({
        let lookup = rig.control.lookup.clone();
        async move { lookup.ensure([10, 99, 0, 1].into()).await }
    });
    assert_eq!(stream.subscribed().await, [vec![10, 99, 0, 1]]);
    let mut message = control_fixture::message(2);
    message.upserts = vec![
        policy("web", 1),
        workload("db", "n2", [10, 2, 0, 1]),
        service("db", [10, 99, 0, 1], (5432, 5432), "uid-db"),
    ];
    stream.send(message).await;
    assert_eq!(stream.ack(2).await, "");
    looking.await.unwrap().unwrap();
    let file = rig.kept_file();
    // The first write may hold version 1 only.
    eventually("the snapshot on disk", || {
        let Ok(bytes) = std::fs::read(&file) else { return false };
        let kept = proto::KeptSnapshot::decode(&bytes[40..]).unwrap();
        kept.snapshot.unwrap().version == 2
    })
    .await;
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    rig.restarted()
}

#[tokio::test]
async fn an_agent_that_starts_while_the_controller_is_away_goes_on_with_the_snapshot_on_disk() {
    let mut rig = ended_with_a_snapshot().await;
    let control = rig.control.clone();
    control.restore(&rig.node_with_token());
    let snapshot = control.published.load();
    assert_eq!((snapshot.version, snapshot.policies().count(), snapshot.workloads().count()), (2, 1, 2));
    assert!(matches!(snapshot.destination([10, 99, 0, 1].into()), Destination::Service(_)));
    assert_eq!(control.svids.trust().roots.len(), 1);
    assert_eq!(control.lookup.ensure([10, 99, 0, 1].into()).await, Ok(()));
    assert_eq!(control.status.kept().restored.map(|(version, _)| version), Some(2));
    let admin = rig.admin().await;
    let (_, status) = control_fixture::get(&admin, "/status").await;
    assert_eq!(status["snapshot"]["restored_from_disk"], true, "{status:#}");
    assert_eq!(status["certificates"]["held"].as_array().unwrap().len(), 0, "keys are not on disk");

    // The controller is back: it is told what is in use, and its word replaces everything.
    rig.run().await;
    let mut stream = rig.stream().await;
    assert_eq!(stream.hello().await.addresses, [vec![10, 99, 0, 1]]);
    let mut message = first(3);
    message.trust_bundle = Some(rig.ca.bundle());
    stream.send(message).await;
    assert_eq!(stream.ack(3).await, "");
    assert_eq!((control.published.load().version, control.published.load().policies().count()), (3, 0));
    let (_, status) = control_fixture::get(&admin, "/status").await;
    assert_eq!(status["snapshot"]["restored_from_disk"], false, "{status:#}");
}

#[tokio::test]
async fn a_bad_snapshot_on_disk_is_refused_counted_and_said_in_the_status() {
    let rig = ended_with_a_snapshot().await;
    let file = rig.kept_file();
    let mut bytes = std::fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    rig.control.restore(&rig.node_with_token());
    assert_eq!(rig.control.published.load().version, 0, "nothing of it is taken");
    assert!(rig.control.svids.trust().roots.is_empty());
    assert_eq!(rig.control.metrics.kept_refused.get(), 1);
    let (_, status) = control_fixture::get(&rig.admin().await, "/status").await;
    assert!(status["snapshot"]["problem"].as_str().unwrap().contains("is damaged"), "{status:#}");
    assert_eq!(status["ready"], false);
}
