//! What the controller encodes is what the agent decodes; what nobody encoded is refused by name and never panics.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_api::{decode, encode, proto};
use mesh_core::identity::{SpiffeId, TrustDomain};
use mesh_core::model::{
    Action, Affinity, AuthorizationPolicy, ConnectMode, Endpoint, EndpointHealth, MtlsMode, MtlsModes,
    Operation, Owner, PolicyName, Protocol, Rule, Service, ServiceName, ServicePort, Source, StringMatch,
    TrafficScope, Workload, WorkloadUid,
};
use mesh_core::snapshot::{Delta, Remove, UdpBackend, Upsert};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use prost::Message;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};

fn name() -> impl Strategy<Value = Arc<str>> {
    "[a-z][a-z0-9.-]{0,12}".prop_map(Arc::from)
}

fn policy_name() -> impl Strategy<Value = PolicyName> {
    (name(), name()).prop_map(|(namespace, name)| PolicyName { namespace, name })
}

fn service_name() -> impl Strategy<Value = ServiceName> {
    (name(), name()).prop_map(|(namespace, name)| ServiceName { namespace, name })
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<[u8; 4]>().prop_map(IpAddr::from),
        any::<[u8; 16]>().prop_map(|octets| IpAddr::from(octets).to_canonical()),
    ]
}

fn mode() -> impl Strategy<Value = MtlsMode> {
    prop_oneof![Just(MtlsMode::Strict), Just(MtlsMode::Permissive)]
}

fn workload() -> impl Strategy<Value = Workload> {
    let texts = (name(), name(), name(), name(), name(), name());
    let lists = (vec(address(), 0..3), btree_map(any::<u16>(), mode(), 0..3), vec(policy_name(), 0..3));
    let served = btree_map(any::<u16>(), service_name(), 0..3);
    let lost = proptest::option::of((1..=u32::MAX).prop_map(|seconds| Duration::from_secs(seconds.into())));
    let connect = prop_oneof![Just(None), Just(Some(ConnectMode::Honest)), Just(Some(ConnectMode::Eager))];
    let probes = proptest::collection::btree_set(any::<u16>(), 0..3);
    let unit = proptest::option::of(name());
    let more = (served, any::<bool>(), lost, (connect, probes, unit));
    (texts, lists, more, mode()).prop_map(
        |(texts, lists, (served, enrolled, lost, (connect, probes, unit)), default)| {
            let (uid, name, namespace, account, node, owner) = texts;
            let domain = TrustDomain::new("cluster.local").unwrap();
            Workload {
                uid: WorkloadUid(uid),
                name,
                identity: SpiffeId::new(domain, &namespace, &account).unwrap(),
                node,
                addresses: lists.0,
                enrolled,
                owner: Owner { kind: "Deployment".into(), name: owner },
                mtls: MtlsModes { default, by_port: lists.1 },
                policies: lists.2,
                served,
                agent_lost_after: lost,
                connect,
                probes,
                unit,
            }
        },
    )
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    let health = prop_oneof![
        Just(EndpointHealth::Ready),
        Just(EndpointHealth::ServingTerminating),
        Just(EndpointHealth::NotReady)
    ];
    let ports = btree_map(any::<u16>(), any::<u16>(), 0..3);
    (proptest::option::of(name()), address(), "[a-z]{0,5}", health, ports).prop_map(
        |(uid, address, node, health, ports)| Endpoint {
            workload: uid.map(WorkloadUid),
            address,
            node: node.into(),
            health,
            ports: ports.into_iter().collect(),
        },
    )
}

fn service() -> impl Strategy<Value = Service> {
    let port = ("[a-z]{0,4}", any::<u16>()).prop_map(|(name, port)| ServicePort { name: name.into(), port });
    let scope = prop_oneof![Just(TrafficScope::Cluster), Just(TrafficScope::NodeLocal)];
    let affinity = prop_oneof![
        Just(Affinity::None),
        (1..100_000_u64).prop_map(|s| Affinity::ClientIp(Duration::from_secs(s)))
    ];
    (service_name(), vec(address(), 0..3), vec(port, 0..3), vec(endpoint(), 0..4), scope, affinity).prop_map(
        |(name, vips, ports, endpoints, scope, affinity)| Service {
            name,
            vips,
            ports,
            endpoints,
            scope,
            affinity,
        },
    )
}

fn pattern() -> impl Strategy<Value = StringMatch> {
    prop_oneof![
        name().prop_map(StringMatch::Exact),
        name().prop_map(StringMatch::Prefix),
        name().prop_map(StringMatch::Suffix),
        Just(StringMatch::Present)
    ]
}

fn source() -> impl Strategy<Value = Source> {
    let patterns = || vec(pattern(), 0..3);
    let block = || (any::<[u8; 4]>(), 0..=32_u8);
    let blocks = || vec(block().prop_map(|(a, p)| format!("{}/{p}", IpAddr::from(a)).parse().unwrap()), 0..2);
    (patterns(), patterns(), patterns(), patterns(), blocks(), blocks()).prop_map(
        |(principals, not_principals, namespaces, not_namespaces, ip_blocks, not_ip_blocks)| Source {
            principals,
            not_principals,
            namespaces,
            not_namespaces,
            ip_blocks,
            not_ip_blocks,
        },
    )
}

fn policy() -> impl Strategy<Value = AuthorizationPolicy> {
    let ports = || vec(any::<u16>(), 0..3);
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)];
    let operation = (protocol, ports(), ports()).prop_map(|(protocol, ports, not_ports)| Operation {
        protocol,
        ports,
        not_ports,
    });
    let rule = (vec(source(), 0..3), vec(operation, 0..3)).prop_map(|(from, to)| Rule { from, to });
    let action = prop_oneof![Just(Action::Allow), Just(Action::Deny), Just(Action::Audit)];
    (policy_name(), action, vec(rule, 0..3)).prop_map(|(name, action, rules)| AuthorizationPolicy {
        name,
        action,
        rules,
    })
}

fn udp_backend() -> impl Strategy<Value = UdpBackend> {
    (name(), any::<u16>()).prop_map(|(uid, port)| UdpBackend { workload: WorkloadUid(uid), port })
}

fn any_delta() -> impl Strategy<Value = Delta> {
    let upsert = prop_oneof![
        workload().prop_map(Upsert::Workload),
        service().prop_map(Upsert::Service),
        policy().prop_map(Upsert::Policy),
        address().prop_map(Upsert::Absent),
        (address(), any::<u16>()).prop_map(|at| Upsert::Unserved(at.into())),
        ((address(), any::<u16>()), vec(udp_backend(), 0..3))
            .prop_map(|(at, behind)| Upsert::Udp(at.into(), behind))
    ];
    let remove = prop_oneof![
        name().prop_map(|uid| Remove::Workload(WorkloadUid(uid))),
        service_name().prop_map(Remove::Service),
        policy_name().prop_map(Remove::Policy),
        address().prop_map(Remove::Absent),
        (address(), any::<u16>()).prop_map(|at| Remove::Unserved(at.into())),
        (address(), any::<u16>()).prop_map(|at| Remove::Udp(at.into()))
    ];
    (any::<u64>(), any::<bool>(), vec(upsert, 0..5), vec(remove, 0..5))
        .prop_map(|(version, reset, upserts, removes)| Delta { version, reset, upserts, removes })
}

proptest! {
    #[test]
    fn a_delta_survives_the_wire(delta in any_delta()) {
        let domain = TrustDomain::new("cluster.local").unwrap();
        let bytes = encode::delta(&delta, &domain).encode_to_vec();
        let message = proto::ControllerMessage::decode(&*bytes).unwrap();
        prop_assert_eq!(decode::delta(message), Ok(delta));
    }
}

fn sample_workload() -> proto::Workload {
    proto::Workload {
        uid: "u1".into(),
        name: "web-1".into(),
        spiffe_id: "spiffe://cluster.local/ns/shop/sa/web".into(),
        node: "n1".into(),
        addresses: vec![vec![10, 0, 0, 1]],
        mtls: proto::MtlsMode::Permissive.into(),
        ..Default::default()
    }
}

fn sample_name() -> Option<proto::NamespacedName> {
    Some(proto::NamespacedName { namespace: "shop".into(), name: "db".into() })
}

#[test]
fn an_unspecified_or_unknown_mtls_mode_is_strict() {
    for mode in [0, 3, -1, i32::MAX] {
        let mut message = sample_workload();
        message.mtls = mode;
        message.mtls_by_port.insert(80, mode);
        let workload = decode::workload(message).unwrap();
        assert_eq!(workload.mtls.default, MtlsMode::Strict, "mode {mode}");
        assert_eq!(workload.mtls.of(80), MtlsMode::Strict, "mode {mode} by port");
    }
}

#[test]
fn an_unknown_endpoint_condition_is_not_ready() {
    for health in [0, 4, -1] {
        let endpoint = proto::Endpoint { address: vec![10, 0, 0, 1], health, ..Default::default() };
        let service = proto::Service { name: sample_name(), endpoints: vec![endpoint], ..Default::default() };
        assert_eq!(decode::service(service).unwrap().endpoints[0].health, EndpointHealth::NotReady);
    }
}

#[test]
fn an_unspecified_or_unknown_action_is_refused() {
    for action in [0, 4, -1] {
        let policy = proto::AuthorizationPolicy { name: sample_name(), action, rules: vec![] };
        let error = decode::policy(policy).unwrap_err();
        assert_eq!((error.resource.as_str(), error.field), ("policy shop/db", "action"));
        assert_eq!(error.problem, decode::Problem::Action(action));
    }
}

#[test]
fn errors_name_the_resource_and_the_field() {
    let text = |error: decode::DecodeError| error.to_string();
    let mut message = sample_workload();
    message.addresses.push(vec![1, 2, 3]);
    assert_eq!(
        text(decode::workload(message).unwrap_err()),
        "workload web-1 (u1): addresses: an address has 4 or 16 bytes, this one has 3"
    );
    let mut message = sample_workload();
    message.mtls_by_port.insert(65536, 1);
    assert_eq!(
        text(decode::workload(message).unwrap_err()),
        "workload web-1 (u1): mtls_by_port: 65536 is not a port"
    );
    let ports = vec![proto::ServicePort { name: "http".into(), port: 70000 }];
    let message = proto::Service { name: sample_name(), ports, ..Default::default() };
    assert_eq!(text(decode::service(message).unwrap_err()), "service shop/db: ports: 70000 is not a port");
    assert_eq!(text(decode::service(proto::Service::default()).unwrap_err()), "service: name: is missing");
    let mut message = sample_workload();
    message.spiffe_id = "spiffe://cluster.local/shop/web".into();
    assert!(text(decode::workload(message).unwrap_err()).starts_with("workload web-1 (u1): spiffe_id: "));
}

#[test]
fn a_star_in_the_middle_is_not_a_pattern() {
    for text in ["a*b", "**", "*a*", "a**", ""] {
        let from = vec![proto::Source { principals: vec![text.into()], ..Default::default() }];
        let policy = proto::AuthorizationPolicy {
            name: sample_name(),
            action: 1,
            rules: vec![proto::Rule { from, to: vec![] }],
        };
        let error = decode::policy(policy).unwrap_err();
        assert_eq!(error.field, "rules.from.principals", "{text:?}");
    }
}

#[test]
fn one_bad_resource_refuses_the_whole_delta() {
    let kind = |k| proto::Resource { kind: Some(k) };
    let message = proto::ControllerMessage {
        version: 7,
        upserts: vec![
            kind(proto::resource::Kind::Workload(sample_workload())),
            kind(proto::resource::Kind::Absent(vec![1])),
        ],
        ..Default::default()
    };
    assert_eq!(decode::delta(message).unwrap_err().field, "absent");
}

#[test]
fn mapped_addresses_on_the_wire_are_ipv4_inside() {
    let mut message = sample_workload();
    message.addresses = vec![[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 10, 9, 8, 7].to_vec()];
    let workload = decode::workload(message).unwrap();
    assert_eq!(workload.addresses, ["10.9.8.7".parse::<IpAddr>().unwrap()]);
}

#[test]
fn a_hundred_thousand_random_messages_never_panic() {
    let mut random = StdRng::seed_from_u64(0x6665_7272_6f6d);
    let seed = {
        let delta = Delta {
            version: 1,
            reset: true,
            upserts: vec![Upsert::Workload(decode::workload(sample_workload()).unwrap())],
            removes: vec![Remove::Absent([10, 0, 0, 1].into())],
        };
        encode::delta(&delta, &TrustDomain::new("cluster.local").unwrap()).encode_to_vec()
    };
    let mut decoded = 0_u32;
    for round in 0..100_000_u32 {
        // Half are noise, half are a true message with a few bytes changed, which gets further into the decoder.
        let bytes = if round % 2 == 0 {
            let mut bytes = vec![0; random.random_range(0..200)];
            random.fill_bytes(&mut bytes);
            bytes
        } else {
            let mut bytes = seed.clone();
            for _ in 0..random.random_range(1..4) {
                let at = random.random_range(0..bytes.len());
                bytes[at] = random.random();
            }
            bytes
        };
        if let Ok(message) = proto::ControllerMessage::decode(&*bytes)
            && decode::delta(message).is_ok()
        {
            decoded += 1;
        }
    }
    assert!(decoded > 1_000, "only {decoded} messages got through: the test does not reach the decoder");
}
