//! How long a proven identity holds: tunnels, idle or not, end with a certificate and with the root that signed it, at
//! each side by itself.

use std::time::{Duration, SystemTime};

use mesh_agent::transport::TransportPreference;

use crate::pki::{Leaf, Root, trust};
use crate::pool::{clean, settle};
use crate::world::{BOTH, CLIENT, SERVER, World, expect_reset, kind, run, until};

/// A certificate of a few seconds: it counts in whole ones.
fn short(identity: &str) -> Leaf {
    Leaf { until: SystemTime::now() + Duration::from_secs(3), ..Leaf::of(identity) }
}

#[test]
fn an_open_connection_ends_at_the_side_that_trusts_the_peers_root_no_more() {
    run(async {
        for preference in BOTH {
            for dialling in [true, false] {
                let world = World::new(preference).await;
                let (mut client, mut app, relay) = world.pair().await;
                let store = if dialling { &world.store } else { &world.far_store };
                // A bundle that still has the root harms nobody.
                store.set_roots(trust(&[&world.root, &Root::new("next")]));
                settle().await;
                assert!(!relay.is_finished());
                store.set_roots(trust(&[&Root::new("next")]));
                let (near, far) = (relay.await.unwrap().end, world.ended(0).await);
                let cut = if dialling { format!("{near:?}") } else { far };
                assert!(cut.contains("IdentityEnded"), "{preference:?}, dialling {dialling}: {cut}");
                expect_reset(&mut client).await;
                expect_reset(&mut app).await;
            }
        }
    });
}

#[test]
fn an_open_connection_ends_with_the_certificate_of_the_peer() {
    run(async {
        for preference in BOTH {
            let world = World::new(preference).await;
            let target = world.target_as(&world.root.svid(CLIENT, &short(CLIENT)), "pod-web");
            let (mut client, relay) = world.begin_on(world.dialer.connect(&target).await.unwrap()).await;
            let far = world.ended(0).await;
            assert!(far.contains("IdentityEnded"), "{far}");
            expect_reset(&mut client).await;
            drop(relay);

            let root = Root::new("one");
            let svid = root.svid(SERVER, &short(SERVER));
            let world = World::with(preference, root, svid).await;
            let (mut client, _app, relay) = world.pair().await;
            let near = relay.await.unwrap().end;
            assert_eq!(kind(&near), "cut", "{near:?}");
            expect_reset(&mut client).await;
        }
    });
}

#[test]
fn an_idle_tunnel_ends_with_the_certificate_or_the_root_of_the_peer() {
    run(async {
        for preference in BOTH {
            let world = World::new(preference).await;
            let target = world.target_as(&world.root.svid(CLIENT, &short(CLIENT)), "pod-web-2");
            clean(&world).await;
            world.dialer.connect(&target).await.unwrap().release();
            // The one that the short certificate opened goes, the other one stays.
            until(|| world.served.borrow().len() == 1).await;
            assert!(world.dialer.connect(&world.target()).await.unwrap().is_warm());
            world.far_store.set_roots(trust(&[&Root::new("next")]));
            until(|| world.served.borrow().len() == 2).await;
        }
    });
}

#[test]
fn a_lease_is_not_taken_when_the_servers_certificate_has_ended() {
    run(async {
        let root = Root::new("one");
        let svid = root.svid(SERVER, &short(SERVER));
        let world = World::with(TransportPreference::FerromeshOnly, root, svid).await;
        clean(&world).await;
        assert!(world.dialer.connect(&world.target()).await.unwrap().is_warm());
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert_eq!(world.connect_error().await.code(), "expired");
    });
}

#[test]
fn a_tunnel_carries_no_more_connections_in_the_second_half_of_what_its_certificates_had_left() {
    run(async {
        for preference in BOTH {
            let root = Root::new("one");
            let until = SystemTime::now() + Duration::from_secs(12);
            let svid = root.svid(SERVER, &Leaf { until, ..Leaf::of(SERVER) });
            let world = World::with(preference, root, svid).await;
            clean(&world).await;
            clean(&world).await;
            assert_eq!(world.way.dials.get(), 1, "there is enough left");
            tokio::time::sleep(Duration::from_millis(6500)).await;
            // The server would show a newer certificate by now.
            clean(&world).await;
            assert_eq!(world.way.dials.get(), 2, "{preference:?}");
        }
    });
}
