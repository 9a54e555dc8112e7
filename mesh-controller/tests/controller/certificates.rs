//! Who gets which certificate, over real TLS.

use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::common::{Harness, chain_pem, config, entry, namespace, pod, request};
use mesh_api::proto::agent_message::Kind;
use mesh_api::proto::certificate_authority_client::CertificateAuthorityClient;
use mesh_api::proto::discovery_client::DiscoveryClient;
use mesh_api::proto::{self, AgentMessage, JoinRequest, RenewNodeRequest, SignWorkloadRequest};
use mesh_controller::run::Controller;
use mesh_controller::watch::DirSource;
use mesh_core::identity::TrustDomain;
use tonic::transport::{Channel, Identity};
use tonic::{Code, Status};
use x509_parser::extensions::GeneralName;

async fn shop() -> Harness {
    let yaml = [
        namespace("shop", true),
        pod("api", "node-a", "10.1.1.1"),
        pod("db", "node-b", "10.1.2.1"),
        // The namespace of this one is not enrolled.
        pod("lone", "node-a", "10.1.1.2").replace("namespace: shop", "namespace: lonely"),
        entry("backup", "node-a"),
        entry("mail", "node-b"),
    ];
    Harness::start(&[("shop.yaml", &yaml.concat())]).await
}

async fn join(ca: &mut CertificateAuthorityClient<Channel>, node: &str, token: &str) -> Result<(), Status> {
    let (_, csr_der) = request();
    ca.join(JoinRequest { node: node.into(), token: token.into(), csr_der }).await.map(drop)
}

#[tokio::test]
async fn a_join_token_admits_its_node_once() {
    let harness = shop().await;
    let mut ca = harness.ca(None).await;
    let token = harness.token("node-a", Duration::from_secs(60));
    assert_eq!(join(&mut ca, "node-b", &token).await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(join(&mut ca, "node-a", "guess").await.unwrap_err().code(), Code::Unauthenticated);
    // A bad request does not cost the token.
    let bad = JoinRequest { node: "node-a".into(), token: token.clone(), csr_der: vec![1, 2, 3] };
    assert_eq!(ca.join(bad).await.unwrap_err().code(), Code::InvalidArgument);
    join(&mut ca, "node-a", &token).await.unwrap();
    assert_eq!(join(&mut ca, "node-a", &token).await.unwrap_err().code(), Code::Unauthenticated);

    let brief = harness.token("node-a", Duration::from_secs(1));
    tokio::time::sleep(Duration::from_millis(2100)).await;
    assert_eq!(join(&mut ca, "node-a", &brief).await.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn of_many_who_present_one_token_at_once_one_is_admitted() {
    let harness = shop().await;
    let token = harness.token("node-a", Duration::from_secs(60));
    let ca = harness.ca(None).await;
    let attempts = (0..16).map(|_| {
        let (mut ca, token) = (ca.clone(), token.clone());
        tokio::spawn(async move { join(&mut ca, "node-a", &token).await.is_ok() })
    });
    let mut admitted = 0;
    for attempt in attempts.collect::<Vec<_>>() {
        admitted += usize::from(attempt.await.unwrap());
    }
    assert_eq!(admitted, 1);
}

#[tokio::test]
async fn calls_without_a_certificate_are_refused() {
    let harness = shop().await;
    let mut ca = harness.ca(None).await;
    let (_, csr_der) = request();
    let sign = SignWorkloadRequest {
        spiffe_id: "spiffe://cluster.local/ns/shop/sa/api".into(),
        csr_der: csr_der.clone(),
    };
    assert_eq!(ca.sign_workload(sign).await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(ca.renew_node(RenewNodeRequest { csr_der }).await.unwrap_err().code(), Code::Unauthenticated);
    let channel = harness.channel(None).await;
    let mut admin = proto::admin_client::AdminClient::new(channel.clone());
    assert_eq!(admin.status(proto::StatusRequest {}).await.unwrap_err().code(), Code::Unauthenticated);
    let messages = tokio_stream::iter([AgentMessage { kind: Some(Kind::Hello(proto::Hello::default())) }]);
    let stream = DiscoveryClient::new(channel).stream(messages).await;
    assert_eq!(stream.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn an_agent_gets_only_the_identities_of_enrolled_pods_and_units_on_its_node() {
    let harness = shop().await;
    let identity = harness.join("node-a").await;
    let mut ca = harness.ca(Some(identity.clone())).await;
    wait_for_source(&harness).await;
    let mut sign = async |id: &str| {
        let (_, csr_der) = request();
        ca.sign_workload(SignWorkloadRequest { spiffe_id: id.into(), csr_der }).await
    };
    let signed = sign("spiffe://cluster.local/ns/shop/sa/api").await.unwrap().into_inner();
    sign("spiffe://cluster.local/ns/shop/sa/backup").await.unwrap();
    for refused in [
        "spiffe://cluster.local/ns/shop/sa/mail",
        "spiffe://cluster.local/ns/shop/sa/db",
        "spiffe://cluster.local/ns/lonely/sa/lone",
        "spiffe://other.domain/ns/shop/sa/api",
        "spiffe://cluster.local/ns/ferromesh-system/sa/ferromesh-admin",
    ] {
        assert_eq!(sign(refused).await.unwrap_err().code(), Code::PermissionDenied, "{refused}");
    }
    assert_eq!(sign("not an id").await.unwrap_err().code(), Code::InvalidArgument);

    let (_, leaf) = x509_parser::parse_x509_certificate(&signed.chain_der[0]).unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert_eq!(names.value.general_names, [GeneralName::URI("spiffe://cluster.local/ns/shop/sa/api")]);
    assert!(!leaf.is_ca());
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap();
    let (begin, end) = (leaf.validity().not_before.timestamp(), leaf.validity().not_after.timestamp());
    assert!((now - 65..=now - 55).contains(&begin), "backdated by a minute");
    assert!((now + 50..=now + 61).contains(&end), "60 s as configured");
    assert_eq!(signed.trust_bundle.unwrap().roots_der.len(), 1);

    // An operator's call with an agent's certificate, an agent's call with a renewed one.
    let channel = harness.channel(Some(identity)).await;
    let mut admin = proto::admin_client::AdminClient::new(channel);
    assert_eq!(admin.status(proto::StatusRequest {}).await.unwrap_err().code(), Code::PermissionDenied);
    let rotated = admin.rotate_root(proto::RotateRootRequest {}).await;
    assert_eq!(rotated.unwrap_err().code(), Code::PermissionDenied);
    let (key, csr_der) = request();
    let renewed = ca.renew_node(RenewNodeRequest { csr_der }).await.unwrap().into_inner();
    let renewed = Identity::from_pem(chain_pem(&renewed.chain_der), key.serialize_pem());
    harness.agent(renewed, &[]).await.next().await;
}

#[tokio::test]
async fn a_pod_s_certificate_opens_nothing_here() {
    let harness = shop().await;
    let identity = harness.join("node-a").await;
    wait_for_source(&harness).await;
    let (key, csr_der) = request();
    let sign = SignWorkloadRequest { spiffe_id: "spiffe://cluster.local/ns/shop/sa/api".into(), csr_der };
    let signed = harness.ca(Some(identity)).await.sign_workload(sign.clone()).await.unwrap().into_inner();
    let pod = Identity::from_pem(chain_pem(&signed.chain_der), key.serialize_pem());
    let refused = harness.ca(Some(pod)).await.sign_workload(sign).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_removed_root_ends_streams_and_a_new_one_is_sent() {
    let harness = shop().await;
    let identity = harness.join("node-a").await;
    let mut agent = harness.agent(identity, &[]).await;
    assert_eq!(agent.next().await.trust_bundle.unwrap().roots_der.len(), 1);

    // A second trusted root: the bundle of another state folder.
    let other = shop().await;
    let trusted = harness.state().join("ca/trusted");
    std::fs::create_dir(&trusted).unwrap();
    std::fs::copy(other.state().join("ca/root.pem"), trusted.join("other.pem")).unwrap();
    let message = agent.next().await;
    assert_eq!(message.trust_bundle.unwrap().roots_der.len(), 2);
    assert!(message.upserts.is_empty() && !message.reset);

    // The old root is replaced: who was proven by it no longer is.
    let ca = harness.state().join("ca");
    for name in ["root.key", "root.pem"] {
        std::fs::copy(other.state().join("ca").join(name), ca.join(name)).unwrap();
    }
    let ended = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            if let Err(status) = agent.inbound.message().await {
                return status;
            }
        }
    });
    assert_eq!(ended.await.unwrap().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn keys_are_private_and_another_trust_domain_is_refused() {
    let harness = shop().await;
    let mode = |path: &str| std::fs::metadata(harness.state().join(path)).unwrap().mode() & 0o777;
    for file in ["ca/root.key", "ca/root.pem", "ca/intermediate.key", "admin/key.pem", "admin/cert.pem"] {
        assert_eq!(mode(file), 0o600, "{file}");
    }
    for folder in ["", "ca", "admin", "tokens"] {
        assert_eq!(mode(folder), 0o700, "{folder}");
    }
    let mut other = config(&harness.state());
    other.trust_domain = TrustDomain::new("elsewhere").unwrap();
    let refused = Controller::start(other, DirSource::new("/nonexistent")).await.unwrap_err().to_string();
    assert!(refused.contains("cluster.local") && refused.contains("elsewhere"), "{refused}");
}

async fn wait_for_source(harness: &Harness) {
    let mut admin = harness.admin().await;
    for _ in 0..100 {
        if admin.status(proto::StatusRequest {}).await.unwrap().into_inner().version > 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the source did not deliver");
}
