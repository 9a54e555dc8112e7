//! Who is let in: each bad certificate is refused with its own reason, at the side that has to notice.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_agent::identify::{HandshakeFailure, Svid, client_config, provider};
use mesh_agent::transport::{ALPN_FERROMESH, OpenError, ServeError, TransportPreference};
use rustls::pki_types::ServerName;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::pki::{Leaf, Root};
use crate::world::{BOTH, CLIENT, SERVER, World, run, until};

const FOREIGN: &str = "spiffe://other.test/ns/shop/sa/web";

fn expired(identity: &str) -> Leaf {
    Leaf { until: SystemTime::now() - Duration::from_secs(60), ..Leaf::of(identity) }
}

fn two(identity: &str) -> Leaf {
    Leaf { uris: vec![identity.into(), CLIENT.into()], ..Leaf::of(identity) }
}

/// What the acceptor says of a client that shows `svid`.
async fn server_refuses(world: &World, svid: &Arc<Svid>) -> HandshakeFailure {
    let before = world.served.borrow().len();
    // In TLS 1.3 the client's handshake is over before the server has looked at its certificate.
    let tunnel = world.dialer.connect(&world.target_as(svid, "pod-bad")).await;
    if let Ok(tunnel) = tunnel {
        let (mut client, relay) = world.begin_on(tunnel).await;
        let end = relay.await.unwrap().end;
        assert!(matches!(end, mesh_agent::transport::End::TunnelLost(_)), "{end:?}");
        assert_eq!(client.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }
    until(|| world.served.borrow().len() > before).await;
    match world.served.borrow().last() {
        Some(Err(ServeError::Handshake { reason, .. })) => reason.clone(),
        other => panic!("it was served: {other:?}"),
    }
}

#[test]
fn a_client_with_a_bad_certificate_is_refused_with_its_reason() {
    run(async {
        for preference in BOTH {
            let world = World::new(preference).await;
            let root = &world.root;
            let foreign = Leaf { uris: vec![FOREIGN.into()], ..Leaf::of(CLIENT) };
            let none = Leaf { uris: Vec::new(), ..Leaf::of(CLIENT) };
            let text = Leaf { uris: vec!["spiffe://mesh.test/workload".into()], ..Leaf::of(CLIENT) };
            let cases = [
                ("expired", root.svid(CLIENT, &expired(CLIENT))),
                ("uri_san_count", root.svid(CLIENT, &two(CLIENT))),
                ("uri_san_count", root.svid(CLIENT, &none)),
                ("not_a_spiffe_id", root.svid(CLIENT, &text)),
                ("other_trust_domain", root.svid(CLIENT, &foreign)),
                ("unknown_root", Root::new("two").svid(CLIENT, &Leaf::of(CLIENT))),
            ];
            for (code, svid) in cases {
                assert_eq!(server_refuses(&world, &svid).await.code(), code);
            }
            assert!(world.gate.opens.borrow().is_empty(), "nothing was admitted");
        }
    });
}

#[test]
fn a_client_without_certificate_is_refused() {
    run(async {
        let world = World::new(TransportPreference::Ferromesh).await;
        let target = world.target();
        let trust = world.store.trust();
        let config =
            client_config(&target.svid, &trust, &target.workload.identity, &[ALPN_FERROMESH]).unwrap();
        let mut config = rustls::ClientConfig::clone(&config);
        config.client_auth_cert_resolver = Arc::new(NoCertificate);
        let tcp = TcpStream::connect(world.way.to.get()).await.unwrap();
        let name = ServerName::try_from("10.0.0.7").unwrap();
        let stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await;
        until(|| !world.served.borrow().is_empty()).await;
        drop(stream);
        match &world.served.borrow()[0] {
            Err(ServeError::Handshake { reason, .. }) => assert_eq!(reason.code(), "no_certificate"),
            other => panic!("{other:?}"),
        };
    });
}

#[derive(Debug)]
struct NoCertificate;

impl rustls::client::ResolvesClientCert for NoCertificate {
    fn resolve(
        &self,
        _roots: &[&[u8]],
        _schemes: &[rustls::SignatureScheme],
    ) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[test]
fn a_server_with_a_bad_certificate_is_refused_with_its_reason() {
    run(async {
        for preference in BOTH {
            let foreign = Leaf { uris: vec![FOREIGN.into()], ..Leaf::of(SERVER) };
            for (code, leaf) in [
                ("expired", expired(SERVER)),
                ("uri_san_count", two(SERVER)),
                ("other_trust_domain", foreign),
            ] {
                let root = Root::new("one");
                let svid = root.svid(SERVER, &leaf);
                let world = World::with(preference, root, svid).await;
                assert_eq!(world.connect_error().await.code(), code);
            }
            let stranger = Root::new("two").svid(SERVER, &Leaf::of(SERVER));
            let world = World::with(preference, Root::new("one"), stranger).await;
            assert_eq!(world.connect_error().await.code(), "unknown_root");
        }
    });
}

#[test]
fn a_server_that_proves_another_identity_is_refused_and_nothing_is_asked_of_it() {
    run(async {
        for preference in BOTH {
            let root = Root::new("one");
            let svid = root.svid(SERVER, &Leaf::of(CLIENT));
            let world = World::with(preference, root, svid).await;
            let error = world.connect_error().await;
            assert!(
                matches!(&error, OpenError::WrongIdentity { reason, .. } if reason.contains("/sa/web")),
                "{error}"
            );
            assert!(world.gate.opens.borrow().is_empty());
        }
    });
}

#[test]
fn the_acceptor_learns_the_proven_identity_the_destination_and_the_client() {
    run(async {
        for preference in BOTH {
            let world = World::new(preference).await;
            let _pair = world.pair().await;
            let opens = world.gate.opens.borrow();
            assert_eq!(opens[0].0.to_string(), CLIENT);
            assert_eq!(opens[0].2, world.target().open);
        }
    });
}

#[test]
fn only_tls_13_with_the_hybrid_key_exchange_first_is_spoken() {
    let provider = provider();
    assert_eq!(provider.kx_groups[0].name(), rustls::NamedGroup::X25519MLKEM768);
    assert!(provider.cipher_suites.iter().all(|suite| suite.tls13().is_some()));
}

#[test]
fn an_expired_svid_of_our_own_is_not_shown() {
    run(async {
        let world = World::new(TransportPreference::Ferromesh).await;
        let mut target = world.target();
        let svid = &world.client_svid;
        target.svid = Arc::new(Svid {
            identity: svid.identity.clone(),
            key: Arc::clone(&svid.key),
            not_before: svid.not_before,
            not_after: SystemTime::now(),
            generation: 1,
        });
        let error = world.dialer.connect(&target).await.expect_err("it connected");
        assert_eq!(error.code(), "own_certificate_expired");
        assert_eq!(world.way.dials.get(), 0);
    });
}
