//! What a stream has been sent, whatever changes in whatever order: always what a new stream would be sent.

use std::collections::BTreeMap;
use std::net::IpAddr;

use mesh_controller::compile::{Compiled, compile};
use mesh_controller::index::Index;
use mesh_controller::object::{Kind, Name, ObjectRef};
use mesh_controller::serve::View;
use mesh_controller::watch::{Batch, Change};
use mesh_core::snapshot::{Delta, Remove, Upsert};
use proptest::prelude::*;

use crate::common::{changes, entry, namespace, pod, trust_domain};

const PODS: [&str; 4] = ["p0", "p1", "p2", "p3"];
const NODES: [&str; 3] = ["n0", "n1", "n2"];
/// Four of pods, two of services, one of nobody.
const ADDRESSES: [&str; 7] =
    ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.96.0.1", "10.96.0.2", "10.0.9.9"];

/// One thing that a user or a kubelet does.
#[derive(Clone, Debug)]
enum Deed {
    Pod {
        which: usize,
        node: usize,
        address: usize,
        app: usize,
        ready: bool,
    },
    /// Called as a pod is; two of one node have one unit.
    Entry {
        which: usize,
        node: usize,
        app: usize,
    },
    Service {
        which: usize,
        local: bool,
    },
    Policy {
        udp: bool,
        port: u16,
    },
    Namespace {
        enrolled: bool,
    },
    Strict(bool),
    Delete(Kind, usize),
}

/// What happens between two looks.
#[derive(Clone, Debug)]
struct Step {
    deeds: Vec<Deed>,
    /// A view asks for an address, or gives it up.
    asks: Option<(usize, usize, bool)>,
    /// Which views are sent something now.
    awake: [bool; 3],
}

fn deed() -> impl Strategy<Value = Deed> {
    let pod = (0..PODS.len(), 0..NODES.len(), 0..4usize, 0..2usize, any::<bool>());
    prop_oneof![
        6 => pod.prop_map(|(which, node, address, app, ready)| Deed::Pod { which, node, address, app, ready }),
        2 => (0..2usize, 0..NODES.len(), 0..2usize).prop_map(|(which, node, app)| Deed::Entry { which, node, app }),
        1 => (0..2usize).prop_map(|which| Deed::Delete(Kind::WorkloadEntry, which)),
        2 => (0..2usize, any::<bool>()).prop_map(|(which, local)| Deed::Service { which, local }),
        2 => (any::<bool>(), 80..82u16).prop_map(|(udp, port)| Deed::Policy { udp, port }),
        1 => any::<bool>().prop_map(|enrolled| Deed::Namespace { enrolled }),
        1 => any::<bool>().prop_map(Deed::Strict),
        3 => (0..PODS.len()).prop_map(|which| Deed::Delete(Kind::Pod, which)),
        1 => (0..2usize).prop_map(|which| Deed::Delete(Kind::Service, which)),
        1 => Just(Deed::Delete(Kind::AuthorizationPolicy, 0)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let asks = prop::option::weighted(0.4, (0..NODES.len(), 0..ADDRESSES.len(), prop::bool::weighted(0.8)));
    (prop::collection::vec(deed(), 0..3), asks, any::<[bool; 3]>()).prop_map(|(deeds, asks, awake)| Step {
        deeds,
        asks,
        awake,
    })
}

fn mesh_object(kind: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: ferromesh.io/v1alpha1\nkind: {kind}\nmetadata: {{name: x0, namespace: shop}}\nspec: {spec}\n"
    )
}

fn applied(deed: &Deed) -> Vec<Change> {
    changes(&match deed {
        Deed::Pod { which, node, address, app, ready } => {
            pod(PODS[*which], NODES[*node], ADDRESSES[*address])
                .replace(&format!("app: {}", PODS[*which]), &format!("app: a{app}"))
                .replace(
                    "  phase: Running",
                    &format!(
                        "  phase: Running\n  conditions: [{{type: Ready, status: \"{}\"}}]",
                        if *ready { "True" } else { "False" }
                    ),
                )
        }
        Deed::Entry { which, node, app } => entry(PODS[*which], NODES[*node])
            .replace(&format!("app: {}", PODS[*which]), &format!("app: a{app}"))
            .replace("unit: p0", "unit: p")
            .replace("unit: p1", "unit: p"),
        Deed::Service { which, local } => format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: x{which}, namespace: shop}}\nspec: {{clusterIP: {}, \
             selector: {{app: a{which}}}, internalTrafficPolicy: {}, ports: [{{name: w, port: 80, targetPort: 8080}}]}}\n",
            ADDRESSES[4 + which],
            if *local { "Local" } else { "Cluster" }
        ),
        Deed::Policy { udp, port } => {
            let protocol = if *udp { "protocol: UDP, " } else { "" };
            let to = format!("[{{operation: {{{protocol}ports: [{port}]}}}}]");
            let spec =
                format!("{{selector: {{matchLabels: {{app: a0}}}}, action: DENY, rules: [{{to: {to}}}]}}");
            mesh_object("AuthorizationPolicy", &spec)
        }
        Deed::Namespace { enrolled } => namespace("shop", *enrolled),
        Deed::Strict(strict) => mesh_object(
            "MeshConfig",
            if *strict { "{mtls: {mode: STRICT}}" } else { "{mtls: {mode: PERMISSIVE}}" },
        ),
        Deed::Delete(kind, which) => {
            let prefix = if matches!(kind, Kind::Pod | Kind::WorkloadEntry) { "p" } else { "x" };
            let name = Name { namespace: "shop".into(), name: format!("{prefix}{which}").into() };
            return vec![Change::Delete(ObjectRef { kind: *kind, name })];
        }
    })
}

/// What an agent holds after its deltas: each resource by its name.
#[derive(Debug, Default)]
struct Agent(BTreeMap<String, Upsert>);

impl Agent {
    fn take(&mut self, delta: Delta) {
        if delta.reset {
            self.0.clear();
        }
        for remove in delta.removes {
            let known = self.0.remove(&format!("{remove:?}"));
            assert!(known.is_some(), "{remove:?} was never sent");
        }
        for upsert in delta.upserts {
            let name = match &upsert {
                Upsert::Workload(w) => Remove::Workload(w.uid.clone()),
                Upsert::Service(s) => Remove::Service(s.name.clone()),
                Upsert::Policy(p) => Remove::Policy(p.name.clone()),
                Upsert::Absent(a) => Remove::Absent(*a),
                Upsert::Unserved(a) => Remove::Unserved(*a),
                Upsert::Udp(a, _) => Remove::Udp(*a),
            };
            self.0.insert(format!("{name:?}"), upsert);
        }
    }
}

/// Two services and their pods.
fn begin() -> Vec<Change> {
    let pod =
        |which| Deed::Pod { which, node: which % NODES.len(), address: which, app: which % 2, ready: true };
    let service = |which| Deed::Service { which, local: false };
    let deeds = [Deed::Namespace { enrolled: true }].into_iter().chain((0..PODS.len()).map(pod));
    deeds.chain((0..2).map(service)).flat_map(|deed| applied(&deed)).collect()
}

fn addresses(asked: &[bool]) -> impl Iterator<Item = IpAddr> {
    let asked = ADDRESSES.iter().zip(asked).filter(|(_, asked)| **asked);
    asked.map(|(address, _)| address.parse().unwrap())
}

/// What a stream that begins now is sent.
fn anew(node: &str, asked: &[bool], compiled: &Compiled) -> Agent {
    let mut view = View::new(node.into());
    assert!(view.subscribe(addresses(asked), 100));
    let mut agent = Agent::default();
    agent.take(view.advance(compiled).unwrap());
    agent
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_stream_has_always_been_sent_what_a_new_one_would_be(steps in prop::collection::vec(step(), 1..16)) {
        let mut index = Index::new(true);
        index.update(Batch { changes: begin(), statuses: Vec::new() });
        // Each asks for the services at first.
        let mut asked = [[false, false, false, false, true, true, false]; NODES.len()];
        let stream = |node: &&str| {
            let mut view = View::new((*node).into());
            assert!(view.subscribe(addresses(&asked[0]), 100));
            (view, Agent::default())
        };
        let mut streams: Vec<_> = NODES.iter().map(stream).collect();
        let mut last: Option<Compiled> = None;
        for (number, step) in steps.iter().enumerate() {
            let changes = step.deeds.iter().flat_map(applied).collect();
            index.update(Batch { changes, statuses: Vec::new() });
            let compiled = compile(&index, &trust_domain(), number as u64 + 1, last.as_ref());
            if let Some((view, address, more)) = step.asks {
                asked[view][address] = more;
                let address = [ADDRESSES[address].parse().unwrap()];
                match more {
                    true => assert!(streams[view].0.subscribe(address, 100)),
                    false => streams[view].0.unsubscribe(address),
                }
            }
            for (at, (view, agent)) in streams.iter_mut().enumerate().filter(|(at, _)| step.awake[*at]) {
                agent.take(view.advance(&compiled).unwrap_or_default());
                prop_assert_eq!(&agent.0, &anew(NODES[at], &asked[at], &compiled).0);
                prop_assert!(view.advance(&compiled).is_none(), "sent twice");
            }
            last = Some(compiled);
        }
    }
}
