//! Builders of small meshes for the tests of the decisions.
#![allow(dead_code, reason = "each test file uses its own part")]
#![expect(clippy::unwrap_used, reason = "a fixture that cannot be built is a failed test")]

use std::collections::BTreeMap;
use std::net::IpAddr;

use mesh_core::identity::{SpiffeId, TrustDomain};
use mesh_core::model::{
    Action, Affinity, AuthorizationPolicy, Endpoint, EndpointHealth, MtlsMode, MtlsModes, Owner, PolicyName,
    Rule, Service, ServiceName, ServicePort, TrafficScope, Workload, WorkloadUid,
};
use mesh_core::snapshot::{Delta, Snapshot, Upsert};

pub(crate) fn trust_domain() -> TrustDomain {
    TrustDomain::new("cluster.local").unwrap()
}

pub(crate) fn id(namespace: &str, account: &str) -> SpiffeId {
    SpiffeId::new(trust_domain(), namespace, account).unwrap()
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn policy_name(name: &str) -> PolicyName {
    PolicyName { namespace: "shop".into(), name: name.into() }
}

pub(crate) fn policy(name: &str, action: Action, rules: Vec<Rule>) -> AuthorizationPolicy {
    AuthorizationPolicy { name: policy_name(name), action, rules }
}

pub(crate) fn workload(uid: &str, address: &str, policies: &[&str]) -> Workload {
    Workload {
        uid: WorkloadUid(uid.into()),
        name: uid.into(),
        identity: id("shop", uid),
        node: "n1".into(),
        addresses: vec![ip(address)],
        enrolled: true,
        owner: Owner { kind: "Deployment".into(), name: uid.into() },
        mtls: MtlsModes { default: MtlsMode::Permissive, by_port: BTreeMap::new() },
        policies: policies.iter().map(|name| policy_name(name)).collect(),
        served: BTreeMap::new(),
        agent_lost_after: None,
        connect: None,
        probes: Default::default(),
        unit: None,
    }
}

pub(crate) fn endpoint(uid: &str, address: &str, node: &str, health: EndpointHealth) -> Endpoint {
    let workload = (!uid.is_empty()).then(|| WorkloadUid(uid.into()));
    Endpoint { workload, address: ip(address), node: node.into(), health, ports: vec![(80, 8080)] }
}

pub(crate) fn service(vip: &str, endpoints: Vec<Endpoint>) -> Service {
    Service {
        name: ServiceName { namespace: "shop".into(), name: "front".into() },
        vips: vec![ip(vip)],
        ports: vec![ServicePort { name: "http".into(), port: 80 }],
        endpoints,
        scope: TrafficScope::Cluster,
        affinity: Affinity::None,
    }
}

pub(crate) fn snapshot(upserts: Vec<Upsert>) -> Snapshot {
    let delta = Delta { version: 1, reset: true, upserts, removes: vec![] };
    Snapshot::empty(trust_domain()).apply(delta)
}
