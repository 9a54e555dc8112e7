//! A small mesh for the unit tests: one workload an address, one policy at will.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use mesh_core::identity::{SpiffeId, TrustDomain};
use mesh_core::model::{
    Action, AuthorizationPolicy, MtlsMode, MtlsModes, Operation, Owner, PolicyName, Rule, Workload,
    WorkloadUid,
};
use mesh_core::snapshot::{Delta, Snapshot, Upsert};

use crate::balance::Balancer;
use crate::context::{Context, DataplaneConfig};
use crate::control::{ControlMetrics, Lookup, LookupSettings, Published};
use crate::identify::SvidStore;
use crate::observe::{Metrics, SeriesLimits};

pub(crate) fn trust_domain() -> TrustDomain {
    TrustDomain::new("cluster.local").unwrap()
}

pub(crate) fn uid(name: &str) -> WorkloadUid {
    WorkloadUid(name.into())
}

/// A pod `name` of the Deployment of the same name in `shop`, on the node `n1`.
pub(crate) fn workload(name: &str, address: IpAddr) -> Workload {
    Workload {
        uid: uid(name),
        name: format!("{name}-0").into(),
        identity: SpiffeId::new(trust_domain(), "shop", name).unwrap(),
        node: "n1".into(),
        addresses: vec![address],
        enrolled: true,
        owner: Owner { kind: "Deployment".into(), name: name.into() },
        mtls: MtlsModes { default: MtlsMode::Permissive, by_port: BTreeMap::new() },
        policies: Vec::new(),
        served: Default::default(),
        agent_lost_after: None,
        connect: None,
        probes: Default::default(),
        unit: None,
    }
}

pub(crate) fn policy_name() -> PolicyName {
    PolicyName { namespace: "shop".into(), name: "closed".into() }
}

/// A policy that denies everybody `port`.
pub(crate) fn deny(port: u16) -> AuthorizationPolicy {
    let to = vec![Operation { ports: vec![port], ..Operation::default() }];
    let rules = vec![Rule { from: Vec::new(), to }];
    AuthorizationPolicy { name: policy_name(), action: Action::Deny, rules }
}

pub(crate) fn published(upserts: Vec<Upsert>) -> Published {
    let published = Published::new(trust_domain());
    publish(&published, upserts);
    published
}

/// Publishes the current snapshot with `upserts`.
pub(crate) fn publish(published: &Published, upserts: Vec<Upsert>) -> Arc<Snapshot> {
    let current = published.load();
    let delta = Delta { version: current.version + 1, upserts, ..Delta::default() };
    published.publish(current.apply(delta));
    published.load()
}

pub(crate) fn context(published: Published, config: DataplaneConfig) -> Arc<Context> {
    Arc::new(Context {
        node: "n1".into(),
        lookup: Lookup::new(published.clone(), LookupSettings::default(), ControlMetrics::default()),
        published,
        svids: Arc::new(SvidStore::new()),
        metrics: Metrics::new(SeriesLimits::default()),
        balancer: Balancer::default(),
        kubelet: None,
        config,
    })
}
