//! Fewer connections win, affinity holds until silence, failed endpoints are not taken again.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use mesh_core::model::{Affinity, ServiceName};
use mesh_core::route::Candidate;

use super::affinity::AffinityTable;
use super::{Asker, Balancer};
use crate::fixture;
use crate::route::Routed;

const MINUTE: Duration = Duration::from_secs(60);

fn endpoint(last: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, last], 8080))
}

fn asker(last: u8) -> Asker {
    Asker { client: IpAddr::from([10, 1, 0, last]), port: 80 }
}

fn routed(endpoints: u8, affinity: Affinity) -> Routed {
    Routed {
        snapshot: fixture::published(Vec::new()).load(),
        service: Some(ServiceName { namespace: "shop".into(), name: "db".into() }),
        affinity,
        candidates: (1..=endpoints).map(|i| Candidate { address: endpoint(i), workload: None }).collect(),
        pass_through: false,
    }
}

/// Words that make every pair of choices come up.
fn words() -> impl Iterator<Item = u64> {
    (0..64_u64).map(|i| ((i / 8) << 32) | (i % 8))
}

#[test]
fn of_two_endpoints_the_one_with_fewer_connections_is_taken_until_both_are_even() {
    let (balancer, routed) = (Balancer::default(), routed(2, Affinity::None));
    let pick = |random| balancer.pick(&routed, asker(1), &[], random, Instant::now()).unwrap().address;
    let held: Vec<_> = (0..3).map(|_| balancer.enter(endpoint(1))).collect();
    assert!(words().all(|random| pick(random) == endpoint(2)));
    let _more: Vec<_> = (0..4).map(|_| balancer.enter(endpoint(2))).collect();
    assert!(words().all(|random| pick(random) == endpoint(1)));
    drop(held);
    assert_eq!(balancer.loads.of(&[endpoint(1), endpoint(2)]), [0, 4]);
}

#[test]
fn an_endpoint_that_failed_is_not_taken_again_and_none_is_left_in_the_end() {
    let (balancer, routed) = (Balancer::default(), routed(3, Affinity::None));
    let mut tried = Vec::new();
    while let Some(candidate) = balancer.pick(&routed, asker(1), &tried, 7, Instant::now()) {
        tried.push(candidate.address);
    }
    tried.sort();
    assert_eq!(tried, [endpoint(1), endpoint(2), endpoint(3)]);
}

#[test]
fn a_client_stays_with_its_endpoint_until_it_was_silent_for_long_enough() {
    let (balancer, routed) = (Balancer::default(), routed(8, Affinity::ClientIp(MINUTE)));
    let start = Instant::now();
    let pick = |client, random, now| balancer.pick(&routed, asker(client), &[], random, now).unwrap().address;
    let first = pick(1, 0, start);
    let mut now = start;
    for random in words() {
        now += MINUTE - Duration::from_secs(1);
        assert_eq!(pick(1, random, now), first, "each connection begins the time anew");
    }
    let others: Vec<_> = words().map(|random| pick(1, random, now + MINUTE * 2)).collect();
    assert!(others.iter().all(|other| *other == others[0]), "the new choice holds in turn");
    let spread: std::collections::HashSet<_> =
        (0..32).map(|i| pick(100 + i, u64::from(i) << 32, start)).collect();
    assert!(spread.len() > 1, "clients are spread over the endpoints");
}

#[test]
fn a_client_whose_endpoint_failed_moves_and_then_stays() {
    let (balancer, routed) = (Balancer::default(), routed(2, Affinity::ClientIp(MINUTE)));
    let now = Instant::now();
    let first = balancer.pick(&routed, asker(1), &[], 0, now).unwrap().address;
    let second = balancer.pick(&routed, asker(1), &[first], 0, now).unwrap().address;
    assert_ne!(first, second);
    assert!(words().all(|r| balancer.pick(&routed, asker(1), &[], r, now).unwrap().address == second));
}

#[test]
fn clients_that_are_silent_do_not_fill_the_table() {
    let table = AffinityTable::default();
    let (start, service) = (Instant::now(), ServiceName { namespace: "a".into(), name: "b".into() });
    for i in 0..100_000_u32 {
        let key = (service.clone(), 80, IpAddr::from(i.to_be_bytes()));
        table.put(key, endpoint(1), MINUTE, start + Duration::from_secs(u64::from(i)));
    }
    assert!(table.len() < 2_000, "{}", table.len());
}

#[test]
fn endpoints_without_connections_do_not_fill_the_table() {
    let loads = super::Loads::default();
    let held = loads.enter(endpoint(1));
    for i in 0..100_000_u32 {
        drop(loads.enter(SocketAddr::from((i.to_be_bytes(), 1))));
    }
    assert!(loads.len() < 2_100, "{}", loads.len());
    assert_eq!(loads.of(&[endpoint(1)]), [1]);
    drop(held);
}
