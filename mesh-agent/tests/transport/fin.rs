//! What rides along: OPENED with the first answer, and with the acceptor's FIN how much had been delivered.

use std::time::Duration;

use mesh_agent::transport::TransportPreference;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::world::{World, expect_reset, kind, reset, run};

const LEASE: TransportPreference = TransportPreference::FerromeshOnly;

#[test]
fn a_server_that_ends_first_frees_the_lease_at_once() {
    run(async {
        let world = World::new(LEASE).await;
        for _ in 0..200 {
            let (mut client, mut app, relay) = world.pair().await;
            client.write_all(b"ping").await.unwrap();
            app.read_exact(&mut [0; 4]).await.unwrap();
            app.write_all(b"pong").await.unwrap();
            drop(app);
            let mut got = Vec::new();
            client.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, b"pong");
            drop(client);
            assert_eq!(kind(&relay.await.unwrap().end), "finished");
            assert_eq!(world.dialer.idle_leases(), 1);
        }
        assert_eq!(world.way.dials.get(), 1, "no connection had to wait for a word from the far side");
    });
}

#[test]
fn an_application_that_is_reset_after_its_fin_resets_its_own_client() {
    run(async {
        let world = World::new(LEASE).await;
        let (mut client, mut app, relay) = world.pair().await;
        client.write_all(b"ping").await.unwrap();
        app.read_exact(&mut [0; 4]).await.unwrap();
        app.shutdown().await.unwrap();
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        reset(app);
        assert_eq!(kind(&relay.await.unwrap().end), "reset-by-far");
        assert!(world.ended(0).await.starts_with("ResetByNear"), "{}", world.ended(0).await);
        assert!(client.write_all(b"x").await.is_err() || client.write_all(b"x").await.is_err());
        assert_eq!(world.dialer.idle_leases(), 0, "what ended unclean is not leased again");
    });
}

#[test]
fn an_application_that_is_reset_after_its_fin_harms_no_later_connection() {
    run(async {
        let world = World::new(LEASE).await;
        for round in 0..300 {
            let (mut client, mut app, relay) = world.pair().await;
            client.write_all(b"ping").await.unwrap();
            app.read_exact(&mut [0; 4]).await.unwrap();
            app.write_all(b"pong").await.unwrap();
            app.shutdown().await.unwrap();
            let mut got = Vec::new();
            client.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, b"pong");
            // Both at once: whose news is first is open, and the lease may be taken again before the acceptor's.
            client.shutdown().await.unwrap();
            let ended = if round % 2 == 0 {
                let ended = relay.await.unwrap().end;
                reset(app);
                ended
            } else {
                reset(app);
                relay.await.unwrap().end
            };
            assert!(["finished", "reset-by-far"].contains(&kind(&ended)), "{ended:?}");
        }
    });
}

#[test]
fn a_client_that_sends_without_an_answer_is_not_held_up() {
    run(async {
        let world = World::new(LEASE).await;
        for first in [1, 16 << 10, 60 << 10] {
            let (mut client, mut app, relay) = world.pair().await;
            client.write_all(&vec![7; first]).await.unwrap();
            app.read_exact(&mut vec![0; first]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
            let (sent, mut got) = (vec![8; 1 << 20], vec![0; 1 << 20]);
            let (written, read) = tokio::join!(client.write_all(&sent), app.read_exact(&mut got));
            written.unwrap();
            read.unwrap();
            assert_eq!(got, sent);
            reset(app);
            expect_reset(&mut client).await;
            assert_eq!(kind(&relay.await.unwrap().end), "reset-by-far");
        }
    });
}

#[test]
fn a_reset_before_any_answer_reaches_a_client_that_has_sent_something() {
    run(async {
        let world = World::new(LEASE).await;
        let (mut client, mut app, relay) = world.pair().await;
        client.write_all(b"ping").await.unwrap();
        app.read_exact(&mut [0; 4]).await.unwrap();
        reset(app);
        expect_reset(&mut client).await;
        assert_eq!(kind(&relay.await.unwrap().end), "reset-by-far");
    });
}
