//! Open connections follow the policy of now: those that it denies end, all others go on.

use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use mesh_core::authorize::{DenyReason, Peer, PlainReason};
use mesh_core::model::{MtlsMode, Workload};
use mesh_core::snapshot::Upsert;
use tokio::time::timeout;

use super::*;
use crate::authorize::{endpoint, inbound, source};
use crate::control::Published;
use crate::fixture;

const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
const SERVER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

fn server() -> Workload {
    fixture::workload("db", SERVER)
}

fn mesh() -> Published {
    let client = fixture::workload("web", CLIENT);
    fixture::published(vec![Upsert::Workload(client), Upsert::Workload(server())])
}

fn close_port(published: &Published, port: u16) -> std::sync::Arc<Snapshot> {
    let server = Workload { policies: vec![fixture::policy_name()], ..server() };
    fixture::publish(published, vec![Upsert::Policy(fixture::deny(port)), Upsert::Workload(server)])
}

fn permit(published: &Published, peer: Peer, port: u16) -> Permit {
    let snapshot = published.load();
    inbound(&snapshot, peer, CLIENT, snapshot.workload(&fixture::uid("db")).unwrap(), port).unwrap()
}

fn meshed() -> Peer {
    Peer::Authenticated(fixture::workload("web", CLIENT).identity)
}

async fn is_open(cut: &mut Cut) -> bool {
    timeout(Duration::from_millis(20), cut.wait()).await.is_err()
}

#[tokio::test(start_paused = true)]
async fn a_change_of_policy_ends_the_connections_that_it_denies_and_no_other() {
    let (live, published) = (Live::new(), mesh());
    let db = fixture::uid("db");
    let (_a, mut denied) = live.register(&permit(&published, meshed(), 5432), &db, &published).unwrap();
    let (_b, mut open) = live.register(&permit(&published, meshed(), 5433), &db, &published).unwrap();
    let snapshot = close_port(&published, 5432);
    assert_eq!(live.check_all(&snapshot).await, 1);
    let reason = DenyReason::Denied(fixture::policy_name(), 0);
    assert_eq!(denied.wait().await, CutReason::Denied(reason));
    assert!(is_open(&mut open).await);
    assert_eq!(live.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_was_decided_by_an_older_snapshot_is_decided_again_when_it_is_entered() {
    let (live, published) = (Live::new(), mesh());
    let old = permit(&published, meshed(), 5432);
    close_port(&published, 5432);
    let denial = live.register(&old, &fixture::uid("db"), &published).unwrap_err();
    assert_eq!(denial, Denial(DenyReason::Denied(fixture::policy_name(), 0)));
    assert!(live.is_empty());
}

#[tokio::test]
async fn a_snapshot_that_is_published_at_any_moment_reaches_every_connection() {
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            let (live, published) = (Live::new(), mesh());
            tokio::task::spawn_local(Rc::clone(&live).follow(published.clone()));
            let publisher = {
                let published = published.clone();
                std::thread::spawn(move || close_port(&published, 5432))
            };
            let db = fixture::uid("db");
            let mut entered = Vec::new();
            loop {
                let snapshot = published.load();
                let workload = snapshot.workload(&db).unwrap();
                let Ok(permit) = inbound(&snapshot, meshed(), CLIENT, workload, 5432) else { break };
                match live.register(&permit, &db, &published) {
                    Ok(held) => entered.push(held),
                    Err(_) => break,
                }
                if entered.len() % 64 == 0 {
                    tokio::task::yield_now().await;
                }
            }
            publisher.join().unwrap();
            for (_, cut) in &mut entered {
                let reason = timeout(Duration::from_secs(5), cut.wait()).await.unwrap();
                assert!(matches!(reason, CutReason::Denied(_)));
            }
            assert!(live.is_empty());
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn strict_ends_plaintext_and_leaves_mutual_tls() {
    let (live, published) = (Live::new(), mesh());
    let db = fixture::uid("db");
    let plain_peer = Peer::Plain(PlainReason::NotMeshed);
    let (_a, mut plain) = live.register(&permit(&published, plain_peer, 5432), &db, &published).unwrap();
    let (_b, mut mtls) = live.register(&permit(&published, meshed(), 5432), &db, &published).unwrap();
    let mut strict = server();
    strict.mtls.default = MtlsMode::Strict;
    let snapshot = fixture::publish(&published, vec![Upsert::Workload(strict)]);
    live.check_all(&snapshot).await;
    assert_eq!(plain.wait().await, CutReason::Denied(DenyReason::StrictMtls));
    assert!(is_open(&mut mtls).await);
}

#[tokio::test(start_paused = true)]
async fn un_enrolment_leaves_open_connections_alone() {
    let (live, published) = (Live::new(), mesh());
    let db = fixture::uid("db");
    let (_held, mut cut) = live.register(&permit(&published, meshed(), 5432), &db, &published).unwrap();
    let left = Workload { enrolled: false, policies: vec![fixture::policy_name()], ..server() };
    let upserts = vec![Upsert::Policy(fixture::deny(5432)), Upsert::Workload(left)];
    let snapshot = fixture::publish(&published, upserts);
    assert_eq!(live.check_all(&snapshot).await, 0);
    assert!(is_open(&mut cut).await);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_pod_ends_its_connections_and_an_ended_connection_leaves() {
    let (live, published) = (Live::new(), mesh());
    let permit = permit(&published, meshed(), 5432);
    let (held, cut) = live.register(&permit, &fixture::uid("web"), &published).unwrap();
    let (_other, mut gone) = live.register(&permit, &fixture::uid("db"), &published).unwrap();
    drop((held, cut));
    assert_eq!(live.len(), 1);
    live.cut_pod(&fixture::uid("web"));
    assert!(is_open(&mut gone).await);
    live.cut_pod(&fixture::uid("db"));
    assert_eq!(gone.wait().await, CutReason::PodGone);
}

#[test]
fn the_source_leaves_a_policy_that_it_does_not_hold_to_the_destination() {
    let published = mesh();
    let named = Workload { policies: vec![fixture::policy_name()], ..server() };
    let snapshot = fixture::publish(&published, vec![Upsert::Workload(named)]);
    let workload = snapshot.workload(&fixture::uid("db")).unwrap();
    let from = source(&snapshot, &fixture::uid("web"), CLIENT).unwrap();
    assert!(endpoint(&from, &snapshot, Some(workload), 5432).is_ok());
    let at_destination = inbound(&snapshot, meshed(), CLIENT, workload, 5432).unwrap_err();
    assert_eq!(at_destination, Denial(DenyReason::PolicyMissing(fixture::policy_name())));
    let snapshot = fixture::publish(&published, vec![Upsert::Policy(fixture::deny(5432))]);
    let early = endpoint(&from, &snapshot, Some(workload), 5432).unwrap_err();
    assert_eq!(early, Denial(DenyReason::Denied(fixture::policy_name(), 0)));
}
