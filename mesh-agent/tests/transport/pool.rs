//! What is used again, and what never is.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mesh_agent::transport::{Protocol, TransportPreference};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::pki::{Leaf, Root, trust};
use crate::world::{BOTH, CLIENT, World, expect_reset, kind, reset, run, until};

const LEASE: TransportPreference = TransportPreference::FerromeshOnly;

/// One whole connection, ended clean by the client.
pub(crate) async fn clean(world: &World) {
    let (mut client, mut app, relay) = world.pair().await;
    client.write_all(b"ping").await.unwrap();
    client.shutdown().await.unwrap();
    let mut got = Vec::new();
    app.read_to_end(&mut got).await.unwrap();
    app.write_all(&got).await.unwrap();
    drop(app);
    got.clear();
    client.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"ping");
    assert_eq!(kind(&relay.await.unwrap().end), "finished");
}

/// Lets what is under way arrive.
pub(crate) async fn settle() {
    tokio::time::sleep(Duration::from_millis(30)).await;
}

#[test]
fn a_tunnel_is_used_again_after_a_clean_end() {
    run(async {
        for preference in BOTH {
            let world = World::new(preference).await;
            for _ in 0..50 {
                clean(&world).await;
            }
            assert_eq!(world.way.dials.get(), 1);
        }
    });
}

#[test]
fn a_lease_is_never_used_again_after_an_unclean_end() {
    run(async {
        let world = World::new(LEASE).await;
        for n in 1..=3 {
            let (client, mut app, relay) = world.pair().await;
            reset(client);
            expect_reset(&mut app).await;
            relay.await.unwrap();
            assert_eq!(world.way.dials.get(), n);
            assert_eq!(world.dialer.idle_leases(), 0);
            let (mut client, app, relay) = world.pair().await;
            reset(app);
            expect_reset(&mut client).await;
            relay.await.unwrap();
            assert_eq!(world.dialer.idle_leases(), 0);
            world.way.dials.set(n);
        }
    });
}

#[test]
fn a_lease_is_not_used_again_before_the_application_has_everything() {
    run(async {
        let world = World::new(LEASE).await;
        let (mut client, mut app, relay) = world.pair().await;
        // The application says that it is done, but does not read what the client still sends.
        app.shutdown().await.unwrap();
        client.write_all(&vec![5; 64 << 10]).await.unwrap();
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        let block = vec![5; 1 << 20];
        let mut sent = 64 << 10;
        while let Ok(n) = tokio::time::timeout(Duration::from_millis(200), client.write(&block)).await {
            sent += n.unwrap();
        }
        client.shutdown().await.unwrap();
        let second = world.pair().await;
        assert_eq!(world.way.dials.get(), 2, "the busy lease was not taken");
        let mut got = Vec::new();
        app.read_to_end(&mut got).await.unwrap();
        assert_eq!(got.len(), sent);
        assert_eq!(kind(&relay.await.unwrap().end), "finished");
        settle().await;
        let third = world.pair().await;
        assert_eq!(world.way.dials.get(), 2, "now it is free");
        drop((second, third));
    });
}

#[test]
fn a_tunnel_never_crosses_pods_identities_or_certificates() {
    run(async {
        for preference in BOTH {
            let world = World::new(preference).await;
            clean(&world).await;
            settle().await;
            let other = "spiffe://mesh.test/ns/shop/sa/other";
            let renewed = Leaf { generation: 2, ..Leaf::of(CLIENT) };
            let targets = [
                world.target_as(&world.root.svid(other, &Leaf::of(other)), "pod-web"),
                world.target_as(&world.client_svid, "pod-web-2"),
                world.target_as(&world.root.svid(CLIENT, &renewed), "pod-web"),
            ];
            for (n, target) in targets.iter().enumerate() {
                let tunnel = world.dialer.connect(target).await.unwrap();
                assert!(!tunnel.is_warm());
                assert_eq!(world.way.dials.get(), n + 2);
                let (_client, _relay) = world.begin_on(tunnel).await;
                let _app = world.app.accept().await.unwrap();
                let opens = world.gate.opens.borrow();
                assert_eq!(opens.last().unwrap().0, target.svid.identity);
            }
            assert!(world.dialer.connect(&world.target()).await.unwrap().is_warm());
        }
    });
}

#[test]
fn a_change_of_the_trust_bundle_retires_idle_tunnels() {
    run(async {
        for preference in BOTH {
            let world = World::new(preference).await;
            clean(&world).await;
            settle().await;
            let next = Root::new("next");
            world.store.set_roots(trust(&[&world.root, &next]));
            world.far_store.set_roots(trust(&[&world.root, &next]));
            clean(&world).await;
            assert_eq!(world.way.dials.get(), 2);
        }
    });
}

#[test]
fn the_idle_tunnels_of_a_pod_that_is_gone_are_closed_at_once_and_those_of_others_stay() {
    run(async {
        for preference in BOTH {
            let world = World::new(preference).await;
            clean(&world).await;
            let other = world.target_as(&world.client_svid, "pod-web-2");
            world.dialer.connect(&other).await.unwrap().release();
            settle().await;
            world.dialer.close_pod(&world.target().source_pod.uid);
            until(|| world.served.borrow().len() == 1).await;
            assert!(world.served.borrow()[0].is_ok());
            assert!(world.dialer.connect(&other).await.unwrap().is_warm());
            assert!(!world.dialer.connect(&world.target()).await.unwrap().is_warm());
        }
    });
}

#[test]
fn an_open_under_a_root_that_went_is_not_admitted() {
    run(async {
        for preference in BOTH {
            let world = World::new(preference).await;
            let tunnel = world.dialer.connect(&world.target()).await.unwrap();
            settle().await;
            // The acceptor trusts another root by the time that OPEN comes.
            world.far_store.set_roots(trust(&[&Root::new("next")]));
            let (mut client, relay) = world.begin_on(tunnel).await;
            let relayed = relay.await.unwrap();
            assert!(matches!(kind(&relayed.end), "tunnel-lost" | "refused"), "{relayed:?}");
            if kind(&relayed.end) == "tunnel-lost" {
                expect_reset(&mut client).await;
            }
            assert!(world.gate.opens.borrow().is_empty());
        }
    });
}

#[test]
fn a_warm_tunnel_that_died_in_the_pool_costs_the_client_nothing() {
    run(async {
        for preference in BOTH {
            let world = World::new(preference).await;
            clean(&world).await;
            settle().await;
            // The acceptor dies without a word; another one takes its place.
            let heir = heir(&world).await;
            world.acceptor.abort();
            settle().await;
            clean(&world).await;
            assert_eq!(world.way.dials.get(), 2);
            drop(heir);
        }
    });
}

#[test]
fn drain_closes_idle_tunnels_and_lets_open_connections_finish() {
    run(async {
        for preference in BOTH {
            let world = World::new(preference).await;
            let (mut client, mut app, relay) = world.pair().await;
            world.drain.drain();
            settle().await;
            client.write_all(b"still here").await.unwrap();
            client.shutdown().await.unwrap();
            let mut got = Vec::new();
            app.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, b"still here");
            drop(app);
            assert_eq!(kind(&relay.await.unwrap().end), "finished");
            until(|| world.served.borrow().len() == 1).await;
            assert!(world.served.borrow()[0].is_ok());
            assert_eq!(world.dialer.idle_leases(), 0);
        }
    });
}

#[test]
fn drain_of_an_idle_lease_is_seen_before_it_is_leased_again() {
    run(async {
        let world = World::new(LEASE).await;
        clean(&world).await;
        settle().await;
        assert_eq!(world.dialer.idle_leases(), 1);
        world.drain.drain();
        until(|| world.dialer.idle_leases() == 0).await;
        until(|| world.served.borrow().len() == 1).await;
    });
}

#[test]
fn an_open_that_crosses_drain_is_asked_again_on_a_fresh_tunnel() {
    run(async {
        for preference in BOTH {
            let world = World::new(preference).await;
            clean(&world).await;
            settle().await;
            let tunnel = world.dialer.connect(&world.target()).await.unwrap();
            assert!(tunnel.is_warm());
            // A second acceptor takes over; the first drains while the tunnel is leased.
            let heir = heir(&world).await;
            world.drain.drain();
            settle().await;
            let (mut client, relay) = world.begin_on(tunnel).await;
            client.write_all(b"not lost").await.unwrap();
            client.shutdown().await.unwrap();
            let mut app = world.app.accept().await.unwrap().0;
            let mut got = Vec::new();
            app.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, b"not lost");
            drop(app);
            assert_eq!(kind(&relay.await.unwrap().end), "finished");
            assert_eq!(world.way.dials.get(), 2);
            drop(heir);
        }
    });
}

/// Another acceptor of the same pod, to which the dialler's way now leads.
async fn heir(world: &World) -> mesh_agent::transport::DrainHandle {
    use mesh_agent::transport::{Acceptor, AcceptorSettings, Drain};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.way.to.set(listener.local_addr().unwrap());
    let acceptor = Acceptor::new(Arc::clone(&world.far_store), AcceptorSettings::default());
    let svid = world.root.svid(crate::world::SERVER, &Leaf::of(crate::world::SERVER));
    let (handle, drain) = Drain::pair();
    let gate = Rc::clone(&world.gate);
    tokio::task::spawn_local(async move {
        let (io, _) = listener.accept().await.unwrap();
        acceptor.serve(io, &svid, gate, drain).await
    });
    handle
}

#[test]
fn by_default_the_lease_is_chosen_and_each_transport_meets_the_other() {
    run(async {
        for (preference, wanted) in [
            (TransportPreference::Ferromesh, Protocol::Ferromesh),
            (TransportPreference::HboneOnly, Protocol::Hbone),
            (TransportPreference::FerromeshOnly, Protocol::Ferromesh),
        ] {
            let world = World::new(preference).await;
            let tunnel = world.dialer.connect(&world.target()).await.unwrap();
            assert_eq!(tunnel.protocol(), wanted);
            let (_client, _relay) = world.begin_on(tunnel).await;
            let _app = world.app.accept().await.unwrap();
            assert_eq!(world.gate.opens.borrow()[0].1, wanted);
        }
    });
}

#[test]
fn a_burst_over_hbone_shares_few_connections() {
    run(async {
        let world = Rc::new(World::new(TransportPreference::HboneOnly).await);
        let done = Rc::new(Cell::new(0));
        for _ in 0..60 {
            let (world, done) = (Rc::clone(&world), Rc::clone(&done));
            tokio::task::spawn_local(async move {
                let pair = world.pair().await;
                done.set(done.get() + 1);
                std::future::pending::<()>().await;
                drop(pair);
            });
        }
        until(|| done.get() == 60).await;
        assert!((2..=4).contains(&world.way.dials.get()), "{}", world.way.dials.get());
    });
}
