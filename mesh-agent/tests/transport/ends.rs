//! What arrives, and how connections end: each case over both transports, as plain TCP would do it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use mesh_agent::authorize::{Cut, CutReason};
use mesh_agent::transport::{End, Refusal, RefusalCode, Watch};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::spawn_local;

use crate::world::{BOTH, World, expect_reset, kind, reset, run, until};

#[test]
fn every_size_from_one_byte_to_64_mib_is_echoed_byte_for_byte() {
    run(async {
        for preference in BOTH {
            let world = World::new(preference).await;
            for size in [1, 2, 4095, 16_384, 65_531, 65_532, 65_533, 1 << 20, 64 << 20] {
                let (client, app, relay) = world.pair().await;
                let (mut app_read, mut app_write) = app.into_split();
                let echo = spawn_local(async move {
                    tokio::io::copy(&mut app_read, &mut app_write).await.unwrap();
                    app_write.shutdown().await.unwrap();
                });
                let mut sent = vec![0; size];
                StdRng::seed_from_u64(size as u64).fill_bytes(&mut sent);
                let (mut read, mut write) = client.into_split();
                let copy = sent.clone();
                let writer = spawn_local(async move {
                    write.write_all(&copy).await.unwrap();
                    write.shutdown().await.unwrap();
                });
                let mut got = Vec::with_capacity(size);
                read.read_to_end(&mut got).await.unwrap();
                assert!(got == sent, "{preference:?}, {size} bytes");
                writer.await.unwrap();
                echo.await.unwrap();
                let relayed = relay.await.unwrap();
                assert_eq!((relayed.from_near, relayed.to_near), (size as u64, size as u64));
                assert_eq!(kind(&relayed.end), "finished");
            }
        }
    });
}

#[test]
fn a_banner_comes_before_the_client_says_anything() {
    run(async {
        for preference in BOTH {
            let world = World::new(preference).await;
            let start = Instant::now();
            let (mut client, mut app, _relay) = world.pair().await;
            app.write_all(b"220 hello\r\n").await.unwrap();
            let mut banner = [0; 11];
            client.read_exact(&mut banner).await.unwrap();
            assert_eq!(&banner, b"220 hello\r\n");
            assert!(start.elapsed() < Duration::from_secs(1));
        }
    });
}

#[test]
fn half_close_leaves_the_other_direction_open() {
    run(async {
        for preference in BOTH {
            let world = World::new(preference).await;
            for client_first in [true, false] {
                let (client, app, relay) = world.pair().await;
                let (mut first, mut second) = if client_first { (client, app) } else { (app, client) };
                first.write_all(b"question").await.unwrap();
                first.shutdown().await.unwrap();
                let mut got = Vec::new();
                second.read_to_end(&mut got).await.unwrap();
                assert_eq!(got, b"question");
                tokio::time::sleep(Duration::from_millis(20)).await;
                second.write_all(&vec![7; 300_000]).await.unwrap();
                second.shutdown().await.unwrap();
                got.clear();
                first.read_to_end(&mut got).await.unwrap();
                assert_eq!(got.len(), 300_000);
                assert_eq!(kind(&relay.await.unwrap().end), "finished");
            }
        }
    });
}

#[test]
fn a_reset_of_the_client_reaches_the_application_as_a_reset() {
    run(async {
        for preference in BOTH {
            let world = World::new(preference).await;
            let (mut client, mut app, relay) = world.pair().await;
            client.write_all(b"x").await.unwrap();
            app.read_exact(&mut [0]).await.unwrap();
            reset(client);
            expect_reset(&mut app).await;
            assert_eq!(kind(&relay.await.unwrap().end), "reset-by-near");
            assert_eq!(world.ended(0).await, "ResetByFar");
        }
    });
}

#[test]
fn a_reset_of_the_application_reaches_the_client_as_a_reset() {
    run(async {
        for preference in BOTH {
            let world = World::new(preference).await;
            let (mut client, mut app, relay) = world.pair().await;
            app.write_all(b"x").await.unwrap();
            client.read_exact(&mut [0]).await.unwrap();
            reset(app);
            expect_reset(&mut client).await;
            assert_eq!(kind(&relay.await.unwrap().end), "reset-by-far");
            assert_eq!(world.ended(0).await, "ResetByNear");
        }
    });
}

#[test]
fn closing_with_unread_data_is_a_reset() {
    run(async {
        for preference in BOTH {
            let world = World::new(preference).await;
            let (client, mut app, _relay) = world.pair().await;
            app.write_all(b"never read").await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
            drop(client);
            expect_reset(&mut app).await;
        }
    });
}

#[test]
fn writing_after_the_peer_has_closed_is_answered_with_a_reset() {
    run(async {
        for preference in BOTH {
            let world = World::new(preference).await;
            let (client, mut app, _relay) = world.pair().await;
            drop(client);
            assert_eq!(app.read(&mut [0]).await.unwrap(), 0, "FIN first");
            app.write_all(b"anybody there?").await.unwrap();
            expect_reset_without_more(&mut app).await;
            let (mut client, app, _relay) = world.pair().await;
            drop(app);
            assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
            client.write_all(b"anybody there?").await.unwrap();
            expect_reset_without_more(&mut client).await;
        }
    });
}

/// As plain TCP shows it to somebody who has read FIN and does not write again: the socket reports an error.
async fn expect_reset_without_more(stream: &mut tokio::net::TcpStream) {
    stream.ready(tokio::io::Interest::ERROR).await.unwrap();
    assert!(stream.take_error().unwrap().is_some());
}

#[test]
fn data_that_was_sent_before_a_reset_arrives() {
    run(async {
        for preference in BOTH {
            let world = World::new(preference).await;
            let (mut client, mut app, _relay) = world.pair().await;
            app.write_all(b"last words").await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
            reset(app);
            tokio::time::sleep(Duration::from_millis(50)).await;
            let mut words = [0; 10];
            client.read_exact(&mut words).await.unwrap();
            expect_reset(&mut client).await;
        }
    });
}

#[test]
fn a_reset_is_noticed_while_the_other_side_does_not_read() {
    run(async {
        for preference in BOTH {
            let world = World::new(preference).await;
            let (client, app, relay) = world.pair().await;
            let (client_read, mut write) = client.into_split();
            let filler = spawn_local(async move {
                let block = vec![1; 1 << 20];
                while write.write_all(&block).await.is_ok() {}
                write
            });
            // The application never reads: everything on the way fills up.
            tokio::time::sleep(Duration::from_millis(500)).await;
            reset(app);
            let end = tokio::time::timeout(Duration::from_secs(5), relay)
                .await
                .expect("it was not noticed")
                .unwrap()
                .end;
            assert_eq!(kind(&end), "reset-by-far");
            drop((filler.await.unwrap(), client_read));
        }
    });
}

#[test]
fn a_sender_waits_when_the_receiver_does_not_read() {
    run(async {
        for preference in BOTH {
            let world = World::new(preference).await;
            let (mut client, mut app, relay) = world.pair().await;
            let mut sent = 0_usize;
            let block = vec![9; 1 << 20];
            while let Ok(n) = tokio::time::timeout(Duration::from_millis(500), client.write(&block)).await {
                sent += n.unwrap();
                assert!(sent < 128 << 20, "it never waited");
            }
            client.shutdown().await.unwrap();
            let mut got = 0;
            let mut buf = vec![0; 1 << 20];
            loop {
                let n = app.read(&mut buf).await.unwrap();
                if n == 0 {
                    break;
                }
                got += n;
            }
            assert_eq!(got, sent);
            drop(app);
            assert_eq!(kind(&relay.await.unwrap().end), "finished");
        }
    });
}

#[test]
fn a_refusal_gives_the_client_back_with_what_it_had_sent() {
    run(async {
        for preference in BOTH {
            let world = World::new(preference).await;
            let refusal = Refusal { code: RefusalCode::Denied, message: "no ALLOW policy matched".into() };
            *world.gate.refuse.borrow_mut() = Some(refusal.clone());
            let (mut client, near) = world.client().await;
            client.write_all(b" world").await.unwrap();
            let tunnel = world.dialer.connect(&world.target()).await.unwrap();
            let relayed =
                tunnel.relay(near, Bytes::from_static(b"hello"), Watch::uncounted(Cut::pair().1)).await;
            let End::Refused { refusal: got, near, replay } = relayed.end else { panic!("{relayed:?}") };
            assert_eq!(got, refusal);
            // The try elsewhere succeeds, and nothing is lost or doubled.
            *world.gate.refuse.borrow_mut() = None;
            let tunnel = world.dialer.connect(&world.target()).await.unwrap();
            let relay = spawn_local(tunnel.relay(near, replay, Watch::uncounted(Cut::pair().1)));
            let mut app = world.app.accept().await.unwrap().0;
            let mut text = [0; 11];
            app.read_exact(&mut text).await.unwrap();
            assert_eq!(&text, b"hello world");
            drop((app, client));
            assert_eq!(kind(&relay.await.unwrap().end), "finished");
            assert_eq!(world.way.dials.get(), 1, "a refusal leaves the tunnel usable");
        }
    });
}

#[test]
fn a_cut_resets_both_ends() {
    run(async {
        for preference in BOTH {
            let world = World::new(preference).await;
            let (mut client, mut app, relay) = world.pair().await;
            client.write_all(b"x").await.unwrap();
            app.read_exact(&mut [0]).await.unwrap();
            let handle = world.gate.cuts.borrow_mut().pop().unwrap();
            assert!(handle.cut(CutReason::PodGone));
            expect_reset(&mut client).await;
            expect_reset(&mut app).await;
            assert_eq!(kind(&relay.await.unwrap().end), "reset-by-far");
            assert_eq!(world.ended(0).await, "Cut(PodGone)");
        }
    });
}

#[test]
fn a_cut_at_the_source_resets_both_ends() {
    run(async {
        for preference in BOTH {
            let world = World::new(preference).await;
            let (mut client, near) = world.client().await;
            let (handle, cut) = Cut::pair();
            let tunnel = world.dialer.connect(&world.target()).await.unwrap();
            let relay = spawn_local(tunnel.relay(near, Bytes::new(), Watch::uncounted(cut)));
            let mut app = world.app.accept().await.unwrap().0;
            assert!(handle.cut(CutReason::Drain));
            expect_reset(&mut client).await;
            expect_reset(&mut app).await;
            assert_eq!(kind(&relay.await.unwrap().end), "cut");
        }
    });
}

#[test]
fn a_tunnel_that_dies_resets_the_client() {
    run(async {
        for preference in BOTH {
            let world = World::new(preference).await;
            let (mut client, mut app, relay) = world.pair().await;
            client.write_all(b"x").await.unwrap();
            app.read_exact(&mut [0]).await.unwrap();
            world.acceptor.abort();
            expect_reset(&mut client).await;
            let end = relay.await.unwrap().end;
            assert!(matches!(kind(&end), "tunnel-lost" | "reset-by-far"), "{end:?}");
        }
    });
}

#[test]
fn an_urgent_byte_stays_in_its_place() {
    run(async {
        for preference in BOTH {
            let world = World::new(preference).await;
            let (client, mut app, _relay) = world.pair().await;
            let socket = socket2::SockRef::from(&client);
            socket.send(b"a").unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
            socket.send_out_of_band(b"!").unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
            socket.send(b"b").unwrap();
            let mut got = [0; 3];
            app.read_exact(&mut got).await.unwrap();
            assert_eq!(&got, b"a!b");
        }
    });
}

#[test]
fn two_hundred_connections_at_once_do_not_mix() {
    run(async {
        for preference in BOTH {
            let world = std::rc::Rc::new(World::new(preference).await);
            let app = std::rc::Rc::clone(&world);
            let echo = spawn_local(async move {
                for _ in 0..200 {
                    let (mut read, mut write) = app.app.accept().await.unwrap().0.into_split();
                    spawn_local(async move { tokio::io::copy(&mut read, &mut write).await });
                }
            });
            let clients: Vec<_> = (0..200_u32)
                .map(|n| {
                    let world = std::rc::Rc::clone(&world);
                    spawn_local(async move {
                        let (mut client, relay) = world.begin().await;
                        let text = vec![n as u8; 1000 + n as usize];
                        client.write_all(&text).await.unwrap();
                        client.shutdown().await.unwrap();
                        let mut got = Vec::new();
                        client.read_to_end(&mut got).await.unwrap();
                        assert!(got == text);
                        assert_eq!(kind(&relay.await.unwrap().end), "finished");
                    })
                })
                .collect();
            for client in clients {
                client.await.unwrap();
            }
            echo.await.unwrap();
            until(|| world.gate.ended.borrow().len() == 200).await;
        }
    });
}
