//! Plain TCP to plain TCP.

use bytes::Bytes;
use mesh_agent::authorize::{Cut, CutHandle, CutReason};
use mesh_agent::transport::{Relayed, Watch, plain};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, spawn_local};

use crate::world::{expect_reset, kind, reset, run};

struct Ends {
    client: TcpStream,
    app: TcpStream,
    cut: CutHandle,
    relay: JoinHandle<Relayed>,
}

async fn ends(replay: &'static [u8]) -> Ends {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let client = TcpStream::connect(address).await.unwrap();
    let near = listener.accept().await.unwrap().0;
    let far = TcpStream::connect(address).await.unwrap();
    let app = listener.accept().await.unwrap().0;
    let (cut, waiting) = Cut::pair();
    let relay = spawn_local(plain::relay(near, far, Bytes::from_static(replay), Watch::uncounted(waiting)));
    Ends { client, app, cut, relay }
}

#[test]
fn replay_data_and_fin_arrive_in_order_in_both_directions() {
    run(async {
        let Ends { mut client, mut app, relay, cut: _cut } = ends(b"hello ").await;
        let mut got = Vec::new();
        let writer = async {
            client.write_all(&vec![b'x'; 3 << 20]).await.unwrap();
            client.shutdown().await.unwrap();
        };
        let (_, read) = tokio::join!(writer, app.read_to_end(&mut got));
        read.unwrap();
        assert_eq!(got.len(), 6 + (3 << 20));
        assert_eq!(&got[..7], b"hello x");
        app.write_all(b"bye").await.unwrap();
        drop(app);
        let mut text = String::new();
        client.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "bye");
        let relayed = relay.await.unwrap();
        assert_eq!((relayed.from_near, relayed.to_near, kind(&relayed.end)), (6 + (3 << 20), 3, "finished"));
    });
}

#[test]
fn a_reset_stays_a_reset() {
    run(async {
        let Ends { client, mut app, relay, cut: _cut } = ends(b"").await;
        reset(client);
        expect_reset(&mut app).await;
        assert_eq!(kind(&relay.await.unwrap().end), "reset-by-near");
        let Ends { mut client, app, relay, cut: _cut } = ends(b"").await;
        reset(app);
        expect_reset(&mut client).await;
        assert_eq!(kind(&relay.await.unwrap().end), "reset-by-far");
    });
}

#[test]
fn a_cut_resets_both_ends() {
    run(async {
        let Ends { mut client, mut app, relay, cut } = ends(b"").await;
        assert!(cut.cut(CutReason::Drain));
        expect_reset(&mut client).await;
        expect_reset(&mut app).await;
        assert_eq!(kind(&relay.await.unwrap().end), "cut");
    });
}

#[test]
fn an_answer_that_came_before_a_reset_is_delivered() {
    run(async {
        let Ends { mut client, mut app, relay, cut: _cut } = ends(b"").await;
        app.write_all(b"413 too large").await.unwrap();
        client.write_all(b"unread").await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(30)).await;
        drop(app);
        let mut got = [0; 13];
        client.read_exact(&mut got).await.unwrap();
        expect_reset(&mut client).await;
        assert_eq!(kind(&relay.await.unwrap().end), "reset-by-far");
    });
}
