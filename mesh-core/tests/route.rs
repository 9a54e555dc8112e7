//! What a dialled address means, with kube-proxy's semantics, and the balancer.

mod common;

use common::{endpoint, ip, service, snapshot, workload};
use mesh_core::balance::pick_two_choices;
use mesh_core::model::{EndpointHealth, Service, TrafficScope};
use mesh_core::route::{NoRoute, Route, resolve, unserved};
use mesh_core::snapshot::{Delta, Destination, Remove, Snapshot, Upsert};
use proptest::prelude::*;
use proptest::sample::select;

fn mesh(service: Service) -> Snapshot {
    snapshot(vec![
        Upsert::Workload(workload("a", "10.0.0.1", &[])),
        Upsert::Workload(workload("b", "10.0.0.2", &[])),
        Upsert::Service(service),
        Upsert::Absent(ip("192.0.2.1")),
    ])
}

fn addresses(route: Route) -> Vec<String> {
    match route {
        Route::Service { candidates, .. } => candidates.iter().map(|c| c.address.to_string()).collect(),
        Route::Direct(candidate) => vec![candidate.address.to_string()],
        Route::PassThrough(address) => vec![format!("pass {address}")],
    }
}

fn routed(service: Service, dst: &str) -> Result<Vec<String>, NoRoute> {
    let dst = dst.parse().expect("a socket address");
    resolve(&mesh(service), "n1", dst).map(addresses)
}

use EndpointHealth::{NotReady, Ready, ServingTerminating};

#[test]
fn a_virtual_address_goes_to_its_ready_endpoints_at_their_target_port() {
    let front = service(
        "10.96.0.1",
        vec![endpoint("a", "10.0.0.1", "n1", Ready), endpoint("b", "10.0.0.2", "n2", NotReady)],
    );
    assert_eq!(routed(front, "10.96.0.1:80").unwrap(), ["10.0.0.1:8080"]);
}

#[test]
fn terminating_endpoints_that_still_serve_are_the_last_resort() {
    let both =
        vec![endpoint("a", "10.0.0.1", "n1", ServingTerminating), endpoint("b", "10.0.0.2", "n2", Ready)];
    assert_eq!(routed(service("10.96.0.1", both.clone()), "10.96.0.1:80").unwrap(), ["10.0.0.2:8080"]);
    assert_eq!(routed(service("10.96.0.1", both[..1].to_vec()), "10.96.0.1:80").unwrap(), ["10.0.0.1:8080"]);
}

#[test]
fn node_local_services_never_leave_the_node() {
    let mut front = service("10.96.0.1", vec![endpoint("b", "10.0.0.2", "n2", Ready)]);
    assert!(routed(front.clone(), "10.96.0.1:80").is_ok());
    front.scope = TrafficScope::NodeLocal;
    assert!(matches!(routed(front, "10.96.0.1:80"), Err(NoRoute::NoEndpoint { .. })));
}

#[test]
fn an_endpoint_whose_pod_is_not_known_yet_is_not_dialled_in_plaintext() {
    let front = service("10.96.0.1", vec![endpoint("unknown", "10.0.0.3", "n2", Ready)]);
    assert!(matches!(routed(front, "10.96.0.1:80"), Err(NoRoute::NoEndpoint { .. })));
    let bare = service("10.96.0.1", vec![endpoint("", "198.51.100.7", "", Ready)]);
    assert_eq!(routed(bare, "10.96.0.1:80").unwrap(), ["198.51.100.7:8080"]);
}

#[test]
fn an_address_family_is_never_crossed() {
    let mut front = service("10.96.0.1", vec![endpoint("", "2001:db8::7", "", Ready)]);
    front.vips.push(ip("2001:db8:96::1"));
    assert!(matches!(routed(front.clone(), "10.96.0.1:80"), Err(NoRoute::NoEndpoint { .. })));
    assert_eq!(routed(front, "[2001:db8:96::1]:80").unwrap(), ["[2001:db8::7]:8080"]);
}

#[test]
fn a_port_that_the_service_lacks_is_no_route() {
    let front = service("10.96.0.1", vec![endpoint("a", "10.0.0.1", "n1", Ready)]);
    assert!(matches!(routed(front, "10.96.0.1:81"), Err(NoRoute::NoSuchPort { port: 81, .. })));
}

#[test]
fn pods_are_direct_unknown_addresses_pass_and_the_rest_is_asked_for() {
    let front = service("10.96.0.1", vec![]);
    assert_eq!(routed(front.clone(), "10.0.0.2:9").unwrap(), ["10.0.0.2:9"]);
    assert_eq!(routed(front.clone(), "192.0.2.1:443").unwrap(), ["pass 192.0.2.1:443"]);
    assert_eq!(routed(front, "192.0.2.2:443"), Err(NoRoute::NotLoaded(ip("192.0.2.2"))));
}

#[test]
fn an_address_that_moved_to_another_pod_stays_with_it_when_the_first_goes() {
    let first = snapshot(vec![Upsert::Workload(workload("a", "10.0.0.1", &[]))]);
    let moved = first.apply(Delta {
        version: 2,
        upserts: vec![Upsert::Workload(workload("b", "10.0.0.1", &[]))],
        ..Delta::default()
    });
    let gone = Remove::Workload(workload("a", "10.0.0.1", &[]).uid);
    let last = moved.apply(Delta { version: 3, removes: vec![gone], ..Delta::default() });
    match last.destination(ip("10.0.0.1")) {
        Destination::Workload(held) => assert_eq!(&*held.name, "b"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_whole_of_a_snapshot_makes_the_same_again() {
    let gone = Upsert::Unserved("10.96.0.9:80".parse().unwrap());
    let policy = common::policy("p", mesh_core::model::Action::Deny, vec![]);
    let more = vec![Upsert::Absent(ip("192.0.2.1")), gone, Upsert::Policy(policy)];
    let full =
        mesh(service("10.96.0.1", vec![])).apply(Delta { version: 7, upserts: more, ..Delta::default() });
    let again = Snapshot::empty(full.trust_domain.clone()).apply(full.whole());
    let parts = |s: &Snapshot| {
        let mut parts: Vec<String> = s.whole().upserts.iter().map(|part| format!("{part:?}")).collect();
        parts.sort();
        (s.version, parts)
    };
    assert_eq!(parts(&again), parts(&full));
    assert_eq!(parts(&again).1.len(), full.workloads().count() + 4);
    assert!(matches!(again.destination(ip("10.96.0.1")), Destination::Service(_)));
    assert!(matches!(again.destination(ip("192.0.2.1")), Destination::Absent));
}

#[test]
fn a_reset_forgets_what_was_held() {
    let full = mesh(service("10.96.0.1", vec![]));
    let empty = full.apply(Delta { version: 9, reset: true, ..Delta::default() });
    assert_eq!((empty.version, empty.workloads().count(), empty.services().count()), (9, 0, 0));
}

proptest! {
    /// What the kernel refuses is what the slow path would refuse, whatever the conditions of the endpoints.
    #[test]
    fn an_address_is_unserved_exactly_when_it_resolves_to_no_endpoint(
        healths in proptest::collection::vec((select(&[Ready, NotReady, ServingTerminating]), 0usize..4, any::<bool>()), 0..4),
        local: bool,
    ) {
        let of = |(health, which, served): &(EndpointHealth, usize, bool)| {
            let (uid, address, node) =
                [("a", "10.0.0.1", "n1"), ("b", "10.0.0.2", "n2"), ("gone", "10.0.0.3", "n1"), ("", "2001:db8::7", "n1")][*which];
            let mut endpoint = endpoint(uid, address, node, *health);
            endpoint.ports.truncate(usize::from(*served));
            endpoint
        };
        let mut front = service("10.96.0.1", healths.iter().map(of).collect());
        front.vips.push(ip("2001:db8:96::1"));
        front.scope = if local { TrafficScope::NodeLocal } else { TrafficScope::Cluster };
        let told: Vec<String> =
            unserved(&front, "n1", |uid| &*uid.0 != "gone").map(|address| address.to_string()).collect();
        for dst in ["10.96.0.1:80", "[2001:db8:96::1]:80"] {
            let refused = matches!(routed(front.clone(), dst), Err(NoRoute::NoEndpoint { .. }));
            prop_assert_eq!(told.iter().any(|address| address == dst), refused, "{}", dst);
        }
    }

    #[test]
    fn two_choices_stay_in_range_and_never_take_the_busiest_of_all(len in 2usize..50, random: u64, busiest in 0usize..50) {
        let busiest = busiest % len;
        let picked = pick_two_choices(len, random, |i| usize::from(i == busiest)).unwrap();
        prop_assert!(picked < len);
        prop_assert_ne!(picked, busiest);
    }
}

#[test]
fn two_choices_spread_evenly() {
    let (mut loads, mut random) = (vec![0usize; 10], 7u64);
    for _ in 0..10_000 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mixed = random ^ (random >> 29);
        let picked = pick_two_choices(loads.len(), mixed, |i| loads[i]).unwrap();
        loads[picked] += 1;
    }
    assert!(loads.iter().all(|l| (990..=1010).contains(l)), "{loads:?}");
    assert_eq!(pick_two_choices(0, 1, |_| 0), None);
}
