//! What UDP rules mean: which datagrams a workload may not send.
#![expect(clippy::unwrap_used, reason = "a fixture that cannot be built is a failed test")]

mod common;

use std::net::SocketAddr;

use common::{ip, policy, snapshot, workload};
use mesh_core::authorize::{Peer, Request, decide};
use mesh_core::model::{
    Action, AuthorizationPolicy, Operation, Protocol, Rule, Source, StringMatch, Workload, WorkloadUid,
};
use mesh_core::snapshot::{Remove, Snapshot, UdpBackend, Upsert};
use mesh_core::udp::denied;

fn from(account: &str, ports: &[u16]) -> Rule {
    let principal = StringMatch::Exact(format!("cluster.local/ns/shop/sa/{account}").into());
    let operation = Operation { protocol: Protocol::Udp, ports: ports.to_vec(), ..Operation::default() };
    Rule { from: vec![Source { principals: vec![principal], ..Source::default() }], to: vec![operation] }
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn behind(uid: &str, port: u16) -> UdpBackend {
    UdpBackend { workload: WorkloadUid(uid.into()), port }
}

/// `db` at 10.0.0.2:5300, alone behind 10.96.0.1:53000 and with `free` behind 10.96.0.2:53000.
fn mesh(policies: Vec<AuthorizationPolicy>) -> Snapshot {
    let names: Vec<String> = policies.iter().map(|p| p.name.name.to_string()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut upserts: Vec<Upsert> = policies.into_iter().map(Upsert::Policy).collect();
    upserts.push(Upsert::Workload(workload("db", "10.0.0.2", &names)));
    upserts.push(Upsert::Workload(workload("free", "10.0.0.3", &[])));
    upserts.push(Upsert::Udp(at("10.0.0.2:5300"), vec![behind("db", 5300)]));
    upserts.push(Upsert::Udp(at("10.96.0.1:53000"), vec![behind("db", 5300)]));
    upserts.push(Upsert::Udp(at("10.96.0.2:53000"), vec![behind("free", 5300), behind("db", 5300)]));
    snapshot(upserts)
}

fn texts(snapshot: &Snapshot, source: &Workload) -> Vec<String> {
    denied(snapshot, source).iter().map(ToString::to_string).collect()
}

const ALL: [&str; 3] = ["10.0.0.2:5300", "10.96.0.1:53000", "10.96.0.2:53000"];

#[test]
fn only_whom_a_rule_names_may_send_and_a_virtual_address_is_as_closed_as_the_most_closed_behind_it() {
    let (web, api) = (workload("web", "10.0.0.1", &[]), workload("api", "10.0.0.4", &[]));
    let allow = mesh(vec![policy("a", Action::Allow, vec![from("web", &[5300])])]);
    assert_eq!(texts(&allow, &web), [""; 0]);
    assert_eq!(texts(&allow, &api), ALL);
    let deny = mesh(vec![
        policy("a", Action::Allow, vec![from("web", &[5300]), from("api", &[5300])]),
        policy("d", Action::Deny, vec![from("web", &[5300])]),
    ]);
    assert_eq!(texts(&deny, &web), ALL);
    assert_eq!(texts(&deny, &api), [""; 0]);
}

#[test]
fn a_port_that_no_rule_names_passes_and_dns_always_does() {
    let web = workload("web", "10.0.0.1", &[]);
    let other = mesh(vec![policy("a", Action::Allow, vec![from("nobody", &[5301])])]);
    assert_eq!(texts(&other, &web), [""; 0]);
    let dns = policy("d", Action::Deny, vec![from("web", &[53])]);
    assert_eq!(dns.udp_ports().count(), 0);
    let upserts = vec![
        Upsert::Policy(dns),
        Upsert::Workload(workload("db", "10.0.0.2", &["d"])),
        Upsert::Udp(at("10.0.0.2:53"), vec![behind("db", 53)]),
        Upsert::Udp(at("10.96.0.1:53"), vec![behind("unknown", 5353)]),
    ];
    assert_eq!(texts(&snapshot(upserts), &web), [""; 0]);
}

#[test]
fn what_has_not_reached_the_agent_denies() {
    let web = workload("web", "10.0.0.1", &[]);
    let allow = mesh(vec![policy("a", Action::Allow, vec![from("web", &[5300])])]);
    for lost in [Remove::Workload(WorkloadUid("db".into())), Remove::Policy(common::policy_name("a"))] {
        let delta = mesh_core::snapshot::Delta { version: 2, removes: vec![lost], ..Default::default() };
        assert_eq!(texts(&allow.apply(delta), &web), ALL);
    }
}

#[test]
fn rules_of_one_transport_have_no_say_in_the_other() {
    let web = workload("web", "10.0.0.1", &[]);
    let peer = Peer::Authenticated(web.identity.clone());
    let asks = |snapshot: &Snapshot, protocol| {
        let db = snapshot.workload(&WorkloadUid("db".into())).unwrap();
        let request = Request { peer: &peer, client: ip("10.0.0.1"), workload: db, protocol, port: 5300 };
        decide(snapshot, &request).is_allow()
    };
    // An ALLOW policy that speaks of UDP alone closes nothing for TCP.
    let udp = mesh(vec![policy("a", Action::Allow, vec![from("nobody", &[5300])])]);
    assert!(asks(&udp, Protocol::Tcp) && !asks(&udp, Protocol::Udp));
    // One of TCP, or without rules, closes nothing for UDP.
    let everybody = Rule::default();
    for rules in [vec![], vec![everybody]] {
        let tcp = mesh(vec![policy("a", Action::Allow, rules.clone())]);
        assert_eq!(asks(&tcp, Protocol::Tcp), !rules.is_empty());
        assert!(asks(&tcp, Protocol::Udp));
        let deny = mesh(vec![policy("d", Action::Deny, rules)]);
        assert!(asks(&deny, Protocol::Udp));
    }
    // In one rule each operation speaks for its own transport.
    let mut both = from("web", &[5300]);
    both.to.push(Operation { ports: vec![80], ..Operation::default() });
    let both = mesh(vec![policy("a", Action::Allow, vec![both])]);
    assert!(asks(&both, Protocol::Udp) && !asks(&both, Protocol::Tcp));
}
