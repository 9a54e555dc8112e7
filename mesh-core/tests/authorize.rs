//! The authorization decision: precedence, identity conditions against plaintext, and that order does not matter.

mod common;

use common::{id, ip, policy, policy_name, snapshot, workload};
use mesh_core::authorize::{DenyReason, Peer, PlainReason, Request, Verdict, decide, decide_traced};
use mesh_core::model::{
    Action, AuthorizationPolicy, MtlsMode, Operation, Protocol, Rule, Source, StringMatch, Workload,
};
use mesh_core::snapshot::Upsert;
use proptest::prelude::*;

const PLAIN: Peer = Peer::Plain(PlainReason::NotMeshed);

fn principal(account: &str) -> StringMatch {
    StringMatch::Exact(format!("cluster.local/ns/shop/sa/{account}").into())
}

fn from(source: Source) -> Rule {
    Rule { from: vec![source], to: vec![] }
}

fn ask(policies: Vec<AuthorizationPolicy>, peer: &Peer, port: u16) -> Verdict {
    ask_of(|_| {}, policies, peer, port)
}

fn ask_of(
    change: impl FnOnce(&mut Workload),
    policies: Vec<AuthorizationPolicy>,
    peer: &Peer,
    port: u16,
) -> Verdict {
    let mut db = workload("db", "10.0.0.9", &[]);
    db.policies = policies.iter().map(|p| p.name.clone()).collect();
    change(&mut db);
    let mut upserts: Vec<_> = policies.into_iter().map(Upsert::Policy).collect();
    upserts.push(Upsert::Workload(db.clone()));
    decide(
        &snapshot(upserts),
        &Request { peer, client: ip("10.0.0.1"), workload: &db, protocol: Protocol::Tcp, port },
    )
}

fn api() -> Peer {
    Peer::Authenticated(id("shop", "api"))
}

#[test]
fn without_policies_everybody_may() {
    assert_eq!(ask(vec![], &PLAIN, 80), Verdict::Allow { by: None, audit: vec![] });
}

#[test]
fn strict_refuses_plaintext_and_names_the_reason() {
    let strict = |w: &mut Workload| w.mtls.default = MtlsMode::Strict;
    assert_eq!(ask_of(strict, vec![], &PLAIN, 80), Verdict::Deny(DenyReason::StrictMtls));
    assert!(ask_of(strict, vec![], &api(), 80).is_allow());
}

#[test]
fn the_kubelet_may_ask_a_probes_port_whatever_mode_and_policies_say_and_no_other_port() {
    const KUBELET: Peer = Peer::Plain(PlainReason::Kubelet);
    let probed = |w: &mut Workload| {
        w.mtls.default = MtlsMode::Strict;
        w.probes = [80].into();
    };
    let closed = || vec![policy("none", Action::Deny, vec![Rule::default()])];
    assert!(ask_of(probed, vec![], &KUBELET, 80).is_allow());
    assert!(ask_of(probed, closed(), &KUBELET, 80).is_allow());
    assert_eq!(ask_of(probed, vec![], &KUBELET, 81), Verdict::Deny(DenyReason::StrictMtls));
    assert_eq!(ask_of(probed, vec![], &PLAIN, 80), Verdict::Deny(DenyReason::StrictMtls));
    // On other ports it is as anybody without an identity.
    assert!(!ask(closed(), &KUBELET, 80).is_allow());
    assert!(ask(vec![], &KUBELET, 80).is_allow());
}

#[test]
fn a_port_can_be_the_exception_to_the_mode() {
    let change = |w: &mut Workload| {
        w.mtls.default = MtlsMode::Strict;
        w.mtls.by_port.insert(9090, MtlsMode::Permissive);
    };
    assert!(ask_of(change, vec![], &PLAIN, 9090).is_allow());
    assert!(!ask_of(change, vec![], &PLAIN, 80).is_allow());
}

#[test]
fn an_allow_policy_makes_the_default_deny() {
    let allow = policy(
        "only-api",
        Action::Allow,
        vec![from(Source { principals: vec![principal("api")], ..Source::default() })],
    );
    let by = Some(policy_name("only-api"));
    assert_eq!(ask(vec![allow.clone()], &api(), 80), Verdict::Allow { by, audit: vec![] });
    let web = Peer::Authenticated(id("shop", "web"));
    assert_eq!(ask(vec![allow], &web, 80), Verdict::Deny(DenyReason::NoAllowMatched));
}

#[test]
fn allow_without_rules_lets_nobody_in() {
    let none = policy("none", Action::Allow, vec![]);
    assert_eq!(ask(vec![none], &api(), 80), Verdict::Deny(DenyReason::NoAllowMatched));
}

#[test]
fn deny_beats_allow() {
    let allow = policy("a", Action::Allow, vec![Rule::default()]);
    let to = vec![Operation { ports: vec![5432], ..Operation::default() }];
    let deny = policy("d", Action::Deny, vec![Rule { from: vec![], to }]);
    for order in [vec![allow.clone(), deny.clone()], vec![deny, allow]] {
        assert_eq!(ask(order.clone(), &api(), 5432), Verdict::Deny(DenyReason::Denied(policy_name("d"), 0)));
        assert!(ask(order, &api(), 80).is_allow());
    }
}

#[test]
fn audit_changes_nothing_and_is_named() {
    let audit = policy("watch", Action::Audit, vec![Rule::default()]);
    assert_eq!(ask(vec![audit], &api(), 80), Verdict::Allow { by: None, audit: vec![policy_name("watch")] });
}

#[test]
fn ip_blocks_look_at_the_client_address() {
    let block = |net: &str| Source { ip_blocks: vec![net.parse().unwrap()], ..Source::default() };
    let allow = |net| vec![policy("net", Action::Allow, vec![from(block(net))])];
    assert!(ask(allow("10.0.0.0/24"), &PLAIN, 80).is_allow());
    assert!(!ask(allow("10.1.0.0/24"), &PLAIN, 80).is_allow());
}

#[test]
fn a_policy_that_has_not_arrived_denies() {
    let missing = |w: &mut Workload| w.policies = vec![policy_name("late")];
    let verdict = ask_of(missing, vec![], &api(), 80);
    assert_eq!(verdict, Verdict::Deny(DenyReason::PolicyMissing(policy_name("late"))));
}

#[test]
fn explain_tells_every_policy_that_was_looked_at() {
    let web = || from(Source { principals: vec![principal("web")], ..Source::default() });
    let other_port =
        || Rule { from: vec![], to: vec![Operation { ports: vec![81], ..Operation::default() }] };
    let deny = policy("d", Action::Deny, vec![web(), other_port()]);
    let allow = policy("a", Action::Allow, vec![other_port(), Rule::default()]);
    let none = policy("n", Action::Audit, vec![]);
    let db = workload("db", "10.0.0.9", &["d", "a", "n"]);
    let upserts = [deny, allow, none].map(Upsert::Policy).into_iter().chain([Upsert::Workload(db.clone())]);
    let snapshot = snapshot(upserts.collect());
    let told = |peer: &Peer| {
        let mut steps = Vec::new();
        let request =
            Request { peer, client: ip("10.0.0.1"), workload: &db, protocol: Protocol::Tcp, port: 80 };
        decide_traced(&snapshot, &request, &mut |subject, outcome| {
            steps.push(format!("{subject}: {outcome}"));
        });
        steps
    };
    assert_eq!(
        told(&api()),
        [
            "mTLS mode of port 80: Permissive",
            "Deny policy shop/d: did not match: rules[0].from[0]: principals; rules[1].to[0]: ports",
            "Allow policy shop/a: matched by rules[1]",
            "Audit policy shop/n: did not match: it has no rules",
        ]
    );
    assert_eq!(
        told(&PLAIN)[1..],
        ["Deny policy shop/d: matched by rules[0] (plaintext meets every identity condition of a DENY)"]
    );
}

#[test]
fn an_allow_that_asks_for_an_identity_says_so_to_plaintext() {
    let source = Source { not_principals: vec![principal("web")], ..Source::default() };
    let allow = policy("a", Action::Allow, vec![from(source)]);
    let db = workload("db", "10.0.0.9", &["a"]);
    let snapshot = snapshot(vec![Upsert::Policy(allow), Upsert::Workload(db.clone())]);
    let request =
        Request { peer: &PLAIN, client: ip("10.0.0.1"), workload: &db, protocol: Protocol::Tcp, port: 80 };
    let mut steps = Vec::new();
    let verdict = decide_traced(&snapshot, &request, &mut |_, outcome| steps.push(outcome.to_string()));
    assert_eq!(verdict, Verdict::Deny(DenyReason::NoAllowMatched));
    assert_eq!(steps[1], "did not match: rules[0].from[0]: an identity is asked for, and plaintext has none");
}

fn pattern() -> impl Strategy<Value = StringMatch> {
    prop_oneof![
        Just(StringMatch::Present),
        "[a-z]{0,4}".prop_map(|s| StringMatch::Prefix(s.into())),
        "[a-z]{0,4}".prop_map(|s| StringMatch::Suffix(s.into())),
        Just(principal("api")),
        Just(StringMatch::Exact("shop".into())),
    ]
}

fn identity_source() -> impl Strategy<Value = Source> {
    let list = || proptest::collection::vec(pattern(), 0..3);
    (list(), list(), list(), list())
        .prop_filter("at least one identity condition", |(a, b, c, d)| {
            !(a.is_empty() && b.is_empty() && c.is_empty() && d.is_empty())
        })
        .prop_map(|(principals, not_principals, namespaces, not_namespaces)| Source {
            principals,
            not_principals,
            namespaces,
            not_namespaces,
            ..Source::default()
        })
}

fn any_policy() -> impl Strategy<Value = (Action, Vec<Rule>)> {
    let action = prop_oneof![Just(Action::Allow), Just(Action::Deny), Just(Action::Audit)];
    let rule = proptest::collection::vec(identity_source(), 0..2).prop_map(|from| Rule { from, to: vec![] });
    (action, proptest::collection::vec(rule, 0..3))
}

proptest! {
    #[test]
    fn no_identity_condition_positive_or_negated_lets_a_stranger_in(source in identity_source()) {
        let allow = policy("a", Action::Allow, vec![from(source)]);
        prop_assert_eq!(ask(vec![allow], &PLAIN, 80), Verdict::Deny(DenyReason::NoAllowMatched));
    }

    #[test]
    fn a_deny_on_identity_is_not_evaded_by_plaintext(source in identity_source()) {
        let deny = policy("d", Action::Deny, vec![from(source)]);
        prop_assert_eq!(ask(vec![deny], &PLAIN, 80), Verdict::Deny(DenyReason::Denied(policy_name("d"), 0)));
    }

    #[test]
    fn the_order_of_policies_never_changes_whether_a_peer_may(
        list in proptest::collection::vec(any_policy(), 0..5),
        plain in any::<bool>(),
    ) {
        let peer = if plain { PLAIN } else { api() };
        let named: Vec<_> = list
            .into_iter()
            .enumerate()
            .map(|(i, (action, rules))| policy(&format!("p{i}"), action, rules))
            .collect();
        let forward = ask(named.clone(), &peer, 80).is_allow();
        let backward = ask(named.into_iter().rev().collect(), &peer, 80).is_allow();
        prop_assert_eq!(forward, backward);
    }
}
