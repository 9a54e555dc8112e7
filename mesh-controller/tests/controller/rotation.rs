//! How one root follows another, and an intermediate that somebody else made, as agents and operators see it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::common::{Agent, Harness, namespace, pod, request};
use mesh_api::proto::agent_message::Kind;
use mesh_api::proto::{self, Ack, RootStage, SignWorkloadRequest, TrustBundle};
use mesh_controller::run::Config;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::RootCertStore;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::ParsedCertificate;
use time::OffsetDateTime;
use tonic::Code;
use tonic::transport::Identity;

type Ca = CertifiedIssuer<'static, KeyPair>;

const LIMIT: Duration = Duration::from_secs(15);

async fn shop(dir: tempfile::TempDir, change: fn(&mut Config)) -> Harness {
    let yaml = namespace("shop", true) + &pod("api", "node-a", "10.1.1.1");
    Harness::start_with(&[("shop.yaml", &yaml)], dir, change).await
}

/// The chain of a fresh SVID.
async fn sign(harness: &Harness, identity: &Identity) -> Vec<Vec<u8>> {
    let (_, csr_der) = request();
    let id = "spiffe://cluster.local/ns/shop/sa/api".into();
    let request = SignWorkloadRequest { spiffe_id: id, csr_der };
    let mut ca = harness.ca(Some(identity.clone())).await;
    loop {
        match ca.sign_workload(request.clone()).await {
            Ok(signed) => return signed.into_inner().chain_der,
            // A controller that has just started.
            Err(status) if status.message().contains("not delivered yet") => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(status) => panic!("{status}"),
        }
    }
}

/// Whether a peer that trusts this root alone would take the chain.
fn verifies(chain: &[Vec<u8>], root: &[u8]) -> bool {
    let mut roots = RootCertStore::empty();
    roots.add(root.to_vec().into()).unwrap();
    let chain: Vec<CertificateDer<'_>> = chain.iter().map(|der| der.clone().into()).collect();
    let leaf = ParsedCertificate::try_from(&chain[0]).unwrap();
    let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.all;
    verify_server_cert_signed_by_trust_anchor(&leaf, &roots, &chain[1..], UnixTime::now(), algorithms).is_ok()
}

/// The next bundle that the agent is sent.
async fn bundle(agent: &mut Agent) -> TrustBundle {
    loop {
        if let Some(bundle) = agent.next().await.trust_bundle {
            return bundle;
        }
    }
}

async fn trust(agent: &Agent, bundle: &TrustBundle) {
    agent.send(Kind::Ack(Ack { version: 1, bundle_id: bundle.id.clone(), ..Ack::default() })).await;
}

async fn stages(harness: &Harness) -> Vec<RootStage> {
    let status = harness.admin().await.status(proto::StatusRequest {}).await.unwrap().into_inner();
    status.authority.unwrap().roots.iter().map(proto::RootStatus::stage).collect()
}

async fn until(harness: &Harness, wanted: &[RootStage]) {
    let mut last = Vec::new();
    for _ in 0..150 {
        last = stages(harness).await;
        if last == wanted {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{last:?} is not {wanted:?}");
}

#[tokio::test]
async fn another_root_signs_when_every_agent_trusts_it_and_the_one_before_goes_last() {
    use RootStage::{Next, Old, Signs};
    let mut harness = shop(tempfile::tempdir().unwrap(), |_| ()).await;
    let identity = harness.join("node-a").await;
    let mut agent = harness.agent(identity.clone(), &[]).await;
    let first = bundle(&mut agent).await;
    assert_eq!((first.roots_der.len(), &first.issuer_der), (1, &first.roots_der[0]));
    trust(&agent, &first).await;
    until(&harness, &[Signs]).await;

    // The agent has not said that it trusts the next root: the first one signs on, also after a restart.
    let asked = harness.admin().await.rotate_root(proto::RotateRootRequest {}).await.unwrap().into_inner();
    assert_eq!(asked.roots.iter().map(proto::RootStatus::stage).collect::<Vec<_>>(), [Signs, Next]);
    assert_eq!(asked.waiting_for, ["node-a"]);
    let twice = harness.admin().await.rotate_root(proto::RotateRootRequest {}).await.unwrap_err();
    assert_eq!(twice.code(), Code::FailedPrecondition);
    let both = bundle(&mut agent).await;
    assert_eq!((both.roots_der.len(), &both.issuer_der), (2, &first.issuer_der));
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(stages(&harness).await, [Signs, Next]);
    // Nor when it is away.
    drop(agent);
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(stages(&harness).await, [Signs, Next]);
    harness.restart().await;
    assert_eq!(stages_soon(&harness).await, [Signs, Next]);
    assert!(verifies(&sign(&harness, &identity).await, &first.issuer_der));

    // It says so: the next root signs, and the one before is trusted still.
    let mut agent = harness.agent(identity.clone(), &[]).await;
    let both = bundle(&mut agent).await;
    trust(&agent, &both).await;
    let switched = tokio::time::timeout(LIMIT, bundle(&mut agent)).await.unwrap();
    assert_eq!((&switched.id, switched.roots_der.len()), (&both.id, 2));
    assert_ne!(switched.issuer_der, first.issuer_der);
    let chain = sign(&harness, &identity).await;
    assert!(verifies(&chain, &switched.issuer_der) && !verifies(&chain, &first.issuer_der));
    until(&harness, &[Signs, Old]).await;
    // No sooner than the longest life of what it signed: here that of a node's certificate, an hour.
    let status = harness.admin().await.status(proto::StatusRequest {}).await.unwrap().into_inner();
    let goes = status.authority.unwrap().roots[1].stage_unix - OffsetDateTime::now_utc().unix_timestamp();
    assert!((3600 - 60..=3600 + 60).contains(&goes), "{goes}");
    harness.restart().await;
    assert_eq!(stages_soon(&harness).await, [Signs, Old]);
    let whole = harness.state().join("ca/authority.json");
    assert!(!fs::read_to_string(harness.state().join("ca/root.key")).unwrap().is_empty());

    // When all that it signed has ended: here the clock is moved in the file.
    let renewed = harness.join("node-a").await;
    let mut agent = harness.agent(renewed.clone(), &[]).await;
    assert_eq!(bundle(&mut agent).await.roots_der.len(), 2);
    let mut held: serde_json::Value = serde_json::from_slice(&fs::read(&whole).unwrap()).unwrap();
    held["old"][0]["until_unix"] = 1.into();
    fs::write(&whole, held.to_string()).unwrap();
    let last = bundle(&mut agent).await;
    assert_eq!(last.roots_der, [switched.issuer_der]);
    until(&harness, &[Signs]).await;
    assert!(!whole.exists(), "nothing changes any more");
    // Who was proven by the old root alone no longer is; who is proven by the new one is.
    let renew = async |identity| {
        let (_, csr_der) = request();
        harness.ca(Some(identity)).await.renew_node(proto::RenewNodeRequest { csr_der }).await
    };
    renew(renewed).await.unwrap();
    let refused = renew(identity).await.unwrap_err();
    assert!(matches!(refused.code(), Code::Unauthenticated | Code::Unknown), "{refused}");
}

/// What a controller that has just started says, once it has looked.
async fn stages_soon(harness: &Harness) -> Vec<RootStage> {
    for _ in 0..100 {
        let found = stages(harness).await;
        if !found.is_empty() {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the authority says nothing")
}

fn root(name: &str) -> Ca {
    CertifiedIssuer::self_signed(params(name, 1), KeyPair::generate().unwrap()).unwrap()
}

fn intermediate(root: &Ca, name: &str) -> Ca {
    CertifiedIssuer::signed_by(params(name, 0), KeyPair::generate().unwrap(), root).unwrap()
}

fn params(name: &str, path_len: u8) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_len));
    params
}

/// As cert-manager writes a Secret and a kubelet mounts it.
fn plug(folder: &Path, intermediate: &Ca, root: &Ca) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("tls.crt"), intermediate.pem()).unwrap();
    fs::write(folder.join("tls.key"), intermediate.key().serialize_pem()).unwrap();
    fs::write(folder.join("ca.crt"), root.pem()).unwrap();
}

fn with_issuer(config: &mut Config) {
    config.issuer_dir = Some(config.state_dir.with_file_name("issuer"));
}

#[tokio::test]
async fn a_plugged_in_intermediate_signs_is_followed_when_it_changes_and_a_bad_one_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("issuer");
    let top = root("corporate");
    let (one, two) = (intermediate(&top, "one"), intermediate(&top, "two"));
    plug(&folder, &one, &top);
    let mut harness = shop(dir, with_issuer).await;
    let identity = harness.join("node-a").await;
    let mut agent = harness.agent(identity.clone(), &[]).await;
    let first = bundle(&mut agent).await;
    assert_eq!((first.roots_der.clone(), &first.issuer_der), (vec![top.der().to_vec()], &one.der().to_vec()));
    let chain = sign(&harness, &identity).await;
    assert_eq!(chain[1..], [one.der().to_vec()]);
    assert!(verifies(&chain, top.der()));

    // Another of the same root signs at once, and the agents hear of it.
    plug(&folder, &two, &top);
    let second = bundle(&mut agent).await;
    assert_eq!((&second.id, &second.issuer_der), (&first.id, &two.der().to_vec()));
    assert_eq!(sign(&harness, &identity).await[1..], [two.der().to_vec()]);

    // A key that does not fit: the last good one signs on, also after a restart.
    fs::write(folder.join("tls.key"), one.key().serialize_pem()).unwrap();
    let problem = problem(&harness).await;
    assert!(problem.contains("tls.key is not the key"), "{problem}");
    harness.restart().await;
    assert_eq!(sign(&harness, &identity).await[1..], [two.der().to_vec()]);
    let refused = harness.admin().await.rotate_root(proto::RotateRootRequest {}).await.unwrap_err();
    assert!(refused.message().contains("--issuer-dir"), "{refused}");

    // One of another root waits until that root is trusted.
    let other = root("other");
    plug(&folder, &intermediate(&other, "three"), &other);
    let mut agent = harness.agent(identity.clone(), &[]).await;
    let both = loop {
        let bundle = bundle(&mut agent).await;
        if bundle.roots_der.len() == 2 {
            break bundle;
        }
    };
    assert_eq!(both.issuer_der, two.der().to_vec());
    trust(&agent, &both).await;
    let switched = bundle(&mut agent).await;
    assert_ne!(switched.issuer_der, two.der().to_vec());
    assert!(verifies(&sign(&harness, &identity).await, other.der()));
}

async fn problem(harness: &Harness) -> String {
    for _ in 0..150 {
        let status = harness.admin().await.status(proto::StatusRequest {}).await.unwrap().into_inner();
        let refused = status.objects.iter().find(|object| object.reason == "IntermediateRefused");
        if let Some(refused) = refused {
            assert_eq!(status.authority.unwrap().problem.is_empty(), refused.accepted);
            return refused.message.clone();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("nobody is told");
}

#[tokio::test]
async fn a_first_start_with_a_bad_intermediate_says_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let top = root("corporate");
    plug(&dir.path().join("issuer"), &intermediate(&top, "one"), &root("another"));
    let mut config = crate::common::config(&dir.path().join("state"));
    with_issuer(&mut config);
    let source = mesh_controller::watch::DirSource::new("/nonexistent");
    let error = mesh_controller::run::Controller::start(config, source).await.unwrap_err().to_string();
    assert!(error.contains("issuer") && error.contains("does not reach ca.crt"), "{error}");
}
